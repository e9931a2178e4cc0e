"""What a client sets it finds on every backend, and nobody else does, however it was set."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import pytest

from tests.system import console
from tests.system.keeping import Connection, elsewhere, pid, pin, value
from tests.system.proxy import Proxy, ask, direct, in_threads
from txproxy.cli.embedded import EmbeddedPostgres

SHOWS: Final = "SELECT coalesce(current_setting('{}', true), '')"
WORK_MEM: Final = SHOWS.format("work_mem")


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {"proxy": console.SETTINGS, "databases": {"app": {}, "one": {"pool_size": 1}}}


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Connection]:
    with proxy.connect(autocommit=True) as connection:
        yield connection


@pytest.fixture
def stranger(proxy: Proxy) -> Iterator[Connection]:
    with proxy.connect(autocommit=True) as connection:
        yield connection


def run(connection: Connection, statements: str) -> None:
    """By a Query, which may have several."""
    psycopg.ClientCursor(connection).execute(statements.encode())


# How it is set.

WAYS: Final = [
    ("SET work_mem = '65kB'", WORK_MEM, "65kB"),
    ("SET SESSION work_mem TO '66kB'", WORK_MEM, "66kB"),
    ("SET statement_timeout = '77s'", SHOWS.format("statement_timeout"), "77s"),
    ("SET statement_timeout = 77777", SHOWS.format("statement_timeout"), "77777ms"),
    ("SET seq_page_cost = 1.25", SHOWS.format("seq_page_cost"), "1.25"),
    ("SET my.setting = 'it''s \\'", SHOWS.format("my.setting"), "it's \\"),
    ("SET \"app\".\"user\" = 'ann'", SHOWS.format("app.user"), "ann"),
    ("SELECT set_config('app.user', 'bob', false)", SHOWS.format("app.user"), "bob"),
    ("SELECT set_config('My.Other', 'mine', false)", SHOWS.format("my.other"), "mine"),
    ("SELECT set_config('work_mem', '67kB', false), set_config('my.other', 'x', false)",
     "SELECT current_setting('work_mem') || current_setting('my.other', true)", "67kBx"),
    ("UPDATE pg_settings SET setting = '68' WHERE name = 'work_mem'", WORK_MEM, "68kB"),
    ("SET ROLE other", "SELECT current_user::text", "other"),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
     "SELECT current_setting('transaction_isolation')||current_setting('transaction_read_only')",
     "serializableon"),
    ('SET search_path = pg_catalog, "$user"', SHOWS.format("search_path"),
     'pg_catalog, "$user"'),
    ("SET SCHEMA 'pg_catalog'", SHOWS.format("search_path"), "pg_catalog"),
    ("SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE", SHOWS.format("TimeZone"), "<-08>+08"),
    ("SET XML OPTION DOCUMENT", SHOWS.format("xmloption"), "document"),
    ("SET plpgsql.variable_conflict = use_column", SHOWS.format("plpgsql.variable_conflict"),
     "use_column"),
    ("SELECT 1; SET work_mem = '69kB'; SELECT 2", WORK_MEM, "69kB"),
    ("/* SELECT */ SET /* a */ work_mem TO -- b\n '70kB'", WORK_MEM, "70kB"),
    ("DO $$ BEGIN SET work_mem = '71kB'; END $$", WORK_MEM, "71kB"),
    ("DO $$ BEGIN PERFORM set_config('my.done', 'x', false); END $$", SHOWS.format("my.done"),
     "x"),
    ("BEGIN; SET work_mem = '72kB'; SAVEPOINT s; SET work_mem = '1MB'; ROLLBACK TO s; COMMIT",
     WORK_MEM, "72kB"),
    ("BEGIN; SET work_mem = '73kB'; SET LOCAL work_mem = '1MB'; COMMIT", WORK_MEM, "73kB"),
    ("SET work_mem = '1MB'; SET work_mem = '74kB'", WORK_MEM, "74kB"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "look", "expected"), WAYS, ids=[way[0][:40] for way in WAYS])
def test_what_is_set_is_found_on_every_backend(
    proxy: Proxy,
    client: Connection,
    stranger: Connection,
    make: str,
    look: str,
    expected: str,
) -> None:
    fresh = value(stranger, look)
    assert fresh != expected
    run(client, make)
    assert value(client, look) == expected
    assert value(stranger, look) == fresh
    assert pin(proxy, client.fileno(), "") == ""
    for _ in range(2):
        with elsewhere(proxy, client):
            assert value(client, look) == expected
            assert value(stranger, look) == fresh
    with elsewhere(proxy, stranger):
        assert value(stranger, look) == fresh


# What is undone.

UNDONE: Final = [
    "BEGIN; SET {0} = 'x1'; ROLLBACK",
    "BEGIN; SELECT set_config('{0}', 'x1', false); ROLLBACK",
    "BEGIN; SAVEPOINT s; SET {0} = 'x1'; ROLLBACK TO s; COMMIT",
    "BEGIN; SET LOCAL {0} = 'x1'; COMMIT",
    "SELECT set_config('{0}', 'x1', true)",
    "SET {0} = 'x1'; RESET {0}",
    "SET {0} = 'x1'; SET {0} TO DEFAULT",
    "SET {0} = 'x1'; RESET ALL",
    "SET {0} = 'x1'; SELECT 1/0",
    "DO $$ BEGIN SET {0} = 'x1'; RAISE 'no'; EXCEPTION WHEN raise_exception THEN END $$",
]  # fmt: skip


@pytest.mark.parametrize("name", ["my.undone", "default_table_access_method"])
@pytest.mark.parametrize("statements", UNDONE)
def test_what_is_undone_is_undone_everywhere(
    proxy: Proxy, client: Connection, stranger: Connection, statements: str, name: str
) -> None:
    look = SHOWS.format(name)
    fresh = value(stranger, look)
    with contextlib.suppress(psycopg.errors.DivisionByZero):
        run(client, statements.format(name).replace("'x1'", "'heap'"))
    assert value(client, look) == fresh
    with elsewhere(proxy, client):
        assert value(client, look) == fresh
    assert value(stranger, look) == fresh


def test_each_statement_of_a_transaction_by_itself(proxy: Proxy, client: Connection) -> None:
    """As Django does it: BEGIN and COMMIT are statements of their own."""
    for ending, expected in (("COMMIT", "65kB"), ("ROLLBACK", "65kB"), ("COMMIT", "67kB")):
        client.execute("BEGIN")
        client.execute(f"SET work_mem = '{'65kB' if expected == '65kB' else '67kB'}'".encode())
        if ending == "ROLLBACK":
            client.execute("SET work_mem = '1MB'")
        client.execute("SAVEPOINT s")
        client.execute("SET work_mem = '2MB'")
        client.execute("ROLLBACK TO s")
        client.execute(ending.encode())
        assert value(client, WORK_MEM) == expected
        with elsewhere(proxy, client):
            assert value(client, WORK_MEM) == expected


def test_a_reset_custom_setting_is_empty_as_directly(
    proxy: Proxy, client: Connection, server: EmbeddedPostgres
) -> None:
    with direct(server, user="app") as other:
        for connection in (client, other):
            connection.execute("SET my.reset = 'x'")
            connection.execute("RESET my.reset")
            assert value(connection, "SELECT current_setting('my.reset')") == ""
    with elsewhere(proxy, client):
        assert value(client, "SELECT current_setting('my.reset')") == ""


# From the start.


@pytest.mark.parametrize("back", ["RESET ALL", "DISCARD ALL"])
def test_back_to_the_start(proxy: Proxy, stranger: Connection, back: str) -> None:
    options = "-c work_mem=65kB -c my.start=mine -c search_path=pg_catalog"
    wanted = {"work_mem": "65kB", "my.start": "mine", "search_path": "pg_catalog"}
    fresh = {name: value(stranger, SHOWS.format(name)) for name in (*wanted, "my.later")}
    with proxy.connect(autocommit=True, options=options) as client:
        client.execute("SET work_mem = '66kB'")
        client.execute("SET my.start = 'other'")
        client.execute("SET my.later = 'later'")
        client.execute("SET ROLE other")
        with elsewhere(proxy, client):
            assert value(client, WORK_MEM) == "66kB"
            assert value(client, SHOWS.format("my.later")) == "later"
        client.execute("RESET ROLE")
        client.execute(back.encode())
        assert pin(proxy, client.fileno(), "") == ""
        for _ in range(2):
            with elsewhere(proxy, client):
                for name, expected in wanted.items():
                    assert value(client, SHOWS.format(name)) == expected
                assert value(client, SHOWS.format("my.later")) == ""
                assert value(client, "SELECT current_user::text") == "app"
    for name, expected in fresh.items():
        assert value(stranger, SHOWS.format(name)) == expected


@pytest.mark.parametrize("name", ["log_disconnections", "shared_buffers", "max_connections"])
def test_what_only_the_server_may_set_is_refused_as_directly(
    proxy: Proxy, server: EmbeddedPostgres, name: str
) -> None:
    with pytest.raises(psycopg.OperationalError) as expected:
        direct(server, user="app", options=f"-c {name}=1")
    with pytest.raises(psycopg.OperationalError) as caught:
        proxy.connect(options=f"-c {name}=1")
    words = str(caught.value).partition("FATAL: ")[2].strip()
    assert words
    if name != "log_disconnections":  # directly it may be given, but only by a superuser
        assert words == str(expected.value).partition("FATAL: ")[2].strip()


# Who the session is.


def test_roles_go_with_their_session(
    proxy: Proxy, client: Connection, stranger: Connection
) -> None:
    who = "SELECT session_user || current_user::text"
    client.execute("SET ROLE other")
    client.execute("SET work_mem = '65kB'")
    for _ in range(3):
        with elsewhere(proxy, client):
            assert value(client, who) == "appother"
            assert value(client, WORK_MEM) == "65kB"
            assert value(stranger, who) == "appapp"
        assert value(stranger, who) == "appapp"
    client.execute("SET ROLE NONE")
    for _ in range(2):
        with elsewhere(proxy, client):
            assert value(client, who) == "appapp"
            assert value(client, WORK_MEM) == "65kB"


def test_a_superuser_that_is_somebody_else(proxy: Proxy) -> None:
    who = "SELECT session_user || current_user::text"
    with proxy.connect("app", "postgres", autocommit=True) as client:
        client.execute("SET SESSION AUTHORIZATION app")
        client.execute("SET ROLE other")
        for _ in range(2):
            with held(proxy, client):
                assert value(client, who) == "appother"
        client.execute("RESET SESSION AUTHORIZATION")
        with held(proxy, client):
            assert value(client, who) == "postgrespostgres"


@contextlib.contextmanager
def held(proxy: Proxy, client: Connection) -> Iterator[None]:
    """`elsewhere`, for the pool of a superuser."""
    mine = pid(client)
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(proxy.connect("app", "postgres")) for _ in range(2)]
        by_pid = {pid(other): other for other in others}
        for other in others:
            stack.callback(other.rollback)
        assert mine in by_pid
        for each, other in by_pid.items():
            if each != mine:
                other.rollback()
        assert pid(client) != mine
        yield


def test_a_role_that_may_not_be_taken_any_more(proxy: Proxy, server: EmbeddedPostgres) -> None:
    """The statement does not run, as nobody; the session lives."""
    insert = "INSERT INTO who_was_it VALUES (current_user)"
    with (
        direct(server) as admin,
        proxy.connect("one", autocommit=True) as client,
        proxy.connect("one", autocommit=True) as stranger,
    ):
        admin.execute("CREATE ROLE for_now")
        admin.execute("GRANT for_now TO app")
        admin.execute("CREATE TABLE who_was_it (who text)")
        admin.execute("GRANT ALL ON who_was_it TO PUBLIC")
        try:
            client.execute("SET ROLE for_now")
            ask(stranger)
            client.execute(insert)
            ask(stranger)
            admin.execute("REVOKE for_now FROM app")
            for _ in range(2):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    client.execute(insert)
                assert client.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                assert value(stranger, "SELECT current_user::text") == "app"
            client.execute("BEGIN")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                client.execute(insert)
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                client.execute(insert)
            client.execute("ROLLBACK")
            assert admin.execute("SELECT who FROM who_was_it").fetchall() == [("for_now",)]
            admin.execute("GRANT for_now TO app")
            client.execute(insert)
            assert value(client, "SELECT count(DISTINCT who) FROM who_was_it") == 1
        finally:
            client.close()
            admin.execute("DROP TABLE who_was_it")
            admin.execute("DROP ROLE for_now")


# What is kept on its backend instead.


@pytest.mark.parametrize("back", ["RESET ALL", "DISCARD ALL"])
def test_a_setting_whose_name_nobody_can_know(
    proxy: Proxy, client: Connection, stranger: Connection, back: str
) -> None:
    """The server shows custom settings to nobody who does not name them."""
    look = SHOWS.format("my.computed")
    client.execute("SELECT set_config('my.' || 'computed', 'mine', false)")
    assert pin(proxy, client.fileno(), "settings") == "settings"
    mine = pid(client)
    run(client, f"BEGIN; {'RESET ALL' if back == 'RESET ALL' else 'SELECT 1'}; ROLLBACK")
    assert value(client, look) == "mine"
    for _ in range(3):
        assert value(stranger, look) == ""
    assert pid(client) == mine
    client.execute(back.encode())
    assert pin(proxy, client.fileno(), "") == ""
    with elsewhere(proxy, client):
        assert value(client, look) == ""
    assert value(stranger, look) == ""


def test_a_setting_that_only_another_role_may_set(proxy: Proxy, server: EmbeddedPostgres) -> None:
    with (
        proxy.connect("app", "postgres", autocommit=True) as client,
        proxy.connect("app", "postgres", autocommit=True) as other,
    ):
        fresh = value(other, SHOWS.format("log_statement_sample_rate"))
        client.execute("SET log_statement_sample_rate = 0.5")
        for _ in range(3):
            assert value(other, SHOWS.format("log_statement_sample_rate")) == fresh
            assert value(client, SHOWS.format("log_statement_sample_rate")) == "0.5"
        client.execute("RESET log_statement_sample_rate")
        assert value(client, SHOWS.format("log_statement_sample_rate")) == fresh
        with held(proxy, client):
            pass


def test_settings_too_large_to_be_carried(
    proxy: Proxy, client: Connection, stranger: Connection
) -> None:
    client.execute("SELECT set_config('my.large', repeat('x', 100000), false)")
    assert pin(proxy, client.fileno(), "settings") == "settings"
    assert value(client, "SELECT length(current_setting('my.large'))") == 100_000
    assert value(stranger, SHOWS.format("my.large")) == ""
    client.execute("RESET my.large")
    assert pin(proxy, client.fileno(), "") == ""
    with elsewhere(proxy, client):
        assert value(client, SHOWS.format("my.large")) == ""


def test_a_statement_timeout_that_our_question_runs_into(
    proxy: Proxy, client: Connection, stranger: Connection
) -> None:
    """Whether it does or not: nobody else has it."""
    client.execute("SET statement_timeout = 1")
    for _ in range(3):
        assert value(stranger, SHOWS.format("statement_timeout")) == "0"
    with contextlib.suppress(psycopg.errors.QueryCanceled):
        assert value(client, SHOWS.format("statement_timeout")) == "1ms"


def test_more_names_than_are_remembered(
    proxy: Proxy, client: Connection, stranger: Connection
) -> None:
    run(client, ";".join(f"SET many.n{number} = '{number}'" for number in range(200)))
    assert pin(proxy, client.fileno(), "settings") == "settings"
    for number in (0, 77, 199):
        assert value(client, SHOWS.format(f"many.n{number}")) == str(number)
        assert value(stranger, SHOWS.format(f"many.n{number}")) == ""
    client.execute("RESET ALL")
    assert pin(proxy, client.fileno(), "") == ""


# Encodings.


def test_a_value_that_is_not_ascii_under_several_encodings(proxy: Proxy) -> None:
    with (
        proxy.connect("one", autocommit=True, client_encoding="LATIN1") as latin,
        proxy.connect("one", autocommit=True) as utf8,
        proxy.connect("one", autocommit=True, client_encoding="WIN1251") as cyrillic,
    ):
        said = {latin: "Müller", utf8: "日本 Müller", cyrillic: "Иван"}
        for connection, name in said.items():
            connection.execute("SELECT set_config('my.name', %s, false)", [name])
        for _ in range(3):
            for connection, name in said.items():
                found = connection.execute(
                    "SELECT current_setting('my.name'), length(current_setting('my.name'))"
                ).fetchone()
                assert found == (name, len(name))


# Drivers.


def test_psycopg2(proxy: Proxy, stranger: Connection) -> None:
    client = psycopg2.connect(**proxy.kwargs())
    try:
        for autocommit in (True, False):
            client.autocommit = autocommit
            with client.cursor() as cursor:
                cursor.execute("SET work_mem = %s", ["65kB" if autocommit else "66kB"])
                cursor.execute("SET my.tenant = 'mine'")
            client.commit()
            assert pin(proxy, client.fileno(), "") == ""
            for _ in range(3):
                assert value(stranger, WORK_MEM) == "4MB"
                with client.cursor() as cursor:
                    cursor.execute("SHOW work_mem")
                    assert cursor.fetchone() == ("65kB" if autocommit else "66kB",)
                    cursor.execute("SHOW my.tenant")
                    assert cursor.fetchone() == ("mine",)
                client.commit()
    finally:
        client.close()


async def test_what_asyncpgs_pool_says_when_a_connection_is_given_back(
    proxy: Proxy, stranger: Connection
) -> None:
    async with asyncpg.create_pool(
        **proxy.asyncpg(), min_size=1, max_size=1, statement_cache_size=0
    ) as pool:
        for _ in range(2):
            async with pool.acquire() as client:
                await client.execute("SET work_mem = '65kB'")
                await client.execute("SET my.tenant = 'mine'")
                await client.execute("CREATE TEMP TABLE asyncpgs ()")
                await client.execute("SELECT pg_advisory_lock(77)")
                assert await client.fetchval("SHOW work_mem") == "65kB"
                await client.execute("DROP TABLE asyncpgs")
            async with pool.acquire() as client:
                assert await client.fetchval(WORK_MEM) == "4MB"
                assert await client.fetchval(SHOWS.format("my.tenant")) == ""
                transport = client._transport
                assert pin(proxy, transport.get_extra_info("socket").fileno(), "") == ""
                assert value(stranger, WORK_MEM) == "4MB"


# All of it at once.


def test_many_clients_that_change_their_settings_all_the_time(proxy: Proxy) -> None:
    def work(index: int) -> None:
        with proxy.connect(autocommit=True) as client:
            for number in range(25):
                mine = f"{64 + index * 100 + number}kB"
                client.execute(f"SET work_mem = '{mine}'".encode())
                client.execute(f"SET my.index = '{index}'".encode())
                for _ in range(2):
                    assert value(client, WORK_MEM) == mine
                    assert value(client, SHOWS.format("my.index")) == str(index)
                with contextlib.suppress(ZeroDivisionError), client.transaction():
                    client.execute("SET work_mem = '1MB'")
                    client.execute(f"SET my.index = 'lost {index}'".encode())
                    if number % 2:
                        raise ZeroDivisionError
                    client.execute(f"SET work_mem = '{mine}'".encode())
                    client.execute(f"SET my.index = '{index}'".encode())
                assert value(client, WORK_MEM) == mine
                assert value(client, SHOWS.format("my.index")) == str(index)

    in_threads(work, 6)


def test_a_large_text_in_pieces_that_sets_something_behind_its_data(
    proxy: Proxy, client: Connection, stranger: Connection
) -> None:
    """It comes in more than one piece, so that it is not judged."""
    data = "x" * 1_000_000
    run(client, f"SELECT '{data}'; SET work_mem = '65kB'")
    assert pin(proxy, client.fileno(), "") == ""
    with elsewhere(proxy, client):
        assert value(client, WORK_MEM) == "65kB"
    run(client, f"SELECT '{data}'; SET my.hidden = 'x'")
    assert value(client, SHOWS.format("my.hidden")) == "x"
    for _ in range(3):
        assert value(stranger, SHOWS.format("my.hidden")) == ""
    client.execute("RESET ALL")
    assert pin(proxy, client.fileno(), "") == ""
