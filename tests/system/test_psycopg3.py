"""psycopg 3, with and without asyncio, through the proxy: more clients than backends."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tests.system.proxy import Proxy, ask, ask_async, backends, in_threads, pids, token, wait_until

CLIENTS: Final = 6
ROUNDS: Final = 20


@pytest.fixture
def clients(proxy: Proxy) -> Iterator[list[psycopg.Connection[Any]]]:
    """More clients than the pool has backends."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(proxy.connect()) for _ in range(CLIENTS)]


@pytest.fixture
def table(proxy: Proxy) -> Iterator[str]:
    """An empty table."""
    name = "t_" + token().replace("-", "")
    with proxy.connect(autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, v text)").format(ident(name))
        )
    yield name
    with proxy.connect(autocommit=True) as connection:
        connection.execute(sql.SQL("DROP TABLE {}").format(ident(name)))


def ident(name: str) -> sql.Identifier:
    return sql.Identifier(name)


def on(query: str, table: str) -> sql.Composed:
    return sql.SQL(query).format(ident(table))


def count(connection: psycopg.Connection[Any], table: str) -> int:
    row = connection.execute(on("SELECT count(*) FROM {}", table)).fetchone()
    assert row is not None
    return int(row[0])


def test_clients_in_turn(proxy: Proxy, clients: list[psycopg.Connection[Any]]) -> None:
    for _ in range(ROUNDS):
        for client in clients:
            ask(client)
            ask(client)
            client.commit()
    assert len(backends(proxy.server)) <= 2


def test_transactions_in_threads(proxy: Proxy, table: str) -> None:
    def work(index: int) -> None:
        with proxy.connect() as connection:
            for number in range(ROUNDS):
                with connection.transaction():
                    ask(connection)
                    connection.execute(
                        on("INSERT INTO {} VALUES (%s, %s)", table),
                        [index * ROUNDS + number, token()],
                    )
                    ask(connection)

    in_threads(work, CLIENTS)
    with proxy.connect() as connection:
        assert count(connection, table) == CLIENTS * ROUNDS


def test_autocommit_in_threads(proxy: Proxy) -> None:
    def work(index: int) -> None:
        with proxy.connect(autocommit=True) as connection:
            for _ in range(ROUNDS):
                ask(connection)
                mine = token()
                assert connection.execute("SELECT %s::text", [mine]).fetchone() == (mine,)

    in_threads(work, CLIENTS)
    assert len(backends(proxy.server)) <= 2


def test_rollback_and_savepoints(proxy: Proxy, table: str) -> None:
    with proxy.connect() as connection:
        insert = on("INSERT INTO {} VALUES (%s)", table)
        with connection.transaction():
            connection.execute(insert, [1])
            with contextlib.suppress(ZeroDivisionError), connection.transaction():
                connection.execute(insert, [2])
                raise ZeroDivisionError
            with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
                connection.execute(insert, [1])
            with connection.transaction(force_rollback=True):
                connection.execute(insert, [3])
            ask(connection)
        with pytest.raises(ZeroDivisionError), connection.transaction():  # noqa: PT012 the end of the inner block is part of it
            connection.execute(insert, [4])
            raise ZeroDivisionError
        assert connection.execute(on("SELECT id FROM {}", table)).fetchall() == [(1,)]


def test_an_error_in_a_transaction_is_the_servers(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        with pytest.raises(psycopg.errors.UndefinedTable) as caught:
            connection.execute("SELECT * FROM nowhere")
        assert caught.value.diag.statement_position == "15"
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1")
        connection.rollback()
        ask(connection)


def test_many_isolation_levels(proxy: Proxy) -> None:
    with proxy.connect() as first, proxy.connect() as second:
        first.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        first.read_only = True
        for connection, expected in (
            (first, ("serializable", "on")),
            (second, ("read committed", "off")),
        ):
            row = connection.execute(
                "SELECT current_setting('transaction_isolation'),"
                " current_setting('transaction_read_only')"
            ).fetchone()
            assert row == expected


# Prepared statements.


@pytest.mark.parametrize("threshold", [5, 0])
def test_prepared_statements(proxy: Proxy, threshold: int) -> None:
    # as many as there are backends: a prepared statement keeps its backend to the session's end
    for _ in range(3):
        with (
            proxy.connect(prepare_threshold=threshold, autocommit=True) as first,
            proxy.connect(prepare_threshold=threshold) as second,
        ):
            for _ in range(10):
                for connection in (first, second):
                    mine = token()
                    assert connection.execute("SELECT %s::text", [mine]).fetchone() == (mine,)
                    found = connection.execute("SELECT %s::int + 1", [41]).fetchone()
                    assert found == (42,)
                    connection.commit()


def test_prepared_statements_stay_prepared(proxy: Proxy) -> None:
    with proxy.connect(prepare_threshold=0) as connection:
        for _ in range(10):
            connection.execute("SELECT %s::text", ["a"])
            connection.commit()
        with proxy.connect() as other:
            ask(other)
        row = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        assert row is not None
        assert row[0] >= 1


def test_the_table_changes_under_a_prepared_statement(proxy: Proxy, table: str) -> None:
    query = on("SELECT * FROM {}", table)
    with proxy.connect(prepare_threshold=0, autocommit=True) as connection:
        connection.execute(on("INSERT INTO {} VALUES (1, 'a')", table))
        for _ in range(3):
            assert connection.execute(query).fetchall() == [(1, "a")]
        with proxy.connect(autocommit=True) as other:
            other.execute(on("ALTER TABLE {} DROP COLUMN v", table))
        # directly this is an error: cached plan must not change result type
        assert connection.execute(query).fetchall() == [(1,)]
        ask(connection)


# Pipelines.


def test_pipelines(proxy: Proxy) -> None:
    def work(index: int) -> None:
        with proxy.connect(autocommit=True) as connection:
            for _ in range(5):
                with connection.pipeline() as pipeline:
                    tokens = [token() for _ in range(ROUNDS)]
                    cursors = []
                    for number, each in enumerate(tokens):
                        cursors.append(connection.execute("SELECT %s::text", [each]))
                        if number % 7 == 3:
                            pipeline.sync()
                assert [cursor.fetchone() for cursor in cursors] == [(each,) for each in tokens]

    in_threads(work, CLIENTS)


def test_a_pipeline_with_a_transaction(proxy: Proxy, table: str) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)

    def work(index: int) -> None:
        with proxy.connect() as connection:
            for number in range(5):
                with connection.pipeline(), connection.transaction():
                    connection.execute(insert, [index * 10 + number])
                    ask_in_pipeline(connection)

    in_threads(work, CLIENTS)
    with proxy.connect() as connection:
        assert count(connection, table) == CLIENTS * 5


def ask_in_pipeline(connection: psycopg.Connection[Any]) -> None:
    mine = token()
    assert connection.execute("SELECT %s::text", [mine]).fetchone() == (mine,)


def test_an_error_in_a_pipeline(proxy: Proxy, table: str) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)
    with proxy.connect(autocommit=True) as connection:
        with pytest.raises(psycopg.errors.UniqueViolation), connection.pipeline():  # noqa: PT012 the end of the inner block is part of it
            connection.execute(insert, [1])
            connection.execute(insert, [1])
            connection.execute(insert, [2])
        # one unit, and so one transaction
        assert count(connection, table) == 0
        with pytest.raises(psycopg.errors.UniqueViolation), connection.pipeline() as pipeline:  # noqa: PT012 the end of the inner block is part of it
            connection.execute(insert, [1])
            pipeline.sync()
            connection.execute(insert, [1])
        assert count(connection, table) == 1
        ask(connection)


def test_executemany(proxy: Proxy, table: str) -> None:
    with proxy.connect() as connection, connection.cursor() as cursor:
        rows = [(number, token()) for number in range(200)]
        cursor.executemany(
            on("INSERT INTO {} VALUES (%s, %s) RETURNING v", table), rows, returning=True
        )
        returned = [cursor.fetchone()]
        while cursor.nextset():
            returned.append(cursor.fetchone())
        assert returned == [(v,) for _, v in rows]


# COPY.


def test_copy_both_ways(proxy: Proxy, table: str) -> None:
    def work(index: int) -> None:
        rows = [(index * 1000 + number, token()) for number in range(500)]
        with proxy.connect() as connection, connection.cursor() as cursor:
            with cursor.copy(on("COPY {} FROM STDIN", table)) as copy:
                for row in rows:
                    copy.write_row(row)
            ask(connection)
            query = sql.SQL("COPY (SELECT * FROM {} WHERE id / 1000 = {} ORDER BY id) TO STDOUT")
            with cursor.copy(query.format(ident(table), index)) as copy:
                copy.set_types(["int4", "text"])
                assert list(copy.rows()) == rows
            ask(connection)

    in_threads(work, CLIENTS)
    with proxy.connect() as connection:
        assert count(connection, table) == CLIENTS * 500


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_copy_that_fails_at_the_server(proxy: Proxy, table: str, autocommit: bool) -> None:
    with proxy.connect(autocommit=autocommit) as connection, connection.cursor() as cursor:
        with (  # noqa: PT012 the end of the inner block is part of it
            pytest.raises(psycopg.errors.InvalidTextRepresentation),
            cursor.copy(on("COPY {} FROM STDIN", table)) as copy,
        ):
            copy.write("1\ta\nno number\tb\n")
            for number in range(2, 2000):
                copy.write(f"{number}\t{'x' * 100}\n")
        connection.rollback()
        assert count(connection, table) == 0
        ask(connection)


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_copy_that_the_client_gives_up(proxy: Proxy, table: str, autocommit: bool) -> None:
    with proxy.connect(autocommit=autocommit) as connection, connection.cursor() as cursor:
        with (  # noqa: PT012 the end of the inner block is part of it
            pytest.raises(ZeroDivisionError),
            cursor.copy(on("COPY {} FROM STDIN", table)) as copy,
        ):
            copy.write("1\ta\n")
            raise ZeroDivisionError
        connection.rollback()
        assert count(connection, table) == 0
        with (  # noqa: PT012 the end of the inner block is part of it
            pytest.raises(ZeroDivisionError),
            cursor.copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT") as copy,
        ):
            copy.read()
            raise ZeroDivisionError
        connection.rollback()
        ask(connection)


def test_a_copy_that_is_refused(proxy: Proxy) -> None:
    with proxy.connect(autocommit=True) as connection, connection.cursor() as cursor:
        for _ in range(3):
            with (
                pytest.raises(psycopg.errors.UndefinedTable),
                cursor.copy("COPY nowhere FROM STDIN") as copy,
            ):
                copy.write("1\n")
            ask(connection)


def test_a_binary_copy(proxy: Proxy, table: str) -> None:
    with proxy.connect() as connection, connection.cursor() as cursor:
        with cursor.copy(on("COPY {} FROM STDIN (FORMAT binary)", table)) as copy:
            copy.set_types(["int4", "text"])
            for number in range(100):
                copy.write_row((number, "ü" * number))
        assert count(connection, table) == 100


# Cursors and large values.


def test_server_side_cursors(proxy: Proxy, clients: list[psycopg.Connection[Any]]) -> None:
    # one at a time beyond the first: each holds a backend while its transaction is open
    for client in clients:
        with client.cursor("a_cursor") as cursor:
            cursor.itersize = 10
            cursor.execute("SELECT n, n::text FROM generate_series(1, 95) n")
            assert [row[0] for row in cursor] == list(range(1, 96))
        ask(client)
        client.commit()


def test_scrollable_cursors(proxy: Proxy) -> None:
    with proxy.connect() as connection, connection.cursor("c", scrollable=True) as cursor:
        cursor.execute("SELECT generate_series(1, 50)")
        cursor.scroll(40, mode="absolute")
        assert cursor.fetchone() == (41,)
        cursor.scroll(-11)
        assert cursor.fetchone() == (31,)


def test_a_cursor_with_hold_keeps_its_backend(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        cursor = connection.cursor("held", withhold=True)
        cursor.execute("SELECT generate_series(1, 50)")
        connection.commit()
        with proxy.connect() as other:
            for _ in range(5):
                ask(other)
                other.commit()
        assert [row[0] for row in cursor.fetchall()] == list(range(1, 51))
        cursor.close()


def test_large_values(proxy: Proxy) -> None:
    def work(index: int) -> None:
        with proxy.connect(autocommit=True) as connection:
            large = token() * (100_000 * (index % 3 + 1))
            assert connection.execute("SELECT %s::text", [large]).fetchone() == (large,)
            data = bytes(range(256)) * 20_000
            assert connection.execute("SELECT %b::bytea", [data]).fetchone() == (data,)
            ask(connection)
            simple = psycopg.ClientCursor(connection)
            assert simple.execute("SELECT %s", [large]).fetchone() == (large,)
            ask(connection)

    in_threads(work, CLIENTS)


def test_many_rows(proxy: Proxy) -> None:
    def work(index: int) -> None:
        with proxy.connect() as connection:
            rows = connection.execute("SELECT n, repeat('x', 100) FROM generate_series(1, 50000) n")
            assert [row[0] for row in rows] == list(range(1, 50001))
            ask(connection)

    in_threads(work, 3)


def test_row_by_row(proxy: Proxy) -> None:
    with proxy.connect(autocommit=True) as connection:
        for number, row in enumerate(connection.cursor().stream("SELECT generate_series(1, 3000)")):
            assert row == (number + 1,)
        ask(connection)


def test_types(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        document = {"a": [1, None, "ü"]}
        row = connection.execute("SELECT %s, %s::int[], %s::timestamptz IS NOT NULL", [
            Jsonb(document), [1, None, 3], "2026-01-01",
        ]).fetchone()  # fmt: skip
        assert row == (document, [1, None, 3], True)


def test_several_statements_in_one_string(proxy: Proxy, table: str) -> None:
    with proxy.connect(autocommit=True) as connection:
        cursor = psycopg.ClientCursor(connection)
        first, second = token(), token()
        cursor.execute(f"SELECT '{first}'; SELECT '{second}'".encode())
        assert cursor.fetchone() == (first,)
        cursor.nextset()
        assert cursor.fetchone() == (second,)
        name = table.encode()
        cursor.execute(b"BEGIN; INSERT INTO %b VALUES (1); COMMIT; SELECT 1" % name)
        assert count(connection, table) == 1
        cursor.execute(b"BEGIN; INSERT INTO %b VALUES (2)" % name)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        connection.rollback()
        assert count(connection, table) == 1


def test_two_phase_commit_is_the_servers(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        ask(connection)
        # the servers of these tests have max_prepared_transactions = 0
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            connection.execute("PREPARE TRANSACTION 'a'")
        connection.rollback()
        ask(connection)


# Cancel.


def is_running(proxy: Proxy, mark: str) -> bool:
    return any(mark in each.query and each.state == "active" for each in backends(proxy.server))


@pytest.mark.parametrize("autocommit", [True, False])
def test_cancel(proxy: Proxy, autocommit: bool) -> None:
    mark = token()
    with proxy.connect(autocommit=autocommit) as connection:

        def canceller() -> None:
            wait_until(lambda: is_running(proxy, mark), bool)
            connection.cancel_safe()

        thread = threading.Thread(target=canceller)
        thread.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(f"SELECT pg_sleep(60) /* {mark} */".encode())
        thread.join()
        connection.rollback()
        ask(connection)


def test_a_cancel_that_comes_late_hurts_nobody(
    proxy: Proxy, clients: list[psycopg.Connection[Any]]
) -> None:
    for _ in range(ROUNDS):
        for client in clients:
            ask(client)
            client.commit()
            client.cancel_safe()
            ask(client)
            client.commit()


def test_cancel_of_a_statement_that_waits_for_a_backend(proxy: Proxy) -> None:
    with proxy.connect() as first, proxy.connect() as second, proxy.connect() as third:
        ask(first)
        ask(second)
        result: list[BaseException] = []

        def wait() -> None:
            try:
                third.execute("SELECT 1")
            except psycopg.Error as error:
                result.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        # nothing shows from outside that it is queued; a cancel that comes too early is for nobody
        while thread.is_alive():
            third.cancel_safe()
            thread.join(0.05)
        assert isinstance(result[0], psycopg.errors.QueryCanceled)
        third.rollback()
        ask(first)
        first.rollback()
        ask(third)


# Leaving.


def test_clients_that_leave_in_the_middle(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        ask(connection)
    before = pids(proxy.server)
    for _ in range(4):
        sleeper = proxy.connect()
        ask(sleeper)
        sleeper.close()
        failed = proxy.connect()
        with pytest.raises(psycopg.Error):
            failed.execute("SELECT 1/0")
        failed.close()
    with proxy.connect() as connection:
        ask(connection)
    assert len(before | pids(proxy.server)) <= 2


def test_connection_info(proxy: Proxy) -> None:
    with proxy.connect(application_name="a name") as connection:
        assert connection.info.parameter_status("application_name") == "a name"
        assert connection.info.parameter_status("server_encoding") == "UTF8"
        assert connection.info.server_version >= 150000
        assert connection.info.encoding == "utf-8"
    with psycopg.connect(host=proxy.socket_dir, port=proxy.port, user="app", dbname="app") as unix:
        ask(unix)


def test_a_database_that_is_not_configured(proxy: Proxy) -> None:
    with pytest.raises(psycopg.OperationalError, match='database "nowhere" does not exist'):
        proxy.connect("nowhere")


# With asyncio.


async def test_async_clients(proxy: Proxy) -> None:
    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(
            proxy.dsn(), prepare_threshold=None
        ) as connection:
            for _ in range(ROUNDS):
                await ask_async(connection)
                await ask_async(connection)
                await connection.commit()
                async with connection.transaction():
                    await ask_async(connection)

    await asyncio.gather(*(work() for _ in range(CLIENTS * 3)))
    assert len(backends(proxy.server)) <= 2


async def test_async_pipelines_and_copy(proxy: Proxy, table: str) -> None:
    async def work(index: int) -> None:
        async with await psycopg.AsyncConnection.connect(
            proxy.dsn(), prepare_threshold=None, autocommit=True
        ) as connection:
            async with connection.pipeline():
                tokens = [token() for _ in range(ROUNDS)]
                cursors = [await connection.execute("SELECT %s::text", [each]) for each in tokens]
            assert [await each.fetchone() for each in cursors] == [(each,) for each in tokens]
            async with connection.cursor() as cursor:
                async with cursor.copy(on("COPY {} FROM STDIN", table)) as copy:
                    for number in range(100):
                        await copy.write_row((index * 100 + number, token()))
                async with connection.transaction(), connection.cursor("named") as named:
                    await named.execute("SELECT generate_series(1, 300)")
                    assert [row[0] async for row in named] == list(range(1, 301))
            await ask_async(connection)

    await asyncio.gather(*(work(index) for index in range(CLIENTS)))
    with proxy.connect() as connection:
        assert count(connection, table) == CLIENTS * 100


async def test_async_tasks_that_are_cancelled(proxy: Proxy) -> None:
    async def work() -> None:
        mark = token()
        async with await psycopg.AsyncConnection.connect(
            proxy.dsn(), prepare_threshold=None
        ) as connection:
            task = asyncio.ensure_future(
                connection.execute(f"SELECT pg_sleep(60) /* {mark} */".encode())
            )
            await asyncio.to_thread(wait_until, lambda: is_running(proxy, mark), bool)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await connection.rollback()
            await ask_async(connection)

    await asyncio.gather(*(work() for _ in range(4)))
