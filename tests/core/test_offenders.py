"""Whose code leaves transactions open: what tells one from another, and which are kept."""

from collections.abc import Mapping
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from tests.core.scenario import begin, query, reap, scene, selected
from txproxy.core.offenders import (
    OFFENDERS_LIMIT,
    REAPED,
    RELEASED,
    WOULD_REAP,
    Offender,
    Offenders,
)

FIELDS: Final[dict[str, object]] = {
    "idle_s": 2.0,
    "database": "app",
    "user": "ann",
    "application_name": "shop",
    "statement": "SELECT ? FROM a",
}


def counted(*each: Mapping[str, object]) -> list[Offender]:
    """Each of these, in that order and a second apart, reaped."""
    offenders = Offenders()
    for time, fields in enumerate(each):
        offenders.count(float(time), REAPED, {**FIELDS, **fields})
    return offenders.code.worst_first()


def one(*each: Mapping[str, object]) -> Offender:
    [found] = counted(*each)
    return found


# What is counted.


def test_how_often_and_how_long() -> None:
    offenders = Offenders()
    for time, how, idle in ((1.0, REAPED, 2.0), (2.0, RELEASED, 0.5), (3.0, WOULD_REAP, 4)):
        offenders.count(time, how, {**FIELDS, "idle_s": idle})
    [found] = offenders.code.worst_first()
    assert (found.times, found.reaped, found.released, found.would_reap) == (3, 1, 1, 1)
    assert (found.held, found.longest, found.last_seen) == (6.5, 4.0, 3.0)


def test_who_held_the_longest_comes_first() -> None:
    found = counted(
        {"user": "a", "idle_s": 3.0}, {"user": "b", "idle_s": 2.0}, {"user": "b", "idle_s": 2.0}
    )
    assert [(each.user, each.held, each.longest) for each in found] == [
        *(("b", 4.0, 2.0), ("a", 3.0, 3.0))
    ]


def test_the_last_one_is_shown() -> None:
    found = one(
        {"tags": {"route": "/a"}, "statement": "first", "process": "1", "application_name": "w1"},
        {"tags": {"route": "/a"}, "statement": "last", "process": "2", "application_name": "w2"},
    )
    assert (found.statement, found.process, found.application_name) == ("last", "2", "w2")


def test_what_the_log_is_told_is_counted() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT 1 /*route='/pay',traceparent='00-1'*/"))
    backend.says(selected("1", "T"))
    client.got()
    backend.got()
    reap(world, client, backend)
    [fields] = world.said("reaped")
    offenders = Offenders()
    offenders.count(1.0, REAPED, fields)
    [found] = offenders.code.worst_first()
    assert (found.database, found.user, found.tags) == ("app", "ann", "route='/pay'")
    assert found.held == fields["idle_s"] != 0


# What is told apart.


def test_code_is_told_apart() -> None:
    each: list[dict[str, object]] = [
        {},
        {"database": "b"},
        {"user": "b"},
        {"application_name": "b"},
        {"statement": "SELECT ? FROM b"},
        {"tags": {"route": "/a"}},
        {"tags": {"route": "/b"}},
        {"tags": {"controller": "/b"}},
        {"tags": {"controller": "a", "route": "/b"}},
    ]
    assert len(counted(*each)) == len(each)


def test_the_statement_does_not_matter_where_tags_say_which_code_it_was() -> None:
    assert one(*({"tags": {"route": "/a"}, "statement": each} for each in "ab")).times == 2


def test_tags_that_are_others_for_each_request_do_not_matter() -> None:
    found = one(*({"tags": {"traceparent": each, "route": "/a"}} for each in "ab"))
    assert (found.times, found.tags) == (2, "route='/a'")


def test_tags_that_say_nothing_of_the_code_are_none() -> None:
    found = counted({"tags": {"traceparent": "1"}}, {"tags": {"db_driver": "psycopg", "route": ""}})
    assert [(each.times, each.tags) for each in found] == [(2, "")]


def test_numbers_that_are_made_up_do_not_matter() -> None:
    """Those of cursors and savepoints in Django, of processes in names."""
    assert (
        one(
            {
                "statement": 'FETCH FORWARD ? FROM "_django_curs_14_sync_1"',
                "application_name": "w 17",
            },
            {
                "statement": 'FETCH FORWARD ? FROM "_django_curs_15_sync_22"',
                "application_name": "w 4",
            },
        ).times
        == 2
    )


# Bounds.


def test_how_many_there_are_is_bounded() -> None:
    found = counted(*({"user": "x" * i} for i in range(3 * OFFENDERS_LIMIT)))
    assert len(found) == OFFENDERS_LIMIT


def test_how_long_its_values_are_is_bounded() -> None:
    found = one({**dict.fromkeys((*FIELDS, "process"), "x" * 10_000), "idle_s": 1.0})
    texts = (found.database, found.user, found.application_name, found.statement, found.process)
    assert {len(text) for text in texts} == {256}
    assert len(one({"tags": {"route": "x" * 10_000}}).tags) == 256


def test_the_worst_survives_any_number_of_others() -> None:
    """Each of them comes once; it comes now and then."""
    offenders = Offenders()
    for number in range(50 * OFFENDERS_LIMIT):
        name = "".join("abcdefghij"[int(digit)] for digit in str(number))
        offenders.count(1.0, RELEASED, {**FIELDS, "user": name})
        if number % (OFFENDERS_LIMIT // 2) == 0:
            offenders.count(1.0, REAPED, {**FIELDS, "user": "the one"})
    worst = offenders.code.worst_first()[0]
    assert (worst.user, worst.held) == ("the one", 2.0 * 100)


@given(st.lists(st.tuples(st.integers(0, 250), st.floats(0.001, 100)), max_size=600))
def test_times_are_never_overstated_and_no_great_offender_is_missing(
    each: list[tuple[int, float]],
) -> None:
    offenders = Offenders()
    true: dict[str, float] = {}
    for number, idle in each:
        user = "x" * number
        true[user] = true.get(user, 0.0) + idle
        offenders.count(1.0, REAPED, {**FIELDS, "user": user, "idle_s": idle})
    found: dict[str, Any] = {each.user: each for each in offenders.code.worst_first()}
    slack = 1e-6 * sum(true.values())
    for user, held in true.items():
        if user in found or held > sum(true.values()) / OFFENDERS_LIMIT + slack:
            assert found[user].held - slack <= held <= found[user].weight + slack
