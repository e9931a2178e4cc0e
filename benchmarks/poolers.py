"""What the benchmarks start and stop: poolers in front of a server, clients, other programs."""

import contextlib
import json
import os
import pwd
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from txproxy.cli.embedded import UNPRIVILEGED_USER

HOST: Final = "127.0.0.1"
PORTS: Final = range(20000, 32000)  # below those that the system gives to outgoing connections
USER: Final = "postgres"  # also the name of the database
PATIENCE: Final = 30.0  # seconds for a start or a stop
PREPARED_SINCE: Final = (1, 21)  # the first PgBouncer that knows max_prepared_statements
DIRECT: Final = "direct"
PGBOUNCER: Final = "PgBouncer"
TXPROXY: Final = "txproxy"
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
SPARE: Final = 200  # descriptors that a process needs beside its clients

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


# Processes.


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


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


def raise_file_limit(clients: int) -> None:
    """For what is started from here, too: each client is a descriptor at either end."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < clients + SPARE:
        raise BenchmarkError(f"{clients} clients need more open files than {most}: see ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
    _wait(child, log, lambda: socket.create_connection((HOST, port), 1.0))


def wait_for_socket(child: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    """The same for a unix socket."""

    def connect() -> socket.socket:
        probe = socket.socket(socket.AF_UNIX)
        try:
            probe.connect(str(path))
        except OSError:
            probe.close()
            raise
        return probe

    _wait(child, log, connect)


def _wait(child: subprocess.Popen[bytes], log: Path, connect: Callable[[], socket.socket]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), connect():
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
    # -P: a checkout that we may stand in must not hide the txproxy that is installed
    command = [sys.executable, "-P", "-m", "txproxy", "serve", str(config)]
    with process(command, log) as child:
        wait_for_port(child, port, log)
        yield Target(TXPROXY, port, child.pid)


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
