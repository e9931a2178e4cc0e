"""Deferred BEGIN on real servers: what drivers see, a server that refuses it, and the race between
it, a reaper, a cancel and a backend that dies.

TXPROXY_TEST_RACES raises how often each client races.
"""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, backends, direct, prepare, token, wait_until
from tests.system.wire import AsyncWire, Message
from txproxy.cli.embedded import EmbeddedPostgres

CLIENTS: Final = 24
ROUNDS: Final = int(os.environ.get("TXPROXY_TEST_RACES", "60"))
LIMIT: Final = 0.1  # seconds
SAID: Final = "CSVMDHP"
"""The fields of an error that must agree."""


def test_a_client_in_begun_holds_no_backend(proxy: Proxy) -> None:
    """More clients in BEGIN than backends, none of which is in a transaction."""
    clients = [proxy.connect() for _ in range(5)]
    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.enter_context(contextlib.closing(client))
            client.autocommit = False
            client.execute("SELECT 1")
            client.commit()
            # psycopg sends its BEGIN with the first statement: as a message of its own
            client.pgconn.exec_(b"BEGIN")
        assert not any(each.in_transaction for each in backends(proxy.server))
        for client in clients:
            assert client.pgconn.exec_(b"COMMIT").command_status == b"COMMIT"


def test_transaction_commands_say_what_the_server_says(proxy: Proxy) -> None:
    """The same conversations, direct and through the proxy, message by message."""
    server = proxy.server
    conversations = [
        ["BEGIN", "COMMIT"],
        ["START TRANSACTION", "ROLLBACK"],
        ["begin work;", "END"],
        ["BEGIN READ ONLY", "CREATE TABLE never (a int)", "SELECT 1", "COMMIT"],
        ["BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE", "SHOW transaction_isolation"],
        ["BEGIN", "COMMIT AND CHAIN", "SHOW transaction_read_only", "COMMIT"],
        ["BEGIN READ ONLY", "ROLLBACK AND CHAIN", "SHOW transaction_read_only", "COMMIT"],
        ["BEGIN", "BEGIN", "COMMIT", "COMMIT"],
        ["BEGIN", "SAVEPOINT a", "SELECT 1/0", "ROLLBACK TO a", "SELECT 2", "COMMIT"],
        ["BEGIN", "SET TRANSACTION READ ONLY", "SHOW transaction_read_only", "ROLLBACK"],
        ["BEGIN", "COMMIT; SELECT 1", "SELECT 2"],
        ["BEGIN", "SELECT 1; COMMIT", "COMMIT"],
        ["BEGIN", "SELECT 1; COMMIT AND CHAIN", "COMMIT"],
        ["BEGIN", "", ";", "COMMIT"],
        ["BEGIN", "VACUUM", "ROLLBACK"],
        ["BEGIN", "CREATE DATABASE never", "COMMIT"],
        ["BEGIN", "COMMIT PREPARED 'none'", "ROLLBACK"],
        ["BEGIN", "PREPARE TRANSACTION 'none'", "SELECT 1"],
        ["BEGIN", "SELEC 1", "COMMIT"],
        ["BEGIN ISOLATION LEVEL BOGUS", "SELECT 1"],
        ["COMMIT", "BEGIN", "ROLLBACK", "ROLLBACK"],
    ]
    for spoken in (wire.query, wire.unit):
        for conversation in conversations:
            heard = []
            for address in ((server.host, server.port), (proxy.host, proxy.port)):
                with wire.Wire.log_in(address, user=USER, database=DATABASE) as client:
                    heard.append([_plain(client.ask(spoken(text))) for text in conversation])
                    client.ask(wire.query("ROLLBACK"))
            assert heard[0] == heard[1], conversation


def _plain(messages: list[Message]) -> list[tuple[str, object]]:
    """Messages without where in the server's source an error was raised."""
    return [
        (each.kind, {key: each.fields.get(key) for key in SAID} if each.kind in "EN" else each.body)
        for each in messages
        if each.kind != "S"
    ]


# A server that refuses the BEGIN.


@pytest.fixture(scope="module")
def standby() -> Iterator[EmbeddedPostgres]:
    """A server in recovery, which refuses BEGIN READ WRITE and SERIALIZABLE."""
    with EmbeddedPostgres() as server:
        prepare(server)
        with direct(server) as admin:
            admin.execute("CREATE TABLE kept (id text)")
            admin.execute("GRANT ALL ON kept TO PUBLIC")
        server.stop()
        signal_file = server._data_dir / "standby.signal"
        signal_file.touch(mode=0o666)
        server.start()
        yield server


@pytest.mark.parametrize("begin", ["BEGIN READ WRITE", "BEGIN ISOLATION LEVEL SERIALIZABLE"])
@pytest.mark.parametrize("spoken", [wire.query, wire.unit])
def test_a_begin_that_the_server_refuses(
    standby: EmbeddedPostgres, begin: str, spoken: Any
) -> None:
    """The statement behind it does not run, and the client is told in its place."""
    with (
        Proxy(standby) as proxy,
        wire.Wire.log_in((proxy.host, proxy.port), user=USER, database=DATABASE) as client,
    ):
        [refusal] = wire.errors(_of_server(standby, begin))
        assert client.ask(wire.query(begin))[-1].status == "T"
        said = client.ask(spoken("SELECT pg_catalog.set_config('application_name', 'ran', false)"))
        [error] = wire.errors(said)
        assert (error.sqlstate, error.fields["M"]) == (refusal.sqlstate, refusal.fields["M"])
        assert said[-1].status == "E"
        assert not wire.rows(said)
        said = client.ask(wire.query("SELECT 1"))
        assert ([each.sqlstate for each in wire.errors(said)], said[-1].status) == (["25P02"], "E")
        assert client.ask(wire.query("ROLLBACK"))[-1].status == "I"
        assert client.value("SHOW application_name") != "ran"
        # Pipelined behind it: none of it runs in autocommit.
        client.send(wire.query(begin), spoken("SELECT 1"), spoken("SELECT 2"), wire.query("COMMIT"))
        heard = [client.until("Z") for _ in range(4)]
        assert [each[-1].status for each in heard] == ["T", "E", "E", "I"]
        assert not wire.rows(heard[1] + heard[2])


def _of_server(server: EmbeddedPostgres, sql: str) -> list[Message]:
    with wire.Wire.log_in((server.host, server.port), user=USER, database=DATABASE) as client:
        return client.ask(wire.query(sql))


# The race.


@pytest.fixture(scope="module")
def races(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    prepare(postgres)
    settings = {"idle_transaction_timeout": f"{LIMIT}s"}
    with Proxy(postgres, databases={DATABASE: {"pool_size": 6}}, proxy=settings) as proxy:
        with direct(postgres) as admin:
            admin.execute("DROP TABLE IF EXISTS begun")
            admin.execute("CREATE TABLE begun (id text, part int)")
            admin.execute("GRANT ALL ON begun TO PUBLIC")
        yield proxy
        with direct(postgres) as admin:
            admin.execute("DROP TABLE begun")


async def test_reaping_cancels_and_dying_backends_never_split_a_transaction(races: Proxy) -> None:
    """Each transaction inserts its token twice. Both rows are there if the COMMIT was acknowledged;
    none, if anything else was said; whatever was said, never one.
    """
    acknowledged: set[str] = set()
    denied: set[str] = set()
    ends: Counter[str] = Counter()
    server = races.server

    async def work(number: int) -> None:
        spoken = (wire.query, wire.unit)[number % 2]
        async with AsyncWire.log_in(races.host, races.port, user=USER, database=DATABASE) as client:
            for _ in range(ROUNDS):
                name = token()
                insert = [f"INSERT INTO begun VALUES ('{name}', {part})" for part in (1, 2)]
                units = [spoken(text) for text in ("BEGIN", *insert, "COMMIT")]
                heard = []
                if random.random() < 0.3:  # all at once
                    client.send(b"".join(units))
                    if random.random() < 0.3:
                        wire.cancel((races.host, races.port), client.key)
                    for _ in units:
                        heard += await client.until("Z")
                else:
                    for unit in units:
                        if random.random() < 0.1:
                            await asyncio.sleep(random.uniform(0.5 * LIMIT, 2.5 * LIMIT))
                        client.send(unit)
                        if random.random() < 0.1:
                            wire.cancel((races.host, races.port), client.key)
                        heard += await client.until("Z")
                states = {each.sqlstate for each in wire.errors(heard)}
                ends.update(states or {"committed"})
                if not states:
                    acknowledged.add(name)
                elif "08007" not in states:
                    denied.add(name)
                if heard[-1].status != "I":
                    assert (await client.ask(wire.query("ROLLBACK")))[-1].status == "I"

    async def kill() -> None:
        """Now and then a backend dies."""
        connection = await psycopg.AsyncConnection.connect(
            host=server.host, port=server.port, user="postgres", dbname=DATABASE, autocommit=True
        )
        async with connection:
            while True:
                await asyncio.sleep(0.05)
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename = %s ORDER BY random() LIMIT 1",
                    [USER],
                )

    killer = asyncio.create_task(kill())
    try:
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(work(number))
    finally:
        killer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killer
    with direct(server) as admin:
        parts: dict[str, list[int]] = {}
        for name, part in admin.execute("SELECT id, part FROM begun ORDER BY part"):
            parts.setdefault(name, []).append(part)
    assert all(found == [1, 2] for found in parts.values()), parts
    assert acknowledged <= set(parts)
    assert not denied & set(parts)
    assert len(acknowledged) > CLIENTS
    assert {"57014", "25P03"} <= set(ends), ends
    wait_until(
        lambda: backends(server), lambda found: not any(each.in_transaction for each in found)
    )
