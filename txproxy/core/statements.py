"""Prepared statements at protocol level: under one name on whichever backend comes next.

A client's name means a `Statement`, the same object for all clients that have prepared the same
text, with the same parameter types, under the same settings. It has a name of ours, which stands in
place of the client's in Parse, Bind, Describe and Close. A backend that lacks it gets its Parse
ahead of the message that names it.

The server answers each message that it gets, so nothing is answered by us: what is not to be sent
on is replaced by a message whose reply can stand for the other, or be turned into it. So the order
of replies, and what the server skips behind an error, come by themselves:

    Parse of a statement that the backend has     Close of none; CloseComplete becomes ParseComplete
    Close                                         Close of none: the statement stays for others
    a name that is not known, or known already    Describe of none; its error becomes the right one

What a message does to names holds from when it is sent. An error takes back what was to come behind
it in its unit (`Exchange.take_back`); the next unit waits until that is certain. What DISCARD ALL
and DEALLOCATE do holds from when the server says that they were run.

Source: PostgreSQL 18, section 54.2.3 "Extended Query", and exec_parse_message() and its neighbours
in postgres.c. PgBouncer 1.21 and later rename in the same way (max_prepared_statements).
"""

from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING, Final

from txproxy.core.settings import Settings
from txproxy.wire import encode, sql
from txproxy.wire.codes import CLOSE, DESCRIBE, EXECUTE, FLUSH, PARSE
from txproxy.wire.messages import int32, text

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.exchange import Exchange, Fifo
    from txproxy.core.session import Session

SWALLOWED: Final = 0x100
"""Added to the kind of a message in `Exchange.owed`: its reply is for nobody."""

PARSED_BEFORE: Final = 0x200 | CLOSE
"""A Close that stands for a Parse: its reply becomes ParseComplete."""

FAILING: Final = 0x200 | DESCRIBE
"""A Describe that fails: its error becomes `Exchange.error`."""

DESCRIBED: Final = 0x400 | DESCRIBE
"""A client's Describe of a statement: its reply is remembered, as `Statement.shape`."""

CHECKED: Final = SWALLOWED | DESCRIBED
"""The same of ours: its reply is compared with what clients know of the statement."""

_PLAN: Final = 4096  # bytes that a statement is taken to cost a backend, its text apart
_BACKEND_LIMIT: Final = 4 << 20  # bytes of statements on one backend
_POOL_LIMIT: Final = 16 << 20  # bytes of statements that a pool's sessions may share
_SESSION_LIMIT: Final = 16 << 20  # bytes of statements that one client may name
PREFIX: Final = b"txproxy"
"""Of the names of ours on backends; by itself it is none."""

FULL: Final = "too many prepared statements: their texts are limited for each client"
"""What a client is told that has named as much as it may."""

CLOSE_NONE: Final = encode.close_statement(PREFIX)
DESCRIBE_NONE: Final = encode.describe_statement(PREFIX)

_REVALIDATE: Final = "RevalidateCachedQuery"  # by which drivers tell it from others of 0A000
_Key = tuple[bytes, tuple[tuple[str, str], ...]]
_next: Final = count(1).__next__


class Statement:
    """A prepared statement. `parse` is its Parse message under `name`, its name on backends."""

    __slots__ = ("body", "judged", "name", "parse", "shape", "size")

    def __init__(self, body: bytes, judged: sql.Judgement) -> None:
        self.body = body  # text and parameter types, as in the Parse message
        self.judged = judged
        self.name = PREFIX + b"_%d" % _next()
        self.parse = encode.message(b"P", self.name + b"\0" + body)
        self.size = len(self.parse) + _PLAN
        self.shape = 0  # stands for its RowDescription, if a client was told that

    def __repr__(self) -> str:
        return f"<Statement {text(self.name)}>"

    @property
    def text(self) -> bytes:
        """Its text."""
        return self.body[: self.body.find(b"\0")]


class Texts:
    """The statements of a pool by text, parameter types and settings; the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, Statement] = OrderedDict()
        self._size = 0

    def statement(self, body: bytes, judged: sql.Judgement, settings: Settings) -> Statement:
        """The statement for a Parse; `body` is its text and parameter types.

        What a text means depends on settings (search_path, or DateStyle in a literal): sessions
        share it where theirs agree.
        """
        key = (body, settings.parsing)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        known = Statement(body, judged)
        self._known[key] = known
        self._size += known.size
        while self._size > _POOL_LIMIT and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._size -= oldest.size
        return known

    def forget(self, statement: Statement, settings: Settings) -> None:
        """Whoever parses its text from now on gets another one."""
        key = (statement.body, settings.parsing)
        if self._known.get(key) is statement:
            del self._known[key]
            self._size -= statement.size


class Names:
    """What a client's names mean. `unnamed` is the Parse message of its unnamed statement."""

    def __init__(self) -> None:
        self.by_name: dict[bytes, Statement] = {}
        self.size = 0
        self.unnamed = b""

    def put(self, name: bytes, statement: Statement | None) -> Statement | None:
        """Let a name mean a statement, or nothing; what it meant before."""
        before = self.by_name.pop(name, None)
        if before is not None:
            self.size -= before.size
        if statement is not None:
            self.by_name[name] = statement
            self.size += statement.size
        return before

    def forget(self) -> None:
        """No name means anything any more."""
        self.by_name.clear()
        self.size = 0

    def replace(self, old: Statement) -> None:
        """Another statement with the same text."""
        new = Statement(old.body, old.judged)
        for called, statement in self.by_name.items():
            if statement is old:
                self.by_name[called] = new

    @property
    def full(self) -> bool:
        """Whether the client has named as much as it may."""
        return self.size > _SESSION_LIMIT


class Prepared:
    """What is prepared on a backend: names with their sizes, the one used last at the end.

    `unnamed` is the Parse message of the unnamed statement there, the very object that its
    session's Names have; b"" if it is nobody's.
    """

    def __init__(self) -> None:
        self.by_name: OrderedDict[bytes, int] = OrderedDict()
        self.size = 0
        self.unnamed = b""

    def add(self, name: bytes, size: int) -> None:
        """It is there now."""
        self.by_name[name] = size
        self.size += size

    def remove(self, name: bytes) -> int:
        """It is gone; its size."""
        size = self.by_name.pop(name, 0)
        self.size -= size
        return size

    def forget_named(self) -> None:
        """All that have a name are gone."""
        self.by_name.clear()
        self.size = 0

    def clear(self) -> None:
        """All are gone."""
        self.forget_named()
        self.unnamed = b""

    def surplus(self) -> bytes:
        """The one to close first, if there is too much; else b""."""
        if self.size <= _BACKEND_LIMIT or len(self.by_name) < 2:
            return b""
        return next(iter(self.by_name))


class Change:
    """What the message at `place` of its unit did to names, to be taken back if the server never
    came to it: a client's name meant `before`, or a backend has got (`size` 0) or lost a name.
    """

    __slots__ = ("before", "name", "names", "place", "prepared", "size")

    def __init__(self, place: int, name: bytes) -> None:
        self.place = place
        self.name = name
        self.names: Names | None = None
        self.before: Statement | None = None
        self.prepared: Prepared | None = None
        self.size = 0

    def take_back(self) -> None:
        """It did not happen."""
        if self.names is not None:
            self.names.put(self.name, self.before)
        elif self.prepared is not None and self.size:
            self.prepared.add(self.name, self.size)
        elif self.prepared is not None:
            self.prepared.remove(self.name)


# What a unit does. All of these are for a unit that the server reads: not skipped, no COPY.


def _change(fifo: "Fifo", name: bytes) -> Change:
    unit = fifo.exchanges[-1]
    change = Change(len(unit.owed) - 1, name)
    unit.changes.append(change)
    fifo.barrier = True  # the next unit must not count on it before it is certain
    return change


def name(fifo: "Fifo", names: Names, called: bytes, statement: Statement | None) -> None:
    """The message sent last lets a client's name mean this statement, or none."""
    change = _change(fifo, called)
    change.names = names
    change.before = names.put(called, statement)


def prepare(backend: "Backend", statement: Statement) -> None:
    """The message sent last is this statement's Parse."""
    change = _change(backend.fifo, statement.name)
    change.prepared = backend.prepared
    backend.prepared.add(statement.name, statement.size)


def unprepare(backend: "Backend", name: bytes) -> None:
    """The message sent last closes the statement of this name on the backend."""
    change = _change(backend.fifo, name)
    change.prepared = backend.prepared
    change.size = backend.prepared.remove(name)


def is_there(backend: "Backend", statement: Statement) -> bool:
    """Whether the backend has it. If so, it is about to be used."""
    by_name = backend.prepared.by_name
    if statement.name not in by_name:
        return False
    by_name.move_to_end(statement.name)
    return True


def ahead(backend: "Backend", statement: Statement) -> bytes:
    """What must be sent ahead of a message that names this statement; b"" if it is there."""
    if is_there(backend, statement):
        return b""
    backend.fifo.sent_as(SWALLOWED | PARSE)
    prepare(backend, statement)
    return statement.parse + make_room(backend)


def make_room(backend: "Backend") -> bytes:
    """Close of what a backend has too much of."""
    said = b""
    surplus = backend.prepared.surplus()
    while surplus:
        said += encode.close_statement(surplus)
        backend.fifo.sent_as(SWALLOWED | CLOSE)
        unprepare(backend, surplus)
        surplus = backend.prepared.surplus()
    return said


def failing(backend: "Backend", sqlstate: str, said: str, routine: str = "") -> bytes:
    """A message that fails in place of the client's, with this error."""
    unit = backend.fifo.sent_as(FAILING)
    if not unit.error:
        unit.error = encode.error("ERROR", sqlstate, said, routine=routine)
    return DESCRIBE_NONE


# DISCARD ALL and DEALLOCATE.
#
# DEALLOCATE of a name that only we know is for the server DEALLOCATE of a statement that we prepare
# for that. In a unit that may discard statements, a message that names one waits until all ahead of
# it is answered: before that it is not known what its name means.

_VICTIM: Final = Statement(b"\0\0\0", sql.judge(b""))


def may_discard(fifo: "Fifo") -> None:
    """The message sent last may discard statements when it is run."""
    fifo.exchanges[-1].discards = True
    fifo.barrier = True


def deallocating(backend: "Backend", called: bytes, code: int) -> bytes:
    """What the server gets for the Parse of a DEALLOCATE of this name; `code` is for `owed`."""
    said = ahead(backend, _VICTIM)
    unit = backend.fifo.sent_as(code)
    unit.deallocates = called
    may_discard(backend.fifo)
    return said + encode.parse(b"DEALLOCATE " + _VICTIM.name)


def discarded(backend: "Backend", unit: "Exchange", tag: bytes) -> None:
    """A CommandComplete came, in a unit that may discard statements."""
    names = backend.session.names if backend.session is not None and unit.mine else None
    if tag in (b"DISCARD ALL\0", b"DEALLOCATE ALL\0"):
        backend.prepared.forget_named()
        if names is not None:
            names.forget()
    elif tag == b"DEALLOCATE\0" and unit.deallocates:
        backend.prepared.remove(_VICTIM.name)
        if names is not None:
            names.put(unit.deallocates, None)


# A plan that is out of date.
#
# A client that was told by Describe what a statement's rows look like may take that for granted
# (asyncpg does). On another backend the statement is parsed later, when the table may have been
# altered: so it is described there once, and the client waits for that round trip.


def check(backend: "Backend", statement: Statement) -> bytes:
    """What must be sent and answered before a client may use the statement; b"" if nothing."""
    if not statement.shape or is_there(backend, statement):
        return b""
    said = ahead(backend, statement) + encode.describe_statement(statement.name) + encode.FLUSH
    backend.fifo.sent_as(CHECKED).described.append(statement)
    return said


def shape_of(body: bytes) -> int:
    """Stands for what a RowDescription says of its columns; 0 for none. Which table they are of is
    left out: by another search_path it is another one, and its rows may look the same.
    """
    parts: list[bytes] = []
    i = 2
    end = body.find(b"\0", i)
    while i <= end <= len(body) - 19:
        # behind the name: table (4 bytes), number in it (2), then type, size, modifier, format
        parts.append(body[i : end + 1] + body[end + 7 : end + 19])
        i = end + 19
        end = body.find(b"\0", i)
    return hash(b"".join(parts)) if parts else 0


def described(session: "Session", unit: "Exchange", marked: int, shape: int) -> None:
    """The answer to a Describe: `shape` stands for it; 0: it is too large to be remembered."""
    statement = unit.described.pop(0)
    if marked == DESCRIBED:
        statement.shape = statement.shape or shape
    elif shape != statement.shape:
        session.stale = statement


def outdated(session: "Session", backend: "Backend", statement: Statement) -> bytes:
    """The statement's rows are not here what clients know: close it, and fail."""
    session.stale = None
    backend.fifo.sent_as(SWALLOWED | CLOSE)
    unprepare(backend, statement.name)
    session.pool.texts.forget(statement, session.wanted)
    said = failing(backend, "0A000", "cached plan must not change result type", _REVALIDATE)
    return encode.close_statement(statement.name) + said


class Use:
    """The first message of its unit that names a statement: data[at:] of the chunk it came in, and
    its place in `Exchange.owed`.
    """

    __slots__ = ("at", "data", "place", "statement")

    def __init__(self, unit: "Exchange", statement: Statement, data: bytes, at: int) -> None:
        self.place = len(unit.owed) - 1
        self.statement = statement
        self.data = data
        self.at = at


def use(unit: "Exchange", statement: Statement, data: bytes, i: int) -> None:
    """The message sent last names this statement: it was data[i:], under the client's name."""
    if unit.use is None:
        unit.use = Use(unit, statement, data, i)


def repeats(session: "Session", backend: "Backend", fields: dict[str, str]) -> bool:
    """An ERROR came, of these fields, and nothing has been said of it. Whether it says that a table
    is not what it was when the statement was prepared, and the unit goes again, with a new one.

    It does outside a transaction, where nothing of the unit was run and all of it is at hand;
    inside of one the error has ended the transaction, and is the client's. It also is where the
    client does not ask in this unit what the rows look like (asyncpg): it would take the new ones
    for the old; such clients know this error, and prepare again.
    """
    fifo = backend.fifo
    unit = fifo.exchanges[0]
    used = unit.use
    if used is None or fields.get("C") != "0A000" or fields.get("R") != _REVALIDATE:
        return False
    session.pool.texts.forget(used.statement, session.wanted)
    alone = len(fifo.exchanges) == 1 and not (session.blocked or session.tail.size)
    if not alone or fifo.in_transaction or unit.prefix or unit.at != used.place:
        return False
    if EXECUTE in unit.owed[: used.place]:
        return False  # the error has undone it, and it would not go again
    if not _is_rest(used.data, used.at, len(unit.owed) - used.place):
        return False
    session.names.replace(used.statement)
    unit.mine = False
    session.hold_again(used.data[used.at :])
    return True


def _is_rest(data: bytes, i: int, messages: int) -> bool:
    """Whether data[i:] is a unit's last messages that are answered, so many, and one a Describe."""
    describes = False
    while len(data) - i >= 5:
        messages -= data[i] != FLUSH
        describes = describes or data[i] == DESCRIBE
        i += 1 + int32(data, i + 1)
    return describes and not messages
