"""Early release: who may be let go of, what the server hears, and that nobody notices."""

import pytest

from tests.core.scenario import (
    BOUND,
    CLOSED,
    PARSED,
    SYNC,
    FakeBackend,
    FakeClient,
    World,
    bind,
    copy_data,
    done,
    error,
    execute,
    parse,
    query,
    ready,
    reap,
    row,
    selected,
    unit,
)
from txproxy.core import release
from txproxy.wire.encode import message

BEGUN = (PARSED, BOUND, done("BEGIN"), CLOSED)
AGAIN = "P :BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE"


def scene(**settings: object) -> tuple[World, FakeClient, FakeBackend]:
    world = World(deferred_begin=True, **settings)
    world.pool.watch.isolation = "read committed"
    world.pool.watch.read_only = "off"
    client = world.client()
    [backend] = world.pool.idle
    assert isinstance(backend.port, FakeBackend)
    return world, client, backend.port


def reads(client: FakeClient, backend: FakeBackend, begin: str = "BEGIN") -> None:
    """A transaction in which something was read."""
    client.sends(query(begin), query("SELECT 1"))
    backend.says(*BEGUN, selected("1", "T"))
    client.got()
    backend.got()


def looks(world: World, seconds: float = 0.2) -> bool:
    """Whether anybody is asked about, after so long."""
    world.sleeps(seconds)
    release.look(world.pool, world.now)
    return bool(world.asked_about)


def sleeps(world: World) -> None:
    """Long enough to be asked about."""
    assert looks(world)


def is_kept(world: World, client: FakeClient, why: str) -> None:
    """Nobody asks, and people are told why."""
    assert not looks(world)
    assert why in release.why_held(client.session)


def test_it_is_released_and_goes_on() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    world.answers()
    assert backend.got() == ["Q COMMIT"]
    assert client.state == "BEGUN"
    backend.says(done("COMMIT"), ready())
    assert backend.is_idle()
    assert client.got() == []
    client.sends(query("SELECT 2"))
    assert backend.got() == [AGAIN, "B :", "E", "C P:", "Q SELECT 2"]
    backend.says(*BEGUN, selected("2", "T"))
    assert client.got()[-1] == "Z T"
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert client.got() == ["C COMMIT", "Z I"]
    assert world.pool.stats.released == world.pool.stats.begun_again == 1


@pytest.mark.parametrize(("end", "tag"), [("COMMIT", "COMMIT"), ("ROLLBACK", "ROLLBACK")])
def test_it_ends_without_a_backend(end: str, tag: str) -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    world.answers()
    backend.says(done("COMMIT"), ready())
    backend.got()
    client.sends(query(end))
    assert client.got() == [f"C {tag}", "Z I"]
    assert client.state == "NONE"
    assert backend.got() == []


def test_in_the_extended_protocol() -> None:
    world, client, backend = scene()
    client.sends(query("BEGIN"), unit("SELECT 1"))
    backend.says(*BEGUN, PARSED, BOUND, row("1"), done("SELECT 1"), ready("T"))
    client.got()
    backend.got()
    assert not looks(world)
    assert backend.got() == ["C P:", "S"]  # its portal holds a snapshot
    backend.says(CLOSED, ready("T"))
    sleeps(world)
    assert world.asked_about[0].texts == [b"SELECT 1"]
    world.answers()
    backend.got()
    backend.says(done("COMMIT"), ready())
    assert client.got() == []
    client.sends(unit("SELECT 2"))
    assert backend.got() == [AGAIN, "B :", "E", "C P:", "P :SELECT 2", "B :", "E", "S"]


def test_who_speaks_while_its_portal_is_closed_goes_on() -> None:
    world, client, backend = scene()
    client.sends(query("BEGIN"), unit("SELECT 1"))
    backend.says(*BEGUN, PARSED, BOUND, row("1"), done("SELECT 1"), ready("T"))
    client.got()
    backend.got()
    assert not looks(world)
    client.sends(unit("SELECT 2"))
    assert backend.got() == ["C P:", "S", "P :SELECT 2", "B :", "E", "S"]
    backend.says(CLOSED, ready("T"), PARSED, BOUND, row("2"), done("SELECT 1"), ready("T"))
    assert client.got() == ["1", "2", "D 2", "C SELECT 1", "Z T"]


def test_it_is_released_again() -> None:
    world, client, backend = scene()
    reads(client, backend)
    for _ in range(3):
        sleeps(world)
        world.answers()
        backend.says(done("COMMIT"), ready())
        client.sends(query("SELECT 1"))
        backend.says(*BEGUN, selected("1", "T"))
    assert world.pool.stats.released == 3


def test_who_is_refused_is_not_asked_about_again() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    world.answers("it has written")
    assert client.state == "OPEN"
    assert backend.got() == []
    is_kept(world, client, "it has written")
    client.sends(query("SELECT 2"))
    backend.says(selected("2", "T"))
    assert looks(world)
    assert world.pool.stats.releases_refused == 1


def test_who_speaks_meanwhile_goes_on() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    client.sends(query("INSERT INTO t VALUES (1)"))
    world.answers()
    assert backend.got() == ["Q INSERT INTO t VALUES (1)"]
    backend.says(done("INSERT 0 1"), ready("T"))
    assert client.got() == ["C INSERT 0 1", "Z T"]
    assert client.state == "OPEN"


def test_who_has_spoken_meanwhile_is_asked_about_anew() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    client.sends(query("INSERT INTO t VALUES (1)"))
    backend.says(done("INSERT 0 1"), ready("T"))
    world.answers()
    assert client.state == "OPEN"


def test_who_speaks_while_it_commits_waits() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    world.answers()
    client.sends(query("SELECT 2"))
    assert backend.got() == ["Q COMMIT"]
    backend.says(done("COMMIT"), ready())
    assert backend.got()[-1] == "Q SELECT 2"
    backend.says(*BEGUN, selected("2", "T"))
    assert client.got()[-2:] == ["C SELECT 1", "Z T"]


def test_a_commit_that_fails_costs_the_backend_and_nobody_else() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    world.answers()
    backend.says(error("40001"), ready())
    assert backend.finished
    client.sends(query("SELECT 2"))
    another = world.connects()
    assert another.got()[-1] == "Q SELECT 2"
    another.says(*BEGUN, selected("2", "T"))
    assert client.got()[-1] == "Z T"


def test_a_backend_that_dies_while_it_commits_too() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    world.answers()
    backend.dies()
    assert client.got() == []
    client.sends(query("COMMIT"))
    assert client.got() == ["C COMMIT", "Z I"]


def test_a_backend_that_dies_while_it_is_asked_about() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    backend.dies()
    world.answers()
    client.sends(query("SELECT 2"))
    assert client.got() == ["E ERROR 08006", "Z E"]


def test_a_client_that_leaves_meanwhile() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    client.leaves()
    world.answers()
    assert backend.got() == ["Q ROLLBACK"]


def test_sooner_while_somebody_waits() -> None:
    world, client, backend = scene(pool_size=1)
    reads(client, backend)
    other = world.new_client()
    other.session.login()
    assert not looks(world, 0.02)
    other.sends(query("SELECT 'other'"))
    assert looks(world, 0.02)
    world.answers()
    backend.says(done("COMMIT"), ready())
    assert backend.got() == ["Q COMMIT", "Q SELECT 'other'"]


def test_the_server_is_left_in_peace_between_questions() -> None:
    world, client, backend = scene()
    reads(client, backend)
    sleeps(world)
    world.answers("no", took=0.1)
    client.sends(query("SELECT 2"))
    backend.says(selected("2", "T"))
    assert not looks(world, 1.0)
    assert looks(world, 1.0)


def test_report_only_counts() -> None:
    world, client, backend = scene(early_release="report")
    reads(client, backend)
    sleeps(world)
    world.answers()
    assert client.state == "OPEN"
    assert backend.got() == []
    assert not looks(world)
    assert world.pool.stats.would_release == 1


def test_off_asks_nobody() -> None:
    world, client, backend = scene(early_release="off")
    reads(client, backend)
    is_kept(world, client, "early_release is off")


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        ("BEGIN", "READ WRITE"),
        ("BEGIN READ ONLY", "READ ONLY"),
        ("BEGIN ISOLATION LEVEL READ COMMITTED", "READ WRITE"),
        ("begin isolation  level read\ncommitted read only", "READ ONLY"),
        ("START TRANSACTION READ WRITE, NOT DEFERRABLE", "READ WRITE"),
        ("BEGIN /* read only */", "READ WRITE"),
        ("BEGIN -- isolation level serializable", "READ WRITE"),
        ("BEGIN ISOLATION LEVEL /* */ READ COMMITTED READ /* write */ ONLY", "READ ONLY"),
    ],
)
def test_its_terms_stay(begin: str, again: str) -> None:
    world, client, backend = scene()
    reads(client, backend, begin)
    sleeps(world)
    world.answers()
    backend.says(done("COMMIT"), ready())
    backend.got()
    client.sends(query("SELECT 2"))
    assert backend.got()[0] == f"P :BEGIN ISOLATION LEVEL READ COMMITTED, {again}"


@pytest.mark.parametrize(
    "begin",
    [
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "BEGIN ISOLATION LEVEL READ UNCOMMITTED",
        "BEGIN ISOLATION LEVEL READ COMMITTED ISOLATION LEVEL SERIALIZABLE",
        "BEGIN READ ONLY READ WRITE",
        "BEGIN ISOLATION LEVEL SERIALIZABLE /* isolation level read committed */",
    ],
)
def test_other_terms_are_not_released(begin: str) -> None:
    world, client, backend = scene()
    reads(client, backend, begin)
    sleeps(world)
    world.answers()
    assert backend.got() == []
    assert client.state == "OPEN"


@pytest.mark.parametrize("isolation", ["serializable", "repeatable read", ""])
def test_a_default_of_other_terms(isolation: str) -> None:
    world, client, backend = scene()
    world.pool.watch.isolation = isolation
    reads(client, backend)
    sleeps(world)
    world.answers()
    assert client.state == "OPEN"
    assert backend.got() == []


def test_what_has_not_begun_by_itself_is_kept() -> None:
    world, client, backend = scene()
    client.sends(query("BEGIN; SELECT 1"))
    backend.says(done("BEGIN"), selected("1", "T"))
    is_kept(world, client, release.NO_BEGIN)


def test_what_begins_on_the_server_is_kept_though_one_was_deferred_before() -> None:
    """A transaction that was reaped has said what the next one begins without."""
    world, client, backend = scene()
    reads(client, backend)
    reap(world, client, backend)
    client.sends(query("ROLLBACK"))
    client.got()
    client.sends(query("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1"))
    backend.says(done("BEGIN"), selected("1", "T"))
    is_kept(world, client, release.NO_BEGIN)


def test_what_was_begun_by_and_chain_is_kept() -> None:
    world, client, backend = scene()
    reads(client, backend)
    client.sends(query("COMMIT AND CHAIN"))
    backend.says(done("COMMIT"), ready("T"))
    is_kept(world, client, release.NO_BEGIN)


def test_a_failed_transaction_is_no_matter_of_this() -> None:
    world, client, backend = scene()
    reads(client, backend)
    client.sends(query("SAVEPOINT s"))
    backend.says(done("SAVEPOINT"), ready("T"))
    client.sends(query("SELECT 1/0"))
    backend.says(error("22012"), ready("E"))
    is_kept(world, client, "failed")


@pytest.mark.parametrize(
    "said",
    [
        (parse("SELECT 1"), bind(), SYNC),
        (parse("SELECT 1"), bind(portal="p"), execute("p"), SYNC),
        (parse("SELECT 1"), bind(portal="p"), bind(), execute(), SYNC),
        (parse("SELECT 1"), bind(), message(b"E", b"\0\0\0\0\2"), SYNC),
    ],
    ids=["not run", "named", "beside", "some rows"],
)
def test_a_portal_keeps_it(said: tuple[bytes, ...]) -> None:
    world, client, backend = scene()
    client.sends(query("BEGIN"), *said)
    backend.says(*BEGUN, PARSED)
    for sent in said[1:-1]:
        backend.says(BOUND if sent[:1] == b"B" else done("SELECT 1"))
    backend.says(ready("T"))
    is_kept(world, client, "portal")


def test_a_unit_without_sync_keeps_it() -> None:
    world, client, backend = scene()
    client.sends(query("BEGIN"), parse("SELECT 1"), message(b"H", b""))
    backend.says(*BEGUN, PARSED)
    world.sleeps(1)
    release.look(world.pool, world.now)
    assert not world.asked_about


def test_more_than_is_kept_of_it() -> None:
    world, client, backend = scene()
    reads(client, backend)
    for number in range(40):
        client.sends(query(f"SELECT {number}"))
        backend.says(selected("1", "T"))
    is_kept(world, client, "more than is kept")


def test_the_same_again_and_again_is_kept_once() -> None:
    world, client, backend = scene()
    reads(client, backend)
    for _ in range(100):
        client.sends(query("SELECT 1"))
        backend.says(selected("1", "T"))
    sleeps(world)
    assert world.asked_about[0].texts == [b"SELECT 1"]


def test_a_pinned_one_is_kept() -> None:
    world, client, backend = scene()
    reads(client, backend)
    client.sends(query("LOAD 'lib'"))
    backend.says(done("LOAD"), ready("T"))
    is_kept(world, client, "LOAD")


def test_the_next_statement_may_find_no_backend() -> None:
    world, client, backend = scene(pool_size=1, query_wait_timeout=1.0)
    reads(client, backend)
    other = world.new_client()
    other.session.login()
    sleeps(world)
    world.answers()
    backend.says(done("COMMIT"), ready())
    other.sends(query("SELECT pg_sleep(100)"))
    client.sends(query("SELECT 2"))
    world.sleeps(2)
    world.looks()
    assert client.got()[-2:] == ["E ERROR 53300", "Z E"]
    assert client.state == "FAILED"


def test_copy_data_is_not_a_read() -> None:
    world, client, backend = scene()
    client.sends(query("BEGIN"), query("COPY t FROM STDIN"))
    backend.says(*BEGUN, message(b"G", b"\0\0\0"))
    client.sends(copy_data("1\n"))
    assert not looks(world)
