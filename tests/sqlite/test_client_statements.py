"""What the client sees in a statement."""

import sqlite3

import pytest

from txproxy.sqlite.begun import Savepoints
from txproxy.sqlite.statements import Kind, Statement, parameters

KINDS = [
    ("SELECT 1", Kind.READ),
    ("  -- a\n /* b */ values (1)", Kind.READ),
    ("WITH a AS (SELECT 1) SELECT * FROM a", Kind.READ),
    ("WITH a AS (SELECT 1) INSERT OR IGNORE INTO t SELECT * FROM a", Kind.OTHER),
    ("WITH a AS (SELECT 1) DELETE FROM t", Kind.OTHER),
    ("SELECT replace('a', 'b', 'c')", Kind.READ),
    ("SELECT last_insert_rowid()", Kind.OTHER),
    ("SELECT total_changes()", Kind.OTHER),
    ("insert into t values (1)", Kind.WRITE),
    ("REPLACE INTO t VALUES (1)", Kind.WRITE),
    ("UPDATE t SET a = 1", Kind.WRITE),
    ("/**/DELETE FROM t", Kind.WRITE),
    ("CREATE TABLE t (a)", Kind.OTHER),
    ("PRAGMA table_info(t)", Kind.READ),
    ("PRAGMA main.table_info('t');", Kind.READ),
    ("PRAGMA user_version", Kind.READ),
    ("PRAGMA user_version(3)", Kind.OTHER),
    ("PRAGMA user_version = 3", Kind.OTHER),
    ("PRAGMA table_info(t) = 1", Kind.OTHER),
    ("PRAGMA foreign_keys", Kind.OTHER),
    ("BEGIN", Kind.BEGIN),
    ("begin deferred transaction;", Kind.BEGIN),
    ("BEGIN /* now */ IMMEDIATE", Kind.BEGIN_NOW),
    ("BEGIN EXCLUSIVE TRANSACTION", Kind.BEGIN_NOW),
    ("BEGIN anything", Kind.OTHER),
    ("COMMIT", Kind.COMMIT),
    ("END TRANSACTION -- now", Kind.COMMIT),
    ("ROLLBACK;", Kind.ROLLBACK),
    ("ROLLBACK TO a", Kind.ROLLBACK_TO),
    ("ROLLBACK TRANSACTION TO SAVEPOINT a", Kind.ROLLBACK_TO),
    ("SAVEPOINT a", Kind.SAVEPOINT),
    ("RELEASE a", Kind.RELEASE),
    ("RELEASE SAVEPOINT a", Kind.RELEASE),
    ("EXPLAIN SELECT 1", Kind.OTHER),
    ("", Kind.OTHER),
    (";", Kind.OTHER),
]


@pytest.mark.parametrize(("sql", "kind"), KINDS)
def test_kind(sql: str, kind: Kind) -> None:
    assert Statement(sql).kind is kind


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("SAVEPOINT Abc", "abc"),
        ('RELEASE "A ""b"', 'a "b'),
        ("ROLLBACK TO [a b]", "a b"),
        ("SAVEPOINT`x`", "x"),
        ("savepoint 'y'", "y"),
    ],
)
def test_the_name_of_a_savepoint(sql: str, name: str) -> None:
    assert Statement(sql).savepoint == name


PARAMETERS = [
    ("SELECT ?, ?", (None, None)),
    ("SELECT :a, @b, $c, :a", ("a", "b", "c")),
    ("SELECT ?2, ?1, ?", ("1", "2", None)),
    ("SELECT ?3", (None, None, "3")),
    ("SELECT :a, ?, ?1", ("1", None)),
    ("SELECT '?', \"?\", `:a`, [?], ? -- ?\n /* ? */", (None,)),
    ("SELECT a$b, 'it''s ?', x'00' FROM t", ()),
    ("SELECT $a::b(c), ?", ("a::b(c)", None)),
    ("SELECT 1 /* ?", ()),
    ("SELECT :ä", ("ä",)),
]


@pytest.mark.parametrize(("sql", "names"), PARAMETERS)
def test_parameters(sql: str, names: tuple[str | None, ...]) -> None:
    found = parameters(sql)
    if sql != "SELECT :a, ?, ?1":
        assert found == names
    assert len(found) == len(names)


@pytest.mark.parametrize(
    "sql", [sql for sql, _ in PARAMETERS if "FROM" not in sql and "`" not in sql]
)
def test_sqlite_counts_the_same_parameters(sql: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute(sql, [None] * len(parameters(sql)))  # else ProgrammingError
    connection.close()


def test_savepoints_are_a_stack() -> None:
    savepoints = Savepoints(Statement("BEGIN"))
    for sql in ("SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT a", "SAVEPOINT c"):
        assert not savepoints.apply(Statement(sql))
    assert savepoints.opening() == ["SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT a", "SAVEPOINT c"]
    assert not savepoints.apply(Statement("ROLLBACK TO A"))
    assert savepoints.opening() == ["SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT a"]
    assert not savepoints.apply(Statement("RELEASE b"))
    assert savepoints.opening() == ["SAVEPOINT a"]
    with pytest.raises(sqlite3.OperationalError, match="no such savepoint: b"):
        savepoints.apply(Statement("RELEASE b"))
    assert not savepoints.apply(Statement("RELEASE a"))
    assert repr(savepoints) == "<Savepoints [] outermost=False>"


def test_the_savepoint_that_opened_a_transaction_ends_it() -> None:
    savepoints = Savepoints(Statement("SAVEPOINT a"))
    savepoints.apply(Statement("SAVEPOINT b"))
    assert not savepoints.ends(Statement("RELEASE b"))
    assert savepoints.ends(Statement("RELEASE a"))
    assert savepoints.apply(Statement("RELEASE a"))
