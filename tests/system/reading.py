"""Statements, and whether a transaction of them can be let go while its client sleeps."""

ROLE = "app"

OBJECTS = """
CREATE TABLE author (id int PRIMARY KEY, name text, born timestamptz, data jsonb, active bool);
INSERT INTO author SELECT i, 'name ' || i, '2020-01-01 UTC'::timestamptz + i * interval '1 day',
    jsonb_build_object('a', i, 'tags', jsonb_build_array('x', i)), i % 2 = 0
    FROM generate_series(1, 20) AS i;
CREATE TABLE book (id int PRIMARY KEY, author_id int REFERENCES author, title text, price numeric);
INSERT INTO book SELECT i, 1 + i % 20, 'book ' || i, i / 3.0 FROM generate_series(1, 40) AS i;
CREATE TABLE t (a int, "Age" int);
INSERT INTO t VALUES (1, 2);
CREATE SEQUENCE sq;
CREATE SEQUENCE "S q";

CREATE FUNCTION volatile_f(t) RETURNS int LANGUAGE sql VOLATILE
    AS 'SELECT set_config(''app.x'', ''set'', false) IS NULL; SELECT 1';
CREATE FUNCTION told(name) RETURNS text LANGUAGE sql VOLATILE
    AS 'SELECT set_config(''app.x'', ''set'', false)';
CREATE FUNCTION stable_f() RETURNS text LANGUAGE plpgsql STABLE
    AS 'BEGIN RETURN set_config(''app.x'', ''set'', false); END';
CREATE FUNCTION "Odd ""name"()  RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT nextval(''sq'')';
CREATE FUNCTION initcap(boolean) RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT nextval(''sq'')';
CREATE FUNCTION cube(int) RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT nextval(''sq'')';
CREATE FUNCTION set_step(text, text) RETURNS text LANGUAGE sql VOLATILE
    AS 'SELECT set_config(''app.x'', ''set'', false)';
CREATE AGGREGATE set_all(text) (SFUNC = set_step, STYPE = text);
CREATE SCHEMA other;
CREATE FUNCTION other.only_here() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';

CREATE VIEW v_plain AS SELECT lower(name) AS name, count(*) FROM author GROUP BY 1;
CREATE VIEW v_changing AS SELECT 1 AS x;
CREATE VIEW v_now AS SELECT now() AS moment;
CREATE VIEW v_nested AS SELECT b.title, v.moment FROM book AS b, v_now AS v;
CREATE VIEW v_deep AS SELECT (SELECT max(moment) FROM v_nested) AS moment;
CREATE VIEW v_date AS SELECT CURRENT_DATE AS day;
CREATE VIEW v_text AS SELECT ('now'::text)::date AS day;
CREATE VIEW v_user AS SELECT CURRENT_USER AS name;
CREATE VIEW v_volatile AS SELECT setseed(0.5) IS NULL AS x;
CREATE VIEW v_own AS SELECT stable_f() AS x;
CREATE VIEW v_aggregate AS SELECT set_all(name) AS x FROM author;
CREATE VIEW v_age AS SELECT age(born) AS age FROM author;
CREATE VIEW v_ages AS SELECT age(born, born) AS age FROM author;
CREATE VIEW v_locks AS SELECT a FROM t FOR UPDATE;
CREATE VIEW v_pid AS SELECT pid FROM pg_stat_activity;
CREATE MATERIALIZED VIEW m_now AS SELECT now() AS moment;

CREATE TABLE guarded (a int);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON guarded USING (stable_f() IS NOT NULL);
CREATE TABLE tenanted (a int, tenant text);
INSERT INTO tenanted VALUES (1, 'me');
ALTER TABLE tenanted ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON tenanted FOR SELECT USING (tenant = coalesce(
    current_setting('app.tenant', true), 'me') AND EXISTS (SELECT FROM author));
CREATE POLICY w ON tenanted FOR INSERT WITH CHECK (stable_f() IS NULL);
CREATE TABLE tenanted_now (a int);
ALTER TABLE tenanted_now ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON tenanted_now USING (EXISTS (SELECT FROM v_now));

CREATE TABLE parts (a int, b text) PARTITION BY LIST (a);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE fars (a int, b text) PARTITION BY LIST (a);
CREATE TABLE fars_1 PARTITION OF fars FOR VALUES IN (1);
CREATE TABLE remote_table (a int, b text);
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION tablefunc;
CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw
    OPTIONS (host '127.0.0.1', port '{port}', dbname '{database}');
CREATE USER MAPPING FOR app SERVER self OPTIONS (user 'app', password_required 'false');
CREATE FOREIGN TABLE far (a int, b text) SERVER self OPTIONS (table_name 'remote_table');
CREATE FOREIGN TABLE fars_2 PARTITION OF fars FOR VALUES IN (2) SERVER self
    OPTIONS (table_name 'remote_table');
GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app;
GRANT USAGE ON SCHEMA other TO app;
GRANT CREATE, USAGE ON SCHEMA public TO app;
"""

ELIGIBLE = r"""
SELECT 1
(select 1) union (select 2)
((SELECT 1 UNION ALL SELECT 2) EXCEPT (SELECT 3)) ORDER BY 1
select 'nextval(1)'
select 1 -- nextval('sq')
select 1 /* nextval('sq'); /* SET x = 1 */ */
select 1 as nextval
select 1 as "nextval('sq')"
select $$ FOR UPDATE nextval('sq') $$, $q$ INTO $q$
select current_setting('app.x',true)
select * from t tablesample system (100)
select * from t tablesample bernoulli (100) repeatable (1)
SELECT random() < 2, clock_timestamp() IS NULL, gen_random_uuid() IS NULL, timeofday() IS NULL
SELECT statement_timestamp() > '2020-01-01', pg_is_in_recovery(), pg_sleep(0) IS NULL
SELECT 1; SELECT 2
;
/* ping */
SHOW server_version
SHOW ALL
show transaction isolation level
VALUES (1, 'a'), (2, lower('B'))
TABLE t
WITH x AS (SELECT * FROM author), y AS MATERIALIZED (SELECT 1) SELECT count(*) FROM x, y
WITH RECURSIVE r(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT sum(n) FROM r
SELECT "author"."id", "author"."name" FROM "author" WHERE "author"."active" ORDER BY "author"."name" ASC LIMIT 21
SELECT COUNT(*) AS "__count" FROM "author"
SELECT "book"."id", "author"."name" FROM "book" INNER JOIN "author" ON ("book"."author_id" = "author"."id") WHERE "author"."name" = 'name 3'
SELECT "book"."id" FROM "book" LEFT OUTER JOIN "author" ON ("book"."author_id" = "author"."id") WHERE "author"."id" IS NULL
SELECT "author"."id" FROM "author" WHERE "author"."id" IN (1, 2, 3)
SELECT "author"."id" FROM "author" WHERE ("author"."name"::text LIKE 'name%' AND NOT ("author"."id" = 4)) ORDER BY 1
SELECT "author"."id" FROM "author" WHERE UPPER("author"."name"::text) LIKE UPPER('%ME 1%') ORDER BY 1
SELECT "author"."id" FROM "author" WHERE "author"."name" ILIKE ANY (ARRAY['a%', '%1'])
SELECT DATE_TRUNC('month', "author"."born" AT TIME ZONE 'Europe/Paris') AS "m", COUNT("author"."id") FROM "author" GROUP BY 1 ORDER BY 1
SELECT EXTRACT(YEAR FROM "author"."born" AT TIME ZONE 'UTC') FROM "author" WHERE "author"."born" BETWEEN '2020-01-01T00:00:00+00:00'::timestamptz AND '2020-02-01T00:00:00+00:00'::timestamptz
SELECT ("author"."born" AT TIME ZONE 'UTC')::date FROM "author" ORDER BY 1
SELECT CASE WHEN "author"."active" THEN 'yes' WHEN ("author"."id" > 3) THEN 'no' ELSE NULL END AS "x" FROM "author" ORDER BY "author"."id"
SELECT ROW_NUMBER() OVER (PARTITION BY "author"."active" ORDER BY "author"."id" DESC) AS "n" FROM "author" ORDER BY 1
SELECT SUM("book"."price") FILTER (WHERE ("book"."id" > 3)) AS "s", AVG("book"."price"), MAX("book"."id") FROM "book"
SELECT first_value(id) OVER w FROM book WINDOW w AS (PARTITION BY author_id ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) ORDER BY 1
SELECT COALESCE(MAX("book"."price"), (0)::numeric(10, 2)), NULLIF(1, 2), GREATEST(1, 2), LEAST(1, 2) FROM "book"
SELECT "author"."data" -> 'a', "author"."data" #>> '{tags,0}', "author"."data" @> '{"a": 1}'::jsonb FROM "author" ORDER BY "author"."id"
SELECT (data ->> 'a')::int, jsonb_path_query_first(data, '$.tags[1]') FROM author ORDER BY id
SELECT "author"."id" FROM "author" WHERE EXISTS(SELECT 1 AS "a" FROM "book" U0 WHERE (U0."author_id" = ("author"."id")) LIMIT 1) ORDER BY 1
SELECT STRING_AGG("author"."name", ', ' ORDER BY "author"."id"), ARRAY_AGG(DISTINCT "author"."active") FROM "author"
SELECT CONCAT("author"."name", (' ')::text), LENGTH('x'::text), SUBSTRING("author"."name", 1, 2) FROM "author" WHERE false AND NOT true
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY price), count(DISTINCT author_id) FROM book
SELECT author_id, active, count(*) FROM book JOIN author ON author.id = author_id GROUP BY GROUPING SETS ((author_id), (active), ()) ORDER BY 1, 2
SELECT active, id % 2, count(*) FROM author GROUP BY ROLLUP (1, 2) ORDER BY 1, 2
SELECT a.name, b.title FROM author a CROSS JOIN LATERAL (SELECT title FROM book WHERE author_id = a.id LIMIT 1) b ORDER BY 1
SELECT DISTINCT ON (author_id) author_id, id FROM book ORDER BY author_id, id OFFSET 2 ROWS FETCH FIRST (3) ROWS ONLY
SELECT trim(both ' ' from ' x '), position('a' in 'ba'), overlay('abc' placing 'x' from 2 for 1), left('abc', 1)
SELECT CAST('1' AS varchar(10)), '2'::character varying(5), interval(3) '1 second', timestamp '2020-01-01', 'x'::char(3)
SELECT i.n FROM generate_series(1, 3) AS i(n) JOIN unnest(ARRAY[1, 2]) WITH ORDINALITY AS u(a, b) ON u.a = i.n
SELECT (ARRAY(SELECT id FROM author ORDER BY id))[1:2], ROW(1, 2) = ROW(1, 2), 1 OPERATOR(pg_catalog.+) 2
SELECT t."Age", t.a, (t).a, public.t.a FROM public.t
SELECT date_part('year', age(born, '2000-01-01'::timestamptz)) FROM author ORDER BY 1
SELECT * FROM json_to_recordset('[{"a": 1}]') AS x(a int)
SELECT row_to_json(x) FROM (SELECT 1 AS a) AS x
SELECT pg_catalog.lower('X'), "lower"('Y'), PG_CATALOG . "upper" ('z')
SELECT to_tsvector('english', 'a cat') @@ to_tsquery('english', 'cat'), ts_rank(to_tsvector('a'), to_tsquery('a'))
SELECT regexp_replace('abc', 'b', 'x'), md5('x'), E'it\'s\n', N'x', B'101', X'1F', 1e5, .5, 1.5e-3
SELECT current_user, session_user, current_schema, current_schema(), current_database(), user
SELECT has_table_privilege('author', 'update'), to_regclass('author'), pg_table_is_visible('author'::regclass)
SELECT c.relname, pg_get_expr(d.adbin, d.adrelid) FROM pg_class c LEFT JOIN pg_attrdef d ON d.adrelid = c.oid WHERE c.relname = 'author'
SELECT last_value FROM sq
SELECT xmin, ctid, tableoid FROM t
SELECT name, setting FROM pg_settings WHERE name = 'work_mem'
SELECT * FROM v_plain ORDER BY name
SELECT * FROM v_user
SELECT * FROM v_ages
SELECT * FROM m_now
SELECT * FROM tenanted
SELECT * FROM parts
SELECT * FROM fars_1
SELECT * FROM t WHERE a = 1 AND 'know nowhere' <> ''
SELECT loid FROM pg_largeobject_metadata AS m(loid)
SELECT '2020-01-01'::timestamp + '1 day'::interval, date '2020-01-01' - 1
SELECT "author"."name" COLLATE "C" FROM "author" WHERE "author"."id" = ANY (ARRAY[1, 2]) ORDER BY 1
SELECT a, cube.b FROM (SELECT 1 AS a, 2 AS b) AS cube
""".strip().splitlines()  # noqa: E501
"""Each is executed on a server and leaves nothing."""

REFUSED = r"""
select nextval('sq') | nextval(), which is volatile
select pg_catalog . nextval ('sq') | nextval()
select nextval/**/('sq') | nextval()
select "nextval"('sq') | nextval()
select NextVal('sq') | nextval()
select 1 + NEXTVAL('"S q"'::regclass) | nextval()
select ('sq'::regclass).nextval | nextval()
select (('sq')::regclass)."nextval" | nextval()
select distinct on (1) nextval('sq') | nextval()
select case when true then nextval('sq') end | nextval()
select (array[1,2])[nextval('sq')] | nextval()
select * from t order by nextval('sq') | nextval()
select * from nextval('sq') as nextval(nextval) | nextval()
select setval('sq', 100) | setval()
select currval('sq') from (select nextval('sq')) as x | currval()
select 1; select nextval('sq') | nextval()
with x as (select nextval('sq')) select 1 from x | nextval()
values (nextval('sq')) | nextval()
select U&"pg_notif\0079"('c','x') | read surely
select U&"pg!005fnotify" UESCAPE '!' ('c', 'x') | read surely
select U&'\0061' | read surely
select pg_notify('c', 'x') | pg_notify()
NOTIFY c | one plain SELECT
LISTEN c | one plain SELECT
SET work_mem = '1MB' | one plain SELECT
SET LOCAL work_mem = '1MB' | one plain SELECT
SET TIME ZONE 'UTC' | one plain SELECT
RESET work_mem | one plain SELECT
SET TRANSACTION READ ONLY | one plain SELECT
SELECT set_config('app.x', 'y', true) | set_config()
SELECT set_config('app.x', 'y', false) | set_config()
SELECT setseed(0.5) | setseed()
SELECT pg_advisory_lock(1) | pg_advisory_lock()
SELECT pg_try_advisory_xact_lock(1) | pg_try_advisory_xact_lock()
LOCK TABLE t IN ACCESS SHARE MODE | one plain SELECT
DECLARE c CURSOR FOR SELECT 1 | one plain SELECT
DECLARE c CURSOR WITH HOLD FOR SELECT 1 | one plain SELECT
PREPARE p AS SELECT 1 | one plain SELECT
SAVEPOINT a | one plain SELECT
EXPLAIN ANALYZE SELECT nextval('sq') | one plain SELECT
DO 'BEGIN END' | one plain SELECT
COPY t TO STDOUT | one plain SELECT
INSERT INTO t VALUES (3) | one plain SELECT
UPDATE t SET a = 1 WHERE false | one plain SELECT
DELETE FROM t WHERE false | one plain SELECT
with x as (insert into t values (1) returning a) select * from x | it changes data
with x as (update t set a = 1 where false returning a) select * from x | changes data
with x as (delete from t where false returning a) select 1 | changes data
with x as (select 1) delete from t where false | changes data
CREATE TEMP TABLE tt (a int) | one plain SELECT
CREATE TABLE pg_temp.tt AS SELECT 1 | one plain SELECT
SELECT 1 AS a INTO made | SELECT INTO
SELECT 1 AS a INTO TEMP made | SELECT INTO
SELECT * FROM t FOR UPDATE | FOR UPDATE
SELECT * FROM t WHERE false FOR UPDATE | FOR UPDATE
SELECT * FROM t WHERE false FOR NO KEY UPDATE | locks rows
SELECT * FROM t WHERE false FOR SHARE OF t NOWAIT | locks rows
(SELECT * FROM t LIMIT 0 FOR KEY SHARE) | locks rows
SELECT * FROM (SELECT * FROM t FOR/**/UPDATE) AS x | FOR UPDATE
SELECT lo_create(0) | lo_create()
SELECT lo_from_bytea(0, 'x') | lo_from_bytea()
SELECT pg_export_snapshot() | pg_export_snapshot()
SELECT txid_current() | txid_current()
SELECT txid_current_if_assigned() | txid_current_if_assigned()
SELECT pg_current_xact_id() | pg_current_xact_id()
SELECT pg_current_snapshot() | pg_current_snapshot()
SELECT pg_backend_pid() | pg_backend_pid()
SELECT now() | now(), which stays the same
SELECT pg_catalog.now() | now()
SELECT "now"() | now()
SELECT transaction_timestamp() | transaction_timestamp()
SELECT CURRENT_TIMESTAMP | current_timestamp
SELECT current_timestamp(3) | current_timestamp
SELECT CURRENT_DATE | current_date
SELECT current_time | current_time
SELECT localtime | localtime
SELECT localtimestamp | localtimestamp
SELECT localtimestamp(0) AS x | localtimestamp
SELECT 'now'::timestamptz | now, today
SELECT ' TODAY 10:00'::timestamp | now, today
SELECT date 'tomorrow' | now, today
SELECT CAST($$yesterday$$ AS date) | now, today
SELECT E'n\x6fw'::timestamptz | read surely
SELECT age(born) FROM author | age()
SELECT (born).age FROM author | age()
SELECT age(xmin) FROM t | age()
SELECT * FROM pg_stat_activity WHERE pid = 0 | pg_stat_activity
SELECT pg_stat_get_xact_numscans('t'::regclass) | pg_stat
SELECT * FROM "pg_stat_user_tables" | pg_stat
SELECT * FROM v_pid WHERE pid = 0 | pg_stat
SELECT pid FROM pg_locks WHERE false | pg_lock_status()
SELECT name FROM pg_cursors | pg_cursor()
SELECT t.volatile_f FROM t | volatile_f()
SELECT t."volatile_f" FROM public . t | volatile_f()
SELECT (t).volatile_f FROM t | volatile_f()
SELECT volatile_f(t) FROM t | volatile_f()
SELECT public.volatile_f(t) FROM t | volatile_f()
select q.nextval from to_regclass('sq') as q | nextval()
select "Q"."nextval" from to_regclass('sq') "Q" (x) | nextval()
select to_regclass.nextval from to_regclass('sq') | nextval()
select q.age from make_timestamptz(2020, 1, 1, 1, 1, 1) q | age()
select q.told from current_user as q | told()
select "current_user".told from current_user | told()
select q.told from cast('x' as name) as q | told()
select q.told from rows from (name('x')) as q | told()
SELECT stable_f() | stable_f()
SELECT "Odd ""name"() | Odd "name()
SELECT initcap(true) | initcap()
SELECT cube(1) | cube()
SELECT other.only_here() | only_here()
SELECT set_all(name) FROM author | set_all()
SELECT set_all(name) OVER (ORDER BY id) FROM author | set_all()
SELECT * FROM crosstab('SELECT 1, 2, set_config(''app.x'', ''y'', false)') AS x(a int, b text) | crosstab()
SELECT * FROM ts_stat('SELECT to_tsvector(set_config(''app.x'', ''y'', false))') | ts_stat()
SELECT ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, plainto_tsquery(set_config(''app.x'', ''y'', false))') | ts_rewrite()
SELECT * FROM v_now | v_now: it names now()
SELECT title FROM v_nested WHERE false | v_now
SELECT * FROM v_deep | v_now
SELECT * FROM v_date | v_date
SELECT * FROM v_text | v_text
SELECT * FROM v_volatile | setseed()
SELECT * FROM v_own | stable_f()
SELECT * FROM v_aggregate | set_all()
SELECT * FROM v_age | age()
SELECT * FROM v_locks | it has written
SELECT table_name FROM information_schema.columns LIMIT 0 | information_schema
SELECT * FROM guarded | stable_f()
SELECT * FROM tenanted_now | v_now
SELECT * FROM far | foreign table
SELECT * FROM fars | foreign table
SELECT a FROM fars WHERE a = 2 | foreign table
SELECT relname FROM pg_class WHERE pg_relation_size(oid) < 0 | pg_relation_size()
""".strip().splitlines()  # noqa: E501
"""Each is executed on a server, and what is said about it."""

REFUSED.append("select nextval -- x\n('sq') | nextval()")
