"""What a statement is, as SQLite says; and by leading words alone, where that must do."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txproxy.backends.sqlite import parser, pragmas, statements
from txproxy.backends.sqlite.statements import Begins, Kind


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    opened = apsw.Connection(":memory:")
    opened.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT, c)")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("sql", "kind", "verb"),
    [
        ("SELECT 1", Kind.READ, "SELECT"),
        ("  -- why\n /* so */ values (1)", Kind.READ, "VALUES"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", Kind.READ, "WITH"),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT 1, 2, 3 FROM x", Kind.WRITE, "INSERT"),
        ("WITH x AS (SELECT 1) UPDATE t SET b = 1", Kind.WRITE, "UPDATE"),
        ("WITH x AS (SELECT 1) DELETE FROM t", Kind.WRITE, "DELETE"),
        ("REPLACE INTO t VALUES (1, 2, 3)", Kind.WRITE, "REPLACE"),
        ("INSERT INTO t SELECT * FROM t WHERE 0", Kind.WRITE, "INSERT"),
        ("EXPLAIN DELETE FROM t", Kind.READ, "EXPLAIN"),
        ("EXPLAIN QUERY PLAN SELECT 1", Kind.READ, "EXPLAIN"),
        ("EXPLAIN BEGIN IMMEDIATE", Kind.READ, "EXPLAIN"),
        ("CREATE TABLE u (a)", Kind.DDL, "CREATE"),
        ("ALTER TABLE t ADD COLUMN d", Kind.DDL, "ALTER"),
        ("ANALYZE", Kind.DDL, "ANALYZE"),
        ("REINDEX", Kind.DDL, "REINDEX"),
        ("VACUUM", Kind.VACUUM, "VACUUM"),
        ("END TRANSACTION", Kind.COMMIT, "COMMIT"),
        ("rollback", Kind.ROLLBACK, "ROLLBACK"),
        ("PRAGMA table_info(t)", Kind.PRAGMA, "PRAGMA"),
        ("", Kind.EMPTY, ""),
        (" ;; -- nothing", Kind.EMPTY, ""),
    ],
)
def test_kinds(connection: apsw.Connection, sql: str, kind: Kind, verb: str) -> None:
    found = statements.inspect(connection, sql)
    assert (found.kind, found.verb) == (kind, verb)


@pytest.mark.parametrize(
    ("sql", "begins"),
    [
        ("BEGIN", Begins.DEFERRED),
        ("begin transaction", Begins.DEFERRED),
        ("BEGIN DEFERRED TRANSACTION", Begins.DEFERRED),
        ("/* BEGIN EXCLUSIVE */ BEGIN -- EXCLUSIVE\n IMMEDIATE", Begins.IMMEDIATE),
        (";BEGIN/**/EXCLUSIVE;", Begins.EXCLUSIVE),
        ("BEGIN; IMMEDIATE", Begins.DEFERRED),
    ],
)
def test_how_it_begins(sql: str, begins: Begins) -> None:
    found = statements.control(sql)
    assert found is not None
    assert (found.kind, found.begins) == (Kind.BEGIN, begins)


@pytest.mark.parametrize(
    ("sql", "kind", "name"),
    [
        ("SAVEPOINT a", Kind.SAVEPOINT, "a"),
        ('savepoint "a b"', Kind.SAVEPOINT, "a b"),
        ("RELEASE 'x'", Kind.RELEASE, "x"),
        ("RELEASE SAVEPOINT [release]", Kind.RELEASE, "release"),
        ("ROLLBACK TO `q`", Kind.ROLLBACK_TO, "q"),
        ("ROLLBACK TRANSACTION TO SAVEPOINT to1", Kind.ROLLBACK_TO, "to1"),
    ],
)
def test_savepoints_by_name(sql: str, kind: Kind, name: str) -> None:
    found = statements.control(sql)
    assert found is not None
    assert (found.kind, found.name) == (kind, name)


def test_what_is_no_control_needs_a_database() -> None:
    for sql in ("SELECT 1", "EXPLAIN BEGIN", "", "(BEGIN)", "beginning", '"BEGIN"'):
        try:
            assert statements.control(sql) is None
        except apsw.SQLError:
            assert sql == "beginning"


def test_a_text_that_sqlite_cannot_read_fails_with_its_words(connection: apsw.Connection) -> None:
    for sql in ("BEGIN NOW", "SAVEPOINT", "PRAGMA foreign_keys = ?", "SELECT nope"):
        with pytest.raises(apsw.SQLError) as real:
            connection.execute(sql, (1,))
        with pytest.raises(apsw.SQLError) as ours:
            statements.inspect(connection, sql)
        assert str(ours.value) == str(real.value)


def test_statements_end_where_sqlite_says(connection: apsw.Connection) -> None:
    trigger = "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT ';'; END"
    text = f"BEGIN; {trigger};;SELECT ';', [;], `;` FROM (SELECT 1 AS \";\") -- ; \n; COMMIT ; "
    found = [one.rstrip(" \n;") for one, _ in statements.split(connection, text)]
    last = "SELECT ';', [;], `;` FROM (SELECT 1 AS \";\") --"
    assert found == ["BEGIN", trigger, last, "COMMIT"]


def test_the_next_statement_is_read_after_the_last_has_run(connection: apsw.Connection) -> None:
    for text, _ in statements.split(connection, "CREATE TABLE u (x); INSERT INTO u VALUES (1)"):
        connection.execute(text)
    assert connection.execute("SELECT x FROM u").fetchall() == [(1,)]


def test_nothing_runs_when_it_is_inspected(connection: apsw.Connection) -> None:
    for sql in (
        "INSERT INTO t VALUES (1, 2, 3)",
        "BEGIN",
        "PRAGMA foreign_keys = 1",
        "DROP TABLE t",
    ):
        statements.inspect(connection, sql)
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
    assert connection.pragma("foreign_keys") == 0
    assert not connection.in_transaction


def test_columns_and_parameters(connection: apsw.Connection) -> None:
    found = statements.inspect(
        connection, "SELECT a, b AS n, c, 1 + ? FROM t WHERE a = :x OR b = ?4"
    )
    assert found.columns == (("a", "INTEGER"), ("n", "TEXT"), ("c", ""), ("1 + ?", ""))
    assert (found.parameters, found.parameter_names) == (4, (None, "x", None, "4"))
    returning = statements.inspect(connection, "INSERT INTO t VALUES ($2, $1, 1) RETURNING a AS z")
    assert returning.columns == (("z", "INTEGER"),)
    assert returning.parameter_names == ("2", "1")
    assert not returning.is_readonly


def test_the_schema_another_connection_changed_is_noticed(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    mine, other = apsw.Connection(path), apsw.Connection(path)
    other.execute("CREATE TABLE t (a)")
    statements.refresh(mine)
    assert len(statements.inspect(mine, "SELECT * FROM t").columns) == 1
    other.execute("ALTER TABLE t ADD COLUMN b BLOB")
    statements.refresh(mine)
    assert statements.inspect(mine, "SELECT * FROM t").columns == (("a", ""), ("b", "BLOB"))
    mine.close()
    other.close()


def test_pragmas_of_ours_have_their_columns(connection: apsw.Connection) -> None:
    def columns(sql: str) -> tuple[tuple[str, str], ...]:
        return statements.inspect(connection, sql).columns

    assert columns("PRAGMA foreign_keys") == (("foreign_keys", ""),)
    assert columns("PRAGMA foreign_keys = 1") == ()
    assert columns("PRAGMA busy_timeout = 1") == (("timeout", ""),)
    assert [name for name, _ in columns("PRAGMA index_list(t)")] == [
        "seq", "name", "unique", "origin", "partial",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "tag"),
    [
        ("INSERT INTO t VALUES (7, 1, 1)", "INSERT 7 1"),
        ("INSERT INTO t VALUES (7, 1, 1) RETURNING a", "INSERT 7 1"),
        ("REPLACE INTO t VALUES (7, 1, 1)", "INSERT 7 1"),
        ("UPDATE t SET b = 1", "UPDATE 1"),
        ("DELETE FROM t RETURNING a", "DELETE 1"),
        ("SELECT 1", "SELECT 3"),
        ("WITH x AS (SELECT 1) SELECT 1", "SELECT 3"),
        ("PRAGMA table_info(t)", "SELECT 3"),
        ("EXPLAIN SELECT 1", "SELECT 3"),
        ("PRAGMA foreign_keys = 1", "PRAGMA"),
        ("create unique index i on t (a)", "CREATE INDEX"),
        ("CREATE /* a */ TABLE u (a)", "CREATE TABLE"),
        ("DROP TABLE t", "DROP TABLE"),
        ("BEGIN IMMEDIATE", "BEGIN"),
        ("END", "COMMIT"),
        ("ROLLBACK TO x", "ROLLBACK"),
        ("RELEASE x", "RELEASE"),
        ("VACUUM", "VACUUM"),
    ],
)
def test_tags(connection: apsw.Connection, sql: str, tag: str) -> None:
    assert statements.tag(statements.inspect(connection, sql), 1, 7, 3) == tag


PREFIX = st.text(st.sampled_from(" \n\t\f\r\x0b;/*--\ufeffx\"'"), max_size=12)


@settings(deadline=None)
@given(PREFIX, st.sampled_from(("PRAGMA foreign_keys = 1", "BEGIN", "SAVEPOINT s", "SELECT 1")))
def test_no_prefix_hides_control_from_us(prefix: str, sql: str) -> None:
    """What SQLite's parser takes for control, the leading word has to find, and nothing else."""
    text = prefix + sql
    try:
        action = parser.parse(text).action
    except apsw.SQLError:
        return
    is_control = action is not None and action.code in {
        apsw.SQLITE_PRAGMA,
        apsw.SQLITE_TRANSACTION,
        apsw.SQLITE_SAVEPOINT,
    }
    assert (statements.control(text) is not None) == is_control


def test_long_comments_take_no_time() -> None:
    assert statements.control("/* */" * 20_000 + "1") is None
    assert statements.control("/*" * 50_000) is None


def test_a_setting_behind_explain_is_refused() -> None:
    for sql in ("EXPLAIN PRAGMA foreign_keys = 1", "explain query plan pragma cache_size(1)"):
        found = statements.control(sql)
        assert found is not None
        assert found.pragma is not None
        assert found.pragma.kind is pragmas.Kind.REFUSED
