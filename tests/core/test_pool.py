"""Who gets which backend, and when."""

import pytest

from tests.core.scenario import (
    World,
    begin,
    copy_data,
    done,
    parse,
    query,
    ready,
    scene,
    selected,
    unit,
)
from txproxy.core import endings


def test_the_pool_connects_only_when_somebody_waits() -> None:
    world = World(pool_size=2)
    assert world.wanted_connections == 0
    client, other, third = (world.client() for _ in range(3))
    world.client()
    assert world.pool.stats.backends_opened == 1
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    third.sends(query("SELECT 3"))
    assert world.wanted_connections == 1
    assert repr(world.pool) == "<Pool app/ann idle=0 of 1+1/2 waiting=2>"


def test_waiters_are_served_in_their_order() -> None:
    world, client, backend = scene(pool_size=1)
    waiting = [world.client() for _ in range(3)]
    client.sends(query("SELECT 'c'"))
    for number, other in enumerate(waiting):
        other.sends(query(f"SELECT {number}"))
    backend.got()
    backend.says(selected("c"))
    for number, other in enumerate(waiting):
        assert backend.got() == [f"Q SELECT {number}"]
        backend.says(selected(str(number)))
        assert other.got() == ["T", f"D {number}", "C SELECT 1", "Z I"]
    assert backend.is_idle()


def test_who_comes_while_others_wait_waits_behind_them() -> None:
    world, client, backend = scene(pool_size=1)
    first, second = world.client(), world.client()
    client.sends(query("SELECT 'c'"))
    first.sends(query("SELECT 1"))
    backend.got()
    backend.says(selected("c"))
    second.sends(query("SELECT 2"))
    client.sends(query("SELECT 3"))
    backend.says(selected("1"))
    backend.says(selected("2"))
    assert backend.got() == ["Q SELECT 1", "Q SELECT 2", "Q SELECT 3"]


def test_the_backend_that_was_used_last_is_lent_first() -> None:
    world, client, first = scene()
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    second = world.connects()
    second.says(selected("2"))
    first.says(selected("1"))
    first.got()
    client.sends(query("SELECT 3"))
    assert first.got() == ["Q SELECT 3"]


def test_a_new_connection_serves_whoever_waits() -> None:
    world, client, backend = scene()
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    second = world.connects()
    assert second.got() == ["Q SELECT 2"]
    assert not second.is_idle()
    backend.says(selected("1"))
    assert backend.is_idle()


def test_a_connection_that_came_too_late_is_idle() -> None:
    world, client, backend = scene()
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    backend.says(selected("1"))
    assert backend.got() == ["Q SELECT 1", "Q SELECT 2"]
    assert world.connects().is_idle()


def test_a_client_whose_statements_are_answered_at_once_does_not_keep_others_waiting() -> None:
    world, client, backend = scene(pool_size=1)
    waiting = [world.client() for _ in range(200)]
    client.sends(query("SELECT 1"))
    for other in waiting:
        other.sends(query("LISTEN jobs")[:-1])  # half a message: it has no use for a backend
        other.session.client_sent(b"\0")
    for other in waiting:
        other.leaves()
    backend.says(selected("1"))
    assert backend.is_idle()
    assert not world.pool.waiters


def test_a_client_that_leaves_the_queue_is_not_served() -> None:
    world, client, backend = scene(pool_size=1)
    gone, other = world.client(), world.client()
    client.sends(query("SELECT 1"))
    gone.sends(query("DELETE FROM t"))
    other.sends(query("SELECT 2"))
    gone.leaves()
    backend.says(selected("1"))
    assert backend.got() == ["Q SELECT 1", "Q SELECT 2"]
    assert gone.got() == []


# No connection can be had.


def test_where_nothing_can_be_connected_all_waiters_are_told() -> None:
    world = World(pool_size=1)
    clients = [world.new_client() for _ in range(3)]
    for client in clients:
        client.session.login()
    world.refuses_connection()
    for client in clients:
        assert client.got() == ["E FATAL 08001"]
        assert client.error["M"] == "nobody listens there"
        assert client.finished


def test_a_statement_for_which_nothing_can_be_connected_gets_an_error() -> None:
    world, client, backend = scene(pool_size=1)
    backend.dies()
    client.sends(query("SELECT 1"), query("SELECT 2"))
    world.refuses_connection()
    assert client.got() == ["E ERROR 08001", "Z I"]
    world.refuses_connection()
    assert client.got() == ["E ERROR 08001", "Z I"]
    assert not client.finished


def test_while_another_backend_lives_waiters_wait_for_it() -> None:
    world, client, backend = scene()
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    world.refuses_connection()
    assert other.got() == []
    backend.says(selected("1"))
    assert backend.got() == ["Q SELECT 1", "Q SELECT 2"]


def test_a_refused_connection_is_tried_again_after_a_while() -> None:
    world, client, _ = scene()
    client.sends(query("SELECT 1"))
    world.client().sends(query("SELECT 2"))
    world.refuses_connection()
    world.passes(0.5)
    assert world.wanted_connections == 0
    world.passes(0.6)
    assert world.wanted_connections == 1


def test_a_dead_backend_is_replaced_for_those_who_wait() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    backend.dies()
    assert world.wanted_connections == 1
    assert world.connects().got() == ["Q SELECT 2"]


def test_an_idle_backend_that_dies_is_lent_to_nobody() -> None:
    world, client, backend = scene()
    backend.dies()
    client.sends(query("SELECT 1"))
    assert world.connects().got() == ["Q SELECT 1"]
    assert repr(world.pool) == "<Pool app/ann idle=0 of 1+0/2 waiting=0>"


# Waiting too long.


def test_a_statement_waits_no_longer_than_query_wait_timeout() -> None:
    world, client, backend = scene(pool_size=1, query_wait_timeout=5.0)
    other = world.client()
    begin(client, backend)
    other.sends(query("SELECT 1"))
    world.passes(4)
    assert other.got() == []
    world.passes(2)
    assert other.got() == ["E ERROR 53300", "Z I"]
    assert other.error["H"].startswith("All backends of the pool were in use")
    assert world.pool.stats.query_wait_timeouts == 1
    other.sends(query("SELECT 2"))
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert backend.got() == ["Q COMMIT", "Q SELECT 2"]


def test_each_waiters_time_is_its_own() -> None:
    world, client, backend = scene(pool_size=1, query_wait_timeout=5.0)
    first, second = world.client(), world.client()
    begin(client, backend)
    first.sends(query("SELECT 1"))
    world.passes(3)
    second.sends(query("SELECT 2"))
    world.passes(3)
    assert first.got() == ["E ERROR 53300", "Z I"]
    assert second.got() == []
    world.passes(3)
    assert second.got() == ["E ERROR 53300", "Z I"]


REFUSALS = [
    (query("SELECT 1"), ["Z I"], "NONE"),
    (query("BEGIN"), ["Z I"], "NONE"),  # psycopg 2 sends no ROLLBACK for a BEGIN that failed
    (query("BEGIN; INSERT INTO t VALUES (1)"), ["Z E"], "FAILED"),
    (unit("SELECT 1"), ["Z I"], "NONE"),
    (unit("BEGIN"), ["Z E"], "FAILED"),
    (query("BEGIN") + query("INSERT INTO t VALUES (1)"), ["Z E", "E ERROR 25P02", "Z E"], "FAILED"),
    (unit("BEGIN") + unit("INSERT INTO t"), ["Z E", "E ERROR 25P02", "Z E"], "FAILED"),
    (query("BEGIN") + query("COMMIT"), ["Z E", "C ROLLBACK", "Z I"], "NONE"),
    (parse("SELECT 1"), [], "NONE"),
    (parse("BEGIN"), [], "FAILED"),
]


@pytest.mark.parametrize("how", ["timeout", "cancel", "no server"])
@pytest.mark.parametrize(("messages", "answers", "state"), REFUSALS)
def test_a_unit_that_gets_no_backend_gets_its_error_and_is_not_run(
    messages: bytes, answers: list[str], state: str, how: str
) -> None:
    world, client, backend = scene(pool_size=1, query_wait_timeout=5.0)
    other = world.client()
    begin(client, backend)
    if how == "no server":
        backend.dies()
    other.sends(messages)
    if how == "timeout":
        world.passes(6)
    elif how == "cancel":
        endings.cancel(other.session)
    else:
        world.refuses_connection()
    got = other.got()
    assert got[0] == {"timeout": "E ERROR 53300", "cancel": "E ERROR 57014"}.get(
        how, "E ERROR 08001"
    )
    assert got[1:] == answers
    assert other.state == state
    assert not world.pool.waiters
    assert backend.got() == []


def test_in_autocommit_the_statement_behind_a_refused_one_waits_for_its_own_turn() -> None:
    world, client, backend = scene(pool_size=1, query_wait_timeout=5.0)
    other = world.client()
    begin(client, backend)
    other.sends(query("SELECT 1"), query("SELECT 2"))
    world.passes(6)
    assert other.got() == ["E ERROR 53300", "Z I"]
    assert list(world.pool.waiters) == [other.session]
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert backend.got() == ["Q COMMIT", "Q SELECT 2"]


def test_a_refused_unit_that_has_not_come_completely_is_discarded_to_its_sync() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    begin(client, backend)
    other.sends(parse("SELECT 1"))
    endings.cancel(other.session)
    assert other.got() == ["E ERROR 57014"]
    other.sends(*[unit("SELECT 1")[len(parse("SELECT 1")) :]], query("SELECT 2"))
    assert other.got() == ["Z I"]
    assert list(world.pool.waiters) == [other.session]


def test_a_refused_statement_too_large_to_be_held_is_dropped_to_its_end() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    begin(client, backend)
    asked = query("INSERT INTO t VALUES ('" + "x" * 200_000 + "')")
    other.sends(asked[:100_000])
    endings.cancel(other.session)
    assert other.got()[0] == "E ERROR 57014"
    other.sends(asked[100_000:])
    assert other.got() == []
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert backend.got() == ["Q COMMIT"]


def test_a_login_that_waits_too_long_is_refused() -> None:
    world = World(pool_size=1, query_wait_timeout=5.0)
    client = world.new_client()
    client.session.login()
    world.passes(6)
    assert client.got() == ["E FATAL 53300"]
    assert client.finished


def test_malformed_messages_that_wait_are_refused_like_others() -> None:
    world, client, backend = scene(pool_size=1)
    begin(client, backend)
    for data in (b"F\0\0\0\x05x", b"Q\0\0\0\x05x", b"P\0\0\0\x08xxxx", b"D\0\0\0\x06xx"):
        other = world.client()
        other.sends(data)
        endings.cancel(other.session)
        assert other.got()[0] == "E ERROR 57014"


def test_copy_data_before_a_login_is_over_is_held_and_dropped() -> None:
    world = World()
    client = world.new_client()
    client.session.login()
    client.sends(copy_data("early"))
    backend = world.connects()
    assert backend.got() == []
    assert backend.is_idle()


# What is remembered of logins.


def test_settings_that_were_never_tried_are_not_known() -> None:
    world, _, _ = scene()
    wanted = world.new_client(timezone="Asia/Tokyo").session.wanted
    assert world.pool.known(wanted) is None
    world.client(timezone="Asia/Tokyo")
    known = world.pool.known(wanted)
    assert known is not None
    assert known["TimeZone"] == "Asia/Tokyo"


def test_what_is_remembered_is_bounded() -> None:
    world, _, _ = scene()
    first = world.new_client(datestyle="first").session.wanted
    world.pool.accept(first, world.params)
    for number in range(1000):
        wanted = world.new_client(datestyle=str(number)).session.wanted
        world.pool.accept(wanted, world.params)
    assert world.pool.known(first) is None
    assert world.pool.known(wanted) is not None


def test_a_pool_without_sessions_and_backends_is_unused() -> None:
    world, client, backend = scene()
    assert not world.pool.unused
    client.leaves()
    assert not world.pool.unused
    backend.dies()
    assert world.pool.unused
