"""What a pooler costs a client that waits, near the server and farther away.

    .venv/bin/python benchmarks/latency.py [--rounds N] [--seconds N] [--json FILE]

It starts a PostgreSQL of its own, and relays in front of it that make a round trip 0.5 and 1 ms
longer, as a network does. One client, and as many as keep a pool of 4 connections busy, send
SELECT 1 alone, and BEGIN, SELECT 1, COMMIT, each when the one before is answered: to the server, to
PgBouncer and to txproxy, whose own connections lead through the relay. Several rounds of all;
everything that is started is stopped at the end, also on Ctrl-C.

txproxy is the one of the Python that runs this: with the compiled one, it measures that.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from common import (
    Results,
    arguments_of,
    document,
    environment,
    in_turn,
    main,
    markdown,
    text,
)
from poolers import (
    DIRECT,
    PGBOUNCER,
    BenchmarkError,
    Pooling,
    Target,
    cpu_seconds,
    free_port,
    load,
    process,
    say,
    script,
    start_pgbouncer,
    txproxy,
    wait_for_port,
)

from txproxy.cli.embedded import EmbeddedPostgres

POOL_SIZE: Final = 4
MAX_CLIENTS: Final = 100
BUSY: Final = 16  # clients that keep such a pool busy
DELAYS: Final = (0.0, 0.5, 1.0)  # milliseconds that a round trip to the server is longer
WARM_UP: Final = 0.2  # seconds
EAGER: Final = "deferred_begin off"  # txproxy with one setting changed


@dataclass(frozen=True)
class Cell:
    """One kind of load, at one distance."""

    delay: float  # milliseconds
    transaction: bool
    clients: int

    def __str__(self) -> str:
        return f"{self.delay:g} ms, {'BEGIN SELECT COMMIT' if self.transaction else 'SELECT'}"

    @property
    def key(self) -> str:
        return f"{self}, {self.clients}"


CELLS: Final = tuple(
    Cell(delay, transaction, clients)
    for clients in (1, BUSY)
    for transaction in (False, True)
    for delay in DELAYS
)
ALONE: Final = tuple(cell for cell in CELLS if cell.clients == 1)
CROWDED: Final = tuple(cell for cell in CELLS if cell.clients == BUSY)


@dataclass(frozen=True)
class Sample:
    """What one run was like. A transaction is a SELECT alone, too."""

    p50_ms: float
    p99_ms: float
    per_backend: float  # transactions per second and server connection
    own_cpu: float  # cores that the clients' process used
    relay_cpu: float  # and the relay


@dataclass(frozen=True)
class Relay:
    """A way to the server that is longer by `delay` milliseconds; none for 0."""

    delay: float
    port: int
    pid: int | None
    log: Path

    def told(self) -> dict[str, Any]:
        """How punctual it was; only when it has ended."""
        told: dict[str, Any] = json.loads(self.log.read_text()) if self.pid else {}
        return told


@dataclass(frozen=True)
class Place:
    """A distance from the server, and who is there."""

    relay: Relay
    targets: Sequence[Target]


# Targets.


@contextlib.contextmanager
def relay(delay: float, server_port: int, root: Path) -> Iterator[Relay]:
    """A relay; nothing at all for 0."""
    log = root / f"relay-{delay:g}.log"
    if not delay:
        yield Relay(delay, server_port, None, log)
        return
    port = free_port()
    each_way = f"{delay / 2e3:.6f}"
    with process(script("relay.py", str(port), str(server_port), each_way), log) as child:
        wait_for_port(child, port, log)
        yield Relay(delay, port, child.pid, log)


def start(stack: contextlib.ExitStack, delay: float, server_port: int, root: Path) -> Place:
    """Start a relay and the poolers before it; the stack stops them."""
    way = stack.enter_context(relay(delay, server_port, root))

    def directory(name: str) -> Path:
        return root / f"{name}-{delay:g}"

    usual = Pooling(POOL_SIZE, MAX_CLIENTS)
    eager = Pooling(POOL_SIZE, MAX_CLIENTS, more="deferred_begin = false")
    without = stack.enter_context(txproxy(way.port, directory("eager"), eager))
    targets = [
        Target(DIRECT, way.port),
        *start_pgbouncer(stack, way.port, directory("bouncer"), usual),
        stack.enter_context(txproxy(way.port, directory("txproxy"), usual)),
        replace(without, name=EAGER),
    ]
    return Place(way, targets)


# Measuring.


def measure(cell: Cell, target: Target, way: Relay, seconds: float) -> Sample:
    """One run. Raises BenchmarkError if anything went wrong in it."""
    before = cpu_seconds(way.pid)
    told = load(
        target.port,
        active=cell.clients,
        seconds=seconds,
        warm_up=WARM_UP,
        transaction=cell.transaction,
    )
    relay_cpu = (cpu_seconds(way.pid) - before) / told["lasted"]
    active = told["active"]
    wrong = active["errors"] | active["disconnects"] | active["refused"]
    if wrong or not active["committed"]:
        raise BenchmarkError(f"{target.name}, {cell.key}: {wrong or 'no answers'}")
    backends = cell.clients if target.name == DIRECT else min(cell.clients, POOL_SIZE)
    return Sample(
        p50_ms=active["p50_ms"],
        p99_ms=active["p99_ms"],
        per_backend=active["committed"] / told["seconds"] / backends,
        own_cpu=told["own_cpu"],
        relay_cpu=relay_cpu,
    )


def measure_all(places: Mapping[float, Place], rounds: int, seconds: int) -> Results:
    """All cells on all targets, as often as there are rounds; another one begins each time."""
    results = Results()
    for place in places.values():
        for target in place.targets:
            # The pools fill up here.
            measure(Cell(place.relay.delay, True, BUSY), target, place.relay, 0.2)
    for number in range(rounds):
        for cell in CELLS:
            say(f"round {number + 1} of {rounds}: {cell.key}")
            place = places[cell.delay]
            for target in in_turn(place.targets, number):
                results.add(cell.key, target.name, measure(cell, target, place.relay, seconds))
    return results


# What people read.

HOW_TO_READ: Final = """
BEGIN, SELECT 1 and COMMIT are sent each when the one before is answered, SELECT 1 in autocommit.
Before them stands by how much a round trip to the server is longer: half of it each way, in a relay
that stands between pooler and server, or between client and server for "direct"; with 0 ms there is
none. Latencies are of a whole transaction, p50 / p99. "adds" is the p50 beyond the direct one: it
can be less than nothing, where a pooler spares a round trip. Pools hold {pool} connections, which
{busy} clients keep busy; direct, each of them has one of its own. "{eager}" is txproxy with
that setting. The third table says what a pool's place is worth: the sooner a transaction lets go of
it, the more. Ratios are medians of each round's ratio, all other numbers medians of the rounds,
whose p50 were up to {spread:.0%} apart. Client, relay, pooler and server share the CPUs: clients
used up to {own_cpu:.2f} of one, the relay up to {relay_cpu:.2f}. The last table is what a relay did
in fact: a SELECT takes longer by its delay and by two more processes on the way; late is how much
later than its delay a relay has handed on what it had, in all runs."""

RELAY_HEAD: Final = ("relay", "a SELECT takes longer by", "late p50", "late p99", "chunks")


def latency_table(results: Results, cells: Sequence[Cell], names: Sequence[str]) -> str:
    """p50 / p99 of each target, and what the poolers add to the direct p50."""
    adding = [name for name in names if name != DIRECT]
    title = "1 client, ms" if cells[0].clients == 1 else f"{cells[0].clients} clients, ms"
    head = (title, *names, *(f"{name} adds" for name in adding))
    body = [
        (
            str(cell),
            *(_latencies(results, cell, name) for name in names),
            *(text(_added(results, cell, name), "+.3f") for name in adding),
        )
        for cell in cells
    ]
    return markdown(head, body)


def _latencies(results: Results, cell: Cell, name: str) -> str:
    both = (results.median(cell.key, name, which) for which in ("p50_ms", "p99_ms"))
    return " / ".join(text(each, ".3f") for each in both)


def _added(results: Results, cell: Cell, name: str) -> float | None:
    base = results.median(cell.key, DIRECT, "p50_ms")
    here = results.median(cell.key, name, "p50_ms")
    return None if base is None or here is None else here - base


def throughput_table(results: Results, names: Sequence[str]) -> str:
    """Transactions per second and server connection, where these are what is short."""
    compared = [name for name in names if name not in (DIRECT, PGBOUNCER)]
    to = [f"{name} to PgBouncer" for name in compared]
    body = [
        (
            str(cell),
            *(text(results.median(cell.key, name, "per_backend"), ",.0f") for name in names),
            *(
                text(results.ratio(cell.key, name, PGBOUNCER, "per_backend"), ".2f")
                for name in compared
            ),
        )
        for cell in CROWDED
    ]
    return markdown((f"transactions/s per connection, {BUSY} clients", *names, *to), body)


def relay_table(results: Results, relays: Sequence[Relay]) -> str:
    """What the relays did in fact. To be asked for when they have ended."""
    near = results.median(Cell(0.0, False, 1).key, DIRECT, "p50_ms")
    body = []
    for each in relays:
        far = results.median(Cell(each.delay, False, 1).key, DIRECT, "p50_ms")
        if each.pid is not None and near is not None and far is not None:
            told = each.told()
            late = (f"{told[which]} µs" for which in ("p50_us", "p99_us"))
            row = (f"{each.delay:g} ms", f"{far - near:.3f} ms", *late, f"{told['chunks']:,}")
            body.append(row)
    return markdown(RELAY_HEAD, body)


def how_to_read(results: Results) -> str:
    samples = [each for several in results.samples.values() for each in several]
    return HOW_TO_READ.strip().format(
        pool=POOL_SIZE,
        busy=BUSY,
        eager=EAGER,
        spread=results.spread("p50_ms"),
        own_cpu=max(each.own_cpu for each in samples),
        relay_cpu=max(each.relay_cpu for each in samples),
    )


def as_json(
    ran_on: dict[str, str], results: Results, relays: Sequence[Relay], names: Sequence[str]
) -> str:
    """The same for machines, with every sample."""
    measures = ("p50_ms", "p99_ms", "per_backend")
    said = [
        {
            "delay_ms": cell.delay,
            "transaction": cell.transaction,
            "clients": cell.clients,
            "medians": {
                name: {what: results.median(cell.key, name, what) for what in measures}
                for name in names
            },
            "ratios to PgBouncer": {
                name: {what: results.ratio(cell.key, name, PGBOUNCER, what) for what in measures}
                for name in names
            },
            "samples": results.of_row(cell.key),
        }
        for cell in CELLS
    ]
    punctual = {f"{each.delay:g} ms": each.told() for each in relays}
    return json.dumps({"ran_on": ran_on, "relays": punctual, "cells": said}, indent=1) + "\n"


# The whole.


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments_of(parser, rounds=3, seconds=1)
    return parser.parse_args(argv)


def benchmark() -> None:
    """Measure, print, and write the JSON."""
    options = parse_arguments()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="txproxy-bench-")))
        root.chmod(0o755)  # PgBouncer runs as another user
        server = stack.enter_context(EmbeddedPostgres(settings={"max_connections": 200}))
        with contextlib.ExitStack() as running:
            places = {delay: start(running, delay, server.port, root) for delay in DELAYS}
            names = [target.name for target in places[0.0].targets]
            ran_on = environment(
                server.version,
                with_pgbouncer=PGBOUNCER in names,
                runs=f"{options.seconds} s each, rounds: {options.rounds}",
            )
            results = measure_all(places, options.rounds, options.seconds)
        relays = [place.relay for place in places.values()]
        tables = (
            latency_table(results, ALONE, names),
            latency_table(results, CROWDED, names),
            throughput_table(results, names),
            relay_table(results, relays),
        )
        print(document(ran_on, *tables, how_to_read(results)))
        if options.json:
            options.json.write_text(as_json(ran_on, results, relays, names))


if __name__ == "__main__":
    sys.exit(main("latency.py", benchmark))
