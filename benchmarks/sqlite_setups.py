"""What sqlite_writers.py measures: kinds of load, ways to the file, and the endpoint's process."""

import contextlib
import json
import os
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from poolers import (
    DIRECT,
    TXPROXY,
    BenchmarkError,
    cpu_seconds,
    process,
    run,
    script,
    wait_for_socket,
)
from sqlite_clients import NAME, PAGES, TABLES, Order

import txproxy.sqlite

TRAIN: Final = "commit_train"  # txproxy with this setting
PORT: Final = 6432
WARM_UP: Final = 0.5  # seconds
SYNCS: Final = 200  # that the disk is asked for

TXPROXY_TOML: Final = """
[proxy]
listen = ["unix:{directory}"]
log_level = "warning"

[sqlite.{name}]
path = "{path}"
journal_mode = "{journal}"
commit_train = {train}
"""


@dataclass(frozen=True)
class Cell:
    """One kind of load, on a new file with that journal, over each of these ways."""

    name: str
    processes: int
    threads: int = 1
    begin: str = ""  # of a transaction: BEGIN, SELECT, INSERT, COMMIT; "": an INSERT by itself
    journal: str = "wal"
    ways: tuple[str, ...] = (DIRECT, TXPROXY)


WITH_TRAIN: Final = (DIRECT, TXPROXY, TRAIN)
# Without IMMEDIATE, SQLite refuses those that have read as soon as another has written.
IMMEDIATE: Final = "BEGIN IMMEDIATE"
CELLS: Final = (
    Cell("insert/1", 1),
    Cell("insert/8", 8),
    Cell("insert/64", 8, 8),
    Cell("insert/8 delete", 8, journal="delete"),
    Cell("insert/64 delete", 8, 8, journal="delete"),
    Cell("transaction/1", 1, begin=IMMEDIATE, ways=WITH_TRAIN),
    Cell("transaction/8", 8, begin=IMMEDIATE, ways=WITH_TRAIN),
    Cell("transaction/64", 8, 8, begin=IMMEDIATE, ways=WITH_TRAIN),
    Cell("deferred/8", 8, begin="BEGIN", ways=WITH_TRAIN),
)


@dataclass(frozen=True)
class Sample:
    """What one run was like. Latencies are of an INSERT, or of a whole transaction."""

    per_second: float  # rows that were acknowledged
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    share: float  # what the client with the fewest rows got, of the one with the most
    locked: int  # "database is locked", a transaction that is stale included
    errors: int  # any others
    wrong: int  # rows lost, there twice, or there and refused; a file that is not whole
    cpu_us: float  # of the clients, per row
    server_cpu_us: float | None  # of the SQLite process, per row; None: there is none
    told: dict[str, Any]  # by sqlite_clients.py


def clients(order: Order) -> dict[str, Any]:
    """What they tell. Raises BenchmarkError."""
    told: dict[str, Any] = json.loads(run(script("sqlite_clients.py", json.dumps(asdict(order)))))
    return told


def measure(
    cell: Cell,
    way: str,
    directory: Path,
    seconds: int,
    ask: Callable[[Order], dict[str, Any]] = clients,
) -> Sample:
    """One run, on a new file in a new directory."""
    directory.mkdir()
    path = directory / "bench.sqlite3"
    make(path, cell.journal)
    with contextlib.ExitStack() as stack:
        pid = None
        if way in {TXPROXY, TRAIN}:
            pid = stack.enter_context(endpoint(path, cell.journal, train=way == TRAIN))
        order = Order(
            path=str(path),
            socket="" if pid is None else str(directory),
            port=PORT,
            begin=cell.begin,
            processes=cell.processes,
            threads=cell.threads,
            seconds=seconds,
            warm_up=WARM_UP,
        )
        before = cpu_seconds(pid)
        told = ask(order)
        used = cpu_seconds(pid) - before
    return sample(told, seconds, None if pid is None else used)


def sample(told: dict[str, Any], seconds: int, server_cpu: float | None) -> Sample:
    """The figures in what was told."""
    rows = max(1, told["check"]["acknowledged"])
    locked = sum(n for name, n in told["errors"].items() if name.startswith("SQLITE_BUSY"))
    checked = told["check"]
    return Sample(
        per_second=told["rows"] / seconds,
        **{name: told[name] for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms")},
        share=min(told["by_client"]) / max(1, *told["by_client"]),
        locked=locked,
        errors=sum(told["errors"].values()) - locked,
        wrong=checked["missing"]
        + checked["twice"]
        + checked["refused but there"]
        + (checked["integrity"] != "ok"),
        cpu_us=told["cpu"] / rows * 1e6,
        server_cpu_us=None if server_cpu is None else server_cpu / rows * 1e6,
        told=told,
    )


# The file, the endpoint, the disk.


def make(path: Path, journal: str) -> None:
    """A new file with its tables. Closed again: only then may the endpoint's process have it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.executescript(TABLES)
        pages = ((number, f"page {number}") for number in range(PAGES))
        connection.executemany("INSERT INTO page VALUES (?, ?)", pages)
        connection.commit()


@contextlib.contextmanager
def endpoint(path: Path, journal: str, *, train: bool) -> Iterator[int]:
    """A txproxy for that file; the pid of its SQLite process. Raises BenchmarkError."""
    directory = path.parent
    config = directory / "proxy.toml"
    config.write_text(
        TXPROXY_TOML.format(
            directory=directory,
            name=NAME,
            path=path,
            journal=journal,
            train=str(train).lower(),
        )
    )
    log = directory / "txproxy.log"
    # -P: a checkout that we may stand in must not hide the txproxy that is installed
    command = [sys.executable, "-P", "-m", "txproxy", "serve", str(config)]
    with process(command, log) as child:
        wait_for_socket(child, directory / f".s.PGSQL.{PORT}", log)
        # Once it answers it has started: what that costs is nobody's row.
        client = txproxy.sqlite.connect(NAME, host=str(directory), port=PORT, reads="server")
        client.execute("SELECT 1").fetchone()
        client.close()
        yield child_of(child.pid)


def child_of(pid: int) -> int:
    """The only child of a process. Raises BenchmarkError if that is not so."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        [child] = children.read_text().split()
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{pid} has not one child, or there is no /proc") from error
    return int(child)


def sync_us(directory: Path) -> float:
    """What it takes to append 4 KiB and have them on the disk: microseconds, the median."""
    took = []
    with (directory / "sync").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6
