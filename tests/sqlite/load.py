"""Clients that write, and a ledger of what each was told: what a file must hold afterwards.

Every client numbers its groups of rows. Of a group that was acknowledged every row is there, once;
of one that was refused none is; of any other, whose answer was lost or "outcome unknown", each row
is there at most once, and those of a transaction all or none.
"""

import contextlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from tests.sqlite.endpoint import Endpoint, eventually

SCHEMA: Final = "CREATE TABLE t (client INTEGER, number INTEGER, part INTEGER, filling TEXT)"

TOLD, REFUSED, UNKNOWN = "told", "refused", "unknown"

INSERT: Final = "INSERT INTO t VALUES (%s, %s, %s, %s)"
_FILLING: Final = "x" * 300
_PARTS: Final = 3
_LOST: Final = ("08", "57P")  # classes of SQLSTATE after which nobody knows

Connection = psycopg.Connection[Any]


@dataclass
class Group:
    """Some rows of a client; `at` is what the load's clock said after the acknowledgement."""

    client: int
    number: int
    parts: int
    is_whole: bool
    outcome: str = UNKNOWN
    at: int = 0

    def check(self, rows: Counter[tuple[int, int, int]], end: int | None) -> None:
        """AssertionError: the rows are not as they must be, of a file as it was at `end`."""
        found = [rows[self.client, self.number, part] for part in range(self.parts)]
        assert max(found) <= 1, f"twice: {self} {found}"
        assert not self.is_whole or len(set(found)) == 1, f"torn: {self} {found}"
        if self.outcome == TOLD and (end is None or self.at <= end):
            assert min(found) == 1, f"lost: {self} {found}"
        assert self.outcome != REFUSED or max(found) == 0, f"refused, but there: {self} {found}"


class Load:
    """Clients in threads, for the length of a `with`. `clock` orders acknowledgements."""

    def __init__(
        self, endpoint: Endpoint, database: str, clients: int, clock: Callable[[], int] = int
    ) -> None:
        self.endpoint = endpoint
        self.database = database
        self.groups: list[Group] = []
        self.failures: Counter[str] = Counter()  # by SQLSTATE, "lost" where there was none
        self.messages: dict[str, str] = {}  # the last of each
        self._clock = clock
        self._numbers = Counter[int]()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def told(self) -> int:
        """Groups that were acknowledged so far."""
        return sum(group.outcome == TOLD for group in self.groups)

    def go_on(self, groups: int = 20) -> None:
        """AssertionError: so many more are not acknowledged in good time."""
        enough = self.told + groups
        eventually(lambda: self.told >= enough, f"it stands still; failures: {self.messages}")

    def fail(self, sqlstate: str, times: int = 1) -> None:
        """AssertionError: not so many more fail with that in good time."""
        enough = self.failures[sqlstate] + times
        eventually(
            lambda: self.failures[sqlstate] >= enough, f"no {sqlstate}; failures: {self.messages}"
        )

    def _run(self, client: int) -> None:
        while not self._stopping.is_set():
            try:
                conninfo = self.endpoint.conninfo(self.database)
                with psycopg.connect(conninfo, autocommit=True) as connection:
                    connection.prepare_threshold = None  # else ROLLBACK has DEALLOCATE follow
                    self._write(connection, client)
            except psycopg.Error as error:
                self._failed(error)
                time.sleep(0.01)  # the process may be starting

    def _write(self, connection: Connection, client: int) -> None:
        while not self._stopping.is_set():
            number = self._numbers[client]
            self._numbers[client] += 1
            way, parts, is_whole = _WAYS[(number + client) % len(_WAYS)]
            group = Group(client, number, parts, is_whole)
            self.groups.append(group)
            self._ask(connection, group, way)

    def _ask(self, connection: Connection, group: Group, way: "Way") -> None:
        try:
            way(connection, [(group.client, group.number, i) for i in range(group.parts)])
        except psycopg.Error as error:
            if connection.closed or error.sqlstate is None or error.sqlstate.startswith(_LOST):
                raise
            self._failed(error)
            if group.is_whole:
                group.outcome = REFUSED
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        else:
            group.at = self._clock()
            group.outcome = TOLD

    def _failed(self, error: psycopg.Error) -> None:
        self.failures[error.sqlstate or "lost"] += 1
        self.messages[error.sqlstate or "lost"] = str(error)

    def check(self, path: Path, end: int | None = None) -> None:
        """AssertionError: the file is broken, or holds what it must not, or too little.

        Opens it in this process: the endpoint's must have ended, and the clients.
        """
        with contextlib.closing(sqlite3.connect(path)) as found:
            assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = Counter[tuple[int, int, int]](
                found.execute("SELECT client, number, part FROM t")
            )
        for group in self.groups:
            group.check(rows, end)
        assert sum(rows.values()) == sum(
            rows[group.client, group.number, part]
            for group in self.groups
            for part in range(group.parts)
        )


Rows = Iterable[tuple[int, int, int]]
Way = Callable[[Connection, Rows], None]


def _single(connection: Connection, rows: Rows) -> None:
    for row in rows:
        connection.execute(INSERT, (*row, _FILLING))


def _fresh(connection: Connection, rows: Rows) -> None:
    """A text that was never seen before."""
    for row in rows:
        connection.execute((INSERT + f" -- {row}").encode(), (*row, _FILLING))


def _many(connection: Connection, rows: Rows) -> None:
    connection.cursor().executemany(INSERT, [(*row, _FILLING) for row in rows])


def _transaction(connection: Connection, rows: Rows) -> None:
    connection.execute("BEGIN")
    _single(connection, rows)
    connection.execute("COMMIT")


def _immediate(connection: Connection, rows: Rows) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("SELECT max(number) FROM t").fetchall()
    connection.execute("SAVEPOINT s")
    _single(connection, rows)
    connection.execute("ROLLBACK TO s")
    _single(connection, rows)
    connection.execute("RELEASE s")
    connection.execute("COMMIT")


# How a group is written, how many rows it has, whether all or none of them are there.
_WAYS: Final[tuple[tuple[Way, int, bool], ...]] = (
    (_single, 1, True),
    (_fresh, 1, True),
    (_many, _PARTS, False),
    (_transaction, _PARTS, True),
    (_single, 1, True),
    (_immediate, _PARTS, True),
)
