"""What becomes of each message that a client sends.

`verdict()` says whether a message is forwarded, dropped or answered here (answers.py), replaced, or
held; the session acts on it. What a statement means for the transaction and for the session's
state is read from its leading words (wire/sql.py). A message may be longer than what is there of
it: then its head decides, and a statement of it cannot be judged.
"""

import re
from typing import TYPE_CHECKING, Final

from txproxy.core import begin, claims, listening, state, statements
from txproxy.core.aborted import REFUSED
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
    FUNCTION_CALL,
    IN_FAILED,
    PARSE,
    QUERY,
    SHOWN_LIMIT,
    SYNC,
    TERMINATE,
)
from txproxy.wire.messages import int32
from txproxy.wire.messages import text as text_of

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.exchange import Exchange, Fifo
    from txproxy.core.session import Session

FORWARD: Final = 0
HEAD: Final = 1  # forwarded from `session.skip_to` on, behind `session.replacement`
DROP: Final = 2  # not sent on: dropped, or answered here
REPLACE: Final = 3  # `session.replacement` is sent in its place
SKIP: Final = 4  # answered here, with all that follows it up to `session.skip_to`
HOLD: Final = 5  # not now
WAIT: Final = 6  # the same, and `session.replacement` is sent
STOP: Final = 7  # the session ends: Terminate, or `session.problem`

_SILENT: Final = frozenset((FLUSH, COPY_DATA, COPY_DONE, COPY_FAIL))
_OURS: Final = frozenset((sql.OURS_SET, sql.OURS_SHOW))
_GOING_ON: Final = frozenset((BIND, DESCRIBE, EXECUTE, SYNC))
_STATELESS: Final = sql.judge(b"SELECT 1")
_TOO_LONG: Final = sql.judge(b"'")  # what cannot be judged
_LEXING: Final = frozenset(("standard_conforming_strings", "client_encoding"))  # how texts are read
_ZONE_OF_SERVER: Final = re.compile(rb"\bzone\b.*\blocal\b", re.DOTALL)  # SET TIME ZONE LOCAL
_NOT_WHOLE: Final = b"?"  # is no statement, whatever it was
_NO_ENDING: Final = b"'\0"  # a Query of which only the beginning is there: what ends it, if any?
_JUDGED_LENGTH: Final = 2048  # bytes of a text whose judgement is remembered
_JUDGED_LIMIT: Final = 1000  # texts
_judged: dict[bytes, sql.Judgement] = {}
_B, _S, _T = b"bst"  # the first letters of BEGIN and START
_OF_STATEMENT: Final = 0x53  # S: what a Describe or Close names is a statement, not a portal


def verdict(session: "Session", kind: int, data: bytes, i: int, end: int) -> int:
    """What becomes of the message data[i:end], of which data may hold only the beginning."""
    if session.unnamed and kind in _GOING_ON and _goes_on(session, kind, data, i):
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
        judged = sql.judge(data[i + 5 : end - 1], session.strings_conform)
        if judged.rest:
            return _ended_and_on(session, judged, data, i, end)
    body = data[i + 5 : end] if kind != QUERY or end <= len(data) else _NO_ENDING
    before = session.answers.state
    said = session.answers.answer(kind, body)
    if said:
        session.client.write(said)
    if before == FAILED:
        _begin_if_chained(session)
    return DROP


def _begin_if_chained(session: "Session") -> None:
    """The failed transaction was ended: with AND CHAIN another begins."""
    if session.answers.state == BEGUN:
        session.begin = b"BEGIN"
        session.begin_closes = True
        session.begun_at = session.pool.outside.now


def _ended_and_on(session: "Session", judged: sql.Judgement, data: bytes, i: int, end: int) -> int:
    """A string that ends the failed transaction and goes on: the rest runs on a backend.

    The part that we answered becomes spaces, so that positions in errors stay what they are.
    """
    if not session.has_backend():
        return HOLD
    session.answers.end_here(session.client, judged.first)
    _begin_if_chained(session)
    rest = judged.rest
    message = data[i : i + 5] + b" " * rest + data[i + 5 + rest : end]
    session.replacement = message
    verdict = _query(session, message, 0, len(message))
    if verdict == HOLD:
        session.hold_again(message + data[end:])
        session.skip_to = len(data)
        return SKIP
    return REPLACE if verdict == FORWARD else verdict


# Simple protocol.


def _query(session: "Session", data: bytes, i: int, end: int) -> int:
    text = data[i + 5 : end - 1]
    judged = sql.judge(text, session.strings_conform) if end <= len(data) else _TOO_LONG
    if judged is not _STATELESS:
        if judged.kind in _OURS and not _in_unit(session):
            return _our_setting(session, QUERY, data, i, end)
        if _is_ours_to_deallocate(session, judged):
            return _deallocate(session, judged)
        if (session.begin or judged.kind == sql.BEGIN) and begin.answers_query(
            session, judged, text
        ):
            return DROP
        if (judged.kind == sql.LISTEN or judged.listens) and not listening.granted(session, text):
            return HOLD
        if session.listening is not None and listening.answers_query(session, judged):
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
    if judged is not _STATELESS:
        verdict = _refused_or_late(session, backend, judged)
        if verdict == REPLACE:
            fifo.sent(SYNC)
            session.replacement += encode.SYNC
        if verdict != FORWARD:
            return verdict
    exchange = fifo.sent(QUERY)
    said = session.said
    if said.begin and judged.kind != sql.COMMIT:
        said.say(text if end <= len(data) else _NOT_WHOLE)
    if judged is not _STATELESS and exchange is not None:
        _note(session, judged, exchange, text)
    if end > len(data):
        state.scan(session, data[i:])
    session.statement = text[:SHOWN_LIMIT]
    session.statement_end = text[-SHOWN_LIMIT:] if len(text) > SHOWN_LIMIT else b""
    session.unnamed = False
    session.names.unnamed = b""
    backend.prepared.unnamed = b""
    session.answers.unit = False
    session.stats.queries += 1
    return FORWARD


def _deallocate(session: "Session", judged: sql.Judgement) -> int:
    """DEALLOCATE by Query of what only we know by this name: answered here, in its turn."""
    backend = session.backend
    if backend is not None and backend.fifo.exchanges:
        return HOLD
    session.active_at = session.pool.outside.now
    session.names.unnamed = b""
    if session.answers.status == IN_FAILED:
        session.client.write(REFUSED + encode.ready(IN_FAILED))
        return DROP
    session.names.put(judged.name, None)
    session.client.write(
        encode.command_complete(b"DEALLOCATE") + encode.ready(session.answers.status)
    )
    return DROP


def _may_copy(judged: sql.Judgement) -> bool:
    return judged.kind == sql.COPY or judged.kind == sql.MANY or judged.pin == "cannot judge"


def _changes_lexing(judged: sql.Judgement) -> bool:
    """Whether texts behind it may have to be read otherwise."""
    return judged.local or "*" in judged.settings or not _LEXING.isdisjoint(judged.settings)


def _may_reset(judged: sql.Judgement, text: bytes) -> bool:
    """Whether settings may go back to the server's own, instead of those of the start-up packet."""
    if not (judged.settings or judged.pin or judged.kind == sql.MANY):
        return False
    lower = text.lower()
    resets = b"reset" in lower or b"discard" in lower or b"default" in lower
    return resets or judged is _TOO_LONG or _ZONE_OF_SERVER.search(lower) is not None


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
    if judged.databases or judged.defaults:
        claims.note(session, judged, exchange)
    if judged.begins:
        _begins(session, exchange)
        if session.answers.state == NONE:
            session.answers.state = BEGUN
            session.begun_at = session.pool.outside.now
    if judged.ends:
        exchange.ends = True
    if judged.savepoint:
        session.resumes = True
    if judged.local or judged.settings:
        session.own_terms = True
    if (judged.discards or judged is _TOO_LONG) and session.backend is not None:
        statements.may_discard(session.backend.fifo)
    if session.backend is not None and (_may_copy(judged) or _changes_lexing(judged)):
        session.backend.fifo.barrier = True
    if session.start.items and session.backend is not None and _may_reset(judged, text):
        session.restore_due = True
        session.backend.fifo.barrier = True
    if judged.settings or judged.pin or judged.looks:
        state.note(session, judged, text)
    if session.listening is not None:
        session.listening.note(judged, exchange, text)
    if judged.notifies:
        listening.notifies(session)


def _listens(session: "Session", backend: "Backend", judged: sql.Judgement, text: bytes) -> int:
    """Whether a LISTEN or NOTIFY in the extended protocol can be sent now."""
    if judged.kind == sql.LISTEN and not listening.granted(session, text):
        return HOLD
    return _refused_or_late(session, backend, judged)


def _refused_or_late(session: "Session", backend: "Backend", judged: sql.Judgement) -> int:
    """What becomes of a LISTEN or NOTIFY for which there is a backend."""
    side = session.listening
    if side is None:
        return FORWARD
    if side.refusal:
        # The server refuses too, so that its transaction fails as the client's does.
        why = side.refusal
        side.refusal = {}
        side.passed = False
        session.replacement = statements.failing(backend, why["C"], why["M"])
        return REPLACE
    return FORWARD if listening.may_send(session, judged) else HOLD


def _begins(session: "Session", exchange: "Exchange") -> None:
    session.said.begin = b""
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
        unit = fifo.exchanges[-1]
        if unit.discards and unit.open and fifo.owes and _names_statement(kind, data, i):
            session.replacement = encode.FLUSH
            session.checks = True
            return WAIT
    answers.unit = False
    if kind == PARSE:
        return _parse(session, backend, data, i, end)
    if kind == BIND:
        return _bind(session, backend, data, i)
    if _names_statement(kind, data, i):
        return _of_statement(session, backend, kind, data, i, end)
    exchange = fifo.sent(kind)
    said = session.said
    if kind == EXECUTE:
        session.stats.queries += 1
        if said.begin:
            said.executes(data[i + 5 : i + 10])
    elif kind == SYNC:
        session.unnamed = False
        if said.begin and exchange is not None:
            said.synced(exchange)
    elif kind == FUNCTION_CALL:
        session.pin_for("FunctionCall")
    return FORWARD


def _names_statement(kind: int, data: bytes, i: int) -> bool:
    """Whether the message is about a prepared statement."""
    if kind == DESCRIBE or kind == CLOSE:
        return data[i + 5] == _OF_STATEMENT
    return kind == PARSE or kind == BIND


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


def _goes_on(session: "Session", kind: int, data: bytes, i: int) -> bool:
    """The short way: the unit's own statement was parsed, and this only goes on with it."""
    if kind == BIND:
        if data[i + 5] or data[i + 6]:
            return False
    elif kind == DESCRIBE and data[i + 6]:
        return False
    backend = session.backend
    exchanges = backend.fifo.exchanges if backend is not None else None
    unit = exchanges[-1] if exchanges else None
    if unit is None or not unit.open or unit.copying or unit.skipping:
        return False
    unit.owed.append(kind)
    said = session.said
    if kind == SYNC:
        unit.open = False
        session.unnamed = False
        if said.begin and unit.owed[-2] != EXECUTE:
            said.synced(unit)
    elif kind != DESCRIBE:
        unit.executes = True
        if kind == EXECUTE:
            session.stats.queries += 1
            if said.begin:
                said.executes(data[i + 5 : i + 10])
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
        return answers.is_ours(parts[1] if len(parts) > 1 else b"")
    if kind == DESCRIBE and body[:1] == b"S":
        return answers.is_ours(body[1:-1])
    return answers.unit or (kind == CLOSE and body[:1] == b"S" and answers.is_ours(body[1:-1]))


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


def _parse(session: "Session", backend: "Backend", data: bytes, i: int, end: int) -> int:
    name_end = data.find(b"\0", i + 5, end)
    text_end = data.find(b"\0", name_end + 1, end)
    whole = end <= len(data) and name_end >= 0 and text_end >= 0
    stats = session.stats
    stats.client_parses += 1
    text = data[name_end + 1 : text_end] if whole else b""
    judged = _judge_parsed(session, text) if whole else _TOO_LONG
    if end > len(data):
        state.scan(session, data[i:])
    if session.said.begin:
        session.said.say(text if whole else _NOT_WHOLE)
    session.statement = text[:SHOWN_LIMIT]
    session.statement_end = text[-SHOWN_LIMIT:] if len(text) > SHOWN_LIMIT else b""
    if name_end == i + 5:
        return _parse_unnamed(session, backend, data[i:end], judged)
    name = data[i + 5 : name_end] if name_end >= 0 else b""
    if _is_skipping(backend):
        backend.fifo.sent(PARSE)
        return FORWARD
    if session.session_mode or not whole:
        return _parse_as_it_is(session, backend, judged)
    return _parse_named(session, backend, name, data[name_end + 1 : end], judged)


def _parse_unnamed(
    session: "Session", backend: "Backend", message: bytes, judged: sql.Judgement
) -> int:
    session.stats.server_parses += 1
    fifo = backend.fifo
    if _is_skipping(backend):
        fifo.sent(PARSE)
        return FORWARD
    verdict = FORWARD
    prepared = message
    if judged is not _STATELESS:
        if _is_ours_to_deallocate(session, judged):
            session.replacement = statements.deallocating(backend, judged.name, PARSE)
            verdict = REPLACE
            prepared = b""
        else:
            text = message[6 : message.find(b"\0", 6)]
            verdict = _listens(session, backend, judged, text)
            if verdict != FORWARD:
                return verdict
            exchange = fifo.sent(PARSE)
            assert exchange is not None
            _note(session, judged, exchange, text)
    else:
        fifo.sent(PARSE)
    fifo.exchanges[-1].parses_unnamed(message)
    session.unnamed = True
    session.names.unnamed = message
    backend.prepared.unnamed = prepared
    return verdict


def _parse_as_it_is(session: "Session", backend: "Backend", judged: sql.Judgement) -> int:
    """Under its own name: the session has the backend to itself."""
    session.stats.server_parses += 1
    exchange = backend.fifo.sent(PARSE)
    if not session.session_mode and not session.pin:
        session.pin_for("prepared statement")
    if judged is not _STATELESS and exchange is not None:
        _note(session, judged, exchange, b"")
    return FORWARD


def _parse_named(
    session: "Session", backend: "Backend", name: bytes, body: bytes, judged: sql.Judgement
) -> int:
    """Parse of a named statement: the client's name is ours to know, the server's is shared."""
    names = session.names
    if name in names.by_name:
        said = f'prepared statement "{text_of(name)}" already exists'
        session.replacement = statements.failing(backend, "42P05", said)
        return REPLACE
    if names.full:
        session.replacement = statements.failing(backend, "53400", statements.FULL)
        return REPLACE
    fifo = backend.fifo
    if session.own_terms:
        statement = statements.Statement(body, judged)
    else:
        statement = session.pool.texts.statement(body, judged, session.wanted)
    if _may_be_failed(session, fifo) or not statements.is_there(backend, statement):
        session.stats.server_parses += 1
        session.replacement = _parse_again(backend, statement)
    else:
        fifo.sent_as(statements.PARSED_BEFORE)
        session.replacement = statements.CLOSE_NONE
    statements.name(fifo, names, name, statement)
    session.replacement += statements.make_room(backend)
    return REPLACE


def _may_be_failed(session: "Session", fifo: "Fifo") -> bool:
    """Whether the server may refuse a Parse, where it would not refuse a Close."""
    if session.answers.status == IN_FAILED:
        return True
    return any(exchange.mine and not exchange.open for exchange in fifo.exchanges)


def _parse_again(backend: "Backend", statement: statements.Statement) -> bytes:
    """The statement's Parse, whose reply is the client's."""
    said = b""
    if statements.is_there(backend, statement):
        backend.fifo.sent_as(statements.SWALLOWED | CLOSE)
        statements.unprepare(backend, statement.name)
        said = encode.close_statement(statement.name)
    backend.fifo.sent_as(PARSE)
    statements.prepare(backend, statement)
    return said + statement.parse


def _is_ours_to_deallocate(session: "Session", judged: sql.Judgement) -> bool:
    """Whether it is DEALLOCATE of a name that only we know."""
    return judged.kind == sql.DEALLOCATE and judged.name in session.names.by_name


def _bind(session: "Session", backend: "Backend", data: bytes, i: int) -> int:
    session.stats.binds += 1
    fifo = backend.fifo
    portal_end = data.find(b"\0", i + 5)
    name_end = data.find(b"\0", portal_end + 1) if portal_end >= 0 else -1
    if name_end < 0 or _is_skipping(backend):
        fifo.sent(BIND)
        return FORWARD
    if portal_end > i + 5:
        session.resumes = True
        if session.said.begin:
            session.said.refuse("it has bound a portal with a name")
    if name_end == portal_end + 1:
        return _of_unnamed(session, backend, BIND, i)
    name = data[portal_end + 1 : name_end]
    statement = _named(session, name)
    if session.said.begin:
        session.said.say(statement.text if statement is not None else _NOT_WHOLE)
    if statement is None:
        return _not_ours(session, backend, BIND, name)
    if statement is session.stale:
        session.replacement = statements.outdated(session, backend, statement)
        return REPLACE
    if statement.judged is not _STATELESS:
        verdict = _listens(session, backend, statement.judged, statement.text)
        if verdict != FORWARD:
            return verdict
    session.replacement = statements.check(backend, statement)
    if session.replacement:
        session.checks = True
        return WAIT
    ahead = statements.ahead(backend, statement)
    exchange = fifo.sent(BIND)
    assert exchange is not None
    statements.use(exchange, statement, data, i)
    _bound(session, statement.judged, exchange, statement)
    session.statement = statement.body
    session.statement_end = b""
    length = int32(data, i + 1) + len(statement.name) - len(name)
    head = b"B" + length.to_bytes(4, "big") + data[i + 5 : portal_end + 1]
    session.replacement = ahead + head + statement.name
    session.skip_to = name_end
    return HEAD


def _of_statement(
    session: "Session", backend: "Backend", kind: int, data: bytes, i: int, end: int
) -> int:
    """Describe or Close of a statement."""
    name = data[i + 6 : end - 1]
    if _is_skipping(backend):
        backend.fifo.sent(kind)
        return FORWARD
    if not name:
        return _of_unnamed(session, backend, kind, i)
    statement = _named(session, name)
    if statement is None:
        return _not_ours(session, backend, kind, name)
    if kind == DESCRIBE:
        ahead = statements.ahead(backend, statement)
        unit = backend.fifo.sent_as(statements.DESCRIBED)
        unit.described.append(statement)
        statements.use(unit, statement, data, i)
        session.replacement = ahead + encode.describe_statement(statement.name)
    else:
        backend.fifo.sent_as(CLOSE)
        statements.name(backend.fifo, session.names, name, None)
        session.replacement = statements.CLOSE_NONE
    return REPLACE


def _of_unnamed(session: "Session", backend: "Backend", kind: int, i: int) -> int:
    """Bind, Describe or Close of the unnamed statement. The backend may have another's."""
    message = session.names.unnamed
    fifo = backend.fifo
    if kind == CLOSE:
        fifo.sent(CLOSE)
        session.names.unnamed = b""
        backend.prepared.unnamed = b""
        return FORWARD
    if not message:
        said = "unnamed prepared statement does not exist"
        session.replacement = statements.failing(backend, "26000", said)
        return REPLACE
    text = message[6 : message.find(b"\0", 6)] if kind == BIND else b""
    judged = _judge_parsed(session, text) if kind == BIND else _STATELESS
    if judged is not _STATELESS:
        verdict = _listens(session, backend, judged, text)
        if verdict != FORWARD:
            return verdict
    ahead = b""
    if judged is not _STATELESS and _is_ours_to_deallocate(session, judged):
        ahead = statements.deallocating(backend, judged.name, statements.SWALLOWED | PARSE)
        fifo.exchanges[-1].parses_unnamed(message)
        backend.prepared.unnamed = b""
    elif backend.prepared.unnamed is not message:
        if 1 + int32(message, 1) != len(message):
            said = "a statement this long must be parsed in the transaction that runs it"
            session.replacement = statements.failing(backend, "0A000", said)
            return REPLACE
        unit = fifo.sent_as(statements.SWALLOWED | PARSE)
        unit.parses_unnamed(message)
        backend.prepared.unnamed = message
        session.unnamed = True
        ahead = message
    exchange = fifo.sent(kind)
    if kind == BIND and exchange is not None:
        _bound(session, judged, exchange, None, text)
        if session.said.begin:
            session.said.say(text)
        session.statement = text
        session.statement_end = b""
    if not ahead:
        return FORWARD
    session.replacement = ahead
    session.skip_to = i
    return HEAD


def _bound(
    session: "Session",
    judged: sql.Judgement,
    exchange: "Exchange",
    statement: statements.Statement | None,
    text: bytes = b"",
) -> None:
    """A statement that was parsed before is bound now: what it means."""
    if judged is not _STATELESS:
        _note(session, judged, exchange, text if statement is None else statement.text)


def _named(session: "Session", name: bytes) -> statements.Statement | None:
    return None if session.session_mode else session.names.by_name.get(name)


def _not_ours(session: "Session", backend: "Backend", kind: int, name: bytes) -> int:
    """Bind, Describe or Close of a name that only the server may know, from SQL PREPARE."""
    if name.startswith(statements.PREFIX) and not session.session_mode:
        if kind == CLOSE:
            backend.fifo.sent(CLOSE)
            session.replacement = statements.CLOSE_NONE
        else:
            said = f'prepared statement "{text_of(name)}" does not exist'
            session.replacement = statements.failing(backend, "26000", said)
        return REPLACE
    backend.fifo.sent(kind)
    return FORWARD


def _is_skipping(backend: "Backend") -> bool:
    """Whether the server skips what is sent now, up to Sync."""
    exchanges = backend.fifo.exchanges
    return bool(exchanges) and exchanges[-1].open and exchanges[-1].skipping


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
