"""Many processes that write to one SQLite file: directly, and through txproxy's endpoint.

    .venv/bin/python benchmarks/sqlite_writers.py [--rounds N] [--seconds N] [--cell NAME]...
        [--directory DIR] [--json FILE] [--plot FILE.png]

The same clients, on a new file each time: direct ones are Python's sqlite3 with its busy timeout of
5 s and synchronous=FULL, the others txproxy.sqlite, in front of a real `txproxy serve`. Each sends
its next row when the one before is acknowledged; several rounds of all, direct and endpoint side by
side. Afterwards the file is read by a process that had not opened it. Everything that is started is
stopped at the end, also on Ctrl-C.

With --plot it draws the rows of each process over time (needs matplotlib: the extra "bench").
"""

import argparse
import importlib.util
import json
import operator
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from common import (
    Results,
    arguments_of,
    document,
    in_turn,
    machine,
    main,
    markdown,
    text,
)
from poolers import DIRECT, TXPROXY, BenchmarkError, raise_file_limit, say
from sqlite_setups import CELLS, TRAIN, WARM_UP, Cell, measure, sync_us

# Measuring.


def measure_all(cells: Sequence[Cell], root: Path, rounds: int, seconds: int) -> Results:
    """All cells, each way, as often as there are rounds; another way begins each time."""
    results = Results()
    for number in range(rounds):
        for cell in cells:
            for way in in_turn(cell.ways, number):
                say(f"round {number + 1} of {rounds}: {cell.name}, {way}")
                directory = root / f"{number}-{CELLS.index(cell)}-{cell.ways.index(way)}"
                results.add(cell.name, way, measure(cell, way, directory, seconds))
    return results


# The goals.


@dataclass(frozen=True)
class Goal:
    """What the project aims for in one cell. `what` is a field of Sample."""

    text: str
    cell: str
    way: str
    what: str
    wanted: float
    to_direct: bool = False
    at_most: bool = False

    def reached(self, results: Results) -> float | None:
        """None: not measured."""
        if self.to_direct:
            return results.ratio(self.cell, self.way, DIRECT, self.what)
        return results.median(self.cell, self.way, self.what)

    def row(self, results: Results) -> tuple[str, ...]:
        """Of the table."""
        reached = self.reached(results)
        met: Callable[[float, float], bool] = operator.le if self.at_most else operator.ge
        wanted = f"{'≤' if self.at_most else '≥'} {self.wanted:g}"
        if reached is None:
            return (self.text, wanted, "", "")
        return (self.text, wanted, f"{reached:.3g}", "yes" if met(reached, self.wanted) else "no")


def rate(words: str, cell: str, wanted: float, way: str = TXPROXY) -> Goal:
    """Rows per second in proportion to direct ones."""
    return Goal(f"{words}: rows/s, to direct", cell, way, "per_second", wanted, to_direct=True)


def fair(words: str, cell: str) -> tuple[Goal, Goal]:
    """Nobody starves and nobody waits long."""
    return (
        Goal(f"{words}: slowest process, to the fastest", cell, TXPROXY, "share", 0.95),
        Goal(f"{words}: p99.9 in ms", cell, TXPROXY, "p999_ms", 10.0, at_most=True),
    )


GOALS: Final = (
    rate("autocommit, 8 processes, WAL", "insert/8", 2.0),
    *fair("autocommit, 8 processes, WAL", "insert/8"),
    rate("autocommit, 8 processes, DELETE", "insert/8 delete", 3.0),
    *fair("autocommit, 8 processes, DELETE", "insert/8 delete"),
    rate("autocommit, 64 connections, WAL", "insert/64", 6.0),
    rate("transactions, 8 processes, commit_train", "transaction/8", 0.9, TRAIN),
    rate("one client alone, autocommit", "insert/1", 0.4),
)

# What people read.

GOALS_HEAD: Final = ("goal", "wanted", "reached", "met")


def table(results: Results, cells: Sequence[Cell], base: str) -> str:
    """What was measured; `base` is the way that others are compared with."""
    head = (
        "load",
        "way",
        "rows/s",
        f"to {base}",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "slowest/fastest",
        "locked",
        "errors",
        "wrong",
        "CPU µs: clients",
        "endpoint",
    )
    return markdown(head, [row(results, cell, way, base) for cell in cells for way in cell.ways])


def row(results: Results, cell: Cell, way: str, base: str) -> tuple[str, ...]:
    def median(what: str, form: str = ",.1f") -> str:
        return text(results.median(cell.name, way, what), form)

    ratio = None if way == base else results.ratio(cell.name, way, base, "per_second")
    return (
        cell.name,
        way,
        median("per_second", ",.0f"),
        text(ratio, ".2f"),
        *(median(f"{name}_ms") for name in ("p50", "p99", "p999", "max")),
        median("share", ".2f"),
        *(str(total(results, cell, way, name)) for name in ("locked", "errors", "wrong")),
        median("cpu_us", ".0f"),
        median("server_cpu_us", ".0f"),
    )


def total(results: Results, cell: Cell, way: str, what: str) -> int:
    """Of all rounds: an error that came once is not to vanish in a median."""
    return sum(getattr(each, what) for each in results.samples[cell.name, way])


HOW_TO_READ: Final = """
insert: rows of about 130 bytes in autocommit. transaction: BEGIN IMMEDIATE, a SELECT by primary
key, INSERT, COMMIT. deferred: the same with a plain BEGIN, where SQLite refuses whoever has read
before another has written, whatever the timeout. Behind the slash is the number of connections: 8
are 8 processes, 64 are 8 processes of 8 threads. The journal is the WAL, or "delete". {train}
is txproxy with that setting: transactions share a sync, and others may see a commit just before it
is on the disk. Off WAL the endpoint's synchronous is EXTRA, direct ones have FULL, which does less
for them.

{numbers}"""
NUMBERS: Final = """
Numbers are medians of the rounds, but for locked, errors and wrong, which are sums. rows/s are
those that were acknowledged in the {seconds} s that count, after {warm_up} s; "to {base}" is the
proportion to that, the median of each round's. Latencies are of an INSERT or of a whole
transaction, and of those that were refused, too. slowest/fastest are the rows of the connection
that got the fewest in proportion to those of the one that got the most: 1 is fair, 0 is somebody
who got none. "locked" are errors "database is locked"; "errors" all others. "wrong" is what the
file had to say afterwards: rows that were acknowledged and are not there, or there twice, or
refused and there, and an integrity_check that is not ok. It must be 0.

CPU µs: user and system time for each row, of all clients and of the endpoint's SQLite process.
Clients and endpoint share the CPUs."""


def how_to_read(seconds: int) -> str:
    return HOW_TO_READ.strip().format(train=TRAIN, numbers=numbers(DIRECT, seconds))


def numbers(base: str, seconds: int) -> str:
    """How to read the table."""
    return NUMBERS.strip().format(base=base, seconds=seconds, warm_up=WARM_UP)


def environment(root: Path, options: argparse.Namespace) -> dict[str, str]:
    """What it runs on. Raises BenchmarkError if there is no apsw."""
    try:
        server = version("apsw")
    except PackageNotFoundError as error:
        raise BenchmarkError("there is no apsw: pip install --editable '.[sqlite]'") from error
    return {
        **machine(),
        "SQLite": f"{sqlite3.sqlite_version}, the endpoint's apsw {server}",
        "a sync": f"{sync_us(root):,.0f} µs, of 4 KiB in {root.parent}",
        "runs": f"{options.seconds} s each, rounds: {options.rounds}",
    }


def as_json(ran_on: dict[str, str], results: Results, cells: Sequence[Cell]) -> str:
    """The same for machines, with every sample."""
    measures = ("per_second", "p50_ms", "p99_ms", "p999_ms", "max_ms", "share")
    said = [
        {
            "cell": cell.name,
            "way": way,
            "medians": {what: results.median(cell.name, way, what) for what in measures},
            "ratio to direct": results.ratio(cell.name, way, DIRECT, "per_second"),
            "samples": results.of_row(cell.name)[way],
        }
        for cell in cells
        for way in cell.ways
    ]
    goals = [dict(zip(GOALS_HEAD, goal.row(results), strict=True)) for goal in GOALS]
    return json.dumps({"ran_on": ran_on, "goals": goals, "cells": said}, indent=1) + "\n"


# The whole.


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments_of(parser, rounds=3, seconds=4)
    parser.add_argument(
        "--cell",
        action="append",
        choices=[cell.name for cell in CELLS],
        help="only this load; may be given several times",
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where the files are made: on that disk"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw progress as well")
    return parser.parse_args(argv)


def benchmark() -> None:
    """Measure, print, and write the JSON."""
    options = parse_arguments()
    cells = [cell for cell in CELLS if not options.cell or cell.name in options.cell]
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise BenchmarkError("--plot needs matplotlib: pip install --editable '.[bench]'")
    raise_file_limit(64)
    with tempfile.TemporaryDirectory(prefix="txproxy-bench-", dir=options.directory) as name:
        root = Path(name)
        ran_on = environment(root, options)
        results = measure_all(cells, root, options.rounds, options.seconds)
    goals = markdown(GOALS_HEAD, [goal.row(results) for goal in GOALS])
    parts = (table(results, cells, DIRECT), goals, how_to_read(options.seconds))
    print(document(ran_on, *parts))
    if options.json:
        options.json.write_text(as_json(ran_on, results, cells))
    if options.plot:
        from sqlite_plot import draw  # not at the top: nothing else needs matplotlib

        draw(options.plot, results, cells)


if __name__ == "__main__":
    sys.exit(main("sqlite_writers.py", benchmark))
