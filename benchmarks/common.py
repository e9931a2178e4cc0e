"""What the benchmarks share: medians and ratios, what they ran on, tables, the command line."""

import argparse
import importlib.util
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from poolers import PGBOUNCER, BenchmarkError, pgbouncer_version, run, say

from txproxy.errors import TxproxyError

Item = TypeVar("Item")


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


# What people read.


def environment(server_version: str, *, with_pgbouncer: bool, runs: str) -> dict[str, str]:
    """What it runs on."""
    return {
        **machine(),
        "PostgreSQL": server_version,
        PGBOUNCER: ".".join(map(str, pgbouncer_version()))
        if with_pgbouncer
        else "not installed, or it did not start",
        "runs": runs,
    }


def machine() -> dict[str, str]:
    """What every benchmark runs on."""
    load, _, _ = os.getloadavg()
    return {
        "commit": commit(),
        "txproxy": f"{version('txproxy')}, {'compiled' if is_compiled() else 'interpreted'}",
        "CPUs": f"{os.cpu_count()}, load {load:.1f} when it began",
        "Python": platform.python_version(),
        "uvloop": version("uvloop"),
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
