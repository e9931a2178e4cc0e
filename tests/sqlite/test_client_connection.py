"""The DB-API of the client, against the SQLite process."""

import gc
import logging
import sqlite3
import threading
from typing import Any

import pytest

from tests.sqlite.client import PORT, client, connect
from tests.sqlite.endpoint import Endpoint, eventually
from txproxy import sqlite

VALUES: list[Any] = [
    None, 0, 1, -1, 2**63 - 1, -(2**63), 1.5, -0.0, float("inf"), float("-inf"),
    "", "ä\0b", b"", b"\0\xff",
]  # fmt: skip


@pytest.fixture(params=["local", "server"])
def reads(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_values_come_back_as_they_went(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads) as db:
        cursor = db.executemany("INSERT INTO t (b) VALUES (?)", [(value,) for value in VALUES])
        assert cursor.rowcount == len(VALUES)
        for _ in range(2):  # on the server, inside the transaction; then wherever reads go
            rows = db.execute("SELECT b, typeof(b) FROM t ORDER BY a").fetchall()
            assert [(type(value), repr(value)) for value, _ in rows] == [
                (type(value), repr(value)) for value in VALUES
            ]
            db.commit()


def test_a_large_result_comes_in_helpings(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads) as db:
        rows = [(number, "x" * 100) for number in range(1, 30_001)]
        db.executemany("INSERT INTO t VALUES (?, ?)", rows)
        db.commit()
        assert db.execute("SELECT * FROM t").fetchall() == rows
        assert list(db.execute("SELECT * FROM t")) == rows
        cursor = db.execute("SELECT * FROM t")
        assert [cursor.fetchone(), *cursor.fetchmany(7000)] == rows[:7001]
        other = db.execute("SELECT count(*) FROM t").fetchone()
        assert other == (30_000,)
        assert cursor.fetchall() == rows[7001:]


def test_a_read_sees_what_was_written_beside_an_open_cursor(
    shared: Endpoint, database: str, reads: str
) -> None:
    with client(shared, database, reads, isolation_level=None) as db:
        filling = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30000)"
        db.execute(f"{filling} INSERT INTO t SELECT i, printf('%0100d', i) FROM n")
        cursor = db.execute("SELECT a, b FROM t")
        cursor.fetchone()
        for number in range(1, 4):
            db.execute("INSERT INTO t (b) VALUES (0)")
            assert db.execute("SELECT count(*) FROM t").fetchone() == (30_000 + number,)
        del cursor
        assert db.execute("SELECT count(*) FROM t").fetchone() == (30_003,)
        if reads == "local":
            readers = db.link.running().reading.readers
            assert repr(readers).endswith("open=2>")  # the one that was left is used again
            assert db.execute("SELECT a FROM t").fetchone() == (1,)
            assert repr(readers).endswith("open=2>")


def test_rows_left_are_there_after_commit_and_rollback(
    shared: Endpoint, database: str, reads: str
) -> None:
    with client(shared, database, reads) as db:
        for end in (db.commit, db.rollback):
            db.executemany("INSERT INTO t (b) VALUES (?)", [("x" * 500,)] * 3000)
            cursor = db.execute("SELECT * FROM t")
            cursor.fetchone()
            end()
            assert len(cursor.fetchall()) > 2000


def test_rowcount_lastrowid_and_total_changes(shared: Endpoint, database: str) -> None:
    with client(shared, database) as db:
        cursor = db.cursor()

        def after(sql: str) -> tuple[int, int]:
            cursor.execute(sql)
            return cursor.rowcount, cursor.lastrowid

        assert cursor.lastrowid is None
        assert after("INSERT INTO t VALUES (7, 1)") == (1, 7)
        assert after("INSERT OR IGNORE INTO t VALUES (7, 1)") == (0, 7)
        assert after("UPDATE t SET b = 2") == (1, 7)
        assert after("SELECT * FROM t") == (-1, 7)
        assert cursor.execute("INSERT INTO t (b) VALUES (3) RETURNING a, b").fetchall() == [(8, 3)]
        assert db.total_changes == 3
        assert db.execute("SELECT last_insert_rowid()").fetchone() == (8,)


def test_errors_have_sqlites_codes(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads) as db:
        db.execute("INSERT INTO t VALUES (1, 1)")
        with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: t\.a") as seen:
            db.execute("INSERT INTO t VALUES (1, 1)")
        assert seen.value.sqlite_errorname == "SQLITE_CONSTRAINT_PRIMARYKEY"
        assert seen.value.sqlite_errorcode == 1555
        db.rollback()
        with pytest.raises(sqlite3.OperationalError, match="no such table: none"):
            db.execute("SELECT * FROM none")
        with pytest.raises(sqlite3.ProgrammingError, match="one statement at a time"):
            db.execute("SELECT 1; SELECT 2")
        assert db.execute("SELECT 1").fetchall() == [(1,)]


def test_rows_before_a_failure_stay_in_autocommit(shared: Endpoint, database: str) -> None:
    with client(shared, database, isolation_level=None) as db:
        with pytest.raises(sqlite3.IntegrityError):
            db.executemany("INSERT INTO t VALUES (?, 0)", [(1,), (2,), (1,), (3,)])
        assert db.execute("SELECT a FROM t").fetchall() == [(1,), (2,)]


def test_what_came_before_an_iterators_error_is_run(shared: Endpoint, database: str) -> None:
    def numbers() -> Any:
        yield (1,)
        raise KeyError("no more")

    with client(shared, database) as db:
        with pytest.raises(KeyError):
            db.executemany("INSERT INTO t (a) VALUES (?)", numbers())
        assert db.in_transaction
        assert db.execute("SELECT a FROM t").fetchall() == [(1,)]


def test_executemany_of_more_than_fits_into_one_send(shared: Endpoint, database: str) -> None:
    with client(shared, database) as db:
        rows = [("x" * 1000,)] * 5000
        assert db.executemany("INSERT INTO t (b) VALUES (?)", rows).rowcount == 5000


def test_declared_types_find_their_converters(shared: Endpoint, database: str, reads: str) -> None:
    sqlite.register_converter("backwards", lambda raw: raw[::-1])
    both = sqlite.PARSE_DECLTYPES | sqlite.PARSE_COLNAMES
    with client(shared, database, reads, detect_types=both) as db:
        db.execute("CREATE TABLE c (a BACKWARDS, b)")
        db.execute("INSERT INTO c VALUES ('abc', 12)")
        for _ in range(2):
            cursor = db.execute('SELECT a, b AS "b [backwards]" FROM c')
            assert [column[0] for column in cursor.description] == ["a", "b"]
            assert cursor.fetchall() == [(b"cba", b"21")]
            db.commit()


def test_rows_may_be_sqlite3s(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads) as db:
        db.row_factory = sqlite.Row
        row = db.execute('SELECT 1 AS a, 2 AS "b c"').fetchone()
        assert dict(row) == {"a": 1, "b c": 2}
        assert isinstance(row, sqlite3.Row)
        db.row_factory = lambda cursor, row: (cursor.description[0][0], row)
        assert list(db.execute("SELECT 1 AS a")) == [("a", (1,))]


def test_functions_are_for_reads_here(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads) as db:
        db.create_function("twice", 1, lambda value: value * 2)
        if reads == "local":
            assert db.execute("SELECT twice(4)").fetchone() == (8,)
        with pytest.raises(sqlite3.OperationalError, match="`functions = "):
            db.execute("INSERT INTO t (b) VALUES (twice(4))")


def test_callbacks_need_a_reader_here(shared: Endpoint, database: str) -> None:
    with client(shared, database, "server") as db:
        with pytest.raises(sqlite3.NotSupportedError, match='reads="server"'):
            db.set_authorizer(None)
        with pytest.raises(sqlite3.NotSupportedError, match="serialize needs a reader"):
            db.serialize()


def test_the_file_itself_is_read_here(shared: Endpoint, database: str) -> None:
    with client(shared, database) as db:
        db.execute("INSERT INTO t VALUES (1, x'0102')")
        db.commit()
        with db.blobopen("t", "b", 1, readonly=True) as blob:
            assert blob.read() == b"\1\2"
        with pytest.raises(sqlite3.NotSupportedError, match="readonly=True"):
            db.blobopen("t", "b", 1)
        assert "INSERT INTO \"t\" VALUES(1,X'0102');" in list(db.iterdump())
        assert db.serialize().startswith(b"SQLite format 3\0")
        copy = sqlite3.connect(":memory:")
        db.backup(copy)
        assert copy.execute("SELECT a FROM t").fetchall() == [(1,)]
        copy.close()


def test_scripts_commit_what_is_open(shared: Endpoint, database: str) -> None:
    with client(shared, database) as db:
        db.execute("INSERT INTO t VALUES (1, 1)")
        db.executescript("INSERT INTO t VALUES (2, ';'); BEGIN; INSERT INTO t VALUES (3, 3);")
        assert db.in_transaction
        db.rollback()
        assert db.execute("SELECT a FROM t").fetchall() == [(1,), (2,)]
        with pytest.raises(sqlite3.OperationalError, match="syntax error"):
            db.executescript("INSERT INTO t VALUES (4, 4); nonsense; INSERT INTO t VALUES (5, 5)")
        assert db.execute("SELECT max(a) FROM t").fetchone() == (4,)


def test_limits_are_the_smaller(shared: Endpoint, database: str) -> None:
    with client(shared, database) as db:
        assert db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) <= 32_766
        assert db.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 30) == 1_000_000_000
        with pytest.raises(sqlite3.DataError, match="query string is too large"):
            db.execute("SELECT 1                       -- a long one")


def test_only_its_own_thread_may_use_it(shared: Endpoint, database: str) -> None:
    raised: list[BaseException] = []

    def use(db: Any) -> None:
        try:
            db.execute("SELECT 1")
        except sqlite3.ProgrammingError as error:
            raised.append(error)

    with (
        client(shared, database) as bound,
        client(shared, database, check_same_thread=False) as free,
    ):
        for db in (bound, free):
            thread = threading.Thread(target=use, args=(db,))
            thread.start()
            thread.join()
    assert len(raised) == 1
    assert "can only be used in that same thread" in str(raised[0])


@pytest.mark.parametrize("reads", ["local", "server"])
def test_interrupt(shared: Endpoint, database: str, reads: str) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"
    with client(shared, database, reads, check_same_thread=False) as db:
        done = threading.Event()

        def interrupt() -> None:
            while not done.wait(0.02):
                db.interrupt()

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                db.execute(endless)
        finally:
            done.set()
            thread.join()
        assert db.execute("SELECT 1").fetchone() == (1,)


def test_nobody_is_there(tmp_path: Any) -> None:
    with pytest.raises(sqlite3.OperationalError) as seen:
        sqlite.connect("a.db", host=str(tmp_path), port=PORT)
    assert f"{tmp_path}/.s.PGSQL.{PORT}" in str(seen.value)
    assert "start txproxy" in str(seen.value)


def test_there_is_no_such_file(shared: Endpoint) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file") as seen:
        connect(shared, "none.db")
    assert seen.value.sqlite_errorname == "SQLITE_CANTOPEN"


def test_memory_is_the_processes_own(shared: Endpoint) -> None:
    with pytest.raises(sqlite3.NotSupportedError, match=r"sqlite3\.connect"):
        connect(shared, ":memory:")


def test_without_a_wal_the_server_reads(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Endpoint(tmp_path, journal_mode="delete") as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a)")
        with pytest.raises(sqlite3.OperationalError, match="cannot be read here: its journal mode"):
            connect(endpoint, "a.db", "local")
        with caplog.at_level(logging.WARNING, "txproxy.sqlite"):
            for _ in range(2):
                with client(endpoint, "a.db", "auto", isolation_level=None) as db:
                    db.execute("INSERT INTO t VALUES (1)")
                    assert db.execute("SELECT count(*) FROM t").fetchone()[0] > 0
        said = [text for text in caplog.messages if "the server reads a.db" in text]
        assert said == ["the server reads a.db: its journal mode is delete, not wal"]


def test_a_closed_connection_is_gone_from_the_server(shared: Endpoint, database: str) -> None:
    before = len(shared.told("closed"))
    db = connect(shared, database)
    db.execute("INSERT INTO t VALUES (1, 1)")
    db.close()
    eventually(lambda: len(shared.told("closed")) > before)
    with pytest.raises(sqlite3.ProgrammingError, match="Cannot operate on a closed database"):
        db.execute("SELECT 1")
    with client(shared, database) as other:
        assert other.execute("SELECT * FROM t").fetchall() == []


def test_a_connection_that_is_dropped_is_gone_at_once(shared: Endpoint, database: str) -> None:
    before = len(shared.told("closed"))
    db = connect(shared, database)
    db.execute("INSERT INTO t VALUES (1, 1)")
    gc.disable()
    try:
        del db
        eventually(lambda: len(shared.told("closed")) > before)
    finally:
        gc.enable()
