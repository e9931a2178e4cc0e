"""`txproxy demo`: the proxy at work, on a PostgreSQL of its own, with clients as Django's are.

Many clients do short transactions and single statements through a small pool. A few begin a
transaction, fall asleep in it past the proxy's timeout, and then speak again. Beside them some
processes write to an SQLite file through the proxy, and others to one by themselves. `--once` ends
when each sleeper has slept twice, and checks what the proxy promises; otherwise a table shows it
live.
"""

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final, LiteralString, Self

from txproxy.cli import demo_files
from txproxy.cli.demo_files import WRITERS, Files
from txproxy.cli.embedded import EmbeddedPostgres, dying_with_us
from txproxy.errors import TxproxyError

try:
    import psycopg
except ImportError as missing:  # an extra, which a server has no need of
    raise TxproxyError(
        f"the demo's clients need psycopg: {missing}", hint="pip install 'txproxy[demo]'"
    ) from missing

from txproxy.cli.demo_clients import (
    BUSY_CLIENTS,
    CLIENTS,
    PATIENCE,
    REAPED,
    SCHEMA,
    SLEEPERS,
    Crowd,
    Ledger,
)

POOL_SIZE: Final = 4
ROUNDS: Final = 2  # how often each sleeper sleeps in --once
BALANCE: Final = 1000  # of each account
ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)  # and SIGINT, which is Ctrl-C

CONFIGURATION: Final = """\
[proxy]
listen = ["127.0.0.1:0", "unix:{directory}"]
default_pool_size = {pool_size}
idle_transaction_timeout = "1s"
early_release = "off"
shutdown_timeout = "1s"
log_format = "json"

[databases.demo]
host = "{server.host}"
port = {server.port}
dbname = "postgres"

"""

FILL: Final = "INSERT INTO accounts SELECT id, %s FROM generate_series(1, %s) AS id"

DJANGO: Final = """\
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": 6432,
        "NAME": "demo",
        "USER": "postgres",
    }
}"""


def demo(once: bool) -> int:
    """Run the demo until Ctrl-C, or `once`. Returns the exit code: 1 if a check of `once` failed.

    Raises TxproxyError if PostgreSQL or the proxy cannot be started.
    """
    for signum in ENDINGS:
        signal.signal(signum, signal.default_int_handler)
    print("Starting a PostgreSQL, and the proxy in front of it", flush=True)
    try:
        with (
            EmbeddedPostgres() as server,
            tempfile.TemporaryDirectory(prefix="txproxy-demo-") as directory,
            _started_proxy(server, Path(directory)) as proxy,
        ):
            with psycopg.connect(_address(server.port, "postgres")) as connection:
                connection.execute(SCHEMA)
                connection.execute(FILL, (BALANCE, CLIENTS))
            run = _once if once else _live
            return asyncio.run(run(server, proxy, Path(directory)))
    except KeyboardInterrupt:
        return 1 if once else 0


def _address(port: int, database: str) -> str:
    return f"host=127.0.0.1 port={port} dbname={database} user=postgres"


# The proxy, and what its log says


class Proxy:
    """The proxy's process. `port` is 0 until it is ready; `reaped` counts by application_name whom
    it has rolled back.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port = 0
        self.reaped: Counter[str] = Counter()
        self.last_reaped: dict[str, object] = {}
        self.bugs: list[str] = []
        self.said = ""
        self._process = process
        self._log = log.open()

    def look(self) -> Self:
        """Read what the log has got since. Raises TxproxyError if the proxy has ended."""
        ended = self._process.poll() is not None
        for line in self._log:
            self._read(line.strip())
        if ended:
            raise TxproxyError(f"the proxy has ended: {self.said or 'without a word'}")
        return self

    def _read(self, line: str) -> None:
        self.said = line
        if not line.startswith("{"):
            return
        event = json.loads(line)
        if event["event"] == "ready":
            self.port = int(event["listen"].partition(",")[0].rpartition(":")[2])
        elif event["event"] == "bug":
            self.bugs.append(f"the proxy's log: {line}")
        elif event["event"] == "reaped":
            self.reaped[event["application_name"]] += 1
            self.last_reaped = event

    def stop(self) -> None:
        """End the process; returns when it is gone."""
        self._log.close()
        self._process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _started_proxy(server: EmbeddedPostgres, directory: Path) -> Iterator[Proxy]:
    path = directory / "proxy.toml"
    configuration = CONFIGURATION + demo_files.CONFIGURATION
    path.write_text(configuration.format(pool_size=POOL_SIZE, server=server, directory=directory))
    demo_files.make(directory)
    log = directory / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*dying_with_us(), sys.executable, "-m", "txproxy", "serve", path],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # a session of its own: a Ctrl-C in the terminal is for the demo, which then stops it
            start_new_session=True,
        )
    proxy = Proxy(process, log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not proxy.look().port:
            if time.monotonic() > deadline:
                raise TxproxyError(f"the proxy was not ready in {PATIENCE:g} s")
            time.sleep(0.02)
        yield proxy
    finally:
        proxy.stop()


# Both modes


class Monitor:
    """A connection to the server itself, past the proxy."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection

    async def backends(self) -> frozenset[int]:
        """The pids of the server's processes that serve somebody else than us."""
        cursor = await self._connection.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return frozenset([row[0] for row in await cursor.fetchall()])

    async def number(self, sql: LiteralString) -> int:
        """A number that the server answers."""
        cursor = await self._connection.execute(sql)
        return int((await cursor.fetchone() or (0,))[0])

    async def transfers(self) -> dict[int, tuple[int, int]]:
        """What is stored, by client: how many transfers, and the last one's number."""
        cursor = await self._connection.execute(
            "SELECT client, count(*), max(number) FROM transfers GROUP BY client"
        )
        return {client: (count, last) for client, count, last in await cursor.fetchall()}


@contextlib.asynccontextmanager
async def _crowd(
    server: EmbeddedPostgres, proxy: Proxy, rounds: int | None = None
) -> AsyncIterator[tuple[Crowd, Monitor]]:
    """The clients, the busy ones at work and the pool full; Ctrl-C stops them."""
    crowd = Crowd(_address(proxy.port, "demo"), lambda name: proxy.look().reaped[name], rounds)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, *ENDINGS):
        loop.add_signal_handler(signum, crowd.stop.set)
    address = _address(server.port, "postgres")
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        monitor = Monitor(connection)
        try:
            crowd.start_busy()
            await _warm(crowd, proxy, monitor)
            crowd.start_sleepers()
            yield crowd, monitor
        finally:
            await crowd.end()


async def _warm(crowd: Crowd, proxy: Proxy, monitor: Monitor) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(await monitor.backends()) < POOL_SIZE and not crowd.stop.is_set():
        proxy.look()
        if time.monotonic() > deadline:
            raise TxproxyError(f"the pool was not full in {PATIENCE:g} s")
        await crowd.pause(0.1)


# --once


async def _once(server: EmbeddedPostgres, proxy: Proxy, directory: Path) -> int:
    async with (
        _crowd(server, proxy, ROUNDS) as (crowd, monitor),
        contextlib.AsyncExitStack() as stack,
    ):
        files = await stack.enter_async_context(demo_files.writing(directory))
        print(f"{CLIENTS} clients, {SLEEPERS} of which forget to commit", flush=True)
        seen = {await monitor.backends()}
        while not crowd.sleepers_are_done and not crowd.stop.is_set():
            await crowd.pause(0.1)
            seen.add(await monitor.backends())
        if crowd.stop.is_set():
            return 1
        await crowd.end()
        await stack.aclose()
        proxy.look()
        crowd.ledger.problems += files.problems
        checks = [*_checks(crowd.ledger, proxy, seen), *await _stored(crowd.ledger, monitor)]
        checks += files.checks()
    for good, text in checks:
        print(f"{'ok' if good else 'FAILED':<7} {text}")
    return 0 if all(good for good, _ in checks) else 1


Check = tuple[bool, str]


def _checks(ledger: Ledger, proxy: Proxy, seen: set[frozenset[int]]) -> Iterator[Check]:
    """What clients and log say, and the server's processes: `seen` are their pids at all times."""
    served = sum(ledger.transfers[number] > 0 for number in range(1, BUSY_CLIENTS + 1))
    most = max(map(len, seen))
    reaped = proxy.reaped.total()
    problems = [*ledger.problems, *proxy.bugs]
    yield (
        served == BUSY_CLIENTS and most == POOL_SIZE,
        f"{CLIENTS} clients were served by {most} backends: {ledger.statements} statements",
    )
    yield (
        reaped == ledger.slept == SLEEPERS * ROUNDS,
        f"{reaped} transactions were rolled back while their clients slept in them",
    )
    yield (
        len(seen) == 1,
        f"no backend was lost by that: {' or '.join(map(_listed, seen))} all the time",
    )
    yield (
        ledger.told == ledger.slept,
        f"{ledger.told} of {ledger.slept} next statements got the error {REAPED}",
    )
    yield (
        ledger.went_on == ledger.slept,
        f"{ledger.went_on} of {ledger.slept} sleepers went on after ROLLBACK, still connected",
    )
    yield (
        ledger.answers > 0 and ledger.mixed_up == 0,
        f"{ledger.answers} answers came, {ledger.mixed_up} of them to somebody else's question",
    )
    yield not problems, f"other errors: {problems[0] if problems else 'none'}"


async def _stored(ledger: Ledger, monitor: Monitor) -> Sequence[Check]:
    """What the server's tables say, now that all clients have gone."""
    total = await monitor.number("SELECT sum(balance) FROM accounts")
    transfers = await monitor.transfers()
    stored = sum(count for count, _ in transfers.values())
    acknowledged = ledger.transfers.total()
    left_open = await monitor.number(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    )
    # as many as were acknowledged, numbered without a gap: so none of a sleeper's
    right = {client: (count, count) for client, count in ledger.transfers.items()}
    return (
        (total == CLIENTS * BALANCE, f"the accounts add up to {total}, as at the beginning"),
        (transfers == right, f"{stored} transfers are stored, {acknowledged} were acknowledged"),
        (left_open == 0, f"{left_open} backends are left idle in a transaction"),
    )


def _listed(pids: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(pids)))


# Live


async def _live(server: EmbeddedPostgres, proxy: Proxy, directory: Path) -> int:
    snippet = DJANGO.replace("6432", str(proxy.port)).splitlines()
    title = f"txproxy on port {proxy.port}, in front of PostgreSQL {server.version}"
    terminal = sys.stdout.isatty()
    if not terminal:
        print(title, *snippet, sep="\n", flush=True)
    async with (
        _crowd(server, proxy) as (crowd, monitor),
        demo_files.writing(directory) as files,
    ):
        async for rate in _every_second(crowd):
            rows = _rows(crowd, proxy.look(), await monitor.backends(), rate, files)
            if terminal:
                first = f"{title} (Ctrl-C ends it)"
                _draw([first, "", *_table(rows), "", *_last(proxy), *snippet])
            else:
                print(", ".join(f"{name} {value}" for name, value, _ in rows), flush=True)
    return 0


async def _every_second(crowd: Crowd) -> AsyncIterator[float]:
    """About each second until the end: how many statements there were in one."""
    count, since = crowd.ledger.statements, time.monotonic()
    while not crowd.stop.is_set():
        await crowd.pause(1.0)
        now = time.monotonic()
        yield (crowd.ledger.statements - count) / (now - since)
        count, since = crowd.ledger.statements, now


Row = tuple[str, int, str]


def _rows(
    crowd: Crowd, proxy: Proxy, backends: frozenset[int], rate: float, files: Files
) -> list[Row]:
    """What there is to see: its name, its number, and what to think of it."""
    ledger = crowd.ledger
    rows = [
        ("clients", crowd.connected, f"{SLEEPERS} of them forget to commit"),
        ("backends", len(backends), f"the server's processes: {_listed(backends)}"),
        ("statements/s", round(rate), "all clients together"),
        ("transfers", ledger.transfers.total(), "committed"),
        ("asleep", ledger.asleep, "in a transaction that they have left open"),
        ("rolled back", proxy.reaped.total(), "after 1 s; their backends serve others at once"),
        ("told", ledger.told, f"had the error {REAPED} for their next statement"),
        ("went on", ledger.went_on, "after a ROLLBACK, on the same connection"),
        ("SQLite", files.shared.committed, f"{WRITERS} through the proxy: {files.shared.shares}"),
        ("SQLite alone", files.plain.committed, f"{WRITERS} without it: {files.plain.shares}"),
    ]
    problems = [*ledger.problems, *proxy.bugs, *files.problems]
    if problems:
        rows.append(("problems", len(problems), problems[-1]))
    return rows


def _table(rows: Sequence[Row]) -> Iterator[str]:
    for name, value, remark in rows:
        yield f"{name:<14}{value:>8}   {remark}"


def _last(proxy: Proxy) -> Iterator[str]:
    event = proxy.last_reaped
    if event:
        yield f"The last one, {event['application_name']}, was idle for {event['idle_s']} s after"
        yield f"    {event['statement']}"
        yield ""


def _draw(lines: Sequence[str]) -> None:
    """Write over what was drawn before: each line to its end, then nothing to the screen's."""
    width, height = shutil.get_terminal_size()
    shown = "".join(f"{line[:width]}\x1b[K\n" for line in lines[: height - 1])
    sys.stdout.write(f"\x1b[H{shown}\x1b[J")
    sys.stdout.flush()
