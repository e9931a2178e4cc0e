"""Connections of the client that are lost, and forks."""

import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sqlite.client import PORT, client
from tests.sqlite.endpoint import Endpoint, eventually
from txproxy import sqlite
from txproxy.wire import encode
from txproxy.wire.codes import IDLE, IN_TRANSACTION

Answer = Callable[[bytes], bytes | None]
INSERTED = encode.BIND_COMPLETE + encode.NO_DATA + encode.command_complete(b"INSERT 1 1")


class Scripted:
    """A server that says what the test says; None: it closes the connection instead."""

    def __init__(self, directory: Path) -> None:
        self.answers: list[bytes | None] = []
        self.asked: list[bytes] = []
        self.logins = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{directory}/.s.PGSQL.{PORT}")
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self._converse(client)

    def _converse(self, client: socket.socket) -> None:
        size = int.from_bytes(client.recv(4, socket.MSG_WAITALL), "big")
        client.recv(size - 4, socket.MSG_WAITALL)
        self.logins += 1
        client.sendall(
            encode.AUTHENTICATION_OK + encode.backend_key_data(1, b"1234") + encode.ready(IDLE)
        )
        asked = b""
        while data := client.recv(65_536):
            asked += data
            if not asked.endswith(encode.SYNC):
                continue
            self.asked.append(asked)
            asked = b""
            answer = self.answers.pop(0)
            if answer is None:
                return
            client.sendall(answer)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    server = Scripted(tmp_path)
    yield server
    server.close()


@pytest.fixture
def db(scripted: Scripted, tmp_path: Path) -> Iterator[Any]:
    found = sqlite.connect(
        "a.db", host=str(tmp_path), port=PORT, reads="server", isolation_level=None
    )
    yield found
    found.close()


def test_a_write_whose_answer_was_lost_is_not_sent_again(scripted: Scripted, db: Any) -> None:
    scripted.answers = [None, INSERTED + encode.ready(IDLE)]
    with pytest.raises(sqlite3.OperationalError, match="outcome unknown"):
        db.execute("INSERT INTO t VALUES (1)")
    assert len(scripted.asked) == 1
    db.execute("INSERT INTO t VALUES (2)")
    assert [b"VALUES (2)" in asked for asked in scripted.asked] == [False, True]
    assert scripted.logins == 2


def test_a_read_is_asked_again_once(scripted: Scripted, db: Any) -> None:
    row = encode.message(b"D", b"\0\1" + b"\0\0\0\x09i" + (7).to_bytes(8, "big"))
    described = encode.message(b"T", b"\0\1a\1\0" + b"\0" * 18)
    found = described + row + encode.command_complete(b"SELECT 1") + encode.ready(IDLE)
    scripted.answers = [None, found, None, None]
    assert db.execute("SELECT a FROM t").fetchall() == [(7,)]
    assert scripted.logins == 2
    with pytest.raises(sqlite3.OperationalError, match="the connection was lost"):
        db.execute("SELECT a FROM t")
    assert len(scripted.asked) == 4


def test_a_farewell_in_place_of_an_answer_leaves_the_outcome_unknown(
    scripted: Scripted, db: Any
) -> None:
    scripted.answers = [
        encode.error("FATAL", "57P01", "going down"),
        INSERTED + encode.ready(IDLE),
    ]
    with pytest.raises(sqlite3.OperationalError, match=r"outcome unknown.*going down"):
        db.execute("INSERT INTO t VALUES (1)")
    db.execute("INSERT INTO t VALUES (2)")
    assert scripted.logins == 2


def test_a_transaction_that_was_lost_has_to_be_ended(scripted: Scripted, db: Any) -> None:
    began = encode.PARSE_COMPLETE + encode.BIND_COMPLETE + encode.command_complete(b"BEGIN")
    scripted.answers = [began + INSERTED + encode.ready(IN_TRANSACTION), None]
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(sqlite3.OperationalError, match="lost"):
        db.execute("INSERT INTO t VALUES (2)")
    assert db.in_transaction
    with pytest.raises(sqlite3.OperationalError, match="and with it the transaction"):
        db.execute("INSERT INTO t VALUES (3)")
    assert scripted.logins == 1
    db.rollback()
    assert not db.in_transaction
    scripted.answers = [INSERTED + encode.ready(IDLE)]
    db.execute("INSERT INTO t VALUES (4)")
    assert b"BEGIN" not in scripted.asked[-1]
    assert scripted.logins == 2


def test_the_outcome_of_a_commit_may_be_unknown(scripted: Scripted, db: Any) -> None:
    began = encode.PARSE_COMPLETE + encode.BIND_COMPLETE + encode.command_complete(b"BEGIN")
    scripted.answers = [began + INSERTED + encode.ready(IN_TRANSACTION), None]
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(sqlite3.OperationalError, match="outcome unknown"):
        db.commit()
    assert not db.in_transaction


def test_a_begin_that_failed_leaves_the_statement_undone(scripted: Scripted, db: Any) -> None:
    locked = encode.message(
        b"E", b"SERROR\0VERROR\0C55P03\0Mdatabase is locked\0L5\0RSQLITE_BUSY\0\0"
    )
    scripted.answers = [encode.PARSE_COMPLETE + encode.BIND_COMPLETE + locked + encode.ready(IDLE)]
    db.isolation_level = "IMMEDIATE"
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        db.execute("INSERT INTO t VALUES (1)")
    assert b"BEGIN IMMEDIATE" in scripted.asked[0]
    assert not db.in_transaction


def test_a_server_that_is_started_again(tmp_path: Path) -> None:
    with Endpoint(tmp_path) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a)")
        db = sqlite.connect("a.db", host=str(tmp_path), port=PORT, isolation_level=None)
        db.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(sqlite3.OperationalError, match="nobody listens on"):
        db.execute("INSERT INTO t VALUES (2)")
    with Endpoint(tmp_path):
        db.execute("INSERT INTO t VALUES (3)")
        assert db.execute("SELECT a FROM t").fetchall() == [(1,), (3,)]
        db.close()


FORK = """
import os, sys
from txproxy import sqlite

where = {"host": sys.argv[1], "port": int(sys.argv[2]), "reads": sys.argv[4]}
db = sqlite.connect(sys.argv[3], **where)
db.execute("INSERT INTO t VALUES (1, 'parent')")
db.commit()
assert db.execute("SELECT b FROM t").fetchall() == [("parent",)]
db.execute("INSERT INTO t VALUES (2, 'parent')")
if os.fork() == 0:
    assert not db.in_transaction
    assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)
    os._exit(0)
_, status = os.wait()
assert status == 0, status
db.execute("INSERT INTO t VALUES (3, 'parent')")
db.commit()
cursor = db.execute("SELECT zeroblob(20000) FROM t, t, t, t, t, t")  # does not come at once
child = os.fork()
if child == 0:
    try:
        print(len(cursor.fetchall()))
    except sqlite.OperationalError:
        pass
    else:
        sys.exit("read from the parent's connection")
    db.execute("INSERT INTO t VALUES (4, 'child')")
    db.commit()
    db.close()
    sys.exit(0)  # with all that an interpreter does at its end
assert os.waitpid(child, 0)[1] == 0
assert len(cursor.fetchall()) == 729
db.execute("INSERT INTO t VALUES (5, 'parent')")
db.commit()
assert db.execute("SELECT count(*) FROM t").fetchone() == (5,)
"""


@pytest.mark.parametrize("reads", ["local", "server"])
def test_a_child_leaves_its_parents_connection_alone(
    shared: Endpoint, database: str, reads: str
) -> None:
    arguments = [str(shared.directory), str(PORT), database, reads]
    run = subprocess.run(
        [sys.executable, "-c", FORK, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_who_vanishes_is_rolled_back(shared: Endpoint, database: str) -> None:
    script = (
        "import os, sys\n"
        "from txproxy import sqlite\n"
        "db = sqlite.connect(sys.argv[3], host=sys.argv[1], port=int(sys.argv[2]))\n"
        "db.execute(\"INSERT INTO t VALUES (1, 'gone')\")\n"
        "os._exit(0)\n"
    )
    arguments = [str(shared.directory), str(PORT), database]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    with client(shared, database, isolation_level=None) as db:
        db.execute("INSERT INTO t VALUES (1, 'here')")
        assert db.execute("SELECT b FROM t").fetchall() == [("here",)]
    eventually(lambda: shared.report["sessions"] == [])
