"""LISTEN of one session: to which channels, from when, and what it has not been told yet.

The session's own backend executes LISTEN and UNLISTEN as any statement, so the server decides what
is valid; but what reaches the client comes from the pool's listening connection (listener.py), and
that has a channel before the LISTEN is sent. `note()` writes down what was sent; when the server
has answered, `_settle()` follows the transaction: it takes effect at COMMIT, not at all at
ROLLBACK, nor behind a ROLLBACK TO a savepoint before it. Where the outcome is not known (a string
of several statements that failed somewhere) a LISTEN counts and an UNLISTEN does not: too many
notifications do less harm than a missing one.

A server sends NotificationResponse to a client in no transaction only: in front of ReadyForQuery,
or while it waits. So what comes earlier is held.

What the session itself notifies must be there before its ReadyForQuery, and with the process id
that its client was told. If it also listens, the ReadyForQuery waits for a round trip on the
listening connection, which brings what was notified before; until then it keeps its backend, whose
process id stands for it in `Group.notifiers`.

Source: PostgreSQL 18, commands/async.c, and ProcessClientReadInterrupt() in postgres.c.
"""

from typing import TYPE_CHECKING, Final

from txproxy.config import CONSOLE_DATABASES
from txproxy.core import endings
from txproxy.core.transaction import NONE
from txproxy.wire import encode, sql
from txproxy.wire.codes import IDLE, IN_FAILED
from txproxy.wire.messages import text

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.exchange import Exchange
    from txproxy.core.session import Session
    from txproxy.wire.sql import Judgement

PIN: Final = "LISTEN"
"""Why a session is pinned whose notifications only its own backend can give it."""

HELD_LIMIT: Final = 1_000_000
"""Bytes of notifications that are held for one session."""

_LOG_LIMIT: Final = 10_000  # statements of one transaction
_UNREADABLE: Final = -1
_COMMITS: Final = frozenset((sql.COMMIT, sql.COMMIT_CHAIN))
_ROLLBACKS: Final = frozenset((sql.ROLLBACK, sql.ROLLBACK_CHAIN))
_LISTENS: Final = frozenset((sql.LISTEN, sql.UNLISTEN, sql.DISCARD_ALL))
_SAVEPOINTS: Final = frozenset((sql.SAVEPOINT, sql.RELEASE, sql.ROLLBACK_TO))
_FOLLOWED: Final = _LISTENS | _SAVEPOINTS | _COMMITS | _ROLLBACKS
_TOO_MANY_HELD: Final = encode.error(
    "FATAL",
    "53400",
    "too many notifications wait for this session",
    hint="They are held while it is in a transaction, and while it does not read.",
)
_TOO_MANY_NOTED: Final = encode.error(
    "FATAL", "53400", "too many LISTEN and UNLISTEN in one transaction"
)


class _Noted:
    """A statement that was sent and not yet answered; `alone`: the only one of its exchange."""

    __slots__ = ("alone", "exchange", "kind", "name")

    def __init__(self, exchange: "Exchange", kind: int, name: bytes, alone: bool) -> None:
        self.exchange = exchange
        self.kind = kind
        self.name = name
        self.alone = alone


class Listening:
    """What a session has to do with LISTEN, as long as it has anything.

    channels  whose notifications it gets
    asked     those that a LISTEN which has not been committed names
    notified  its transaction executed NOTIFY, or may have
    flushing  its ReadyForQuery waits for the listening connection
    passed    the listening connection has told all that came before what the client says now
    refusal   why its LISTEN, which holds a backend, cannot be: told in its turn
    """

    __slots__ = (
        "_doubt",
        "_held",
        "_held_size",
        "_log",
        "_noted",
        "_session",
        "asked",
        "channels",
        "flushing",
        "notified",
        "passed",
        "refusal",
    )

    def __init__(self, session: "Session") -> None:
        self._session = session
        self.channels: set[bytes] = set()
        self.asked: set[bytes] = set()
        self.notified = False
        self.flushing = False
        self.passed = False
        self.refusal: dict[str, str] = {}
        self._noted: list[_Noted] = []
        self._log: list[tuple[int, bytes]] = []  # what the open transaction has executed
        self._doubt = False  # something in it could not be read
        self._held: list[tuple[bytes, bytes]] = []  # channel and message
        self._held_size = 0

    def __repr__(self) -> str:
        return f"<Listening {sorted(self.channels)} asked={sorted(self.asked)}>"

    @property
    def listens(self) -> bool:
        """Whether its transaction has executed a LISTEN."""
        noted = any(noted.kind == sql.LISTEN for noted in self._noted)
        return noted or any(kind == sql.LISTEN for kind, _ in self._log)

    @property
    def waits(self) -> bool:
        """Whether the session waits for the listening connection: with its backend, if it has one
        by then, lest it lose that and ask for another for ever.
        """
        return self.flushing or self._session in self._session.pool.listener.waiters

    # What the client sends.

    def note(self, judged: "Judgement", exchange: "Exchange", said: bytes) -> None:
        """A statement was sent that may mean something here."""
        session = self._session
        backend = session.backend
        assert backend is not None
        self.passed = False
        if judged.notifies:
            self.notified = True
        if self.notified:
            # Nothing may be answered behind a ReadyForQuery that is held.
            backend.fifo.barrier = True
        kind = judged.kind
        if kind in _LISTENS or kind == sql.MANY or self._log or self._noted:
            parts = sql.judge_each(said, session.strings_conform)
            for part in parts:
                if part.kind in _FOLLOWED:
                    self._write_down(_Noted(exchange, part.kind, part.name, len(parts) == 1))
                if part.kind == sql.LISTEN:
                    backend.listens = True
            if not parts and kind != sql.EMPTY:
                self._write_down(_Noted(exchange, _UNREADABLE, b"", False))

    def _write_down(self, noted: _Noted) -> None:
        self._noted.append(noted)
        if len(self._noted) + len(self._log) > _LOG_LIMIT:
            self._session.fatal(_TOO_MANY_NOTED)

    # What the server answers.

    def ready(self, backend: "Backend", failed: bool) -> bytes | None:
        """ReadyForQuery for a unit of the session's, which `failed` or not: what the client gets in
        its place; None: that.
        """
        session = self._session
        status = backend.fifo.status
        self._settle(backend, failed)
        session.ready(status)
        if status != IDLE:
            self._drop_unasked()
            return None
        listener = session.pool.listener
        waits = self.notified and bool(self.channels) and not backend.fifo.exchanges
        self.notified = False
        if waits and listener.backend is not None:
            self.flushing = True
            session.blocked = True
            listener.flush(session)
            return b""
        said = self._deliver()
        self._leave_if_done()
        return said + encode.ready(IDLE) if said else None

    def take_effect(self, kind: int, name: bytes) -> bytes:
        """LISTEN or UNLISTEN by itself, outside of a transaction. What is now told."""
        self.passed = False
        self._log.append((kind, name))
        self._commit(doubtful=False)
        self._release()
        said = self._deliver()
        self._leave_if_done()
        return said

    def flushed(self) -> None:
        """All that was notified before has come: the ReadyForQuery that waited for it can go."""
        session = self._session
        self.flushing = False
        session.client.write(self._deliver() + encode.ready(IDLE))
        backend = session.backend
        if backend is not None:
            forget_notifier(backend)
        self._leave_if_done()
        if backend is None:
            session.resume()
        elif not backend.fifo.exchanges and not backend.settling:
            session.backend_idle()

    def undo(self) -> None:
        """The transaction is gone, with all that it listened to."""
        self._noted.clear()
        self._log.clear()
        self._doubt = False
        self.notified = False
        self.passed = False
        self.refusal = {}
        self._release()
        self._leave_if_done()

    def _settle(self, backend: "Backend", failed: bool) -> None:
        """Follow the transaction through what has been answered."""
        aborted = self._session.answers.status == IN_FAILED
        status = backend.fifo.status
        followed = False
        while self._noted and self._noted[0].exchange not in backend.fifo.exchanges:
            noted = self._noted.pop(0)
            followed = True
            kind = noted.kind
            if kind in _COMMITS:
                if aborted or (noted.exchange.failed and noted.alone):
                    self._log.clear()
                else:
                    self._commit(self._doubt or noted.exchange.failed)
            elif kind in _ROLLBACKS:
                if not noted.exchange.failed:
                    self._log.clear()
                    aborted = False
            elif kind == sql.ROLLBACK_TO or kind == sql.RELEASE:
                if not noted.exchange.failed:
                    self._to_savepoint(kind, noted.name)
                    aborted = False
            elif kind == _UNREADABLE:
                self._doubt = True
            else:
                self._log.append((kind, noted.name))
        if status == IDLE:
            if failed:
                self._log.clear()
            elif self._log:
                # Ended by what was not read as its end: nobody knows how.
                self._commit(self._doubt or not followed)
            self._doubt = False
        self._release()

    def _to_savepoint(self, kind: int, name: bytes) -> None:
        """Without a name, or with one from before the first LISTEN, it is the oldest of all."""
        place = -1
        for i, (logged, its_name) in enumerate(self._log):
            if logged == sql.SAVEPOINT and its_name == name:
                place = i
        if not name:
            self._doubt = True
        elif kind == sql.ROLLBACK_TO:
            del self._log[place + 1 :]
        else:
            rest = [entry for entry in self._log[place + 1 :] if entry[0] != sql.SAVEPOINT]
            self._log = self._log[: max(place, 0)] + rest

    def _commit(self, doubtful: bool) -> None:
        for kind, name in self._log:
            if kind == sql.LISTEN:
                if name in self.asked or name in self.channels:
                    self.channels.add(name)
            elif kind == sql.SAVEPOINT or doubtful:
                pass
            elif kind == sql.DISCARD_ALL or name == b"*":
                self.asked |= self.channels
                self.channels.clear()
            elif name in self.channels:
                self.channels.discard(name)
                self.asked.add(name)
        self._log.clear()

    def _release(self) -> None:
        """Tell the listener of channels that nothing is left of."""
        listener = self._session.pool.listener
        if not self._log and not self._noted and self._session not in listener.waiters:
            for name in self.asked - self.channels:
                listener.release(self._session, name)
            self.asked.clear()

    def _leave_if_done(self) -> None:
        if not (self.channels or self.asked or self._noted or self._log or self.flushing):
            self._held.clear()
            self._session.listening = None

    # Notifications.

    def hears(self, channel: bytes) -> bool:
        """Whether the listening connection tells it of this channel."""
        return channel in self.channels or channel in self.asked

    def hear(self, channel: bytes, message: bytes) -> None:
        """A notification has come: told now, or held until it may be."""
        session = self._session
        if channel in self.channels:
            if not self._held and may_hear(session):
                session.stats.notifications += 1
                self._tell(message)
                return
        elif not self._noted:
            return  # neither the LISTEN nor its COMMIT is on its way
        self._held.append((channel, message))
        self._held_size += len(message)
        session.pool.listener.holding.add(session)
        if self._held_size > HELD_LIMIT:
            session.outside.event("too many notifications held", endings.about(session))
            end(session, _TOO_MANY_HELD)

    def tell_if_free(self) -> bool:
        """Tell what is held, if the client may hear it; whether nothing is left."""
        if self._held and may_hear(self._session):
            said = self._deliver()
            if said:
                self._tell(said)
        return not self._held

    def _tell(self, said: bytes) -> None:
        session = self._session
        session.stats.sent += len(said)
        session.client.write(said)

    def _deliver(self) -> bytes:
        """What is held, of channels that are still listened to."""
        told = [message for channel, message in self._held if channel in self.channels]
        self._held.clear()
        self._held_size = 0
        self._session.stats.notifications += len(told)
        return b"".join(told)

    def _drop_unasked(self) -> None:
        """The transaction goes on: what was held for a COMMIT is not for it."""
        if self._held and self.asked:
            self._held = [entry for entry in self._held if entry[0] in self.channels]
            self._held_size = sum(len(message) for _, message in self._held)


# LISTEN and NOTIFY, before they are sent.


def granted(session: "Session", said: bytes) -> bool:
    """Whether a text with a LISTEN may be sent now; False: when the listener has its channels.

    Notifications that the listening connection cannot give as the session's own backend would (its
    client has another encoding) pin the session.
    """
    if session.session_mode or session.pool.settings.database in CONSOLE_DATABASES:
        return True
    if session.pin == PIN or (session.listening is not None and session.listening.refusal):
        return True
    parts = sql.judge_each(said, session.strings_conform)
    names = [part.name for part in parts if part.kind == sql.LISTEN and part.name]
    if not names:
        return True
    if not _is_utf8(session) or not all(_is_text(name) for name in names):
        session.pin_for(PIN)
        return True
    if session.listening is None:
        session.listening = Listening(session)
    return session.pool.listener.has(session, names)


def answers_query(session: "Session", judged: "Judgement") -> bool:
    """Whether this Query was answered here: a LISTEN or UNLISTEN, by a session that holds nothing.
    The listening connection has said that the server takes it.
    """
    side = session.listening
    if side is None or session.backend is not None or session.state != NONE or session.pin:
        return False
    if judged.kind == sql.LISTEN:
        if side.refusal or judged.name not in side.asked:
            return False
        tag = b"LISTEN"
    elif judged.kind == sql.UNLISTEN:
        tag = b"UNLISTEN"
    else:
        return False
    said = side.take_effect(judged.kind, judged.name)
    session.active_at = session.outside.now
    session.unnamed = False
    session.client.write(encode.command_complete(tag) + said + encode.ready(IDLE))
    return True


def may_send(session: "Session", judged: "Judgement") -> bool:
    """Whether NOTIFY, or a COMMIT, may be sent now by a session that listens.

    With the COMMIT of a LISTEN its channel is heard, and what was notified before must have come.
    So it must if somebody before it has notified on this backend: the process id will stand for
    this session.
    """
    backend = session.backend
    side = session.listening
    listener = session.pool.listener
    if backend is None or side is None or side.passed or listener.backend is None:
        return True
    notifiers = session.pool.database.notifiers
    foreign = judged.notifies and notifiers.get(backend.port.pid, session.pid) != session.pid
    if (judged.ends and side.listens) or (foreign and side.channels):
        return listener.passed(session, can_ask=True)
    return True


def notifies(session: "Session") -> None:
    """NOTIFY was sent: its backend's process id stands for this session."""
    backend = session.backend
    if backend is not None and session.pid:
        session.pool.database.notifiers[backend.port.pid] = session.pid


def forget_notifier(backend: "Backend") -> None:
    """All that was notified on this backend has come, or it is closed."""
    backend.pool.database.notifiers.pop(backend.port.pid, None)


def _is_utf8(session: "Session") -> bool:
    encoding = session.told.get("client_encoding", "").upper().replace("-", "")
    # A server of this encoding converts nothing.
    return encoding == "UTF8" or session.told.get("server_encoding", "") == "SQL_ASCII"


def _is_text(name: bytes) -> bool:
    # Bytes that are no UTF-8 become surrogates.
    return not any(0xDC80 <= ord(letter) <= 0xDCFF for letter in text(name))


# When a client may be told, and how it is ended.


def may_hear(session: "Session") -> bool:
    """Whether a server would send a notification now: it waits for the next message, in no
    transaction; and the client reads.
    """
    answers = session.answers
    if session.ended or session.blocked or session.client_full or session.logging_in:
        return False
    if answers.state != NONE or answers.unit or answers.active:
        return False
    backend = session.backend
    return backend is None or not (backend.fifo.exchanges or backend.settling)


def end(session: "Session", error: bytes) -> None:
    """A FATAL; in the middle of a message none can be said."""
    backend = session.backend
    if backend is not None and backend.stream_mine and backend.stream:
        session.gone(cancel=True)
        session.client.finish()
    else:
        session.fatal(error)
