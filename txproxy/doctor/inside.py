"""Facts about an SQLite file from inside: what SQLite says when it only reads."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote

from txproxy.doctor.files import FileFacts, Stat, beside, stat_of

LOCKED_FOR: Final = 5.0  # seconds that a lock is waited for
MOST: Final = 100  # complaints of each sort that are asked for

BUSY: Final = 5
READONLY_ROLLBACK: Final = 776
NOT_A_DATABASE: Final = 26
CORRUPT: Final = 11
CANTOPEN: Final = 14


@dataclass(frozen=True, slots=True)
class Failure:
    """What SQLite said instead: its extended code and its words."""

    code: int
    words: str

    @property
    def kind(self) -> int:
        """The primary code."""
        return self.code & 0xFF


@dataclass(frozen=True, slots=True)
class InsideFacts:
    """What SQLite has read; None where it did not come so far, a Failure where it could not."""

    version: str  # of the SQLite that read it
    failure: Failure | None = None  # nothing can be read
    tables: int = 0
    journal_mode: str = ""
    page_size: int = 0
    pages: int = 0
    free_pages: int = 0
    integrity: tuple[str, ...] | Failure | None = None  # complaints; () is well
    foreign_keys: tuple[str, ...] | Failure | None = None  # rows without their parents


def inside_facts(outside: FileFacts) -> InsideFacts:
    """Read a file, and write nothing to it; beside it, nothing but a -shm that a -wal lacks.

    A reader of a WAL file makes -wal and -shm where they are missing, as its own user, and, being
    only a reader, leaves them there. So a WAL file at rest, without them, is read as one that
    does not change, and it counts if it has not changed until the end.
    """
    if outside.is_wal and not outside.beside:
        before = stat_of(outside.real)
        found = _read(outside.real, "mode=ro&immutable=1")
        if _as_it_was(outside.real, before):
            return replace(found, journal_mode="wal")  # an immutable one says that it has none
    return _read(outside.real, "mode=ro")


def _as_it_was(real: str, before: Stat | None) -> bool:
    return stat_of(real) == before and not beside(real)


def _read(real: str, options: str) -> InsideFacts:
    facts = InsideFacts(sqlite3.sqlite_version)
    try:
        with _opened(real, options) as connection:
            facts = _outline(facts, connection)
            return replace(
                facts, integrity=_integrity(connection), foreign_keys=_foreign_keys(connection)
            )
    except sqlite3.Error as error:
        return replace(facts, failure=_failure(error))


@contextlib.contextmanager
def _opened(real: str, options: str) -> Iterator[sqlite3.Connection]:
    # isolation_level None: nothing here begins a transaction
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(real))}?{options}",
        uri=True,
        timeout=LOCKED_FOR,
        isolation_level=None,
    )
    # What a file says is not always text.
    connection.text_factory = lambda said: said.decode("utf-8", "replace")
    try:
        yield connection
    finally:
        connection.close()


def _outline(facts: InsideFacts, connection: sqlite3.Connection) -> InsideFacts:
    def one(query: str) -> Any:
        return connection.execute(query).fetchone()[0]

    return replace(
        facts,
        tables=one("SELECT count(*) FROM sqlite_master WHERE type = 'table'"),
        journal_mode=one("PRAGMA journal_mode"),
        page_size=one("PRAGMA page_size"),
        pages=one("PRAGMA page_count"),
        free_pages=one("PRAGMA freelist_count"),
    )


def _integrity(connection: sqlite3.Connection) -> tuple[str, ...] | Failure:
    try:
        said = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({MOST})")]
    except sqlite3.Error as error:
        return _failure(error)
    return () if said == ["ok"] else tuple(said)


def _foreign_keys(connection: sqlite3.Connection) -> tuple[str, ...] | Failure:
    try:
        rows = connection.execute("PRAGMA foreign_key_check").fetchmany(MOST)
    except sqlite3.Error as error:
        return _failure(error)
    return tuple(
        f"{table}{'' if rowid is None else f' row {rowid}'} refers to what is not in {parent}"
        for table, rowid, parent, _ in rows
    )


def _failure(error: sqlite3.Error) -> Failure:
    return Failure(getattr(error, "sqlite_errorcode", 1), str(error))
