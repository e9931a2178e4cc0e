"""SQLite's errors as fields, in the words that Python's sqlite3 has for the same fault."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import apsw
import pytest

from txproxy.backends.sqlite import errors
from txproxy.backends.sqlite.errors import Fields, SqliteError

SCHEMA = """
CREATE TABLE t (a INTEGER PRIMARY KEY, b NOT NULL DEFAULT 1, c CHECK (c > 0), d UNIQUE);
CREATE TABLE s (a INT, b TEXT) STRICT;
CREATE TABLE r (a REFERENCES t);
CREATE TABLE w (a PRIMARY KEY) WITHOUT ROWID;
CREATE VIEW v AS SELECT 1;
CREATE TRIGGER g BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'kept, says the trigger'); END;
INSERT INTO t VALUES (1, 1, 1, 1);
INSERT INTO w VALUES (1);
PRAGMA foreign_keys = ON;
"""
FAULTS = {
    "INSERT INTO t VALUES (1, 1, 1, 2)": "23505",
    "INSERT INTO t VALUES (2, 1, 1, 1)": "23505",
    "INSERT INTO w VALUES (1)": "23505",
    "INSERT INTO t VALUES (2, NULL, 1, 2)": "23502",
    "INSERT INTO t VALUES (2, 1, 0, 2)": "23514",
    "INSERT INTO r VALUES (7)": "23503",
    "INSERT INTO s VALUES ('x', 1)": "23000",
    "DELETE FROM t": "23000",
    "INSERT INTO t (a) VALUES ('x')": "22000",
    "SELEC 1": "42601",
    "SELECT 'open": "42601",
    "SELECT (1": "42601",
    "SELECT * FROM nope": "42P01",
    "DROP TABLE nope": "42P01",
    "DROP VIEW nope": "42P01",
    "CREATE VIRTUAL TABLE x USING nope": "42P01",
    "SELECT nope FROM t": "42703",
    "INSERT INTO t (nope) VALUES (1)": "42703",
    "SELECT nope()": "42883",
    "SELECT abs()": "42883",
    "SELECT a FROM t, s": "42702",
    "CREATE TABLE x (a, a)": "42701",
    "CREATE TABLE t (a)": "42P07",
    "CREATE VIEW v AS SELECT 2": "42P07",
    "CREATE INDEX t ON t (a)": "42P07",
    "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END": "42710",
    "DROP INDEX nope": "42704",
    "SELECT a COLLATE nope FROM t ORDER BY 1": "42704",
    "SELECT * FROM nope.t": "42P01",
    "PRAGMA nope.user_version": "3F000",
    "RELEASE nope": "3B001",
    "COMMIT": "25P01",
    "ROLLBACK": "25P01",
    "BEGIN; BEGIN": "25001",
    "SELECT zeroblob(1000000001)": "54000",
    "INSERT INTO t VALUES (1)": "42000",
    "SELECT 1 UNION SELECT 1, 2": "42000",
    "SELECT json('{')": "42000",
    "SELECT load_extension('x')": "42501",
    "UPDATE sqlite_schema SET sql = ''": "42000",
    "SELECT " + "+".join("1" * 2000): "54000",
}

STOCK = """
import json, sqlite3, sys
schema, faults = json.load(sys.stdin)
said = {}
for fault in faults:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(schema)
    try:
        for statement in fault.split("; ") if fault.startswith("BEGIN") else [fault]:
            connection.execute(statement).fetchall()
    except sqlite3.Error as error:
        said[fault] = [error.sqlite_errorcode, error.sqlite_errorname, str(error)]
json.dump(said, sys.stdout)
"""


def fault(connection: apsw.Connection, run: Callable[[], Any]) -> Fields:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        run()
    connection.close()
    return errors.fields(raised.value)


@pytest.fixture(scope="module")
def stock() -> dict[str, tuple[int, str, str]]:
    """What Python's sqlite3 says, in a process where there is no apsw."""
    given = json.dumps([SCHEMA, list(FAULTS)])
    ran = subprocess.run(
        [sys.executable, "-c", STOCK], input=given, capture_output=True, text=True, check=True
    )
    said: dict[str, tuple[int, str, str]] = json.loads(ran.stdout)
    return said


@pytest.mark.parametrize(("sql", "sqlstate"), FAULTS.items(), ids=lambda text: text[:40])
def test_faults_are_those_of_sqlite3(
    stock: dict[str, tuple[int, str, str]], sql: str, sqlstate: str
) -> None:
    connection = apsw.Connection(":memory:")
    connection.execute(SCHEMA)
    found = fault(connection, lambda: connection.execute(sql).fetchall())
    assert found.sqlstate == sqlstate
    code, name, message = stock[sql]
    assert (found.code, found.message) == (code, message)
    assert found.name == name or name == "unknown"  # Python 3.11 does not know all of them


def test_locks(tmp_path: Any) -> None:
    path = str(tmp_path / "file")
    holder, other = apsw.Connection(path), apsw.Connection(path)
    holder.execute("PRAGMA journal_mode = WAL; CREATE TABLE t (a)").fetchall()
    other.execute("BEGIN; SELECT * FROM t")
    holder.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
    with pytest.raises(apsw.BusyError) as busy:
        other.execute("INSERT INTO t VALUES (2)")
    assert errors.fields(busy.value) == ("55P03", 5, "SQLITE_BUSY", "database is locked", "")
    holder.execute("COMMIT")
    with pytest.raises(apsw.BusyError) as stale:
        other.execute("INSERT INTO t VALUES (2)")
    assert errors.fields(stale.value) == (
        "40001", 517, "SQLITE_BUSY_SNAPSHOT", "database is locked", "",
    )  # fmt: skip
    holder.close()
    other.close()


def test_read_only_not_a_database_and_not_there(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"no database" * 1000)
    bad = apsw.Connection(str(path))
    found = fault(bad, lambda: bad.execute("SELECT * FROM sqlite_schema"))
    assert found == ("XX001", 26, "SQLITE_NOTADB", "file is not a database", "")
    path.unlink()
    apsw.Connection(str(path)).execute("CREATE TABLE t (a)")
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    found = fault(reader, lambda: reader.execute("INSERT INTO t VALUES (1)"))
    message = "attempt to write a readonly database"
    assert found == ("25006", 8, "SQLITE_READONLY", message, "")
    nobody = apsw.Connection(":memory:")
    found = fault(nobody, lambda: apsw.Connection(str(tmp_path / "no" / "file")))
    assert found == ("58030", 14, "SQLITE_CANTOPEN", "unable to open database file", "")


def test_interrupted_refused_and_too_big() -> None:
    connection = apsw.Connection(":memory:")
    connection.set_progress_handler(lambda: True, 10)
    endless = "WITH RECURSIVE x AS (SELECT 1 UNION ALL SELECT 1 FROM x) SELECT count(*) FROM x"
    found = fault(connection, lambda: connection.execute(endless).fetchall())
    assert found == ("57014", 9, "SQLITE_INTERRUPT", "interrupted", "")
    refusing = apsw.Connection(":memory:")
    refusing.authorizer = lambda *_: apsw.SQLITE_DENY
    found = fault(refusing, lambda: refusing.execute("SELECT 1"))
    assert found == ("42501", 23, "SQLITE_AUTH", "not authorized", "")


def test_what_a_users_function_raises_is_said_as_sqlite3_says_it() -> None:
    ours = apsw.Connection(":memory:")
    stock = sqlite3.connect(":memory:")

    def fails(*_: object) -> None:
        raise KeyError("inside")

    ours.create_scalar_function("fails", fails, 0)
    stock.create_function("fails", 0, fails)
    with pytest.raises(sqlite3.OperationalError) as said:
        stock.execute("SELECT fails()")
    found = fault(ours, lambda: ours.execute("SELECT fails()").fetchall())
    assert found == ("38000", 1, "SQLITE_ERROR", str(said.value), "KeyError: 'inside'")
    stock.close()


def test_what_is_no_fault_of_sqlites() -> None:
    connection = apsw.Connection(":memory:")
    found = fault(connection, lambda: connection.execute("SELECT 1\0"))
    assert found[:2] == ("42601", 21)
    assert errors.fields(MemoryError())[:3] == ("53200", 7, "SQLITE_NOMEM")
    assert errors.fields(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"))[0] == "22021"
    mine = SqliteError("database is locked", apsw.SQLITE_BUSY, hint="wait")
    assert errors.fields(mine) == ("55P03", 5, "SQLITE_BUSY", "database is locked", "wait")
    failed = SqliteError("it was ended", apsw.SQLITE_ABORT_ROLLBACK, sqlstate="25P02")
    assert errors.fields(failed)[:3] == ("25P02", 516, "SQLITE_ABORT_ROLLBACK")


def test_every_code_of_sqlite_has_a_state() -> None:
    for code, name in apsw.mapping_extended_result_codes.items():
        if isinstance(code, int):
            assert errors.name(code) == name
            assert len(errors.state(code)) == 5
    assert errors.state(apsw.SQLITE_IOERR_FSYNC) == "58030"
    assert errors.state(apsw.SQLITE_CORRUPT_INDEX) == "XX001"
    assert errors.name(10_000_000 * 256 + 5) == "SQLITE_BUSY"


def test_every_exception_of_apsws_is_told() -> None:
    for name in dir(apsw):
        kind = getattr(apsw, name)
        if isinstance(kind, type) and issubclass(kind, apsw.Error):
            found = errors.fields(kind("so it is"))
            assert found.message == "so it is"
            assert len(found.sqlstate) == 5
