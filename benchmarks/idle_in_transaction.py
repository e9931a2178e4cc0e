"""What becomes of short transactions while other clients sleep inside theirs.

    .venv/bin/python benchmarks/idle_in_transaction.py [--rounds N] [--seconds N] [--active N]
        [--sleepers N] [--sleep SECONDS] [--autocommit] [--json FILE]

The active clients send BEGIN, SELECT 1 and COMMIT, each when the one before is answered, as
Django's atomic() does; with --autocommit, SELECT 1 alone. The sleepers begin, read, sleep, and
commit. It starts a PostgreSQL of its own and poolers with 10 connections in front of it, and lets
the same clients meet each in turn, several rounds of all. Everything that is started is stopped at
the end, also on Ctrl-C.

txproxy is the one of the Python that runs this: with the compiled one, it measures that.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
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
    PGBOUNCER,
    TXPROXY,
    USER,
    BenchmarkError,
    Pooling,
    Target,
    load,
    say,
    start_pgbouncer,
    txproxy,
)
from psycopg.rows import dict_row

from txproxy.cli.embedded import EmbeddedPostgres

POOL_SIZE: Final = 10
TIMEOUT: Final = 1  # seconds: idle_transaction_timeout, where there is one
WARM_UP: Final = 1.5  # seconds, in which the sleepers take their places
CONSOLE: Final = "pgbouncer"  # the database that answers SHOW, in both poolers
ALONE: Final = "active alone"
NO_TIMEOUT: Final = "sleepers, no timeout"
WITH_TIMEOUT: Final = f"sleepers, timeout {TIMEOUT} s"


@dataclass(frozen=True)
class Configuration:
    """What is measured: a target, named by its pooler, and who its clients are."""

    pooler: str
    load: str
    target: Target

    def __str__(self) -> str:
        return f"{self.pooler}, {self.load}"


@dataclass(frozen=True)
class Sample:
    """What one run was like. Latencies are the active clients', of a whole transaction."""

    per_second: float  # transactions of the active clients that were committed
    p50_ms: float
    p99_ms: float
    max_ms: float
    active_errors: int  # all that went wrong: errors, lost connections, refused ones
    asleep_committed: int
    asleep_errors: int  # told on a connection that lived on
    asleep_disconnects: int
    server_connections: int  # made during the run
    waiting: float | None  # clients that waited for a server connection, on average
    own_cpu: float  # cores that the clients' process used
    told: dict[str, Any]  # by load.py: what went wrong, by SQLSTATE


# Targets.


def start(
    stack: contextlib.ExitStack, server: EmbeddedPostgres, root: Path, clients: int
) -> list[Configuration]:
    """Start the poolers; the stack stops them. A pooler with a timeout is a process of its own."""
    max_clients = 2 * clients

    def pooling(more: str) -> Pooling:
        return Pooling(POOL_SIZE, max_clients, more)

    found = [Configuration(DIRECT, NO_TIMEOUT, Target(DIRECT, server.port))]
    stats = f"stats_users = {USER}\n"
    for target in start_pgbouncer(stack, server.port, root / "bouncer", pooling(stats)):
        found += [Configuration(PGBOUNCER, load, target) for load in (ALONE, NO_TIMEOUT)]
    timeout = f"{stats}idle_transaction_timeout = {TIMEOUT}\n"
    for target in start_pgbouncer(stack, server.port, root / "bouncer-timeout", pooling(timeout)):
        found += [Configuration(PGBOUNCER, WITH_TIMEOUT, target)]

    def one(name: str, timeout: int) -> Target:
        more = f'stats_users = ["{USER}"]\nidle_transaction_timeout = {timeout}\n'
        return stack.enter_context(txproxy(server.port, root / name, pooling(more)))

    without = one("txproxy", 0)
    return [
        *found,
        Configuration(TXPROXY, ALONE, without),
        Configuration(TXPROXY, NO_TIMEOUT, without),
        Configuration(TXPROXY, WITH_TIMEOUT, one("txproxy-timeout", TIMEOUT)),
    ]


# Measuring.


class Bench:
    """A server, and how its clients behave."""

    def __init__(self, server: EmbeddedPostgres, arguments: argparse.Namespace) -> None:
        self.server = server
        self.arguments = arguments

    def fill(self, configuration: Configuration) -> None:
        """Let its pool fill up."""
        load(configuration.target.port, active=POOL_SIZE, seconds=0.2, warm_up=0.0)

    def measure(self, configuration: Configuration) -> Sample:
        """One run."""
        options, target = self.arguments, configuration.target
        connections, waited = self._connections(), self._waited(target)
        told = load(
            target.port,
            active=options.active,
            seconds=options.seconds,
            warm_up=WARM_UP,
            transaction=not options.autocommit,
            sleepers=0 if configuration.load == ALONE else options.sleepers,
            sleep=options.sleep,
        )
        waited_after = self._waited(target)
        active, asleep = told["active"], told["sleepers"]
        errors = ("errors", "disconnects", "refused")
        return Sample(
            per_second=active["committed"] / told["seconds"],
            p50_ms=active["p50_ms"],
            p99_ms=active["p99_ms"],
            max_ms=active["max_ms"],
            active_errors=sum(_number(active, which) for which in errors),
            asleep_committed=asleep["committed"],
            asleep_errors=_number(asleep, "errors"),
            asleep_disconnects=_number(asleep, "disconnects"),
            server_connections=self._connections() - connections,
            waiting=(waited_after - waited) / told["lasted"] if target.pid else None,
            own_cpu=told["own_cpu"],
            told=told,
        )

    def _connections(self) -> int:
        """How many were made to the server so far: it logs each."""
        return self.server.log.count("connection authorized: ")

    def _waited(self, target: Target) -> float:
        """Seconds that clients have waited for a server connection so far, as the pooler counts."""
        if target.pid is None:
            return 0.0
        where = f"host={HOST} port={target.port} user={USER} dbname={CONSOLE}"
        try:
            # a console knows no transactions
            with psycopg.connect(where, autocommit=True, row_factory=dict_row) as console:
                rows = console.execute("SHOW STATS").fetchall()
        except psycopg.Error as error:
            raise BenchmarkError(f"the console of {target.name}: {error}") from error
        return sum(int(row["total_wait_time"]) for row in rows) / 1e6  # it tells microseconds


def _number(told: dict[str, Any], which: str) -> int:
    return sum(told[which].values())


def measure_all(bench: Bench, configurations: Sequence[Configuration], rounds: int) -> Results:
    """All configurations, as often as there are rounds; another one begins each time."""
    results = Results()
    for configuration in configurations:
        bench.fill(configuration)
    for number in range(rounds):
        for configuration in in_turn(configurations, number):
            say(f"round {number + 1} of {rounds}: {configuration}")
            results.add(configuration.pooler, configuration.load, bench.measure(configuration))
    return results


# What people read.

HEAD: Final = (
    "clients",
    "transactions/s",
    "to alone",
    "p50 ms",
    "p99 ms",
    "max ms",
    "errors",
    "asleep: committed",
    "errors",
    "disconnects",
    "server connections",
    "waiting",
)


def row(results: Results, configuration: Configuration) -> tuple[str, ...]:
    """A configuration's row of the table."""
    pooler, load = configuration.pooler, configuration.load

    def median(what: str, form: str = ",.0f") -> str:
        return text(results.median(pooler, load, what), form)

    return (
        str(configuration),
        median("per_second"),
        text(results.ratio(pooler, load, ALONE, "per_second"), ".3f"),
        *(median(f"{which}_ms", ",.1f") for which in ("p50", "p99", "max")),
        median("active_errors"),
        *(median(f"asleep_{which}") for which in ("committed", "errors", "disconnects")),
        median("server_connections"),
        median("waiting"),
    )


HOW_TO_READ: Final = """
{active} active clients send {sent}, without a pause; {sleepers} sleepers send BEGIN and SELECT 1,
sleep {sleep} s, and send COMMIT. "active alone" is without the sleepers. Pools hold {pool}
connections; direct has one for each client. A timeout is the pooler's idle_transaction_timeout.
Numbers are medians of the rounds, counts are those of a run of {seconds} s. transactions/s, "to
alone" (the same in proportion to the pooler's own "active alone", in the same round), latencies of
a whole transaction and the first errors are the active clients'; an error is an ERROR, a lost or a
refused connection. A transaction that is unfinished at the end of a run counts among the latencies
as what it has lasted until then: a maximum near the length of a run means "longer". Sleepers could
commit {most} times. Their errors came over a connection that lived on; disconnects are connections
that they lost. "server connections" were made while it ran: direct, all clients make theirs then.
"waiting" is how many clients waited for a server connection on average, as the pooler counts them.
Client, pooler and server share the CPUs; the clients used up to {own_cpu:.2f} of one."""


def how_to_read(results: Results, options: argparse.Namespace) -> str:
    samples = [each for several in results.samples.values() for each in several]
    return HOW_TO_READ.strip().format(
        active=options.active,
        sent="SELECT 1" if options.autocommit else "BEGIN, SELECT 1, COMMIT",
        sleepers=options.sleepers,
        sleep=options.sleep,
        pool=POOL_SIZE,
        seconds=options.seconds,
        most=options.sleepers * options.seconds // options.sleep,
        own_cpu=max(each.own_cpu for each in samples),
    )


def as_json(
    ran_on: dict[str, str], results: Results, configurations: Sequence[Configuration]
) -> str:
    """The same for machines, with every sample."""
    measures = ("per_second", "p50_ms", "p99_ms", "max_ms")
    said = [
        {
            "pooler": each.pooler,
            "load": each.load,
            "medians": {what: results.median(each.pooler, each.load, what) for what in measures},
            "ratio to alone": results.ratio(each.pooler, each.load, ALONE, "per_second"),
            "samples": results.of_row(each.pooler)[each.load],
        }
        for each in configurations
    ]
    return json.dumps({"ran_on": ran_on, "configurations": said}, indent=1) + "\n"


# The whole.


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    # A run is as long as it takes until each sleeper has had its turn: 40 / 10 times 3 s.
    arguments_of(parser, rounds=2, seconds=12)
    parser.add_argument("--active", type=positive, default=40, help="default: %(default)s")
    parser.add_argument("--sleepers", type=positive, default=40, help="default: %(default)s")
    parser.add_argument(
        "--sleep", type=positive, default=3, help="seconds of sleep; default: %(default)s"
    )
    parser.add_argument(
        "--autocommit", action="store_true", help="active clients send SELECT 1 alone"
    )
    return parser.parse_args(argv)


def benchmark() -> None:
    """Measure, print, and write the JSON."""
    options = parse_arguments()
    clients = options.active + options.sleepers
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="txproxy-bench-")))
        root.chmod(0o755)  # PgBouncer runs as another user
        settings: dict[str, str | int] = {"max_connections": clients + 100, "log_connections": "on"}
        server = stack.enter_context(EmbeddedPostgres(settings=settings))
        configurations = start(stack, server, root, clients)
        ran_on = environment(
            server.version,
            with_pgbouncer=PGBOUNCER in [each.pooler for each in configurations],
            runs=f"{options.seconds} s each, rounds: {options.rounds}",
        )
        results = measure_all(Bench(server, options), configurations, options.rounds)
    table = markdown(HEAD, [row(results, each) for each in configurations])
    print(document(ran_on, table, how_to_read(results, options)))
    if options.json:
        options.json.write_text(as_json(ran_on, results, configurations))


if __name__ == "__main__":
    sys.exit(main("idle_in_transaction.py", benchmark))
