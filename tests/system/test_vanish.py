"""Clients that are gone, at every boundary of their messages and in the middle of each.

The pool has one backend. After each client the next one is served by it, and by the same one where
its state can be known: a backend is closed only if half a message was sent to it. What was not
committed is not there.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, direct, token, wait_until
from tests.system.wire import Wire
from txproxy.cli.embedded import EmbeddedPostgres

COPY: Final = "COPY vanish FROM STDIN"
MANY_ROWS: Final = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
SLEEP: Final = "SELECT pg_sleep(1000)"


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(postgres, databases={DATABASE: {"pool_size": 1}}) as proxy:
        with direct(postgres) as admin:
            admin.execute("DROP TABLE IF EXISTS vanish")
            admin.execute("CREATE TABLE vanish (id text)")
            admin.execute("GRANT ALL ON vanish TO PUBLIC")
        yield proxy
        proxy.assert_clean()
    with direct(postgres) as admin:
        admin.execute("DROP TABLE vanish")


@dataclass(frozen=True)
class Step:
    """What a client sends in one go, and the types of the message until which it then reads."""

    sent: tuple[bytes, ...]
    until: str = "Z"


def conversation(name: str, key: str) -> list[Step]:
    """The scripts. Each inserts `key`, and commits where it is called a commit."""
    insert = f"INSERT INTO vanish VALUES ('{key}')"
    value = "INSERT INTO vanish VALUES ($1)"
    begin = Step((wire.query("BEGIN"),))
    rows = (wire.copy_data(f"{key}\n".encode()), wire.copy_data(f"{key}\n".encode()))
    scripts = {
        "simple transaction": [
            begin,
            Step((wire.query(insert),)),
            Step((wire.query("SELECT 1"),)),
        ],
        "failed transaction": [
            begin,
            Step((wire.query(insert),)),
            Step((wire.query("SELECT 1/0"),)),
        ],
        "extended pipeline": [
            Step(
                (
                    *(wire.parse("BEGIN"), wire.bind(), wire.execute()),
                    *(wire.parse(value), wire.bind(key), wire.describe(), wire.execute()),
                    wire.SYNC,
                )
            ),
            Step((wire.parse(value), wire.bind(key), wire.execute(), wire.SYNC)),
        ],
        "unsynced parse and describe": [
            Step((wire.parse("SELECT $1::int"), wire.describe("", b"S"), wire.FLUSH), "T"),
        ],
        "unsynced execute": [
            Step((wire.parse(value), wire.bind(key), wire.execute(), wire.FLUSH), "C"),
        ],
        "unsynced error": [
            Step((wire.parse(value), wire.bind(key), wire.execute(), wire.FLUSH), "C"),
            Step((wire.parse("no SQL"), wire.FLUSH), "E"),
            Step((wire.parse(value), wire.bind(key), wire.execute())),
        ],
        "portal suspended": [
            begin,
            Step(
                (
                    wire.parse("SELECT generate_series(1, 1000)"),
                    wire.bind(),
                    wire.execute(rows=5),
                    wire.FLUSH,
                ),
                "s",
            ),
        ],
        "copy in": [
            begin,
            Step((wire.query(COPY),), "G"),
            Step((*rows, wire.COPY_DONE)),
        ],
        "copy in, alone": [
            Step((wire.query(COPY),), "G"),
            Step(rows, ""),
        ],
        "copy in, extended": [
            Step((wire.parse(COPY), wire.bind(), wire.execute(), wire.FLUSH), "G"),
            Step(rows, ""),
        ],
        "copy in, extended, with Sync": [
            Step((wire.parse(COPY), wire.bind(), wire.execute(), wire.SYNC), "G"),
            Step(rows, ""),
        ],
        "copy in, extended, in a transaction": [
            begin,
            Step((wire.parse(COPY), wire.bind(), wire.execute(), wire.FLUSH), "G"),
            Step((*rows, wire.COPY_DONE, wire.SYNC)),
        ],
        "copy in, failing": [
            begin,
            Step((wire.query(COPY),), "G"),
            Step((*rows, wire.copy_data(b"too\tmany\tcolumns\n"), *rows, wire.COPY_DONE)),
        ],
        "copy out, large": [
            Step((wire.query(f"COPY ({MANY_ROWS}) TO STDOUT"),), "H"),
        ],
        "copy out, large, in a transaction": [
            begin,
            Step((wire.query(insert),)),
            Step((wire.query(f"COPY ({MANY_ROWS}) TO STDOUT"),), "H"),
        ],
        "large result": [
            Step((wire.unit(MANY_ROWS),), "T"),
        ],
        "two units, one unread": [
            Step((wire.query("BEGIN"), wire.unit(value, key), wire.query(MANY_ROWS)), ""),
        ],
        "named statement": [
            begin,
            Step((wire.parse(value, "s"), wire.bind(key, name="s"), wire.execute(), wire.SYNC)),
        ],
        "terminate in a transaction": [
            begin,
            Step((wire.query(insert), wire.TERMINATE), ""),
        ],
    }
    return scripts[name]


NAMES: Final = (
    "simple transaction",
    "failed transaction",
    "extended pipeline",
    "unsynced parse and describe",
    "unsynced execute",
    "unsynced error",
    "portal suspended",
    "copy in",
    "copy in, alone",
    "copy in, extended",
    "copy in, extended, with Sync",
    "copy in, extended, in a transaction",
    "copy in, failing",
    "copy out, large",
    "copy out, large, in a transaction",
    "large result",
    "two units, one unread",
    "named statement",
    "terminate in a transaction",
)


def cuts(steps: list[Step]) -> list[tuple[int, int]]:
    """Where to vanish: so many messages are sent, then so many bytes of the next one."""
    sizes = [len(each) for step in steps for each in step.sent]
    middles = [(k, n) for k, size in enumerate(sizes) for n in (1, 5, size - 1) if 0 < n < size]
    return [(k, 0) for k in range(len(sizes) + 1)] + middles


def is_lost(steps: list[Step], messages: int, rest: int) -> bool:
    """Whether nobody can know where the server stands, so that the backend may be closed.

    That is half of a COPY's data, which is sent on as soon as its head is there; an Execute that
    begins a COPY and was not answered yet: what ends a unit is fatal to a server that reads COPY
    data; and a COPY behind whose Execute a Sync was sent: did the server read that in the COPY?
    """
    sent = [each for step in steps for each in step.sent]
    if rest >= 5 and sent[messages].startswith(b"d"):
        return True
    before = [each for each in sent[:messages] if not each.startswith((b"d", b"H"))]
    if before and before[-1] == wire.SYNC:
        return before[-4:-3] == [wire.parse(COPY)]
    unanswered = not any(each.startswith(b"d") for each in sent[:messages])
    return before[-3:-2] == [wire.parse(COPY)] and unanswered


def play(client: Wire, steps: list[Step], messages: int, rest: int) -> None:
    """Send that many messages and `rest` bytes of the next, reading where the script does."""
    left = messages
    for step in steps:
        now = step.sent[:left]
        left -= len(now)
        if len(now) < len(step.sent):
            client.send(b"".join(now) + step.sent[len(now)][:rest])
            return
        client.send(b"".join(now))
        if step.until and left:
            client.until(step.until)


def client_of(proxy: Proxy) -> Wire:
    return Wire.log_in((proxy.host, proxy.port), user=USER, database=DATABASE)


def served_by(proxy: Proxy) -> str:
    """A new client is served, with its own answer; returns the pid of the backend."""
    expected = token()
    with client_of(proxy) as client:
        answer = client.ask(
            wire.query(f"SELECT '{expected}', pg_backend_pid(), count(*) FROM vanish")
        )
        assert not wire.errors(answer), answer
        [[said, pid, count]] = wire.rows(answer)
        assert said == expected
        assert count == "0", "something was committed"
        assert pid is not None
        assert answer[-1].status == "I"
        return pid


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("name", NAMES)
def test_the_backend_is_saved_and_clean(proxy: Proxy, name: str, reset: bool) -> None:
    pid = served_by(proxy)
    steps = conversation(name, token())
    for messages, rest in cuts(steps):
        client = client_of(proxy)
        play(client, steps, messages, rest)
        if reset:
            client.reset()
        else:
            client.close()
        now = served_by(proxy)
        if is_lost(steps, messages, rest):
            pid = now
        assert now == pid, (messages, rest)


def test_half_a_message_that_was_sent_on_costs_the_backend(proxy: Proxy) -> None:
    pid = served_by(proxy)
    large = wire.query(f"INSERT INTO vanish VALUES ('{'x' * 300_000}')")
    with client_of(proxy) as client:
        client.ask(wire.query("BEGIN"))
        client.ask(wire.query("INSERT INTO vanish VALUES ('small')"))
        client.send(large[:200_000])
    assert served_by(proxy) != pid


@pytest.mark.parametrize("sql", [SLEEP, f"INSERT INTO vanish SELECT 'x' FROM ({SLEEP}) AS s"])
@pytest.mark.parametrize("shape", ["query", "extended", "no sync", "transaction", "pipeline"])
def test_a_running_statement_is_cancelled(proxy: Proxy, sql: str, shape: str) -> None:
    pid = served_by(proxy)
    sent = {
        "query": wire.query(sql),
        "extended": wire.unit(sql),
        "no sync": wire.parse(sql) + wire.bind() + wire.execute() + wire.FLUSH,
        "transaction": wire.query("BEGIN") + wire.query(sql),
        "pipeline": wire.query(sql) + wire.query("INSERT INTO vanish VALUES ('behind')"),
    }[shape]
    with client_of(proxy) as client:
        client.send(sent)
        wait_until(lambda: running(proxy.server), lambda found: found)
    if shape == "pipeline":
        # A direct connection's server reads on, and does what was sent before the client left.
        with direct(proxy.server) as admin:
            wait_until(lambda: running(proxy.server), lambda found: not found)
            with client_of(proxy) as client:
                client.value("SELECT 1")
            admin.execute("DELETE FROM vanish")
    assert served_by(proxy) == pid


def running(server: EmbeddedPostgres) -> bool:
    with direct(server) as admin:
        found = admin.execute(
            "SELECT FROM pg_stat_activity WHERE usename = %s AND wait_event = 'PgSleep'", [USER]
        )
        return found.rowcount > 0


@pytest.mark.parametrize("shape", ["simple", "extended", "no sync", "with the insert"])
def test_a_commit_under_way_is_left_to_end(proxy: Proxy, shape: str) -> None:
    """The COMMIT sleeps, in a deferred constraint trigger: a cancel would undo it."""
    key = token()
    insert = f"INSERT INTO vanish VALUES ('{key}')"
    with direct(proxy.server) as admin:
        admin.execute(
            "CREATE OR REPLACE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$"
        )
        admin.execute(
            "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON vanish INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION dawdle()"
        )
        try:
            with client_of(proxy) as client:
                client.ask(wire.query("BEGIN"))
                if shape != "with the insert":
                    client.ask(wire.query(insert))
                client.send(
                    {
                        "simple": wire.query("COMMIT"),
                        "extended": wire.unit("COMMIT"),
                        "no sync": wire.parse("COMMIT") + wire.bind() + wire.execute() + wire.FLUSH,
                        "with the insert": wire.query(insert) + wire.query("COMMIT"),
                    }[shape]
                )
                wait_until(lambda: running(proxy.server), lambda found: found)
            with client_of(proxy) as client:
                found = client.value(f"SELECT count(*) FROM vanish WHERE id = '{key}'")
        finally:
            admin.execute("DROP TRIGGER dawdle ON vanish")
            admin.execute("DELETE FROM vanish")
    assert found == "1"


def test_a_client_that_leaves_the_queue_is_forgotten(proxy: Proxy) -> None:
    """What it wanted is not done once its turn comes."""
    with client_of(proxy) as holder, client_of(proxy) as behind:
        holder.ask(wire.query("BEGIN; SELECT 1"))
        for reset in (False, True):
            with client_of(proxy) as waiting:
                waiting.send(wire.query("INSERT INTO vanish VALUES ('from the queue')"))
                behind_waits = client_of(proxy)
                if reset:
                    waiting.reset()
                behind_waits.close()
        behind.send(wire.query("SELECT 'behind'"))
        # The end of those connections was read before this: a third one is let in.
        client_of(proxy).close()
        holder.ask(wire.query("COMMIT"))
        assert wire.rows(behind.until("Z")) == [["behind"]]
    served_by(proxy)


def test_clients_that_leave_while_they_log_in(proxy: Proxy) -> None:
    hello = wire.startup({"user": USER, "database": DATABASE, "TimeZone": "Asia/Tokyo"})
    pid = served_by(proxy)
    for cut in range(len(hello) + 1):
        client = Wire((proxy.host, proxy.port))
        client.send(hello[:cut])
        client.close()
    # a cancel request of which only a part comes
    for cut in (4, 8, 12, 15):
        with Wire((proxy.host, proxy.port)) as client:
            request = wire.packet(wire.CANCEL_REQUEST, struct.pack("!ii", 1, 2))
            client.send(request[:cut])
    assert served_by(proxy) == pid


@pytest.mark.parametrize(
    ("state", "question"),
    [
        ("SET work_mem = '1MB'", "SHOW work_mem"),
        ("CREATE TEMP TABLE t (n int)", "SELECT count(*) FROM pg_class WHERE relname = 't'"),
        (
            "SELECT pg_advisory_lock(42)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        ),
        ("LISTEN somewhere", "SELECT count(*) FROM pg_listening_channels()"),
        ("PREPARE p AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements"),
        ("SET search_path = pg_temp", "SHOW search_path"),
        ("SET SESSION AUTHORIZATION app", "SELECT current_user"),
    ],
)
def test_state_of_the_session_goes_with_it(proxy: Proxy, state: str, question: str) -> None:
    pid = served_by(proxy)
    with client_of(proxy) as client:
        before = client.value(question)
    for in_transaction in (False, True):
        with client_of(proxy) as client:
            if in_transaction:
                client.ask(wire.query("BEGIN"))
            assert not wire.errors(client.ask(wire.query(state)))
        with client_of(proxy) as client:
            assert client.value(question) == before
        assert served_by(proxy) == pid
