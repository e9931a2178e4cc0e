"""Files: who owns them, what replaces them, their journals, copies of them."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.sqlite.endpoint import Endpoint, eventually
from tests.sqlite.raw import Raw

TABLE = "CREATE TABLE t (a INTEGER PRIMARY KEY, b)"
ENDLESS = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s) SELECT sum(i) FROM s"


def test_one_process_owns_a_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with Endpoint(tmp_path) as first, Endpoint(other) as second:
        first.create("a.db", TABLE)
        (other / "a.db").symlink_to(tmp_path / "a.db")
        with Raw(first, "a.db"):
            with pytest.raises(psycopg.OperationalError, match="another process owns"):
                psycopg.connect(second.conninfo("a.db"))
            assert eventually(lambda: second.told("closed"))
            assert (tmp_path / "a.db-txproxy").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_replaced(shared: Endpoint, database: str) -> None:
    path = shared.path(database)
    with Raw(shared, database) as client:
        client.rows("INSERT INTO t (b) VALUES ('old')")
        path.rename(f"{path}.old")
        shared.create(database, TABLE)
        # Acknowledged, they would go into a file that nobody finds.
        for sql in ("INSERT INTO t (b) VALUES ('new')", "BEGIN IMMEDIATE", "CREATE TABLE u (x)"):
            reply = client.run(sql)
            assert (reply.errors[0]["C"], reply.status) == ("58030", "I")
            assert "replaced" in reply.errors[0]["M"]
        assert shared.file(database)["moved"] is True
        shared.tell({"do": "reopen", "path": str(path)})
        assert client.run("INSERT INTO t (b) VALUES ('new')").tags == ["INSERT 1 1"]
        assert client.rows("SELECT b FROM t") == [("new",)]
        assert shared.file(database)["moved"] is False


def test_the_wal_is_copied_back(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.rows("INSERT INTO t (b) VALUES (zeroblob(20000000))")
        eventually(lambda: shared.file(database)["checkpoints"] > 0)
        eventually(lambda: Path(f"{shared.path(database)}-wal").stat().st_size == 0)
        assert shared.path(database).stat().st_size > 20_000_000


def test_a_reader_keeps_the_wal_from_being_cut(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as reader, Raw(shared, database) as client:
        reader.query("BEGIN; SELECT * FROM t")
        client.rows("INSERT INTO t (b) VALUES (zeroblob(20000000))")
        eventually(lambda: shared.file(database)["checkpoints"] > 0)
        assert Path(f"{shared.path(database)}-wal").stat().st_size > 20_000_000
        assert shared.file(database)["oldest_reader"] > 0
        assert reader.rows("SELECT * FROM t") == []
        reader.query("COMMIT")
        eventually(lambda: Path(f"{shared.path(database)}-wal").stat().st_size == 0)


def test_checkpoints_may_be_somebody_elses(tmp_path: Path) -> None:
    with Endpoint(tmp_path, checkpoint="external") as endpoint:
        endpoint.create("a.db", TABLE)
        with Raw(endpoint, "a.db") as client:
            for _ in range(3):
                client.rows("INSERT INTO t (b) VALUES (zeroblob(5000000))")
            eventually(lambda: endpoint.reports > 2)
            assert endpoint.file("a.db")["checkpoints"] == 0
    assert (tmp_path / "a.db-wal").stat().st_size > 15_000_000


def test_journal_mode_delete(tmp_path: Path) -> None:
    with Endpoint(tmp_path, journal_mode="delete") as endpoint:
        endpoint.create("a.db", TABLE)
        with Raw(endpoint, "a.db") as first, Raw(endpoint, "a.db") as second:
            assert first.status()["txproxy.journal_mode"] == "delete"
            assert first.rows("PRAGMA journal_mode") == [("delete",)]
            first.rows("INSERT INTO t (b) VALUES (1)")
            assert second.rows("SELECT b FROM t") == [(1,)]
            # Each transaction takes the token with its first statement.
            first.run("BEGIN")
            assert first.rows("SELECT b FROM t") == [(1,)]
            second.run("BEGIN")
            second.begin_run("SELECT count(*) FROM t")
            eventually(lambda: endpoint.session(second.number)["state"] == "waiting")
            first.rows("INSERT INTO t (b) VALUES (2)")
            first.run("COMMIT")
            assert second.read().rows == [(2,)]
            assert second.run("INSERT INTO t (b) VALUES (3)").tags == ["INSERT 3 1"]
            assert second.run("COMMIT").status == "I"
        assert not (tmp_path / "a.db-wal").exists()


def test_a_statement_that_takes_too_long(tmp_path: Path) -> None:
    with Endpoint(tmp_path, query_timeout=0.2) as endpoint:
        endpoint.create("a.db", TABLE)
        with Raw(endpoint, "a.db") as client:
            for sql in (ENDLESS, f"INSERT INTO t (b) {ENDLESS}"):
                reply = client.run(sql)
                assert (reply.errors[0]["L"], reply.status) == ("9", "I")
            client.query("BEGIN IMMEDIATE")
            assert client.run(ENDLESS).errors[0]["C"] == "57014"
            assert client.query("INSERT INTO t (b) VALUES (1); COMMIT").status == "I"
            assert client.rows("SELECT b FROM t") == [(1,)]


def test_a_commit_train(tmp_path: Path) -> None:
    with Endpoint(tmp_path, commit_train=True) as endpoint:
        endpoint.create("a.db", TABLE)
        with Raw(endpoint, "a.db") as first, Raw(endpoint, "a.db") as second:
            for client in (first, second):
                assert client.query("BEGIN; INSERT INTO t (b) VALUES (1); COMMIT").status == "I"
                assert client.run("INSERT INTO t (b) VALUES (2)").tags[0].endswith(" 1")
            assert first.rows("PRAGMA synchronous") == [(2,)]
            assert first.rows("SELECT count(*) FROM t") == [(4,)]


def test_backup(shared: Endpoint, database: str, tmp_path: Path) -> None:
    with psycopg.connect(shared.conninfo(database), autocommit=True) as client:
        client.execute("INSERT INTO t (b) VALUES (zeroblob(3000000)), ('x')")
        with (tmp_path / "copy.db").open("wb") as copy, Raw(shared, database) as other:
            client.pgconn.exec_(b"TXPROXY BACKUP")
            while True:
                size, data = client.pgconn.get_copy_data(0)
                if size < 0:
                    break
                copy.write(bytes(data))
                other.rows("SELECT 1")
        assert client.pgconn.get_result() is not None
        assert client.pgconn.get_result() is None
        assert client.execute("SELECT 1").fetchone() == ("1",)
    found = sqlite3.connect(tmp_path / "copy.db")
    assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert found.execute("SELECT a, length(b) FROM t").fetchall() == [(1, 3_000_000), (2, 1)]
    found.close()
    assert [p.name for p in shared.directory.glob(f"{database}-txproxy*")] == [
        f"{database}-txproxy"
    ]


def test_functions_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "its_functions.py").write_text(
        "def register(connection):\n"
        "    connection.create_scalar_function('twice', lambda x: 2 * x, 1)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with (
        pytest.MonkeyPatch.context() as patch,
        Endpoint(tmp_path, functions=["its_functions:register"]) as endpoint,
    ):
        del patch
        endpoint.create("a.db", TABLE)
        with pytest.raises(psycopg.OperationalError, match="its_functions"):
            psycopg.connect(endpoint.conninfo("a.db"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with (
            Endpoint(tmp_path, functions=["its_functions:register"]) as endpoint,
            Raw(endpoint, "a.db") as client,
        ):
            assert client.rows("SELECT twice(21)") == [(42,)]
            client.rows("INSERT INTO t (b) VALUES (twice(4))")
            reply = client.run("SELECT twice('x' || ?)", None)
            assert reply.errors[0]["C"] == "38000"


def test_after_a_kill_all_that_was_acknowledged_is_there(tmp_path: Path) -> None:
    with Endpoint(tmp_path) as endpoint:
        endpoint.create("a.db", TABLE)
        with Raw(endpoint, "a.db") as client:
            for i in range(200):
                client.rows("INSERT INTO t (b) VALUES (?)", i)
            client.begin_run("INSERT INTO t (b) VALUES (?)", 200)
            endpoint.process.kill()
            endpoint.process.wait()
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "print(c.execute('SELECT count(*) FROM t').fetchone()[0],"
        " c.execute('PRAGMA integrity_check').fetchone()[0])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.db")],
        check=True,
        capture_output=True,
        text=True,
    )
    count, integrity = found.stdout.split()
    assert int(count) in {200, 201}
    assert integrity == "ok"


def test_a_file_that_nobody_uses_is_let_go(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with Endpoint(tmp_path) as first, Endpoint(other) as second:
        first.create("a.db", TABLE)
        (other / "a.db").symlink_to(tmp_path / "a.db")
        with Raw(first, "a.db") as client:
            client.rows("INSERT INTO t (b) VALUES (1)")
            assert (tmp_path / "a.db-wal").exists()
        eventually(lambda: not first.file("a.db"))
        assert not (tmp_path / "a.db-wal").exists()
        with Raw(second, "a.db") as client:
            assert client.rows("SELECT b FROM t") == [(1,)]
        with pytest.raises(psycopg.OperationalError, match="another process owns"):
            psycopg.connect(first.conninfo("a.db"))


def test_readers_of_a_file_that_was_replaced_are_let_go(shared: Endpoint, database: str) -> None:
    path = shared.path(database)
    with Raw(shared, database) as client, Raw(shared, database) as reader:
        client.rows("INSERT INTO t (b) VALUES ('old')")
        reader.query("BEGIN; SELECT * FROM t")
        path.rename(f"{path}.old")
        shared.create(database, TABLE)
        shared.tell({"do": "reopen", "path": str(path)})
        assert client.rows("SELECT b FROM t") == []
        reader.query("COMMIT")
        for session in (reader, client):
            assert session.rows("SELECT b FROM t") == []


def test_functions_that_raise_whatever_they_like(tmp_path: Path) -> None:
    (tmp_path / "its_functions.py").write_text(
        "import sys\n"
        "def register(connection):\n"
        "    connection.create_scalar_function('leave', lambda: sys.exit(), 0)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        with Endpoint(tmp_path, functions=["its_functions:register"]) as endpoint:
            endpoint.create("a.db", TABLE)
            with Raw(endpoint, "a.db") as client:
                for sql in ("SELECT leave()", "INSERT INTO t (b) VALUES (leave())"):
                    assert client.run(sql).errors[0]["C"] == "38000"
                assert client.run("INSERT INTO t (b) VALUES (1)").tags == ["INSERT 1 1"]
                assert client.rows("SELECT b FROM t") == [(1,)]


def test_the_wal_does_not_grow_while_transactions_follow_each_other(
    shared: Endpoint, database: str
) -> None:
    with Raw(shared, database) as client:
        for _ in range(20):
            client.query("BEGIN; INSERT INTO t (b) VALUES (zeroblob(2000000)); COMMIT")
        assert shared.file(database)["checkpoints"] >= 5
        assert Path(f"{shared.path(database)}-wal").stat().st_size < 20_000_000
