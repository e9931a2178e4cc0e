"""Session state: each client finds its own on whichever backend, and nobody ever another's."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import psycopg
import pytest

from tests.system.proxy import (
    OTHER_USER,
    Proxy,
    ask,
    backends,
    direct,
    in_threads,
    pids,
    token,
    wait_until,
)

CLIENTS: Final = 5  # two backends


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {"databases": {"app": {}, "one": {"pool_size": 1}, "whole": {"pool_mode": "session"}}}


def row(connection: psycopg.Connection[Any], query: str) -> tuple[Any, ...]:
    found = connection.execute(query.encode(connection.info.encoding)).fetchone()
    assert found is not None
    return tuple(found)


def value(connection: psycopg.Connection[Any], query: str) -> Any:
    return row(connection, query)[0]


def show(connection: psycopg.Connection[Any], name: str) -> str:
    found: str = value(connection, f"SELECT current_setting('{name}')")
    return found


def pid(connection: psycopg.Connection[Any]) -> int:
    found: int = value(connection, "SELECT pg_backend_pid()")
    return found


@contextlib.contextmanager
def held(proxy: Proxy, dbname: str = "app", number: int = 1) -> Iterator[None]:
    """While somebody else holds that many backends."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            other = stack.enter_context(proxy.connect(dbname))
            ask(other)
            stack.callback(other.rollback)
        yield


# Followed: what a client has set goes with it from backend to backend.

FOLLOWED: Final = [
    ("application_name", "the name", "another"),
    ("TimeZone", "Asia/Tokyo", "America/New_York"),
    ("DateStyle", "SQL, DMY", "German, YMD"),
    ("IntervalStyle", "iso_8601", "sql_standard"),
    ("standard_conforming_strings", "off", "on"),
    ("default_transaction_read_only", "on", "off"),
    ("client_encoding", "LATIN1", "UTF8"),
]


@pytest.mark.parametrize(("name", "one", "another"), FOLLOWED)
@pytest.mark.parametrize("how", ["SET", "set_config"])
def test_settings_that_are_followed(
    proxy: Proxy, name: str, one: str, another: str, how: str
) -> None:
    values = [one, another, one, another, one]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect(autocommit=True)) for _ in values]
        stranger = stack.enter_context(proxy.connect(autocommit=True))
        fresh = show(stranger, name)
        for client, wanted in zip(clients, values, strict=True):
            if how == "SET":
                client.execute(f"SET {name} = {literal(name, wanted)}".encode())
            else:
                client.execute(f"SELECT set_config('{name}', %s, false)".encode(), [wanted])
        for _ in range(3):
            for client, wanted in zip(clients, values, strict=True):
                assert show(client, name) == wanted
                assert client.info.parameter_status(name) == wanted
                ask(client)
            assert show(stranger, name) == fresh
        for number in (1, 0, 1):
            # on another backend, and on the one before
            with held(proxy, number=number):
                for client, wanted in zip(clients, values, strict=True):
                    assert show(client, name) == wanted
                assert show(stranger, name) == fresh
        clients[0].execute(f"RESET {name}".encode())
        for _ in range(3):
            for client, wanted in zip(clients[1:], values[1:], strict=True):
                assert show(client, name) == wanted
            assert show(clients[0], name) == fresh
    assert len(pids(proxy.server)) <= 4


def literal(name: str, wanted: str) -> str:
    # DateStyle takes a list
    return wanted if name == "DateStyle" else f"'{wanted}'"


def test_set_time_zone_and_set_names(proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect(autocommit=True)) for _ in range(CLIENTS)]
        for number, client in enumerate(clients):
            client.execute(f"SET TIME ZONE 'Etc/GMT+{number}'".encode())
            client.execute("SET NAMES 'LATIN1'")
        for _ in range(2):
            for number, client in enumerate(clients):
                assert show(client, "TimeZone") == f"Etc/GMT+{number}"
                assert client.info.encoding == "iso8859-1"
                assert value(client, "SELECT 'ü'::text || chr(233)") == "üé"


def test_as_django_does_it(proxy: Proxy) -> None:
    """psycopg's Django connections say set_config('TimeZone', …), and then need no backend."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect(autocommit=True)) for _ in range(CLIENTS * 3)]
        for client in clients:
            client.execute("SELECT set_config('TimeZone', %s, false)", ["Asia/Tokyo"])
        with held(proxy):
            for client in clients:
                assert show(client, "TimeZone") == "Asia/Tokyo"
                with client.transaction():
                    ask(client)


def test_a_set_in_a_transaction_that_is_rolled_back(proxy: Proxy) -> None:
    with proxy.connect() as client, proxy.connect() as other:
        fresh = show(other, "TimeZone")
        other.rollback()
        client.execute("SET TimeZone = 'Asia/Tokyo'")
        client.rollback()
        client.execute("SET LOCAL TimeZone = 'Asia/Tokyo'")
        client.execute("SELECT set_config('application_name', 'mine', true)")
        assert show(client, "TimeZone") == "Asia/Tokyo"
        client.commit()
        for connection in (client, other, client):
            with held(proxy):
                assert show(connection, "TimeZone") == fresh
                assert show(connection, "application_name") != "mine"
                connection.rollback()


def test_the_driver_hears_of_every_change(proxy: Proxy) -> None:
    """A driver that does not hear of it decodes wrongly."""
    with (
        proxy.connect(autocommit=True, client_encoding="LATIN1") as latin,
        proxy.connect(autocommit=True) as utf8,
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(held(proxy))
        for _ in range(3):
            for client in (latin, utf8):
                assert value(client, "SELECT 'ü'::text") == "ü"
                assert value(client, "SELECT ascii('ü')") == 252
        with contextlib.suppress(ZeroDivisionError), latin.transaction():
            latin.execute("SET client_encoding = 'UTF8'")
            assert value(latin, "SELECT 'ü€'::text") == "ü€"
            raise ZeroDivisionError
        assert latin.info.encoding == "iso8859-1"
        assert value(latin, "SELECT 'ü'::text") == "ü"


# Pinned: what cannot be carried keeps its backend, and goes with its client.

PINNING: Final = [
    ("SET work_mem = '65kB'", "SELECT current_setting('work_mem')", "65kB"),
    ("SET statement_timeout = '77s'", "SELECT current_setting('statement_timeout')", "77s"),
    ("SET my.setting = 'mine'", "SELECT nullif(current_setting('my.setting', true), '')", "mine"),
    ("SELECT set_config('my.other', 'mine', false)",
     "SELECT nullif(current_setting('my.other', true), '')", "mine"),
    ("UPDATE pg_settings SET setting = '77' WHERE name = 'work_mem'",
     "SELECT current_setting('work_mem')", "77kB"),
    ("SET ROLE other", "SELECT current_user::text", "other"),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
     "SELECT current_setting('default_transaction_isolation')", "serializable"),
    ("CREATE TEMP TABLE mine AS SELECT 'mine' AS v", "SELECT v FROM mine", "mine"),
    ("SELECT 'mine' AS v INTO TEMP mine2", "SELECT v FROM mine2", "mine"),
    ("CREATE TEMP SEQUENCE seq", "SELECT nextval('seq')::text", None),
    ("SELECT pg_advisory_lock(42)",
     "SELECT objid::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
     "42"),
    ("PREPARE mine AS SELECT 'mine'::text", "SELECT name FROM pg_prepared_statements", "mine"),
    ("BEGIN; DECLARE held SCROLL CURSOR WITH HOLD FOR SELECT 'mine'::text; COMMIT",
     "FETCH ABSOLUTE 1 FROM held", "mine"),
    ("DO $$ BEGIN PERFORM set_config('work_mem', '66kB', false); END $$",
     "SELECT current_setting('work_mem')", "66kB"),
    ("SELECT 1; SET work_mem = '67kB'; SELECT 2", "SELECT current_setting('work_mem')", "67kB"),
    ("/* SELECT */ SET /* a */ work_mem TO -- b\n '68kB'",
     "SELECT current_setting('work_mem')", "68kB"),
    ("EXPLAIN ANALYZE CREATE TEMP TABLE mine3 AS SELECT 'mine' AS v",
     "SELECT v FROM mine3", "mine"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "look", "expected"), PINNING, ids=[each[0][:30] for each in PINNING]
)
def test_state_that_cannot_be_carried(
    proxy: Proxy, make: str, look: str, expected: str | None
) -> None:
    with proxy.connect(autocommit=True) as stranger:
        before = seen(stranger, look)
        with proxy.connect(autocommit=True) as client:
            simple = psycopg.ClientCursor(client)
            simple.execute(make.encode())
            mine = pid(client)
            with held(proxy):
                assert pid(client) == mine
            for _ in range(3):
                assert pid(stranger) != mine
                assert seen(stranger, look) == before
                found = value(client, look)
                assert expected is None or found == expected
                assert pid(client) == mine
            assert len(pids(proxy.server)) <= 4
        # the backend comes back, and as new
        with held(proxy):
            assert seen(stranger, look) == before


def seen(connection: psycopg.Connection[Any], look: str) -> tuple[Any, ...] | None:
    """What a stranger sees: it may be an error."""
    with contextlib.suppress(
        psycopg.errors.UndefinedTable,
        psycopg.errors.InvalidSqlStatementName,
        psycopg.errors.InvalidCursorName,
    ):
        return connection.execute(look.encode()).fetchone()
    return None


@pytest.mark.parametrize("make", ["SET search_path = {}", "SET SCHEMA '{}'"])
def test_search_path(proxy: Proxy, make: str) -> None:
    """Followed where the server reports it (PostgreSQL 18), pinned where it does not."""
    with proxy.connect(autocommit=True) as client, proxy.connect(autocommit=True) as other:
        fresh = show(other, "search_path")
        client.execute(make.format("pg_catalog").encode())
        for _ in range(3):
            assert show(client, "search_path") == "pg_catalog"
            assert show(other, "search_path") == fresh
        if client.info.server_version >= 180000:
            with held(proxy):
                assert show(other, "search_path") == fresh
                assert show(client, "search_path") == "pg_catalog"


def test_a_client_that_leaves_its_state_behind(proxy: Proxy) -> None:
    """Everything at once, and no goodbye: the backend is clean, and the same process."""
    with proxy.connect("one") as connection:
        ask(connection)
        before = pid(connection)
    client = proxy.connect("one", autocommit=True)
    for make, _, _ in PINNING:
        if "role" not in make.lower() and "schema" not in make.lower() and "path" not in make:
            psycopg.ClientCursor(client).execute(make.encode())
    client.execute("BEGIN")
    client.execute("SELECT pg_advisory_xact_lock(43)")
    client.pgconn.finish()
    with proxy.connect("one") as connection:
        assert pid(connection) == before


def test_session_authorization(proxy: Proxy) -> None:
    with proxy.connect(autocommit=True) as client, proxy.connect(autocommit=True) as other:
        client.execute("SET ROLE other")
        assert row(client, "SELECT current_user, session_user") == ("other", "app")
        for _ in range(3):
            assert row(other, "SELECT current_user, session_user") == ("app", "app")
        client.execute("RESET ROLE")
        assert row(client, "SELECT current_user, session_user") == ("app", "app")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.execute("SET SESSION AUTHORIZATION postgres")
        client.execute("SET SESSION AUTHORIZATION app")
        client.execute("SET SESSION AUTHORIZATION DEFAULT")
        ask(client)


def test_users_do_not_share_backends(proxy: Proxy) -> None:
    with proxy.connect() as one, proxy.connect("app", OTHER_USER) as other:
        for _ in range(3):
            assert value(one, "SELECT current_user::text") == "app"
            assert value(other, "SELECT current_user::text") == OTHER_USER
            one.commit()
            other.commit()


def test_notifications_reach_who_listens_and_nobody_else(proxy: Proxy) -> None:
    with (
        proxy.connect(autocommit=True) as listener,
        proxy.connect(autocommit=True) as other,
    ):
        others: list[psycopg.Notify] = []
        other.add_notify_handler(others.append)
        listener.execute("LISTEN a_channel")
        payload = token()
        for _ in range(3):
            other.execute("SELECT pg_notify('a_channel', %s)", [payload])
            ask(other)
        found = [each.payload for each in listener.notifies(timeout=20, stop_after=3)]
        assert found == [payload] * 3
        assert others == []


def test_temporary_tables_of_the_same_name(proxy: Proxy) -> None:
    with proxy.connect() as one, proxy.connect() as other:
        for client, mine in ((one, 1), (other, 2)):
            client.execute("CREATE TEMP TABLE same (a int)")
            client.execute("INSERT INTO same VALUES (%s)", [mine])
            client.commit()
        for _ in range(3):
            assert value(one, "SELECT a FROM same") == 1
            assert value(other, "SELECT a FROM same") == 2
            one.commit()
            other.commit()


def test_advisory_locks_exclude(proxy: Proxy) -> None:
    with proxy.connect(autocommit=True) as one, proxy.connect(autocommit=True) as other:
        one.execute("SELECT pg_advisory_lock(7)")
        for _ in range(3):
            assert value(other, "SELECT pg_try_advisory_lock(7)") is False
        one.execute("SELECT pg_advisory_unlock(7)")
        assert value(other, "SELECT pg_try_advisory_lock(7)") is True


def test_discard_all(proxy: Proxy) -> None:
    with proxy.connect(autocommit=True) as client, proxy.connect(autocommit=True) as other:
        fresh = show(other, "TimeZone")
        client.execute("SET TimeZone = 'Asia/Tokyo'")
        client.execute("CREATE TEMP TABLE gone ()")
        client.execute("SET work_mem = '65kB'")
        client.execute("DISCARD ALL")
        assert show(client, "TimeZone") == fresh
        assert client.info.parameter_status("TimeZone") == fresh
        assert show(client, "work_mem") != "65kB"
        assert show(other, "TimeZone") == fresh


# From the start: what a client asks for when it connects.


def test_startup_parameters(proxy: Proxy) -> None:
    wishes: list[tuple[dict[str, str], dict[str, str]]] = [
        ({"application_name": "first"}, {"application_name": "first"}),
        ({"application_name": "it's\\n \"x\""}, {"application_name": "it's\\n \"x\""}),
        ({"options": "-c search_path=pg_catalog,public"}, {"search_path": "pg_catalog,public"}),
        ({"options": "-c statement_timeout=77s --work-mem=65kB"},
         {"statement_timeout": "77s", "work_mem": "65kB"}),
        ({"options": "-c my.setting=a\\ b -cmy.other=c"}, {"my.setting": "a b", "my.other": "c"}),
        ({"options": "-c default_transaction_read_only=on"}, {"transaction_read_only": "on"}),
        ({"client_encoding": "LATIN1"}, {"client_encoding": "LATIN1"}),
        ({"options": "-c DateStyle=German"}, {"DateStyle": "German, DMY"}),
        ({"options": "-c role=other"}, {"role": "other"}),
        ({}, {}),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        expected = []
        clients = []
        for wish, result in wishes:
            clients.append(stack.enter_context(proxy.connect(autocommit=True, **wish)))
            with direct(proxy.server, user="app", **wish) as connection:
                expected.append(everything(connection))
                for name, wanted in result.items():
                    assert show(connection, name) == wanted
        for number in (0, 1, 0):
            with held(proxy, number=number):
                for client, seen_directly in zip(clients, expected, strict=True):
                    assert everything(client) == seen_directly


def everything(connection: psycopg.Connection[Any]) -> dict[str, str]:
    found = connection.execute(
        "SELECT name, setting FROM pg_settings WHERE name NOT LIKE 'plpgsql.%'"
    )
    return {**dict(found.fetchall()), **custom(connection)}


def custom(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Settings that nobody declared; one that was reset is empty, and not gone."""
    names = ("my.setting", "my.other")
    return {
        name: value(connection, f"SELECT coalesce(current_setting('{name}', true), '')")
        for name in names
    }


def test_a_setting_that_was_given_at_the_start_can_be_changed(proxy: Proxy) -> None:
    with (
        proxy.connect(autocommit=True, options="-c TimeZone=Asia/Tokyo") as client,
        proxy.connect(autocommit=True) as other,
    ):
        fresh = show(other, "TimeZone")
        client.execute("SET TimeZone = 'Etc/GMT+3'")
        for number in (0, 1):
            with held(proxy, number=number):
                assert show(client, "TimeZone") == "Etc/GMT+3"
                assert show(other, "TimeZone") == fresh
        client.execute("RESET TimeZone")
        for number in (0, 1):
            with held(proxy, number=number):
                assert show(client, "TimeZone") == "Asia/Tokyo"
                assert show(other, "TimeZone") == fresh


@pytest.mark.parametrize("back", ["RESET ALL", "DISCARD ALL"])
def test_back_to_what_was_given_at_the_start(proxy: Proxy, back: str) -> None:
    """What asyncpg's pool says whenever a connection is given back."""
    with proxy.connect(
        autocommit=True, options="-c TimeZone=Asia/Tokyo -c work_mem=65kB"
    ) as client:
        client.execute("SET TimeZone = 'Etc/GMT+3'")
        client.execute("SET work_mem = '66kB'")
        client.execute(back.encode())
        for number in (0, 1):
            with held(proxy, number=number):
                assert show(client, "TimeZone") == "Asia/Tokyo"
                assert client.info.parameter_status("TimeZone") == "Asia/Tokyo"
                assert show(client, "work_mem") == "65kB"


@pytest.mark.parametrize(
    "wish",
    [
        {"options": "-c no_such_setting=1"},
        {"options": "-c work_mem=lots"},
        {"options": "-c TimeZone=Nowhere/Land"},
        {"options": "-c role=nobody_there"},
        {"options": "-c shared_buffers=1GB"},
        {"client_encoding": "NO_SUCH"},
        {"options": "-c search_path=public -c DateStyle=wrong"},
    ],
    ids=str,
)
def test_bad_startup_parameters(proxy: Proxy, wish: dict[str, str]) -> None:
    """The server's own error, at login."""
    with pytest.raises(psycopg.OperationalError) as expected:
        direct(proxy.server, user="app", **wish)
    with pytest.raises(psycopg.OperationalError) as caught:
        proxy.connect(**wish)
    assert said(caught.value) == said(expected.value)
    with proxy.connect() as client:
        ask(client)


def said(error: psycopg.Error) -> str:
    """The server's words, without libpq's about where it tried to connect."""
    return str(error).partition("FATAL: ")[2].strip()


def test_settings_that_somebody_else_may_not_have(proxy: Proxy) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        proxy.connect(options="-c log_statement=all")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        proxy.connect("app", OTHER_USER, options="-c role=app")


# Encodings.


def test_an_encoding_in_which_a_byte_can_be_half_a_character(proxy: Proxy) -> None:
    r"""In SJIS the second byte of 表 is a backslash: a reader of bytes loses its way there."""
    text = "表示 ソース 能力"
    with (
        proxy.connect(autocommit=True, client_encoding="SJIS") as client,
        proxy.connect(autocommit=True) as other,
    ):
        simple = psycopg.ClientCursor(client)
        for _ in range(3):
            found = client.execute("SELECT %s::text", [text]).fetchone()
            assert found == (text,)
            assert simple.execute("SELECT %s, length(%s)", [text, text]).fetchone() == (
                text,
                len(text),
            )
            hidden = f"SELECT '{text}', E'表'; SET work_mem = '65kB'".encode("shift_jis")
            client.pgconn.exec_(hidden)
            assert show(other, "work_mem") != "65kB"
            assert value(other, f"SELECT '{text}'") == text


def test_an_encoding_that_is_set_later(proxy: Proxy) -> None:
    text = "表示"
    with proxy.connect(autocommit=True) as client, proxy.connect(autocommit=True) as other:
        client.execute("SET client_encoding = 'SJIS'")
        assert client.info.encoding == "shift_jis"
        for _ in range(3):
            assert client.execute("SELECT %s::text", [text]).fetchone() == (text,)
            assert other.execute("SELECT %s::text", [text]).fetchone() == (text,)


# The unnamed statement.


def test_nobody_binds_anothers_statement(proxy: Proxy) -> None:
    """Both clients' Parse goes to the same backend under the same name, which is no name."""
    with proxy.connect("one", autocommit=True) as one, proxy.connect("one") as other:
        one.pgconn.prepare(b"", b"SELECT 'mine'::text")
        other.execute("SELECT %s::text", ["another's"])
        other.commit()
        result = one.pgconn.exec_prepared(b"", None)
        # an error is allowed, another's result is not
        if result.status == psycopg.pq.ExecStatus.TUPLES_OK:
            assert result.get_value(0, 0) == b"mine"
        else:
            assert result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"26000"
        ask(one)
        # nor does one that has parsed nothing
        ask(other)
        other.commit()
        third = one.pgconn.exec_prepared(b"", None)
        assert third.status == psycopg.pq.ExecStatus.FATAL_ERROR
        described = one.pgconn.describe_prepared(b"")
        assert described.status == psycopg.pq.ExecStatus.FATAL_ERROR
        ask(one)


def test_named_statements_of_the_same_name(proxy: Proxy) -> None:
    with proxy.connect(autocommit=True) as one, proxy.connect(autocommit=True) as other:
        for client, mine in ((one, b"SELECT 'one'::text"), (other, b"SELECT 'other'::text")):
            client.pgconn.prepare(b"same", mine)
        for _ in range(3):
            for client, mine in ((one, b"one"), (other, b"other")):
                assert client.pgconn.exec_prepared(b"same", None).get_value(0, 0) == mine
                ask(client)


# Session mode.


def test_session_mode(proxy: Proxy) -> None:
    with proxy.connect("whole", autocommit=True) as client:
        before = pid(client)
        client.execute("SET work_mem = '65kB'")
        with proxy.connect("whole", autocommit=True) as other:
            assert show(other, "work_mem") != "65kB"
            assert pid(other) != before
        assert pid(client) == before
        assert show(client, "work_mem") == "65kB"
    with proxy.connect("whole", autocommit=True) as client:
        assert show(client, "work_mem") != "65kB"


# All of it at once.


def test_many_clients_with_settings_of_their_own(proxy: Proxy) -> None:
    def work(index: int) -> None:
        zone = f"Etc/GMT+{index}"
        with proxy.connect(autocommit=True, application_name=f"client {index}") as client:
            client.execute("SELECT set_config('TimeZone', %s, false)", [zone])
            for _ in range(15):
                assert show(client, "TimeZone") == zone
                with client.transaction():
                    ask(client)
                    assert show(client, "application_name") == f"client {index}"
                    assert show(client, "TimeZone") == zone

    in_threads(work, 8)


def test_the_names_of_clients_are_seen_at_the_server(proxy: Proxy) -> None:
    with proxy.connect(application_name="one") as one, proxy.connect() as other:
        ask(one)
        other.execute("SET application_name = 'other'")

        def names() -> set[str]:
            return {each.application_name for each in backends(proxy.server) if each.in_transaction}

        assert wait_until(names, {"one", "other"}.__eq__) == {"one", "other"}
        one.rollback()
        other.rollback()
