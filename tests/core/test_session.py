"""What becomes of each of a client's messages: who gets a backend, for how long, in what state."""

import pytest

from tests.core.scenario import (
    BOUND,
    COLUMNS,
    COPY_DONE,
    COPY_IN,
    COPY_OUT,
    FLUSH,
    FUNCTION_CALL,
    NO_DATA,
    NO_PARAMETERS,
    PARSED,
    SYNC,
    TERMINATE,
    World,
    begin,
    bind,
    close,
    copy_data,
    copy_fail,
    describe,
    done,
    error,
    execute,
    fail,
    kept,
    notice,
    notification,
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
from txproxy.wire.codes import HELD_LIMIT
from txproxy.wire.encode import message

ANSWER = ["T", "D x", "C SELECT 1", "Z I"]

# Leasing.


def test_a_statement_borrows_the_backend_and_returns_it() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 'x'"))
    assert backend.got() == ["Q SELECT 'x'"]
    assert not backend.is_idle()
    backend.says(selected("x"))
    assert client.got() == ANSWER
    assert backend.is_idle()


def test_the_same_bytes_object_goes_through_both_ways() -> None:
    _, client, backend = scene()
    asked, answered = query("SELECT 'x'"), selected("x")
    client.session.client_sent(asked)
    backend.backend.server_sent(answered)
    assert backend.writes[0] is asked
    assert client.writes[0] is answered


def test_an_extended_unit_borrows_the_backend_until_its_sync() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT 'x'"), bind(), execute())
    backend.says(PARSED, BOUND, row("x"), done("SELECT 1"))
    assert not backend.is_idle()
    client.sends(SYNC)
    backend.says(ready())
    assert backend.got() == ["P :SELECT 'x'", "B :", "E", "S"]
    assert client.got() == ["1", "2", "D x", "C SELECT 1", "Z I"]
    assert backend.is_idle()


def test_a_transaction_keeps_the_backend_until_it_ends() -> None:
    _, client, backend = scene()
    begin(client, backend)
    for _ in range(2):
        client.sends(query("SELECT 'x'"))
        backend.says(selected("x", "T"))
        assert client.session.backend is backend.backend
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert client.state == "NONE"
    assert backend.is_idle()


def test_a_failed_transaction_with_a_savepoint_keeps_it_too() -> None:
    _, client, backend = scene()
    begin(client, backend)
    fail(client, backend)
    assert client.state == "OPEN"
    client.sends(query("ROLLBACK"))
    backend.says(done("ROLLBACK"), ready())
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert backend.is_idle()


def test_a_pipeline_goes_to_one_backend_which_is_kept_to_its_last_answer() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 'x'"), query("SELECT 'y'"))
    backend.says(selected("x"))
    assert not backend.is_idle()
    client.sends(query("SELECT 'z'"))
    backend.says(selected("y") + selected("z"))
    assert backend.got() == ["Q SELECT 'x'", "Q SELECT 'y'", "Q SELECT 'z'"]
    assert [text for text in client.got() if text[0] == "D"] == ["D x", "D y", "D z"]
    assert backend.is_idle()


def test_a_pipelined_transaction_is_one_even_where_status_i_comes_on_the_way() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 'x'"), query("BEGIN"))
    backend.says(selected("x"))
    assert client.state == "BEGUN"
    backend.says(done("BEGIN"), ready("T"))
    assert client.state == "OPEN"
    assert not backend.is_idle()


def test_a_lone_sync_is_answered_by_a_backend() -> None:
    _, client, backend = scene()
    client.sends(SYNC)
    assert backend.got() == ["S"]
    backend.says(ready())
    assert client.got() == ["Z I"]
    assert backend.is_idle()


@pytest.mark.parametrize("message", [FLUSH, COPY_DONE, copy_data("1"), copy_fail()])
def test_what_a_server_would_not_answer_takes_no_backend(message: bytes) -> None:
    world, client, backend = scene()
    client.sends(message)
    assert backend.is_idle()
    assert backend.got() == client.got() == []
    assert world.pool.stats.waited == 1  # its login


def test_flush_goes_to_the_backend_that_is_held() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT 1"), describe(), FLUSH)
    assert backend.got() == ["P :SELECT 1", "D S:", "H"]
    backend.says(PARSED, NO_PARAMETERS, COLUMNS)
    assert client.got() == ["1", "t", "T"]


def test_terminate_closes_quietly() -> None:
    world, client, backend = scene()
    client.sends(TERMINATE)
    assert client.finished
    assert client.got() == backend.got() == []
    assert backend.is_idle()
    assert not world.pool.sessions


def test_terminate_behind_a_statement_lets_it_run() -> None:
    _, client, backend = scene()
    client.sends(query("INSERT INTO t VALUES (1)"), TERMINATE)
    assert client.finished
    assert backend.got() == ["Q INSERT INTO t VALUES (1)"]
    backend.says(done("INSERT 0 1"), ready())
    assert backend.cancels == 0
    assert backend.is_idle()


def test_what_comes_behind_terminate_is_ignored() -> None:
    _, client, backend = scene()
    client.sends(TERMINATE, query("SELECT 1"))
    client.session.client_sent(query("SELECT 2"))
    assert backend.got() == []


# Messages in pieces.


def test_a_message_is_forwarded_once_it_has_come_completely() -> None:
    _, client, backend = scene()
    asked = query("SELECT 'x'")
    for i in range(len(asked)):
        assert backend.is_idle()
        client.session.client_sent(asked[i : i + 1])
    assert backend.got() == ["Q SELECT 'x'"]


def test_what_has_come_completely_does_not_wait_for_what_has_not() -> None:
    _, client, backend = scene()
    second = query("SELECT 2")
    client.sends(query("SELECT 1"), second[:7])
    assert backend.got() == ["Q SELECT 1"]
    client.sends(second[7:])
    assert backend.got() == ["Q SELECT 2"]


def test_a_large_message_is_streamed_and_not_held() -> None:
    _, client, backend = scene()
    asked = query("INSERT INTO t VALUES ('" + "x" * 1_000_000 + "')")
    sent = 0
    for i in range(0, len(asked), 10_000):
        client.session.client_sent(asked[i : i + 10_000])
        sent = sum(map(len, backend.writes))
        assert min(i + 10_000, len(asked)) - sent <= HELD_LIMIT
        assert client.session.tail.size <= HELD_LIMIT
    assert b"".join(backend.writes) == asked
    backend.says(done("INSERT 0 1"), ready())
    assert client.got() == ["C INSERT 0 1", "Z I"]


def test_what_is_too_large_to_be_judged_pins() -> None:
    _, client, backend = scene()
    asked = query("SELECT '" + "x" * HELD_LIMIT + "'")
    client.sends(asked[:-1])
    assert client.session.pin == "cannot judge"
    client.sends(asked[-1:])
    assert b"".join(backend.writes) == asked


def test_a_large_message_that_came_whole_is_judged() -> None:
    _, client, _ = scene()
    client.sends(query("SELECT '" + "x" * HELD_LIMIT + "'"))
    assert client.session.pin == ""


def test_a_large_result_is_streamed_and_not_held() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT x"))
    answer = selected("x" * 1_000_000)
    for i in range(0, len(answer), 10_000):
        backend.backend.server_sent(answer[i : i + 10_000])
        passed = sum(map(len, client.writes))
        assert min(i + 10_000, len(answer)) - passed < 10
    assert b"".join(client.writes) == answer
    assert backend.is_idle()


# Bytes that are no protocol.


@pytest.mark.parametrize(
    "data",
    [
        b"Q\0\0\0\3",  # shorter than its own length field
        b"Q\xff\xff\xff\xff",  # negative
        b"S\0\1\0\0",  # a Sync of 64 kB
        b"!\0\0\0\4",
        b"p\0\0\0\4",  # a password, after the login
        b"Z\0\0\0\5I",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_bytes_that_are_no_protocol_end_the_session(data: bytes) -> None:
    _, client, backend = scene()
    client.sends(data)
    assert client.got() == ["E FATAL 08P01"]
    assert client.finished
    assert backend.is_idle()


def test_what_came_before_them_is_sent() -> None:
    _, client, backend = scene()
    client.sends(query("INSERT INTO t VALUES (1)"), b"!!!!!!")
    assert backend.got() == ["Q INSERT INTO t VALUES (1)"]
    assert client.got() == ["E FATAL 08P01"]
    assert backend.cancels == 1


@pytest.mark.parametrize("state", ["NONE", "OPEN", "REAPED", "FAILED"])
@pytest.mark.parametrize("kind", "PBDECHSQFdcf")
def test_a_message_that_is_cut_short_is_no_protocol_or_harmless(kind: str, state: str) -> None:
    for body in (b"", b"S", b"P", b"x", b"\0", b"S\0"):
        world, client, backend = scene()
        if state != "NONE":
            begin(client, backend)
        if state in {"REAPED", "FAILED"}:
            reap(world, client, backend)
        if state == "FAILED":
            client.sends(query("SELECT 1"))
        assert client.state == state
        client.got()
        client.sends(message(kind.encode(), body), SYNC)
        assert not client.finished or client.got() == ["E FATAL 08P01"]


# Backpressure.


def test_a_client_that_waits_is_read_up_to_a_limit() -> None:
    world, client, _ = scene(pool_size=1)
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    chunk = query("SELECT '" + "x" * 990 + "'")
    while not other.is_paused():
        other.sends(chunk)
        assert len(other.got()) == 0
    assert HELD_LIMIT < other.session._inbox_size <= HELD_LIMIT + len(chunk)


def test_when_it_gets_its_backend_it_is_read_again() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    other.sends(*[query("SELECT '" + "x" * 1000 + "'")] * 70)
    assert other.is_paused()
    backend.says(selected("x"))
    assert not other.is_paused()
    assert len(backend.got()) == 72


def test_a_client_that_does_not_read_stops_its_backend() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT x"))
    client.session.client_is_full(True)
    assert backend.is_paused()
    assert client.is_paused()
    client.session.client_is_full(False)
    assert not backend.is_paused()
    assert not client.is_paused()


def test_a_backend_is_not_left_paused_for_its_next_session() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    client.session.client_is_full(True)
    backend.says(selected("x"))
    assert other.session.backend is backend.backend
    assert not backend.is_paused()


def test_a_client_that_does_not_read_stops_the_backend_that_it_gets_later() -> None:
    _, client, backend = scene()
    client.session.client_is_full(True)
    client.sends(query("SELECT 1"))
    assert backend.is_paused()


def test_a_backend_that_takes_no_more_stops_its_client() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.backend.full = True
    client.update_reading()
    assert client.is_paused()


@pytest.mark.parametrize(
    "sql",
    [
        "SET LOCAL standard_conforming_strings = off",
        "SELECT set_config('standard_conforming_strings', 'off', true)",
        "SET work_mem = 1; SET standard_conforming_strings = off",
        "RESET ALL",
    ],
)
def test_what_may_change_how_texts_are_read_holds_those_behind_it(sql: str) -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query(sql), query("SELECT '\\', '; SET work_mem = 1; --'"))
    assert backend.got() == [f"Q {sql}"]


# What belongs to no reply.


def test_notices_in_a_unit_go_to_the_client() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 'x'"))
    backend.says(COLUMNS, notice("careful"), row("x"))
    backend.says(done("SELECT 1"), ready())
    assert client.got() == ["T", "N careful", "D x", "C SELECT 1", "Z I"]


def test_a_backend_that_listens_of_itself_is_heard_by_nobody_else() -> None:
    """A function may have executed LISTEN for another client."""
    _, client, backend = scene()
    client.sends(query("SELECT 'x'"))
    backend.says(COLUMNS, row("x"), notification("jobs"), done("SELECT 1"), ready())
    assert client.got() == ["T", "D x", "C SELECT 1", "Z I"]


@pytest.mark.parametrize(
    "message", [notice("reloaded"), notification("jobs"), parameter("TimeZone", "Asia/Tokyo")]
)
def test_an_idle_backend_may_speak_and_stays_idle_once(message: bytes) -> None:
    world, client, backend = scene()
    other = world.client()
    backend.says(message)
    assert world.pool.idle == [backend.backend]
    client.sends(query("SELECT 1"))
    other.sends(query("SELECT 2"))
    assert backend.got() == ["Q SELECT 1"]


# Pins.

PINS = [
    ("CREATE TEMP TABLE t (x int)", "temporary table"),
    ("PREPARE p AS SELECT 1", "PREPARE"),
    ("SELECT pg_advisory_lock(1)", "advisory lock"),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "WITH HOLD"),
    ("DO $$BEGIN END$$", "DO"),
    ("CALL p()", "CALL"),
    ("FROBNICATE", "unknown statement"),
    ("CREATE FUNCTION f() BEGIN ATOMIC END", "cannot judge"),
]


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize(("sql", "reason"), PINS)
def test_a_statement_that_makes_state_keeps_the_backend(
    sql: str, reason: str, extended: bool
) -> None:
    _, client, backend = scene()
    client.sends(unit(sql) if extended else query(sql))
    backend.says(PARSED * extended, BOUND * extended, done("OK"), ready())
    assert client.session.pin == reason
    assert client.session.backend is backend.backend
    client.leaves()
    backend.says(kept())
    assert not backend.is_idle()
    assert backend.got()[-2:] == ["Q RESET ROLE", "Q DISCARD ALL"]
    backend.says(done("RESET"), ready(), done("DISCARD ALL"))
    assert not backend.is_idle()
    backend.says(ready())
    assert backend.is_idle()
    assert backend.backend.dirty == ""


def test_a_function_call_keeps_the_backend() -> None:
    _, client, backend = scene()
    client.sends(FUNCTION_CALL)
    backend.says(b"V\0\0\0\x08\xff\xff\xff\xff", ready())
    assert client.session.pin == "FunctionCall"
    assert not backend.is_idle()


def test_after_load_a_backend_is_nobody_elses() -> None:
    world, client, backend = scene()
    client.sends(query("LOAD 'auto_explain'"))
    backend.says(done("LOAD"), ready())
    client.leaves()
    assert backend.finished
    assert not world.pool.backends


def test_a_pinned_client_that_leaves_in_a_transaction_is_rolled_back_and_then_reset() -> None:
    _, client, backend = scene()
    client.sends(query("CREATE TEMP TABLE t ()"))
    backend.says(done("CREATE TABLE"), ready())
    backend.says(kept(("temporary table", "", "")))
    client.got()
    backend.got()
    begin(client, backend)
    client.leaves()
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.got() == ["Q RESET ROLE", "Q DISCARD ALL"]


def test_nobody_waiting_gets_a_backend_before_it_is_reset() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    client.sends(query("CREATE TEMP TABLE t ()"))
    backend.says(done("CREATE TABLE"), ready())
    backend.says(kept(("temporary table", "", "")))
    other.sends(query("SELECT 2"))
    client.leaves()
    backend.got()
    backend.says(done("RESET"), ready())
    assert backend.got() == []
    backend.says(done("DISCARD ALL"), ready())
    assert backend.got() == ["Q SELECT 2"]


def test_session_mode_keeps_the_backend_from_the_first_statement() -> None:
    _, client, backend = scene(pool_mode="session")
    client.sends(query("SELECT 'x'"))
    backend.says(selected("x"))
    assert client.session.pin == "session mode"
    assert client.session.backend is backend.backend


@pytest.mark.parametrize(("conforming", "pin"), [("on", "LOAD"), ("off", "")])
def test_strings_are_read_as_the_server_reports_at_login(conforming: str, pin: str) -> None:
    """Off in its configuration: a backslash quotes the quote, and the LOAD is in the string."""
    world = World()
    world.params["standard_conforming_strings"] = conforming
    client = world.client()
    client.sends(query(r"SELECT 'it\'; LOAD 'lib' --'"))
    assert client.session.pin == pin


def test_what_follows_a_change_of_how_texts_are_read_waits_for_it() -> None:
    _, client, backend = scene()
    client.sends(query("SET standard_conforming_strings = off"), query("SELECT 1"))
    assert backend.got() == ["Q SET standard_conforming_strings = off"]
    backend.says(done("SET"), parameter("standard_conforming_strings", "off"), ready())
    assert backend.got() == ["Q SELECT 1"]


@pytest.mark.parametrize("encoding", ["SJIS", "GBK", "Big5", "gb18030"])
def test_an_encoding_whose_texts_we_cannot_read_pins_from_the_start(encoding: str) -> None:
    world, _, _ = scene()
    client = world.client(client_encoding=encoding)
    assert client.session.pin == "client_encoding"
    assert client.session.backend is not None


# The unnamed statement.


def test_a_portal_and_a_named_statement_are_left_as_they_are() -> None:
    _, client, backend = scene()
    client.sends(describe("", "P"), bind("s1"), describe("s1"), SYNC)
    assert backend.got() == ["D P:", "B :s1", "D S:s1", "S"]


# COPY.


def test_copy_in_by_query() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.sends(copy_data("1\n"), copy_data("2\n"), COPY_DONE)
    backend.says(done("COPY 2"), ready())
    assert client.got() == ["G", "C COPY 2", "Z I"]
    assert backend.got() == ["Q COPY t FROM STDIN", "d 1\n", "d 2\n", "c"]
    assert backend.is_idle()


def test_a_statement_behind_a_copy_waits_until_the_copy_is_over() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"), copy_data("1"), COPY_DONE, query("SELECT 'x'"))
    assert backend.got() == ["Q COPY t FROM STDIN", "d 1", "c"]
    backend.says(COPY_IN)
    assert backend.got() == []
    backend.says(done("COPY 1"), ready())
    assert backend.got() == ["Q SELECT 'x'"]


@pytest.mark.parametrize("message", [query("SELECT 1"), parse("SELECT 1"), FUNCTION_CALL])
def test_a_statement_inside_copy_in_would_kill_the_backend_and_ends_the_session(
    message: bytes,
) -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.sends(message)
    assert client.got() == ["G", "E FATAL 08P01"]
    assert backend.got() == ["Q COPY t FROM STDIN", "f the client has left, or slept too long"]
    backend.says(error("57014"), ready())
    assert backend.is_idle()


def test_copy_data_that_is_late_for_a_copy_that_failed_is_dropped() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.sends(copy_data("bad"))
    backend.says(error("22P02"), ready())
    backend.got()
    client.sends(copy_data("more"), COPY_DONE, query("SELECT 'x'"))
    assert backend.got() == ["Q SELECT 'x'"]
    backend.says(selected("x"))
    assert client.got() == ["G", "E ERROR 22P02", "Z I", *ANSWER]


def test_a_statement_behind_a_copy_that_was_prepared_earlier_waits_too() -> None:
    _, client, backend = scene()
    client.sends(parse("COPY t FROM STDIN", "c1"), SYNC)
    backend.says(PARSED, ready())
    client.sends(bind("c1"), execute(), SYNC, query("SELECT 'x'"))
    assert "Q SELECT 'x'" not in backend.got()


@pytest.mark.parametrize(
    "sql",
    ["COPY t FROM STDIN; SELECT 1", "CREATE FUNCTION f() BEGIN ATOMIC END; COPY t FROM STDIN"],
)
def test_a_statement_behind_a_string_that_may_hold_a_copy_waits_too(sql: str) -> None:
    _, client, backend = scene()
    client.sends(query(sql), query("SELECT 'x'"))
    assert backend.got() == [f"Q {sql}"]


def test_a_copy_that_fails_in_the_middle_of_a_message_does_not_lend_half_of_it_on() -> None:
    world, client, backend = scene(pool_size=1)
    other = world.client()
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    data = copy_data("bad" * 100)
    client.sends(data[:200])
    backend.says(error("22P02"), ready())
    assert client.got() == ["G", "E ERROR 22P02", "Z I"]
    other.sends(query("SELECT 2"))
    client.sends(data[200:], COPY_DONE)
    sent = backend.got()
    assert backend.finished or sent[-1] == "Q SELECT 2"
    if backend.finished:
        assert world.connects().got() == ["Q SELECT 2"]


def test_copy_in_by_execute_as_libpq_sends_it() -> None:
    _, client, backend = scene()
    client.sends(unit("COPY t FROM STDIN"))
    backend.says(PARSED, BOUND, COPY_IN)
    client.sends(copy_data("1"), COPY_DONE, SYNC)
    backend.says(done("COPY 1"))
    assert not backend.is_idle()
    backend.says(ready())
    assert client.got() == ["1", "2", "G", "C COPY 1", "Z I"]
    assert backend.is_idle()


def test_copy_in_by_execute_in_one_chunk_that_waits_for_nothing() -> None:
    _, client, backend = scene()
    client.sends(unit("COPY t FROM STDIN"), copy_data("1"), COPY_DONE, SYNC, query("SELECT 'x'"))
    backend.says(PARSED, BOUND, COPY_IN)
    backend.says(done("COPY 1"))
    assert "S" in backend.got()[4:]
    backend.says(ready())
    assert backend.got()[-1:] == ["Q SELECT 'x'"]
    backend.says(selected("x"))
    assert client.got() == ["1", "2", "G", "C COPY 1", "Z I", *ANSWER]
    assert backend.is_idle()


def test_copy_by_execute_that_does_not_start_answers_both_syncs() -> None:
    _, client, backend = scene()
    client.sends(unit("COPY nothing FROM STDIN"), copy_data("1"), COPY_DONE, SYNC)
    backend.says(error("42P01"), ready())
    backend.says(ready())
    assert client.got() == ["E ERROR 42P01", "Z I", "Z I"]
    assert backend.is_idle()


def test_copy_out_is_passed_on() -> None:
    _, client, backend = scene()
    client.sends(query("COPY t TO STDOUT"))
    backend.says(COPY_OUT, copy_data("1"), COPY_DONE, done("COPY 1"), ready())
    assert client.got() == ["H", "d", "c", "C COPY 1", "Z I"]
    assert backend.is_idle()


# Settings.


def test_settings_go_ahead_of_the_statement_in_the_same_write() -> None:
    world, _, backend = scene()
    client = world.client(timezone="Asia/Tokyo")
    other = world.client()
    other.sends(query("SELECT 1"))
    assert backend.got() == ["Q RESET timezone", "Q SELECT 1"]
    backend.says(done("RESET"), parameter("TimeZone", "UTC"), ready(), selected("x"))
    assert other.got() == ANSWER
    client.sends(query("SELECT 2"))
    (written,) = backend.writes
    assert written.endswith(query("SELECT 2"))
    assert backend.got() == [
        "Q SELECT pg_catalog.set_config('timezone','Asia/Tokyo',false)",
        "Q SELECT 2",
    ]


def test_settings_that_the_backend_has_are_not_sent_again() -> None:
    world, _, backend = scene()
    clients = [world.client(timezone="Asia/Tokyo") for _ in range(2)]
    backend.got()
    for client in clients:
        client.sends(query("SELECT 'x'"))
        assert backend.got() == ["Q SELECT 'x'"]
        backend.says(selected("x"))
        assert client.got() == ANSWER


def test_the_answer_to_the_settings_is_nobodys() -> None:
    world, _, backend = scene()
    world.client(timezone="Asia/Tokyo")
    client = world.client()
    client.sends(query("SELECT 'x'"))
    for said in (done("RESET"), notice("so be it"), parameter("TimeZone", "UTC"), ready()):
        backend.says(said)
        assert client.got() == []
    backend.says(selected("x"))
    assert client.got() == ANSWER


def test_set_timezone_is_followed_and_carried_to_the_next_backend() -> None:
    world, client, backend = scene()
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready())
    assert client.got() == ["C SET", "S TimeZone=Asia/Tokyo", "Z I"]
    assert client.session.pin == ""
    assert backend.is_idle()
    world.client().sends(query("SELECT 1"))  # takes this backend
    client.sends(query("SELECT 2"))
    second = world.connects()
    assert second.got() == [
        "Q SELECT pg_catalog.set_config('timezone','Asia/Tokyo',false)",
        "Q SELECT 2",
    ]


def test_a_client_is_told_what_holds_on_the_backend_that_it_gets() -> None:
    world, client, backend = scene()
    backend.says(parameter("DateStyle", "German"))  # the server was reconfigured
    client.sends(query("SELECT 'x'"))
    backend.says(selected("x"))
    assert client.got() == ["S DateStyle=German", *ANSWER]
    client.sends(query("SELECT 'x'"))
    backend.says(selected("x"))
    assert client.got() == ANSWER
    assert world.client().params == {**world.params, "DateStyle": "ISO, MDY"}


def test_a_set_in_a_transaction_is_undone_by_the_clients_own_rollback() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready("T"))
    client.sends(query("ROLLBACK"))
    backend.says(done("ROLLBACK"), parameter("TimeZone", "UTC"), ready())
    assert client.got()[-3:] == ["C ROLLBACK", "S TimeZone=UTC", "Z I"]
    assert client.session.wanted.by_name == {"timezone": "UTC"}


def test_a_setting_committed_just_before_a_pipelined_transaction_outlives_its_reaping() -> None:
    world, client, backend = scene()
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"), query("BEGIN"))
    backend.says(
        done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready(), done("BEGIN"), ready("T")
    )
    client.got()
    backend.got()
    reap(world, client, backend)
    client.sends(query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert client.session.wanted.by_name == {"timezone": "Asia/Tokyo"}


@pytest.mark.parametrize("how", ["reaped", "vanished"])
def test_a_setting_that_our_rollback_undid_is_not_taken_for_applied(how: str) -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready("T"))
    client.got()
    backend.got()
    if how == "reaped":
        world.sleeps(11)
    else:
        client.leaves()
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), parameter("TimeZone", "UTC"), ready())
    assert backend.is_idle()
    world.pool.accept(world.new_client(timezone="Asia/Tokyo").session.wanted, world.params)
    other = world.client(timezone="Asia/Tokyo")
    other.sends(query("SELECT now()"))
    assert backend.got() == [
        "Q SELECT pg_catalog.set_config('timezone','Asia/Tokyo',false)",
        "Q SELECT now()",
    ]


def test_a_setting_committed_by_a_client_that_left_meanwhile_does_not_reach_others() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready("T"))
    client.sends(query("COMMIT"))
    client.leaves()
    backend.got()
    backend.says(done("COMMIT"), ready())
    other = world.client()
    other.sends(query("SELECT now()"))
    assert backend.got()[0] in {"Q RESET timezone", "Q RESET ROLE"}


def test_a_backend_that_refuses_settings_is_nobody_elses() -> None:
    world, client, backend = scene()
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready())
    world.client().sends(query("SELECT 1"))
    client.got()
    client.sends(query("SELECT 'x'"))
    second = world.connects()
    second.says(error("22023"), ready(), selected("x"))
    assert client.got() == ["S TimeZone=UTC", *ANSWER]
    assert second.finished


# Login.


def test_a_login_waits_for_a_backend_that_takes_its_settings() -> None:
    world = World()
    client = world.new_client(timezone="Asia/Tokyo")
    client.session.login()
    backend = world.connects()
    assert client.params is None
    assert backend.got() == ["Q SELECT pg_catalog.set_config('timezone','Asia/Tokyo',false)"]
    backend.says(done("SELECT 1"), parameter("TimeZone", "Asia/Tokyo"), ready())
    assert backend.is_idle()
    assert client.got() == []
    assert client.params == {**world.params, "TimeZone": "Asia/Tokyo"}


def test_the_second_login_with_the_same_settings_needs_no_backend() -> None:
    world, _, backend = scene()
    client = world.new_client()
    client.session.login()
    assert client.params == world.params
    assert backend.is_idle()


def test_settings_that_the_server_refuses_refuse_the_login() -> None:
    world = World()
    client = world.new_client(timezone="Mars/Olympus")
    client.session.login()
    backend = world.connects()
    backend.says(error("22023"), ready())
    assert client.got() == ["E FATAL 22023"]
    assert client.finished
    assert client.params is None
    assert not backend.is_idle()


def test_what_a_client_sends_before_it_is_admitted_is_held() -> None:
    world = World()
    client = world.new_client()
    client.session.login()
    client.sends(query("SELECT 'x'"))
    backend = world.connects()
    assert client.params == world.params
    assert backend.got() == ["Q SELECT 'x'"]


def test_a_session_says_what_it_is() -> None:
    _, client, backend = scene()
    assert repr(client.session) == "<Session app/ann NONE none>"
    begin(client, backend)
    assert repr(client.session) == "<Session app/ann OPEN leased>"
    client.sends(query("CREATE TEMP TABLE t ()"))
    assert repr(client.session) == "<Session app/ann OPEN leased pinned>"


def test_a_prepare_that_is_described_gets_no_data_for_a_command() -> None:
    _, client, backend = scene()
    client.sends(parse("INSERT INTO t VALUES (1)"), describe(), close("gone"), SYNC)
    backend.says(PARSED, NO_PARAMETERS, NO_DATA, b"3\0\0\0\4", ready())
    assert client.got() == ["1", "t", "n", "3", "Z I"]
    assert backend.is_idle()
