"""Pins: a session keeps its backend while it has state there, and no longer."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import psycopg
import psycopg2
import pytest

from tests.system import console
from tests.system.keeping import Connection, elsewhere, pid, pin, value
from tests.system.proxy import Proxy, ask, direct, in_threads, pids, wait_until
from txproxy.cli.embedded import EmbeddedPostgres

LOCKS: Final = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
)
TEMPORARY: Final = (
    "SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass"
    " AND refobjid = pg_my_temp_schema()"
)
PREPARED: Final = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"
CURSORS: Final = "SELECT count(*) FROM pg_cursors WHERE is_holdable"


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {
        "proxy": console.SETTINGS,
        "databases": {
            "app": {},
            "one": {"pool_size": 1},
            # the time of a few statements, on a machine that is busy
            "short": {"pin_timeout": "2s"},
            "whole": {"pin_timeout": "2s", "pool_mode": "session"},
        },
    }


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Connection]:
    with proxy.connect(autocommit=True) as connection:
        yield connection


@pytest.fixture
def stranger(proxy: Proxy) -> Iterator[Connection]:
    with proxy.connect(autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module", autouse=True)
def procedures(server: EmbeddedPostgres) -> Iterator[None]:
    with direct(server) as admin:
        admin.execute(
            "CREATE PROCEDURE makes(what text) LANGUAGE plpgsql AS $$ BEGIN EXECUTE what; END $$"
        )
        admin.execute("CREATE TABLE pins_log (a int)")
        admin.execute("GRANT ALL ON pins_log TO PUBLIC")
        yield
        admin.execute("DROP PROCEDURE makes")
        admin.execute("DROP TABLE pins_log")


def run(connection: Connection, statements: str) -> None:
    """By a Query, which may have several."""
    psycopg.ClientCursor(connection).execute(statements.encode())


# Each of them, and what ends it.

PINS: Final = [
    ("CREATE TEMP TABLE mine (a int)", "temporary table", TEMPORARY, "DROP TABLE mine"),
    ("CREATE TEMP TABLE mine (a int)", "temporary table", TEMPORARY, "DISCARD TEMP"),
    ("CREATE TEMP TABLE mine (a int)", "temporary table", TEMPORARY, "DISCARD ALL"),
    ("CREATE TEMP TABLE mine (a int)", "temporary table", TEMPORARY,
     "BEGIN; DROP TABLE mine; COMMIT"),
    ("SELECT 1 AS a INTO TEMP mine", "temporary table", TEMPORARY, "DROP TABLE mine"),
    ("CREATE TEMP VIEW mine AS SELECT 1", "temporary table", TEMPORARY, "DROP VIEW mine"),
    ("CREATE TEMP SEQUENCE mine", "temporary table", TEMPORARY, "DROP SEQUENCE mine"),
    ("CREATE TYPE pg_temp.mine AS (a int)", "temporary table", TEMPORARY, "DROP TYPE mine"),
    ("CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'", "temporary table",
     TEMPORARY, "DROP FUNCTION pg_temp.mine()"),
    ("CREATE FUNCTION pg_temp.mine() RETURNS int BEGIN ATOMIC SELECT 1; END", "temporary table",
     TEMPORARY, "DROP FUNCTION pg_temp.mine()"),
    ("SELECT pg_advisory_lock(1)", "advisory lock", LOCKS, "SELECT pg_advisory_unlock(1)"),
    ("SELECT pg_try_advisory_lock(1, 2)", "advisory lock", LOCKS,
     "SELECT pg_advisory_unlock(1, 2)"),
    ("SELECT pg_advisory_lock_shared(1)", "advisory lock", LOCKS,
     "SELECT pg_advisory_unlock_all()"),
    ("SELECT pg_advisory_lock(1)", "advisory lock", LOCKS, "DISCARD ALL"),
    ("BEGIN; DECLARE mine CURSOR WITH HOLD FOR SELECT 1; COMMIT", "WITH HOLD", CURSORS,
     "CLOSE mine"),
    ("DECLARE mine SCROLL CURSOR WITH HOLD FOR SELECT 1", "WITH HOLD", CURSORS, "CLOSE ALL"),
    ("PREPARE mine AS SELECT 1", "PREPARE", PREPARED, "DEALLOCATE mine"),
    ("PREPARE mine AS SELECT 1", "PREPARE", PREPARED, "DEALLOCATE PREPARE ALL"),
    ("DO $$ BEGIN CREATE TEMP TABLE mine (a int); END $$", "temporary table", TEMPORARY,
     "DROP TABLE mine"),
    ("CALL makes('CREATE TEMP TABLE mine (a int)')", "temporary table", TEMPORARY,
     "CALL makes('DROP TABLE mine')"),
    ("CALL makes('PREPARE mine AS SELECT 1')", "PREPARE", PREPARED, "DEALLOCATE mine"),
    ("CREATE TEMP TABLE mine (a int); SELECT pg_advisory_lock(1)",
     "temporary table, advisory lock", TEMPORARY,
     "DROP TABLE mine; SELECT pg_advisory_unlock(1)"),
]  # fmt: skip


@pytest.mark.parametrize("case", PINS, ids=[f"{case[0]}/{case[3]}" for case in PINS])
def test_a_pin_lasts_as_long_as_the_state(
    proxy: Proxy, client: Connection, stranger: Connection, case: tuple[str, str, str, str]
) -> None:
    make, reason, look, end = case
    run(client, make)
    assert pin(proxy, client.fileno(), reason) == reason
    mine = pid(client)
    for _ in range(3):
        assert value(client, look) > 0
        assert value(stranger, look) == 0
        assert pid(client) == mine != pid(stranger)
    run(client, end)
    assert pin(proxy, client.fileno(), "") == ""
    assert value(client, look) == 0
    with elsewhere(proxy, client):
        ask(client)


def test_reasons_go_one_by_one(proxy: Proxy, client: Connection) -> None:
    client.execute("SELECT pg_advisory_lock(1)")
    client.execute("CREATE TEMP TABLE mine (a int)")
    client.execute("PREPARE mine AS SELECT 1")
    client.execute("SET work_mem = '65kB'")
    client.execute("SET my.own = 'x'")
    everything = "advisory lock, temporary table, PREPARE"
    assert pin(proxy, client.fileno(), everything) == everything
    client.execute("DROP TABLE mine")
    rest = "advisory lock, PREPARE"
    assert pin(proxy, client.fileno(), rest) == rest
    client.execute("DEALLOCATE mine")
    assert pin(proxy, client.fileno(), "advisory lock") == "advisory lock"
    client.execute("SELECT pg_advisory_lock(1)")  # twice: one unlock is not enough
    client.execute("SELECT pg_advisory_unlock(1)")
    assert pin(proxy, client.fileno(), "advisory lock") == "advisory lock"
    client.execute("SELECT pg_advisory_unlock(1)")
    assert pin(proxy, client.fileno(), "") == ""
    with elsewhere(proxy, client):
        # what was set meanwhile has come along
        assert value(client, "SELECT current_setting('work_mem')") == "65kB"
        assert value(client, "SELECT current_setting('my.own')") == "x"


LEAVES_NOTHING: Final = [
    "DO $$ BEGIN PERFORM 1; END $$",
    "DO $$ BEGIN UPDATE pins_log SET a = 2; END $$",
    "CALL makes('SELECT 1')",
    "BEGIN; CREATE TEMP TABLE mine (a int) ON COMMIT DROP; COMMIT",
    "BEGIN; CREATE TEMP TABLE mine (a int); ROLLBACK",
    "BEGIN; DECLARE mine CURSOR WITH HOLD FOR SELECT 1; ROLLBACK",
    "BEGIN; SAVEPOINT s; CREATE TEMP TABLE mine (a int); ROLLBACK TO s; COMMIT",
    "SELECT pg_advisory_lock(1); SELECT pg_advisory_unlock(1)",
    "SELECT pg_advisory_xact_lock(1)",
    "CREATE TEMP TABLE mine (a int); DROP TABLE mine",
    "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;",
    "EXPLAIN CREATE TEMP TABLE mine AS SELECT 1",
]


@pytest.mark.parametrize("statements", LEAVES_NOTHING)
def test_what_leaves_nothing_pins_nobody(proxy: Proxy, client: Connection, statements: str) -> None:
    run(client, statements)
    assert pin(proxy, client.fileno(), "") == ""
    with elsewhere(proxy, client):
        ask(client)


def test_statement_by_statement_in_a_transaction(proxy: Proxy) -> None:
    with proxy.connect() as client:
        client.execute("CREATE TEMP TABLE mine (a int) ON COMMIT DROP")
        client.execute("INSERT INTO mine VALUES (1)")
        client.commit()
        assert pin(proxy, client.fileno(), "") == ""
        client.execute("CREATE TEMP TABLE mine (a int)")
        client.rollback()
        assert pin(proxy, client.fileno(), "") == ""
        client.execute("CREATE TEMP TABLE mine (a int)")
        client.commit()
        client.execute("DROP TABLE mine")
        client.rollback()
        assert pin(proxy, client.fileno(), "temporary table") == "temporary table"
        assert value(client, "SELECT count(*) FROM mine") == 0
        client.rollback()


def test_large_objects_by_function_calls(proxy: Proxy) -> None:
    """libpq's large objects are FunctionCall messages, in a transaction."""
    client = psycopg2.connect(**proxy.kwargs())
    try:
        large = client.lobject()
        large.write(b"mine")
        assert pin(proxy, client.fileno(), "FunctionCall") == "FunctionCall"
        large.unlink()
        client.commit()
        assert pin(proxy, client.fileno(), "") == ""
    finally:
        client.close()


def test_load_pins_for_good_and_its_backend_is_closed(
    proxy: Proxy, server: EmbeddedPostgres
) -> None:
    with proxy.connect("app", "postgres", autocommit=True) as client:
        run(client, "CREATE TEMP TABLE mine (); LOAD 'auto_explain'; DROP TABLE mine")
        mine = pid(client)
        client.execute("DISCARD ALL")
        reasons = "temporary table, LOAD"
        assert pin(proxy, client.fileno(), reasons) == reasons
    with direct(server) as admin:
        gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"

        def left() -> int:
            [found] = admin.execute(gone, [mine]).fetchone() or (0,)
            return int(found)

        assert wait_until(left, (0).__eq__) == 0


# Those who leave, and those who stay too long.


@pytest.mark.parametrize("make", ["LOAD 'auto_explain'", *(each[0] for each in PINS[:15])])
def test_who_leaves_with_a_pin_leaves_a_clean_backend_or_none(
    proxy: Proxy, server: EmbeddedPostgres, make: str
) -> None:
    user = "postgres" if "LOAD" in make else "app"
    with proxy.connect("one", user, autocommit=True) as client:
        run(client, make)
        run(client, "SET work_mem = '65kB'; SET my.own = 'x'")
        before = pid(client)
    with proxy.connect("one", user, autocommit=True) as other:
        assert (pid(other) == before) == ("LOAD" not in make)
        for look in (TEMPORARY, LOCKS, PREPARED, CURSORS):
            assert value(other, look) == 0
        assert value(other, "SELECT current_setting('work_mem')") == "4MB"
        assert value(other, "SELECT coalesce(current_setting('my.own', true), '')") == ""


def test_who_vanishes_right_behind_a_set(proxy: Proxy) -> None:
    for number in range(10):
        client = proxy.connect("one", autocommit=True)
        run(client, f"SET my.vanished = '{number}'; SET work_mem = '65kB'")
        client.pgconn.finish()
        with proxy.connect("one", autocommit=True) as other:
            look = "SELECT coalesce(current_setting('my.vanished', true), '')"
            assert value(other, look) == ""
            assert value(other, "SELECT current_setting('work_mem')") == "4MB"


def test_pin_timeout(proxy: Proxy) -> None:
    with (
        proxy.connect("short", autocommit=True) as pinned,
        proxy.connect("short", autocommit=True) as free,
        proxy.connect("whole", autocommit=True) as whole,
    ):
        pinned.execute("SELECT pg_advisory_lock(1)")
        free.execute("SELECT pg_advisory_lock(2)")
        free.execute("SELECT pg_advisory_unlock(2)")
        ask(whole)
        event = proxy.wait_for("pin_timeout")
        assert event["pin"] == "advisory lock"
        with pytest.raises(psycopg.errors.IdleSessionTimeout, match="advisory lock"):
            ask(pinned)
        ask(free)
        ask(whole)
    assert len(proxy.events("pin_timeout")) == 1


def test_pin_timeout_lets_a_transaction_be(proxy: Proxy) -> None:
    with proxy.connect("short") as client, proxy.connect("short", autocommit=True) as pinned:
        client.execute("CREATE TEMP TABLE mine () ON COMMIT DROP")
        pinned.execute("SELECT pg_advisory_lock(1)")
        proxy.wait_for("pin_timeout")
        ask(client)
        client.rollback()
        with contextlib.suppress(psycopg.OperationalError):
            ask(pinned)


# All of it at once.


def test_many_clients_with_pins_that_come_and_go(proxy: Proxy, server: EmbeddedPostgres) -> None:
    def work(index: int) -> None:
        with proxy.connect(autocommit=True) as client:
            for _ in range(10):
                client.execute("CREATE TEMP TABLE mine AS SELECT %s::int AS a", [index])
                assert value(client, "SELECT a FROM mine") == index
                client.execute(f"SELECT pg_advisory_lock({index})".encode())
                client.execute("DROP TABLE mine")
                assert value(client, LOCKS) == 1
                client.execute(f"SELECT pg_advisory_unlock({index})".encode())
                ask(client)

    in_threads(work, 5)
    assert len(pids(server)) <= 8
