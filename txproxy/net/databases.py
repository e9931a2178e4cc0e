"""What statements about databases and roles ask of all pools of a server."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from txproxy.config import PoolSettings
from txproxy.core.claims import Claim
from txproxy.core.pool import Pool

if TYPE_CHECKING:
    from txproxy.net.server import Server

_QUIET: Final = 1.0  # seconds between two lines about the same database
_QUIET_LIMIT: Final = 1000  # databases
_LOCAL: Final = frozenset(("localhost", "127.0.0.1", "::1"))


class Databases:
    """Finds the pools that lead to the databases of a server, whatever clients call them."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._told_at: dict[str, float] = {}

    def claimed(self, pool: Pool, names: Sequence[str], claim: Claim) -> None:
        """These databases of `pool`'s server are to have no connections."""
        closed = dict.fromkeys(names, 0)
        for other in self._beside(pool):
            if other.settings.dbname in closed:
                closed[other.settings.dbname] += other.claimed(claim)

        def leads_there(settings: PoolSettings) -> bool:
            return settings.dbname in closed and _same(settings, pool)

        for asks in (self._server.authenticator, self._server.monitor):
            for settings in asks.leave(leads_there):
                closed[settings.dbname] += 1
        for name, number in closed.items():
            if number:
                self._tell(name, number, pool)

    def _tell(self, name: str, number: int, pool: Pool) -> None:
        now = self._server.clock()
        if now - self._told_at.get(name, -_QUIET) < _QUIET:
            return
        if len(self._told_at) >= _QUIET_LIMIT:
            self._told_at.clear()
        self._told_at[name] = now
        fields = {"database": name, "connections": number, "pool": pool.name}
        self._server.event("left database", fields)

    def defaults_changed(self, pool: Pool) -> None:
        """What sessions on `pool`'s server begin with has changed."""
        self._server.event("defaults changed", {"pool": pool.name})
        for other in self._beside(pool):
            other.defaults_changed()

    def _beside(self, pool: Pool) -> Iterator[Pool]:
        """The pools that lead to the same server, itself included."""
        for other in [*self._server.pools.values(), *self._server.orphans]:
            if _same(other.settings, pool):
                yield other


def _same(settings: PoolSettings, pool: Pool) -> bool:
    """Whether these lead to the server of `pool`, as far as names tell."""
    return settings.port == pool.settings.port and not _hosts(settings).isdisjoint(
        _hosts(pool.settings)
    )


def _hosts(settings: PoolSettings) -> frozenset[str]:
    """A unix socket is this machine's, as is localhost."""
    return frozenset(
        "localhost" if host in _LOCAL or host.startswith("/") else host for host in settings.hosts
    )
