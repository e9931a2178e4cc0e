"""What clients are told so often that it is made once."""

from typing import Final

import apsw

from txproxy.backends.sqlite.errors import Fields, SqliteError, fields

LOCKED: Final = fields(SqliteError("database is locked", apsw.SQLITE_BUSY))
"""The wait in the queue was too long."""

STALE: Final = fields(SqliteError("database is locked", apsw.SQLITE_BUSY_SNAPSHOT))
"""What a transaction has read has changed before it could write."""

INTERRUPTED: Final = fields(SqliteError("interrupted", apsw.SQLITE_INTERRUPT))
"""Cancelled, or query_timeout."""

UNKNOWN: Final = Fields(
    "08007",
    apsw.SQLITE_IOERR,
    "SQLITE_IOERR",
    "the outcome is unknown: the file could not be written or synced",
)
"""The disk has failed in a commit."""

REOPENED: Final = fields(
    SqliteError("the file had to be opened anew", apsw.SQLITE_IOERR, hint="Try again.")
)
"""It was not this statement's fault, and it has not been run."""


def bug(error: BaseException) -> Fields:
    """Of ours: the process's standard error has more of it."""
    message = f"internal error: {type(error).__name__}: {error}"
    return Fields("XX000", apsw.SQLITE_INTERNAL, "SQLITE_INTERNAL", message)
