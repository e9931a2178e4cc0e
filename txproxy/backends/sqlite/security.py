"""What clients' statements may not do, on every connection that runs them.

The authorizer sees what SQLite's parser made of a text, so quoting, comments, views, triggers and
nested statements hide nothing from it. It refuses what reaches beyond the file (ATTACH, extensions,
functions that touch other files), what leaves something on a connection that others share (TEMP
objects), and PRAGMAs that `pragmas` refuses. A refused statement fails with SQLITE_AUTH, or
with "not authorized to use function".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import apsw

from txproxy.backends.sqlite import pragmas

# Known functions and tables that reach other files, run code or change the library. Most are no
# part of it, but an extension that is loaded for something else may bring them.
_FUNCTIONS: Final = frozenset(
    {
        "edit",
        "fts3_tokenizer",
        "load_extension",
        "lsdir",
        "readfile",
        "sqlite_log",
        "system",
        "writefile",
    }
)
_TABLES: Final = frozenset({"fsdir", "lsmode", "sqlite_dbpage", "sqlite_memdb", "zipfile"})
_TEMPORARY: Final = frozenset(
    {
        apsw.SQLITE_CREATE_TEMP_INDEX,
        apsw.SQLITE_CREATE_TEMP_TABLE,
        apsw.SQLITE_CREATE_TEMP_TRIGGER,
        apsw.SQLITE_CREATE_TEMP_VIEW,
    }
)


class Guard:
    """The authorizer of one connection."""

    def __init__(self) -> None:
        self._vacuums = False

    @contextmanager
    def vacuum(self) -> Iterator[None]:
        """While VACUUM runs: it attaches a nameless database to itself."""
        self._vacuums = True
        try:
            yield
        finally:
            self._vacuums = False

    def __call__(
        self, code: int, first: str | None, second: str | None, schema: str | None, _: str | None
    ) -> int:
        return apsw.SQLITE_OK if self._may(code, first, second, schema) else apsw.SQLITE_DENY

    def _may(self, code: int, first: str | None, second: str | None, schema: str | None) -> bool:
        if code == apsw.SQLITE_READ:
            return (first or "").lower() not in _TABLES
        if code == apsw.SQLITE_FUNCTION:
            return (second or "").lower() not in _FUNCTIONS
        if code == apsw.SQLITE_PRAGMA:
            return pragmas.may_run(first or "", second)
        if code == apsw.SQLITE_ATTACH:
            # A client's own ATTACH '' is prepared while no VACUUM runs; VACUUM INTO names a file.
            return self._vacuums and first == ""
        if code == apsw.SQLITE_DETACH:
            return self._vacuums
        if code == apsw.SQLITE_INSERT:
            return schema != "temp"  # CREATE TABLE temp.x is none of _TEMPORARY, but goes here
        if code == apsw.SQLITE_CREATE_VTABLE:
            return schema != "temp" and (second or "").lower() not in _TABLES
        return code not in _TEMPORARY


def install(connection: apsw.Connection) -> Guard:
    """Make a connection fit for clients' statements; last of all that is done to it at opening.

    journal_mode, synchronous and extensions come before: afterwards they are refused to us, too.
    trusted_schema stays as SQLite has it, or functions of a user's were refused in constraints.
    """
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0)
    connection.enable_load_extension(False)
    connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 1)  # VACUUM's
    connection.limit(apsw.SQLITE_LIMIT_WORKER_THREADS, 0)
    guard = Guard()
    connection.authorizer = guard
    return guard
