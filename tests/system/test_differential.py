"""Random conversations, direct and through the proxy: the server's side of both must be the same.

Each conversation is a pipeline of units of both protocols: errors that skip to Sync, transactions,
COPY in and out that works or fails, stray COPY messages, portals with row limits, Flush. Clients
are several times as many as backends, and each conversation is cut at random places. What is left
out: what we promise to answer differently (an unnamed statement bound in another unit), and what is
fatal to a backend (a Query in COPY, or behind an Execute without Sync).
"""

import asyncio
import random
from itertools import zip_longest

import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, direct, prepare
from tests.system.wire import AsyncWire, Message
from txproxy.cli.embedded import EmbeddedPostgres

CONVERSATIONS = 400
CLIENTS = 8

QUERIES = (
    "SELECT 1",
    "SELECT 1/0",
    "SELECT 'a'; SELECT 'b'",
    "SELECT 'a'; SELECT 1/0; SELECT 'b'",
    "",
    ";;",
    "BEGIN",
    "START TRANSACTION READ ONLY",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "BEGIN; SELECT 'x'; COMMIT",
    "INSERT INTO heap VALUES (1)",
    "COPY (SELECT generate_series(1, 3)) TO STDOUT",
    "syntax error",
    "SELECT * FROM missing",
    "COMMIT AND CHAIN",
    "SHOW server_version",
)
STATEMENTS = (
    "SELECT generate_series(1, 5)",
    "SELECT 1/0",
    "SELECT * FROM missing",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "INSERT INTO heap VALUES (2)",
    "",
    "COPY (SELECT 7) TO STDOUT",
    "nonsense",
)


def copy_end(r: random.Random) -> bytes:
    rows = [b"1\n", b"2\n3\n", b"not a number\n", b"", b"4"]
    data = [wire.copy_data(r.choice(rows)) for _ in range(r.randrange(4))]
    return b"".join(data) + r.choice([wire.COPY_DONE, wire.COPY_DONE, wire.copy_fail()])


def extended(r: random.Random) -> bytes:
    """A unit of the extended protocol: Parse first, so that whatever it binds is its own."""
    name = r.choice(["", "", "", "named"])
    data = wire.close(name) + wire.parse(r.choice(STATEMENTS), name)
    for _ in range(r.randrange(6)):
        data += r.choice(
            [
                wire.bind(name=name),
                wire.bind(name=name, portal="p"),
                wire.describe(name, b"S"),
                wire.describe("", b"P"),
                wire.execute(),
                wire.execute(rows=2),
                wire.execute("p", rows=1),
                wire.close("p", b"P"),
                wire.FLUSH,
                wire.COPY_DONE,
            ]
        )
    return data + wire.SYNC


def conversation(r: random.Random, token: str) -> bytes:
    units = []
    for _ in range(r.randrange(1, 9)):
        kind = r.random()
        if kind < 0.45:
            units.append(wire.query(r.choice(QUERIES)))
        elif kind < 0.8:
            units.append(extended(r))
        elif kind < 0.9:
            units.append(wire.query("COPY heap FROM STDIN") + copy_end(r))
        elif kind < 0.95:
            copy = wire.parse("COPY heap FROM STDIN") + wire.bind() + wire.execute()
            units.append(copy + copy_end(r) + wire.SYNC)
        else:
            units.append(r.choice([wire.SYNC, wire.COPY_DONE, wire.copy_data(b"x"), wire.FLUSH]))
    end = wire.SYNC + wire.query("ROLLBACK") + wire.query(f"SELECT '{token}'")
    return b"".join(units) + end


def cut(r: random.Random, data: bytes) -> list[bytes]:
    places = sorted(r.randrange(len(data)) for _ in range(r.choice([0, 0, 1, 3, 8])))
    return [data[i:j] for i, j in zip([0, *places], [*places, len(data)], strict=True)]


def essence(message: Message) -> object:
    if message.kind in "EN":
        return message.kind, message.sqlstate, message.severity, message.fields["M"]
    return message.kind, message.body


async def converse(client: AsyncWire, r: random.Random, data: bytes, token: str) -> list[object]:
    for piece in cut(r, data):
        client.send(piece)
        await asyncio.sleep(0)
    said: list[Message] = []
    while not any(m.kind == "D" and m.row == [token] for m in said):
        said += await client.until("Z")
    return [essence(message) for message in said if message.kind != "S"]


GONE = [("E", "34000", "ERROR", 'portal "" does not exist'), ("Z", b"E")]


def as_documented(said: list[object], expected: list[object]) -> list[object]:
    """What was said, with the server's own answer for a portal that was bound before the
    transaction failed, and is gone if the client goes on after that: see docs/promises.md.
    """
    found: list[object] = []
    nothing: list[object] = []
    for ours, theirs in zip_longest(units(said), units(expected), fillvalue=nothing):
        before = len(ours) - len(GONE)
        described = theirs[before : before + 1] == [("n", b"")] and theirs[-1:] == GONE[-1:]
        is_gone = ours[-len(GONE) :] == GONE and ours[:before] == theirs[:before] and described
        found += theirs if is_gone else ours
    return found


def units(said: list[object]) -> list[list[object]]:
    """Each up to its ReadyForQuery."""
    found: list[list[object]] = [[]]
    for each in said:
        found[-1].append(each)
        if isinstance(each, tuple) and each[0] == "Z":
            found.append([])
    return found


async def run(host: str, port: int, seeds: range, clients: int) -> dict[int, list[object]]:
    """What each conversation is answered, by its seed."""
    answers: dict[int, list[object]] = {}
    waiting = list(reversed(seeds))

    async def talk() -> None:
        while waiting:
            seed = waiting.pop()
            r = random.Random(seed)
            token = f"token-{seed}"
            data = conversation(r, token)
            async with AsyncWire.log_in(host, port, USER, DATABASE) as client:
                answers[seed] = await converse(client, r, data, token)

    await asyncio.gather(*(talk() for _ in range(clients)))
    return answers


@pytest.mark.timeout(300)
async def test_the_same_answers_as_direct(server: EmbeddedPostgres) -> None:
    prepare(server)
    with direct(server, user=USER) as connection:
        connection.execute("CREATE UNLOGGED TABLE IF NOT EXISTS heap (a int)")
    seeds = range(CONVERSATIONS)
    expected = await run(server.host, server.port, seeds, 2)
    with Proxy(server, proxy={"default_pool_size": 3}) as proxy:
        answered = await run(proxy.host, proxy.port, seeds, CLIENTS)
    for seed in seeds:
        if answered[seed] != expected[seed]:
            assert as_documented(answered[seed], expected[seed]) == expected[seed], f"seed {seed}"
