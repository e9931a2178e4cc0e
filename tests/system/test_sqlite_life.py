"""The SQLite process under the proxy: it dies, the proxy dies, both are stopped, or read anew."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.sqlite import load
from tests.sqlite.load import Load
from tests.system.files import Files, make, rows_of
from tests.system.proxy import ask, until_ended, wait_until
from txproxy.cli.embedded import EmbeddedPostgres

CRASHES: Final = int(os.environ.get("TXPROXY_TEST_CRASHES", "5"))

Make = Callable[..., Files]


@pytest.fixture
def make_files(postgres: EmbeddedPostgres, tmp_path: Path) -> Make:
    def made(**settings: Any) -> Files:
        return Files(postgres, tmp_path, **settings)

    return made


def is_there(pid: int) -> bool:
    """Whether the process lives; one that is dead and not buried does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def is_gone(pid: int) -> None:
    assert not wait_until(lambda: is_there(pid), lambda found: not found)


def insert(client: psycopg.Connection[Any], value: str) -> None:
    client.execute(f"INSERT INTO t VALUES ('{value}')".encode())


# It dies.


def test_it_dies_and_is_started_again(make_files: Make) -> None:
    """Its clients' connections break; those of PostgreSQL notice nothing."""
    files = make_files()
    with files.proxy, files.proxy.connect(autocommit=True) as other, files.connect() as client:
        insert(client, "committed")
        client.execute("BEGIN")
        insert(client, "open")
        os.kill(files.process(), signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
        ask(other)
        files.proxy.wait_for("sqlite process died", exit_code=-9)
        files.proxy.wait_for("client disconnected", database="notes")
        with files.connect() as again:
            assert again.execute("SELECT a FROM t").fetchall() == [("committed",)]
        files.proxy.wait_for("sqlite process ready", 2)
        ask(other)


def test_clients_that_come_meanwhile_wait_for_it(make_files: Make) -> None:
    files = make_files()
    with files.proxy:
        for times in range(3):
            pid = files.proxy.wait_for("sqlite process ready", times + 1)["pid"]
            os.kill(int(pid), signal.SIGKILL)
            files.proxy.wait_for("sqlite process died", times + 1)
            with files.connect() as client:
                client.execute("SELECT 1")


def test_one_that_hangs_holds_up_nobody_else(make_files: Make) -> None:
    files = make_files(shutdown_timeout="1s")
    with files.proxy:
        pid = files.process()
        os.kill(pid, signal.SIGSTOP)
        client = files.wire()
        with files.proxy.connect(autocommit=True) as other:
            ask(other)
        os.kill(pid, signal.SIGCONT)
        client.until("Z")
        os.kill(pid, signal.SIGSTOP)
        files.proxy.stop()
        client.close()
    is_gone(pid)


# The proxy dies.


def test_it_ends_with_the_proxy(make_files: Make) -> None:
    files = make_files()
    with files.proxy, files.connect() as client:
        pid = files.process()
        client.execute("BEGIN")
        insert(client, "open")
        files.proxy.kill()
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
        is_gone(pid)
    assert rows_of(files.notes) == []


@pytest.mark.timeout(120 + 20 * CRASHES)
@pytest.mark.parametrize("settings", [{}, {"commit_train": True}])
def test_it_is_killed_in_mid_load(make_files: Make, settings: dict[str, Any]) -> None:
    """What was acknowledged is there, once, though the next one may find the file still open."""
    files = make_files(others={"busy_timeout": "1min", **settings})
    path = files.data / "load.db"
    make(path, *load.SCHEMA)
    chance = random.Random(5)
    with files.proxy, Load(files, path.name, clients=6) as clients:
        for _ in range(CRASHES):
            clients.go_on(chance.randint(5, 150))
            files.proxy.restart()
        clients.go_on()
    clients.check(path)
    assert set(clients.failures) <= {"lost", "08007", "57P01", "57P03"}, clients.messages


def test_it_is_not_started_where_no_file_is_configured(make_files: Make) -> None:
    files = make_files()
    files.tables.clear()
    with files.proxy:
        with files.proxy.connect(autocommit=True) as other:
            ask(other)
        assert not files.proxy.events("sqlite process ready")


# They are stopped.


def test_sigterm_lets_transactions_end(make_files: Make) -> None:
    files = make_files(shutdown_timeout="1min")
    with files.proxy:
        pid = files.process()
        busy, idle = files.connect(), files.connect("a.db")
        with busy, idle:
            busy.execute("BEGIN")
            insert(busy, "last")
            os.kill(files.proxy.pid, signal.SIGTERM)
            assert "terminating connection" in until_ended(idle)
            insert(busy, "words")
            busy.execute("COMMIT")
            files.proxy.ends()
        is_gone(pid)
    assert rows_of(files.notes) == [("last",), ("words",)]


def test_a_sigterm_for_the_whole_group_does_the_same(make_files: Make) -> None:
    """As systemd and others send it, unless they are told not to."""
    files = make_files(shutdown_timeout="1min")
    with files.proxy, files.connect() as client:
        client.execute("BEGIN")
        insert(client, "last")
        for pid in (files.process(), files.proxy.pid):
            os.kill(pid, signal.SIGTERM)
        files.proxy.wait_for("draining")
        insert(client, "words")
        client.execute("COMMIT")
        files.proxy.ends()
    assert rows_of(files.notes) == [("last",), ("words",)]


def test_the_time_for_that_is_bounded(make_files: Make) -> None:
    files = make_files(shutdown_timeout="200ms")
    with files.proxy, files.connect() as client:
        client.execute("BEGIN")
        insert(client, "open")
        files.proxy.stop()
        with pytest.raises(psycopg.OperationalError, match="terminating connection"):
            client.execute("SELECT 1")
    assert rows_of(files.notes) == []


def test_a_proxy_that_waits_for_its_clients_waits_for_these(make_files: Make) -> None:
    files = make_files()
    with files.proxy:
        with files.connect() as client:
            with files.console() as console:
                console.execute("SHUTDOWN WAIT_FOR_CLIENTS")
            files.proxy.wait_for("draining")
            insert(client, "still there")
        files.proxy.ends()


# Configuration is read anew.


def reload(files: Files) -> None:
    files.proxy.mark()
    files.proxy.write_configuration()
    os.kill(files.proxy.pid, signal.SIGHUP)
    files.proxy.wait_for("reloaded")


def test_a_file_that_is_removed_and_one_that_is_added(make_files: Make) -> None:
    files = make_files()
    make(files.root / "more.db", "CREATE TABLE t (a)")
    with files.proxy, files.connect() as idle, files.connect() as busy:
        busy.execute("BEGIN")
        insert(busy, "last")
        del files.tables["notes"]
        files.tables["more"] = {"path": str(files.root / "more.db")}
        reload(files)
        files.connect("more").close()
        assert "does not exist" in str(files.refusal())
        assert "removed from the proxy's configuration" in until_ended(idle)
        busy.execute("COMMIT")
        assert "removed from the proxy's configuration" in until_ended(busy)
    assert rows_of(files.notes) == [("last",)]


def test_how_a_file_is_written_stays_while_it_is_open(make_files: Make) -> None:
    files = make_files()
    with files.proxy, files.connect() as reader, files.connect() as writer:
        files.tables["notes"] = {**files.tables["notes"], "journal_mode": "delete"}
        reload(files)
        with files.connect() as new:
            assert new.info.parameter_status("txproxy.journal_mode") == "wal"
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == ("0",)
        insert(writer, "while it is being read")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == ("0",)
        reader.execute("COMMIT")


def test_limits_hold_for_those_who_are_there(make_files: Make) -> None:
    """A writer that sleeps as another waits: for long, until the file's limit is lowered."""
    files = make_files(notes={"idle_writer_timeout": "1h", "busy_timeout": "1min"})
    with files.proxy, files.connect() as sleeper, files.connect() as other:
        sleeper.execute("BEGIN")
        insert(sleeper, "asleep")
        files.tables["notes"] = {**files.tables["notes"], "idle_writer_timeout": "100ms"}
        reload(files)
        insert(other, "awake")
        with pytest.raises(psycopg.Error) as caught:
            sleeper.execute("COMMIT")
        assert caught.value.sqlstate in ("25P02", "25P03")
    assert rows_of(files.notes) == [("awake",)]


def test_the_first_file_starts_the_process(make_files: Make) -> None:
    files = make_files()
    tables = dict(files.tables)
    files.tables.clear()
    with files.proxy:
        assert "does not exist" in str(files.refusal())
        files.tables.update(tables)
        reload(files)
        files.connect().close()


def test_what_holds_for_the_proxy_holds_for_files(make_files: Make) -> None:
    files = make_files(query_timeout=0)
    endless = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    )
    with files.proxy, files.connect() as client:
        with files.console() as console:
            console.execute("SET query_timeout = '1s'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            client.execute(endless)
        assert client.execute("SELECT 1").fetchone() == ("1",)


# The terminal.


def test_ctrl_c_is_for_the_proxy_alone(make_files: Make) -> None:
    """A terminal sends SIGINT to all of its foreground: the process would die, its clients too."""
    files = make_files()
    with files.proxy:
        ours = os.getpgid(files.proxy.pid)
        assert os.getpgid(files.process()) != ours


def test_the_proxy_keeps_nothing_of_a_client(make_files: Make) -> None:
    files = make_files()
    with files.proxy:
        files.connect().close()
        files.proxy.wait_for("client disconnected", database="notes")
        open_before = len(descriptors(files))
        with files.connect(), files.connect("a.db"):
            files.proxy.wait_for("client connected", database="a.db")
            # its socket is closed a moment after it has been handed over
            found = wait_until(lambda: len(descriptors(files)), open_before.__eq__)
            assert found == open_before


def descriptors(files: Files) -> list[Path]:
    return list(Path(f"/proc/{files.proxy.pid}/fd").iterdir())
