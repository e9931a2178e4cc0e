"""Early release: sleepers that have only read hold nothing, and do not notice.

TXPROXY_TEST_RACES raises how often each client races.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import asyncpg
import psycopg
import pytest

from tests.system import console
from tests.system.proxy import (
    DATABASE,
    USER,
    Proxy,
    ask,
    direct,
    token,
    wait_until,
)
from tests.system.test_django import Site
from txproxy.cli.embedded import EmbeddedPostgres

Connection = psycopg.Connection[Any]

READERS: Final = 30
RELEASING: Final[Mapping[str, Any]] = {
    **console.SETTINGS,
    "early_release": "auto",
    "early_release_after": "50ms",
    "idle_transaction_timeout": "20s",
}


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {
        "proxy": RELEASING,
        "databases": {
            "app": {"pool_size": 3},
            "one": {"pool_size": 1, "dbname": DATABASE},
            "quick": {"dbname": DATABASE},  # of the site
            "never": {"early_release": "off", "dbname": DATABASE},
            "report": {"early_release": "report", "dbname": DATABASE},
        },
    }


@pytest.fixture(scope="module", autouse=True)
def shop(server: EmbeddedPostgres) -> Iterator[None]:
    with direct(server, user=USER) as owner:
        owner.execute("SET application_name = 'owner'")
        owner.execute("CREATE TABLE shop (id int PRIMARY KEY, price int)")
        owner.execute("INSERT INTO shop SELECT n, n * 10 FROM generate_series(1, 9) AS n")
        yield
        owner.execute("DROP TABLE shop")


def transaction(proxy: Proxy, client: Connection) -> dict[str, Any] | None:
    """What SHOW TRANSACTIONS says of it; None: it holds no backend."""
    port = client.pgconn.socket
    with console.connect(proxy) as admin:
        rows = console.show(admin, "TRANSACTIONS")
    found = [row for row in rows if str(row["addr"]).endswith(f":{local_port(port)}")]
    return dict(found[0]) if found else None


def local_port(fileno: int) -> int:
    import os
    import socket

    with socket.socket(fileno=os.dup(fileno)) as mine:
        port: int = mine.getsockname()[1]
        return port


def is_released(proxy: Proxy, client: Connection) -> bool:
    """Whether its transaction lets its backend go."""
    return wait_until(lambda: transaction(proxy, client), lambda row: row is None) is None


def why_not(proxy: Proxy, client: Connection) -> str:
    """Why it does not."""

    def look() -> str:
        row = transaction(proxy, client)
        return str(row["held_by"]) if row else "released"

    return wait_until(look, lambda why: why not in ("", "nothing: it may be released"))


def test_a_reader_that_sleeps_lets_go_and_goes_on(proxy: Proxy) -> None:
    with proxy.connect() as reader:
        for _ in range(3):
            assert reader.execute("SELECT price FROM shop WHERE id = 2").fetchone() == (20,)
            assert is_released(proxy, reader)
        assert reader.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        ask(reader)
        reader.execute("UPDATE shop SET price = 21 WHERE id = 2")
        reader.rollback()
        assert reader.execute("SELECT price FROM shop WHERE id = 2").fetchone() == (20,)


def test_what_it_writes_later_is_one_transaction(proxy: Proxy) -> None:
    with proxy.connect() as writer, proxy.connect(autocommit=True) as other:
        ask(writer)
        assert is_released(proxy, writer)
        writer.execute("UPDATE shop SET price = 1 WHERE id = 3")
        assert "transaction id" in why_not(proxy, writer) or "not one plain" in why_not(
            proxy, writer
        )
        writer.execute("UPDATE shop SET price = 1 WHERE id = 4")
        sql = "SELECT price FROM shop WHERE id IN (3, 4) ORDER BY id"
        assert other.execute(sql).fetchall() == [(30,), (40,)]
        writer.commit()
        assert other.execute(sql).fetchall() == [(1,), (1,)]
        other.execute("UPDATE shop SET price = id * 10")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT price FROM shop WHERE id = 1 FOR UPDATE",
        "SELECT now()",
        "SELECT nextval('counter')",
        "SELECT set_config('work_mem', '70kB', true)",
        "SELECT pg_advisory_xact_lock(1)",
        "DECLARE c CURSOR FOR SELECT 1",
        "LOCK TABLE shop IN ACCESS SHARE MODE",
        "SAVEPOINT s",
        "SET LOCAL work_mem = '70kB'",
        "UPDATE shop SET price = 0 WHERE false",
        "SELECT pg_current_xact_id()",
        "NOTIFY somebody",
    ],
)
def test_what_holds_something_is_kept(proxy: Proxy, server: EmbeddedPostgres, sql: str) -> None:
    with direct(server, user=USER) as owner:
        owner.execute("CREATE SEQUENCE IF NOT EXISTS counter")
    with proxy.connect() as client:
        client.execute(sql.encode())
        assert why_not(proxy, client) not in ("", "released")
        client.rollback()


def test_other_isolation_levels_are_kept(proxy: Proxy) -> None:
    with proxy.connect() as client:
        client.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        ask(client)
        assert why_not(proxy, client) in ("it is not READ COMMITTED", "it holds a snapshot")
        client.rollback()
        client.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        ask(client)
        assert is_released(proxy, client)


def test_a_default_of_the_session_counts(proxy: Proxy) -> None:
    with proxy.connect(autocommit=True) as client:
        client.execute("SET default_transaction_isolation = 'serializable'")
        ask(client)  # while the server is asked what was set, BEGIN is not deferred
        client.autocommit = False
        ask(client)
        assert why_not(proxy, client) in ("it is not READ COMMITTED", "it holds a snapshot")


def test_read_only_stays_read_only(proxy: Proxy) -> None:
    with proxy.connect() as client:
        client.read_only = True
        ask(client)
        assert is_released(proxy, client)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            client.execute("UPDATE shop SET price = 0")


def test_off_and_report(proxy: Proxy) -> None:
    with proxy.connect("never") as client:
        ask(client)
        assert why_not(proxy, client) == "early_release is off"
    with proxy.connect("report") as client:
        ask(client)
        with console.connect(proxy) as admin:
            assert wait_until(
                lambda: console.one(admin, "TRANSACTIONS")["idle_ms"], lambda idle: idle > 300
            )


def test_many_readers_share_one_backend(proxy: Proxy) -> None:
    """All of them are in a transaction at the same time."""
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(proxy.connect("one")) for _ in range(READERS)]
        for _ in range(2):
            for reader in readers:
                ask(reader)
        for reader in readers:
            assert reader.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
            reader.commit()


def test_a_sleeping_reader_does_not_stop_a_migration(proxy: Proxy) -> None:
    with proxy.connect() as reader, proxy.connect(autocommit=True) as migration:
        reader.execute("SELECT * FROM shop")
        migration.execute("SET lock_timeout = '10s'")
        migration.execute("ALTER TABLE shop ADD COLUMN more int")
        try:
            assert reader.execute("SELECT * FROM shop WHERE id = 1").fetchone() == (1, 10, None)
        finally:
            reader.rollback()
            migration.execute("ALTER TABLE shop DROP COLUMN more")


async def test_with_asyncpg(proxy: Proxy) -> None:
    """Its statements are prepared; it binds and runs unnamed portals."""
    client = await asyncpg.connect(host=proxy.host, port=proxy.port, user=USER, database="one")
    other = await asyncpg.connect(host=proxy.host, port=proxy.port, user=USER, database="one")
    try:
        async with client.transaction():
            for number in range(3):
                sql = "SELECT price FROM shop WHERE id = $1"
                assert await client.fetch(sql, number + 1) == [((number + 1) * 10,)]
                async with other.transaction():
                    assert await other.fetch(sql, 9) == [(90,)]
    finally:
        await client.close()
        await other.close()


async def test_a_portal_that_is_half_read_is_kept(proxy: Proxy) -> None:
    """As asyncpg's fetchval() leaves it: the client might go on with it."""
    client = await asyncpg.connect(host=proxy.host, port=proxy.port, user=USER, database="one")
    try:
        async with client.transaction():
            assert await client.fetchval("SELECT generate_series(1, 3)") == 1
            with console.connect(proxy) as admin:
                assert await asyncio.to_thread(held_by, admin) == "it fetches from a portal"
    finally:
        await client.close()


def held_by(admin: Connection) -> object:
    """Why the only transaction there is holds its backend, once it sleeps."""
    return wait_until(lambda: console.one(admin, "TRANSACTIONS")["held_by"], bool)


def test_prepared_statements_of_psycopg(proxy: Proxy) -> None:
    with proxy.connect("one", prepare_threshold=0) as one, proxy.connect("one") as other:
        for number in range(1, 6):
            for client in (one, other):
                sql = "SELECT price FROM shop WHERE id = %s"
                assert client.execute(sql, [number]).fetchone() == (number * 10,)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_django(proxy: Proxy, driver: str) -> None:
    site = Site(proxy, driver)
    proxy.kwargs("quick")
    try:
        site.act("migrate")
        site.act("readers_that_wait")
        site.act("migrate_back")
    finally:
        site.close()


# Speaking at the very moment.

RACERS: Final = 12
ROUNDS: Final = int(os.environ.get("TXPROXY_TEST_RACES", "60"))


async def test_speaking_at_the_moment_of_release(proxy: Proxy) -> None:
    """Each token is read back by the statement that asked for it, each row written once."""
    with direct(proxy.server, user=USER) as owner:
        owner.execute("CREATE TABLE races (id text, part int)")
    try:
        await asyncio.gather(*(race(proxy, random.Random(n)) for n in range(RACERS)))
        with direct(proxy.server, user=USER) as owner:
            rows = owner.execute("SELECT id, count(*) FROM races GROUP BY id").fetchall()
        assert len(rows) == RACERS * ROUNDS
        assert all(count == 2 for _, count in rows)
    finally:
        with direct(proxy.server, user=USER) as owner:
            owner.execute("DROP TABLE races")


async def race(proxy: Proxy, r: random.Random) -> None:
    client = await asyncpg.connect(host=proxy.host, port=proxy.port, user=USER, database=DATABASE)
    try:
        for _ in range(ROUNDS):
            mine = token()
            async with client.transaction():
                assert await client.fetch("SELECT $1::text", mine) == [(mine,)]
                # about when it is asked about, or commits
                await asyncio.sleep(r.uniform(0.04, 0.14))
                assert await client.fetch("SELECT $1::text", mine) == [(mine,)]
                await client.execute("INSERT INTO races VALUES ($1, 1)", mine)
                await asyncio.sleep(r.uniform(0, 0.02))
                await client.execute("INSERT INTO races VALUES ($1, 2)", mine)
    finally:
        await client.close()


# Server connections that die just then: asked about, committing, or begun again.

_ANY_OF_OURS: Final = """
SELECT pg_terminate_backend(pid) FROM (
    SELECT pid FROM pg_stat_activity WHERE usename = $1 AND application_name <> 'owner'
    ORDER BY (state = 'idle in transaction') = $2 DESC, random() LIMIT 1) AS victim
"""


@pytest.mark.timeout(1200)
async def test_a_backend_that_dies_at_the_moment_of_release(proxy: Proxy) -> None:
    """Nobody gets another's answer; what was committed is there once, what failed is not."""
    with direct(proxy.server, user=USER) as owner:
        owner.execute("CREATE TABLE deaths (id text)")
    racers = [Mortal(proxy, random.Random(n)) for n in range(RACERS)]
    try:
        killer = asyncio.create_task(kill_at_random(proxy.server, random.Random(0), racers))
        try:
            await asyncio.gather(*(each.live() for each in racers))
        finally:
            killer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await killer
        with direct(proxy.server, user=USER) as owner:
            rows = [row[0] for row in owner.execute("SELECT id FROM deaths").fetchall()]
        assert len(rows) == len(set(rows))
        for each in racers:
            assert each.committed <= set(rows)
            assert not each.failed & set(rows)
        assert sum(len(each.failed) for each in racers) > ROUNDS // 10, "nobody was hit"
        assert sum(len(each.committed) for each in racers) > ROUNDS
        assert await asyncio.to_thread(wait_until, lambda: works(proxy), bool)
    finally:
        with direct(proxy.server, user=USER) as owner:
            owner.execute("DROP TABLE deaths")


def works(proxy: Proxy) -> bool:
    """The last to die may not be gone yet."""
    with proxy.connect() as client, contextlib.suppress(psycopg.OperationalError):
        return client.execute("SELECT 'works'").fetchone() == ("works",)
    return False


async def kill_at_random(
    server: EmbeddedPostgres, r: random.Random, racers: Sequence["Mortal"]
) -> None:
    """On a machine so slow that nobody would live to commit, it waits for those who do."""
    kills = 0
    admin = await asyncpg.connect(
        host=server.host, port=server.port, user="postgres", database="postgres"
    )
    try:
        while True:
            await asyncio.sleep(r.uniform(0, 0.06))
            if kills < RACERS + 2 * sum(len(each.committed) for each in racers):
                await admin.fetch(_ANY_OF_OURS, USER, r.random() < 0.6)
                kills += 1
    finally:
        await admin.close()


class Mortal:
    """A client whose backends die. What it knows of its rows: committed, failed, or neither."""

    def __init__(self, proxy: Proxy, r: random.Random) -> None:
        self.proxy = proxy
        self.r = r
        self.committed: set[str] = set()
        self.failed: set[str] = set()

    async def live(self) -> None:
        proxy = self.proxy
        client = await asyncpg.connect(
            host=proxy.host, port=proxy.port, user=USER, database=DATABASE
        )
        try:
            for _ in range(ROUNDS // 2):
                mine = token()
                try:
                    await self.read_and_write(client, mine)
                except asyncpg.PostgresError as error:
                    if error.sqlstate != "08007":  # its COMMIT may have been carried out
                        self.failed.add(mine)
                    if client.is_in_transaction():
                        await client.execute("ROLLBACK")
                else:
                    self.committed.add(mine)
        finally:
            await client.close()

    async def read_and_write(self, client: "asyncpg.Connection[Any]", mine: str) -> None:
        r = self.r
        await client.execute("BEGIN")
        for _ in range(r.randrange(1, 3)):
            assert await client.fetch("SELECT $1::text", mine) == [(mine,)]
            await asyncio.sleep(r.uniform(0.04, 0.12))
        assert await client.fetch("SELECT $1::text", mine) == [(mine,)]
        await client.execute("INSERT INTO deaths VALUES ($1)", mine)
        await client.execute("COMMIT")


# Transactions at random, released whenever they sleep, next to others that write.

WRITERS: Final = 10
TRANSACTIONS: Final = 12


class Life:
    """One client: what it must see of its own row, and what it has added to what all share."""

    def __init__(self, client: "asyncpg.Connection[Any]", number: int) -> None:
        self.client = client
        self.number = number
        self.r = random.Random(number)
        self.own = 0
        self.added = 0
        self.seen = 0  # the least that the shared value can be: it never becomes less

    async def live(self) -> None:
        for _ in range(TRANSACTIONS):
            own, added, seen = self.own, self.added, self.seen
            await self.client.execute("BEGIN")
            for _ in range(self.r.randrange(1, 6)):
                await self.r.choice([self.read_own, self.read_shared, self.sleep, self.write])()
            if self.r.random() < 0.7:
                await self.client.execute("COMMIT")
            else:
                await self.client.execute("ROLLBACK")
                self.own, self.added, self.seen = own, added, seen

    async def value(self, row: int) -> int:
        [(value,)] = await self.client.fetch(f"SELECT price FROM shop WHERE id = {row}")
        assert isinstance(value, int)
        return value

    async def read_own(self) -> None:
        assert await self.value(self.number) == self.own

    async def read_shared(self) -> None:
        value = await self.value(100)
        assert value >= self.seen
        self.seen = value

    async def sleep(self) -> None:
        await asyncio.sleep(self.r.choice([0.0, 0.13]))

    async def write(self) -> None:
        if self.r.random() < 0.5:
            self.own += 1
            sql = f"UPDATE shop SET price = price + 1 WHERE id = {self.number}"
        else:
            self.added += 1
            self.seen += 1
            sql = "UPDATE shop SET price = price + 1 WHERE id = 100"
        assert await self.client.execute(sql) == "UPDATE 1"


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxied"])
async def test_what_transactions_see_is_read_committed(proxy: Proxy, proxied: bool) -> None:
    where = (proxy.host, proxy.port) if proxied else (proxy.server.host, proxy.server.port)
    with direct(proxy.server, user=USER) as owner:
        owner.execute("DELETE FROM shop WHERE id >= 100")
        numbers = ",".join(f"({number}, 0)" for number in range(100, 101 + WRITERS))
        owner.execute(f"INSERT INTO shop VALUES {numbers}".encode())
    clients = [
        await asyncpg.connect(host=where[0], port=where[1], user=USER, database=DATABASE)
        for _ in range(WRITERS)
    ]
    lives = [Life(client, 101 + number) for number, client in enumerate(clients)]
    try:
        await asyncio.gather(*(life.live() for life in lives))
    finally:
        for client in clients:
            await client.close()
    with direct(proxy.server, user=USER) as owner:
        rows = owner.execute("SELECT price FROM shop WHERE id >= 100 ORDER BY id").fetchall()
        owner.execute("DELETE FROM shop WHERE id >= 100")
    expected = [sum(life.added for life in lives), *(life.own for life in lives)]
    assert [price for (price,) in rows] == expected
