"""What becomes of each message that a client sends.

`verdict()` says whether a message is forwarded, dropped or answered here (answers.py), replaced, or
held; the session acts on it. What a statement means for the transaction and for the session's
state is read from its leading words (wire/sql.py). A message may be longer than what is there of
it: then its head decides, and a statement of it cannot be judged.
"""

from typing import TYPE_CHECKING, Final

from txproxy.core import begin, state
from txproxy.core.transaction import BEGUN, FAILED, NONE
from txproxy.wire import encode, sql
from txproxy.wire.codes import (
    BIND,
    CLOSE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DESCRIBE,
    EXECUTE,
    FLUSH,
    HELD_LIMIT,
    PARSE,
    QUERY,
    SYNC,
    TERMINATE,
)

if TYPE_CHECKING:
    from txproxy.core.exchange import Exchange, Fifo
    from txproxy.core.session import Session

FORWARD: Final = 0
DROP: Final = 1  # not sent on: dropped, or answered here
REPLACE: Final = 2  # `session.replacement` is sent in its place
SKIP: Final = 3  # answered here, with all that follows it up to `session.skip_to`
HOLD: Final = 4  # not now
STOP: Final = 5  # the session ends: Terminate, or `session.problem`

_SILENT: Final = frozenset((FLUSH, COPY_DATA, COPY_DONE, COPY_FAIL))
_OURS: Final = frozenset((sql.OURS_SET, sql.OURS_SHOW))
_GOING_ON: Final = frozenset((BIND, DESCRIBE, EXECUTE, SYNC))
_STATELESS: Final = sql.judge(b"SELECT 1")
_TOO_LONG: Final = sql.judge(b"'")  # what cannot be judged
_LEXING: Final = frozenset(("standard_conforming_strings", "client_encoding"))  # how texts are read
_NO_ENDING: Final = b"'\0"  # a Query of which only the beginning is there: what ends it, if any?
_NOT_PARSED: Final = encode.describe_statement(b"(unnamed: not parsed in this unit)")
_JUDGED_LENGTH: Final = 2048  # bytes of a text whose judgement is remembered
_JUDGED_LIMIT: Final = 1000  # texts
_judged: dict[bytes, sql.Judgement] = {}
_B, _S, _T = b"bst"  # the first letters of BEGIN and START
_LINE: Final = 256  # bytes kept of a statement, for the log


def verdict(session: "Session", kind: int, data: bytes, i: int, end: int) -> int:
    """What becomes of the message data[i:end], of which data may hold only the beginning."""
    if session.unnamed and kind in _GOING_ON and _goes_on(session, kind):
        return FORWARD
    if kind == QUERY:
        return _query(session, data, i, end)
    if kind == COPY_DATA or kind == COPY_DONE or kind == COPY_FAIL:
        return _copy(session, kind)
    if kind == FLUSH:
        return FORWARD if session.backend is not None else DROP
    if kind == TERMINATE:
        return STOP
    return _extended(session, kind, data, i, end)


def answer(session: "Session", kind: int, data: bytes, i: int, end: int) -> int:
    """It is answered here. COPY data that is on its way to a COPY which is over is dropped."""
    if kind == TERMINATE:
        return STOP
    session.active_at = session.pool.outside.now
    if kind in _SILENT:
        return DROP
    if kind == QUERY and session.answers.state == FAILED and end <= len(data):
        rest = sql.judge(data[i + 5 : end - 1], session.strings_conform).rest
        if rest:
            return _ended_and_on(session, data, i, end, rest)
    body = data[i + 5 : end] if kind != QUERY or end <= len(data) else _NO_ENDING
    said = session.answers.answer(kind, body)
    if said:
        session.client.write(said)
    if session.answers.state == BEGUN:  # AND CHAIN
        session.begin = b"BEGIN"
        session.begin_closes = True
        session.begun_at = session.pool.outside.now
    return DROP


def _ended_and_on(session: "Session", data: bytes, i: int, end: int, rest: int) -> int:
    """A string that ends the failed transaction and goes on: the rest runs on a backend.

    The part that we answered becomes spaces, so that positions in errors stay what they are.
    """
    if not session.has_backend():
        return HOLD
    session.answers.end_here(session.client)
    replacement = data[i : i + 5] + b" " * rest + data[i + 5 + rest : end]
    session.replacement = replacement
    verdict = _query(session, replacement, 0, len(replacement))
    return REPLACE if verdict == FORWARD else verdict


# Simple protocol.


def _query(session: "Session", data: bytes, i: int, end: int) -> int:
    text = data[i + 5 : end - 1]
    judged = sql.judge(text, session.strings_conform) if end <= len(data) else _TOO_LONG
    if judged is not _STATELESS:
        if judged.kind in _OURS and not _in_unit(session):
            return _our_setting(session, QUERY, data, i, end)
        if (session.begin or judged.kind == sql.BEGIN) and begin.answers_query(
            session, judged, text
        ):
            return DROP
    if not session.has_backend():
        return HOLD
    backend = session.backend
    assert backend is not None
    fifo = backend.fifo
    if fifo.exchanges:
        if _must_wait(fifo):
            return HOLD
        if fifo.copying:
            return _not_while_copying(session, QUERY)
    exchange = fifo.sent(QUERY)
    if judged is not _STATELESS and exchange is not None:
        _note(session, judged, exchange, text)
    if end > len(data):
        state.scan(session, data[i:])
    session.statement = text[:_LINE]
    session.statement_end = text[-_LINE:] if len(text) > _LINE else b""
    session.unnamed = False
    session.answers.unit = False
    session.stats.queries += 1
    return FORWARD


def _may_copy(judged: sql.Judgement) -> bool:
    return judged.kind == sql.COPY or judged.kind == sql.MANY or judged.pin == "cannot judge"


def _may_reset(judged: sql.Judgement, text: bytes) -> bool:
    """Whether settings may go back to the server's own, instead of those of the start-up packet."""
    if not (judged.settings or judged.pin or judged.kind == sql.MANY):
        return False
    lower = text.lower()
    resets = b"reset" in lower or b"discard" in lower or b"default" in lower
    return resets or judged is _TOO_LONG


def _our_setting(session: "Session", kind: int, data: bytes, i: int, end: int) -> int:
    """`SET txproxy.…` and SHOW of it: answered here, in its turn."""
    backend = session.backend
    if backend is not None and backend.fifo.exchanges:
        return HOLD
    session.active_at = session.pool.outside.now
    said = session.answers.answer(kind, data[i + 5 : end])
    if said:
        session.client.write(said)
    return DROP


def _must_wait(fifo: "Fifo") -> bool:
    """Whether this must wait: a COPY may begin, and the server would read it as data and die; or
    what a RESET takes away must be given back first.
    """
    return fifo.barrier and not fifo.copying and not fifo.exchanges[-1].open


def _not_while_copying(session: "Session", kind: int) -> int:
    return _violation(session, f"unexpected message type 0x{kind:02X} during COPY from stdin")


def _violation(session: "Session", problem: str) -> int:
    session.problem = problem
    return STOP


def _note(session: "Session", judged: sql.Judgement, exchange: "Exchange", text: bytes) -> None:
    """What a statement means for the transaction and for the session's state."""
    if judged.begins:
        _begins(session, exchange)
        if session.answers.state == NONE:
            session.answers.state = BEGUN
            session.begun_at = session.pool.outside.now
    if judged.ends:
        exchange.ends = True
    if session.backend is not None and (_may_copy(judged) or judged.setting in _LEXING):
        session.backend.fifo.barrier = True
    if session.start.items and session.backend is not None and _may_reset(judged, text):
        session.restore_due = True
        session.backend.fifo.barrier = True
    if judged.settings or judged.pin or judged.looks:
        state.note(session, judged, text)


def _begins(session: "Session", exchange: "Exchange") -> None:
    if not exchange.begins and session.backend is not None:
        exchange.begins = True
        session.backend.fifo.begins += 1


# Extended protocol, FunctionCall and COPY.


def _extended(session: "Session", kind: int, data: bytes, i: int, end: int) -> int:
    answers = session.answers
    if (answers.unit or answers.has_ours) and _answered_here(session, kind, data, i, end):
        return _our_setting(session, kind, data, i, end)
    if kind == PARSE and data.find(b"txproxy.", i, end) >= 0:
        verdict = _parse_ours(session, data, i, end)
        if verdict != FORWARD:
            return verdict
    if kind == PARSE and answers.state <= BEGUN and _begin_unit(session, data, i):
        return SKIP
    if not session.has_backend():
        return HOLD
    backend = session.backend
    assert backend is not None
    fifo = backend.fifo
    if fifo.exchanges and kind != SYNC:
        if _must_wait(fifo):
            return HOLD
        if fifo.copying:
            return _not_while_copying(session, kind)
    answers.unit = False
    if (kind == BIND or kind == DESCRIBE) and _uses_unparsed(session, kind, data, i):
        fifo.sent(DESCRIBE)
        session.replacement = _NOT_PARSED
        return REPLACE
    exchange = fifo.sent(kind)
    if kind == BIND and session.prepared_copy:
        fifo.barrier = True
    if kind == PARSE:
        _parse(session, data, i, end, exchange)
    elif kind == EXECUTE:
        session.stats.queries += 1
    elif kind == BIND:
        session.stats.binds += 1
    elif kind == SYNC:
        session.unnamed = False
        session.parsed = b""
    elif kind not in (BIND, DESCRIBE, CLOSE):
        session.pin_for("FunctionCall")
    return FORWARD


def _begin_unit(session: "Session", data: bytes, i: int) -> bool:
    """Whether the unit that begins here begins or ends a deferred transaction, and was answered."""
    if data[i + 5] or (session.backend is not None and session.backend.fifo.exchanges):
        return False
    letter = data[i + 6] | 0x20
    if not session.begin and letter != _B and (letter != _S or data[i + 7] | 0x20 != _T):
        return False
    text = data[i + 6 : data.find(b"\0", i + 6)]
    session.skip_to = begin.answers_unit(session, _judge_parsed(session, text), data, i, text)
    return session.skip_to > 0


def _goes_on(session: "Session", kind: int) -> bool:
    """The short way: the unit's own statement was parsed, and this only goes on with it."""
    backend = session.backend
    exchanges = backend.fifo.exchanges if backend is not None else None
    unit = exchanges[-1] if exchanges else None
    if unit is None or not unit.open or unit.copying or unit.skipping or session.prepared_copy:
        return False
    unit.owed.append(kind)
    if kind == SYNC:
        unit.open = False
        session.unnamed = False
        session.parsed = b""
    elif kind != DESCRIBE:
        unit.executes = True
        if kind == EXECUTE:
            session.stats.queries += 1
        else:
            session.stats.binds += 1
    return True


def _answered_here(session: "Session", kind: int, data: bytes, i: int, end: int) -> bool:
    """Whether this message belongs to what only we know: a unit, or a statement of ours."""
    answers = session.answers
    if kind == PARSE or (not answers.unit and _in_unit(session)):
        return False
    body = data[i + 5 : end]
    if kind == BIND:
        parts = body.split(b"\0", 2)
        name = parts[1] if len(parts) > 1 else b""
        return answers.knows(name) if answers.unit else answers.is_ours(name)
    if answers.unit:
        return True
    return kind in (DESCRIBE, CLOSE) and body[:1] == b"S" and answers.is_ours(body[1:-1])


def _parse_ours(session: "Session", data: bytes, i: int, end: int) -> int:
    """Parse of a `txproxy.` setting as the first of its unit is ours; FORWARD if it is not."""
    parts = data[i + 5 : end].split(b"\0", 2)
    judged = sql.judge(parts[1], session.strings_conform) if len(parts) > 2 else _TOO_LONG
    if judged.kind not in _OURS:
        return FORWARD
    return FORWARD if _in_unit(session) else _our_setting(session, PARSE, data, i, end)


def _in_unit(session: "Session") -> bool:
    """Whether a unit was begun on the backend, and has had no Sync."""
    backend = session.backend
    return backend is not None and bool(backend.fifo.exchanges) and backend.fifo.exchanges[-1].open


def _uses_unparsed(session: "Session", kind: int, data: bytes, i: int) -> bool:
    """Bind or Describe of an unnamed statement that is not this unit's: another client's."""
    if session.unnamed:
        return False
    if kind == BIND:
        portal_end = data.find(b"\0", i + 5)
        return portal_end >= 0 and data[portal_end + 1 : portal_end + 2] == b"\0"
    return data[i + 5 : i + 7] == b"S\0"


def _parse(session: "Session", data: bytes, i: int, end: int, exchange: "Exchange | None") -> None:
    name_end = data.find(b"\0", i + 5, end)
    text_end = data.find(b"\0", name_end + 1, end)
    whole = end <= len(data) and name_end >= 0 and text_end >= 0
    stats = session.stats
    stats.client_parses += 1
    stats.server_parses += 1
    text = data[name_end + 1 : text_end] if whole else b""
    judged = _judge_parsed(session, text) if whole else _TOO_LONG
    if judged is not _STATELESS and exchange is not None:
        _note(session, judged, exchange, text)
    if end > len(data):
        state.scan(session, data[i:])
    if name_end == i + 5:
        session.unnamed = True
        session.parsed = data[i:end] if whole and end - i <= HELD_LIMIT else b""
    elif name_end >= 0:
        session.pin_for("prepared statement")
        session.answers.remember(data[i + 5 : name_end], judged)
        session.prepared_copy = session.prepared_copy or _may_copy(judged)
    session.statement = text[:_LINE]
    session.statement_end = text[-_LINE:] if len(text) > _LINE else b""


def _judge_parsed(session: "Session", text: bytes) -> sql.Judgement:
    """What a Parse's text means. With parameters apart the same few texts come again and again."""
    if not session.strings_conform:
        return sql.judge(text, False)
    judged = _judged.get(text)
    if judged is None:
        judged = sql.judge(text)
        if len(text) <= _JUDGED_LENGTH:
            if len(_judged) >= _JUDGED_LIMIT:
                _judged.clear()
            _judged[text] = judged
    return judged


def _copy(session: "Session", kind: int) -> int:
    """COPY data, and its end: dropped where no COPY can be on, as the server drops it."""
    backend = session.backend
    if backend is None or not backend.fifo.exchanges:
        return DROP
    if kind != COPY_DATA:
        backend.fifo.sent(kind)
    return FORWARD
