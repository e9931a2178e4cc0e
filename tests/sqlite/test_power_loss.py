"""Power failures, and first whether the tests would notice a loss at all.

TXPROXY_TEST_CRASHES raises how often the power fails.
"""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.sqlite import disk, load
from tests.sqlite.disk import Disk
from tests.sqlite.endpoint import Endpoint
from tests.sqlite.load import Load
from tests.sqlite.power_loss import Fault

# Inserts 1, 2, 3, … each by itself, and notes how long the trace was when it was acknowledged.
WRITER = """
import sys
from pathlib import Path
import apsw
from tests.sqlite.power_loss import Watched
directory, path, journal, synchronous, rows = sys.argv[1:]
vfs = Watched(Path(directory))
connection = apsw.Connection(path)
connection.execute(f"PRAGMA journal_mode = {journal}").fetchall()
connection.execute(f"PRAGMA synchronous = {synchronous}")
connection.wal_autocheckpoint(7)
for number in range(int(rows)):
    connection.execute("INSERT INTO t VALUES (?, randomblob(1500))", (number,))
    print(Path(directory, "trace").stat().st_size, flush=True)
"""
FAILURES = 25 * int(os.environ.get("TXPROXY_TEST_CRASHES", "5"))
ROOT = Path(__file__).parents[2]


def failures(files: dict[str, bytes], trace: bytes, seed: int) -> Iterator[tuple[int, Disk]]:
    """Points of a trace in order, and the disk at each."""
    ends = list(disk.events(trace))
    chosen = set(random.Random(seed).sample(range(len(ends)), min(FAILURES, len(ends))))
    played = Disk(files)
    for number, (end, event) in enumerate(ends):
        played.play(event)
        if number in chosen:
            yield end, played


def losses(directory: Path, journal: str, synchronous: str) -> int:
    """In how many of the failures an acknowledged row is missing, or the file is broken."""
    path = directory / "file.db"
    stock = sqlite3.connect(path)
    stock.execute("PRAGMA journal_mode = " + journal)
    stock.execute("CREATE TABLE t (a, b)")
    stock.close()
    files = {path.name: path.read_bytes()}
    arguments = [str(directory), str(path), journal, synchronous, "60"]
    command = [sys.executable, "-c", WRITER, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    acknowledged = [int(line) for line in output.split()]
    trace = (directory / "trace").read_bytes()
    chance = random.Random(3)
    lost = 0
    for number, (end, played) in enumerate(failures(files, trace, seed=2)):
        where = directory / f"after{number}"
        disk.put(where, played.fail(chance))
        found = sqlite3.connect(where / path.name)
        try:
            rows = {row for (row,) in found.execute("SELECT a FROM t")}
            (answer,) = found.execute("PRAGMA integrity_check").fetchone()
            expected = sum(size <= end for size in acknowledged)
            lost += answer != "ok" or not set(range(expected)) <= rows
        except sqlite3.DatabaseError:
            lost += 1
        finally:
            found.close()
    return lost


@pytest.mark.parametrize(
    ("journal", "synchronous", "is_safe"),
    [
        ("wal", "FULL", True),
        ("wal", "NORMAL", False),
        ("wal", "OFF", False),
        ("delete", "EXTRA", True),
        ("delete", "FULL", False),
        ("delete", "OFF", False),
    ],
)
def test_the_disk_loses_what_sqlite_did_not_sync(
    tmp_path: Path, journal: str, synchronous: str, is_safe: bool
) -> None:
    assert (losses(tmp_path, journal, synchronous) == 0) == is_safe


@pytest.mark.parametrize("what", ["nothing", "the disk fails", "the process is killed"])
@pytest.mark.parametrize("settings", [{}, {"journal_mode": "delete"}, {"commit_train": True}])
def test_what_was_acknowledged_outlives_the_power(
    tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    """Whatever had happened before; a disk that fails to sync has lost it for good."""
    told = tmp_path / "told"
    told.mkdir()
    trace = told / "trace"
    runs = ("-m", "tests.sqlite.power_loss", str(told))
    with Endpoint(tmp_path, runs=runs, **settings) as endpoint:
        path = endpoint.create("a.db", *load.SCHEMA)
        files = {path.name: path.read_bytes()}
        with Load(endpoint, "a.db", 4, clock=lambda: trace.stat().st_size) as clients:
            clients.go_on(100)
            if what == "the process is killed":
                endpoint.kill()
                endpoint.restart()
            if what == "the disk fails":
                Fault("xSync", "", apsw.SQLITE_IOERR_FSYNC).put(told)
                clients.fail("08007")
                Fault.end(told)
            clients.go_on(150)
    clients.check(path)
    content = trace.read_bytes()
    written = {event.name for _, event in disk.events(content) if event.kind == disk.WRITE}
    assert path.name in written, "there was no checkpoint"
    chance = random.Random(7)
    for number, (end, played) in enumerate(failures(files, content, seed=4)):
        where = tmp_path / f"after{number}"
        disk.put(where, played.fail(chance))
        clients.check(where / path.name, end=end)
