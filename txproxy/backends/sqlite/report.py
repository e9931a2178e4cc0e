"""What the proxy is told once a second, for its console and its metrics. Times are in seconds."""

import re
from collections.abc import Iterable
from typing import Any, Final

from txproxy.backends.sqlite.course import Course
from txproxy.backends.sqlite.file import File
from txproxy.backends.sqlite.session import Session
from txproxy.backends.sqlite.statements import Statement
from txproxy.backends.sqlite.transaction import STATES

_SHOWN: Final = 200  # characters of a statement
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'?|\b\d[\w.]*")


def line(files: Iterable[File], sessions: Iterable[Session], now: float) -> dict[str, Any]:
    """The whole report. `now` is time.monotonic()."""
    return {
        "is": "report",
        "files": [_file(file, now) for file in files],
        "sessions": [_session(session, now) for session in sessions],
    }


def _file(file: File, now: float) -> dict[str, Any]:
    counters, checkpoints = file.writer.work.counters, file.writer.work.checkpoints
    first = file.tokens.first()
    snapshots = file.leased
    return {
        "database": file.database,
        "path": file.path,
        "journal_mode": file.settings.journal_mode,
        "queue": len(file.tokens),
        "longest_wait": round(counters.longest_wait, 6),
        "longest_wait_now": round(now - first.since, 6) if first is not None else 0.0,
        "wal_bytes": checkpoints.pages * file.page_size,
        "oldest_reader": round(max((now - r.leased for r in snapshots), default=0.0), 3),
        "readers": len(snapshots),
        "last_checkpoint": round(now - checkpoints.last, 3) if checkpoints.last else None,
        "checkpoints": checkpoints.count,
        "commits": counters.commits,
        "batches": counters.batches,
        "batch_max": counters.batch_max,
        "writes": counters.writes,
        "statements": sum(user.statements for user in file.users) + file.statements,
        "busy_foreign": counters.busy_foreign,
        "moved": file.writer.work.moved,
        "reaped": file.reaped,
        "rolled_back": file.rolled_back,
        "late": file.late,
    }


def _session(session: Session, now: float) -> dict[str, Any]:
    course = session.conversation.course
    transaction = course.tx
    waiting = course.waiting_since
    return {
        "id": session.client.number,
        "database": session.client.database,
        "state": _state(course),
        "tx": STATES[transaction.state],
        "tx_age": round(now - transaction.since, 3) if transaction.state else 0.0,
        "idle": 0.0 if course.is_waiting else round(now - course.idle_since, 3),
        "wait": round(now - waiting, 3) if waiting else 0.0,
        "statement": _shown(course.last),
        "statements": course.statements,
        "reaped": course.reaped,
    }


def _state(course: Course) -> str:
    if course.waiting_since:
        return "waiting"
    if course.is_waiting:
        return "active"
    return "idle in transaction" if course.tx.state else "idle"


def _shown(statement: Statement | None) -> str:
    """Its beginning, without what may be secret in it."""
    if statement is None:
        return ""
    return _LITERAL.sub("?", statement.text[: 4 * _SHOWN])[:_SHOWN]
