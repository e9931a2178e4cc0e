"""The queue for the token: who waits too long, who sleeps in it, who leaves."""

import contextlib
import time
from pathlib import Path

import psycopg
import pytest

from tests.sqlite.endpoint import Endpoint, eventually
from tests.sqlite.raw import Raw, bind, execute, parse


def test_it_is_first_come_first_served(shared: Endpoint, database: str) -> None:
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(Raw(shared, database))
        clients = [stack.enter_context(Raw(shared, database)) for _ in range(8)]
        holder.run("BEGIN IMMEDIATE")
        for i, client in enumerate(clients):
            if i % 2:
                client.run("BEGIN")
            client.begin_run("INSERT INTO t (b) VALUES (?)", i)
            shared.queues(database, i + 1)
        holder.run("COMMIT")
        for i, client in enumerate(clients):
            assert not client.read().errors
            if i % 2:
                client.run("COMMIT")
        assert holder.rows("SELECT b FROM t ORDER BY a") == [(i,) for i in range(8)]


@pytest.mark.parametrize("how", ["parameter", "pragma"])
def test_waiting_too_long(shared: Endpoint, database: str, how: str) -> None:
    parameters = {"busy_timeout": "100"} if how == "parameter" else {}
    with Raw(shared, database) as holder, Raw(shared, database, **parameters) as client:
        if how == "pragma":
            assert client.query("PRAGMA busy_timeout = 100").kinds == "TDCZ"
        assert client.rows("PRAGMA busy_timeout") == [(100,)]
        holder.run("BEGIN IMMEDIATE")
        reply = client.run("INSERT INTO t (b) VALUES (1)")
        assert [(e["L"], e["C"], e["M"]) for e in reply.errors] == [
            ("5", "55P03", "database is locked")
        ]
        assert reply.status == "I"
        assert client.run("BEGIN IMMEDIATE").status == "I"
        # A transaction that has begun may try again.
        client.run("BEGIN")
        client.rows("SELECT * FROM t")
        for _ in range(2):
            reply = client.run("INSERT INTO t (b) VALUES (1)")
            assert (reply.errors[0]["L"], reply.status) == ("5", "T")
        assert client.rows("SELECT count(*) FROM t") == [(0,)]
        holder.run("ROLLBACK")
        assert client.run("INSERT INTO t (b) VALUES (1)").tags == ["INSERT 1 1"]
        assert client.run("COMMIT").status == "I"


def test_trying_again_when_what_was_read_has_changed(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as holder, Raw(shared, database, busy_timeout="50") as client:
        client.run("BEGIN")
        client.rows("SELECT * FROM t")
        holder.query("BEGIN; INSERT INTO t (b) VALUES (1)")
        assert client.run("DELETE FROM t").errors[0]["L"] == "5"
        holder.run("COMMIT")
        assert client.run("SELECT * FROM t").errors[0]["L"] == "517"
        assert client.run("ROLLBACK").status == "I"


def test_cancel_in_the_queue(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as holder, Raw(shared, database) as client:
        holder.run("BEGIN IMMEDIATE")
        for sql in ("INSERT INTO t (b) VALUES (1)", "BEGIN IMMEDIATE"):
            client.begin_run(sql)
            shared.queues(database, 1)
            shared.tell({"do": "cancel", "id": client.number})
            reply = client.read()
            assert (reply.errors[0]["L"], reply.status) == ("9", "I")


def test_a_writer_that_sleeps_while_others_wait(tmp_path: Path) -> None:
    with Endpoint(tmp_path, idle_writer_timeout=0.2) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        with Raw(endpoint, "a.db") as sleeper, Raw(endpoint, "a.db") as other:
            sleeper.query("BEGIN; INSERT INTO t (b) VALUES ('sleeper')")
            assert other.run("INSERT INTO t (b) VALUES ('other')").tags == ["INSERT 1 1"]
            reply = sleeper.run("INSERT INTO t (b) VALUES ('sleeper')")
            assert (reply.errors[0]["C"], reply.errors[0]["L"]) == ("25P03", "516")
            assert "idle_writer_timeout" in reply.errors[0]["M"]
            assert sleeper.run("SELECT 1").errors[0]["C"] == "25P02"
            assert sleeper.run("COMMIT").errors[0]["L"] == "516"
            assert sleeper.rows("SELECT b FROM t") == [("other",)]
            eventually(lambda: endpoint.file("a.db")["reaped"] == 1)


def test_a_writer_that_sleeps_alone_is_let_be(tmp_path: Path) -> None:
    with Endpoint(tmp_path, idle_writer_timeout=0.1, idle_transaction_timeout=0.6) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        with Raw(endpoint, "a.db") as client, Raw(endpoint, "a.db") as reader:
            reader.run("BEGIN")
            reader.rows("SELECT * FROM t")
            begun = time.monotonic()
            client.query("BEGIN; INSERT INTO t (b) VALUES (1)")
            eventually(lambda: endpoint.session(client.number).get("tx") == "failed")
            assert time.monotonic() - begun > 0.4
            assert "idle_transaction_timeout" in client.run("COMMIT").errors[0]["M"]
            assert "idle_transaction_timeout" in reader.run("COMMIT").errors[0]["M"]


def test_an_administrator_ends_a_transaction(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client, Raw(shared, database) as other:
        client.query("BEGIN; INSERT INTO t (b) VALUES (1)")
        shared.tell({"do": "reap", "id": client.number})
        assert other.run("INSERT INTO t (b) VALUES (2)").tags == ["INSERT 1 1"]
        assert "administrator" in client.run("COMMIT").errors[0]["M"]


def test_another_process_holds_the_lock(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client, Raw(shared, database, busy_timeout="100") as hasty:
        holding = (
            "c.execute('BEGIN IMMEDIATE'); print(flush=True); sys.stdin.readline();"
            " c.execute('COMMIT')"
        )
        with shared.beside(database, holding) as outsider:
            assert outsider.stdin
            assert outsider.stdout
            outsider.stdout.readline()
            client.begin_run("INSERT INTO t (b) VALUES (1)")
            assert hasty.run("INSERT INTO t (b) VALUES (2)").errors[0]["L"] == "5"
            outsider.stdin.write(b"\n")
            outsider.stdin.flush()
        assert client.read().tags == ["INSERT 1 1"]
        eventually(lambda: shared.file(database)["busy_foreign"] > 0)


def test_close_and_drain(tmp_path: Path) -> None:
    with Endpoint(tmp_path) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        with Raw(endpoint, "a.db") as first, Raw(endpoint, "a.db") as second:
            fields = {"C": "57P01", "M": "go away"}
            endpoint.tell({"do": "close", "id": first.number, "fields": fields})
            kind, body = first.message()
            assert (kind, b"Mgo away\0" in body, b"SFATAL" in body) == ("E", True, True)
            eventually(lambda: endpoint.told("closed"))
            second.query("BEGIN; INSERT INTO t (b) VALUES (1)")
            endpoint.tell({"do": "drain"})
            second.run("INSERT INTO t (b) VALUES (2)")
            assert second.run("COMMIT").tags == ["COMMIT"]
            assert second.message()[0] == "E"
            eventually(lambda: endpoint.told("drained"))


def test_one_that_is_to_leave_between_transactions(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        fields = {"C": "57P01", "M": "go away"}
        close = {"do": "close", "id": client.number, "fields": fields, "only_between": True}
        for sql in ("BEGIN", "INSERT INTO t (b) VALUES (1)"):
            client.run(sql)
            shared.tell(close)
            assert client.rows("SELECT 1") == [(1,)]
        assert client.run("COMMIT").tags == ["COMMIT"]
        shared.tell(close)
        assert client.message()[0] == "E"


def test_the_end_of_the_channel_rolls_back(tmp_path: Path) -> None:
    with Endpoint(tmp_path) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        client = psycopg.connect(endpoint.conninfo("a.db"), autocommit=True)
        client.execute("BEGIN")
        client.execute("INSERT INTO t (b) VALUES (1)")
    assert endpoint.process.returncode == 0
    assert endpoint.outside("a.db", "print(c.execute('SELECT * FROM t').fetchall())") == "[]"
    client.close()


def test_a_cursor_that_sleeps(tmp_path: Path) -> None:
    with Endpoint(tmp_path, idle_transaction_timeout=0.2) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        with Raw(endpoint, "a.db") as client:
            client.query("INSERT INTO t (b) VALUES (1), (2), (3)")
            assert client.ask(parse("SELECT b FROM t"), bind(), execute(1)).rows == [(1,)]
            eventually(lambda: endpoint.file("a.db")["readers"] == 0)
            assert client.ask(execute(1)).errors[0]["C"] == "34000"
            assert client.rows("SELECT count(*) FROM t") == [(3,)]


def test_the_end_of_the_channel_waits_for_no_statement(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s) SELECT sum(i) FROM s"
    with Endpoint(tmp_path) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        reader, writer = Raw(endpoint, "a.db"), Raw(endpoint, "a.db")
        reader.begin_run(endless)
        writer.query("BEGIN IMMEDIATE")
        writer.begin_run(endless)
        for client in (reader, writer):
            endpoint.is_active(client.number)
    assert endpoint.process.returncode == 0
    reader.close()
    writer.close()
