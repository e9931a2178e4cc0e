"""Crowds: clients that come and leave all at once, logins that fail by the hundred, reloads and the
end of the proxy while everybody works.

Every answer has a token that no other statement has, so it can be no other client's. What was
acknowledged is there once.

TXPROXY_TEST_CROWD is how many come at once.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import signal
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.system import wire
from tests.system.proxy import (
    DATABASE,
    OTHER_USER,
    USER,
    Proxy,
    Value,
    assert_clean,
    direct,
    pids,
    prepare,
    token,
    wait_until,
)
from tests.system.wire import AsyncWire, Closed, Message
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.wire.scram import ScramClient, Verifier

CROWD: Final = int(os.environ.get("TXPROXY_TEST_CROWD", "2000"))
POOL: Final = 10
WORKERS: Final = 20
PASSWORD: Final = "a password of the clients"
CERTS: Final = Path(__file__).parent / "certs"


class Refused(Exception):
    """Not let in. The argument: the ErrorResponse."""


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    """Room for a crowd's sockets in this process; the proxy takes what it may by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CROWD + 1000:
        pytest.skip(f"no more than {hard} open files are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    """What psycopg knows by itself, where the proxy asks for it."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture
def table(postgres: EmbeddedPostgres) -> Iterator[str]:
    with direct(prepare(postgres)) as admin:
        admin.execute("DROP TABLE IF EXISTS load")
        # no key: a row that is written twice must be seen
        admin.execute("CREATE TABLE load (id text)")
        admin.execute("GRANT ALL ON load TO PUBLIC")
        yield "load"
        admin.execute("DROP TABLE load")


def names(server: EmbeddedPostgres) -> set[str]:
    """The rows of the table, none of which is there twice."""
    with direct(server) as admin:
        found = [name for (name,) in admin.execute("SELECT id FROM load")]
    assert len(found) == len(set(found))
    return set(found)


def guarded(server: EmbeddedPostgres, auth_type: str, *, check: bool = True, **more: Any) -> Proxy:
    """A proxy with a pool of POOL that asks USER for PASSWORD, if that is its `auth_type`."""
    return Proxy(
        server,
        proxy={"auth_type": auth_type, "query_wait_timeout": "60s", **more},
        databases={DATABASE: {"pool_size": POOL}},
        users={USER: {"password": str(Verifier.of(PASSWORD))}},
        check=check,
    )


# Clients.


class Clients:
    """Makes clients of a proxy, and closes those that are left at the end of its block."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._made: list[AsyncWire] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._made:
            client.close()

    async def connect(self, *, unix: bool = False) -> AsyncWire:
        """A connection that has said nothing."""
        proxy = self._proxy
        if unix:
            path = f"{proxy.socket_dir}/.s.PGSQL.{proxy.port}"
            client = AsyncWire(*await asyncio.open_unix_connection(path))
        else:
            client = AsyncWire(*await asyncio.open_connection(proxy.host, proxy.port))
        self._made.append(client)
        return client

    async def log_in(
        self,
        user: str = USER,
        database: str = DATABASE,
        *,
        password: str = PASSWORD,
        unix: bool = False,
    ) -> AsyncWire:
        """A client, by SCRAM if it is asked for a password. Raises Refused."""
        client = await self.connect(unix=unix)
        scram = ScramClient(password, None, None)
        client.send(wire.startup({"user": user, "database": database}))
        while True:
            said = await client.read()
            if said.kind == "E":
                client.close()
                raise Refused(said)
            if said.kind == "Z":
                return client
            method = struct.unpack_from("!i", said.body)[0] if said.kind == "R" else 0
            if method == 10:
                first = scram.first()
                length = struct.pack("!i", len(first))
                client.send(wire.message(b"p", b"SCRAM-SHA-256\0" + length + first))
            elif method == 11:
                client.send(wire.message(b"p", scram.final(said.body[4:])))
            elif method == 12:
                scram.verify(said.body[4:])

    async def several(self, number: int) -> list[AsyncWire]:
        """Clients that come at once, every other one through the unix socket."""
        return await asyncio.gather(*(self.log_in(unix=i % 2 == 0) for i in range(number)))


def insert(name: str) -> bytes:
    return wire.query(f"INSERT INTO load VALUES ('{name}')")


async def value(client: AsyncWire, sql: str) -> str | None:
    """The first value of the answer, in which there must be no error."""
    answer = await client.ask(wire.query(sql))
    assert not wire.errors(answer), answer
    return wire.rows(answer)[0][0]


async def speak(client: AsyncWire) -> None:
    """A statement by itself and a transaction: each answer is this client's."""
    mine = [token() for _ in range(3)]
    assert await value(client, f"SELECT '{mine[0]}'") == mine[0]
    assert not wire.errors(await client.ask(wire.query("BEGIN")))
    assert await value(client, f"SELECT '{mine[1]}'") == mine[1]
    answer = await client.ask(wire.unit("SELECT $1", mine[2]))
    assert wire.rows(answer) == [[mine[2]]], answer
    assert answer[-1].status == "T"
    answer = await client.ask(wire.query("COMMIT"))
    assert wire.kinds(answer) == "CZ", answer
    assert answer[-1].status == "I"


async def write(client: AsyncWire, acknowledged: set[str]) -> None:
    """A transaction with a row of its own."""
    name = token()
    for sent in (wire.query("BEGIN"), insert(name), wire.query("COMMIT")):
        answer = await client.ask(sent)
        assert wire.kinds(answer) == "CZ", answer
    acknowledged.add(name)


def open_all(proxy: Proxy) -> set[int]:
    """Have the pool open all of its backends; their process ids."""
    with contextlib.ExitStack() as stack:
        for _ in range(POOL):
            stack.enter_context(proxy.connect()).execute("SELECT 1")
    found = pids(proxy.server)
    assert len(found) == POOL
    return found


# Coming and leaving.


def leave(client: AsyncWire, how: int) -> None:
    if how % 3 == 0:
        client.send(wire.TERMINATE)
    if how % 3 == 1:
        client.reset()
    else:
        client.close()


@pytest.mark.parametrize("auth_type", ["trust", "scram-sha-256"])
async def test_a_crowd_comes_at_once_and_leaves_at_once(
    postgres: EmbeddedPostgres, table: str, auth_type: str
) -> None:
    with guarded(postgres, auth_type) as proxy, Clients(proxy) as clients:
        before = open_all(proxy)
        proxy.mark()

        async def come(number: int) -> AsyncWire:
            client = await clients.log_in(unix=number % 2 == 0)
            await speak(client)
            return client

        crowd = await asyncio.gather(*(come(number) for number in range(CROWD)))
        # every backend is in somebody's transaction, others wait for one, the rest do nothing
        for client in crowd[:POOL]:
            await client.ask(wire.query("BEGIN"))
            assert wire.kinds(await client.ask(insert(token()))) == "CZ"
        for client in crowd[POOL : CROWD // 4]:
            client.send(wire.query("BEGIN") + insert(token()))
        for how, client in enumerate(crowd):
            leave(client, how)
        await asyncio.to_thread(proxy.wait_for, "client disconnected", CROWD)
        assert not proxy.events("login refused")
        proxy.assert_clean()
        assert pids(postgres) == before
        assert names(postgres) == set()


async def test_those_beyond_max_client_conn_are_refused(postgres: EmbeddedPostgres) -> None:
    """Exactly those, however many come at once; who is in is not touched."""
    room = 100
    with (
        guarded(postgres, "scram-sha-256", max_client_conn=room) as proxy,
        Clients(proxy) as clients,
    ):
        came = await asyncio.gather(
            *(clients.log_in() for _ in range(2 * room)), return_exceptions=True
        )
        inside = [each for each in came if isinstance(each, AsyncWire)]
        refused = [each.args[0] for each in came if isinstance(each, Refused)]
        assert {(each.severity, each.sqlstate) for each in refused} == {("FATAL", "53300")}
        assert (len(inside), len(refused)) == (room, room)
        await asyncio.gather(*(speak(client) for client in inside))
        # a place is free again as soon as somebody has left
        for client in inside[: room // 2]:
            client.close()
        await asyncio.to_thread(proxy.wait_for, "client disconnected", room // 2)
        inside[: room // 2] = await clients.several(room // 2)
        with pytest.raises(Refused):
            await clients.log_in()
        await asyncio.gather(*(speak(client) for client in inside))


async def test_silent_ones_beyond_max_client_conn_are_not_held(postgres: EmbeddedPostgres) -> None:
    """Some hundred are heard out; the others are closed at once, and who is in is not touched."""
    room = 10
    with (
        guarded(postgres, "scram-sha-256", max_client_conn=room) as proxy,
        Clients(proxy) as clients,
    ):
        inside = await clients.several(room)
        silent = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(150)]
        await asyncio.to_thread(proxy.wait_for, "login refused", 50)
        ended = [asyncio.create_task(reader.read()) for reader, _ in silent]
        for first in itertools.islice(asyncio.as_completed(ended), 50):
            await first
        done, waiting = await asyncio.wait(ended, timeout=0.5)
        assert (len(done), len(waiting)) == (50, 100)
        await asyncio.gather(*(speak(client) for client in inside))
        for _, writer in silent:
            writer.close()
        await asyncio.gather(*waiting, return_exceptions=True)


# Reloads.


MISTAKE: Final = {"default_pool_size": -1}
CHANGES: Final[tuple[Mapping[str, Value], ...]] = (
    {"default_pool_size": 1},
    {"default_pool_size": 30, "server_lifetime": "1s"},
    {"default_pool_size": 3, "reserve_pool_size": 3, "reserve_pool_timeout": "50ms"},
    {"max_db_connections": 2, "idle_transaction_timeout": "30s"},
    {"max_db_connections": 0, "max_user_connections": 4, "query_wait_timeout": "40s"},
    {"max_user_connections": 0, "deferred_begin": False, "transaction_timeout": "1min"},
    {"default_pool_size": 20, "min_pool_size": 15, "deferred_begin": True},
    MISTAKE,
    {"default_pool_size": 5, "min_pool_size": 0, "server_idle_timeout": "1s"},
    {"server_check_delay": "1s", "query_timeout": "1min", "tcp_keepidle": 60},
    {"default_pool_size": POOL, "server_lifetime": "1h", "server_idle_timeout": "10min"},
)


def reload(proxy: Proxy, change: Mapping[str, Value]) -> None:
    """Change settings in the proxy's file, and have it read."""
    path = Path(proxy.socket_dir, "proxy.toml")
    text = path.read_text(encoding="utf-8")
    for name, setting in change.items():
        text = re.sub(rf"^{name} = .*\n", "", text, flags=re.MULTILINE)
        text = text.replace("[proxy]\n", f"[proxy]\n{name} = {json.dumps(setting)}\n", 1)
    path.write_text(text, encoding="utf-8")
    proxy.mark()
    os.kill(proxy.pid, signal.SIGHUP)
    proxy.wait_for("not reloaded" if change is MISTAKE else "reloaded")


async def test_reloads_are_noticed_by_nobody(postgres: EmbeddedPostgres, table: str) -> None:
    acknowledged: set[str] = set()
    with Proxy(postgres) as proxy, Clients(proxy) as clients:
        done = asyncio.Event()

        async def work(client: AsyncWire) -> None:
            while not done.is_set():
                await speak(client)
                await write(client, acknowledged)

        async with asyncio.TaskGroup() as working:
            for client in await clients.several(30):
                working.create_task(work(client))
            for number, change in enumerate(CHANGES * 3):
                await asyncio.to_thread(reload, proxy, change)
                newcomer = await clients.log_in()
                await write(newcomer, acknowledged)
                leave(newcomer, number)
            done.set()
        assert names(postgres) == acknowledged


# The end.


@dataclass
class Fate:
    """What became of the rows that clients tried to write while the proxy ended.

    acknowledged   must be there
    refused        must not: the proxy said that it had ended before it took them
    told           how many clients were told 57P01
    """

    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    told: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def acknowledge(self, name: str) -> None:
        self.acknowledged.add(name)
        if len(self.acknowledged) > 10 * WORKERS:
            self.enough.set()


async def last_words(client: AsyncWire) -> None:
    """The client is told why it is disconnected, and then it is."""
    with pytest.raises(Closed) as end:
        await client.until("Z")
    [said] = end.value.args[0]
    assert (said.severity, said.sqlstate) == ("FATAL", "57P01")


async def ask(client: AsyncWire, data: bytes, fate: Fate) -> list[Message] | None:
    """The answer; None if the proxy has ended, after a word or, if that crossed the question, by a
    reset.
    """
    try:
        return await client.ask(data)
    except ConnectionError:
        return None
    except Closed as end:
        said = [(each.severity, each.sqlstate) for each in end.args[0]]
        assert said in ([], [("FATAL", "57P01")])
        fate.told += len(said)
        return None


async def write_transactions(client: AsyncWire, fate: Fate) -> None:
    """Until the proxy ends, which nobody may notice inside a transaction."""
    while await ask(client, wire.query("BEGIN"), fate):
        name = token()
        for sent in (insert(name), wire.query("SELECT 1"), wire.query("COMMIT")):
            answer = await client.ask(sent)
            assert not wire.errors(answer), answer
        fate.acknowledge(name)


async def write_rows(client: AsyncWire, fate: Fate) -> None:
    """The same, each by itself."""
    while True:
        name = token()
        told = fate.told
        answer = await ask(client, insert(name), fate)
        if answer is None:
            if fate.told > told:
                fate.refused.add(name)
            return
        assert wire.kinds(answer) == "CZ", answer
        fate.acknowledge(name)


async def exit_code(proxy: Proxy) -> int:
    assert proxy._process is not None
    return await asyncio.to_thread(proxy._process.wait, wire.PATIENCE)


async def test_the_end_waits_for_transactions(postgres: EmbeddedPostgres, table: str) -> None:
    fate = Fate()
    with (
        guarded(postgres, "trust", shutdown_timeout="60s", check=False) as proxy,
        Clients(proxy) as clients,
    ):
        idle = await clients.several(5)
        late = await clients.several(POOL // 2)
        mine = [token() for _ in late]
        for client, name in zip(late, mine, strict=True):
            await client.ask(wire.query("BEGIN"))
            await client.ask(insert(name))
        async with asyncio.TaskGroup() as working:
            for number, client in enumerate(await clients.several(2 * WORKERS)):
                work = write_rows if number % 4 > 1 else write_transactions
                working.create_task(work(client, fate))
            await fate.enough.wait()
            os.kill(proxy.pid, signal.SIGTERM)
        for client in idle:
            await last_words(client)
        with pytest.raises(ConnectionRefusedError):
            await clients.log_in()
        for client, name in zip(late, mine, strict=True):
            assert await value(client, f"SELECT count(*) FROM load WHERE id = '{name}'") == "1"
            assert wire.kinds(await client.ask(wire.query("COMMIT"))) == "CZ"
            await last_words(client)
        assert await exit_code(proxy) == 0
    assert_clean(postgres)
    found = names(postgres)
    assert fate.acknowledged.union(mine) <= found
    assert not fate.refused & found
    # beyond those, only rows whose acknowledgement was lost with a reset
    assert len(found) <= len(fate.acknowledged) + len(mine) + 2 * WORKERS


async def test_a_second_signal_ends_it_at_once(postgres: EmbeddedPostgres, table: str) -> None:
    with (
        guarded(postgres, "trust", shutdown_timeout="5min", check=False) as proxy,
        Clients(proxy) as clients,
    ):
        working = await clients.several(2 * POOL)
        for client in working[:POOL]:
            await client.ask(wire.query("BEGIN"))
            assert wire.kinds(await client.ask(insert(token()))) == "CZ"
        for client in working[POOL:]:
            client.send(insert(token()))  # they wait for a backend
        os.kill(proxy.pid, signal.SIGTERM)
        await asyncio.to_thread(proxy.wait_for, "draining")
        os.kill(proxy.pid, signal.SIGTERM)
        for client in working:
            await last_words(client)
        assert await exit_code(proxy) == 0
    assert_clean(postgres)
    assert names(postgres) == set()


# Logins that fail.


async def guess(proxy: Proxy, user: str = USER) -> None:
    """A password that is wrong, or anybody's."""
    with Clients(proxy) as clients, pytest.raises(Refused) as refused:
        await clients.log_in(user, password=token())
    assert refused.value.args[0].sqlstate == "28P01"


async def babble(proxy: Proxy, *pieces: bytes) -> None:
    """Send these, each but the first once something has come back, until the proxy hangs up."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        async with asyncio.timeout(wire.PATIENCE):
            for number, piece in enumerate(pieces):
                if number:
                    await reader.readexactly(1)
                writer.write(piece)
            with contextlib.suppress(ConnectionError):
                await reader.read()
    finally:
        writer.close()


HALF: Final = wire.startup({"user": USER, "database": DATABASE})[:-20]
HALF_A_RECORD: Final = b"\x16\x03\x01\xff\xff" + os.urandom(1000)
FLOODS: Final[tuple[Callable[[Proxy], Awaitable[None]], ...]] = (
    guess,
    lambda proxy: guess(proxy, token()),
    lambda proxy: babble(proxy, b"\xff" + os.urandom(1000)),
    lambda proxy: babble(proxy, wire.packet(wire.SSL_REQUEST), os.urandom(1000)),
    # a whole record: of half of one, the proxy would wait for the rest
    lambda proxy: babble(proxy, b"\x16\x03\x01\x03\xe8" + os.urandom(1000)),
)


def sockets(proxy: Proxy) -> int:
    """How many sockets and other files the proxy has open."""
    return len(list(Path(f"/proc/{proxy.pid}/fd").iterdir()))


def resident(proxy: Proxy) -> int:
    """The proxy's memory, in MiB."""
    status = Path(f"/proc/{proxy.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


async def test_logins_that_fail_harm_nobody(postgres: EmbeddedPostgres) -> None:
    settings: dict[str, Any] = {
        "client_tls_sslmode": "allow",
        "client_tls_key_file": str(CERTS / "server.key"),
        "client_tls_cert_file": str(CERTS / "server.crt"),
        "client_login_timeout": "10s",
    }
    with guarded(postgres, "scram-sha-256", **settings) as proxy, Clients(proxy) as clients:
        inside = await clients.several(WORKERS)
        await asyncio.gather(*(speak(client) for client in inside))
        before = sockets(proxy), resident(proxy)
        done = asyncio.Event()
        spoken: Counter[AsyncWire] = Counter()

        async def work(client: AsyncWire) -> None:
            while not done.is_set():
                await speak(client)
                spoken[client] += 1

        async def flood(kind: Callable[[Proxy], Awaitable[None]]) -> None:
            for _ in range(40):
                await kind(proxy)

        async with asyncio.TaskGroup() as working:
            for client in inside:
                working.create_task(work(client))
            async with asyncio.TaskGroup() as floods:
                for kind in FLOODS * 5:
                    floods.create_task(flood(kind))
                # these keep their sockets until the proxy has had enough of them
                for begun in [HALF] * 300 + [HALF_A_RECORD] * 200:
                    floods.create_task(babble(proxy, begun))
            done.set()
        assert len(spoken) == WORKERS
        after = wait_until(lambda: sockets(proxy), lambda now: now <= before[0])
        assert after <= before[0]
        assert resident(proxy) - before[1] < 64
        await asyncio.gather(*(speak(client) for client in inside))
        inside += await clients.several(WORKERS)
        await asyncio.gather(*(speak(client) for client in inside))


async def test_who_never_logs_in_counts_and_is_ended(postgres: EmbeddedPostgres) -> None:
    settings: dict[str, Any] = {"max_client_conn": WORKERS + 10, "client_login_timeout": "10s"}
    with guarded(postgres, "scram-sha-256", **settings) as proxy, Clients(proxy) as clients:
        inside = await clients.several(WORKERS)
        silent = [await clients.connect() for _ in range(10)]
        for client in silent:
            client.send(HALF)
        with pytest.raises(Refused) as refused:
            await clients.log_in()
        assert refused.value.args[0].sqlstate == "53300"
        await asyncio.gather(*(speak(client) for client in inside))
        for client in silent:
            with pytest.raises(Closed):
                await client.read()
        inside += await clients.several(10)
        await asyncio.gather(*(speak(client) for client in inside))


# Limits that pools share.


DATABASES: Final = {DATABASE: 5, "second": 4}  # and their max_db_connections
USERS: Final = {USER: 4, OTHER_USER: 4, "third": 2}  # and their max_user_connections


@pytest.fixture
def second(postgres: EmbeddedPostgres) -> Iterator[None]:
    """Another database and another user."""
    with direct(prepare(postgres)) as admin:
        admin.execute("CREATE DATABASE second")
        admin.execute("CREATE ROLE third LOGIN")
        yield
        admin.execute("DROP DATABASE second WITH (FORCE)")
        admin.execute("DROP ROLE third")


class Sampler:
    """Looks at the server's connections again and again, from `with` to the end of its block.

    most   of each database and of each user. What is gone at the next look does not count: a server
           process ends a moment after its connection was closed.
    """

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.most: Counter[str] = Counter()
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        before: set[tuple[int, str, str]] = set()
        with direct(self._server) as admin:
            while not self._done.wait(0.05):
                rows = admin.execute(
                    "SELECT pid, 'database ' || datname, 'user ' || usename FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND usename <> 'postgres'"
                )
                now = set(rows.fetchall())
                self.most |= Counter(name for _, *both in now & before for name in both)
                before = now


async def test_shared_limits_hold_and_everybody_is_served(
    postgres: EmbeddedPostgres, second: None
) -> None:
    databases: dict[str, dict[str, Value]] = {
        name: {"dbname": name, "max_db_connections": limit} for name, limit in DATABASES.items()
    }
    users = {name: {"max_user_connections": limit} for name, limit in USERS.items()}
    with (
        Proxy(postgres, proxy={"default_pool_size": 4}, databases=databases, users=users) as proxy,
        Clients(proxy) as clients,
    ):

        async def work(database: str, user: str) -> None:
            client = await clients.log_in(user, database)
            for _ in range(10):
                await speak(client)
            client.close()

        with Sampler(postgres) as sampler:
            async with asyncio.TaskGroup() as working:
                for database, user in itertools.product(DATABASES, USERS):
                    for _ in range(8):
                        working.create_task(work(database, user))
    # there is less room in the databases than there is for the users
    for name, limit in DATABASES.items():
        assert sampler.most[f"database {name}"] == limit
    for name, limit in USERS.items():
        assert 0 < sampler.most[f"user {name}"] <= limit
