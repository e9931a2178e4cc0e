"""Cancel requests: they reach their own client's statement, running or queued, nobody else's."""

import asyncio
import contextlib
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Self

import asyncpg
import psycopg
import psycopg2
import pytest

from tests.system import wire
from tests.system.proxy import (
    DATABASE,
    USER,
    Proxy,
    ask,
    ask_async,
    backends,
    pids,
    token,
    wait_until,
)
from tests.system.wire import AsyncWire, Wire
from txproxy.cli.embedded import EmbeddedPostgres

POOL: Final = 4
SLEEP: Final = "SELECT pg_sleep(1000)"


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(
        postgres, databases={DATABASE: {"pool_size": POOL}, "one": {"pool_size": 1}}
    ) as proxy:
        yield proxy


def client_of(proxy: Proxy, database: str = DATABASE) -> Wire:
    return Wire.log_in((proxy.host, proxy.port), user=USER, database=database)


def async_client_of(proxy: Proxy) -> AbstractAsyncContextManager[AsyncWire]:
    return AsyncWire.log_in(proxy.host, proxy.port, user=USER, database=DATABASE)


def cancel(proxy: Proxy, client: Wire) -> None:
    wire.cancel((proxy.host, proxy.port), client.key)


def asleep(server: EmbeddedPostgres) -> int:
    """How many statements sleep."""
    return sum("pg_sleep" in each.query and each.state == "active" for each in backends(server))


@contextlib.contextmanager
def once_asleep(proxy: Proxy, act: Callable[[], object]) -> Iterator[None]:
    """Act in a thread, as soon as a statement sleeps that is run in the block."""

    def watch() -> None:
        wait_until(lambda: asleep(proxy.server), lambda count: count)
        act()

    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch)
        yield
        watching.result()


def test_psycopg(proxy: Proxy) -> None:
    with proxy.connect() as client:
        for act in (client.cancel, client.cancel_safe):
            with once_asleep(proxy, act), pytest.raises(psycopg.errors.QueryCanceled):
                client.execute(SLEEP)
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                client.execute("SELECT 1")
            client.rollback()
            ask(client)
            client.rollback()


def test_psycopg2(proxy: Proxy) -> None:
    with contextlib.closing(psycopg2.connect(**proxy.kwargs())) as client:
        cursor = client.cursor()
        with once_asleep(proxy, client.cancel), pytest.raises(psycopg2.errors.QueryCanceled):
            cursor.execute(SLEEP)
        client.rollback()
        ask(cursor)
        client.rollback()


async def test_asyncpg(proxy: Proxy) -> None:
    client = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
    with pytest.raises(TimeoutError):
        await client.fetch("SELECT pg_sleep($1)", 1000, timeout=0.2)
    expected = token()
    assert await client.fetchval(f"SELECT '{expected}'") == expected
    task = asyncio.create_task(client.execute(SLEEP))
    await asyncio.to_thread(wait_until, lambda: asleep(proxy.server), lambda count: count)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await client.fetchval(f"SELECT '{expected}'") == expected
    await client.close()


def test_psql(proxy: Proxy) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("psql is not installed")
    process = subprocess.Popen(
        [psql, "-X", "-A", "-t", proxy.dsn(), "-c", SLEEP],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: asleep(proxy.server), lambda count: count)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=wire.PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert "canceling statement due to user request" in said


@pytest.mark.parametrize("shape", ["simple", "extended", "flushed", "copy"])
def test_a_running_statement(proxy: Proxy, shape: str) -> None:
    with client_of(proxy) as client:
        client.send(
            {
                "simple": wire.query(SLEEP),
                "extended": wire.unit(SLEEP),
                "flushed": wire.parse(SLEEP) + wire.bind() + wire.execute() + wire.FLUSH,
                "copy": wire.query(f"COPY ({SLEEP}) TO STDOUT"),
            }[shape]
        )
        wait_until(lambda: asleep(proxy.server), lambda count: count)
        cancel(proxy, client)
        if shape == "flushed":
            client.until("E")
            client.send(wire.SYNC)
        else:
            assert wire.errors(client.until("E"))[0].sqlstate == "57014"
        assert client.until("Z")[-1].status == "I"
        ask_raw(client)


def test_a_copy_from_the_client(proxy: Proxy) -> None:
    """The server looks whether it was cancelled when data come."""
    with client_of(proxy) as client:
        client.ask(wire.query("BEGIN"))
        client.ask(wire.query("CREATE TABLE cancelled (t text)"))
        client.send(wire.query("COPY cancelled FROM STDIN"))
        client.until("G")
        cancel(proxy, client)
        while not select.select([client.socket], [], [], 0.02)[0]:
            client.send(wire.copy_data(b"row\n"))
        answer = client.until("Z")
        assert wire.errors(answer)[0].sqlstate == "57014"
        assert answer[-1].status == "E"
        client.send(wire.copy_data(b"late\n") + wire.COPY_DONE)
        assert client.ask(wire.query("ROLLBACK"))[-1].status == "I"
        ask_raw(client)


def ask_raw(client: Wire) -> None:
    expected = token()
    assert client.value(f"SELECT '{expected}'") == expected


@pytest.mark.parametrize("shape", [wire.query, wire.unit], ids=["simple", "extended"])
@pytest.mark.parametrize("begin", [False, True], ids=["alone", "begin"])
def test_a_queued_statement(proxy: Proxy, begin: bool, shape: Callable[[str], bytes]) -> None:
    """It is never run; those before and behind it in the queue are."""
    with contextlib.ExitStack() as stack:
        holder, first, cancelled, last = (
            stack.enter_context(client_of(proxy, "one")) for _ in range(4)
        )
        holder.ask(wire.query("BEGIN; SELECT 1"))
        first.send(wire.query("SELECT 'first'"))
        if begin:
            cancelled.ask(wire.query("BEGIN"))
        cancelled.send(shape("CREATE TABLE never (n int)"))
        last.send(wire.query("SELECT 'last'"))
        # all three are in the queue once a fourth one's login was answered
        client_of(proxy, "one").close()
        cancel(proxy, cancelled)
        answer = cancelled.until("Z")
        assert [each.sqlstate for each in wire.errors(answer)] == ["57014"]
        assert answer[-1].status == ("E" if begin else "I")
        holder.ask(wire.query("COMMIT"))
        assert wire.rows(first.until("Z")) == [["first"]]
        assert wire.rows(last.until("Z")) == [["last"]]
        if answer[-1].status != "I":
            cancelled.ask(wire.query("ROLLBACK"))
        assert cancelled.value("SELECT to_regclass('never') IS NULL") == "t"


def test_idle_clients_are_not_hurt(proxy: Proxy) -> None:
    """Nothing runs: nothing is cancelled, now or later."""
    with client_of(proxy) as client, client_of(proxy) as other:
        for _ in range(50):
            cancel(proxy, client)
            ask_raw(client)
            ask_raw(other)
        client.ask(wire.query("BEGIN"))
        for _ in range(50):
            cancel(proxy, client)
            ask_raw(client)
        assert client.ask(wire.query("COMMIT"))[-1].status == "I"


def test_wrong_keys_are_ignored(proxy: Proxy) -> None:
    with client_of(proxy) as client, client_of(proxy) as gone:
        gone_key = gone.key
        gone.close()
        client.send(wire.query("SELECT pg_sleep(0.3), 'done'"))
        number, secret = client.key
        for key in (
            (number, bytes(4)),
            (number, secret + b"x"),
            (number, secret[:3]),
            (number, b""),
            (number + 1, secret),
            (0, secret),
            (-1, secret),
            gone_key,
            *((pid, secret) for pid in pids(proxy.server)),
        ):
            wire.cancel((proxy.host, proxy.port), key)
        answer = client.until("Z")
        assert wire.rows(answer) == [["", "done"]]


def test_keys_are_the_clients_own(proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        keys = [stack.enter_context(client_of(proxy)).key for _ in range(50)]
    assert len({number for number, _ in keys}) == 50
    assert len({secret for _, secret in keys}) == 50
    assert not {number for number, _ in keys} & pids(proxy.server)


async def test_random_cancels_hit_nobody_else(proxy: Proxy) -> None:
    """Some clients are cancelled all the time, at any moment; the others never are."""
    stop = asyncio.Event()
    hits: list[int] = []

    async def send_cancel(key: tuple[int, bytes]) -> None:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        request = wire.packet(wire.CANCEL_REQUEST, struct.pack("!i", key[0]) + key[1])
        writer.write(request)
        if random.random() < 0.5:
            await reader.read()
        writer.close()

    async def is_cancelled(number: int) -> None:
        async with async_client_of(proxy) as client:
            shape = (wire.query, wire.unit)[number % 2]
            hit = 0
            for _ in range(40):
                expected = token()
                pause = random.choice((0, 0.001, 0.003, 0.02))
                client.send(shape(f"SELECT '{expected}' FROM pg_sleep({pause})"))
                for _ in range(random.randint(0, 3)):
                    await asyncio.sleep(random.uniform(0, 0.006))
                    await send_cancel(client.key)
                answer = await client.until("Z")
                if wire.errors(answer):
                    assert wire.errors(answer)[0].sqlstate == "57014"
                    hit += 1
                else:
                    assert wire.rows(answer) == [[expected]]
                assert answer[-1].status == "I"
            hits.append(hit)

    async def never_cancelled(number: int) -> int:
        async with async_client_of(proxy) as client:
            shape = (wire.query, wire.unit)[number % 2]
            count = 0
            while not stop.is_set():
                expected = token()
                pause = random.choice((0, 0, 0.001))
                answer = await client.ask(shape(f"SELECT '{expected}' FROM pg_sleep({pause})"))
                assert wire.rows(answer) == [[expected]], answer
                if number < 4:
                    for sql in ("BEGIN", "SELECT 1", "COMMIT"):
                        assert not wire.errors(await client.ask(shape(sql)))
                count += 1
            return count

    async with asyncio.TaskGroup() as clients:
        others = [clients.create_task(never_cancelled(number)) for number in range(10)]
        async with asyncio.TaskGroup() as cancelled:
            for number in range(10):
                cancelled.create_task(is_cancelled(number))
        stop.set()
    assert sum(hits) > 0
    assert all(other.result() > 0 for other in others)


async def test_drivers_that_time_out_all_the_time(proxy: Proxy) -> None:
    """A late cancel of one must not be the next one's."""

    async def times_out() -> None:
        client = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
        for _ in range(15):
            with contextlib.suppress(TimeoutError):
                await client.execute("SELECT pg_sleep(0.01)", timeout=random.uniform(0.005, 0.02))
            expected = token()
            assert await client.fetchval(f"SELECT '{expected}'") == expected
        await client.close()

    async def works() -> None:
        async with await psycopg.AsyncConnection.connect(
            **proxy.kwargs(prepare_threshold=None), autocommit=True
        ) as client:
            for _ in range(100):
                await ask_async(client)

    async with asyncio.TaskGroup() as clients:
        for _ in range(8):
            clients.create_task(times_out())
            clients.create_task(works())


def test_a_cancel_that_the_server_takes_late(postgres: EmbeddedPostgres) -> None:
    """Between its being sent and its being over, the backend is given to nobody.

    The relay holds the cancel request back; only the first connection passes at once.
    """
    held = threading.Event()
    ended = threading.Event()

    def relay(near: Any, far: Any) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                if data[4:8] == struct.pack("!i", wire.CANCEL_REQUEST):
                    held.set()
                    ended.wait(wire.PATIENCE)
                    time.sleep(0.3)  # in which another's statement could begin
                far.sendall(data)
        with contextlib.suppress(OSError):
            far.shutdown(1)

    with Bent(postgres.port, relay) as bent:
        databases = {DATABASE: {"port": bent.port, "pool_size": 1}}
        with (
            Proxy(postgres, databases=databases) as proxy,
            client_of(proxy) as client,
            client_of(proxy) as other,
        ):
            client.send(wire.query("SELECT pg_sleep(2), 'mine'"))
            wait_until(lambda: asleep(postgres), lambda count: count)
            cancel(proxy, client)
            assert held.wait(wire.PATIENCE)
            # it ends by itself before the cancel arrives
            assert wire.rows(client.until("Z")) == [["", "mine"]]
            ended.set()
            other.send(wire.query("SELECT pg_sleep(0.6), 'other'"))
            client.send(wire.query("SELECT 'again'"))
            assert wire.rows(other.until("Z")) == [["", "other"]]
            assert wire.rows(client.until("Z")) == [["again"]]


class Bent:
    """Passes connections on to a port; what goes up passes through a function of the test's."""

    def __init__(self, port: int, up: Callable[[Any, Any], None]) -> None:
        self._target = port
        self._up = up
        self._sockets: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(wire.PATIENCE)
        for each in (self._listener, *self._sockets):
            each.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            self._start(self._up, near, far)
            self._start(self._down, near, far)

    def _down(self, near: Any, far: Any) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                near.sendall(data)
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_WR)
