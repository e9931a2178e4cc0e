"""What a client should see of its own session: a model of PostgreSQL, as far as test_leaks.py goes.

`Model.run()` does with a `Statement` what a server does on a connection of one's own, and says what
must come back. `choose()` makes up a statement. Nothing here knows of a proxy: that it fits is
tried on direct connections.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Rows = list[list[str | None]]

SCHEMAS: Final = ("public", "s0", "s1", "s2")
"""Each has a table `here`, whose only row is the schema's name in `place`."""

LITERALS: Final[Mapping[str, Sequence[str]]] = {
    "TimeZone": ("'Asia/Tokyo'", "'America/New_York'", "'Etc/GMT+3'"),
    "DateStyle": ("SQL, DMY", "German", "YMD", "'ISO, MDY'", "SQL", "DMY"),
    "IntervalStyle": ("'iso_8601'", "sql_standard", "postgres"),
    "application_name": ("'it''s mine'", "another", "''"),
    "client_encoding": ("LATIN1", "'UTF8'"),
    "standard_conforming_strings": ("off", "on"),
    "search_path": ("s0", "s1, public", "s2, s1"),
    "statement_timeout": ("'70s'", "80000", "0"),
    "lock_timeout": ("90000", "'95s'"),
    "work_mem": ("'65kB'", "66"),
    "extra_float_digits": ("0", "2"),
    "default_transaction_isolation": ("'repeatable read'", "'read committed'"),
    "default_transaction_deferrable": ("on", "off"),
    "my.setting": ("'one'", "'a b'"),
    "my.other": ("one", "two"),
}
"""Values as they may stand behind SET x TO."""

_SHOWN: Final = {
    ("statement_timeout", "80000"): "80s",
    ("lock_timeout", "90000"): "90s",
    ("work_mem", "66"): "66kB",
}
_STYLES: Final = {each.lower(): each for each in ("ISO", "SQL", "Postgres", "German")}

REPORTED: Final = (
    "TimeZone", "DateStyle", "IntervalStyle", "application_name", "client_encoding",
    "standard_conforming_strings", "search_path",
)  # fmt: skip
"""What the server reports to its clients; search_path from PostgreSQL 18 on."""

TABLES: Final = ("t0", "t1")
CURSORS: Final = ("c0", "c1")
SAVEPOINTS: Final = ("a", "b")
SQL_NAMES: Final = ("q0", "q1")
NAMES: Final = ("s0", "s1", "s2")
"""Names clash between clients on purpose: what is behind them differs."""

LOGIN: Final = "app"
ROLE: Final = "other"


class Refused(Exception):
    """The statement fails. The argument: the SQLSTATE."""


_IN_FAILED: Final = ("25P02", "26000", "3B001", "42P05")


@dataclass(frozen=True)
class Reply:
    """What must come back: an error's SQLSTATE or "", rows (None: any), the transaction status.

    In a transaction that has `failed` before, there may be more to complain of than that: which
    complaint comes first is nobody's business.
    """

    sqlstate: str
    rows: Rows | None
    status: str
    failed: bool = False

    def takes(self, sqlstate: str, rows: Rows, status: str) -> bool:
        """Whether this came back. No status: it is not known."""
        if status not in {self.status, ""}:
            return False
        if sqlstate != self.sqlstate:
            return self.failed and sqlstate in _IN_FAILED and self.sqlstate in _IN_FAILED
        return self.rows is None or rows == self.rows


@dataclass(frozen=True)
class Statement:
    """A statement and what it does: `effect` returns its rows, or raises Refused.

    values   of its parameters, as text
    parses   whether Parse by itself can be counted on
    ends     it is taken in a failed transaction
    control  it begins or ends transactions, or cannot be in one
    pins     it may make state that keeps its backend
    once     what it means is decided when it is parsed
    """

    sql: str
    effect: "Callable[[Model], Rows | None]"
    values: tuple[str, ...] = ()
    parses: bool = True
    ends: bool = False
    control: bool = False
    pins: bool = False
    once: bool = False


@dataclass(frozen=True)
class Table:
    """A temporary table of one column."""

    owner: str
    rows: tuple[str, ...]
    on_commit: str


@dataclass(eq=False)
class Cursor:
    """A cursor WITH HOLD. Where it stands is no transaction's affair."""

    left: list[str]


@dataclass
class State:
    """What a rollback undoes."""

    session: dict[str, str]
    local: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    cursors: dict[str, Cursor] = field(default_factory=dict)
    xact_locks: frozenset[int] = frozenset()

    def copy(self) -> "State":
        """What a savepoint keeps."""
        return State(
            dict(self.session),
            dict(self.local),
            dict(self.tables),
            dict(self.cursors),
            self.xact_locks,
        )


class Model:
    """One session. `start`: its settings by name, as they are after the login."""

    def __init__(self, start: Mapping[str, str]) -> None:
        self.start = {**start, "role": "none"}
        self.state = State(dict(self.start))
        self.marks: list[tuple[str, State]] = []  # BEGIN, and the savepoints
        self.failed = False
        self.locks: Counter[int] = Counter()
        self.sql_prepared: dict[str, str] = {}
        self.prepared: dict[str, Statement] = {}
        self.unnamed: Statement | None = None
        self.unnamed_known = True
        self.hidden = False  # it has set what nobody can know the name of

    @property
    def status(self) -> str:
        """As ReadyForQuery says it."""
        return "E" if self.failed else "T" if self.marks else "I"

    @property
    def pinned(self) -> bool:
        """Whether it has what only one backend can have."""
        state = self.state
        listed = (+self.locks, self.sql_prepared, state.tables, state.cursors)
        return self.hidden or any(listed) or any(mark.tables for _, mark in self.marks)

    @property
    def user(self) -> str:
        """current_user."""
        role = self.get("role")
        return LOGIN if role == "none" else role

    def get(self, name: str) -> str:
        """What SHOW says."""
        return self.state.local.get(name, self.state.session[name])

    # What a message does.

    def run(self, *statements: Statement) -> Reply:
        """A Query of these statements, or an extended unit of one."""
        first = statements[0]
        if self.failed and not first.ends:
            return self.refuse("25P02")
        before = self.failed
        implicit = not self.marks and not first.control
        if implicit:
            self.begin()
        rows: Rows | None = []
        try:
            for each in statements:
                found = each.effect(self)
                rows = None if found is None or rows is None else rows + found
        except Refused as refused:
            self.fail()
            if implicit:
                self.rollback()
            return Reply(str(refused), rows, self.status, before)
        if implicit:
            self.commit()
        return self.reply("", rows)

    def reply(self, sqlstate: str = "", rows: Rows | None = None) -> Reply:
        return Reply(sqlstate, rows, self.status)

    def refuse(self, sqlstate: str) -> Reply:
        """An error of the protocol's, which fails the transaction too."""
        before = self.failed
        self.fail()
        return Reply(sqlstate, [], self.status, before)

    def parse(self, name: str, statement: Statement) -> Reply:
        """Parse and Sync."""
        if not name:
            self.unnamed = None
            self.unnamed_known = True
        if self.failed and not statement.ends:
            return self.refuse("25P02")
        if name in self.prepared:
            return self.refuse("42P05")
        if name:
            self.prepared[name] = statement
        else:
            self.unnamed = statement
        return self.reply()

    def execute(self, name: str) -> Reply:
        """Bind, Execute and Sync."""
        statement = self.prepared.get(name) if name else self.unnamed
        if statement is None:
            return self.refuse("26000")
        return self.run(statement)

    def close(self, name: str) -> Reply:
        """Close and Sync."""
        self.prepared.pop(name, None)
        return self.reply()

    # Transactions.

    def begin(self) -> None:
        if not self.marks:
            self.marks = [("", self.state.copy())]

    def fail(self) -> None:
        """An error: what the innermost (sub)transaction did is undone at once."""
        if self.marks:
            self._restore(self.marks[-1][1])
            self.failed = True

    def _restore(self, mark: State) -> None:
        """Go back to it. A cursor that was closed since stays closed."""
        now = self.state.cursors
        self.state = mark.copy()
        self.state.cursors = {
            name: cursor for name, cursor in mark.cursors.items() if now.get(name) is cursor
        }

    def commit(self) -> None:
        if self.failed:
            self.rollback()
            return
        self.marks = []
        state = self.state
        state.local = {}
        state.xact_locks = frozenset()
        for name, table in list(state.tables.items()):
            if table.on_commit == "DROP":
                del state.tables[name]
            elif table.on_commit == "DELETE ROWS":
                state.tables[name] = dataclasses.replace(table, rows=())

    def rollback(self) -> None:
        if self.marks:
            self._restore(self.marks[0][1])
        self.marks = []
        self.failed = False

    def savepoint(self, name: str) -> None:
        if not self.marks:
            raise Refused("25P01")
        self.marks.append((name, self.state.copy()))

    def _find(self, name: str) -> int:
        if not self.marks:
            raise Refused("25P01")
        found = [place for place, (each, _) in enumerate(self.marks) if each == name]
        if not found:
            raise Refused("3B001")
        return found[-1]

    def release(self, name: str) -> None:
        del self.marks[self._find(name) :]

    def rollback_to(self, name: str) -> None:
        place = self._find(name)
        self._restore(self.marks[place][1])
        del self.marks[place + 1 :]
        self.failed = False

    def chain(self, end: Callable[[], None]) -> None:
        if not self.marks:
            raise Refused("25P01")
        end()
        self.begin()

    # Settings.

    def set(self, name: str, value: str, local: bool = False) -> None:
        if local:
            self.state.local[name] = value
        else:
            self.state.session[name] = value
            self.state.local.pop(name, None)

    def reset(self, name: str) -> None:
        self.set(name, self.start[name])

    def reset_all(self) -> None:
        for name in self.start:
            if name != "role":
                self.reset(name)
        self.hidden = self.hidden and bool(self.marks)

    def discard_all(self) -> None:
        if self.marks:
            raise Refused("25001")
        self.state = State(dict(self.start))
        self.hidden = False
        self.locks.clear()
        self.deallocate_all()

    def deallocate_all(self) -> None:
        self.sql_prepared.clear()
        self.prepared.clear()

    def deallocate(self, name: str) -> None:
        if self.prepared.pop(name, None) is None and self.sql_prepared.pop(name, None) is None:
            raise Refused("26000")


# Settings.


def set_one(r: random.Random, model: Model) -> Statement:
    """SET in one of its spellings, or what comes to the same."""
    name = r.choice([*LITERALS, "role"])
    if name == "role":
        return _set_role(r)
    if r.random() < 0.25:
        return _reset(r, name)
    literal = r.choice(LITERALS[name])
    local = r.random() < 0.25
    return r.choice([_set, _set, _set_config, _set_by_parameters, _special, _do])(
        name, literal, local
    )


def _effect(name: str, literal: str, local: bool, says: bool) -> Callable[[Model], Rows]:
    def effect(model: Model) -> Rows:
        value = _SHOWN.get((name, literal), literal.strip("'").replace("''", "'"))
        if name == "DateStyle":
            value = _date_style(value, model.get(name))
        model.set(name, value, local)
        return [[value]] if says else []

    return effect


def _date_style(said: str, before: str) -> str:
    """What is not said stays as it was; German implies an order."""
    style, order = before.split(", ")
    words = said.lower().split(", ")
    for word in words:
        if word in _STYLES:
            style = _STYLES[word]
        else:
            order = word.upper()
    if words == ["german"]:
        order = "DMY"
    return f"{style}, {order}"


def _set(name: str, literal: str, local: bool) -> Statement:
    return Statement(
        f"SET {'LOCAL ' if local else ''}{name} TO {literal}", _effect(name, literal, local, False)
    )


def _set_config(name: str, literal: str, local: bool) -> Statement:
    text = literal if literal.startswith("'") else f"'{literal}'"
    sql = f"SELECT set_config('{name}', {text}, {str(local).lower()})"
    return Statement(sql, _effect(name, literal, local, True))


def _set_by_parameters(name: str, literal: str, local: bool) -> Statement:
    text = literal.strip("'").replace("''", "'")
    return Statement(
        "SELECT set_config($1, $2, $3::text::boolean)",
        _hiding(_effect(name, literal, local, says=True)),
        (name, text, str(local).lower()),
        pins=True,
    )


def _do(name: str, literal: str, local: bool) -> Statement:
    text = literal if literal.startswith("'") else f"'{literal}'"
    call = f"set_config('{name}', {text}, {str(local).lower()})"
    effect = _hiding(_effect(name, literal, local, says=False))
    return Statement(f"DO $$ BEGIN PERFORM {call}; END $$", effect, pins=True)


def _hiding(effect: Callable[[Model], Rows]) -> Callable[[Model], Rows]:
    """It cannot be seen what is set: until RESET ALL or DISCARD ALL it may be anything."""

    def hiding(model: Model) -> Rows:
        model.hidden = True
        return effect(model)

    return hiding


def _special(name: str, literal: str, local: bool) -> Statement:
    """SET TIME ZONE and its kin."""
    scope = "LOCAL " if local else ""
    sql = {
        "TimeZone": f"SET {scope}TIME ZONE {literal}",
        "client_encoding": "SET NAMES 'LATIN1'",
        "search_path": "SET SCHEMA 's2'",
        "default_transaction_isolation": "SET SESSION CHARACTERISTICS AS TRANSACTION"
        f" ISOLATION LEVEL {literal.strip(chr(39)).upper()}",
        "my.setting": f"/* of mine */ set Session  My.Setting = {literal} -- as it should be",
    }.get(name)
    if sql is None:
        return _set(name, literal, local)
    if name != "TimeZone":
        local = False
    literal = {"client_encoding": "LATIN1", "search_path": "s2"}.get(name, literal)
    return Statement(sql, _effect(name, literal, local, says=False))


def _set_role(r: random.Random) -> Statement:
    local = r.random() < 0.25
    sql, value = r.choice([(f"ROLE {ROLE}", ROLE), ("ROLE NONE", "none"), (f"ROLE '{ROLE}'", ROLE)])
    if r.random() < 0.25:
        return Statement("RESET ROLE", _does(lambda model: model.reset("role")))
    if r.random() < 0.2:
        sql = f"SELECT set_config('role', '{value}', {str(local).lower()})"
        return Statement(sql, _does(lambda model: model.set("role", value, local), value))
    scope = "LOCAL " if local else ""
    return Statement(f"SET {scope}{sql}", _does(lambda model: model.set("role", value, local)))


def _reset(r: random.Random, name: str) -> Statement:
    sql = r.choice([f"RESET {name}", f"SET {name} TO DEFAULT"])
    if name == "TimeZone" and r.random() < 0.3:
        sql = r.choice(["RESET TIME ZONE", "SET TIME ZONE DEFAULT", "SET TIME ZONE LOCAL"])
    return Statement(sql, _does(lambda model: model.reset(name)))


def _does(action: Callable[[Model], None], *says: str) -> Callable[[Model], Rows]:
    def effect(model: Model) -> Rows:
        action(model)
        return [[each] for each in says]

    return effect


def reset_all(_r: random.Random, _model: Model) -> Statement:
    return Statement("RESET ALL", _does(lambda model: model.reset_all()))


def refused(r: random.Random, _model: Model) -> Statement:
    """A statement that fails, and changes nothing."""
    sql, sqlstate = r.choice(
        [
            ("SET work_mem = 'lots'", "22023"),
            ("SET TimeZone = 'Nowhere/Land'", "22023"),
            ("SET ROLE nobody_there", "22023"),
            ("SET ROLE postgres", "42501"),
            ("SET SESSION AUTHORIZATION postgres", "42501"),
            ("SELECT set_config('DateStyle', 'wrong', false)", "22023"),
            ("SET no_such_setting = 1", "42704"),
            ("SELECT 1/0", "22012"),
        ]
    )
    return Statement(sql, _refusing(sqlstate))


def _refusing(sqlstate: str) -> Callable[[Model], Rows]:
    def effect(_model: Model) -> Rows:
        raise Refused(sqlstate)

    return effect


# Transactions.


def begin(r: random.Random, model: Model) -> Statement:
    """In a transaction it is no error unless it asks for something."""
    choices = ["BEGIN", "START TRANSACTION", "BEGIN", "begin isolation level repeatable read"]
    sql = r.choice(choices[:3] if model.marks else choices)
    return _control(sql, _does(lambda model: model.begin()))


def end(r: random.Random, model: Model) -> Statement:
    """What may come in a transaction, failed or not."""
    choices = [
        _control("COMMIT", _does(lambda model: model.commit()), ends=True),
        _control("END", _does(lambda model: model.commit()), ends=True),
        _control("ROLLBACK", _does(lambda model: model.rollback()), ends=True),
        _control("COMMIT AND CHAIN", _does(lambda model: model.chain(model.commit)), ends=True),
        _control("ROLLBACK AND CHAIN", _does(lambda model: model.chain(model.rollback)), ends=True),
    ]
    weights = [6, 2, 6, 1, 1]
    if len(model.marks) > 1 or r.random() < 0.1:
        name = r.choice(SAVEPOINTS)
        choices.append(
            _control(
                f"ROLLBACK TO SAVEPOINT {name}",
                _does(lambda model: model.rollback_to(name)),
                ends=True,
            )
        )
        weights.append(10)
    return r.choices(choices, weights)[0]


def savepoint(r: random.Random, _model: Model) -> Statement:
    name = r.choice(SAVEPOINTS)
    if r.random() < 0.3:
        return _control(f"RELEASE {name}", _does(lambda model: model.release(name)))
    return _control(f"SAVEPOINT {name}", _does(lambda model: model.savepoint(name)))


def _control(sql: str, effect: Callable[[Model], Rows], ends: bool = False) -> Statement:
    return Statement(sql, effect, ends=ends, control=True)


# What keeps a backend.


def table(r: random.Random, model: Model) -> Statement:
    """Create, fill, read, drop a temporary table, whether it is there or not."""
    name = r.choice(TABLES)
    if name in model.state.tables and r.random() < 0.8:
        return r.choice([_insert, _select, _drop])(r, name)
    if r.random() < 0.2:
        return r.choice([_insert, _select, _drop])(r, name)
    return _create(r, name)


def _value(r: random.Random) -> str:
    return f"{r.getrandbits(64):x}"


def _create(r: random.Random, name: str) -> Statement:
    value = _value(r)
    on_commit = r.choice(["", "", "", "DROP", "DELETE ROWS"])
    clause = f"ON COMMIT {on_commit} " if on_commit else ""
    word = r.choice(["TEMP", "TEMPORARY", "LOCAL TEMP"])
    sql = f"CREATE {word} TABLE {name} {clause}AS SELECT '{value}'::text AS v"
    if not on_commit and r.random() < 0.3:
        sql = f"SELECT '{value}'::text AS v INTO TEMP {name}"

    def effect(model: Model) -> Rows:
        if name in model.state.tables:
            raise Refused("42P07")
        model.state.tables[name] = Table(model.user, (value,), on_commit)
        return []

    return Statement(sql, effect, pins=True)


def _mine(model: Model, name: str) -> Table:
    found = model.state.tables.get(name)
    if found is None:
        raise Refused("42P01")
    if found.owner == LOGIN and model.user == ROLE:
        raise Refused("42501")
    return found


def _insert(r: random.Random, name: str) -> Statement:
    value = _value(r)

    def effect(model: Model) -> Rows:
        found = _mine(model, name)
        model.state.tables[name] = dataclasses.replace(found, rows=(*found.rows, value))
        return []

    return Statement(f"INSERT INTO {name} VALUES ('{value}')", effect, parses=False)


def _select(_r: random.Random, name: str) -> Statement:
    def effect(model: Model) -> Rows:
        return [[row] for row in _mine(model, name).rows]

    return Statement(f"SELECT v FROM {name}", effect, parses=False)


def _drop(r: random.Random, name: str) -> Statement:
    def effect(model: Model) -> Rows:
        _mine(model, name)
        del model.state.tables[name]
        return []

    if r.random() < 0.2:
        return discard_temp(r)
    return Statement(f"DROP TABLE {name}", effect)


def discard_temp(_r: random.Random) -> Statement:
    return Statement("DISCARD TEMP", _does(lambda model: model.state.tables.clear()))


def cursor(r: random.Random, model: Model) -> Statement:
    """Declare, fetch from, close a cursor WITH HOLD, whether it is there or not."""
    name = r.choice(CURSORS)
    if name in model.state.cursors or r.random() < 0.2:
        if r.random() < 1 / 3:
            return _close(name)
        # That there is nothing to fetch is what a driver would remember of the statement.
        return dataclasses.replace(_fetch(name), once=name not in model.state.cursors)
    values = [_value(r) for _ in range(3)]
    listed = ", ".join(f"('{value}')" for value in values)

    def effect(model: Model) -> Rows:
        if name in model.state.cursors:
            raise Refused("42P03")
        model.state.cursors[name] = Cursor(list(values))
        return []

    sql = f"DECLARE {name} CURSOR WITH HOLD FOR VALUES {listed}"
    return Statement(sql, effect, pins=True)


def _fetch(name: str) -> Statement:
    def effect(model: Model) -> Rows:
        found = model.state.cursors.get(name)
        if found is None:
            raise Refused("34000")
        rows: Rows = [[value] for value in found.left[:2]]
        del found.left[:2]
        return rows

    return Statement(f"FETCH 2 FROM {name}", effect)


def _close(name: str) -> Statement:
    def effect(model: Model) -> Rows:
        if model.state.cursors.pop(name, None) is None:
            raise Refused("34000")
        return []

    return Statement(f"CLOSE {name}", effect)


def lock(r: random.Random, model: Model, first: int) -> Statement:
    """Session advisory locks, of which each session has its own: `first`, and the next ones."""
    held = list(+model.locks)
    key = first + r.randrange(3)
    if held and r.random() < 0.6:
        key = r.choice(held)
        if r.random() < 0.2:
            sql = "SELECT pg_advisory_unlock_all()"
            return Statement(sql, lambda model: model.locks.clear())
        return _unlock(key)
    if r.random() < 0.1:
        return _unlock(key)
    if r.random() < 0.2:
        return _xact_lock(first + 5 + r.randrange(3))

    def effect(model: Model) -> None:
        model.locks[key] += 1

    name = r.choice(["pg_advisory_lock", "pg_try_advisory_lock"])
    return Statement(f"SELECT {name}({key})", effect, pins=True)


def _unlock(key: int) -> Statement:
    def effect(model: Model) -> Rows:
        held = model.locks[key] > 0
        model.locks[key] -= held
        return [[str(held).lower()]]

    return Statement(f"SELECT pg_advisory_unlock({key})::text", effect)


def _xact_lock(key: int) -> Statement:
    def effect(model: Model) -> None:
        model.state.xact_locks |= {key}

    return Statement(f"SELECT pg_advisory_xact_lock({key})", effect)


def sql_prepare(r: random.Random, model: Model) -> Statement:
    """PREPARE, EXECUTE, DEALLOCATE."""
    name = r.choice(SQL_NAMES)
    if name in model.sql_prepared and r.random() < 0.85:
        return r.choice([_sql_execute, _sql_execute, deallocate])(name)
    if r.random() < 0.2:
        return r.choice([_sql_execute, deallocate])(name)
    value = _value(r)

    def effect(model: Model) -> Rows:
        if name in model.sql_prepared:
            raise Refused("42P05")
        model.sql_prepared[name] = value
        return []

    return Statement(f"PREPARE {name} AS SELECT '{value}'::text", effect, pins=True)


def _sql_execute(name: str) -> Statement:
    def effect(model: Model) -> Rows:
        if name not in model.sql_prepared:
            raise Refused("26000")
        return [[model.sql_prepared[name]]]

    return Statement(f"EXECUTE {name}", effect, parses=False)


def deallocate(name: str) -> Statement:
    sql = f"DEALLOCATE {name}"
    return Statement(sql, _does(lambda model: model.deallocate(name)))


# What takes much away at once.


def discard(r: random.Random, _model: Model) -> Statement:
    if r.random() < 0.5:
        return _control("DISCARD ALL", _does(lambda model: model.discard_all()))
    return Statement("DEALLOCATE ALL", _does(lambda model: model.deallocate_all()))


# What the client sees.


def _listed(column: str, rest: str) -> str:
    ordered = f"string_agg({column}, ',' ORDER BY {column} COLLATE \"C\")"
    return f"(SELECT coalesce({ordered}, '') FROM {rest})"


_LOOK: Final = "SELECT " + ", ".join(
    [
        *(f"coalesce(current_setting('{name}', true), '')" for name in LITERALS),
        "current_user::text",
        "session_user::text",
        _listed("relname::text", "pg_class WHERE relnamespace = pg_my_temp_schema()"),
        _listed("name", "pg_cursors WHERE is_holdable AND name <> ''"),
        _listed("name", "pg_prepared_statements WHERE from_sql"),
        _listed("objid::text", "pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"),
    ]
)


def _seen(model: Model) -> Rows:
    state = model.state
    locks = sorted(map(str, {*+model.locks, *state.xact_locks}))
    return [
        [
            *(model.get(name) for name in LITERALS),
            model.user,
            LOGIN,
            ",".join(sorted(state.tables)),
            ",".join(sorted(state.cursors)),
            ",".join(sorted(model.sql_prepared)),
            ",".join(locks),
        ]
    ]


LOOK: Final = Statement(_LOOK, _seen)
"""Everything at once: what is there and should not be is found as well."""


def _place(model: Model) -> Rows:
    first = model.get("search_path").split(", ")[0]
    return [[first if first in SCHEMAS else "public"]]


HERE: Final = Statement("SELECT place FROM here", _place)


def _date(model: Model) -> Rows:
    style, order = model.get("DateStyle").split(", ")
    day_first = order == "DMY"
    said = {
        "ISO": "2024-02-01",
        "German": "01.02.2024",
        "SQL": "01/02/2024" if day_first else "02/01/2024",
        "Postgres": "01-02-2024" if day_first else "02-01-2024",
    }
    return [[said[style]]]


SHARED: Final = (
    LOOK,
    HERE,
    Statement("SELECT make_date(2024, 2, 1)::text", _date),
    Statement("SELECT current_user::text", lambda model: [[model.user]]),
    Statement("SELECT current_setting('TimeZone')", lambda model: [[model.get("TimeZone")]]),
    Statement("SHOW statement_timeout", lambda model: [[model.get("statement_timeout")]]),
)
"""Statements with the same text for everybody, and each client's own answer."""


def look(r: random.Random, model: Model) -> Statement:
    choice = r.random()
    if choice < 0.5:
        return LOOK
    if choice < 0.7:
        return r.choice(SHARED)
    if choice < 0.8 and model.state.tables:
        return _select(r, r.choice(list(model.state.tables)))
    if choice < 0.9:
        # As the server reads it: two backslashes are one where strings do not conform.
        return Statement(
            r"SELECT length('a\\b')::text",
            lambda model: [["4" if model.get("standard_conforming_strings") == "on" else "3"]],
            parses=False,
            once=True,
        )
    name = r.choice([name for name in LITERALS if not name.startswith("my.")])
    return Statement(f"SHOW {name}", lambda model: [[model.get(name)]])


def own(r: random.Random) -> Statement:
    """A statement that is nobody else's."""
    value = _value(r)
    if r.random() < 0.3:
        said = _value(r)
        sql = f"SELECT '{value}' || $1::text"
        return Statement(sql, lambda _model: [[value + said]], (said,))
    return Statement(f"SELECT '{value}'::text", lambda _model: [[value]])


# A statement at random.


def choose(r: random.Random, model: Model, first: int, may_pin: bool, driver: bool) -> Statement:
    """The next statement of a session whose advisory locks are `first` and the next ones.

    Only if it `may_pin` does it make state that keeps its backend. A `driver` that caches prepared
    statements would be surprised if they went away, or meant something else later.
    """
    if model.marks and r.random() < (0.7 if model.failed else 0.15):
        return end(r, model)
    if model.hidden and r.random() < 0.2:
        return reset_all(r, model)
    while True:
        kind = r.choices(
            [set_one, begin, savepoint, look, table, cursor, sql_prepare, refused, reset_all],
            [12, 4, 3 if model.marks else 0.2, 12, 3, 2, 2, 1, 0.5],
        )[0]
        found = kind(r, model)
        if r.random() < 0.1:
            found = lock(r, model, first)
        if not driver and r.random() < 0.02:
            found = discard(r, model)
        if driver and (kind is sql_prepare or found.once):
            continue
        if may_pin or not found.pins:
            return found
