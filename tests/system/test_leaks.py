"""Many clients change their sessions at random; each always sees its own state, nobody another's.

A model (session_model.py) says what each must see, exactly: rows, errors, transaction status, and
the settings that it was told. The same clients are first let loose on the server itself: what fails
there is the model's mistake.

TXPROXY_TEST_SEED is another seed, TXPROXY_TEST_TURNS how much each client does.
"""

import asyncio
import contextlib
import os
import random
import re
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import asyncpg
import psycopg
import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, Table, complaints, direct, prepare, wait_until
from tests.system.session_model import (
    HERE,
    LITERALS,
    LOOK,
    NAMES,
    REPORTED,
    SCHEMAS,
    SHARED,
    Model,
    Reply,
    Rows,
    Statement,
    choose,
    own,
)
from tests.system.wire import AsyncWire, Closed, Message
from txproxy.cli.embedded import EmbeddedPostgres

SEED: Final = int(os.environ.get("TXPROXY_TEST_SEED", "1"))
TURNS: Final = int(os.environ.get("TXPROXY_TEST_TURNS", "60"))
BACKENDS: Final = 8
PINS: Final = 4  # sessions that may keep a backend at a time: the others need some, too
RAW_CLIENTS: Final = 200
DRIVER_CLIENTS: Final = 10  # of each driver
PATIENCE: Final = 300.0  # seconds for all of it
SHARED_KEYS: Final = range(900_000_001, 900_000_004)

OPTIONS: Final[list[Mapping[str, str]]] = [
    {},
    {},
    {"application_name": "by start-up", "TimeZone": "Etc/GMT+7"},
    {"options": "-c search_path=s2 -c work_mem=70kB -c my.setting=started"},
]
"""What clients ask for when they log in."""

RESETTING: Final = re.compile("reset|discard|default|time zone local", re.IGNORECASE)

STARTED: Final[list[Mapping[str, str]]] = [
    {},
    {},
    {"application_name": "by start-up", "TimeZone": "Etc/GMT+7"},
    {"search_path": "s2", "work_mem": "70kB", "my.setting": "started"},
]
"""What they then have."""


class World:
    """What all clients share: where they connect, and who may keep a backend or sleep."""

    def __init__(self, host: str, port: int, fresh: Mapping[str, str], proxied: bool) -> None:
        self.host = host
        self.port = port
        self.fresh = fresh
        self.proxied = proxied
        self.pins = PINS
        self.sleepers = 2
        self.owners: dict[int, object] = {}  # of the advisory locks that everybody tries for
        self.sessions = 0
        self.done: dict[str, int] = {}

    def count(self, what: str) -> None:
        """So that a run can be seen to have done something."""
        self.done[what] = self.done.get(what, 0) + 1

    def session(self) -> int:
        self.sessions += 1
        return self.sessions


class Speaker(Protocol):
    """A connection by whatever driver, in autocommit."""

    async def say(self, statement: Statement) -> tuple[str, Rows, str]:
        """SQLSTATE or "", rows, and transaction status or "" if the driver does not know it."""


class Client:
    """One session and its model."""

    def __init__(
        self, world: World, r: random.Random, number: int, start: Mapping[str, str]
    ) -> None:
        self.world = world
        self.r = r
        self.number = number
        self.first_lock = world.session() * 10
        self.model = Model({**world.fresh, **start})
        self.start = start
        self.has_slot = False
        self.history: deque[str] = deque(maxlen=60)

    def may_pin(self) -> bool:
        """Whether it has, or gets, a place among those who may keep their backend."""
        if not self.has_slot and self.world.pins:
            self.world.pins -= 1
            self.has_slot = True
        return self.has_slot

    def settle(self) -> None:
        """Give the place back when nothing keeps the backend."""
        if self.has_slot and not self.model.pinned:
            self.leave()

    def leave(self) -> None:
        self.world.pins += self.has_slot
        self.has_slot = False

    def choose(self, driver: bool = False) -> Statement:
        return choose(self.r, self.model, self.first_lock, self.may_pin(), driver)

    def check(self, what: str, seen: tuple[str, Rows, str], expected: Reply) -> None:
        sqlstate, rows, status = seen
        what = what.replace(LOOK.sql, "LOOK")
        self.history.append(f"{what} -> {sqlstate} {rows} {status}")
        self.world.count("answers")
        if not expected.takes(sqlstate, rows, status):
            self.fail(f"expected {expected}")

    def fail(self, problem: str) -> None:
        said = "\n".join(self.history)
        raise AssertionError(f"seed {SEED}, client {self.number}: {problem}\n{said}")


# Clients that speak the protocol by hand.


class Raw(Client):
    """A client on AsyncWire."""

    def __init__(
        self, world: World, r: random.Random, number: int, start: Mapping[str, str], w: AsyncWire
    ) -> None:
        super().__init__(world, r, number, start)
        self.wire = w
        self.told: dict[str, str] = {}

    async def act(self) -> bool:
        """Do something; whether the session goes on."""
        r = self.r
        actions: list[tuple[float, Callable[[], Any]]] = [
            (60, self.statements),
            (12, self.named),
            (4, self.unnamed_again),
            (3, self.several),
            (2, self.try_for_a_shared_lock),
            (0.5, self.be_cancelled),
            (0.5 if self.world.proxied else 0, self.be_reaped),
        ]
        if r.random() < 0.01:
            await self.die()
            return False
        [action] = r.choices(actions, [weight for weight, _ in actions])
        await action[1]()
        self.settle()
        return True

    async def exchange(self, *turns: tuple[str, bytes, Reply]) -> None:
        """Send all of it at once; each turn is answered up to ReadyForQuery."""
        self.wire.send(b"".join(data for _, data, _ in turns))
        for what, _, expected in turns:
            self.check(what, await self.answer(what), expected)
        self.check_told(turns[-1][0])

    async def answer(self, what: str) -> tuple[str, Rows, str]:
        try:
            said = await self.wire.until("Z")
        except (Closed, TimeoutError) as error:
            self.history.append(f"{what} -> {error!r}")
            self.fail("the connection has ended, or is silent")
            raise
        self.hear(said)
        failures = wire.errors(said)
        return failures[0].sqlstate if failures else "", wire.rows(said), said[-1].status

    def hear(self, said: list[Message]) -> None:
        for each in said:
            if each.kind == "S":
                name, value = each.body.decode().split("\0")[:2]
                self.told[name] = value
                self.history.append(f"told {name}={value}")

    def check_told(self, what: str) -> None:
        """The driver has heard of its settings, and of nobody else's.

        That a RESET goes back to what was asked for at the login it may hear with the next answer.
        """
        if self.start and RESETTING.search(what):
            return
        for name in REPORTED:
            if name in self.told and self.told[name] != self.model.get(name):
                self.fail(f"told {name}={self.told[name]}, has {self.model.get(name)}")

    # A statement or several.

    async def statements(self) -> None:
        turns: list[tuple[str, bytes, Reply]] = []
        for _ in range(self.r.choice([1, 1, 1, 2, 4])):
            turns += self.turns(self.choose())
        await self.exchange(*turns)

    def turns(self, statement: Statement) -> list[tuple[str, bytes, Reply]]:
        """One of the ways of saying it."""
        model = self.model
        sql = statement.sql
        bind = wire.bind(*statement.values) + wire.execute() + wire.SYNC
        ways = ["query"] * 4 * (not statement.values) + ["unit"] * 3
        if statement.parses and not model.failed:
            ways += ["named", "apart"]
        way = self.r.choice(ways)
        what = f"{way}: {sql} {statement.values or ''}"
        if way == "query":
            self.forget_unnamed(known=True)
            return [(what, wire.query(sql), model.run(statement))]
        if way == "unit":
            self.forget_unnamed(known=False)
            return [(what, wire.parse(sql) + bind, model.run(statement))]
        if way == "apart":
            turns = [(f"parse: {sql}", wire.parse(sql) + wire.SYNC, model.parse("", statement))]
            turns.append((what, bind, model.execute("")))
            model.unnamed_known = not statement.control
            return turns
        name = "once"
        bind = wire.bind(*statement.values, name=name) + wire.execute() + wire.SYNC
        parse = wire.parse(sql, name) + wire.SYNC
        return [
            (f"parse {name}: {sql}", parse, model.parse(name, statement)),
            (what, bind, model.execute(name)),
            (f"close {name}", wire.close(name) + wire.SYNC, model.close(name)),
        ]

    def forget_unnamed(self, known: bool) -> None:
        self.model.unnamed = None
        self.model.unnamed_known = known

    async def several(self) -> None:
        """A string of several statements, which is one transaction."""
        statements: list[Statement] = []
        while len(statements) < 3:
            found = self.choose()
            # RESET goes back to what was asked for at the login only when the string has ended
            resets = self.start and RESETTING.search(found.sql)
            if not (found.control or found.values or found.once or resets):
                statements.append(found)
        sql = "; ".join(
            each.sql + "\n" for each in statements
        )  # a comment at an end must not hide the rest
        self.forget_unnamed(known=True)
        await self.exchange((f"query: {sql}", wire.query(sql), self.model.run(*statements)))

    # Prepared statements of the protocol.

    async def named(self) -> None:
        r = self.r
        model = self.model
        turns: list[tuple[str, bytes, Reply]] = []
        for _ in range(r.choice([1, 1, 2, 3])):
            name = r.choice(NAMES)
            statement = model.prepared.get(name)
            choice = r.random()
            if statement is None and choice < 0.7:
                made = own(r) if r.random() < 0.5 else r.choice([*SHARED, self.harmless()])
                data = wire.parse(made.sql, name) + wire.SYNC
                turns.append((f"parse {name}: {made.sql}", data, model.parse(name, made)))
            elif choice < 0.1:
                data = wire.parse("SELECT 'not this'", name) + wire.SYNC
                turns.append((f"parse {name} again", data, model.parse(name, own(r))))
            elif choice < 0.25:
                data = wire.close(name) + wire.SYNC
                turns.append((f"close {name}", data, model.close(name)))
            else:
                values = statement.values if statement else ()
                data = wire.bind(*values, name=name) + wire.execute() + wire.SYNC
                said = statement.sql if statement else ""
                turns.append((f"bind {name}: {said}", data, model.execute(name)))
        await self.exchange(*turns)

    def harmless(self) -> Statement:
        """Something that can be said again and again: it needs no place, and ends nothing."""
        while True:
            found = choose(self.r, self.model, self.first_lock, may_pin=False, driver=True)
            if found.parses and not found.control:
                return found

    async def unnamed_again(self) -> None:
        """Bind what was parsed in an earlier unit, or is not there."""
        model = self.model
        if not model.unnamed_known:
            return
        if model.unnamed is not None and model.unnamed.pins and not self.may_pin():
            return
        values = model.unnamed.values if model.unnamed else ()
        data = wire.bind(*values) + wire.execute() + wire.SYNC
        said = model.unnamed.sql if model.unnamed else ""
        await self.exchange((f"bind the unnamed one: {said}", data, model.execute("")))

    # What the client does not do alone.

    async def try_for_a_shared_lock(self) -> None:
        """Whoever gets it has it alone."""
        owners = self.world.owners
        key = self.r.choice(SHARED_KEYS)
        if self.model.status != "I" or not self.may_pin():
            return
        self.forget_unnamed(known=True)
        sql = f"SELECT pg_try_advisory_lock({key})::text"
        self.wire.send(wire.query(sql))
        sqlstate, rows, status = await self.answer(sql)
        self.history.append(f"{sql} -> {sqlstate} {rows}")
        if rows == [["true"]]:
            if owners.get(key) is not None:
                self.fail(f"two sessions have the lock {key}")
            owners[key] = self
            await self.exchange(("bring it on", wire.query("SELECT 1"), Reply("", [["1"]], "I")))
            del owners[key]
            sql = f"SELECT pg_advisory_unlock({key})::text"
            await self.exchange((sql, wire.query(sql), Reply("", [["true"]], "I")))
        elif rows != [["false"]] or sqlstate or status != "I":
            self.fail("neither got nor refused")

    async def be_cancelled(self) -> None:
        """Sleep, and be woken; what the statement did before is undone."""
        if not self.world.sleepers:
            return
        self.forget_unnamed(known=False)
        expected = self.model.refuse("25P02" if self.model.failed else "57014")
        sql = "SET work_mem = '99kB'; SELECT pg_sleep(100)"
        self.wire.send(wire.query(sql))
        self.world.sleepers -= 1
        answer = asyncio.ensure_future(self.answer(sql))
        try:
            while not answer.done():
                await cancel(self.world, self.wire.key)
                await asyncio.wait([answer], timeout=0.1)
        finally:
            self.world.sleepers += 1
            if not answer.done():
                answer.cancel()
        self.check(sql, await answer, expected)
        self.check_told(sql)
        self.world.count("cancelled")

    async def be_reaped(self) -> None:
        """Sleep in a transaction until it is rolled back."""
        if self.model.status != "T" or not self.world.sleepers:
            return
        self.forget_unnamed(known=False)
        await self.ours("SET txproxy.idle_transaction_timeout = '50ms'")
        sql = "SELECT 'is it still there?'"
        self.world.sleepers -= 1
        try:
            while True:
                await asyncio.sleep(0.2)
                self.wire.send(wire.query(sql))
                sqlstate, _, status = await self.answer(sql)
                self.history.append(f"{sql} -> {sqlstate} {status}")
                if sqlstate:
                    break
        finally:
            self.world.sleepers += 1
        del self.model.marks[1:]
        self.model.fail()
        if (sqlstate, status) != ("25P03", "E"):
            self.fail("not as one is reaped")
        self.check_told(sql)
        rollback = Statement("ROLLBACK", rolled_back, control=True, ends=True)
        await self.exchange(("ROLLBACK", wire.query("ROLLBACK"), self.model.run(rollback)))
        await self.ours("RESET txproxy.idle_transaction_timeout")
        self.world.count("reaped")

    async def ours(self, sql: str) -> None:
        """A setting of the proxy's."""
        await self.exchange((sql, wire.query(sql), self.model.reply()))

    async def die(self) -> None:
        """Be killed: idle, in the middle of a statement, or in the middle of saying it."""
        statement = self.choose()
        data = wire.parse(statement.sql) + wire.bind(*statement.values) + wire.execute() + wire.SYNC
        self.wire.send(data[: self.r.choice([0, len(data) // 2, len(data)])])
        await asyncio.sleep(self.r.choice([0, 0, 0.002, 0.01]))
        # that it is a reset, and not a goodbye
        linger = struct.pack("ii", 1, 0)
        self.wire.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self.wire.reset()
        self.world.count("killed")


def rolled_back(model: Model) -> Rows:
    model.rollback()
    return []


async def cancel(world: World, key: tuple[int, bytes]) -> None:
    """A CancelRequest, and wait until it was read."""
    reader, writer = await asyncio.open_connection(world.host, world.port)
    writer.write(wire.packet(wire.CANCEL_REQUEST, struct.pack("!i", key[0]) + key[1]))
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    writer.close()


async def live_raw(world: World, number: int, turns: int) -> None:
    """One session after another."""
    r = random.Random(f"{SEED}/raw/{number}")
    while turns > 0:
        kind = r.randrange(len(OPTIONS))
        async with AsyncWire.log_in(
            world.host, world.port, USER, DATABASE, **OPTIONS[kind]
        ) as connection:
            client = Raw(world, r, number, STARTED[kind], connection)
            try:
                await client.exchange(("LOOK", wire.query(LOOK.sql), client.model.run(LOOK)))
                length = r.randrange(5, 40)
                while turns > 0 and length > 0 and await client.act():
                    turns -= 1
                    length -= 1
                if turns <= 0 or length <= 0:
                    connection.send(wire.TERMINATE)
            finally:
                client.leave()


# Clients that are drivers.


class AsyncpgSpeaker:
    """asyncpg, with its cache of prepared statements."""

    def __init__(self, connection: "asyncpg.Connection[Any]", r: random.Random) -> None:
        self.connection = connection
        self.r = r

    async def say(self, statement: Statement) -> tuple[str, Rows, str]:
        connection = self.connection
        sqlstate = ""
        rows: Rows = []
        try:
            if statement.control and self.r.random() < 0.5:
                await connection.execute(statement.sql)
            else:
                found = await connection.fetch(statement.sql, *statement.values)
                rows = [list(record.values()) for record in found]
        except asyncpg.PostgresError as error:
            sqlstate = str(error.sqlstate)
        return sqlstate, rows, "" if connection.is_in_transaction() else "I"


class PsycopgSpeaker:
    """psycopg 3, which prepares every statement."""

    STATUS: Final = {
        psycopg.pq.TransactionStatus.IDLE: "I",
        psycopg.pq.TransactionStatus.INTRANS: "T",
        psycopg.pq.TransactionStatus.INERROR: "E",
    }

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection

    async def say(self, statement: Statement) -> tuple[str, Rows, str]:
        sqlstate = ""
        rows: Rows = []
        try:
            async with self.connection.cursor() as cursor:
                await cursor.execute(statement.sql.encode(), statement.values)
                if cursor.description is not None:
                    rows = [list(row) for row in await cursor.fetchall()]
        except psycopg.Error as error:
            sqlstate = error.sqlstate or repr(error)
        return sqlstate, rows, self.STATUS[self.connection.info.transaction_status]


@contextlib.asynccontextmanager
async def asyncpg_speaker(host: str, port: int, r: random.Random) -> AsyncIterator[Speaker]:
    connection = await asyncpg.connect(host=host, port=port, user=USER, database=DATABASE)
    try:
        yield AsyncpgSpeaker(connection, r)
    finally:
        if r.random() < 0.5:
            connection.terminate()
        else:
            await connection.close()


@contextlib.asynccontextmanager
async def psycopg_speaker(host: str, port: int, _r: random.Random) -> AsyncIterator[Speaker]:
    async with await psycopg.AsyncConnection.connect(
        host=host,
        port=port,
        user=USER,
        dbname=DATABASE,
        autocommit=True,
        prepare_threshold=0,
        cursor_factory=psycopg.AsyncRawCursor,
    ) as connection:
        yield PsycopgSpeaker(connection)


DRIVERS: Final = {"asyncpg": asyncpg_speaker, "psycopg": psycopg_speaker}


async def live_by_driver(world: World, driver: str, number: int, turns: int) -> None:
    r = random.Random(f"{SEED}/{driver}/{number}")
    while turns > 0:
        async with DRIVERS[driver](world.host, world.port, r) as speaker:
            client = Client(world, r, number, {})
            try:
                for _ in range(min(turns, r.randrange(5, 40))):
                    turns -= 1
                    statement = client.choose(driver=True)
                    expected = client.model.run(statement)
                    what = f"{driver}: {statement.sql} {statement.values or ''}"
                    client.check(what, await speaker.say(statement), expected)
                    client.settle()
            except Exception as error:
                error.add_note("\n".join([*client.history, f"then {what}"]))
                raise
            finally:
                client.leave()


# The run.


async def fresh_settings(server: EmbeddedPostgres) -> dict[str, str]:
    """What a session has that asks for nothing."""
    async with AsyncWire.log_in(server.host, server.port, USER, DATABASE) as connection:
        [row] = wire.rows(await connection.ask(wire.query(LOOK.sql)))
    return {name: value or "" for name, value in zip(LITERALS, row, strict=False)}


async def run(world: World, raw: int, drivers: int, turns: int) -> None:
    async with asyncio.timeout(PATIENCE * max(1, turns / 60)), asyncio.TaskGroup() as group:
        for number in range(raw):
            group.create_task(live_raw(world, number, turns))
        for driver in DRIVERS:
            for number in range(drivers):
                group.create_task(live_by_driver(world, driver, number, turns))
    assert world.done["answers"] > turns * raw
    assert world.done["cancelled"] > 0
    assert world.done["killed"] > 0


@pytest.fixture
def schemas(server: EmbeddedPostgres) -> Iterator[None]:
    """A table `here` in each."""
    prepare(server)
    with direct(server) as connection:
        for schema in SCHEMAS:
            for sql in (
                f"CREATE SCHEMA IF NOT EXISTS {schema}",
                f"GRANT USAGE ON SCHEMA {schema} TO PUBLIC",
                f"CREATE TABLE {schema}.here AS SELECT '{schema}'::text AS place",
                f"GRANT ALL ON {schema}.here TO PUBLIC",
            ):
                connection.execute(sql.encode())
        yield
        for schema in SCHEMAS:
            connection.execute(f"DROP TABLE {schema}.here".encode())
            if schema != "public":
                connection.execute(f"DROP SCHEMA {schema}".encode())


@pytest.mark.timeout(PATIENCE * 2)
@pytest.mark.usefixtures("schemas")
async def test_the_model_is_that_of_a_direct_connection(server: EmbeddedPostgres) -> None:
    world = World(server.host, server.port, await fresh_settings(server), proxied=False)
    await run(world, raw=30, drivers=3, turns=TURNS)
    left = await asyncio.to_thread(wait_until, lambda: complaints(server), lambda found: not found)
    assert not left


@pytest.mark.timeout(max(PATIENCE * 2, PATIENCE * TURNS / 30))
@pytest.mark.usefixtures("schemas")
async def test_each_client_has_its_own_session(server: EmbeddedPostgres) -> None:
    fresh = await fresh_settings(server)
    settings: Table = {
        "early_release": "auto",
        "early_release_after": "20ms",
        "default_pool_size": BACKENDS,
        "query_wait_timeout": "60s",
        "log_level": "info",
    }
    with Proxy(server, proxy=settings) as proxy:
        world = World(proxy.host, proxy.port, fresh, proxied=True)
        await run(world, RAW_CLIENTS, DRIVER_CLIENTS, TURNS)
        assert world.done["reaped"] > 0
        await assert_nothing_is_left(proxy, fresh)


# What is left when all have gone.

CHANGED: Final = (
    "SELECT name, setting FROM pg_settings WHERE source = 'session' AND setting <> reset_val"
)


async def assert_nothing_is_left(proxy: Proxy, fresh: Mapping[str, str]) -> None:
    """Hold every backend at once, and look: from inside, and as the server's administrator."""
    server = proxy.server
    left = await asyncio.to_thread(wait_until, lambda: complaints(server), lambda found: not found)
    assert not left
    pids: set[str | None] = set()
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(BACKENDS):
            client = await stack.enter_async_context(
                AsyncWire.log_in(proxy.host, proxy.port, USER, DATABASE)
            )
            clients.append(client)
            await client.ask(wire.query("BEGIN"))
            seen = wire.rows(await client.ask(wire.query(LOOK.sql)))
            assert seen == Model(fresh).run(LOOK).rows
            assert wire.rows(await client.ask(wire.query(CHANGED))) == []
            assert wire.rows(await client.ask(wire.query(HERE.sql))) == [["public"]]
            [[pid]] = wire.rows(await client.ask(wire.query("SELECT pg_backend_pid()::text")))
            pids.add(pid)
        for client in clients:
            await client.ask(wire.query("ROLLBACK"))
    assert len(pids) == BACKENDS
