"""What the console's commands do: to clients, to server connections, to the configuration."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from operator import le
from typing import Any, Final

import psycopg
import pytest

from tests.system.console import ADMIN, SETTINGS, connect, one, refusal, show
from tests.system.proxy import (
    DATABASE,
    PATIENCE,
    USER,
    Proxy,
    ask,
    direct,
    pids,
    prepare,
    token,
    wait_until,
)
from tests.system.running import Running, backend_pid
from tests.system.wire import Wire, cancel, errors, kinds, query
from txproxy.cli.embedded import EmbeddedPostgres

SHOP: Final = "shop"
Console = psycopg.Connection[Any]


@pytest.fixture(scope="session")
def server(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """One version is enough: the console asks the server nothing."""
    return prepare(postgres)


@pytest.fixture(scope="module")
def module_proxy(server: EmbeddedPostgres) -> Iterator[Running]:
    databases: Mapping[str, Any] = {DATABASE: {}, SHOP: {"pool_size": 1}, "*": {}}
    with Running(server, proxy=SETTINGS, databases=databases) as proxy:
        yield proxy


@pytest.fixture
def console(proxy: Proxy) -> Iterator[Console]:
    """An admin's console; whatever was paused goes on in the end."""
    with connect(proxy) as connection:
        yield connection
        paused = any(row["paused"] for row in show(connection, "DATABASES"))
        if paused or show(connection, "STATE")[0]["value"] == "no":
            connection.execute("RESUME")


def database(console: Console, name: str = DATABASE) -> dict[str, Any]:
    return one(console, "DATABASES", name=name)


def setting(console: Console, key: str) -> str:
    value: str = one(console, "CONFIG", key=key)["value"]
    return value


@contextlib.contextmanager
def behind(work: Callable[[], object]) -> Iterator[Future[object]]:
    """It is done in a thread, and must be done at the end of the block."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work)
        yield future
        future.result(PATIENCE)


# The configuration.


def test_set_changes_what_holds_for_new_and_old_clients(proxy: Proxy, console: Console) -> None:
    with proxy.connect(autocommit=True) as client:
        console.execute("SET query_timeout = '200ms'")
        try:
            assert setting(console, "query_timeout") == "200ms"
            with pytest.raises(psycopg.errors.QueryCanceled):
                client.execute("SELECT pg_sleep(60)")
        finally:
            console.execute("SET query_timeout = 0")
        ask(client)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("SET nothing = 1", "unknown setting"),
        ("SET query_timeout = soon", "must be a duration"),
        ("SET listen = '127.0.0.1:1'", "takes a restart"),
        ("SET idle_transaction_timeout_max = '1s'", "is less than idle_transaction_timeout"),
        ("SET client_tls_sslmode = require", "client_tls"),
    ],
)
def test_set_refuses_what_cannot_be(console: Console, command: str, message: str) -> None:
    before = show(console, "CONFIG")
    error = refusal(console, command)
    assert error.sqlstate == "F0000"
    assert message in str(error)
    assert show(console, "CONFIG") == before


def test_reload_takes_what_the_file_says_now(module_proxy: Running, console: Console) -> None:
    proxy = module_proxy
    console.execute("SET query_wait_timeout = 7")
    text = proxy.config.read_text(encoding="utf-8")
    proxy.config.write_text(
        text.replace("[proxy]\n", '[proxy]\nclient_idle_timeout = "1h"\n'), encoding="utf-8"
    )
    try:
        console.execute("RELOAD")
        assert setting(console, "client_idle_timeout") == "1h"
        assert setting(console, "query_wait_timeout") == "20s"  # what was SET is over
        proxy.config.write_text(text.replace("[proxy]\n", "[proxy]\nclient_idle_tmieout = 1\n"))
        error = refusal(console, "RELOAD")
        assert error.sqlstate == "F0000"
        assert f"{proxy.config}:2: proxy.client_idle_tmieout: unknown key" in str(error)
        assert setting(console, "client_idle_timeout") == "1h"
    finally:
        proxy.config.write_text(text, encoding="utf-8")
        console.execute("RELOAD")
    assert setting(console, "client_idle_timeout") == "0"


def test_commands_are_in_the_log(proxy: Proxy, console: Console) -> None:
    console.execute("SET query_timeout = 0")
    assert proxy.wait_for("console", command="SET query_timeout 0")["user"] == ADMIN


# PAUSE and RESUME.


def test_pause_closes_server_connections_and_clients_wait(proxy: Proxy, console: Console) -> None:
    with proxy.connect(autocommit=True) as client:
        ask(client)
        console.execute("PAUSE")
        assert pids(proxy.server) == set()
        assert [row["value"] for row in show(console, "STATE")] == ["no", "yes", "no"]
        assert database(console)["paused"] == 1
        with behind(lambda: ask(client)) as done:
            wait_until(lambda: one(console, "POOLS", database=DATABASE)["cl_waiting"], bool)
            assert not done.done()
            console.execute("RESUME")
        assert done.done()
    assert show(console, "STATE")[0]["value"] == "yes"
    assert database(console)["paused"] == 0


def test_pause_lets_transactions_end(proxy: Proxy, console: Console) -> None:
    with proxy.connect() as client, connect(proxy) as other:
        client.execute("SELECT 1")
        with behind(lambda: console.execute("PAUSE")) as done:
            wait_until(lambda: database(other)["paused"], bool)
            client.execute("SELECT 2")
            assert not done.done()
            client.commit()
        assert done.done()
        assert pids(proxy.server) == set()
        other.execute("RESUME")
        client.execute("SELECT 3")
        client.rollback()


def test_one_database_is_paused_and_others_go_on(proxy: Proxy, console: Console) -> None:
    console.execute(f"PAUSE {SHOP}")
    with proxy.connect(autocommit=True) as client:
        ask(client)
    assert show(console, "STATE")[0]["value"] == "yes"
    assert database(console, SHOP)["paused"] == 1
    with behind(lambda: use(proxy, SHOP)) as done:
        wait_until(
            lambda: database(console, SHOP)["current_client_connections"] or done.done(), bool
        )
        assert not done.done()
        console.execute(f"RESUME {SHOP}")
    assert database(console, SHOP)["paused"] == 0


def use(proxy: Proxy, dbname: str) -> None:
    with proxy.connect(dbname, autocommit=True) as client:
        ask(client)


def test_a_database_that_comes_into_use_meanwhile_is_paused_too(
    proxy: Proxy, console: Console
) -> None:
    name = f"new_{token()[:8]}"
    console.execute("PAUSE")
    with behind(lambda: use(proxy, name)) as done:
        wait_until(lambda: [row for row in show(console, "POOLS") if row["database"] == name], bool)
        assert one(console, "POOLS", database=name)["sv_login"] == 0
        assert not done.done()
        console.execute("RESUME")
    assert done.done()


def test_pause_under_load_loses_nothing(proxy: Proxy, console: Console) -> None:
    """Each transaction of each client is there in the end, once, however often it was paused."""
    table = "t_" + token().replace("-", "")
    enough = threading.Event()
    done: list[str] = []

    def work() -> None:
        with proxy.connect(autocommit=True) as client:
            while not enough.is_set():
                mine = token()
                with client.transaction():
                    ask(client)
                    client.execute(f"INSERT INTO {table} VALUES ('{mine}')")
                done.append(mine)

    with direct(proxy.server) as past:
        past.execute(f"CREATE TABLE {table} (v text); GRANT ALL ON {table} TO {USER}")
        with ThreadPoolExecutor(6) as executor:
            workers = [executor.submit(work) for _ in range(6)]
            try:
                for _ in range(4):
                    more = len(done) + 20
                    assert wait_until(lambda: len(done), partial(le, more)) >= more
                    console.execute("PAUSE")
                    assert pids(proxy.server) == set()
                    console.execute("RESUME")
            finally:
                enough.set()
            for worker in workers:
                worker.result(PATIENCE)
        stored = [row[0] for row in past.execute(f"SELECT v FROM {table}")]
        past.execute(f"DROP TABLE {table}")
    assert sorted(stored) == sorted(done)


def test_a_pause_that_is_cancelled_is_taken_back(proxy: Proxy, console: Console) -> None:
    with proxy.connect() as client, connect(proxy) as other, ThreadPoolExecutor(1) as executor:
        client.execute("SELECT 1")
        pausing = executor.submit(other.execute, "PAUSE")
        wait_until(lambda: database(console)["paused"], bool)
        other.cancel_safe(timeout=PATIENCE)
        with pytest.raises(psycopg.errors.QueryCanceled):
            pausing.result(PATIENCE)
        assert show(console, "STATE")[0]["value"] == "yes"
        assert database(console)["paused"] == 0
        assert show(other, "VERSION")  # that console goes on
        client.rollback()


def test_a_pause_whose_client_vanishes_stays_in_force(proxy: Proxy, console: Console) -> None:
    with proxy.connect() as client:
        client.execute("SELECT 1")
        with Wire.log_in((proxy.host, proxy.port), ADMIN, "txproxy") as wire:
            wire.send(query("PAUSE"))
            wait_until(lambda: database(console)["paused"], bool)
            wire.reset()
        wait_until(lambda: len(consoles(console)), lambda count: count == 1)
        client.rollback()
        assert wait_until(lambda: pids(proxy.server), lambda found: not found) == set()
        assert [row["value"] for row in show(console, "STATE")] == ["no", "yes", "no"]
    console.execute("RESUME")
    use(proxy, DATABASE)


def consoles(console: Console) -> list[dict[str, Any]]:
    return [row for row in show(console, "CLIENTS") if row["database"] == "txproxy"]


def test_a_cancel_when_nothing_is_waited_for(proxy: Proxy, console: Console) -> None:
    with Wire.log_in((proxy.host, proxy.port), ADMIN, "txproxy") as wire:
        cancel((proxy.host, proxy.port), wire.key)
        assert wire.value("SHOW VERSION")
    assert show(console, "VERSION")


def test_suspend_is_a_pause_of_another_name(proxy: Proxy, console: Console) -> None:
    use(proxy, DATABASE)
    console.execute("SUSPEND")
    assert [row["value"] for row in show(console, "STATE")] == ["no", "no", "yes"]
    assert pids(proxy.server) == set()
    assert refusal(console, "PAUSE").sqlstate == "55000"
    console.execute("RESUME")


def test_what_is_not_paused_cannot_go_on(console: Console) -> None:
    error = refusal(console, "RESUME")
    assert (error.sqlstate, error.diag.message_primary) == (
        "55000",
        "pooler is not paused/suspended",
    )
    assert refusal(console, f"RESUME {SHOP}").sqlstate == "55000"


@pytest.mark.parametrize("name", ["txproxy", "pgbouncer"])
@pytest.mark.parametrize("command", ["PAUSE", "KILL", "DISABLE", "ENABLE", "RECONNECT"])
def test_the_console_itself_is_spared(console: Console, command: str, name: str) -> None:
    assert refusal(console, f"{command} {name}").sqlstate == "0A000"


# RECONNECT and WAIT_CLOSE.


def test_reconnect_replaces_server_connections_as_they_become_free(
    proxy: Proxy, console: Console
) -> None:
    with proxy.connect() as held, proxy.connect(autocommit=True) as client:
        held.execute("SELECT 1")
        old = backend_pid(held)
        other = backend_pid(client)
        assert other != old
        console.execute(f"RECONNECT {DATABASE}")
        assert one(console, "SERVERS", remote_pid=old)["close_needed"] == 1
        with behind(lambda: console.execute(f"WAIT_CLOSE {DATABASE}")) as done:
            assert backend_pid(client) not in (old, other)
            assert backend_pid(held) == old
            assert not done.done()
            held.commit()
        assert backend_pid(held) not in (old, other)
        held.rollback()
    assert {old, other} & pids(proxy.server) == set()


def test_wait_close_of_nothing(console: Console) -> None:
    console.execute("RECONNECT")
    console.execute("WAIT_CLOSE")


# KILL, KILL_CLIENT, REAP.


def test_kill_ends_clients_and_server_connections_and_pauses(
    proxy: Proxy, console: Console
) -> None:
    with (
        proxy.connect(SHOP) as busy,
        proxy.connect(autocommit=True) as spared,
    ):
        pid = backend_pid(busy)
        ask(spared)
        with ThreadPoolExecutor(1) as executor:
            asleep = executor.submit(busy.execute, "SELECT pg_sleep(60)")
            wait_until(
                lambda: one(console, "TRANSACTIONS", remote_pid=pid)["state"] == "active", bool
            )
            console.execute(f"KILL {SHOP}")
            with pytest.raises(psycopg.errors.AdminShutdown):
                asleep.result(PATIENCE)
        assert pid not in wait_until(lambda: pids(proxy.server), lambda seen: pid not in seen)
        ask(spared)
    assert database(console, SHOP)["paused"] == 1
    with behind(lambda: use(proxy, SHOP)) as done:
        wait_until(lambda: database(console, SHOP)["current_client_connections"], bool)
        assert not done.done()
        console.execute(f"RESUME {SHOP}")


def test_kill_without_a_name_is_for_all(proxy: Proxy, console: Console) -> None:
    with proxy.connect() as one_, proxy.connect(SHOP) as other:
        one_.execute("SELECT 1")
        other.execute("SELECT 1")
        console.execute("KILL")
        for client in (one_, other):
            with pytest.raises(psycopg.errors.AdminShutdown):
                client.execute("SELECT 1")
    assert wait_until(lambda: pids(proxy.server), lambda found: not found) == set()
    console.execute("RESUME")
    use(proxy, DATABASE)


def test_kill_client(proxy: Proxy, console: Console) -> None:
    with proxy.connect() as victim, proxy.connect(autocommit=True) as spared:
        victim.execute("SELECT 1")
        number = one(console, "TRANSACTIONS")["id"]
        console.execute(f"KILL_CLIENT {number}")
        with pytest.raises(psycopg.errors.AdminShutdown):
            victim.execute("SELECT 1")
        ask(spared)
        error = refusal(console, f"KILL_CLIENT {number}")
        assert (error.sqlstate, error.diag.message_primary) == (
            "42704",
            f"client {number} not found",
        )


def test_a_console_may_kill_itself(proxy: Proxy, console: Console) -> None:
    with connect(proxy, application_name="other") as other:
        mine = {row["id"] for row in consoles(console)}
        numbers = [row["id"] for row in show(other, "CLIENTS") if row["id"] in mine]
        own = max(numbers)
        error = refusal(other, f"KILL_CLIENT {own}")
        assert error.sqlstate == "57P01"
    assert show(console, "VERSION")


@pytest.mark.parametrize("action", ["rollback", "report"])
def test_reap_rolls_back_and_the_client_lives(proxy: Proxy, console: Console, action: str) -> None:
    console.execute(f"SET idle_transaction_action = {action}")
    try:
        with proxy.connect() as client:
            client.execute("SELECT 'a secret'")
            transaction = one(console, "TRANSACTIONS")
            console.execute(f"REAP {transaction['id']}")
            assert show(console, "TRANSACTIONS") == []
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                client.execute("SELECT 1")
            client.rollback()
            ask(client)
            client.rollback()
        row = show(console, "REAPED")[-1]
        assert (row["why"], row["statement"]) == ("REAP", "SELECT ?")
    finally:
        console.execute("SET idle_transaction_action = rollback")


def test_only_what_is_idle_in_a_transaction_is_reaped(proxy: Proxy, console: Console) -> None:
    with proxy.connect(autocommit=True) as client:
        ask(client)
        number = one(console, "CLIENTS", database=DATABASE)["id"]
        error = refusal(console, f"REAP {number}")
        assert error.sqlstate == "55000"
        assert error.diag.message_primary == f"client {number} is not idle in a transaction"
        with direct(proxy.server) as past:
            past.execute("SELECT pg_advisory_lock(77)")
            with behind(lambda: client.execute("SELECT pg_advisory_xact_lock(77)")):
                assert wait_until(lambda: show(console, "TRANSACTIONS"), bool)
                assert refusal(console, f"REAP {number}").sqlstate == "55000"
                past.execute("SELECT pg_advisory_unlock(77)")
    assert refusal(console, "REAP 0").sqlstate == "42704"


# DISABLE and ENABLE.


def test_a_disabled_database_takes_no_new_clients(proxy: Proxy, console: Console) -> None:
    with proxy.connect(autocommit=True) as client:
        ask(client)
        console.execute(f"DISABLE {DATABASE}")
        try:
            assert database(console)["disabled"] == 1
            ask(client)
            with pytest.raises(psycopg.OperationalError, match="not currently accepting"):
                proxy.connect()
            use(proxy, SHOP)
        finally:
            console.execute(f"ENABLE {DATABASE}")
    use(proxy, DATABASE)


def test_a_database_that_nobody_uses_can_be_disabled(proxy: Proxy, console: Console) -> None:
    console.execute('DISABLE "not yet"')
    with pytest.raises(psycopg.OperationalError, match="not currently accepting"):
        proxy.connect("not yet")
    console.execute('ENABLE "not yet"')
    use(proxy, "not yet")


def test_databases_that_there_are_not(server: EmbeddedPostgres) -> None:
    with Proxy(server, proxy=SETTINGS) as proxy, connect(proxy) as console:
        for command in ("PAUSE", "RESUME", "KILL", "RECONNECT", "WAIT_CLOSE", "DISABLE", "ENABLE"):
            error = refusal(console, f"{command} nothing")
            assert error.sqlstate == "3D000"
            assert error.diag.message_primary == "no such database: nothing"
        console.execute(f"PAUSE {DATABASE}")  # configured, and not in use
        console.execute("RESUME")


# SHUTDOWN.


def test_shutdown_at_once(server: EmbeddedPostgres) -> None:
    with (
        Proxy(server, proxy=SETTINGS, check=False) as proxy,
        proxy.connect() as client,
        connect(proxy) as console,
    ):
        client.execute("SELECT 1")
        with contextlib.suppress(psycopg.OperationalError):
            console.execute("SHUTDOWN")
        assert ended(proxy) == 0
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")


def test_shutdown_waits_for_servers(server: EmbeddedPostgres) -> None:
    """Those in a transaction end it; the others leave."""
    with (
        Proxy(server, proxy={**SETTINGS, "shutdown_timeout": 0}, check=False) as proxy,
        proxy.connect() as busy,
        proxy.connect(autocommit=True) as idle,
    ):
        busy.execute("SELECT 1")
        ask(idle)
        with connect(proxy) as console:
            console.execute("SHUTDOWN WAIT_FOR_SERVERS")
        with pytest.raises(psycopg.OperationalError):  # or it is told that it may go, 57P01
            wait_until(lambda: idle.execute("SELECT 1"), lambda _: False)
        ask(busy)
        busy.commit()
        assert ended(proxy) == 0


def test_shutdown_waits_for_clients(server: EmbeddedPostgres) -> None:
    with Proxy(server, proxy={**SETTINGS, "shutdown_timeout": "1ms"}, check=False) as proxy:
        with proxy.connect(autocommit=True) as client:
            ask(client)
            with connect(proxy) as console:
                console.execute("SHUTDOWN WAIT_FOR_CLIENTS")
            wait_until(lambda: refuses(proxy), bool)
            for _ in range(20):
                ask(client)
            assert proxy._process is not None
            assert proxy._process.poll() is None
        assert ended(proxy) == 0


def ended(proxy: Proxy) -> int:
    """How it ended, which it does by itself."""
    assert proxy._process is not None
    return proxy._process.wait(PATIENCE)


def refuses(proxy: Proxy) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        proxy.connect().close()
        return False
    return True


def test_shutdown_is_not_for_texts_that_look_like_it(proxy: Proxy) -> None:
    with Wire.log_in((proxy.host, proxy.port), ADMIN, "txproxy") as wire:
        for text in ("SHUTDOWN now", "'SHUTDOWN'", "SHOW SHUTDOWN", "SHUTDOWN; SHOW STATE"):
            answer = wire.ask(query(text))
            assert kinds(answer) == "EZ"
            assert errors(answer)[0].sqlstate == "42601"
