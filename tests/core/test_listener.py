"""The listening connection, and what sessions hear by it."""

import pytest

from tests.core.scenario import (
    BOUND,
    PARSED,
    FakeBackend,
    FakeClient,
    World,
    begin,
    done,
    error,
    notification,
    parse,
    query,
    ready,
    scene,
    unit,
)
from txproxy.core.listener import CHANNELS_LIMIT, UNUSED_FOR
from txproxy.core.listening import HELD_LIMIT


def answer(listening: FakeBackend) -> list[str]:
    """The server answers all that it was asked on the listening connection; what that was."""
    asked = listening.got()
    for question in asked:
        listening.says(done(question[2:]), ready())
    return asked


def listen(world: World, client: FakeClient, channel: str = "jobs") -> FakeBackend:
    """The client listens, outside of a transaction, as the first of all."""
    client.sends(query(f"LISTEN {channel}"))
    listening = world.connects_listening()
    answer(listening)
    assert client.got() == ["C LISTEN", "Z I"]
    return listening


def is_open(backend: FakeBackend) -> bool:
    return not backend.finished


def asked_for(world: World) -> bool:
    """Whether a listening connection is to be made."""
    return world.wants_listening


def pids(client: FakeClient) -> list[int]:
    """The process ids in the notifications that the client was sent."""
    data = b"".join(client.writes)
    found = []
    while data:
        end = 1 + int.from_bytes(data[1:5], "big")
        if data[0] == ord("A"):
            found.append(int.from_bytes(data[5:9], "big"))
        data = data[end:]
    return found


# LISTEN and UNLISTEN.


def test_listen_is_answered_when_the_server_has_taken_ours() -> None:
    world, client, backend = scene()
    client.sends(query("LISTEN Jobs"))
    assert client.got() == []
    listening = world.connects_listening()
    assert listening.got() == ["Q SET client_encoding TO 'UTF8'", 'Q LISTEN "jobs"', "Q"]
    listening.says(done("SET"), ready(), done("LISTEN"), ready())
    assert client.got() == []
    listening.says(done(""), ready())
    assert client.got() == ["C LISTEN", "Z I"]
    assert backend.got() == []
    assert client.session.pin == ""
    listening.says(notification("jobs", "news"))
    assert client.got() == ["A jobs news"]


def test_what_was_sent_behind_it_comes_behind_it() -> None:
    world, client, backend = scene()
    client.sends(query("LISTEN jobs"), query("SELECT 1"))
    answer(world.connects_listening())
    assert client.got() == ["C LISTEN", "Z I"]
    assert backend.got() == ["Q SELECT 1"]


def test_a_channel_is_told_to_the_server_once() -> None:
    world, client, _ = scene()
    other = world.client()
    listening = listen(world, client)
    other.sends(query('LISTEN "jobs"'))
    assert answer(listening) == ["Q"]
    assert other.got() == ["C LISTEN", "Z I"]
    listening.says(notification("jobs"))
    assert client.got() == other.got() == ["A jobs"]
    client.sends(query("UNLISTEN jobs"))
    assert client.got() == ["C UNLISTEN", "Z I"]
    assert listening.got() == []
    listening.says(notification("jobs"))
    assert client.got() == []
    assert other.got() == ["A jobs"]
    other.leaves()
    assert listening.got() == ['Q UNLISTEN "jobs"']


def test_what_was_notified_before_is_not_heard() -> None:
    """It comes late: it was notified before the LISTEN."""
    world, client, _ = scene()
    other = world.client()
    listening = listen(world, client)
    other.sends(query("LISTEN jobs"))
    assert listening.got() == ["Q"]
    listening.says(notification("jobs", "before"), done(""), ready(), notification("jobs", "after"))
    assert client.got() == ["A jobs before", "A jobs after"]
    assert other.got() == ["C LISTEN", "Z I", "A jobs after"]


def test_what_is_notified_before_is_not_heard_with_a_statement_under_way_either() -> None:
    world, client, backend = scene()
    other = world.client()
    listening = listen(world, client)
    other.sends(query("SELECT 1"), query("LISTEN jobs"))
    assert listening.got() == ["Q"]
    listening.says(notification("jobs", "before"))
    backend.says(done("SELECT 1"), ready())
    assert other.got() == ["C SELECT 1", "Z I"]
    listening.says(done(""), ready())
    backend.says(done("LISTEN"), ready())
    assert other.got() == ["C LISTEN", "Z I"]


def test_a_client_of_another_encoding_is_pinned() -> None:
    world = World()
    world.params["client_encoding"] = "LATIN1"
    client = world.client()
    client.sends(query("LISTEN jobs"))
    assert client.session.pin == "LISTEN"
    assert not asked_for(world)


@pytest.mark.parametrize("ends", ["UNLISTEN *", "DISCARD ALL"])
def test_all_channels_at_once(ends: str) -> None:
    world, client, backend = scene()
    listening = listen(world, client)
    client.sends(query(f"SELECT 1; {ends}" if ends != "DISCARD ALL" else ends))
    backend.says(done("SELECT 1"), done("UNLISTEN"), ready())
    assert listening.got() == ['Q UNLISTEN "jobs"']


def test_the_connection_is_closed_when_nobody_has_listened_for_a_while() -> None:
    world, client, _ = scene()
    listening = listen(world, client)
    client.sends(query("UNLISTEN jobs"))
    answer(listening)
    world.passes(UNUSED_FOR - 1)
    assert is_open(listening)
    world.passes(2)
    assert not is_open(listening)
    assert world.database.connections == 1
    client.got()
    listen(world, client)


# Transactions.


def in_transaction(world: World, client: FakeClient, backend: FakeBackend) -> FakeBackend:
    """The client has executed LISTEN in an open transaction."""
    begin(client, backend)
    client.sends(query("LISTEN jobs"))
    listening = world.connects_listening()
    answer(listening)
    assert backend.got() == ["Q LISTEN jobs"]
    backend.says(done("LISTEN"), ready("T"))
    assert client.got() == ["C LISTEN", "Z T"]
    return listening


def test_it_counts_from_commit_on() -> None:
    world, client, backend = scene()
    listening = in_transaction(world, client, backend)
    listening.says(notification("jobs", "1"))
    client.sends(query("COMMIT"))
    assert backend.got() == []
    assert listening.got() == ["Q"]
    listening.says(notification("jobs", "2"), done(""), ready())
    assert backend.got() == ["Q COMMIT"]
    listening.says(notification("jobs", "3"))
    assert client.got() == []
    backend.says(done("COMMIT"), ready())
    assert client.got() == ["C COMMIT", "A jobs 3", "Z I"]
    assert backend.got() == ["Q UNLISTEN *"]
    backend.says(done("UNLISTEN"), ready())
    assert backend.is_idle()


@pytest.mark.parametrize(
    ("says", "answers"),
    [
        ("ROLLBACK", done("ROLLBACK") + ready()),
        ("COMMIT", error("23503") + ready()),
    ],
)
def test_it_is_rolled_back(says: str, answers: bytes) -> None:
    world, client, backend = scene()
    listening = in_transaction(world, client, backend)
    client.sends(query(says))
    answer(listening)
    backend.says(answers)
    client.got()
    assert listening.got() == ['Q UNLISTEN "jobs"']
    listening.says(notification("jobs"))
    assert client.got() == []
    assert client.session.listening is None


SAVEPOINTS = [
    (["SAVEPOINT a", "LISTEN x", "ROLLBACK TO a"], set()),
    (["LISTEN x", "SAVEPOINT a", "LISTEN y", "ROLLBACK TO SAVEPOINT A"], {b"x"}),
    (["LISTEN x", 'SAVEPOINT "A"', "SAVEPOINT a", "LISTEN y", 'ROLLBACK TO "A"'], {b"x"}),
    (["LISTEN x", "SAVEPOINT a", "LISTEN y", "RELEASE a", "LISTEN z"], {b"x", b"y", b"z"}),
    (["SAVEPOINT a", "LISTEN x", "RELEASE a", "LISTEN y"], {b"x", b"y"}),
    (["LISTEN x", "SAVEPOINT a", "UNLISTEN *", "ROLLBACK TO a"], {b"x"}),
    (["LISTEN x", "SAVEPOINT a", "SAVEPOINT a", "LISTEN y", "ROLLBACK TO a"], {b"x"}),
    (["LISTEN x", "LISTEN y", "UNLISTEN x"], {b"y"}),
    (["LISTEN x; UNLISTEN *; LISTEN y"], {b"y"}),
    (["LISTEN x", "SAVEPOINT a /* b */", "LISTEN y", "ROLLBACK TO a -- c"], {b"x"}),
]


@pytest.mark.parametrize(("statements", "channels"), SAVEPOINTS)
def test_savepoints(statements: list[str], channels: set[bytes]) -> None:
    world, client, backend = scene()
    listening = None
    for statement in ["BEGIN", *statements, "COMMIT"]:
        client.sends(query(statement))
        if world.wants_listening:
            listening = world.connects_listening()
        if listening is not None:
            answer(listening)
        assert backend.got()[-1] == f"Q {statement}"
        backend.says(done("X"), ready("I" if statement == "COMMIT" else "T"))
    side = client.session.listening
    assert (set() if side is None else side.channels) == channels


def test_notifications_wait_for_the_end_of_a_transaction() -> None:
    world, client, backend = scene()
    listening = listen(world, client)
    begin(client, backend)
    listening.says(notification("jobs", "1"))
    client.sends(query("SELECT 1"))
    listening.says(notification("jobs", "2"))
    backend.says(done("SELECT 1"), ready("T"))
    assert client.got() == ["C SELECT 1", "Z T"]
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert client.got() == ["C COMMIT", "A jobs 1", "A jobs 2", "Z I"]


def test_notifications_come_between_units() -> None:
    world, client, backend = scene()
    listening = listen(world, client)
    client.sends(unit("SELECT 1"))
    listening.says(notification("jobs", "1"))
    backend.says(PARSED, BOUND)
    listening.says(notification("jobs", "2"))
    assert [message[0] for message in client.got()] == ["1", "2"]
    backend.says(done("SELECT 1"), ready())
    assert client.got() == ["C SELECT 1", "A jobs 1", "A jobs 2", "Z I"]


def test_a_reaped_transaction_takes_its_listen_along() -> None:
    world, client, backend = scene()
    listening = in_transaction(world, client, backend)
    world.sleeps(11)
    assert client.state == "REAPED"
    assert listening.got() == ['Q UNLISTEN "jobs"']


def test_a_backend_that_is_lost_in_commit_takes_it_along() -> None:
    world, client, backend = scene()
    listening = in_transaction(world, client, backend)
    client.sends(query("COMMIT"))
    answer(listening)
    backend.dies()
    assert client.got() == ["E ERROR 08007", "Z I"]
    assert listening.got() == ['Q UNLISTEN "jobs"']


def test_a_deferred_begin() -> None:
    world, client, backend = scene(deferred_begin=True)
    client.sends(query("BEGIN"), query("LISTEN jobs"), query("COMMIT"))
    assert client.got() == ["C BEGIN", "Z T"]
    listening = world.connects_listening()
    answer(listening)
    assert backend.got()[-1] == "Q LISTEN jobs"


def test_a_client_that_leaves_leaves_a_backend_that_does_not_listen() -> None:
    world, client, backend = scene()
    listening = in_transaction(world, client, backend)
    client.sends(query("COMMIT"))
    answer(listening)
    backend.got()
    client.leaves()
    backend.says(done("COMMIT"), ready())
    assert backend.got() == ["Q UNLISTEN *"]
    backend.says(done("UNLISTEN"), ready())
    assert backend.is_idle()


# The session's own.


def test_its_own_come_before_its_answer_and_with_its_process_id() -> None:
    world, client, backend = scene()
    listening = listen(world, client)
    listening.got()
    client.sends(query("NOTIFY jobs"), query("SELECT 1"))
    assert backend.got() == ["Q NOTIFY jobs"]
    backend.says(done("NOTIFY"), ready())
    assert client.got() == ["C NOTIFY"]
    assert listening.got() == ["Q"]
    assert not backend.is_idle()
    listening.says(notification("jobs", "own", pid=backend.pid), done(""), ready())
    assert pids(client) == [client.session.pid]
    assert client.got() == ["A jobs own", "Z I"]
    assert backend.got() == ["Q SELECT 1"]


def test_who_only_notifies_does_not_wait() -> None:
    world, client, backend = scene()
    other = world.client()
    listening = listen(world, client)
    other.sends(query("NOTIFY jobs"))
    backend.says(done("NOTIFY"), ready())
    assert other.got() == ["C NOTIFY", "Z I"]
    listening.says(notification("jobs", pid=backend.pid))
    assert pids(client) == [other.session.pid]


def test_the_process_id_of_another_server_process_is_what_it_is() -> None:
    world, client, _ = scene()
    listen(world, client).says(notification("jobs", pid=77))
    assert pids(client) == [77]


def test_who_notified_before_on_the_same_backend_is_told_apart() -> None:
    world, client, backend = scene()
    other = world.client()
    listening = listen(world, client)
    other.sends(query("NOTIFY jobs"))
    backend.says(done("NOTIFY"), ready())
    backend.got()
    client.sends(query("NOTIFY jobs"))
    assert backend.got() == []
    assert listening.got() == ["Q"]
    listening.says(notification("jobs", pid=backend.pid), done(""), ready())
    assert backend.got() == ["Q NOTIFY jobs"]
    backend.says(done("NOTIFY"), ready())
    listening.says(notification("jobs", pid=backend.pid), done(""), ready())
    assert pids(client) == [other.session.pid, client.session.pid]


# What cannot be.


def test_no_connection_can_be_made() -> None:
    world, client, _ = scene()
    client.sends(query("LISTEN jobs"))
    world.refuses_listening()
    assert client.got() == ["E ERROR 08001", "Z I"]
    client.sends(query("SELECT 1"))
    assert not client.finished


@pytest.mark.parametrize(
    ("said", "failing"), [(query("LISTEN jobs"), "Q"), (parse("LISTEN jobs"), "P")]
)
def test_in_a_transaction_it_fails_on_the_server_too(said: bytes, failing: str) -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(said)
    world.refuses_listening()
    sent = [message[0] for message in backend.got()]
    assert sent == (["D", "S"] if failing == "Q" else ["D"])
    backend.says(error("26000"))
    assert client.got() == ["E ERROR 08001"]
    assert client.error["M"] == "nobody's there"


def test_query_wait_timeout() -> None:
    world, client, _ = scene(query_wait_timeout=5.0)
    client.sends(query("LISTEN jobs"))
    world.passes(6)
    assert client.got() == ["E ERROR 53300", "Z I"]


def test_it_can_be_cancelled() -> None:
    from txproxy.core import endings

    _, client, _ = scene()
    client.sends(query("LISTEN jobs"))
    endings.cancel(client.session)
    assert client.got() == ["E ERROR 57014", "Z I"]


def test_too_many_channels() -> None:
    world, client, _ = scene()
    listening = listen(world, client)
    for number in range(1, CHANNELS_LIMIT):
        client.sends(query(f"LISTEN c{number}"))
        answer(listening)
    assert client.got()[-1] == "Z I"
    client.sends(query("LISTEN one_more"))
    world.passes(0.05)
    assert client.got() == ["E ERROR 53400", "Z I"]
    client.sends(query("UNLISTEN c1"), query("LISTEN one_more"))
    answer(listening)
    assert client.got() == ["C UNLISTEN", "Z I", "C LISTEN", "Z I"]


def test_too_much_is_held() -> None:
    world, client, backend = scene()
    listening = listen(world, client)
    begin(client, backend)
    payload = "x" * (HELD_LIMIT // 10)
    for _ in range(9):
        listening.says(
            notification("jobs", payload[:50_000]), notification("jobs", payload[50_000:])
        )
    assert client.got() == []
    listening.says(notification("jobs", payload[:50_000]), notification("jobs", payload[50_000:]))
    assert client.got() == ["E FATAL 53400"]
    assert world.said("too many notifications held")


def test_a_client_that_does_not_read_is_told_later() -> None:
    world, client, _ = scene()
    listening = listen(world, client)
    client.session.client_is_full(True)
    listening.says(notification("jobs", "1"), notification("jobs", "2"))
    assert client.got() == []
    client.session.client_is_full(False)
    world.passes(0.05)
    assert client.got() == ["A jobs 1", "A jobs 2"]


# The connection's end.


def test_its_loss_ends_who_listens() -> None:
    world, client, backend = scene()
    other, waiting = world.client(), world.client()
    listening = listen(world, client)
    waiting.sends(query("LISTEN others"))
    listening.dies()
    assert client.got() == ["E FATAL 08006"]
    assert waiting.got() == ["E ERROR 08006", "Z I"]
    assert not other.finished
    assert world.database.connections == 1
    other.sends(query("LISTEN jobs"))
    world.passes(0.05)
    answer(world.connects_listening())
    assert other.got() == ["C LISTEN", "Z I"]
    assert backend.is_idle()


def test_it_is_asked_whether_it_lives() -> None:
    world, client, _ = scene(server_check_delay=30.0)
    listening = listen(world, client)
    listening.got()
    world.passes(31)
    assert listening.got() == ["Q"]
    world.passes(world.rollback_timeout + 1)
    assert client.got() == ["E FATAL 08006"]


def test_pause_ends_who_listens_with_its_transaction() -> None:
    world, client, backend = scene()
    busy = world.client()
    listening = listen(world, client)
    busy.sends(query("LISTEN jobs"))
    answer(listening)
    busy.got()
    begin(busy, backend)
    world.database.pause()
    world.passes(0.05)
    assert client.got() == ["E FATAL 57P01"]
    assert is_open(listening)
    busy.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    world.passes(0.05)
    assert busy.got() == ["C COMMIT", "Z I", "E FATAL 57P01"]
    assert not is_open(listening)
    assert world.database.connections == 0


def test_who_listens_while_paused_waits_for_the_next_connection() -> None:
    world, client, _ = scene()
    other = world.client()
    listening = listen(world, client)
    world.database.pause()
    other.sends(query("LISTEN jobs"))
    world.passes(0.05)
    assert not is_open(listening)
    assert other.got() == []
    world.passes(0.05)
    assert not asked_for(world)
    world.database.resume()
    world.passes(0.05)
    answer(world.connects_listening())
    assert other.got() == ["C LISTEN", "Z I"]


# Limits.


def test_an_idle_backend_gives_its_place() -> None:
    world = World()
    world.database.limit = 2
    client, other = world.client(), world.client()
    for each in (client, other):
        each.sends(query("BEGIN"))
    world.connects()
    first, second = world.pool.backends
    for backend in (first, second):
        port = backend.port
        assert isinstance(port, FakeBackend)
        port.says(done("BEGIN"), ready("T"))
    client.got()
    listener = world.client()
    listener.sends(query("LISTEN jobs"))
    assert not asked_for(world)
    other.sends(query("ROLLBACK"))
    assert other.session.backend is not None
    port = other.session.backend.port
    assert isinstance(port, FakeBackend)
    port.says(done("ROLLBACK"), ready())
    assert port.finished
    assert asked_for(world)
    assert world.database.connections == 2


def test_the_last_place_is_for_statements() -> None:
    world, client, _ = scene()
    world.database.limit = 1
    client.sends(query("LISTEN jobs"))
    world.passes(0.05)
    assert client.got() == ["E ERROR 53300", "Z I"]
