"""Prepared statements of the protocol: as on a direct connection, and without keeping a backend.

A `Twin` says the same on a direct connection and through the proxy, where each unit finds another
backend than the one before, on which somebody else uses the same names; the answers must agree.
"""

import asyncio
import contextlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

import asyncpg
import psycopg
import pytest

from tests.system import console, wire
from tests.system.console import ADMIN
from tests.system.proxy import (
    DATABASE,
    USER,
    Proxy,
    ask,
    backends,
    direct,
    in_threads,
    token,
)
from tests.system.test_django import Site
from tests.system.wire import SYNC, Message, Wire, bind, close, describe, execute, parse, query
from txproxy.cli.embedded import EmbeddedPostgres

CLIENTS: Final = 6  # two backends
ROUNDS: Final = 10
INT4: Final = 23
TEXT: Final = 25
SAID: Final = "CSVMDHP"
"""The fields of an error that must agree: all but where in which source it was raised."""


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {"proxy": {"admin_users": [ADMIN]}}


def assert_unpinned(proxy: Proxy) -> None:
    """No client keeps its backend."""
    with console.connect(proxy) as admin:
        pins = [row.get("pin") for row in console.show(admin, "CLIENTS")]
    assert not any(pins), pins


class Place:
    """Where drivers connect: the proxy or the server itself."""

    def __init__(self, proxy: Proxy, *, proxied: bool) -> None:
        self.proxy = proxy
        self.proxied = proxied
        there = proxy if proxied else proxy.server
        self.address = (there.host, there.port)
        self.where: dict[str, Any] = {"host": there.host, "port": there.port}
        if proxied:
            proxy.kwargs()  # its pool is looked at when the test is over

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        """psycopg 3, which prepares every statement."""
        return psycopg.connect(
            **{"dbname": DATABASE, "user": USER, "prepare_threshold": 0, **self.where, **more}
        )

    def wire(self) -> Wire:
        """By hand."""
        return Wire.log_in(self.address, user=USER, database=DATABASE)

    async def asyncpg(self, **more: Any) -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(database=DATABASE, user=USER, **self.where, **more)

    def assert_unpinned(self) -> None:
        if self.proxied:
            assert_unpinned(self.proxy)
            assert len(backends(self.proxy.server)) <= 2 + 1  # and the console's none


@pytest.fixture(params=["direct", "proxied"])
def place(proxy: Proxy, request: pytest.FixtureRequest) -> Place:
    return Place(proxy, proxied=request.param == "proxied")


@pytest.fixture
def table(proxy: Proxy) -> Iterator[str]:
    """A table of one row (1, 'one')."""
    name = "t_" + token().replace("-", "")
    with direct(proxy.server, user=USER) as connection:
        connection.execute(f"CREATE TABLE {name} AS SELECT 1 AS a, 'one'::text AS b".encode())
        yield name
        connection.execute(f"DROP TABLE {name}".encode())


# The same on both.


def essence(message: Message) -> object:
    if message.kind in "EN":
        return message.kind, {key: message.fields.get(key) for key in SAID}
    return message.kind, message.body


class Twin:
    """One client twice. Through the proxy, others keep it from having the same backend twice."""

    def __init__(self, proxy: Proxy) -> None:
        self._stack = contextlib.ExitStack()
        self.proxy = proxy
        self._status = "I"

    def __enter__(self) -> Self:
        server = self.proxy.server
        self.proxy.kwargs()

        def log_in(host: str, port: int) -> Wire:
            return self._stack.enter_context(
                Wire.log_in((host, port), user=USER, database=DATABASE)
            )

        self.direct = log_in(server.host, server.port)
        self.proxied = log_in(self.proxy.host, self.proxy.port)
        self._others = [log_in(self.proxy.host, self.proxy.port) for _ in range(2)]
        for each in self._others:
            for name in ("a", "b", "c"):
                each.ask(parse("SELECT 'anothers'::text", name) + SYNC)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, data: bytes, units: int = 1) -> list[Message]:
        """What both are answered: messages up to so many ReadyForQuery."""
        outside = self._status == "I"
        if outside:
            self._disturb()
        try:
            expected = self.direct.ask(data, units)
            answered = self.proxied.ask(data, units)
        finally:
            if outside:
                self._others[0].ask(query("ROLLBACK"))
        expected = [each for each in expected if each.kind != "S"]
        answered = [each for each in answered if each.kind != "S"]
        assert list(map(essence, answered)) == list(map(essence, expected))
        self._status = answered[-1].status
        return answered

    def _disturb(self) -> None:
        """Somebody uses an unnamed statement and a name on each backend; one is then held."""
        for each in self._others:
            each.ask(query("BEGIN"))
            each.ask(parse("SELECT 'anothers'::text") + bind() + execute() + SYNC)
            each.ask(bind(name="a") + execute() + SYNC)
        self._others[0].ask(query("ROLLBACK"))
        self._others.reverse()

    def sqlstate(self, data: bytes) -> str:
        """Of the error that both are answered; "" for none."""
        failures = wire.errors(self.say(data))
        return failures[0].sqlstate if failures else ""

    def rows(self, data: bytes) -> list[list[str | None]]:
        """Of an answer that is no error."""
        answer = self.say(data)
        assert not wire.errors(answer), answer
        return wire.rows(answer)


@pytest.fixture
def twin(proxy: Proxy) -> Iterator[Twin]:
    with Twin(proxy) as found:
        yield found
        assert_unpinned(proxy)


def run(name: str = "", *values: str) -> bytes:
    """Bind, Execute and Sync."""
    return bind(*values, name=name) + execute() + SYNC


def prepare(sql: str, name: str = "") -> bytes:
    """Parse and Sync."""
    return parse(sql, name) + SYNC


def typed(sql: str, name: str, *types: int) -> bytes:
    """Parse with the types of the parameters."""
    listed = struct.pack(f"!h{len(types)}I", len(types), *types)
    return wire.message(b"P", name.encode() + b"\0" + sql.encode() + b"\0" + listed)


def test_a_name_is_used_again_and_again(twin: Twin) -> None:
    twin.say(prepare("SELECT 'mine' || $1::text", "a"))
    for number in range(6):
        assert twin.rows(run("a", str(number))) == [[f"mine{number}"]]


def test_a_statement_is_described(twin: Twin) -> None:
    twin.say(prepare("SELECT $1::int4 AS n, $2::text AS t", "a"))
    twin.say(prepare("SET work_mem = '70kB'", "b"))
    for _ in range(3):
        assert wire.kinds(twin.say(describe("a", b"S") + SYNC)) == "tTZ"
        assert wire.kinds(twin.say(describe("b", b"S") + SYNC)) == "tnZ"
        answer = twin.say(bind("7", "x", name="a") + describe() + execute() + SYNC)
        assert wire.kinds(answer) == "2TDCZ"


@pytest.mark.parametrize(
    "forget",
    [
        close("a") + SYNC,
        query("DEALLOCATE a"),
        query("deallocate prepare A"),
        query('DEALLOCATE "a"'),
        query("DEALLOCATE ALL"),
        query("DISCARD ALL"),
        wire.unit("DEALLOCATE a"),
        wire.unit("DEALLOCATE ALL"),
        query("/* really */ DEALLOCATE -- that\n a;"),
    ],
    ids=["close", "name", "folded", "quoted", "all", "discard", "unit", "unit all", "commented"],
)
def test_a_name_that_was_forgotten(twin: Twin, forget: bytes) -> None:
    for number in range(3):
        twin.say(prepare(f"SELECT 'text {number}'::text", "a"))
        assert twin.rows(run("a")) == [[f"text {number}"]]
        twin.say(forget)
        assert twin.sqlstate(run("a")) == "26000"
        assert twin.sqlstate(describe("a", b"S") + SYNC) == "26000"
    assert twin.rows(query("SELECT 1")) == [["1"]]


def test_others_names_stay_when_one_deallocates_all(proxy: Proxy, twin: Twin) -> None:
    where = (proxy.host, proxy.port)
    with Wire.log_in(where, user=USER, database=DATABASE) as other:
        other.ask(prepare("SELECT 'the others'::text", "a"))
        twin.say(prepare("SELECT 'mine'::text", "a"))
        for forget in ("DEALLOCATE a", "DEALLOCATE ALL", "DISCARD ALL"):
            twin.say(query(forget))
            assert wire.rows(other.ask(run("a"))) == [["the others"]]
            twin.say(prepare("SELECT 'mine'::text", "a"))


@pytest.mark.parametrize("sql", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_forgetting_that_was_prepared(twin: Twin, sql: str) -> None:
    """It is done when it is executed, and not when it is parsed."""
    twin.say(prepare("SELECT 'mine'::text", "a"))
    twin.say(prepare(sql, "d"))
    for _ in range(2):
        assert twin.rows(run("a")) == [["mine"]]
    twin.say(run("d"))
    assert twin.sqlstate(run("a")) == "26000"
    twin.say(run("d"))


def test_forgetting_that_is_bound_later(twin: Twin) -> None:
    twin.say(prepare("SELECT 'mine'::text", "a"))
    twin.say(prepare("DEALLOCATE a"))
    assert twin.rows(bind(name="a") + execute() + SYNC) == [["mine"]]
    twin.say(run())
    assert twin.sqlstate(run("a")) == "26000"
    assert twin.sqlstate(run()) == "26000"


def test_forgetting_among_other_statements(twin: Twin) -> None:
    twin.say(prepare("SELECT 'mine'::text", "a"))
    twin.say(query("SELECT 1; DEALLOCATE ALL; SELECT 2"))
    assert twin.sqlstate(run("a")) == "26000"
    twin.say(prepare("SELECT 'mine'::text", "a"))
    twin.say(query("DEALLOCATE ALL; SELECT 1/0"))
    assert twin.sqlstate(run("a")) == "26000"


def test_forgetting_in_the_midst_of_a_unit(twin: Twin) -> None:
    twin.say(prepare("SELECT 'mine'::text", "a"))
    forget = parse("DEALLOCATE a") + bind() + execute()
    twin.say(forget + parse("SELECT 'new'::text", "a") + run("a"))
    assert twin.rows(run("a")) == [["new"]]
    twin.say(forget + run("a"))
    for name in ("a", "b"):
        twin.say(prepare("SELECT 'mine'::text", name))
    more = parse("DEALLOCATE b") + bind() + execute()
    twin.say(forget + more + parse("DEALLOCATE ALL") + bind() + execute() + SYNC)
    for name in ("a", "b"):
        assert twin.sqlstate(run(name)) == "26000"


def test_deallocate_of_one_among_others_does_not_find_it(proxy: Proxy) -> None:
    """Nor does one that is itself prepared under a name. Nothing is lost by it."""
    with Place(proxy, proxied=True).wire() as client:
        client.ask(prepare("SELECT 'mine'::text", "a"))
        failures = wire.errors(client.ask(query("SELECT 1; DEALLOCATE a")))
        assert [each.sqlstate for each in failures] == ["26000"]
        client.ask(prepare("DEALLOCATE a", "d"))
        failures = wire.errors(client.ask(run("d")))
        assert [each.sqlstate for each in failures] == ["26000"]
        assert wire.rows(client.ask(run("a"))) == [["mine"]]


@pytest.mark.parametrize(
    "fail",
    [
        query("DISCARD ALL"),
        wire.unit("DISCARD ALL"),
        prepare("DISCARD ALL", "d") + run("d"),
        prepare("DISCARD ALL") + SYNC,
        query("DEALLOCATE nothing"),
        query("SELECT 1/0; DEALLOCATE ALL"),
        wire.unit("SELECT 1/0") + wire.unit("DEALLOCATE ALL"),
    ],
    ids=["query", "unit", "named", "parsed only", "nothing", "string", "behind an error"],
)
def test_forgetting_that_fails(proxy: Proxy, twin: Twin, fail: bytes) -> None:
    """DISCARD ALL is refused in a transaction. Nobody has forgotten anything then."""
    twin.say(prepare("SELECT 'mine'::text", "a"))
    twin.say(query("BEGIN"))
    twin.say(fail, units=fail.count(SYNC) or 1)
    twin.say(query("ROLLBACK"))
    for _ in range(3):
        assert twin.rows(run("a")) == [["mine"]]
    # nor has it done harm to who prepares the same
    for _ in range(3):
        with Place(proxy, proxied=True).wire() as other:
            other.ask(prepare("SELECT 'mine'::text", "x"))
            assert wire.rows(other.ask(run("x"))) == [["mine"]]


def test_what_was_not_prepared_cannot_be_deallocated(twin: Twin) -> None:
    twin.say(prepare("SELECT 1", "A"))
    assert twin.sqlstate(query("DEALLOCATE nothing")) == "26000"
    # folded to lower case
    assert twin.sqlstate(query("DEALLOCATE A")) == "26000"
    twin.say(query('DEALLOCATE "A"'))
    assert twin.sqlstate(run("A")) == "26000"


def test_a_name_that_is_taken(twin: Twin) -> None:
    twin.say(prepare("SELECT 'first'::text", "a"))
    for sql in ("SELECT 'second'::text", "SELECT 'first'::text"):
        assert twin.sqlstate(prepare(sql, "a")) == "42P05"
        assert twin.rows(run("a")) == [["first"]]


def test_a_name_that_nobody_knows(twin: Twin) -> None:
    for data in (run("nothing"), describe("nothing", b"S") + SYNC):
        for _ in range(3):
            assert twin.sqlstate(data) == "26000"
            assert twin.rows(query("SELECT 1")) == [["1"]]
    # it is no error to close it
    assert wire.kinds(twin.say(close("nothing") + SYNC)) == "3Z"
    twin.say(query("BEGIN"))
    assert twin.sqlstate(run("nothing")) == "26000"
    assert twin.sqlstate(query("SELECT 1")) == "25P02"
    twin.say(query("ROLLBACK"))


def test_strange_names(twin: Twin) -> None:
    names = ["Name", "with \"quotes\" and 'more'", "näme", "x" * 63, "; --", "%s", "$1"]
    for number, name in enumerate(names):
        twin.say(prepare(f"SELECT '{number}'::text", name))
    for number, name in enumerate(names):
        assert twin.rows(run(name)) == [[str(number)]]
    assert twin.sqlstate(query('DEALLOCATE "with ""quotes"" and \'more\'"')) == ""
    assert twin.sqlstate(query('DEALLOCATE "näme"')) == ""
    assert twin.sqlstate(query(f"DEALLOCATE {'x' * 63}")) == ""
    for name in (names[1], names[2], names[3]):
        assert twin.sqlstate(run(name)) == "26000"


def test_types_of_parameters_make_another_statement(twin: Twin) -> None:
    sql = "SELECT pg_typeof($1)::text"
    twin.say(typed(sql, "a", INT4) + SYNC)
    twin.say(typed(sql, "b", TEXT) + SYNC)
    assert twin.sqlstate(prepare(sql, "c")) == "42P18"
    for _ in range(3):
        assert twin.rows(run("a", "7")) == [["integer"]]
        assert twin.rows(run("b", "7")) == [["text"]]
    assert twin.sqlstate(run("a", "seven")) == "22P02"


def test_a_parse_that_fails_leaves_no_trace(twin: Twin) -> None:
    for sql, sqlstate in (("SELEC 1", "42601"), ("SELECT * FROM nowhere", "42P01")):
        assert twin.sqlstate(prepare(sql, "a")) == sqlstate
        assert twin.sqlstate(run("a")) == "26000"
        assert twin.sqlstate(prepare(sql, "a")) == sqlstate
        # all that follows is skipped
        data = parse(sql, "a") + bind(name="a") + execute() + SYNC
        assert twin.sqlstate(data) == sqlstate
        twin.say(prepare("SELECT 'good'::text", "a"))
        assert twin.rows(run("a")) == [["good"]]
        twin.say(close("a") + SYNC)


def test_an_error_in_the_middle_of_a_pipeline(twin: Twin) -> None:
    """What comes before it was prepared, what comes behind it was skipped."""
    data = (
        parse("SELECT 'one'::text", "a")
        + bind(name="a") + execute()
        + parse("SELEC 2", "b")
        + parse("SELECT 'three'::text", "c")
        + bind(name="c") + execute()
        + SYNC
        + parse("SELECT 'four'::text", "d") + bind(name="d") + execute() + SYNC
    )  # fmt: skip
    answer = twin.say(data, units=2)
    assert wire.kinds(answer) == "12DCEZ12DCZ"
    assert twin.rows(run("a")) == [["one"]]
    assert twin.sqlstate(run("b")) == "26000"
    assert twin.sqlstate(run("c")) == "26000"
    assert twin.rows(run("d")) == [["four"]]


def test_a_name_whose_parse_has_failed_is_parsed_again_at_once(twin: Twin) -> None:
    data = prepare("SELEC 1", "a") + prepare("SELECT 'good'::text", "a") + run("a")
    assert wire.kinds(twin.say(data, units=3)) == "EZ1Z2DCZ"
    assert twin.rows(run("a")) == [["good"]]


def test_close_behind_an_error_is_skipped(twin: Twin) -> None:
    twin.say(prepare("SELECT 'one'::text", "a"))
    assert twin.sqlstate(parse("SELECT 1/0") + bind() + execute() + close("a") + SYNC) == "22012"
    assert twin.rows(run("a")) == [["one"]]
    data = bind(name="nothing") + close("a") + parse("SELECT 'two'::text", "a") + SYNC
    assert twin.sqlstate(data) == "26000"
    assert twin.rows(run("a")) == [["one"]]


def test_close_and_parse_in_one_unit(twin: Twin) -> None:
    for number in range(4):
        sql = f"SELECT '{number}'::text"
        data = close("a") + parse(sql, "a") + bind(name="a") + execute() + SYNC
        assert wire.kinds(twin.say(data)) == "312DCZ"
        assert twin.rows(run("a")) == [[str(number)]]


def test_in_a_transaction(twin: Twin) -> None:
    """Statements are no transaction's affair, and a failed one takes none."""
    twin.say(query("BEGIN"))
    twin.say(prepare("SELECT 'one'::text", "a"))
    assert twin.rows(run("a")) == [["one"]]
    assert twin.sqlstate(query("SELECT 1/0")) == "22012"
    assert twin.sqlstate(prepare("SELECT 2", "b")) == "25P02"
    assert twin.sqlstate(run("a")) == "25P02"
    assert twin.sqlstate(run("b")) == "26000"
    twin.say(query("ROLLBACK"))
    assert twin.rows(run("a")) == [["one"]]
    assert twin.sqlstate(run("b")) == "26000"
    twin.say(query("BEGIN"))
    twin.say(close("a") + SYNC)
    twin.say(query("ROLLBACK"))
    assert twin.sqlstate(run("a")) == "26000"


def test_close_in_a_failed_transaction(twin: Twin) -> None:
    twin.say(prepare("SELECT 'one'::text", "a"))
    twin.say(query("BEGIN"))
    assert twin.sqlstate(query("SELECT 1/0")) == "22012"
    assert wire.kinds(twin.say(close("a") + SYNC)) == "3Z"
    twin.say(query("ROLLBACK"))
    assert twin.sqlstate(run("a")) == "26000"


def test_prepared_begin_and_commit(twin: Twin) -> None:
    """As pgjdbc does it."""
    for name, sql in (("b", "BEGIN"), ("c", "COMMIT"), ("r", "ROLLBACK")):
        twin.say(prepare(sql, name))
    twin.say(prepare("SELECT set_config('my.own', $1, false)", "s"))
    twin.say(prepare("SELECT current_setting('my.own', true)", "g"))
    twin.say(run("s", "0"))
    kept = "0"
    for number, end in enumerate("ccrrc"):
        assert twin.say(run("b"))[-1].status == "T"
        assert twin.rows(run("g")) == [[kept]]
        twin.say(run("s", str(number)))
        assert twin.rows(run("g")) == [[str(number)]]
        assert twin.say(run(end))[-1].status == "I"
        kept = str(number) if end == "c" else kept
        assert twin.rows(run("g")) == [[kept]]
    answer = twin.say(bind(name="b") + execute() + bind(name="g") + execute() + SYNC)
    assert answer[-1].status == "T"
    assert (
        twin.say(bind(name="r") + execute() + bind(name="g") + execute() + SYNC)[-1].status == "I"
    )


def test_a_prepared_set(twin: Twin) -> None:
    """What a statement does to the session it does when it is executed."""
    twin.say(prepare("SET TimeZone = 'Asia/Tokyo'", "a"))
    twin.say(prepare("SELECT set_config('work_mem', $1, false)", "b"))
    twin.say(prepare("SELECT current_setting('TimeZone'), current_setting('work_mem')", "look"))
    fresh = twin.rows(run("look"))
    for number in range(3):
        twin.say(run("a"))
        twin.say(run("b", f"{70 + number}kB"))
        assert twin.rows(run("look")) == [["Asia/Tokyo", f"{70 + number}kB"]]
        assert twin.rows(run("look")) == [["Asia/Tokyo", f"{70 + number}kB"]]
        twin.say(query("RESET TimeZone; RESET work_mem"))
        assert twin.rows(run("look")) == fresh


def test_a_prepared_copy(twin: Twin) -> None:
    twin.say(prepare("COPY (SELECT 'x') TO STDOUT", "a"))
    for _ in range(3):
        assert wire.kinds(twin.say(run("a"))) == "2HdcCZ"


def test_rows_a_few_at_a_time(twin: Twin) -> None:
    twin.say(prepare("SELECT generate_series(1, 5)::text", "a"))
    twin.say(query("BEGIN"))
    assert wire.kinds(twin.say(bind(name="a", portal="p") + execute("p", 2) + SYNC)) == "2DDsZ"
    twin.say(prepare("SELECT 'between'::text", "b"))
    assert twin.rows(run("b")) == [["between"]]
    twin.say(close("a") + SYNC)
    assert twin.rows(execute("p", 2) + SYNC) == [["3"], ["4"]]
    assert twin.rows(execute("p", 2) + SYNC) == [["5"]]
    twin.say(query("COMMIT"))
    assert twin.sqlstate(execute("p") + SYNC) == "34000"


def test_an_unnamed_statement_is_bound_later(twin: Twin) -> None:
    twin.say(prepare("SELECT 'mine' || $1::text"))
    for number in range(3):
        assert twin.rows(run("", str(number))) == [[f"mine{number}"]]
        twin.say(describe("", b"S") + SYNC)
    # also in a transaction, and after one
    twin.say(prepare("BEGIN", "b"))
    twin.say(run("b"))
    assert twin.rows(run("", "x")) == [["minex"]]
    twin.say(prepare("COMMIT", "c"))
    twin.say(run("c"))
    assert twin.rows(run("", "y")) == [["miney"]]
    twin.say(prepare("SELECT 'another'::text"))
    assert twin.rows(run()) == [["another"]]


@pytest.mark.parametrize(
    "forget",
    [query("SELECT 1"), query(""), query("BEGIN; COMMIT"), close() + SYNC, prepare("SELEC 1")],
    ids=["query", "empty query", "string", "close", "parse that fails"],
)
def test_an_unnamed_statement_that_is_gone(twin: Twin, forget: bytes) -> None:
    twin.say(prepare("SELECT 'mine'::text"))
    twin.say(forget)
    assert twin.sqlstate(run()) == "26000"
    assert twin.sqlstate(describe("", b"S") + SYNC) == "26000"


def test_an_unnamed_statement_behind_one_that_fails(twin: Twin) -> None:
    """In a pipeline the second was sent before the first had failed."""
    for bad in ("SELEC 1", "SELECT * FROM nowhere", "SELECT 1/0"):
        data = wire.unit(bad) + prepare("SELECT 'mine'::text") + run()
        assert wire.rows(twin.say(data, units=3)) == [["mine"]]
        assert twin.rows(run()) == [["mine"]]


def test_there_has_never_been_an_unnamed_statement(twin: Twin) -> None:
    assert twin.sqlstate(run()) == "26000"


# Statements with the same text that mean something else to each.


def test_each_client_sees_the_tables_of_its_search_path(place: Place) -> None:
    schemas = ["mine_" + token().replace("-", "") for _ in range(3)]
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(direct(place.proxy.server, user=USER))
        for schema in schemas:
            connection.execute(f"CREATE SCHEMA {schema}".encode())
            stack.callback(connection.execute, f"DROP SCHEMA {schema} CASCADE".encode())
            connection.execute(
                f"CREATE TABLE {schema}.place AS SELECT '{schema}'::text AS v".encode()
            )
        clients = []
        for schema in schemas:
            client = stack.enter_context(place.connect(autocommit=True))
            client.execute(f"SET search_path = {schema}".encode())
            clients.append(client)
        wanted = list(schemas)
        for number in range(8):
            for client, schema in zip(clients, wanted, strict=True):
                assert client.execute("SELECT v FROM place").fetchall() == [(schema,)]
            if number == 4:
                # one looks elsewhere
                clients[0].execute(f"SET search_path = {schemas[1]}".encode())
                wanted[0] = schemas[1]
        place.assert_unpinned()


def test_a_search_path_that_changes_under_a_statement(twin: Twin) -> None:
    """It is read again, and finds other tables whose rows look the same."""
    schemas = ["mine_" + token().replace("-", "") for _ in range(2)]
    with direct(twin.proxy.server, user=USER) as connection, contextlib.ExitStack() as stack:
        for schema in schemas:
            connection.execute(f"CREATE SCHEMA {schema}".encode())
            stack.callback(connection.execute, f"DROP SCHEMA {schema} CASCADE".encode())
            connection.execute(f"CREATE TABLE {schema}.t AS SELECT '{schema}'::text AS v".encode())
        twin.say(query(f"SET search_path = {schemas[0]}"))
        for name in "abcd":
            twin.say(parse(f"SELECT v FROM t -- {name}", name) + describe(name, b"S") + SYNC)
        twin.say(query(f"SET search_path = {schemas[1]}"))
        for name in "abcd":
            twin.say(query("BEGIN"))
            assert twin.rows(run(name)) == [[schemas[1]]]
            twin.say(query("COMMIT"))
            assert twin.rows(run(name)) == [[schemas[1]]]


READ_AT_PARSE: Final = [
    ("DateStyle", "SQL, DMY", "SQL, MDY", "SELECT to_char('01/02/2024'::date, 'MonDD')"),
    ("TimeZone", "'Asia/Tokyo'", "'UTC'",
     "SELECT extract(epoch FROM '2024-01-01'::timestamptz)::text"),
    ("IntervalStyle", "sql_standard", "postgres",
     "SELECT extract(epoch FROM '-1 2:00:00'::interval)::text"),
    ("standard_conforming_strings", "off", "on", r"SELECT length('a\\b')::text"),
    ("my.setting", "one", "two", "SELECT current_setting('my.setting')"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "one", "other", "sql"), READ_AT_PARSE, ids=[each[0] for each in READ_AT_PARSE]
)
def test_each_clients_settings_give_its_text_its_meaning(
    proxy: Proxy, name: str, one: str, other: str, sql: str
) -> None:
    def answers(place: Place) -> list[list[list[str | None]]]:
        clients = []
        for literal in (one, other, one, other):
            client = stack.enter_context(place.wire())
            client.ask(query(f"SET {name} TO {literal}"))
            client.ask(prepare(sql, "a"))
            clients.append(client)
        return [wire.rows(client.ask(run("a"))) for _ in range(3) for client in clients]

    with contextlib.ExitStack() as stack:
        expected = answers(Place(proxy, proxied=False))
        assert expected[0] != expected[1]
        assert answers(Place(proxy, proxied=True)) == expected
        assert_unpinned(proxy)


# Plans that are out of date.


def alter(server: EmbeddedPostgres, sql: str) -> None:
    """Somebody changes a table."""
    with direct(server, user=USER) as connection:
        connection.execute(sql.encode())


def test_a_plan_that_is_out_of_date_is_made_anew(proxy: Proxy, table: str) -> None:
    """Outside of transactions nobody sees it, whichever backend has the old plan."""
    place = Place(proxy, proxied=True)
    sql = f"SELECT * FROM {table}".encode()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(place.connect(autocommit=True)) for _ in range(CLIENTS)]
        expected: tuple[Any, ...] = (1, "one")
        for number in range(3):
            for client in clients:
                assert client.execute(sql).fetchall() == [expected]
                with client.transaction():
                    ask(client)
            alter(proxy.server, f"ALTER TABLE {table} ADD COLUMN c{number} int DEFAULT {number}")
            expected += (number,)
        assert_unpinned(proxy)


def test_a_direct_connection_sees_that_a_plan_is_out_of_date(proxy: Proxy, table: str) -> None:
    """What is unseen through the proxy is an error without it."""
    place = Place(proxy, proxied=False)
    sql = f"SELECT * FROM {table}".encode()
    with place.connect(autocommit=True) as client:
        client.execute(sql)
        alter(proxy.server, f"ALTER TABLE {table} ADD COLUMN c int")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            client.execute(sql)


def looked_at(name: str) -> bytes:
    """Bind, Describe, Execute and Sync."""
    return bind(name=name) + describe() + execute() + SYNC


def test_a_plan_that_is_out_of_date_in_a_transaction(proxy: Proxy, table: str) -> None:
    """There it may fail, once: what was done before it cannot be done again unseen."""
    with Place(proxy, proxied=True).wire() as client:
        client.ask(prepare(f"SELECT * FROM {table}", "a"))
        for _ in range(4):
            assert wire.rows(client.ask(looked_at("a"))) == [["1", "one"]]
        alter(proxy.server, f"ALTER TABLE {table} ADD COLUMN c int DEFAULT 7")
        client.ask(query("BEGIN"))
        client.ask(query("SELECT 1"))
        failures = wire.errors(client.ask(looked_at("a")))
        assert [each.sqlstate for each in failures] in ([], ["0A000"])
        client.ask(query("ROLLBACK"))
        for _ in range(4):
            assert wire.rows(client.ask(looked_at("a"))) == [["1", "one", "7"]]


def test_a_plan_that_is_out_of_date_whose_rows_the_client_knows(proxy: Proxy, table: str) -> None:
    """One that does not ask again what rows look like must hear that they look otherwise."""
    with Place(proxy, proxied=True).wire() as client:
        sql = f"SELECT * FROM {table}"
        client.ask(parse(sql, "a") + describe("a", b"S") + SYNC)
        assert wire.rows(client.ask(run("a"))) == [["1", "one"]]
        alter(proxy.server, f"ALTER TABLE {table} ADD COLUMN c int DEFAULT 7")
        assert [each.sqlstate for each in wire.errors(client.ask(run("a")))] == ["0A000"]
        client.ask(close("a") + parse(sql, "a") + describe("a", b"S") + SYNC)
        assert wire.rows(client.ask(run("a"))) == [["1", "one", "7"]]


def test_a_table_that_is_gone_and_comes_back(twin: Twin, table: str) -> None:
    twin.say(prepare(f"SELECT b FROM {table}", "a"))
    assert twin.rows(run("a")) == [["one"]]
    alter(twin.proxy.server, f"ALTER TABLE {table} RENAME TO {table}x")
    assert twin.sqlstate(run("a")) == "42P01"
    assert twin.sqlstate(run("a")) == "42P01"
    alter(twin.proxy.server, f"ALTER TABLE {table}x RENAME TO {table}")
    for _ in range(3):
        assert twin.rows(run("a")) == [["one"]]


# More than a backend remembers.


def test_more_statements_than_are_remembered(place: Place) -> None:
    number = 1200
    with place.wire() as one, place.wire() as other:
        for client, whose in ((one, "one"), (other, "other")):
            data = b"".join(parse(f"SELECT '{whose} {n}'::text", str(n)) for n in range(number))
            assert not wire.errors(client.ask(data + SYNC))
        for step in (10, 70):
            for n in range(0, number, step):
                assert wire.rows(one.ask(run(str(n)))) == [[f"one {n}"]]
                assert wire.rows(other.ask(run(str(n)))) == [[f"other {n}"]]
        # in one unit, too
        data = b"".join(bind(name=str(n)) + execute() for n in range(number))
        assert wire.rows(one.ask(data + SYNC)) == [[f"one {n}"] for n in range(number)]
        place.assert_unpinned()


def test_long_statements(place: Place) -> None:
    """Together they are more than a backend is made to remember."""
    long = "x" * 60_000
    with place.wire() as client:
        for n in range(150):
            client.ask(prepare(f"SELECT '{n} {long}'::text", str(n)))
        for n in (0, 149, 75, 0, 1):
            assert wire.rows(client.ask(run(str(n)))) == [[f"{n} {long}"]]
        place.assert_unpinned()


@pytest.mark.parametrize("name", ["", "a"])
def test_a_statement_that_is_too_long_to_be_kept(proxy: Proxy, name: str) -> None:
    """It comes in pieces, and is passed on as it comes. Elsewhere it is refused, or it is right."""
    long = "x" * 1_000_000
    place = Place(proxy, proxied=True)
    with place.wire() as client, place.wire() as one, place.wire() as other:
        for _ in range(2):
            message = prepare(f"SELECT length('{long}')::text", name)
            assert not wire.errors(client.ask(message))
            for each in (one, other):
                each.ask(query("BEGIN"))
            for each in (one, other):
                each.ask(wire.unit("SELECT 'another'::text"))
                each.ask(query("COMMIT"))
            answer = client.ask(run(name))
            if wire.errors(answer):
                assert wire.errors(answer)[0].sqlstate == "0A000"
            else:
                assert wire.rows(answer) == [["1000000"]]
            client.ask(close(name) + SYNC)
            assert wire.rows(client.ask(query("SELECT 1"))) == [["1"]]


# psycopg 3.


def test_psycopg_prepares_everything(place: Place) -> None:
    def work(index: int) -> None:
        with place.connect() as connection:
            for number in range(ROUNDS):
                with connection.transaction():
                    mine = token()
                    found = connection.execute("SELECT %s::text, %s::int", [mine, number])
                    assert found.fetchone() == (mine, number)
                found = connection.execute(b"SELECT '%d %d'::text" % (index, number))
                assert found.fetchone() == (f"{index} {number}",)
                connection.rollback()

    in_threads(work, CLIENTS)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(place.connect(autocommit=True)) for _ in range(CLIENTS)]
        for number in range(ROUNDS):
            for client in clients:
                assert client.execute("SELECT %s::int", [number]).fetchone() == (number,)
        place.assert_unpinned()


def test_psycopg_goes_on_after_errors(place: Place) -> None:
    with place.connect(autocommit=True) as one, place.connect(autocommit=True) as other:
        for _ in range(3):
            for client in (one, other):
                with pytest.raises(psycopg.errors.DivisionByZero):
                    client.execute("SELECT 1 / %s::int", [0])
                with pytest.raises(psycopg.errors.UndefinedTable):
                    client.execute("SELECT * FROM nowhere")
                with contextlib.suppress(ZeroDivisionError), client.transaction():
                    ask(client)
                    raise ZeroDivisionError
                assert client.execute("SELECT 1 / %s::int", [1]).fetchone() == (1,)


def test_psycopg_is_told_to_forget(place: Place) -> None:
    """It closes or deallocates what it holds too many of."""
    with place.connect(autocommit=True) as one, place.connect(autocommit=True) as other:
        for client in (one, other):
            client.prepared_max = 3
        for number in range(12):
            for client in (one, other):
                for again in (number, number - 1, number - 2):
                    found = client.execute(f"SELECT {again}".encode()).fetchone()
                    assert found == (again,)
        place.assert_unpinned()


def test_executemany(place: Place, table: str) -> None:
    with place.connect() as connection, connection.cursor() as cursor:
        sql = f"INSERT INTO {table} VALUES (%s, %s) RETURNING a".encode()
        cursor.executemany(sql, [(number, token()) for number in range(200)], returning=True)
        connection.commit()
        found = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert found == (201,)


def test_pipeline_mode(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(place.connect(autocommit=True)) for _ in range(CLIENTS)]
        for number in range(4):
            for client in clients:
                with client.pipeline() as pipeline:
                    cursors = [client.execute("SELECT %s::int + 1", [n]) for n in range(number, 20)]
                    pipeline.sync()
                    more = [client.execute("SELECT %s::text", [str(n)]) for n in range(10)]
                assert [each.fetchone() for each in cursors] == [
                    (n + 1,) for n in range(number, 20)
                ]
                assert [each.fetchone() for each in more] == [(str(n),) for n in range(10)]
        place.assert_unpinned()


def fail_and_go_on(client: psycopg.Connection[Any], pipeline: psycopg.Pipeline) -> None:
    """It may have read the error already when the next statement is said."""
    client.execute("SELECT 1 / %s::int", [0])
    client.execute("SELECT %s::int + 2", [2])
    pipeline.sync()


def test_an_error_in_pipeline_mode(place: Place) -> None:
    with place.connect(autocommit=True) as one, place.connect(autocommit=True) as other:
        for client in (one, other, one):
            with client.pipeline() as pipeline:
                first = client.execute("SELECT %s::int", [1])
                with pytest.raises(psycopg.errors.DivisionByZero):
                    fail_and_go_on(client, pipeline)
                with contextlib.suppress(psycopg.errors.PipelineAborted):
                    pipeline.sync()
                after = client.execute("SELECT %s::int + 3", [3])
                pipeline.sync()
                assert first.fetchone() == (1,)
                assert after.fetchone() == (6,)
            assert client.execute("SELECT %s::int + 2", [2]).fetchone() == (4,)


def test_transactions_in_pipeline_mode(place: Place, table: str) -> None:
    insert = f"INSERT INTO {table} VALUES (%s, 'new')".encode()
    with place.connect() as client:
        with client.pipeline():
            for number in range(10):
                client.execute(insert, [number])
            client.commit()
            for number in range(10):
                client.execute(insert, [number])
            client.rollback()
        found = client.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert found == (11,)


# asyncpg.


async def test_asyncpg_with_its_cache(place: Place) -> None:
    """Its default: every statement is prepared, under a name, and kept."""
    clients = [await place.asyncpg() for _ in range(CLIENTS)]

    async def work(client: "asyncpg.Connection[Any]", index: int) -> None:
        for number in range(ROUNDS):
            assert await client.fetchval("SELECT $1::int + 1", number) == number + 1
            assert (
                await client.fetchval(f"SELECT '{index}-{number % 3}'") == f"{index}-{number % 3}"
            )
            async with client.transaction():
                mine = token()
                assert await client.fetchval("SELECT $1::text", mine) == mine
            with pytest.raises(asyncpg.DivisionByZeroError):
                await client.fetchval("SELECT 1 / $1::int", 0)

    try:
        await asyncio.gather(*(work(client, index) for index, client in enumerate(clients)))
        for client in clients:
            await work(client, 0)
        await asyncio.to_thread(place.assert_unpinned)
    finally:
        for client in clients:
            await client.close()


async def test_asyncpg_evicts_what_it_has_too_much_of(place: Place) -> None:
    clients = [await place.asyncpg(statement_cache_size=3) for _ in range(CLIENTS)]
    try:
        for number in range(12):
            for client in clients:
                for again in (number, number - 1, number - 2, number - 3):
                    assert await client.fetchval(f"SELECT {again}") == again
    finally:
        for client in clients:
            await client.close()


async def test_asyncpgs_own_prepared_statements(place: Place) -> None:
    clients = [await place.asyncpg() for _ in range(CLIENTS)]
    try:
        statements = []
        for client in clients:
            statement = await client.prepare("SELECT $1::int * 2")
            # until it is first used its unit has no Sync, and a backend is in the midst of it
            assert await statement.fetchval(1) == 2
            statements.append(statement)
        for number in range(ROUNDS):
            for client, statement in zip(clients, statements, strict=True):
                assert await statement.fetchval(number) == number * 2
                assert await client.fetch("SELECT 1") == [(1,)]
        assert [each.name for each in statements[0].get_parameters()] == ["int4"]
        for client in clients:
            async with client.transaction():
                cursor = await client.cursor("SELECT generate_series(1, $1::int)", 5)
                assert [row[0] for row in await cursor.fetch(3)] == [1, 2, 3]
                assert await client.fetchval("SELECT 1") == 1
                assert [row[0] for row in await cursor.fetch(3)] == [4, 5]
        await asyncio.to_thread(place.assert_unpinned)
    finally:
        for client in clients:
            await client.close()


async def test_asyncpg_after_a_table_was_altered(place: Place, table: str) -> None:
    client = await place.asyncpg()
    try:
        sql = f"SELECT * FROM {table}"
        assert [tuple(row) for row in await client.fetch(sql)] == [(1, "one")]
        alter(place.proxy.server, f"ALTER TABLE {table} ADD COLUMN c int DEFAULT 7")
        for _ in range(3):
            assert [tuple(row) for row in await client.fetch(sql)] == [(1, "one", 7)]
    finally:
        await client.close()


async def test_asyncpgs_pool(place: Place) -> None:
    """It says DISCARD-like things whenever a connection comes back."""
    async with asyncpg.create_pool(
        database=DATABASE, user=USER, min_size=CLIENTS, max_size=CLIENTS, **place.where
    ) as pool:

        async def work(number: int) -> None:
            async with pool.acquire() as client:
                assert await client.fetchval("SELECT $1::int + 1", number) == number + 1
                async with client.transaction():
                    assert await client.fetchval("SELECT $1::text", str(number)) == str(number)

        await asyncio.gather(*(work(number) for number in range(CLIENTS * ROUNDS)))
        await asyncio.to_thread(place.assert_unpinned)


# Django.


def test_django_with_server_side_binding(proxy: Proxy) -> None:
    site = Site(proxy, "psycopg")
    proxy.kwargs()
    try:
        site.act("migrate")
        site.act("server_side_binding")
        site.act("migrate_back")
    finally:
        site.close()
    assert len(backends(proxy.server)) <= 4
