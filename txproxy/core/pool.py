"""The backends of one (database, server user): an idle LIFO, waiting sessions in order.

The pool decides who gets which backend and when another is wanted; the connections themselves are
made elsewhere (`PoolPort.connect`). Limits that pools share are in limits.py, what becomes of idle
and old backends in upkeep.py.

`request()` and `take_back()` run for every statement. What is seldom (PAUSE, limits, checks, sizes
that have shrunk) is behind the one flag `watched`.

Idle backends are in the order of `idle_since`: the one used last is lent first, and those at the
beginning are what the pool could do without. One that was idle for more than a second may have been
closed by its server: a look at its socket shows it, which busy pools never pay for.

When connections cannot be made, waiters wait for the other backends, if there are any. If there are
none, a waiter gets the server's own error as soon as an attempt has failed that was not begun
before it asked: not earlier, though the attempt before may have failed a moment ago and the next
one has to wait for the pause, because the server may come back meanwhile, and then it is served.
So the pause costs a client server_login_retry at most, and no error is older than its question.
"""

from bisect import insort
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from txproxy.config import PoolSettings
from txproxy.core.backend import Backend
from txproxy.core.limits import BackOff, Group
from txproxy.core.listener import Listener
from txproxy.core.ports import PoolPort
from txproxy.core.release import Watch
from txproxy.core.settings import NO_SETTINGS, Settings
from txproxy.core.statements import Texts
from txproxy.core.stats import Stats
from txproxy.core.upkeep import Upkeep
from txproxy.core.waiting import Waiting

if TYPE_CHECKING:
    from txproxy.core.claims import Claim
    from txproxy.core.handshake import Credentials
    from txproxy.core.session import Session

_ACCEPTED_LIMIT: Final = 1000
_FAILURE_COUNTS: Final = 30.0  # seconds
_LOOKED_AT: Final = 8  # idle backends, for one that has a session's settings
_TRUSTED: Final = 1.0  # seconds that an idle backend is taken to be alive
_UPKEEP_EVERY: Final = 1.0  # seconds
_DEFAULTS_CHANGED: Final = "what sessions begin with has changed"
_CLOSED: Final = {"C": "08006", "M": "the server closed the connection"}


class Pool:
    """`backends` are all that are logged in; `connecting` counts those that are being made.

    credentials   to log in with; set by the server
    epoch         grows when earlier attempts and backends lead to the wrong place (RECONNECT)
    base_of       the epoch of the backends that there are
    watched       a backend that comes back may not stay, or not at the end: see `_stays`
    starved       it is among those that starve in one of its groups
    """

    def __init__(
        self, settings: PoolSettings, outside: PoolPort, database: Group, user: Group
    ) -> None:
        self.settings = settings
        self.name = f"{settings.database}/{settings.user}"
        self.outside = outside
        self.database = database
        self.user = user
        self.credentials: Credentials | None = None
        self.size = settings.pool_size
        self.idle: list[Backend] = []
        self.waiters = Waiting()
        self.backends: set[Backend] = set()
        self.sessions: set[Session] = set()
        self.listener = Listener(self)
        self.watch = Watch()
        self.connecting = 0
        self.epoch = 0
        self.starved = False
        self.stats = Stats()
        self.texts = Texts()
        self.base: dict[str, str] = {}  # what a fresh backend reports, by lower-case name
        self.base_of = -1
        self._accepted: OrderedDict[tuple[tuple[str, str], ...], dict[str, str]] = OrderedDict()
        self._shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        self._back_off = BackOff()
        self._begun_at = 0.0  # the last attempt
        self._outdated = 0  # attempts of an earlier epoch
        self._upkeep = Upkeep(self)
        self._upkeep_at = 0.0
        self._handing_out = False
        self._wanting = False
        self._claim: Claim | None = None
        database.pools.add(self)
        user.pools.add(self)
        self.watched = self._is_watched()

    def __repr__(self) -> str:
        return (
            f"<Pool {self.name} idle={len(self.idle)} of {len(self.backends)}"
            f"+{self.connecting}/{self.size} waiting={len(self.waiters)}>"
        )

    @property
    def count(self) -> int:
        """Its server connections, those that are being made included."""
        return len(self.backends) + self.connecting

    @property
    def paused(self) -> bool:
        """Whether it lends nothing: PAUSE."""
        return self.database.paused or self.user.paused

    @property
    def failing(self) -> bool:
        """Whether the last attempt to connect has failed, and was not long ago: a pool whose
        clients are idle makes none, and says nothing about its server.
        """
        return self._back_off.pause > 0 and self.outside.now - self._begun_at < _FAILURE_COUNTS

    @property
    def unused(self) -> bool:
        """Whether nothing is lost if the pool is forgotten."""
        kept = self.settings.min_pool_size
        used = self.sessions or self.backends or self.connecting or self.listener.exists
        return not (used or kept)

    @property
    def connections(self) -> list[Backend]:
        """All that are logged in: the backends, and the one that listens."""
        listening = self.listener.backend
        return [*self.backends] if listening is None else [*self.backends, listening]

    def leave(self) -> None:
        """The pool is forgotten; what is still being connected is closed when it comes."""
        self._attempts_are_outdated()
        self._sated()
        self.database.pools.discard(self)
        self.user.pools.discard(self)

    # Lending.

    def request(self, session: "Session") -> Backend | None:
        """An idle backend, the last used first, but rather one that has the session's settings;
        None: the session was queued.
        """
        while self.idle and not self.waiters:
            if self.idle[-1].applied is session.wanted:
                backend = self.idle.pop()
            else:
                backend = self.idle.pop(self._best_for(session.wanted))
            if self.outside.now - backend.idle_since < _TRUSTED or not backend.port.is_stale():
                self.stats.assignments += 1
                return backend
            backend.close("the server closed it while it was idle")
        self.stats.waited += 1
        session.queued_at = self.outside.now
        self.waiters.append(session)
        if not self.starved:
            self.want()
        return None

    def _best_for(self, wanted: Settings) -> int:
        """Which of the idle backends last used has these settings; the last, if none has."""
        last = len(self.idle) - 1
        for i in range(last - 1, max(last - _LOOKED_AT, -1), -1):
            if self.idle[i].applied is wanted:
                return i
        return last

    def take_back(self, backend: Backend) -> None:
        """A clean backend: to the session whose turn it is, else to the idle ones."""
        if self.watched and not self._stays(backend):
            return
        backend.idle_since = self.outside.now
        self.idle.append(backend)
        if self.waiters and not self._handing_out:
            self._hand_out()

    def _hand_out(self) -> None:
        """A loop, no recursion: a session may be done with its backend before lent() returns."""
        self._handing_out = True
        while self.waiters and self.idle:
            session = self.waiters.next()
            self.stats.assignments += 1
            try:
                session.lent(self.idle.pop())
            except Exception as bug:
                self.outside.bug(session, bug)
        self._handing_out = False

    def _stays(self, backend: Backend) -> bool:
        """Whether a backend that comes back is lent again, or idle at the end of the others."""
        why = self._surplus() or self._better_elsewhere()
        if why:
            backend.close(why)
            return False
        if backend in self._upkeep.checking:
            self._upkeep.checking.discard(backend)
            if not self.waiters:
                insort(self.idle, backend, key=_idle_since)  # nobody has used it: where it was
                return False
        return True

    def _surplus(self) -> str:
        """Why the pool must not have as many backends as it has; "" if it may."""
        if self.paused:
            return "PAUSE"
        if self.listener.needs_place:
            return "LISTEN needs its place"
        if self.count > self.size + self.settings.reserve_pool_size:
            return "pool_size"
        if 0 < self.database.limit < self.database.connections:
            return "max_db_connections"
        if 0 < self.user.limit < self.user.connections:
            return "max_user_connections"
        if self._is_claimed() and not self.waiters:
            return "a statement needs its database without connections"
        return ""

    def _is_claimed(self) -> bool:
        if self._claim is not None and not self._claim.holds:
            self._claim = None
        return self._claim is not None

    def _better_elsewhere(self) -> str:
        """Which pool has a better right to the place of a backend that comes back; "" if none."""
        for group in (self.database, self.user):
            if group.starving and group.is_full():
                other = group.neediest(self.outside.now)
                if other is not None and other is not self and self._owes(other):
                    return f"{other.name} needs its place"
        return ""

    def _owes(self, other: "Pool") -> bool:
        if other.count + 1 <= self.count - 1:
            return True
        if other.count:
            return False
        return not self.waiters or other.waiters.since < self.waiters.since

    def forget(self, session: "Session") -> None:
        """A session that waits does so no more."""
        self.waiters.remove(session)

    # Growing.

    def want(self) -> None:
        """Begin the connections that waiters need, within the limits."""
        if self._wanting:  # what is closed for this pool's sake offers it the place
            return
        self._wanting = True
        try:
            while self.lacks():
                full = [group for group in (self.database, self.user) if group.is_full(self)]
                if not full:
                    self._begin()
                elif not self._make_room(full):
                    return
        finally:
            self._wanting = False
        if self.starved:
            self._sated()

    def lacks(self) -> bool:
        """Whether waiters need another connection, and only a shared limit could forbid it."""
        return self.connecting - self._outdated < len(self.waiters) and self._may_begin()

    def could_use(self, group: Group) -> bool:
        """Whether a place in `group` would be of use to it."""
        if not self.lacks():
            return False
        if group is self.user:
            return not self.database.is_full(self)
        may_claim = self.count == 0 and self.database.claimant is None
        return may_claim or not self.user.is_full(self)

    def _may_begin(self) -> bool:
        if self.paused:
            return False
        attempts = self.connecting - self._outdated
        return self.count < self._most() and self._back_off.allows(self.outside.now, attempts)

    def _most(self) -> int:
        """pool_size; reserve_pool_size more once somebody has waited for reserve_pool_timeout."""
        settings = self.settings
        if not (settings.reserve_pool_size and settings.reserve_pool_timeout and self.waiters):
            return self.size
        waited = self.outside.now - self.waiters.since
        if waited < settings.reserve_pool_timeout:
            return self.size
        return self.size + settings.reserve_pool_size

    def _begin(self) -> None:
        self.connecting += 1
        self.database.connections += 1
        self.user.connections += 1
        self._begun_at = self.outside.now
        if self.starved:
            self._sated()
        self.outside.connect(self)

    def _make_room(self, full: list[Group]) -> bool:
        """Close idle backends of other pools in the groups that are full; False: not possible."""
        now = self.outside.now
        if full == [self.user] and self.count == 0 and self.database.claimant is None:
            self.database.claimant = self
        self.starved = True
        for group in full:
            group.starves(self)
        if len(full) == 1 and full[0].neediest(now) is not self:
            return False  # it would not get the place; and one search for all pools is enough
        victims = [group.victim(self, now) for group in full]
        if None in victims:
            return False
        for victim in victims:
            assert victim is not None
            victim.close(f"{self.name} needs its place")
        return True

    def _sated(self) -> None:
        self.starved = False
        self.database.sated(self)
        self.user.sated(self)

    # What becomes of connections.

    def connected(self, backend: Backend, epoch: int | None = None) -> None:
        """A connection is logged in. `epoch` is the pool's when it was begun; None: the same."""
        if backend.closed:
            self.connect_failed(backend.last_words or _CLOSED, epoch)
            return
        self.connecting -= 1
        self.stats.backends_opened += 1
        self.backends.add(backend)
        if self._is_outdated(epoch):
            backend.close("outdated")
            return
        if self.base_of != self.epoch:
            self.base_of = self.epoch
            self.base = {name.lower(): value for name, value in backend.params.items()}
            self._accepted.clear()
            self.accept(NO_SETTINGS, backend.params)
        self._back_off.reset()
        self.take_back(backend)
        self.want()

    def connect_failed(self, fields: dict[str, str], epoch: int | None = None) -> None:
        """No connection could be made: `fields` of the ERROR that says why.

        While other backends live their turn may still come; otherwise waiters are told. An attempt
        that has become outdated meanwhile says nothing.
        """
        self.stats.connects_failed += 1
        outdated = self._attempt_is_over(epoch)
        if not outdated:
            self._back_off.failed(self.outside.now, self.settings.server_login_retry)
        self.place_is_free()
        attempts = self.connecting - self._outdated
        if not (outdated or self.backends or attempts or self.paused):
            self._refuse(fields)

    def dropped(self, epoch: int | None = None) -> None:
        """A connection that nobody wants any more was not made, or closed again."""
        self._attempt_is_over(epoch)
        self.place_is_free()

    def _attempt_is_over(self, epoch: int | None) -> bool:
        self.connecting -= 1
        return self._is_outdated(epoch)

    def _is_outdated(self, epoch: int | None) -> bool:
        outdated = epoch is not None and epoch != self.epoch
        self._outdated = min(self._outdated - outdated, self.connecting)
        return outdated

    def _refuse(self, fields: dict[str, str]) -> None:
        """Those who have waited since the last attempt was begun; the others wait for the next."""
        refused = []
        while self.waiters and self.waiters.since <= self._begun_at:
            refused.append(self.waiters.longest())
        for session in refused:
            try:
                session.refuse_backend(fields)
            except Exception as bug:
                self.outside.bug(session, bug)

    def removed(self, backend: Backend) -> None:
        """A backend is gone."""
        if backend not in self.backends:
            return  # it went before its login was known here
        self.stats.backends_closed += 1
        self.backends.discard(backend)
        self._upkeep.checking.discard(backend)
        self.database.notifiers.pop(backend.port.pid, None)
        if backend in self.idle:
            self.idle.remove(backend)
        self.place_is_free()

    def place_is_free(self) -> None:
        """A connection is gone: its place goes to whoever needs it most."""
        self.database.connections -= 1
        self.user.connections -= 1
        if self.listener.needs_place:
            self.listener.begin()
        self.database.offer(self.outside.now)
        self.user.offer(self.outside.now)
        self.want()

    # Changes.

    def reconfigure(self, settings: PoolSettings) -> None:
        """Other settings. If the server or the login is another, all backends are replaced."""
        old = self.settings
        self.settings = settings
        self.size = settings.pool_size
        self._upkeep.settings_changed()
        if _leads_to(old) != _leads_to(settings):
            self.reconnect()
            self.listener.retire("reload")
        self.adapt()

    def adapt(self) -> None:
        """Sizes or limits have changed, or PAUSE has begun or ended."""
        self.watched = True
        self._trim()
        self.want()

    def reconnect(self) -> None:
        """Replace all backends, each as soon as nobody needs it; also those being connected."""
        self._attempts_are_outdated()
        self._back_off.reset()
        for backend in self.backends:
            backend.retiring = "RECONNECT"
        for backend in list(self.idle):
            backend.close("RECONNECT")
        self.want()

    def claimed(self, claim: "Claim") -> int:
        """Its database is to have no connections while the claim holds: idle ones are closed now,
        others when they come back, unless somebody waits. Returns how many were closed.
        """
        self._claim = claim
        self.watched = True
        self._base_of = -1  # it may be another one afterwards, or none
        self._accepted.clear()
        before = len(self.connections)
        self._trim()
        self.listener.leave_if_unused()
        return before - len(self.connections)

    def defaults_changed(self) -> None:
        """ALTER ROLE or ALTER DATABASE … SET: new backends begin with something else, so those that
        there are get replaced, each as soon as nobody needs it.
        """
        self._accepted.clear()
        self._attempts_are_outdated()
        for backend in self.backends:
            backend.retiring = _DEFAULTS_CHANGED
        for backend in list(self.idle):
            backend.close(_DEFAULTS_CHANGED)
        self.want()

    def _attempts_are_outdated(self) -> None:
        self.epoch += 1
        self._outdated = self.connecting

    def credentials_changed(self) -> None:
        """Other credentials to log in with: that attempts have failed says nothing any more."""
        self._back_off.reset()
        self.want()

    # The janitor.

    def look(self, now: float) -> None:
        """The janitor's look, at each tick. `now` in seconds."""
        if self.waiters or self.starved:
            self.want()
        if now >= self._upkeep_at:
            self._upkeep_at = now + _UPKEEP_EVERY
            self._keep_up(now)

    def _keep_up(self, now: float) -> None:
        self._trim()
        if not self.paused:
            self._upkeep.look(now)
            self._fill()
        self.watched = self._is_watched()

    def _fill(self) -> None:
        """min_pool_size; it takes no place from anybody."""
        if self._is_claimed():
            return
        while self.count < self.settings.min_pool_size and self._may_begin():
            if self.database.is_full() or self.user.is_full():
                break
            self._begin()

    def _is_watched(self) -> bool:
        starving = self.database.starving or self.user.starving
        return bool(starving or self._upkeep.checking or self._surplus())

    def _trim(self) -> None:
        while self.idle:
            why = self._surplus()
            if not why:
                break
            self.idle[0].close(why)

    # What is remembered of logins.

    def shared(self, params: dict[str, str]) -> dict[str, str]:
        """The one object for these parameters, so that comparing them is comparing addresses."""
        key = tuple(params.items())
        known = self._shared.get(key)
        if known is None:
            if len(self._shared) >= _ACCEPTED_LIMIT:
                self._shared.clear()
            self._shared[key] = known = params
        return known

    def known(self, wanted: Settings) -> dict[str, str] | None:
        """What backends report under these settings; None if they were never tried.

        Servers take any application_name and report it as it is: that one need not be tried.
        """
        name = wanted.by_name.get("application_name")
        params = self._accepted.get(wanted.items)
        if params is None and name is not None:
            params = self._accepted.get(wanted.without("application_name"))
            if params is not None:
                params = self.shared({**params, "application_name": name})
                self.accept(wanted, params)
        return params

    def accept(self, wanted: Settings, params: dict[str, str]) -> None:
        """A backend has taken these settings, and then reports these parameters."""
        self._accepted[wanted.items] = params
        if len(self._accepted) > _ACCEPTED_LIMIT:
            self._accepted.popitem(last=False)


def _idle_since(backend: Backend) -> float:
    return backend.idle_since


def _leads_to(settings: PoolSettings) -> tuple[object, ...]:
    """Where its connections lead, and who logs in there."""
    return (
        settings.hosts,
        settings.port,
        settings.dbname,
        settings.server_user,
        settings.password,
        settings.parameters,
        settings.tls,
        settings.connect_query,
    )
