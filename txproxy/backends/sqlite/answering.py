"""PRAGMAs that are answered without running them: settings of the session, of the configuration."""

from typing import TYPE_CHECKING

import apsw

from txproxy.backends.sqlite.errors import SqliteError
from txproxy.backends.sqlite.pragmas import Kind, Verdict
from txproxy.backends.sqlite.replies import Cell
from txproxy.wire import encode

if TYPE_CHECKING:
    from txproxy.backends.sqlite.calls import Portal
    from txproxy.backends.sqlite.course import Course

_SYNCHRONOUS = {True: 2, False: 3}  # FULL in WAL, else EXTRA; a train's commits are synced as well


def answer(course: "Course", portal: "Portal") -> bytes:
    """The reply to a PRAGMA that is a SESSION, TUNING, FILE or REFUSED one; takes a wish to heart
    where it is one of the session's.
    """
    pragma = portal.statement.pragma
    assert pragma is not None
    if pragma.kind is Kind.REFUSED:
        raise SqliteError(f"PRAGMA {pragma.name} is not allowed here", apsw.SQLITE_AUTH)
    if pragma.name == "busy_timeout" and pragma.value is not None:
        course.wishes.set_busy_timeout(pragma.value)
    if not portal.statement.columns:
        return encode.command_complete(b"PRAGMA")
    row = _row(course, pragma)
    assert portal.encode is not None
    rows = b"" if row is None else portal.encode(row)
    return rows + encode.command_complete(b"SELECT %d" % (row is not None))


def _row(course: "Course", pragma: Verdict) -> tuple[Cell, ...] | None:
    file = course.file
    if pragma.kind is Kind.SESSION:
        value = course.wishes.pragmas.get(pragma.name)
        return None if value is None else (value,)
    if pragma.name == "busy_timeout":
        return (round(course.wishes.busy_timeout * 1000),)
    if pragma.name == "journal_mode":
        return (file.settings.journal_mode,)
    if pragma.name == "synchronous":
        return (_SYNCHRONOUS[file.settings.is_wal],)
    if pragma.name == "wal_checkpoint":
        found = file.writer.work.checkpoints
        return (0, found.pages, found.pages - found.left)
    return file.pragma(pragma.name)
