"""What statements mean for what outlives them: settings, pins, listening, names, databases.

That the server agrees is tested in tests/system/test_harmless.py.
"""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.wire.spelling import respelled
from txproxy.wire import sql
from txproxy.wire.sql import Judgement, judge

untimed = settings(deadline=None)  # a busy machine is no failure


def one(setting: str) -> Judgement:
    """SET or RESET of one setting."""
    return Judgement(sql.SET_ONE, setting=setting, settings=(setting,))


def config(*names: str, local: bool = False) -> Judgement:
    """Calls of set_config()."""
    setting = names[0] if len(names) == 1 else ""
    return Judgement(sql.STATEMENT, setting=setting, settings=names, local=local)


def pinned(pin: str, **more: object) -> Judgement:
    return Judgement(sql.STATEMENT, pin, looks=True, **more)  # type: ignore[arg-type]


def many(first: int, **more: object) -> Judgement:
    return Judgement(sql.MANY, first=first, **more)  # type: ignore[arg-type]


HARMLESS = Judgement(sql.STATEMENT)
LOOKS = Judgement(sql.STATEMENT, looks=True)
LOCAL = Judgement(sql.STATEMENT, local=True)
ANY = Judgement(sql.STATEMENT, settings=("*",))
NOTIFIES = Judgement(sql.STATEMENT, notifies=True)
DEFAULTS = Judgement(sql.STATEMENT, looks=True, defaults=True)
AUTHORIZATION = Judgement(sql.STATEMENT, settings=("session_authorization", "role"))
CHARACTERISTICS = Judgement(
    sql.STATEMENT,
    settings=(
        "default_transaction_isolation",
        "default_transaction_read_only",
        "default_transaction_deferrable",
    ),
)


def databases(*names: str) -> Judgement:
    return Judgement(sql.STATEMENT, databases=names)


def databases_and_looks(*names: str) -> Judgement:
    return Judgement(sql.STATEMENT, databases=names, looks=True)


ROWS: list[tuple[Judgement, list[str]]] = [
    (
        HARMLESS,
        [
            "SELECT 1",
            "SELECT set_configuration(1)",
            "SELECT 'set_config(1)', \"Set_Config\"(1)",
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT * FROM advisory, pg_settings, notify",
            "SELECT 'pg_notify'",
            "INSERT INTO t VALUES ('LISTEN a; NOTIFY a; SET a = 1')",
            "UPDATE t SET role = 'a', notify = 1",
            "SET CONSTRAINTS ALL DEFERRED",
            "DISCARD PLANS",
            "DISCARD SEQUENCES",
            "SHOW role",
            "SHOW ALL",
            "FETCH ALL FROM c",
            "DECLARE c CURSOR FOR SELECT 1",
            "DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1",
            "CREATE TABLE t (a int)",
            "CREATE ROLE r",
            "CREATE FUNCTION f() RETURNS void SET role = 'a' LANGUAGE sql AS 'SELECT 1'",
            "COMMENT ON DATABASE d IS 'a'",
            "GRANT CONNECT ON DATABASE d TO r",
            "REINDEX DATABASE d",
            "EXPLAIN SELECT 1",
        ],
    ),
    (Judgement(sql.COPY), ["COPY t FROM STDIN", "COPY (SELECT 1) TO STDOUT"]),
    # Settings.
    (
        one("search_path"),
        [
            "SET search_path = a, b",
            "SET SESSION search_path TO a",
            "SET SCHEMA 'a'",
            "SET SESSION SCHEMA 'a'",
            "RESET search_path",
            "set Search_Path from current",
            'SET "search_path" = DEFAULT',
        ],
    ),
    (
        one("timezone"),
        [
            "SET TIME ZONE 'UTC'",
            "SET SESSION TIME ZONE LOCAL",
            "SET TIME ZONE INTERVAL '1' HOUR TO MINUTE",
            "SET TIME ZONE -7",
            "SET TimeZone TO 'UTC'",
            "RESET TIME ZONE",
            "RESET TimeZone",
        ],
    ),
    (one("client_encoding"), ["SET NAMES 'UTF8'", "SET SESSION NAMES", "SET client_encoding = 1"]),
    (one("xmloption"), ["SET XML OPTION DOCUMENT", "SET SESSION XML OPTION CONTENT"]),
    (
        one("role"),
        [
            "SET ROLE a",
            "SET SESSION ROLE 'a'",
            "SET ROLE NONE",
            'SET ROLE "A b"',
            "SET role = a",
            "SET role TO DEFAULT",
            "RESET ROLE",
        ],
    ),
    (
        AUTHORIZATION,
        [
            "SET SESSION AUTHORIZATION a",
            "SET SESSION SESSION AUTHORIZATION DEFAULT",
            "SET session_authorization = a",
            "RESET SESSION AUTHORIZATION",
            "RESET session_authorization",
            "SELECT set_config('session_authorization', 'a', false)",
        ],
    ),
    (
        CHARACTERISTICS,
        [
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET SESSION SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        ],
    ),
    (
        one("app.tenant"),
        [
            "SET app.tenant = 1",
            "SET App . Tenant TO 'a'",
            'SET "app"."tenant" = 1',
            'SET "App.Tenant" = 1',
            "RESET app.tenant",
            'SET"app".tenant=1',
            'SET SESSION"app".tenant TO 1',
        ],
    ),
    (one("a" * 63 + "." + "b" * 63), [f"SET {'a' * 70}.{'b' * 64} = 1"]),
    (one("local.a"), ["SET local.a = 1", "SET SESSION local.a = 1"]),
    (
        LOCAL,
        [
            "SET LOCAL search_path = a",
            "SET LOCAL ROLE a",
            "SET LOCAL TIME ZONE 'UTC'",
            "SET LOCAL SESSION AUTHORIZATION a",
            "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET TRANSACTION READ ONLY",
            "SET TRANSACTION SNAPSHOT 'a'",
            "SET SESSION TRANSACTION READ ONLY",
            "SET LOCAL TRANSACTION READ ONLY",
            "SET transaction_isolation = 'serializable'",
            "SET transaction_read_only TO on",
            "RESET TRANSACTION ISOLATION LEVEL",
            "SET seed = 0.5",
            "SELECT set_config('a.b', 'c', true)",
            "SELECT set_config('a.b', 'c', true), set_config($1, $2, TRUE)",
            "SELECT pg_catalog.set_config('a.b', (SELECT max(b) FROM t), true)",
            "SELECT set_config(n, v, true) FROM t",
            "SELECT set_config('transaction_read_only', 'on', false)",
        ],
    ),
    (
        ANY,
        [
            "RESET ALL",
            "SET",
            "RESET",
            "SET a b",
            'SET "a b" = 1',
            "SET é.a = 1",
            "UPDATE pg_settings SET setting = 'b' WHERE name = 'a'",
            "update only pg_catalog.pg_settings set setting = 'b'",
            "UPDATE ONLY (pg_settings) SET setting = 'b'",
            "WITH x AS (SELECT 1) UPDATE pg_settings SET setting = 'b'",
            "EXPLAIN ANALYZE UPDATE \"pg_settings\" SET setting = 'b'",
        ],
    ),
    (
        config("a.b"),
        [
            "SELECT set_config('a.b', 'c', false)",
            "select pg_catalog.set_config('A.b', '', FALSE);",
            "SELECT set_config('a.b'::text, $$c$$ :: text, false)",
            "SELECT set_config(E'a.b', U&'c', false)",
            "SELECT set_config($x$a.b$x$, $1::text, false)",
            "SELECT set_config('a.b', (SELECT max(b) FROM t), false)",
            "SELECT set_config('a.b', ARRAY['c', 'd'][1], false)",
            "SELECT \"set_config\"('a.b', 'c', false)",
            "SELECT * FROM set_config('a.b', 'c', false)",
            "UPDATE t SET a = set_config('a.b', 'c', false)",
            "WITH x AS (SELECT set_config('a.b', 'c', false)) SELECT * FROM x",
            "VALUES ('d', set_config('a.b', 'c', false))",
            "SELECT 'd', set_config('a.b', 'e', false), 'f'",
            "SELECT set_config('a.b', '1', false), set_config('A.B', '2', false)",
            "CREATE TABLE t AS SELECT set_config('a.b', 'c', false)",
        ],
    ),
    (config("search_path"), ["SELECT set_config('Search_Path', '', false)"]),
    (config("a" * 70), [f"SELECT set_config('{'a' * 70}', '', false)"]),
    (
        config("a.b", local=True),
        [
            "SELECT set_config('a.b', 'c', $1)",
            "SELECT set_config('a.b', 'c', 1 = 2)",
            "SELECT set_config('a.b', 'c', 'f')",
            "SELECT set_config('a.b', 'c', not true)",
            "SELECT set_config('a.b', is_local => true, new_value => 'c')",
            "SELECT set_config('a.b', 'c', false), set_config('d', 'e', true)",
            "SELECT set_config('d', 'e', true), set_config('a.b', 'c', false)",
            "SELECT set_config('d', set_config('a.b', 'c', false), true)",
        ],
    ),
    (config("a.b", "c"), ["SELECT set_config('a.b', '1', false), set_config('c', '2', false)"]),
    (
        config("*"),
        [
            "SELECT set_config($1, 'b', false)",
            "SELECT set_config(a, 'b', false) FROM t",
            "SELECT set_config('a' || 'b', 'c', false)",
            "SELECT set_config('a'\n'b', 'c', false)",
            "SELECT set_config(U&'\\0061', 'c', false)",
            "SELECT set_config(E'\\x61', 'c', false)",
            "SELECT set_config('', 'c', false)",
            "SELECT set_config('a b', 'c', false)",
            "SELECT set_config(n'a', 'c', false)",
        ],
    ),
    (
        config("*", local=True),
        [
            "SELECT set_config($1, $2, $3)",
            "SELECT set_config(is_local => true, setting_name => 'a', new_value => 'b')",
            "SELECT set_config(VARIADIC a)",
            "SELECT set_config FROM t",
        ],
    ),
    (
        Judgement(sql.COPY, settings=("a.b",)),
        ["COPY (SELECT set_config('a.b', 'c', false)) TO STDOUT"],
    ),
    (
        Judgement(sql.OURS_SET, setting="txproxy.a", value="1", settings=("txproxy.a",)),
        ["SET txproxy.a = 1", "SET LOCAL TxProxy.a TO '1'", 'SET "txproxy".a = $$1$$'],
    ),
    (Judgement(sql.OURS_SET, setting="txproxy.a", settings=("txproxy.a",)), ["RESET txproxy.a"]),
    (Judgement(sql.OURS_SHOW, setting="txproxy.a"), ["SHOW txproxy.a"]),
    # What keeps a backend.
    (
        pinned("temporary table"),
        [
            "CREATE TEMP TABLE t (a int)",
            "CREATE TEMPORARY VIEW v AS SELECT 1",
            "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
            "CREATE LOCAL TEMP SEQUENCE s",
            "CREATE TEMP RECURSIVE VIEW v (a) AS SELECT 1",
            "CREATE TABLE pg_temp.t (a int)",
            'CREATE TABLE "pg_temp".t (a int)',
            "CREATE TYPE pg_temp.t AS (a int)",
            "SELECT 1 INTO TEMP t",
            "SELECT 1 INTO TEMPORARY TABLE t",
            "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
            "DROP TABLE pg_temp.t",
        ],
    ),
    (
        Judgement(
            sql.SET_ONE,
            "temporary table",
            setting="search_path",
            settings=("search_path",),
            looks=True,
        ),
        ["SET search_path = pg_temp", "SET search_path TO 'pg_temp', a", "SET SCHEMA 'pg_temp'"],
    ),
    (
        pinned("temporary table", local=True),
        [
            "SET LOCAL search_path = pg_temp",
            "SELECT set_config('search_path', 'pg_temp', true)",
        ],
    ),
    (
        pinned("temporary table", settings=("search_path",), setting="search_path"),
        ["SELECT set_config('search_path', 'pg_temp', false)"],
    ),
    (
        pinned("temporary table", settings=("a",)),
        ["CREATE TEMP TABLE t AS SELECT set_config('a', 'b', false)"],
    ),
    (
        pinned("advisory lock"),
        [
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_catalog.pg_try_advisory_lock(1, 2)",
            "SELECT pg_advisory_lock_shared(1)",
            'SELECT "pg_try_advisory_lock_shared"(1)',
            "SELECT pg_advisory_unlock(1), pg_advisory_lock(2)",
            "TABLE x UNION SELECT pg_advisory_lock(1)",
        ],
    ),
    (
        pinned("advisory lock", notifies=True),
        ["SELECT pg_advisory_lock(1), pg_notify('a', 'b')"],
    ),
    (
        pinned("WITH HOLD"),
        [
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            'DECLARE "c"NO SCROLL CURSOR WITH HOLD FOR SELECT 1',
            "DECLARE c BINARY INSENSITIVE SCROLL CURSOR WITH HOLD FOR TABLE t",
        ],
    ),
    (
        pinned("WITH HOLD, advisory lock"),
        ["DECLARE c CURSOR WITH HOLD FOR SELECT pg_advisory_lock(1)"],
    ),
    (
        pinned("PREPARE"),
        ["PREPARE a AS SELECT 1", "PREPARE a (int) AS SELECT $1", "PREPARE transaction AS TABLE t"],
    ),
    (pinned("LOAD"), ["LOAD 'a'"]),
    (
        pinned("unknown statement"),
        ["GARBAGE", "SELECTED", "(INSERT INTO t VALUES (1))", "EXPLAIN"],
    ),
    # What may be over.
    (
        LOOKS,
        [
            "SELECT pg_advisory_unlock(1)",
            "SELECT pg_advisory_unlock_shared(1, 2)",
            "SELECT pg_advisory_unlock_all()",
            "EXPLAIN ANALYZE SELECT pg_advisory_unlock(1)",
            "DROP TABLE t",
            "DROP ROLE r",
            "ALTER TABLE t ADD a int",
            "ALTER SYSTEM SET work_mem = '1MB'",
            "ALTER FUNCTION f() SET work_mem = '1MB'",
            "ALTER ROLE r PASSWORD 'a'",
            "ALTER GROUP r ADD USER s",
            "ALTER USER MAPPING FOR r SERVER s OPTIONS (SET user 'a')",
            "ALTER DATABASE d OWNER TO r",
            "ALTER DATABASE d CONNECTION LIMIT 5",
            "CLOSE c",
            "CLOSE ALL",
            "DISCARD TEMP",
            "DISCARD TEMPORARY",
            "EXECUTE a",
            "EXECUTE a(1, 'b')",
            "EXPLAIN ANALYZE EXECUTE a",
            "CREATE TABLE t AS EXECUTE a",
        ],
    ),
    (
        Judgement(sql.DISCARD_ALL, settings=("*",), looks=True, discards=True),
        ["DISCARD ALL", "discard all;"],
    ),
    # Prepared statements and channels, by their names.
    (
        Judgement(sql.DEALLOCATE, name=b"a", looks=True),
        ["DEALLOCATE a", "DEALLOCATE PREPARE A", 'DEALLOCATE "a"', 'DEALLOCATE PREPARE"a"'],
    ),
    (Judgement(sql.DEALLOCATE, name=b"prepare", looks=True), ["DEALLOCATE prepare"]),
    (Judgement(sql.DEALLOCATE, name=b"preparea", looks=True), ["DEALLOCATE preparea"]),
    (Judgement(sql.DEALLOCATE, name=b"all", looks=True), ['DEALLOCATE "all"']),
    (Judgement(sql.DEALLOCATE, name=b'A "b" \'', looks=True), ['DEALLOCATE "A ""b"" \'"']),
    (
        Judgement(sql.DEALLOCATE, name=b"*", looks=True, discards=True),
        ["DEALLOCATE ALL", "DEALLOCATE PREPARE ALL"],
    ),
    (Judgement(sql.LISTEN, name=b"a"), ["LISTEN a", "LISTEN A;", 'LISTEN"a"']),
    (Judgement(sql.LISTEN, name="É".encode()), ["LISTEN É"]),
    (Judgement(sql.LISTEN, name=b"*"), ['LISTEN "*"']),
    (Judgement(sql.LISTEN, name=b"a; b"), ['LISTEN "a; b"']),
    (Judgement(sql.LISTEN, name=b"a" * 63), ["LISTEN " + "a" * 64, f'LISTEN "{"a" * 70}"']),
    (Judgement(sql.LISTEN, name=b"a" * 62), [f"LISTEN {'a' * 62}é", f'LISTEN "{"a" * 62}é"']),
    (Judgement(sql.LISTEN, name=b"a" * 61 + "é".encode()), [f"LISTEN {'a' * 61}éa"]),
    (Judgement(sql.UNLISTEN, name=b"a", looks=True), ["UNLISTEN a", 'UNLISTEN "a"']),
    (Judgement(sql.UNLISTEN, name=b"*", looks=True), ["UNLISTEN *", "UNLISTEN*"]),
    (
        NOTIFIES,
        [
            "NOTIFY a",
            "NOTIFY a, 'b'",
            "SELECT pg_notify('a', 'b')",
            "select PG_NOTIFY(a, b) from t",
            'SELECT pg_catalog."pg_notify"($1, $2)',
            "WITH x AS (SELECT pg_notify('a', '')) SELECT 1",
            "EXPLAIN ANALYZE SELECT pg_notify('a', '')",
        ],
    ),
    # Databases.
    (
        databases_and_looks("d"),
        [
            "DROP DATABASE d",
            "DROP DATABASE IF EXISTS D",
            "DROP DATABASE d WITH (FORCE)",
            'DROP DATABASE "d"(FORCE)',
            "ALTER DATABASE d RENAME TO e",
            'ALTER DATABASE "d"RENAME TO e',
            "ALTER DATABASE d SET TABLESPACE t",
            "ALTER DATABASE d WITH TABLESPACE t",
            "ALTER DATABASE d TABLESPACE = t",
        ],
    ),
    (databases_and_looks("if"), ["DROP DATABASE if"]),
    (
        databases_and_looks('My "Db"'),
        ['DROP DATABASE IF EXISTS "My ""Db"""', 'ALTER DATABASE "My ""Db""" RENAME TO d'],
    ),
    (
        databases("template1"),
        [
            "CREATE DATABASE d",
            "CREATE DATABASE d WITH OWNER r",
            "CREATE DATABASE template",
            "CREATE DATABASE \"d\"ENCODING 'UTF8'",
            "CREATE DATABASE d TEMPLATE DEFAULT",
            "CREATE DATABASE d OWNER template",
            "CREATE DATABASE d CONNECTION LIMIT = -1",
        ],
    ),
    (
        databases("t"),
        [
            "CREATE DATABASE d TEMPLATE t",
            "CREATE DATABASE d WITH TEMPLATE = 't'",
            'CREATE DATABASE d OWNER template TEMPLATE"t"',
            "CREATE DATABASE d CONNECTION LIMIT -1 ENCODING 'UTF8' TEMPLATE T",
            'CREATE DATABASE "d e" "template" t',
            "CREATE DATABASE d LC_COLLATE = 'C' STRATEGY wal_log TEMPLATE $$t$$ OWNER r",
        ],
    ),
    (
        databases("My Db"),
        ['CREATE DATABASE d TEMPLATE "My Db" OWNER r', "CREATE DATABASE d TEMPLATE 'My Db'"],
    ),
    (
        DEFAULTS,
        [
            "ALTER ROLE r SET search_path = a",
            "ALTER ROLE ALL IN DATABASE d SET role TO 'a'",
            "ALTER ROLE r IN DATABASE d RESET ALL",
            "ALTER USER r SET TIME ZONE 'UTC'",
            'ALTER ROLE "r"RESET work_mem',
            "ALTER DATABASE d SET work_mem FROM CURRENT",
            "ALTER DATABASE d RESET ALL",
            "ALTER DATABASE d SET default_tablespace = 't'",
        ],
    ),
    # Code.
    (
        pinned("DO"),
        ["DO $$ BEGIN PERFORM 1; END $$", "DO LANGUAGE plpgsql 'BEGIN COMMIT; END'"],
    ),
    (
        pinned("DO", settings=("app.tenant",), local=True),
        [
            "DO $$ BEGIN PERFORM set_config('app.tenant', 'a', false); END $$",
            "DO 'BEGIN PERFORM set_config(''App.Tenant'', ''a'', b); END'",
            "DO $$ BEGIN SET app.tenant = 1; END $$",
            "DO $$ BEGIN SET LOCAL app.tenant TO 1; END $$",
            "DO $$ BEGIN EXECUTE 'SET SESSION \"app.tenant\" = 1'; END $$",
        ],
    ),
    (
        pinned("DO", settings=("app.tenant", "*"), local=True),
        [
            "DO $$ BEGIN SET app.tenant = 1; RESET ALL; END $$",
            "DO $$ BEGIN SET app.tenant = 1; PERFORM set_config(a, b, true); END $$",
            "DO $$ BEGIN SET app.tenant = 1; EXECUTE 'SET ' || a; END $$",
        ],
    ),
    (
        pinned("DO", settings=("session_authorization", "role"), local=True),
        ["DO $$ BEGIN PERFORM set_config('session_authorization', 'a', false); END $$"],
    ),
    (
        pinned("DO", settings=("*",), local=True, defaults=True),
        ["DO $$ BEGIN EXECUTE 'ALTER ROLE r RESET ALL'; END $$"],
    ),
    (pinned("DO", listens=True, notifies=True), ["DO $$ BEGIN LISTEN a; NOTIFY a; END $$"]),
    (pinned("DO", discards=True), ["DO $$ BEGIN DEALLOCATE ALL; END $$"]),
    (pinned("CALL"), ["CALL p()", "CALL p(1, 'a')"]),
    (
        pinned("CALL", settings=("a.b",), local=True),
        ["CALL p(set_config('a.b', 'c', false))"],
    ),
    # Several.
    (
        many(
            sql.STATEMENT,
            settings=("*",),
            looks=True,
            listens=True,
        ),
        ["SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;"],
    ),
    (many(sql.SET_ONE, settings=("a.b", "c")), ["SET a.b = 1; SET c = 2; RESET a.b"]),
    (many(sql.SET_ONE, settings=("a.b", "*")), ["SET a.b = 1; RESET ALL"]),
    (many(sql.OURS_SET, settings=("txproxy.a",)), ["SET txproxy.a = 1; SELECT 1"]),
    (many(sql.BEGIN, begins=True, ends=True, local=True), ["BEGIN; SET LOCAL a.b = 1; COMMIT"]),
    (many(sql.LISTEN, listens=True), ["LISTEN a; LISTEN b"]),
    (many(sql.STATEMENT, listens=True, looks=True), ["SELECT 1; UNLISTEN a"]),
    (many(sql.STATEMENT, looks=True, discards=True), ["SELECT 1; DEALLOCATE ALL"]),
    (many(sql.DEALLOCATE, looks=True), ["DEALLOCATE a; DEALLOCATE b"]),
    (
        many(sql.DISCARD_ALL, settings=("*",), looks=True, discards=True),
        ["DISCARD ALL; SELECT 1"],
    ),
    (many(sql.STATEMENT, notifies=True), ["SELECT 1; NOTIFY a", "SELECT 1; SELECT pg_notify(1)"]),
    (
        many(sql.STATEMENT, looks=True, databases=("a", "b", "template1")),
        ["DROP DATABASE a; DROP DATABASE b; CREATE DATABASE b; CREATE DATABASE a"],
    ),
    (many(sql.STATEMENT, looks=True, defaults=True), ["SELECT 1; ALTER ROLE r SET a = 1"]),
    (
        many(sql.STATEMENT, pin="temporary table, advisory lock", looks=True),
        ["CREATE TEMP TABLE t (a int); SELECT pg_advisory_lock(1); DROP TABLE t"],
    ),
]


def cannot_judge(**more: object) -> Judgement:
    return pinned("cannot judge", begins=True, ends=True, savepoint=True, **more)


CANNOT_JUDGE: list[tuple[Judgement, list[str]]] = [
    (
        cannot_judge(),
        [
            "SELECT 1; SELECT 'a",
            "SELECT 1; SELECT (1",
            "SELECT 1; SELECT 1E'a'",
            "BEGIN NONSENSE",
            "DEALLOCATE",
            "DEALLOCATE *",
            "DEALLOCATE a b",
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END",
        ],
    ),
    (cannot_judge(listens=True), ["LISTEN", "LISTEN *", 'LISTEN ""', "LISTEN a.b", "UNLISTEN a b"]),
    (cannot_judge(settings=("a.b", "*"), local=True), ["SELECT 1; SET a.b = 1; SELECT 'a"]),
    (cannot_judge(settings=("*",), local=True), ["SELECT 'a; RESET ALL"]),
    (
        cannot_judge(settings=("a.b", "*"), local=True),
        ["CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT set_config('a.b', 'c', false); END"],
    ),
    (cannot_judge(discards=True), ["SELECT 1; DEALLOCATE ALL; SELECT 'a"]),
    (cannot_judge(notifies=True), ["SELECT 1; NOTIFY a; SELECT 'a"]),
    (cannot_judge(defaults=True, settings=("*",), local=True), ["ALTER ROLE r RESET ALL; 'a"]),
    (
        cannot_judge(settings=("*",), local=True, notifies=True),
        ['SELECT U&"a"', 'SELECT 1; SELECT u&"a"'],
    ),
    (
        cannot_judge(listens=True, settings=("*",), local=True, notifies=True),
        ['LISTEN U&"a"', "UNLISTEN u&\"\\0061\" UESCAPE '!'"],
    ),
]


@pytest.mark.parametrize(
    ("expected", "text"),
    [(expected, text) for expected, texts in ROWS + CANNOT_JUDGE for text in texts],
)
def test_effects(expected: Judgement, text: str) -> None:
    assert judge(text.encode()) == expected


PLAINLY_SPELLED = [
    text
    for _, texts in ROWS
    for text in texts
    if not re.search(r"[a-df-zA-DF-Z]'|'\n|é|É|[^\w]&", text)
    and not text.startswith(("DO", "CALL"))
]


@untimed
@given(
    st.sampled_from(PLAINLY_SPELLED).flatmap(lambda text: st.tuples(st.just(text), respelled(text)))
)
def test_spelling_does_not_matter(texts: tuple[str, str]) -> None:
    judgement, other = (judge(text.encode()) for text in texts)
    assert other == judgement


ALL = [text for _, texts in ROWS for text in texts]


@untimed
@given(st.lists(st.sampled_from(ALL), min_size=2, max_size=4))
def test_many_mean_what_each_means(texts: list[str]) -> None:
    each = [judge(text.encode()) for text in texts]
    assume(all(judgement.kind != sql.MANY for judgement in each))
    together = judge("\n;".join(texts).encode())
    assert together.kind == sql.MANY
    reasons = [reason for judgement in each for reason in judgement.pin.split(", ") if reason]
    assert together.pin == ", ".join(dict.fromkeys(reasons))
    assert together.settings == tuple(
        dict.fromkeys(setting for judgement in each for setting in judgement.settings)
    )
    assert together.databases == tuple(
        dict.fromkeys(database for judgement in each for database in judgement.databases)
    )
    assert together.listens == any(
        judgement.listens or judgement.kind in {sql.LISTEN, sql.UNLISTEN} for judgement in each
    )
    for flag in ("local", "looks", "discards", "notifies", "defaults"):
        assert getattr(together, flag) == any(getattr(judgement, flag) for judgement in each)


names = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=15
)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@untimed
@given(names, st.booleans())
def test_quoted_names_are_exact(name: str, conforming: bool) -> None:
    said = quoted(name)
    for text, kind in (
        (f"LISTEN {said}", sql.LISTEN),
        (f"UNLISTEN {said}", sql.UNLISTEN),
        (f"DEALLOCATE PREPARE {said}", sql.DEALLOCATE),
    ):
        judgement = judge(text.encode(), conforming)
        assert (judgement.kind, judgement.name) == (kind, name.encode())
        assert not judgement.discards


@untimed
@given(names, names, st.booleans())
def test_databases_are_exact(name: str, other: str, conforming: bool) -> None:
    for text in (
        f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)",
        f"ALTER DATABASE {quoted(name)} RENAME TO {quoted(other)}",
        f"CREATE DATABASE {quoted(other)} OWNER {quoted(other)} TEMPLATE {quoted(name)} LOCALE 'C'",
        f"CREATE DATABASE {quoted(other)} LOCALE {quoted(other)} TEMPLATE = {quoted(name)}",
    ):
        assert judge(text.encode(), conforming).databases == (name,)


SETTERS = ["SET {} = 1", "SET SESSION {} TO 1", "RESET {}"]
# No $ behind a digit: there the lexer may give up.
parts = st.from_regex(r"\A(?:[A-Za-z_]\$?)(?:[A-Za-z_]\$?|[0-9]){0,8}\Z")


@untimed
@given(st.lists(parts, min_size=2, max_size=3), st.sampled_from(SETTERS), st.booleans())
def test_settings_are_exact(name: list[str], setter: str, conforming: bool) -> None:
    assume(name[0].lower() != "txproxy")
    whole = ".".join(name).lower()
    for said in (".".join(name), " . ".join(map(quoted, name)), quoted(".".join(name))):
        assert judge(setter.format(said).encode(), conforming) == one(whole)
    said = f"SELECT 'x', set_config('{'.'.join(name)}', $1, false), 'y'"
    assert judge(said.encode(), conforming) == config(whole)


@untimed
@given(
    st.lists(
        st.sampled_from(
            ["set_config(", "(", ")", "[", "]", ",", "'a'", "true", "false", '"a"', " "]
        ),
        max_size=20,
    )
)
def test_calls_in_any_shape_are_read(pieces: list[str]) -> None:
    text = "SELECT " + "".join(pieces)
    judgement = judge(text.encode())
    if re.search(r"\bset_config\(", text) and judgement.pin != "cannot judge":
        assert judgement.settings or judgement.local


def test_what_is_not_there_may_do_anything() -> None:
    assert cannot_judge(settings=("*",), local=True) == sql.UNREAD
