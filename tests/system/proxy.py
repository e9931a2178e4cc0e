"""The proxy as people run it: a process of its own, in front of a real server.

`Proxy(server)` starts `python -m txproxy serve`, and at its end asserts that nothing went wrong in
it. Its databases all lead to the server's database `app`; the one called `app` is there unless
`databases` says otherwise. Its clients are the user `app`, so that in pg_stat_activity whoever is
not `postgres` is a backend of the proxy.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import psycopg
import pytest

from txproxy.cli.embedded import PORTS, EmbeddedPostgres

T = TypeVar("T")

USER: Final = "app"
OTHER_USER: Final = "other"
DATABASE: Final = "app"
PATIENCE: Final = 30.0  # seconds, on a machine that is busy, for what takes none

Value = str | int | float | bool | Sequence[str] | Sequence[int] | None
Table = Mapping[str, Value]
Event = dict[str, Any]

DEFAULTS: Final[Table] = {
    "auth_type": "trust",
    "default_pool_size": 2,
    "query_wait_timeout": "20s",
    "idle_transaction_timeout": "60s",
    "early_release": "off",  # most who sleep here have only read, and are to hold their backends
    "shutdown_timeout": "5s",
    "log_format": "json",
    "log_level": "debug",
}


# The server, asked directly.


class Backend(NamedTuple):
    """A backend of the proxy, as the server sees it."""

    pid: int
    state: str
    user: str
    application_name: str
    query: str

    @property
    def in_transaction(self) -> bool:
        return self.state != "idle"


def direct(
    server: EmbeddedPostgres, dbname: str = DATABASE, user: str = "postgres", **options: Any
) -> psycopg.Connection[Any]:
    """A connection past the proxy, in autocommit."""
    return psycopg.connect(
        host=server.host,
        port=server.port,
        user=user,
        dbname=dbname,
        autocommit=True,
        connect_timeout=int(PATIENCE),
        **options,
    )


def prepare(server: EmbeddedPostgres) -> EmbeddedPostgres:
    """Make the users and the database that the proxy's clients use, unless they are there."""
    with direct(server, "postgres") as connection:
        for user in (USER, OTHER_USER):
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [user]).rowcount:
                connection.execute(f"CREATE ROLE {user} LOGIN CREATEDB")
        found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
        if not found.rowcount:
            connection.execute(f"GRANT {OTHER_USER} TO {USER}")
            connection.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}")
    return server


def backends(server: EmbeddedPostgres) -> list[Backend]:
    """The backends of the proxy that the server knows, by pid."""
    with direct(server, "postgres") as connection:
        return _backends(connection)


def _backends(connection: psycopg.Connection[Any]) -> list[Backend]:
    rows = connection.execute(
        "SELECT pid, coalesce(state, ''), usename, application_name, query"
        " FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND usename <> 'postgres' ORDER BY pid"
    )
    return [Backend(*row) for row in rows]


def pids(server: EmbeddedPostgres) -> set[int]:
    """The process ids of the proxy's backends."""
    return {backend.pid for backend in backends(server)}


def complaints(server: EmbeddedPostgres) -> list[str]:
    """What is not clean about the proxy's backends, from outside: transactions, locks, tables."""
    with direct(server) as connection:
        return _complaints(connection)


def _complaints(connection: psycopg.Connection[Any]) -> list[str]:
    found = [f"in a transaction: {each}" for each in _backends(connection) if each.in_transaction]
    found += [
        f"a lock: {row}"
        for row in connection.execute(
            "SELECT a.pid, l.locktype, l.mode, l.relation::regclass::text, l.objid"
            " FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
            " WHERE a.backend_type = 'client backend' AND a.usename <> 'postgres'"
        )
    ]
    found += [
        f"a temporary table: {name}"
        for (name,) in connection.execute(
            "SELECT oid::regclass::text FROM pg_class"
            " WHERE relpersistence = 't' AND relkind IN ('r', 'S', 'v')"
        )
    ]
    found += [
        f"a prepared transaction: {name}"
        for (name,) in connection.execute("SELECT gid FROM pg_prepared_xacts")
    ]
    return found


def assert_clean(server: EmbeddedPostgres) -> None:
    """No backend of the proxy is in a transaction, holds a lock or has a temporary table.

    A client that has just left may have something cleaned up behind it: wait for that.
    """
    _assert_none(lambda: complaints(server))


def _assert_none(look: Callable[[], list[str]]) -> None:
    left = wait_until(look, lambda found: not found)
    assert not left, left


def wait_until(look: Callable[[], T], good: Callable[[T], object]) -> T:
    """Look again and again until what is seen is good, or patience ends; returns what was seen."""
    deadline = time.monotonic() + PATIENCE
    while True:
        seen = look()
        if good(seen) or time.monotonic() > deadline:
            return seen
        time.sleep(0.02)


def until_ended(client: psycopg.Connection[Any]) -> str:
    """Ask, in autocommit, until the connection is ended: returns what was said about it.

    What libpq reads together with an answer that came before, it takes for a notice.
    """
    said: list[str | None] = []
    client.add_notice_handler(lambda notice: said.append(notice.message_primary))
    with pytest.raises(psycopg.OperationalError) as ended:
        wait_until(lambda: client.execute("SELECT 1"), lambda _: False)
    return "\n".join(map(str, [*said, ended.value]))


def in_threads(work: Callable[[int], None], number: int) -> None:
    """Run it in so many threads, each with its index; what one raises is raised."""
    with ThreadPoolExecutor(number) as executor:
        for done in [executor.submit(work, index) for index in range(number)]:
            done.result()


# Tokens: a reply that went to the wrong statement or client cannot be the right one.


def token() -> str:
    """A text that no other statement of this run has in it."""
    return str(uuid.uuid4())


def ask(cursor: Any) -> None:
    """A statement whose reply can be no other's, on a cursor or a connection of psycopg 3."""
    expected = token()
    answered = cursor.execute(f"SELECT '{expected}'")
    # psycopg 2 returns nothing, psycopg 3 a cursor
    assert (answered or cursor).fetchone() == (expected,)


async def ask_async(connection: psycopg.AsyncConnection[Any]) -> None:
    """The same, for psycopg's asynchronous connections."""
    expected = token()
    cursor = await connection.execute(f"SELECT '{expected}'")
    assert await cursor.fetchone() == (expected,)


# The proxy.


class Proxy:
    """A running proxy, from `with` to the end of its block.

    `proxy` are settings of [proxy] that differ from DEFAULTS, `databases`, `users` and `sqlite` the
    tables by name; host, port and dbname of a database lead to the server unless they say
    otherwise; None leaves one out.
    `check=False`: at the end backends may be in any state (the log and the exit code count still).
    """

    host: Final = "127.0.0.1"

    def __init__(
        self,
        server: EmbeddedPostgres,
        *,
        proxy: Table | None = None,
        databases: Mapping[str, Table] | None = None,
        users: Mapping[str, Table] | None = None,
        sqlite: Mapping[str, Table] | None = None,
        metrics: str = "",
        check: bool = True,
    ) -> None:
        self.server = server
        self.port = 0
        self._proxy = {**DEFAULTS, **(proxy or {})}
        self._databases = {DATABASE: {}} if databases is None else databases
        self._users = users or {}
        self._sqlite = sqlite or {}
        self._metrics = metrics
        self._check = check
        self._process: subprocess.Popen[str] | None = None
        self._exit_code: int | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="txproxy-system-")
        self._events: list[Event] = []
        self._noise: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread()
        self._ended = False
        self._used: set[tuple[str, str]] = set()
        self._marked = 0
        self._admin: psycopg.Connection[Any] | None = None

    def __repr__(self) -> str:
        return f"<Proxy pid={self._process and self._process.pid} port={self.port}>"

    def __enter__(self) -> Self:
        prepare(self.server)
        for _ in range(5):
            if self._start():
                return self
        self.kill()
        raise AssertionError(f"the proxy did not start: {self.log()}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if self._check and self._exit_code is None:
                    self.assert_clean()
                self.stop()
            else:
                self.kill()
                sys.stderr.write(f"the proxy's log:\n{self.log()}\n")
        finally:
            self.kill()
            if self._admin is not None:
                self._admin.close()
            self._directory.cleanup()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def socket_dir(self) -> str:
        """The directory of the proxy's unix socket, on the same port."""
        return self._directory.name

    # Its life.

    def _start(self) -> bool:
        self.port = _free_port()
        config = self.write_configuration()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "default", "-m", "txproxy", "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            env={key: value for key, value in os.environ.items() if not key.startswith("PG")},
        )
        self._ended = False
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        with self._news:
            self._news.wait_for(lambda: self._ended or self._is_ready(), PATIENCE)
            ready = self._is_ready()
        if not ready:
            self.kill()
            if any("Address already in use" in line for line in self._noise):
                self._noise.clear()
                return False
            raise AssertionError(f"the proxy did not start: {self.log()}")
        return True

    def _is_ready(self) -> bool:
        return bool(self._find("ready", {}, self._marked))

    def write_configuration(self) -> Path:
        """Write proxy.toml, as its tables are at this moment."""
        config = Path(self._directory.name, "proxy.toml")
        config.write_text(self._toml(), encoding="utf-8")
        return config

    def _toml(self) -> str:
        listen = [f"{self.host}:{self.port}", f"unix:{self._directory.name}"]
        lines = ["[proxy]", *_lines({"listen": listen, **self._proxy})]
        if self._metrics:
            lines += ["[metrics]", *_lines({"listen": self._metrics})]
        there: Table = {"host": self.server.host, "port": self.server.port, "dbname": DATABASE}
        for name, table in self._databases.items():
            lines += [f"[databases.{json.dumps(name)}]", *_lines({**there, **table})]
        for name, table in self._users.items():
            lines += [f"[users.{json.dumps(name)}]", *_lines(table)]
        for name, table in self._sqlite.items():
            lines += [f"[sqlite.{json.dumps(name)}]", *_lines(table)]
        return "\n".join([*lines, ""])

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """End it as its operator would; assert that it ends well and has met no bug."""
        if self._process is not None and self._exit_code is None:
            self._process.send_signal(signum)
            self.ends()

    def ends(self) -> None:
        """Wait for the end of one that was told to stop: a signal at its very end would kill it."""
        process = self._process
        assert process is not None
        try:
            self._exit_code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the proxy does not stop: {self.log()}") from None
        self._reader.join(PATIENCE)
        self._close_pipe()
        self.assert_no_bug()
        assert self._exit_code == 0, self.log()

    def kill(self) -> None:
        """End it with kill -9, unless it has ended."""
        process = self._process
        if process is None or self._exit_code is not None:
            return
        process.kill()
        self._exit_code = process.wait()
        self._reader.join(PATIENCE)
        self._close_pipe()

    def restart(self) -> None:
        """Another one in its place, after it was killed; on another port."""
        self.kill()
        self._exit_code = None
        self.mark()
        assert any(self._start() for _ in range(5)), self.log()

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stderr is not None:
            self._process.stderr.close()

    # How to reach it.

    def kwargs(self, dbname: str = DATABASE, user: str = USER, **more: Any) -> dict[str, Any]:
        """What psycopg 2 and 3 are connected with."""
        self._used.add((dbname, user))
        return {
            "host": self.host,
            "port": self.port,
            "dbname": dbname,
            "user": user,
            "connect_timeout": int(PATIENCE),
            **more,
        }

    def asyncpg(self, dbname: str = DATABASE, user: str = USER, **more: Any) -> dict[str, Any]:
        """What asyncpg is connected with."""
        self._used.add((dbname, user))
        return {
            "host": self.host,
            "port": self.port,
            "database": dbname,
            "user": user,
            "timeout": PATIENCE,
            **more,
        }

    def dsn(self, dbname: str = DATABASE, user: str = USER, **more: Any) -> str:
        """The same for whoever wants a string."""
        return psycopg.conninfo.make_conninfo(**self.kwargs(dbname, user, **more))

    def connect(
        self, dbname: str = DATABASE, user: str = USER, **more: Any
    ) -> psycopg.Connection[Any]:
        """A client: psycopg 3, and no prepared statements."""
        return psycopg.connect(**{"prepare_threshold": None, **self.kwargs(dbname, user, **more)})

    # Its log.

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            event = None
            with contextlib.suppress(ValueError):
                event = json.loads(line)
            with self._news:
                if isinstance(event, dict):
                    self._events.append(event)
                else:
                    self._noise.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _find(self, name: str, fields: Mapping[str, object], since: int) -> list[Event]:
        return [
            event
            for event in self._events[since:]
            if event.get("event") == name
            and all(event.get(key) == value for key, value in fields.items())
        ]

    def mark(self) -> None:
        """From now on `events` and `wait_for` mean what is logged from now on."""
        with self._news:
            self._marked = len(self._events)

    def events(self, name: str, **fields: object) -> list[Event]:
        """The events of this name and with these fields that were logged since the last mark."""
        with self._news:
            return self._find(name, fields, self._marked)

    def wait_for(self, name: str, count: int = 1, **fields: object) -> Event:
        """Wait until there are `count` such events since the last mark; returns the last."""
        with self._news:
            found: list[Event] = []
            looked = self._marked

            def enough() -> bool:
                # at what is new only: of a crowd, there are thousands
                nonlocal looked
                found.extend(self._find(name, fields, looked))
                looked = len(self._events)
                return self._ended or len(found) >= count

            self._news.wait_for(enough, PATIENCE)
        assert len(found) >= count, f"{len(found)} of {count} {name} {fields} in {self.log()}"
        return found[count - 1]

    def log(self) -> str:
        """All that was logged, as text."""
        with self._news:
            return "\n".join([*map(str, self._events), *self._noise])

    # What must hold.

    def assert_no_bug(self) -> None:
        """Nothing in the log says that the proxy itself is wrong."""
        with self._news:
            bugs = [event for event in self._events if event.get("event") == "bug"]
            noise = list(self._noise)
        assert not bugs, "\n".join(f"{bug}\n{bug.get('traceback')}" for bug in bugs)
        assert not noise, noise

    def assert_clean(self) -> None:
        """A new client finds every backend as it would find a fresh one. Ends the pool's clients'
        business first: call it when they are closed.
        """
        self.assert_no_bug()
        _assert_none(self._complaints)
        for dbname, user in sorted(self._used):
            size = self._pool_size(dbname, user)
            if size and self._databases.get(dbname, {}).get("pool_mode") != "session":
                self._look_inside(dbname, user, size)
        self._used.clear()
        _assert_none(self._complaints)
        self.assert_no_bug()

    def _complaints(self) -> list[str]:
        """The same as `complaints`, which is asked for after each test: on a connection that is
        kept, unless the server has ended it.
        """
        if self._admin is not None:
            with contextlib.suppress(psycopg.OperationalError):
                return _complaints(self._admin)
            self._admin.close()
        self._admin = direct(self.server)
        return _complaints(self._admin)

    def _pool_size(self, dbname: str, user: str) -> int:
        tables = (self._users.get(user), self._databases.get(dbname))
        for table in tables:
            if table and "pool_size" in table:
                return int(str(table["pool_size"]))
        return int(str(self._proxy["default_pool_size"])) if tables[1] is not None else 0

    def _look_inside(self, dbname: str, user: str, size: int) -> None:
        """As many clients at once as there are backends: each sees one from inside."""
        with direct(self.server, user=user) as connection:
            expected = _inside(connection)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(self.connect(dbname, user)) for _ in range(size)]
            # each is in its transaction, and holds its backend, until all have looked
            for client in clients:
                seen = _inside(client)
                assert seen == expected, {
                    key: (value, expected.get(key))
                    for key, value in seen.items()
                    if value != expected.get(key)
                }
            for client in clients:
                client.rollback()


def _inside(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """What a session can see of its backend's state, beginning a transaction unless autocommit."""
    rows = connection.execute(
        """SELECT name, setting FROM pg_settings
           -- plpgsql's are there once somebody has used it
           WHERE name NOT IN ('application_name', 'in_hot_standby') AND name NOT LIKE 'plpgsql.%'
           UNION ALL SELECT 'current_user', current_user
           UNION ALL SELECT 'session_user', session_user
           UNION ALL SELECT 'channel', pg_listening_channels()
           UNION ALL SELECT 'prepared', name FROM pg_prepared_statements
               WHERE from_sql OR name !~ '^txproxy_'
           UNION ALL SELECT 'cursor', name FROM pg_cursors WHERE name <> ''
           UNION ALL SELECT 'advisory lock', objid::text FROM pg_locks
               WHERE locktype = 'advisory' AND pid = pg_backend_pid()"""
    )
    return dict(rows.fetchall())


def _lines(table: Table) -> Iterator[str]:
    for key, value in table.items():
        if value is not None:
            yield f"{key} = {json.dumps(value)}"


def _free_port() -> int:
    """A port below those that the system gives to outgoing connections."""
    for port in random.sample(PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
