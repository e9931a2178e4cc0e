"""What becomes of short transactions while other clients sleep inside theirs.

    .venv/bin/python benchmarks/idle_in_transaction.py [--rounds N] [--seconds N] [--active N]
        [--sleepers N] [--sleep SECONDS] [--autocommit] [--json FILE] [--plot FILE.png]

The active clients send BEGIN, SELECT 1 and COMMIT, each when the one before is answered, as
Django's atomic() does; with --autocommit, SELECT 1 alone. The sleepers come a little later. They
begin, read, sleep, read again, and commit; each of their reads has an answer that is nobody else's.
It starts a PostgreSQL of its own and poolers with 10 connections in front of it, and lets the same
clients meet each in turn, several rounds of all. Everything that is started is stopped at the end,
also on Ctrl-C.

With --plot it draws what the active clients got over time (needs matplotlib: the extra "bench").

txproxy is the one of the Python that runs this: with the compiled one, it measures that.
"""

import argparse
import contextlib
import importlib.util
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
    HOST,
    PGBOUNCER,
    USER,
    BenchmarkError,
    Target,
    load,
    raise_file_limit,
    say,
)
from psycopg.rows import dict_row
from setups import ALONE, DIRECT_LIMIT, LEAD, POOL_SIZE, Configuration, make_page, start

from txproxy.cli.embedded import EmbeddedPostgres

WARM_UP: Final = 1.5  # seconds, in which the sleepers take their places
CONSOLE: Final = "pgbouncer"  # the database that answers SHOW, in both poolers


@dataclass(frozen=True)
class Sample:
    """What one run was like. Latencies are the active clients', of a whole transaction."""

    per_second: float  # transactions of the active clients that were committed
    p50_ms: float
    p99_ms: float
    max_ms: float
    active_errors: int  # all that went wrong: errors, lost connections, refused ones
    asleep_committed: int
    asleep_answered: int  # statements that got the answer that is theirs
    asleep_unanswered: int  # statements that still waited for one at the end
    asleep_errors: int  # told on a connection that lived on
    asleep_disconnects: int  # connections lost, or refused
    server_connections: int  # made during the run
    waiting: float | None  # clients that waited for a server connection, on average
    own_cpu: float  # cores that the clients' process used
    told: dict[str, Any]  # by load.py: what went wrong, by SQLSTATE, and the timelines


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
            warm_up=LEAD + WARM_UP,
            transaction=not options.autocommit,
            sleepers=0 if configuration.load == ALONE else options.sleepers,
            sleep=options.sleep,
            alone=LEAD,
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
            asleep_answered=asleep["answered"],
            asleep_unanswered=asleep["unanswered"],
            asleep_errors=_number(asleep, "errors"),
            asleep_disconnects=_number(asleep, "disconnects") + _number(asleep, "refused"),
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

ACTIVE_HEAD: Final = (
    "what the active clients get",
    "transactions/s",
    "to alone",
    "p50 ms",
    "p99 ms",
    "max ms",
    "errors",
    "waiting",
)
ASLEEP_HEAD: Final = (
    "what the sleepers get",
    "committed",
    "answered",
    "unanswered",
    "errors",
    "disconnects",
    "server connections",
)


def tables(results: Results, configurations: Sequence[Configuration]) -> list[str]:
    """One of the active clients, and one of the sleepers."""
    asleep = [each for each in configurations if each.load != ALONE]
    return [
        markdown(ACTIVE_HEAD, [active_row(results, each) for each in configurations]),
        markdown(ASLEEP_HEAD, [asleep_row(results, each) for each in asleep]),
    ]


def median(results: Results, which: Configuration, what: str, form: str = ",.0f") -> str:
    return text(results.median(which.pooler, which.load, what), form)


def active_row(results: Results, which: Configuration) -> tuple[str, ...]:
    return (
        str(which),
        median(results, which, "per_second"),
        text(results.ratio(which.pooler, which.load, ALONE, "per_second"), ".3f"),
        *(median(results, which, f"{name}_ms", ",.1f") for name in ("p50", "p99", "max")),
        median(results, which, "active_errors"),
        median(results, which, "waiting"),
    )


def asleep_row(results: Results, which: Configuration) -> tuple[str, ...]:
    names = ("committed", "answered", "unanswered", "errors", "disconnects")
    return (
        str(which),
        *(median(results, which, f"asleep_{name}") for name in names),
        median(results, which, "server_connections"),
    )


HOW_TO_READ: Final = """
{active} active clients send {sent}, without a pause. {lead:.0f} s later come {sleepers}
sleepers, all at once: they send BEGIN and a SELECT, sleep {sleep} s, and send another SELECT and
COMMIT. {warm_up} s after that begin the {seconds} s that count. "active alone" is without the
sleepers. Pools hold {pool} connections; {direct}.

"timeout" is the pooler's idle_transaction_timeout; no timeout is what both poolers come with, and
early_release is on ("auto") where it is not off. Numbers are medians of the rounds.

The active clients: "to alone" is transactions/s in proportion to the pooler's own "active alone",
in the same round. Latencies are of a whole transaction; one that is unfinished at the end of a run
counts as what it has lasted until then: a maximum near the length of a run means "longer". An error
is an ERROR, a lost or a refused connection. "waiting" is how many clients, of all, waited for a
server connection on average, as the pooler counts them.

The sleepers: they could commit {most} times, four statements each. "answered" are their statements
that got their answer: each SELECT is for a text that is nobody else's, and its answer is looked at
byte for byte. "unanswered" are those that somebody still waited for at the end of the run. Their
errors came over a connection that lived on; disconnects are connections that they lost, or did not
get. "server connections" were made during the run, its warm-up included: direct, all clients make
theirs then; txproxy makes one to ask the server about sleepers.

Client, pooler and server share the CPUs; the clients used up to {own_cpu:.2f} of one."""
DIRECT_HAS: Final = "direct has one for each client"
NO_DIRECT: Final = f"direct is left out with more than {DIRECT_LIMIT} clients"


def how_to_read(results: Results, options: argparse.Namespace) -> str:
    samples = [each for several in results.samples.values() for each in several]
    return HOW_TO_READ.strip().format(
        active=options.active,
        sent="SELECT 1" if options.autocommit else "BEGIN, SELECT 1, COMMIT",
        sleepers=options.sleepers,
        sleep=options.sleep,
        lead=LEAD,
        warm_up=WARM_UP,
        pool=POOL_SIZE,
        direct=NO_DIRECT if options.active + options.sleepers > DIRECT_LIMIT else DIRECT_HAS,
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


def need_matplotlib() -> None:
    """Raises BenchmarkError if it is not installed: better now than when all is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchmarkError("--plot needs matplotlib: pip install --editable '.[bench]'")


def title(options: argparse.Namespace) -> str:
    """What the plot shows."""
    return (
        f"{options.active} active clients, {options.sleepers} that sleep {options.sleep} s in each "
        f"transaction, {POOL_SIZE} connections"
    )


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
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it over time as well")
    return parser.parse_args(argv)


def benchmark() -> None:
    """Measure, print, and write the JSON."""
    options = parse_arguments()
    clients = options.active + options.sleepers
    if options.plot:
        need_matplotlib()
    raise_file_limit(2 * clients)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="txproxy-bench-")))
        root.chmod(0o755)  # PgBouncer runs as another user
        settings: dict[str, str | int] = {
            "max_connections": 100 + (clients if clients <= DIRECT_LIMIT else 0),
            "log_connections": "on",
        }
        server = stack.enter_context(EmbeddedPostgres(settings=settings))
        make_page(server)
        configurations = start(stack, server, root, clients)
        ran_on = environment(
            server.version,
            with_pgbouncer=PGBOUNCER in [each.pooler for each in configurations],
            runs=f"{options.seconds} s each, rounds: {options.rounds}",
        )
        results = measure_all(Bench(server, options), configurations, options.rounds)
    print(document(ran_on, *tables(results, configurations), how_to_read(results, options)))
    if options.json:
        options.json.write_text(as_json(ran_on, results, configurations))
    if options.plot:
        from plot import draw  # not at the top: nothing else needs matplotlib

        draw(options.plot, results, configurations, title(options))


if __name__ == "__main__":
    sys.exit(main("idle_in_transaction.py", benchmark))
