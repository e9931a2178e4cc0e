"""One server connection: reads its replies, knows whose they are, gets it clean.

`server_sent()` is the way of a chunk from the server: it walks the messages, lets the FIFO follow
them, and hands what belongs to the session that holds the backend to that session's client, as the
same bytes object where nothing had to be changed. A backend that a session lets go of in any state
goes through `abandon()` and `settle()` until it is clean or closed.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from txproxy.core import state
from txproxy.core.exchange import Exchange, Fifo
from txproxy.core.ports import BackendPort, next_id
from txproxy.core.pressure import NO_HARM
from txproxy.core.settings import FOLLOWED, NO_SETTINGS, Settings
from txproxy.core.statements import (
    DESCRIBED,
    FAILING,
    PARSED_BEFORE,
    Prepared,
    described,
    discarded,
    repeats,
    shape_of,
)
from txproxy.wire import encode
from txproxy.wire.codes import (
    BACKEND_KEY_DATA,
    COMMAND_COMPLETE,
    COPY_DATA,
    COPY_FAIL,
    COPY_IN_RESPONSE,
    DATA_ROW,
    DESCRIBE,
    ERROR_RESPONSE,
    EXECUTE,
    HELD_LIMIT,
    IDLE,
    IN_FAILED,
    NOTICE_RESPONSE,
    NOTIFICATION,
    PARAMETER_STATUS,
    PARSE,
    QUERY,
    READY_FOR_QUERY,
    SYNC,
)
from txproxy.wire.messages import error_fields, int32, is_fatal, parameter_status, text
from txproxy.wire.scan import Tail

if TYPE_CHECKING:
    from txproxy.core.listener import Listener
    from txproxy.core.pool import Pool
    from txproxy.core.session import Session

_WHOLE: Final = frozenset(
    (
        BACKEND_KEY_DATA,
        COMMAND_COMPLETE,
        ERROR_RESPONSE,
        NOTICE_RESPONSE,
        NOTIFICATION,
        PARAMETER_STATUS,
        READY_FOR_QUERY,
    )
)
"""Messages that we read or may have to leave out: held until they are complete."""

_READ: Final = (COPY_IN_RESPONSE, ERROR_RESPONSE, NOTIFICATION, PARAMETER_STATUS, READY_FOR_QUERY)


def _least() -> list[int]:
    """For each type byte the smallest length that a server may announce."""
    limits = [4] * 256
    limits[READY_FOR_QUERY] = 5
    return limits


def _most() -> list[int]:
    """For each type byte the largest length that a server may announce."""
    limits = [0x7FFFFFFF] * 256
    limits[READY_FOR_QUERY] = HELD_LIMIT  # it must be read, so it must be held
    return limits


def _looked_at(kinds: Iterable[int]) -> list[bool]:
    """For each type byte whether a message of it is more than bytes for its owner."""
    return [kind in kinds for kind in range(256)]


_LEAST: Final = _least()
_MOST: Final = _most()
_TOLD: Final = DESCRIBED & ~0xFF
_LOOKED_AT: Final = _looked_at(_READ)
_COUNTED: Final = _looked_at(set(range(256)) - {DATA_ROW, COPY_DATA})
_ASKED: Final = _looked_at((*_READ, DATA_ROW))
RESTORING: Final = "start-up settings"
REPLAYING: Final = "settings that may fail"
_NEVER: Final = float("inf")
_NO_SUCH_STATEMENT: Final = encode.describe_statement(
    b"txproxy: none of this name, to end the unit"
)


class Backend:
    """A backend, from the end of its login until it is closed.

    session    who holds it; None: nobody, it is idle or being settled
    listener   whose connection it is, if it is lent to nobody but listens: see listener.py
    applied    the settings that were replayed on it
    params     what the server reports (ParameterStatus), by the server's spelling; never changed in
               place, so that it can be shared
    prepared   the statements that are prepared on it
    listens    it has executed a LISTEN of a session's
    dirty      why it must be reset before anybody else may have it; "" if it need not
    ending     how its transaction is ended on that way: COMMIT for one that has only read
    settling   it is on its way to being clean: nothing of a client's may be sent
    deadline   when it is closed unless it has got clean
    retiring   why it is closed as soon as nobody needs it; "" if it is not
    harm       what its transaction did to others when the server was last asked
    opened_at, idle_since   on the janitor's clock; connected_at   seconds since 1970
    """

    __slots__ = (
        "applied",
        "cancel_due",
        "cancels",
        "closed",
        "connected_at",
        "deadline",
        "dirty",
        "ending",
        "fifo",
        "full",
        "harm",
        "id",
        "idle_since",
        "instead",
        "last_words",
        "listener",
        "listens",
        "opened_at",
        "ours_failed",
        "params",
        "pool",
        "port",
        "prepared",
        "retiring",
        "rolled_back",
        "session",
        "settling",
        "stats",
        "stream",
        "stream_mine",
        "tail",
        "wants_pause",
    )

    def __init__(self, pool: "Pool", port: BackendPort, params: dict[str, str]) -> None:
        self.id = next_id()
        self.pool = pool
        self.port = port
        self.stats = pool.stats
        self.opened_at = self.idle_since = pool.outside.now
        self.connected_at = 0.0
        self.retiring = ""
        self.params = pool.shared(params)
        self.fifo = Fifo()
        self.prepared = Prepared()
        self.session: Session | None = None
        self.listener: Listener | None = None
        self.listens = False
        self.applied: Settings = NO_SETTINGS
        self.tail = Tail()
        self.stream = 0  # bytes still to come of a message that is passed on in pieces
        self.stream_mine = False
        self.dirty = ""
        self.settling = False
        self.rolled_back = False
        self.ending = b"ROLLBACK"
        self.cancel_due = False  # the client's statement is to be cancelled once it runs
        self.cancels = 0  # CancelRequests on their way
        self.deadline = _NEVER
        self.closed = False
        self.wants_pause = False  # its session's client takes no more for now
        self.full = False  # what was written to it has not been taken by its socket
        self.last_words: dict[str, str] = {}  # the server's FATAL
        self.ours_failed: dict[str, str] = {}  # the ERROR that an exchange of our own got
        self.harm = NO_HARM
        self.instead = b""  # what the client gets for the message that was left out

    def __repr__(self) -> str:
        held = "leased" if self.session else "idle"
        state = "closed" if self.closed else "settling" if self.settling else held
        return f"<Backend {self.pool.name} {state} {self.fifo}>"

    # The way of a chunk.

    def server_sent(self, data: bytes) -> None:
        """Bytes from the server."""
        fifo = self.fifo
        out = self._read(data)
        session = self.session
        if out and session is not None:
            self.stats.sent += len(out)
            session.client.write(out)
        if fifo.sync_due:
            fifo.sync_due = False
            self.port.write(encode.SYNC)
        if self.settling and fifo.exchanges:
            self._end_what_waits()
            self._cancel_what_runs()
        if fifo.broken:
            self.close("the server's replies do not fit what was sent")
        elif not fifo.exchanges:
            self._idle()
        elif session is not None and session.blocked and session.may_go_on(fifo):
            session.checks = False
            session.resume()

    def _idle(self) -> None:
        if self.settling:
            self.settle()
        elif self.session is not None:
            self.session.backend_idle()

    def _read(self, data: bytes) -> bytes:  # noqa: C901, PLR0912, PLR0915  # one loop, few calls
        """What of `data` goes to the client: as a rule all of it, or nothing."""
        pieces: list[bytes] = []
        start = i = 0
        keeping = False
        if self.stream:
            i = min(self.stream, len(data))
            self.stream -= i
            keeping = self.stream_mine
        elif self.tail.size:
            data = self.tail.join(data)
        n = len(data)
        exchanges = self.fifo.exchanges
        session = self.session
        mine = self._mine()
        looked_at = self._looked_at()
        said = b""  # by us, to the session's client, behind this message
        if not mine and i == 0 and exchanges and exchanges[0].prefix:
            i = self.fifo.pass_begin(data, 0)
            mine = self._mine()
            if mine:
                pieces.append(self.news())
        while n - i >= 5:
            kind = data[i]
            length = (data[i + 1] << 24) | (data[i + 2] << 16) | (data[i + 3] << 8) | data[i + 4]
            end = i + 1 + length
            if length < _LEAST[kind] or length > _MOST[kind]:
                self.fifo.broken = True
                break
            if end > n:
                if (kind in _WHOLE or looked_at is _ASKED) and length <= HELD_LIMIT:
                    break
                self.stream = end - n
                self.stream_mine = mine
                end = n
            keep = mine
            if not looked_at[kind]:
                pass
            elif kind == READY_FOR_QUERY:
                instead = self._ready(data[i + 5])
                if self.fifo.broken:
                    break
                keep = mine and instead is None
                said = instead or b""
                mine = self._mine()
                looked_at = self._looked_at()
                if mine and not keep:
                    said += self.news()
            elif _LOOKED_AT[kind]:
                keep = self._take(kind, data[i + 5 : end], mine)
                if kind == ERROR_RESPONSE:
                    mine = self._mine()  # not if the unit goes again
                if self.instead:
                    said = self.instead
                    self.instead = b""
            elif kind == DATA_ROW:
                self._hear(data[i + 5 : end])
            else:
                marked = self.fifo.answered(kind)
                if self.fifo.broken:
                    break
                if marked:
                    keep = mine and marked & ~0xFF == _TOLD
                    if marked == PARSED_BEFORE and mine:
                        said = encode.PARSE_COMPLETE
                    elif marked & 0xFF == DESCRIBE and session is not None:
                        shape = 0 if self.stream else shape_of(data[i + 5 : end])
                        described(session, exchanges[0], marked, shape)
                elif kind == COMMAND_COMPLETE and exchanges and exchanges[0].discards:
                    discarded(self, exchanges[0], data[i + 5 : end])
                if not mine and self._mine():
                    mine = True
                    said = self.news()
            if keep != keeping:
                if keeping:
                    pieces.append(data[start:i])
                start = i
                keeping = keep
            if said:
                pieces.append(said)
                said = b""
            i = end
        if i < n:
            self.tail.keep(data[i:], HELD_LIMIT + 1)
        if keeping:
            if start == 0 and i == n and not pieces:
                return data
            pieces.append(data[start:i])
        return b"".join(pieces)

    def _ready(self, status: int) -> bytes | None:
        """ReadyForQuery; what the client gets in its place, None if it gets that as it is.

        Behind a deferred BEGIN that failed the server is idle, and the client in a failed
        transaction.
        """
        exchanges = self.fifo.exchanges
        head = exchanges[0] if exchanges else None
        session = self.session
        if not self.fifo.ready(status) or session is None:
            if self.listener is not None:
                self.listener.answered()
            elif session is not None and head is not None and head.asks:
                state.answered(session, self)
            elif session is not None and head is not None and head.purpose == RESTORING:
                session.restored(status)
            return None
        if head is not None and head.begin_failed:
            session.begin_failed()
            return self.news() + encode.ready(IN_FAILED)
        if status != IDLE and head is not None and head.ends:
            state.chained(session)
        if session.listening is not None:
            return session.listening.ready(self, head is not None and head.failed)
        session.ready(self.fifo.status)
        return None

    def _take(self, kind: int, body: bytes, mine: bool) -> bool:
        """A message that means something to us; whether it goes to the client."""
        if kind == ERROR_RESPONSE:
            return self._error(body, mine)
        if kind == NOTIFICATION:
            return self._notification(body)
        if kind == PARAMETER_STATUS:
            self._parameter(body, mine)
        else:
            self.fifo.copy_in()
        return mine

    def _notification(self, body: bytes) -> bool:
        """NotificationResponse; whether it is passed on. What a session's LISTEN asked for comes by
        the listening connection. Here comes what only this backend knows that it listens to: in
        session mode, by DO. What the session itself has notified bears the process id that its
        client knows.
        """
        if self.listener is not None:
            self.listener.notified(body)
            return False
        session = self.session
        if session is None or not session.pin:
            return False
        if session.listening is not None and session.listening.hears(body[4 : body.find(b"\0", 4)]):
            return False
        if session.pid and int32(body, 0) == self.port.pid:
            self.instead = encode.message(b"A", session.pid.to_bytes(4, "big") + body[4:])
            return False
        return True

    def _mine(self) -> bool:
        """Whether the next message is for the client of the session that holds this backend."""
        exchanges = self.fifo.exchanges
        if not exchanges:
            return self.session is not None
        head = exchanges[0]
        return head.mine and head.at >= head.prefix

    def _looked_at(self) -> list[bool]:
        """Which replies mean something. In the extended protocol, and where none is expected, each
        is counted.
        """
        exchanges = self.fifo.exchanges
        if not exchanges or exchanges[0].owed[0] != QUERY or exchanges[0].discards:
            return _COUNTED
        return _ASKED if exchanges[0].asks else _LOOKED_AT

    def _hear(self, body: bytes) -> None:
        """A row of the answer to our question, for the session that it is about."""
        if self.session is not None:
            state.hear(self.session, body)

    def _error(self, body: bytes, mine: bool) -> bool:
        """ErrorResponse; whether it is passed on. A FATAL is kept for the session's ERROR."""
        exchanges = self.fifo.exchanges
        purpose = exchanges[0].purpose if exchanges else ""
        owes = self.fifo.owes
        fails = owes and self._fails(exchanges[0])
        again = owes and mine and exchanges[0].use is not None and self._repeats(body)
        expected = self.fifo.error()
        if expected and exchanges[0].begin_failed:
            mine = exchanges[0].mine
        if not expected or is_fatal(body):
            self.last_words = error_fields(body)
            if expected:
                exchanges[0].failed = False
            return False
        if purpose:
            self.ours_failed = error_fields(body)
            if purpose not in (REPLAYING, state.ASKING):
                self.fifo.untrusted = f"{purpose} failed: {self.ours_failed.get('M', '')}"
        if again:
            self._end_what_waits()
            return False
        if fails and mine:
            self.instead = exchanges[0].error
            return False
        return mine

    def _repeats(self, body: bytes) -> bool:
        session = self.session
        return session is not None and repeats(session, self, error_fields(body))

    def _fails(self, head: Exchange) -> bool:
        """An error comes for the next message. Whether that was to fail, in place of a client's."""
        if head.at <= head.unnamed_at:
            if self.prepared.unnamed is head.unnamed:
                self.prepared.unnamed = b""
            names = self.session.names if self.session is not None else None
            parsed = head.owed[head.unnamed_at] == PARSE  # and not again, by us
            if parsed and names is not None and names.unnamed is head.unnamed:
                names.unnamed = b""
        return head.owed[head.at] == FAILING

    def _parameter(self, body: bytes, mine: bool) -> None:
        """ParameterStatus has no owner: whoever holds the backend hears of it, now or later."""
        name, value = parameter_status(body)
        if self.params.get(name) == value:
            return
        self.params = self.pool.shared({**self.params, name: value})
        session = self.session
        if session is not None and mine:
            session.told = self.params
            session.follow(name, value)
        elif name.lower() in FOLLOWED:
            head = self.fifo.exchanges[0] if self.fifo.exchanges else None
            if head is not None and head.purpose == RESTORING and session is not None:
                session.follow(name, value)
            elif head is not None and not head.purpose:
                # A statement of a client that has left: nobody knows what it set.
                self.dirty = self.dirty or "settings of a client that has left"

    def news(self) -> bytes:
        """ParameterStatus for what differs from what the session's client was last told."""
        session = self.session
        if session is None or session.logging_in or session.told is self.params:
            return b""
        told = session.told
        session.told = self.params
        return b"".join(
            encode.parameter_status(name, value)
            for name, value in self.params.items()
            if told.get(name) != value
        )

    # What is sent.

    def ours(self, sql: bytes, purpose: str) -> bytes:
        """A Query for nobody: entered into the FIFO, to be written by the caller."""
        exchange = Exchange(QUERY, False)
        exchange.purpose = purpose
        exchange.asks = purpose == state.ASKING
        self.fifo.exchanges.append(exchange)
        self.prepared.unnamed = b""  # as every Query does
        return encode.query(sql)

    def cancel(self) -> None:
        """Ask the server to cancel what runs; the backend is nobody else's until that is over."""
        self.cancels += 1
        self.port.cancel()

    def cancel_done(self) -> None:
        """The server has read the CancelRequest and closed its connection: the signal was sent."""
        self.cancels -= 1
        if self.cancels or self.closed or self.fifo.exchanges:
            return
        if self.settling:
            self.settle()
        elif self.session is not None:
            self.session.backend_free()

    # Getting clean.

    def abandon(self, cancel: bool) -> None:
        """The session has no more use for the replies: bring the backend to an end of its unit.

        A statement that runs is cancelled if `cancel`, but never one that may be a COMMIT: a cancel
        can cut short the wait for a synchronous replica. A unit without Sync is given one; if it
        executed something outside a transaction block, an error goes first, lest Sync commit it.
        """
        fifo = self.fifo
        self.settling = True
        self.stream_mine = False
        self._unpause()
        for exchange in fifo.exchanges:
            exchange.mine = False
        self.deadline = self.pool.outside.now + self.pool.outside.cancel_timeout
        if not fifo.exchanges:
            self.settle()
            return
        if not fifo.running:
            self._end_what_waits()
            return
        if fifo.exchanges[-1].open:
            # Without Flush or Sync the server keeps its answers to itself, and seems to work.
            self.port.write(encode.FLUSH)
        self.cancel_due = cancel and not any(exchange.ends for exchange in fifo.exchanges)
        self._cancel_what_runs()

    def _cancel_what_runs(self) -> None:
        """Cancel the statement of a client that has left; not one of our own ahead of it."""
        if self.cancel_due and self.fifo.running and not self.fifo.exchanges[0].purpose:
            self.cancel_due = False
            self.cancel()

    def _unpause(self) -> None:
        if self.wants_pause:
            self.wants_pause = False
            self.port.update_reading()

    def _end_what_waits(self) -> None:
        """End the COPY or the unit in which the server waits for a client that will not go on."""
        if self.fifo.copying:
            self._end_copy()
        elif self.fifo.waits_for_client:
            self._end_unit(self.fifo.exchanges[-1])

    def _end_unit(self, unit: Exchange) -> None:
        data = encode.SYNC
        if unit.executes and not (unit.skipping or self.fifo.in_transaction):
            self.fifo.sent(DESCRIBE)
            data = _NO_SUCH_STATEMENT + encode.SYNC
        self.fifo.sent(SYNC)
        self.port.write(data)

    def _end_copy(self) -> None:
        head = self.fifo.exchanges[0]
        extended = head.owed[head.at] == EXECUTE
        self.fifo.sent(COPY_FAIL)
        data = encode.copy_fail("the client has left, or slept too long")
        if extended:
            self.fifo.sent(SYNC)
            data += encode.SYNC
        self.port.write(data)

    def is_clean(self) -> bool:
        """Whether anybody may have it as it is, once its session has let go of it."""
        fifo = self.fifo
        return (
            fifo.status == IDLE
            and not fifo.exchanges
            and not fifo.untrusted
            and not self.dirty
            and not self.listens
            and not self.retiring
            and not self.cancels
            and not self.wants_pause
        )

    def settle(self) -> None:
        """Nothing is owed and no session speaks: the next step to being clean, or give it back."""
        if self.closed:
            return
        self.settling = True
        if self.cancels:
            return
        self._unpause()
        fifo = self.fifo
        if fifo.untrusted:
            self.close(fifo.untrusted)
        elif fifo.in_transaction and self.rolled_back:
            self.close(f"{text(self.ending)} did not end its transaction")
        elif fifo.in_transaction:
            self.rolled_back = True
            self._settle_by(self.ours(self.ending, text(self.ending)))
        elif self.session is None and self.dirty and not self.retiring:
            self.dirty = ""
            self.listens = False
            self.applied = NO_SETTINGS
            self.prepared.clear()
            # DISCARD ALL leaves the role as it is, and must be a Query by itself.
            self._settle_by(
                self.ours(b"RESET ROLE", "RESET ROLE") + self.ours(b"DISCARD ALL", "DISCARD ALL")
            )
        elif self.session is None and self.retiring:
            self.close(self.retiring)
        elif self.session is None and self.listens:
            self.listens = False
            self._settle_by(self.ours(b"UNLISTEN *", "UNLISTEN"))
        else:
            self.settling = False
            self.rolled_back = False
            self.ending = b"ROLLBACK"
            self.cancel_due = False
            self.deadline = _NEVER
            if self.session is None:
                self.pool.take_back(self)
            else:
                self.session.backend_free()

    def _settle_by(self, data: bytes) -> None:
        self.deadline = self.pool.outside.now + self.pool.outside.rollback_timeout
        self.port.write(data)

    def close(self, why: str) -> None:
        """Close it for a reason of ours; its session, if any, is told."""
        if not self.closed:
            self.pool.outside.event("backend closed", {"pool": self.pool.name, "why": why})
            self.port.finish()
            self.lost()

    def lost(self) -> None:
        """The connection is gone."""
        if self.closed:
            return
        self.closed = True
        session = self.session
        self.session = None
        self.pool.removed(self)
        if self.listener is not None:
            self.listener.lost(self)
        if session is not None:
            session.backend_lost(self)
