"""SQLite's limits: the smaller of what the SQLite here and the one on the server allow.

The server's are SQLite's defaults, at which apsw's SQLite is built.

Source: https://www.sqlite.org/limits.html
"""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Final

_SERVER: Final[Mapping[int, int]] = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1_000_000_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 2000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 1000,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 500,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 250_000_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 1000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 10,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50_000,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 32_766,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1000,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}


def smaller(category: int, here: int) -> int:
    """A limit, given what the SQLite here has for it."""
    return min(here, _SERVER.get(category, here))


def here(category: int) -> int:
    """The limit of the SQLite here. sqlite3.ProgrammingError: there is no such category."""
    with closing(sqlite3.connect(":memory:")) as asking:
        return asking.getlimit(category)
