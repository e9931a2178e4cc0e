"""What the benchmarks share: starting poolers, what they run on, medians and ratios, tables."""

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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, TypeVar

from txproxy.cli.embedded import UNPRIVILEGED_USER
from txproxy.errors import TxproxyError

HOST: Final = "127.0.0.1"
PORTS: Final = range(20000, 32000)  # below those that the system gives to outgoing connections
USER: Final = "postgres"  # also the name of the database
PATIENCE: Final = 30.0  # seconds for a start or a stop
PREPARED_SINCE: Final = (1, 21)  # the first PgBouncer that knows max_prepared_statements
DIRECT: Final = "direct"
PGBOUNCER: Final = "PgBouncer"
TXPROXY: Final = "txproxy"
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

Item = TypeVar("Item")

TXPROXY_TOML: Final = """
[proxy]
listen = ["{host}:{port}"]
auth_type = "trust"
default_pool_size = {pool_size}
max_client_conn = {max_clients}
log_level = "warning"
{more}
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


class BenchmarkError(Exception):
    """Something that is needed is not there, or does not do what it should."""


@dataclass(frozen=True)
class Target:
    """Where clients connect. `pid` is the pooler's process, None if there is none between."""

    name: str
    port: int
    pid: int | None = None
    knows_named_statements: bool = True


@dataclass(frozen=True)
class Pooling:
    """How a pooler is to be set up. `more` are further lines of its own configuration."""

    pool_size: int
    max_clients: int
    more: str = ""


@dataclass
class Results:
    """All samples by row and column, in the order of the rounds, and why there are none."""

    samples: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, row: str, column: str, sample: Any) -> None:
        """One more round."""
        self.samples.setdefault((row, column), []).append(sample)

    def median(self, row: str, column: str, what: str) -> float | None:
        """The median over the rounds of one field; None if there is nothing to tell."""
        samples = self.samples.get((row, column), [])
        values = [value for each in samples if (value := getattr(each, what)) is not None]
        return statistics.median(values) if values else None

    def ratio(self, row: str, column: str, to: str, what: str) -> float | None:
        """The median of the rounds' ratios: the two that are compared ran one after the other."""
        pairs = zip(
            self.samples.get((row, column), []), self.samples.get((row, to), []), strict=False
        )
        values = [
            mine / other
            for one, two in pairs
            if (mine := getattr(one, what)) and (other := getattr(two, what))
        ]
        return statistics.median(values) if values else None

    def spread(self, what: str) -> float:
        """How far apart the rounds are at most: (largest - smallest) / median of the same run."""
        spreads = [0.0]
        for samples in self.samples.values():
            values = [getattr(each, what) for each in samples]
            spreads.append((max(values) - min(values)) / (statistics.median(values) or 1.0))
        return max(spreads)

    def of_row(self, row: str) -> dict[str, list[dict[str, Any]]]:
        """Every sample of a row by column, for JSON."""
        return {
            column: [asdict(each) for each in samples]
            for (name, column), samples in self.samples.items()
            if name == row
        }


# Processes.


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


def script(name: str, *arguments: str) -> list[str]:
    """The command that runs one of the programs beside this file."""
    return [sys.executable, str(Path(__file__).with_name(name)), *arguments]


def load(port: int, **order: Any) -> dict[str, Any]:
    """Let load.py's clients do what its Order says; what they tell."""
    told: dict[str, Any] = json.loads(run(script("load.py", json.dumps({"port": port, **order}))))
    return told


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


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process so far, all threads; 0 for None."""
    if pid is None:
        return 0.0
    try:
        # the command stands before them in parentheses, and may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise BenchmarkError(f"the process {pid} is gone, or there is no /proc") from error
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


# Poolers. Each gets a directory of its own.


@contextlib.contextmanager
def txproxy(server_port: int, directory: Path, pooling: Pooling) -> Iterator[Target]:
    """The txproxy of this Python. Raises BenchmarkError if it does not start."""
    port = free_port()
    directory.mkdir()
    config = directory / "proxy.toml"
    config.write_text(_fill(TXPROXY_TOML, port, server_port, pooling))
    log = directory / "txproxy.log"
    with process(txproxy_command("serve", config), log) as child:
        wait_for_port(child, port, log)
        yield Target(TXPROXY, port, child.pid)


def txproxy_command(subcommand: str, config: Path) -> list[str]:
    """How the txproxy of this Python is run."""
    # -P: a checkout that we may stand in must not hide the txproxy that is installed
    return [sys.executable, "-P", "-m", "txproxy", subcommand, str(config)]


def txproxy_knows(more: str, directory: Path) -> bool:
    """Whether these lines of its configuration mean something to it."""
    config = directory / "known.toml"
    config.write_text(_fill(TXPROXY_TOML, 1, 1, Pooling(1, 1, more)))
    command = txproxy_command("check", config)
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def pgbouncer(server_port: int, directory: Path, pooling: Pooling) -> Iterator[Target]:
    """The PgBouncer that is installed. Raises BenchmarkError if it does not start."""
    port = free_port()
    directory.mkdir()
    named = pgbouncer_version() >= PREPARED_SINCE
    users = directory / "users.txt"
    users.write_text(f'"{USER}" ""\n')
    config = directory / "pgbouncer.ini"
    text = _fill(PGBOUNCER_INI, port, server_port, pooling, users=str(users))
    config.write_text(f"{text}max_prepared_statements = 200\n" if named else text)
    log = directory / "pgbouncer.log"
    with process([find_pgbouncer(), str(config)], log, **_unprivileged(directory)) as child:
        wait_for_port(child, port, log)
        yield Target(PGBOUNCER, port, child.pid, knows_named_statements=named)


def start_pgbouncer(
    stack: contextlib.ExitStack, server_port: int, directory: Path, pooling: Pooling
) -> list[Target]:
    """PgBouncer, if it is installed and starts; the stack stops it."""
    if not find_pgbouncer():
        return []
    try:
        return [stack.enter_context(pgbouncer(server_port, directory, pooling))]
    except BenchmarkError as error:
        say(f"without PgBouncer: {error}")
        return []


def _fill(template: str, port: int, server_port: int, pooling: Pooling, **others: str) -> str:
    return template.format(
        host=HOST, port=port, server_port=server_port, **asdict(pooling), **others
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


# What people read.


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


def environment(server_version: str, *, with_pgbouncer: bool, runs: str) -> dict[str, str]:
    """What it runs on."""
    load, _, _ = os.getloadavg()
    return {
        "commit": commit(),
        "txproxy": f"{version('txproxy')}, {'compiled' if is_compiled() else 'interpreted'}",
        "CPUs": f"{os.cpu_count()}, load {load:.1f} when it began",
        "Python": platform.python_version(),
        "uvloop": version("uvloop"),
        "PostgreSQL": server_version,
        PGBOUNCER: ".".join(map(str, pgbouncer_version()))
        if with_pgbouncer
        else "not installed, or it did not start",
        "runs": runs,
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


def text(value: float | None, form: str) -> str:
    """A cell of a table; what was not measured is empty."""
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


def document(ran_on: Mapping[str, str], *parts: str) -> str:
    """What was run on, then the parts that are not empty."""
    first = "\n".join(f"{name + ':':<12}{value}" for name, value in ran_on.items())
    return "\n\n".join(filter(None, (first, *parts)))


# The command line.


def arguments_of(parser: argparse.ArgumentParser, *, rounds: int, seconds: int | None) -> None:
    """The options that every benchmark has, with this one's defaults; no seconds, no option."""
    parser.add_argument("--rounds", type=positive, default=rounds, help="default: %(default)s")
    if seconds is not None:
        parser.add_argument(
            "--seconds", type=positive, default=seconds, help="of each run; default: %(default)s"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")


def positive(written: str) -> int:
    number = int(written)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def in_turn(items: Sequence[Item], round_number: int) -> list[Item]:
    """Another one begins each round: nobody always runs behind the same neighbour."""
    turn = round_number % len(items)
    return [*items[turn:], *items[:turn]]


def main(name: str, benchmark: Callable[[], None]) -> int:
    """Exit codes: 0, 1 (it failed), 130 (Ctrl-C)."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        benchmark()
    except (BenchmarkError, TxproxyError) as error:
        say(f"{name}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)
