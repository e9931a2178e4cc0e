"""idle_transaction_soft_timeout: it counts while somebody is harmed."""

import pytest

from tests.core.scenario import FakeBackend, FakeClient, World, begin, query, scene
from txproxy.core.pressure import Harm


def asleep(**settings: object) -> tuple[World, FakeClient, FakeBackend]:
    """A client that has slept in a transaction for longer than the soft timeout."""
    world, client, backend = scene(
        idle_transaction_soft_timeout=1.0, idle_transaction_timeout=60.0, **settings
    )
    begin(client, backend)
    world.sleeps(3)
    return world, client, backend


def harms(world: World, client: FakeClient, blocks: int = 0, xmin_age: int = 0) -> None:
    """The server says so, and the janitor looks twice."""
    session = client.session
    assert session.backend is not None
    session.backend.harm = Harm(session.active_at, blocks, xmin_age)
    world.sleeps(0.1)


def test_who_harms_nobody_sleeps_on() -> None:
    world, client, backend = asleep()
    harms(world, client)
    assert client.state == "OPEN"
    assert backend.got() == []


def test_who_is_waited_for_in_the_pool() -> None:
    world, client, backend = asleep(pool_size=1)
    other = world.new_client()
    other.session.login()
    other.sends(query("SELECT 1"))
    world.sleeps(0.1)
    assert backend.got() == ["Q ROLLBACK"]
    assert world.said("reaped")[0]["why"] == "idle_transaction_soft_timeout"
    client.sends(query("SELECT 2"))
    assert client.got() == ["E ERROR 25P03", "Z E"]


def test_who_blocks_others() -> None:
    world, client, backend = asleep()
    harms(world, client, blocks=2)
    assert backend.got() == ["Q ROLLBACK"]


@pytest.mark.parametrize(("longest", "reaped"), [(0, False), (100, True), (1000, False)])
def test_who_holds_vacuum_back(longest: int, reaped: bool) -> None:
    world, client, backend = asleep(max_xmin_age=longest)
    harms(world, client, xmin_age=1000)
    assert (backend.got() == ["Q ROLLBACK"]) is reaped


def test_what_was_said_of_an_earlier_sleep_does_not_count() -> None:
    world, client, backend = asleep()
    session = client.session
    assert session.backend is not None
    session.backend.harm = Harm(session.active_at - 1, 5, 5)
    world.sleeps(0.1)
    assert backend.got() == []
