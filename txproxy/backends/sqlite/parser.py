"""SQLite's own parser, asked about a text on a database that nobody uses.

For what needs no schema: transaction statements and PRAGMAs. Its authorizer notes what the text
asks for and lets no PRAGMA happen, of which many take effect as soon as they are prepared.
"""

import re
from contextlib import suppress
from threading import Lock
from typing import Final, NamedTuple

import apsw

# What SQLite's tokenizer skips before a statement; atomic groups: an unsuccessful match may not
# read a comment's end differently, nor take exponential time.
_SKIPPED: Final = r"(?>[ \t\n\v\f\r;\ufeff]+|--[^\n]*|/\*(?>[\s\S]*?\*/|[\s\S]+))*+"
_WORD: Final = re.compile(_SKIPPED + r"([A-Za-z_]*)")


def words(sql: str, count: int) -> tuple[str, ...]:
    """The first words of a text in upper case, without comments: fewer where there are fewer."""
    found: list[str] = []
    at = 0
    while len(found) < count and (match := _WORD.match(sql, at)) and match[1]:
        found.append(match[1].upper())
        at = match.end()
    return tuple(found)


class Action(NamedTuple):
    """What the authorizer was told first: one of apsw's SQLITE_… codes and its arguments."""

    code: int
    first: str
    second: str | None
    schema: str | None


class Parsed(NamedTuple):
    """The first statement of a text: itself, what follows it, and what it would do."""

    text: str
    rest: str
    action: Action | None


class _Parser:
    def __init__(self) -> None:
        self._lock = Lock()  # apsw refuses a connection that is used in two threads at once
        self._connection = apsw.Connection(":memory:")
        self._connection.authorizer = self._authorize
        self._connection.exec_trace = self._trace
        self._action: Action | None = None
        self._text = ""
        self._flags = apsw.Connection(":memory:")

    def parse(self, sql: str) -> Parsed:
        with self._lock:
            self._action = None
            with suppress(apsw.ExecTraceAbort):
                self._connection.execute(sql, can_cache=False)
            return Parsed(self._text, sql[len(self._text) :], self._action)

    def is_on(self, value: str) -> bool:
        quoted = value.replace("'", "''")
        with self._lock:
            self._flags.execute(f"PRAGMA foreign_keys = '{quoted}'")
            return bool(self._flags.pragma("foreign_keys"))

    def _authorize(
        self, code: int, first: str | None, second: str | None, schema: str | None, _: str | None
    ) -> int:
        if self._action is None:
            self._action = Action(code, first or "", second, schema)
        return apsw.SQLITE_IGNORE if code == apsw.SQLITE_PRAGMA else apsw.SQLITE_OK

    def _trace(self, _: apsw.Cursor, text: str, __: object) -> bool:
        self._text = text
        return False


_parser: Final = _Parser()


def parse(sql: str) -> Parsed:
    """What the first statement of a text is, and where it ends.

    apsw.SQLError: SQLite cannot read it, in the same words as on the database itself; also for
    a schema other than main and temp. ValueError: it contains a NUL character.
    """
    return _parser.parse(sql)


def is_on(value: str) -> bool:
    """How a PRAGMA that is a flag understands a value: what it does not know is off."""
    return _parser.is_on(value)
