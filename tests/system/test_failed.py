"""A failed transaction holds nothing, and nobody notices: what is said in one is compared, message
by message, with what a server says; and the backend is there for others meanwhile.

TXPROXY_TEST_SEED is another seed for what is said at random.
"""

import contextlib
import os
import random
import re
import struct
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any, Final, Self

import asyncpg
import psycopg
import psycopg2
import pytest
from psycopg.pq import TransactionStatus

from tests.system import wire
from tests.system.proxy import (
    DATABASE,
    USER,
    Proxy,
    ask,
    backends,
    direct,
    prepare,
    token,
    wait_until,
)
from tests.system.test_django import Site
from tests.system.wire import (
    COPY_DONE,
    FLUSH,
    SYNC,
    Message,
    Wire,
    bind,
    close,
    copy_data,
    copy_fail,
    describe,
    execute,
    message,
    parse,
    query,
    unit,
)
from txproxy.cli.embedded import EmbeddedPostgres

SEED: Final = int(os.environ.get("TXPROXY_TEST_SEED", "1"))
CONVERSATIONS: Final = 150
SAID: Final = "SVCM"
"""The fields of an error that must agree."""

FUNCTION_CALL: Final = message(b"F", struct.pack("!ihhh", 1, 0, 0, 0))
INT4: Final = 23


def typed(sql: str, *types: int, name: str = "") -> bytes:
    """Parse, with the types of parameters."""
    head = name.encode() + b"\0" + sql.encode() + b"\0"
    return message(b"P", head + struct.pack(f"!h{len(types)}i", len(types), *types))


def bind_in(formats: int, *values: str, name: str) -> bytes:
    """Bind, with so many formats of parameters, all of them text."""
    counted = b"".join(struct.pack("!i", len(value)) + value.encode() for value in values)
    head = b"\0" + name.encode() + b"\0" + struct.pack("!h", formats) + bytes(2 * formats)
    return message(b"B", head + struct.pack("!h", len(values)) + counted + b"\0\0")


PREPARED: Final = (
    parse("SELECT $1::int", "sel")
    + parse("SELECT 'plain'", "plain")
    + parse("INSERT INTO failing VALUES ($1, $2)", "ins")
    + typed("INSERT INTO failing VALUES ($1, $2)", INT4, INT4, name="typed")
    + typed("INSERT INTO failing VALUES ($1, $2) RETURNING a", INT4, INT4, name="returns")
    + parse("CREATE TABLE never (a int)", "create")
    + parse("SHOW work_mem", "show")
    + parse("ROLLBACK", "end")
    + parse("COMMIT", "commit")
    + parse("ROLLBACK AND CHAIN", "chain")
    + parse("ROLLBACK TO s", "to")
    + parse("BEGIN", "begin")
    + parse("", "empty")
    + SYNC
)
"""What the client has prepared before its transaction fails."""

BY_QUERY: Final = (
    "",
    " ; -- nothing",
    "ROLLBACK",
    ";;ROLLBACK",
    "ABORT WORK",
    "COMMIT",
    "END TRANSACTION",
    "COMMIT AND NO CHAIN",
    "PREPARE TRANSACTION 'x'",
    "ROLLBACK AND CHAIN",
    "COMMIT AND CHAIN",
    "ROLLBACK TO s",
    'ROLLBACK WORK TO SAVEPOINT "S s"',
    "ROLLBACK TO s; ROLLBACK",
    "RELEASE s",
    "SAVEPOINT s",
    "BEGIN",
    "BEGIN; SELECT 1",
    "COMMIT PREPARED 'x'",
    "ROLLBACK; SELECT 1",
    "COMMIT; SELECT 1; SELECT 1/0; SELECT 2",
    "END; BEGIN; SELECT 1",
    "ROLLBACK; ROLLBACK",
    "ROLLBACK; SELECT * FROM nowhere",
    "/* a */ ROLLBACK /* b */ ; /* c */ SELECT 1/0",
    "ROLLBACK; BEGIN",
    "ROLLBACK; SAVEPOINT s",
    "ROLLBACK AND CHAIN; SELECT 1",
    "COMMIT AND CHAIN; SAVEPOINT s; SELECT 1/0",
    "ROLLBACK AND CHAIN; COMMIT",
    "ROLLBACK AND CHAIN; ROLLBACK AND CHAIN",
    "PREPARE TRANSACTION 'x'; SELECT 1",
    "ROLLBACK; DEALLOCATE sel",
    "ROLLBACK; DEALLOCATE ALL",
    "SELECT 1",
    "SELECT 1; ROLLBACK",
    "DEALLOCATE sel",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "SET timezone = 'Asia/Tokyo'",
    "SET txproxy.idle_transaction_timeout = '1s'",
    "LISTEN jobs",
    "COPY failing FROM STDIN",
    "VACUUM",
    "DO $$ BEGIN PERFORM 1; END $$",
    "SELECT set_config('work_mem', '1MB', false)",
)

MESSAGES: Final = {
    **{sql: query(sql) for sql in BY_QUERY},
    "function call": FUNCTION_CALL,
    "copy messages": copy_data(b"x") + COPY_DONE + copy_fail() + FLUSH,
    "parse": parse("SELECT 1") + bind() + execute(),
    "parse begin": unit("BEGIN"),
    "parse several": parse("ROLLBACK; SELECT 1"),
    "parse empty": parse("") + describe("", b"S"),
    "bind empty": parse("") + bind(),
    "rollback": unit("ROLLBACK"),
    "rollback described": parse("ROLLBACK") + describe("", b"S") + bind() + execute() + close(),
    "commit": unit("COMMIT"),
    "prepare": unit("PREPARE TRANSACTION 'x'"),
    "chain": unit("ROLLBACK AND CHAIN"),
    "chain, and on": unit("ROLLBACK AND CHAIN") + unit("SELECT 1") + unit("SELECT 1/0"),
    "to savepoint": unit("ROLLBACK TO s"),
    "parse a name twice": parse("ROLLBACK", "sel"),
    "parse a name": parse("ROLLBACK", "a") + SYNC + bind(name="a") + SYNC,
    "parse a name, and fail": parse("SELECT 1", "a") + SYNC + bind(name="a") + SYNC,
    "bind nothing": bind(name="nothing"),
    "bind unnamed": query("") + bind(),
    "bind select": bind("1", name="sel"),
    "bind too few": bind(name="sel"),
    "bind too many": bind("1", "2", "3", name="ins"),
    "bind formats": bind_in(3, "1", "2", name="ins"),
    "bind ending": bind(name="end") + SYNC + describe() + SYNC + execute(),
    "bind ending too many": bind("1", name="end"),
    "bind named commit": bind(name="commit", portal="p") + SYNC + execute("p"),
    "bind named chain": bind(name="chain", portal="p") + execute("p"),
    "bind named to": bind(name="to") + execute(),
    "bind begin": bind(name="begin"),
    "bind portal twice": bind(name="end", portal="p") + bind(name="end", portal="p"),
    "bind and close portal": bind(name="end") + close("", b"P") + execute(),
    "execute nothing": execute("nothing"),
    "execute twice": bind(name="end") + execute() + execute(),
    "execute, and on": bind(name="end") + execute() + bind(name="plain") + execute(),
    "execute, and describe": bind(name="end") + execute() + describe("sel", b"S"),
    "execute, and fail": bind(name="end") + execute() + bind(name="sel") + execute(),
    "execute, and close": bind(name="end") + execute() + close("sel"),
    "describe nothing": describe("nothing", b"S"),
    "describe unnamed": query("") + describe("", b"S"),
    "describe select": describe("sel", b"S"),
    "describe show": describe("show", b"S"),
    "describe returning": describe("returns", b"S"),
    "describe typed": describe("typed", b"S"),
    "describe create": describe("create", b"S"),
    "describe ending": describe("end", b"S") + describe("chain", b"S") + describe("to", b"S"),
    "describe empty": describe("empty", b"S"),
    "describe portal": describe("nothing", b"P"),
    "describe garbage": describe("nothing", b"X"),
    "close": close("sel") + close("nothing") + close("nothing", b"P"),
    "close, and bind": close("end") + bind(name="end"),
    "close garbage": close("nothing", b"X"),
    "close, and parse": close("end") + parse("COMMIT", "end") + bind(name="end") + execute(),
    "unnamed lasts": parse("ROLLBACK") + SYNC + bind() + SYNC + execute(),
    "unnamed ends with a query": parse("ROLLBACK") + query("") + bind(),
    "unnamed ends with a parse": parse("ROLLBACK") + SYNC + parse("SELECT 1") + SYNC + bind(),
    "typed ending": typed("ROLLBACK", INT4) + describe("", b"S") + bind("1"),
    "typed ending, untyped": typed("ROLLBACK", 0),
    "typed ending, bound wrongly": typed("ROLLBACK", INT4) + bind(),
    "an error, and more": parse("SELECT 1") + unit("ROLLBACK") + query("ROLLBACK") + FLUSH,
    "sync": SYNC,
    "flush": FLUSH,
}  # fmt: skip

NOT_WHERE_IT_RUNS: Final = frozenset(("COPY failing FROM STDIN", "ROLLBACK; DEALLOCATE sel"))
"""The server closes the connection at what follows; our names are not its names."""

FAILURES: Final[Mapping[str, bytes]] = {
    "query": query("BEGIN") + query("SELECT 1/0"),
    "string": query("BEGIN; SELECT 1/0"),
    "unit": query("BEGIN") + unit("SELECT 1/0"),
    "parse": unit("BEGIN") + parse("SELECT * FROM nowhere") + SYNC,
    "copy": query("BEGIN") + query("COPY failing FROM STDIN") + copy_data(b"no\n") + COPY_DONE,
    "chain": query("BEGIN") + query("COMMIT AND CHAIN") + query("INSERT INTO failing VALUES ('')"),
    "twice": query("BEGIN") + query("SELECT 1") + query("SELECT 1/0") + query("SELECT 2"),
}


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    """One backend, for everybody; and two for those that are compared at random."""
    return {
        "databases": {
            DATABASE: {"pool_size": 1},
            "two": {"dbname": DATABASE, "pool_size": 2},
            # two statements are to come within this time, on a machine that is busy
            "quick": {"dbname": DATABASE, "pool_size": 1, "idle_transaction_timeout": "2s"},
        }
    }


@pytest.fixture(scope="module", autouse=True)
def table(server: EmbeddedPostgres) -> Iterator[None]:
    prepare(server)
    with direct(server, user=USER) as connection:
        connection.execute("CREATE TABLE failing (a int PRIMARY KEY, b int)")
        yield
        connection.execute("DROP TABLE failing")


class Pair:
    """One client twice: past the proxy, and through it."""

    def __init__(self, proxy: Proxy, dbname: str = DATABASE) -> None:
        self._stack = contextlib.ExitStack()
        server = proxy.server
        proxy.kwargs(dbname)
        self.direct = self._log_in((server.host, server.port), DATABASE)
        self.proxied = self._log_in((proxy.host, proxy.port), dbname)
        self.other = self._log_in((proxy.host, proxy.port), dbname)

    def _log_in(self, address: wire.Address, dbname: str) -> Wire:
        return self._stack.enter_context(Wire.log_in(address, user=USER, database=dbname))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, *pieces: bytes) -> None:
        """Both are answered alike; behind it they are in no transaction."""
        marker = token()
        self._ask(marker, *pieces, SYNC + query("ROLLBACK") + query(f"SELECT '{marker}'"))

    def say_and_wait(self, *pieces: bytes) -> None:
        """The same, where they may be in one: it then has failed."""
        marker = token()
        self._ask(marker, *pieces, SYNC + bind(name=marker) + SYNC)

    def _ask(self, marker: str, *pieces: bytes) -> None:
        expected = _until(self.direct, marker, *pieces)
        said = _until(self.proxied, marker, *pieces)
        if said != expected:
            assert _as_documented(said, expected) == expected


def _until(client: Wire, marker: str, *pieces: bytes) -> list[object]:
    """What it is answered, up to the ReadyForQuery behind the marker."""
    client.send(*pieces)
    said: list[Message] = []
    while not any(marker.encode() in each.body for each in said):
        said += client.until("Z")
    return [essence(each) for each in said if each.kind != "S" and not _is_noise(each)]


def _as_documented(said: list[Any], expected: list[Any]) -> list[Any]:
    """What was said, with the server's own answer in place of 25P02 to a unit that names a prepared
    statement which its backend had not got yet: see docs/promises.md.
    """
    found: list[Any] = []
    nothing: list[Any] = []
    for ours, theirs in zip_longest(_units(said), _units(expected), fillvalue=nothing):
        is_refusal = len(ours) == 2 and ours[0][0] == "E" and ours[0][1]["C"] == "25P02"
        is_other = bool(theirs) and theirs[0][0] in {"E", "t"} and theirs[-1] == ours[-1]
        found += theirs if is_refusal and is_other else ours
    return found


def _units(said: list[Any]) -> list[list[Any]]:
    units: list[list[Any]] = [[]]
    for each in said:
        units[-1].append(each)
        if each[0] == "Z":
            units.append([])
    return units[:-1] if not units[-1] else units


def _is_noise(each: Message) -> bool:
    """What a server says at the end, to itself, of portals that were bound in a failed transaction
    and not executed.
    """
    return each.kind == "N" and each.fields["M"].startswith("skipping cleanup for portal")


def essence(each: Message) -> object:
    if each.kind in "EN":
        # Where the server says it, it says the name that the statement has there.
        said = re.sub(r'"[^"]*" requires', "one requires", each.fields["M"])
        return each.kind, {**{key: each.fields.get(key) for key in SAID}, "M": said}
    return each.kind, each.body


@pytest.mark.parametrize("failure", FAILURES)
def test_each_message_is_answered_as_by_a_server(proxy: Proxy, failure: str) -> None:
    """By itself, when the backend is with somebody else."""
    with Pair(proxy) as pair:
        for name, said in MESSAGES.items():
            for client in (pair.direct, pair.proxied):
                client.ask(query("DEALLOCATE ALL"))
                client.ask(PREPARED)
                client.send(FAILURES[failure])
                while client.until("Z")[-1].status != "E":
                    pass
                if failure == "twice":
                    client.until("Z")
            assert pair.other.value("SELECT 'free'") == "free", name
            try:
                pair.say(said)
                pair.say(bind("7", name="sel") + execute() + SYNC)
                pair.say(bind(name="end") + execute() + SYNC + bind(name="commit") + execute())
            except AssertionError as error:
                raise AssertionError(f"{failure}, {name}: {error}") from error


def test_conversations_at_random_are_answered_as_by_a_server(proxy: Proxy) -> None:
    """In pipelines and in pieces, while others use the backends."""
    r = random.Random(SEED)
    with Pair(proxy, "two") as pair:
        for number in range(CONVERSATIONS):
            said = query("DEALLOCATE ALL") + PREPARED
            names: list[str] = []
            pair.other.send(query(f"SELECT 'other {number}'"))
            try:
                for _ in range(r.randrange(1, 3)):
                    said += FAILURES[r.choice(list(FAILURES))]
                    for _ in range(r.randrange(6)):
                        if r.random() < 0.6:
                            pair.say_and_wait(*cut(r, said))
                            said = b""
                        names.append(r.choice(sorted(MESSAGES.keys() - NOT_WHERE_IT_RUNS)))
                        said += MESSAGES[names[-1]] + SYNC
                    said += query("ROLLBACK")
                pair.say(*cut(r, said))
            except AssertionError as error:
                raise AssertionError(f"seed {SEED}, {number}, {names}: {error}") from error
            assert wire.rows(pair.other.until("Z")) == [[f"other {number}"]]


def cut(r: random.Random, said: bytes) -> list[bytes]:
    """In pieces."""
    places = sorted(r.randrange(len(said)) for _ in range(r.choice([0, 1, 3, 8])))
    return [said[i:j] for i, j in zip([0, *places], [*places, len(said)], strict=True)]


def test_what_differs(proxy: Proxy) -> None:
    """Documented in docs/promises.md."""
    with Pair(proxy) as pair:
        for said, here, there in (
            (query("nonsense"), ["25P02"], ["42601"]),
            (query("SELECT 'unterminated"), ["25P02"], ["42601"]),
            (message(b"Q", b"SELECT '\xff'\0"), ["25P02"], ["22021"]),
            (query("ROLLBACK; VACUUM"), [], ["25001"]),
        ):
            found = []
            for client in (pair.proxied, pair.direct):
                client.ask(query("BEGIN"))
                client.ask(query("SELECT 1/0"))
                found.append([each.sqlstate for each in wire.errors(client.ask(said))])
                client.ask(query("ROLLBACK"))
            assert found == [here, there]


# What is free meanwhile.


def assert_free(proxy: Proxy) -> None:
    """The only backend is in no transaction, and another client has it."""
    found = wait_until(
        lambda: [each for each in backends(proxy.server) if each.in_transaction],
        lambda busy: not busy,
    )
    assert found == []
    with proxy.connect() as other:
        ask(other)
        assert other.execute("SELECT count(*) FROM pg_stat_activity").fetchone()
        other.rollback()


def test_psycopg3(proxy: Proxy) -> None:
    for threshold in (None, 0):
        with psycopg.connect(**proxy.kwargs(), prepare_threshold=threshold) as connection:
            for _ in range(3):
                connection.execute("SELECT %s::int", [1])
                with pytest.raises(psycopg.errors.DivisionByZero):
                    connection.execute("SELECT 1 / %s::int", [0])
                assert connection.info.transaction_status == TransactionStatus.INERROR
                assert_free(proxy)
                with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                    connection.execute("SELECT %s::int", [1])
                assert_free(proxy)
                connection.rollback()
                ask(connection)
                connection.commit()


def test_psycopg3_in_a_pipeline(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
            connection.execute("SELECT 1/0")
        assert connection.info.transaction_status == TransactionStatus.INERROR
        assert_free(proxy)
        with connection.pipeline():
            connection.rollback()
            ask(connection)


def test_psycopg3_commits_what_has_failed(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        connection.execute("INSERT INTO failing VALUES (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO failing VALUES (1)")
        assert_free(proxy)
        connection.commit()
        assert connection.execute("SELECT count(*) FROM failing").fetchone() == (0,)


def test_psycopg3_with_savepoints(proxy: Proxy) -> None:
    """As ever: the transaction goes on where it was, and its end is a COMMIT."""
    with proxy.connect() as connection:
        with connection.transaction():
            connection.execute("INSERT INTO failing VALUES (1)")
            with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
                connection.execute("INSERT INTO failing VALUES (1)")
            connection.execute("INSERT INTO failing VALUES (2)")
        rows = connection.execute("DELETE FROM failing RETURNING a").fetchall()
        assert sorted(rows) == [(1,), (2,)]
        connection.commit()
        # and the next transaction has none
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        assert_free(proxy)


def test_psycopg2(proxy: Proxy) -> None:
    connection = psycopg2.connect(**proxy.kwargs())
    with contextlib.closing(connection), connection.cursor() as cursor:
        for end in (connection.rollback, connection.commit):
            with pytest.raises(psycopg2.errors.DivisionByZero):
                cursor.execute("SELECT 1/0")
            assert_free(proxy)
            with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
                cursor.execute("SELECT 1")
            assert_free(proxy)
            end()
            ask(cursor)
            connection.rollback()


async def test_asyncpg(proxy: Proxy) -> None:
    connection = await asyncpg.connect(**proxy.asyncpg())
    try:
        for _ in range(2):
            transaction = connection.transaction()
            await transaction.start()
            assert await connection.fetchval("SELECT $1::int", 1) == 1
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("SELECT 1 / $1::int", 0)
            assert_free(proxy)
            with pytest.raises(asyncpg.InFailedSQLTransactionError):
                await connection.fetchval("SELECT $1::int", 1)
            with pytest.raises(asyncpg.InFailedSQLTransactionError):
                await connection.fetchval("SELECT $1::int + 2", 1)
            assert_free(proxy)
            await transaction.rollback()
            assert await connection.fetchval("SELECT $1::int", 2) == 2
            assert await connection.fetchval("SELECT $1::int + 2", 2) == 4
    finally:
        await connection.close()


async def test_asyncpg_with_a_cursor(proxy: Proxy) -> None:
    """Its portal has a name: the backend is kept, and says what a server says."""
    connection = await asyncpg.connect(**proxy.asyncpg())
    try:
        transaction = connection.transaction()
        await transaction.start()
        cursor = await connection.cursor("SELECT generate_series(1, 10)")
        assert await cursor.fetchrow() == (1,)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("SELECT 1/0")
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await cursor.fetchrow()
        await transaction.rollback()
        assert await connection.fetchval("SELECT 'x'") == "x"
    finally:
        await connection.close()


def test_many_clients_that_have_failed_and_one_backend(proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(proxy.connect())) for _ in range(20)]
        for client in clients:
            with pytest.raises(psycopg.errors.DivisionByZero):
                client.execute("SELECT 1/0")
        assert_free(proxy)
        for client in reversed(clients):
            client.rollback()
            ask(client)
            client.rollback()


def test_they_are_not_reaped(proxy: Proxy) -> None:
    """They hold nothing. A transaction with a savepoint does."""
    with proxy.connect("quick") as sleeper, proxy.connect("quick") as other:
        with pytest.raises(psycopg.errors.DivisionByZero):
            sleeper.execute("SELECT 1/0")
        other.execute("SAVEPOINT s")
        with pytest.raises(psycopg.errors.DivisionByZero):
            other.execute("SELECT 1/0")
        proxy.wait_for("reaped")
        assert len(proxy.events("reaped")) == 1
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            sleeper.execute("SELECT 1")
        sleeper.rollback()
        other.rollback()
        ask(sleeper)


# Settings.


@pytest.mark.parametrize("change", ["SET", "SET LOCAL"])
def test_settings_are_undone_and_the_client_is_told_once(proxy: Proxy, change: str) -> None:
    with Pair(proxy) as pair:
        told = []
        for client in (pair.direct, pair.proxied):
            client.ask(query("SET timezone = 'Asia/Tokyo'"))
            client.ask(query("BEGIN"))
            heard = client.ask(query(f"{change} timezone = 'Europe/Paris'"))
            heard += client.ask(query("SELECT 1/0"))
            if client is pair.proxied:
                assert pair.other.value("SHOW timezone") != "Europe/Paris"
            heard += client.ask(query("SELECT 1")) + client.ask(query("ROLLBACK"))
            assert client.value("SHOW timezone") == "Asia/Tokyo"
            told.append([each.body for each in heard if each.kind == "S"])
        assert told[0] == told[1] == [b"TimeZone\0Europe/Paris\0", b"TimeZone\0Asia/Tokyo\0"]


def test_settings_that_the_server_does_not_report(proxy: Proxy) -> None:
    """They are asked for at the end of the transaction, on the backend that it keeps till then."""
    with proxy.connect() as connection, proxy.connect() as other:
        connection.execute("SET work_mem = '1MB'")
        connection.commit()
        connection.execute("SET work_mem = '2MB'")
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        connection.rollback()
        assert other.execute("SHOW work_mem").fetchone() == ("4MB",)
        other.rollback()
        assert connection.execute("SHOW work_mem").fetchone() == ("1MB",)


# Django.


@pytest.fixture(scope="module", params=["psycopg", "psycopg2"])
def site(
    server: EmbeddedPostgres, module_proxy: Proxy, request: pytest.FixtureRequest
) -> Iterator[Site]:
    if request.param == "psycopg2" and int(server.version.split(".")[0]) < 18:
        pytest.skip("Django with psycopg 2 is tested on the newest server only")
    found = Site(module_proxy, request.param)
    try:
        found.act("migrate")
        yield found
        found.act("migrate_back")
    finally:
        found.close()


def test_django_sleeps_after_an_error(site: Site, proxy: Proxy) -> None:
    slept: list[bool] = []

    def look() -> None:
        assert_free(proxy)
        slept.append(True)

    site.act("sleep_after_an_error", look)
    assert len(slept) == 3


def test_django_sleeps_after_an_error_in_a_savepoint(site: Site, proxy: Proxy) -> None:
    states: list[list[str]] = []

    def look() -> None:
        states.append([each.state for each in backends(proxy.server) if each.in_transaction])

    site.act("sleep_after_an_error_in_savepoint", look)
    assert states == [["idle in transaction (aborted)"], ["idle in transaction"]]
