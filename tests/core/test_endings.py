"""How a session's business ends that the client did not end: time, loss, cancel."""

import pytest

from tests.core.scenario import (
    BOUND,
    CLOSED,
    COLUMNS,
    COPY_DONE,
    COPY_IN,
    FLUSH,
    NO_PARAMETERS,
    PARSED,
    SYNC,
    TICK,
    FakeBackend,
    FakeClient,
    World,
    begin,
    bind,
    copy_data,
    describe,
    done,
    error,
    execute,
    fail,
    kept,
    notice,
    parameter,
    parse,
    query,
    ready,
    reap,
    row,
    scene,
    selected,
    unit,
)
from txproxy.core import endings
from txproxy.wire.encode import message

TOLD = "E ERROR 25P03"

# Reaping.


def test_an_idle_transaction_is_rolled_back_and_its_client_hears_nothing() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.sleeps(11)
    assert client.state == "REAPED"
    assert not client.finished
    assert client.got() == []
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()
    assert world.pool.stats.reaped == 1


def test_before_its_time_nothing_happens() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.sleeps(9.9)
    assert client.state == "OPEN"
    assert backend.got() == []


def test_one_pass_marks_and_the_next_one_acts() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.passes(11)
    assert client.state == "OPEN"
    world.passes(TICK)
    assert client.state == "REAPED"


def test_a_client_that_speaks_between_the_two_is_spared() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.passes(11)
    client.sends(query("SELECT 'x'"))
    world.passes(TICK)
    assert client.state == "OPEN"
    backend.says(selected("x", "T"))
    world.passes(TICK)
    assert client.got()[-1] == "Z T"
    assert backend.got() == ["Q SELECT 'x'"]
    reap(world, client, backend)


def test_a_failed_transaction_is_reaped_too() -> None:
    world, client, backend = scene()
    begin(client, backend)
    fail(client, backend)
    reap(world, client, backend)


def test_a_client_that_speaks_as_it_is_reaped_never_reaches_the_backend() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.sleeps(11)
    client.sends(query("INSERT INTO t VALUES (1)"))
    assert backend.got() == ["Q ROLLBACK"]
    assert client.got() == [TOLD, "Z E"]
    client.sends(query("ROLLBACK"), query("SELECT 2"))
    second = world.connects()
    assert second.got() == ["Q SELECT 2"]


def test_notices_and_parameters_do_not_wake_a_sleeper() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.passes(6)
    backend.says(notice("still there?"), parameter("TimeZone", "Asia/Tokyo"))
    client.got()
    world.sleeps(5)
    assert client.state == "REAPED"


def test_half_a_message_that_we_hold_does_not_wake_a_sleeper() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.passes(6)
    client.sends(query("INSERT INTO t VALUES (1)")[:-1])
    world.sleeps(5)
    assert client.state == "REAPED"
    client.sends(b"\0")
    assert client.got() == [TOLD, "Z E"]


def test_half_a_message_that_was_forwarded_closes_client_and_backend() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("INSERT INTO t VALUES ('" + "x" * 100_000 + "')")[:80_000])
    world.sleeps(11)
    assert client.got() == ["E FATAL 25P03"]
    assert client.finished
    assert backend.finished


def test_a_message_that_keeps_coming_is_no_sleep() -> None:
    world, client, backend = scene()
    begin(client, backend)
    asked = query("INSERT INTO t VALUES ('" + "x" * 1_000_000 + "')")
    for i in range(0, len(asked), 100_000):
        client.sends(asked[i : i + 100_000])
        world.sleeps(6)
    assert client.state == "OPEN"
    assert b"".join(backend.writes) == asked


def test_a_statement_that_runs_is_no_sleep() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT pg_sleep(60)"))
    world.sleeps(60)
    assert client.state == "OPEN"
    assert backend.cancels == 0


def test_a_backend_that_takes_no_more_is_no_sleep_of_its_clients() -> None:
    world, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.sends(copy_data("1"))
    backend.backend.full = True  # its table is locked, and our client is not read
    world.sleeps(60)
    assert client.got() == ["G"]
    assert backend.got() == ["Q COPY t FROM STDIN", "d 1"]


def test_the_clock_starts_again_with_each_answer() -> None:
    world, client, backend = scene()
    begin(client, backend)
    for _ in range(5):
        world.sleeps(9)
        client.sends(query("SELECT 'x'"))
        world.sleeps(9)
        backend.says(selected("x", "T"))
    assert client.state == "OPEN"


def test_no_timeout_no_reaping() -> None:
    world, client, backend = scene(idle_transaction_timeout=0.0)
    begin(client, backend)
    world.sleeps(100_000)
    assert client.state == "OPEN"


def test_the_reaped_backend_serves_whoever_waits() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    begin(client, backend)
    other.sends(query("SELECT 2"))
    world.sleeps(11)
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.got() == ["Q SELECT 2"]


def test_a_pinned_client_is_reaped_and_keeps_its_backend() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("LOAD 'lib'"))
    backend.says(done("LOAD"), ready("T"))
    client.got()
    backend.got()
    reap(world, client, backend)
    assert client.session.backend is backend.backend
    client.sends(query("ROLLBACK"), query("SELECT 'x'"))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert backend.got() == ["Q SELECT 'x'"]


def test_a_pinned_client_that_speaks_before_the_rollback_is_over_waits_for_it() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("LOAD 'lib'"))
    backend.says(done("LOAD"), ready("T"))
    client.got()
    backend.got()
    world.sleeps(11)
    client.sends(query("SELECT 1"), query("ROLLBACK"), query("SELECT 2"))
    assert client.got() == [TOLD, "Z E", "C ROLLBACK", "Z I"]
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.got() == ["Q SELECT 2"]


def test_one_log_line_says_who_was_reaped() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT 42 FROM t WHERE x = 'secret' /*route='%2Forders'*/"))
    backend.says(selected("x", "T"))
    world.sleeps(11)
    (line,) = world.said("reaped")
    assert line["why"] == "idle_transaction_timeout"
    assert (line["database"], line["user"], line["client"]) == ("app", "ann", "10.0.0.1:5000")
    assert line["statement"] == "SELECT ? FROM t WHERE x = ? /*route='%2Forders'*/"
    assert line["tags"] == {"route": "/orders"}
    assert line["idle_s"] == pytest.approx(11.05)
    assert line["transaction_s"] == pytest.approx(11.05)


@pytest.mark.parametrize("name", ["s", ""])
@pytest.mark.parametrize("length", [0, 300, 3000])
def test_a_statement_that_was_prepared_before_is_the_last_one(name: str, length: int) -> None:
    """Not the one that was last parsed, whose code may be another."""
    world, client, backend = scene()
    begin(client, backend)
    text = f"SELECT {'a' * length} 7 /*route='%2Forders'*/"
    for each in (parse(text, name), parse("SELECT 8 /*route='other'*/", "other")):
        client.sends(each, SYNC)
        backend.says(PARSED, ready("T"))
    client.sends(bind(name), execute(), SYNC)
    backend.says(BOUND, row("x"), done("SELECT 1"), ready("T"))
    world.sleeps(11)
    (line,) = world.said("reaped")
    assert line["tags"] == {"route": "/orders"}
    assert str(line["statement"]).startswith("SELECT ")
    assert "other" not in str(line["statement"])
    assert "7" not in str(line["statement"])


def test_literals_are_logged_only_where_that_is_wished() -> None:
    world, client, backend = scene()
    world.log_statement_literals = True
    begin(client, backend)
    client.sends(query("SELECT 42"))
    backend.says(selected("x", "T"))
    world.sleeps(11)
    (line,) = world.said("reaped")
    assert line["statement"] == "SELECT 42"


def test_a_rollback_of_ours_that_takes_too_long_closes_the_backend_and_not_the_client() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.sleeps(11)
    world.passes(5.1)
    assert backend.finished
    assert not client.finished
    client.sends(query("SELECT 1"))
    assert client.got() == [TOLD, "Z E"]


# Actions.


def test_disconnect_closes_the_client_and_saves_the_backend() -> None:
    world, client, backend = scene(idle_transaction_action="disconnect")
    begin(client, backend)
    world.sleeps(11)
    assert client.got() == ["E FATAL 25P03"]
    assert client.finished
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()
    assert world.pool.stats.disconnected == 1


def test_report_only_counts() -> None:
    world, client, backend = scene(idle_transaction_action="report")
    begin(client, backend)
    world.sleeps(11)
    assert client.state == "OPEN"
    assert client.got() == backend.got() == []
    assert world.pool.stats.would_reap == 1
    assert len(world.said("would reap")) == 1
    world.sleeps(5)
    assert world.pool.stats.would_reap == 1
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert client.got() == ["C COMMIT", "Z I"]


# Units without Sync, and COPY.


def prepare(client: FakeClient, backend: FakeBackend) -> None:
    """Do what asyncpg's prepare() does: Parse, Describe, Flush, and then it may sleep."""
    client.sends(parse("SELECT 'x'"), describe(), FLUSH)
    assert backend.got() == ["P :SELECT 'x'", "D S:", "H"]
    backend.says(PARSED, NO_PARAMETERS, COLUMNS)
    assert client.got() == ["1", "t", "T"]


def test_an_unsynced_prepare_outside_a_transaction_is_ended_and_nobody_is_harmed() -> None:
    world, client, backend = scene()
    prepare(client, backend)
    world.sleeps(11)
    assert backend.got() == ["S"]
    backend.says(ready())
    assert backend.is_idle()
    assert client.got() == []
    assert world.pool.stats.reaped == 0
    client.sends(SYNC)
    backend.says(ready())
    assert client.got() == ["Z I"]


def test_the_prepared_statement_is_there_when_its_client_goes_on() -> None:
    world, client, backend = scene()
    prepare(client, backend)
    world.sleeps(11)
    backend.got()
    backend.says(ready())
    client.sends(bind(), execute(), SYNC)
    assert backend.got() == ["B :", "E", "S"]
    backend.says(BOUND, row("x"), done("SELECT 1"), ready())
    assert client.got() == ["2", "D x", "C SELECT 1", "Z I"]
    assert backend.is_idle()


def test_an_unsynced_prepare_in_a_transaction_is_reaped() -> None:
    world, client, backend = scene()
    begin(client, backend)
    prepare(client, backend)
    world.sleeps(11)
    assert client.state == "REAPED"
    assert backend.got() == ["S"]
    backend.says(ready("T"))
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()
    client.sends(bind(), execute(), SYNC)
    assert client.got() == [TOLD, "Z E"]


def test_what_was_executed_without_sync_outside_a_transaction_gets_its_error() -> None:
    world, client, backend = scene()
    client.sends(parse("INSERT INTO t VALUES (1)"), bind(), execute(), FLUSH)
    backend.says(PARSED, BOUND, done("INSERT 0 1"))
    client.got()
    backend.got()
    world.sleeps(11)
    assert backend.got() == ["D S:txproxy: none of this name, to end the unit", "S"]
    backend.says(error("26000"), ready())
    assert backend.is_idle()
    client.sends(SYNC)
    assert client.got() == [TOLD, "Z I"]
    client.sends(query("SELECT 1"))
    assert backend.got() == ["Q SELECT 1"]


def test_begin_executed_without_sync_is_reaped_as_a_transaction() -> None:
    world, client, backend = scene()
    client.sends(parse("BEGIN"), bind(), execute(), FLUSH)
    backend.says(PARSED, BOUND, done("BEGIN"))
    client.got()
    backend.got()
    world.sleeps(11)
    assert client.state == "REAPED"
    client.sends(SYNC, query("INSERT INTO t VALUES (1)"))
    assert client.got() == ["Z T", TOLD, "Z E"]


def test_a_unit_that_the_server_skips_to_sync_waits_for_its_client() -> None:
    world, client, backend = scene()
    client.sends(parse("SELECT 1 +"), FLUSH)
    backend.says(error("42601"))
    backend.got()
    world.sleeps(11)
    assert backend.got() == ["S"]


def test_a_silent_client_in_copy_in_gets_its_error_at_once() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.sends(copy_data("1"))
    client.got()
    backend.got()
    world.sleeps(11)
    assert client.got() == [TOLD, "Z E"]
    assert client.state == "FAILED"
    assert backend.got() == ["f the client has left, or slept too long"]
    backend.says(error("57014"), ready("E"))
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()
    client.sends(copy_data("2"), COPY_DONE, query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]


def test_a_silent_client_in_copy_in_outside_a_transaction() -> None:
    world, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.got()
    world.sleeps(11)
    assert client.got() == [TOLD, "Z I"]
    assert client.state == "NONE"
    client.sends(copy_data("2"), COPY_DONE)
    assert client.got() == []


def test_a_silent_client_in_copy_in_by_execute_is_owed_one_ready_for_query() -> None:
    world, client, backend = scene()
    client.sends(unit("COPY t FROM STDIN"))
    backend.says(PARSED, BOUND, COPY_IN)
    client.got()
    backend.got()
    world.sleeps(11)
    assert client.got() == [TOLD]
    assert backend.got() == ["f the client has left, or slept too long", "S"]
    client.sends(copy_data("2"), COPY_DONE, SYNC)
    assert client.got() == ["Z I"]


# Other timeouts.


def test_query_timeout_cancels_and_the_client_has_the_servers_own_error() -> None:
    world, client, backend = scene(query_timeout=5.0)
    client.sends(query("SELECT pg_sleep(60)"))
    world.passes(4)
    assert backend.cancels == 0
    world.passes(2)
    world.passes(1)
    assert backend.cancels == 1
    backend.says(error("57014"), ready())
    assert client.got() == ["E ERROR 57014", "Z I"]
    backend.reads_cancel()
    assert backend.is_idle()
    assert world.pool.stats.query_timeouts == 1


def test_a_statement_behind_a_cancelled_one_waits_until_the_cancel_is_over() -> None:
    world, client, backend = scene(query_timeout=5.0)
    begin(client, backend)
    client.sends(query("SELECT pg_sleep(60)"))
    world.passes(6)
    backend.got()
    backend.says(error("57014"), ready("E"))
    client.sends(query("ROLLBACK"))
    assert backend.got() == []
    backend.reads_cancel()
    assert backend.got() == ["Q ROLLBACK"]


def test_transaction_timeout_rolls_back_an_idle_transaction() -> None:
    world, client, backend = scene(transaction_timeout=30.0)
    begin(client, backend)
    for _ in range(4):
        world.sleeps(6)
        client.sends(query("SELECT 'x'"))
        backend.says(selected("x", "T"))
    backend.got()
    client.got()
    world.sleeps(7)
    assert client.state == "REAPED"
    assert backend.got() == ["Q ROLLBACK"]
    client.sends(query("SELECT 1"))
    assert client.got() == ["E ERROR 25P04", "Z E"]
    (line,) = world.said("reaped")
    assert line["why"] == "transaction_timeout"


def test_transaction_timeout_cancels_what_runs_and_then_rolls_back() -> None:
    world, client, backend = scene(transaction_timeout=30.0)
    begin(client, backend)
    client.sends(query("SELECT pg_sleep(60)"))
    backend.got()
    world.passes(31)
    assert backend.cancels == 1
    backend.says(error("57014"), ready("E"))
    backend.reads_cancel()
    assert client.got() == ["E ERROR 57014", "Z E"]
    assert client.state in {"REAPED", "FAILED"}
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()
    client.sends(query("COMMIT"))
    assert client.got() == ["C ROLLBACK", "Z I"]


def test_transaction_timeout_does_not_count_in_autocommit() -> None:
    world, client, backend = scene(transaction_timeout=30.0)
    client.sends(query("SELECT pg_sleep(60)"))
    world.sleeps(31)
    assert backend.cancels == 0


def test_a_transaction_that_ended_in_time_leaves_nothing_behind() -> None:
    world, client, backend = scene(transaction_timeout=30.0)
    begin(client, backend)
    client.sends(query("COMMIT"))
    world.passes(31)
    backend.says(done("COMMIT"), ready())
    backend.reads_cancel()
    client.got()
    backend.got()
    begin(client, backend)
    world.sleeps(5)
    assert client.state == "OPEN"


def test_client_idle_timeout_closes_who_does_nothing_and_holds_nothing() -> None:
    world, client, backend = scene(client_idle_timeout=60.0, idle_transaction_timeout=0.0)
    busy, waiting = world.client(), world.client()
    begin(busy, backend)
    waiting.sends(query("SELECT 1"))
    world.passes(59)
    assert client.got() == []
    world.passes(2)
    assert client.got() == ["E FATAL 57P05"]
    assert [end.finished for end in (client, busy, waiting)] == [True, False, False]


def test_time_in_a_transaction_does_not_count_for_client_idle_timeout() -> None:
    world, client, backend = scene(client_idle_timeout=5.0)
    begin(client, backend)
    reap(world, client, backend)
    client.sends(query("SELECT 1"))
    assert client.got() == [TOLD, "Z E"]


def test_client_idle_timeout_closes_a_pinned_client_and_resets_its_backend() -> None:
    world, client, backend = scene(client_idle_timeout=60.0)
    client.sends(query("CREATE TEMP TABLE t ()"))
    backend.says(done("CREATE TABLE"), ready())
    backend.says(kept(("temporary table", "", "")))
    backend.got()
    client.got()
    world.passes(61)
    assert client.got() == ["E FATAL 57P05"]
    assert backend.got() == ["Q RESET ROLE", "Q DISCARD ALL"]


def test_pin_timeout_closes_a_pinned_client_and_says_why() -> None:
    world, client, backend = scene(pin_timeout=60.0)
    free = world.client()
    client.sends(query("SELECT pg_advisory_lock(1)"))
    backend.says(selected(""))
    backend.says(kept(("advisory lock", "", "")))
    backend.got()
    client.got()
    world.passes(59)
    assert client.got() == []
    world.passes(2)
    assert client.got() == ["E FATAL 57P05"]
    assert "(advisory lock)" in client.error["M"]
    assert free.got() == []
    assert not free.finished
    assert [line["pin"] for line in world.said("pin_timeout")] == ["advisory lock"]
    assert world.pool.stats.pin_timeouts == 1


@pytest.mark.parametrize("kind", ["in a transaction", "released", "session mode"])
def test_pin_timeout_leaves_others_alone(kind: str) -> None:
    mode = "session" if kind == "session mode" else "transaction"
    world, client, backend = scene(pin_timeout=60.0, pool_mode=mode, idle_transaction_timeout=0.0)
    if kind == "in a transaction":
        begin(client, backend)
    client.sends(query("CREATE TEMP TABLE t ()"))
    backend.says(done("CREATE TABLE"), ready("T" if kind == "in a transaction" else "I"))
    if kind == "released":
        backend.says(kept())
    client.got()
    world.passes(100)
    assert client.got() == []
    assert not client.finished


def test_client_idle_timeout_closes_who_was_reaped() -> None:
    world, client, backend = scene(client_idle_timeout=60.0)
    begin(client, backend)
    reap(world, client, backend)
    world.passes(61)
    assert client.got() == ["E FATAL 57P05"]


def test_a_statement_that_runs_long_is_not_idle() -> None:
    world, client, _ = scene(client_idle_timeout=60.0)
    client.sends(query("SELECT pg_sleep(100)"))
    world.passes(61)
    assert not client.finished


# CancelRequest.


def test_a_cancel_goes_to_the_backend_that_runs_the_clients_statement() -> None:
    world, client, backend = scene()
    client.sends(query("SELECT pg_sleep(60)"))
    endings.cancel(client.session)
    assert backend.cancels == 1
    backend.says(error("57014"), ready())
    assert client.got() == ["E ERROR 57014", "Z I"]
    assert world.pool.stats.cancelled == 1


def test_a_backend_is_lent_to_nobody_while_a_cancel_is_on_its_way_to_it() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    client.sends(query("SELECT 'x'"))
    endings.cancel(client.session)
    backend.got()
    backend.says(selected("x"))
    other.sends(query("SELECT 2"))
    client.sends(query("SELECT 3"))
    assert backend.got() == []
    backend.reads_cancel()
    assert backend.got() == ["Q SELECT 2"]


def test_a_client_that_holds_its_backend_goes_on_when_its_cancel_is_over() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT 'x'"))
    endings.cancel(client.session)
    endings.cancel(client.session)
    backend.says(selected("x", "T"))
    client.sends(query("SELECT 'y'"))
    backend.got()
    backend.reads_cancel()
    assert backend.got() == []
    backend.reads_cancel()
    assert backend.got() == ["Q SELECT 'y'"]


def test_a_cancel_that_finds_nothing_does_nothing() -> None:
    world, client, backend = scene()
    endings.cancel(client.session)
    begin(client, backend)
    endings.cancel(client.session)
    reap(world, client, backend)
    endings.cancel(client.session)
    assert backend.cancels == 0
    assert client.got() == []


def test_a_cancel_does_not_strike_what_goes_ahead_of_the_clients_statement() -> None:
    world, _, backend = scene()
    client = world.client(timezone="Asia/Tokyo")
    world.client().sends(query("SELECT 1"))
    backend.says(done("RESET"), parameter("TimeZone", "UTC"), ready(), selected("x"))
    client.sends(query("SELECT pg_sleep(60)"))
    endings.cancel(client.session)
    assert backend.cancels == 0


def test_a_cancel_in_copy_in_reaches_the_server() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    endings.cancel(client.session)
    assert backend.cancels == 1


def test_a_cancel_during_the_login_does_nothing() -> None:
    world = World()
    client = world.new_client()
    client.session.login()
    endings.cancel(client.session)
    world.connects()
    assert client.params == world.params


# A lost backend.


def test_lost_while_nothing_is_held_harms_nobody() -> None:
    _, client, backend = scene()
    backend.dies()
    assert client.got() == []
    assert not client.finished


def test_lost_while_a_statement_runs_is_an_error_to_it() -> None:
    world, client, backend = scene()
    client.sends(query("SELECT 1"))
    backend.dies()
    assert client.got() == ["E ERROR 08006", "Z I"]
    assert client.state == "NONE"
    client.sends(query("SELECT 2"))
    assert world.connects().got() == ["Q SELECT 2"]
    assert world.pool.stats.backends_lost == 1


def test_lost_in_the_middle_of_rows() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 1"))
    backend.says(COLUMNS, row("x"))
    backend.dies()
    assert client.got() == ["T", "D x", "E ERROR 08006", "Z I"]


def test_lost_in_the_middle_of_a_message_no_error_can_be_said() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 1"))
    backend.says(COLUMNS, row("x" * 100)[:50])
    backend.dies()
    assert client.got() == ["T"]
    assert client.finished


def test_lost_while_an_open_transaction_sleeps_is_told_with_the_next_message() -> None:
    _, client, backend = scene()
    begin(client, backend)
    backend.dies()
    assert client.got() == []
    assert client.state == "REAPED"
    client.sends(query("INSERT INTO t VALUES (1)"))
    assert client.got() == ["E ERROR 08006", "Z E"]
    client.sends(query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]


def test_lost_while_a_statement_of_a_transaction_runs() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("INSERT INTO t VALUES (1)"))
    backend.dies()
    assert client.got() == ["E ERROR 08006", "Z E"]
    assert client.state == "FAILED"
    client.sends(query("COMMIT"))
    assert client.got() == ["C ROLLBACK", "Z I"]


@pytest.mark.parametrize("sql", ["COMMIT", "END", "PREPARE TRANSACTION 'x'"])
def test_lost_while_a_commit_runs_its_outcome_is_unknown(sql: str) -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query(sql))
    backend.dies()
    assert client.got() == ["E ERROR 08007", "Z I"]
    assert "unknown" in client.error["M"]
    assert client.state == "NONE"


def test_lost_while_a_pipelined_transaction_runs_nothing_of_it_runs_in_autocommit() -> None:
    world, client, backend = scene()
    client.sends(query("BEGIN"), query("INSERT INTO t VALUES (1)"))
    backend.dies()
    assert client.got() == ["E ERROR 08006", "Z E", "E ERROR 08006", "Z E"]
    client.sends(query("INSERT INTO t VALUES (2)"), query("COMMIT"))
    assert client.got() == ["E ERROR 25P02", "Z E", "C ROLLBACK", "Z I"]
    assert world.wanted_connections == 0


def test_lost_in_an_extended_unit_the_rest_is_discarded_to_its_sync() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT 1"), bind())
    backend.says(PARSED)
    backend.dies()
    assert client.got() == ["1", "E ERROR 08006"]
    client.sends(execute(), SYNC)
    assert client.got() == ["Z I"]


@pytest.mark.parametrize("begun", ["", "open", "deferred"])
def test_lost_while_a_unit_waits_for_its_client_is_told_with_the_next_message(begun: str) -> None:
    """asyncpg's prepare(): all is answered, nobody waits for anything."""
    world, client, backend = scene(deferred_begin=begun == "deferred")
    if begun:
        client.sends(query("BEGIN"))
        if begun == "open":
            backend.says(done("BEGIN"), ready("T"))
        client.got()
    client.sends(parse("SELECT 1"), describe(), FLUSH)
    if begun == "deferred":
        backend.says(PARSED, BOUND, done("BEGIN"), CLOSED)
    backend.says(PARSED, NO_PARAMETERS, COLUMNS)
    client.got()
    backend.dies()
    assert client.got() == []
    client.sends(bind(), execute(), SYNC)
    assert client.got() == ["E ERROR 08006", "Z E" if begun else "Z I"]
    assert client.state == ("FAILED" if begun else "NONE")
    client.sends(query("ROLLBACK"))
    if begun:
        assert client.got() == ["C ROLLBACK", "Z I"]
    assert world.pool.stats.backends_lost == 1


def test_lost_with_a_fatal_in_place_of_an_answer_the_client_that_waits_for_it_is_told() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT 1"), describe(), FLUSH)
    backend.says(error("57P01", "FATAL"))
    backend.dies()
    assert client.got() == ["E ERROR 57P01"]
    client.sends(SYNC)
    assert client.got() == ["Z I"]


def test_lost_in_a_unit_behind_the_servers_own_error_it_is_not_told_twice() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT x"), describe(), FLUSH)
    backend.says(error("42601"))
    backend.dies()
    assert client.got() == ["E ERROR 42601"]
    client.sends(SYNC)
    assert client.got() == ["Z I"]


def test_lost_behind_the_servers_own_error_it_is_not_told_twice() -> None:
    _, client, backend = scene()
    client.sends(unit("SELECT 1"))
    backend.says(error("42601"))
    backend.dies()
    assert client.got() == ["E ERROR 42601", "Z I"]


def test_lost_in_copy_in() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    backend.dies()
    assert client.got() == ["G", "E ERROR 08006", "Z I"]
    client.sends(copy_data("1"), COPY_DONE)
    assert client.got() == []


def test_lost_while_half_a_message_was_forwarded_the_other_half_is_dropped() -> None:
    world, client, backend = scene()
    asked = parse("INSERT INTO t VALUES ($1)") + message(b"B", b"\0\0" + b"x" * 100_000) + SYNC
    client.sends(asked[:80_000])
    assert sum(map(len, backend.writes)) == 80_000
    backend.dies()
    assert client.got() == ["E ERROR 08006"]
    client.sends(asked[80_000:])
    assert client.got() == ["Z I"]
    assert world.wanted_connections == 0


@pytest.mark.parametrize("running", [False, True])
def test_lost_with_state_of_the_session_on_it_is_fatal(running: bool) -> None:
    _, client, backend = scene()
    client.sends(query("LOAD 'lib'"))
    backend.says(done("LOAD"), ready())
    client.got()
    if running:
        client.sends(query("SELECT 1"))
    backend.dies()
    assert client.got() == ["E FATAL 08006"]
    assert client.error["H"] == "The session had state of its own on that backend (LOAD)."
    assert client.finished


@pytest.mark.parametrize("running", [False, True])
def test_a_fatal_of_the_servers_becomes_an_error(running: bool) -> None:
    _, client, backend = scene()
    begin(client, backend)
    if running:
        client.sends(query("SELECT 1"))
    backend.says(error("57P01", "FATAL", "terminating connection due to administrator command"))
    assert client.got() == []
    backend.dies()
    if not running:
        client.sends(query("SELECT 1"))
    assert client.got() == ["E ERROR 57P01", "Z E"]
    assert client.error["M"] == "terminating connection due to administrator command"
    assert not client.finished


def test_a_fatal_while_commit_runs_is_an_unknown_outcome_with_the_servers_reason() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("COMMIT"))
    backend.says(error("57P01", "FATAL", "terminating connection"))
    backend.dies()
    assert client.got() == ["E ERROR 08007", "Z I"]
    assert client.error["D"] == "terminating connection"


def test_lost_during_the_login_is_fatal() -> None:
    world, _, backend = scene()
    client = world.new_client(timezone="Asia/Tokyo")
    client.session.login()
    backend.dies()
    assert client.got() == ["E FATAL 08006"]
    assert client.finished


def test_lost_while_our_rollback_runs_harms_nobody() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.sleeps(11)
    backend.dies()
    client.sends(query("SELECT 1"))
    assert client.got() == [TOLD, "Z E"]


def test_lost_with_a_setting_of_the_transaction_the_client_is_told_what_holds() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready("T"))
    client.got()
    backend.dies()
    client.sends(query("SELECT 1"))
    assert client.got() == ["S TimeZone=UTC", "E ERROR 08006", "Z E"]


def test_statements_held_behind_a_lost_copy_go_on_elsewhere() -> None:
    world, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"), COPY_DONE, query("SELECT 2"))
    backend.dies()
    assert client.got() == ["E ERROR 08006", "Z I"]
    assert world.connects().got() == ["Q SELECT 2"]


def test_statements_held_behind_a_lost_transaction_are_refused() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("COPY t FROM STDIN"), COPY_DONE, query("SELECT 2"))
    backend.dies()
    assert client.got() == ["E ERROR 08006", "Z E", "E ERROR 25P02", "Z E"]


def test_a_session_that_has_ended_can_be_ended_again() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.leaves()
    client.session.gone(cancel=True)
    client.session.fatal(b"never sent")
    assert client.got() == []
    assert backend.got() == ["Q ROLLBACK"]
    assert not world.pool.sessions
