"""The backends of one (database, user): an idle LIFO, a FIFO of waiting sessions.

The pool decides who gets which backend and when another is wanted; the connections themselves are
made elsewhere (`PoolPort.connect`).
"""

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from txproxy.config import PoolSettings
from txproxy.core.backend import Backend
from txproxy.core.ports import PoolPort
from txproxy.core.settings import NO_SETTINGS, Settings
from txproxy.core.stats import Stats

if TYPE_CHECKING:
    from txproxy.core.session import Session

_ACCEPTED_LIMIT: Final = 1000
_RETRY_AFTER: Final = 1.0


class Pool:
    """`backends` are all that are logged in; `connecting` counts those that are being made."""

    def __init__(self, settings: PoolSettings, outside: PoolPort) -> None:
        self.settings = settings
        self.name = f"{settings.database}/{settings.user}"
        self.outside = outside
        self.size = settings.pool_size
        self.idle: list[Backend] = []
        self.waiters: deque[Session] = deque()
        self.backends: set[Backend] = set()
        self.sessions: set[Session] = set()
        self.connecting = 0
        self.stats = Stats()
        self.base: dict[str, str] = {}  # what a fresh backend reports, by lower-case name
        self._accepted: OrderedDict[tuple[tuple[str, str], ...], dict[str, str]] = OrderedDict()
        self._shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        self._retry_at = 0.0
        self._handing_out = False

    def __repr__(self) -> str:
        return (
            f"<Pool {self.name} idle={len(self.idle)} of {len(self.backends)}"
            f"+{self.connecting}/{self.size} waiting={len(self.waiters)}>"
        )

    def request(self, session: "Session") -> Backend | None:
        """An idle backend, the last used first; None: the session was queued."""
        if self.idle and not self.waiters:
            return self.idle.pop()
        self.stats.waited += 1
        self.waiters.append(session)
        self.want()
        return None

    def want(self) -> None:
        """Begin as many connections as there are waiters, within the pool's size."""
        if self.outside.now < self._retry_at:
            return
        while (
            self.connecting < len(self.waiters) and len(self.backends) + self.connecting < self.size
        ):
            self.connecting += 1
            self.outside.connect(self)

    def take_back(self, backend: Backend) -> None:
        """A clean backend: to the session that has waited longest, else to the idle ones.

        A loop and no recursion: a session may be done with it before `lent()` returns.
        """
        self.idle.append(backend)
        if self._handing_out or not self.waiters:
            return
        self._handing_out = True
        while self.waiters and self.idle:
            session = self.waiters.popleft()
            try:
                session.lent(self.idle.pop())
            except Exception as bug:
                self.outside.bug(session, bug)
        self._handing_out = False

    def connected(self, backend: Backend) -> None:
        """A connection is logged in."""
        self.connecting -= 1
        self.stats.backends_opened += 1
        self.backends.add(backend)
        if not self.base:
            self.base = {name.lower(): value for name, value in backend.params.items()}
            self.accept(NO_SETTINGS, backend.params)
        self._retry_at = 0.0
        self.take_back(backend)

    def connect_failed(self, fields: dict[str, str]) -> None:
        """No connection could be made: `fields` of the ERROR that says why.

        While other backends live their turn may still come; otherwise all waiters are told.
        """
        self.connecting -= 1
        if self.backends or self.connecting:
            self._retry_at = self.outside.now + _RETRY_AFTER
            return
        waiters = list(self.waiters)
        self.waiters.clear()
        for session in waiters:
            session.refuse_backend(fields)

    def removed(self, backend: Backend) -> None:
        """A backend is gone."""
        self.stats.backends_closed += 1
        self.backends.discard(backend)
        if backend in self.idle:
            self.idle.remove(backend)
        self.want()

    def forget(self, session: "Session") -> None:
        """A session that waits does so no more."""
        if session in self.waiters:
            self.waiters.remove(session)

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

    @property
    def unused(self) -> bool:
        """Whether nothing is lost if the pool is forgotten."""
        return not (self.sessions or self.backends or self.connecting)
