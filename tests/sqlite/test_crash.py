"""Whatever dies, every acknowledged row is there, none is there twice, and the file is whole.

TXPROXY_TEST_CRASHES raises how often processes are killed.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest

from tests.sqlite import load
from tests.sqlite.endpoint import Endpoint, eventually
from tests.sqlite.load import Load
from tests.sqlite.power_loss import Fault

CRASHES = int(os.environ.get("TXPROXY_TEST_CRASHES", "5"))
ROOT = Path(__file__).parents[2]
FILE = "a.db"

pytestmark = pytest.mark.timeout(120 + 5 * CRASHES)


@pytest.mark.parametrize("settings", [{}, {"journal_mode": "delete"}, {"commit_train": True}])
def test_the_process_is_killed_in_mid_load(tmp_path: Path, settings: dict[str, Any]) -> None:
    chance = random.Random(5)
    with Endpoint(tmp_path, **settings) as endpoint:
        path = endpoint.create(FILE, *load.SCHEMA)
        with Load(endpoint, FILE, clients=6) as clients:
            for _ in range(CRASHES):
                clients.go_on(chance.randint(5, 150))
                endpoint.kill()
                endpoint.restart()
            clients.go_on()
    clients.check(path)
    assert set(clients.failures) <= {"lost", "08007", "57P01"}, clients.messages


@pytest.mark.parametrize("settings", [{}, {"journal_mode": "delete"}, {"commit_train": True}])
@pytest.mark.parametrize(
    ("ways", "first", "failures"),
    [
        (load.ROUGH, "", {"23502", "57014"}),
        (load.ORPHANS, "PRAGMA foreign_keys = 1", {"23502", "57014", "23503"}),
    ],
)
def test_some_take_down_what_is_committed_with_them(
    tmp_path: Path, settings: dict[str, Any], ways: load.Ways, first: str, failures: set[str]
) -> None:
    with Endpoint(tmp_path, **settings) as endpoint:
        path = endpoint.create(FILE, *load.SCHEMA)
        with Load(endpoint, FILE, clients=6, ways=ways, first=first) as clients:
            clients.go_on(40 * CRASHES)
            for failure in failures:
                clients.fail(failure)
            assert endpoint.file(FILE)["batch_max"] > 1
    clients.check(path)
    assert set(clients.failures) == failures, clients.messages


# A client that leaves a row behind each second time, and is killed at any moment.
VICTIM = """
import sys
import psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as c:
    while True:
        c.execute("BEGIN IMMEDIATE")
        c.execute("INSERT INTO v VALUES (1)")
        c.execute("INSERT INTO v VALUES (2)")
        c.execute("COMMIT")
        print(flush=True)
        c.execute("INSERT INTO v VALUES (1), (2)")
"""


def test_clients_are_killed_in_mid_transaction(tmp_path: Path) -> None:
    with Endpoint(tmp_path) as endpoint:
        path = endpoint.create(FILE, *load.SCHEMA, "CREATE TABLE v (a)")
        with Load(endpoint, FILE, clients=3) as clients:
            for _ in range(CRASHES):
                victims = [
                    subprocess.Popen(
                        [sys.executable, "-c", VICTIM, endpoint.conninfo(FILE)],
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                    )
                    for _ in range(2)
                ]
                for victim in victims:
                    assert victim.stdout is not None
                    assert victim.stdout.readline()
                    victim.kill()
                    victim.communicate()
            clients.go_on()
        sums = endpoint.outside(
            FILE, "print(*c.execute('SELECT count(*), sum(a) FROM v').fetchone())"
        )
    rows, total = map(int, sums.split())
    assert rows >= 2 * CRASHES
    assert total * 2 == rows * 3, "a transaction is there in part"
    clients.check(path)
    assert not clients.messages


@contextmanager
def failing(tmp_path: Path, **settings: Any) -> Iterator[tuple[Load, Path, Path]]:
    """Clients, their file on a disk that can be told to fail, and the directory to tell it in."""
    told = tmp_path / "told"
    told.mkdir()
    runs = ("-m", "tests.sqlite.power_loss", str(told))
    with Endpoint(tmp_path, runs=runs, **settings) as endpoint:
        path = endpoint.create(FILE, *load.SCHEMA)
        with Load(endpoint, FILE, clients=4) as clients:
            clients.go_on()
            yield clients, path, told


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, Fault("xWrite", "-wal", apsw.SQLITE_FULL, 5)),
        ({"journal_mode": "delete"}, Fault("xWrite", "-journal", apsw.SQLITE_FULL, 3)),
        ({"journal_mode": "delete"}, Fault("xWrite", ".db", apsw.SQLITE_FULL, 3)),
        ({"commit_train": True}, Fault("xWrite", "-wal", apsw.SQLITE_FULL, 5)),
    ],
)
def test_the_disk_is_full(tmp_path: Path, settings: dict[str, Any], fault: Fault) -> None:
    with failing(tmp_path, **settings) as (clients, path, told):
        for _ in range(3):
            fault.put(told)
            clients.fail("53100", 8)
            Fault.end(told)
            clients.go_on()
    clients.check(path)
    assert set(clients.failures) == {"53100"}, clients.messages


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, Fault("xSync", "-wal", apsw.SQLITE_IOERR_FSYNC)),
        ({}, Fault("xWrite", "-wal", apsw.SQLITE_IOERR_WRITE, 2)),
        ({"journal_mode": "delete"}, Fault("xSync", ".db", apsw.SQLITE_IOERR_FSYNC)),
        ({"journal_mode": "delete"}, Fault("xSync", "-journal", apsw.SQLITE_IOERR_FSYNC)),
        ({"journal_mode": "delete"}, Fault("xDelete", "-journal", apsw.SQLITE_IOERR_DELETE)),
        ({"commit_train": True}, Fault("xSync", "-wal", apsw.SQLITE_IOERR_FSYNC)),
    ],
)
def test_the_disk_fails_at_commit(tmp_path: Path, settings: dict[str, Any], fault: Fault) -> None:
    with failing(tmp_path, **settings) as (clients, path, told):
        for _ in range(3):
            fault.put(told)
            clients.fail("08007")
            Fault.end(told)
            clients.go_on()
    clients.check(path)


@pytest.mark.parametrize(
    ("journal_mode", "begin"),
    [("wal", "IMMEDIATE"), ("delete", "IMMEDIATE"), ("delete", "EXCLUSIVE")],
)
def test_a_foreign_process_holds_the_lock(tmp_path: Path, journal_mode: str, begin: str) -> None:
    """Everybody waits, in order; nobody fails whose time is not over."""
    holding = (
        f"c.execute('BEGIN {begin}'); print(1, flush=True); sys.stdin.readline(); "
        "c.execute(\"INSERT INTO t VALUES (-1, 0, 0, '')\"); c.execute('COMMIT')"
    )
    with Endpoint(tmp_path, busy_timeout=60.0, journal_mode=journal_mode) as endpoint:
        path = endpoint.create(FILE, *load.SCHEMA)
        with Load(endpoint, FILE, clients=4) as clients:
            clients.go_on()
            for waited in range(2):
                foreign = endpoint.beside(FILE, holding)
                assert foreign.stdout is not None
                assert foreign.stdout.readline()
                endpoint.waits_for_others(FILE, waited + 1)
                foreign.communicate(b"\n")
                clients.go_on()
        deleted = endpoint.outside(
            FILE, "print(c.execute('DELETE FROM t WHERE client < 0').rowcount)"
        )
        assert deleted == "2"
    clients.check(path)
    assert not clients.messages


def test_a_foreign_process_holds_the_lock_for_too_long(tmp_path: Path) -> None:
    holding = "c.execute('BEGIN IMMEDIATE'); print(1, flush=True); sys.stdin.readline()"
    with Endpoint(tmp_path, busy_timeout=0.2) as endpoint:
        path = endpoint.create(FILE, *load.SCHEMA)
        with Load(endpoint, FILE, clients=4) as clients:
            clients.go_on()
            foreign = endpoint.beside(FILE, holding)
            assert foreign.stdout is not None
            assert foreign.stdout.readline()
            clients.fail("55P03", 8)
            foreign.communicate(b"\n")
            clients.go_on()
    clients.check(path)
    assert set(clients.failures) == {"55P03"}, clients.messages


@pytest.mark.parametrize("settings", [{}, {"commit_train": True}])
def test_the_file_is_replaced_while_it_is_open(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Nothing is acknowledged into a file that nobody finds, and RECONNECT takes the new one."""
    with Endpoint(tmp_path, **settings) as endpoint:
        path = endpoint.create(FILE, *load.SCHEMA)
        with Load(endpoint, FILE, clients=4) as clients:
            clients.go_on()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").rename(f"{path}.old{suffix}")
            endpoint.create(FILE, *load.SCHEMA)
            clients.fail("58030", 8)
            told = clients.told
            clients.fail("58030", 50)
            assert clients.told <= told + 4  # those whose thread had not come to it
            endpoint.tell({"do": "reopen", "path": str(path)})
            clients.go_on()
    clients.check(Path(f"{path}.old"), path)


def test_the_owner_is_stopped_and_started_elsewhere(tmp_path: Path) -> None:
    """Two processes never own one file: the second one says so, and gets it when the first ends."""
    with Endpoint(tmp_path) as endpoint:
        endpoint.create(FILE, *load.SCHEMA)
        with psycopg.connect(endpoint.conninfo(FILE), autocommit=True) as mine:
            mine.execute(load.INSERT, (1, 1, 1, ""))
            first = endpoint.process
            first.send_signal(signal.SIGSTOP)
            endpoint.restart()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(endpoint.conninfo(FILE))
            first.kill()
            first.wait()

        def found() -> list[tuple[int]]:
            with psycopg.connect(endpoint.conninfo(FILE), autocommit=True) as again:
                return again.execute("SELECT client FROM t").fetchall()

        assert eventually(found) == [(1,)]
