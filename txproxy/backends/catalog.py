"""What the server is asked before a sleeping transaction's backend is let go.

All of it on a connection of our own, an asyncpg connection in autocommit that belongs to the
caller, to the database in which the transactions are; never within a client's transaction. Nothing
here waits for locks on anything but the catalogs themselves. A question that is not answered in the
caller's time means: not eligible.

Needs no rights but to connect. What a backend is doing is shown to its own role, and to members of
pg_read_all_stats: others are told that they may not know, and the transaction is not eligible.

PostgreSQL 13 to 18.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from txproxy.core.eligible import (
    Catalog,
    Function,
    Hazard,
    Relations,
    clock_why,
    function_why,
    functions_in,
    hidden_why,
    judge,
)

_NAMES_LIMIT: Final = 20_000  # functions outside pg_catalog
_HAZARDS_LIMIT: Final = 1000
_TREE_LIMIT: Final = 1 << 20  # characters of a view's expression
_RELATIONS_LIMIT: Final = 1000  # relations that one transaction has read
_CHUNK: Final = 200  # relations asked for at once

_OPERATOR: Final = re.compile(r" (=|<>|<=?|>=?|-|\|\|) ")


def _sql(text: str) -> str:
    """The same with its parts filled in, and each operator between spaces by its full name.

    16384 is FirstNormalObjectId: what is below came with the server.
    """
    for name, part in _PARTS.items():
        text = text.replace(name, part)
    return _OPERATOR.sub(r" OPERATOR(pg_catalog.\1) ", text)


_PARTS: Final = {
    # A function with its schema and language.
    "@proc": """(pg_catalog.pg_proc AS p
        JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
        JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang)""",
    # The fields of Function.
    "@function": """n.nspname, p.proname, p.oid < 16384 AND n.nspname = 'pg_catalog',
        p.provolatile = 'v', p.provolatile <> 'v' AND p.prokind = 'f' AND (p.oid < 16384
            OR l.lanname = ANY (ARRAY['internal', 'c']::pg_catalog.name[]) OR @extension),
        p.pronargs::pg_catalog.int4""",
    "@extension": """EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.objid = p.oid
        AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.deptype = 'e')""",
    "@count": """pg_catalog.count(*) AS number,
        pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8) AS changes""",
}

# Whether anything has changed of what Catalog and Relations say, at the cost of reading the users'
# own rows: an update gives a row another xmin, and a transaction's id does not come twice.
_STAMP: Final = _sql("""
SELECT pg_catalog.string_agg(pg_catalog.concat(number, '.', changes), ' ') FROM (
    SELECT @count FROM pg_catalog.pg_proc WHERE oid >= 16384
    UNION ALL SELECT @count FROM pg_catalog.pg_operator WHERE oid >= 16384
    UNION ALL SELECT @count FROM pg_catalog.pg_cast WHERE oid >= 16384
    UNION ALL SELECT @count FROM pg_catalog.pg_rewrite WHERE oid >= 16384
    UNION ALL SELECT @count FROM pg_catalog.pg_policy
    UNION ALL SELECT @count FROM pg_catalog.pg_namespace
    UNION ALL SELECT @count FROM pg_catalog.pg_constraint WHERE conrelid = 0) AS changed
""")

_BUILTIN: Final = _sql("""
SELECT p.proname, pg_catalog.bool_or(p.provolatile = 'v'), pg_catalog.bool_or(
    p.provolatile = 'v' AND p.pronargs - p.pronargdefaults = 1
    AND t.typtype = 'p' AND t.typname <> 'internal')
FROM pg_catalog.pg_proc AS p LEFT JOIN pg_catalog.pg_type AS t ON t.oid = p.proargtypes[0]
WHERE p.oid < 16384 AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
GROUP BY p.proname
""")

# Trigger functions cannot be called. A row is an argument for parameters of its own type, of any
# type, and of what the users' casts make of it.
_OUTSIDE: Final = _sql("""
SELECT p.proname, n.nspname,
    pg_catalog.bool_or(p.pronargs > 0
        AND (p.provariadic <> 0 OR p.pronargs - p.pronargdefaults <= 1)
        AND (t.typtype = ANY (ARRAY['c', 'p', 'd']::pg_catalog."char"[])
            OR EXISTS (SELECT FROM pg_catalog.pg_cast WHERE oid >= 16384 AND casttarget = t.oid)))
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
LEFT JOIN pg_catalog.pg_type AS t ON t.oid = p.proargtypes[0]
WHERE (p.oid >= 16384 OR n.nspname <> 'pg_catalog')
    AND p.prorettype <> ALL (ARRAY['pg_catalog.trigger',
        'pg_catalog.event_trigger']::pg_catalog.regtype[]::pg_catalog.oid[])
    AND NOT (p.provolatile = 'i' AND @extension AND EXISTS (
        SELECT FROM pg_catalog.pg_proc AS b WHERE b.proname = p.proname AND b.oid < 16384
            AND b.pronamespace = 'pg_catalog'::pg_catalog.regnamespace))
GROUP BY p.proname, n.nspname LIMIT $1
""")

_HIDDEN: Final = _sql("""
SELECT 'the operator ' || o.oprname, @function
FROM pg_catalog.pg_operator AS o JOIN @proc ON p.oid = o.oprcode WHERE o.oid >= 16384
UNION ALL
SELECT pg_catalog.concat('the cast from ', pg_catalog.format_type(c.castsource, NULL), ' to ',
    pg_catalog.format_type(c.casttarget, NULL)), @function
FROM pg_catalog.pg_cast AS c JOIN @proc ON p.oid = c.castfunc WHERE c.oid >= 16384
""")
_DOMAINS: Final = _sql("""
SELECT 'the domain ' || t.typname, pg_catalog.left(c.conbin::pg_catalog.text, $1)
FROM pg_catalog.pg_constraint AS c JOIN pg_catalog.pg_type AS t ON t.oid = c.contypid
WHERE c.conrelid = 0 AND c.conbin IS NOT NULL
""")
_FUNCTIONS: Final = _sql("SELECT p.oid, @function FROM @proc WHERE p.oid = ANY ($1)")


async def stamp(connection: Any) -> str:
    """What changes when what was learned of this database may have changed."""
    found: str = await connection.fetchval(_STAMP)
    return found


async def load(connection: Any) -> Catalog:
    """What there is in this database. Raises whatever asyncpg raises, as do all of these."""
    now = await stamp(connection)
    builtin: dict[str, bool] = {}
    outside: dict[str, list[str]] = {}
    methods: set[str] = set()
    for name, is_volatile, is_method in await connection.fetch(_BUILTIN):
        builtin[name] = is_volatile
        if is_method:
            methods.add(name)
    rows = await connection.fetch(_OUTSIDE, _NAMES_LIMIT + 1)
    for name, schema, is_method in rows:
        outside.setdefault(name, []).append(schema)
        if is_method:
            methods.add(name)
    hazards = await _hazards(connection)
    if len(rows) > _NAMES_LIMIT:
        hazards.append(Hazard("the number of functions", f"there are more than {_NAMES_LIMIT}"))
    return Catalog(now, builtin, outside, methods, hazards)


async def _hazards(connection: Any) -> list[Hazard]:
    found: list[Hazard] = []
    for what, *fields in await connection.fetch(_HIDDEN):
        _add(found, what, Function(*fields))
    domains = await connection.fetch(_DOMAINS, _TREE_LIMIT + 1)
    functions = await _functions(connection, [tree for _, tree in domains])
    for what, tree in domains:
        why = _tree_why(tree)
        if why:
            found.append(Hazard(what, why))
        for oid in functions_in(tree):
            if oid in functions:
                _add(found, what, functions[oid])
            else:
                found.append(Hazard(what, _GONE))
    if len(found) > _HAZARDS_LIMIT:
        found[_HAZARDS_LIMIT:] = [Hazard("their number", "there is more of the kind")]
    return found


def _add(found: list[Hazard], what: str, function: Function) -> None:
    why = hidden_why(function)
    if why:
        found.append(Hazard(what, why, f"{function.schema}.{function.name}"))


_GONE: Final = "a function in it is not there any more"


async def _functions(connection: Any, trees: Iterable[str]) -> dict[int, Function]:
    """The functions that these expressions call, by oid."""
    oids = {oid for tree in trees for oid in functions_in(tree)}
    if not oids:
        return {}
    rows = await connection.fetch(_FUNCTIONS, list(oids))
    return {oid: Function(*fields) for oid, *fields in rows}


def _tree_why(tree: str) -> str:
    if len(tree) > _TREE_LIMIT:
        return "it is too long to be read"
    return clock_why(tree)


# Relations. What a view, a policy or a partitioned table leads to is locked as well when it is
# read, to the end of the transaction, and so is classified by itself.

_RELATIONS: Final = _sql("""
SELECT c.oid, c.relname, c.relkind::pg_catalog.text, c.relpersistence::pg_catalog.text, ARRAY(
    SELECT pg_catalog.left(r.ev_action::pg_catalog.text, $2) FROM pg_catalog.pg_rewrite AS r
        WHERE r.ev_class = c.oid AND r.ev_type = '1' AND c.relkind = 'v'
    UNION ALL SELECT pg_catalog.left(p.polqual::pg_catalog.text, $2)
        FROM pg_catalog.pg_policy AS p WHERE p.polrelid = c.oid AND p.polqual IS NOT NULL
            AND p.polcmd = ANY (ARRAY['r', '*']::pg_catalog."char"[]))
FROM pg_catalog.pg_class AS c WHERE c.oid = ANY ($1)
""")


async def relations(
    connection: Any, oids: Collection[int], allowed: Collection[str] = ()
) -> dict[int, str]:
    """Why who has read each of these is not eligible, or ""; those that are not there are left out.

    `allowed` as in judge().
    """
    found: dict[int, str] = {}
    asked = sorted(oids)
    for start in range(0, len(asked), _CHUNK):
        rows = await connection.fetch(_RELATIONS, asked[start : start + _CHUNK], _TREE_LIMIT + 1)
        functions = await _functions(connection, [tree for row in rows for tree in row[4]])
        for oid, name, kind, persistence, trees in rows:
            why = _relation_why(name, kind, persistence)
            if not why:
                why = _trees_why(trees, functions, allowed)
            found[oid] = f"it has read {name}: {why}" if why else ""
    return found


def _relation_why(name: str, kind: str, persistence: str) -> str:
    if kind == "f":
        return "a foreign table"
    if persistence == "t":
        return "a temporary table"
    return "what the server knows of itself" if name.startswith("pg_stat") else ""


def _trees_why(
    trees: Iterable[str], functions: Mapping[int, Function], allowed: Collection[str]
) -> str:
    for tree in trees:
        why = _tree_why(tree)
        if why:
            return why
        for oid in functions_in(tree):
            why = function_why(functions[oid], allowed) if oid in functions else _GONE
            if why:
                return why
    return ""


# Backends.

# With the stamp, which saves a question; so at least one row, whatever has become of the backends.
_ACTIVITY: Final = _sql(
    """
SELECT now.stamp, a.pid, a.state, a.backend_xid IS NULL, a.backend_xmin IS NULL
FROM (@stamp) AS now(stamp) LEFT JOIN (
    SELECT * FROM pg_catalog.pg_stat_get_activity(NULL)
    WHERE pid = ANY ($1) AND datid = (
        SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
) AS a ON true
""".replace("@stamp", _STAMP)
)
_LOCKS: Final = _sql("""
SELECT pid,
    pg_catalog.min(pg_catalog.concat(mode, ' on a ', locktype)) FILTER (WHERE NOT is_fine),
    (pg_catalog.array_agg(DISTINCT relation) FILTER (WHERE is_fine))[1:$2],
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp())
FROM (SELECT pid, mode, locktype, relation, granted AND (
        (locktype = 'relation' AND mode = 'AccessShareLock')
        OR (locktype = 'virtualxid' AND mode = 'ExclusiveLock')) AS is_fine
    FROM pg_catalog.pg_lock_status() WHERE pid = ANY ($1)) AS lock
GROUP BY pid
""")

_UNSAID: Final = "the server does not say what it holds"


async def activity(connection: Any, pids: Collection[int]) -> tuple[str, dict[int, str]]:
    """The stamp, and why each of these backends cannot be let go as it is, or "". Cheap."""
    found = dict.fromkeys(pids, _UNSAID)
    rows = await connection.fetch(_ACTIVITY, list(pids))
    for _, pid, state, no_xid, no_xmin in rows:
        if pid is None:
            continue
        if state is None:
            found[pid] = "pg_read_all_stats is needed to see what it does"
        elif state != "idle in transaction":
            found[pid] = f"its server connection is {state}"
        elif not no_xid:
            found[pid] = "it has written: it has a transaction id"
        elif not no_xmin:
            found[pid] = "it holds a snapshot"
        else:
            found[pid] = ""
    return rows[0][0], found


async def locks(connection: Any, pids: Collection[int]) -> tuple[dict[int, str | set[int]], float]:
    """For each backend why its locks do not let it go, or the oids of what it has read; and how
    many seconds the server took.

    Not cheap: the server goes through the locks of all backends.
    """
    found: dict[int, str | set[int]] = dict.fromkeys(pids, _UNSAID)
    took = 0.0
    if not found:
        return found, took
    for pid, other, read, seconds in await connection.fetch(
        _LOCKS, list(pids), _RELATIONS_LIMIT + 2
    ):
        if other is not None:
            found[pid] = f"it holds a lock: {other}"
        elif len(read) > _RELATIONS_LIMIT + 1:
            found[pid] = f"it has read more than {_RELATIONS_LIMIT} relations"
        else:
            found[pid] = set(read) - {None}
        took = max(took, seconds)
    return found, took


# All of it.


class Candidate(NamedTuple):
    """What was said in a transaction, and standard_conforming_strings."""

    texts: Sequence[bytes]
    conforming: bool = True


class Knowledge:
    """What was learned of one database, and which functions are allowed there."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self.allowed = frozenset(allowed)
        self.catalog: Catalog | None = None
        self.relations = Relations()
        self.took = 0.0  # seconds that the server took to look at its locks, the last time

    async def refreshed(self, connection: Any, now: str) -> Catalog:
        """The catalog as of this stamp; the relations are forgotten if anything has changed."""
        if self.catalog is None or self.catalog.stamp != now:
            self.relations = Relations()
            self.catalog = await load(connection)
        return self.catalog

    async def judge(self, connection: Any, candidates: Mapping[int, Candidate]) -> dict[int, str]:
        """Why the backend with each of these pids cannot be let go; "" if it can.

        The dearer a question, the fewer are left to ask it for.
        """
        now, found = await activity(connection, candidates.keys())
        catalog = await self.refreshed(connection, now)
        for pid, said in candidates.items():
            why = judge(said.texts, catalog, self.allowed, said.conforming)
            found[pid] = why or found[pid]  # what a developer can act on goes first
        held, self.took = await locks(connection, _left(found))
        read = {pid: oids for pid, oids in held.items() if not isinstance(oids, str)}
        found.update({pid: why for pid, why in held.items() if isinstance(why, str)})
        unknown = self.relations.unknown({oid for oids in read.values() for oid in oids})
        self.relations.learn(await relations(connection, unknown, self.allowed))
        found.update({pid: self.relations.why(oids) for pid, oids in read.items()})
        return found


def _left(found: Mapping[int, str]) -> list[int]:
    return [pid for pid, why in found.items() if not why]
