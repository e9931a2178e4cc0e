"""What texts mean: tables of statements, and properties of the reader.

The tables' claims about lexing and grammar were checked against PostgreSQL 15 and 18.
"""

import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.wire.spelling import (
    WRAPPERS,
    in_dollars,
    in_escape_string,
    in_string,
    respelled,
)
from txproxy.wire import sql
from txproxy.wire.sql import Judgement, judge, redact, tags

untimed = settings(deadline=None)  # a busy machine is no failure

KINDS = {
    sql.STATEMENT: [
        "SELECT 1",
        "select 1;",
        "  select 1 ; ",
        "\n\tSELECT\n1",
        "SELECT(1)",
        "(SELECT 1) UNION (SELECT 2)",
        "((select 1))",
        "TABLE pg_class",
        "VALUES (1), (2)",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "INSERT INTO t VALUES (';')",
        "UPDATE t SET a = 'b;c' WHERE d = $1",
        "DELETE FROM t",
        "MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE",
        "/* a; b */ SELECT 1 /* c; /* d; */ e; */;",
        "SELECT 1 -- a; b",
        "SELECT 1 -- a\n;",
        "SELECT ';' AS \";\"",
        "SELECT $$;$$ , $a$ ; $b$ ; $a$",
        "SELECT $1;",
        "SELECT E'\\';'",
        "SELECT e'a'\n'\\';'",
        "SELECT e'a' -- b\n -- c\n '\\';'",
        "SELECT type'\\' -- ;'",
        "SELECT U&'\\' -- ;'",
        "SELECT 'it''s; fine'",
        'SELECT "a"";"',
        "SELECT a$x$ FROM t WHERE b$x$ > 1",
        "EXPLAIN SELECT 1",
        "SHOW ALL",
        "SHOW search_path",
        "SHOW txproxy",
        "CREATE TABLE begin (commit int)",
        "CREATE RULE r AS ON INSERT TO t DO ALSO (DELETE FROM u; BEGIN; COMMIT)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN; COMMIT; END $$",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2;'",
        "SET LOCAL work_mem = '1MB'",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL DEFERRED",
        "LOCK TABLE t",
        "BEGIN READ SOMETHING",
        "BEGIN READ ONLY, ",
        "START",
        "START TRANSACTION WORK",
        "COMMIT x",
        "COMMIT PREPARED x",
        "ROLLBACK AND",
        "COMMIT AND NO",
        "(BEGIN)",
        "beginning",
        "PREPARE transaction AS SELECT 1",
        "SELECT set_config('a.b', 'c', true)",
        "SELECT 1 WHERE 'begin;commit' = ''",
        "GARBAGE",
        "SELECT 'unterminated; BEGIN",
    ],
    sql.EMPTY: ["", ";", " ;; ", "-- nothing", "/* nothing; */ ;", "--\n;--", "\t\r\n\f"],
    sql.BEGIN: [
        "BEGIN",
        "begin;",
        "Begin Work",
        "BEGIN TRANSACTION",
        "/* route */ BEGIN",
        "BEGIN -- now",
        "BEGIN READ ONLY",
        "begin isolation level read committed",
        "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY,DEFERRABLE",
        "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ WRITE NOT DEFERRABLE",
        "START TRANSACTION",
        "start /**/ transaction;",
        "START TRANSACTION ISOLATION LEVEL READ UNCOMMITTED;",
    ],
    sql.COMMIT: [
        "COMMIT",
        "commit;",
        "COMMIT WORK",
        "COMMIT TRANSACTION",
        "END",
        "end work;",
        "END TRANSACTION AND NO CHAIN",
        "COMMIT\nAND\nNO\nCHAIN",
    ],
    sql.ROLLBACK: [
        "ROLLBACK",
        "abort;",
        "ROLLBACK WORK",
        "ABORT TRANSACTION",
        "rollback and no chain",
    ],
    sql.COMMIT_CHAIN: ["COMMIT AND CHAIN", "END WORK AND CHAIN", "commit transaction and chain;"],
    sql.ROLLBACK_CHAIN: ["ROLLBACK AND CHAIN", "ABORT WORK AND CHAIN"],
    sql.ROLLBACK_TO: [
        "ROLLBACK TO a",
        'ROLLBACK TO SAVEPOINT "a b"',
        "rollback work to a",
        "ROLLBACK TRANSACTION TO SAVEPOINT a;",
    ],
    sql.RELEASE: ["RELEASE a", 'RELEASE SAVEPOINT "s1"', "release\nsavepoint a"],
    sql.SAVEPOINT: ["SAVEPOINT a", 'savepoint "s1_x2";', 'SAVEPOINT"a"'],
    sql.PREPARE_TRANSACTION: [
        "PREPARE TRANSACTION 'a'",
        "prepare transaction E'a';",
        "PREPARE TRANSACTION $$a$$",
        "PREPARE TRANSACTION 'a'\n'b'",
        "PREPARE TRANSACTION U&'a'",
    ],
    sql.COMMIT_PREPARED: ["COMMIT PREPARED 'a'", "commit prepared 'a' ;"],
    sql.ROLLBACK_PREPARED: ["ROLLBACK PREPARED 'a'"],
    sql.COPY: [
        "COPY t FROM STDIN",
        "copy t (a, b) TO STDOUT WITH (FORMAT binary);",
        "COPY (SELECT 1) TO STDOUT",
        "-- a\nCOPY t FROM STDIN",
        "COPY t FROM PROGRAM 'a; b'",
    ],
    sql.SET_ONE: [
        "SET a = 1",
        "RESET a",
        "SET SESSION a TO b, c",
        "SET TIME ZONE 'UTC'",
    ],
    sql.OURS_SET: ["SET txproxy.a = 1", "RESET txproxy.a"],
    sql.OURS_SHOW: ["SHOW txproxy.a", "show TxProxy.a;", 'SHOW "txproxy.a"'],
    sql.MANY: [
        "BEGIN; SELECT 1",
        "SELECT 1; SELECT 2",
        "; SELECT 1;; SELECT 2;",
        "SELECT '\\'; SELECT 2",
        "SELECT 1 -- a\n; SELECT 2",
        "SELECT 1 /* ; */; SELECT 2",
        "SELECT $a$ $b$ $a$; SELECT $b$ $a$ $b$",
        "SELECT a$x$; SELECT b$x$",
        "SELECT 1 AS a1$; SELECT 2",
        "SELECT $1; SELECT $2",
        'SELECT 1 AS "--"; SELECT 2',
        "SELECT '/*'; SELECT '*/'",
        "SELECT 1 */* ; */ 2; SELECT 3",
        "SELECT 1 +-- ;\n 2; SELECT 3",
        "SELECT 'a'\n'\\'; SELECT ''",
        "SELECT b'\\'; SELECT 2",
        "SELECT fe'\\'; SELECT ''",
        "COMMIT; BEGIN",
        "SET a = 1; SET b = 2",
    ],
}


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in KINDS.items() for text in texts]
)
def test_kind(kind: int, text: str) -> None:
    judgement = judge(text.encode())
    assert judgement.kind == kind
    assert kind == sql.MANY or judgement.first == kind


STATELESS = [
    "SELECT template_id, temperature FROM templates",
    "SELECT temp FROM t",
    "INSERT INTO temp VALUES (1)",
    "insert /**/ into temp select * from t",
    "MERGE INTO temp USING t ON a = b WHEN MATCHED THEN DELETE",
    "SELECT 1 INTO temp.t",
    "SELECT 1 INTO TABLE t",
    "SELECT 1 INTO UNLOGGED t",
    'SELECT 1 INTO "temp" FROM t',
    "SELECT 'into temp t'",
    "SELECT ' INTO TEMP t; SET a = 1; pg_temp '",
    "INSERT INTO t VALUES ('&nbsp; on temp', E'it\\'s; temp', \"temp\") /* a='temp;' */",
    "SELECT 'set_config'",
    'SELECT "Set_Config"(1)',
    "SELECT 'pg_advisory_lock(1)' -- pg_advisory_lock(1)",
    "SELECT $$pg_advisory_lock(1)$$",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
    "SELECT advisory FROM t",
    "SELECT my_set_configuration FROM t WHERE pg_template",
    "SELECT set_config($1, $2, true)",
    "SELECT pg_catalog.set_config('a', 'b', true), set_config('c', $1, TRUE)",
    "SELECT set_config(el->>0, el->>1, true) FROM json_array_elements($1::json) el",
    "SELECT * FROM pg_settings FOR UPDATE",
    "SELECT a & b FROM u",
    'SELECT u & "b" FROM u',
    "SELECT U&'\\0061'",
    "EXPLAIN ANALYZE SELECT 1",
    "EXPLAIN (ANALYZE, FORMAT json) INSERT INTO t VALUES (1)",
    "EXPLAIN (SELECT 1) UNION SELECT 2",
    "EXPLAIN (COSTS off) (SELECT 1)",
    "EXPLAIN VERBOSE DELETE FROM t",
    "DECLARE c CURSOR FOR SELECT 1",
    "DECLARE c CURSOR WITHOUT HOLD FOR WITH hold AS (SELECT 1) SELECT * FROM hold",
    "FETCH ALL FROM c",
    "MOVE c",
    "CLOSE c",
    "NOTIFY a, 'b'",
    "TRUNCATE t",
    "ANALYZE",
    "ANALYSE t",
    "VACUUM FULL t",
    "REINDEX TABLE t",
    "CLUSTER t",
    "CHECKPOINT",
    "REFRESH MATERIALIZED VIEW v",
    "COMMENT ON TABLE t IS 'pg_temp'",
    "GRANT ALL ON t TO u",
    "REVOKE ALL ON t FROM u",
    "SECURITY LABEL ON TABLE t IS 'a'",
    "IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c",
    "REASSIGN OWNED BY a TO b",
    "CREATE TABLE t (temp int)",
    "CREATE TABLE temp (a int)",
    "CREATE OR REPLACE VIEW v AS SELECT 1",
    "CREATE INDEX CONCURRENTLY i ON t (temp)",
    "ALTER TABLE t ADD COLUMN temp int",
    "ALTER SYSTEM SET work_mem = '1MB'",
    "ALTER DATABASE d SET search_path = a",
    "ALTER ROLE r SET role = a",
    "DROP TABLE t",
    "SET LOCAL ROLE r",
    "SET LOCAL TIME ZONE 'UTC'",
    "SET TRANSACTION READ ONLY",
    "BEGIN; SET LOCAL a.b = 1; INSERT INTO t VALUES (1); COMMIT",
    "SAVEPOINT a; RELEASE a",
    "COPY t FROM STDIN",
    "SET txproxy.a = 1",
    "SHOW txproxy.a",
    'SELECT a AS "into temp t"',
    "",
]


@pytest.mark.parametrize("text", STATELESS)
def test_stateless(text: str) -> None:
    assert not judge(text.encode()).pin


PINS = {
    "advisory lock": [
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_catalog.PG_ADVISORY_LOCK(1)",
        "SELECT pg_try_advisory_lock(1, 2)",
        "SELECT pg_advisory_lock_shared(1)",
        'SELECT "pg_advisory_lock"(1)',
        "WITH x AS (SELECT pg_advisory_lock(1)) SELECT * FROM x",
        "SELECT 1; SELECT pg_advisory_lock(1)",
        "EXPLAIN ANALYZE SELECT pg_advisory_lock(1)",
    ],
    "temporary table": [
        "SELECT 1 INTO TEMP t",
        "select a into/**/temporary table t from u",
        "SELECT 1 INTO LOCAL TEMP t",
        "WITH x AS (SELECT 1) SELECT * INTO TEMP t FROM x",
        "EXPLAIN ANALYZE SELECT 1 INTO TEMP t",
        "CREATE TEMP TABLE t (a int)",
        "create temporary table t as select 1",
        "CREATE LOCAL TEMPORARY TABLE t (a int)",
        "CREATE GLOBAL TEMP TABLE t (a int)",
        "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
        "CREATE TEMP SEQUENCE s",
        "EXPLAIN (ANALYZE) CREATE TEMP TABLE t AS SELECT 1",
        "CREATE TABLE pg_temp.t (a int)",
        'CREATE TABLE "pg_temp".t (a int)',
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT * FROM pg_temp_3.t",
        "INSERT INTO PG_TEMP.t VALUES (1)",
        "SET search_path = pg_temp",
        "SET search_path TO 'pg_temp', public",
        "SET LOCAL search_path = pg_temp",
        "SELECT set_config('search_path', 'pg_temp', false)",
    ],
    "cannot judge": [
        'SELECT U&"\\0061"',
        'select u&"set\\005fconfig"(1)',
        'SELECT 1U&"a"',
        "SELECT 1; SELECT 'a",
        "/**/ SELECT 'a",
        'SELECT 1; SELECT "a',
        "SELECT 1; SELECT /* /* */",
        "SELECT 1; SELECT $a$ $b$",
        "SELECT 1; SELECT E'\\'",
        "SELECT 1; SELECT (1",
        "SELECT 1); SELECT (1",
        "SELECT 1E'\\'; SELECT '",
        "SELECT $1$$; SELECT $$",
        "BEGIN NONSENSE",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END",
        "CREATE PROCEDURE p() BEGIN /**/ ATOMIC END",
        "SELECT 1; CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; BEGIN",
    ],
    "PREPARE": ["PREPARE a AS SELECT 1", "PREPARE transaction AS SELECT 1"],
    "LOAD": ["LOAD 'a'"],
    "DO": ["DO $$ BEGIN; COMMIT; END $$"],
    "CALL": ["CALL p()"],
    "WITH HOLD": [
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        'declare "c"no scroll cursor with /* */ hold for select 1',
    ],
    "unknown statement": ["GARBAGE", "SELECTED", "(INSERT INTO t VALUES (1))", "SELECT 1; x"],
}


@pytest.mark.parametrize(
    ("pin", "text"), [(pin, text) for pin, texts in PINS.items() for text in texts]
)
def test_pin(pin: str, text: str) -> None:
    assert judge(text.encode()).pin == pin


SETTINGS = {
    "SET search_path = a, b": "search_path",
    "SET SESSION DateStyle TO 'ISO'": "datestyle",
    'SET "TimeZone" = DEFAULT': "timezone",
    "SET TIME ZONE LOCAL": "timezone",
    "SET TIME ZONE INTERVAL '1' HOUR TO MINUTE": "timezone",
    "SET SESSION TIME ZONE'UTC'": "timezone",
    "RESET TIME ZONE": "timezone",
    "SET NAMES 'UTF8'": "client_encoding",
    "SET NAMES": "client_encoding",
    "SET SCHEMA 'a'": "search_path",
    "SET app.user = 1": "app.user",
    "SET App . User TO'a'": "app.user",
    'SET "app.user" = 1': "app.user",
    "SET local.a = 1": "local.a",
    "SET session.a TO 1": "session.a",
    "SET SESSION local.a = 1": "local.a",
    "SET time.zone = 1": "time.zone",
    "SET transaction.a = 1": "transaction.a",
    "SET role = a": "role",
    "SET statement_timeout=0": "statement_timeout",
    "RESET statement_timeout": "statement_timeout",
    'RESET "App".user': "app.user",
}


@pytest.mark.parametrize(("text", "setting"), SETTINGS.items())
def test_one_setting(text: str, setting: str) -> None:
    expected = Judgement(sql.SET_ONE, setting=setting, settings=(setting,))
    assert judge(text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "SET a = 1; SET a = 2",
        'SET U&"a" = 1',
        'SET "a b" = 1',
        "SET LOCAL a = 1",
    ],
)
def test_not_one_setting(text: str) -> None:
    judgement = judge(text.encode())
    assert judgement.kind != sql.SET_ONE
    assert not judgement.setting


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("SET txproxy.idle_transaction_timeout = '5s'", "5s"),
        ("set session TxProxy.Idle_Transaction_Timeout to 5", "5"),
        ("SET LOCAL txproxy.idle_transaction_timeout = -1.5;", "-1.5"),
        ("SET txproxy.idle_transaction_timeout TO Off", "off"),
        ('SET txproxy.idle_transaction_timeout TO "Off"', "Off"),
        ("SET txproxy.idle_transaction_timeout TO 'it''s'", "it's"),
        ("SET txproxy.idle_transaction_timeout = ''", ""),
        ("SET txproxy.idle_transaction_timeout = '5', '6'", "', '"),
        ("SET txproxy.idle_transaction_timeout = $$5s$$", "5s"),
        ("SET txproxy.idle_transaction_timeout = $a$5s$a$", "5s"),
        ("SET txproxy.idle_transaction_timeout = E'5s' -- '6s'", "5s"),
        ('SET "txproxy.idle_transaction_timeout" = DEFAULT', None),
        ("RESET txproxy . idle_transaction_timeout", None),
    ],
)
def test_our_setting(text: str, value: str | None) -> None:
    name = "txproxy.idle_transaction_timeout"
    expected = Judgement(sql.OURS_SET, setting=name, value=value, settings=(name,))
    assert judge(text.encode()) == expected


def test_our_setting_shown() -> None:
    assert judge(b"SHOW TxProxy.a") == Judgement(sql.OURS_SHOW, setting="txproxy.a")


@pytest.mark.parametrize(
    ("text", "begins", "ends", "savepoint"),
    [
        ("SELECT 'begin; commit; savepoint a'", False, False, False),
        ("BEGIN", True, False, False),
        ("COMMIT", False, True, False),
        ("END AND CHAIN", False, True, False),
        ("ROLLBACK", False, False, False),
        ("ROLLBACK AND CHAIN", False, False, False),
        ("PREPARE TRANSACTION 'a'", False, True, False),
        ("COMMIT PREPARED 'a'", False, True, False),
        ("ROLLBACK PREPARED 'a'", False, False, False),
        ("SAVEPOINT a", False, False, True),
        ("ROLLBACK TO a", False, False, False),
        ("RELEASE a", False, False, False),
        ("SELECT 1; BEGIN; SELECT 2", True, False, False),
        ("START TRANSACTION; SAVEPOINT a; COMMIT", True, True, True),
        ("BEGIN; SELECT 'a", True, True, True),
        ("SELECT 1; SELECT 'a", True, True, True),
        ("COMMIT; SELECT 2", False, True, False),
    ],
)
def test_what_it_does_to_the_transaction(
    text: str, begins: bool, ends: bool, savepoint: bool
) -> None:
    judgement = judge(text.encode())
    assert (judgement.begins, judgement.ends, judgement.savepoint) == (begins, ends, savepoint)


@pytest.mark.parametrize(
    ("text", "first", "skipped"),
    [
        ("ROLLBACK; SELECT 1", sql.ROLLBACK, "ROLLBACK;"),
        ("; /* a; */ abort work ; SELECT ';'", sql.ROLLBACK, "; /* a; */ abort work ;"),
        ("COMMIT;BEGIN", sql.COMMIT, "COMMIT;"),
        ("END;;SELECT 1", sql.COMMIT, "END;"),
        ("ROLLBACK AND CHAIN; SELECT 1", sql.ROLLBACK_CHAIN, "ROLLBACK AND CHAIN;"),
        (
            "PREPARE TRANSACTION 'x;'; SELECT 1",
            sql.PREPARE_TRANSACTION,
            "PREPARE TRANSACTION 'x;';",
        ),
        ("ROLLBACK TO a; SELECT 1", sql.ROLLBACK_TO, ""),
        ("SELECT 1; ROLLBACK; SELECT 2", sql.STATEMENT, ""),
        ("BEGIN; SELECT 1", sql.BEGIN, ""),
    ],
)
def test_where_it_goes_on(text: str, first: int, skipped: str) -> None:
    judgement = judge(text.encode())
    assert judgement.kind == sql.MANY
    assert (judgement.first, judgement.rest) == (first, len(skipped))


@pytest.mark.parametrize("text", ["ROLLBACK", "ROLLBACK;;", "ROLLBACK; SELECT 'a"])
def test_it_does_not_go_on(text: str) -> None:
    assert judge(text.encode()).rest == 0


@pytest.mark.parametrize(
    ("text", "conforming", "escaping"),
    [
        (r"SELECT '\'; SELECT 2 --'", sql.MANY, sql.STATEMENT),
        (r"SELECT E'\'; SELECT 2 --'", sql.STATEMENT, sql.STATEMENT),
        (r"SELECT n'\'; SELECT 2 --'", sql.MANY, sql.STATEMENT),
        (r"SELECT b'\'; SELECT 2 --'", sql.MANY, sql.MANY),
        (r"SELECT ab'\'; SELECT 2 --'", sql.MANY, sql.STATEMENT),
        ("SELECT x'1'\n'\\'; SELECT 2 --'", sql.MANY, sql.MANY),
        ("SELECT 'a'\n'\\'; SELECT 2 --'", sql.MANY, sql.STATEMENT),
        (r"SELECT '\\'; SELECT 2", sql.MANY, sql.MANY),
        (r"SELECT $$\$$; SELECT 2", sql.MANY, sql.MANY),
        (r'SELECT "\"; SELECT 2', sql.MANY, sql.MANY),
    ],
)
def test_backslashes(text: str, conforming: int, escaping: int) -> None:
    assert judge(text.encode()).kind == conforming
    assert judge(text.encode(), False).kind == escaping


def test_more_statements_than_are_looked_at() -> None:
    assert judge(b"SELECT 1;" * 900).kind == sql.MANY
    assert judge(b"SELECT 1;" * 1001).pin == "cannot judge"


# Properties.

ALL = sorted(
    {text for texts in KINDS.values() for text in texts}
    | {text for texts in PINS.values() for text in texts}
    | {*STATELESS, *SETTINGS}
)
HAZARDS = [
    "set_config", "pg_advisory_lock(1)", "into temp t", "pg_temp.t", "; begin;", ";", "commit",
    "savepoint a", "update pg_settings", "begin atomic", 'u&"', "create temp table t", "temp",
]  # fmt: skip
NOISE = [
    "'",
    '"',
    "\\",
    "$$",
    "$a$",
    "--",
    "/*",
    "*/",
    "\n",
    "(",
    ")",
    " ",
    "a",
    "1",
    "e",
    "é",
    "%",
]

hidden = st.lists(st.sampled_from(HAZARDS + NOISE), max_size=6).map(" ".join)


PLAINLY_SPELLED = [
    text
    for text in ALL
    if not re.search(r"--|/\*|\\|&|[a-zA-Z]'|'\n|->|\w\$", text)
    and judge(text.encode()).pin not in {"cannot judge", "DO", "CALL"}  # searched as a whole
]


@untimed
@given(
    st.sampled_from(PLAINLY_SPELLED).flatmap(lambda text: st.tuples(st.just(text), respelled(text)))
)
def test_spelling_does_not_matter(texts: tuple[str, str]) -> None:
    judgement, other = (judge(text.encode()) for text in texts)
    if judgement.rest:
        assert other.rest
        other.rest = judgement.rest
    assert other == judgement


wrapped = st.builds(lambda wrap, text: str(wrap(text)), st.sampled_from(WRAPPERS), hidden)


@untimed
@given(st.lists(wrapped, min_size=1, max_size=4))
def test_what_is_quoted_is_not_meant(values: list[str]) -> None:
    text = "SELECT " + ", ".join(values)
    assert judge(text.encode()) == Judgement(sql.STATEMENT)
    assert judge(f"/**/{text};".encode()) == Judgement(sql.STATEMENT)
    assert judge(f"{text}; {text}".encode()) == Judgement(sql.MANY, first=sql.STATEMENT)
    assert judge(f"{text}; BEGIN".encode()) == Judgement(sql.MANY, begins=True, first=sql.STATEMENT)


@untimed
@given(st.lists(st.sampled_from(ALL), min_size=1, max_size=4))
def test_many_are_what_each_is(texts: list[str]) -> None:
    each = [judge(text.encode()) for text in texts]
    assume(all(judgement.pin != "cannot judge" for judgement in each))
    assume(all(judgement.kind != sql.OURS_SET for judgement in each))
    together = judge("\n;".join(texts).encode())
    assert together.begins == any(judgement.begins for judgement in each)
    assert together.ends == any(judgement.ends for judgement in each)
    assert together.savepoint == any(judgement.savepoint for judgement in each)
    reasons = [reason for judgement in each for reason in judgement.pin.split(", ") if reason]
    assert together.pin == ", ".join(dict.fromkeys(reasons))


@untimed
@given(
    st.sampled_from(["", " ", "\n", "(", "/**/"]),
    st.sampled_from(
        ["SELECT", "insert", "UPDATE ", "Delete", "WITH", "values", "BEGIN", "SET", ""]
    ),
    st.lists(
        st.one_of(st.sampled_from(HAZARDS + NOISE + ["E'", "b'", "into"]), wrapped), max_size=8
    ),
    st.booleans(),
)
@example("", "SELECT", ["'temp", ";", "temp'"], True)
@example("", "SELECT", ["'\\' ;'"], False)
def test_the_quick_way_agrees_with_the_slow(
    before: str, word: str, pieces: list[str], conforming: bool
) -> None:
    text = " ".join([before + word, *pieces]).encode()
    slow = sql._judge_slowly(text, conforming)
    quick = judge(text, conforming)
    # The quick way need not see that a single query is broken.
    assert quick == slow or (slow.pin == "cannot judge" and quick == Judgement(sql.STATEMENT))


@untimed
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.sampled_from(HAZARDS + NOISE)).map(lambda pieces: " ".join(pieces).encode()),
    ),
    st.booleans(),
)
def test_anything_can_be_read(text: bytes, conforming: bool) -> None:
    judge(text, conforming)
    tags(text)
    assert redact(text).isprintable()


@pytest.mark.parametrize(
    "unit",
    [
        "'", '"', "''", "'\\", "\\'", "E'\\'", "e'", "E'a'\n", "$a$", "$", "/*", "*/", "/**/",
        "--\n", "(", ")", ";", ";a", "a;", "a.", '"a".', "set_config(", "into ", "update ", 'u&"',
        "1e'", "begin atomic ", "cursor with ", " ", "\n", "read only ", "\x80", "', '",
    ],
)  # fmt: skip
def test_long_texts_are_read_in_linear_time(unit: str) -> None:
    """Quadratic, they would take minutes."""
    for before in ("SELECT 1;", "SELECT '; temp", "SET a", "BEGIN ", "E'a'", "SELECT set_config("):
        text = (before + unit * (32_768 // len(unit))).encode("latin-1")
        judge(text, True)
        judge(text, False)
        redact(text, limit=1000)
        tags(text + b"*/")


# For people.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT 1 /*route='a',controller='b'*/", {"route": "a", "controller": "b"}),
        ("SELECT 1 /* route = 'a' , b='c' */ ;\n", {"route": "a", "b": "c"}),
        ("SELECT 1 /*a='%2Fb%20c%27'*/", {"a": "/b c'"}),
        ("SELECT 1 /*a='it\\'s'*/", {"a": "it's"}),
        ("SELECT 1 /*a%3D='b--c'*/", {"a=": "b--c"}),
        ("SELECT 1 /*a='%0Ab'*/", {"a": "\\nb"}),
        ("SELECT 1 /*a='%FF'*/", {"a": "\ufffd"}),
        ("SELECT 1 /*a='b'*/ /*c='d'*/", {"c": "d"}),
        ("SELECT 1 /*a=''*/", {"a": ""}),
        ("SELECT 1 /*a='b'", {}),
        ("/*a='b'*/ SELECT 1", {}),
        ("SELECT 1 /*a=b*/", {}),
        ("SELECT 1 /*a='b', and so on*/", {}),
        ("SELECT 1 /* a comment */", {}),
        ("SELECT 1 /**/", {}),
        ("SELECT 1 /*/", {}),
        ("SELECT '/*a=''b''*/'", {}),
        ("", {}),
    ],
)
def test_tags(text: str, found: dict[str, str]) -> None:
    assert tags(text.encode()) == found


def test_tags_are_bounded() -> None:
    many = ",".join(f"k{i}='{'v' * 300}'" for i in range(30))
    found = tags(f"SELECT 1 /*{many}*/".encode())
    assert list(found) == [f"k{i}" for i in range(20)]
    assert set(found.values()) == {"v" * 256}
    assert tags(b"SELECT 1 /*a='" + b"v" * 20_000 + b"'*/") == {}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT a1, $1, t.b2 FROM t3 WHERE c > 1.5e10", "SELECT a1, $1, t.b2 FROM t3 WHERE c > ?"),
        ("SELECT 'it''s', E'\\n', $$a$$, $b$c$b$", "SELECT ?, E?, ?, ?"),
        ('SELECT "a b" -- c', 'SELECT "a b" -- c'),
        ("SELECT 1 /* 'a' */", "SELECT ? /* 'a' */"),
        ("SELECT\n\t1", "SELECT\\n\\t?"),
        ("SELECT 'a", "SELECT ?"),
        ("SELECT /* a", "SELECT ?"),
        ("SELECT '\\', 'secret'", "SELECT ?"),
        ("SELECT 'é' AS é", "SELECT ? AS é"),
        ("", ""),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text.encode()) == shown


def test_redact_cuts() -> None:
    text = b"SELECT '" + b"x" * 100 + b"' AS a, b, c FROM t /*route='a'*/"
    assert redact(text, 20) == "SELECT ? ... /*route='a'*/"
    assert redact(text, 120) == "SELECT ? AS a, b, c ... /*route='a'*/"
    assert redact(b"SELECT abc", 8) == "SELECT a ..."
    assert redact(b"SELECT " + b"1" * 100, 9) == "SELECT ? ..."
    assert redact(b"SELECT '/* x' -- */", 8) == "SELECT ? ..."


def test_redact_shows_what_is_not_text() -> None:
    assert redact(b"SELECT \xff\x00\x1b[31m\x7f\xc2\x85") == "SELECT \ufffd\\x00\\x1b[?\\x7f\\x85"
    assert redact("SELECT \u2028\u202e".encode()) == "SELECT \\u2028\\u202e"


@untimed
@given(st.lists(wrapped), hidden, hidden, st.integers(1, 300))
def test_redact_shows_no_string(values: list[str], before: str, after: str, limit: int) -> None:
    for wrap in (in_string, in_escape_string, in_dollars):
        text = "SELECT " + ", ".join([*values, wrap(f"{before} hunter {after}")])
        assert "hunter" not in redact(text.encode(), limit)


@untimed
@given(hidden, hidden)
def test_redact_shows_no_string_with_backslash_escapes(before: str, after: str) -> None:
    text = (
        f"SELECT {in_escape_string(before)[1:]}, {in_escape_string(before + 'hunter' + after)[1:]}"
    )
    assert "hunter" not in redact(text.encode())
