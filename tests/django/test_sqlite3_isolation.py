"""What transactions of several processes see of each other: as if one came after the other."""

import graphlib
import itertools
import json
import select
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.django.conftest import ENGINE
from tests.django.isolation import (
    COMMITTED,
    KEYS,
    READ,
    RELEASE,
    ROLLBACK_TO,
    ROLLED_BACK,
    SAVEPOINT,
    SCHEMA,
    STALE,
    WRITE,
)
from tests.django.site import OURS, ask, drop, use, wrapper
from tests.system.files import NOTES, Files, make
from tests.system.proxy import PATIENCE
from txproxy.cli.embedded import EmbeddedPostgres

PROCESSES: Final = 4

# Processes


class Processes:
    """Those that write, each in a Python of its own."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """At once, whatever they are doing."""
        for process in self._all:
            process.kill()
        for process in self._all:
            process.communicate()
        self._all.clear()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._all)

    def run(self, database: Mapping[str, Any], job: str, **arguments: Any) -> list[Any]:
        """What each of them has found. AssertionError: one has failed; then all are ended."""
        try:
            return self._run(database, job, arguments)
        except BaseException:
            self.end()
            raise

    def _run(
        self, database: Mapping[str, Any], job: str, arguments: Mapping[str, Any]
    ) -> list[Any]:
        while len(self._all) < PROCESSES:
            self._all.append(_started())
        for number, process in enumerate(self._all):
            own = {**arguments, "process": number}
            _tell(process, json.dumps({"database": database, "job": job, "arguments": own}))
        found: dict[int, Any] = {}
        while len(found) < PROCESSES:
            met = []
            for number, process in enumerate(self._all):
                if number in found:
                    continue
                line = _hear(process)
                assert "failed" not in line, line["failed"]
                if "found" in line:
                    found[number] = line["found"]
                else:
                    met.append(process)
            for process in met:
                _tell(process, "")
        return [found[number] for number in range(PROCESSES)]


def _started() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.django.isolation"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Its next line: it says no more until it is told something."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE)[0], "it says nothing"
    line = process.stdout.readline()
    assert line, "it has died"
    found: dict[str, Any] = json.loads(line)
    return found


# Histories

Step = tuple[str, int, Any]
Rows = dict[int, list[str]]


@dataclass(frozen=True)
class Transaction:
    """As one process has recorded it: tests/django/isolation.py."""

    name: str
    began: int
    ended: int
    outcome: str
    steps: list[Step]

    def play(self, rows: Rows) -> None:
        """Do it once more, on `rows`. AssertionError: there it reads otherwise."""
        mine: Rows = defaultdict(list)
        savepoints: list[Rows] = []
        for what, key, value in self.steps:
            if what == READ:
                there = rows[key] + mine[key]
                assert value == there, f"{self.name} read {value} of {key}, and not {there}"
            else:
                mine = _change(mine, savepoints, what, key, value)
        if self.outcome == COMMITTED:
            for key, values in mine.items():
                rows[key] += values

    def written(self) -> Rows:
        """What has to be there; nothing if it was not committed."""
        mine: Rows = defaultdict(list)
        savepoints: list[Rows] = []
        for step in self.steps:
            mine = _change(mine, savepoints, *step)
        return mine if self.outcome == COMMITTED else {}


def _change(mine: Rows, savepoints: list[Rows], what: str, key: int, value: Any) -> Rows:
    if what == WRITE:
        mine[key].append(value)
    elif what == SAVEPOINT:
        copy = defaultdict(list, {key: [*values] for key, values in mine.items()})
        savepoints.append(copy)
    elif what == RELEASE:
        savepoints.pop()
    elif what == ROLLBACK_TO:
        return savepoints.pop()
    return mine


class History:
    """Transactions of all processes, and the rows at the end.

    A transaction that was rolled back, or refused, has a place in the serial order, too: as one
    that has read only.
    """

    def __init__(self, transactions: list[Transaction], end: Rows) -> None:
        self._transactions = {one.name: one for one in transactions}
        self._end = {key: end.get(key, []) for key in KEYS}
        self._writers: dict[str, str] = {}  # of each value
        self._why: dict[tuple[str, str], str] = {}  # one comes before the other

    def check(self) -> list[str]:
        """A serial order that explains everything. AssertionError: there is none."""
        self._find_writers()
        self._order_by_time()
        self._order_by_versions()
        self._order_by_reads()
        sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
        for name in self._transactions:
            sorter.add(name)
        for before, behind in self._why:
            sorter.add(behind, before)
        try:
            order = [*sorter.static_order()]
        except graphlib.CycleError as error:
            raise AssertionError(self._told(error.args[1])) from None
        rows: Rows = {key: [] for key in KEYS}
        for name in order:
            self._transactions[name].play(rows)
        assert rows == self._end, "one after the other they leave something else"
        return order

    def _told(self, cycle: list[str]) -> str:
        edges = [f"{a} {self._why[a, b]} {b}" for a, b in itertools.pairwise(cycle)]
        steps = [str(self._transactions[name]) for name in dict.fromkeys(cycle)]
        return "\n".join(["no serial order:", *edges, *steps])

    def _find_writers(self) -> None:
        for one in self._transactions.values():
            for key, values in one.written().items():
                for value in values:
                    self._writers[value] = one.name
                    assert value in self._end[key], f"lost: {value}, which {one} has committed"
        for values in self._end.values():
            for value in values:
                assert value in self._writers, f"not committed, but there: {value}"
                assert values.count(value) == 1, f"twice: {value}"

    def _before(self, before: str, behind: str, why: str) -> None:
        if before != behind:
            self._why.setdefault((before, behind), why)

    def _order_by_time(self) -> None:
        """What was acknowledged is seen by whoever begins later."""
        for one, other in itertools.permutations(self._transactions.values(), 2):
            if one.ended < other.began:
                self._before(one.name, other.name, "ended before the begin of")

    def _order_by_versions(self) -> None:
        for key, values in self._end.items():
            for one, other in itertools.pairwise(values):
                why = f"wrote {one} to {key}, and behind it {other} was written by"
                self._before(self._writers[one], self._writers[other], why)

    def _order_by_reads(self) -> None:
        for one in self._transactions.values():
            own = {value for what, _, value in one.steps if what == WRITE}
            for what, key, value in one.steps:
                if what == READ:
                    self._order_by_read(one, key, [each for each in value if each not in own])

    def _order_by_read(self, one: Transaction, key: int, seen: list[str]) -> None:
        end = self._end[key]
        position = 0
        if seen:
            last = seen[-1]
            assert last in end, f"{one.name} read {last}, which nobody has committed"
            self._before(self._writers[last], one.name, f"wrote {last} to {key}, read by")
            position = end.index(last) + 1
        if position < len(end):
            following = end[position]
            why = f"read {key} before {following} was written by"
            self._before(one.name, self._writers[following], why)


# Fixtures


@pytest.fixture(scope="module")
def files(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    """`notes`, and a.db with a commit train."""
    patient = {"idle_writer_timeout": "60s", "idle_transaction_timeout": "60s"}
    root = tmp_path_factory.mktemp("files")
    made = Files(postgres, root, notes=patient, others={**patient, "commit_train": True})
    for path in (made.notes, made.data / "a.db"):
        make(path, *SCHEMA)
    with made.proxy:
        made.process()
        yield made


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as started:
        yield started


@pytest.fixture(params=["local", "server", "train"])
def database(request: pytest.FixtureRequest, files: Files) -> dict[str, Any]:
    """Who reads, and how is committed: what a wrapper is made of."""
    return {
        "engine": ENGINE,
        "name": "a.db" if request.param == "train" else NOTES,
        "HOST": files.proxy.socket_dir,
        "PORT": str(files.proxy.port),
        "OPTIONS": {
            "reads": "server" if request.param == "server" else "local",
            "timeout": PATIENCE,
        },
    }


@pytest.fixture
def db(database: dict[str, Any]) -> Iterator[Any]:
    """The test's own connection, to a file in which nothing was written."""
    made = use(wrapper(OURS, **database))
    ask(made, "UPDATE notes_account SET balance = 0")
    ask(made, "DELETE FROM notes_ledger")
    ask(made, "INSERT INTO notes_ledger VALUES (1, ''), (2, '')")
    yield made
    drop(OURS)


def history(db: Any, recorded: list[list[dict[str, Any]]]) -> History:
    """Of all processes, and what another one reads behind them."""
    transactions = [
        Transaction(**{**one, "steps": [tuple(step) for step in one["steps"]]})
        for one in itertools.chain.from_iterable(recorded)
    ]
    end = {key: entries.split() for key, entries in ask(db, "SELECT * FROM notes_ledger")}
    return History(transactions, end)


# Accounts


def check_withdrawals(rounds: list[Any]) -> None:
    """`rounds`: for each what every process was told, and has seen behind it."""
    for number, found in enumerate(rounds):
        outcomes = [outcome for outcome, _ in found]
        for _, balances in found:
            assert sum(balances) >= 0, f"round {number}: {found}"
            assert sum(balances) == 100 - 100 * outcomes.count(COMMITTED), f"round {number}"
        assert sorted(outcomes) == [COMMITTED, *[STALE] * (PROCESSES - 1)], f"round {number}"


def check_sum(acknowledged: list[int], balance: int) -> None:
    """Every number was saved once, and the last one is there."""
    assert sorted(acknowledged) == [*range(1, len(acknowledged) + 1)], "two saved the same"
    assert balance == len(acknowledged), "the sum is not what was acknowledged"


def test_no_write_skew(processes: Processes, database: dict[str, Any], db: Any) -> None:
    """All have read both rows before one writes: one of them may."""
    found = processes.run(database, "withdraw", rounds=5)
    check_withdrawals([*zip(*found, strict=True)])


def test_no_update_is_lost(processes: Processes, database: dict[str, Any], db: Any) -> None:
    found = processes.run(database, "add_one", times=10, for_update=False)
    acknowledged = [number for each in found for number in each["saved"]]
    assert len(acknowledged) == PROCESSES * 10
    check_sum(acknowledged, ask(db, "SELECT balance FROM notes_account WHERE id = 1")[0][0])
    assert sum(each["stale"] for each in found) >= PROCESSES - 1  # they had met


def test_nobody_fails_who_selects_for_update(
    processes: Processes, database: dict[str, Any], db: Any
) -> None:
    found = processes.run(database, "add_one", times=10, for_update=True)
    acknowledged = [number for each in found for number in each["saved"]]
    check_sum(acknowledged, ask(db, "SELECT balance FROM notes_account WHERE id = 1")[0][0])
    assert [each["stale"] for each in found] == [0] * PROCESSES


# Ledgers


def test_what_was_acknowledged_is_read_at_once(
    processes: Processes, database: dict[str, Any], db: Any
) -> None:
    recorded = processes.run(database, "write_and_read_in_autocommit", times=20)
    history(db, recorded).check()
    assert all(len(each) == 40 for each in recorded)


def test_own_writes_beside_a_cursor(
    processes: Processes, database: dict[str, Any], db: Any
) -> None:
    history(db, processes.run(database, "cursor_in_autocommit", times=4)).check()


@pytest.mark.parametrize("writes_first", [False, True])
def test_own_writes_beside_a_cursor_in_atomic(
    processes: Processes, database: dict[str, Any], db: Any, writes_first: bool
) -> None:
    recorded = processes.run(database, "cursor_in_atomic", times=2, writes_first=writes_first)
    history(db, recorded).check()
    outcomes = [one["outcome"] for each in recorded for one in each]
    assert outcomes.count(COMMITTED) == PROCESSES * 2
    assert STALE not in outcomes or not writes_first


def test_there_is_a_serial_order(processes: Processes, database: dict[str, Any], db: Any) -> None:
    recorded = processes.run(database, "transactions_at_random", seed=1, count=40)
    order = history(db, recorded).check()
    assert len(order) == PROCESSES * 41
    outcomes = [one["outcome"] for each in recorded for one in each]
    assert outcomes.count(STALE) >= PROCESSES - 1  # they had met


# Whether the checks notice what must not be


def test_a_row_that_is_broken_by_hand_is_noticed(
    processes: Processes, database: dict[str, Any], db: Any
) -> None:
    recorded = processes.run(database, "write_and_read_in_autocommit", times=3)
    ((entries,),) = ask(db, "SELECT entries FROM notes_ledger WHERE id = 1")
    values = entries.split()
    swapped = [values[1], values[0], *values[2:]]
    for broken, complaint in (
        (values[1:], "lost"),
        ([*values, values[0]], "twice"),
        ([*values, "9.9.9"], "not committed, but there"),
        (swapped, "no serial order|and not"),
    ):
        ask(db, "UPDATE notes_ledger SET entries = %s WHERE id = 1", " ".join(broken))
        with pytest.raises(AssertionError, match=complaint):
            history(db, recorded).check()


def test_a_balance_that_is_broken_by_hand_is_noticed(
    processes: Processes, database: dict[str, Any], db: Any
) -> None:
    found = processes.run(database, "add_one", times=2, for_update=True)
    acknowledged = [number for each in found for number in each["saved"]]
    ask(db, "UPDATE notes_account SET balance = balance - 1 WHERE id = 1")
    balance = ask(db, "SELECT balance FROM notes_account WHERE id = 1")[0][0]
    with pytest.raises(AssertionError, match="the sum"):
        check_sum(acknowledged, balance)
    with pytest.raises(AssertionError, match="two saved the same"):
        check_sum([*acknowledged[:-1], acknowledged[0]], balance + 1)


@pytest.mark.parametrize("committed", [0, 2])
def test_withdrawals_that_may_not_be(committed: int) -> None:
    stale = PROCESSES - committed
    balances = [50 - 100 * (committed > 0), 50 - 100 * (committed > 1)]
    found = [[COMMITTED, balances]] * committed + [[STALE, balances]] * stale
    with pytest.raises(AssertionError, match="round 0"):
        check_withdrawals([found])


def test_a_process_that_fails_fails_the_test(processes: Processes, files: Files) -> None:
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    with pytest.raises(AssertionError, match="unable to open database file"):
        processes.run({"engine": ENGINE, "name": "nothing", **where}, "withdraw", rounds=1)
    assert not processes.count


def at(name: str, *steps: Step, outcome: str = COMMITTED, time: int = 0) -> Transaction:
    """Those of the same time are concurrent."""
    return Transaction(name, 10 * time, 10 * time + 9, outcome, [*steps])


def read(key: int, *values: str) -> Step:
    return (READ, key, [*values])


def write(key: int, value: str) -> Step:
    return (WRITE, key, value)


SAVE: Final[Step] = (SAVEPOINT, 0, None)
BACK: Final[Step] = (ROLLBACK_TO, 0, None)
KEEP: Final[Step] = (RELEASE, 0, None)


@pytest.mark.parametrize(
    ("transactions", "end", "order"),
    [
        ([at("a", read(1), write(1, "x")), at("b", read(1))], {1: ["x"]}, "ba"),
        ([at("a", write(1, "x")), at("b", read(1, "x"), write(1, "y"))], {1: ["x", "y"]}, "ab"),
        ([at("a", write(1, "x"), read(1, "x"), outcome=ROLLED_BACK)], {}, "a"),
        ([at("a", SAVE, write(1, "x"), BACK, SAVE, write(1, "y"), KEEP)], {1: ["y"]}, "a"),
        ([at("a", read(1), read(2), outcome=STALE), at("b", write(2, "x"))], {2: ["x"]}, "ab"),
    ],
)
def test_what_may_be(transactions: list[Transaction], end: Rows, order: str) -> None:
    assert "".join(History(transactions, end).check()) == order


A: Final = at("a", read(1), write(1, "x"))
CYCLE: Final = "no serial order"


@pytest.mark.parametrize(
    ("transactions", "end", "complaint"),
    [
        ([A], {}, "lost"),
        ([A], {1: ["x", "x"]}, "twice"),
        ([A], {1: ["x", "z"]}, "not committed, but there"),
        ([at("a", write(1, "x"), outcome=STALE)], {1: ["x"]}, "not committed, but there"),
        ([at("a", SAVE, write(1, "x"), BACK)], {1: ["x"]}, "not committed, but there"),
        # lost update
        ([A, at("b", read(1), write(1, "y"))], {1: ["x", "y"]}, CYCLE),
        # write skew
        (
            [at("a", read(1), read(2), write(1, "x")), at("b", read(1), read(2), write(2, "y"))],
            {1: ["x"], 2: ["y"]},
            CYCLE,
        ),
        # a snapshot of two moments, also of who was refused
        (
            [
                at("a", write(1, "x"), write(2, "y")),
                at("b", read(1, "x"), read(2), outcome=STALE),
            ],
            {1: ["x"], 2: ["y"]},
            CYCLE,
        ),
        # dirty reads
        (
            [at("a", write(1, "x"), outcome=ROLLED_BACK), at("b", read(1, "x"))],
            {},
            "which nobody has committed",
        ),
        ([at("a", write(1, "x"), write(1, "y")), at("b", read(1, "x"))], {1: ["x", "y"]}, CYCLE),
        # one's own write is not seen: within the transaction, and behind it
        ([at("a", write(1, "x"), read(1))], {1: ["x"]}, r"read \[\] of 1"),
        ([A, at("b", read(1), time=1)], {1: ["x"]}, CYCLE),
        # a write that was rolled back to its savepoint is seen
        ([at("a", SAVE, write(1, "x"), BACK, read(1, "x"))], {}, "and not"),
    ],
)
def test_what_may_not(transactions: list[Transaction], end: Rows, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        History(transactions, end).check()
