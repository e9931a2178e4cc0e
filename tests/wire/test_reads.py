"""Which texts are refused as they stand, and that no call in the others is overlooked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.spelling import WRAPPERS, respelled, spaces
from txproxy.wire import reads
from txproxy.wire.reads import Call, Reading, read

untimed = settings(deadline=None)  # a busy machine is no failure

CALLS = [
    # What is said of f, a function, by its schema, name and number of arguments.
    ("SELECT f()", Call(None, "f", 1, True)),
    ("SELECT f(1, g(2, 3), ARRAY[4, 5])", Call(None, "f", 3, True)),
    ('SELECT "f"(1)', Call(None, "f", 1, True)),
    ('SELECT "F ""x"("y")', Call(None, 'F "x', 1, True)),
    ("SELECT pg_catalog.f()", Call("pg_catalog", "f", 1, True)),
    ('SELECT "db" . "S s" . f ()', Call("S s", "f", 1, True)),
    ("SELECT 1 FROM t, LATERAL f(t.a)", Call(None, "f", 1, True)),
    ("SELECT DISTINCT ON (a) f(a) FROM t", Call(None, "f", 1, True)),
    ("SELECT NOT f(a), CASE WHEN f(b) THEN 1 END", Call(None, "f", 1, True)),
    ("SELECT a[f(1)], a[1:f(1)] FROM t", Call(None, "f", 1, True)),
    ("SELECT 1 WHERE x IN (f(1))", Call(None, "f", 1, True)),
    ("SELECT 1 AS x, f(1)", Call(None, "f", 1, True)),
    ("SELECT x::text || f(1)", Call(None, "f", 1, True)),
    ("WITH x AS (SELECT f(1)) SELECT * FROM x", Call(None, "f", 1, True)),
    ("VALUES (1), (f(1))", Call(None, "f", 1, True)),
    ("SELECT * FROM t TABLESAMPLE f (1)", Call(None, "f", 1, True)),
    ("SELECT f('x') OVER (), 'f'", Call(None, "f", 1, True)),
    ("SELECT 1; SELECT f(1)", Call(None, "f", 1, True)),
    ("(SELECT 1) UNION ALL ((SELECT f(1)))", Call(None, "f", 1, True)),
    ("SELECT 'a' -- '\n, f(1)", Call(None, "f", 1, True)),
    ("SELECT $a$ ' $a$, f(1)", Call(None, "f", 1, True)),
    ("SELECT (x).f FROM t", Call(None, "f", 1, False)),
    ('SELECT (x).a . "f" FROM t', Call(None, "f", 1, False)),
    ("SELECT x[1].f FROM t", Call(None, "f", 1, False)),
    ("SELECT q.f FROM g(1) AS q", Call(None, "f", 1, False)),
    ("SELECT q.f FROM g(1) WITH ORDINALITY q (x)", Call(None, "f", 1, False)),
    ("SELECT q.f FROM u, g(values) q", Call(None, "f", 1, False)),
    ("SELECT q.f FROM g((SELECT 1)) AS q", Call(None, "f", 1, False)),
    ("SELECT g.f FROM g(1)", Call(None, "f", 1, False)),
    ("SELECT q.f FROM SESSION_USER q", Call(None, "f", 1, False)),
    ('SELECT "user".f FROM user', Call(None, "f", 1, False)),
    ("SELECT cube(1, 2)", Call(None, "cube", 2, False)),
]


@pytest.mark.parametrize(("text", "call"), CALLS)
def test_what_may_be_a_call(text: str, call: Call) -> None:
    reading = read(text.encode())
    assert not reading.why
    assert call in reading.calls


@untimed
@given(st.data())
def test_no_call_is_overlooked_however_it_is_spelled(data: st.DataObject) -> None:
    text, call = data.draw(st.sampled_from([row for row in CALLS if "--" not in row[0]]))
    reading = read(data.draw(respelled(text)).encode())
    assert reading.why == reads.UNSURE or call in reading.calls


PIECES = [
    "'a'", "E'\\\\''", "$$'$$", "$a$ $$ $a$", '"b"', '""""', "f", "as", "for", "(", ")", "[", "]",
    ".", "::", ":", "+", "-", "/", "1", "1.5e3", "$1", "with", "recursive", "by", "over", ",",
]  # fmt: skip


@untimed
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.data())
def test_no_call_is_overlooked_whatever_stands_before_it(
    pieces: list[str], data: st.DataObject
) -> None:
    text = "".join(data.draw(spaces) + piece for piece in ["SELECT", *pieces, ",", "g", "(", "1"])
    reading = read(f"{text})".encode())
    assert reading.why or Call(None, "g", 1, is_sure=True) in reading.calls


@untimed
@given(st.sampled_from(WRAPPERS), st.sampled_from(["f(1)", "SELECT f(1)", "FOR UPDATE", "INTO x"]))
def test_what_is_quoted_is_no_call(wrapper: object, text: str) -> None:
    assert callable(wrapper)
    reading = read(b"SELECT " + wrapper(text).encode())
    assert reading == Reading()


NO_CALLS = [
    "SELECT count FROM t",
    "SELECT 1 AS f",
    "SELECT 1 AS f FROM t AS x (a, b)",
    "SELECT x::numeric(10, 2), CAST(x AS public.vector(3)), '1'::f(1)",
    "WITH f(a) AS (SELECT 1) SELECT a FROM f",
    "WITH RECURSIVE f(a) AS (SELECT 1) SELECT a FROM f",
    "SELECT 1 WHERE EXISTS (SELECT 1) AND x IN (1) OR NOT (y = ANY (ARRAY[1]))",
    "SELECT * FROM (VALUES (1)) AS x WHERE (1, 2) BETWEEN (0, 0) AND (3, 3)",
    "SELECT t.* FROM t",
    "SHOW ALL",
    "TABLE f",
    "",
    " ; /* x */ ;",
    "SELECT f'x'",
]


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_none(text: str) -> None:
    assert read(text.encode()) == Reading()


def test_dotted_names() -> None:
    text = 'SELECT t.a, t . "B b" , x.t.c, 1 AS d FROM other.t JOIN u USING (e)'
    assert read(text.encode()).attributes == ["a", "B b", "t", "c", "t"]
    assert read(b"SELECT x::public.t, CAST(x AS public.t)").attributes == []


def test_a_subquery_has_rows() -> None:
    text = b"SELECT s.f, v.g, l.h FROM (SELECT a(1)) AS s, (VALUES (1)) v, LATERAL (TABLE t) l"
    reading = read(text)
    assert reading.attributes == ["f", "g", "h"]
    assert [call.name for call in reading.calls] == ["a"]


def test_names_are_cut_as_the_server_does() -> None:
    name = "n" * 63
    assert read(f"SELECT {name}more(1)".encode()).calls == [Call(None, name, 1, True)]
    assert read(f'SELECT t."{name}more" FROM t'.encode()).attributes == [name]


REFUSED = [
    ("INSERT INTO t VALUES (1)", "it is not one plain SELECT"),
    ("EXPLAIN SELECT 1", "it is not one plain SELECT"),
    ("SELECT 1; COMMIT", "it is not one plain SELECT"),
    ("(", "it cannot be read surely"),
    ("SELECT 'x", "it cannot be read surely"),
    ("SELECT (1; 2)", "it cannot be read surely"),
    ('SELECT u&"f"(1)', "it cannot be read surely"),
    ("SELECT u&'f'", "it cannot be read surely"),
    ("SELECT 1 LIMIT 1for update", "it cannot be read surely"),
    ("SELECT 1 LIMIT 1.for update", "it cannot be read surely"),
    ("SELECT $1and f(1)", "it cannot be read surely"),
    ("SELECT 'no'\n'w'::date", "it cannot be read surely"),
    ("SELECT E'no'\n'w'::date", "it cannot be read surely"),
    (r"SELECT E'n\157w'::date", "it cannot be read surely"),
    (r"SELECT E'no\w'::date", "it cannot be read surely"),
    ("SELECT É(1)", "it cannot be read surely"),
    ("SELECT t.é FROM t", "it cannot be read surely"),
    ("SELECT * FROM t FOR UPDATE", "FOR UPDATE locks rows"),
    ("SELECT * FROM t FOR NO KEY UPDATE", "FOR locks rows"),
    ('SELECT * FROM "t"FOR KEY SHARE', "FOR locks rows"),
    ("SELECT * FROM t LIMIT(1)FOR SHARE", "FOR locks rows"),
    ("SELECT 1 INTO x", "SELECT INTO makes a table"),
    ("WITH x AS (DELETE FROM t) SELECT 1", "it changes data"),
    ("WITH x AS (MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE) TABLE x", "changes data"),
    ("SELECT current_date", "it names current_date, which stays the same within a transaction"),
    ("SELECT 1 WHERE a<localtimestamp", "it names localtimestamp"),
    ("SELECT 'Now'::date", "a string in it is now"),
    ("SELECT '{\"today\"}'::date[]", "a string in it is now"),
    ("SELECT $$tomorrow$$::date", "a string in it is now"),
    ("SELECT * FROM pg_stat_activity", "it names pg_stat_activity"),
    ('SELECT "pg_stat_x"', "it names pg_stat_x"),
]


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_what_is_refused(text: str, why: str) -> None:
    found = read(text.encode())
    assert why in found.why
    assert not found.calls
    again = read(f"SELECT 1; {text}; SELECT 2".encode())
    assert again.why


@untimed
@given(st.sampled_from(REFUSED).flatmap(lambda row: respelled(row[0])))
def test_what_is_refused_is_refused_however_it_is_spelled(text: str) -> None:
    reading = read(text.encode())
    assert reading.why or reading.calls  # white space may make 1 for update of 1for update


NOT_REFUSED = [
    'SELECT "into", t.update, "current_date" FROM t',
    "SELECT 1 AS into, 2 AS current_date, 3 AS delete",
    "SELECT SUBSTRING(x FROM 1 FOR 2)",
    "SELECT 'knowhow', 'todays', E'it\\'s \\\\x'",
    'SELECT "é" FROM t AS "é"',
    'SELECT \'é\', "t"."имя" FROM t',
]


@pytest.mark.parametrize("text", NOT_REFUSED)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert read(text.encode()).why == ""


def test_strings_are_read_as_they_are_escaped() -> None:
    text = rb"SELECT '\', f(1) --'"
    assert read(text).calls == [Call(None, "f", 1, True)]
    assert read(text, conforming=False).calls == []
    assert read(rb"SELECT 'n\157w'", conforming=False).why == reads.UNSURE
    assert read(rb"SELECT 'n\157w'").why == ""


@untimed
@given(st.binary(max_size=40), st.booleans())
def test_anything_can_be_asked(text: bytes, conforming: bool) -> None:
    reading = read(b"SELECT " + text, conforming)
    assert isinstance(reading.why, str)
