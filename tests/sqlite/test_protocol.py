"""The protocol, as standard clients and as our own speak it."""

import math

import asyncpg
import psycopg
import pytest

from tests.sqlite.endpoint import Endpoint, eventually
from tests.sqlite.raw import SYNC, Raw, bind, close_portal, describe, execute, parse
from txproxy.wire import encode

SERIES = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?) SELECT i"


def test_the_greeting_says_whose_file_it_is(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        told = client.status()
        assert told["txproxy.file"] == str(shared.path(database).resolve())
        found = shared.path(database).stat()
        assert told["txproxy.file_id"] == f"{found.st_dev}:{found.st_ino}"
        assert told["txproxy.journal_mode"] == "wal"
        assert told["txproxy.sqlite_version"].startswith("3.")
        assert client.greeting.status == "I"


def test_a_file_that_is_not_there(shared: Endpoint) -> None:
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(shared.conninfo("nothing.db"))


def test_a_file_that_is_no_database(shared: Endpoint) -> None:
    shared.path("text.db").write_text("Lorem ipsum dolor sit amet, " * 100)
    with pytest.raises(psycopg.OperationalError, match="not a database"):
        psycopg.connect(shared.conninfo("text.db"))


def test_psycopg(shared: Endpoint, database: str) -> None:
    with psycopg.connect(shared.conninfo(database), autocommit=True) as client:
        for b in (1, 2.5, "text", b"\x00\xff", None, True):
            client.execute("INSERT INTO t (b) VALUES (%s)", (b,))
        rows = client.execute("SELECT a, b, typeof(b) FROM t").fetchall()
        assert rows == [
            (1, "1", "integer"),
            (2, "2.5", "real"),
            (3, "text", "text"),
            (4, "\\x00ff", "blob"),
            (5, None, "null"),
            (6, "1", "integer"),
        ]
        with client.transaction():
            client.execute("INSERT INTO t (b) VALUES ('x')")
            with client.transaction(force_rollback=True):
                client.execute("INSERT INTO t (b) VALUES ('y')")
        assert client.execute("SELECT count(*) FROM t").fetchone() == ("7",)


def test_psycopg_deallocates_after_a_rollback(shared: Endpoint, database: str) -> None:
    with psycopg.connect(shared.conninfo(database), autocommit=True) as client:
        client.prepare_threshold = 0
        for _ in range(3):
            client.execute("BEGIN")
            client.execute("INSERT INTO t (b) VALUES (%s)", (1,))
            client.execute("ROLLBACK")
        for command in ("deallocate prepare one;", 'DEALLOCATE "two"', "DEALLOCATE ALL"):
            said = client.execute(command.encode(), prepare=False).statusmessage
            assert said == ("DEALLOCATE ALL" if command.endswith("ALL") else "DEALLOCATE")


def test_psycopg_in_a_pipeline(shared: Endpoint, database: str) -> None:
    with psycopg.connect(shared.conninfo(database), autocommit=True) as client:
        with client.pipeline():
            cursors = [client.execute("INSERT INTO t (b) VALUES (%s)", (i,)) for i in range(50)]
        assert [cursor.rowcount for cursor in cursors] == [1] * 50
        with client.cursor() as cursor:
            cursor.executemany("INSERT INTO t (b) VALUES (%s)", [(i,) for i in range(50)])
            assert cursor.rowcount == 50
        assert client.execute("SELECT count(*) FROM t").fetchone() == ("100",)


async def test_asyncpg(shared: Endpoint, database: str) -> None:
    client = await asyncpg.connect(
        host=str(shared.directory), port=5432, user="u", database=database
    )
    try:
        assert await client.execute("INSERT INTO t (b) VALUES ($1)", "x") == "INSERT 1 1"
        # $2 stands first: SQLite would number it 1.
        rows = await client.fetch("SELECT $2 AS second, $1 AS first, a FROM t", "1", "2")
        assert [tuple(row) for row in rows] == [("2", "1", 1)]
        async with client.transaction():
            await client.execute("INSERT INTO t (b) VALUES ($1)", "y")
            cursor = await client.cursor("SELECT a FROM t ORDER BY a")
            assert await cursor.fetch(1) == [(1,)]
            assert await cursor.fetch(5) == [(2,)]
        with pytest.raises(asyncpg.UniqueViolationError):
            await client.execute("INSERT INTO t (a) VALUES (1)")
    finally:
        await client.close()


@pytest.mark.parametrize(
    "value",
    [0, -1, 2**63 - 1, -(2**63), 0.1, -0.0, math.inf, -math.inf, "", "ä\0b", b"", b"\0\xff", None],
)
def test_values_are_exact(shared: Endpoint, value: float | str | bytes | None) -> None:
    if not shared.path("values.db").exists():
        shared.create("values.db")
    with Raw(shared, "values.db") as client:
        [(found,)] = client.rows("SELECT ?", value)
        assert (type(found), repr(found)) == (type(value), repr(value))


def test_declared_types_travel_in_the_private_format(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        assert client.run("SELECT a, b, a + 1 AS c FROM t").columns == [
            ("a", "INTEGER"),
            ("b", ""),
            ("c", ""),
        ]


def test_parameters_of_our_clients_come_in_order(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        assert client.rows("SELECT :x, @y, $z, ?, :x", 1, 2, 3, 4) == [(1, 2, 3, 4, 1)]
        assert client.rows("SELECT $2, $1", "a", "b") == [("a", "b")]
        assert client.run("SELECT ?, ?", 1).errors[0]["C"] == "08P01"


def test_as_many_parameters_as_bind_can_count(shared: Endpoint, database: str) -> None:
    count = 32_766
    with Raw(shared, database) as client:
        marks = ",".join("?" * count)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM json_each(json_array({marks})))"
        reply = client.run(sql, *range(count))
        assert reply.errors or reply.rows == [(count,)]  # a function's arguments are fewer
        rows = ",".join(["(?)"] * count)
        assert client.run(f"INSERT INTO t (b) VALUES {rows}", *range(count)).tags == [
            f"INSERT {count} {count}"
        ]


def test_tags(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        assert client.run("INSERT INTO t (b) VALUES (1), (2)").tags == ["INSERT 2 2"]
        assert client.run("REPLACE INTO t VALUES (9, 1)").tags == ["INSERT 9 1"]
        assert client.run("UPDATE t SET b = 3").tags == ["UPDATE 3"]
        assert client.run("DELETE FROM t WHERE a < 3").tags == ["DELETE 2"]
        assert client.run("SELECT * FROM t").tags == ["SELECT 1"]
        assert client.run("CREATE INDEX i ON t (b)").tags == ["CREATE INDEX"]


def test_returning(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        reply = client.run("INSERT INTO t (b) VALUES ('x'), ('y') RETURNING a, b")
        assert (reply.rows, reply.tags) == ([(1, "x"), (2, "y")], ["INSERT 2 2"])


def test_a_query_of_several_statements(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        reply = client.query("CREATE TABLE u (x); INSERT INTO u VALUES (1); SELECT 'a;b' FROM u;")
        assert reply.kinds == "CCTDCZ"
        assert reply.tags == ["CREATE TABLE", "INSERT 1 1", "SELECT 1"]
        reply = client.query("INSERT INTO u VALUES (2); SELECT nothing; INSERT INTO u VALUES (3)")
        assert reply.kinds == "CEZ"
        assert client.query("BEGIN; INSERT INTO u VALUES (4); COMMIT").kinds == "CCCZ"
        assert client.rows("SELECT x FROM u") == [(1,), (2,), (4,)]
        trigger = "CREATE TRIGGER r AFTER INSERT ON u BEGIN UPDATE u SET x = 5; SELECT 1; END"
        assert client.query(f"{trigger}; SELECT 6").tags == ["CREATE TRIGGER", "SELECT 1"]


@pytest.mark.parametrize("sql", ["", " ", "-- nothing", "/* not */ ;"])
def test_an_empty_query(shared: Endpoint, database: str, sql: str) -> None:
    with Raw(shared, database) as client:
        assert client.query(sql).kinds == "IZ"
        assert client.run(sql).kinds == "12nIZ"


def test_one_statement_for_each_parse(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        reply = client.run("SELECT 1; SELECT 2")
        assert reply.errors[0]["M"] == "You can only execute one statement at a time."
        assert client.rows("SELECT 1; -- and no more") == [(1,)]


def test_after_an_error_all_is_skipped_up_to_sync(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        reply = client.ask(
            parse("INSERT INTO t (a) VALUES (?)"),
            bind(1),
            execute(),
            bind(1),
            execute(),
            bind(2),
            execute(),
            parse("SELECT 1", "kept"),
        )
        assert reply.kinds == "12C2EZ"
        assert reply.errors[0] == {
            "S": "ERROR",
            "V": "ERROR",
            "C": "23505",
            "M": "UNIQUE constraint failed: t.a",
            "F": "sqlite",
            "L": "1555",
            "R": "SQLITE_CONSTRAINT_PRIMARYKEY",
        }
        # What came before the failure stays, as in SQLite's autocommit.
        assert client.rows("SELECT a FROM t") == [(1,)]
        assert client.ask(bind(name="kept"), execute()).errors[0]["C"] == "26000"


def test_executemany_is_one_sync(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        messages = [parse("INSERT INTO t (b) VALUES (?)")]
        for i in range(1000):
            messages += [bind(i), execute()]
        reply = client.ask(*messages)
        assert reply.kinds == "1" + "2C" * 1000 + "Z"
        assert reply.tags[-1] == "INSERT 1000 1"


def test_named_statements(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        assert client.ask(parse("SELECT * FROM t", "s")).kinds == "1Z"
        assert client.ask(parse("SELECT 1", "s")).errors[0]["C"] == "42P05"
        assert client.ask(bind(name="s"), describe(), execute()).columns == [
            ("a", "INTEGER"),
            ("b", ""),
        ]
        client.query("ALTER TABLE t ADD COLUMN c TEXT")
        reply = client.ask(bind(name="s"), describe(), execute())
        assert [name for name, _ in reply.columns] == ["a", "b", "c"]
        closing = encode.message(b"C", b"Ss\0")
        assert client.ask(closing, bind(name="s")).kinds == "3EZ"


def test_a_portal_with_a_row_limit_goes_on_after_sync(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        reply = client.ask(parse(f"{SERIES} FROM s"), bind(5), execute(2))
        assert (reply.kinds, reply.rows) == ("12DDsZ", [(1,), (2,)])
        reply = client.ask(execute(2))
        assert (reply.kinds, reply.rows) == ("DDsZ", [(3,), (4,)])
        reply = client.ask(execute(2))
        assert (reply.kinds, reply.rows) == ("DCZ", [(5,)])
        assert client.ask(execute(2)).tags == ["SELECT 0"]


def test_portals_keep_their_snapshot_while_others_write(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client, Raw(shared, database) as other:
        client.rows("INSERT INTO t (b) VALUES (1), (2), (3)")
        sql = "SELECT b FROM t"
        messages = (parse(sql), bind(portal="p"), execute(1, "p"), bind(portal="q"))
        assert client.ask(*messages, execute(1, "q")).rows == [(1,), (1,)]
        other.rows("DELETE FROM t")
        assert client.ask(execute(0, "p")).rows == [(2,), (3,)]
        assert client.rows(sql) == []
        eventually(lambda: shared.file(database).get("readers") == 1, "q has the only reader")
        assert client.ask(close_portal("q")).kinds == "3Z"
        eventually(lambda: shared.file(database).get("readers") == 0)


def test_a_long_answer_to_a_client_that_does_not_read(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as slow, Raw(shared, database) as other:
        slow.begin_run(f"{SERIES}, hex(zeroblob(500)) FROM s", 20_000)
        assert other.run("INSERT INTO t (b) VALUES (1)").tags == ["INSERT 1 1"]
        reply = slow.read()
        assert [row[0] for row in reply.rows] == list(range(1, 20_001))
        slow.query("BEGIN IMMEDIATE")
        reply = slow.run(f"{SERIES}, hex(zeroblob(500)) FROM s", 20_000)
        assert (len(reply.rows), reply.status) == (20_000, "T")


def test_cancel(shared: Endpoint, database: str) -> None:
    with psycopg.connect(shared.conninfo(database), autocommit=True) as client:
        number = client.info.backend_pid
        for sql in (f"{SERIES} FROM s", f"INSERT INTO t (b) {SERIES} FROM s"):
            endless = sql.replace("?", "1e18")
            client.pgconn.send_query(endless.encode())
            eventually(lambda: shared.session(number).get("state") in {"active", "waiting"})
            client.cancel_safe()
            while (result := client.pgconn.get_result()) is not None:
                state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
            assert state == b"57014"
        assert client.execute("SELECT count(*) FROM t").fetchone() == ("0",)


@pytest.mark.parametrize(
    "message",
    [b"Z\0\0\0\4", b"Q\0\0\0\3", b"Q\xff\xff\xff\xff"],
)
def test_what_is_no_message_ends_the_session(
    shared: Endpoint, database: str, message: bytes
) -> None:
    with Raw(shared, database) as client:
        client.send(message)
        kind, body = client.message()
        assert (kind, b"C08P01\0" in body) == ("E", True)
        with pytest.raises(EOFError):
            client.message()


@pytest.mark.parametrize(
    "message",
    [
        encode.message(b"P", b"\0SELECT"),
        encode.message(b"B", b"\0\0\0\1\0"),
        encode.message(b"B", b"\0\0\0\0\0\1\0\0\0\7a\0\0"),
        encode.message(b"E", b"\0\0"),
        encode.message(b"D", b"X\0"),
    ],
)
def test_malformed_messages(shared: Endpoint, database: str, message: bytes) -> None:
    with Raw(shared, database) as client:
        assert client.ask(parse("SELECT 1"), message).errors[0]["C"] == "08P01"
        assert client.rows("SELECT 1") == [(1,)]


def test_bytes_may_come_one_by_one(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        for byte in parse("SELECT 1") + bind() + execute() + SYNC:
            client.send(bytes((byte,)))
        assert client.read().rows == [(1,)]


def test_a_large_value(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        blob = bytes(range(256)) * 40_000
        client.rows("INSERT INTO t (b) VALUES (?)", blob)
        assert client.rows("SELECT b FROM t") == [(blob,)]


def test_what_a_session_asks_of_its_last_statement(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client, Raw(shared, database) as other:
        client.rows("INSERT INTO t (b) VALUES (1), (2)")
        other.rows("INSERT INTO t (b) VALUES (3)")
        asked = "SELECT last_insert_rowid(), changes(), total_changes()"
        assert client.rows(asked) == [(2, 2, 2)]
        assert other.rows(asked) == [(3, 1, 1)]
        # Without an insert the last one counts: its own.
        assert client.run("INSERT OR IGNORE INTO t VALUES (1, 1)").tags == ["INSERT 2 0"]


def test_a_portal_is_run_once(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        reply = client.ask(parse("INSERT INTO t (b) VALUES (1)"), bind(), execute(), execute())
        assert (reply.tags, reply.errors[0]["C"]) == (["INSERT 1 1"], "55000")
        assert client.rows("SELECT count(*) FROM t") == [(1,)]
