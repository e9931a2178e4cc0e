"""Django on one SQLite file: with its own backend, and with txproxy's engine.

    .venv/bin/python benchmarks/django_sqlite.py [--rounds N] [--seconds N] [--load NAME]...
        [--directory DIR] [--json FILE]

The same requests, each a transaction, on a new file in WAL mode each time: Django's own backend as
it comes and with transaction_mode IMMEDIATE, and txproxy.django.sqlite3 in front of a real
`txproxy serve`. One load is processes that do nothing else, one a site under gunicorn, with clients
that speak HTTP and a task queue beside it. The others are those of sqlite_writers.py that Django
knows: rows in autocommit and in short transactions, one after the other. Several rounds of all,
side by side. Afterwards the file is read by a process that had not opened it. Everything that is
started is stopped at the end, also on Ctrl-C.

It needs Django and gunicorn: the extra "bench".
"""

import argparse
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from common import Results, arguments_of, document, in_turn, machine, main, markdown, text
from poolers import HOST, TXPROXY, BenchmarkError, free_port, process, say, script, wait_for_port
from sqlite_clients import NAME, at
from sqlite_clients import Order as WriteOrder
from sqlite_setups import PORT, Cell, endpoint, sync_us
from sqlite_setups import Sample as WriteSample
from sqlite_setups import measure as measure_rows
from sqlite_writers import numbers
from sqlite_writers import table as rows_table

try:
    from django_site import DATABASE, DRAIN, READS, WORK, Order, Request, check
except ModuleNotFoundError as error:
    sys.exit(f"django_sqlite.py: {error}: pip install --editable '.[bench]'")

STOCK: Final = "sqlite3"
IMMEDIATE: Final = "sqlite3 IMMEDIATE"  # with that transaction_mode
WAYS: Final = (STOCK, IMMEDIATE, TXPROXY)
MIX: Final = "mix"
SITE: Final = "site"
ROWS: Final = {
    "create/1": Cell("create/1", 1, ways=WAYS),
    "create/8": Cell("create/8", 8, ways=WAYS),
    "atomic/8": Cell("atomic/8", 8, begin="atomic", ways=WAYS),
}
LOADS: Final = (MIX, SITE, *ROWS)
PROCESSES: Final = 8  # of the mix
MIX_WRITERS: Final = 0.1  # the share of requests that write
WORKERS: Final = 3  # gunicorn's processes
CLIENTS: Final = 6  # threads that speak HTTP
SITE_WRITERS: Final = 0.25
WARM_UP: Final = 2.0  # seconds; the first connections load what is loaded once
LEAD: Final = 1.0  # seconds that programs get to start


@dataclass(frozen=True)
class Sample:
    """What one run was like. Latencies are of a request, also of one that failed."""

    per_second: float  # requests that did what they should
    p50_ms: float
    p99_ms: float
    max_ms: float
    writers_p99_ms: float
    requests: int  # in the time that counts
    failed: int  # of these
    writers: int  # of these
    writers_failed: int
    errors: dict[str, int]  # of these, by name
    tasks_left: int | None  # that the queue has not done; None: there is no queue
    tasks_done: int | None
    tasks_errors: dict[str, int]
    wrong: dict[str, int | str]  # what the file has to say against it


# Loads.


def measure(load: str, way: str, directory: Path, seconds: int) -> Sample | WriteSample:
    """One run, on a new file in a new directory."""
    if load in ROWS:
        return measure_rows(ROWS[load], way, directory, seconds, partial(write, way))
    directory.mkdir()
    file = directory / "bench.sqlite3"
    with program("make", database_of(STOCK, file), directory, Order()) as child:
        finished(child, directory / "make.log")
    with contextlib.ExitStack() as stack:
        if way == TXPROXY:
            stack.enter_context(endpoint(file, "wal", train=False))
        database = database_of(way, file)
        if load == MIX:
            requests, told = run_mix(database, directory, seconds), None
        else:
            requests, told = run_site(database, directory, seconds)
    return sample(requests, told, check(file, requests, told), seconds)


def database_of(way: str, file: Path) -> dict[str, Any]:
    """DATABASES["default"]."""
    database: dict[str, Any] = {"CONN_MAX_AGE": None, "ATOMIC_REQUESTS": True}
    if way == TXPROXY:
        where = {"NAME": NAME, "HOST": str(file.parent), "PORT": PORT}
        return {"ENGINE": "txproxy.django.sqlite3", **where, **database}
    if way == IMMEDIATE:
        database["OPTIONS"] = {"transaction_mode": "IMMEDIATE"}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file), **database}


def write(way: str, order: WriteOrder) -> dict[str, Any]:
    """Rows, as fast as they are taken; what is told of them."""
    file = Path(order.path)
    with program("write", database_of(way, file), file.parent, order) as child:
        told: dict[str, Any] = finished(child, file.with_name("write.log"))
    return told


def run_mix(database: dict[str, Any], directory: Path, seconds: int) -> list[Request]:
    """Processes that are nothing but requests."""
    order = Order(WARM_UP + seconds, PROCESSES, MIX_WRITERS)
    with program("mix", database, directory, order) as child:
        return [Request(*each) for each in finished(child, directory / "mix.log")]


def run_site(
    database: dict[str, Any], directory: Path, seconds: int
) -> tuple[list[Request], dict[str, Any]]:
    """Requests by HTTP, and what the task queue told."""
    port = free_port()
    log = directory / "gunicorn.log"
    # -P: a checkout that we may stand in must not hide the txproxy that is installed. Without
    # --preload a worker would begin when it has imported Django, somewhere in the time that counts.
    gunicorn = [sys.executable, "-P", "-m", "gunicorn", "--preload", "--no-control-socket"]
    where = ["--bind", f"{HOST}:{port}", "--workers", str(WORKERS), "--worker-class", "sync"]
    module = ["--pythonpath", str(Path(__file__).parent), "django_site:application"]
    options = {"env": in_environment(database), "cwd": directory}
    with process([*gunicorn, *where, *module], log, **options) as server:
        wait_for_port(server, port, log)
        start = time.monotonic() + LEAD
        order = Order(WARM_UP + seconds, CLIENTS, SITE_WRITERS, start, port)
        with (
            program("queue", database, directory, order) as queue,
            program("browse", database, directory, order) as browse,
        ):
            requests = [Request(*each) for each in finished(browse, directory / "browse.log")]
            queue.terminate()  # it ends when there is nothing left
            return requests, finished(queue, directory / "queue.log")


# Programs.


def in_environment(database: dict[str, Any]) -> dict[str, str]:
    return {**os.environ, DATABASE: json.dumps(database)}


@contextlib.contextmanager
def program(
    role: str, database: dict[str, Any], directory: Path, order: Order | WriteOrder
) -> Iterator[subprocess.Popen[bytes]]:
    """django_site.py in that role. What it prints goes to a log of that name."""
    command = script("django_site.py", role, json.dumps(asdict(order)))
    log = directory / f"{role}.log"
    with process(command, log, env=in_environment(database)) as child:
        yield child


def finished(child: subprocess.Popen[bytes], log: Path) -> Any:
    """What it told when it had ended. Raises BenchmarkError."""
    code = child.wait()
    lines = log.read_text(errors="replace").splitlines()
    if code:
        raise BenchmarkError(f"{log.stem} failed: {' '.join(lines)[-500:]}")
    return json.loads(lines[-1]) if lines else None


# What came of it.


def sample(
    requests: Sequence[Request],
    told: dict[str, Any] | None,
    wrong: dict[str, int | str],
    seconds: int,
) -> Sample:
    """The figures: of requests that were made in the time that counts."""
    begin = min(request.began for request in requests) + WARM_UP
    counted = [each for each in requests if each.began >= begin]
    took = sorted(each.ended - each.began for each in counted)
    writers = [each for each in counted if each.task or each.article]
    tasks = sum(1 for each in requests if each.task and not each.error)
    done = None if told is None else len(told["done"])
    return Sample(
        per_second=sum(1 for each in counted if not each.error) / seconds,
        p50_ms=at(took, 0.5),
        p99_ms=at(took, 0.99),
        max_ms=at(took, 1.0),
        writers_p99_ms=at(sorted(each.ended - each.began for each in writers), 0.99),
        requests=len(counted),
        failed=sum(1 for each in counted if each.error),
        writers=len(writers),
        writers_failed=sum(1 for each in writers if each.error),
        errors=dict(Counter(each.error for each in counted if each.error)),
        tasks_done=done,
        tasks_left=None if done is None else tasks - done,
        tasks_errors={} if told is None else told["errors"],
        wrong=wrong,
    )


# What people read.

HEAD: Final = (
    "load",
    "way",
    "requests/s",
    f"to {STOCK}",
    "p50 ms",
    "p99 ms",
    "max ms",
    "writers' p99 ms",
    "failed",
    "of all",
    "of writers",
    "tasks done",
    "left",
    "refused",
    "wrong",
)
ERRORS_HEAD: Final = ("load, way, what", "times")


def row(results: Results, load: str, way: str) -> tuple[str, ...]:
    def median(what: str) -> str:
        return text(results.median(load, way, what), ",.1f")

    samples: list[Sample] = results.samples[load, way]
    ratio = None if way == STOCK else results.ratio(load, way, STOCK, "per_second")
    failed, requests, writers_failed, writers = (
        sum(getattr(each, what) for each in samples)
        for what in ("failed", "requests", "writers_failed", "writers")
    )
    return (
        load,
        way,
        median("per_second"),
        text(ratio, ".2f"),
        *(median(what) for what in ("p50_ms", "p99_ms", "max_ms", "writers_p99_ms")),
        str(failed),
        f"{failed / max(1, requests):.1%}",
        f"{writers_failed / max(1, writers):.1%}",
        *(total(samples, what) for what in ("tasks_done", "tasks_left")),
        "" if load == MIX else str(sum(sum(each.tasks_errors.values()) for each in samples)),
        str(sum(1 if isinstance(n, str) else n for each in samples for n in each.wrong.values())),
    )


def total(samples: Sequence[Sample], what: str) -> str:
    """Of all rounds; "" if it is not of this load."""
    values = [value for each in samples if (value := getattr(each, what)) is not None]
    return str(sum(values)) if values else ""


def errors_table(results: Results) -> str:
    """Which errors those were, and what was wrong. "" if there were none."""
    body = []
    for (load, way), samples in results.samples.items():
        if load in ROWS:
            continue  # its table says so
        kinds: Counter[str] = Counter()
        for each in samples:
            kinds.update({f"request: {name}": n for name, n in each.errors.items()})
            kinds.update({f"queue: {name}": n for name, n in each.tasks_errors.items()})
            kinds.update({f"wrong: {name} {n}": 1 for name, n in each.wrong.items()})
        body += [(f"{load}, {way}, {name}", str(n)) for name, n in kinds.most_common()]
    return markdown(ERRORS_HEAD, body) if body else ""


HOW_TO_READ: Final = """
A request is a transaction: {reads} SELECTs by primary key, {work:.0f} ms of doing something else,
perhaps a write. mix: {processes} processes send one after the other, and {mix:.0%} of them write:
an INSERT or an UPDATE. site: {workers} sync workers of gunicorn, {clients} HTTP clients,
ATOMIC_REQUESTS, and {site:.0%} of the requests write both; what they INSERT are tasks, and a
process beside them does these, each in a transaction that reads it with select_for_update() and
saves it. "{stock}" is Django's own backend with its timeout of 5 s, "{immediate}" the same
with that transaction_mode, in which every request takes the file's lock, whether it will write or
not. "txproxy" rightly refuses a write, with SQLITE_BUSY_SNAPSHOT, if its request has read an
article which another request has hit since; the others fail then and whenever anybody has written.

requests/s are those that were answered without an error in the {seconds} s that count, after
{warm_up:g} s; "to {stock}" is the proportion to that, the median of each round's. They and the
latencies, which are also of requests that failed, are medians of the rounds, all other numbers are
sums. "failed" had an error, in the site status 500; nothing is tried again. "of all" is its share
of all requests, "of writers" that of those that were to write. "tasks done" are those that the
queue was told are done, "left" those that were not when the last request was {drain:g} s ago,
"refused" its own errors, after which it tries again. "wrong" is what the file had to say
afterwards: tasks and hits that were acknowledged and are not there, or there twice, or refused and
there; tasks that were done twice, or otherwise than the queue was told; an integrity_check that is
not ok. It must be 0. Clients, site and endpoint share the CPUs."""


ROWS_HOW_TO_READ: Final = """
create: rows of about 130 bytes by Model.objects.create(), in autocommit. atomic: atomic() around a
get() by primary key and a create(). Behind the slash is the number of processes.

{numbers}"""


def how_to_read(seconds: int) -> str:
    return HOW_TO_READ.strip().format(
        reads=READS,
        work=WORK * 1000,
        processes=PROCESSES,
        mix=MIX_WRITERS,
        workers=WORKERS,
        clients=CLIENTS,
        site=SITE_WRITERS,
        stock=STOCK,
        immediate=IMMEDIATE,
        seconds=seconds,
        warm_up=WARM_UP,
        drain=DRAIN,
    )


def parts(results: Results, loads: Sequence[str], seconds: int) -> Iterator[str]:
    """Tables of what was measured, and how to read them."""
    rows = [row(results, load, way) for load in loads if load not in ROWS for way in WAYS]
    if rows:
        yield markdown(HEAD, rows)
        yield errors_table(results)
        yield how_to_read(seconds)
    cells = [ROWS[load] for load in loads if load in ROWS]
    if cells:
        yield rows_table(results, cells, STOCK)
        yield ROWS_HOW_TO_READ.strip().format(numbers=numbers(STOCK, seconds))


def environment(root: Path, options: argparse.Namespace) -> dict[str, str]:
    """What it runs on. Raises BenchmarkError if something is not installed."""
    try:
        versions = {name: version(name) for name in ("apsw", "Django", "gunicorn")}
    except PackageNotFoundError as error:
        words = f"there is no {error.name}: pip install --editable '.[bench]'"
        raise BenchmarkError(words) from error
    return {
        **machine(),
        "SQLite": f"{sqlite3.sqlite_version}, the endpoint's apsw {versions['apsw']}",
        "Django": f"{versions['Django']}, gunicorn {versions['gunicorn']}",
        "a sync": f"{sync_us(root):,.0f} µs, of 4 KiB in {root.parent}",
        "runs": f"{options.seconds} s each, rounds: {options.rounds}",
    }


# The whole.


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments_of(parser, rounds=3, seconds=8)
    parser.add_argument(
        "--load", action="append", choices=LOADS, help="only this one; may be given several times"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where the files are made: on that disk"
    )
    return parser.parse_args(argv)


def benchmark() -> None:
    """Measure, print, and write the JSON."""
    options = parse_arguments()
    loads = [load for load in LOADS if not options.load or load in options.load]
    results = Results()
    with tempfile.TemporaryDirectory(prefix="txproxy-bench-", dir=options.directory) as name:
        root = Path(name)
        ran_on = environment(root, options)
        for number in range(options.rounds):
            for load in loads:
                for way in in_turn(WAYS, number):
                    say(f"round {number + 1} of {options.rounds}: {load}, {way}")
                    directory = root / f"{number}-{LOADS.index(load)}-{WAYS.index(way)}"
                    results.add(load, way, measure(load, way, directory, options.seconds))
    print(document(ran_on, *parts(results, loads, options.seconds)))
    if options.json:
        said = {load: results.of_row(load) for load in loads}
        options.json.write_text(json.dumps({"ran_on": ran_on, "loads": said}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main("django_sqlite.py", benchmark))
