"""Clients of SQLite files: who is let in, and how the client gets to the SQLite process."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.system import wire
from tests.system.files import NOTES, Files, make, rows_of
from tests.system.proxy import wait_until
from txproxy.cli.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def module_files(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Files]:
    files = Files(postgres, tmp_path_factory.mktemp("files"))
    with files.proxy:
        yield files


@pytest.fixture
def files(module_files: Files) -> Files:
    module_files.proxy.mark()
    return module_files


# Which file.


@pytest.mark.parametrize("name", ["notes", "path of notes", "a.db", "path of a.db"])
def test_a_file_by_its_name_or_its_path(files: Files, name: str) -> None:
    path = files.notes if "notes" in name else files.data / "a.db"
    with files.connect(str(path) if "path" in name else name) as client:
        assert client.info.parameter_status("txproxy.file") == str(path)
        assert client.execute("SELECT 1").fetchone() == ("1",)
    known = "notes" if "notes" in name else "a.db"
    files.proxy.wait_for("client connected", database=known, user="web")
    files.proxy.wait_for("client disconnected", database=known, user="web")


def test_what_is_written_is_in_the_file(files: Files) -> None:
    with files.connect("a.db") as client:
        client.execute("INSERT INTO t VALUES ('written')")
    assert rows_of(files.data / "a.db", "SELECT a FROM t WHERE a = 'written'") == [("written",)]


@pytest.mark.parametrize("name", ["b.db", "../notes.db", "data/a.db", "a.db-wal", "/etc/passwd"])
def test_there_is_no_such_file(files: Files, name: str) -> None:
    before = sorted(files.data.iterdir())
    assert "does not exist" in str(files.refusal(name))
    assert sorted(files.data.iterdir()) == before


def test_the_sqlstate_of_no_such_file(files: Files) -> None:
    for name in ("b.db", "../notes.db"):
        with files.wire(database=name) as client:
            [error] = client.until("E")
            assert (error.fields["S"], error.fields["C"]) == ("FATAL", "3D000")
            assert not client.rest()


# Who.


def test_not_over_tcp(files: Files) -> None:
    for name in ("notes", "a.db"):
        error = files.refusal(name, host="127.0.0.1")
        assert "is an SQLite file, for processes of this machine only" in str(error)
        assert "Connect to the unix socket" in str(error)


def test_databases_of_postgresql_are_reached_as_ever(files: Files) -> None:
    with files.proxy.connect() as client:
        assert client.execute("SELECT current_database()").fetchone() == ("app",)
    with files.connect("app", "app") as client:
        assert client.execute("SELECT current_database()").fetchone() == ("app",)


def test_only_processes_of_the_users_that_are_listed(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    files = Files(
        postgres,
        tmp_path,
        notes={"peer_uids": [os.getuid() + 1]},
        others={"peer_uids": [os.getuid()]},
    )
    with files.proxy:
        refused = files.refusal()
        assert f'user {os.getuid()} may not use the SQLite file "notes"' in str(refused)
        files.connect("a.db").close()
        (files.data / "link.db").symlink_to(files.notes)
        assert "may not use" in str(files.refusal("link.db"))
        with files.wire() as client:
            [error] = client.until("E")
            assert error.fields["C"] == "28000"


def test_nobody_needs_a_password(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """The system says who it is: whatever auth_type asks of clients of PostgreSQL."""
    files = Files(postgres, tmp_path, auth_type="scram-sha-256", auth_user="postgres")
    with files.proxy:
        files.connect().close()


# How it gets there.


def test_the_connection_stays_when_the_proxy_lets_go_of_it(files: Files) -> None:
    with files.wire() as client:
        client.until("Z")
        files.proxy.wait_for("client connected", database=NOTES)
        client.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)
        client.socket.settimeout(wire.PATIENCE)
        client.send(wire.query("SELECT 1"))
        assert [each.kind for each in client.until("Z")] == ["T", "D", "C", "Z"]


def test_what_has_come_behind_the_start_up_packet_goes_with_it(files: Files) -> None:
    with files.wire() as client:
        client.send(wire.query("SELECT 1") + wire.query("SELECT 2")[:7])
        client.until("Z")
        assert client.until("Z")[1].body == b"\0\1\0\0\0\0011"
        client.send(wire.query("SELECT 2")[7:])
        assert client.until("Z")[1].body == b"\0\1\0\0\0\0012"


def test_not_one_byte_is_lost(files: Files) -> None:
    """A client that never waits: bytes come before, while and after it is handed over."""
    for pause in range(30):
        with files.wire() as client:
            expected = []
            for number in range(20):
                client.send(wire.query(f"SELECT {pause * 100 + number}"))
                expected.append(str(pause * 100 + number).encode())
            client.until("Z")
            answers = [client.until("Z")[1].body[6:] for _ in range(20)]
            assert answers == expected


def test_a_start_up_packet_in_pieces_behind_a_request_for_tls(files: Files) -> None:
    client = wire.Wire(f"{files.proxy.socket_dir}/.s.PGSQL.{files.proxy.port}")
    with client:
        for code in (wire.SSL_REQUEST, wire.GSS_REQUEST):
            client.send(wire.packet(code))
            assert client.socket.recv(10) == b"N"
        packet = wire.startup({"user": "web", "database": "notes"})
        for byte in packet:
            client.send(bytes((byte,)))
        client.until("Z")


def test_a_newer_protocol_is_answered_before(files: Files) -> None:
    client = wire.Wire(f"{files.proxy.socket_dir}/.s.PGSQL.{files.proxy.port}")
    with client:
        parameters = {"user": "web", "database": "notes", "_pq_.new": "1"}
        client.send(wire.startup(parameters, protocol=(3 << 16) + 9))
        kinds = [each.kind for each in client.until("Z")]
        assert kinds[0] == "v"
        assert kinds[1] == "R"


def test_keys_are_as_long_as_the_protocol_has_them(files: Files) -> None:
    for minor, length in ((0, 4), (2, 32)):
        client = wire.Wire(f"{files.proxy.socket_dir}/.s.PGSQL.{files.proxy.port}")
        with client:
            packet = wire.startup({"user": "web", "database": "notes"}, (3 << 16) + minor)
            client.send(packet)
            [key] = [each for each in client.until("Z") if each.kind == "K"]
            assert len(key.body) == 4 + length


def test_who_leaves_at_once_is_forgotten(files: Files) -> None:
    for _ in range(20):
        files.wire().close()
    for _ in range(20):
        client = files.wire()
        client.until("R")
        client.reset()
    with files.connect(), files.console() as console:
        rows = wait_until(
            lambda: console.execute("SHOW POOLS").fetchall(),
            lambda found: [row[2] for row in found if row[0] == "notes"] == [1],
        )
    assert [row[2] for row in rows if row[0] == "notes"] == [1]


def test_a_cancel_request_finds_its_statement(files: Files) -> None:
    endless = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    )
    with files.connect() as client, files.connect() as other:
        with pytest.raises(psycopg.errors.QueryCanceled):
            cancel_soon(client, endless)
        assert client.execute("SELECT 1").fetchone() == ("1",)
        assert other.execute("SELECT 1").fetchone() == ("1",)


def cancel_soon(client: psycopg.Connection[object], statement: str) -> None:
    """Execute it, with CancelRequests that go on coming until one has come while it runs."""
    over = threading.Event()

    def cancel() -> None:
        while not over.wait(0.02):
            client.cancel_safe()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        client.execute(statement)
    finally:
        over.set()
        canceller.join()


def test_a_wrong_key_cancels_nothing(files: Files) -> None:
    with files.wire() as client:
        [key] = [each for each in client.until("Z") if each.kind == "K"]
        pid = struct.unpack_from("!i", key.body)[0]
        with wire.Wire(f"{files.proxy.socket_dir}/.s.PGSQL.{files.proxy.port}") as other:
            other.send(wire.packet(wire.CANCEL_REQUEST, struct.pack("!i", pid) + b"wron"))
            assert not other.rest()
        client.send(wire.query("SELECT 1"))
        assert client.until("Z")[-2].kind == "C"


# How many.


def test_they_count_in_max_client_conn_until_they_leave(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    files = Files(postgres, tmp_path, max_client_conn=2)
    with files.proxy:
        with files.connect(), files.connect("a.db"):
            files.proxy.wait_for("client connected", 2)
            error = files.refusal()
            assert "sorry, too many clients already" in str(error)
            assert "too many clients" in str(files.refusal("app", user="app"))
        files.proxy.wait_for("client disconnected", 2)
        with files.connect(), files.connect("app", "app"):
            pass


@pytest.mark.parametrize("limit", ["max_user_client_connections", "max_db_client_connections"])
def test_they_count_for_their_user_and_their_file(
    postgres: EmbeddedPostgres, tmp_path: Path, limit: str
) -> None:
    settings: dict[str, Any] = {limit: 1}
    files = Files(postgres, tmp_path, **settings)
    with files.proxy:
        with files.connect():
            error = files.refusal()
            assert "sorry, too many clients already" in str(error)
            assert limit in str(error)
        files.proxy.wait_for("client disconnected")
        files.connect().close()


# Files that clients make.


def test_a_file_that_may_be_made(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    files = Files(postgres, tmp_path)
    files.tables["new"] = {"path": str(new), "allow_create": True}
    files.tables["never"] = {"path": "/nonexistent/new.db", "allow_create": True}
    with files.proxy:
        with files.connect("new") as client:
            client.execute("CREATE TABLE t (a)")
        assert rows_of(new, "SELECT name FROM sqlite_schema") == [("t",)]
        assert "No such file or directory" in str(files.refusal("never"))


def test_a_file_that_was_made_beside(files: Files) -> None:
    make(files.data / "later.db", "CREATE TABLE t (a)")
    files.connect("later.db").close()


def test_the_socket_is_for_who_runs_the_proxy_alone(files: Files) -> None:
    path = Path(files.proxy.socket_dir, f".s.PGSQL.{files.proxy.port}")
    assert path.stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
