"""One backend: whose replies these are, and how it gets clean."""

import pytest

from tests.core.scenario import (
    BOUND,
    COLUMNS,
    COPY_DONE,
    COPY_IN,
    COPY_OUT,
    FLUSH,
    PARSED,
    SYNC,
    TERMINATE,
    begin,
    bind,
    copy_data,
    describe,
    done,
    error,
    execute,
    fail,
    notice,
    parameter,
    parse,
    query,
    ready,
    row,
    scene,
    selected,
    unit,
)

LAST_WORDS = "f the client has left, or slept too long"
NO_SUCH = "D S:txproxy: none of this name, to end the unit"

# A client that vanishes.


def test_in_a_transaction_with_nothing_in_flight_it_is_rolled_back() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.leaves()
    assert backend.got() == ["Q ROLLBACK"]
    assert not backend.is_idle()
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()
    assert world.pool.stats.vanished == 1


def test_in_a_failed_transaction_too() -> None:
    _, client, backend = scene()
    begin(client, backend)
    fail(client, backend)
    client.leaves()
    assert backend.got() == ["Q ROLLBACK"]


def test_outside_a_transaction_with_nothing_in_flight_nothing_is_done() -> None:
    world, client, backend = scene()
    client.leaves()
    assert backend.is_idle()
    assert backend.got() == []
    assert world.pool.stats.vanished == 0


@pytest.mark.parametrize("sql", ["COMMIT", "END", "PREPARE TRANSACTION 'x'"])
def test_a_commit_that_runs_is_drained_and_never_cancelled(sql: str) -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query(sql))
    backend.got()
    client.leaves()
    assert backend.cancels == 0
    assert backend.got() == []
    backend.says(done("COMMIT"), ready())
    assert backend.is_idle()
    assert client.got() == []


def test_a_commit_prepared_is_not_cancelled_either() -> None:
    _, client, backend = scene()
    client.sends(query("COMMIT PREPARED 'x'"))
    client.leaves()
    assert backend.cancels == 0


def test_a_commit_behind_a_statement_that_runs_is_not_cancelled_either() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("INSERT INTO t VALUES (1)"), query("COMMIT"))
    client.leaves()
    assert backend.cancels == 0


def test_a_statement_that_runs_is_cancelled_and_drained() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT pg_sleep(60)"))
    backend.got()
    client.leaves()
    assert backend.cancels == 1
    backend.says(error("57014"), ready())
    assert not backend.is_idle()  # the cancel might strike somebody else's statement
    backend.reads_cancel()
    assert backend.is_idle()
    assert client.got() == []


def test_a_statement_that_ends_before_the_cancel_has_come_waits_for_it() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    client.sends(query("SELECT pg_sleep(1)"))
    other.sends(query("SELECT 2"))
    backend.got()
    client.leaves()
    backend.says(selected("x"))
    assert backend.got() == []
    backend.reads_cancel()
    assert backend.got() == ["Q SELECT 2"]


def test_a_statement_is_left_to_run_if_so_configured() -> None:
    world, client, backend = scene()
    world.cancel_on_disconnect = False
    client.sends(query("SELECT pg_sleep(60)"))
    client.leaves()
    assert backend.cancels == 0
    backend.says(selected("x"))
    assert backend.is_idle()


def test_a_statement_in_a_transaction_is_cancelled_and_rolled_back() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT pg_sleep(60)"))
    backend.got()
    client.leaves()
    assert backend.cancels == 1
    backend.says(error("57014"), ready("E"))
    backend.reads_cancel()
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()


def test_messages_without_sync_are_given_one() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT 1"), describe(), FLUSH)
    backend.says(PARSED, b"t\0\0\0\6\0\0", COLUMNS)
    backend.got()
    client.leaves()
    assert backend.got() == ["S"]
    backend.says(ready())
    assert backend.is_idle()


def test_what_was_executed_without_sync_is_not_committed_by_ours() -> None:
    _, client, backend = scene()
    client.sends(parse("INSERT INTO t VALUES (1)"), bind(), execute(), FLUSH)
    backend.says(PARSED, BOUND, done("INSERT 0 1"))
    backend.got()
    client.leaves()
    assert backend.got() == [NO_SUCH, "S"]
    backend.says(error("26000"), ready())
    assert backend.is_idle()


def test_what_was_executed_without_sync_in_a_transaction_is_rolled_back() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(parse("INSERT INTO t VALUES (1)"), bind(), execute(), FLUSH)
    backend.says(PARSED, BOUND, done("INSERT 0 1"))
    backend.got()
    client.leaves()
    assert backend.got() == ["S"]
    backend.says(ready("T"))
    assert backend.got() == ["Q ROLLBACK"]


def test_messages_without_sync_that_still_run_are_cancelled() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT pg_sleep(60)"), bind(), execute(), FLUSH)
    backend.says(PARSED, BOUND)
    backend.got()
    client.leaves()
    assert backend.cancels == 1
    backend.says(error("57014"))
    assert backend.got() == ["H", "S"]
    backend.says(ready())
    backend.reads_cancel()
    assert backend.is_idle()


def test_a_client_that_leaves_before_its_settings_are_there_costs_no_backend() -> None:
    world, _, backend = scene()
    world.pool.accept(world.new_client(timezone="Asia/Tokyo").session.wanted, world.params)
    client = world.client(timezone="Asia/Tokyo")
    client.sends(query("SELECT pg_sleep(60)"))
    client.leaves()
    assert backend.cancels == 0
    backend.says(done("SELECT 1"), ready())
    assert backend.cancels == 1
    backend.says(error("57014"), ready())
    backend.reads_cancel()
    assert backend.is_idle()


def test_a_unit_that_is_being_skipped_needs_only_sync() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT 1 +"), FLUSH)
    backend.says(error("42601"))
    backend.got()
    client.leaves()
    assert backend.got() == ["S"]
    backend.says(ready())
    assert backend.is_idle()


def test_copy_in_by_query_is_failed() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.sends(copy_data("1"))
    backend.got()
    client.leaves()
    assert backend.got() == [LAST_WORDS]
    backend.says(error("57014"), ready())
    assert backend.is_idle()


def test_copy_in_by_execute_is_failed_and_synced() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(parse("COPY t FROM STDIN"), bind(), execute(), FLUSH)
    backend.says(PARSED, BOUND, COPY_IN)
    backend.got()
    client.leaves()
    assert backend.got() == [LAST_WORDS, "S"]
    backend.says(error("57014"), ready("E"))
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()


def test_copy_in_by_execute_whose_sync_was_eaten_is_failed_and_synced() -> None:
    _, client, backend = scene()
    client.sends(unit("COPY t FROM STDIN"))
    backend.says(PARSED, BOUND, COPY_IN)
    client.sends(copy_data("1"))
    backend.got()
    client.leaves()
    assert backend.got() == [LAST_WORDS, "S"]


def test_a_copy_that_begins_after_its_client_has_left_is_failed() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.got()
    client.leaves()
    backend.says(COPY_IN)
    assert backend.got() == [LAST_WORDS]
    backend.says(error("57014"), ready())
    backend.reads_cancel()
    assert backend.is_idle()


def test_a_copy_by_execute_that_may_begin_yet_is_sent_nothing_that_would_kill_it() -> None:
    _, client, backend = scene()
    client.sends(parse("COPY t FROM STDIN"), bind(), execute(), FLUSH)
    backend.got()
    client.leaves()
    assert {text[0] for text in backend.got()} <= {"H"}
    backend.says(PARSED, BOUND, COPY_IN)
    assert backend.got()[-2:] == [LAST_WORDS, "S"]


def test_a_copy_that_fails_after_it_has_eaten_a_sync_cannot_be_counted_and_closes_it() -> None:
    world, client, backend = scene()
    client.sends(unit("COPY t FROM STDIN"))
    backend.says(PARSED, BOUND, COPY_IN)
    client.sends(copy_data("bad"))
    backend.says(error("22P02"))
    assert client.got() == ["1", "2", "G", "E ERROR 22P02"]
    assert backend.finished
    client.sends(COPY_DONE, SYNC, query("SELECT 'x'"))
    assert client.got() == ["Z I"]
    assert world.connects().got() == ["Q SELECT 'x'"]


def test_a_copy_whose_end_was_sent_is_drained() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.sends(copy_data("1"), COPY_DONE)
    backend.got()
    client.leaves()
    assert backend.cancels == 1
    assert backend.got() == []
    backend.says(done("COPY 1"), ready())
    backend.reads_cancel()
    assert backend.is_idle()


@pytest.mark.parametrize("chunk", [7, 64, 100_000])
def test_a_large_result_is_cancelled_and_drained(chunk: int) -> None:
    _, client, backend = scene()
    client.sends(query("SELECT x"))
    answer = COLUMNS + row("x" * 2000) * 5
    backend.says(answer[: len(answer) // 2])
    client.got()
    client.leaves()
    rest = answer[len(answer) // 2 :] + error("57014") + ready()
    for i in range(0, len(rest), chunk):
        backend.says(rest[i : i + chunk])
    backend.reads_cancel()
    assert backend.is_idle()
    assert client.got() == []


def test_copy_out_is_cancelled_and_drained() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t TO STDOUT"))
    backend.says(COPY_OUT, copy_data("1"))
    client.got()
    client.leaves()
    assert backend.cancels == 1
    backend.says(copy_data("2"), error("57014"), ready())
    backend.reads_cancel()
    assert backend.is_idle()


def test_half_a_message_was_sent_to_it_so_it_is_closed() -> None:
    world, client, backend = scene()
    client.sends(query("INSERT INTO t VALUES ('" + "x" * 100_000 + "')")[:80_000])
    client.leaves()
    assert backend.finished
    assert not world.pool.backends


def test_half_a_message_that_we_hold_is_as_if_it_were_not_there() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 1")[:-1])
    client.leaves()
    assert not backend.finished
    assert backend.is_idle()


@pytest.mark.parametrize("waits", [10.5, 5.5])
def test_a_backend_that_does_not_get_clean_in_time_is_closed(waits: float) -> None:
    world, client, backend = scene()
    if waits < 10:  # rollback_timeout
        begin(client, backend)
    else:  # cancel_timeout
        client.sends(query("SELECT pg_sleep(60)"))
    client.leaves()
    world.passes(waits - 1)
    assert world.pool.backends
    world.passes(1)
    assert backend.finished
    assert not world.pool.backends


def test_a_rollback_that_leaves_a_transaction_closes_it() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.leaves()
    backend.says(done("ROLLBACK"), ready("T"))
    assert backend.finished


def test_a_rollback_that_fails_closes_it() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.leaves()
    backend.says(error("XX000"), ready())
    assert backend.finished


def test_a_client_that_terminates_in_a_transaction_is_no_different() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(TERMINATE)
    assert backend.got() == ["Q ROLLBACK"]


# Bytes that do not fit.


@pytest.mark.parametrize(
    "reply",
    [
        ready(),
        done("SELECT 1"),
        COPY_IN,
        b"C\0\0\0\3",
        b"D\xff\xff\xff\xff",  # negative
        b"Z\0\0\0\4",
        b"Z\x7f\xff\xff\xff",
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_replies_that_do_not_fit_close_the_backend(reply: bytes, held: bool) -> None:
    world, client, backend = scene()
    if held:
        begin(client, backend)
    backend.says(reply)
    assert backend.finished
    assert not world.pool.backends
    assert client.state == ("REAPED" if held else "NONE")


def test_the_client_of_a_backend_that_broke_gets_an_error() -> None:
    _, client, backend = scene()
    client.sends(unit("SELECT 1"))
    backend.says(BOUND)
    assert backend.finished
    assert client.got() == ["E ERROR 08006", "Z I"]


def test_a_ready_for_query_may_be_longer_than_it_is() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 1"))
    backend.says(done("SELECT 1"), b"Z\0\0\0\x07Ixx")
    assert backend.is_idle()
    assert client.got() == ["C SELECT 1", "Z Ixx"]


def test_an_untrusted_backend_is_closed_once_nobody_needs_it() -> None:
    world, client, backend = scene()
    client.sends(parse("INSERT INTO t VALUES (1)"), bind(), execute(), query("SELECT 'x'"), SYNC)
    backend.says(PARSED, BOUND, done("INSERT 0 1"), COLUMNS, row("x"), done("SELECT 1"), ready("T"))
    backend.says(ready())
    assert client.got()[-1] == "Z I"
    assert backend.finished
    assert not world.pool.backends
    assert not client.finished


def test_an_error_outside_any_exchange_is_not_passed_on() -> None:
    world, client, backend = scene()
    client.sends(query("LOAD 'lib'"))
    backend.says(done("LOAD"), ready())
    client.got()
    backend.says(error("57P01", "FATAL", "terminating connection"))
    assert client.got() == []
    backend.dies()
    assert client.got() == ["E FATAL 57P01"]
    assert world.pool.stats.backends_lost == 1


def test_a_large_error_of_the_servers_is_passed_on() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 1"))
    answer = error("P0001", text="x" * 100_000) + ready()
    backend.says(answer[:10])
    backend.says(answer[10:])
    assert client.got() == ["E ERROR P0001", "Z I"]
    assert backend.is_idle()


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_message_that_nobody_owns_may_come_in_pieces_at_any_moment(cut: int) -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 'x'"))
    said = parameter("TimeZone", "Asia/Tokyo")
    backend.says(COLUMNS, said[:cut])
    backend.says(said[cut:], row("x"), done("SELECT 1"), ready(), notice("bye")[:cut])
    assert client.got() == ["T", "S TimeZone=Asia/Tokyo", "D x", "C SELECT 1", "Z I"]
    assert backend.is_idle()
    client.sends(query("SELECT 'y'"))
    backend.says(notice("bye")[cut:], selected("y"))
    assert client.got()[-4:] == ["T", "D y", "C SELECT 1", "Z I"]


def test_a_backend_says_what_it_is() -> None:
    _, client, backend = scene()
    assert repr(backend.backend) == "<Backend app/ann idle <Fifo I []>>"
    client.sends(query("SELECT 1"))
    assert repr(backend.backend) == (
        "<Backend app/ann leased <Fifo I [<Exchange of session owed='Q'>]>>"
    )
    client.leaves()
    assert repr(backend.backend) == (
        "<Backend app/ann settling <Fifo I [<Exchange of nobody owed='Q'>]>>"
    )
    backend.dies()
    assert repr(backend.backend).startswith("<Backend app/ann closed ")
