"""LISTEN, UNLISTEN and NOTIFY through the proxy: as on a connection of one's own, without a pin."""

import asyncio
import contextlib
import select
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import pytest
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from tests.system import console
from tests.system.proxy import (
    PATIENCE,
    USER,
    Proxy,
    Table,
    ask,
    backends,
    direct,
    pids,
    token,
    wait_until,
)
from txproxy.cli.embedded import EmbeddedPostgres

LISTENERS: Final = 20
LONGEST: Final = 7999  # bytes of a payload

Client = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {
        "proxy": console.SETTINGS,
        "databases": {
            "app": {},
            "one": {"pool_size": 1},
            "whole": {"pool_mode": "session"},
            "elsewhere": {"dbname": "postgres"},
        },
    }


@pytest.fixture
def channel() -> str:
    """A name that no other test listens to."""
    return "c_" + token().replace("-", "")


def client(proxy: Proxy, dbname: str = "app", **more: Any) -> Client:
    """In autocommit, as whoever waits for notifications is."""
    return proxy.connect(dbname, **{"autocommit": True, **more})


def notify(connection: Client, channel: str, *payloads: str) -> None:
    for payload in payloads:
        connection.execute("SELECT pg_notify(%s, %s)", [channel, payload])


def heard(connection: Client, number: int) -> list[str]:
    """The next payloads, as soon as there are so many."""
    found = connection.notifies(timeout=PATIENCE, stop_after=number)
    return [each.payload for each in found]


def pins(proxy: Proxy) -> list[str]:
    with console.connect(proxy) as connection:
        rows = console.show(connection, "CLIENTS")
    return [row["pin"] for row in rows if row["database"] != "txproxy" and row["pin"]]


def listening_pids(proxy: Proxy, dbname: str = "app") -> list[int]:
    """The server's processes that listen for a database of the proxy's: one, or none."""
    with console.connect(proxy) as connection:
        rows = console.show(connection, "SERVERS")
    found = [row for row in rows if row["database"] == dbname and row["state"] == "listening"]
    return [row["remote_pid"] for row in found]


def kill(server: EmbeddedPostgres, pid: int) -> None:
    with direct(server) as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])


def ending(connection: Client) -> tuple[str, str]:
    """SQLSTATE and message of the FATAL that ends a client."""
    said: list[tuple[str, str]] = []
    connection.add_notice_handler(
        lambda notice: said.append((str(notice.sqlstate), str(notice.message_primary)))
    )
    pgconn = connection.pgconn
    while pgconn.status == psycopg.pq.ConnStatus.OK:
        ready, _, _ = select.select([pgconn.socket], [], [], PATIENCE)
        assert ready
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            break
        pgconn.is_busy()
    connection.close()
    message = pgconn.error_message.decode() if not said else said[0][1]
    return said[0] if said else ("", message)


# Who hears what.


def test_many_listeners_share_one_connection(proxy: Proxy, channel: str) -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(client(proxy, "one")) for _ in range(LISTENERS)]
        for listener in listeners:
            listener.execute(f"LISTEN {channel}")
        speaker = stack.enter_context(client(proxy, "one"))
        payloads = [token() for _ in range(5)]
        notify(speaker, channel, *payloads)
        for listener in listeners:
            assert heard(listener, 5) == payloads
            ask(listener)
        assert pins(proxy) == []
        assert len(listening_pids(proxy, "one")) == 1


def test_who_does_not_listen_hears_nothing(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener, client(proxy) as deaf, client(proxy) as speaker:
        listener.execute(f"LISTEN {channel}")
        deaf.execute(f"LISTEN {channel}_2")
        notify(speaker, channel, "first")
        notify(speaker, f"{channel}_2", "second")
        notify(speaker, channel, "third")
        assert heard(listener, 2) == ["first", "third"]
        assert heard(deaf, 1) == ["second"]


def test_notifications_are_of_one_database(proxy: Proxy, channel: str) -> None:
    """Of the server's: two names for it in the proxy are the same one."""
    with (
        client(proxy) as here,
        client(proxy, "one") as also_here,
        client(proxy, "elsewhere") as elsewhere,
    ):
        for listener in (here, also_here, elsewhere):
            listener.execute(f"LISTEN {channel}")
        notify(here, channel, "here")
        notify(elsewhere, channel, "elsewhere")
        assert heard(here, 1) == ["here"]
        assert heard(also_here, 1) == ["here"]
        assert heard(elsewhere, 1) == ["elsewhere"]


def test_payloads_and_names_of_any_kind(proxy: Proxy, channel: str) -> None:
    names = {channel.upper(): channel, f'"{channel} Größe ""☃"" A"': f'{channel} Größe "☃" A'}
    payloads = ["", "x" * LONGEST, "naïve ☃ 'quoted' \\ \"", "\n\t"]
    with client(proxy) as listener, client(proxy) as speaker:
        for spelled in names:
            listener.execute(f"LISTEN {spelled}".encode())
        for name in names.values():
            notify(speaker, name, *payloads)
            found = list(listener.notifies(timeout=PATIENCE, stop_after=len(payloads)))
            assert [each.payload for each in found] == payloads
            assert {each.channel for each in found} == {name}


def test_another_listener_joins_and_leaves(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener, client(proxy) as speaker:
        listener.execute(f"LISTEN {channel}")
        with client(proxy) as guest:
            guest.execute(f"LISTEN {channel}")
            notify(speaker, channel, "1")
            assert heard(guest, 1) == ["1"]
        with client(proxy) as guest:
            guest.execute(f"LISTEN {channel}")
            guest.execute(f"UNLISTEN {channel}")
            notify(speaker, channel, "2")
            ask(guest)
        assert heard(listener, 2) == ["1", "2"]


@pytest.mark.parametrize("ending", ["UNLISTEN {}", "UNLISTEN *", "DISCARD ALL"])
def test_unlisten(proxy: Proxy, channel: str, ending: str) -> None:
    with client(proxy) as listener, client(proxy) as speaker:
        listener.execute(f"LISTEN {channel}")
        notify(speaker, channel, "1")
        assert heard(listener, 1) == ["1"]
        listener.execute(ending.format(channel).encode())
        notify(speaker, channel, "2")
        listener.execute(f"LISTEN {channel}")
        notify(speaker, channel, "3")
        assert heard(listener, 1) == ["3"]


def test_pools_of_connections_reset_them(proxy: Proxy, channel: str) -> None:
    """asyncpg's reset is a string of several statements, with UNLISTEN * among them."""
    with client(proxy) as listener, client(proxy) as speaker:
        listener.execute(f"LISTEN {channel}")
        listener.execute("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;")
        notify(speaker, channel, "unheard")
        listener.execute(f"SELECT 1; LISTEN {channel}; SELECT 2")
        notify(speaker, channel, "heard")
        assert heard(listener, 1) == ["heard"]


# Transactions.


def test_listen_takes_effect_at_commit(proxy: Proxy, channel: str) -> None:
    with proxy.connect() as listener, client(proxy) as speaker:
        listener.execute(f"LISTEN {channel}")
        notify(speaker, channel, "before")
        listener.commit()
        notify(speaker, channel, "after")
        assert heard(listener, 1) == ["after"]
        assert pins(proxy) == []


def test_listen_is_rolled_back(proxy: Proxy, channel: str) -> None:
    with proxy.connect() as listener, client(proxy) as speaker:
        listener.execute("SELECT 1")
        listener.execute(f"LISTEN {channel}")
        listener.rollback()
        listener.execute(f"LISTEN {channel}_2")
        listener.commit()
        notify(speaker, channel, "unheard")
        notify(speaker, f"{channel}_2", "heard")
        assert heard(listener, 1) == ["heard"]


def test_listen_is_rolled_back_to_a_savepoint(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener, client(proxy) as speaker:
        with listener.transaction():
            listener.execute(f"LISTEN {channel}_kept")
            with contextlib.suppress(psycopg.Rollback), listener.transaction():
                listener.execute(f"LISTEN {channel}")
                listener.execute(f"UNLISTEN {channel}_kept")
                raise psycopg.Rollback
            with listener.transaction():
                listener.execute(f"LISTEN {channel}_too")
        notify(speaker, channel, "unheard")
        notify(speaker, f"{channel}_kept", "kept")
        notify(speaker, f"{channel}_too", "too")
        assert heard(listener, 2) == ["kept", "too"]


def test_unlisten_is_rolled_back(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener, client(proxy) as speaker:
        listener.execute(f"LISTEN {channel}")
        with listener.transaction(force_rollback=True):
            listener.execute("UNLISTEN *")
        notify(speaker, channel, "heard")
        assert heard(listener, 1) == ["heard"]


def test_nothing_is_heard_in_a_transaction(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener, client(proxy) as speaker, client(proxy) as other:
        other.execute(f"LISTEN {channel}")
        listener.execute(f"LISTEN {channel}")
        found: list[psycopg.Notify] = []
        listener.add_notify_handler(found.append)
        listener.execute("BEGIN")
        ask(listener)
        notify(speaker, channel, "1", "2")
        assert heard(other, 2) == ["1", "2"]
        ask(listener)
        assert found == []
        listener.execute("COMMIT")
        ask(listener)
        assert [each.payload for each in found] == ["1", "2"]


def test_a_notify_that_is_rolled_back_is_no_news(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener, proxy.connect() as speaker:
        listener.execute(f"LISTEN {channel}")
        notify(speaker, channel, "unheard")
        speaker.rollback()
        notify(speaker, channel, "heard")
        speaker.commit()
        assert heard(listener, 1) == ["heard"]


def test_a_failed_transaction_refuses_listen(proxy: Proxy, channel: str) -> None:
    with proxy.connect() as listener, client(proxy) as speaker:
        with pytest.raises(psycopg.errors.DivisionByZero):
            listener.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            listener.execute(f"LISTEN {channel}")
        listener.rollback()
        listener.execute(f"LISTEN {channel}_2")
        listener.commit()
        notify(speaker, channel, "unheard")
        notify(speaker, f"{channel}_2", "heard")
        assert heard(listener, 1) == ["heard"]


# Its own notifications.


def test_its_own_are_there_with_the_answer(proxy: Proxy, channel: str) -> None:
    """psycopg 2 has read them when NOTIFY returns, and knows them by the process id."""
    with contextlib.closing(psycopg2.connect(**proxy.kwargs("one"))) as connection:
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        cursor = connection.cursor()
        cursor.execute(f"LISTEN {channel}")
        for number in range(30):
            if number % 3 == 2:
                cursor.execute("BEGIN")
            cursor.execute(f"NOTIFY {channel}, '{number}'")
            if number % 3 == 2:
                assert connection.notifies == []
                cursor.execute("COMMIT")
            [found] = connection.notifies
            connection.notifies.clear()
            assert (found.channel, found.payload) == (channel, str(number))
            assert found.pid == connection.info.backend_pid


def test_listen_and_notify_in_one_transaction(proxy: Proxy, channel: str) -> None:
    with contextlib.closing(psycopg2.connect(**proxy.kwargs())) as connection:
        cursor = connection.cursor()
        cursor.execute(f"LISTEN {channel}")
        cursor.execute(f"NOTIFY {channel}, 'own'")
        connection.commit()
        [found] = connection.notifies
        assert (found.payload, found.pid) == ("own", connection.info.backend_pid)


def test_each_hears_who_notified(proxy: Proxy, channel: str) -> None:
    """Sessions that share a backend are told apart."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(proxy, "one")) for _ in range(4)]
        for each in clients[:2]:
            each.execute(f"LISTEN {channel}")
        for number in range(40):
            speaker = clients[number % 4]
            notify(speaker, channel, str(speaker.info.backend_pid))
        for each in clients[:2]:
            own = 0
            for found in each.notifies(timeout=PATIENCE, stop_after=40):
                mine = found.payload == str(each.info.backend_pid)
                assert (found.pid == each.info.backend_pid) == mine
                own += mine
            assert own == 10


# Drivers.


async def test_asyncpg(proxy: Proxy, channel: str) -> None:
    found: asyncio.Queue[tuple[int, str, object]] = asyncio.Queue()

    def hears(_connection: object, pid: int, channel: str, payload: object) -> None:
        found.put_nowait((pid, channel, payload))

    listener = await asyncpg.connect(**proxy.asyncpg("one", statement_cache_size=0))
    speaker = await asyncpg.connect(**proxy.asyncpg("one", statement_cache_size=0))
    await listener.add_listener(channel, hears)
    await speaker.execute("SELECT pg_notify($1, 'by another')", channel)
    await listener.execute(f"NOTIFY {channel}, 'own'")
    async with asyncio.timeout(PATIENCE):
        assert await found.get() == (speaker.get_server_pid(), channel, "by another")
        assert await found.get() == (listener.get_server_pid(), channel, "own")
        await listener.remove_listener(channel, hears)
        await speaker.execute("SELECT pg_notify($1, 'unheard')", channel)
        await listener.add_listener(channel, hears)
        await speaker.execute("SELECT pg_notify($1, 'heard')", channel)
        assert (await found.get())[2] == "heard"
    await listener.close()
    await speaker.close()


async def test_a_pool_of_asyncpg(proxy: Proxy, channel: str) -> None:
    found: asyncio.Queue[object] = asyncio.Queue()

    def hears(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        found.put_nowait(payload)

    async with (
        asyncpg.create_pool(
            **proxy.asyncpg("one", statement_cache_size=0), min_size=2, max_size=2
        ) as pool,
        asyncio.timeout(PATIENCE),
    ):
        for number in range(5):
            async with pool.acquire() as connection, pool.acquire() as other:
                await connection.add_listener(channel, hears)
                await other.execute("SELECT pg_notify($1, $2)", channel, str(number))
                assert await found.get() == str(number)
                await connection.remove_listener(channel, hears)


def test_pipelines(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener:
        found: list[psycopg.Notify] = []
        listener.add_notify_handler(found.append)
        with listener.pipeline():
            listener.execute("SELECT 1")
            listener.execute(f"LISTEN {channel}")
            listener.execute("SELECT pg_notify(%s, 'own')", [channel])
            last = listener.execute("SELECT 2")
            assert last.fetchone() == (2,)
        assert [each.payload for each in found] == ["own"]
        assert found[0].pid == listener.info.backend_pid


def test_prepared_statements(proxy: Proxy, channel: str) -> None:
    with client(proxy, "one") as listener, client(proxy, "one") as speaker:
        for number in range(3):
            listener.execute(f"LISTEN {channel}", prepare=True)
            speaker.execute("SELECT pg_notify(%s, %s)", [channel, str(number)], prepare=True)
            assert heard(listener, 1) == [str(number)]
            listener.execute(f"UNLISTEN {channel}", prepare=True)
            speaker.execute("SELECT pg_notify(%s, 'unheard')", [channel], prepare=True)
        assert pins(proxy) == []


def test_listen_that_fails_in_a_pipeline(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener, client(proxy) as speaker:
        with contextlib.suppress(psycopg.errors.DivisionByZero), listener.pipeline():
            listener.execute(f"LISTEN {channel}")
            listener.execute("SELECT 1/0")
        with listener.pipeline():
            listener.execute(f"LISTEN {channel}_2")
        notify(speaker, channel, "unheard")
        notify(speaker, f"{channel}_2", "heard")
        assert heard(listener, 1) == ["heard"]


# Where it is otherwise.


def test_session_mode(proxy: Proxy, channel: str) -> None:
    with client(proxy, "whole") as listener, client(proxy, "whole") as speaker:
        listener.execute(f"LISTEN {channel}")
        notify(speaker, channel, "by another")
        notify(listener, channel, "own")
        found = list(listener.notifies(timeout=PATIENCE, stop_after=2))
        assert [each.payload for each in found] == ["by another", "own"]
        assert found[1].pid == listener.info.backend_pid
        assert found[0].pid != listener.info.backend_pid


def test_another_encoding_pins(proxy: Proxy, channel: str) -> None:
    """The listening connection speaks UTF-8; the server converts for the session's own backend."""
    with (
        client(proxy, client_encoding="LATIN1") as listener,
        client(proxy) as speaker,
        direct(proxy.server) as server,
    ):
        listener.execute(f'LISTEN "{channel} ä"')
        notify(speaker, f"{channel} ä", "é")
        found = next(listener.notifies(timeout=PATIENCE, stop_after=1))
        assert (found.channel, found.payload) == (f"{channel} ä", "é")
        encoding = server.execute("SHOW server_encoding").fetchone()
        assert pins(proxy) == ([] if encoding == ("SQL_ASCII",) else ["LISTEN"])


def test_functions_that_listen(proxy: Proxy, channel: str) -> None:
    """What nobody can see in the text is heard of the session's own backend, which it keeps."""
    with client(proxy) as listener, client(proxy) as speaker:
        listener.execute(f"DO $$BEGIN EXECUTE 'LISTEN {channel}'; END$$")
        notify(speaker, channel, "heard")
        assert heard(listener, 1) == ["heard"]


# Endings.


def test_a_lost_connection_ends_who_listens(proxy: Proxy, channel: str) -> None:
    with client(proxy) as bystander, client(proxy) as listener, client(proxy) as in_transaction:
        listener.execute(f"LISTEN {channel}")
        in_transaction.execute("BEGIN")
        in_transaction.execute(f"LISTEN {channel}")
        [pid] = listening_pids(proxy)
        kill(proxy.server, pid)
        for each in (listener, in_transaction):
            assert "the connection that listens for this session was lost" in ending(each)[1]
        ask(bystander)
        bystander.execute(f"LISTEN {channel}")
        notify(bystander, channel, "heard")
        assert heard(bystander, 1) == ["heard"]


@pytest.mark.parametrize("command", ["PAUSE app", "RECONNECT app"])
def test_an_administrator_closes_it(proxy: Proxy, channel: str, command: str) -> None:
    """Who listens is ended with its transaction; PAUSE waits for that."""

    def run() -> None:
        with console.connect(proxy) as admin:
            admin.execute(command.encode())

    with (
        ThreadPoolExecutor(1) as executor,
        client(proxy) as listener,
        client(proxy) as busy,
        console.connect(proxy) as admin,
    ):
        for each in (listener, busy):
            each.execute(f"LISTEN {channel}")
        busy.execute("BEGIN")
        ask(busy)
        before = listening_pids(proxy)
        commanded = executor.submit(run)
        assert "administrator command" in ending(listener)[1]
        assert listening_pids(proxy) == before
        ask(busy)
        busy.execute("COMMIT")
        assert "administrator command" in ending(busy)[1]
        commanded.result(PATIENCE)
        if command.startswith("PAUSE"):
            assert listening_pids(proxy) == []
            admin.execute("RESUME app")
        with client(proxy) as again:
            again.execute(f"LISTEN {channel}")
            notify(again, channel, "heard")
            assert heard(again, 1) == ["heard"]
            assert listening_pids(proxy) not in (before, [])


def test_who_does_not_end_its_transaction(proxy: Proxy, channel: str) -> None:
    """What it would hear is held, up to a bound; then it is closed."""
    with client(proxy) as listener, client(proxy) as speaker:
        listener.execute(f"LISTEN {channel}")
        listener.execute("BEGIN")
        ask(listener)
        for number in range(1_000_000 // LONGEST + 2):
            notify(speaker, channel, f"{number:04}" + "x" * (LONGEST - 4))
        assert "too many notifications wait" in ending(listener)[1]
        proxy.wait_for("too many notifications held", database="app", user=USER)


def test_who_does_not_read(proxy: Proxy, channel: str) -> None:
    """The socket's buffers take some; what is beyond is held, up to the same bound."""
    with client(proxy) as listener, client(proxy) as speaker:
        listener.execute(f"LISTEN {channel}")
        for _ in range(100):
            notify(speaker, channel, *(token() + "x" * (LONGEST - 36) for _ in range(100)))
            if proxy.events("too many notifications held"):
                break
        assert proxy.events("too many notifications held")
        ask(speaker)


def test_the_server_restarts(channel: str) -> None:
    with (
        EmbeddedPostgres(settings={"max_connections": 50}) as server,
        Proxy(server, proxy=console.SETTINGS) as proxy,
    ):
        with client(proxy) as listener:
            listener.execute(f"LISTEN {channel}")
            server.restart()
            assert "the connection that listens for this session was lost" in ending(listener)[1]
        with client(proxy) as listener:
            listener.execute(f"LISTEN {channel}")
            notify(listener, channel, "heard")
            assert heard(listener, 1) == ["heard"]
            server.stop()
            assert "the connection that listens for this session was lost" in ending(listener)[1]
        server.start()


def test_no_connection_can_be_made(server: EmbeddedPostgres, channel: str) -> None:
    """LISTEN gets the server's error; in a transaction, that fails with it."""
    with direct(server, "postgres") as admin:
        admin.execute("CREATE ROLE narrow LOGIN CONNECTION LIMIT 1")
    try:
        with (
            Proxy(server, databases={"app": {"pool_size": 1}}, check=False) as proxy,
            proxy.connect("app", "narrow") as listener,
        ):
            listener.execute("SELECT 1")
            with pytest.raises(psycopg.errors.TooManyConnections):
                listener.execute(f"LISTEN {channel}")
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                listener.execute("SELECT 1")
            listener.rollback()
            with pytest.raises(psycopg.errors.TooManyConnections):
                listener.execute(f"LISTEN {channel}")
            listener.rollback()
            ask(listener)
    finally:
        with direct(server, "postgres") as admin:
            wait_until(lambda: [b for b in backends(server) if b.user == "narrow"], lambda x: not x)
            admin.execute("DROP ROLE narrow")


# Limits.


def test_it_has_a_place_in_the_limits(server: EmbeddedPostgres, channel: str) -> None:
    settings: Table = {"default_pool_size": 2, "max_db_connections": 2, **console.SETTINGS}
    with (
        Proxy(server, proxy=settings, check=False) as proxy,
        proxy.connect() as one,
        client(proxy) as other,
        client(proxy) as listener,
        console.connect(proxy) as admin,
    ):
        ask(one)
        ask(other)  # there are two backends now, and one of them is idle
        listener.execute(f"LISTEN {channel}")
        notify(one, channel, "heard")
        one.commit()
        assert heard(listener, 1) == ["heard"]
        ask(other)
        assert console.one(admin, "DATABASES", name="app")["current_connections"] == 2
        assert [row["state"] for row in console.show(admin, "SERVERS")].count("listening") == 1


def test_it_never_takes_the_last_place(server: EmbeddedPostgres, channel: str) -> None:
    settings: Table = {"max_db_connections": 1, "default_pool_size": 1}
    with Proxy(server, proxy=settings) as proxy, client(proxy) as listener:
        with pytest.raises(psycopg.errors.TooManyConnections):
            listener.execute(f"LISTEN {channel}")
        ask(listener)


# What is shown.


def test_show_servers(proxy: Proxy, channel: str) -> None:
    with client(proxy) as listener, console.connect(proxy) as admin:
        listener.execute(f"LISTEN {channel}")
        row = console.one(admin, "SERVERS", state="listening", database="app")
        assert row["user"] == USER
        assert row["remote_pid"] in pids(proxy.server)
