"""Statements that need a database without connections, or change what sessions begin with."""

import pytest

from tests.core.scenario import (
    BOUND,
    PARSED,
    SYNC,
    FakeBackend,
    FakeClient,
    World,
    bind,
    done,
    error,
    execute,
    parse,
    query,
    ready,
    selected,
)
from txproxy.wire import sql

DROP = "DROP DATABASE app"
ALTER = "ALTER ROLE ann SET timezone = 'Asia/Tokyo'"


def people(number: int, **settings: object) -> tuple[World, list[FakeClient], list[FakeBackend]]:
    """So many clients, each in a transaction on a backend of its own."""
    world = World(**{"pool_size": number, **settings})
    clients = [world.client() for _ in range(number)]
    backends: list[FakeBackend] = []
    for client in clients:
        client.sends(query("BEGIN"))
        lent = client.session.backend
        backend = world.connects() if lent is None else lent.port
        assert isinstance(backend, FakeBackend)
        assert backend.got() == ["Q BEGIN"]
        backend.says(done("BEGIN"), ready("T"))
        client.got()
        backends.append(backend)
    return world, clients, backends


def has_logged_in(client: FakeClient) -> bool:
    return client.params is not None


def commit(client: FakeClient, backend: FakeBackend) -> None:
    client.sends(query("COMMIT"))
    assert backend.got()[-1] == "Q COMMIT"
    backend.says(done("COMMIT"), ready())
    assert client.got()[-1] == "Z I"


def test_what_these_texts_are_taken_for() -> None:
    assert sql.judge(DROP.encode()).databases == ("app",)
    assert sql.judge(ALTER.encode()).defaults


# A database without connections.


@pytest.mark.parametrize("extended", [False, True])
def test_idle_backends_leave_before_the_statement_is_sent(extended: bool) -> None:
    _, (dropper, busy, *idlers), (mine, held, *idle) = people(4)
    for client, backend in zip([dropper, *idlers], [mine, *idle], strict=True):
        commit(client, backend)
    (*_, last) = sent = [backend for backend in (mine, *idle) if backend.is_idle()]
    dropper.sends(parse(DROP) + bind() + execute() + SYNC if extended else query(DROP))
    assert [backend.finished for backend in sent] == [True] * (len(sent) - 1) + [False]
    assert last.got() == [f"P :{DROP}", "B :", "E", "S"] if extended else [f"Q {DROP}"]
    assert not held.finished  # it is in a transaction, as it would be without us
    last.says(*([PARSED, BOUND] if extended else []), done("DROP DATABASE"), ready())
    commit(busy, held)


def test_a_backend_that_comes_back_while_it_runs_leaves_as_well() -> None:
    _, (dropper, busy), (mine, held) = people(2)
    commit(dropper, mine)
    dropper.sends(query(DROP))
    commit(busy, held)
    assert held.finished
    mine.says(error("3D000"), ready())
    assert mine.is_idle()


def test_one_that_gets_clean_while_it_runs_leaves_as_well() -> None:
    _, (dropper, busy), (mine, held) = people(2)
    commit(dropper, mine)
    busy.leaves()
    assert held.got() == ["Q ROLLBACK"]
    dropper.sends(query(DROP))
    assert not held.finished
    held.says(done("ROLLBACK"), ready())
    assert held.finished


def test_one_that_comes_back_afterwards_stays() -> None:
    _, (dropper, busy), (mine, held) = people(2)
    commit(dropper, mine)
    dropper.sends(query(DROP))
    assert mine.got()[-1] == f"Q {DROP}"
    mine.says(error("55006"), ready())
    commit(busy, held)
    assert held.is_idle()


def test_clients_that_wait_are_served() -> None:
    world, (dropper, busy), (mine, held) = people(2)
    other = world.client()
    commit(dropper, mine)
    dropper.sends(query(DROP))
    other.sends(query("SELECT 1"))
    assert other.got() == []
    commit(busy, held)
    assert held.got() == ["Q SELECT 1"]
    held.says(selected("1"))
    assert other.got()[-1] == "Z I"
    assert held.finished


def test_min_pool_size_waits_until_it_is_over() -> None:
    world, (dropper, other), (mine, idle) = people(2, min_pool_size=2)
    commit(other, idle)
    dropper.sends(query("COMMIT"), query(DROP))
    assert idle.finished
    world.passes(2)
    assert world.wanted_connections == 0
    mine.says(done("COMMIT"), ready(), done("DROP DATABASE"), ready())
    world.passes(2)
    assert world.wanted_connections == 1


def test_a_lost_backend_claims_nothing() -> None:
    _, (dropper, busy), (mine, held) = people(2)
    commit(dropper, mine)
    dropper.sends(query(DROP))
    mine.dies()
    commit(busy, held)
    assert held.is_idle()


def test_logins_behind_it_ask_the_server_again() -> None:
    """The database may be gone, or be another one."""
    world, (dropper, other), (mine, idle) = people(2)
    commit(dropper, mine)
    commit(other, idle)
    dropper.sends(query(DROP))
    lent = dropper.session.backend
    assert lent is not None
    lent.server_sent(done("DROP DATABASE") + ready())
    lent.close("gone with its database")
    new = world.new_client()
    new.session.login()
    assert not has_logged_in(new)
    world.params["TimeZone"] = "Asia/Tokyo"
    world.connects()
    assert new.params is not None
    assert new.params["TimeZone"] == "Asia/Tokyo"


# What sessions begin with.


def test_new_defaults_reach_new_sessions() -> None:
    world, (alterer, other), (mine, idle) = people(2)
    commit(other, idle)
    alterer.sends(query("COMMIT"))
    mine.says(done("COMMIT"), ready())
    alterer.sends(query(ALTER))
    lent = alterer.session.backend
    assert lent is not None
    assert not any(backend.finished for backend in (mine, idle))
    lent.server_sent(done("ALTER ROLE") + ready())
    assert mine.finished
    assert idle.finished
    world.params["TimeZone"] = "Asia/Tokyo"
    new = world.new_client()
    new.session.login()
    assert not has_logged_in(new)
    world.connects()
    assert new.params is not None
    assert new.params["TimeZone"] == "Asia/Tokyo"
    assert world.pool.base["timezone"] == "Asia/Tokyo"


def test_they_do_so_when_they_are_committed() -> None:
    _, (alterer, other), (mine, idle) = people(2)
    commit(other, idle)
    alterer.sends(query(ALTER))
    mine.says(done("ALTER ROLE"), ready("T"))
    assert idle.is_idle()
    commit(alterer, mine)
    assert idle.finished
    assert mine.finished


def test_a_transaction_ahead_in_the_pipeline_is_not_its_end() -> None:
    _, (alterer, other), (mine, idle) = people(2)
    commit(other, idle)
    alterer.sends(query("COMMIT"), query(ALTER))
    mine.says(done("COMMIT"), ready())
    assert idle.is_idle()
    mine.says(done("ALTER ROLE"), ready())
    assert idle.finished


def test_a_transaction_keeps_its_backend() -> None:
    _, (alterer, busy), (mine, held) = people(2)
    alterer.sends(query(ALTER))
    mine.says(done("ALTER ROLE"), ready("T"))
    commit(alterer, mine)
    assert not held.finished
    commit(busy, held)
    assert held.finished
