"""Who gets which backend, and when."""

from dataclasses import replace

import pytest

from tests.core.scenario import (
    EMPTY,
    TICK,
    FakeBackend,
    FakeClient,
    World,
    begin,
    copy_data,
    done,
    error,
    parse,
    query,
    ready,
    scene,
    selected,
    unit,
)
from txproxy.config import Secret
from txproxy.core import endings
from txproxy.core.backend import Backend
from txproxy.core.session import Session


def crowd(size: int, **settings: object) -> tuple[World, list[FakeClient], list[FakeBackend]]:
    """A world with so many clients and backends, all idle: the last one has been used last."""
    world = World(**{"pool_size": size, **settings})
    clients = [world.client() for _ in range(size)]
    backends = []
    for client in clients:
        client.sends(query("SELECT 1"))
        lent = client.session.backend
        backends.append(world.connects() if lent is None else port(lent))
    for backend in backends:
        serve(backend)
    assert [port(backend) for backend in world.pool.idle] == backends
    for client in clients:
        client.got()
    return world, clients, backends


def port(backend: Backend) -> FakeBackend:
    """The server's end."""
    assert isinstance(backend.port, FakeBackend)
    return backend.port


def serve(backend: FakeBackend) -> None:
    """The server answers a SELECT."""
    assert backend.got()
    backend.says(selected("1"))


def fails(world: World) -> bool:
    """Whether the pool's last attempt to connect has failed."""
    return world.pool.failing


def is_watched(world: World) -> bool:
    """Whether a backend that comes back is looked at more closely."""
    return world.pool.watched


def closings(world: World) -> list[object]:
    """Why backends were closed so far."""
    return [fields["why"] for fields in world.said("backend closed")]


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


def test_who_gives_a_backend_back_at_once_and_wants_another_waits_behind_the_others() -> None:
    world = World(pool_size=1)
    client, other = world.new_client(), world.new_client()
    client.session.login()
    client.sends(query("SELECT 1"))
    other.session.login()
    backend = world.connects()
    assert other.params is not None
    assert backend.got() == ["Q SELECT 1"]


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


def test_any_number_of_logins_that_need_nothing_of_a_backend_are_served_by_one() -> None:
    world = World(pool_size=1)
    clients = [world.new_client() for _ in range(400)]
    for client in clients:
        client.session.login()
    assert world.pool.stats.waited == 400
    assert world.connects().is_idle()
    assert all(client.params is not None for client in clients)


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
    world.passes(0.1)
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


def test_the_pause_after_a_failure_doubles_up_to_server_login_retry() -> None:
    world, client, _ = scene(server_login_retry=0.5)
    client.sends(query("SELECT 1"))
    world.client().sends(query("SELECT 2"))
    assert not fails(world)
    for pause in (0.1, 0.2, 0.4, 0.5, 0.5):
        world.refuses_connection()
        world.passes(pause - 0.01)
        assert world.wanted_connections == 0
        world.passes(0.02)
        assert world.wanted_connections == 1
        assert fails(world)
    world.connects()
    assert not fails(world)


def test_while_connections_fail_there_is_one_attempt_at_a_time() -> None:
    world, client, backend = scene(pool_size=5)
    backend.dies()
    clients = [client, *(world.client() for _ in range(4))]
    for each in clients:
        each.sends(query("SELECT 1"))
    assert world.wanted_connections == 5
    for _ in clients:
        assert client.got() == []
        world.refuses_connection()
    assert [each.got() for each in clients] == [["E ERROR 08001", "Z I"]] * 5
    for each in clients:
        each.sends(query("SELECT 2"))
    assert world.wanted_connections == 0
    world.passes(0.11)
    assert world.wanted_connections == 1
    assert world.connects().got() == ["Q SELECT 2"]
    assert world.wanted_connections == 4


def test_who_asks_during_the_pause_waits_for_the_next_attempt_and_gets_its_error() -> None:
    world, client, backend = scene(pool_size=1)
    backend.dies()
    client.sends(query("SELECT 1"))
    world.refuses_connection()
    client.got()
    client.sends(query("SELECT 2"))
    assert client.got() == []
    world.passes(0.11)
    world.refuses_connection()
    assert client.got() == ["E ERROR 08001", "Z I"]


def test_who_asks_during_the_pause_is_served_if_the_server_is_back() -> None:
    world, client, backend = scene(pool_size=1)
    backend.dies()
    client.sends(query("SELECT 1"))
    world.refuses_connection()
    client.got()
    client.sends(query("SELECT 2"))
    world.passes(0.11)
    serve(world.connects())
    assert client.got()[-1] == "Z I"


def test_an_attempt_that_was_begun_before_somebody_asked_does_not_end_his_waiting() -> None:
    world, client, backend = scene(pool_size=1, query_wait_timeout=60.0)
    other = world.client()
    backend.dies()
    client.sends(query("SELECT 1"))
    world.passes(14.9)
    other.sends(query("SELECT 2"))
    world.refuses_connection()
    assert client.got() == ["E ERROR 08001", "Z I"]
    assert other.got() == []
    world.passes(0.11)
    world.refuses_connection()
    assert other.got() == ["E ERROR 08001", "Z I"]


def test_a_waiter_whose_error_raises_does_not_keep_the_others_from_theirs() -> None:
    class Careless(World):
        def bug(self, session: Session, error: Exception) -> None:
            self.bugs = [*getattr(self, "bugs", []), error]

    world = Careless(pool_size=1)
    first, second = world.new_client(), world.new_client()
    first.session.login()
    second.session.login()
    first.finish()  # its socket refuses what it is sent
    world.refuses_connection()
    assert len(world.bugs) == 1
    assert second.got() == ["E FATAL 08001"]


def test_new_credentials_are_tried_at_once() -> None:
    world, client, backend = scene(pool_size=1)
    backend.dies()
    client.sends(query("SELECT 1"))
    world.refuses_connection()
    client.sends(query("SELECT 2"))
    assert world.wanted_connections == 0
    world.pool.credentials_changed()
    assert world.wanted_connections == 1


def test_a_backend_that_closes_as_soon_as_it_has_logged_in_is_a_failure() -> None:
    world, client, backend = scene(pool_size=1)
    backend.dies()
    client.sends(query("SELECT 1"))
    closed = FakeBackend(world, dict(world.params))
    closed.dies()
    world.wanted_connections -= 1
    world.pool.connected(closed.backend)
    assert client.got() == ["E ERROR 08006", "Z I"]
    assert world.pool.count == 0
    assert world.pool.stats.backends_closed == world.pool.stats.backends_opened == 1


def test_a_connection_that_is_not_wanted_any_more_leaves_its_place() -> None:
    world, client, backend = scene(pool_size=1)
    backend.dies()
    client.sends(query("SELECT 1"))
    world.wanted_connections -= 1
    world.pool.dropped()
    assert world.pool.count == world.database.connections == 1
    assert world.wanted_connections == 1


def test_a_dead_backend_is_replaced_for_those_who_wait() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    backend.dies()
    assert world.wanted_connections == 1
    assert world.connects().got() == ["Q SELECT 2"]


def test_what_is_lent_and_when_it_came_back_is_noted() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    lent = world.pool.stats.assignments
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    world.passes(3)
    backend.says(selected("1"))
    backend.says(selected("2"))
    assert world.pool.stats.assignments == lent + 2
    assert backend.backend.idle_since == world.now


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


def test_a_pool_that_is_to_keep_backends_is_not_unused() -> None:
    assert World().pool.unused
    assert not World(min_pool_size=1).pool.unused


def test_a_pool_with_clients_or_attempts_is_not_unused() -> None:
    world, _, backend = scene()
    backend.dies()
    assert not world.pool.unused
    other = World()
    gone = other.new_client()
    gone.session.login()
    gone.leaves()
    assert not other.pool.unused
    other.refuses_connection()
    assert repr(other.pool) == "<Pool app/ann idle=0 of 0+0/2 waiting=0>"
    assert [pool.unused for pool in (world.pool, other.pool)] == [False, True]


# A backend that the server has closed while it was idle.


def test_a_backend_that_was_idle_for_long_is_looked_at_before_it_is_lent() -> None:
    world, clients, (first, second, third) = crowd(3)
    world.passes(2)
    second.stale = third.stale = True
    clients[0].sends(query("SELECT 2"))
    assert first.got() == ["Q SELECT 2"]
    assert second.finished
    assert third.finished
    assert closings(world) == ["the server closed it while it was idle"] * 2


def test_where_all_idle_backends_are_stale_one_is_connected() -> None:
    world, clients, backends = crowd(2)
    world.passes(2)
    for backend in backends:
        backend.stale = True
    clients[0].sends(query("SELECT 2"))
    assert world.connects().got() == ["Q SELECT 2"]


def test_a_backend_that_was_used_a_moment_ago_is_trusted() -> None:
    world, client, backend = scene()
    world.passes(0.9)
    backend.stale = True
    client.sends(query("SELECT 1"))
    assert backend.got() == ["Q SELECT 1"]


# The janitor: how many backends, and how old.


def test_min_pool_size_is_connected_without_anybody_waiting() -> None:
    world = World(pool_size=5, min_pool_size=3)
    world.passes(TICK)
    assert world.wanted_connections == 3
    for _ in range(3):
        world.connects()
    world.passes(5)
    assert world.wanted_connections == 0
    assert repr(world.pool) == "<Pool app/ann idle=3 of 3+0/5 waiting=0>"


def test_min_pool_size_is_no_more_than_pool_size() -> None:
    world = World(pool_size=2, min_pool_size=3)
    world.passes(TICK)
    assert world.wanted_connections == 2


def test_min_pool_size_is_tried_for_one_at_a_time_while_it_fails() -> None:
    world = World(pool_size=5, min_pool_size=3)
    world.passes(TICK)
    for _ in range(3):
        world.refuses_connection()
    world.passes(2)
    assert world.wanted_connections == 1
    world.connects()
    world.passes(2)
    assert world.wanted_connections == 2


def test_the_reserve_is_connected_when_somebody_has_waited_too_long() -> None:
    world, client, _ = scene(pool_size=1, reserve_pool_size=1, reserve_pool_timeout=5.0)
    other, third = world.client(), world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    world.passes(4.9)
    third.sends(query("SELECT 3"))
    assert world.wanted_connections == 0
    world.passes(0.2)
    assert world.wanted_connections == 1
    assert world.connects().got() == ["Q SELECT 2"]
    world.passes(10)
    assert world.wanted_connections == 0


def test_an_earlier_wait_does_not_count_for_the_reserve() -> None:
    world, client, backend = scene(pool_size=1, reserve_pool_size=1, reserve_pool_timeout=5.0)
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    serve(backend)
    serve(backend)
    world.passes(10)
    client.sends(query("SELECT 3"))
    other.sends(query("SELECT 4"))
    assert world.wanted_connections == 0


def test_a_reserve_without_its_timeout_is_not_used() -> None:
    world, client, _ = scene(pool_size=1, reserve_pool_size=1, reserve_pool_timeout=0.0)
    client.sends(query("SELECT 1"))
    world.client().sends(query("SELECT 2"))
    world.passes(100)
    assert world.wanted_connections == 0


def test_backends_that_nobody_needs_are_closed_but_for_min_pool_size() -> None:
    world, clients, (first, second, third) = crowd(3, min_pool_size=1, server_idle_timeout=60.0)
    world.passes(30)
    clients[0].sends(query("SELECT 2"))
    serve(third)
    world.passes(31)
    assert (first.finished, second.finished, third.finished) == (True, True, False)
    world.passes(100)
    assert third.is_idle()
    assert closings(world) == ["server_idle_timeout"] * 2


def test_backends_that_are_too_old_are_replaced_one_after_the_other() -> None:
    world, _, backends = crowd(4, server_lifetime=100.0)
    world.passes(99)
    assert closings(world) == []
    for seconds, left in ((2, 3), (20, 3), (5, 2), (25, 1), (25, 0)):
        world.passes(seconds)
        assert len(world.pool.backends) == left
    assert closings(world) == ["server_lifetime"] * 4
    assert all(backend.finished for backend in backends)


def test_a_backend_that_is_too_old_ends_its_transaction_first() -> None:
    world, client, backend = scene(server_lifetime=100.0, idle_transaction_timeout=0.0)
    begin(client, backend)
    world.passes(101)
    assert closings(world) == []
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert client.got() == ["C COMMIT", "Z I"]
    assert closings(world) == ["server_lifetime"]


def test_a_backend_that_is_younger_than_the_others_stays() -> None:
    world, client, first = scene(server_lifetime=100.0)
    world.passes(60)
    client.sends(query("SELECT 1"))
    world.client().sends(query("SELECT 2"))
    second = world.connects()
    serve(second)
    serve(first)
    for _ in range(50):
        world.passes(1)
    assert first.finished
    assert second.is_idle()


# The janitor: whether idle backends still answer.


def test_an_idle_backend_is_asked_whether_it_answers() -> None:
    world, client, backend = scene(server_check_delay=30.0)
    world.passes(29)
    assert backend.got() == []
    world.passes(2)
    assert backend.got() == ["Q"]
    assert not backend.is_idle()
    assert is_watched(world)
    backend.says(EMPTY, ready())
    assert backend.is_idle()
    world.passes(20)
    assert not is_watched(world)
    assert backend.got() == []
    world.passes(10)
    assert backend.got() == ["Q"]
    assert client.got() == []


def test_a_check_is_no_use_that_keeps_a_backend_from_server_idle_timeout() -> None:
    world, clients, (first, second) = crowd(2, server_check_delay=30.0, server_idle_timeout=50.0)
    world.passes(20)
    clients[0].sends(query("SELECT 2"))
    serve(second)
    world.passes(11)
    assert first.got() == ["Q"]
    first.says(EMPTY, ready())
    clients[0].sends(query("SELECT 3"))
    assert second.got() == ["Q SELECT 3"]
    second.says(selected("3"))
    world.passes(20)
    assert first.finished
    assert second.is_idle()


def test_backends_keep_their_order_whichever_answers_first() -> None:
    world, clients, backends = crowd(3, server_check_delay=30.0)
    for number, client in enumerate(clients):
        world.passes(0.3)
        client.sends(query("SELECT 1"))
        lent = client.session.backend
        assert lent is not None
        backends[number] = port(lent)
    for backend in backends:
        world.passes(0.3)
        serve(backend)
    world.passes(40)
    for backend in (backends[1], backends[2], backends[0]):
        assert backend.got() == ["Q"]
        backend.says(EMPTY, ready())
    assert world.pool.idle == [backend.backend for backend in backends]


def test_whoever_waits_gets_a_backend_as_soon_as_it_has_answered() -> None:
    world, client, backend = scene(pool_size=1, server_check_delay=30.0)
    backend.got()
    world.passes(31)
    client.sends(query("SELECT 1"))
    assert backend.got() == ["Q"]
    backend.says(EMPTY, ready())
    assert backend.got() == ["Q SELECT 1"]
    backend.says(selected("1"))
    assert backend.backend.idle_since == world.now


def test_a_backend_that_does_not_answer_is_closed() -> None:
    world, client, backend = scene(server_check_delay=30.0)
    world.passes(31)
    world.passes(world.rollback_timeout + 0.1)
    assert backend.finished
    client.sends(query("SELECT 1"))
    assert world.connects().got() == ["Q SELECT 1"]


def test_a_backend_that_answers_with_an_error_is_closed() -> None:
    world, _, backend = scene(server_check_delay=30.0)
    world.passes(31)
    backend.says(error("57P01"), ready())
    assert backend.finished
    assert closings(world) == ["check failed: no"]


def test_a_backend_that_dies_while_it_is_asked_is_forgotten() -> None:
    world, _, backend = scene(server_check_delay=30.0)
    world.passes(31)
    backend.dies()
    assert repr(world.pool) == "<Pool app/ann idle=0 of 0+0/2 waiting=0>"
    world.passes(1)
    assert not is_watched(world)


# PAUSE and RESUME.


def test_a_paused_pool_lends_nothing_until_it_is_resumed() -> None:
    world, client, backend = scene(pool_size=2)
    other, third = world.client(), world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    late = world.connects()
    serve(late)
    world.database.pause()
    assert world.pool.paused
    assert late.finished
    assert closings(world) == ["PAUSE"]
    third.sends(query("SELECT 3"))
    serve(backend)
    assert client.got()[-1] == "Z I"
    assert closings(world) == ["PAUSE"] * 2
    world.passes(10)
    assert world.wanted_connections == 0
    assert third.got() == []
    world.database.resume()
    assert world.connects().got() == ["Q SELECT 3"]


def test_a_connection_that_comes_while_the_pool_is_paused_is_closed() -> None:
    world = World(min_pool_size=1)
    client = world.new_client()
    client.session.login()
    world.user.pause()
    assert world.connects().finished
    assert client.got() == []
    world.user.resume()
    assert world.wanted_connections == 1


def test_who_waits_in_a_paused_pool_is_not_told_of_a_failure() -> None:
    world = World()
    client = world.new_client()
    client.session.login()
    world.database.pause()
    world.refuses_connection()
    assert client.got() == []
    world.database.resume()
    world.passes(0.2)
    world.refuses_connection()
    assert client.got() == ["E FATAL 08001"]


def test_a_pool_that_is_made_while_its_database_is_paused_is_paused() -> None:
    world = World()
    world.database.pause()
    client = world.new_client()
    client.session.login()
    world.passes(5)
    assert world.wanted_connections == 0


# RECONNECT, and other settings.


def test_reconnect_replaces_each_backend_as_soon_as_nobody_needs_it() -> None:
    world, clients, (first, second) = crowd(2)
    begin(clients[0], second)
    world.pool.reconnect()
    assert first.finished
    assert closings(world) == ["RECONNECT"]
    clients[0].sends(query("COMMIT"))
    second.says(done("COMMIT"), ready())
    assert closings(world) == ["RECONNECT"] * 2
    clients[1].sends(query("SELECT 1"))
    assert world.connects().got() == ["Q SELECT 1"]


def test_a_backend_that_is_asked_whether_it_answers_is_replaced_too() -> None:
    world, _, backend = scene(server_check_delay=30.0)
    world.passes(31)
    world.pool.reconnect()
    assert closings(world) == []
    backend.says(EMPTY, ready())
    assert closings(world) == ["RECONNECT"]


def test_a_connection_that_was_begun_before_a_reconnect_is_not_used() -> None:
    world = World(pool_size=2)
    client = world.new_client()
    client.session.login()
    epoch = world.pool.epoch
    world.pool.reconnect()
    assert world.wanted_connections == 2
    old, new = (FakeBackend(world, dict(world.params)) for _ in range(2))
    world.pool.connected(new.backend, world.pool.epoch)
    assert not new.finished
    world.pool.connected(old.backend, epoch)
    assert old.finished
    assert world.pool.count == 1


def test_an_attempt_that_was_begun_before_a_reconnect_says_nothing_when_it_fails() -> None:
    world = World(pool_size=1)
    client = world.new_client()
    client.session.login()
    epoch = world.pool.epoch
    world.pool.reconnect()
    assert world.wanted_connections == 1
    world.pool.connect_failed({"C": "08001", "M": "the old server is gone"}, epoch)
    assert client.got() == []
    assert not world.pool.failing
    assert world.wanted_connections == 2


def test_where_a_pool_leads_after_a_reconnect_is_tried_at_once() -> None:
    world, client, backend = scene(pool_size=1)
    backend.dies()
    client.sends(query("SELECT 1"))
    world.refuses_connection()
    client.sends(query("SELECT 2"))
    assert world.wanted_connections == 0
    world.pool.reconnect()
    assert world.wanted_connections == 1


def test_what_a_fresh_backend_reports_is_learnt_again_after_a_reconnect() -> None:
    world, client, _ = scene()
    assert world.pool.base["server_version"] == "18.0"
    world.pool.reconnect()
    assert world.pool.base["server_version"] == "18.0"
    world.params["server_version"] = "19.0"
    client.sends(query("SELECT 1"))
    world.connects()
    assert world.pool.base["server_version"] == "19.0"
    known = world.pool.known(client.session.wanted)
    assert known is not None
    assert known["server_version"] == "19.0"


def test_settings_that_the_old_server_took_are_tried_again_after_a_reconnect() -> None:
    world, client, _ = scene(pool_size=3)
    other = world.client(timezone="Asia/Tokyo")
    wanted = other.session.wanted
    world.pool.reconnect()
    assert world.pool.known(wanted) is not None
    client.sends(query("SELECT 1"))
    world.connects()
    assert world.pool.known(wanted) is None
    third = world.client(timezone="Asia/Tokyo")
    assert world.pool.known(wanted) is not None
    other.sends(query("SELECT 2"))
    third.sends(query("SELECT 3"))
    world.connects()  # by which nothing is forgotten
    assert world.pool.known(wanted) is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"hosts": ("/elsewhere",)},
        {"port": 5433},
        {"dbname": "other"},
        {"password": Secret("new")},
        {"parameters": (("timezone", "UTC"),)},
        {"connect_query": "SET search_path = app"},
    ],
    ids=str,
)
def test_other_settings_for_the_connection_replace_the_backends(
    changed: dict[str, object],
) -> None:
    world, _, backend = scene()
    world.pool.reconfigure(replace(world.pool.settings, **changed))  # type: ignore[arg-type]
    assert backend.finished


def test_other_sizes_leave_backends_alone() -> None:
    world, client, backend = scene(pool_size=1)
    client.sends(query("SELECT 1"))
    world.client().sends(query("SELECT 2"))
    assert world.wanted_connections == 0
    world.pool.reconfigure(replace(world.pool.settings, pool_size=2, server_lifetime=100.0))
    assert world.wanted_connections == 1
    assert not backend.backend.retiring


def test_other_settings_hold_for_backends_that_are_there() -> None:
    world, _, backend = scene(server_lifetime=1000.0)
    world.passes(100)
    world.pool.reconfigure(
        replace(world.pool.settings, server_lifetime=50.0, min_pool_size=1, pool_size=1)
    )
    world.passes(1)
    assert backend.finished
    assert closings(world) == ["server_lifetime"]
    assert world.wanted_connections == 1


def test_a_smaller_pool_closes_what_is_too_many_as_it_comes_back() -> None:
    world, clients, backends = crowd(4)
    clients[0].sends(query("SELECT 2"))
    clients[1].sends(query("SELECT 2"))
    world.pool.reconfigure(replace(world.pool.settings, pool_size=1))
    assert [backend.finished for backend in backends] == [True, True, False, False]
    serve(backends[3])
    assert backends[3].finished
    serve(backends[2])
    assert backends[2].is_idle()
    assert clients[0].got()[-1] == clients[1].got()[-1] == "Z I"
    assert closings(world) == ["pool_size"] * 3
