"""The order in which sessions wait for a backend."""

from tests.core.scenario import World
from txproxy.core.session import Session
from txproxy.core.waiting import REMEMBERED, SLEPT, TURN, Waiting

WORLD = World()


def session(name: str, queued_at: float, *, released_at: float = 0.0) -> Session:
    session = WORLD.client().session
    session.user = name
    session.queued_at = queued_at
    session.released_at = released_at
    return session


def served(waiting: Waiting) -> list[str]:
    return [waiting.next().user for _ in range(len(waiting))]


def test_they_are_served_in_the_order_in_which_they_came() -> None:
    waiting = Waiting()
    for i in range(5):
        waiting.append(session(f"s{i}", 100.0 + i))
    assert served(waiting) == ["s0", "s1", "s2", "s3", "s4"]


def test_who_slept_in_a_transaction_gets_one_backend_in_four_while_others_wait() -> None:
    waiting = Waiting()
    for i in range(3):
        waiting.append(session(f"sleeper{i}", 100.0, released_at=97.0))
    for i in range(2 * TURN):
        waiting.append(session(f"awake{i}", 101.0))
    order = served(waiting)
    assert [i for i, name in enumerate(order) if name.startswith("sleeper")] == [3, 7, 10]


def test_a_short_pause_is_no_sleep() -> None:
    waiting = Waiting()
    waiting.append(session("released", 100.0, released_at=100.0 - SLEPT / 2))
    waiting.append(session("other", 101.0))
    assert served(waiting) == ["released", "other"]


def test_sleep_is_forgotten() -> None:
    waiting = Waiting()
    late = session("late", 100.0, released_at=97.0)
    waiting.append(late)
    assert waiting.next() is late
    late.queued_at += REMEMBERED
    waiting.append(late)
    waiting.append(session("other", late.queued_at))
    assert served(waiting) == ["late", "other"]


def test_an_early_release_counts_once() -> None:
    waiting = Waiting()
    quick = session("quick", 100.0, released_at=99.99)
    waiting.append(quick)
    assert waiting.next() is quick
    quick.queued_at += 10
    waiting.append(quick)
    waiting.append(session("other", quick.queued_at))
    assert served(waiting) == ["quick", "other"]


def test_who_has_waited_longest_is_found_in_either_queue() -> None:
    waiting = Waiting()
    waiting.append(session("awake", 101.0))
    assert waiting.since == 101.0
    sleeper = session("sleeper", 100.0, released_at=50.0)
    waiting.append(sleeper)
    assert waiting.since == 100.0
    assert waiting.longest() is sleeper
    assert len(waiting) == 1


def test_one_that_waits_no_more_is_taken_out() -> None:
    waiting = Waiting()
    sleeper = session("sleeper", 100.0, released_at=50.0)
    awake = session("awake", 100.0)
    waiting.append(sleeper)
    waiting.append(awake)
    waiting.remove(sleeper)
    waiting.remove(sleeper)
    assert list(waiting) == [awake]
    waiting.remove(awake)
    assert not waiting
