"""What keeps pools from growing: limits that they share, and the pause after a failure.

max_db_connections holds for all pools of one database, max_user_connections for all pools of one
server user. Each pool is in one group of each kind; two pools have at most one group in common.
When a limit is reached, whose is the next place?

*Who needs it most*: a pool that holds none; then the one that holds the fewest; among equals the
one that has been kept from growing for longest. A place that becomes free goes there.

*Idle backends first.* One that serves nobody is closed for one that will, the longest idle first;
not below its pool's min_pool_size, unless the pool in need holds none at all. A pool that holds
some has `PATIENCE` before: while statements are short, one of its own comes back sooner than
another could be connected, and busy pools would close each other's backends in every gap.

*All are busy.* Nobody's transaction is cut short: a place changes hands when a backend comes back.
From pool B to pool A if A then still holds fewer (A + 1 <= B - 1). A difference of one stays as it
is: it would only move to and fro, at the price of a connection each time. So pools that want more
than there is end up with even shares, and then keep their backends.

*More pools than places.* Then even shares are not enough: whoever holds none takes a place from
whoever has waited less, or does not wait. Each turn costs a connection, but the longest waiter of
all is served next, so nobody starves.

*Both limits are reached.* Two places would have to become free at once, and between busy pools
they never do. So one pool at a time may have a place kept for it in the database's group
(`claimant`) until its user's group has one too; never the other way round, so that two pools cannot
each hold what the other one waits for.

After a failed attempt: see `BackOff`.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.pool import Pool

PATIENCE: Final = 0.1
"""Seconds that a pool with backends waits for its own, and that others' must have been idle."""

_FIRST_PAUSE: Final = 0.1


class Group:
    """The pools of one database, or of one server user, and what holds for all of them together.

    limit         most server connections; 0: no limit
    connections   those that are there and those that are being made
    starving      pools with waiters that this limit keeps from growing, longest first
    claimant      the pool for which one place is kept
    notifiers     for server processes that executed NOTIFY, the process id that the client knows
    paused        (PAUSE) backends are closed when they come back, and none are lent
    disabled, clients, client_limit   are the server's, for clients that log in
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.limit = 0
        self.connections = 0
        self.pools: set[Pool] = set()
        self.starving: dict[Pool, None] = {}
        self.claimant: Pool | None = None
        self.notifiers: dict[int, int] = {}
        self.paused = False
        self.disabled = False
        self.clients = 0
        self.client_limit = 0
        self._neediest: Pool | None = None
        self._sought_at = -1.0

    def __repr__(self) -> str:
        state = " paused" if self.paused else ""
        return (
            f"<Group {self.name} {self.connections}/{self.limit}"
            f" starving={len(self.starving)}{state}>"
        )

    @property
    def unused(self) -> bool:
        """Whether nothing is lost if the group is forgotten; its limits are in the settings."""
        return not (self.pools or self.clients or self.paused or self.disabled)

    def pause(self) -> None:
        """Lend nothing; idle backends are closed now, the others as they come back."""
        self.paused = True
        for pool in list(self.pools):
            pool.adapt()

    def resume(self) -> None:
        """Lend again."""
        self.paused = False
        for pool in list(self.pools):
            pool.adapt()

    # Places.

    def is_full(self, pool: "Pool | None" = None) -> bool:
        """Whether the limit leaves no place, to `pool` or to any."""
        kept = self.claimant is not None and self.claimant is not pool
        return 0 < self.limit <= self.connections + kept

    def starves(self, pool: "Pool") -> None:
        """`pool` has waiters and would grow, if it were not for this limit."""
        if not self.starving:
            for other in self.pools:
                other.watched = True
        self.starving[pool] = None
        found = self._neediest
        if (found is None or pool.count < found.count) and pool.could_use(self):
            self._neediest = pool

    def sated(self, pool: "Pool") -> None:
        """It has got a place, or needs none any more."""
        self.starving.pop(pool, None)
        if self.claimant is pool:
            self.claimant = None
        if self._neediest is pool:
            self._sought_at = -1.0

    def offer(self, now: float) -> None:
        """A place has become free."""
        if self.starving:
            pool = self.neediest(now)
            if pool is not None:
                pool.want()

    def neediest(self, now: float) -> "Pool | None":
        """The pool to which the next place goes; None: no other limit lets anybody use one.

        It is asked for every backend that comes back while pools starve: so it is sought when it
        was found no more than once a tick, and whoever begins to starve is compared with it.
        """
        found = self._neediest
        if self._sought_at != now or (found is not None and not found.could_use(self)):
            self._neediest = found = self._seek()
            self._sought_at = now
        return found

    def _seek(self) -> "Pool | None":
        best: Pool | None = None
        for pool in self.starving:
            if (best is None or pool.count < best.count) and pool.could_use(self):
                best = pool
                if not pool.count:
                    break
        return best

    def victim(self, needy: "Pool", now: float) -> "Backend | None":
        """The idle backend of another pool that is closed so that `needy` can grow."""
        best: Pool | None = None
        best_rank = (True, now)
        for pool in self.pools:
            if pool is not needy and pool.idle:
                protected = len(pool.backends) <= pool.settings.min_pool_size
                rank = (protected, pool.idle[0].idle_since)
                if rank <= best_rank and not (protected and needy.count):
                    best = pool
                    best_rank = rank
        if best is None or (needy.count and now - _since(needy, best.idle[0]) < PATIENCE):
            return None
        return best.idle[0]


def _since(needy: "Pool", backend: "Backend") -> float:
    """When the longer began: the pool's waiting, or the backend's being idle."""
    return min(needy.waiters.since, backend.idle_since)


class BackOff:
    """The pause between attempts to connect while they fail: 0.1 s, doubled to server_login_retry.

    Meanwhile there is one attempt at a time: a server that comes back is not met by a storm.
    """

    def __init__(self) -> None:
        self.pause = 0.0  # seconds; 0: the last attempt did not fail
        self._until = 0.0

    def failed(self, now: float, longest: float) -> None:
        """An attempt has failed. Those that were begun together fail together: that is one.

        `longest` is server_login_retry, in seconds; there is a pause even if it is 0.
        """
        if now >= self._until:
            self.pause = max(min(2 * self.pause, longest), _FIRST_PAUSE)
            self._until = now + self.pause

    def reset(self) -> None:
        """What has failed says nothing about the next attempt."""
        self.pause = 0.0
        self._until = 0.0

    def allows(self, now: float, attempts: int) -> bool:
        """Whether another attempt may begin while there are `attempts`."""
        return not self.pause or (attempts == 0 and now >= self._until)
