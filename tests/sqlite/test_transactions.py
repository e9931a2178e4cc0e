"""Transactions of several clients of one file."""

import pytest

from tests.sqlite.endpoint import Endpoint, eventually
from tests.sqlite.raw import Raw, bind, execute, parse


def state(shared: Endpoint, client: Raw) -> str:
    """What the process reports of a client's transaction."""
    return str(shared.session(client.number).get("tx"))


def waits(shared: Endpoint, client: Raw) -> None:
    """Until the client stands in the queue."""
    eventually(lambda: shared.session(client.number).get("state") == "waiting")


def test_begin_takes_nothing(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as first, Raw(shared, database) as second:
        assert first.run("BEGIN").status == "T"
        assert second.run("BEGIN DEFERRED").status == "T"
        assert first.run("INSERT INTO t (b) VALUES (1)").status == "T"
        assert first.run("COMMIT").status == "I"
        assert second.run("INSERT INTO t (b) VALUES (2)").status == "T"
        assert second.run("END").tags == ["COMMIT"]
        assert first.rows("SELECT b FROM t") == [(1,), (2,)]


def test_reads_of_a_transaction_come_from_one_snapshot(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as reader, Raw(shared, database) as writer:
        reader.run("BEGIN")
        assert reader.rows("SELECT b FROM t") == []
        writer.rows("INSERT INTO t (b) VALUES (1)")
        assert reader.rows("SELECT b FROM t") == []
        eventually(lambda: state(shared, reader) == "reading")
        assert reader.run("COMMIT").status == "I"
        assert reader.rows("SELECT b FROM t") == [(1,)]


def test_a_transaction_that_has_read_what_is_still_so_may_write(
    shared: Endpoint, database: str
) -> None:
    with Raw(shared, database) as client:
        client.run("BEGIN")
        assert client.rows("SELECT count(*) FROM t") == [(0,)]
        assert client.run("INSERT INTO t (b) VALUES (1)").tags == ["INSERT 1 1"]
        assert client.rows("SELECT count(*) FROM t") == [(1,)]
        assert client.run("COMMIT").tags == ["COMMIT"]


def test_one_that_has_read_what_is_not_so_any_more_may_not(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client, Raw(shared, database) as other:
        client.run("BEGIN")
        client.rows("SELECT count(*) FROM t")
        other.rows("INSERT INTO t (b) VALUES (1)")
        reply = client.run("INSERT INTO t (b) VALUES (2)")
        assert [(e["C"], e["L"]) for e in reply.errors] == [("40001", "517")]
        assert reply.status == "E"
        reply = client.run("INSERT INTO t (b) VALUES (2)")
        assert [(e["C"], e["L"]) for e in reply.errors] == [("25P02", "516")]
        assert client.run("ROLLBACK").status == "I"
        assert client.rows("SELECT b FROM t") == [(1,)]


def test_another_process_commits_in_between(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.run("BEGIN")
        client.rows("SELECT count(*) FROM t")
        shared.outside(database, "c.execute('INSERT INTO t (b) VALUES (1)')")
        assert client.run("DELETE FROM t").errors[0]["L"] == "517"
        # It must not pass for a commit.
        reply = client.run("COMMIT")
        assert (reply.errors[0]["L"], reply.status) == ("516", "I")


def test_writers_take_turns(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as first, Raw(shared, database) as second:
        first.run("BEGIN IMMEDIATE")
        second.begin_run("BEGIN IMMEDIATE")
        waits(shared, second)
        first.rows("INSERT INTO t (b) VALUES ('first')")
        first.run("COMMIT")
        assert second.read().status == "T"
        assert second.rows("SELECT b FROM t") == [("first",)]
        second.run("ROLLBACK")


def test_rollback(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query("BEGIN; INSERT INTO t (b) VALUES (1); ROLLBACK")
        assert client.rows("SELECT * FROM t") == []
        assert client.query("BEGIN; ROLLBACK").tags == ["BEGIN", "ROLLBACK"]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("COMMIT", "cannot commit - no transaction is active"),
        ("ROLLBACK", "cannot rollback - no transaction is active"),
        ("RELEASE a", "no such savepoint: a"),
        ("ROLLBACK TO a", "no such savepoint: a"),
    ],
)
def test_without_a_transaction(shared: Endpoint, database: str, sql: str, message: str) -> None:
    with Raw(shared, database) as client:
        reply = client.run(sql)
        assert [e["M"] for e in reply.errors] == [message] or sql == "ROLLBACK TO a"
        assert reply.errors
        assert reply.status == "I"


def test_begin_twice(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        for first in ("BEGIN", "BEGIN IMMEDIATE"):
            client.run(first)
            reply = client.run("BEGIN")
            assert reply.errors[0]["M"] == "cannot start a transaction within a transaction"
            assert reply.status == "T"
            client.run("ROLLBACK")


def test_savepoints_before_the_first_write_are_made_good(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query("BEGIN; SAVEPOINT a; SAVEPOINT b; RELEASE b")
        client.query("INSERT INTO t (b) VALUES (1); SAVEPOINT b; INSERT INTO t (b) VALUES (2)")
        assert client.run("ROLLBACK TO B").status == "T"
        assert client.rows("SELECT b FROM t") == [(1,)]
        assert client.run("ROLLBACK TO a").status == "T"
        assert client.rows("SELECT b FROM t") == []
        client.query("INSERT INTO t (b) VALUES (3); RELEASE a; COMMIT")
        assert client.rows("SELECT b FROM t") == [(3,)]


def test_releasing_an_outermost_savepoint_commits(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client, Raw(shared, database) as other:
        client.query("SAVEPOINT a; SAVEPOINT b; INSERT INTO t (b) VALUES (1)")
        assert client.run("RELEASE b").status == "T"
        assert other.rows("SELECT b FROM t") == []
        reply = client.run("RELEASE a")
        assert (reply.status, reply.tags) == ("I", ["RELEASE"])
        assert other.rows("SELECT b FROM t") == [(1,)]
        assert client.query("SAVEPOINT a; RELEASE a").status == "I"


def test_a_statement_that_ends_its_transaction(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query("INSERT INTO t VALUES (1, 1); BEGIN; INSERT INTO t VALUES (2, 2)")
        reply = client.run("INSERT OR ROLLBACK INTO t VALUES (1, 3)")
        assert (reply.errors[0]["L"], reply.status) == ("1555", "E")
        # What follows must not be run in autocommit.
        assert client.run("INSERT INTO t VALUES (4, 4)").errors[0]["L"] == "516"
        assert client.run("ROLLBACK").status == "I"
        assert client.rows("SELECT a FROM t") == [(1,)]


def test_a_deferred_violation_leaves_the_transaction_open(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query("CREATE TABLE u (t REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
        client.query("PRAGMA foreign_keys = ON")
        client.query("BEGIN; INSERT INTO u VALUES (7)")
        reply = client.run("COMMIT")
        assert (reply.errors[0]["L"], reply.status) == ("787", "T")
        client.query("INSERT INTO t VALUES (7, 7)")
        assert client.run("COMMIT").status == "I"
        assert client.rows("SELECT * FROM u") == [(7,)]


def test_tables_of_a_transaction_of_its_own(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client, Raw(shared, database) as other:
        client.query("BEGIN; CREATE TABLE u (x INTEGER); INSERT INTO u VALUES (1)")
        reply = client.run("SELECT x FROM u")
        assert (reply.rows, reply.columns) == ([(1,)], [("x", "INTEGER")])
        assert client.run("SELECT y FROM u").errors[0]["M"] == "no such column: y"
        assert client.ask(parse("INSERT INTO u VALUES (?)"), bind(2), execute()).tags
        assert other.run("SELECT x FROM u").errors[0]["C"] == "42P01"
        client.query("ALTER TABLE u RENAME x TO y")
        assert client.rows("SELECT y FROM u ORDER BY y") == [(1,), (2,)]
        client.run("COMMIT")
        assert other.rows("SELECT y FROM u ORDER BY y") == [(1,), (2,)]
        client.query("BEGIN; ALTER TABLE u RENAME y TO z; ROLLBACK")
        assert client.rows("SELECT y FROM u WHERE y = 1") == [(1,)]


def test_a_cursor_in_a_transaction_that_writes(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client, Raw(shared, database) as other:
        client.query("BEGIN; INSERT INTO t (b) VALUES (1), (2), (3)")
        sql = "SELECT b FROM t ORDER BY a"
        assert client.ask(parse(sql), bind(portal="p"), execute(1, "p")).rows == [(1,)]
        client.rows("UPDATE t SET b = 9 WHERE a = 1")
        assert client.ask(execute(1, "p")).rows == [(2,)]
        client.run("COMMIT")
        # It is over with the transaction, or it would read what others have not committed.
        other.query("BEGIN; INSERT INTO t (b) VALUES ('uncommitted')")
        assert client.ask(execute(1, "p")).errors[0]["C"] == "34000"
        other.run("ROLLBACK")


def test_a_cursor_of_a_snapshot_is_over_with_it(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query("INSERT INTO t (b) VALUES (1), (2), (3)")
        client.run("BEGIN")
        sql = "SELECT b FROM t"
        assert client.ask(parse(sql), bind(portal="p"), execute(1, "p")).rows == [(1,)]
        client.rows("INSERT INTO t (b) VALUES (4)")
        assert client.ask(execute(1, "p")).errors[0]["C"] == "34000"


def test_a_whole_transaction_in_one_go(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        reply = client.ask(
            *(parse("BEGIN"), bind(), execute()),
            *(parse("INSERT INTO t (b) VALUES (?)"), bind(1), execute(), bind(2), execute()),
            *(parse("COMMIT"), bind(), execute()),
            *(parse("SELECT count(*) FROM t"), bind(), execute()),
        )
        assert reply.tags == ["BEGIN", "INSERT 1 1", "INSERT 2 1", "COMMIT", "SELECT 1"]
        assert (reply.rows, reply.status) == ([(2,)], "I")


def test_a_client_that_vanishes(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as other:
        with Raw(shared, database) as client:
            client.query("BEGIN; INSERT INTO t (b) VALUES (1)")
            other.begin_run("INSERT INTO t (b) VALUES (2)")
            waits(shared, other)
        assert other.read().tags == ["INSERT 1 1"]
        assert other.rows("SELECT b FROM t") == [(2,)]


def test_a_client_that_vanishes_from_the_queue(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as holder:
        holder.run("BEGIN IMMEDIATE")
        with Raw(shared, database) as client:
            client.begin_run("INSERT INTO t (b) VALUES (1)")
            waits(shared, client)
        eventually(lambda: shared.file(database)["queue"] == 0)
        holder.run("COMMIT")
        assert holder.rows("SELECT * FROM t") == []


def test_begin_immediate_by_start_up_parameter(shared: Endpoint, database: str) -> None:
    with Raw(shared, database, begin="immediate") as client, Raw(shared, database) as other:
        client.run("BEGIN")
        eventually(lambda: state(shared, client) == "writing")
        other.begin_run("DELETE FROM t")
        waits(shared, other)
        client.run("COMMIT")
        assert other.read().tags == ["DELETE 0"]


def test_an_interrupted_statement_of_a_transaction(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query("BEGIN; INSERT INTO t (b) VALUES (1)")
        client.begin_run(
            "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s) SELECT sum(i) FROM s"
        )
        eventually(lambda: shared.session(client.number).get("state") == "active")
        shared.tell({"do": "cancel", "id": client.number})
        assert client.read().errors[0]["R"] == "SQLITE_INTERRUPT"
        # A SELECT takes nothing with it.
        assert client.run("COMMIT").status == "I"
        assert client.rows("SELECT b FROM t") == [(1,)]
