"""How a session's business ends that the client did not end: time, loss, cancel, leaving.

Never throw away a backend that can be saved, never save one whose state is unknown; and the client
lives wherever the protocol allows it, with an honest error in place of its next answer.
"""

from typing import TYPE_CHECKING, Final

from txproxy.core import pressure, state, transaction
from txproxy.core.offenders import REAPED, WOULD_REAP
from txproxy.core.transaction import BEGUN, FAILED, NONE, OPEN
from txproxy.wire import encode, sql
from txproxy.wire.codes import (
    EXECUTE,
    FUNCTION_CALL,
    IDLE,
    IN_FAILED,
    IN_TRANSACTION,
    PARSE,
    QUERY,
    SHOWN_LIMIT,
    SYNC,
)
from txproxy.wire.messages import int32

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.exchange import Exchange, Fifo
    from txproxy.core.session import Session

REAP: Final = "REAP"
"""The console's command as the reason for a rollback."""

SOFT: Final = "idle_transaction_soft_timeout"

_FLUSH_AFTER: Final = 0.2  # seconds

_HINT: Final = "End transactions (COMMIT or ROLLBACK) before doing anything slow."
_HINTS: Final = {
    "ERROR": _HINT + " This session can go on; repeat the whole transaction.",
    "FATAL": _HINT + " Connect again and repeat the whole transaction.",
}

# Time.


def look(session: "Session", now: float) -> None:
    """The janitor's look at a session that holds a backend. `now` in seconds.

    A session that is overdue is marked, and dealt with at the next look if nothing has come from
    its client until then: after a stall there may be bytes that were not read yet.
    """
    backend = session.backend
    if backend is None or backend.settling or session.logging_in:
        return
    idle = now - session.active_at
    settings = session.settings
    if sleeps(session):
        limit = session.ours.timeout
        expired = bool(settings.transaction_timeout) and session.answers.state == OPEN
        if expired and now - session.begun_at > settings.transaction_timeout:
            _mark_or(session, "transaction_timeout")
        elif limit and idle > limit:
            _mark_or(session, "idle_transaction_timeout")
        elif 0 < settings.idle_transaction_soft_timeout < idle and pressure.harm(session):
            _mark_or(session, SOFT)
        return
    if not backend.fifo.exchanges or (session.stream and session.stream_forward):
        return
    if idle > _FLUSH_AFTER and session.flushed_at != session.active_at:
        _make_it_answer(session, backend)
    if backend.fifo.running and not backend.fifo.exchanges[0].cancelled:
        _look_at_statement(session, backend, now)


def _make_it_answer(session: "Session", backend: "Backend") -> None:
    """A unit without Flush or Sync: what the server has answered it keeps to itself, and seems to
    work. A Flush, which is answered by nothing, shows whether it does.
    """
    session.flushed_at = session.active_at
    if backend.fifo.exchanges[-1].open:
        backend.port.write(encode.FLUSH)


def sleeps(session: "Session") -> bool:
    """Idle in transaction: the server holds one, and can do nothing until the client goes on.

    Not so while it is the server that does not read, or while we hold what the client sent.
    """
    backend = session.backend
    if backend is None or backend.settling or backend.full or session.blocked:
        return False
    if session.stream and session.stream_forward:
        return True
    if backend.fifo.exchanges:
        return backend.fifo.waits_for_client
    return session.answers.state == OPEN


def _mark_or(session: "Session", why: str) -> None:
    if session.marked_at == session.active_at:
        reap(session, why)
    else:
        session.marked_at = session.active_at


def _look_at_statement(session: "Session", backend: "Backend", now: float) -> None:
    settings = session.settings
    in_transaction = session.answers.state == OPEN or session.answers.state == BEGUN
    if settings.query_timeout and now - session.active_at > settings.query_timeout:
        session.stats.query_timeouts += 1
        _cancel_head(session, backend, "query_timeout")
    elif (
        settings.transaction_timeout
        and in_transaction
        and now - session.begun_at > settings.transaction_timeout
    ):
        session.transaction_expired = True
        _cancel_head(session, backend, "transaction_timeout")


def _cancel_head(session: "Session", backend: "Backend", why: str) -> None:
    backend.fifo.exchanges[0].cancelled = True
    session.pool.outside.event("cancelled", {"why": why, **about(session)})
    backend.cancel()


def _last_statement(session: "Session") -> tuple[bytes, bytes]:
    """The beginning of what the client said last, and its end if it is longer than that."""
    # Of a statement that was prepared before, all is there, and its parameters' types behind it.
    text = session.statement.partition(b"\0")[0]
    end = text[-SHOWN_LIMIT:] if len(text) > SHOWN_LIMIT else session.statement_end
    return text[:SHOWN_LIMIT], end


def _redacted(session: "Session") -> str:
    """The last statement's beginning without literals, and the comment at its end."""
    beginning, end = _last_statement(session)
    return sql.redact(beginning + end)


def about(session: "Session") -> dict[str, object]:
    """Who a session is and what it last said, for the log."""
    literals = session.pool.outside.log_statement_literals
    beginning, end = _last_statement(session)
    said = beginning.decode("utf-8", "replace") if literals else sql.redact(beginning + end)
    fields: dict[str, object] = {
        "database": session.settings.database,
        "user": session.user,
        "client": session.address,
        "application_name": session.told.get("application_name", ""),
        "statement": said,
    }
    tags = sql.tags(end or beginning)
    if tags:
        fields["tags"] = tags
    return fields


def reap(session: "Session", why: str) -> None:
    """The session slept too long: roll back on the backend, which is then anybody's; the client
    lives and gets its ERROR in place of its next answer. `why` is the setting's name, or REAP.

    A unit without Sync that executed nothing outside a transaction is only ended: nobody is harmed.
    """
    backend = session.backend
    assert backend is not None
    fifo = backend.fifo
    unit = fifo.exchanges[-1] if fifo.exchanges else None
    in_block = fifo.in_transaction or session.answers.state == BEGUN
    half = session.stream > 0 and session.stream_forward
    if unit is not None and not (in_block or half or unit.copying or unit.executes):
        _end_idle_unit(session, backend)
        return
    if session.ours.action == "report" and why != REAP:
        _report(session, why)
        return
    fields = {"why": why, **times(session), **about(session)}
    session.pool.outside.left_open(session, REAPED, fields)
    if why == "transaction_timeout":
        session.stats.transaction_timeouts += 1
    if session.ours.action == "disconnect" or half:
        session.stats.disconnected += 1
        session.fatal(_error_of_reaping(session, why, "FATAL"))
        return
    session.stats.reaped += 1
    answers = session.answers
    answers.lost = _error_of_reaping(session, why, "ERROR")
    if in_block:
        if answers.state == BEGUN:
            answers.state = transaction.after(BEGUN, transaction.READY_OPEN)
            answers.status = IN_TRANSACTION
        answers.state = transaction.after(answers.state, transaction.REAP)
    session.undo_settings()
    if session.listening is not None:
        session.listening.undo()
    session.transaction_expired = False
    session.unnamed = False
    session.active_at = session.pool.outside.now
    if unit is not None and unit.copying:
        in_unit = unit.owed[unit.at] == EXECUTE
        session.client.write(answers.tell_now(in_unit))
    _let_go(session, backend, cancel=False)


def end_failed(session: "Session", backend: "Backend") -> None:
    """The session's transaction has failed, and all that was sent is answered. If there is nothing
    to go back to, it can only be ended: the backend is rolled back now, and the client, who does
    not know, ends it when it likes.
    """
    if session.resumes or session.pin or session.kept is not None:
        return
    if session.blocked or session.stream or session.tail.size or backend.full:
        return
    stats = session.stats
    stats.failed_released += 1
    stats.xacts += 1
    stats.transactions.observe(session.active_at - session.begun_at)
    session.answers.fail()
    session.undo_settings()
    if session.listening is not None:
        session.listening.undo()
    session.unnamed = False
    session.own_terms = False
    _let_go(session, backend, cancel=False)


def _end_idle_unit(session: "Session", backend: "Backend") -> None:
    if session.pin or session.kept is not None:
        backend.abandon(cancel=False)
        return
    session.unnamed = False
    _let_go(session, backend, cancel=False)


def _let_go(session: "Session", backend: "Backend", cancel: bool) -> None:
    """Take the backend from the session, unless that is pinned to it or must be asked first what it
    keeps there, and get it clean.
    """
    if not session.pin and session.kept is None:
        session.backend = None
        backend.session = None
    backend.applied = session.settled
    backend.abandon(cancel)


def _report(session: "Session", why: str) -> None:
    session.stats.would_reap += 1
    session.active_at = session.pool.outside.now
    fields = {"why": why, **times(session), **about(session)}
    session.pool.outside.left_open(session, WOULD_REAP, fields)


def times(session: "Session") -> dict[str, object]:
    """How long it has been idle, and in its transaction, for the log."""
    now = session.pool.outside.now
    implicit = session.answers.state == NONE  # a unit without Sync: its transaction is not told of
    begun_at = session.active_at if implicit else session.begun_at
    return {
        "idle_s": round(now - session.active_at, 3),
        "transaction_s": round(now - begun_at, 3),
    }


def _error_of_reaping(session: "Session", why: str, severity: str) -> bytes:
    now = session.pool.outside.now
    said = _redacted(session)
    if why == "transaction_timeout":
        sqlstate = "25P04"
        text = "the transaction was rolled back: transaction_timeout"
    else:
        sqlstate = session.settings.idle_transaction_sqlstate
        reason = "it was idle longer than idle_transaction_timeout"
        if why == SOFT:
            reason = f"it was idle longer than {SOFT}, and {pressure.harm(session)}"
        elif why == REAP:
            reason = "it was idle, and an administrator ended it"
        text = f"the transaction was rolled back: {reason}"
    detail = f"Idle for {now - session.active_at:.1f} s; its last statement was: {said}"
    return encode.error(severity, sqlstate, text, detail=detail, hint=_HINTS[severity])


# Loss.


def backend_lost(session: "Session", backend: "Backend") -> None:
    """The backend is gone. What was under way gets an ERROR, its transaction is FAILED; the
    session lives, unless state of its own went with the backend or its reply was cut in two.
    """
    session.backend = None
    session.replaying = False
    session.stats.backends_lost += 1
    words = backend.last_words
    keeps = bool(session.pin) or (session.kept is not None and session.kept.asking)
    if session.logging_in or keeps or (backend.stream_mine and backend.stream):
        _end_with_backend(session, backend, words)
        return
    session.kept = None  # it went with its transaction, or with a statement that gets an error
    answers = session.answers
    if session.stream and session.stream_forward:
        session.stream_forward = False
    session.undo_settings()
    if session.listening is not None:
        session.listening.undo()
    session.unnamed = False
    outstanding = [exchange for exchange in backend.fifo.exchanges if exchange.mine]
    for exchange in reversed(outstanding):
        if exchange.at <= exchange.unnamed_at:
            session.names.unnamed = b""
        exchange.take_back()
    if not outstanding or _is_at_rest(backend.fifo):
        _lose_at_rest(session, outstanding, words)
        outstanding = []
    said = answers.news
    answers.news = b""
    for exchange in outstanding:
        if exchange.begins and answers.state == NONE:
            answers.state = transaction.after(NONE, transaction.BEGIN)
        answers.state = _lost_state(answers.state, exchange.ends)
        answers.status = IN_FAILED if answers.state == FAILED else IDLE
        if not exchange.failed:
            said += _error_of_loss(words, exchange.ends)
        if exchange.open:
            answers.discarding = True
            answers.unit = True
        else:
            said += encode.ready(answers.status)
    if outstanding:
        session.client.write(said)
    elif said:
        answers.news = said
    if session.blocked and not session.queued:
        session.resume()


def _is_at_rest(fifo: "Fifo") -> bool:
    """Whether all that was sent of an open unit is answered, and by no error (nor by a FATAL, which
    is not passed on: then the client waits).
    """
    return fifo.waits_for_client and not fifo.copying and not fifo.exchanges[-1].skipping


def _lose_at_rest(session: "Session", unit: "list[Exchange]", words: dict[str, str]) -> None:
    """Its client waits for nothing: it gets the ERROR in place of its next answer. An error that
    nobody waits for would put a driver out of step (asyncpg, between prepare and execute).
    """
    answers = session.answers
    if unit and unit[0].begins and answers.state == NONE:
        answers.state = transaction.after(NONE, transaction.BEGIN)
    if unit and answers.state == BEGUN:
        answers.state = transaction.after(BEGUN, transaction.READY_OPEN)
        answers.status = IN_TRANSACTION
    if unit or answers.state == OPEN:
        answers.lost = _error_of_loss(words, ends=bool(unit) and unit[0].ends)
    if answers.state == OPEN:
        answers.state = transaction.after(OPEN, transaction.REAP)


def _lost_state(state: int, ends: bool) -> int:
    """After a COMMIT whose outcome is unknown there is no transaction to end."""
    if ends or state == FAILED:
        return NONE if ends else FAILED
    return transaction.after(state, transaction.LOSE)


def _end_with_backend(session: "Session", backend: "Backend", words: dict[str, str]) -> None:
    if backend.stream_mine and backend.stream:
        # In the middle of a message no error can be said.
        session.gone(cancel=True)
        session.client.finish()
        return
    fields = dict(words) if words else {"C": "08006", "M": "the server closed the connection"}
    if (session.pin or session.kept is not None) and "H" not in fields:
        keeps = session.pin or state.SETTINGS
        fields["H"] = f"The session had state of its own on that backend ({keeps})."
    session.fatal(encode.error_of("FATAL", fields))


def _error_of_loss(words: dict[str, str], ends: bool) -> bytes:
    """What the server said last, under severity ERROR; 08007 where a COMMIT was under way."""
    reason = words.get("M", "the server closed the connection")
    if ends:
        return encode.error(
            "ERROR",
            "08007",
            "the backend was lost while COMMIT was under way: its outcome is unknown",
            detail=reason,
            hint="Look whether the transaction was committed before repeating it.",
        )
    if words:
        return encode.error_of("ERROR", words)
    return encode.error("ERROR", "08006", reason)


# A session that waits for a backend.


def refuse(session: "Session", error: bytes) -> None:
    """No backend for the unit that waits: it gets `error`; the units behind it go on by the table.

    A unit that begins a transaction, and one inside a transaction that was begun here, leave it
    FAILED, so that nothing of that transaction runs in autocommit. Not so a BEGIN that is all the
    client has sent: it waits for the answer, and takes a BEGIN that failed for none at all (psycopg
    2 would send no ROLLBACK), as on a server.
    """
    session.queued = False
    if session.logging_in:
        session.fatal(error)
        return
    data = session.take_inbox()
    answers = session.answers
    if answers.state == NONE and _first_unit_begins(data) and not _is_only_begin(data):
        answers.state = transaction.after(NONE, transaction.BEGIN)
    if answers.state != FAILED:
        answers.state = transaction.after(answers.state, transaction.LOSE)
    session.begin = b""
    answers.status = IN_FAILED if answers.state == FAILED else IDLE
    if data[0] != QUERY and data[0] != FUNCTION_CALL:
        answers.discarding = True
        answers.unit = True
        session.client.write(error)
        session.go_on(data)
        return
    session.client.write(error + encode.ready(answers.status))
    session.drop_first(data)


def _is_only_begin(data: bytes) -> bool:
    """Whether `data` is one Query, and that only a BEGIN."""
    whole = data[0] == QUERY and len(data) == 1 + int32(data, 1)
    return whole and sql.judge(data[5 : len(data) - 1]).kind == sql.BEGIN


def _first_unit_begins(data: bytes) -> bool:
    """Whether a statement of the first unit in `data` begins a transaction, or may."""
    i = 0
    while len(data) - i >= 5 and data[i] != SYNC:
        end = i + 1 + int32(data, i + 1)
        if end < i + 6:
            return False
        body = data[i + 5 : end]
        if data[i] == QUERY:
            return sql.judge(body[:-1]).begins
        parts = body.split(b"\0", 2)
        if data[i] == PARSE and len(parts) > 1 and sql.judge(parts[1]).begins:
            return True
        i = end
    return False


def cancel(session: "Session") -> None:
    """A CancelRequest with this session's key: its statement at the head, or queued, or none."""
    session.stats.cancelled += 1
    if session.queued and not session.logging_in:
        session.pool.forget(session)
        refuse(session, encode.error("ERROR", "57014", "canceling statement due to user request"))
        return
    if session.listening is not None and session.pool.listener.cancel(session):
        return
    backend = session.backend
    if backend is not None and backend.fifo.owes and backend.fifo.exchanges[0].mine:
        backend.cancel()


def leave(session: "Session", backend: "Backend", cancel: bool) -> None:
    """The client has left while it held a backend."""
    session.backend = None
    backend.session = None
    if session.wanted is not session.settled and backend.fifo.exchanges:
        # A COMMIT that is under way may keep what the transaction set, or not.
        backend.dirty = backend.dirty or "settings of a client that has left"
    if session.kept is not None or session.replaying:
        backend.dirty = backend.dirty or "settings of a client that has left"
    backend.applied = session.settled
    if session.kept is not None and "LOAD" in session.kept.reasons:
        backend.fifo.untrusted = "a library was loaded into it"
    if backend.fifo.exchanges or backend.fifo.in_transaction:
        session.stats.vanished += 1
    if session.stream and session.stream_forward:
        backend.close("its client left in the middle of a message")
    else:
        backend.abandon(cancel and session.pool.outside.cancel_on_disconnect)


def wait_is_over(session: "Session") -> None:
    """query_wait_timeout: the session has waited long enough for a backend."""
    session.stats.query_wait_timeouts += 1
    session.pool.outside.event("query_wait_timeout", about(session))
    error = encode.error(
        "FATAL" if session.logging_in else "ERROR",
        "53300",
        "no backend was free in time: query_wait_timeout",
        hint="All backends of the pool were in use; see pool_size, and who holds them.",
    )
    refuse(session, error)


def look_if_idle(session: "Session", now: float) -> None:
    """client_idle_timeout and pin_timeout: they count unless the server holds a transaction or
    works for the client.
    """
    settings = session.settings
    busy = session.queued or session.logging_in or session.answers.state == OPEN
    if busy or (session.backend is not None and session.backend.fifo.exchanges):
        return
    idle = now - session.active_at
    if 0 < settings.client_idle_timeout < idle:
        session.stats.client_idle_timeouts += 1
        session.pool.outside.event("client_idle_timeout", about(session))
        session.fatal(
            encode.error("FATAL", "57P05", "terminating connection due to idle-session timeout")
        )
    elif 0 < settings.pin_timeout < idle and session.pin and not session.session_mode:
        _end_pinned(session)


def _end_pinned(session: "Session") -> None:
    """pin_timeout. In session mode that a session keeps its backend is what was asked for."""
    session.stats.pin_timeouts += 1
    session.pool.outside.event("pin_timeout", {"pin": session.pin, **about(session)})
    error = encode.error(
        "FATAL",
        "57P05",
        f"terminating connection due to pin_timeout: it kept a backend ({session.pin})",
        hint="End such state (DROP, CLOSE, unlock, DISCARD ALL) when it is not needed any more.",
    )
    session.fatal(error)
