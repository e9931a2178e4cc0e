"""The listening connection of one pool: channels that its sessions LISTEN to.

It is made when the first of them listens, and closed a while after the last. It is lent to nobody
and is no part of pool_size, but it has a place in the limits that pools share (limits.py): an idle
backend is closed for it, or the next of its own pool's that comes back. It never takes the last
place, which would leave none for statements.

The server is told LISTEN for the first session of a channel, UNLISTEN for the last. A session is
let on with its LISTEN once the server has answered ours. What of a session's is not committed yet
counts too: listening.py knows what each session hears.

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


class _Channel:
    """`sessions` are those that listen, or will once they commit."""

    __slots__ = ("is_ready", "sessions")

    def __init__(self) -> None:
        self.is_ready = False  # the server has it
        self.sessions: dict[Session, None] = {}


class _Flight:
    """Something that was asked on the connection, and what its answer means: that a channel is
    ready, or that all has come which was notified before a session asked.
    """

    __slots__ = ("channel", "session")

    def __init__(self, channel: _Channel | None, session: "Session | None") -> None:
        self.channel = channel
        self.session = session


class Listener:
    """Of one pool. `backend` is the connection; None: there is none.

    waiters  sessions whose LISTEN or NOTIFY waits for it, and since when
    holding  sessions that have not been told everything
    """

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.backend: Backend | None = None
        self.connecting = False
        self.wants_place = False  # nothing but a shared limit keeps it from connecting
        self.waiters: dict[Session, float] = {}
        self.holding: set[Session] = set()
        self._channels: dict[bytes, _Channel] = {}
        self._names_size = 0
        self._flights: deque[_Flight] = deque()
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
        return {session for channel in self._channels.values() for session in channel.sessions}

    # What sessions ask.

    def has(self, session: "Session", names: list[bytes]) -> bool:
        """Whether the server tells us of these channels. If not, the session waits: it is resumed,
        or refused.
        """
        side = session.listening
        assert side is not None
        ready = True
        for name in names:
            channel = self._channels.get(name)
            if channel is None:
                if not self._has_room(name):
                    side.refusal = _TOO_MANY
                    break
                channel = self._channels[name] = _Channel()
                self._names_size += len(name)
                if self._is_usable():
                    self._listen(name, channel)
            channel.sessions[session] = None
            side.asked.add(name)
            ready = ready and channel.is_ready
        if ready and not side.refusal:
            self.waiters.pop(session, None)
            return True
        self.waiters.setdefault(session, self.pool.outside.now)
        if not side.refusal:
            self.begin()
        return False

    def _has_room(self, name: bytes) -> bool:
        full = len(self._channels) >= CHANNELS_LIMIT
        return not full and self._names_size + len(name) <= NAMES_LIMIT

    def release(self, session: "Session", name: bytes) -> None:
        """It listens to this channel no more."""
        channel = self._channels.get(name)
        if channel is None:
            return
        channel.sessions.pop(session, None)
        if channel.sessions:
            return
        del self._channels[name]
        self._names_size -= len(name)
        if self._is_usable():
            self._ask(b"UNLISTEN " + _quoted(name), "UNLISTEN", _Flight(None, None))
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
        """Resume the session when all has come that was notified before now."""
        self.waiters.setdefault(session, self.pool.outside.now)
        if self.backend is not None:
            self._ask(b"", "flush", _Flight(None, session))

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
        self._ask(b"SET client_encoding TO 'UTF8'", "client_encoding", _Flight(None, None))
        for name, channel in self._channels.items():
            self._listen(name, channel)

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
        for channel in self._channels.values():
            channel.is_ready = False
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

    def _listen(self, name: bytes, channel: _Channel) -> None:
        self._ask(b"LISTEN " + _quoted(name), "LISTEN", _Flight(channel, None))

    def _ask(self, query: bytes, purpose: str, flight: _Flight) -> None:
        backend = self.backend
        assert backend is not None
        if not self._flights:
            backend.deadline = self.pool.outside.now + self.pool.outside.rollback_timeout
        self._flights.append(flight)
        backend.port.write(backend.ours(query, purpose))

    def answered(self) -> None:
        """ReadyForQuery for what was asked first."""
        backend = self.backend
        if backend is None or not self._flights:
            return
        now = self._heard_at = self.pool.outside.now
        flight = self._flights.popleft()
        backend.deadline = now + self.pool.outside.rollback_timeout if self._flights else _NEVER
        if backend.ours_failed:
            backend.close(backend.fifo.untrusted)
            return
        if flight.channel is not None:
            flight.channel.is_ready = True
            for session in list(flight.channel.sessions):
                self._resume(session)
        elif flight.session is not None:
            self._has_flushed(flight.session)

    def _has_flushed(self, session: "Session") -> None:
        side = session.listening
        if session not in self.waiters or side is None:
            return
        if side.flushing:
            self.waiters.pop(session)
            self._guarded(session, lambda _: side.flushed())
        else:
            if session.backend is not None:
                listening.forget_notifier(session.backend)
            self._resume(session)

    def _resume(self, session: "Session") -> None:
        """Let it look again at what it waited for."""
        if self.waiters.pop(session, None) is None:
            return
        if session.blocked and not session.queued:
            self._guarded(session, _resume)

    def notified(self, body: bytes) -> None:
        """NotificationResponse: told to each session that listens."""
        self._heard_at = self.pool.outside.now
        end = body.find(b"\0", 4)
        channel = self._channels.get(body[4:end]) if end >= 4 else None
        if channel is None:
            return
        pid = int32(body, 0)
        pid = self.pool.database.notifiers.get(pid, pid)
        name = body[4:end]
        message = encode.message(b"A", pid.to_bytes(4, "big") + body[4:])
        for session in list(channel.sessions):
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
                self._ask(b"", "check", _Flight(None, None))

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
    if session.queued or state == OPEN or (side is not None and side.flushing):
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
