"""What a statement is: where it ends, what it does, what it takes and gives.

SQLite itself says so. Transaction statements and PRAGMAs are recognised by their first word and
read by its parser without a database (`parser`); all others are prepared on the connection
given, which needs the schema and never runs them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import apsw
import apsw.ext

from txproxy.backends.sqlite import parser, pragmas, programs

EXPLAIN: Final = "EXPLAIN"
"""The verb of all that begins with it."""


class Kind(Enum):
    """What the transaction table has to know."""

    EMPTY = "empty"
    READ = "read"
    WRITE = "write"
    DDL = "ddl"
    VACUUM = "vacuum"
    PRAGMA = "pragma"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    RELEASE = "release"
    ROLLBACK_TO = "rollback to"


class Begins(Enum):
    """How a BEGIN takes the lock."""

    DEFERRED = "deferred"
    IMMEDIATE = "immediate"
    EXCLUSIVE = "exclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement; `rest` is what follows it in the text it was found in.

    `is_readonly` is SQLite's opinion and true of BEGIN and many a setting. `columns` are name and
    declared type, "" for none. `is_short`: see `programs`. `name` is a savepoint's.
    `parameter_names` come without their first character, None for a plain `?`.
    """

    text: str
    rest: str = ""
    verb: str = ""
    kind: Kind
    is_readonly: bool = True
    is_short: bool = False
    begins: Begins | None = None
    name: str = ""
    pragma: pragmas.Verdict | None = None
    columns: tuple[tuple[str, str], ...] = ()
    parameters: int = 0
    parameter_names: tuple[str | None, ...] = ()


_CONTROL: Final = frozenset(
    {"BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "PRAGMA"}
)
_DDL: Final = frozenset({"ALTER", "ANALYZE", "ATTACH", "CREATE", "DETACH", "DROP", "REINDEX"})
_READS: Final = frozenset({"SELECT", "VALUES", "WITH"})
_WRITES: Final = frozenset({"INSERT", "REPLACE", "UPDATE", "DELETE"})
_TRANSACTION: Final = {"BEGIN": Kind.BEGIN, "COMMIT": Kind.COMMIT, "ROLLBACK": Kind.ROLLBACK}
_SAVEPOINT: Final = {
    "BEGIN": Kind.SAVEPOINT,
    "RELEASE": Kind.RELEASE,
    "ROLLBACK": Kind.ROLLBACK_TO,
}
_BEGINS: Final = {"IMMEDIATE": Begins.IMMEDIATE, "EXCLUSIVE": Begins.EXCLUSIVE}
_WITH_WRITES: Final = {
    apsw.SQLITE_INSERT: "INSERT",
    apsw.SQLITE_UPDATE: "UPDATE",
    apsw.SQLITE_DELETE: "DELETE",
}
_ANSWERED_BY_SQLITE: Final = frozenset({pragmas.Kind.READ, pragmas.Kind.WRITE})
_PROGRAMS: Final = frozenset({Kind.READ, Kind.WRITE})
_ADJECTIVES: Final = frozenset({"UNIQUE", "VIRTUAL", "TEMP", "TEMPORARY"})
# An EXPLAIN only reads, but what it explains may take effect when it is prepared.
_EXPLAINED: Final = (EXPLAIN, "QUERY", "PLAN")


def control(sql: str) -> Statement | None:
    """The first statement of a text, if it controls a transaction or is a PRAGMA; else None.

    Asks no database: SQL that SQLite cannot read raises apsw.SQLError.
    """
    words = parser.words(sql, 4)
    if words[:1] == (EXPLAIN,):
        explained = words[3:] if words[:3] == _EXPLAINED else words[1:]
        if explained[:1] != ("PRAGMA",):
            return None
    elif not words or words[0] not in _CONTROL:
        return None
    parsed = parser.parse(sql)
    action = parsed.action
    if action is None:
        return None
    if action.code == apsw.SQLITE_PRAGMA:
        judged = pragmas.judge(parsed.text)
        return Statement(
            text=parsed.text,
            rest=parsed.rest,
            verb=words[0],
            kind=Kind.PRAGMA,
            is_readonly=judged.kind is not pragmas.Kind.WRITE,
            pragma=judged,
            columns=tuple((column, "") for column in judged.columns),
        )
    if action.code == apsw.SQLITE_SAVEPOINT:
        kind = _SAVEPOINT[action.first]
        name = action.second or ""
        return Statement(text=parsed.text, rest=parsed.rest, verb=words[0], kind=kind, name=name)
    kind = _TRANSACTION[action.first]
    begins = _begins(parsed.text) if kind is Kind.BEGIN else None
    verb = action.first  # END is COMMIT
    return Statement(text=parsed.text, rest=parsed.rest, verb=verb, kind=kind, begins=begins)


def inspect(connection: apsw.Connection, sql: str) -> Statement:
    """The first statement of a text, EMPTY where there is none.

    On a connection whose schema it needs: apsw.SQLError and apsw.AuthError as preparing raises
    them; ValueError: it contains a NUL character. The columns hold as long as the schema does.
    """
    found = control(sql)
    if found is not None and (found.pragma is None or found.pragma.kind not in _ANSWERED_BY_SQLITE):
        return found
    details = apsw.ext.query_info(connection, sql)
    columns = tuple((column[0], column[1] or "") for column in details.description)
    if found is None:
        verb, kind = _classify(connection, details)
    else:
        verb, kind = found.verb, found.kind
    return Statement(
        text=details.first_query,
        rest=details.query_remaining or "",
        verb=verb,
        kind=kind,
        is_readonly=details.is_readonly,
        is_short=kind in _PROGRAMS and _is_short(connection, details),
        pragma=found.pragma if found else None,
        columns=columns,
        parameters=details.bindings_count,
        parameter_names=details.bindings_names,
    )


def _is_short(connection: apsw.Connection, details: apsw.ext.QueryDetails) -> bool:
    if details.is_explain:
        return False
    # Not by apsw.ext, which keeps the program: `running` says what is wrong with that.
    unbound = (None,) * details.bindings_count
    rows = connection.execute(details.first_query, unbound, can_cache=False, explain=1)
    return programs.is_short([programs.Instruction(*row[:4]) for row in rows])


def refresh(connection: apsw.Connection) -> None:
    """Have the connection notice that another one has changed the schema.

    Preparing does not, only running something. apsw.BusyError: another process has the lock.
    """
    connection.execute("SELECT 1 FROM sqlite_schema LIMIT 0").close()


def split(connection: apsw.Connection, sql: str) -> Iterator[tuple[str, str]]:
    """The statements of a text, each with what follows it; empty ones are left out.

    Ask for the next one after the last one has run: it may need the table that this one makes.
    Raises as `inspect` does.
    """
    while sql:
        found = inspect(connection, sql)
        if found.kind is not Kind.EMPTY:
            yield found.text, found.rest
        sql = found.rest


def tag(statement: Statement, changes: int, lastrowid: int, rows: int) -> str:
    """What CommandComplete says of a statement that has run.

    `changes` and `lastrowid` are sqlite3_changes() and sqlite3_last_insert_rowid(), `rows` are
    those delivered. PostgreSQL's place for an OID in INSERT is the row id.
    """
    if statement.kind is Kind.WRITE:
        if statement.verb in {"INSERT", "REPLACE"}:
            return f"INSERT {lastrowid} {changes}"
        return f"{statement.verb} {changes}"
    if statement.columns:
        return f"SELECT {rows}"
    if statement.verb in {"ALTER", "CREATE", "DROP"}:
        words = [word for word in parser.words(statement.text, 3) if word not in _ADJECTIVES]
        return " ".join(words[:2])
    return statement.verb


def _begins(sql: str) -> Begins:
    return _BEGINS.get(parser.words(sql, 2)[-1], Begins.DEFERRED)


def _classify(connection: apsw.Connection, details: apsw.ext.QueryDetails) -> tuple[str, Kind]:
    if not details.has_vdbe:
        return "", Kind.EMPTY
    verb = (parser.words(details.first_query, 1) or ("",))[0]
    if details.is_explain:
        return verb, Kind.READ
    if verb in _READS and details.is_readonly:
        return verb, Kind.READ
    if verb == "WITH":
        return _what_with_writes(connection, details.first_query), Kind.WRITE
    if verb in _WRITES:
        return verb, Kind.WRITE
    if verb == "VACUUM":
        return verb, Kind.VACUUM
    return verb, Kind.DDL


def _what_with_writes(connection: apsw.Connection, sql: str) -> str:
    # The authorizer hears of it first, and of what triggers do by their names.
    for action in apsw.ext.query_info(connection, sql, actions=True).actions or ():
        if action.action in _WITH_WRITES and not action.trigger_or_view:
            return _WITH_WRITES[action.action]
    return "WITH"
