"""PRAGMAs by table, and what a session keeps of them."""

from pathlib import Path

import apsw
import pytest

from txproxy.backends.sqlite import pragmas
from txproxy.backends.sqlite.pragmas import DEFAULTS, Kind, SessionPragmas, judge


@pytest.mark.parametrize(
    ("sql", "kind", "name", "value"),
    [
        ("PRAGMA foreign_keys", Kind.SESSION, "foreign_keys", None),
        ("PRAGMA foreign_keys = ON", Kind.SESSION, "foreign_keys", "ON"),
        ("pragma Foreign_Keys(off)", Kind.SESSION, "foreign_keys", "off"),
        ("PRAGMA main . \"foreign_keys\" = '1'", Kind.SESSION, "foreign_keys", "1"),
        ("/* x */ PRAGMA -- y\n busy_timeout = +5000", Kind.TUNING, "busy_timeout", "5000"),
        ("PRAGMA mmap_size = -1", Kind.TUNING, "mmap_size", "-1"),
        ("PRAGMA journal_mode = WAL", Kind.FILE, "journal_mode", "WAL"),
        ("PRAGMA synchronous = OFF", Kind.FILE, "synchronous", "OFF"),
        ("PRAGMA locking_mode = EXCLUSIVE", Kind.FILE, "locking_mode", "EXCLUSIVE"),
        ("PRAGMA wal_checkpoint(TRUNCATE)", Kind.FILE, "wal_checkpoint", "TRUNCATE"),
        ("PRAGMA table_info(`a b`)", Kind.READ, "table_info", "a b"),
        ("PRAGMA foreign_key_check", Kind.READ, "foreign_key_check", None),
        ("PRAGMA user_version", Kind.READ, "user_version", None),
        ("PRAGMA user_version = 3", Kind.WRITE, "user_version", "3"),
        ("PRAGMA schema_version", Kind.READ, "schema_version", None),
        ("PRAGMA schema_version = 3", Kind.REFUSED, "schema_version", "3"),
        ("PRAGMA count_changes = 1", Kind.REFUSED, "count_changes", "1"),
        ("PRAGMA short_column_names = 0", Kind.REFUSED, "short_column_names", "0"),
        ("PRAGMA optimize", Kind.WRITE, "optimize", None),
        ("PRAGMA writable_schema = 1", Kind.REFUSED, "writable_schema", "1"),
        ("PRAGMA [writable_schema]", Kind.REFUSED, "writable_schema", None),
        ("PRAGMA hard_heap_limit = 1", Kind.REFUSED, "hard_heap_limit", "1"),
        ("PRAGMA temp_store_directory = 'x'", Kind.REFUSED, "temp_store_directory", "x"),
        ("PRAGMA nonsense", Kind.REFUSED, "nonsense", None),
    ],
)
def test_verdicts(sql: str, kind: Kind, name: str, value: str | None) -> None:
    found = judge(sql)
    assert (found.kind, found.name, found.value) == (kind, name, value)


def test_only_pragmas_are_judged() -> None:
    with pytest.raises(ValueError, match="not a PRAGMA"):
        judge("SELECT 'PRAGMA foreign_keys'")


def test_every_pragma_of_sqlite_has_been_thought_of() -> None:
    """A new one of SQLite's is refused; this says so, that somebody may decide."""
    refused = {
        "hard_heap_limit",  # the process'
        "temp_store_directory",  # the process'
        "writable_schema",
    }
    connection = apsw.Connection(":memory:")
    names = {str(name) for (name,) in connection.execute("SELECT name FROM pragma_pragma_list")}
    assert {name for name in names if pragmas.classify(name, None) is Kind.REFUSED} == refused


def test_answers_have_the_columns_that_sqlite_gives(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "file"))  # in memory there is no mmap_size
    names = [str(name) for (name,) in connection.execute("SELECT name FROM pragma_pragma_list")]
    for name in names:
        for sql in (f"PRAGMA {name}", f"PRAGMA {name} = 1"):
            found = judge(sql)
            if found.kind not in {Kind.SESSION, Kind.TUNING, Kind.FILE}:
                continue
            if name == "encoding" and found.value:
                continue  # 1 is none
            cursor = connection.execute(sql)
            answered = cursor.fetchone() is not None
            columns = tuple(column[0] for column in cursor.get_description()) if answered else ()
            assert found.columns == columns, sql


def test_a_new_connection_has_the_defaults() -> None:
    connection = apsw.Connection(":memory:")
    for name in SessionPragmas._fields:
        if (answer := DEFAULTS.get(name)) is not None:
            assert connection.pragma(name) == answer


@pytest.mark.parametrize(
    "value",
    ["1", "0", "on", "OFF", "yes", "no", "TRUE", "false", "2", "256", "257", "-1", "extra", "full",
     "''", "'on '", "1e1", "0x1", "9999999999", "'1x'", "none"],
)  # fmt: skip
def test_booleans_are_read_as_sqlite_reads_them(value: str) -> None:
    connection = apsw.Connection(":memory:")
    sql = f"PRAGMA foreign_keys = {value}"
    connection.execute(sql)
    parsed = judge(sql).value
    assert parsed is not None
    assert DEFAULTS.set("foreign_keys", parsed).get("foreign_keys") == connection.pragma(
        "foreign_keys"
    )


def test_what_differs_is_applied_and_taken_back() -> None:
    connection = apsw.Connection(":memory:")
    traced: list[str] = []
    wanted = DEFAULTS.set("foreign_keys", "1").set("case_sensitive_like", "1")
    wanted.apply(connection)
    assert connection.pragma("foreign_keys") == 1
    assert connection.execute("SELECT 'a' LIKE 'A'").fetchall() == [(0,)]

    def trace(_: apsw.Cursor, sql: str, __: object) -> bool:
        traced.append(sql)
        return True

    connection.exec_trace = trace
    wanted.apply(connection, wanted)
    other = wanted.set("foreign_keys", "0").set("reverse_unordered_selects", "yes")
    other.apply(connection, wanted)
    assert traced == ["PRAGMA foreign_keys = 0", "PRAGMA reverse_unordered_selects = 1"]


def test_equal_settings_are_equal() -> None:
    once = DEFAULTS.set("foreign_keys", "1").set("foreign_keys", "off")
    assert once == DEFAULTS
    assert hash(once) == hash(DEFAULTS)


def test_deferred_keys_end_with_the_transaction() -> None:
    deferred = DEFAULTS.set("defer_foreign_keys", "1")
    assert deferred.ended() == DEFAULTS
    assert DEFAULTS.ended() is DEFAULTS
