"""Autocommit writes of many clients, committed together."""

import contextlib

from tests.sqlite.endpoint import Endpoint
from tests.sqlite.raw import Raw


def together(shared: Endpoint, database: str, *statements: str, setup: str = "") -> list[str]:
    """Each of the statements by a client of its own, all in one batch: the tags, or the codes of
    the errors.
    """
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(shared, database)) for _ in statements]
        holder = stack.enter_context(Raw(shared, database))
        for client in clients:
            if setup:
                client.query(setup)
        holder.run("BEGIN IMMEDIATE")
        for position, (client, sql) in enumerate(zip(clients, statements, strict=True), 1):
            client.begin_run(sql)
            # One after the other: the queue is in order.
            shared.queues(database, position)
        holder.run("COMMIT")
        replies = [client.read() for client in clients]
    return [r.errors[0]["L"] if r.errors else r.tags[0] for r in replies]


def test_they_are_committed_together(shared: Endpoint, database: str) -> None:
    insert = "INSERT INTO t (b) VALUES (1)"
    assert together(shared, database, *[insert] * 5) == [f"INSERT {i} 1" for i in range(1, 6)]
    assert shared.file(database)["batch_max"] == 5
    assert shared.file(database)["commits"] == 2


def test_one_that_fails_harms_nobody(shared: Endpoint, database: str) -> None:
    found = together(
        shared,
        database,
        "INSERT INTO t VALUES (1, 1)",
        "INSERT INTO t VALUES (1, 2)",
        "INSERT INTO t VALUES (3, 3)",
    )
    assert found == ["INSERT 1 1", "1555", "INSERT 3 1"]


def test_rows_before_the_failure_of_insert_or_fail_stay(shared: Endpoint, database: str) -> None:
    sql = "INSERT OR FAIL INTO t VALUES (5, 1), (5, 2)"
    assert together(shared, database, sql, "INSERT INTO t VALUES (6, 3)") == ["1555", "INSERT 6 1"]
    with Raw(shared, database) as client:
        assert client.rows("SELECT a FROM t") == [(5,), (6,)]


def test_one_that_rolls_back_everything(shared: Endpoint, database: str) -> None:
    found = together(
        shared,
        database,
        "INSERT INTO t VALUES (1, 1)",
        "INSERT OR ROLLBACK INTO t VALUES (2, 2), (2, 3)",
        "INSERT INTO t VALUES (4, 4)",
    )
    assert found == ["INSERT 1 1", "1555", "INSERT 4 1"]
    with Raw(shared, database) as client:
        assert client.rows("SELECT a FROM t") == [(1,), (4,)]


def test_a_trigger_that_rolls_back_everything(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query(
            "CREATE TRIGGER r BEFORE INSERT ON t WHEN new.b = 'no'"
            " BEGIN SELECT RAISE(ROLLBACK, 'not this one'); END"
        )
    insert = "INSERT INTO t (b) VALUES ('{}')"
    found = together(shared, database, *[insert.format(b) for b in ("x", "no", "y")])
    assert found == ["INSERT 1 1", "1811", "INSERT 2 1"]


def test_a_deferred_foreign_key_is_each_ones_own(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query("CREATE TABLE u (t REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
    found = together(
        shared,
        database,
        "INSERT INTO u VALUES (7)",
        "INSERT INTO t VALUES (7, 7)",
        "INSERT INTO u VALUES (7)",
        setup="PRAGMA foreign_keys = ON",
    )
    # The second would have healed the first.
    assert found == ["787", "INSERT 7 1", "INSERT 1 1"]


def test_settings_are_each_ones_own(shared: Endpoint, database: str) -> None:
    with (
        Raw(shared, database) as holder,
        Raw(shared, database) as strict,
        Raw(shared, database) as lax,
    ):
        holder.query("CREATE TABLE u (t REFERENCES t)")
        strict.query("PRAGMA foreign_keys = ON")
        holder.run("BEGIN IMMEDIATE")
        strict.begin_run("INSERT INTO u VALUES (1)")
        lax.begin_run("INSERT INTO u VALUES (1)")
        shared.queues(database, 2)
        holder.run("COMMIT")
        assert strict.read().errors[0]["L"] == "787"
        assert lax.read().tags == ["INSERT 1 1"]
        assert strict.run("INSERT INTO u VALUES (1)").errors[0]["L"] == "787"


def test_changes_and_row_ids_are_each_ones_own(shared: Endpoint, database: str) -> None:
    found = together(
        shared,
        database,
        "INSERT INTO t (b) VALUES (1), (2)",
        "INSERT OR IGNORE INTO t VALUES (1, 1)",
        "UPDATE t SET b = 0",
        "DELETE FROM t",
    )
    assert found == ["INSERT 2 2", "INSERT 0 0", "UPDATE 2", "DELETE 2"]


def test_ddl_goes_alone(shared: Endpoint, database: str) -> None:
    found = together(
        shared,
        database,
        "INSERT INTO t (b) VALUES (1)",
        "CREATE TABLE u (x)",
        "VACUUM",
        "PRAGMA user_version = 7",
        "INSERT INTO t (b) VALUES (2)",
    )
    assert found == ["INSERT 1 1", "CREATE TABLE", "VACUUM", "PRAGMA", "INSERT 2 1"]
    with Raw(shared, database) as client:
        assert client.rows("PRAGMA user_version") == [(7,)]
