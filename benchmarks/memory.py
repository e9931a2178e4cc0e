"""What clients that are connected cost a pooler in memory, and how long it takes to connect them.

    .venv/bin/python benchmarks/memory.py [--clients N] [--rounds N] [--json FILE]

It starts a PostgreSQL of its own, then txproxy and PgBouncer in turn, each afresh in every round,
and lets another process log in 10,000 clients. The memory is that of the pooler's process, from
/proc: before, with all of them idle, after each has done one transaction, and when half of them
have left. Everything that is started is stopped at the end, also on Ctrl-C.

txproxy is the one of the Python that runs this: with the compiled one, it measures that.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
    PATIENCE,
    PGBOUNCER,
    SPARE,
    TXPROXY,
    BenchmarkError,
    Pooling,
    Target,
    cpu_seconds,
    find_pgbouncer,
    load,
    pgbouncer,
    raise_file_limit,
    say,
    script,
    txproxy,
)

from txproxy.cli.embedded import EmbeddedPostgres

POOL_SIZE: Final = 20
REST: Final = 1.0  # seconds in which a pooler tidies up before it is looked at

EMPTY: Final = "nobody"
IDLE: Final = "all, idle"
USED: Final = "all, after a transaction"
HALF: Final = "half of them"
STAGES: Final = (EMPTY, IDLE, USED, HALF)


@dataclass(frozen=True)
class Sample:
    """A pooler at one stage."""

    clients: int
    rss: int  # bytes
    pss: int  # the same, what is shared with other processes only in part
    per_client: float | None  # bytes of pss more than before there were clients
    seconds: float | None  # that it took to come here
    cpu_us: float | None  # the pooler's, for each client that did something


# Measuring.


class Watched:
    """A pooler, and what it was like before anybody came."""

    def __init__(self, target: Target) -> None:
        assert target.pid is not None
        self.pid = target.pid
        self._pss = self._cpu = 0.0

    def look(self, clients: int, did: int, seconds: float | None) -> Sample:
        """`did`: how many clients have done something since the last look."""
        cpu = cpu_seconds(self.pid)
        time.sleep(REST)
        rss, pss = memory(self.pid)
        if not clients:
            self._pss = pss
        spent, self._cpu = cpu - self._cpu, cpu_seconds(self.pid)
        return Sample(
            clients,
            rss,
            pss,
            (pss - self._pss) / clients if clients else None,
            seconds,
            spent / did * 1e6 if did else None,
        )

    def wait_for_descriptors(self, most: int) -> None:
        """Return when it has closed what its clients have. Raises BenchmarkError if it does not."""
        deadline = time.monotonic() + PATIENCE
        while len(list(Path(f"/proc/{self.pid}/fd").iterdir())) > most:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"it still has more than {most} descriptors")
            time.sleep(0.05)


def memory(pid: int) -> tuple[int, int]:
    """RSS and PSS of a process in bytes."""
    told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", told, re.MULTILINE))
    return int(found["Rss"]) * 1024, int(found["Pss"]) * 1024


class Crowd:
    """The process that has the clients."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def do(self, order: str) -> float:
        """How many seconds it took. Raises BenchmarkError if it failed."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{order}\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise BenchmarkError(f"the clients' process has failed at {order!r}")
        return float(answer)


@contextlib.contextmanager
def crowd(port: int) -> Iterator[Crowd]:
    """A process with no clients yet; it ends with the block."""
    child = subprocess.Popen(
        script("crowd.py", str(port)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Crowd(child)
    finally:
        child.kill()
        child.communicate()


def measure(target: Target, clients: int) -> dict[str, Sample]:
    """One pooler through all stages. It has just been started."""
    watched = Watched(target)
    # What it makes or imports for its first client is no client's share; the pool fills up, too.
    load(target.port, active=POOL_SIZE, seconds=0.2, warm_up=0.0)
    samples = {EMPTY: watched.look(0, 0, None)}
    with crowd(target.port) as people:
        samples[IDLE] = watched.look(clients, clients, people.do(f"connect {clients}"))
        samples[USED] = watched.look(clients, clients, people.do("transact"))
        left = clients // 2
        seconds = people.do(f"leave {left}")
        watched.wait_for_descriptors(clients - left + SPARE)
        samples[HALF] = watched.look(clients - left, left, seconds)
    return samples


Start = Callable[[Path], AbstractContextManager[Target]]


def measure_all(poolers: dict[str, Start], root: Path, clients: int, rounds: int) -> Results:
    """Every pooler, afresh in each round; another one begins each time."""
    results = Results()
    for number in range(rounds):
        for name in in_turn(list(poolers), number):
            say(f"round {number + 1} of {rounds}: {name}")
            with poolers[name](root / f"{name}-{number}") as target:
                for stage, sample in measure(target, clients).items():
                    results.add(stage, name, sample)
    return results


# What people read.

HEAD: Final = (
    "pooler",
    "clients",
    "RSS MB",
    "PSS MB",
    "bytes a client",
    "to PgBouncer",
    "took s",
    "CPU µs a client",
    "to PgBouncer",
)

HOW_TO_READ: Final = """
{clients:,} clients log in, a hundred at a time, and are idle; each does BEGIN, SELECT 1, COMMIT;
half of them leave. RSS is the memory of the pooler's process, PSS the same with shared pages
counted in proportion; "bytes a client" is what PSS has grown by since there was nobody, for each
client that is there: after half have left, it includes what the pooler keeps for the next ones.
Memory of the kernel for their sockets is in neither. "took" is what the step before took all
together, beside a client that shares the CPUs; CPU is the pooler's own for it, for each client that
took part. Numbers are medians of the rounds, ratios those of each round's ratio; the PSS of rounds
was up to {spread:.1%} apart."""


def rows(results: Results, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The table: a row for each pooler and stage."""

    def number(stage: str, name: str, what: str, form: str, unit: float = 1.0) -> str:
        found = results.median(stage, name, what)
        return text(None if found is None else found / unit, form)

    return [
        (
            name,
            stage,
            number(stage, name, "rss", ".1f", unit=1e6),
            number(stage, name, "pss", ".1f", unit=1e6),
            number(stage, name, "per_client", ",.0f"),
            _ratio(results, stage, name, "per_client"),
            number(stage, name, "seconds", ".2f"),
            number(stage, name, "cpu_us", ",.0f"),
            _ratio(results, stage, name, "cpu_us"),
        )
        for name in names
        for stage in STAGES
    ]


def _ratio(results: Results, stage: str, name: str, what: str) -> str:
    ratio = None if name == PGBOUNCER else results.ratio(stage, name, PGBOUNCER, what)
    return text(ratio, ".2f")


def as_json(ran_on: dict[str, str], results: Results, names: Sequence[str]) -> str:
    """The same for machines, with every sample."""
    measures = ("clients", "rss", "pss", "per_client", "seconds", "cpu_us")
    said = [
        {
            "stage": stage,
            "medians": {
                name: {what: results.median(stage, name, what) for what in measures}
                for name in names
            },
            "ratios": {
                f"{what}: {TXPROXY} to {PGBOUNCER}": results.ratio(stage, TXPROXY, PGBOUNCER, what)
                for what in measures[1:]
            },
            "samples": results.of_row(stage),
        }
        for stage in STAGES
    ]
    return json.dumps({"ran_on": ran_on, "stages": said}, indent=1) + "\n"


# The whole.


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments_of(parser, rounds=3, seconds=None)
    parser.add_argument("--clients", type=positive, default=10_000, help="default: %(default)s")
    return parser.parse_args(argv)


def benchmark() -> None:
    """Measure, print, and write the JSON."""
    options = parse_arguments()
    raise_file_limit(options.clients)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="txproxy-bench-")))
        root.chmod(0o755)  # PgBouncer runs as another user
        server = stack.enter_context(EmbeddedPostgres())
        pooling = Pooling(POOL_SIZE, max_clients=options.clients + SPARE)
        poolers: dict[str, Start] = {}
        if find_pgbouncer():
            poolers[PGBOUNCER] = partial(pgbouncer, server.port, pooling=pooling)
        poolers[TXPROXY] = partial(txproxy, server.port, pooling=pooling)
        ran_on = environment(
            server.version,
            with_pgbouncer=PGBOUNCER in poolers,
            runs=f"{options.clients} clients, rounds: {options.rounds}",
        )
        results = measure_all(poolers, root, options.clients, options.rounds)
    names = list(poolers)
    explained = HOW_TO_READ.strip().format(clients=options.clients, spread=results.spread("pss"))
    print(document(ran_on, markdown(HEAD, rows(results, names)), explained))
    if options.json:
        options.json.write_text(as_json(ran_on, results, names))


if __name__ == "__main__":
    sys.exit(main("memory.py", benchmark))
