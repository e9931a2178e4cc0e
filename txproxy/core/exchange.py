"""What is owed to whom: the FIFO of exchanges of one backend.

An exchange is what was sent to a backend up to and including the ReadyForQuery that answers it,
with an owner: the session that holds the backend, or nobody (our own ROLLBACK, the settings we
replay), whose replies are swallowed. How many ReadyForQuery come depends on the replies and not
only on what was sent, so the FIFO follows the server message by message:

- an error in an extended message makes the server skip to Sync, a Query on the way included;
- while the server reads COPY data it ignores Sync and Flush;
- CopyDone and CopyFail outside COPY are dropped by the server and answered by nothing.

Source: PostgreSQL 18, section 54.2 "Message Flow", and PostgresMain() in postgres.c.
"""

from collections import deque
from typing import TYPE_CHECKING, Final

from txproxy.wire.codes import (
    BIND,
    BIND_COMPLETE,
    CLOSE,
    CLOSE_COMPLETE,
    COMMAND_COMPLETE,
    COPY_DONE,
    COPY_FAIL,
    DESCRIBE,
    EMPTY_QUERY,
    EXECUTE,
    EXTENDED,
    FLUSH,
    FUNCTION_CALL,
    IDLE,
    NO_DATA,
    PARAMETER_DESCRIPTION,
    PARSE,
    PARSE_COMPLETE,
    PORTAL_SUSPENDED,
    QUERY,
    ROW_DESCRIPTION,
    SYNC,
)
from txproxy.wire.encode import BIND_COMPLETE as BIND_COMPLETED
from txproxy.wire.encode import CLOSE_COMPLETE as CLOSE_COMPLETED
from txproxy.wire.encode import PARSE_COMPLETE as PARSE_COMPLETED
from txproxy.wire.encode import command_complete

if TYPE_CHECKING:
    from txproxy.core.statements import Change, Statement, Use

_BEGUN: Final = PARSE_COMPLETED + BIND_COMPLETED + command_complete(b"BEGIN")
_BEGUN_AND_CLOSED: Final = _BEGUN + CLOSE_COMPLETED
_READY_KINDS: Final = frozenset((QUERY, SYNC, FUNCTION_CALL))
_EXECUTING: Final = frozenset((BIND, EXECUTE))


def _settled_by() -> list[int]:
    """For each reply the extended message that it settles; 0: it settles none."""
    kinds = [0] * 256
    kinds[PARSE_COMPLETE] = PARSE
    kinds[BIND_COMPLETE] = BIND
    kinds[CLOSE_COMPLETE] = CLOSE
    kinds[ROW_DESCRIPTION] = DESCRIBE
    kinds[NO_DATA] = DESCRIBE
    kinds[COMMAND_COMPLETE] = EXECUTE
    kinds[EMPTY_QUERY] = EXECUTE
    kinds[PORTAL_SUSPENDED] = EXECUTE
    return kinds


_SETTLED_BY: Final = _settled_by()


class Exchange:
    """One unit that was sent to a backend.

    `owed` are the kinds of its messages that want a reply, `at` the first of them not yet answered;
    what statements.py has put there in place of a client's is marked above the lowest byte. `open`
    says that the server reads on until Sync.
    """

    __slots__ = (
        "asks",
        "at",
        "begin_failed",
        "begins",
        "cancelled",
        "changes",
        "copying",
        "deallocates",
        "described",
        "discards",
        "ends",
        "error",
        "executes",
        "failed",
        "holds_ends",
        "mine",
        "open",
        "owed",
        "prefix",
        "purpose",
        "skipping",
        "sync_lost",
        "unnamed",
        "unnamed_at",
        "use",
    )

    def __init__(self, kind: int, mine: bool) -> None:
        self.mine = mine  # the session's that holds the backend; else nobody's
        self.purpose = ""  # of one of our own: its error is ours to handle
        self.asks = False  # one of our own whose rows we read: see state.py
        self.owed = [kind]
        self.at = 0
        self.prefix = 0  # how many of `owed` are a deferred BEGIN's, whose replies are nobody's
        self.begin_failed = False
        self.open = kind in EXTENDED
        self.skipping = False
        self.copying = False  # the server reads COPY data
        self.holds_ends = False  # CopyDone or CopyFail is among what is owed
        self.sync_lost = False  # a Sync was sent while the server may have read COPY data
        self.begins = False  # what it says about transactions: see wire/sql.py
        self.ends = False
        self.executes = kind in _EXECUTING
        self.cancelled = False
        self.failed = False  # its ErrorResponse was passed on
        self.error = b""  # what the client gets for the message that fails in place of its own
        self.changes: list[Change] = []  # to names of prepared statements, in their order
        self.described: list[Statement] = []  # by the Describes whose answers are looked at
        self.use: Use | None = None  # of a prepared statement: see statements.py
        self.unnamed = b""  # the last Parse of the unnamed statement, and where `owed` has it
        self.unnamed_at = -1
        self.discards = False  # statements may be discarded: see statements.discarded()
        self.deallocates = b""  # the client's name that its DEALLOCATE is for, if we know it

    def parses_unnamed(self, message: bytes) -> None:
        """The message sent last is this Parse of the unnamed statement."""
        self.unnamed = message
        self.unnamed_at = len(self.owed) - 1

    def take_back(self) -> None:
        """An error came in place of the next answer: what the rest was to do to names it has not
        done.
        """
        while self.changes and self.changes[-1].place >= self.at:
            self.changes.pop().take_back()

    def __repr__(self) -> str:
        owner = "session" if self.mine else "nobody"
        kinds = bytes(kind & 0xFF for kind in self.owed[self.at :]).decode()
        return f"<Exchange of {owner} owed={kinds!r}{' open' if self.open else ''}>"


class Fifo:
    """The exchanges of one backend, oldest first, and the transaction status last reported.

    `untrusted`: why what the server will say cannot be counted on any more; the backend must then
    be closed once nobody needs it. `broken`: replies and requests can no longer be matched.
    """

    def __init__(self) -> None:
        self.exchanges: deque[Exchange] = deque()
        self.status = IDLE
        self.begins = 0  # how many of them begin a transaction
        self.untrusted = ""
        self.broken = False
        self.barrier = False  # until what was sent is over, nothing may be sent behind it
        self.sync_due = False  # the server skips to a Sync that nobody but us will send

    def __repr__(self) -> str:
        return f"<Fifo {chr(self.status)} {list(self.exchanges)}>"

    def begin_ahead(self, closes: bool) -> None:
        """Parse, Bind and Execute of a deferred BEGIN were sent, and Close of its portal if it
        `closes`: the session's unit follows.

        What comes behind that unit must wait: the server would skip it if the BEGIN failed.
        """
        unit = Exchange(PARSE, True)
        unit.owed = [PARSE, BIND, EXECUTE, CLOSE] if closes else [PARSE, BIND, EXECUTE]
        unit.prefix = len(unit.owed)
        self.exchanges.append(unit)
        self.barrier = True

    def pass_begin(self, data: bytes, i: int) -> int:
        """If all replies to the deferred BEGIN at the head stand in data[i:], where they end: they
        have been taken. Else `i`.
        """
        head = self.exchanges[0]
        expected = _BEGUN if head.prefix == 3 else _BEGUN_AND_CLOSED
        if head.at or not data.startswith(expected, i):
            return i
        head.at = head.prefix
        return i + len(expected)

    def sent(self, kind: int, mine: bool = True) -> Exchange | None:
        """A message was sent that may be answered. Its exchange; None if the server drops it."""
        exchanges = self.exchanges
        last = exchanges[-1] if exchanges else None
        if last is not None and last.copying:
            self._sent_while_copying(last, kind)
            return last
        if kind == COPY_DONE or kind == COPY_FAIL:
            # It ends a COPY if one of the messages ahead of it begins one; else it is dropped.
            if last is not None and last.at < len(last.owed):
                last.owed.append(kind)
                last.holds_ends = True
            return last
        if kind == FLUSH:
            return last
        if last is None or not last.open:
            last = Exchange(kind, mine)
            exchanges.append(last)
            return last
        if last.skipping and kind != SYNC:
            return last
        last.skipping = False
        if len(last.owed) == last.prefix and kind in _READY_KINDS:
            # A Query behind the BEGIN is a unit by itself, as it is without it.
            last.open = False
        last.owed.append(kind)
        if kind == SYNC:
            last.open = False
        elif kind in _EXECUTING:
            last.executes = True
        elif kind == QUERY and last.executes:
            # PostgreSQL 18 then answers T and I, and fails the next statement with XX000.
            self.untrusted = "a Query followed an Execute without Sync"
        return last

    def sent_as(self, code: int) -> Exchange:
        """A message that statements.py puts into a unit which the server reads."""
        unit = self.sent(code & 0xFF)
        assert unit is not None
        unit.owed[-1] = code
        return unit

    def _sent_while_copying(self, last: Exchange, kind: int) -> None:
        if kind == COPY_DONE or kind == COPY_FAIL:
            last.copying = False
        elif kind == SYNC:
            last.sync_lost = True

    @property
    def owes(self) -> bool:
        """Whether the server has anything to answer, COPY data that it waits for included."""
        exchanges = self.exchanges
        if not exchanges:
            return False
        head = exchanges[0]
        return head.at < len(head.owed)

    @property
    def waits_for_client(self) -> bool:
        """Whether the server, inside a unit or a COPY, can do nothing until the client goes on."""
        exchanges = self.exchanges
        if len(exchanges) != 1:
            return False
        head = exchanges[0]
        return head.copying or (head.open and head.at == len(head.owed))

    @property
    def running(self) -> bool:
        """Whether the server works: it owes something and does not wait for the client."""
        return self.owes and not self.waits_for_client

    @property
    def copying(self) -> bool:
        """Whether the server reads COPY data."""
        return bool(self.exchanges) and self.exchanges[0].copying

    def answered(self, reply: int) -> int:
        """A reply came that is none of ErrorResponse, ReadyForQuery, CopyInResponse. What it
        settles if that is marked in `owed`, else 0.
        """
        kind = _SETTLED_BY[reply]
        if kind == 0:
            return self._marked() if reply == PARAMETER_DESCRIPTION else 0
        if not self.exchanges:
            self.broken = True
            return 0
        head = self.exchanges[0]
        owed = head.owed[head.at] if head.at < len(head.owed) else SYNC
        if owed & 0xFF == kind:
            head.at += 1
            if head.holds_ends:
                self._drop_copy_ends(head)
            return owed if owed > 0xFF else 0
        if owed != QUERY and owed != FUNCTION_CALL:
            self.broken = True
        return 0

    def _marked(self) -> int:
        head = self.exchanges[0] if self.exchanges else None
        return 0 if head is None or head.at == len(head.owed) else head.owed[head.at] & ~0xFF

    def copy_in(self) -> None:
        """CopyInResponse: from here the server reads COPY data and ignores Sync and Flush."""
        if not self.owes:
            self.broken = True
            return
        head = self.exchanges[0]
        head.copying = True
        self._eat(head)
        while (head.copying or head.open) and len(self.exchanges) > 1:
            following = self.exchanges[1]
            del self.exchanges[1]
            self.begins -= following.begins
            for change in following.changes:
                change.place += len(head.owed)
            head.changes += following.changes
            head.discards = head.discards or following.discards
            head.owed += following.owed
            head.holds_ends = head.holds_ends or following.holds_ends
            head.open = following.open
            self._eat(head)

    def _eat(self, head: Exchange) -> None:
        """Take out what the server reads as part of the COPY: up to CopyDone or CopyFail."""
        place = head.at + 1
        while place < len(head.owed) and head.copying:
            kind = head.owed[place]
            if kind == SYNC:
                head.sync_lost = True
                head.open = head.owed[head.at] == EXECUTE
            elif kind == COPY_DONE or kind == COPY_FAIL:
                head.copying = False
            else:
                return
            del head.owed[place]
            for change in head.changes:
                change.place -= change.place > place

    def error(self) -> bool:
        """ErrorResponse. False if no exchange waits for it: the backend is dying."""
        if not self.owes:
            return False
        head = self.exchanges[0]
        if head.sync_lost:
            # The server may have read that Sync before it failed, or may answer it still.
            self.broken = True
        if head.at < head.prefix:
            head.begin_failed = True
            if not head.open and head.owed[-1] != SYNC:
                head.owed.append(SYNC)
                self.sync_due = True
        head.take_back()
        if head.owed[head.at] & 0xFF in EXTENDED:
            owed = head.owed
            while head.at < len(owed) and owed[head.at] != SYNC:
                head.at += 1
            head.skipping = head.at == len(owed)
        head.copying = False
        head.failed = True
        return True

    def ready(self, status: int) -> bool:
        """ReadyForQuery, with its status. Whether it is the session's."""
        self.status = status
        head = self.exchanges[0] if self.exchanges else None
        if head is None or head.at == len(head.owed) or head.owed[head.at] not in _READY_KINDS:
            self.broken = True
            return False
        head.at += 1
        head.copying = False
        if head.holds_ends:
            self._drop_copy_ends(head)
        if head.at == len(head.owed) and not head.open:
            self.exchanges.popleft()
            self.begins -= head.begins
            if not self.exchanges:
                self.barrier = False
        return head.mine

    def _drop_copy_ends(self, head: Exchange) -> None:
        while head.at < len(head.owed) and head.owed[head.at] in (COPY_DONE, COPY_FAIL):
            head.at += 1

    @property
    def in_transaction(self) -> bool:
        """Whether the last ReadyForQuery said T or E."""
        return self.status != IDLE
