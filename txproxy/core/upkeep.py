"""What a pool's idle and old backends need, once a second: by the janitor.

Those that nobody has needed for long are closed (server_idle_timeout), old ones replaced
(server_lifetime), and the others asked whether they still answer (server_check_delay), so that no
client has to.
"""

from typing import TYPE_CHECKING

from txproxy.core.backend import Backend

if TYPE_CHECKING:
    from txproxy.core.pool import Pool


class Upkeep:
    """Of one pool. `checking` are its backends that are being asked: neither idle nor lent."""

    def __init__(self, pool: "Pool") -> None:
        self.checking: set[Backend] = set()
        self._pool = pool
        self._checked_at = pool.outside.now
        self._retire_at = 0.0

    def look(self, now: float) -> None:
        """`now` in seconds."""
        self._close_unused(now)
        self._retire_oldest(now)
        self._check_idle(now)

    def settings_changed(self) -> None:
        """Another server_lifetime may hold."""
        self._retire_at = 0.0

    def _close_unused(self, now: float) -> None:
        pool = self._pool
        limit = pool.settings.server_idle_timeout
        while limit and pool.idle and len(pool.backends) > pool.settings.min_pool_size:
            if now - pool.idle[0].idle_since < limit:
                break
            pool.idle[0].close("server_idle_timeout")

    def _retire_oldest(self, now: float) -> None:
        """At most one per server_lifetime / pool_size, as PgBouncer: those that were connected
        together are not replaced together.
        """
        pool = self._pool
        lifetime = pool.settings.server_lifetime
        if not lifetime or now < self._retire_at:
            return
        staying = [backend for backend in pool.backends if not backend.retiring]
        oldest = min(staying, key=_opened_at, default=None)
        if oldest is None or now - oldest.opened_at < lifetime:
            self._retire_at = lifetime + (now if oldest is None else oldest.opened_at)
            return
        self._retire_at = now + lifetime / pool.size
        oldest.retiring = "server_lifetime"
        if oldest in pool.idle:
            oldest.close("server_lifetime")

    def _check_idle(self, now: float) -> None:
        """An empty query for each backend that has been idle for another server_check_delay."""
        idle = self._pool.idle
        delay = self._pool.settings.server_check_delay
        last = self._checked_at
        self._checked_at = now
        if not delay or not idle or now - idle[0].idle_since < delay:
            return
        for backend in list(idle):
            since = backend.idle_since
            if (now - since) // delay > max(last - since, 0.0) // delay:
                self._check(backend, now)

    def _check(self, backend: Backend, now: float) -> None:
        pool = self._pool
        pool.idle.remove(backend)
        self.checking.add(backend)
        backend.settling = True
        backend.deadline = now + pool.outside.rollback_timeout
        backend.port.write(backend.ours(b"", "check"))


def _opened_at(backend: Backend) -> float:
    return backend.opened_at
