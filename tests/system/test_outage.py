"""Servers that go and come back, refuse us, or fall silent, while thirty clients write.

Each client writes rows with names of their own, a transaction each, on one connection from the
beginning to the end. What it was told is true: acknowledged rows are there, once; refused ones are
not; and of a row that may be there, it was told so (08007).

TXPROXY_TEST_OUTAGE=60 makes the outage last that many seconds, and prints what clients went through
(with pytest -s).
"""

import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import asyncpg
import psycopg
import pytest
import uvloop

from tests.system.proxy import (
    DATABASE,
    OTHER_USER,
    PATIENCE,
    USER,
    Proxy,
    Table,
    ask_async,
    assert_clean,
    direct,
    pids,
    prepare,
    token,
    wait_until,
)
from tests.system.wire import Closed, Wire
from txproxy.cli.embedded import EmbeddedPostgres

CLIENTS: Final = 30
POOL: Final = 5
OUTCOME_UNKNOWN: Final = "08007"
HONEST: Final = frozenset(("08001", "08006", OUTCOME_UNKNOWN, "57P01", "57P02", "57P03"))
LASTS: Final = float(os.environ.get("TXPROXY_TEST_OUTAGE", "0"))  # seconds

pytestmark = pytest.mark.timeout(120 + LASTS)


@dataclass
class Diary:
    """What a client was told of the rows that it wrote.

    errors    by SQLSTATE
    longest   seconds that a transaction took, whatever became of it
    """

    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    def failed(self, name: str, sqlstate: str, severity: str) -> None:
        assert severity == "ERROR"
        assert sqlstate in HONEST
        self.errors[sqlstate] += 1
        (self.unknown if sqlstate == OUTCOME_UNKNOWN else self.refused).add(name)


class Work:
    """Clients that write, in a thread of their own, from `with` to the end of its block."""

    def __init__(self, proxy: Proxy) -> None:
        self.diaries = [Diary() for _ in range(CLIENTS)]
        self._proxy = proxy
        self._done = threading.Event()
        self._running: Future[None] = Future()

    def __enter__(self) -> Self:
        # a client that hangs must not keep the test from its end
        threading.Thread(target=self._main, daemon=True).start()
        self.everybody_writes()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._running.result(PATIENCE)

    def _main(self) -> None:
        try:
            self._running.set_result(uvloop.run(self._run()))
        except BaseException as error:  # noqa: BLE001  whoever waits for it raises it
            self._running.set_exception(error)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number, diary in enumerate(self.diaries):
                client = self._with_psycopg if number % 2 else self._with_asyncpg
                clients.create_task(client(diary))

    async def _with_psycopg(self, diary: Diary) -> None:
        kwargs = self._proxy.kwargs(prepare_threshold=None)
        async with await psycopg.AsyncConnection.connect(**kwargs, autocommit=True) as connection:
            while not self._done.is_set():
                name = token()
                began = time.monotonic()
                try:
                    async with connection.transaction():
                        await connection.execute("INSERT INTO outage VALUES (%s)", [name])
                        await ask_async(connection)
                    diary.acknowledged.add(name)
                except psycopg.Error as error:
                    severity = error.diag.severity_nonlocalized
                    diary.failed(name, error.sqlstate or "", severity or "")
                assert not connection.closed
                diary.longest = max(diary.longest, time.monotonic() - began)

    async def _with_asyncpg(self, diary: Diary) -> None:
        connection = await asyncpg.connect(**self._proxy.asyncpg(statement_cache_size=0))
        try:
            while not self._done.is_set():
                name = token()
                began = time.monotonic()
                try:
                    async with connection.transaction():
                        await connection.execute("INSERT INTO outage VALUES ($1)", name)
                        expected = token()
                        assert await connection.fetchval("SELECT $1::text", expected) == expected
                    diary.acknowledged.add(name)
                except asyncpg.PostgresError as error:
                    diary.failed(name, error.sqlstate, error.severity)
                assert not connection.is_closed()
                diary.longest = max(diary.longest, time.monotonic() - began)
        finally:
            await connection.close()

    def everybody(self, what: Callable[[Diary], int], times: int) -> None:
        """Wait until `what` has grown by as much in each client's diary."""
        wanted = [what(diary) + times for diary in self.diaries]

        def missing() -> list[Diary]:
            if self._running.done():
                self._running.result()
            pairs = zip(self.diaries, wanted, strict=True)
            return [diary for diary, count in pairs if what(diary) < count]

        left = wait_until(missing, lambda found: not found)
        assert not left, left

    def everybody_writes(self, times: int = 10) -> None:
        self.everybody(lambda diary: len(diary.acknowledged), times)

    def everybody_fails(self, times: int = 3) -> None:
        self.everybody(lambda diary: diary.errors.total(), times)

    @property
    def errors(self) -> Counter[str]:
        return sum((diary.errors for diary in self.diaries), Counter())

    def check(self, *servers: EmbeddedPostgres) -> None:
        """What each client was told is what is there."""
        found: list[str] = []
        for server in servers:
            with admin_of(server) as admin:
                found += [name for (name,) in admin.execute("SELECT name FROM outage")]
        names = set(found)
        assert len(found) == len(names)
        acknowledged = {name for diary in self.diaries for name in diary.acknowledged}
        refused = {name for diary in self.diaries for name in diary.refused}
        unknown = {name for diary in self.diaries for name in diary.unknown}
        assert acknowledged <= names
        assert not refused & names
        assert names <= acknowledged | unknown


def admin_of(server: EmbeddedPostgres) -> psycopg.Connection[Any]:
    """By the unix socket: the one of two servers on a port that is meant."""
    return psycopg.connect(
        host=server.socket_dir, port=server.port, user="postgres", dbname=DATABASE, autocommit=True
    )


def with_table(server: EmbeddedPostgres) -> EmbeddedPostgres:
    with direct(prepare(server)) as admin:
        # no key: a row that is written twice must be seen
        admin.execute("CREATE TABLE outage (name text)")
        admin.execute("GRANT ALL ON outage TO PUBLIC")
    return server


@pytest.fixture
def mortal() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own."""
    with EmbeddedPostgres() as server:
        yield with_table(server)


def in_front_of(
    server: EmbeddedPostgres,
    *,
    proxy: Table | None = None,
    users: Mapping[str, Table] | None = None,
    check: bool = True,
    **database: Any,
) -> Proxy:
    databases = {DATABASE: {"pool_size": POOL, **database}}
    return Proxy(server, proxy=proxy, databases=databases, users=users, check=check)


END: Final[dict[str, Callable[[EmbeddedPostgres], None]]] = {
    "told": lambda server: server.stop("fast"),
    "crashing": lambda server: server.stop("immediate"),
    "killed": lambda server: server.kill(),
}


@pytest.mark.parametrize("how", END)
def test_a_server_that_goes_and_comes_back(mortal: EmbeddedPostgres, how: str) -> None:
    with in_front_of(mortal) as proxy:
        with Work(proxy) as work:
            END[how](mortal)
            work.everybody_fails()
            time.sleep(LASTS)  # usually not at all
            mortal.start()
            back = time.monotonic()
            work.everybody_writes(1)
            recovered = time.monotonic() - back
            work.everybody_writes()
        work.check(mortal)
    if LASTS:
        print_figures(how, work, recovered)


def print_figures(how: str, work: Work, recovered: float) -> None:
    per_client = [diary.errors.total() for diary in work.diaries]
    longest = max(diary.longest for diary in work.diaries)
    print(f"\n{how}: {LASTS:g} s of outage, {CLIENTS} clients, errors {dict(work.errors)}")
    print(f"errors of a client: {min(per_client)} to {max(per_client)}")
    print(f"longest transaction {longest:.2f} s; all write again after {recovered:.2f} s")


def test_a_server_that_goes_again_and_again(mortal: EmbeddedPostgres) -> None:
    """Also before everybody has noticed that it was back."""
    with in_front_of(mortal) as proxy:
        with Work(proxy) as work:
            for how in [*END, *END]:
                END[how](mortal)
                mortal.start()
            work.everybody_writes()
        work.check(mortal)


async def test_a_backend_that_is_lost_between_prepare_and_execute(
    mortal: EmbeddedPostgres,
) -> None:
    """asyncpg has got all that it asked for by Flush, and asks for more in the same unit later: it
    is told then, and not before.
    """
    with in_front_of(mortal) as proxy, direct(mortal) as admin:
        client = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
        other = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
        for _ in range(5):
            async with client.transaction():
                pid = await client.fetchval("SELECT pg_backend_pid()")
                statement = await client.prepare("SELECT 1", name="")
                admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
                # another's answer: the proxy has read what there was to read
                await other.fetchval("SELECT 2")
                with pytest.raises(asyncpg.PostgresError) as lost:
                    await statement.fetchval()
                assert lost.value.sqlstate == "57P01"
            assert await client.fetchval("SELECT 3") == 3
        await client.close()
        await other.close()


async def test_a_backend_that_is_lost_while_it_prepares(mortal: EmbeddedPostgres) -> None:
    """asyncpg waits for the answer to its Flush: it is told at once."""
    with in_front_of(mortal) as proxy, direct(mortal) as admin, direct(mortal) as locker:
        client = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
        async with client.transaction():
            pid = await client.fetchval("SELECT pg_backend_pid()")
            with locker.transaction():
                locker.execute("LOCK TABLE outage")
                preparing = asyncio.create_task(client.prepare("TABLE outage", name=""))
                await asyncio.to_thread(wait_until, lambda: waits_for_lock(admin, pid), bool)
                admin.execute("SELECT pg_terminate_backend(%s)", [pid])
                with pytest.raises(asyncpg.PostgresError) as lost:
                    await asyncio.wait_for(preparing, PATIENCE)
            assert lost.value.sqlstate == "57P01"
        assert await client.fetchval("SELECT 3") == 3
        await client.close()


def waits_for_lock(admin: psycopg.Connection[Any], pid: int) -> bool:
    found = admin.execute(
        "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [pid]
    )
    return found.rowcount > 0


# Servers that do not let us in.


def refused_login(proxy: Proxy, user: str) -> tuple[str, str, str]:
    """Severity, SQLSTATE and message."""
    with pytest.raises(Closed) as end:
        Wire.log_in((proxy.host, proxy.port), user=user, database=DATABASE).close()
    [said] = end.value.args[0]
    return said.severity, said.sqlstate, said.fields["M"]


@pytest.mark.parametrize("limit", [0, POOL], ids=["", "max_db_connections"])
def test_one_users_wrong_password_is_that_users_affair(
    mortal: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    with direct(mortal) as admin:
        admin.execute(f"ALTER ROLE {OTHER_USER} PASSWORD 'right'")
        [[hba]] = admin.execute("SHOW hba_file").fetchall()
    lines = [f"host all {OTHER_USER} all scram-sha-256", "host all all all trust"]
    Path(hba).write_text("\n".join([*lines, "local all all trust", ""]))
    monkeypatch.setenv("OTHERS_PASSWORD", "wrong")
    monkeypatch.setenv("PGPASSWORD", "wrong")  # what it will be in the end, for those who look
    mortal.restart()
    users = {OTHER_USER: {"password_env": "OTHERS_PASSWORD"}}
    with in_front_of(mortal, users=users, max_db_connections=limit) as proxy:
        with Work(proxy) as work, ThreadPoolExecutor(10) as guessing:
            for said in guessing.map(refused_login, [proxy] * 40, [OTHER_USER] * 40):
                assert said == (
                    *("FATAL", "28P01"),
                    f'password authentication failed for user "{OTHER_USER}"',
                )
            work.everybody_writes()
            # the server comes round
            with direct(mortal) as admin:
                admin.execute(f"ALTER ROLE {OTHER_USER} PASSWORD 'wrong'")
            with proxy.connect(user=OTHER_USER) as client:
                assert client.execute("SELECT current_user").fetchone() == (OTHER_USER,)
        assert not work.errors
        work.check(mortal)


@pytest.fixture
def frozen(mortal: EmbeddedPostgres) -> Iterator[Callable[[signal.Signals], None]]:
    """Stops the server's main process, or lets it go on. Meanwhile the kernel accepts connections
    for it, and nobody says anything on them; server processes that are there go on.
    """
    assert mortal._process is not None
    process = mortal._process
    yield process.send_signal
    process.send_signal(signal.SIGCONT)


def test_a_server_that_falls_silent(
    mortal: EmbeddedPostgres, frozen: Callable[[signal.Signals], None]
) -> None:
    with in_front_of(mortal, proxy={"server_connect_timeout": "2s"}) as proxy:
        with Work(proxy) as work, direct(mortal) as admin:
            frozen(signal.SIGSTOP)
            # clients go on with the backends that there are
            work.everybody_writes()
            assert not work.errors
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [USER]
            )
            work.everybody_fails()
            assert work.errors["08001"] >= CLIENTS
            frozen(signal.SIGCONT)
            work.everybody_writes()
        work.check(mortal)


def test_a_server_that_was_silent_from_the_start(
    mortal: EmbeddedPostgres, frozen: Callable[[signal.Signals], None]
) -> None:
    with in_front_of(mortal, proxy={"server_connect_timeout": "2s"}) as proxy:
        frozen(signal.SIGSTOP)
        with ThreadPoolExecutor(10) as coming:
            for said in coming.map(refused_login, [proxy] * 10, [USER] * 10):
                assert said[:2] == ("FATAL", "08001")
                assert said[2].endswith("within 2 s")
        frozen(signal.SIGCONT)
        with Work(proxy) as work:
            pass
        work.check(mortal)


# Two hosts.


NOWHERE: Final = "127.0.0.2"


@pytest.mark.parametrize("balance", ["round-robin", "disable"])
def test_a_host_that_is_down_from_the_start(mortal: EmbeddedPostgres, balance: str) -> None:
    hosts = [NOWHERE, mortal.host]
    with in_front_of(mortal, host=hosts, load_balance_hosts=balance) as proxy:
        with Work(proxy) as work:
            work.everybody_writes()
        assert not work.errors
        assert len(pids(mortal)) == POOL
        work.check(mortal)


def test_a_host_that_is_silent(mortal: EmbeddedPostgres) -> None:
    """The other one has its share of the time, and is enough."""
    hosts = [NOWHERE, mortal.host]
    with (
        socket.create_server((NOWHERE, mortal.port), backlog=100),
        in_front_of(mortal, proxy={"server_connect_timeout": "6s"}, host=hosts) as proxy,
    ):
        with Work(proxy) as work:
            pass
        assert not work.errors
        work.check(mortal)


@pytest.fixture
def twin(mortal: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """Another server, on the same port of another address."""
    with EmbeddedPostgres() as server:
        with_table(server).stop()
        server.port = mortal.port
        server._settings["listen_addresses"] = NOWHERE
        server.start()
        yield server


def backends_of(server: EmbeddedPostgres) -> int:
    with admin_of(server) as admin:
        [[found]] = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [USER]
        ).fetchall()
        return int(found)


def test_hosts_that_go_in_turn(mortal: EmbeddedPostgres, twin: EmbeddedPostgres) -> None:
    """While one of the two is there, nobody has more than the one error of a lost backend."""
    hosts = [NOWHERE, mortal.host]
    # inside, backends of two servers are not alike
    with in_front_of(mortal, check=False, host=hosts) as proxy:
        with Work(proxy) as work:
            assert backends_of(mortal) + backends_of(twin) == POOL
            assert backends_of(mortal) > 0 < backends_of(twin)
            for server in (twin, mortal):
                server.kill()
                work.everybody_writes()
                server.start()
        assert sum(work.errors.values()) <= 2 * POOL
        work.check(mortal, twin)
    assert_clean(mortal)
