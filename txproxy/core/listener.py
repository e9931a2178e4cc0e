"""The listening connection of one pool: channels that its sessions LISTEN to.

It is made when the first of them listens, and closed a while after the last. It is lent to nobody
and is no part of pool_size, but it has a place in the limits that pools share (limits.py): an idle
backend is closed for it, or the next of its own pool's that comes back. It never takes the last
place, which would leave none for statements.

The server is told LISTEN for the first session of a channel, UNLISTEN for the last. A session is
let on with its LISTEN after a round trip: then the server has taken ours, and what was notified
before has come, which it must not hear; so again with the COMMIT of a LISTEN. What of a session's
is not committed yet counts too: listening.py knows what each session hears.

If the connection is lost, notifications may have been missed, which a direct connection would have
shown by breaking: so the sessions that listen are ended. PAUSE, RECONNECT and a reload that leads
elsewhere end them as their transactions end, and then close it. Whoever listens then waits for the
next one.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from txproxy.core import endings, listening
from txproxy.core.limits import BackOff, Group
from txproxy.core.transaction import BEGUN, OPEN
from txproxy.wire import encode
from txproxy.wire.messages import int32

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.pool import Pool
    from txproxy.core.session import Session

CHANNELS_LIMIT: Final = 10_000
NAMES_LIMIT: Final = 1_000_000
"""Bytes of the names of a pool's channels."""

UNUSED_FOR: Final = 10.0
"""Seconds that the connection is kept when nobody listens any more."""

_NEVER: Final = float("inf")
_JUST_BEGUN: Final = 1.0  # seconds
_LOST: Final = "the connection that listens for this session was lost"
_TOO_MANY: Final = {
    "C": "53400",
    "M": "too many channels: the sessions of this pool listen to many",
}
_NO_PLACE: Final = {
    "C": "53300",
    "M": "LISTEN needs a server connection of its own, for which the limits leave no place",
    "H": "See max_db_connections and max_user_connections in the proxy's configuration.",
}
_LATE: Final = {
    "C": "53300",
    "M": "LISTEN got no server connection in time: query_wait_timeout",
}
_CANCELLED: Final = {"C": "57014", "M": "canceling statement due to user request"}
_CLOSED: Final = {"C": "08006", "M": "the server closed the connection"}


class Listener:
    """Of one pool. `backend` is the connection; None: there is none.

    waiters  sessions whose LISTEN, NOTIFY or COMMIT waits for it, and since when
    holding  sessions that have not been told everything
    """

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.backend: Backend | None = None
        self.connecting = False
        self.wants_place = False  # nothing but a shared limit keeps it from connecting
        self.waiters: dict[Session, float] = {}
        self.holding: set[Session] = set()
        self._channels: dict[bytes, dict[Session, None]] = {}
        self._names_size = 0
        self._flights: deque[Session | None] = deque()  # who waits for each answer that is owed
        self._back_off = BackOff()
        self._heard_at = 0.0
        self._unused_since = 0.0

    def __repr__(self) -> str:
        return f"<Listener {self.pool.name} channels={len(self._channels)} {self.backend}>"

    @property
    def needs_place(self) -> bool:
        """Whether the next backend that comes back must give it its place."""
        return self.wants_place and bool(self.waiters)

    @property
    def exists(self) -> bool:
        """Whether the connection is there, or being made."""
        return self.connecting or self.backend is not None

    def sessions(self) -> "set[Session]":
        """Those that listen, or will once they commit."""
        return {session for sessions in self._channels.values() for session in sessions}

    # What sessions ask.

    def has(self, session: "Session", names: list[bytes]) -> bool:
        """Whether the server tells us of these channels, and all that was notified before has come.
        If not, the session waits: it is resumed, or refused.
        """
        side = session.listening
        assert side is not None
        for name in names:
            sessions = self._channels.get(name)
            if sessions is None:
                if not self._has_room(name):
                    side.refusal = _TOO_MANY
                    self.waiters.setdefault(session, self.pool.outside.now)
                    return False
                sessions = self._channels[name] = {}
                self._names_size += len(name)
                if self._is_usable():
                    self._listen(name)
            sessions[session] = None
            side.asked.add(name)
        return self.passed(session, self._is_usable())

    def passed(self, session: "Session", can_ask: bool) -> bool:
        """Whether all has come that was notified before what the session says now. If not, it
        waits for a round trip.
        """
        side = session.listening
        if side is None or side.passed:
            return True
        if session not in self.waiters:
            self.waiters[session] = self.pool.outside.now
            if can_ask:
                self._ask(b"", "flush", session)
            else:
                self.begin()
        return False

    def _has_room(self, name: bytes) -> bool:
        full = len(self._channels) >= CHANNELS_LIMIT
        return not full and self._names_size + len(name) <= NAMES_LIMIT

    def release(self, session: "Session", name: bytes) -> None:
        """It listens to this channel no more."""
        sessions = self._channels.get(name)
        if sessions is None:
            return
        sessions.pop(session, None)
        if sessions:
            return
        del self._channels[name]
        self._names_size -= len(name)
        if self._is_usable():
            self._ask(b"UNLISTEN " + _quoted(name), "UNLISTEN", None)
        if not self._channels:
            self._unused_since = self.pool.outside.now

    def forget(self, session: "Session") -> None:
        """The session has ended."""
        self.waiters.pop(session, None)
        self.holding.discard(session)
        side = session.listening
        if side is not None:
            for name in side.channels | side.asked:
                self.release(session, name)

    def flush(self, session: "Session") -> None:
        """Say when all has come that was notified before now, for its ReadyForQuery."""
        self.waiters[session] = self.pool.outside.now
        self._ask(b"", "flush", session)

    def refuse(self, session: "Session", fields: dict[str, str]) -> None:
        """What the session waits for cannot be: `fields` of the ERROR that says why.

        If it holds a backend, a transaction may have to fail there too.
        """
        if self.waiters.pop(session, None) is None or not session.blocked or session.queued:
            return
        side = session.listening
        if session.backend is not None and side is not None:
            side.refusal = fields
            session.resume()
            return
        if side is not None:
            side.undo()
        endings.refuse(session, encode.error_of("ERROR", fields))

    def cancel(self, session: "Session") -> bool:
        """A CancelRequest: whether it was for a LISTEN that waits."""
        side = session.listening
        waits = session in self.waiters and (side is None or not side.flushing)
        if waits:
            self.refuse(session, _CANCELLED)
        return waits

    # The connection.

    def begin(self) -> None:
        """Make the connection, if it is not there and may be."""
        pool = self.pool
        now = pool.outside.now
        if self.exists or pool.paused or not self.waiters or not self._back_off.allows(now, 0):
            return
        groups = (pool.database, pool.user)
        if any(0 < group.limit <= _listening(group) + 1 for group in groups):
            for session in self.waiters:
                if session.listening is not None:
                    session.listening.refusal = _NO_PLACE  # at the next look: it may still speak
            return
        full = [group for group in groups if group.is_full(pool)]
        victims = [_victim(group) for group in full]
        self.wants_place = None in victims
        if self.wants_place:
            pool.watched = True
            return
        self.connecting = True
        # The place is taken before another is given up, lest anybody else takes that.
        pool.database.connections += 1
        pool.user.connections += 1
        for victim in victims:
            if victim is not None and any(group.limit < group.connections for group in full):
                victim.close(f"LISTEN of {pool.name} needs its place")
        pool.outside.connect_listening(self)

    def connected(self, backend: "Backend", epoch: int) -> None:
        """The connection is logged in. `epoch` is the pool's when it was begun."""
        if backend.closed:
            self.connect_failed(backend.last_words or _CLOSED, epoch)
            return
        self.connecting = False
        self.backend = backend
        backend.listener = self
        self.pool.stats.backends_opened += 1
        self._back_off.reset()
        self._heard_at = self._unused_since = self.pool.outside.now
        if epoch != self.pool.epoch:
            backend.retiring = "outdated"
            backend.close(backend.retiring)
            return
        # Clients of other encodings are pinned: see listening.granted().
        self._ask(b"SET client_encoding TO 'UTF8'", "client_encoding", None)
        for name in self._channels:
            self._listen(name)
        for session in self.waiters:
            self._ask(b"", "flush", session)

    def connect_failed(self, fields: dict[str, str], epoch: int) -> None:
        """It could not be made."""
        pool = self.pool
        pool.stats.connects_failed += 1
        self.dropped(epoch)
        if epoch == pool.epoch:
            self._back_off.failed(pool.outside.now, pool.settings.server_login_retry)
            self._refuse_all(fields)

    def dropped(self, epoch: int) -> None:  # noqa: ARG002
        """Nobody wants it any more, and it was not made, or closed again."""
        self.connecting = False
        self.pool.place_is_free()

    def retire(self, why: str) -> None:
        """It leads to the wrong place, or an administrator wants it replaced."""
        if self.backend is not None:
            self.backend.retiring = why

    def leave_if_unused(self) -> None:
        """Close it now if nobody listens."""
        if self.backend is not None and not self._channels:
            self.backend.retiring = "nobody listens any more"
            self.backend.close(self.backend.retiring)

    def _refuse_all(self, fields: dict[str, str]) -> None:
        for session in list(self.waiters):
            self._guarded(session, lambda of: self.refuse(of, fields))

    def lost(self, backend: "Backend") -> None:
        """The connection is gone."""
        if backend is not self.backend:
            return
        self.backend = None
        self._flights.clear()
        self.pool.stats.backends_closed += 1
        if not backend.retiring:
            words = backend.last_words or backend.ours_failed or _CLOSED
            self._end_listeners(words)
            self._refuse_all(words)
        self.pool.place_is_free()

    def _end_listeners(self, words: dict[str, str]) -> None:
        error = encode.error(
            "FATAL",
            "08006",
            _LOST,
            detail=words.get("M", ""),
            hint="Notifications may have been missed. Connect and LISTEN again.",
        )
        for session in self.sessions():
            side = session.listening
            only_waits = side is None or (session in self.waiters and not side.channels)
            if not only_waits:
                self._guarded(session, lambda of: listening.end(of, error))

    def _guarded(self, session: "Session", act: Callable[["Session"], None]) -> None:
        """A session that raises is closed, and the others do not suffer."""
        try:
            act(session)
        except Exception as bug:
            self.pool.outside.bug(session, bug)

    # What is asked on it, and answered.

    def _is_usable(self) -> bool:
        backend = self.backend
        return backend is not None and not backend.closed and not backend.retiring

    def _listen(self, name: bytes) -> None:
        self._ask(b"LISTEN " + _quoted(name), "LISTEN", None)

    def _ask(self, query: bytes, purpose: str, session: "Session | None") -> None:
        """Ask the server; `session` waits for the answer."""
        backend = self.backend
        assert backend is not None
        if not self._flights:
            backend.deadline = self.pool.outside.now + self.pool.outside.rollback_timeout
        self._flights.append(session)
        backend.port.write(backend.ours(query, purpose))

    def answered(self) -> None:
        """ReadyForQuery for what was asked first."""
        backend = self.backend
        if backend is None or not self._flights:
            return
        now = self._heard_at = self.pool.outside.now
        session = self._flights.popleft()
        backend.deadline = now + self.pool.outside.rollback_timeout if self._flights else _NEVER
        if backend.ours_failed:
            backend.close(backend.fifo.untrusted)
            return
        if session is None or self.waiters.pop(session, None) is None:
            return
        side = session.listening
        if side is None:
            return
        if side.flushing:
            self._guarded(session, lambda _: side.flushed())
        elif session.blocked and not session.queued:
            side.passed = True
            self._guarded(session, _resume)

    def notified(self, body: bytes) -> None:
        """NotificationResponse: told to each session that listens."""
        self._heard_at = self.pool.outside.now
        end = body.find(b"\0", 4)
        sessions = self._channels.get(body[4:end]) if end >= 4 else None
        if sessions is None:
            return
        pid = int32(body, 0)
        pid = self.pool.database.notifiers.get(pid, pid)
        name = body[4:end]
        message = encode.message(b"A", pid.to_bytes(4, "big") + body[4:])
        for session in list(sessions):
            self._guarded(session, lambda of: _hear(of, name, message))

    # The janitor.

    def look(self, now: float) -> None:
        """The janitor's look, at each tick. `now` in seconds."""
        if self.waiters:
            self._look_at_waiters(now)
        if self.holding:
            self._tell()
        backend = self.backend
        if backend is None:
            self.begin()
        elif now > backend.deadline:
            backend.close("it did not answer in time")
        elif backend.retiring or self.pool.paused:
            self._retire(backend)
        elif not self._channels:
            if now - self._unused_since > UNUSED_FOR:
                self.leave_if_unused()
        else:
            delay = self.pool.settings.server_check_delay
            if delay and not self._flights and now - self._heard_at >= delay:
                self._ask(b"", "check", None)

    def _look_at_waiters(self, now: float) -> None:
        for session, since in list(self.waiters.items()):
            side = session.listening
            if side is not None and side.refusal:
                self.refuse(session, side.refusal)
            elif side is None or not side.flushing:
                limit = session.settings.query_wait_timeout
                if 0 < limit < now - since:
                    session.stats.query_wait_timeouts += 1
                    self.refuse(session, _LATE)

    def _tell(self) -> None:
        for session in list(self.holding):
            side = session.listening
            if session.ended or side is None or side.tell_if_free():
                self.holding.discard(session)

    def _retire(self, backend: "Backend") -> None:
        """End those who listen as they are free; close it when none is left."""
        why = backend.retiring or "PAUSE"
        backend.retiring = why
        error = encode.error(
            "FATAL",
            "57P01",
            "terminating connection due to administrator command",
            detail=f"The connection that listens for this session is closed: {why}.",
            hint="Connect and LISTEN again.",
        )
        left = 0
        for session in self.sessions():
            side = session.listening
            if side is None or (session in self.waiters and not side.channels):
                continue
            if _is_free(session):
                self._guarded(session, lambda of: listening.end(of, error))
            else:
                left += 1
        if not left:
            backend.close(why)


def _resume(session: "Session") -> None:
    session.resume()


def _hear(session: "Session", channel: bytes, message: bytes) -> None:
    side = session.listening
    if side is not None and not session.ended:
        side.hear(channel, message)


def _is_free(session: "Session") -> bool:
    """Whether nothing is under way that it should be let end."""
    state = session.state
    side = session.listening
    if session.queued or (side is not None and side.flushing):
        return False
    if session in session.pool.listener.waiters:
        return True  # for what it will not get
    if state == OPEN:
        return False
    if state == BEGUN and session.outside.now - session.active_at < _JUST_BEGUN:
        return False
    return session.backend is None or not session.backend.fifo.exchanges


def _listening(group: Group) -> int:
    """How many of its connections are listening ones."""
    return sum(pool.listener.exists for pool in group.pools)


def _victim(group: Group) -> "Backend | None":
    """The backend of the group that has been idle for longest."""
    idle = [pool.idle[0] for pool in group.pools if pool.idle]
    return min(idle, key=_idle_since, default=None)


def _idle_since(backend: "Backend") -> float:
    return backend.idle_since


def _quoted(name: bytes) -> bytes:
    return b'"' + name.replace(b'"', b'""') + b'"'
