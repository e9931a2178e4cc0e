"""Deferred BEGIN: what is answered here, what the server hears, and what if it refuses."""

import pytest

from tests.core.scenario import (
    BOUND,
    CLOSED,
    COLUMNS,
    PARSED,
    SYNC,
    FakeBackend,
    FakeClient,
    World,
    bind,
    close,
    describe,
    done,
    error,
    execute,
    parameter,
    parse,
    query,
    ready,
    row,
    selected,
    unit,
)

BEGUN = (PARSED, BOUND, done("BEGIN"), CLOSED)
AHEAD = ["P :BEGIN", "B :", "E", "C P:"]


def scene(**settings: object) -> tuple[World, FakeClient, FakeBackend]:
    world = World(deferred_begin=True, **settings)
    client = world.client()
    [backend] = world.pool.idle
    assert isinstance(backend.port, FakeBackend)
    return world, client, backend.port


@pytest.mark.parametrize(
    ("said", "tag"),
    [
        ("BEGIN", "BEGIN"),
        ("begin;", "BEGIN"),
        ("BEGIN WORK", "BEGIN"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE", "BEGIN"),
        ("/* app */ BEGIN -- now", "BEGIN"),
        ("START TRANSACTION READ WRITE", "START TRANSACTION"),
        ("start transaction;", "START TRANSACTION"),
    ],
)
def test_begin_is_answered_here(said: str, tag: str) -> None:
    world, client, backend = scene()
    client.sends(query(said))
    assert client.got() == [f"C {tag}", "Z T"]
    assert client.state == "BEGUN"
    assert backend.got() == []
    assert backend.is_idle()
    client.sends(query("SELECT 1"))
    assert backend.got() == [f"P :{said}", "B :", "E", "C P:", "Q SELECT 1"]
    backend.says(PARSED, BOUND, done(tag), CLOSED, selected("1", "T"))
    assert client.got() == ["T", "D 1", "C SELECT 1", "Z T"]
    assert client.state == "OPEN"
    assert world.pool.stats.begins_deferred == 1


@pytest.mark.parametrize("said", ["COMMIT", "END", "ROLLBACK", "ABORT", "commit;", "ROLLBACK WORK"])
def test_a_transaction_of_nothing_touches_no_backend(said: str) -> None:
    world, client, backend = scene()
    client.sends(query("BEGIN"))
    client.sends(query(said))
    tag = "COMMIT" if said.upper().startswith(("COMMIT", "END")) else "ROLLBACK"
    assert client.got() == ["C BEGIN", "Z T", f"C {tag}", "Z I"]
    assert (client.state, backend.got(), backend.is_idle()) == ("NONE", [], True)
    client.sends(query("SELECT 1"))
    assert backend.got() == ["Q SELECT 1"]
    assert world.pool.stats.begins_saved == 1


@pytest.mark.parametrize(
    ("said", "tag"), [("COMMIT AND CHAIN", "COMMIT"), ("ROLLBACK AND CHAIN", "ROLLBACK")]
)
def test_a_chain_keeps_the_options(said: str, tag: str) -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN READ ONLY"), query(said), query("SELECT 1"))
    assert client.got() == ["C BEGIN", "Z T", f"C {tag}", "Z T"]
    assert backend.got() == ["P :BEGIN READ ONLY", "B :", "E", "C P:", "Q SELECT 1"]


@pytest.mark.parametrize(
    "said",
    [
        "BEGIN; SELECT 1",
        "BEGIN ISOLATION LEVEL BOGUS",
        "BEGIN; BEGIN",
        "START",
        "BEGIN /* " + "x" * 2000 + " */",
    ],
)
def test_what_is_not_a_plain_begin_is_forwarded(said: str) -> None:
    _, client, backend = scene()
    client.sends(query(said))
    assert client.got() == []
    assert backend.got() == [f"Q {said}"]


@pytest.mark.parametrize(
    "said",
    [
        "BEGIN",
        "SAVEPOINT a",
        "SET TRANSACTION READ ONLY",
        "PREPARE TRANSACTION 'x'",
        "COMMIT PREPARED 'x'",
        "COMMIT; SELECT 1",
        "SELECT 1; COMMIT",
        "",
    ],
)
def test_all_else_goes_behind_the_begin(said: str) -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN"))
    client.got()
    client.sends(query(said))
    assert client.got() == []
    assert backend.got() == [*AHEAD, f"Q {said}".rstrip()]


def test_nothing_is_deferred_while_an_answer_is_owed() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 1"), query("BEGIN"))
    assert client.got() == []
    assert backend.got() == ["Q SELECT 1", "Q BEGIN"]


def test_off_means_off() -> None:
    world = World(deferred_begin=False)
    client = world.client()
    client.sends(query("BEGIN"))
    assert client.got() == []


WHOLE_UNITS = [
    (parse("BEGIN"), bind(), execute(), SYNC),
    (parse("BEGIN"), bind(), describe("", "P"), execute(), SYNC),
    (parse("BEGIN"), describe(), bind(), execute(), close("", "P"), SYNC),
]


@pytest.mark.parametrize("messages", WHOLE_UNITS)
def test_a_whole_unit_of_begin_is_answered_here(messages: tuple[bytes, ...]) -> None:
    _, client, backend = scene()
    client.sends(*messages)
    told = {b"P": ["1"], b"B": ["2"], b"E": ["C BEGIN"], b"S": ["Z T"], b"C": ["3"]}
    expected = []
    for each in messages:
        described = ["t", "n"] if each[5:6] == b"S" else ["n"]
        expected += told.get(each[:1], described)
    assert client.got() == expected
    assert (client.state, backend.got()) == ("BEGUN", [])
    client.sends(unit("SELECT 1"))
    assert backend.got() == [*AHEAD[:3], "P :SELECT 1", "B :", "E", "S"]
    backend.says(*BEGUN[:3], PARSED, BOUND, row("1"), done("SELECT 1"), ready("T"))
    assert client.got() == ["1", "2", "D 1", "C SELECT 1", "Z T"]
    client.sends(unit("COMMIT"))
    assert backend.got() == ["P :COMMIT", "B :", "E", "S"]


def test_begin_and_commit_as_units() -> None:
    _, client, backend = scene()
    client.sends(unit("BEGIN"), unit("COMMIT"), unit("SELECT 1"))
    assert client.got() == ["1", "2", "C BEGIN", "Z T", "1", "2", "C COMMIT", "Z I"]
    assert backend.got() == ["P :SELECT 1", "B :", "E", "S"]


@pytest.mark.parametrize(
    "messages",
    [
        (parse("BEGIN"), bind(), execute(), parse("SELECT 1"), bind(), execute(), SYNC),
        (parse("BEGIN", "name"), bind("name"), execute(), SYNC),
        (parse("BEGIN"), bind(), execute()),
        (parse("BEGIN"), bind("", "portal"), execute("portal"), SYNC),
        (parse("BEGIN"), SYNC),
        (parse("BEGIN"), bind(), execute(), execute(), SYNC),
        (parse("BEGIN"), describe("other"), bind(), execute(), SYNC),
    ],
)
def test_a_unit_that_is_more_or_less_than_a_begin_is_forwarded(messages: tuple[bytes, ...]) -> None:
    _, client, backend = scene()
    client.sends(*messages)
    assert client.got() == []
    assert len(backend.got()) == len(messages)


@pytest.mark.parametrize("cut", range(1, len(unit("BEGIN"))))
def test_a_unit_that_comes_in_two_pieces_is_right_either_way(cut: int) -> None:
    _, client, backend = scene()
    whole = unit("BEGIN")
    client.sends(whole[:cut])
    client.sends(whole[cut:])
    heard = backend.got()
    if heard:
        assert heard == ["P :BEGIN", "B :", "E", "S"]
        backend.says(PARSED, BOUND, done("BEGIN"), ready("T"))
    assert client.got() == ["1", "2", "C BEGIN", "Z T"]


# The server refuses.


def test_a_begin_that_fails_takes_the_query_with_it() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN READ WRITE"))
    client.sends(query("INSERT 1"))
    assert client.got() == ["C BEGIN", "Z T"]
    assert backend.got() == ["P :BEGIN READ WRITE", "B :", "E", "C P:", "Q INSERT 1"]
    backend.says(PARSED, BOUND, error("25006"))
    assert backend.got() == ["S"]
    backend.says(ready("I"))
    assert client.got() == ["E ERROR 25006", "Z E"]
    assert client.state == "FAILED"
    assert backend.is_idle()
    client.sends(query("SELECT 1"))
    assert client.got() == ["E ERROR 25P02", "Z E"]
    client.sends(query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert backend.got() == []


def test_a_begin_that_fails_takes_the_unit_with_it() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN"), unit("INSERT 1"))
    backend.got()
    backend.says(error("25006"), ready("I"))
    assert backend.got() == []
    assert client.got() == ["C BEGIN", "Z T", "E ERROR 25006", "Z E"]
    assert client.state == "FAILED"
    assert backend.is_idle()


def test_a_begin_that_fails_in_a_unit_without_sync() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN"), parse("SELECT 1"))
    backend.says(error("25006"))
    assert client.got() == ["C BEGIN", "Z T", "E ERROR 25006"]
    client.sends(bind(), execute(), SYNC)
    assert backend.got() == [*AHEAD, "P :SELECT 1", "B :", "E", "S"]
    backend.says(ready("I"))
    assert client.got() == ["Z E"]
    assert client.state == "FAILED"


def test_nothing_goes_behind_a_begin_that_may_fail() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN"), query("INSERT 1"), query("INSERT 2"), query("COMMIT"))
    assert backend.got() == [*AHEAD, "Q INSERT 1"]
    backend.says(error("25006"))
    backend.says(ready("I"))
    assert backend.got() == ["S"]
    assert client.got() == [
        "C BEGIN", "Z T", "E ERROR 25006", "Z E", "E ERROR 25P02", "Z E", "C ROLLBACK", "Z I",
    ]  # fmt: skip


def test_nothing_goes_behind_it_while_it_may_fail_and_then_it_does() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN"), query("INSERT 1"), query("COMMIT"))
    assert backend.got() == [*AHEAD, "Q INSERT 1"]
    backend.says(*BEGUN, done("INSERT 0 1"), ready("T"))
    assert backend.got() == ["Q COMMIT"]
    backend.says(done("COMMIT"), ready("I"))
    assert client.got() == ["C BEGIN", "Z T", "C INSERT 0 1", "Z T", "C COMMIT", "Z I"]
    assert backend.is_idle()


# Losing the backend, waiting, being cancelled, sleeping, leaving.


def test_the_backend_dies_with_the_begin_on_its_way() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN"), query("INSERT 1"))
    client.got()
    backend.dies()
    assert client.got() == ["E ERROR 08006", "Z E"]
    assert client.state == "FAILED"


def test_no_backend_in_time() -> None:
    world = World(deferred_begin=True, pool_size=1, query_wait_timeout=1.0)
    first, second = world.client(), world.client()
    first.sends(query("SELECT 1"))
    second.sends(query("BEGIN"), query("SELECT 2"))
    assert second.got() == ["C BEGIN", "Z T"]
    world.now += 2
    world.looks()
    assert second.got() == ["E ERROR 53300", "Z E"]
    assert second.state == "FAILED"


def test_a_cancel_in_the_queue() -> None:
    from txproxy.core import endings

    world = World(deferred_begin=True, pool_size=1)
    first, second = world.client(), world.client()
    first.sends(query("SELECT 1"))
    second.sends(query("BEGIN"), query("SELECT 2"))
    endings.cancel(second.session)
    assert second.got() == ["C BEGIN", "Z T", "E ERROR 57014", "Z E"]
    second.sends(query("ROLLBACK"))
    assert second.got() == ["C ROLLBACK", "Z I"]


def test_a_cancel_that_hits_the_begin() -> None:
    from txproxy.core import endings

    _, client, backend = scene()
    client.sends(query("BEGIN"), query("INSERT 1"))
    endings.cancel(client.session)
    assert backend.cancels == 1
    backend.says(error("57014"))
    backend.says(ready("I"))
    assert client.got() == ["C BEGIN", "Z T", "E ERROR 57014", "Z E"]
    assert not backend.is_idle()
    backend.reads_cancel()
    assert backend.is_idle()


def test_nobody_is_reaped_in_begun() -> None:
    world, client, backend = scene(idle_transaction_timeout=1.0)
    client.sends(query("BEGIN"))
    world.now += 100
    world.looks()
    world.looks()
    assert client.got() == ["C BEGIN", "Z T"]
    client.sends(query("SELECT 1"))
    assert backend.got() == [*AHEAD, "Q SELECT 1"]


def test_reaping_after_the_first_statement() -> None:
    world, client, backend = scene(idle_transaction_timeout=1.0)
    client.sends(query("BEGIN"), query("SELECT 1"))
    backend.says(*BEGUN, selected("1", "T"))
    client.got()
    backend.got()
    world.now += 2
    world.looks()
    world.looks()
    assert client.state == "REAPED"
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready("I"))
    client.sends(query("BEGIN"))
    assert client.got() == ["E ERROR 25P03", "Z E"]


def test_a_client_leaves_with_the_begin_on_its_way() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN"), query("SELECT 1"))
    client.leaves()
    assert backend.cancels == 1
    backend.says(*BEGUN, error("57014"), ready("E"))
    backend.reads_cancel()
    assert backend.got()[-1] == "Q ROLLBACK"
    backend.says(done("ROLLBACK"), ready("I"))
    assert backend.is_idle()


def test_a_client_leaves_and_the_begin_fails() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN"), query("SELECT 1"))
    client.leaves()
    backend.reads_cancel()
    backend.got()
    backend.says(error("57014"))
    assert backend.got() == ["S"]
    backend.says(ready("I"))
    assert backend.is_idle()


def test_settings_and_begin_and_statement_in_one_write() -> None:
    world, client, _ = scene()
    other = world.client(timezone="Asia/Tokyo")
    (backend,) = world.pool.idle
    assert isinstance(backend.port, FakeBackend)
    port = backend.port
    port.got()
    client.sends(query("BEGIN"), query("SELECT 1"))
    writes = len(port.writes)
    assert writes == 1
    heard = port.got()
    assert heard[-5:] == [*AHEAD, "Q SELECT 1"]
    assert len(heard) == 6
    assert "RESET timezone" in heard[0]
    port.says(
        done("RESET"), parameter("TimeZone", "UTC"), ready(), *BEGUN, COLUMNS, row("1"),
        done("SELECT 1"), ready("T"),
    )  # fmt: skip
    assert client.got() == ["C BEGIN", "Z T", "T", "D 1", "C SELECT 1", "Z T"]
    assert other.got() == []


def test_a_unit_of_ours_that_fails_leaves_the_begin_as_it_was() -> None:
    _, client, backend = scene()
    client.sends(query("BEGIN READ ONLY"))
    client.sends(unit("SET txproxy.idle_transaction_timeout = 'soon'"))
    assert client.got() == ["C BEGIN", "Z T", "1", "2", "E ERROR 22023", "Z T"]
    client.sends(query("SELECT 1"))
    assert backend.got()[0] == "P :BEGIN READ ONLY"
