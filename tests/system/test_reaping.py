"""Clients that sleep in their transactions: the backend is freed, the client told the truth, once.

The databases of this proxy differ in what is done to a sleeper. A test that needs one to be reaped
waits for the proxy's word for it, and no test depends on how long that took.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus

from tests.system.proxy import OTHER_USER, Proxy, ask, complaints, direct, pids, token, wait_until

QUICK: Final = "quick"


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    # a session may be given more time: see `awake`
    quick = {"idle_transaction_timeout": "200ms", "idle_transaction_timeout_max": "1h"}
    return {
        "databases": {
            "app": {},
            QUICK: quick,
            "retry": {**quick, "idle_transaction_sqlstate": "40001"},
            "thrown_out": {**quick, "idle_transaction_action": "disconnect"},
            "told": {**quick, "idle_transaction_action": "report"},
            "strict": {"idle_transaction_timeout": "200ms"},
            "never": {"idle_transaction_timeout": 0},
            "race": {"idle_transaction_timeout": "100ms", "pool_size": 12},
            # the time of a few statements, on a machine that is busy
            "short": {"transaction_timeout": "2s"},
        },
        "users": {
            # what is said for the user beats what is said for the database
            OTHER_USER: {"idle_transaction_timeout": "300ms", "pool_size": 1},
        },
    }


@pytest.fixture
def table(proxy: Proxy) -> str:
    """A table that everybody may use; it is never dropped."""
    name = "r_" + token().replace("-", "")
    with direct(proxy.server) as connection:
        connection.execute(on("CREATE TABLE {} (v text)", name))
        connection.execute(on("GRANT ALL ON {} TO public", name))
    return name


def on(query: str, table: str) -> sql.Composed:
    return sql.SQL(query).format(sql.Identifier(table))


def rows(proxy: Proxy, table: str) -> list[str]:
    with direct(proxy.server) as connection:
        return [v for (v,) in connection.execute(on("SELECT v FROM {} ORDER BY v", table))]


AWAKE: Final = "SET txproxy.idle_transaction_timeout = '1h'"
DROWSY: Final = "RESET txproxy.idle_transaction_timeout"


def awake(connection: Any) -> None:
    """From now on it is no sleeper, however long the machine lets it wait between statements."""
    connection.execute(AWAKE)


def drowsy(connection: Any) -> None:
    """From now on it is again what its database makes of it."""
    connection.execute(DROWSY)


def sleep(proxy: Proxy, times: int = 1) -> None:
    """Sleep until so many sleepers have been reaped."""
    proxy.wait_for("reaped", times)


def sleep_till_clean(proxy: Proxy, times: int = 1) -> None:
    """The same, until nobody is in a transaction: who speaks before the ROLLBACK is answered gets
    another backend.
    """
    sleep(proxy, times)
    wait_until(lambda: complaints(proxy.server), lambda found: not found)


# psycopg 3.


@pytest.mark.parametrize("threshold", [None, 0])
def test_psycopg3(proxy: Proxy, table: str, threshold: int | None) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)
    with proxy.connect(QUICK, prepare_threshold=threshold) as connection:
        connection.execute(insert, ["lost"])
        before = pids(proxy.server)
        sleep_till_clean(proxy)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout) as caught:
            connection.execute(insert, ["lost too"])
        assert caught.value.diag.severity_nonlocalized == "ERROR"
        assert "idle_transaction_timeout" in (caught.value.diag.message_primary or "")
        assert caught.value.diag.message_hint
        assert connection.info.transaction_status == TransactionStatus.INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute(insert, ["lost as well"])
        connection.rollback()
        awake(connection)
        for _ in range(3):
            ask(connection)
            connection.execute(insert, ["kept"])
            connection.commit()
        assert pids(proxy.server) == before
    assert rows(proxy, table) == ["kept"] * 3
    assert len(proxy.events("reaped")) == 1


def test_psycopg3_commit_says_so(proxy: Proxy, table: str) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)
    with proxy.connect(QUICK) as connection:
        connection.execute(insert, ["lost"])
        sleep(proxy)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            connection.commit()
        assert connection.info.transaction_status == TransactionStatus.IDLE
        awake(connection)
        ask(connection)
        connection.execute(insert, ["kept"])
        connection.commit()
    assert rows(proxy, table) == ["kept"]


def test_psycopg3_rollback_is_quiet(proxy: Proxy, table: str) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)
    with proxy.connect(QUICK) as connection:
        connection.execute(insert, ["lost"])
        sleep(proxy)
        connection.rollback()
        assert connection.info.transaction_status == TransactionStatus.IDLE
        awake(connection)
        ask(connection)
        connection.execute(insert, ["kept"])
        connection.commit()
    assert rows(proxy, table) == ["kept"]


def test_psycopg3_transaction_blocks(proxy: Proxy, table: str) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)
    with proxy.connect(QUICK, autocommit=True) as connection:
        with (  # noqa: PT012 the block's end raises
            pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout),
            connection.transaction(),
        ):
            connection.execute(insert, ["lost"])
            sleep(proxy)
        with (  # noqa: PT012 the savepoint's end raises
            pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout),
            connection.transaction(),
        ):
            connection.execute(insert, ["lost"])
            with connection.transaction():
                connection.execute(insert, ["lost"])
                sleep(proxy, 2)
        awake(connection)
        with connection.transaction():
            connection.execute(insert, ["kept"])
            ask(connection)
    assert rows(proxy, table) == ["kept"]


def test_psycopg3_pipeline(proxy: Proxy, table: str) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)
    with proxy.connect(QUICK) as connection:
        connection.execute(insert, ["lost"])
        sleep(proxy)
        with (  # noqa: PT012 the pipeline's end raises
            pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout),
            connection.pipeline(),
        ):
            for _ in range(5):
                connection.execute(insert, ["lost"])
        connection.rollback()
        awake(connection)
        with connection.pipeline():
            for _ in range(5):
                connection.execute(insert, ["kept"])
        connection.commit()
        ask(connection)
    assert rows(proxy, table) == ["kept"] * 5


@pytest.mark.parametrize("autocommit", [True, False])
def test_psycopg3_asleep_in_a_pipeline(proxy: Proxy, table: str, autocommit: bool) -> None:
    """What was sent has no Sync and no Flush behind it: the server has done it, and is silent."""
    insert = on("INSERT INTO {} VALUES (%s)", table)
    with proxy.connect(QUICK, autocommit=autocommit) as connection:
        with (  # noqa: PT012 the pipeline's end raises
            pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout),
            connection.pipeline(),
        ):
            connection.execute(insert, ["lost"])
            sleep(proxy)
            connection.execute("SELECT 1").fetchone()
        connection.rollback()
        awake(connection)
        ask(connection)
    assert rows(proxy, table) == []


def test_psycopg3_copy(proxy: Proxy, table: str) -> None:
    with proxy.connect(QUICK) as connection, connection.cursor() as cursor:
        with (  # noqa: PT012 the end of the COPY raises
            pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout),
            cursor.copy(on("COPY {} FROM STDIN", table)) as copy,
        ):
            copy.write("lost\n")
            sleep(proxy)
            copy.write("lost\n" * 10_000)
        connection.rollback()
        awake(connection)
        ask(connection)
        with cursor.copy(on("COPY {} FROM STDIN", table)) as copy:
            copy.write("kept\n")
        connection.commit()
        ask(connection)
    assert rows(proxy, table) == ["kept"]


def test_psycopg3_after_an_error(proxy: Proxy) -> None:
    """With a savepoint, without which it would hold nothing."""
    with proxy.connect(QUICK) as connection:
        # nothing can be set in a transaction that has failed
        connection.execute("SET txproxy.idle_transaction_timeout = '2s'")
        connection.execute("SAVEPOINT s")
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        sleep(proxy)
        # it had been told that nothing of this transaction will stay
        connection.commit()
        awake(connection)
        ask(connection)


def test_psycopg3_cursors(proxy: Proxy) -> None:
    with proxy.connect(QUICK) as connection:
        awake(connection)
        with connection.cursor("named") as cursor:
            cursor.execute("SELECT generate_series(1, 100)")
            assert cursor.fetchone() == (1,)
            drowsy(connection)
            sleep(proxy)
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                cursor.fetchone()
        connection.rollback()
        awake(connection)
        ask(connection)


async def test_psycopg3_with_asyncio(proxy: Proxy, table: str) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)

    async def work(index: int) -> None:
        async with await psycopg.AsyncConnection.connect(
            proxy.dsn(QUICK), prepare_threshold=None
        ) as connection:
            await connection.execute(insert, ["lost"])
            await asyncio.to_thread(sleep, proxy, index)
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                await connection.execute(insert, ["lost"])
            await connection.rollback()
            await connection.execute(AWAKE)
            await connection.execute(insert, ["kept"])
            await connection.commit()

    # the pool has two backends: the others get theirs because the first are reaped
    await asyncio.gather(*(work(6) for _ in range(6)))
    assert rows(proxy, table) == ["kept"] * 6


# psycopg 2.


def psycopg2_client(proxy: Proxy, dbname: str = QUICK) -> Any:
    return psycopg2.connect(**proxy.kwargs(dbname))


def test_psycopg2(proxy: Proxy, table: str) -> None:
    insert = f"INSERT INTO {table} VALUES (%s)"
    connection = psycopg2_client(proxy)
    cursor = connection.cursor()
    cursor.execute(insert, ["lost"])
    before = pids(proxy.server)
    sleep_till_clean(proxy)
    with pytest.raises(psycopg2.errors.IdleInTransactionSessionTimeout):
        cursor.execute(insert, ["lost"])
    with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
        cursor.execute(insert, ["lost"])
    connection.rollback()
    awake(cursor)
    ask(cursor)
    cursor.execute(insert, ["kept"])
    connection.commit()
    assert pids(proxy.server) == before
    cursor.execute(insert, ["lost"])
    drowsy(cursor)
    sleep(proxy, 2)
    connection.rollback()
    awake(cursor)
    ask(cursor)
    connection.commit()
    cursor.execute(insert, ["lost"])
    drowsy(cursor)
    sleep(proxy, 3)
    with pytest.raises(psycopg2.Error) as caught:
        connection.commit()
    assert caught.value.pgcode == "25P03"
    ask(cursor)
    connection.close()
    assert rows(proxy, table) == ["kept"]


def test_psycopg2_copy(proxy: Proxy, table: str) -> None:
    class Sleepy:
        """A file whose reader is held up."""

        def __init__(self) -> None:
            self.left = 3

        def read(self, _size: int = -1) -> str:
            if self.left == 2:
                sleep(proxy)
            self.left -= 1
            return "lost\n" if self.left >= 0 else ""

    connection = psycopg2_client(proxy)
    cursor = connection.cursor()
    with pytest.raises(psycopg2.errors.IdleInTransactionSessionTimeout):
        cursor.copy_expert(f"COPY {table} FROM STDIN", Sleepy())
    connection.rollback()
    ask(cursor)
    connection.close()
    assert rows(proxy, table) == []


# asyncpg.


@pytest.mark.parametrize("cache", [100, 0])
async def test_asyncpg(proxy: Proxy, table: str, cache: int) -> None:
    insert = f"INSERT INTO {table} VALUES ($1)"
    connection = await asyncpg.connect(**proxy.asyncpg(QUICK, statement_cache_size=cache))
    await connection.execute(AWAKE)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(insert, "lost")
    before = pids(proxy.server)
    await connection.execute(DROWSY)
    await asyncio.to_thread(sleep_till_clean, proxy)
    with pytest.raises(asyncpg.IdleInTransactionSessionTimeoutError):
        await connection.execute(insert, "lost")
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await connection.execute(insert, "lost")
    await transaction.rollback()
    await connection.execute(insert, "kept")

    await connection.execute(AWAKE)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(insert, "lost")
    await connection.execute(DROWSY)
    await asyncio.to_thread(sleep_till_clean, proxy, 2)
    with pytest.raises(asyncpg.IdleInTransactionSessionTimeoutError):
        await transaction.commit()
    mine = token()
    assert await connection.fetchval("SELECT $1::text", mine) == mine

    await connection.execute(AWAKE)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(insert, "lost")
    await connection.execute(DROWSY)
    await asyncio.to_thread(sleep_till_clean, proxy, 3)
    await transaction.rollback()
    assert await connection.fetchval("SELECT $1::text", mine) == mine
    assert pids(proxy.server) == before
    await connection.close()
    assert rows(proxy, table) == ["kept"]


async def test_asyncpg_prepare_in_a_transaction(proxy: Proxy) -> None:
    """prepare() sends Parse, Describe, Flush, and no Sync: the server waits for more."""
    connection = await asyncpg.connect(**proxy.asyncpg(QUICK, statement_cache_size=0))
    transaction = connection.transaction()
    await transaction.start()
    statement = await connection.prepare("SELECT $1::text")
    await asyncio.to_thread(sleep, proxy)
    with pytest.raises(asyncpg.IdleInTransactionSessionTimeoutError):
        await statement.fetchval("a")
    await transaction.rollback()
    mine = token()
    assert await connection.fetchval("SELECT $1::text", mine) == mine
    await connection.close()


# What is done to sleepers, and for whom.


def test_a_sqlstate_that_is_retried(proxy: Proxy) -> None:
    with proxy.connect("retry") as connection:
        ask(connection)
        sleep(proxy)
        with pytest.raises(psycopg.errors.SerializationFailure):
            ask(connection)
        connection.rollback()
        awake(connection)
        ask(connection)


def test_action_disconnect(proxy: Proxy) -> None:
    with proxy.connect("thrown_out") as connection:
        ask(connection)
        before = pids(proxy.server)
        sleep_till_clean(proxy)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout) as caught:
            ask(connection)
        assert caught.value.diag.severity_nonlocalized == "FATAL"
        assert "can go on" not in (caught.value.diag.message_hint or "")
        assert connection.closed
    with proxy.connect("thrown_out") as other:
        awake(other)
        ask(other)
    assert pids(proxy.server) == before


def test_action_report(proxy: Proxy) -> None:
    with proxy.connect("told") as connection:
        ask(connection)
        proxy.wait_for("would reap", 2)
        ask(connection)
        connection.commit()
    assert proxy.events("reaped") == []


def test_no_timeout(proxy: Proxy) -> None:
    with proxy.connect("never") as connection, proxy.connect(QUICK) as other:
        ask(connection)
        ask(other)
        sleep(proxy)
        ask(connection)
        connection.commit()
        other.rollback()
    assert [each["database"] for each in proxy.events("reaped")] == [QUICK]


def test_for_one_user(proxy: Proxy) -> None:
    with proxy.connect("app", OTHER_USER) as connection, proxy.connect("app") as other:
        ask(connection)
        ask(other)
        sleep(proxy)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            ask(connection)
        connection.rollback()
        ask(other)
    assert [each["user"] for each in proxy.events("reaped")] == [OTHER_USER]


def test_for_one_session(proxy: Proxy) -> None:
    with proxy.connect("app", autocommit=True) as connection, proxy.connect("app") as other:
        assert show(connection) == "60000ms"
        connection.execute("SET txproxy.idle_transaction_timeout = '200ms'")
        assert show(connection) == "200ms"
        ask(other)
        connection.autocommit = False
        ask(connection)
        sleep(proxy)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            ask(connection)
        connection.rollback()
        connection.autocommit = True
        connection.execute("RESET txproxy.idle_transaction_timeout")
        assert show(connection) == "60000ms"
        assert show(other) == "60000ms"
        ask(other)
    assert len(proxy.events("reaped")) == 1


def show(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SHOW txproxy.idle_transaction_timeout").fetchone()
    assert row is not None
    return str(row[0])


def test_for_one_session_from_its_start(proxy: Proxy) -> None:
    options = "-c txproxy.idle_transaction_timeout=200ms"
    with proxy.connect("app", options=options) as connection:
        assert show(connection) == "200ms"
        ask(connection)
        sleep(proxy)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            ask(connection)
        connection.rollback()
    options = "-c txproxy.idle_transaction_action=disconnect"
    with proxy.connect(QUICK, options=options) as connection:
        ask(connection)
        sleep(proxy, 2)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            ask(connection)
        assert connection.closed


def test_what_a_session_may_not_do(proxy: Proxy) -> None:
    with proxy.connect("strict", autocommit=True) as connection:
        for statement, error in (
            ("SET txproxy.idle_transaction_timeout = '1min'", psycopg.errors.InsufficientPrivilege),
            ("SET txproxy.idle_transaction_timeout = 0", psycopg.errors.InsufficientPrivilege),
            (
                "SET txproxy.idle_transaction_action = 'report'",
                psycopg.errors.InsufficientPrivilege,
            ),
            ("SET txproxy.idle_transaction_timeout = 'soon'", psycopg.errors.InvalidParameterValue),
            ("SET txproxy.idle_transaction_tmeout = '1s'", psycopg.errors.UndefinedObject),
        ):
            with pytest.raises(error):
                connection.execute(statement.encode())
            ask(connection)
    with pytest.raises(psycopg.OperationalError, match="cannot be longer"):
        proxy.connect("strict", options="-c txproxy.idle_transaction_timeout=1h")
    with proxy.connect(QUICK, options="-c txproxy.idle_transaction_timeout=1h") as connection:
        assert show(connection) == "3600000ms"


def test_transaction_timeout(proxy: Proxy, table: str) -> None:
    insert = on("INSERT INTO {} VALUES (%s)", table)
    with proxy.connect("short") as connection:
        connection.execute(insert, ["lost"])
        sleep(proxy)
        with pytest.raises(psycopg.Error) as caught:
            connection.commit()
        assert caught.value.sqlstate == "25P04"
        connection.execute(insert, ["lost"])
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60)")
        connection.rollback()
        connection.execute(insert, ["kept"])
        connection.commit()
    assert rows(proxy, table) == ["kept"]
    assert {each["why"] for each in proxy.events("reaped")} == {"transaction_timeout"}


# What others have of it.


def backend_pid(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def test_the_backends_of_sleepers_serve_others(proxy: Proxy) -> None:
    sleepers = [proxy.connect(QUICK) for _ in range(8)]
    used = set()
    for sleeper in sleepers:
        # from the third on it waits until one of the others was reaped
        used.add(backend_pid(sleeper))
    with proxy.connect(QUICK) as other:
        awake(other)
        used.add(backend_pid(other))
    assert len(used) == 2
    sleep(proxy, 8)
    for sleeper in sleepers:
        sleeper.rollback()
        awake(sleeper)
        ask(sleeper)
        sleeper.commit()
        sleeper.close()
    assert len(proxy.events("reaped")) == 8


def test_a_sleepers_locks_are_freed(proxy: Proxy, table: str) -> None:
    with proxy.connect(QUICK) as sleeper, proxy.connect(QUICK) as other:
        sleeper.execute(on("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table))
        awake(other)
        # waits for the lock, and so for the sleeper's end
        other.execute(on("INSERT INTO {} VALUES ('kept')", table))
        other.commit()
        sleeper.rollback()
    assert rows(proxy, table) == ["kept"]
    assert len(proxy.events("reaped")) == 1


def test_settings_of_a_reaped_transaction_are_undone(proxy: Proxy) -> None:
    with proxy.connect(QUICK) as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'")
        assert connection.info.parameter_status("TimeZone") == "Asia/Tokyo"
        sleep(proxy)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            ask(connection)
        assert connection.info.parameter_status("TimeZone") != "Asia/Tokyo"
        connection.rollback()
        awake(connection)
        row = connection.execute("SHOW TimeZone").fetchone()
        assert row is not None
        assert row[0] != "Asia/Tokyo"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMP TABLE mine (a int)",
        "SET work_mem = '65kB'",
        "SELECT pg_advisory_lock(1)",
        "PREPARE mine AS SELECT 1",
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "SET ROLE other",
    ],
)
def test_a_pinned_client_keeps_its_backend(proxy: Proxy, statement: str) -> None:
    with proxy.connect(QUICK) as connection:
        awake(connection)
        connection.execute(statement.encode())
        before = backend_pid(connection)
        drowsy(connection)
        sleep(proxy)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            ask(connection)
        connection.rollback()
        awake(connection)
        assert backend_pid(connection) == before
        # and the other clients have the other one
        for _ in range(3):
            with proxy.connect(QUICK) as other:
                awake(other)
                ask(other)


# The log.


def test_the_log_says_who(proxy: Proxy, table: str) -> None:
    secret = token()
    with proxy.connect(QUICK, application_name="the culprit") as connection:
        connection.execute(
            f"INSERT INTO {table} VALUES ('{secret}') /*route='a%20b',controller='c'*/".encode()
        )
        sleep(proxy)
        connection.rollback()
    [event] = proxy.events("reaped")
    assert event["database"] == QUICK
    assert event["user"] == "app"
    assert event["application_name"] == "the culprit"
    assert event["why"] == "idle_transaction_timeout"
    assert event["idle_s"] > 0
    assert event["transaction_s"] >= event["idle_s"]
    assert re.fullmatch(r"127\.0\.0\.1:[0-9]+", event["client"])
    assert event["statement"].startswith(f"INSERT INTO {table} VALUES (")
    assert event["tags"] == {"route": "a b", "controller": "c"}
    assert secret not in proxy.log()


def test_parameters_are_not_logged(proxy: Proxy) -> None:
    secret = token()
    with proxy.connect(QUICK) as connection:
        connection.execute("SELECT %s::text, $$a b$$, 4711", [secret])
        sleep(proxy)
        with pytest.raises(psycopg.Error) as caught:
            ask(connection)
        connection.rollback()
    for said in (proxy.events("reaped")[0]["statement"], caught.value.diag.message_detail):
        assert said is not None
        assert "SELECT $1::text" in said
        assert "a b" not in said
        assert "4711" not in said
    assert secret not in proxy.log()


# The race.


def test_clients_that_speak_as_they_are_reaped(proxy: Proxy, table: str) -> None:
    """Whatever was acknowledged is there, and whatever was not is not."""
    insert = on("INSERT INTO {} VALUES (%s)", table)
    kept: list[str] = []

    async def work(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(
            proxy.dsn("race"), prepare_threshold=None
        ) as connection:
            for turn in range(10):
                first, second = token(), token()
                try:
                    await connection.execute(insert, [first])
                    # as near to the timeout as can be
                    await asyncio.sleep(0.09 + 0.01 * ((number + turn) % 12))
                    await connection.execute(insert, [second])
                    await connection.commit()
                except psycopg.errors.IdleInTransactionSessionTimeout:
                    await connection.rollback()
                else:
                    kept.extend((first, second))

    async def all_of_them() -> None:
        await asyncio.gather(*(work(number) for number in range(12)))

    asyncio.run(all_of_them())
    assert rows(proxy, table) == sorted(kept)
