"""The queue by itself: no thread, no file."""

from typing import Any

from txproxy.backends.sqlite import calls
from txproxy.backends.sqlite.calls import Answers, Job
from txproxy.backends.sqlite.pragmas import DEFAULTS
from txproxy.backends.sqlite.tokens import BATCH, Tokens

OWNER: Any = object()


def job(kind: int = calls.UNIT, *, deadline: float = 0.0, foreign_keys: bool = False) -> Job:
    made = Job(OWNER, kind, [], Answers())
    made.deadline = deadline
    if foreign_keys:
        made.pragmas = DEFAULTS.set("foreign_keys", "1")
    return made


def test_units_go_together() -> None:
    tokens = Tokens()
    units = [job() for _ in range(3)]
    for unit in units:
        tokens.ask(unit)
    assert repr(tokens) == "<Tokens 3 waiting, free>"
    assert tokens.next() == units
    assert tokens.next() == []


def test_the_order_is_kept() -> None:
    tokens = Tokens()
    jobs = [job(), job(calls.ALONE), job(), job(), job(calls.HOLDING), job()]
    for each in jobs:
        tokens.ask(each)
    assert tokens.next() == jobs[:1]
    assert tokens.next() == jobs[1:2]
    assert tokens.next() == jobs[2:4]
    assert tokens.next() == jobs[4:5]
    assert repr(tokens) == "<Tokens 1 waiting, held>"
    assert tokens.next() == []
    tokens.release()
    assert tokens.next() == jobs[5:]


def test_units_with_other_settings_do_not_go_together() -> None:
    tokens = Tokens()
    jobs = [job(), job(foreign_keys=True), job(foreign_keys=True), job()]
    for each in jobs:
        tokens.ask(each)
    assert [tokens.next() for _ in range(3)] == [jobs[:1], jobs[1:3], jobs[3:]]


def test_a_batch_is_bounded() -> None:
    tokens = Tokens()
    for _ in range(BATCH + 1):
        tokens.ask(job())
    assert len(tokens.next()) == BATCH
    assert len(tokens.next()) == 1


def test_the_writer_is_woken_once() -> None:
    tokens = Tokens()
    assert tokens.ask(job()) is True  # it sleeps until there is somebody
    assert tokens.ask(job()) is False
    tokens.next()
    assert tokens.next() == []
    assert tokens.ask(job()) is True
    assert tokens.ask(job()) is False


def test_while_it_is_held_the_writer_looks_again_by_itself() -> None:
    tokens = Tokens()
    tokens.ask(job(calls.HOLDING))
    tokens.next()
    assert tokens.next() == []
    assert tokens.ask(job()) is False
    tokens.release()
    assert len(tokens.next()) == 1


def test_leaving_the_queue() -> None:
    tokens = Tokens()
    first, second = job(), job()
    tokens.ask(first)
    tokens.ask(second)
    assert tokens.withdraw(first) is True
    assert tokens.withdraw(first) is False
    assert tokens.first() is second
    assert tokens.next() == [second]
    assert tokens.withdraw(second) is False
    assert tokens.first() is None


def test_waiting_too_long() -> None:
    tokens = Tokens()
    jobs = [job(deadline=5.0), job(), job(deadline=3.0), job(deadline=6.0)]
    for each in jobs:
        tokens.ask(each)
    assert tokens.withdraw_late(2.9) == []
    assert tokens.withdraw_late(5.0) == [jobs[0], jobs[2]]
    assert tokens.next() == [jobs[1], jobs[3]]


def test_back_to_the_head() -> None:
    tokens = Tokens()
    first, second, third = job(calls.HOLDING), job(), job()
    for each in (first, second, third):
        tokens.ask(each)
    assert tokens.next() == [first]
    tokens.put_back([first])
    assert (first.is_taken, tokens.holder) == (False, None)
    assert tokens.next() == [first]
    tokens.release()
    batch = tokens.next()
    tokens.put_back(batch)
    assert tokens.next() == [second, third]
