"""Statements by the thousand: a corpus, and what becomes of it when it is spelled otherwise, put
together, and broken.

Strings stay with the statement that they come from, so that no function gets a body that does more
than 'SELECT 1'; what functions do is not judged.
"""

import random

from tests.wire.spelling import SPACES, TOKEN
from tests.wire.test_sql_effects import CANNOT_JUDGE, ROWS

OBJECTS = """
DROP SCHEMA IF EXISTS public CASCADE;
CREATE SCHEMA public AUTHORIZATION harmless;
CREATE TABLE t (a int PRIMARY KEY, b text DEFAULT 'x');
INSERT INTO t VALUES (1, 'one'), (2, 'two');
CREATE TABLE u (a int REFERENCES t DEFERRABLE, c int);
CREATE TABLE temp (a int);
CREATE SEQUENCE s;
CREATE VIEW v AS SELECT * FROM t;
CREATE MATERIALIZED VIEW m AS SELECT * FROM t;
CREATE PROCEDURE p(text DEFAULT '') LANGUAGE sql AS 'SELECT 1';
CREATE RULE r AS ON INSERT TO u DO ALSO NOTIFY elsewhere;
"""

# What a session may have before: a prepared statement, a cursor, a lock, a table, a channel.
STATE = """
PREPARE a AS SELECT 1;
PREPARE "B b" (int) AS SELECT $1;
DECLARE c CURSOR WITH HOLD FOR SELECT 1;
SELECT pg_advisory_lock(1);
SELECT pg_advisory_lock_shared(2, 3);
CREATE TEMP TABLE tt (a int);
LISTEN jobs;
SET work_mem = '3MB';
SET app.tenant = 'me';
SET TIME ZONE 'Asia/Tokyo';
"""

RUNNABLE = r"""
SELECT * FROM t
SELECT a, count(*) FROM t GROUP BY a HAVING count(*) > 0 ORDER BY 1 LIMIT 5
SELECT t.a, u.c FROM t LEFT JOIN u ON u.a = t.a WHERE t.b LIKE '%o%'
SELECT * FROM t FOR UPDATE
SELECT nextval('s'), currval('s')
SELECT 'a;b', "b", e'\n' FROM t
SELECT $$ SET work_mem = '1MB' $$, $q$ LISTEN x $q$
SELECT b AS "set_config('work_mem', '1MB', false)" FROM t
SELECT current_setting('work_mem')
SELECT * FROM pg_settings WHERE name = 'work_mem'
SELECT 1 INTO created_table
SELECT temp.a FROM temp
VALUES (1, 'a'), (2, 'b')
TABLE t
WITH x AS (SELECT 1) SELECT * FROM x
WITH x AS (INSERT INTO t VALUES (3) RETURNING a) SELECT * FROM x
(SELECT 1) UNION ALL (SELECT 2) ORDER BY 1
INSERT INTO t VALUES (4, 'it''s; fine')
INSERT INTO t (a) SELECT 5 ON CONFLICT (a) DO UPDATE SET b = 'y'
INSERT INTO u VALUES (1, 2)
INSERT INTO temp VALUES (1)
UPDATE t SET b = 'z' WHERE a = 1 RETURNING *
DELETE FROM u USING t WHERE u.a = t.a
MERGE INTO u USING t ON u.a = t.a WHEN MATCHED THEN DELETE
TRUNCATE u
LOCK TABLE t IN SHARE MODE
COPY t TO STDOUT
COPY t (a, b) FROM STDIN WITH (FORMAT csv)
COPY (SELECT * FROM t) TO STDOUT
CREATE TABLE created_table (a int, temp text)
CREATE UNLOGGED TABLE created_table AS SELECT * FROM t
CREATE TABLE created_table (LIKE t INCLUDING ALL)
CREATE INDEX created_index ON t (b)
CREATE VIEW created_view AS SELECT a FROM t
CREATE OR REPLACE VIEW v AS SELECT * FROM t
CREATE SEQUENCE created_sequence
CREATE SCHEMA created_schema CREATE TABLE x (a int)
CREATE TYPE created_type AS ENUM ('a', 'b')
CREATE DOMAIN created_domain AS int CHECK (value > 0)
CREATE FUNCTION created_function() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE FUNCTION created_function() RETURNS int LANGUAGE sql SET work_mem = '1MB' AS $$SELECT 1$$
CREATE RULE created_rule AS ON DELETE TO u DO ALSO (UPDATE t SET b = 'd'; NOTIFY elsewhere)
CREATE STATISTICS created_statistics ON a, b FROM t
CREATE POLICY created_policy ON t USING (a > 0)
CREATE TABLE created_table (a int) PARTITION BY RANGE (a)
ALTER TABLE t ADD COLUMN d int DEFAULT 1
ALTER TABLE t ALTER COLUMN b SET DEFAULT 'w'
ALTER TABLE tt ADD COLUMN d int
ALTER TABLE tt RENAME TO tt2
ALTER SEQUENCE s RESTART
ALTER FUNCTION p RENAME TO p2
DROP TABLE u
DROP TABLE tt
DROP TABLE IF EXISTS tt, u CASCADE
DROP VIEW v
DROP SCHEMA IF EXISTS created_schema CASCADE
COMMENT ON TABLE t IS 'SET work_mem = 1; pg_temp'
GRANT SELECT ON t TO public
REVOKE ALL ON t FROM public
ANALYZE t
VACUUM t
VACUUM (ANALYZE) u
REINDEX TABLE t
CLUSTER t USING t_pkey
REFRESH MATERIALIZED VIEW m
EXPLAIN SELECT * FROM t
EXPLAIN (ANALYZE, COSTS off) SELECT * FROM t
EXPLAIN ANALYZE INSERT INTO t VALUES (7)
EXPLAIN ANALYZE SELECT set_config('work_mem', '5MB', false)
EXPLAIN ANALYZE SELECT pg_advisory_lock(9)
EXPLAIN ANALYZE CREATE TEMP TABLE created_temp AS SELECT 1
EXPLAIN ANALYZE EXECUTE a
SHOW work_mem
SHOW ALL
BEGIN
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY
START TRANSACTION READ WRITE
COMMIT
COMMIT AND CHAIN
ROLLBACK
ROLLBACK AND CHAIN
END
ABORT
SAVEPOINT a
RELEASE SAVEPOINT a
ROLLBACK TO a
PREPARE TRANSACTION 'x'
SET work_mem = '1MB'
SET SESSION work_mem TO '2MB'
SET LOCAL work_mem = '4MB'
RESET work_mem
RESET ALL
SET search_path TO public, pg_catalog
SET SCHEMA 'public'
SET NAMES 'LATIN1'
SET client_encoding TO UTF8
SET TIME ZONE 'Europe/Paris'
SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE
SET TIME ZONE LOCAL
SET TimeZone = 'UTC'
SET DateStyle = 'German'
SET XML OPTION DOCUMENT
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, NOT DEFERRABLE
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ
SET SESSION TRANSACTION READ ONLY
SET transaction_read_only = on
SET default_transaction_read_only = on
SET CONSTRAINTS ALL DEFERRED
SET ROLE harmless_other
SET SESSION ROLE harmless_other
SET LOCAL ROLE harmless_other
SET role = 'harmless_other'
SET ROLE NONE
RESET ROLE
SET SESSION AUTHORIZATION DEFAULT
RESET SESSION AUTHORIZATION
SET app.tenant = 'you'
SET "app"."tenant" TO 'her'
SET app.tenant TO DEFAULT
RESET app.tenant
SET enable_seqscan FROM CURRENT
SELECT set_config('work_mem', '6MB', false)
SELECT set_config('app.tenant', 'him', false), set_config('work_mem', '7MB', true)
SELECT pg_catalog.set_config('work_mem', b || '00kB', a > 1) FROM t
SELECT set_config(name, setting, false) FROM pg_settings WHERE name LIKE 'enable_%'
SELECT set_config(setting_name => 'work_mem', new_value => '8MB', is_local => false)
SELECT set_config('work_mem', '9MB', is_local => (SELECT false))
SELECT set_config('search_path', 'pg_temp, public', false)
INSERT INTO t VALUES (8, set_config('app.tenant', 'them', false))
UPDATE t SET b = set_config('work_mem', '10MB', false)
UPDATE pg_settings SET setting = '1234' WHERE name = 'work_mem'
UPDATE ONLY pg_catalog.pg_settings AS s SET setting = '1235' WHERE s.name = 'work_mem'
WITH x AS (SELECT 'work_mem' AS n) UPDATE pg_settings SET setting = '1236' FROM x WHERE name = n
SELECT pg_advisory_lock(10)
SELECT pg_try_advisory_lock(11), pg_try_advisory_lock_shared(12, 13)
SELECT pg_catalog.pg_advisory_lock_shared(14)
SELECT pg_advisory_xact_lock(15)
SELECT pg_advisory_unlock(1)
SELECT pg_advisory_unlock_shared(2, 3)
SELECT pg_advisory_unlock_all()
SELECT a FROM t WHERE pg_try_advisory_lock(16, a)
CREATE TEMP TABLE created_temp (a int)
CREATE TEMP TABLE created_temp ON COMMIT DROP AS SELECT 1
CREATE TEMPORARY SEQUENCE created_temp
CREATE LOCAL TEMP VIEW created_temp AS SELECT * FROM t
CREATE OR REPLACE TEMP VIEW created_temp AS SELECT * FROM t
CREATE TEMP RECURSIVE VIEW created_temp (a) AS SELECT 1
CREATE TABLE pg_temp.created_temp (a int)
CREATE FUNCTION pg_temp.created_temp() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE TYPE pg_temp.created_temp AS (a int)
CREATE INDEX ON tt (a)
SELECT * INTO TEMP created_temp FROM t
SELECT 1 AS a INTO TEMPORARY TABLE created_temp
SELECT 1 AS a INTO LOCAL TEMP created_temp
INSERT INTO tt VALUES (1)
DECLARE d CURSOR WITH HOLD FOR SELECT * FROM t
DECLARE d NO SCROLL CURSOR WITH HOLD FOR SELECT * FROM t
DECLARE d CURSOR FOR SELECT * FROM t
DECLARE d CURSOR WITHOUT HOLD FOR SELECT * FROM t
FETCH 1 FROM c
MOVE ALL FROM c
CLOSE c
CLOSE ALL
PREPARE d AS SELECT * FROM t
PREPARE "D d" (int) AS INSERT INTO t VALUES ($1)
EXECUTE a
EXECUTE "B b"(1)
CREATE TABLE created_table AS EXECUTE a
DEALLOCATE a
DEALLOCATE PREPARE "B b"
DEALLOCATE ALL
DEALLOCATE PREPARE ALL
DISCARD ALL
DISCARD TEMP
DISCARD PLANS
DISCARD SEQUENCES
LISTEN jobs
LISTEN "Other Jobs"
UNLISTEN jobs
UNLISTEN *
NOTIFY jobs
NOTIFY jobs, 'payload; LISTEN x'
SELECT pg_notify('jobs', 'now')
DO $$ BEGIN PERFORM 1; END $$
DO $$ BEGIN SET work_mem = '11MB'; END $$
DO 'BEGIN PERFORM set_config(''app.tenant'', ''us'', false); END'
DO $$ BEGIN EXECUTE 'SET ' || 'work_mem = ''12MB'''; END $$
DO $$ BEGIN SET ROLE harmless_other; END $$
DO $$ BEGIN CREATE TEMP TABLE created_temp (a int); PERFORM pg_advisory_lock(17); END $$
DO $$ BEGIN UPDATE t SET b = 'q'; UPDATE pg_settings SET setting = '1237' WHERE name = 'work_mem'; END $$
DO $$ BEGIN LISTEN x; DEALLOCATE ALL; RESET ALL; END $$
CALL p()
ALTER DATABASE harmless SET work_mem = '13MB'
ALTER DATABASE harmless RESET ALL
ALTER ROLE harmless SET work_mem = '13MB'
ALTER ROLE harmless RESET ALL
DROP DATABASE IF EXISTS missing
SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL
SELECT U&"\0061" FROM t
SELECT U&'\0061'
SELECT U&"set\005fconfig"('work_mem', '14MB', false)
SELECT * FROM t; SELECT 'unterminated
SELECT '\'; SET work_mem = '15MB'; --'
SELECT E'\'; SET work_mem = '16MB'; --'
SELECT $x$ $$ $x$; SET work_mem = '17MB'
SELECT 1 /* ; /* */ SET work_mem = '18MB' */; SELECT 2
""".strip().splitlines()  # noqa: E501

# Each of these changes a session that begins with STATE, if a superuser runs it.
CHANGES = r"""
SET work_mem = '1MB'
SET SESSION work_mem TO DEFAULT
RESET work_mem
RESET ALL
SET app.tenant = 'you'
RESET "app".tenant
SET search_path = pg_temp, public
SET SCHEMA 'pg_catalog'
SET NAMES 'LATIN1'
SET TIME ZONE 'Europe/Paris'
SET TIME ZONE LOCAL
SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE
SET XML OPTION DOCUMENT
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
SET default_transaction_deferrable = on
SET ROLE harmless
SET role TO 'harmless'
SET SESSION AUTHORIZATION harmless
SET session_authorization = 'harmless'
SET enable_seqscan FROM CURRENT
SELECT set_config('work_mem', '6MB', false)
SELECT set_config('app.tenant', 'him', false), 1
SELECT "set_config"('wor' || 'k_mem', '7MB', 1 = 2)
SELECT pg_catalog.set_config(b, a || 'MB', not true) FROM (VALUES (8, 'work_mem')) AS x (a, b)
INSERT INTO t VALUES (8, set_config('app.tenant', 'them', false))
WITH x AS (SELECT set_config('role', 'harmless', false)) SELECT * FROM x
COPY (SELECT set_config('work_mem', '9MB', false)) TO STDOUT
CREATE TABLE created_table AS SELECT set_config('work_mem', '9MB', false)
EXPLAIN ANALYZE SELECT set_config('work_mem', '9MB', false)
UPDATE pg_settings SET setting = '1234' WHERE name = 'work_mem'
WITH x AS (SELECT 1) UPDATE ONLY pg_catalog.pg_settings AS s SET setting = '1235' WHERE s.name = 'work_mem'
SELECT U&"set\005fconfig"('work_mem', '14MB', false)
SELECT pg_advisory_lock(10)
SELECT pg_try_advisory_lock(11), pg_try_advisory_lock_shared(12, 13)
SELECT U&"pg\005fadvisory_lock"(14)
SELECT pg_advisory_unlock(1)
SELECT pg_advisory_unlock_shared(2, 3)
SELECT pg_advisory_unlock_all()
CREATE TEMP TABLE created_temp (a int)
CREATE TEMPORARY SEQUENCE created_temp
CREATE LOCAL TEMP VIEW created_temp AS SELECT * FROM t
CREATE OR REPLACE TEMP VIEW created_temp AS SELECT * FROM t
CREATE TEMP RECURSIVE VIEW created_temp (a) AS SELECT 1
CREATE TABLE pg_temp.created_temp (a int)
CREATE TABLE "pg_temp".created_temp (a int)
CREATE FUNCTION pg_temp.created_temp() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE TYPE pg_temp.created_temp AS (a int)
CREATE TEMP TABLE created_temp AS EXECUTE a
SELECT * INTO TEMP created_temp FROM t
SELECT 1 AS a INTO LOCAL TEMPORARY TABLE created_temp
WITH x AS (SELECT 1 AS a) SELECT * INTO TEMP created_temp FROM x
EXPLAIN ANALYZE CREATE TEMP TABLE created_temp AS SELECT 1
DROP TABLE tt
ALTER TABLE tt RENAME TO tt2
DISCARD TEMP
DISCARD ALL
DECLARE d CURSOR WITH HOLD FOR SELECT * FROM t
DECLARE d NO SCROLL CURSOR WITH HOLD FOR SELECT * FROM t
CLOSE c
CLOSE ALL
PREPARE d AS SELECT * FROM t
DEALLOCATE a
DEALLOCATE PREPARE "B b"
DEALLOCATE ALL
LISTEN "Other Jobs"
UNLISTEN jobs
UNLISTEN *
DO $$ BEGIN SET work_mem = '11MB'; END $$
DO 'BEGIN PERFORM set_config(''app.tenant'', ''us'', false); END'
DO $$ BEGIN PERFORM pg_advisory_lock(17); END $$
CALL p(set_config('work_mem', '2MB', false))
BEGIN; SET work_mem = '1MB'; COMMIT
SELECT 1; SELECT pg_advisory_lock(10); SELECT 2
SELECT $x$ $$ $x$; SET work_mem = '17MB'
SELECT E'\''; SET work_mem = '17MB'; --'
""".strip().splitlines()  # noqa: E501

SEEDS = [*RUNNABLE, *CHANGES, *(text for _, texts in ROWS + CANNOT_JUDGE for text in texts)]

WRAPPERS = [
    "EXPLAIN {}",
    "EXPLAIN ANALYZE {}",
    "EXPLAIN (ANALYZE, FORMAT json) {}",
    "PREPARE d AS {}",
    "DECLARE d CURSOR FOR {}",
    "DECLARE d CURSOR WITH HOLD FOR {}",
    "COPY ({}) TO STDOUT",
    "CREATE TABLE created_table AS {}",
    "CREATE TEMP TABLE created_temp AS {}",
    "WITH x AS ({}) SELECT * FROM x",
    "WITH x AS MATERIALIZED (SELECT 1) {}",
    "SELECT * FROM ({}) AS x",
    "SELECT ARRAY({})",
    "INSERT INTO temp {}",
    "({})",
    "({}) UNION ALL ({})",
    "BEGIN; {}; COMMIT",
    "BEGIN; {}; ROLLBACK",
    "BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; COMMIT",
    "DO $do$ BEGIN {}; END $do$",
    "COMMIT; {}",
    "{}; {}",
    "{};{};{}",
    ";{};",
    "{} -- ; SET work_mem = '19MB'",
    "{} /* ; {} */",
    "SELECT '; {} ;'",
    "SELECT $do$; {} ;$do$",
    'SELECT 1 AS "; {} ;"',
]

_TOKENS = [[found.group() for found in TOKEN.finditer(text)] for text in SEEDS]
_WORDS = sorted({token for tokens in _TOKENS for token in tokens if token.isidentifier()})


def statement(r: random.Random) -> str:
    """A text of one statement or several, as often right as wrong."""
    text = _filled(r, r.choice(WRAPPERS)) if r.random() < 0.4 else _one(r)
    return respelled(r, text) if r.random() < 0.5 else text


def _filled(r: random.Random, wrapper: str) -> str:
    pieces = wrapper.split("{}")
    text = pieces[0]
    for piece in pieces[1:]:
        text += (_filled(r, r.choice(WRAPPERS)) if r.random() < 0.1 else _one(r)) + piece
    return text


def _one(r: random.Random) -> str:
    index = r.randrange(len(SEEDS))
    if r.random() < 0.7:
        return SEEDS[index]
    tokens = list(_TOKENS[index])
    for _ in range(r.choice((1, 1, 2, 3))):
        _break(r, tokens)
    return " ".join(tokens)


def _break(r: random.Random, tokens: list[str]) -> None:
    place = r.randrange(len(tokens)) if tokens else 0
    what = r.randrange(6)
    if what == 0:
        tokens[place : place + 1] = []
    elif what == 1:
        tokens[place:place] = tokens[place : place + 1]
    elif what == 2:
        tokens.insert(place, r.choice(_WORDS))
    elif what == 3:
        other = r.randrange(len(tokens)) if tokens else 0
        tokens[place : place + 1], tokens[other : other + 1] = (
            tokens[other : other + 1],
            tokens[place : place + 1],
        )
    elif tokens and tokens[place].isidentifier():
        tokens[place] = r.choice([r.choice(_WORDS), f'"{tokens[place]}"', f'U&"{tokens[place]}"'])
    elif tokens and tokens[place].startswith("'") and r.random() < 0.8:
        said = tokens[place]
        dollars = "$d$" + said[1:-1].replace("''", "'") + "$d$"
        tokens[place] = r.choice(["E" + said, "U&" + said, "N" + said, "B" + said, dollars])


def respelled(r: random.Random, text: str) -> str:
    """In another case, with other white space and comments."""
    pieces: list[str] = []
    for found in TOKEN.finditer(text):
        token = found.group()
        if token.isidentifier():
            token = r.choice([token, token.lower(), token.upper(), token.swapcase()])
        glued = text[found.start() - 1 : found.start()].strip() and r.random() < 0.7
        pieces += [token] if glued else [r.choice(SPACES), token]
    return "".join(pieces) + r.choice(["", "", ";", *SPACES])
