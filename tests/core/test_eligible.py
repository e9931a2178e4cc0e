"""What the catalog makes of names, and what is remembered of relations."""

from typing import Any

import pytest

from txproxy.core import eligible
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

CATALOG = Catalog(
    "1",
    builtin={
        "lower": False, "count": False, "age": False, "now": False, "nextval": True,
        "random": True, "pg_backend_pid": False, "pg_stat_get_x": False, "initcap": False,
    },
    outside={"f": ["public"], "initcap": ["app", "public"], "other": ["app"], "now": ["app"]},
    methods={"f"},
)  # fmt: skip

JUDGED = [
    ("SELECT lower(a), count(*) FROM t", ""),
    ("SELECT random(), pg_catalog.random()", ""),
    ("SELECT nextval('x')", "it calls nextval(), which is volatile"),
    ("SELECT pg_catalog.nextval('x')", "it calls nextval(), which is volatile"),
    ("SELECT (x).nextval", "it calls nextval(), which is volatile"),
    ("SELECT t.nextval FROM t", ""),
    ("SELECT t.age, t.now FROM t", ""),
    ("SELECT s.name FROM (SELECT 1 AS name) AS s", ""),
    (
        "SELECT s.age FROM lower('x') AS s",
        "it names age(), which stays the same within a transaction",
    ),
    ("SELECT (t.a).age FROM t", "it names age(), which stays the same within a transaction"),
    ("SELECT age(a) FROM t", "it names age(), which stays the same within a transaction"),
    ("SELECT age(a, b) FROM t", ""),
    ("SELECT pg_catalog.now()", "it names now(), which stays the same within a transaction"),
    ("SELECT now()", "it calls app.now(), which is not PostgreSQL's own"),
    (
        "SELECT pg_backend_pid()",
        "it names pg_backend_pid(), which is another on each server connection",
    ),
    ("SELECT missing(1)", "it calls missing(), which is not known"),
    ("SELECT app.missing(1)", "it calls missing(), which is not known"),
    ("SELECT app.lower(1)", "it calls lower(), which is not known"),
    ("SELECT (x).missing", ""),
    ("SELECT f(1)", "it calls public.f(), which is not PostgreSQL's own"),
    ("SELECT public.f(1)", "it calls public.f(), which is not PostgreSQL's own"),
    ("SELECT t.f FROM t", "it calls public.f(), which is not PostgreSQL's own"),
    ("SELECT t.other FROM t", ""),
    ("SELECT (t).other FROM t", "it calls app.other(), which is not PostgreSQL's own"),
    ("SELECT f FROM t", ""),
    ("SELECT initcap('x')", "it calls app.initcap(), which is not PostgreSQL's own"),
    ("SELECT pg_catalog.initcap('x')", ""),
    ("LOCK TABLE t", "it is not one plain SELECT"),
]


@pytest.mark.parametrize(("text", "why"), JUDGED)
def test_names(text: str, why: str) -> None:
    assert judge([text.encode()], CATALOG, ()) == why
    assert judge([b"SELECT 1", text.encode(), b"SELECT 2"], CATALOG, ()) == why


ALLOWED = [
    ("f", "SELECT f(1), public.f(1), t.f FROM t", ""),
    ("public.f", "SELECT f(1), public.f(1), t.f FROM t", ""),
    ("app.f", "SELECT f(1)", "public.f()"),
    ("app.initcap", "SELECT initcap('x')", "public.initcap()"),
    ("initcap", "SELECT initcap('x')", ""),
    ("pg_catalog.now", "SELECT pg_catalog.now()", ""),
    ("now", "SELECT now(), current_date", "current_date"),
    ("nextval", "SELECT nextval('x')", ""),
    ("missing", "SELECT missing(1)", ""),
]


@pytest.mark.parametrize(("allowed", "text", "why"), ALLOWED)
def test_what_is_allowed(allowed: str, text: str, why: str) -> None:
    found = judge([text.encode()], CATALOG, [allowed])
    assert (why in found) if why else (not found)


def test_names_beyond_ascii_may_be_any_of_them() -> None:
    text = 'SELECT t."имя" FROM t'.encode()
    assert judge([text], CATALOG, ()) == ""
    known = Catalog("1", outside={"имя": ["public"]}, methods={"имя"})
    assert "public.имя()" in judge([text], known, ())


def test_a_hazard_switches_the_database_off() -> None:
    hazard = Hazard("the domain d", "it calls public.f()", "public.f")
    hidden = Hazard("the domain e", "it names the time")
    catalog = Catalog("1", hazards=[hazard])
    why = "in this database the domain d makes it unsure what is read: it calls public.f()"
    assert judge([b"SELECT 1"], catalog, ()) == why
    assert judge([], catalog, ()) == why
    assert judge([b"SELECT 1"], catalog, ["public.f"]) == ""
    assert judge([b"SELECT 1"], catalog, ["f"]) == ""
    assert "domain e" in judge([b"SELECT 1"], Catalog("1", hazards=[hazard, hidden]), ["f"])


def test_strings_that_are_escaped() -> None:
    text = rb"SELECT '\', nextval(1) --'"
    assert judge([text], CATALOG, ())
    assert judge([text], CATALOG, (), conforming=False) == ""


def function(**changed: Any) -> Function:
    own = Function("public", "f", False, False, False, 1)
    return own._replace(**changed)


def test_functions_of_views() -> None:
    builtin = function(schema="pg_catalog", name="lower", is_builtin=True)
    assert function_why(builtin, ()) == ""
    assert "volatile" in function_why(builtin._replace(name="nextval", is_volatile=True), ())
    assert function_why(builtin._replace(name="random", is_volatile=True), ()) == ""
    assert "now()" in function_why(builtin._replace(name="now", arguments=0), ())
    assert function_why(builtin._replace(name="now", arguments=0), ["now"]) == ""
    assert "age()" in function_why(builtin._replace(name="age"), ())
    assert function_why(builtin._replace(name="age", arguments=2), ()) == ""
    assert "pg_stat_x" in function_why(builtin._replace(name="pg_stat_x"), ())
    assert "public.f()" in function_why(function(is_sober=True), ())
    assert function_why(function(), ["public.f"]) == ""


def test_functions_behind_operators() -> None:
    assert "public.f()" in hidden_why(function())
    assert hidden_why(function(is_sober=True)) == ""
    assert "age()" in hidden_why(function(name="age", is_builtin=True, is_sober=True))


def test_expressions() -> None:
    tree = (
        "({QUERY :x {FUNCEXPR :funcid 870 :args ({OPEXPR :opno 96 :opfuncid 65} {AGGREF :aggfnoid"
        " 2803} {WINDOWFUNC :winfnoid 3100} {OPEXPR :tsmhandler 0})}"
    )
    assert functions_in(tree) == {870, 2803, 3100}
    assert clock_why(tree) == ""
    assert clock_why("{SQLVALUEFUNCTION :op 0 :type 1082")  # CURRENT_DATE
    assert clock_why("{SQLVALUEFUNCTION :op 8 :type 1114")  # LOCALTIMESTAMP(n)
    assert clock_why("{SQLVALUEFUNCTION :op 10 :type 19") == ""  # CURRENT_USER
    assert clock_why(":constvalue 7 [ 28 0 0 0 110 111 119 ]")
    assert clock_why(":constvalue 9 [ 28 0 0 0 107 110 111 119 -61 ]") == ""


def test_relations() -> None:
    known = Relations()
    assert known.unknown({1, 2}) == {1, 2}
    known.learn({1: "", 2: "a foreign table"})
    assert known.unknown({1, 2, 3}) == {3}
    assert known.why({1}) == ""
    assert known.why(set()) == ""
    assert known.why([1, 2]) == "a foreign table"
    assert known.why([1, 3]) == eligible.UNKNOWN_RELATION


def test_relations_are_not_remembered_without_end() -> None:
    known = Relations()
    limit = eligible._RELATIONS_LIMIT
    known.learn(dict.fromkeys(range(limit), ""))
    known.learn({limit: "", limit + 1: ""})
    assert len(known) == 2
    known.learn(dict.fromkeys(range(limit + 1), ""))
    assert len(known) == 0
    assert known.why({1}) == eligible.UNKNOWN_RELATION
