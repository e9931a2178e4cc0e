"""asyncpg through the proxy. With its statement cache it prepares whatever has parameters, and
what is prepared pins; without, many clients share a few backends.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import asyncpg
import pytest

from tests.system.proxy import Proxy, backends, pids, token, wait_until

CLIENTS: Final = 8
ROUNDS: Final = 15

Connection = Any  # asyncpg's stubs make it generic in what no caller knows


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {
        "databases": {
            "app": {},
            "wide": {"pool_size": CLIENTS},
            "quick": {"idle_transaction_timeout": "300ms", "idle_transaction_timeout_max": "1h"},
            "one": {"pool_size": 1, "idle_transaction_timeout": "300ms"},
        }
    }


@contextlib.asynccontextmanager
async def client(proxy: Proxy, dbname: str = "app", **more: Any) -> AsyncIterator[Connection]:
    """A connection, as a rule without a statement cache."""
    connection = await asyncpg.connect(
        **proxy.asyncpg(dbname, **{"statement_cache_size": 0, **more})
    )
    try:
        yield connection
    finally:
        if not connection.is_closed():
            await connection.close()


@pytest.fixture
async def table(proxy: Proxy) -> AsyncIterator[str]:
    name = "t_" + token().replace("-", "")
    async with client(proxy) as connection:
        await connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
        yield name
        await connection.execute(f"DROP TABLE {name}")


async def ask(connection: Connection) -> None:
    """Simple and extended, and each reply can only be that statement's."""
    expected = token()
    assert await connection.fetchval("SELECT $1::text", expected) == expected
    assert await connection.fetchval(f"SELECT '{expected}'") == expected


async def together(work: Callable[[int], Awaitable[None]], number: int = CLIENTS) -> None:
    await asyncio.gather(*(work(index) for index in range(number)))


async def count(connection: Connection, table: str) -> int:
    return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


async def test_autocommit(proxy: Proxy) -> None:
    async def work(index: int) -> None:
        async with client(proxy) as connection:
            for _ in range(ROUNDS):
                await ask(connection)

    await together(work, CLIENTS * 2)
    assert len(backends(proxy.server)) <= 2


async def test_transactions(proxy: Proxy, table: str) -> None:
    async def work(index: int) -> None:
        async with client(proxy) as connection:
            for number in range(ROUNDS):
                async with connection.transaction():
                    await ask(connection)
                    await connection.execute(
                        f"INSERT INTO {table} VALUES ($1, $2)", index * ROUNDS + number, token()
                    )
                    with contextlib.suppress(asyncpg.UniqueViolationError):
                        async with connection.transaction():
                            await connection.execute(
                                f"INSERT INTO {table} VALUES ($1)", index * ROUNDS + number
                            )
                    await ask(connection)

    await together(work)
    async with client(proxy) as connection:
        assert await count(connection, table) == CLIENTS * ROUNDS


async def test_with_the_statement_cache(proxy: Proxy) -> None:
    """Each client has a backend of its own from its first statement on; it is clean afterwards."""

    async def work(index: int) -> None:
        async with client(proxy, "wide", statement_cache_size=100) as connection:
            for _ in range(ROUNDS):
                await ask(connection)
                async with connection.transaction(isolation="serializable", readonly=True):
                    await ask(connection)

    for _ in range(2):
        await together(work)


async def test_errors(proxy: Proxy, table: str) -> None:
    async with client(proxy) as connection:
        with pytest.raises(asyncpg.UndefinedTableError) as caught:
            await connection.fetch("SELECT * FROM nowhere WHERE $1", True)
        assert caught.value.position == "15"
        await ask(connection)
        with pytest.raises(asyncpg.UniqueViolationError):
            async with connection.transaction():
                await connection.execute(f"INSERT INTO {table} VALUES (1), (1)")
        await ask(connection)
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await connection.execute("SELECT 1; SELEC 2")
        assert await count(connection, table) == 0


async def test_executemany(proxy: Proxy, table: str) -> None:
    rows = [(number, token()) for number in range(1000)]

    async def work(index: int) -> None:
        async with client(proxy) as connection:
            mine = rows[index::CLIENTS]
            await connection.executemany(f"INSERT INTO {table} VALUES ($1, $2)", mine)
            with pytest.raises(asyncpg.UniqueViolationError):
                await connection.executemany(f"INSERT INTO {table} VALUES ($1, $2)", mine)
            await ask(connection)

    await together(work)
    async with client(proxy) as connection:
        found = await connection.fetch(f"SELECT * FROM {table} ORDER BY id")
        assert [tuple(row) for row in found] == rows


async def test_copy(proxy: Proxy, table: str) -> None:
    async def work(index: int) -> None:
        rows = [(index * 1000 + number, token()) for number in range(1000)]
        async with client(proxy) as connection:
            await connection.copy_records_to_table(table, records=rows)
            received = bytearray()

            async def receive(data: bytes) -> None:
                received.extend(data)

            await connection.copy_from_query(
                f"SELECT * FROM {table} WHERE id / 1000 = {index} ORDER BY id", output=receive
            )
            assert received.decode() == "".join(f"{number}\t{v}\n" for number, v in rows)
            await ask(connection)
            with pytest.raises(asyncpg.UniqueViolationError):
                await connection.copy_records_to_table(table, records=rows)
            await ask(connection)
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.copy_records_to_table("nowhere", records=rows)
            await ask(connection)

    await together(work)
    async with client(proxy) as connection:
        assert await count(connection, table) == CLIENTS * 1000


async def test_a_copy_whose_source_breaks(proxy: Proxy, table: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"1\ta\n"
        raise OSError("broken")

    async with client(proxy) as connection:
        with pytest.raises(OSError, match="broken"):
            await connection.copy_to_table(table, source=broken())
        assert await count(connection, table) == 0
        await ask(connection)


@pytest.mark.parametrize("prefetch", [10, 1000])
async def test_cursors(proxy: Proxy, prefetch: int) -> None:
    async def work(index: int) -> None:
        async with client(proxy) as connection, connection.transaction():
            query = "SELECT generate_series(1, $1::int)"
            found = [row[0] async for row in connection.cursor(query, 95, prefetch=prefetch)]
            assert found == list(range(1, 96))
            cursor = await connection.cursor(query, 50)
            assert await cursor.forward(20) == 20
            assert [row[0] for row in await cursor.fetch(3)] == [21, 22, 23]
            await ask(connection)
            assert (await cursor.fetchrow())[0] == 24

    await together(work)


async def test_large_values(proxy: Proxy) -> None:
    async def work(index: int) -> None:
        async with client(proxy) as connection:
            large = token() * (50_000 * (index % 3 + 1))
            assert await connection.fetchval("SELECT $1::text", large) == large
            data = bytes(range(256)) * 20_000
            assert await connection.fetchval("SELECT $1::bytea", data) == data
            assert await connection.fetchval(f"SELECT '{large}'") == large
            await ask(connection)

    await together(work)


# Cancel and timeouts.


def runs(proxy: Proxy, mark: str) -> bool:
    return any(mark in each.query and each.state == "active" for each in backends(proxy.server))


async def test_cancel(proxy: Proxy) -> None:
    async def work(index: int) -> None:
        async with client(proxy) as connection:
            mark = token()
            task = asyncio.ensure_future(connection.execute(f"SELECT pg_sleep(60) /* {mark} */"))
            await asyncio.to_thread(wait_until, lambda: runs(proxy, mark), bool)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await ask(connection)
            async with connection.transaction():
                await ask(connection)

    await together(work, 5)


async def test_a_timeout_of_the_drivers(proxy: Proxy) -> None:
    async with client(proxy) as connection:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await connection.fetchval("SELECT pg_sleep(60), $1::int", 1, timeout=0.05)
            await ask(connection)
        with pytest.raises(TimeoutError):
            async with connection.transaction():
                await connection.execute("SELECT pg_sleep(60)", timeout=0.05)
        await ask(connection)


async def test_a_timeout_while_it_waits_for_a_backend(proxy: Proxy) -> None:
    async with client(proxy) as one, client(proxy) as two, client(proxy) as third:
        first, second = one.transaction(), two.transaction()
        await first.start()
        await second.start()
        await one.execute("SELECT 1")  # from here on each holds a backend
        await two.execute("SELECT 1")
        with pytest.raises(TimeoutError):
            await third.execute("SELECT 1", timeout=0.1)
        with pytest.raises(TimeoutError):
            await third.fetchval("SELECT $1::int", 1, timeout=0.1)
        await first.rollback()
        await ask(third)
        await second.rollback()
        await ask(third)


async def test_clients_that_are_terminated(proxy: Proxy) -> None:
    async with client(proxy) as connection:
        await ask(connection)
    before = pids(proxy.server)
    for _ in range(5):
        connection = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
        await connection.execute("BEGIN")
        await connection.execute("SELECT pg_advisory_xact_lock(1)")
        connection.terminate()
    async with client(proxy) as connection:
        await ask(connection)
    assert len(before | pids(proxy.server)) <= CLIENTS + 4


# prepare(): Parse, Describe and Flush, and then, maybe, nothing for a long time.


async def prepare(connection: Connection) -> Any:
    """asyncpg prepares an unnamed statement if it is asked to."""
    return await connection.prepare("SELECT $1::text", name="")


async def test_prepare_that_sleeps(proxy: Proxy) -> None:
    """Nobody notices: the backend goes to those who need it, the statement still runs."""
    async with client(proxy, "quick") as one, client(proxy, "quick") as two:
        statements = [await prepare(one), await prepare(two)]
        # both backends wait for the rest of a unit; these wait for them
        async with client(proxy, "quick") as third:
            for _ in range(5):
                await ask(third)
        for statement in statements:
            mine = token()
            assert await statement.fetchval(mine) == mine
        await ask(one)
        await ask(two)
    assert proxy.events("reaped") == []


async def test_prepare_that_sleeps_in_a_transaction(proxy: Proxy, table: str) -> None:
    async with client(proxy, "quick") as one, client(proxy, "quick") as two:
        statements = []
        for connection in (one, two):
            transaction = connection.transaction()
            # how long the machine takes for the INSERT is not to count
            await connection.execute("SET txproxy.idle_transaction_timeout = '1h'")
            await transaction.start()
            await connection.execute(f"INSERT INTO {table} VALUES (1) ON CONFLICT DO NOTHING")
            await connection.execute("RESET txproxy.idle_transaction_timeout")
            statements.append((connection, transaction, await prepare(connection)))
            if len(statements) == 1:
                # or the second would wait for the first one's row
                await asyncio.to_thread(proxy.wait_for, "reaped", 1)
        async with client(proxy, "quick") as third:
            for _ in range(5):
                await ask(third)
        await asyncio.to_thread(proxy.wait_for, "reaped", 2)
        for connection, transaction, statement in statements:
            with pytest.raises(asyncpg.IdleInTransactionSessionTimeoutError):
                await statement.fetchval("a")
            await transaction.rollback()
            await ask(connection)
    async with client(proxy) as connection:
        assert await count(connection, table) == 0
    assert len(proxy.events("reaped")) == 2


async def test_prepare_with_a_name(proxy: Proxy) -> None:
    async with client(proxy, "quick", statement_cache_size=100) as one:
        statement = await one.prepare("SELECT $1::text")
        async with client(proxy, "quick") as other:
            for _ in range(5):
                await ask(other)
                mine = token()
                assert await statement.fetchval(mine) == mine


async def test_prepares_at_once_by_many(proxy: Proxy) -> None:
    """One backend, and clients whose statements have the same name, which is none."""

    async def work(index: int) -> None:
        async with client(proxy, "one") as connection:
            for _ in range(3):
                mine = f"{index} {token()}"
                statement = await connection.prepare(f"SELECT '{mine}' || $1::text", name="")
                await ask_other(connection)
                assert await statement.fetchval("x") == mine + "x"

    async def ask_other(_connection: Connection) -> None:
        async with client(proxy, "app") as other:
            await ask(other)

    await together(work, 4)


# Pools, listeners, state.


async def test_a_pool_of_asyncpgs(proxy: Proxy) -> None:
    """Whatever is given back is reset: advisory unlocks, CLOSE ALL, UNLISTEN, RESET ALL."""
    pool = await asyncpg.create_pool(
        **proxy.asyncpg("wide", statement_cache_size=0), min_size=2, max_size=4
    )
    async with pool:

        async def work(index: int) -> None:
            for _ in range(5):
                async with pool.acquire() as connection:
                    await connection.execute("SET TimeZone = 'Asia/Tokyo'")
                    await ask(connection)
                async with pool.acquire() as connection:
                    assert await connection.fetchval("SHOW TimeZone") != "Asia/Tokyo"

        await together(work)


async def test_server_settings(proxy: Proxy) -> None:
    settings = {"application_name": "mine", "search_path": "pg_catalog", "jit": "off"}
    async with client(proxy, server_settings=settings) as one, client(proxy) as other:
        for _ in range(3):
            for name, wanted in settings.items():
                assert await one.fetchval(f"SHOW {name}") == wanted
                assert name == "jit" or await other.fetchval(f"SHOW {name}") != wanted
    pool = await asyncpg.create_pool(
        **proxy.asyncpg("wide", statement_cache_size=0, server_settings=settings),
        min_size=1,
        max_size=1,
    )
    async with pool:
        for _ in range(3):
            async with pool.acquire() as connection:
                for name, wanted in settings.items():
                    assert await connection.fetchval(f"SHOW {name}") == wanted


async def test_listeners(proxy: Proxy) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()

    def hear(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        heard.put_nowait(payload)

    async with client(proxy) as listener, client(proxy) as other:
        await listener.add_listener("channel", hear)
        expected = [token() for _ in range(5)]
        for payload in expected:
            await other.execute("SELECT pg_notify('channel', $1)", payload)
        async with asyncio.timeout(20):
            assert [await heard.get() for _ in expected] == expected
        await listener.remove_listener("channel", hear)
        await ask(listener)


async def test_types_that_are_introspected(proxy: Proxy) -> None:
    """asyncpg asks the server for types that it does not know, in the middle of a prepare()."""
    name = "e_" + token().replace("-", "")
    async with client(proxy) as connection:
        await connection.execute(f"CREATE TYPE {name} AS ENUM ('a', 'b')")
        await connection.execute(f"CREATE TYPE {name}_c AS (x int, y {name})")

    async def work(index: int) -> None:
        async with client(proxy) as connection:
            row = await connection.fetchrow(f"SELECT $1::{name}_c, $2::{name}[]", (1, "a"), ["b"])
            assert (tuple(row[0]), row[1]) == ((1, "a"), ["b"])
            await ask(connection)

    await together(work)
    async with client(proxy) as connection:
        await connection.execute(f"DROP TYPE {name}_c")
        await connection.execute(f"DROP TYPE {name}")
