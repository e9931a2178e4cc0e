"""Transactions of the client: where they are, and what others see of them."""

import contextlib
import sqlite3
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.sqlite.client import PORT, client
from tests.sqlite.endpoint import Endpoint, eventually


@pytest.fixture(params=["local", "server"])
def reads(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _states(shared: Endpoint, database: str) -> list[str]:
    sessions = shared.report["sessions"]
    return sorted(one["tx"] for one in sessions if one["database"] == database)


def test_begin_is_not_sent(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads, isolation_level=None) as db:
        db.execute("BEGIN")
        assert db.in_transaction
        before = shared.reports
        eventually(lambda: shared.reports > before + 1)
        assert _states(shared, database) == ["none"]
        with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
            db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
        assert not db.in_transaction
        with pytest.raises(sqlite3.OperationalError, match="cannot commit - no transaction"):
            db.execute("COMMIT")
        with pytest.raises(sqlite3.OperationalError, match="cannot rollback - no transaction"):
            db.execute("ROLLBACK")


def test_python_begins_before_it_writes(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads) as db, client(shared, database, reads) as other:
        db.execute("SELECT * FROM t")
        assert not db.in_transaction
        db.execute("INSERT INTO t VALUES (1, 1)")
        assert db.in_transaction
        assert other.execute("SELECT * FROM t").fetchall() == []
        db.commit()
        assert other.execute("SELECT * FROM t").fetchall() == [(1, 1)]
        with contextlib.suppress(ZeroDivisionError), db:
            db.execute("DELETE FROM t")
            raise ZeroDivisionError
        assert db.execute("SELECT * FROM t").fetchall() == [(1, 1)]


def test_reads_of_a_transaction_are_of_one_moment(
    shared: Endpoint, database: str, reads: str
) -> None:
    with (
        client(shared, database, reads, isolation_level=None) as db,
        client(shared, database, reads, isolation_level=None) as other,
    ):
        db.execute("BEGIN")
        assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
        other.execute("INSERT INTO t VALUES (1, 1)")
        assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
        db.execute("COMMIT")
        assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_who_read_before_others_wrote_may_not_write(
    shared: Endpoint, database: str, reads: str
) -> None:
    with (
        client(shared, database, reads, isolation_level=None) as db,
        client(shared, database, reads, isolation_level=None) as other,
    ):
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM t").fetchone()
        other.execute("INSERT INTO t VALUES (1, 1)")
        with pytest.raises(sqlite3.OperationalError, match="database is locked") as seen:
            db.execute("INSERT INTO t VALUES (2, 2)")
        assert seen.value.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"
        assert db.in_transaction
        for sql in ("SELECT 1", "INSERT INTO t VALUES (3, 3)"):  # never in autocommit
            with pytest.raises(sqlite3.OperationalError) as seen:
                db.execute(sql)
            assert seen.value.sqlite_errorname == "SQLITE_ABORT_ROLLBACK"
        db.execute("ROLLBACK")
        assert not db.in_transaction
        assert db.execute("SELECT * FROM t").fetchall() == [(1, 1)]
        other.execute("INSERT INTO t VALUES (4, 4)")


def test_commit_of_what_failed_is_an_error(shared: Endpoint, database: str, reads: str) -> None:
    with (
        client(shared, database, reads, isolation_level=None) as db,
        client(shared, database, reads, isolation_level=None) as other,
    ):
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM t").fetchone()
        other.execute("INSERT INTO t VALUES (1, 1)")
        with pytest.raises(sqlite3.OperationalError):
            db.execute("INSERT INTO t VALUES (2, 2)")
        with pytest.raises(sqlite3.OperationalError) as seen:
            db.commit()
        assert seen.value.sqlite_errorname == "SQLITE_ABORT_ROLLBACK"
        assert not db.in_transaction


def test_who_read_may_write_if_nobody_else_has(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads, isolation_level=None) as db:
        db.execute("INSERT INTO t VALUES (1, 1)")
        db.execute("BEGIN")
        assert db.execute("SELECT max(a) FROM t").fetchone() == (1,)
        db.execute("INSERT INTO t VALUES (2, 2)")
        assert db.execute("SELECT max(a) FROM t").fetchone() == (2,)
        db.execute("COMMIT")
        assert db.execute("SELECT max(a) FROM t").fetchone() == (2,)


def test_an_open_cursor_does_not_hide_that_others_wrote(shared: Endpoint, database: str) -> None:
    with (
        client(shared, database, isolation_level=None) as db,
        client(shared, database, isolation_level=None) as other,
    ):
        filling = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30000)"
        db.execute(f"{filling} INSERT INTO t SELECT i, printf('%0100d', i) FROM n")
        db.execute("BEGIN")
        cursor = db.execute("SELECT a, b FROM t")
        cursor.fetchone()
        other.execute("INSERT INTO t (b) VALUES (0)")
        with pytest.raises(sqlite3.OperationalError) as seen:
            db.execute("INSERT INTO t (b) VALUES (1)")
        assert seen.value.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"
        assert len(cursor.fetchall()) == 29_999
        db.rollback()


@pytest.mark.parametrize("is_many", [False, True])
def test_a_cursor_outlives_the_first_write(
    shared: Endpoint, database: str, reads: str, is_many: bool
) -> None:
    with client(shared, database, reads, isolation_level=None) as db:
        filling = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30000)"
        db.execute(f"{filling} INSERT INTO t SELECT i, printf('%0100d', i) FROM n")
        db.execute("INSERT INTO t VALUES (0, 0)")
        db.execute("BEGIN")
        cursor = db.execute("SELECT a, b FROM t ORDER BY a")
        assert cursor.fetchone() == (0, 0)
        if is_many:
            db.executemany("UPDATE t SET b = ? WHERE a = 0", [(1,), (2,)])
        else:
            db.execute("UPDATE t SET b = 2 WHERE a = 0")
        assert db.execute("SELECT b FROM t WHERE a = 0").fetchall() == [(2,)]
        assert [a for a, _ in cursor.fetchall()] == [*range(1, 30_001)]
        db.execute("COMMIT")


def test_savepoints(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database, reads, isolation_level=None) as db:
        db.execute("BEGIN")
        db.execute("SAVEPOINT a")
        db.execute("SAVEPOINT b")
        db.execute("RELEASE b")
        db.execute("SAVEPOINT c")
        db.execute("INSERT INTO t VALUES (1, 1)")
        db.execute("ROLLBACK TO c")
        db.execute("RELEASE c")
        db.execute("INSERT INTO t VALUES (2, 2)")
        with pytest.raises(sqlite3.OperationalError, match="no such savepoint: b"):
            db.execute("ROLLBACK TO b")
        db.execute("RELEASE a")
        assert db.in_transaction
        db.execute("COMMIT")
        assert db.execute("SELECT a FROM t").fetchall() == [(2,)]


@pytest.mark.parametrize("first", ["", "SELECT * FROM t", "INSERT INTO t VALUES (5, 5)"])
def test_a_savepoint_may_open_a_transaction(
    shared: Endpoint, database: str, reads: str, first: str
) -> None:
    with client(shared, database, reads, isolation_level=None) as db:
        with pytest.raises(sqlite3.OperationalError, match="no such savepoint: a"):
            db.execute("RELEASE a")
        db.execute("SAVEPOINT a")
        assert db.in_transaction
        if first:
            db.execute(first)
        db.execute("SAVEPOINT b")
        db.execute("INSERT INTO t VALUES (1, 1)")
        db.execute("RELEASE b")
        assert db.in_transaction
        db.execute("RELEASE a")
        assert not db.in_transaction
        with client(shared, database, reads) as other:
            assert other.execute("SELECT a FROM t WHERE a = 1").fetchall() == [(1,)]


def test_or_rollback_ends_the_transaction(shared: Endpoint, database: str) -> None:
    with client(shared, database, isolation_level=None) as db:
        db.execute("BEGIN")
        db.execute("INSERT INTO t VALUES (1, 1)")
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("INSERT OR ROLLBACK INTO t VALUES (1, 1)")
        assert not db.in_transaction
        assert db.execute("SELECT * FROM t").fetchall() == []


def test_a_deferred_violation_leaves_the_transaction_open(shared: Endpoint, database: str) -> None:
    with client(shared, database, isolation_level=None) as db:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute(
            "CREATE TABLE c (a REFERENCES t (a) DEFERRABLE INITIALLY DEFERRED)",
        )
        db.execute("BEGIN")
        db.execute("INSERT INTO c VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY constraint failed"):
            db.execute("COMMIT")
        assert db.in_transaction
        db.execute("INSERT INTO t VALUES (1, 1)")
        db.execute("COMMIT")
        assert db.execute("SELECT * FROM c").fetchall() == [(1,)]


def test_who_waits_in_vain_may_try_again(shared: Endpoint, database: str) -> None:
    with (
        client(shared, database, isolation_level=None) as db,
        client(shared, database, isolation_level=None, timeout=0) as other,
    ):
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="database is locked") as seen:
            other.execute("BEGIN IMMEDIATE")
        assert seen.value.sqlite_errorcode == 5
        assert not other.in_transaction
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            other.execute("INSERT INTO t VALUES (1, 1)")
        assert other.in_transaction
        db.execute("COMMIT")
        other.execute("INSERT INTO t VALUES (1, 1)")
        other.execute("COMMIT")


def test_what_was_read_before_a_wait_in_vain_is_not_forgotten(
    shared: Endpoint, database: str
) -> None:
    with (
        client(shared, database, isolation_level=None) as db,
        client(shared, database, isolation_level=None, timeout=0) as other,
    ):
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (1, 1)")
        with pytest.raises(sqlite3.OperationalError):
            other.execute("INSERT INTO t VALUES (2, 2)")
        db.execute("COMMIT")
        for sql in ("SELECT count(*) FROM t", "INSERT INTO t VALUES (2, 2)"):
            with pytest.raises(sqlite3.OperationalError) as seen:
                other.execute(sql)
            assert seen.value.sqlite_errorcode in {516, 517}
        other.rollback()


@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit_as_since_python_3_12(shared: Endpoint, database: str, autocommit: bool) -> None:
    with client(shared, database, autocommit=autocommit) as db:
        assert db.autocommit is autocommit
        assert db.in_transaction is not autocommit
        db.execute("INSERT INTO t VALUES (1, 1)")
        db.rollback()
        assert db.in_transaction is not autocommit
        assert db.execute("SELECT count(*) FROM t").fetchone() == (int(autocommit),)
        db.autocommit = not autocommit
        assert db.in_transaction is autocommit
        with pytest.raises(ValueError, match="autocommit must be"):
            db.autocommit = 7


def test_isolation_levels(shared: Endpoint, database: str) -> None:
    with client(shared, database, isolation_level="immediate") as db:
        assert db.isolation_level == "IMMEDIATE"
        db.execute("INSERT INTO t VALUES (1, 1)")
        db.isolation_level = None
        assert not db.in_transaction
        db.execute("INSERT INTO t VALUES (2, 2)")
        assert not db.in_transaction
        db.rollback()
        assert db.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_a_reaped_transaction_waits_for_its_end(tmp_path: Any) -> None:
    with Endpoint(tmp_path, idle_transaction_timeout=0.2) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a)")
        with client(endpoint, "a.db", isolation_level=None) as db:
            db.execute("BEGIN")
            db.execute("INSERT INTO t VALUES (1)")
            eventually(lambda: "failed" in _states(endpoint, "a.db"))
            with pytest.raises(sqlite3.OperationalError) as seen:
                db.execute("SELECT * FROM t")
            assert seen.value.sqlite_errorname == "SQLITE_ABORT_ROLLBACK"
            assert db.in_transaction
            db.rollback()
            assert db.execute("SELECT * FROM t").fetchall() == []


INCREMENT = """
import sys
import time
from txproxy import sqlite

where = {"host": sys.argv[1], "port": int(sys.argv[2]), "reads": sys.argv[4]}
db = sqlite.connect(sys.argv[3], isolation_level=None, **where)
done = 0
while done < 40:
    try:
        db.execute("BEGIN")
        (count,) = db.execute("SELECT b FROM t WHERE a = 1").fetchone()
        db.execute("UPDATE t SET b = ? WHERE a = 1", (count + 1,))
        db.commit()
        done += 1
    except sqlite.OperationalError as error:
        assert error.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT", error
        db.rollback()
"""


def test_no_increment_is_lost(shared: Endpoint, database: str, reads: str) -> None:
    with client(shared, database) as db:
        db.execute("INSERT INTO t VALUES (1, 0)")
        db.commit()
        arguments = [str(shared.directory), str(PORT), database, reads]
        processes = [
            subprocess.Popen([sys.executable, "-c", INCREMENT, *arguments]) for _ in range(3)
        ]
        assert [process.wait() for process in processes] == [0, 0, 0]
        assert db.execute("SELECT b FROM t").fetchone() == (120,)


def test_who_read_may_write_if_what_it_read_is_still_so(shared: Endpoint, database: str) -> None:
    """Others have written, but nothing that it has read: it is serialised behind them."""
    with (
        client(shared, database, "local", isolation_level=None) as db,
        client(shared, database, "local", isolation_level=None) as other,
    ):
        other.execute("INSERT INTO t VALUES (1, 1)")
        db.execute("BEGIN")
        assert db.execute("SELECT * FROM t WHERE a = ?", (1,)).fetchall() == [(1, 1)]
        other.execute("INSERT INTO t VALUES (2, 2)")
        db.execute("INSERT INTO t VALUES (3, 3)")
        db.execute("COMMIT")
        assert other.execute("SELECT count(*) FROM t").fetchone() == (3,)


def test_who_read_what_has_changed_may_not_write(shared: Endpoint, database: str) -> None:
    """Not only rows that it has seen: also those that it would see now."""
    with (
        client(shared, database, "local", isolation_level=None) as db,
        client(shared, database, "local", isolation_level=None) as other,
    ):
        db.execute("BEGIN")
        assert db.execute("SELECT count(*) FROM t WHERE a > ?", (10,)).fetchone() == (0,)
        other.execute("INSERT INTO t VALUES (11, 1)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            db.execute("INSERT INTO t VALUES (3, 3)")
        assert caught.value.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"
        db.execute("ROLLBACK")
        assert other.execute("SELECT a FROM t").fetchall() == [(11,)]


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_read_is_asked_again_if_that_does_not_keep_others_waiting(
    shared: Endpoint, database: str, is_busy: bool
) -> None:
    """What it took of the processor counts, and not how long it stood still."""

    def text(data: bytes) -> str:
        if is_busy:
            end = time.thread_time() + 0.1
            while time.thread_time() < end:
                pass
        else:
            time.sleep(0.1)
        return data.decode()

    with (
        client(shared, database, "local", isolation_level=None) as db,
        client(shared, database, "local", isolation_level=None) as other,
    ):
        db.text_factory = text
        db.execute("BEGIN")
        assert db.execute("SELECT 'slow' FROM sqlite_schema LIMIT 1").fetchall() == [("slow",)]
        other.execute("INSERT INTO t VALUES (1, 1)")
        if is_busy:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                db.execute("INSERT INTO t VALUES (2, 2)")
        else:
            db.execute("INSERT INTO t VALUES (2, 2)")
        db.execute("ROLLBACK")
