"""Prepared statements in transaction mode: under names of ours, on whichever backend comes next."""

import re

import pytest

from tests.core.scenario import (
    BOUND,
    CLOSED,
    COLUMNS,
    FLUSH,
    NO_PARAMETERS,
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
    kept,
    parse,
    query,
    ready,
    row,
    scene,
    selected,
)
from txproxy.wire import encode
from txproxy.wire.encode import message

CHANGED = encode.error("ERROR", "0A000", "result type", routine="RevalidateCachedQuery")
OTHER_COLUMNS = encode.row_description("y")
RUN = [bind("s"), execute(), SYNC]


def said(backend: FakeBackend) -> list[str]:
    """What the backend was sent; the numbers in names of ours in the order in which they come."""
    known: dict[str, str] = {}
    return [
        re.sub(
            r"txproxy_\d+", lambda name: known.setdefault(name[0], f"t{len(known) + 1}"), message
        )
        for message in backend.got()
    ]


def two_backends() -> tuple[World, FakeClient, FakeBackend, FakeBackend]:
    """A client, the backend that it will be lent now, and another one."""
    world, client, first = scene()
    other = world.client()
    client.sends(query("BEGIN"))
    other.sends(query("SELECT 1"))
    second = world.connects()
    second.says(selected("1"))
    first.says(done("BEGIN"), ready("T"))
    client.sends(query("COMMIT"))
    first.says(done("COMMIT"), ready())
    for each in (client, other, first, second):
        each.got()
    return world, client, first, second


def prepares(client: FakeClient, backend: FakeBackend, sql: str = "SELECT 'x'") -> None:
    """The client prepares a statement s, on this backend, which has it not."""
    client.sends(parse(sql, "s"), SYNC)
    assert said(backend) == [f"P t1:{sql}", "S"]
    backend.says(PARSED, ready())
    assert client.got() == ["1", "Z I"]


def moved(client: FakeClient, first: FakeBackend, world: World) -> None:
    """Somebody else takes the first backend, so that the client is lent another one."""
    other = world.client()
    other.sends(query("BEGIN"))
    first.says(done("BEGIN"), ready("T"))
    first.got()
    assert client.session.backend is None


# Names.


def test_a_name_is_ours_on_the_backend_and_the_clients_to_the_client() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    assert backend.is_idle()
    client.sends(bind("s"), describe("", "P"), execute(), SYNC)
    assert said(backend) == ["B :t1", "D P:", "E", "S"]
    backend.says(BOUND, COLUMNS, row("x"), done("SELECT 1"), ready())
    assert client.got() == ["2", "T", "D x", "C SELECT 1", "Z I"]
    assert backend.is_idle()


def test_a_backend_that_lacks_it_gets_it_first() -> None:
    world, client, first, second = two_backends()
    prepares(client, first)
    moved(client, first, world)
    client.sends(*RUN)
    assert said(second) == ["P t1:SELECT 'x'", "B :t1", "E", "S"]
    second.says(PARSED, BOUND, row("x"), done("SELECT 1"), ready())
    assert client.got() == ["2", "D x", "C SELECT 1", "Z I"]
    client.sends(*RUN)
    assert said(second) == ["B :t1", "E", "S"]


def test_what_another_client_has_prepared_is_not_parsed_again() -> None:
    world, client, backend = scene()
    prepares(client, backend)
    other = world.client()
    other.sends(parse("SELECT 'x'", "other"), bind("other"), execute(), SYNC)
    assert said(backend) == ["C S:txproxy", "B :t1", "E", "S"]
    backend.says(CLOSED, BOUND, row("x"), done("SELECT 1"), ready())
    assert other.got() == ["1", "2", "D x", "C SELECT 1", "Z I"]


@pytest.mark.parametrize("setting", ["datestyle", "search_path"])
def test_the_same_text_under_other_settings_is_another_statement(setting: str) -> None:
    world, client, backend = scene()
    prepares(client, backend)
    other = world.client(**{setting: "x"})
    other.sends(parse("SELECT 'x'", "s"), SYNC)
    assert said(backend)[-2:] == ["P t1:SELECT 'x'", "S"]


def test_the_name_of_an_application_makes_no_other_statement() -> None:
    world, client, backend = scene()
    prepares(client, backend)
    other = world.client(application_name="x")
    other.sends(parse("SELECT 'x'", "s"), SYNC)
    assert said(backend)[-2:] == ["C S:txproxy", "S"]


def test_what_is_prepared_under_settings_of_the_transaction_is_its_own() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(query("BEGIN"))
    backend.says(done("BEGIN"), ready("T"))
    client.sends(query("SET LOCAL datestyle = 'x'"))
    backend.says(done("SET"), ready("T"))
    backend.got()
    client.sends(parse("SELECT 'x'", "mine"), SYNC)
    assert said(backend) == ["P t1:SELECT 'x'", "S"]


def test_parameter_types_make_another_statement() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    typed = message(b"P", b"u\0SELECT 'x'\0\0\1\0\0\0\x17")
    client.sends(typed, SYNC)
    assert said(backend) == ["P t1:SELECT 'x'", "S"]


def test_closing_frees_the_name_and_leaves_the_statement_to_others() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(close("s"), parse("SELECT 2", "s"), SYNC)
    assert said(backend) == ["C S:txproxy", "P t1:SELECT 2", "S"]
    backend.says(CLOSED, PARSED, ready())
    assert client.got() == ["3", "1", "Z I"]
    client.sends(parse("SELECT 'x'", "again"), SYNC)
    assert said(backend) == ["C S:txproxy", "S"]


def test_a_name_that_is_taken_is_refused_and_the_unit_is_skipped() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(parse("SELECT 2", "s"), *RUN)
    assert said(backend) == ["D S:txproxy", "B :t1", "E", "S"]
    backend.says(error("26000"), ready())
    assert client.got() == ["E ERROR 42P05", "Z I"]
    assert client.error["M"] == 'prepared statement "s" already exists'
    client.sends(*RUN)
    assert said(backend) == ["B :t1", "E", "S"]


def test_an_unknown_name_gets_the_servers_own_error() -> None:
    _, client, backend = scene()
    client.sends(bind("nobody"), execute(), SYNC)
    assert backend.got() == ["B :nobody", "E", "S"]
    backend.says(error("26000"), ready())
    assert client.got() == ["E ERROR 26000", "Z I"]
    assert backend.is_idle()


@pytest.mark.parametrize("refers", [bind("txproxy_1"), describe("txproxy_1")])
def test_a_name_of_ours_is_nobodys(refers: bytes) -> None:
    world, client, backend = scene()
    prepares(client, backend)
    other = world.client()
    other.sends(refers, SYNC)
    assert said(backend) == ["D S:txproxy", "S"]
    backend.says(error("26000"), ready())
    assert other.got() == ["E ERROR 26000", "Z I"]
    assert other.error["M"] == 'prepared statement "txproxy_1" does not exist'


# Errors.


def test_a_parse_that_fails_leaves_no_trace() -> None:
    _, client, backend = scene()
    client.sends(parse("SELEC", "s"), *RUN)
    backend.says(error("42601"), ready())
    assert client.got() == ["E ERROR 42601", "Z I"]
    backend.got()
    client.sends(parse("SELEC", "s"), SYNC)
    assert said(backend) == ["P t1:SELEC", "S"]


def test_what_the_server_skips_has_not_happened() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(parse("SELEC"), close("s"), parse("SELECT 3", "three"), SYNC)
    backend.says(error("42601"), ready())
    assert client.got() == ["E ERROR 42601", "Z I"]
    backend.got()
    client.sends(bind("s"), execute(), parse("SELECT 3", "three"), SYNC)
    assert said(backend) == ["B :t1", "E", "P t2:SELECT 3", "S"]


def test_units_behind_one_that_failed_keep_what_they_did() -> None:
    _, client, backend = scene()
    client.sends(parse("SELEC", "a"), SYNC, parse("SELECT 'x'", "a"), SYNC, bind("a"), SYNC)
    assert said(backend) == ["P t1:SELEC", "S"]
    backend.says(error("42601"), ready())
    assert said(backend) == ["P t1:SELECT 'x'", "S"]
    backend.says(PARSED, ready())
    assert client.got() == ["E ERROR 42601", "Z I", "1", "Z I"]
    assert said(backend) == ["B :t1", "S"]


def test_a_parse_behind_another_unit_may_be_in_a_failed_transaction() -> None:
    """So the server gets a Parse of it, though it has it."""
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(query("BEGIN"), query("SELECT 1/0"), parse("SELECT 'x'", "again"), SYNC)
    assert said(backend)[-3:] == ["C S:t1", "P t1:SELECT 'x'", "S"]


def test_what_may_discard_statements_holds_those_behind_it() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(parse("DEALLOCATE ALL"), bind(), execute(), bind("s"), execute(), SYNC)
    assert said(backend)[-1] == "H"
    backend.says(PARSED, BOUND, done("DEALLOCATE ALL"))
    assert client.got() == ["1", "2", "C DEALLOCATE ALL"]
    assert said(backend) == ["B :s", "E", "S"]  # a name that only the server may know
    client.sends(query("DISCARD ALL"), *RUN)
    backend.got()
    backend.says(error("26000"), ready())
    assert said(backend) == ["Q DISCARD ALL"]


def test_a_parse_ahead_of_a_bind_that_fails_is_the_binds_error() -> None:
    world, client, first, second = two_backends()
    prepares(client, first)
    moved(client, first, world)
    client.sends(*RUN)
    second.says(error("42P01"), ready())
    assert client.got() == ["E ERROR 42P01", "Z I"]
    second.got()
    client.sends(*RUN)
    assert said(second)[0] == "P t1:SELECT 'x'"


def test_a_backend_that_is_lost_takes_back_what_was_not_answered() -> None:
    world, client, backend = scene()
    client.sends(parse("SELECT 'x'", "s"), SYNC)
    backend.dies()
    assert client.got() == ["E ERROR 08006", "Z I"]
    client.sends(parse("SELECT 'x'", "s"), SYNC)
    fresh = world.connects()
    assert said(fresh) == ["P t1:SELECT 'x'", "S"]


def test_in_a_failed_transaction_a_parse_fails() -> None:
    world, client, backend = scene()
    prepares(client, backend)
    other = world.client()
    other.sends(query("BEGIN"))
    backend.says(done("BEGIN"), ready("T"))
    other.sends(query("SELEC"))
    backend.says(error("42601"), ready("E"))
    other.got()
    backend.got()
    other.sends(parse("SELECT 'x'", "s"), SYNC)
    assert said(backend) == ["C S:t1", "P t1:SELECT 'x'", "S"]
    backend.says(CLOSED, error("25P02"), ready("E"))
    assert other.got() == ["E ERROR 25P02", "Z E"]


# The unnamed statement.


def test_the_unnamed_statement_outlives_its_transaction() -> None:
    world, client, first, second = two_backends()
    client.sends(parse("SELECT 'x'"), SYNC)
    first.says(PARSED, ready())
    assert client.got() == ["1", "Z I"]
    moved(client, first, world)
    client.sends(bind(), execute(), SYNC)
    assert second.got() == ["P :SELECT 'x'", "B :", "E", "S"]
    second.says(PARSED, BOUND, row("x"), done("SELECT 1"), ready())
    assert client.got() == ["2", "D x", "C SELECT 1", "Z I"]
    client.sends(bind(), execute(), SYNC)
    assert second.got() == ["B :", "E", "S"]


def test_on_the_same_backend_somebody_elses_has_taken_its_place() -> None:
    world, client, backend = scene()
    client.sends(parse("SELECT 'x'"), SYNC)
    backend.says(PARSED, ready())
    world.client().sends(parse("SELECT 2"), SYNC)
    backend.says(PARSED, ready())
    backend.got()
    client.sends(describe(), SYNC)
    assert backend.got() == ["P :SELECT 'x'", "D S:", "S"]


@pytest.mark.parametrize(
    "ends",
    [query("SELECT 1"), close() + SYNC, parse("SELECT nothing()") + SYNC],
    ids=["Query", "Close", "no"],
)
def test_what_ends_the_unnamed_statement(ends: bytes) -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT 'x'"), SYNC)
    backend.says(PARSED, ready())
    client.sends(ends)
    answers = {0x51: [selected("1")], 0x43: [CLOSED, ready()], 0x50: [error("42601"), ready()]}
    backend.says(*answers[ends[0]])
    client.got()
    backend.got()
    client.sends(bind(), execute(), SYNC)
    assert backend.got() == ["D S:txproxy", "E", "S"]
    backend.says(error("26000"), ready())
    assert client.got() == ["E ERROR 26000", "Z I"]
    assert client.error["M"] == "unnamed prepared statement does not exist"


# A backend's statements.


def test_the_one_that_was_not_used_for_longest_is_closed_when_there_are_too_many() -> None:
    _, client, backend = scene()
    filler = "-" * 60_000
    for number in range(66):
        client.sends(parse(f"SELECT {number} --{filler}", f"s{number}"), SYNC)
        sent = said(backend)
        if len(sent) > 2:
            break
        backend.says(PARSED, ready())
        client.got()
        client.sends(bind("s0"), execute(), SYNC)
        assert len(backend.got()) == 3
        backend.says(BOUND, done("SELECT 0"), ready())
        client.got()
    assert [each[0] for each in sent] == ["P", "C", "S"]
    backend.says(PARSED, CLOSED, ready())
    assert client.got() == ["1", "Z I"]
    client.sends(bind("s0"), execute(), SYNC)
    assert [each[0] for each in said(backend)] == ["B", "E", "S"]
    backend.says(BOUND, done("SELECT 0"), ready())
    client.got()
    client.sends(bind("s1"), execute(), SYNC)
    assert [each[0] for each in said(backend)][:2] == ["P", "C"]


def test_a_backend_that_was_reset_has_none() -> None:
    world, client, backend = scene()
    prepares(client, backend)
    other = world.client()
    other.sends(query("CREATE TEMP TABLE t (x int)"))
    backend.says(done("CREATE TABLE"), ready())
    backend.says(kept(("temporary table", "", "")))
    other.leaves()
    backend.says(done("RESET"), ready(), done("DISCARD ALL"), ready())
    backend.got()
    client.sends(*RUN)
    assert said(backend) == ["P t1:SELECT 'x'", "B :t1", "E", "S"]


# DEALLOCATE and DISCARD.


def test_deallocate_is_answered_here() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(query("DEALLOCATE s"))
    assert client.got() == ["C DEALLOCATE", "Z I"]
    assert backend.got() == []
    client.sends(query("DEALLOCATE s"))
    assert backend.got() == ["Q DEALLOCATE s"]


def test_deallocate_waits_for_its_turn() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(query("SELECT 'x'"), query("DEALLOCATE s"))
    backend.says(selected("x"))
    assert client.got() == ["T", "D x", "C SELECT 1", "Z I", "C DEALLOCATE", "Z I"]


def test_deallocate_in_the_extended_protocol_is_of_another() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(parse("DEALLOCATE s"), bind(), execute(), SYNC)
    assert said(backend) == ["P t1:", "P :DEALLOCATE t1", "B :", "E", "S"]
    backend.says(PARSED, PARSED, BOUND, done("DEALLOCATE"), ready())
    assert client.got() == ["1", "2", "C DEALLOCATE", "Z I"]
    client.sends(bind("s"), SYNC)
    assert backend.got() == ["B :s", "S"]


@pytest.mark.parametrize("sql", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_all_names_go(sql: str) -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(query(sql))
    backend.says(done(sql), ready())
    backend.got()
    client.sends(parse("SELECT 'x'", "s"), SYNC)
    assert said(backend)[-2:] == ["P t1:SELECT 'x'", "S"]


def test_a_discard_that_fails_discards_nothing() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(query("DISCARD ALL"))
    backend.says(error("25001"), ready())
    backend.got()
    client.sends(*RUN)
    assert said(backend)[-3:] == ["B :t1", "E", "S"]


# COPY.


def test_a_copy_that_was_prepared_holds_what_is_sent_behind_it() -> None:
    _, client, backend = scene()
    prepares(client, backend, "COPY t FROM stdin")
    client.sends(*RUN, query("SELECT 1"))
    assert said(backend) == ["B :t1", "E", "S"]
    backend.says(BOUND, error("42501"), ready())
    assert client.got() == ["2", "E ERROR 42501", "Z I"]
    assert said(backend) == ["Q SELECT 1"]


# Tables that are altered.


def test_a_unit_goes_again_when_its_rows_have_changed() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(bind("s"), describe("", "P"), execute(), SYNC)
    backend.got()
    backend.says(CHANGED)
    assert client.got() == []
    backend.says(ready())
    assert said(backend) == ["P t1:SELECT 'x'", "B :t1", "D P:", "E", "S"]
    backend.says(PARSED, BOUND, OTHER_COLUMNS, row("x"), done("SELECT 1"), ready())
    assert client.got() == ["2", "T", "D x", "C SELECT 1", "Z I"]
    assert backend.is_idle()


def test_a_client_that_does_not_ask_for_the_columns_is_told() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(*RUN)
    backend.says(CHANGED, ready())
    assert client.got() == ["E ERROR 0A000", "Z I"]
    backend.got()
    client.sends(parse("SELECT 'x'", "again"), SYNC)
    assert said(backend) == ["P t1:SELECT 'x'", "S"]


def test_in_a_transaction_the_error_is_the_clients() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(query("BEGIN"))
    backend.says(done("BEGIN"), ready("T"))
    client.got()
    client.sends(bind("s"), describe("", "P"), execute(), SYNC)
    backend.says(CHANGED, ready("E"))
    assert client.got() == ["E ERROR 0A000", "Z E"]


def test_what_was_sent_meanwhile_comes_after_it() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(bind("s"), describe("", "P"), execute(), SYNC)
    backend.got()
    backend.says(CHANGED)
    client.sends(query("SELECT 2"))
    backend.says(ready())
    assert [each[0] for each in said(backend)] == ["P", "B", "D", "E", "S"]
    backend.says(PARSED, BOUND, COLUMNS, row("x"), done("SELECT 1"), ready())
    assert said(backend) == ["Q SELECT 2"]


def described(client: FakeClient, backend: FakeBackend) -> None:
    """The client prepares s and is told what its rows look like."""
    client.sends(parse("SELECT 'x'", "s"), describe("s"), SYNC)
    assert said(backend) == ["P t1:SELECT 'x'", "D S:t1", "S"]
    backend.says(PARSED, NO_PARAMETERS, COLUMNS, ready())
    assert client.got() == ["1", "t", "T", "Z I"]


def test_a_statement_that_was_described_is_described_on_each_backend_once() -> None:
    world, client, first, second = two_backends()
    described(client, first)
    moved(client, first, world)
    client.sends(*RUN)
    assert said(second) == ["P t1:SELECT 'x'", "D S:t1", "H"]
    second.says(PARSED, NO_PARAMETERS, COLUMNS)
    assert client.got() == []
    assert said(second) == ["B :t1", "E", "S"]
    second.says(BOUND, row("x"), done("SELECT 1"), ready())
    assert client.got() == ["2", "D x", "C SELECT 1", "Z I"]
    client.sends(*RUN)
    assert said(second) == ["B :t1", "E", "S"]


def test_where_its_rows_are_others_the_client_is_told() -> None:
    world, client, first, second = two_backends()
    described(client, first)
    moved(client, first, world)
    client.sends(*RUN)
    second.got()
    second.says(PARSED, NO_PARAMETERS, OTHER_COLUMNS)
    assert said(second) == ["C S:t1", "D S:txproxy", "E", "S"]
    second.says(CLOSED, error("26000"), ready())
    assert client.got() == ["E ERROR 0A000", "Z I"]
    assert client.error["R"] == "RevalidateCachedQuery"
    assert second.is_idle()
    client.sends(parse("SELECT 'x'", "fresh"), SYNC)
    assert said(second) == ["P t1:SELECT 'x'", "S"]


def test_an_error_while_it_is_described_is_the_clients() -> None:
    world, client, first, second = two_backends()
    described(client, first)
    moved(client, first, world)
    client.sends(*RUN)
    second.got()
    second.says(error("42P01"))
    assert client.got() == ["E ERROR 42P01"]
    assert [each[0] for each in said(second)] == ["B", "E", "S"]
    second.says(ready())
    assert client.got() == ["Z I"]


def test_a_client_that_asks_is_told_what_holds_there() -> None:
    world, client, first, second = two_backends()
    described(client, first)
    moved(client, first, world)
    client.sends(describe("s"), FLUSH)
    assert said(second) == ["P t1:SELECT 'x'", "D S:t1", "H"]
    second.says(PARSED, NO_PARAMETERS, OTHER_COLUMNS)
    assert client.got() == ["t", "T"]
    client.sends(*RUN)
    assert said(second) == ["B :t1", "E", "S"]


def test_what_ran_before_it_in_the_unit_is_not_left_out() -> None:
    _, client, backend = scene()
    prepares(client, backend)
    client.sends(*[parse("INSERT INTO t VALUES (1)"), bind(), execute()])
    client.sends(bind("s"), describe("", "P"), execute(), SYNC)
    backend.says(PARSED, BOUND, done("INSERT 0 1"), CHANGED, ready())
    assert client.got() == ["1", "2", "C INSERT 0 1", "E ERROR 0A000", "Z I"]


def test_what_the_server_skips_makes_no_pin() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT nothing()"), FLUSH)
    backend.says(error("42883"))
    client.sends(parse("SELECT 2", "s"), SYNC)
    backend.says(ready())
    assert client.got() == ["E ERROR 42883", "Z I"]
    assert client.session.pin == ""
    assert backend.is_idle()
