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
from typing import Any, Final, Protocol, Self

import psycopg

from tests.sqlite.endpoint import PATIENCE, eventually

FILLING: Final = "x" * 300
SCHEMA: Final = (
    "CREATE TABLE p (filling PRIMARY KEY)",
    f"INSERT INTO p VALUES ('{FILLING}')",
    """CREATE TABLE t (
        client INTEGER, number INTEGER, part INTEGER,
        filling TEXT NOT NULL REFERENCES p DEFERRABLE INITIALLY DEFERRED
    )""",
)

TOLD, REFUSED, UNKNOWN = "told", "refused", "unknown"

INSERT: Final = "INSERT INTO t VALUES (%s, %s, %s, %s)"
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


class Place(Protocol):
    """Where the clients connect, anew each time that they are thrown out."""

    def conninfo(self, database: str) -> str:
        """For libpq."""


class Load:
    """Clients in threads, for the length of a `with`.

    `clock` orders acknowledgements; `ways`: how groups are written, by turns; `first`: a
    statement at the beginning of each session.
    """

    def __init__(
        self,
        endpoint: Place,
        database: str,
        clients: int,
        clock: Callable[[], int] = int,
        ways: "Ways | None" = None,
        first: str = "",
    ) -> None:
        self.endpoint = endpoint
        self.database = database
        self.groups: list[Group] = []
        self.failures: Counter[str] = Counter()  # by SQLSTATE, "lost" where there was none
        self.messages: dict[str, str] = {}  # the last of each
        self._clock = clock
        self._ways = ways or _SMOOTH
        self._first = first
        self._numbers = Counter[int]()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client waits for its answer"

    @property
    def told(self) -> int:
        """Groups that were acknowledged so far."""
        return sum(group.outcome == TOLD for group in self.groups)

    def go_on(self, groups: int = 20) -> None:
        """Until so many more are acknowledged. AssertionError: for long none is."""
        enough = self.told + groups
        while (told := self.told) < enough:
            self._tell_more(told)

    def _tell_more(self, told: int) -> None:
        eventually(lambda: self.told > told, f"it stands still; failures: {self.messages}")

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
                    connection.prepare_threshold = 1
                    if self._first:
                        connection.execute(self._first.encode())
                    self._write(connection, client)
            except psycopg.Error as error:
                self._failed(error)
                time.sleep(0.01)  # the process may be starting

    def _write(self, connection: Connection, client: int) -> None:
        while not self._stopping.is_set():
            number = self._numbers[client]
            self._numbers[client] += 1
            way, parts, is_whole = self._ways[(number + client) % len(self._ways)]
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

    def check(self, *paths: Path, end: int | None = None) -> None:
        """AssertionError: a file is broken, or they hold what they must not, or too little.

        Opens them in this process: the endpoint's must have ended, and the clients.
        """
        rows = Counter[tuple[int, int, int]]()
        for path in paths:
            with contextlib.closing(sqlite3.connect(path)) as found:
                assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                rows.update(found.execute("SELECT client, number, part FROM t"))
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
        connection.execute(INSERT, (*row, FILLING))


def _fresh(connection: Connection, rows: Rows) -> None:
    """A text that was never seen before."""
    for row in rows:
        connection.execute((INSERT + f" -- {row}").encode(), (*row, FILLING))


def _many(connection: Connection, rows: Rows) -> None:
    connection.cursor().executemany(INSERT, [(*row, FILLING) for row in rows])


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


def _rolls_back(connection: Connection, rows: Rows) -> None:
    """In vain, and takes the transaction of all with it that are committed together."""
    for row in rows:
        connection.execute("INSERT OR ROLLBACK INTO t VALUES (%s, %s, %s, NULL)", row)


def _aborted(connection: Connection, rows: Rows) -> None:
    """In vain: the second row undoes the first one."""
    for row in rows:
        sql = f"INSERT INTO t SELECT %s, %s, %s, value FROM json_each('[\"{FILLING}\", null]')"
        connection.execute(sql.encode(), row)


def _orphan(connection: Connection, rows: Rows) -> None:
    """In vain, if foreign keys are checked, which is at the end."""
    for row in rows:
        connection.execute(INSERT, (*row, "no parent"))


def _interrupted(connection: Connection, rows: Rows) -> None:
    """Cancelled at any moment, or too late. (`cancel` would hold the interpreter.)"""
    canceller = threading.Thread(target=connection.cancel_safe)
    canceller.start()
    try:
        _single(connection, rows)
    finally:
        canceller.join()


# How a group is written, how many rows it has, whether all or none of them are there.
Ways = tuple[tuple[Way, int, bool], ...]
_SMOOTH: Final[Ways] = (
    (_single, 1, True),
    (_fresh, 1, True),
    (_many, _PARTS, False),
    (_transaction, _PARTS, True),
    (_single, 1, True),
    (_immediate, _PARTS, True),
)
ROUGH: Final[Ways] = (
    (_single, 1, True),
    (_rolls_back, 1, True),
    (_many, _PARTS, False),
    (_aborted, 1, True),
    (_single, 1, True),
    (_interrupted, 1, True),
    (_transaction, _PARTS, True),
)
ORPHANS: Final[Ways] = (*ROUGH, (_orphan, 1, True), (_single, 1, True))
