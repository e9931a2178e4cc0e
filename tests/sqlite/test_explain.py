"""Programs that SQLite shows are those of the schema of now: it would follow those of another one
to tables that are gone, which ends the process or reads whatever is there instead.
"""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.sqlite.endpoint import Endpoint
from tests.sqlite.raw import Raw, Reply, bind, close_portal, execute, parse
from txproxy.backends.sqlite import statements

ROUNDS = 100
TABLE = "a_table_of_a_long_name"
INSERT = f"INSERT INTO {TABLE} (b) VALUES (?) RETURNING a"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    """One that a test may end."""
    with Endpoint(tmp_path) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        yield endpoint


def schemas(client: Raw) -> Iterator[int]:
    """In each one the table is another one, in its client's transaction; what was the last one's
    memory is something else's.
    """
    for i in range(ROUNDS):
        assert client.query(f"BEGIN; CREATE TABLE {TABLE} (a INTEGER PRIMARY KEY, b)").status == "T"
        yield i
        assert not client.query("ROLLBACK" if i % 2 else f"DROP TABLE {TABLE}; COMMIT").errors
        assert not client.query(f"CREATE TABLE a_table_{i} (bbbbbbbbbbbbbbb, c, d)").errors


def written(reply: Reply) -> list[object]:
    """The tables into which a program inserts."""
    assert not reply.errors
    return [row[5] for row in reply.rows if row[1] == "Insert"]


def test_a_statement_in_a_schema_of_its_transaction(endpoint: Endpoint) -> None:
    with Raw(endpoint, "a.db") as client:
        for i in schemas(client):
            assert client.rows(INSERT, i) == [(1,)]


def test_a_client_explains_in_a_schema_of_its_transaction(endpoint: Endpoint) -> None:
    with Raw(endpoint, "a.db") as client:
        for i in schemas(client):
            assert TABLE in written(client.run(f"EXPLAIN {INSERT}", i))


def test_a_client_explains_while_others_change_the_schema(endpoint: Endpoint) -> None:
    with Raw(endpoint, "a.db") as client, Raw(endpoint, "a.db") as other:
        for i in range(ROUNDS):
            assert not other.query(f"CREATE TABLE {TABLE} (a INTEGER PRIMARY KEY, b)").errors
            assert client.rows(f"SELECT * FROM {TABLE}") == []
            assert TABLE in written(client.run(f"EXPLAIN {INSERT}", i))
            assert not other.query(f"DROP TABLE {TABLE}").errors
            assert not other.query(f"CREATE TABLE a_table_{i} (bbbbbbbbbbbbbbb, c, d)").errors


def test_a_client_goes_on_reading_a_program(endpoint: Endpoint) -> None:
    """It is that of the schema in which it was asked for."""
    with Raw(endpoint, "a.db") as client:
        for i in schemas(client):
            client.ask(parse(f"EXPLAIN {INSERT}"), bind(i, portal="p"), execute(1, "p"))
            assert not client.query(f"ALTER TABLE {TABLE} RENAME TO another_{i}").errors
            assert TABLE in written(client.ask(execute(0, "p")))
            client.ask(close_portal("p"))
            assert not client.query(f"ALTER TABLE another_{i} RENAME TO {TABLE}").errors


def test_a_trigger_makes_a_statement_long() -> None:
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    sql = "INSERT INTO t (b) VALUES (?)"
    assert statements.inspect(connection, sql).is_short
    connection.execute("CREATE TRIGGER i AFTER INSERT ON t BEGIN UPDATE t SET b = 1; END")
    assert not statements.inspect(connection, sql).is_short
    connection.close()
