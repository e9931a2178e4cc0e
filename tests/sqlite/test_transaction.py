"""The transaction table by itself."""

import pytest

from txproxy.backends.sqlite import transaction
from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.reaping import verdict
from txproxy.backends.sqlite.transaction import (
    BEGUN,
    CLASSES,
    FAILED,
    NONE,
    READING,
    STATES,
    TABLE,
    WAITING,
    WRITING,
    Transaction,
)


def test_it_says_something_for_every_state_but_waiting() -> None:
    assert set(TABLE) == set(range(len(STATES))) - {WAITING}
    for row in TABLE.values():
        assert set(row) == set(range(len(CLASSES)))


@pytest.mark.parametrize("state", [BEGUN, READING])
def test_what_takes_no_token(state: int) -> None:
    tx = Transaction()
    tx.begin(state, 0.0)
    free = {transaction.READ, transaction.COMMIT, transaction.ROLLBACK, transaction.SAVEPOINT}
    for kind in free:
        assert tx.decide(kind) != transaction.ASK
    assert tx.decide(transaction.WRITE) == transaction.ASK
    assert tx.decide(transaction.ALONE) == transaction.ASK


def test_the_writer_decides_for_its_holder() -> None:
    assert set(TABLE[WRITING].values()) == {transaction.PASS}


def test_nothing_is_run_in_a_failed_one() -> None:
    tx = Transaction()
    tx.begin(BEGUN, 0.0)
    tx.fail("it slept")
    assert repr(tx) == "<Transaction failed>"
    allowed = {transaction.ABORTED, transaction.ABORTED_OVER, transaction.FORGET}
    assert set(TABLE[FAILED].values()) == allowed
    assert tx.decide(transaction.ROLLBACK) == transaction.FORGET
    tx.end()
    assert (tx.state, tx.why) == (NONE, "")


def test_savepoints() -> None:
    tx = Transaction()
    tx.begin(BEGUN, 0.0)
    for name in ("a", "b", "A", "c"):
        tx.push(name)
    tx.roll_back_to("a")  # the innermost of that name, in any case
    assert repr(tx) == "<Transaction begun a b A>"
    assert tx.release("B") is False
    assert tx.savepoints == ["a"]
    with pytest.raises(KeyError):
        tx.release("b")
    assert tx.release("a") is False
    assert tx.savepoints == []


def test_a_transaction_that_began_with_a_savepoint_ends_with_it() -> None:
    tx = Transaction()
    tx.begin(BEGUN, 0.0, "a")
    tx.push("b")
    tx.roll_back_to("a")
    assert tx.savepoints == ["a"]
    assert tx.release("a") is True


@pytest.mark.parametrize(
    ("state", "idle", "waiting", "why"),
    [
        (WRITING, 2.1, 1, "idle_writer_timeout"),
        (WRITING, 1.9, 1, ""),
        (WRITING, 2.1, 0, ""),
        (WRITING, 30.1, 0, "idle_transaction_timeout"),
        (READING, 2.1, 1, ""),
        (READING, 30.1, 0, "idle_transaction_timeout"),
        (BEGUN, 1000.0, 1, ""),  # it holds nothing
        (FAILED, 1000.0, 1, ""),
        (NONE, 1000.0, 1, ""),
    ],
)
def test_who_sleeps_too_long(state: int, idle: float, waiting: int, why: str) -> None:
    found = verdict(Settings(), state, idle, waiting)
    assert (why in found) if why else not found


def test_timeouts_that_are_off() -> None:
    off = Settings(idle_writer_timeout=0, idle_transaction_timeout=0)
    assert verdict(off, WRITING, 1e9, 1) == ""
