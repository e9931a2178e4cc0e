"""Deferred BEGIN: answered here, and sent with the first statement of the transaction.

Drivers send BEGIN as a message of its own, so a transaction costs the round trips of BEGIN, its
statements and COMMIT, and holds a backend all the while. Here BEGIN is answered at once and kept;
the backend is lent when the first statement comes, and hears of both in one write:

    Parse, Bind, Execute of the BEGIN, Close of its portal; no Sync; then the client's own unit

Never as a Query of its own: if that BEGIN failed (READ WRITE on a standby, a level that is not to
be had), the statement behind it would run in autocommit and stay. In one unit the server skips
what follows an error, up to Sync; behind a Query, which then gets no ReadyForQuery, the Sync is
ours (`Fifo.error`). Its replies are swallowed, its error is the client's, whose transaction is
then FAILED. (The portal is closed because behind a BEGIN by Query there is none. Behind one by
Execute there is, and it stays.)

A transaction in which nothing is said between BEGIN and its end never touches a backend.
"""

from typing import TYPE_CHECKING, Final

from txproxy.core import release, transaction
from txproxy.core.transaction import BEGUN, NONE
from txproxy.wire import encode, sql
from txproxy.wire.codes import BIND, CLOSE, DESCRIBE, EXECUTE, IDLE, IN_TRANSACTION, PARSE, SYNC
from txproxy.wire.messages import int32

if TYPE_CHECKING:
    from txproxy.core.exchange import Fifo
    from txproxy.core.session import Session
    from txproxy.wire.sql import Judgement

_LONGEST: Final = 1024  # bytes of a BEGIN that is kept, comments included
_ENDINGS: Final = frozenset((sql.COMMIT, sql.ROLLBACK, sql.COMMIT_CHAIN, sql.ROLLBACK_CHAIN))
_TAGS: Final = {
    sql.COMMIT: b"COMMIT",
    sql.COMMIT_CHAIN: b"COMMIT",
    sql.ROLLBACK: b"ROLLBACK",
    sql.ROLLBACK_CHAIN: b"ROLLBACK",
}
_BIND_AND_EXECUTE: Final = encode.BIND_UNNAMED + encode.EXECUTE_UNNAMED
_BEGUN: Final = {
    tag: encode.command_complete(tag) + encode.ready(IN_TRANSACTION)
    for tag in (b"BEGIN", b"START TRANSACTION")
}
_AHEAD_LIMIT: Final = 100  # texts
_ahead: dict[bytes, bytes] = {}

# What the messages of a unit that is answered here may follow.
_AFTER: Final = {
    PARSE: frozenset((0,)),
    BIND: frozenset((PARSE, DESCRIBE)),
    DESCRIBE: frozenset((PARSE, BIND)),
    EXECUTE: frozenset((BIND, DESCRIBE)),
    CLOSE: frozenset((EXECUTE, CLOSE)),
    SYNC: frozenset((EXECUTE, CLOSE)),
}


def ahead(session: "Session", fifo: "Fifo") -> bytes:
    """The BEGIN that is owed, to go in front of the client's next unit in the same write."""
    text = session.begin
    session.begin = b""
    session.said.begins(text if session.settings.early_release != "off" else b"")
    if text.startswith(release.AGAIN):
        session.stats.begun_again += 1
    fifo.begin_ahead(session.begin_closes)
    found = _ahead.get(text)
    if found is None:
        if len(_ahead) >= _AHEAD_LIMIT:
            _ahead.clear()
        found = _ahead[text] = encode.parse(text) + _BIND_AND_EXECUTE
    return found + encode.CLOSE_UNNAMED_PORTAL if session.begin_closes else found


def answers_query(session: "Session", judged: "Judgement", text: bytes) -> bool:
    """Whether this Query was answered here: a BEGIN, or what ends a transaction of ours only."""
    tag = _tag(session, judged, text)
    if not tag:
        return False
    said = _BEGUN.get(tag)
    if said is None:
        said = encode.command_complete(tag) + encode.ready(session.answers.status)
    else:
        session.begin_closes = True
    session.client.write(said)
    return True


def answers_unit(session: "Session", judged: "Judgement", data: bytes, i: int, text: bytes) -> int:
    """The same for a unit of Parse, Bind, Describe, Execute, Close and Sync of one such statement,
    unnamed, whose Parse begins at data[i]: where the unit ends, or 0 if it must be forwarded, as it
    must while it is not in hand completely.
    """
    if judged.kind != sql.BEGIN and judged.kind not in _ENDINGS:
        return 0
    end = _end_of_unit(data, i)
    if not end:
        return 0
    tag = _tag(session, judged, text)
    if not tag:
        return 0
    said = b""
    while i < end:
        said += _reply(data[i], data[i + 5 : i + 6], tag)
        i += 1 + int32(data, i + 1)
    session.client.write(said + encode.ready(session.answers.status))
    return end


def _tag(session: "Session", judged: "Judgement", text: bytes) -> bytes:
    """Begin or end the client's transaction, if that can be done here: the tag to answer; b"" if it
    cannot.
    """
    backend = session.backend
    if backend is not None and backend.fifo.exchanges:
        return b""
    answers = session.answers
    if judged.kind == sql.BEGIN:
        usual = answers.state == NONE and session.settings.deferred_begin
        if not usual or len(text) > _LONGEST:
            return b""
        answers.state = transaction.after(NONE, transaction.BEGIN)
        answers.status = IN_TRANSACTION
        session.begin = text
        session.begin_closes = False
        session.begun_at = session.outside.now
        session.statement = text
        session.statement_end = b""
        session.stats.begins_deferred += 1
        tag = judged.tag
    elif not session.begin or judged.kind not in _ENDINGS:
        return b""
    else:
        tag = _TAGS[judged.kind]
        if judged.kind == sql.COMMIT or judged.kind == sql.ROLLBACK:
            answers.state = transaction.after(BEGUN, transaction.END)
            answers.status = IDLE
            session.begin = b""
            session.stats.begins_saved += 1
            session.stats.xacts += 1
    session.active_at = session.outside.now
    session.unnamed = False
    session.names.unnamed = b""
    return tag


def _end_of_unit(data: bytes, i: int) -> int:
    """Where the unit that begins with the Parse at data[i] ends; 0 if it is not all there, or holds
    anything but one run of one unnamed statement without parameters.
    """
    n = len(data)
    previous = 0
    while n - i >= 5:
        kind = data[i]
        end = i + 1 + int32(data, i + 1)
        if end > n or end < i + 5 or previous not in _AFTER.get(kind, ()):
            return 0
        if not _is_plain(kind, data[i + 5 : end]):
            return 0
        if kind == SYNC:
            return end
        previous = kind
        i = end
    return 0


def _is_plain(kind: int, body: bytes) -> bool:
    """Whether a message names nothing and brings no parameters."""
    if kind == PARSE:
        return body[:1] == b"\0" and body[body.find(b"\0", 1) :] == b"\0\0\0"
    if kind == BIND:
        # portal, statement, no formats, no parameters; formats of results there are none of
        return body[:2] == b"\0\0" and body[2:6] == b"\0\0\0\0"
    if kind == DESCRIBE or kind == CLOSE:
        return body in (b"S\0", b"P\0")
    if kind == EXECUTE:
        return body[:1] == b"\0"
    return True


def _reply(kind: int, of: bytes, tag: bytes) -> bytes:
    if kind == PARSE:
        return encode.PARSE_COMPLETE
    if kind == BIND:
        return encode.BIND_COMPLETE
    if kind == DESCRIBE:
        return encode.NO_PARAMETERS + encode.NO_DATA if of == b"S" else encode.NO_DATA
    if kind == EXECUTE:
        return encode.command_complete(tag)
    return encode.CLOSE_COMPLETE if kind == CLOSE else b""
