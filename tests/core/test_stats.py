import pytest

from tests.core.scenario import query, scene, selected, unit
from txproxy.core.stats import Histogram, Stats


def test_all_counters_have_their_name() -> None:
    stats = Stats()
    names = [
        name
        for name in dir(stats)
        if name[0] != "_" and isinstance(getattr(stats, name), int | float)
    ]
    assert sorted(stats.as_dict()) == sorted(names)
    assert set(stats.as_dict().values()) == {0}


def test_counters_add_up() -> None:
    one, other = Stats(), Stats()
    one.queries, other.queries, other.wait_time = 1, 2, 0.5
    one.waiting.observe(0.3)
    other.waiting.observe(1000.0)
    one.add(other)
    assert (one.queries, one.wait_time) == (3, 0.5)
    assert (sum(one.waiting.counts), one.waiting.total) == (2, 1000.3)
    assert (other.queries, other.waiting.counts[-1]) == (2, 1)


@pytest.mark.parametrize(("seconds", "place"), [(0.0, 0), (0.1, 0), (0.11, 1), (300, 9), (301, 10)])
def test_durations_are_counted_up_to_and_with_the_bound(seconds: float, place: int) -> None:
    histogram = Histogram()
    histogram.observe(seconds)
    assert [at for at, count in enumerate(histogram.counts) if count] == [place]


def test_statements_and_clients_are_counted() -> None:
    world, client, backend = scene()
    client.sends(query("SELECT 1"), unit("SELECT 2"))
    backend.says(selected("1"))
    stats = world.pool.stats
    assert (stats.queries, stats.clients, stats.backends_opened, stats.waited) == (2, 1, 1, 1)
    assert stats.backends_closed == 0
    backend.dies()
    assert (stats.backends_closed, stats.backends_lost) == (1, 1)
