"""What clients' statements may not do, however they are written; and what still must work."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from txproxy.backends.sqlite import errors, pragmas, security, statements


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def connection(path: Path) -> Iterator[apsw.Connection]:
    opened = apsw.Connection(str(path))
    opened.execute("CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT, b)")
    yield opened
    opened.close()


@pytest.fixture
def guard(connection: apsw.Connection) -> security.Guard:
    return security.install(connection)


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH 'other' AS o",
        "attach database '' as o",
        "ATTACH ':memory:' AS o",
        "ATTACH (SELECT 'oth' || 'er') AS o",
        "/**/ATTACH/**/'file:other?mode=rwc'/**/AS/**/o",
        "EXPLAIN ATTACH 'other' AS o",
        "DETACH main",
        "VACUUM INTO 'other'",
        "VACUUM main INTO (SELECT 'other')",
        "SELECT load_extension('other')",
        "SELECT \"load_extension\"('other')",
        "SELECT [LOAD_extension]('other', 'entry')",
        "SELECT 1 WHERE 0 AND load_extension('other')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT fts3_tokenizer('simple', x'00')",
        "SELECT edit('x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('other', 'x')",
        "CREATE TEMP TABLE x (a)",
        "CREATE TEMPORARY TABLE x AS SELECT 1",
        "CREATE TABLE temp.x (a)",
        "CREATE TEMP VIEW x AS SELECT 1",
        "CREATE VIEW temp.x AS SELECT 1",
        "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END",
        "CREATE TRIGGER temp.x AFTER INSERT ON t BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE temp.x USING fts5(a)",
        "PRAGMA writable_schema = 1",
        "PRAGMA/*;*/main./**/\"writable_schema\"('ON')",
        "PRAGMA writable_schema = RESET",
        "EXPLAIN PRAGMA writable_schema = 1",
        "PRAGMA journal_mode = OFF",
        "PRAGMA main.journal_mode = MEMORY",
        "PRAGMA synchronous = OFF",
        "PRAGMA locking_mode = EXCLUSIVE",
        "PRAGMA schema_version = 1",
        "PRAGMA temp_store_directory = '/'",
        "PRAGMA hard_heap_limit = 1",
        "PRAGMA soft_heap_limit = 1",
        "PRAGMA cache_size = 1",
        "PRAGMA mmap_size = 1",
        "PRAGMA busy_timeout = 1",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA shrink_memory",
        "PRAGMA nonsense",
        "SELECT * FROM pragma_writable_schema",
        "WITH x AS (SELECT * FROM main.pragma_hard_heap_limit) SELECT * FROM x",
    ],
)
def test_refused(connection: apsw.Connection, guard: security.Guard, path: Path, sql: str) -> None:
    before = sorted(path.parent.iterdir())
    for name in ("edit", "readfile", "writefile"):
        connection.create_scalar_function(name, lambda *_: "called")
    with pytest.raises((apsw.AuthError, apsw.SQLError), match=r"not authorized|denied") as refused:
        run(connection, guard, sql)
    assert errors.fields(refused.value).sqlstate == "42501"
    assert sorted(path.parent.iterdir()) == before


def run(connection: apsw.Connection, guard: security.Guard, sql: str) -> list[tuple[object, ...]]:
    """As the server runs a client's statement."""
    if statements.inspect(connection, sql).kind is statements.Kind.VACUUM:
        with guard.vacuum():
            return list(connection.execute(sql))
    return list(connection.execute(sql))


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE VIEW v AS SELECT load_extension('x') AS a",
        "CREATE VIEW v AS SELECT (SELECT max(load_extension('x')) FROM t) AS a",
        "CREATE TRIGGER v AFTER INSERT ON t BEGIN SELECT load_extension('x'); END",
        "CREATE TABLE v (a DEFAULT (load_extension('x')), b)",
        "CREATE TABLE v (a CHECK (load_extension(a)), b)",
        "CREATE TABLE v (b, a AS (load_extension(b)))",
        "CREATE INDEX v ON t (load_extension(b))",
    ],
)
def test_a_file_that_was_prepared_elsewhere_does_not_help(
    connection: apsw.Connection, schema: str
) -> None:
    try:
        connection.execute(schema)
    except apsw.SQLError:
        return  # SQLite itself refuses it there
    guard = security.install(connection)
    sql = "INSERT INTO t VALUES (1, 2)" if "TRIGGER" in schema else "SELECT a FROM v"
    if "DEFAULT" in schema or "CHECK" in schema:
        sql = "INSERT INTO v (b) VALUES (2)"
    with pytest.raises((apsw.AuthError, apsw.SQLError)):
        run(connection, guard, sql)


def test_the_schema_cannot_be_written(connection: apsw.Connection, guard: security.Guard) -> None:
    for sql in (
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE t (z)'",
        "DELETE FROM sqlite_master",
        "INSERT INTO main.sqlite_master VALUES ('table', 'x', 'x', 0, 'CREATE TABLE x (a)')",
    ):
        with pytest.raises(apsw.SQLError, match="may not be modified"):
            run(connection, guard, sql)


def test_shadow_tables_cannot_be_written(
    connection: apsw.Connection, guard: security.Guard
) -> None:
    run(connection, guard, "CREATE VIRTUAL TABLE f USING fts5(a)")
    with pytest.raises(apsw.SQLError, match="may not be modified"):
        run(connection, guard, "UPDATE f_config SET v = 99")


def test_a_client_cannot_attach_while_nothing_vacuums(
    connection: apsw.Connection, guard: security.Guard
) -> None:
    run(connection, guard, "VACUUM")
    with pytest.raises(apsw.AuthError):
        run(connection, guard, "ATTACH '' AS o")
    with guard.vacuum(), pytest.raises(apsw.AuthError):
        connection.execute("ATTACH 'other' AS o")


def test_a_failing_vacuum_ends_its_leave(
    connection: apsw.Connection, guard: security.Guard
) -> None:
    connection.execute("BEGIN")
    with pytest.raises(apsw.SQLError, match="cannot VACUUM from within a transaction"):
        run(connection, guard, "VACUUM")
    with pytest.raises(apsw.AuthError):
        run(connection, guard, "ATTACH '' AS o")


@pytest.mark.parametrize(
    "sql",
    [
        "VACUUM",
        "VACUUM main",
        "CREATE TABLE u (a REFERENCES t, b CHECK (b > 0), c AS (a + b))",
        "CREATE VIEW v AS SELECT * FROM t",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t WHERE 0; END",
        "CREATE VIRTUAL TABLE f USING fts5(a)",
        "CREATE VIRTUAL TABLE f USING fts4(a)",
        "CREATE VIRTUAL TABLE f USING rtree(i, a, b)",
        "ALTER TABLE t RENAME TO t2",
        "ALTER TABLE t RENAME COLUMN b TO c",
        "ALTER TABLE t ADD COLUMN c",
        "ALTER TABLE t DROP COLUMN b",
        "DROP TABLE t",
        "ANALYZE",
        "REINDEX",
        "EXPLAIN QUERY PLAN SELECT * FROM t ORDER BY b",
        "SELECT * FROM t ORDER BY b LIMIT 1",
        "PRAGMA foreign_keys",
        "PRAGMA foreign_key_check(t)",
        "PRAGMA foreign_key_list(t)",
        "PRAGMA table_info(t)",
        "PRAGMA table_xinfo(t)",
        "PRAGMA index_list(t)",
        "PRAGMA index_info(t)",
        "PRAGMA integrity_check",
        "PRAGMA compile_options",
        "PRAGMA user_version = 7",
        "PRAGMA optimize",
        "PRAGMA journal_mode",
        "PRAGMA busy_timeout",
        "SELECT * FROM pragma_table_info('t')",
        "SELECT name FROM pragma_function_list",
        "SELECT * FROM sqlite_temp_schema",
        "UPDATE sqlite_sequence SET seq = 0",
    ],
)
def test_allowed(connection: apsw.Connection, guard: security.Guard, sql: str) -> None:
    run(connection, guard, sql)
    assert run(connection, guard, "PRAGMA integrity_check") == [("ok",)]


def test_pragma_functions_do_not_write_where_they_may_not(
    connection: apsw.Connection, path: Path
) -> None:
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    guard = security.install(reader)
    connection.execute("CREATE INDEX i ON t (b); INSERT INTO t (b) VALUES (1), (2); ANALYZE")
    connection.execute("INSERT INTO t (b) SELECT value FROM json_each('[' || '1,' || '2]')")
    sql = "SELECT * FROM pragma_optimize(0xfffe)"
    assert statements.inspect(reader, sql).is_readonly
    with suppress(apsw.ReadOnlyError):
        run(reader, guard, sql)
    for name in ("foreign_keys", "recursive_triggers", "user_version", "query_only"):
        with pytest.raises(apsw.SQLError, match="too many arguments"):
            run(reader, guard, f"SELECT * FROM pragma_{name}(1)")
    reader.close()


def test_the_server_sets_what_sessions_ask_for(
    connection: apsw.Connection, guard: security.Guard
) -> None:
    wanted = pragmas.DEFAULTS.set("foreign_keys", "1").set("trusted_schema", "0")
    wanted.apply(connection)
    assert run(connection, guard, "PRAGMA foreign_keys") == [(1,)]


def test_a_library_is_not_loaded_by_its_own_functions_either(
    connection: apsw.Connection, guard: security.Guard
) -> None:
    assert guard is not None
    with pytest.raises(apsw.ExtensionLoadingError, match="not authorized"):
        connection.load_extension("nothing")
