"""Clients that speak at the very moment at which they are reaped, thousands of times.

Each transaction inserts its token twice, with a sleep around the limit between. Either both rows
are there and the COMMIT was acknowledged, or none is and the client was told. A statement of a
reaped transaction that slipped through would run in autocommit, and leave one row.

TXPROXY_TEST_RACES raises how often each client races.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final

import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, direct, pids, token
from tests.system.wire import AsyncWire, Message
from txproxy.cli.embedded import EmbeddedPostgres

CLIENTS: Final = 50
ROUNDS: Final = int(os.environ.get("TXPROXY_TEST_RACES", "50"))
LIMIT: Final = 0.1  # seconds; what is overdue is reaped at the janitor's next pass but one
TOLD: Final = frozenset(("25P03", "25P02"))


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    databases = {DATABASE: {"pool_size": CLIENTS}}
    with Proxy(
        postgres, databases=databases, proxy={"idle_transaction_timeout": f"{LIMIT}s"}
    ) as proxy:
        with direct(postgres) as admin:
            admin.execute("DROP TABLE IF EXISTS races")
            admin.execute("CREATE TABLE races (id text, part int)")
            admin.execute("GRANT ALL ON races TO PUBLIC")
        yield proxy
        with direct(postgres) as admin:
            admin.execute("DROP TABLE races")


def client_of(proxy: Proxy) -> AbstractAsyncContextManager[AsyncWire]:
    return AsyncWire.log_in(proxy.host, proxy.port, user=USER, database=DATABASE)


class Round:
    """One transaction: what was sent, what came back."""

    def __init__(self, client: AsyncWire, pause: float, shape: str) -> None:
        self.token = token()
        self.heard: list[Message] = []
        self._client = client
        self._pause = pause
        self._unit = wire.unit if shape == "extended" else wire.query
        self._together = shape == "together"

    def insert(self, part: int) -> bytes:
        """INSERT of the token, which is also what comes back."""
        sql = f"INSERT INTO races VALUES ('{self.token}', {part}) RETURNING '{self.token}-{part}'"
        return self._unit(sql)

    async def ask(self, data: bytes) -> None:
        """Send; what comes back is this statement's."""
        self.heard += await self._client.ask(data)

    async def play(self) -> str:
        """The transaction; returns how it ended: "committed" or "reaped"."""
        await self.ask(self._unit("BEGIN"))
        await self.ask(self.insert(1))
        await asyncio.sleep(self._pause)
        if self._together:
            self._client.send(self.insert(2) + self._unit("COMMIT"))
            self.heard += await self._client.until("Z")
            self.heard += await self._client.until("Z")
        else:
            await self.ask(self.insert(2))
            if random.random() < 0.2:
                await asyncio.sleep(self._pause)
            await self.ask(self._unit("COMMIT"))
        return self.judge()

    def judge(self) -> str:
        """What the client was told fits together."""
        assert self.heard[-1].status == "I", self.heard
        said = [row for [row] in wire.rows(self.heard)]
        states = [each.sqlstate for each in wire.errors(self.heard)]
        committed = any(each.kind == "C" and each.body == b"COMMIT\0" for each in self.heard)
        assert said == [f"{self.token}-1", f"{self.token}-2"][: len(said)], self.heard
        if committed:
            assert not states, self.heard
            assert len(said) == 2
            return "committed"
        assert states, self.heard
        assert states[0] == "25P03", self.heard
        assert TOLD.issuperset(states), self.heard
        return "reaped"


@pytest.mark.parametrize("shape", ["simple", "extended", "together"])
async def test_a_transaction_is_whole_or_not_at_all(proxy: Proxy, shape: str) -> None:
    committed: set[str] = set()
    ends: Counter[str] = Counter()

    async def work() -> None:
        async with client_of(proxy) as client:
            for _ in range(ROUNDS // 3 if shape != "simple" else ROUNDS):
                one = Round(client, random.uniform(0.5 * LIMIT, 2.5 * LIMIT), shape)
                end = await one.play()
                ends[end] += 1
                if end == "committed":
                    committed.add(one.token)
                expected = token()
                answer = await client.ask(wire.query(f"SELECT '{expected}'"))
                assert wire.rows(answer) == [[expected]]

    before: set[int] | None = None
    async with asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(work())
        await asyncio.sleep(LIMIT)
        before = pids(proxy.server)
    with direct(proxy.server) as admin:
        parts: dict[str, list[int]] = {}
        for name, part in admin.execute("SELECT id, part FROM races ORDER BY part"):
            parts.setdefault(name, []).append(part)
        admin.execute("TRUNCATE races")
    assert all(found == [1, 2] for found in parts.values()), parts
    assert set(parts) == committed
    assert min(ends["committed"], ends["reaped"]) > 0, ends
    # no backend was lost over it
    assert before <= pids(proxy.server)
    proxy.assert_clean()


async def test_a_transaction_of_many_statements(proxy: Proxy) -> None:
    """Pauses that are all just under or over the limit; what is refused stays refused."""

    async def work() -> None:
        async with client_of(proxy) as client:
            for _ in range(6):
                name = token()
                await client.ask(wire.query("BEGIN"))
                reaped = False
                for part in range(4):
                    sql = f"INSERT INTO races VALUES ('{name}', {part}) RETURNING '{name}-{part}'"
                    answer = await client.ask(wire.query(sql))
                    if reaped:
                        assert [each.sqlstate for each in wire.errors(answer)] == ["25P02"]
                    elif wire.errors(answer):
                        assert answer[0].sqlstate == "25P03"
                        reaped = True
                    else:
                        assert wire.rows(answer) == [[f"{name}-{part}"]]
                    await asyncio.sleep(random.uniform(0.9 * LIMIT, 2 * LIMIT))
                answer = await client.ask(wire.query("ROLLBACK"))
                assert [(each.kind, each.body) for each in answer] == [
                    ("C", b"ROLLBACK\0"),
                    ("Z", b"I"),
                ]

    async with asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(work())
    with direct(proxy.server) as admin:
        assert admin.execute("SELECT * FROM races").fetchall() == []
    proxy.assert_clean()


async def test_clients_that_leave_at_the_moment_of_reaping(proxy: Proxy) -> None:
    async def work() -> None:
        for _ in range(8):
            async with client_of(proxy) as client:
                await client.ask(wire.query("BEGIN"))
                await client.ask(wire.query(f"INSERT INTO races VALUES ('{token()}', 1)"))
                await asyncio.sleep(random.uniform(0.9 * LIMIT, 2.2 * LIMIT))
                if random.random() < 0.5:
                    client.send(wire.query(f"INSERT INTO races VALUES ('{token()}', 2)"))
                if random.random() < 0.5:
                    client.reset()
                else:
                    client.close()

    async with asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(work())
    proxy.assert_clean()
    with direct(proxy.server) as admin:
        assert admin.execute("SELECT * FROM races").fetchall() == []


async def test_cancels_at_the_moment_of_reaping(proxy: Proxy) -> None:
    """A cancel that comes late hits neither our ROLLBACK nor the backend's next client."""

    async def cancel(key: tuple[int, bytes]) -> None:
        await asyncio.to_thread(wire.cancel, (proxy.host, proxy.port), key)

    async def work() -> None:
        async with client_of(proxy) as client:
            for _ in range(6):
                await client.ask(wire.query("BEGIN"))
                await client.ask(wire.query("SELECT 1"))
                async with asyncio.TaskGroup() as both:
                    both.create_task(asyncio.sleep(random.uniform(LIMIT, 2 * LIMIT)))
                    await asyncio.sleep(random.uniform(LIMIT, 2 * LIMIT))
                    both.create_task(cancel(client.key))
                answer = await client.ask(wire.query("SELECT 1"))
                assert {each.sqlstate for each in wire.errors(answer)} <= {"25P03", "57014"}
                answer = await client.ask(wire.query("ROLLBACK"))
                assert answer[-1].status == "I"
                expected = token()
                answer = await client.ask(wire.query(f"SELECT '{expected}'"))
                assert wire.rows(answer) == [[expected]], answer

    async with asyncio.TaskGroup() as clients:
        for _ in range(20):
            clients.create_task(work())
    proxy.assert_clean()


@pytest.mark.parametrize("begin", [False, True], ids=["alone", "in a transaction"])
@pytest.mark.parametrize("flush", [False, True], ids=["not flushed", "flushed"])
async def test_a_client_that_sleeps_in_a_unit(proxy: Proxy, begin: bool, flush: bool) -> None:
    """The server holds its locks, and keeps its answers to itself until it is asked for them."""
    proxy.mark()
    async with client_of(proxy) as client:
        if begin:
            await client.ask(wire.query("BEGIN"))
        name = token()
        insert = (
            wire.parse(f"INSERT INTO races VALUES ('{name}', 1)") + wire.bind() + wire.execute()
        )
        client.send(insert + (wire.FLUSH if flush else b""))
        await asyncio.to_thread(proxy.wait_for, "reaped")
        answer = await client.ask(insert + wire.SYNC)
        assert [each.sqlstate for each in wire.errors(answer)] == ["25P03"]
        assert answer[-1].status == ("E" if begin else "I")
        await client.ask(wire.query("ROLLBACK"))
        expected = token()
        assert wire.rows(await client.ask(wire.query(f"SELECT '{expected}'"))) == [[expected]]
        with direct(proxy.server) as admin:
            assert admin.execute("SELECT * FROM races").fetchall() == []
