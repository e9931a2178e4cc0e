"""Short statements of the token's holder: which they are, and that nobody else waits for others."""

from pathlib import Path

import apsw
import apsw.ext
import pytest

from tests.sqlite.endpoint import Endpoint, eventually
from tests.sqlite.raw import Raw
from txproxy.backends.sqlite import opening, statements

TABLES = """
CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE child (
    id INTEGER PRIMARY KEY,
    parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED,
    body TEXT,
    made TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX child_parent ON child (parent);
CREATE TABLE watched (id INTEGER PRIMARY KEY, body TEXT);
CREATE TRIGGER watch AFTER INSERT ON watched BEGIN UPDATE child SET body = ''; END;
CREATE VIRTUAL TABLE words USING fts5(word);
CREATE TABLE replaced (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TRIGGER replacing BEFORE DELETE ON replaced BEGIN UPDATE child SET body = ''; END;
"""
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> apsw.Connection:
    path = tmp_path_factory.mktemp("short") / "a.db"
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(TABLES)
    connection.close()
    return opening.inspector(str(path), opening.Settings())


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "SELECT * FROM child WHERE id = ?",
        "SELECT * FROM parent WHERE name = ?",
        "SELECT p.name, c.body FROM child c JOIN parent p ON p.id = c.parent WHERE c.id = ?",
        "SELECT * FROM child WHERE id IN (?, ?, ?)",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM child WHERE id = ?)",
        "INSERT INTO parent (name) VALUES (?)",
        "INSERT INTO parent (name) VALUES (?) RETURNING id",
        "INSERT INTO parent (name) VALUES (?) ON CONFLICT (name) DO UPDATE SET name = 'x'",
        "INSERT OR IGNORE INTO parent (name) VALUES (?)",
        "INSERT INTO child (parent, body, made) VALUES (?, ?, ?)",
        "UPDATE child SET body = ?, parent = parent + 1 WHERE id = ?",
        "UPDATE child SET body = ? WHERE id IN (?, ?)",
        "DELETE FROM child WHERE id = ?",
    ],
)
def test_short(schema: apsw.Connection, sql: str) -> None:
    assert statements.inspect(schema, sql).is_short


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM child",
        "SELECT * FROM child WHERE parent = ?",
        "SELECT * FROM child WHERE body = ? LIMIT 1",
        "SELECT count(*) FROM child",
        "SELECT max(id) FROM child",
        "SELECT * FROM child WHERE id > ? ORDER BY id LIMIT 1",
        "SELECT randomblob(?)",
        "SELECT * FROM child WHERE id = ? AND body REGEXP ?",
        "SELECT * FROM words WHERE words MATCH ?",
        f"{ENDLESS} SELECT i FROM n",
        "EXPLAIN SELECT 1",
        "INSERT INTO watched (body) VALUES (?)",
        "INSERT INTO words VALUES (?)",
        "INSERT INTO parent (name) SELECT body FROM child",
        "INSERT INTO child (parent, body) VALUES (?, ?)",  # CURRENT_TIMESTAMP is a function
        "REPLACE INTO parent (name) VALUES (?)",  # which may have children
        "REPLACE INTO replaced (name) VALUES (?)",  # with PRAGMA recursive_triggers
        "UPDATE child SET body = ?",
        "UPDATE parent SET id = ? WHERE id = ?",
        "DELETE FROM child",
        "DELETE FROM parent WHERE id = ?",
        "CREATE TABLE t (a)",
        "CREATE INDEX i ON child (body)",
        "DROP TABLE child",
        "VACUUM",
        "ANALYZE",
        "PRAGMA integrity_check",
    ],
)
def test_not_short(schema: apsw.Connection, sql: str) -> None:
    schema.create_scalar_function("regexp", lambda *_: 1, 2)
    assert not statements.inspect(schema, sql).is_short


def test_a_statement_that_takes_long_keeps_nobody_waiting(shared: Endpoint, database: str) -> None:
    """But for those who want to write."""
    with Raw(shared, database) as holder, Raw(shared, database) as reader:
        holder.query("BEGIN IMMEDIATE; INSERT INTO t (b) VALUES (1)")
        holder.begin_run(f"INSERT INTO t (b) {ENDLESS} SELECT i FROM n")
        eventually(lambda: shared.session(holder.number).get("state") == "active")
        assert reader.rows("SELECT count(*) FROM t") == [(0,)]
        shared.tell({"do": "cancel", "id": holder.number})
        assert holder.read().errors[0]["L"] == "9"


def test_another_process_has_the_lock(shared: Endpoint, database: str) -> None:
    """Nobody but those who want it waits for it, and it comes in the order of asking."""
    holding = (
        "c.execute('BEGIN IMMEDIATE'); print(flush=True); sys.stdin.readline(); c.execute('COMMIT')"
    )
    with Raw(shared, database) as first, Raw(shared, database) as second:
        # The queue is asleep, and the token free: this is where the loop would take it by itself.
        first.query("BEGIN IMMEDIATE; ROLLBACK")
        with shared.beside(database, holding) as outsider:
            assert outsider.stdin
            assert outsider.stdout
            outsider.stdout.readline()
            first.begin_run("BEGIN IMMEDIATE")
            eventually(lambda: shared.file(database)["busy_foreign"] > 0)
            second.begin_run("BEGIN IMMEDIATE")
            shared.queues(database, 1)
            with Raw(shared, database) as reader:
                assert reader.rows("SELECT count(*) FROM t") == [(0,)]
            outsider.stdin.write(b"\n")
            outsider.stdin.flush()
        assert first.read().status == "T"
        assert first.run("INSERT INTO t (b) VALUES ('first')").tags == ["INSERT 1 1"]
        assert first.run("COMMIT").status == "I"
        assert second.read().status == "T"
        assert second.rows("SELECT b FROM t") == [("first",)]
        assert second.run("ROLLBACK").status == "I"


@pytest.mark.parametrize("train", [False, True])
def test_the_wal_is_copied_back_under_load(tmp_path: Path, *, train: bool) -> None:
    """Also if somebody always waits, and no statement needs a thread."""
    rounds = 20
    with Endpoint(tmp_path, commit_train=train) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        with Raw(endpoint, "a.db") as first, Raw(endpoint, "a.db") as second:
            first.run("BEGIN IMMEDIATE")
            for i in range(rounds):
                holder, waits = (first, second) if i % 2 == 0 else (second, first)
                waits.begin_run("BEGIN IMMEDIATE")
                endpoint.queues("a.db", 1)
                holder.run("INSERT INTO t (b) VALUES (?)", b"x" * 500_000)
                assert not holder.run("COMMIT").errors
                assert waits.read().status == "T"
            first.run("ROLLBACK")
            eventually(lambda: endpoint.file("a.db")["checkpoints"] > 1)
            assert first.rows("SELECT count(*), sum(length(b)) FROM t") == [
                (rounds, rounds * 500_000)
            ]
