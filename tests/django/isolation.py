"""What a process of `test_sqlite3_isolation.py` does: transactions through Django's ORM, recorded.

    python -m tests.django.isolation        one job for each line on stdin, one answer on stdout

A row of Ledger is a list: each write appends a value that nobody else writes, so that what was read
says which writes it saw, and what is there at the end says in which order they came.
"""

import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

from django.db import models, transaction
from django.db.models import Value
from django.db.models.functions import Concat
from django.db.utils import OperationalError

from tests.django.site import OURS, TABLES, Note, drop, use, wrapper

NOTES: Final = 500  # more than a client asks the server for (txproxy.sqlite.session.FIRST_ROWS)
FILLING: Final = "x" * 4000  # together more than it reads at once (txproxy.sqlite.local.AT_ONCE)
KEYS: Final = (1, 2, 3, 4)  # of Ledger; the last two are not there at the beginning

COMMITTED, ROLLED_BACK, STALE = "committed", "rolled back", "stale"
READ, WRITE, SAVEPOINT, ROLLBACK_TO, RELEASE = (
    "read",
    "write",
    "savepoint",
    "rollback to",
    "release",
)


class Account(models.Model):  # type: ignore[misc]  # Django has no types
    """A number that is read, and saved again."""

    balance = models.IntegerField()

    class Meta:
        app_label = "notes"


class Ledger(models.Model):  # type: ignore[misc]  # Django has no types
    """`entries`: what was appended, each with a space behind it."""

    entries = models.TextField()

    class Meta:
        app_label = "notes"


SCHEMA: Final = (
    TABLES[0],
    "CREATE TABLE notes_account (id integer PRIMARY KEY, balance integer NOT NULL)",
    "CREATE TABLE notes_ledger (id integer PRIMARY KEY, entries text NOT NULL)",
    "INSERT INTO notes_account VALUES (1, 0), (2, 0)",
    "INSERT INTO notes_ledger VALUES (1, ''), (2, '')",
    f"""INSERT INTO notes_note (text) WITH RECURSIVE n (i) AS
    (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {NOTES}) SELECT '{FILLING}' FROM n""",
)

accounts: Final = Account.objects.using(OURS)
ledger: Final = Ledger.objects.using(OURS)
notes: Final = Note.objects.using(OURS)


def is_stale(error: OperationalError) -> bool:
    """Whether it is what a transaction may get that has read before it writes."""
    return getattr(error.__cause__, "sqlite_errorname", "") == "SQLITE_BUSY_SNAPSHOT"


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def meet() -> None:
    """Until every process that has not ended is here."""
    say(met=True)
    assert sys.stdin.readline(), "nobody is there any more"


# Accounts


def withdraw(process: int, rounds: int) -> list[Any]:
    """Of two accounts with 100 together each process takes 100 from one, if they have that.

    For each round: what became of it, and what is in the accounts then.
    """
    found = []
    for _ in range(rounds):
        if process == 0:
            accounts.update(balance=50)
        meet()
        outcome = COMMITTED
        try:
            with transaction.atomic(using=OURS):
                both = list(accounts.order_by("pk"))
                meet()
                assert sum(account.balance for account in both) == 100, "not of this round"
                mine = both[process % 2]
                mine.balance -= 100
                mine.save()
        except OperationalError as error:
            if not is_stale(error):
                raise
            outcome = STALE
        meet()
        found.append([outcome, [account.balance for account in accounts.order_by("pk")]])
        meet()
    return found


def add_one(process: int, times: int, for_update: bool) -> dict[str, Any]:
    """So often; `saved`: what was acknowledged, `stale`: how often it was not."""
    del process
    saved: list[int] = []
    stale = 0
    has_met = False
    rows = accounts.select_for_update() if for_update else accounts
    while len(saved) < times:
        try:
            with transaction.atomic(using=OURS):
                account = rows.get(pk=1)
                if not has_met and not for_update:  # else all but one wait
                    has_met = True
                    meet()  # all of them have read the same
                account.balance += 1
                account.save()
        except OperationalError as error:
            if not is_stale(error):
                raise
            stale += 1
        else:
            saved.append(account.balance)
    return {"saved": saved, "stale": stale}


# Ledgers


class RolledBackError(Exception):
    """Ends a block, in vain."""


class Steps:
    """What one transaction does; `done` says it in order: what, in which row, what was there."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._writes = 0
        self.done: list[tuple[str, int, Any]] = []

    def read(self, *keys: int) -> None:
        """Some rows; one that is not there is one that is empty."""
        rows = ledger.in_bulk(keys)
        for key in keys:
            entries = rows[key].entries.split() if key in rows else []
            self.done.append((READ, key, entries))

    def scan(self) -> None:
        """All rows."""
        rows = {row.pk: row.entries for row in ledger.all()}
        assert set(rows) <= set(KEYS), rows.keys()
        self.done += [(READ, key, rows.get(key, "").split()) for key in KEYS]

    def _value(self) -> str:
        self._writes += 1
        return f"{self._name}.{self._writes}"

    def append(self, key: int) -> None:
        """Write without reading; a row that is not there has been read."""
        value = self._value()
        if ledger.filter(pk=key).update(entries=Concat("entries", Value(f"{value} "))):
            self.done.append((WRITE, key, value))
        else:
            self.done.append((READ, key, []))

    def make(self, key: int) -> None:
        """Write, whether the row is there or not: several statements."""
        before = len(self.done)
        self.append(key)
        if self.done[before][0] == READ:
            value = self._value()
            ledger.create(pk=key, entries=f"{value} ")
            self.done.append((WRITE, key, value))

    def save(self, key: int, for_update: bool = False) -> None:
        """Read, and write what was read and one more."""
        rows = ledger.select_for_update() if for_update else ledger
        row = rows.filter(pk=key).first()
        self.done.append((READ, key, row.entries.split() if row is not None else []))
        if row is None:
            self.make(key)
            return
        value = self._value()
        row.entries += f"{value} "
        row.save()
        self.done.append((WRITE, key, value))

    def nested(self, work: Callable[[], None], is_kept: bool) -> None:
        """In a savepoint of its own."""
        self.done.append((SAVEPOINT, 0, None))
        try:
            with transaction.atomic(using=OURS):
                work()
                if not is_kept:
                    raise RolledBackError
        except RolledBackError:
            self.done.append((ROLLBACK_TO, 0, None))
        else:
            self.done.append((RELEASE, 0, None))


class Recorder:
    """The transactions of one process. `monotonic_ns` is one clock for all processes."""

    def __init__(self, process: int) -> None:
        self._process = process
        self.transactions: list[dict[str, Any]] = []

    def _note(self, steps: Steps, name: str, began: int, outcome: str) -> None:
        self.transactions.append(
            {
                "name": name,
                "began": began,
                "ended": time.monotonic_ns(),
                "outcome": outcome,
                "steps": steps.done,
            }
        )

    def _name(self) -> str:
        return f"{self._process}.{len(self.transactions) + 1}"

    def autocommit(self, step: Callable[[Steps], None]) -> None:
        """One statement."""
        name = self._name()
        steps = Steps(name)
        began = time.monotonic_ns()
        step(steps)
        self._note(steps, name, began, COMMITTED)

    def atomic(self, work: Callable[[Steps], None]) -> str:
        """What became of it."""
        name = self._name()
        steps = Steps(name)
        began = time.monotonic_ns()
        outcome = COMMITTED
        try:
            with transaction.atomic(using=OURS):
                work(steps)
        except RolledBackError:
            outcome = ROLLED_BACK
        except OperationalError as error:
            if not is_stale(error):
                raise
            outcome = STALE
        self._note(steps, name, began, outcome)
        return outcome


def step_at_random(dice: random.Random, steps: Steps) -> None:
    """One of them, in `atomic`."""
    match dice.randrange(8):
        case 0 | 1:
            steps.read(*dice.sample(KEYS, 2))
        case 2:
            steps.scan()
        case 3:
            steps.append(dice.choice(KEYS))
        case 4:
            steps.make(dice.choice(KEYS))
        case 5 | 6:
            steps.save(dice.choice(KEYS), for_update=dice.random() < 0.1)
        case _:
            steps.nested(lambda: step_at_random(dice, steps), is_kept=dice.random() < 0.5)


def transactions_at_random(process: int, seed: int, count: int) -> list[Any]:
    dice = random.Random(seed * 100 + process)
    recorder = Recorder(process)

    def work(steps: Steps) -> None:
        for _ in range(dice.randint(1, 4)):
            step_at_random(dice, steps)
        if dice.random() < 0.1:
            raise RolledBackError

    def collide(steps: Steps) -> None:
        steps.scan()
        meet()  # all of them have read the same: one may write
        steps.save(1)

    recorder.atomic(collide)
    for _ in range(count):
        match dice.randrange(6):
            case 0:
                key = dice.choice(KEYS)
                recorder.autocommit(lambda steps, key=key: steps.append(key))  # type: ignore[misc]
            case 1:
                recorder.autocommit(Steps.scan)
            case _:
                recorder.atomic(work)
    return recorder.transactions


def write_and_read_in_autocommit(process: int, times: int) -> list[Any]:
    """Rows that all write, by turns; what was acknowledged is read at once."""
    recorder = Recorder(process)
    meet()
    for number in range(times):
        key = KEYS[(number + process) % 2]
        recorder.autocommit(lambda steps, key=key: steps.append(key))  # type: ignore[misc]
        if number % 2:
            recorder.autocommit(lambda steps, key=key: steps.read(key))  # type: ignore[misc]
        else:
            recorder.autocommit(Steps.scan)
    return recorder.transactions


# Beside a cursor that is not read to its end


def unfinished() -> Iterator[Any]:
    """Notes of which the first one was read."""
    found: Iterator[Any] = notes.order_by("pk").iterator(chunk_size=20)
    assert next(found).pk == 1
    return found


def finish(found: Iterator[Any]) -> list[str]:
    """The texts of those that are left: AssertionError: some are not, or twice."""
    left = [(note.pk, note.text) for note in found]
    first = left[0][0]
    assert [pk for pk, _ in left] == [*range(first, NOTES + 1)]
    return [text for _, text in left]


def cursor_in_autocommit(process: int, times: int) -> list[Any]:
    """One process changes all notes: a cursor shows all of them before, or behind."""
    recorder = Recorder(process)
    texts = [FILLING[:-1] + letter for letter in "abc"]
    meet()
    for number in range(times):
        if process == 0:
            notes.update(text=texts[number % len(texts)])
            continue
        found = unfinished()
        for key in KEYS[:2]:
            recorder.autocommit(lambda steps, key=key: steps.append(key))  # type: ignore[misc]
            next(found)
            recorder.autocommit(lambda steps, key=key: steps.read(key))  # type: ignore[misc]
            recorder.autocommit(Steps.scan)
        assert len(set(finish(found))) == 1, "of several moments"
    return recorder.transactions


def cursor_in_atomic(process: int, times: int, writes_first: bool) -> list[Any]:
    """Opened before the first write, or behind it; read to its end within the block or behind it.

    The cursor is over rows that the transaction changes meanwhile; who opens it before may have to
    do it all again.
    """
    recorder = Recorder(process)
    mine = NOTES - process
    left: list[Iterator[Any]] = []
    text = ""
    is_late = False

    def work(steps: Steps) -> None:
        nonlocal left
        if writes_first:
            steps.append(1)
        found = unfinished()
        steps.read(1, 3)
        for key in (2, 3):
            steps.make(key)
            next(found)
            steps.read(key)
            notes.filter(pk=mine).update(text=text)
            assert notes.get(pk=mine).text == text
            next(found)
            steps.scan()
        if is_late:
            left = [found]
        else:
            finish(found)

    meet()
    done = 0
    while done < times:
        is_late = done % 2 == 1
        text = FILLING[:-2] + f"{process}{done % 10}"
        left = []
        if recorder.atomic(work) == COMMITTED:
            done += 1
            for found in left:
                finish(found)
            assert notes.get(pk=mine).text == text
    return recorder.transactions


JOBS: Final[dict[str, Callable[..., Any]]] = {
    job.__name__: job
    for job in (
        withdraw,
        add_one,
        transactions_at_random,
        write_and_read_in_autocommit,
        cursor_in_autocommit,
        cursor_in_atomic,
    )
}


def main() -> None:
    while line := sys.stdin.readline():
        order = json.loads(line)
        use(wrapper(OURS, **order["database"]))
        try:
            say(found=JOBS[order["job"]](**order["arguments"]))
        except Exception:  # noqa: BLE001 - it is the test's
            say(failed=traceback.format_exc())
        finally:
            drop(OURS)


if __name__ == "__main__":
    main()
