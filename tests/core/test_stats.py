from tests.core.scenario import query, scene, selected, unit
from txproxy.core.stats import Stats


def test_all_counters_have_their_name() -> None:
    stats = Stats()
    names = [
        name for name in dir(stats) if name[0] != "_" and isinstance(getattr(stats, name), int)
    ]
    assert sorted(stats.as_dict()) == sorted(names)
    assert set(stats.as_dict().values()) == {0}


def test_statements_and_clients_are_counted() -> None:
    world, client, backend = scene()
    client.sends(query("SELECT 1"), unit("SELECT 2"))
    backend.says(selected("1"))
    stats = world.pool.stats
    assert (stats.queries, stats.clients, stats.backends_opened, stats.waited) == (2, 1, 1, 1)
    assert stats.backends_closed == 0
    backend.dies()
    assert (stats.backends_closed, stats.backends_lost) == (1, 1)
