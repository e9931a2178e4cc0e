"""Who is let go while it sleeps in its transaction, on real servers.

Each statement of a table is run in a transaction on a direct connection and judged by all that
there is: texts, catalog, relations, and what the server says of the backend. What is judged
eligible is then looked at: nothing may be left, and a transaction that ends there and begins again
must go on as the one that did not.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import asyncpg
import psycopg
import pytest
from psycopg import pq

from tests.system.proxy import direct, wait_until
from tests.system.reading import ELIGIBLE, OBJECTS, REFUSED, ROLE
from tests.system.statements import OBJECTS as OTHER_OBJECTS
from tests.system.statements import statement
from tests.system.test_harmless import LOOK
from txproxy.backends import catalog
from txproxy.backends.catalog import Candidate, Knowledge
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.core.eligible import HARMLESS
from txproxy.wire import reads

DATABASE = "eligible"
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
EXAMPLES = 300

WORLD = """
SELECT 'sequence', schemaname || '.' || sequencename, last_value::text FROM pg_sequences
UNION ALL SELECT 'row', ctid::text, concat_ws(' ', xmin, xmax, t) FROM t
UNION ALL SELECT 'large objects', '', count(*)::text FROM pg_largeobject_metadata
UNION ALL SELECT 'relations', '', count(*)::text FROM pg_class
UNION ALL SELECT 'functions', '', count(*)::text FROM pg_proc
UNION ALL SELECT 'prepared', gid, '' FROM pg_prepared_xacts
UNION ALL SELECT 'remote', '', count(*)::text FROM pg_stat_activity
    WHERE application_name = 'postgres_fdw' AND state <> 'idle'
"""
HELD = """
SELECT 'lock', locktype, mode FROM pg_locks WHERE pid = %(pid)s
    AND (locktype, mode) NOT IN (('virtualxid', 'ExclusiveLock'), ('relation', 'AccessShareLock'))
UNION ALL SELECT 'xid', backend_xid::text, backend_xmin::text FROM pg_stat_activity
    WHERE pid = %(pid)s AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)
"""


class Client:
    """A client, next to it a superuser who sees everything, and one who listens."""

    def __init__(self, server: EmbeddedPostgres, database: str) -> None:
        options = "-c client_min_messages=error -c statement_timeout=5s -c lock_timeout=1s"
        self.connection = direct(server, database, ROLE, options=options)
        self.admin = direct(server, database)
        self.listener = direct(server, database)
        self.listener.execute("LISTEN c; LISTEN jobs; LISTEN elsewhere")

    @property
    def pid(self) -> int:
        return self.connection.pgconn.backend_pid

    def run(self, text: str) -> list[Any]:
        """The rows of each of its statements; raises what the server says."""
        connection = self.connection.pgconn
        connection.send_query(text.encode())
        found: list[Any] = []
        error = b""
        while (result := connection.get_result()) is not None:
            if result.status == pq.ExecStatus.COPY_IN:
                connection.put_copy_end()
            elif result.status == pq.ExecStatus.COPY_OUT:
                while connection.get_copy_data(0)[0] > 0:
                    pass
            elif result.status == pq.ExecStatus.FATAL_ERROR:
                error = result.error_message
            else:
                rows = range(result.ntuples)
                found.append(
                    [[result.get_value(r, c) for c in range(result.nfields)] for r in rows]
                )
        if error:
            raise psycopg.Error(error.decode())
        return found

    @property
    def in_transaction(self) -> bool:
        return self.connection.pgconn.transaction_status == pq.TransactionStatus.INTRANS

    def state(self) -> set[Any]:
        """What it has on the server, and what there is besides."""
        self.listener.execute("SELECT")
        told = {("notified", note.channel) for note in self.listener.notifies(timeout=0)}
        own = {tuple(row) for row in self.run(LOOK)[0]}
        return own | set(self.admin.execute(WORLD)) | told

    def held(self) -> list[Any]:
        return self.admin.execute(HELD, {"pid": self.pid}).fetchall()

    def clean(self) -> None:
        self.run("ROLLBACK")
        self.run("DISCARD ALL")
        self.listener.execute("SELECT")
        list(self.listener.notifies(timeout=0))

    def close(self) -> None:
        for each in (self.connection, self.admin, self.listener):
            each.close()


@contextlib.contextmanager
def database(server: EmbeddedPostgres, name: str) -> Iterator[psycopg.Connection[Any]]:
    """A database of this name for as long as it is needed, and a superuser in it."""
    with direct(server, "postgres") as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            with direct(server, name, options="-c client_min_messages=error") as inside:
                yield inside
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def place(server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """A database that nobody else uses."""
    with database(server, DATABASE) as inside:
        text = OBJECTS.replace("{port}", str(server.port)).replace("{database}", DATABASE)
        inside.execute(text.encode())
        yield server


@pytest.fixture(scope="module")
def knowledge(place: EmbeddedPostgres) -> Knowledge:
    """What is learned once for all tests of a server."""
    return Knowledge()


@pytest.fixture(scope="module")
def module_client(place: EmbeddedPostgres) -> Iterator[Client]:
    with contextlib.closing(Client(place, DATABASE)) as client:
        yield client


@pytest.fixture
def client(module_client: Client) -> Iterator[Client]:
    yield module_client
    module_client.clean()


async def connect(server: EmbeddedPostgres, database: str = DATABASE, user: str = ROLE) -> Any:
    return await asyncpg.connect(
        host=server.host,
        port=server.port,
        user=user,
        database=database,
        statement_cache_size=0,
        server_settings={"search_path": ""},
    )


@pytest.fixture
async def monitor(place: EmbeddedPostgres) -> AsyncIterator[Any]:
    """The connection that asks, of the same role as the client."""
    connection = await connect(place)
    yield connection
    await connection.close()


async def why(knowledge: Knowledge, monitor: Any, client: Client, *texts: str) -> str:
    said = Candidate([text.encode() for text in texts])
    found = await knowledge.judge(monitor, {client.pid: said})
    assert found.keys() == {client.pid}
    return found[client.pid]


# The table.


@pytest.mark.parametrize("text", ELIGIBLE)
async def test_who_has_only_read_is_let_go(
    knowledge: Knowledge, monitor: Any, client: Client, text: str
) -> None:
    before = client.state()
    client.run(BEGIN)
    client.run(text)
    again = client.run(text)
    assert await why(knowledge, monitor, client, text) == ""
    assert client.held() == []
    client.run("COMMIT")
    assert client.state() == before
    client.run(BEGIN)
    assert client.run(text) == again
    client.run("ROLLBACK")
    assert client.state() == before


@pytest.mark.parametrize("row", REFUSED)
async def test_who_may_have_done_more_is_not(
    knowledge: Knowledge, monitor: Any, client: Client, row: str
) -> None:
    text, _, reason = row.rpartition(" | ")
    client.run(BEGIN)
    client.run(text)
    assert reason in await why(knowledge, monitor, client, text)
    assert reason in await why(knowledge, monitor, client, "SELECT 1", text, "SELECT 2")


async def test_what_statements_leave_is_refused(server: EmbeddedPostgres) -> None:
    """Statements by the hundred, right and wrong: those that are let go leave nothing."""
    name = "eligible_corpus"
    objects = OTHER_OBJECTS.replace("AUTHORIZATION harmless", f"AUTHORIZATION {ROLE}")
    r = random.Random(4)
    with database(server, name) as inside:
        inside.execute(f"ALTER DATABASE {name} OWNER TO {ROLE}".encode())
        with contextlib.closing(Client(server, name)) as client:
            monitor = await connect(server, name)
            texts = [statement(r) for _ in range(EXAMPLES)]
            assert await let_go(client, monitor, objects, texts) > EXAMPLES / 20
            await monitor.close()


async def let_go(client: Client, monitor: Any, objects: str, texts: list[str]) -> int:
    """How many of these are eligible; each of them leaves nothing."""
    knowledge = Knowledge()
    count = 0
    client.run(objects)
    before = client.state()
    for text in texts:
        client.run(BEGIN)
        with contextlib.suppress(psycopg.Error):
            client.run(text)
        if client.in_transaction and not await why(knowledge, monitor, client, text):
            count += 1
            assert client.held() == [], text
            client.run("COMMIT")
            assert client.state() == before, text
        client.clean()
        if client.state() != before:
            client.run(objects)
            before = client.state()
    return count


# What the server says of a backend.


async def test_a_snapshot_and_whoever_is_busy(
    knowledge: Knowledge, monitor: Any, client: Client
) -> None:
    client.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
    client.run("SELECT 1")
    assert "snapshot" in await why(knowledge, monitor, client, "SELECT 1")
    client.run("ROLLBACK")
    assert "is idle" in await why(knowledge, monitor, client, "SELECT 1")
    client.run("SET statement_timeout = 0")

    client.connection.pgconn.send_query(b"SELECT pg_sleep(600)")
    active = "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
    wait_until(lambda: client.admin.execute(active, [client.pid]).rowcount, bool)
    assert "is active" in await why(knowledge, monitor, client, "SELECT 1")
    client.admin.execute("SELECT pg_cancel_backend(%s)", [client.pid])
    while client.connection.pgconn.get_result() is not None:
        pass


async def test_a_portal_holds_its_snapshot(
    place: EmbeddedPostgres, knowledge: Knowledge, monitor: Any
) -> None:
    text = "SELECT i FROM generate_series(1, 100) AS i"
    holder = await connect(place)
    transaction = holder.transaction()
    await transaction.start()
    cursor = await holder.cursor(text)
    await cursor.fetch(1)
    pid = holder.get_server_pid()
    said = {pid: Candidate([text.encode()])}
    assert await knowledge.judge(monitor, said) == {pid: "it holds a snapshot"}
    await cursor.fetch(1000)
    del cursor
    await transaction.rollback()
    await holder.close()


async def test_without_the_right_to_see_nobody_is_let_go(
    place: EmbeddedPostgres, client: Client
) -> None:
    stranger = await connect(place, user="other")
    client.run(BEGIN)
    client.run("SELECT 1")
    assert "pg_read_all_stats" in await why(Knowledge(), stranger, client, "SELECT 1")
    await stranger.close()
    seer = await connect(place, user="postgres")
    assert await why(Knowledge(), seer, client, "SELECT 1") == ""
    await seer.close()


async def test_many_are_asked_for_at_once(
    place: EmbeddedPostgres, knowledge: Knowledge, monitor: Any
) -> None:
    texts = ["SELECT * FROM author", "SELECT * FROM v_now", "SELECT 1", "SELECT now()", "TABLE t"]
    clients = [direct(place, DATABASE, ROLE) for _ in texts]
    for each, text in zip(clients, texts, strict=True):
        each.execute(BEGIN.encode())
        each.execute(text.encode())
    clients[4].execute("LOCK TABLE t IN SHARE MODE")
    pids = [each.pgconn.backend_pid for each in clients]
    candidates = {pid: Candidate([text.encode()]) for pid, text in zip(pids, texts, strict=True)}
    gone = 2**31 - 1
    found = await knowledge.judge(monitor, candidates | {gone: Candidate([])})
    assert [found[pid] for pid in pids] == [
        "",
        "it has read v_now: it names now(), which stays the same within a transaction",
        "",
        "it names now(), which stays the same within a transaction",
        "it holds a lock: ShareLock on a relation",
    ]
    assert found[gone] == "the server does not say what it holds"
    for each in clients:
        each.close()


# What changes in the catalog.


async def judged(knowledge: Knowledge, monitor: Any, client: Client, text: str) -> str:
    """What is said of a transaction of this statement."""
    client.run(BEGIN)
    client.run(text)
    found = await why(knowledge, monitor, client, text)
    client.run("ROLLBACK")
    return found


class Change(NamedTuple):
    """What is made, how it is undone, a statement, and what is then said of it."""

    make: str
    undo: str
    text: str
    reason: str


CHANGES = [
    Change(
        "CREATE OR REPLACE VIEW v_changing AS SELECT length(stable_f()) AS x",
        "CREATE OR REPLACE VIEW v_changing AS SELECT 1 AS x",
        "TABLE v_changing",
        "stable_f()",
    ),
    Change(
        "CREATE POLICY q ON tenanted USING (now() > '2000-01-01')",
        "DROP POLICY q ON tenanted",
        "TABLE tenanted",
        "now()",
    ),
    Change(
        "CREATE FUNCTION lower(t) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'",
        "DROP FUNCTION lower(t)",
        "SELECT lower('X')",
        "public.lower()",
    ),
    Change(
        "CREATE FUNCTION a(author) RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'",
        "DROP FUNCTION a(author)",
        "SELECT t.a FROM t",
        "public.a()",
    ),
    Change(
        "CREATE DOMAIN setting AS text CHECK (stable_f() IS NOT NULL)",
        "DROP DOMAIN setting",
        "SELECT 'x'::text",
        "the domain setting makes it unsure what is read: it calls public.stable_f()",
    ),
    Change(
        "CREATE DOMAIN luck AS float CHECK (setseed(VALUE) IS NULL)",
        "DROP DOMAIN luck",
        "SELECT 1",
        "the domain luck makes it unsure what is read: it calls setseed()",
    ),
    Change(
        "CREATE DOMAIN past AS date CHECK (VALUE <= CURRENT_DATE)",
        "DROP DOMAIN past",
        "SELECT 1",
        "the domain past",
    ),
    Change(
        "CREATE OPERATOR ==> (LEFTARG = text, RIGHTARG = text, FUNCTION = set_step)",
        "DROP OPERATOR ==> (text, text)",
        "SELECT 1 + 1",
        "the operator ==> makes it unsure what is read: it calls public.set_step()",
    ),
    Change(
        "CREATE OPERATOR ~> (RIGHTARG = timestamptz, FUNCTION = pg_catalog.age)",
        "DROP OPERATOR ~> (NONE, timestamptz)",
        "SELECT 1",
        "the operator ~> makes it unsure what is read: it names age()",
    ),
    Change(
        "CREATE CAST (t AS int) WITH FUNCTION volatile_f(t)",
        "DROP CAST (t AS int)",
        "TABLE t",
        "volatile_f()",
    ),
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.undo for change in CHANGES])
async def test_what_is_made_is_noticed(
    knowledge: Knowledge, monitor: Any, client: Client, change: Change
) -> None:
    assert await judged(knowledge, monitor, client, change.text) == ""
    client.admin.execute(change.make.encode())
    try:
        assert change.reason in await judged(knowledge, monitor, client, change.text)
    finally:
        client.admin.execute(change.undo.encode())
    assert await judged(knowledge, monitor, client, change.text) == ""


async def test_what_is_allowed_is_harmless_wherever_it_stands(monitor: Any, client: Client) -> None:
    knowledge = Knowledge(["stable_f", "other.only_here", "set_all", "setval", "now"])
    client.admin.execute("CREATE DOMAIN setting AS text CHECK (stable_f() IS NOT NULL)")
    try:
        for text in (
            "SELECT stable_f(), public.stable_f(), other.only_here()",
            "SELECT set_all(name) FROM author",
            "TABLE v_own",
            "TABLE v_aggregate",
            "TABLE v_nested",
        ):
            assert await judged(knowledge, monitor, client, text) == "", text
        assert "volatile_f" in await judged(
            knowledge, monitor, client, "SELECT t.volatile_f FROM t"
        )
    finally:
        client.admin.execute("DROP DOMAIN setting")


async def test_what_people_make_with_care_hinders_nothing(
    knowledge: Knowledge, monitor: Any, client: Client
) -> None:
    client.admin.execute(
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0 AND VALUE::text ~ '[0-9]');"
        "CREATE TYPE pair AS (a positive, b text);"
        "CREATE OPERATOR ==> (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_catalog.texteq);"
        "CREATE FUNCTION on_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE FUNCTION slug(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)'"
    )
    try:
        text = "SELECT 'a' OPERATOR(public.==>) 'a', '(1,x)'::pair, s.slug, s.on_change FROM"
        text += " (SELECT 1 AS slug, 2 AS on_change) AS s"
        assert await judged(knowledge, monitor, client, text) == ""
    finally:
        client.admin.execute(
            "DROP OPERATOR ==> (text, text); DROP TYPE pair; DROP DOMAIN positive;"
            "DROP FUNCTION on_change, slug"
        )


OF_EXTENSIONS = """
SELECT 'a'::public.citext = 'A', 'a=>1'::public.hstore -> 'a', 'a.b'::public.ltree @> 'a'
SELECT max(x), min(x), replace('a', 'b', 'c') FROM (SELECT 'a' AS x) AS v
SELECT max(x) FROM (SELECT 'a'::citext AS x) AS v
TABLE v
SELECT 'abc' % 'abd', 'a' <-> 'b', '(1,2)'::cube <-> '(2,3)'::cube
""".strip().splitlines()


async def test_extensions_switch_nothing_off(server: EmbeddedPostgres) -> None:
    """All that came with the server."""
    name = "eligible_contrib"
    with database(server, name) as inside:
        available = {row[0] for row in inside.execute("SELECT name FROM pg_available_extensions")}
        for extension in sorted(available):
            inside.execute(f'CREATE EXTENSION IF NOT EXISTS "{extension}" CASCADE'.encode())
        assert available >= {"citext", "cube", "dblink", "hstore", "ltree", "pg_trgm"}
        inside.execute(
            "CREATE VIEW v AS SELECT x FROM (SELECT 'a'::citext AS x) AS s WHERE x = 'A'"
        )
        inside.execute("GRANT SELECT ON v TO app")
        with contextlib.closing(Client(server, name)) as client:
            monitor = await connect(server, name)
            knowledge = Knowledge()
            for text in OF_EXTENSIONS:
                assert await judged(knowledge, monitor, client, text) == "", text
            text = "SELECT similarity('a', 'b')"
            assert "public.similarity()" in await judged(knowledge, monitor, client, text)
            knowledge = Knowledge(["similarity"])
            assert await judged(knowledge, monitor, client, text) == ""
            await monitor.close()


# What is known of PostgreSQL itself.


async def test_the_server_agrees_about_its_words_and_functions(monitor: Any) -> None:
    reserved = await monitor.fetch("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'C')")
    assert {word.decode() for word in reads.SYNTAX} <= {word for (word,) in reserved}
    builtin = (await catalog.load(monitor)).builtin
    assert all(builtin.get(name, True) for name in HARMLESS - {"statement_timestamp"})


async def test_questions_do_not_wait_for_locks_on_tables(
    knowledge: Knowledge, monitor: Any, client: Client
) -> None:
    client.run(BEGIN)
    client.run("SELECT 1")
    client.admin.execute("BEGIN")
    client.admin.execute("ALTER TABLE author ADD COLUMN more int")
    client.admin.execute("LOCK TABLE v_plain")
    try:
        knowledge = Knowledge()
        assert await why(knowledge, monitor, client, "SELECT 1") == ""
        oid = await monitor.fetchval("SELECT oid FROM pg_class WHERE relname = 'v_plain'")
        assert await catalog.relations(monitor, [oid]) == {oid: ""}
    finally:
        client.admin.execute("ROLLBACK")
