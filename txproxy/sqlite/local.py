"""Reading the file here: connections of Python's own `sqlite3`, opened `mode=ro`.

Every read has to see what its session has written before. An open cursor holds the snapshot of its
connection, and the next SELECT on that would read the past: so results are read to their end at
once, up to a bound; a longer one keeps its connection to itself, and later reads use another.

The server holds the file in a process of its own. Here nothing but `sqlite3` opens it, and never
for writing (not `query_only` either, whose last close makes a checkpoint and deletes the WAL).
"""

import logging
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakSet

log = logging.getLogger("txproxy.sqlite")

AT_ONCE: Final = 1 << 20  # bytes of a result, roughly, that are read before it is handed out
_CELL: Final = 32  # bytes that a value costs at least
_FIRST: Final = 32  # rows; large ones are not to go far past the bound
_NEXT: Final = 256

Setting = Callable[[sqlite3.Connection], object]
_inherited: list[object] = []
"""Connections of a parent process: neither used nor closed in the child."""


class LocalRows:
    """The rows of one statement that have not been read yet."""

    def __init__(self, readers: "Readers", reader: "Reader", cursor: sqlite3.Cursor) -> None:
        self._readers = readers
        self._reader = reader
        self._cursor = cursor
        self._kept: list[Any] | None = None

    def fetch(self, count: int) -> list[Any]:
        """Up to so many; fewer: it was the end."""
        if not self._readers.has(self._reader):
            raise sqlite3.OperationalError("the rest of this result is the parent process's")
        if self._kept is not None:
            found, self._kept = self._kept[:count], self._kept[count:]
            return found
        try:
            found = self._cursor.fetchmany(count)
        except BaseException:
            self.close()
            raise
        if len(found) < count:
            self.close()
        return found

    def keep(self) -> None:
        """Read the rest, so that the connection's snapshot can end."""
        self._kept = self._cursor.fetchall()
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        self._cursor.close()
        self._reader.results.discard(self)


class Reader:
    """One connection, and the unfinished results on it that anybody still has."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.results: WeakSet[LocalRows] = WeakSet()
        self.is_leased = False  # a transaction has its snapshot

    def __repr__(self) -> str:
        return f"<Reader unfinished={len(self.results)}>"


class Readers:
    """The connections that read one file.

    `settings` are applied to each, those of today and those to come.
    """

    def __init__(self, path: str, timeout: float, detect_types: int, cached: int) -> None:
        self._uri = f"file:{quote(path)}?mode=ro"
        self._timeout = timeout
        self._detect_types = detect_types
        self._cached = cached
        self._all: list[Reader] = []

    def __repr__(self) -> str:
        return f"<Readers {self._uri} open={len(self._all)}>"

    def open(self, settings: Iterable[Setting]) -> Reader:
        """A connection without unfinished results. sqlite3.OperationalError: there is none."""
        for reader in self._all:
            if not reader.is_leased and not reader.results:
                return reader
        reader = Reader(self.fresh(settings))
        self._all.append(reader)
        return reader

    def has(self, reader: Reader) -> bool:
        """Whether it is ours; after a fork it is the parent's."""
        return reader in self._all

    def fresh(self, settings: Iterable[Setting]) -> sqlite3.Connection:
        """A connection that is the caller's own."""
        connection = sqlite3.connect(
            self._uri,
            timeout=self._timeout,
            detect_types=self._detect_types,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=self._cached,
            uri=True,
        )
        for setting in settings:
            setting(connection)
        return connection

    def lease(self, settings: Iterable[Setting]) -> Reader:
        """A connection for a transaction: nothing else is read on it until `release`."""
        reader = self.open(settings)
        reader.is_leased = True
        return reader

    @staticmethod
    def release(reader: Reader) -> None:
        """The transaction is over; results that are unfinished keep the connection."""
        reader.is_leased = False

    def connections(self) -> list[sqlite3.Connection]:
        """All that are open."""
        return [reader.connection for reader in self._all]

    def rows(self, reader: Reader, cursor: sqlite3.Cursor) -> tuple[list[Any], LocalRows | None]:
        """What a cursor has brought: all of it, or the first of it and the rest."""
        found: list[Any] = cursor.fetchmany(_FIRST)
        if len(found) < _FIRST:
            return found, None
        size = _size(found)
        while size <= AT_ONCE:
            some = cursor.fetchmany(_NEXT)
            found += some
            if len(some) < _NEXT:
                return found, None
            size += _size(some)
        rest = LocalRows(self, reader, cursor)
        reader.results.add(rest)
        return found, rest

    def interrupt(self) -> None:
        """Interrupt what runs; from any thread."""
        for reader in self._all:
            reader.connection.interrupt()

    def close(self) -> None:
        """Close them all; results that were not read to their end are lost."""
        for reader in self._all:
            reader.connection.close()
        self._all.clear()

    def leave(self) -> None:
        """After a fork: these are the parent's."""
        _inherited.extend(self._all)
        self._all = []


def _size(rows: list[Any]) -> int:
    """Roughly, in bytes."""
    size = 0
    for row in rows:
        size += _CELL * len(row)
        for value in row:
            if isinstance(value, str | bytes):
                size += len(value)
    return size
