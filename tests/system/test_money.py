"""Transfers between accounts, by clients that sleep, vanish, are cancelled and are killed.

Each transfer moves an amount between two accounts and writes a row with a name of its own. At the
end each account has what its rows say, the total is what it was, each acknowledged transfer is
there, and none is there twice. Nobody kills a backend, and none is lost.

TXPROXY_TEST_CRASHES raises how often processes are killed.
"""

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, direct, pids, token
from tests.system.wire import AsyncWire
from txproxy.cli.embedded import EmbeddedPostgres

ACCOUNTS: Final = 20
INITIAL: Final = 1000
POOL: Final = 4
LIMIT: Final = 0.25  # seconds that a client may sleep in its transaction
TOO_LONG: Final = 4 * LIMIT
TRANSFERS: Final = 15  # of each client
KILLS: Final = int(os.environ.get("TXPROXY_TEST_CRASHES", "16"))

MOVE: Final = "UPDATE accounts SET balance = balance + {amount} WHERE id = {account}"
NOTE: Final = "INSERT INTO transfers VALUES ('{name}', {source}, {target}, {amount})"


def client_of(proxy: Proxy) -> AbstractAsyncContextManager[AsyncWire]:
    return AsyncWire.log_in(proxy.host, proxy.port, user=USER, database=DATABASE)


class Transfer:
    """The statements of one transfer, accounts in order, so that there are no deadlocks."""

    def __init__(self) -> None:
        self.name = token()
        source, target = random.sample(range(ACCOUNTS), 2)
        amount = random.randint(1, 100)
        moves = {source: -amount, target: amount}
        self.statements = [
            *(MOVE.format(account=each, amount=moves[each]) for each in sorted(moves)),
            NOTE.format(name=self.name, source=source, target=target, amount=amount),
        ]


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(
        postgres,
        databases={DATABASE: {"pool_size": POOL}},
        proxy={"idle_transaction_timeout": f"{LIMIT}s"},
    ) as proxy:
        yield proxy


@pytest.fixture
def bank(proxy: Proxy) -> Iterator[set[str]]:
    """The names of the transfers that were acknowledged, to be filled in; then the accounts are
    balanced against them.
    """
    with direct(proxy.server) as admin:
        admin.execute("DROP TABLE IF EXISTS accounts, transfers")
        admin.execute("CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)")
        admin.execute(
            "INSERT INTO accounts SELECT i, %s FROM generate_series(0, %s - 1) AS i",
            [INITIAL, ACCOUNTS],
        )
        # no key: a transfer that is made twice must be seen
        admin.execute("CREATE TABLE transfers (name text, source int, target int, amount int)")
        admin.execute("GRANT ALL ON accounts, transfers TO PUBLIC")
    before = open_all(proxy)
    acknowledged: set[str] = set()
    yield acknowledged
    proxy.assert_clean()
    assert pids(proxy.server) == before
    with direct(proxy.server) as admin:
        [[total]] = admin.execute("SELECT sum(balance) FROM accounts").fetchall()
        assert total == ACCOUNTS * INITIAL
        names = [name for (name,) in admin.execute("SELECT name FROM transfers")]
        assert len(names) == len(set(names))
        assert acknowledged <= set(names)
        assert acknowledged
        wrong = admin.execute(
            "SELECT id, balance, moved FROM accounts, LATERAL (SELECT"
            " coalesce(sum(CASE id WHEN target THEN amount ELSE -amount END), 0) AS moved"
            " FROM transfers WHERE id IN (source, target)) AS m WHERE balance <> %s + moved",
            [INITIAL],
        ).fetchall()
        assert wrong == []
        admin.execute("DROP TABLE accounts, transfers")


def open_all(proxy: Proxy) -> set[int]:
    """Have the pool open all of its backends; their process ids."""
    with contextlib.ExitStack() as stack:
        for _ in range(POOL):
            stack.enter_context(proxy.connect()).execute("SELECT 1")
    found = pids(proxy.server)
    assert len(found) == POOL
    return found


def naps() -> float:
    """How long to sleep in the middle: mostly not at all, sometimes past the limit."""
    return random.choices([0, 0.01, LIMIT, TOO_LONG], [80, 12, 4, 4])[0]


async def with_psycopg(proxy: Proxy, bank: set[str], count: int) -> None:
    connection = await psycopg.AsyncConnection.connect(
        **proxy.kwargs(prepare_threshold=None), autocommit=True
    )
    async with connection:
        for _ in range(count):
            transfer = Transfer()
            canceller = asyncio.create_task(cancel_sometimes(connection))
            try:
                async with connection.transaction():
                    for statement in transfer.statements:
                        await connection.execute(statement.encode())
                        await asyncio.sleep(naps())
                bank.add(transfer.name)
            except psycopg.Error as error:
                if error.sqlstate not in {"25P03", "25P02", "57014"}:
                    raise
            await canceller


async def cancel_sometimes(connection: psycopg.AsyncConnection[Any]) -> None:
    if random.random() < 0.2:
        await asyncio.sleep(random.uniform(0, 0.05))
        await connection.cancel_safe(timeout=wire.PATIENCE)


async def with_asyncpg(proxy: Proxy, bank: set[str], count: int) -> None:
    connection = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
    try:
        for _ in range(count):
            transfer = Transfer()
            try:
                async with connection.transaction():
                    for statement in transfer.statements:
                        # with arguments: the extended protocol
                        if random.random() < 0.5:
                            await connection.execute(f"{statement} --", timeout=wire.PATIENCE)
                        else:
                            await connection.fetch(statement)
                        await asyncio.sleep(naps())
                bank.add(transfer.name)
            except asyncpg.PostgresError as error:
                if error.sqlstate not in {"25P03", "25P02"}:
                    raise
    finally:
        await connection.close()


def with_psycopg2(proxy: Proxy, bank: set[str], count: int) -> None:
    with contextlib.closing(psycopg2.connect(**proxy.kwargs())) as connection:
        cursor = connection.cursor()
        sleeper = threading.Event()
        for _ in range(count):
            transfer = Transfer()
            try:
                for statement in transfer.statements:
                    cursor.execute(statement)
                    sleeper.wait(naps())
                connection.commit()
                bank.add(transfer.name)
            except psycopg2.Error as error:
                if error.pgcode not in {"25P03", "25P02"}:
                    raise
                connection.rollback()


async def vanishing(proxy: Proxy, bank: set[str], count: int) -> None:
    """Leaves behind any of its messages, or in one, without waiting for the answers."""
    for _ in range(count):
        transfer = Transfer()
        async with client_of(proxy) as client:
            shape = random.choice((wire.query, wire.unit))
            units = [shape(each) for each in ("BEGIN", *transfer.statements, "COMMIT")]
            cut = random.randint(0, len(units))
            heard: list[wire.Message] = []
            with contextlib.suppress(wire.Closed):
                for each in units[:cut]:
                    client.send(each)
                    if random.random() < 0.7:
                        heard += await client.until("Z")
                    await asyncio.sleep(random.choice((0, 0, 0, 0.01, LIMIT)))
            if cut < len(units):
                client.send(units[cut][: random.randrange(len(units[cut]))])
            if any(each.body == b"COMMIT\0" for each in heard):
                bank.add(transfer.name)
            if random.random() < 0.5:
                client.reset()
            else:
                client.close()


async def test_the_total_never_changes(proxy: Proxy, bank: set[str]) -> None:
    async with asyncio.TaskGroup() as clients:
        for _ in range(10):
            clients.create_task(with_psycopg(proxy, bank, TRANSFERS))
            clients.create_task(with_asyncpg(proxy, bank, TRANSFERS))
            clients.create_task(vanishing(proxy, bank, TRANSFERS))
        with ThreadPoolExecutor(6) as threads:
            loop = asyncio.get_running_loop()
            await asyncio.gather(
                *(
                    loop.run_in_executor(threads, with_psycopg2, proxy, bank, TRANSFERS)
                    for _ in range(6)
                )
            )
    assert proxy.events("reaped")


KILLED: Final = """
import random, sys
sys.path.insert(0, sys.argv[1])
import psycopg
from tests.system.test_money import Transfer
with psycopg.connect(sys.argv[2], prepare_threshold=None) as connection:
    while True:
        transfer = Transfer()
        for statement in transfer.statements:
            connection.execute(statement.encode())
        connection.commit()
        print(transfer.name, flush=True)
"""


def test_clients_that_are_killed(proxy: Proxy, bank: set[str]) -> None:
    """kill -9, at any moment: what they had said was acknowledged is there."""
    sleeper = threading.Event()

    def run_and_kill(_: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), proxy.dsn()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with process:
            try:
                first = process.stdout.readline()
                assert first, process.stderr.read()
                sleeper.wait(random.uniform(0, 0.1))
            finally:
                process.kill()
            said = (first + process.stdout.read()).splitlines(keepends=True)
        # of the last line, half may have been written
        bank.update(line.strip() for line in said if line.endswith("\n"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run_and_kill, range(KILLS)))
