"""SQLite files on the console, in the metrics, and on the page."""

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.system.console import refusal
from tests.system.files import ADMIN, Files, shown
from tests.system.proxy import until_ended, wait_until
from txproxy.cli.embedded import EmbeddedPostgres

WATCHER = "watcher"


@pytest.fixture(scope="module")
def module_files(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Files]:
    files = Files(
        postgres,
        tmp_path_factory.mktemp("files"),
        notes={"idle_writer_timeout": 0, "busy_timeout": "1min"},
        stats_users=[WATCHER],
    )
    with files.proxy:
        yield files


@pytest.fixture
def files(module_files: Files) -> Files:
    module_files.proxy.mark()
    return module_files


@pytest.fixture
def console(files: Files) -> Iterator[psycopg.Connection[Any]]:
    with files.console() as console:
        yield console


def seen(console: psycopg.Connection[Any], table: str, **wanted: object) -> Any:
    """The row that has these values, as soon as there is one."""
    [row, *_] = wait_until(
        lambda: [row for row in shown(console, table) if wanted.items() <= row.items()],
        lambda found: found,
    )
    return row


def number(console: psycopg.Connection[Any], name: str) -> int:
    """The id of the client with this application_name."""
    return int(seen(console, "CLIENTS", application_name=name)["id"])


# What is shown.


def test_a_client_that_is_idle(files: Files, console: psycopg.Connection[Any]) -> None:
    with files.connect(application_name="one"):
        row = seen(console, "CLIENTS", application_name="one")
        assert (row["database"], row["user"], row["state"]) == ("notes", "web", "idle")
        assert (row["addr"], row["transaction"]) == ("unix", "none")
        assert row["remote_pid"] > 0
        assert seen(console, "POOLS", database="notes")["cl_active"] == 1
        found = seen(console, "DATABASES", name="notes")
        assert found["database"] == str(files.notes)
        assert found["current_client_connections"] == 1
    rows = wait_until(
        lambda: [row for row in shown(console, "CLIENTS") if row["database"] == "notes"],
        lambda found: not found,
    )
    assert rows == []


def test_who_waits_for_whom(files: Files, console: psycopg.Connection[Any]) -> None:
    with files.connect(application_name="first") as first, files.wire() as second:
        second.until("Z")
        first.execute("BEGIN")
        first.execute("INSERT INTO t VALUES ('secret')")
        from tests.system import wire

        second.send(wire.query("INSERT INTO t VALUES (2)"))
        row = seen(console, "TRANSACTIONS", application_name="first", held_by="writing")
        assert row["state"] == "idle in transaction"
        assert "secret" not in row["statement"]
        assert "INSERT" in row["statement"]
        assert row["process"].startswith(f"{row['remote_pid']} since ")
        assert seen(console, "TRANSACTIONS", state="waiting")["database"] == "notes"
        assert seen(console, "POOLS", database="notes", cl_waiting=1)["cl_active"] == 1
        report = seen(console, "SQLITE", database="notes", queue=1)
        assert (report["clients"], report["path"]) == (2, str(files.notes))
        with files.console(WATCHER) as watcher:
            assert seen(watcher, "TRANSACTIONS", state="waiting")["statement"] is None
            assert seen(watcher, "SQLITE", database="notes")["queue"] == 1
        first.execute("ROLLBACK")
        second.until("Z")


def test_a_reader_that_sleeps_is_seen(files: Files, console: psycopg.Connection[Any]) -> None:
    with files.connect(application_name="reader") as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t")
        row = seen(console, "CLIENTS", application_name="reader", transaction="reading")
        assert row["state"] == "active"
        assert seen(console, "SQLITE", database="notes", readers=1)["in_transaction"] == 1


def test_counters(files: Files, console: psycopg.Connection[Any]) -> None:
    with files.connect("a.db") as client:
        before = seen(console, "SQLITE", database="a.db")["commits"]
        for value in range(10):
            client.execute(f"INSERT INTO t VALUES ({value})".encode())
        row = seen(console, "SQLITE", database="a.db", commits=before + 10)
        assert row["batches"] <= row["commits"]
        assert row["wal_bytes"] > 0
        stats = seen(console, "STATS_TOTALS", database="a.db")
        assert stats["query_count"] >= 10


def test_lists(files: Files, console: psycopg.Connection[Any]) -> None:
    with files.connect(), files.connect("a.db"):
        rows = wait_until(
            lambda: {row["list"]: row["items"] for row in shown(console, "LISTS")},
            lambda found: found["used_clients"] == 3,
        )
        assert rows["used_clients"] == 3  # and the console's
        assert rows["databases"] >= 4


# What is done.


def test_kill_client(files: Files, console: psycopg.Connection[Any]) -> None:
    with files.connect(application_name="victim") as victim, files.connect() as other:
        console.execute(f"KILL_CLIENT {number(console, 'victim')}".encode())
        assert "terminating connection" in until_ended(victim)
        assert other.execute("SELECT 1").fetchone() == ("1",)
    error = refusal(console, "KILL_CLIENT 999999999")
    assert error.sqlstate == "42704"


def test_reap(files: Files, console: psycopg.Connection[Any]) -> None:
    with files.connect(application_name="sleeper") as sleeper, files.connect() as other:
        assert refusal(console, f"REAP {number(console, 'sleeper')}").sqlstate == "55000"
        sleeper.execute("BEGIN")
        sleeper.execute("INSERT INTO t VALUES ('asleep')")
        seen(console, "TRANSACTIONS", application_name="sleeper", state="idle in transaction")
        console.execute(f"REAP {number(console, 'sleeper')}".encode())
        other.execute("INSERT INTO t VALUES ('awake')")
        with pytest.raises(psycopg.Error) as caught:
            sleeper.execute("COMMIT")
        assert caught.value.sqlstate in ("25P02", "25P03")
        assert sleeper.execute("SELECT a FROM t WHERE a = 'asleep'").fetchall() == []
        event = files.proxy.wait_for("reaped", why="REAP", database="notes")
    assert event["application_name"] == "sleeper"
    assert "asleep" not in event["statement"]
    assert seen(console, "REAPED", application_name="sleeper")["why"] == "REAP"
    assert seen(console, "OFFENDERS", application_name="sleeper")["reaped"] == 1


def test_who_keeps_others_waiting_is_told_of(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    files = Files(postgres, tmp_path, notes={"idle_writer_timeout": "1.5s"})
    with files.proxy, files.connect(application_name="sleeper") as sleeper:
        sleeper.execute("BEGIN")
        sleeper.execute("INSERT INTO t VALUES ('asleep')")
        with files.connect() as other:
            other.execute("INSERT INTO t VALUES ('awake')")
        event = files.proxy.wait_for("reaped", why="idle_writer_timeout")
        assert event["statement"] == "INSERT INTO t VALUES (?)"
        assert event["process"].startswith(f"{os.getpid()} since ")
        assert 1 < event["idle_s"] <= event["transaction_s"]
        sleeper.execute("ROLLBACK")


def test_disable_and_enable(files: Files, console: psycopg.Connection[Any]) -> None:
    with files.connect() as client:
        console.execute("DISABLE notes")
        try:
            assert "is not currently accepting connections" in str(files.refusal())
            assert "not currently accepting" in str(files.refusal(str(files.notes)))
            assert seen(console, "DATABASES", name="notes")["disabled"] == 1
            assert client.execute("SELECT 1").fetchone() == ("1",)
            files.connect("a.db").close()
        finally:
            console.execute("ENABLE notes")
        files.connect().close()


def test_reconnect_opens_a_file_that_was_replaced(
    files: Files, console: psycopg.Connection[Any]
) -> None:
    path = files.data / "replaced.db"
    make_with(path, "old")
    with files.connect("replaced.db") as client:
        assert client.execute("SELECT a FROM t").fetchall() == [("old",)]
        make_with(files.data / "new.db", "new")
        for end in ("-wal", "-shm"):
            (files.data / f"new.db{end}").unlink(missing_ok=True)
        (files.data / "new.db").rename(path)
        with pytest.raises(psycopg.Error) as caught:
            client.execute("INSERT INTO t VALUES (1)")
        assert caught.value.sqlstate == "58030"
        console.execute('RECONNECT "replaced.db"')
        found = wait_until(
            lambda: client.execute("SELECT a FROM t").fetchall(), lambda rows: rows == [("new",)]
        )
        assert found == [("new",)]
        client.execute("INSERT INTO t VALUES ('more')")


def make_with(path: Path, value: str) -> None:
    from tests.system.files import make

    make(path, "CREATE TABLE t (a)", f"INSERT INTO t VALUES ('{value}')")


@pytest.mark.parametrize("command", ["PAUSE", "RESUME", "KILL", "WAIT_CLOSE"])
def test_what_a_file_cannot(files: Files, console: psycopg.Connection[Any], command: str) -> None:
    error = refusal(console, f"{command} notes")
    assert error.sqlstate == "0A000"
    assert "notes is an SQLite file" in str(error)


@pytest.mark.parametrize("command", ["RECONNECT", "DISABLE", "ENABLE"])
def test_a_file_that_there_is_not(
    files: Files, console: psycopg.Connection[Any], command: str
) -> None:
    assert refusal(console, f'{command} "../x"').sqlstate == "3D000"


def test_a_pause_of_all_is_for_postgresql(files: Files, console: psycopg.Connection[Any]) -> None:
    console.execute("PAUSE")
    try:
        with files.connect() as client:
            assert client.execute("SELECT 1").fetchone() == ("1",)
    finally:
        console.execute("RESUME")


def test_who_may_only_look(files: Files) -> None:
    with files.console(WATCHER) as watcher:
        assert refusal(watcher, "DISABLE notes").sqlstate == "42501"
    assert ADMIN != WATCHER


# Metrics, and the page.


def test_metrics_and_page(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    files = Files(postgres, tmp_path, metrics="127.0.0.1:0")
    with files.proxy, files.connect() as client:
        address = files.proxy.wait_for("ready")["metrics"]
        for _ in range(3):
            client.execute("INSERT INTO t VALUES (1)")
        wanted = 'txproxy_sqlite_commits_total{database="notes"} 3.0'
        text = wait_until(lambda: http(address, "/metrics"), lambda text: wanted in text)
        assert wanted in text
        assert 'txproxy_sqlite_clients{database="notes",state="idle"} 1.0' in text
        assert "txproxy_sqlite_up 1.0" in text
        assert "txproxy_sqlite_starts_total 1.0" in text
        assert "txproxy_client_connections 1.0" in text
        page = http(address, "/")
        assert "<h2>SQLite files</h2>" in page
        assert "<td>notes</td>" in page


def http(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}") as answer:
        return str(answer.read().decode())
