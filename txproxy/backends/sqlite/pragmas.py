"""What a PRAGMA of a client means here, where one connection writes for all of them.

SQLite's own parser reads the PRAGMA (`parser`), these tables judge it:

    SESSION  a setting of the connection: kept per session, applied on the writer before BEGIN
    TUNING   a wish that changes no answer: accepted; busy_timeout is the wait in our queue
    FILE     the file's or the configuration's: answered with what is; a wish changes nothing
    READ     asks about schema, file or library: run like a SELECT
    WRITE    writes into the file: runs on the writer, in a transaction of its own
    REFUSED  whatever is not listed: can break the file or other sessions, or does not exist
"""

from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

import apsw

from txproxy.backends.sqlite import parser


class Kind(Enum):
    """What is to be done with it; see the module."""

    SESSION = "session"
    TUNING = "tuning"
    FILE = "file"
    READ = "read"
    WRITE = "write"
    REFUSED = "refused"


class Verdict(NamedTuple):
    """One PRAGMA: `name` in lower case, `value` None where it only asks.

    `columns` are those of the answer that is ours to give, without rows where it is empty: a
    SESSION, TUNING or FILE PRAGMA. A READ or WRITE one is SQLite's to answer.
    """

    kind: Kind
    name: str
    value: str | None
    schema: str | None
    columns: tuple[str, ...]


class SessionPragmas(NamedTuple):
    """A session's settings of its connection; equal ones may share a transaction of the writer.

    The defaults are SQLite's, and those of a new connection of apsw.
    """

    foreign_keys: bool = False
    """Checks; a no-op in a transaction, also in one that has only begun."""
    defer_foreign_keys: bool = False
    """When they are checked; SQLite clears it at the end of a transaction: so does `ended`."""
    recursive_triggers: bool = False
    """Whether a trigger fires itself, and REPLACE fires delete triggers."""
    ignore_check_constraints: bool = False
    """What may be stored."""
    legacy_alter_table: bool = False
    """What ALTER TABLE rewrites; Django turns it off at connect."""
    case_sensitive_like: bool = False
    """The answers of LIKE. SQLite gives no answer when asked for it."""
    reverse_unordered_selects: bool = False
    """The order of rows, also those that an UPDATE … LIMIT or INSERT … SELECT meets first."""
    trusted_schema: bool = True
    """Off: functions without leave are refused in views, triggers and constraints."""
    cell_size_check: bool = False
    """More checks of pages."""
    query_only: bool = False
    """Ours to keep: its writes are refused with SQLITE_READONLY; never applied."""

    def set(self, name: str, value: str) -> "SessionPragmas":
        """With the SESSION PRAGMA `name` set as SQLite would understand `value`."""
        return self._replace(**{name: parser.is_on(value)})

    def get(self, name: str) -> int | None:
        """What asking for it answers; None: no row."""
        return None if name == "case_sensitive_like" else int(getattr(self, name))

    def ended(self) -> "SessionPragmas":
        """What is left of them after COMMIT or ROLLBACK."""
        return self._replace(defer_foreign_keys=False) if self.defer_foreign_keys else self

    def apply(self, connection: apsw.Connection, applied: "SessionPragmas | None" = None) -> None:
        """Make the connection so; `applied` is what it has now, None on a new one.

        Outside a transaction only: SQLite ignores foreign_keys inside one. apsw.Error: as any
        statement.
        """
        before = applied or DEFAULTS
        if self == before:
            return
        for name in _APPLIED:
            value = getattr(self, name)
            if value != getattr(before, name):
                connection.execute(f"PRAGMA {name} = {int(value)}").close()


DEFAULTS: Final = SessionPragmas()
_SESSION: Final = frozenset(SessionPragmas._fields)
_APPLIED: Final = tuple(sorted(_SESSION - {"query_only"}))

# Cost, memory and warnings of a connection: no statement answers differently.
_TUNING: Final = frozenset(
    {
        "analysis_limit",
        "automatic_index",
        "busy_timeout",
        "cache_size",
        "cache_spill",
        "empty_result_callbacks",
        "mmap_size",
        "read_uncommitted",
        "shrink_memory",
        "soft_heap_limit",
        "temp_store",
        "threads",
    }
)
# Durability, locks and layout. Some take effect only in an empty file or at VACUUM, for all.
_FILE: Final = frozenset(
    {
        "auto_vacuum",
        "checkpoint_fullfsync",
        "encoding",
        "fullfsync",
        "journal_mode",
        "journal_size_limit",
        "locking_mode",
        "max_page_count",
        "page_size",
        "secure_delete",
        "synchronous",
        "wal_autocheckpoint",
        "wal_checkpoint",
    }
)
# With an argument as without.
_READ: Final = frozenset(
    {
        "collation_list",
        "compile_options",
        "data_version",
        "database_list",
        "foreign_key_check",
        "foreign_key_list",
        "freelist_count",
        "function_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "module_list",
        "page_count",
        "pragma_list",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
    }
)
# Asked they read, set they write.
_HEADER: Final = frozenset({"application_id", "user_version"})
# Asked they read, set they are refused: a wrong schema_version corrupts, and what statements give
# is the same for all sessions.
_ASKED: Final = frozenset(
    {"count_changes", "full_column_names", "schema_version", "short_column_names"}
)
_WRITE: Final = frozenset({"incremental_vacuum", "optimize"})

# The answer's columns where they are not the PRAGMA's name.
_COLUMNS: Final = {
    "busy_timeout": ("timeout",),
    "case_sensitive_like": (),
    "shrink_memory": (),
    "wal_checkpoint": ("busy", "log", "checkpointed"),
}
# Those that answer a row when they are set, too.
_ANSWERS_WISH: Final = frozenset(
    {
        "analysis_limit",
        "busy_timeout",
        "journal_mode",
        "journal_size_limit",
        "locking_mode",
        "max_page_count",
        "mmap_size",
        "secure_delete",
        "soft_heap_limit",
        "threads",
        "wal_autocheckpoint",
        "wal_checkpoint",
    }
)


def classify(name: str, value: str | None) -> Kind:
    """What kind a PRAGMA is, of its name in any case and its value."""
    name = name.lower()
    if name in _READ:
        return Kind.READ
    if name in _SESSION:
        return Kind.SESSION
    if name in _TUNING:
        return Kind.TUNING
    if name in _FILE:
        return Kind.FILE
    if name in _HEADER:
        return Kind.READ if value is None else Kind.WRITE
    if name in _ASKED:
        return Kind.READ if value is None else Kind.REFUSED
    if name in _WRITE:
        return Kind.WRITE
    return Kind.REFUSED


def verdict(action: parser.Action) -> Verdict:
    """The verdict on what the authorizer was told (code SQLITE_PRAGMA)."""
    name, value = action.first.lower(), action.second
    kind = classify(name, value)
    columns: tuple[str, ...] = ()
    if kind in {Kind.SESSION, Kind.TUNING, Kind.FILE} and (value is None or name in _ANSWERS_WISH):
        columns = _COLUMNS.get(name, (name,))
    return Verdict(kind, name, value, action.schema, columns)


@lru_cache(maxsize=1024)
def judge(sql: str) -> Verdict:
    """The verdict on a text whose first statement is a PRAGMA.

    ValueError: it is not. apsw.SQLError: SQLite cannot read it. A setting behind EXPLAIN is
    refused: it would take effect when it is prepared.
    """
    action = parser.parse(sql).action
    if action is None or action.code != apsw.SQLITE_PRAGMA:
        raise ValueError("not a PRAGMA")
    judged = verdict(action)
    if judged.kind is not Kind.READ and parser.words(sql, 1) == ("EXPLAIN",):
        return judged._replace(kind=Kind.REFUSED, columns=())
    return judged


def may_run(name: str, value: str | None) -> bool:
    """Whether a connection that clients' statements reach may prepare it at all.

    Settings of a session pass, for `SessionPragmas.apply`: those of clients are judged before.
    Table-valued pragma_…() functions come here when they run: those that take an argument read,
    but for optimize, which writes what the connection lets it write.
    """
    kind = classify(name, value)
    if kind in {Kind.TUNING, Kind.FILE}:
        return value is None and name.lower() not in {"shrink_memory", "wal_checkpoint"}
    return kind is not Kind.REFUSED
