"""SQLite files behind a real proxy, for the tests of what it does with their clients."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.system.proxy import PATIENCE, Proxy, Table, wait_until
from tests.system.wire import Wire, startup
from txproxy.cli.embedded import EmbeddedPostgres

ADMIN: Final = "boss"

NOTES: Final = "notes"
"""A file that is configured by this name; it has the table `t (a)`."""


class Files:
    """A proxy with the file `notes.db`, called `notes`, and the directory `data` with a file a.db.

    `notes` are settings of the one, `others` those of the directory.
    """

    def __init__(
        self,
        server: EmbeddedPostgres,
        root: Path,
        *,
        notes: Table | None = None,
        others: Table | None = None,
        metrics: str = "",
        **proxy: Any,
    ) -> None:
        self.root = root.resolve()
        self.data = self.root / "data"
        self.data.mkdir()
        self.notes = self.root / "notes.db"
        make(self.notes, "CREATE TABLE t (a)")
        make(self.data / "a.db", "CREATE TABLE t (a)")
        self.tables: dict[str, Table] = {
            NOTES: {"path": str(self.notes), **(notes or {})},
            "*": {"directory": str(self.data), **(others or {})},
        }
        self.proxy = Proxy(
            server,
            proxy={"admin_users": [ADMIN], **proxy},
            sqlite=self.tables,
            metrics=metrics,
            check=False,
        )

    def kwargs(self, dbname: str = NOTES, user: str = "web", **more: Any) -> dict[str, Any]:
        """What psycopg is connected with."""
        return {
            "host": self.proxy.socket_dir,
            "port": self.proxy.port,
            "dbname": dbname,
            "user": user,
            "connect_timeout": int(PATIENCE),
            "autocommit": True,
            **more,
        }

    def connect(
        self, dbname: str = NOTES, user: str = "web", **more: Any
    ) -> psycopg.Connection[Any]:
        """A client: in autocommit, as psycopg's transactions are PostgreSQL's."""
        return psycopg.connect(**self.kwargs(dbname, user, **more))

    def conninfo(self, database: str) -> str:
        """The same for libpq."""
        given = self.kwargs(database)
        del given["autocommit"]
        return psycopg.conninfo.make_conninfo(**given)

    def wire(self, **parameters: str) -> Wire:
        """A client by hand that has sent its start-up packet."""
        client = Wire(f"{self.proxy.socket_dir}/.s.PGSQL.{self.proxy.port}")
        client.send(startup({"user": "web", "database": NOTES, **parameters}))
        return client

    def refusal(self, dbname: str = NOTES, **more: Any) -> psycopg.Error:
        """The error with which a client is not let in."""
        try:
            self.connect(dbname, **more).close()
        except psycopg.Error as error:
            return error
        raise AssertionError(f"{dbname}: it was let in")

    @contextlib.contextmanager
    def console(self, user: str = ADMIN) -> Iterator[psycopg.Connection[Any]]:
        """The console."""
        with self.proxy.connect("txproxy", user, autocommit=True) as console:
            yield console

    def process(self) -> int:
        """The SQLite process's number."""
        return int(self.proxy.wait_for("sqlite process ready")["pid"])

    def is_in_transaction(self, state: str = "idle in transaction") -> None:
        """Until the process has said that somebody is."""
        with self.console() as console:
            rows = wait_until(
                lambda: [row["state"] for row in shown(console, "TRANSACTIONS")],
                lambda found: state in found,
            )
        assert state in rows


def make(path: Path, *statements: str) -> None:
    """A file in WAL mode, made before anybody has it open."""
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA journal_mode = wal")
        for statement in statements:
            file.execute(statement)
        file.commit()


def rows_of(path: Path, query: str = "SELECT a FROM t ORDER BY a") -> list[tuple[Any, ...]]:
    """What another process reads from the file; it is never opened in this one meanwhile."""
    script = (
        "import json, sqlite3, sys\n"
        "found = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True).execute(sys.argv[2])\n"
        "print([*found])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), query],
        check=True,
        capture_output=True,
        text=True,
    )
    found: list[tuple[Any, ...]] = eval(done.stdout)
    return found


def shown(console: psycopg.Connection[Any], table: str) -> list[Mapping[str, Any]]:
    """The rows of a table of the console."""
    cursor = console.execute(f"SHOW {table}".encode())
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
