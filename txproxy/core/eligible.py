"""Whether a sleeping transaction's backend can be let go: what texts, functions and relations say.

Only a transaction that has read and nothing else can be ended and begun again without a difference.
Eligible is what surely makes none: what cannot be judged is not. All of this is looked at when a
client has slept for a while; what it needs to know of a database is learned in backends/catalog.py.

Operators, casts and domains are not looked for in texts: which are used follows from types. So if
one that the users have made calls what a text must not call, nothing in that database is eligible.
Their functions may also be written in C, or be an extension's, if they are declared STABLE or
IMMUTABLE: only a superuser makes these, and a database with PostGIS is to be eligible too. What
extensions offer by name is another matter: crosstab() is STABLE and executes any SQL. But where
they overload a name of pg_catalog with what is IMMUTABLE, as citext does with max(), that name
stays what it was. Functions that read and write a type's values, and those of operator classes,
are a superuser's as well, often not declared with care, and not looked at.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from txproxy.wire import reads
from txproxy.wire.reads import Call

BUILTIN: Final = "pg_catalog"

# fmt: off
HARMLESS: Final = frozenset((
    "bernoulli", "clock_timestamp", "gen_random_uuid", "pg_is_in_recovery", "pg_sleep", "random",
    "statement_timestamp", "system", "timeofday", "uuidv4", "uuidv7",
))
"""Volatile, but they leave nothing behind."""

_CONSTANT: Final = frozenset((
    "now", "transaction_timestamp", "pg_current_snapshot", "pg_current_xact_id",
    "pg_current_xact_id_if_assigned", "txid_current", "txid_current_if_assigned",
    "txid_current_snapshot",
))
_OF_THE_PROCESS: Final = frozenset((
    "inet_client_addr", "inet_client_port", "pg_backend_pid", "pg_cursor",
    "pg_is_other_temp_schema", "pg_listening_channels", "pg_my_temp_schema",
    "pg_prepared_statement",
))
# fmt: on


class Function(NamedTuple):
    """An overload of a function.

    is_builtin  it came with the server, in pg_catalog
    is_sober    it computes and no more: not volatile, and of C, built in or an extension's
    """

    schema: str
    name: str
    is_builtin: bool
    is_volatile: bool
    is_sober: bool
    arguments: int


class Hazard(NamedTuple):
    """An operator, cast or domain whose use a text does not show."""

    what: str
    why: str  # what it does is refused
    function: str = ""  # the one in question, as schema.name; "" if there is none to allow


class Catalog:
    """What is to be known of one database.

    stamp     changes when any of this may have changed
    builtin   the names of functions in pg_catalog; whether any of that name is volatile
    outside   the schemas that have a function of this name; what is in pg_catalog, but did not come
              with the server, is outside too
    methods   functions that can be called as t.f and are not harmless
    hazards   what the database has of these
    """

    def __init__(
        self,
        stamp: str = "",
        builtin: Mapping[str, bool] | None = None,
        outside: Mapping[str, Sequence[str]] | None = None,
        methods: Collection[str] = (),
        hazards: Sequence[Hazard] = (),
    ) -> None:
        self.stamp = stamp
        self.builtin = dict(builtin or {})
        self.outside = {name: tuple(schemas) for name, schemas in (outside or {}).items()}
        self.methods = frozenset(methods)
        self.hazards = tuple(hazards)
        self._beyond_ascii = not all(name.isascii() for name in self.methods)

    def off(self, allowed: Collection[str]) -> str:
        """Why nothing in this database is eligible; "" if that is not so."""
        for hazard in self.hazards:
            if not hazard.function or not _is_allowed(hazard.function, allowed):
                return f"in this database {hazard.what} makes it unsure what is read: {hazard.why}"
        return ""

    def call_why(self, call: Call, allowed: Collection[str]) -> str:
        """Why whatever has been called by this name is refused; "" if it is harmless."""
        name = call.name
        if name in allowed or (call.schema and f"{call.schema}.{name}" in allowed):
            return ""
        schemas = self.outside.get(name, ())
        if call.schema is not None:
            schemas = tuple(schema for schema in schemas if schema == call.schema)
        for schema in schemas:
            if f"{schema}.{name}" not in allowed:
                return _outside_why(schema, name)
        if call.schema is None or call.schema == BUILTIN:
            volatile = self.builtin.get(name)
            if volatile is not None:
                return _builtin_why(name, call.arguments, volatile, allowed)
        return f"it calls {name}(), which is not known" if call.is_sure and not schemas else ""

    def attribute_why(self, name: str, allowed: Collection[str]) -> str:
        """The same for the f of t.f."""
        if name in self.methods or (self._beyond_ascii and not name.isascii()):
            return self.call_why(Call(None, name, 1, is_sure=False), allowed)
        return ""


def judge(
    texts: Sequence[bytes], catalog: Catalog, allowed: Collection[str], conforming: bool = True
) -> str:
    """Why a transaction in which these were said is not eligible; "" if it is, so far.

    `allowed` are functions, as name or schema.name, that are harmless whatever the catalog says
    (early_release_functions). `conforming` is standard_conforming_strings. Not to be asked under a
    client encoding that may hold a backslash in a character's second byte.
    """
    why = catalog.off(allowed)
    for text in texts:
        if why:
            return why
        why = _text_why(text, catalog, allowed, conforming)
    return why


def _text_why(text: bytes, catalog: Catalog, allowed: Collection[str], conforming: bool) -> str:
    reading = reads.read(text, conforming)
    if reading.why:
        return reading.why
    for call in reading.calls:
        why = catalog.call_why(call, allowed)
        if why:
            return why
    for name in reading.attributes:
        why = catalog.attribute_why(name, allowed)
        if why:
            return why
    return ""


def _is_allowed(function: str, allowed: Collection[str]) -> bool:
    return function in allowed or function.rpartition(".")[2] in allowed


def _outside_why(schema: str, name: str) -> str:
    return f"it calls {schema}.{name}(), which is not PostgreSQL's own"


def _builtin_why(name: str, arguments: int, volatile: bool, allowed: Collection[str]) -> str:
    if _is_allowed(f"{BUILTIN}.{name}", allowed) or name in HARMLESS:
        return ""
    if name in _CONSTANT or (name == "age" and arguments == 1):
        return f"it names {name}(), which stays the same within a transaction"
    if name in _OF_THE_PROCESS:
        return f"it names {name}(), which is another on each server connection"
    if name.startswith("pg_stat"):
        return f"it names {name}(), what the server knows of itself"
    return f"it calls {name}(), which is volatile" if volatile else ""


def function_why(function: Function, allowed: Collection[str]) -> str:
    """Why this very function is refused in a view or a policy; "" if it is not."""
    if function.is_builtin:
        return _builtin_why(function.name, function.arguments, function.is_volatile, allowed)
    if _is_allowed(f"{function.schema}.{function.name}", allowed):
        return ""
    return _outside_why(function.schema, function.name)


def hidden_why(function: Function) -> str:
    """The same behind an operator, a cast or a domain, before anything is allowed."""
    if function.is_builtin:
        return function_why(function, ())
    return "" if function.is_sober else _outside_why(function.schema, function.name)


# Expressions, as the server stores those of views, policies and domains: pg_node_tree.

_CALLED: Final = re.compile(r":(?:funcid|aggfnoid|winfnoid|tsmhandler) (\d+)")
_CLOCK: Final = re.compile(
    r"\{SQLVALUEFUNCTION :op [0-8] "
)  # SVFOP_CURRENT_DATE to LOCALTIMESTAMP_N
_CONSTANT_BYTES: Final = re.compile(r":constvalue \d+ \[ ([-\d ]*)\]")


def functions_in(tree: str) -> set[int]:
    """The oids of the functions that this expression calls; not those of operators."""
    return {int(oid) for oid in _CALLED.findall(tree)} - {0}


def clock_why(tree: str) -> str:
    """Why this expression is refused whatever functions it calls; "" if it is not."""
    if _CLOCK.search(tree):
        return "it names the time of the transaction's beginning"
    for constant in _CONSTANT_BYTES.findall(tree):
        if reads.names_moment(bytes(int(byte) & 0xFF for byte in constant.split())):
            return "a string in it is now, today, tomorrow or yesterday"
    return ""


# Relations.

_RELATIONS_LIMIT: Final = 10_000
UNKNOWN_RELATION: Final = "it has read a relation that is not known"


class Relations:
    """What is known of a database's relations, by oid: why who has read it is refused, or "".

    To be forgotten when the catalog's stamp has changed, or what is allowed.
    """

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._known)

    def unknown(self, oids: Collection[int]) -> set[int]:
        """Those that are to be asked for."""
        return {oid for oid in oids if oid not in self._known}

    def learn(self, found: Mapping[int, str]) -> None:
        """Take what the server has said of some; the rest is forgotten if these are too many."""
        if len(self._known) + len(found) > _RELATIONS_LIMIT:
            self._known.clear()
        if len(found) <= _RELATIONS_LIMIT:
            self._known.update(found)

    def why(self, oids: Collection[int]) -> str:
        """Why a transaction that has read all of these is refused; "" if it is not."""
        for oid in oids:
            why = self._known.get(oid, UNKNOWN_RELATION)
            if why:
                return why
        return ""
