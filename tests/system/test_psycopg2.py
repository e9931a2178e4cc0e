"""psycopg 2 through the proxy: more clients than backends."""

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Any, Final

import psycopg2
import psycopg2.errorcodes
import psycopg2.extensions
import psycopg2.extras
import pytest
from psycopg2.extensions import (
    ISOLATION_LEVEL_AUTOCOMMIT,
    ISOLATION_LEVEL_SERIALIZABLE,
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
)

from tests.system.proxy import Proxy, ask, backends, in_threads, token, wait_until

CLIENTS: Final = 6
ROUNDS: Final = 20


@contextlib.contextmanager
def client(proxy: Proxy, autocommit: bool = False, **more: Any) -> Iterator[Any]:
    """A connection that is closed at the end, whatever it is in the middle of."""
    connection = psycopg2.connect(**proxy.kwargs(**more))
    connection.autocommit = autocommit
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def table(proxy: Proxy) -> Iterator[str]:
    name = "t_" + token().replace("-", "")
    with client(proxy, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
    yield name
    with client(proxy, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {name}")


def count(proxy: Proxy, table: str) -> int:
    with client(proxy) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        return int(cursor.fetchone()[0])


def test_transactions_in_threads(proxy: Proxy, table: str) -> None:
    def work(index: int) -> None:
        with client(proxy) as connection:
            for number in range(ROUNDS):
                with connection, connection.cursor() as cursor:
                    ask(cursor)
                    values = (index * ROUNDS + number, token())
                    cursor.execute(f"INSERT INTO {table} VALUES (%s, %s)", values)
                    ask(cursor)

    in_threads(work, CLIENTS)
    assert count(proxy, table) == CLIENTS * ROUNDS
    assert len(backends(proxy.server)) <= 2


def test_autocommit_in_threads(proxy: Proxy) -> None:
    def work(index: int) -> None:
        with client(proxy, autocommit=True) as connection, connection.cursor() as cursor:
            for _ in range(ROUNDS * 2):
                ask(cursor)
                mine = token()
                cursor.execute("SELECT %s", (mine,))
                assert cursor.fetchone() == (mine,)

    in_threads(work, CLIENTS)


def test_status_errors_and_savepoints(proxy: Proxy, table: str) -> None:
    with client(proxy) as connection, connection.cursor() as cursor:
        status = connection.get_transaction_status
        assert status() == TRANSACTION_STATUS_IDLE
        cursor.execute(f"INSERT INTO {table} VALUES (1)")
        assert status() == TRANSACTION_STATUS_INTRANS
        cursor.execute("SAVEPOINT a")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute(f"INSERT INTO {table} VALUES (1)")
        assert status() == TRANSACTION_STATUS_INERROR
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            ask(cursor)
        cursor.execute("ROLLBACK TO SAVEPOINT a")
        assert status() == TRANSACTION_STATUS_INTRANS
        connection.commit()
        assert status() == TRANSACTION_STATUS_IDLE
        with pytest.raises(psycopg2.errors.DivisionByZero):
            cursor.execute("SELECT 1/0")
        connection.rollback()
        ask(cursor)
    assert count(proxy, table) == 1


def test_isolation_levels(proxy: Proxy) -> None:
    """psycopg 2 says them in its BEGIN, and in autocommit by SET SESSION CHARACTERISTICS."""
    with client(proxy) as one, client(proxy) as other:
        one.set_session(isolation_level=ISOLATION_LEVEL_SERIALIZABLE, readonly=True)
        for connection, expected in (
            (one, ("serializable", "on")),
            (other, ("read committed", "off")),
        ):
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT current_setting('transaction_isolation'),"
                    " current_setting('transaction_read_only')"
                )
                assert cursor.fetchone() == expected
            connection.rollback()
    with client(proxy) as one, client(proxy, autocommit=True) as other:
        one.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        one.set_session(readonly=True)
        for _ in range(3):
            with one.cursor() as cursor:
                cursor.execute("SHOW transaction_read_only")
                assert cursor.fetchone() == ("on",)
            with other.cursor() as cursor:
                cursor.execute("SHOW transaction_read_only")
                assert cursor.fetchone() == ("off",)


def test_copy(proxy: Proxy, table: str) -> None:
    def work(index: int) -> None:
        lines = "".join(f"{index * 1000 + number}\t{token()}\n" for number in range(1000))
        with client(proxy) as connection, connection.cursor() as cursor:
            cursor.copy_expert(f"COPY {table} FROM STDIN", io.StringIO(lines))
            out = io.StringIO()
            query = f"SELECT * FROM {table} WHERE id / 1000 = {index} ORDER BY id"
            cursor.copy_expert(f"COPY ({query}) TO STDOUT", out)
            assert out.getvalue() == lines
            ask(cursor)
            connection.commit()

    in_threads(work, CLIENTS)
    assert count(proxy, table) == CLIENTS * 1000


def test_copy_that_fails(proxy: Proxy, table: str) -> None:
    class Broken:
        """A file that cannot be read to its end."""

        def __init__(self) -> None:
            self.left = 3

        def read(self, _size: int = -1) -> str:
            self.left -= 1
            if not self.left:
                raise OSError("broken")
            return f"{self.left}\ta\n"

    for autocommit in (True, False):
        with client(proxy, autocommit) as connection, connection.cursor() as cursor:
            lines = io.StringIO("1\ta\nno number\tb\n" + "2\tc\n" * 20000)
            with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
                cursor.copy_expert(f"COPY {table} FROM STDIN", lines)
            connection.rollback()
            with pytest.raises(psycopg2.errors.QueryCanceled):
                cursor.copy_expert(f"COPY {table} FROM STDIN", Broken())
            connection.rollback()
            with pytest.raises(psycopg2.errors.UndefinedTable):
                cursor.copy_expert("COPY nowhere FROM STDIN", io.StringIO("1\n"))
            connection.rollback()
            ask(cursor)
    assert count(proxy, table) == 0


def test_server_side_cursors(proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        for connection in [stack.enter_context(client(proxy)) for _ in range(CLIENTS)]:
            with connection.cursor("named") as named:
                named.itersize = 100
                named.execute("SELECT generate_series(1, 950)")
                assert [number for (number,) in named] == list(range(1, 951))
            connection.commit()
        connection = stack.enter_context(client(proxy))
        held = connection.cursor("held", withhold=True)
        held.execute("SELECT generate_series(1, 100)")
        connection.commit()
        with client(proxy) as other, other.cursor() as cursor:
            for _ in range(5):
                ask(cursor)
                other.commit()
        assert [number for (number,) in held] == list(range(1, 101))
        held.close()


def test_large_values_and_many_rows(proxy: Proxy, table: str) -> None:
    def work(index: int) -> None:
        with client(proxy, autocommit=True) as connection, connection.cursor() as cursor:
            large = token() * (50_000 * (index + 1))
            cursor.execute("SELECT %s", (large,))
            assert cursor.fetchone() == (large,)
            ask(cursor)
            psycopg2.extras.execute_values(
                cursor,
                f"INSERT INTO {table} VALUES %s",
                [(index * 5000 + number, token()) for number in range(5000)],
                page_size=5000,
            )
            cursor.execute(f"SELECT * FROM {table} WHERE id / 5000 = {index}")
            assert len(cursor.fetchall()) == 5000
            ask(cursor)

    in_threads(work, 4)
    assert count(proxy, table) == 4 * 5000


def test_several_statements_and_notices(proxy: Proxy) -> None:
    with client(proxy) as connection, connection.cursor() as cursor:
        mine = token()
        cursor.execute(f"SELECT 1; SELECT 2; SELECT '{mine}'")
        assert cursor.fetchone() == (mine,)
        cursor.execute(f"DO $$ BEGIN RAISE NOTICE '{mine}'; END $$")
        assert [mine in notice for notice in connection.notices] == [True]
        connection.rollback()
        with client(proxy) as other, other.cursor() as others:
            ask(others)
            assert other.notices == []


@pytest.mark.parametrize("autocommit", [True, False])
def test_cancel(proxy: Proxy, autocommit: bool) -> None:
    mark = token()

    def runs() -> bool:
        return any(mark in each.query and each.state == "active" for each in backends(proxy.server))

    with client(proxy, autocommit) as connection, connection.cursor() as cursor:

        def canceller() -> None:
            wait_until(runs, bool)
            connection.cancel()

        thread = threading.Thread(target=canceller)
        thread.start()
        with pytest.raises(psycopg2.errors.QueryCanceled):
            cursor.execute(f"SELECT pg_sleep(60) /* {mark} */")
        thread.join()
        connection.rollback()
        ask(cursor)


def test_reset(proxy: Proxy) -> None:
    """reset() says ABORT, RESET ALL and SET SESSION AUTHORIZATION DEFAULT."""
    with client(proxy) as connection, connection.cursor() as cursor:
        cursor.execute("SET TimeZone = 'Asia/Tokyo'")
        connection.commit()
        connection.reset()
        cursor.execute("SHOW TimeZone")
        assert cursor.fetchone() != ("Asia/Tokyo",)
        ask(cursor)


def test_two_phase_commit_is_the_servers(proxy: Proxy) -> None:
    with client(proxy) as connection:
        connection.tpc_begin(connection.xid(1, token(), "b"))
        with connection.cursor() as cursor:
            ask(cursor)
        with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState):
            connection.tpc_prepare()


def test_large_objects(proxy: Proxy) -> None:
    """They speak by FunctionCall."""
    with client(proxy) as connection, client(proxy) as other:
        data = token().encode() * 10_000
        large = connection.lobject(0, "wb")
        large.write(data)
        oid = large.oid
        large.close()
        connection.commit()
        with other.cursor() as cursor:
            ask(cursor)
        other.commit()
        large = connection.lobject(oid, "rb")
        assert large.read() == data
        large.unlink()
        connection.commit()


def test_connections_without_blocking(proxy: Proxy) -> None:
    connection = psycopg2.connect(**proxy.kwargs(), async_=True)
    psycopg2.extras.wait_select(connection)
    cursor = connection.cursor()
    for _ in range(ROUNDS):
        mine = token()
        cursor.execute("SELECT %s", (mine,))
        psycopg2.extras.wait_select(connection)
        assert cursor.fetchone() == (mine,)
    connection.close()
