"""The console as people and their tools meet it: psql, drivers, what PgBouncer's users expect."""

import contextlib
import csv
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import pytest

from tests.system.console import ADMIN, SETTINGS, WATCHER, connect, one, refusal, show
from tests.system.proxy import (
    DATABASE,
    OTHER_USER,
    PATIENCE,
    USER,
    Proxy,
    prepare,
    token,
    wait_until,
)
from tests.system.wire import (
    SYNC,
    TERMINATE,
    Message,
    Wire,
    bind,
    describe,
    errors,
    execute,
    kinds,
    message,
    parse,
    query,
    rows,
)
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.core.console import COMMANDS, STATS
from txproxy.core.tables import COLUMNS

PGBOUNCER: Final = Path("/usr/sbin/pgbouncer")
RENAMED: Final = {"reserve_pool": "reserve_pool_size"}  # since PgBouncer 1.18


@pytest.fixture(scope="session")
def server(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """One version is enough: the console asks the server nothing."""
    return prepare(postgres)


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {"proxy": SETTINGS}


@pytest.fixture
def busy(proxy: Proxy) -> Iterator[psycopg.Connection[Any]]:
    """A client in a transaction, so that tables have rows."""
    with proxy.connect(application_name="busy") as connection:
        connection.execute(f"SELECT '{token()}' /*route='/pay'*/")
        yield connection
        connection.rollback()


# Who can read it.


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("name", COLUMNS)
def test_psql_reads_every_table(proxy: Proxy, name: str) -> None:
    done = subprocess.run(
        [
            *(proxy.server._bin_dir / "psql", "-X", "--csv", "-v", "ON_ERROR_STOP=1"),
            *("-h", proxy.host, "-p", str(proxy.port), "-U", ADMIN, "-d", "pgbouncer"),
            *("-c", f"SHOW {name};"),
        ],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    header, *found = csv.reader(done.stdout.splitlines())
    assert header == [column.name for column in COLUMNS[name]]
    assert found or name in ("OFFENDERS", "REAPED", "SQLITE")


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("autocommit", [False, True], ids=["transaction", "autocommit"])
def test_psycopg_3_reads_every_table(proxy: Proxy, binary: bool, autocommit: bool) -> None:
    with connect(proxy, autocommit=autocommit) as connection:
        for name, columns in COLUMNS.items():
            cursor = connection.execute(f"SHOW {name}".encode(), binary=binary)
            described = cursor.description or ()
            assert [column.name for column in described] == [column.name for column in columns]
            for row in cursor.fetchall():
                check_types(name, row)


@pytest.mark.usefixtures("busy")
def test_psycopg_3_prepares_and_pipelines(proxy: Proxy) -> None:
    with connect(proxy, prepare_threshold=0) as connection:
        with connection.pipeline():
            cursors = [connection.execute(b"SHOW POOLS") for _ in range(5)]
        answers = [cursor.fetchall() for cursor in cursors]
        assert all(answer == answers[0] for answer in answers)
        assert DATABASE in {row[0] for row in answers[0]}


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("autocommit", [False, True], ids=["transaction", "autocommit"])
def test_psycopg_2_reads_every_table(proxy: Proxy, autocommit: bool) -> None:
    connection = psycopg2.connect(**proxy.kwargs("txproxy", ADMIN))
    try:
        connection.autocommit = autocommit
        with connection.cursor() as cursor:
            for name, columns in COLUMNS.items():
                cursor.execute(f"SHOW {name}")
                assert [column[0] for column in cursor.description] == [
                    column.name for column in columns
                ]
                for row in cursor.fetchall():
                    check_types(name, row)
        connection.rollback()
    finally:
        connection.close()


@pytest.mark.usefixtures("busy")
async def test_asyncpg_reads_every_table(proxy: Proxy) -> None:
    connection = await asyncpg.connect(**proxy.asyncpg("txproxy", ADMIN))
    try:
        for name, columns in COLUMNS.items():
            for _ in range(2):
                found = await connection.fetch(f"SHOW {name}")
                for row in found:
                    assert list(row.keys()) == [column.name for column in columns]
                    check_types(name, tuple(row.values()))
        async with connection.transaction():
            assert await connection.fetchval("SHOW VERSION")
    finally:
        await connection.close()


async def test_a_pool_of_asyncpg_resets_what_it_lends(proxy: Proxy) -> None:
    async with asyncpg.create_pool(
        min_size=1, max_size=2, **proxy.asyncpg("txproxy", ADMIN)
    ) as pool:
        pids = set()
        for _ in range(3):
            async with pool.acquire() as connection:
                assert await connection.fetchval("SHOW VERSION")
                pids.add(connection.get_server_pid())
        assert len(pids) == 1  # a connection that could not be reset would be thrown away


def check_types(name: str, row: tuple[Any, ...]) -> None:
    for column, value in zip(COLUMNS[name], row, strict=True):
        assert value is None or type(value) is (str if column.text else int), column


@pytest.mark.parametrize("dbname", ["txproxy", "pgbouncer"])
@pytest.mark.parametrize(
    "more",
    [
        {"target_session_attrs": "read-write"},
        {"client_encoding": "LATIN1"},
        {"options": "-c search_path=here -c statement_timeout=1s"},
        {"application_name": "it's \\ me"},
    ],
    ids=["read-write", "encoding", "options", "name"],
)
def test_what_clients_ask_for_at_the_start(proxy: Proxy, dbname: str, more: dict[str, str]) -> None:
    with connect(proxy, dbname=dbname, **more) as console:
        assert show(console, "VERSION")
        assert console.info.parameter_status("server_version") is not None
        assert console.info.server_version == 180000
        assert console.info.encoding == "utf-8"


def test_the_columns_are_pgbouncers(proxy: Proxy, tmp_path: Path) -> None:
    """Those of the PgBouncer that is installed, in its order; newer ones have more of them."""
    with pgbouncer(tmp_path) as port, connect(proxy) as ours:
        where = {"host": "127.0.0.1", "port": port, "user": USER, "dbname": "pgbouncer"}
        with contextlib.closing(psycopg2.connect(**where)) as theirs, theirs.cursor() as cursor:
            theirs.autocommit = True
            for name in COLUMNS:
                try:
                    cursor.execute(f"SHOW {name}")
                except psycopg2.Error:
                    assert name in ("OFFENDERS", "REAPED", "SQLITE", "STATE", "TRANSACTIONS")
                    # STATE came later
                    continue
                if name == "HELP":
                    continue  # PgBouncer's is a notice
                expected = [RENAMED.get(column[0], column[0]) for column in cursor.description]
                found = [
                    column.name
                    for column in ours.execute(f"SHOW {name}".encode()).description or ()
                ]
                assert [column for column in found if column in expected] == expected


@contextlib.contextmanager
def pgbouncer(directory: Path) -> Iterator[int]:
    """PgBouncer's port."""
    if not PGBOUNCER.exists():
        pytest.skip(f"no {PGBOUNCER}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (directory / "users").write_text(f'"{USER}" ""\n', encoding="ascii")
    config = directory / "pgbouncer.ini"
    config.write_text(
        "[databases]\napp = host=127.0.0.1 port=1\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\nadmin_users = {USER}\n"
        + ("user = nobody\n" if os.getuid() == 0 else ""),
        encoding="ascii",
    )
    process = subprocess.Popen([PGBOUNCER, "-q", config], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, bool)
        yield port
    finally:
        process.kill()
        process.communicate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# What stands in it.


def test_a_client_of_the_proxy(proxy: Proxy) -> None:
    with proxy.connect(application_name="busy") as client, connect(proxy) as console:
        [pid] = client.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        client.execute(f"SELECT '{token()}' /*route='/pay'*/")
        row = one(console, "CLIENTS", database=DATABASE)
        link = one(console, "SERVERS", remote_pid=pid)
        transaction = one(console, "TRANSACTIONS")
        pool = one(console, "POOLS", database=DATABASE)
        assert (row["addr"], row["port"]) == socket_name(client)
        client.rollback()
        assert show(console, "TRANSACTIONS") == []
        assert one(console, "CLIENTS", id=row["id"])["state"] == "idle"
    assert row["local_port"] == proxy.port
    assert row["application_name"] == "busy"
    assert (row["state"], row["transaction"]) == ("active", "open")
    assert (row["ptr"], row["link"]) == (link["link"], link["ptr"])
    assert link["port"] == proxy.server.port
    assert (transaction["id"], transaction["remote_pid"]) == (row["id"], pid)
    assert transaction["state"] == "idle in transaction"
    assert transaction["statement"] == "SELECT ? /*route='/pay'*/"
    assert transaction["tags"] == "route='/pay'"
    assert (pool["cl_active"], pool["cl_waiting"], pool["sv_active"]) == (1, 0, 1)


def socket_name(connection: psycopg.Connection[Any]) -> tuple[str, int]:
    with socket.socket(fileno=os.dup(connection.fileno())) as mine:
        name: tuple[str, int] = mine.getsockname()
        return name


def test_a_client_on_a_unix_socket(proxy: Proxy) -> None:
    with connect(proxy, host=proxy.socket_dir) as console:
        row = one(console, "CLIENTS", database="txproxy")
    assert (row["addr"], row["port"]) == ("unix", proxy.port)
    assert row["remote_pid"] == os.getpid()


def test_statistics_count_what_clients_do(proxy: Proxy) -> None:
    with connect(proxy) as console, proxy.connect(autocommit=True) as client:
        before = one(console, "STATS", database=DATABASE)
        for _ in range(5):
            client.execute("SELECT 1")
        after = one(console, "STATS", database=DATABASE)
        totals = one(console, "STATS_TOTALS", database=DATABASE)
    grown = {name: after[name] - before[name] for name in after if name.startswith("total_")}
    assert grown["total_query_count"] == grown["total_xact_count"] == 5
    assert grown["total_server_assignment_count"] == 5
    assert grown["total_received"] > 5 * len("SELECT 1")
    assert grown["total_sent"] > 0
    assert totals["query_count"] == after["total_query_count"]


def test_a_reaped_transaction_is_remembered(proxy: Proxy) -> None:
    options = "-c txproxy.idle_transaction_timeout=100ms"
    with proxy.connect(options=options) as client, connect(proxy) as console:
        client.execute("SELECT 'a secret'")
        proxy.wait_for("reaped")
        row = show(console, "REAPED")[-1]
        client.rollback()
    assert (row["database"], row["user"]) == (DATABASE, USER)
    assert (row["why"], row["statement"]) == ("idle_transaction_timeout", "SELECT ?")
    assert row["idle_ms"] >= 100


@pytest.mark.parametrize("unix", [False, True], ids=["loopback", "unix"])
def test_who_left_a_transaction_open(proxy: Proxy, unix: bool) -> None:
    """By its tags, with the process that it is."""
    route = f"/{token()}"
    sleeper = {"options": "-c txproxy.idle_transaction_timeout=100ms"}
    if unix:
        sleeper["host"] = proxy.socket_dir
    with proxy.connect(**sleeper) as client, connect(proxy) as console:
        for number in range(2):
            client.execute(f"SELECT {number} /*route='{route}',traceparent='{number}'*/")
            proxy.wait_for("reaped", number + 1)
            client.rollback()
            row = wait_until(lambda: offender(console, route), lambda seen: seen["process"])
    assert (row["database"], row["user"], row["statement"][:8]) == (DATABASE, USER, "SELECT ?")
    assert (row["times"], row["reaped"], row["would_reap"], row["released"]) == (2, 2, 0, 0)
    assert row["idle_ms"] >= row["longest_ms"] >= 100
    assert row["process"].startswith(f"{os.getpid()} since ")
    assert proxy.events("reaped")[-1]["process"] == row["process"]


def offender(console: psycopg.Connection[Any], route: str) -> dict[str, Any]:
    return one(console, "OFFENDERS", tags=f"route='{route}'")


@pytest.mark.usefixtures("busy")
def test_which_process_is_in_a_transaction(proxy: Proxy) -> None:
    """It is looked for when it is asked for, and told from then on."""
    with connect(proxy) as console:
        found = wait_until(lambda: one(console, "TRANSACTIONS")["process"], bool)
    assert found.startswith(f"{os.getpid()} since ")


# Who may do what.


def example(name: str) -> str:
    """A command's text."""
    examples = {"SET": "SET max_client_conn = 7", "KILL_CLIENT": "KILL_CLIENT 1", "REAP": "REAP 1"}
    if name in ("ENABLE", "DISABLE"):
        return f"{name} {DATABASE}"
    return examples.get(name, name)


@pytest.mark.parametrize(
    "name", [command.name for command in COMMANDS.values() if command.needs > STATS]
)
def test_stats_users_change_nothing(proxy: Proxy, name: str) -> None:
    """Each command by itself, in both protocols."""
    command = example(name)
    with connect(proxy) as admin, connect(proxy, WATCHER) as watcher:
        before = [show(admin, table) for table in ("CONFIG", "DATABASES", "STATE")]
        error = refusal(watcher, command)
        assert error.sqlstate == "42501"
        assert error.diag.message_primary == f"permission denied for {name}"
        with Wire.log_in((proxy.host, proxy.port), WATCHER, "pgbouncer") as wire:
            answer = wire.ask(parse(command) + bind() + describe() + execute() + SYNC)
            assert [each.sqlstate for each in errors(answer)] == ["42501"]
        assert [show(admin, table) for table in ("CONFIG", "DATABASES", "STATE")] == before
    assert proxy.events("console", user=WATCHER) == []


@pytest.mark.usefixtures("busy")
def test_stats_users_see_everything_but_statements(proxy: Proxy) -> None:
    with connect(proxy, WATCHER) as watcher:
        for name in COLUMNS:
            show(watcher, name)
        transaction = one(watcher, "TRANSACTIONS")
        assert transaction["user"] == USER
        assert (transaction["statement"], transaction["tags"]) == (None, None)
        assert transaction["process"] is None
        for table in ("OFFENDERS", "REAPED"):
            assert all(row["statement"] is None for row in show(watcher, table))


def test_admins_and_stats_users_take_turns_on_the_same_connections(proxy: Proxy) -> None:
    """The console's connections are pooled: each message has the rights of who sent it."""
    with connect(proxy) as admin, connect(proxy, WATCHER) as watcher:
        for _ in range(20):
            admin.execute("ENABLE app")
            assert refusal(watcher, "ENABLE app").sqlstate == "42501"


@pytest.mark.parametrize("dbname", ["txproxy", "pgbouncer"])
def test_others_may_not_in(proxy: Proxy, dbname: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="not allowed"):
        connect(proxy, OTHER_USER, dbname)


def test_who_loses_a_role_loses_it_at_once(proxy: Proxy) -> None:
    with connect(proxy) as admin, connect(proxy, WATCHER) as watcher:
        admin.execute("SET stats_users = ''")
        try:
            assert refusal(watcher, "SHOW POOLS").sqlstate == "42501"
        finally:
            admin.execute(f"SET stats_users = {WATCHER}")
        assert show(watcher, "POOLS")


def test_whoever_runs_the_proxy_is_an_admin_on_its_unix_socket(proxy: Proxy) -> None:
    with connect(proxy, "pgbouncer", "pgbouncer", host=proxy.socket_dir) as console:
        console.execute("ENABLE app")
    with pytest.raises(psycopg.OperationalError, match="not allowed"):
        connect(proxy, "pgbouncer", "pgbouncer")


def test_the_name_alone_makes_nobody_an_admin(proxy: Proxy) -> None:
    """A `pgbouncer` over TCP that stats_users names no more has no rights left, not all of them."""
    with connect(proxy) as admin:
        admin.execute(f"SET stats_users = {WATCHER}, pgbouncer")
        with connect(proxy, "pgbouncer", "pgbouncer") as console:
            assert show(console, "POOLS")
            assert refusal(console, "ENABLE app").sqlstate == "42501"
            admin.execute(f"SET stats_users = {WATCHER}")
            assert refusal(console, "ENABLE app").sqlstate == "42501"
            assert refusal(console, "SHOW POOLS").sqlstate == "42501"


# The protocol, to its edges.


@pytest.fixture
def wire(proxy: Proxy) -> Iterator[Wire]:
    with Wire.log_in((proxy.host, proxy.port), ADMIN, "txproxy") as wire:
        yield wire


def test_errors_are_told_as_a_server_tells_them(wire: Wire) -> None:
    answer = wire.ask(query("SELECT 1"))
    assert kinds(answer) == "EZ"
    assert answer[0].fields["M"] == "invalid command 'SELECT 1', use SHOW HELP;"
    assert (answer[0].sqlstate, answer[0].severity) == ("42601", "ERROR")
    assert kinds(wire.ask(parse("SET query_timeout = $1") + bind("1") + execute() + SYNC)) == "EZ"
    assert kinds(wire.ask(query(""))) == "IZ"


def test_byte_by_byte(wire: Wire) -> None:
    said = parse("SHOW VERSION") + bind() + describe() + execute() + SYNC
    wire.send(*(said[i : i + 1] for i in range(len(said))))
    assert kinds(wire.until("Z")) == "12TDCZ"


def test_many_in_one_write(wire: Wire) -> None:
    both = query("SHOW VERSION") + parse("SHOW STATE") + bind() + execute() + SYNC
    answer = wire.ask(both * 200, 400)
    assert kinds(answer) == ("TDCZ" + "12DDDCZ") * 200


def test_more_than_sockets_hold_to_a_client_that_does_not_read(wire: Wire) -> None:
    """Some 30 MB, of which nothing is lost, while the client says more than it reads."""
    commands = 3000
    said = memoryview(query("SHOW CONFIG") * commands)
    wire.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while said:
            said = said[wire.socket.send(said) :]
    wire.socket.settimeout(PATIENCE)
    with ThreadPoolExecutor(1) as executor:
        sending = executor.submit(wire.send, bytes(said))
        answers = [kinds(wire.until("Z")) for _ in range(commands)]
        sending.result()
    assert set(answers) == {answers[0]}


@pytest.mark.parametrize("size", [60_000, 70_000, 3_000_000])
def test_a_text_that_is_too_long(wire: Wire, size: int) -> None:
    text = "SHOW VERSION -- " + "x" * size
    expected = "TDCZ" if size < 65_000 else "EZ"
    assert kinds(wire.ask(query(text))) == expected
    if expected == "EZ":
        answer = wire.ask(parse(text) + bind() + execute() + SYNC)
        assert [each.sqlstate for each in answer if each.kind == "E"] == ["54000"]
        assert kinds(answer) == "EZ"
    assert wire.value("SHOW VERSION")


def test_a_function_call(wire: Wire) -> None:
    answer = wire.ask(message(b"F", b"\0\0\0\1" + b"\0" * 6))
    assert kinds(answer) == "EZ"


def test_what_was_sent_before_terminate_is_done(proxy: Proxy, wire: Wire) -> None:
    wire.send(query("ENABLE app") + TERMINATE)
    assert proxy.wait_for("console", command="ENABLE app")["user"] == ADMIN


def test_a_transaction_in_which_something_failed(wire: Wire) -> None:
    assert status(wire.ask(query("BEGIN"))) == "T"
    assert status(wire.ask(query("SHOW VERSION"))) == "T"
    assert status(wire.ask(query("nonsense"))) == "E"
    assert [each.sqlstate for each in wire.ask(query("SHOW VERSION"))[:1]] == ["25P02"]
    assert status(wire.ask(query("COMMIT"))) == "I"
    assert rows(wire.ask(query("SHOW VERSION")))


def status(answer: list[Message]) -> str:
    return answer[-1].status
