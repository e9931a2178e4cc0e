"""SQLite's errors as the fields of an ErrorResponse.

A client of ours raises Python's `sqlite3` exception from the extended result code (field L) and its
name (R), so both are SQLite's own and the text is what `sqlite3` says for the same fault. Other
clients read the SQLSTATE: from the code where the code says enough, else from the text.
"""

import re
from typing import Final, NamedTuple

import apsw

from txproxy.errors import TxproxyError

_STATES: Final = {
    apsw.SQLITE_CONSTRAINT_UNIQUE: "23505",
    apsw.SQLITE_CONSTRAINT_PRIMARYKEY: "23505",
    apsw.SQLITE_CONSTRAINT_ROWID: "23505",
    apsw.SQLITE_CONSTRAINT_FOREIGNKEY: "23503",
    apsw.SQLITE_CONSTRAINT_NOTNULL: "23502",
    apsw.SQLITE_CONSTRAINT_CHECK: "23514",
    apsw.SQLITE_BUSY_SNAPSHOT: "40001",
    apsw.SQLITE_ABORT_ROLLBACK: "25P03",
    apsw.SQLITE_PERM: "42501",
    apsw.SQLITE_ABORT: "57014",
    apsw.SQLITE_BUSY: "55P03",
    apsw.SQLITE_LOCKED: "55P03",
    apsw.SQLITE_NOMEM: "53200",
    apsw.SQLITE_READONLY: "25006",
    apsw.SQLITE_INTERRUPT: "57014",
    apsw.SQLITE_IOERR: "58030",
    apsw.SQLITE_CORRUPT: "XX001",
    apsw.SQLITE_NOTFOUND: "58030",
    apsw.SQLITE_FULL: "53100",
    apsw.SQLITE_CANTOPEN: "58030",
    apsw.SQLITE_PROTOCOL: "55P03",
    apsw.SQLITE_SCHEMA: "55000",
    apsw.SQLITE_TOOBIG: "54000",
    apsw.SQLITE_CONSTRAINT: "23000",
    apsw.SQLITE_MISMATCH: "22000",
    apsw.SQLITE_AUTH: "42501",
    apsw.SQLITE_RANGE: "08P01",
    apsw.SQLITE_NOTADB: "XX001",
}
# SQLITE_ERROR is all that its parser says: the rest is in the words.
_WORDS: Final = tuple(
    (re.compile(pattern), state)
    for pattern, state in (
        (r"syntax error$|^unrecognized token|^incomplete input", "42601"),
        (r"^no such (table|view|module)\b", "42P01"),
        (r"^(no such column|table .* has no column named)\b", "42703"),
        (r"^(no such function|wrong number of arguments to function|unknown function)\b", "42883"),
        (r"^no such savepoint\b", "3B001"),
        (r"^no such (index|trigger|collation sequence)\b", "42704"),
        (r"^unknown database\b", "3F000"),
        (r"^ambiguous column name\b", "42702"),
        (r"^duplicate column name\b", "42701"),
        (r"^(table|view) .* already exists$|^there is already an? \w+ named\b", "42P07"),
        (r"^(index|trigger) .* already exists$", "42710"),
        (r"^cannot start a transaction within a transaction$", "25001"),
        (r"^cannot (commit|rollback) - no transaction is active$", "25P01"),
        (r"^(unsafe use of|not authorized|access to .* is prohibited)", "42501"),
        (r"^(too many|Expression tree is too large|parser stack overflow|LIKE or GLOB)", "54000"),
    )
)
_NAMES: Final[dict[int, str]] = {
    code: name
    for names in (apsw.mapping_result_codes, apsw.mapping_extended_result_codes)
    for code, name in names.items()
    if isinstance(code, int) and isinstance(name, str)
}


class SqliteError(TxproxyError):
    """An error of ours that a client sees as SQLite's: with an extended result code of SQLite's."""

    def __init__(
        self, message: str, code: int, *, hint: str = "", sqlstate: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, sqlstate=sqlstate or state(code, message))
        self.code = code


class Fields(NamedTuple):
    """What an ErrorResponse says; `name` is the code's, for example SQLITE_CONSTRAINT_UNIQUE."""

    sqlstate: str
    code: int
    name: str
    message: str
    hint: str = ""


def name(code: int) -> str:
    """What SQLite calls an extended result code; of an unknown one its primary code."""
    return _NAMES.get(code) or _NAMES.get(code & 0xFF, "SQLITE_ERROR")


def state(code: int, message: str = "") -> str:
    """The SQLSTATE of an extended result code, and of the words of a plain SQLITE_ERROR."""
    found = _STATES.get(code) or _STATES.get(code & 0xFF)
    if found is not None:
        return found
    for pattern, sqlstate in _WORDS:
        if pattern.search(message):
            return sqlstate
    return "42000" if code & 0xFF == apsw.SQLITE_ERROR else "XX000"


def fields(exception: BaseException) -> Fields:
    """The fields for any exception that running a client's statement raises."""
    if isinstance(exception, SqliteError):
        found = Fields(exception.sqlstate, exception.code, name(exception.code), exception.message)
        return found._replace(hint=exception.hint)
    if isinstance(exception, TxproxyError):
        return Fields(exception.sqlstate, 1, "SQLITE_ERROR", exception.message, exception.hint)
    if isinstance(exception, apsw.BindingsError):
        return _plain(apsw.SQLITE_RANGE, str(exception))
    if isinstance(exception, apsw.Error):
        return _of_apsw(exception)
    if isinstance(exception, MemoryError):
        return _plain(apsw.SQLITE_NOMEM, "out of memory")
    if isinstance(exception, UnicodeError):
        return Fields("22021", apsw.SQLITE_ERROR, "SQLITE_ERROR", "Could not decode to UTF-8")
    if isinstance(exception, ValueError) and str(exception) == "null character in query":
        message = "the query contains a null character"
        return Fields("42601", apsw.SQLITE_MISUSE, "SQLITE_MISUSE", message)
    # apsw lets out what a user's function raises; `sqlite3` says only that it did.
    message = "user-defined function raised exception"
    hint = f"{type(exception).__name__}: {exception}"
    return Fields("38000", apsw.SQLITE_ERROR, "SQLITE_ERROR", message, hint)


def _of_apsw(exception: apsw.Error) -> Fields:
    code = getattr(exception, "extendedresult", None) or getattr(exception, "result", None)
    return _plain(code if isinstance(code, int) else apsw.SQLITE_ERROR, str(exception))


def _plain(code: int, message: str) -> Fields:
    return Fields(state(code, message), code, name(code), message)
