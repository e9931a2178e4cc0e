"""The cursor of the DB-API, as `sqlite3.Cursor` is used.

Source: https://docs.python.org/3/library/sqlite3.html#cursor-objects
"""

import sqlite3
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from txproxy.sqlite.link import Link, NoLink
from txproxy.sqlite.rows import Rows

if TYPE_CHECKING:
    from txproxy.sqlite.adapters import Description
    from txproxy.sqlite.connection import Connection


class Cursor:
    """Runs statements on a connection, and hands out their rows."""

    _is_ready = False
    _is_closed = False
    _is_running = False  # a statement or a fetch, which may call Python, which may call us

    def __init__(self, connection: "Connection", /) -> None:
        if not isinstance(getattr(connection, "link", None), Link | NoLink):
            raise TypeError(
                f"Cursor() argument 1 must be txproxy.sqlite.Connection, not "
                f"{type(connection).__name__}"
            )
        if self._is_running:
            raise sqlite3.ProgrammingError("Recursive use of cursors not allowed.")
        self.connection = connection
        self.description: Description | None = None
        self.lastrowid: int | None = None
        self.rowcount = -1
        self.arraysize = 1
        self.row_factory: Any = None
        self._rows: Rows | None = None
        self._is_closed = False
        self._is_ready = True

    # Statements

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Run one statement, with parameters from a sequence or a mapping."""
        link = self._begin()
        try:
            outcome = link.execute(sql, parameters)
            self._rows = outcome.rows
            self.description = outcome.description
            self.rowcount = outcome.changes
            self.lastrowid = link.running().changes.last_rowid
        finally:
            self._is_running = False
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """Run one statement for each set of parameters; rows that it returns are discarded."""
        link = self._begin()
        try:
            self.rowcount = 0
            self.rowcount = link.execute_many(sql, parameters)
        finally:
            self._is_running = False
        return self

    def executescript(self, sql_script: str, /) -> Self:
        """Run statements, separated by semicolons, after a COMMIT of what is open."""
        link = self._begin()
        try:
            link.execute_script(sql_script)
        finally:
            self._is_running = False
        return self

    def _begin(self) -> Link:
        """What is checked, and forgotten, before every statement."""
        link = self._usable()
        if self._rows is not None:
            with link.lock:
                self._rows.close()
            self._rows = None
        self.description = None
        self.rowcount = -1
        self._is_running = True
        return link

    def _usable(self) -> Link:
        if not self._is_ready:
            raise sqlite3.ProgrammingError("Base Cursor.__init__ not called.")
        if self._is_closed:
            raise sqlite3.ProgrammingError("Cannot operate on a closed cursor.")
        if self._is_running:
            raise sqlite3.ProgrammingError("Recursive use of cursors not allowed.")
        return self.connection.link

    # Rows

    def fetchone(self) -> Any:
        """The next row; None: there is none."""
        link = self._usable()
        link.engine()
        rows = self._rows
        if rows is None:
            return None
        with link.lock:
            self._is_running = True
            try:
                row = rows.one()
            finally:
                self._is_running = False
        if row is None:
            self._rows = None
            return None
        factory = self.row_factory
        return row if factory is None else factory(self._for(factory), row)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows, at most so many; without a number `arraysize`."""
        return self._fetch(self.arraysize if size is None else size)

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        found = self._fetch(sys.maxsize)
        self._rows = None
        return found

    def _fetch(self, size: int) -> list[Any]:
        link = self._usable()
        link.engine()
        if self._rows is None:
            return []
        with link.lock:
            self._is_running = True
            try:
                found = self._rows.many(size)
            finally:
                self._is_running = False
        return self._made(found)

    def _made(self, rows: list[Any]) -> list[Any]:
        factory = self.row_factory
        if factory is None:
            return rows
        cursor = self._for(factory)
        return [factory(cursor, row) for row in rows]

    def _for(self, factory: Any) -> Any:
        """What a row factory gets for a cursor: `sqlite3.Row` insists on one of `sqlite3`'s own."""
        if isinstance(factory, type) and issubclass(factory, sqlite3.Row):
            return _genuine(tuple(column[0] for column in self.description or ()))
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    # The rest of the DB-API

    def close(self) -> None:
        """Close; rows that are left are lost."""
        if self._is_running:
            raise sqlite3.ProgrammingError("Recursive use of cursors not allowed.")
        if not self._is_ready:
            raise sqlite3.ProgrammingError("Base Cursor.__init__ not called.")
        link = self.connection.link
        link.engine()
        if self._rows is not None:
            with link.lock:
                self._rows.close()
            self._rows = None
        self._is_closed = True

    def setinputsizes(self, sizes: Any, /) -> None:
        """Nothing, as in `sqlite3`."""

    def setoutputsize(self, size: Any, column: Any = None, /) -> None:
        """Nothing, as in `sqlite3`."""


@lru_cache(maxsize=1)
def _scratch() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False)


@lru_cache(maxsize=256)
def _genuine(names: tuple[str, ...]) -> sqlite3.Cursor:
    """A cursor of `sqlite3`'s with these columns."""
    wanted = ", ".join(f'NULL AS "{name.replace(chr(34), chr(34) * 2)}"' for name in names)
    return _scratch().execute(f"SELECT {wanted or 'NULL'} LIMIT 0")
