"""SQLite's errors as the exceptions of Python's `sqlite3`: from the fields of an ErrorResponse.

The server says the extended result code (field L) and its name (R); which class it is goes by the
primary code, as in `sqlite3`. An error that is not SQLite's has no code: an OperationalError.

Source: https://docs.python.org/3/library/sqlite3.html#sqlite3-exceptions
"""

import sqlite3
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final

BUSY: Final = (5, "SQLITE_BUSY")
BUSY_SNAPSHOT: Final = (517, "SQLITE_BUSY_SNAPSHOT")
ABORT_ROLLBACK: Final = (516, "SQLITE_ABORT_ROLLBACK")
CANTOPEN: Final = (14, "SQLITE_CANTOPEN")
CONSTRAINT: Final = 19
GENERIC: Final = (1, "SQLITE_ERROR")

_CLASSES: Final[Mapping[int, type[Exception]]] = {
    2: sqlite3.InternalError,  # INTERNAL
    7: MemoryError,  # NOMEM
    11: sqlite3.DatabaseError,  # CORRUPT
    12: sqlite3.InternalError,  # NOTFOUND
    18: sqlite3.DataError,  # TOOBIG
    19: sqlite3.IntegrityError,  # CONSTRAINT
    20: sqlite3.IntegrityError,  # MISMATCH
    21: sqlite3.InterfaceError,  # MISUSE
    25: sqlite3.InterfaceError,  # RANGE
    **dict.fromkeys((1, 3, 4, 5, 6, 8, 9, 10, 13, 14, 15, 16, 17), sqlite3.OperationalError),
}
_ONE_STATEMENT: Final = "You can only execute one statement at a time"


def operational(message: str, code: tuple[int, str] = GENERIC) -> sqlite3.OperationalError:
    """An OperationalError with SQLite's code and its name."""
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode, error.sqlite_errorname = code
    return error


def lost(reason: str) -> sqlite3.OperationalError:
    """The connection is gone, whatever was asked on it."""
    return operational(reason, (10, "SQLITE_IOERR"))


def of(fields: Mapping[str, str], functions: AbstractSet[str] = frozenset()) -> Exception:
    """The exception for an ErrorResponse; `functions`: lower-case names known to this process."""
    message = fields.get("M", "the server gave no message")
    if fields.get("C") == "42601" and message.startswith(_ONE_STATEMENT):
        return sqlite3.ProgrammingError(message)
    code = fields.get("L", "")
    if fields.get("C") == "3D000":
        return operational(f"unable to open database file: {message}", CANTOPEN)
    if not code.isdecimal():
        hint = fields.get("H", "")
        return operational(f"{message}: {hint}" if hint else message)
    number = int(code)
    if _unknown_function(message) in functions:
        message += (
            " on the server; a function that it is to call is named in the file's setting"
            ' `functions = ["module:function"]`'
        )
    error = _CLASSES.get(number & 0xFF, sqlite3.DatabaseError)(message)
    if isinstance(error, sqlite3.Error):
        error.sqlite_errorcode = number
        error.sqlite_errorname = fields.get("R", "")
    return error


def is_constraint(fields: Mapping[str, str] | None) -> bool:
    """Whether an ErrorResponse, if there is one, is of a violated constraint."""
    code = "" if fields is None else fields.get("L", "")
    return code.isdecimal() and int(code) & 0xFF == CONSTRAINT


def is_unknown_function(error: sqlite3.Error, functions: AbstractSet[str]) -> bool:
    """Whether the server misses a function that this process has; the names are lower-case."""
    return _unknown_function(str(error)) in functions


def _unknown_function(message: str) -> str:
    start = "no such function: "
    rest = message.removeprefix(start)
    return "" if rest == message else rest.split(" ", 1)[0].lower()
