"""What we answer in the server's place: the table of docs/architecture.md, cell by cell."""

import pytest

from tests.core.scenario import (
    BOUND,
    CLOSED,
    COPY_DONE,
    FLUSH,
    FUNCTION_CALL,
    PARSED,
    SYNC,
    TERMINATE,
    FakeBackend,
    FakeClient,
    World,
    begin,
    bind,
    close,
    copy_data,
    copy_fail,
    describe,
    done,
    execute,
    fail,
    parameter,
    parse,
    query,
    ready,
    reap,
    scene,
    selected,
    unit,
)
from txproxy.core.answers import Ours, Refusal, parse_duration
from txproxy.wire.codes import HELD_LIMIT

TOLD = "E ERROR 25P03"
REFUSED = "E ERROR 25P02"


def reaped(status: str = "T", **settings: object) -> tuple[World, FakeClient, FakeBackend]:
    """A client whose transaction was rolled back while it slept; it was last told `status`."""
    world, client, backend = scene(**settings)
    begin(client, backend)
    if status == "E":
        fail(client, backend)
    reap(world, client, backend)
    assert backend.is_idle()
    return world, client, backend


def failed() -> tuple[World, FakeClient, FakeBackend]:
    """A client that has been told so."""
    world, client, backend = reaped()
    client.sends(query("SELECT 1"))
    assert client.got() == [TOLD, "Z E"]
    assert client.state == "FAILED"
    return world, client, backend


# REAPED, simple protocol.

COMMITS = ["COMMIT", "commit;", "END", "COMMIT WORK", "END TRANSACTION", "PREPARE TRANSACTION 'x'"]
ROLLBACKS = [
    "ROLLBACK",
    "rollback;",
    "ABORT",
    "ROLLBACK WORK",
    "ABORT TRANSACTION",
    "/* */ROLLBACK",
]
OTHERS = [
    "SELECT 1",
    "INSERT INTO t VALUES (1)",
    "ROLLBACK TO s",
    "RELEASE s",
    "SAVEPOINT s",
    "BEGIN",
    "ROLLBACK; SELECT 1",
    "COMMIT; SELECT 1",
    "SELECT 1; COMMIT",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "COMMIT PREPARED 'x'",
    "SET txproxy.idle_transaction_timeout = '1s'",
    "SHOW txproxy.idle_transaction_timeout",
    "COPY t FROM STDIN",
    "ROLLBACK 'junk",
]


@pytest.mark.parametrize("status", ["T", "E"])
@pytest.mark.parametrize("sql", ROLLBACKS)
def test_rollback_after_the_reaping_is_answered_as_ever(sql: str, status: str) -> None:
    _, client, backend = reaped(status)
    client.sends(query(sql))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert client.state == "NONE"
    assert backend.got() == []


@pytest.mark.parametrize("sql", COMMITS)
def test_commit_after_the_reaping_is_an_error_and_never_a_quiet_tag(sql: str) -> None:
    _, client, backend = reaped("T")
    client.sends(query(sql))
    assert client.got() == [TOLD, "Z I"]
    assert client.state == "NONE"
    assert backend.got() == []


@pytest.mark.parametrize("sql", COMMITS)
def test_commit_of_what_had_failed_before_the_reaping_is_a_rollback(sql: str) -> None:
    _, client, _ = reaped("E")
    client.sends(query(sql))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert client.state == "NONE"


@pytest.mark.parametrize("status", ["T", "E"])
@pytest.mark.parametrize("sql", OTHERS)
def test_anything_else_after_the_reaping_is_told_the_error_once(sql: str, status: str) -> None:
    _, client, backend = reaped(status)
    client.sends(query(sql))
    assert client.got() == [TOLD, "Z E"]
    assert client.state == "FAILED"
    client.sends(query("SELECT 1"))
    assert client.got() == [REFUSED, "Z E"]
    assert backend.got() == []


@pytest.mark.parametrize("status", ["T", "E"])
@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (SYNC, ["Z {}"]),
        (FLUSH, []),
        (close("s1") + SYNC, ["3", "Z {}"]),
        (close("p", "P") + SYNC, ["3", "Z {}"]),
        (query(""), ["I", "Z {}"]),
        (query(" ; /* nothing */ ;"), ["I", "Z {}"]),
        (unit(""), ["1", "2", "I", "Z {}"]),
        (copy_data("late") + COPY_DONE + copy_fail(), []),
    ],
    ids=["Sync", "Flush", "Close", "Close portal", "empty", "empties", "empty unit", "late COPY"],
)
def test_what_does_nothing_leaves_it_untold(message: bytes, answer: list[str], status: str) -> None:
    _, client, _ = reaped(status)
    client.sends(message)
    assert client.got() == [text.format(status) for text in answer]
    assert client.state == "REAPED"
    client.sends(query("SELECT 1"))
    assert client.got() == [TOLD, "Z E"]


def test_the_error_says_what_happened_and_what_to_do() -> None:
    _, client, _ = reaped()
    client.sends(query("SELECT 1"))
    client.got()
    assert client.error["S"] == client.error["V"] == "ERROR"
    assert client.error["M"].startswith("the transaction was rolled back: it was idle longer than")
    assert client.error["D"] == "Idle for 11.0 s; its last statement was: BEGIN"
    assert "COMMIT or ROLLBACK" in client.error["H"]


def test_the_sqlstate_may_be_one_that_is_retried() -> None:
    _, client, _ = reaped(idle_transaction_sqlstate="40001")
    client.sends(query("SELECT 1"))
    assert client.got() == ["E ERROR 40001", "Z E"]


def test_a_function_call_is_refused() -> None:
    _, client, _ = reaped()
    client.sends(FUNCTION_CALL, FUNCTION_CALL)
    assert client.got() == [TOLD, "Z E", REFUSED, "Z E"]


@pytest.mark.parametrize("make", [reaped, failed])
def test_terminate_is_quiet_in_every_state(make: object) -> None:
    assert callable(make)
    _, client, backend = make()
    client.sends(TERMINATE)
    assert client.finished
    assert client.got() == backend.got() == []


@pytest.mark.parametrize("make", [reaped, failed])
def test_bytes_that_are_no_protocol_are_none_in_every_state(make: object) -> None:
    assert callable(make)
    _, client, _ = make()
    client.sends(b"!\0\0\0\4")
    assert client.got() == ["E FATAL 08P01"]


# REAPED, extended protocol.


@pytest.mark.parametrize("sql", ["ROLLBACK", "ABORT"])
def test_rollback_by_the_extended_protocol(sql: str) -> None:
    _, client, _ = reaped()
    client.sends(unit(sql))
    assert client.got() == ["1", "2", "C ROLLBACK", "Z I"]
    assert client.state == "NONE"


def test_rollback_described_both_ways() -> None:
    _, client, _ = reaped()
    client.sends(parse("ROLLBACK"), describe(), bind(), describe("", "P"), execute(), SYNC)
    assert client.got() == ["1", "t", "n", "2", "n", "C ROLLBACK", "Z I"]


@pytest.mark.parametrize("sql", ["COMMIT", "END", "PREPARE TRANSACTION 'x'"])
def test_commit_by_the_extended_protocol_gets_the_error_at_its_execute(sql: str) -> None:
    _, client, _ = reaped()
    client.sends(unit(sql))
    assert client.got() == ["1", "2", TOLD, "Z I"]
    assert client.state == "NONE"


def test_commit_of_what_had_failed_by_the_extended_protocol() -> None:
    _, client, _ = reaped("E")
    client.sends(unit("COMMIT"))
    assert client.got() == ["1", "2", "C ROLLBACK", "Z I"]
    assert client.state == "NONE"


@pytest.mark.parametrize("sql", ["SELECT 1", "ROLLBACK TO s", "ROLLBACK; SELECT 1", "BEGIN"])
def test_anything_else_fails_at_its_parse_and_is_discarded_to_sync(sql: str) -> None:
    _, client, backend = reaped()
    client.sends(parse(sql))
    assert client.got() == [TOLD]  # a Flush may be waiting for it
    client.sends(bind(), execute(), parse("ROLLBACK"), query("SELECT 1"), FLUSH)
    assert client.got() == []
    client.sends(SYNC, unit("SELECT 2"), unit("SELECT 3"))
    assert client.got() == ["Z E", REFUSED, "Z E", REFUSED, "Z E"]
    assert backend.got() == []


@pytest.mark.parametrize("sql", ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"])
def test_and_chain_after_the_reaping_is_told_first(sql: str) -> None:
    _, client, _ = reaped()
    client.sends(unit(sql))
    assert client.got()[-2:] == [TOLD, "Z E"]
    assert client.state == "FAILED"


@pytest.mark.parametrize(
    "message", [bind("unknown"), describe("unknown"), describe("unknown", "P"), execute("unknown")]
)
def test_names_that_only_the_server_knew_are_refused(message: bytes) -> None:
    _, client, _ = reaped()
    client.sends(message, SYNC)
    assert client.got() == [TOLD, "Z E"]
    assert client.state == "FAILED"


@pytest.mark.parametrize(("sql", "answer"), [("ROLLBACK", "C ROLLBACK"), ("COMMIT", TOLD)])
def test_a_named_statement_is_known_by_its_text(sql: str, answer: str) -> None:
    world, client, backend = scene()
    client.sends(parse(sql, "s1"), SYNC)
    backend.says(PARSED, ready())
    client.got()
    backend.got()
    begin(client, backend)
    reap(world, client, backend)
    client.sends(bind("s1"), execute(), SYNC)
    assert client.got() == ["2", answer, "Z I"]
    assert client.state == "NONE"


def test_a_named_statement_that_was_closed_is_not_known() -> None:
    _, client, _ = reaped()
    client.sends(parse("ROLLBACK", "s1"), close("s1"), bind("s1"), SYNC)
    assert client.got() == ["1", "3", TOLD, "Z E"]


# FAILED.


@pytest.mark.parametrize("sql", [*ROLLBACKS, *COMMITS])
def test_whatever_ends_a_failed_transaction_rolls_it_back(sql: str) -> None:
    _, client, backend = failed()
    client.sends(query(sql))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert client.state == "NONE"
    assert backend.got() == []


@pytest.mark.parametrize("sql", ["ROLLBACK", "COMMIT", "PREPARE TRANSACTION 'x'"])
def test_the_same_by_the_extended_protocol(sql: str) -> None:
    _, client, _ = failed()
    client.sends(parse(sql), describe(), bind(), execute(), SYNC)
    assert client.got() == ["1", "t", "n", "2", "C ROLLBACK", "Z I"]
    assert client.state == "NONE"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "BEGIN",
        "SAVEPOINT s",
        "SET txproxy.idle_transaction_timeout = '1s'",
    ],
)
def test_anything_else_in_a_failed_transaction_is_refused(sql: str) -> None:
    _, client, backend = failed()
    client.sends(query(sql), unit(sql), query(sql))
    assert client.got() == [REFUSED, "Z E"] * 3
    assert client.state == "FAILED"
    assert client.error["M"] == (
        "current transaction is aborted, commands ignored until end of transaction block"
    )
    assert backend.got() == []


def test_savepoints_that_a_reaped_transaction_had_are_gone_with_it() -> None:
    _, client, backend = failed()
    client.sends(query("ROLLBACK TO s"), query("ROLLBACK TO s; SELECT 1"), unit("ROLLBACK TO s"))
    assert client.got() == [REFUSED, "Z E", REFUSED, "Z E", "1", "2", REFUSED, "Z E"]
    assert backend.got() == []


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (SYNC, ["Z E"]),
        (FLUSH, []),
        (close("s1") + SYNC, ["3", "Z E"]),
        (query(";"), ["I", "Z E"]),
        (unit(""), ["1", REFUSED, "Z E"]),
        (parse("ROLLBACK") + SYNC, ["1", "Z E"]),
        (copy_data("late") + COPY_DONE, []),
    ],
    ids=["Sync", "Flush", "Close", "empty", "empty unit", "Parse", "late COPY"],
)
def test_what_does_nothing_is_answered_as_in_a_failed_transaction(
    message: bytes, answer: list[str]
) -> None:
    _, client, _ = failed()
    client.sends(message)
    assert client.got() == answer
    assert client.state == "FAILED"


def test_a_statement_parsed_in_one_unit_can_be_executed_in_the_next() -> None:
    _, client, _ = failed()
    client.sends(parse("ROLLBACK", "end"), SYNC)
    client.sends(bind("end", "p"), describe("p", "P"), execute("p"), SYNC)
    assert client.got() == ["1", "Z E", "2", "n", "C ROLLBACK", "Z I"]


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("sql", ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"])
def test_and_chain_begins_another_with_the_next_statement(sql: str, extended: bool) -> None:
    _, client, backend = failed()
    client.sends(unit(sql) if extended else query(sql))
    assert client.got()[-2:] == ["C ROLLBACK", "Z T"]
    assert client.state == "BEGUN"
    assert backend.got() == []
    client.sends(query("INSERT INTO t VALUES (1)"))
    assert len(backend.writes) == 1
    assert backend.got() == ["P :BEGIN", "B :", "E", "C P:", "Q INSERT INTO t VALUES (1)"]
    backend.says(PARSED, BOUND, done("BEGIN"), CLOSED, done("INSERT 0 1"), ready("T"))
    assert client.got() == ["C INSERT 0 1", "Z T"]
    assert client.state == "OPEN"


def test_and_chain_begins_another_on_the_backend_that_a_pinned_client_has_kept() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("LOAD 'lib'"))
    backend.says(done("LOAD"), ready("T"))
    client.got()
    backend.got()
    reap(world, client, backend)
    client.sends(query("SELECT 1"), query("ROLLBACK AND CHAIN"))
    assert client.got() == [TOLD, "Z E", "C ROLLBACK", "Z T"]
    client.sends(query("INSERT INTO t VALUES (1)"))
    assert backend.got() == ["P :BEGIN", "B :", "E", "C P:", "Q INSERT INTO t VALUES (1)"]


@pytest.mark.parametrize("ending", ["ROLLBACK;", "COMMIT ;", "end;", " ABORT WORK;;"])
def test_an_ending_and_more_is_answered_and_the_rest_runs_where_it_stood(ending: str) -> None:
    _, client, backend = failed()
    client.sends(query(ending + " select 1"))
    (written,) = backend.writes
    assert len(written) == len(query(ending + " select 1"))
    assert written[5:-1].rstrip(b"\0").strip(b" ;") == b"select 1"
    assert written.index(b"select 1") == query(ending + " select 1").index(b"select 1")
    assert client.got() == ["C ROLLBACK"]
    backend.says(selected("x"))
    assert client.got() == ["T", "D x", "C SELECT 1", "Z I"]
    assert client.state == "NONE"
    assert backend.is_idle()


def test_an_ending_and_a_begin() -> None:
    _, client, backend = failed()
    client.sends(query("ROLLBACK; BEGIN"))
    assert client.got() == ["C ROLLBACK"]
    assert client.state == "BEGUN"
    backend.says(done("BEGIN"), ready("T"))
    assert client.got() == ["C BEGIN", "Z T"]
    assert client.state == "OPEN"


def test_an_ending_and_more_waits_for_a_backend() -> None:
    world, client, backend = scene(pool_size=1)
    begin(client, backend)
    reap(world, client, backend)
    client.sends(query("SELECT 1"))
    client.got()
    other = world.client()
    begin(other, backend)
    client.sends(query("ROLLBACK; select 1"), query("select 2"))
    assert client.got() == []
    other.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert client.got() == ["C ROLLBACK"]
    assert backend.got() == ["Q COMMIT", "Q           select 1", "Q select 2"]


def test_an_ending_and_a_setting_of_ours_is_answered_once() -> None:
    _, client, backend = failed()
    client.sends(query("ROLLBACK; SET txproxy.idle_transaction_timeout = '1s'"))
    sent = backend.got()
    backend.says(*[done("SET") + ready()] * len(sent))
    assert client.got() == ["C ROLLBACK", "C SET", "Z I"]
    assert not backend.finished


def test_an_ending_and_more_than_we_hold_is_never_cut() -> None:
    _, client, backend = failed()
    asked = query("ROLLBACK; SELECT 1" + " + 1" * HELD_LIMIT)
    client.sends(asked[: HELD_LIMIT + 1])
    client.sends(asked[HELD_LIMIT + 1 :])
    written = b"".join(backend.writes)
    assert len(written) in {0, len(asked)}


# One ReadyForQuery for each Sync and Query, whatever comes.


@pytest.mark.parametrize("make", [reaped, failed])
def test_each_unit_gets_its_ready_for_query(make: object) -> None:
    assert callable(make)
    _, client, backend = make()
    client.sends(
        unit("SELECT 1"), query("SELECT 2"), unit(""), SYNC, SYNC, unit("SELECT 3"), query("")
    )
    assert [text for text in client.got() if text[0] == "Z"] == ["Z E"] * 7
    assert backend.got() == []


def test_after_the_end_everything_is_as_ever() -> None:
    _, client, backend = failed()
    client.sends(query("ROLLBACK"), unit("SELECT 'x'"))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert backend.got() == ["P :SELECT 'x'", "B :", "E", "S"]
    backend.says(PARSED, BOUND, done("SELECT 1"), ready())
    assert client.got() == ["1", "2", "C SELECT 1", "Z I"]


def test_the_client_is_told_what_the_rollback_undid_ahead_of_the_error() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET client_encoding = 'LATIN1'"))
    backend.says(done("SET"), parameter("client_encoding", "LATIN1"), ready("T"))
    client.got()
    backend.got()
    world.sleeps(11)
    backend.says(done("ROLLBACK"), parameter("client_encoding", "UTF8"), ready())
    assert client.got() == []
    client.sends(query("SELECT 1"))
    assert client.got() == ["S client_encoding=UTF8", TOLD, "Z E"]
    client.sends(query("SELECT 1"))
    assert client.got() == [REFUSED, "Z E"]


# Settings of our own.

TIMEOUT = "txproxy.idle_transaction_timeout"
ACTION = "txproxy.idle_transaction_action"


@pytest.mark.parametrize(
    ("sql", "answer", "shown"),
    [
        (f"SET {TIMEOUT} = '5s'", "C SET", "5000ms"),
        (f"SET {TIMEOUT} TO '500ms'", "C SET", "500ms"),
        (f"SET {TIMEOUT} = 2", "C SET", "2000ms"),
        (f"SET SESSION {TIMEOUT} = '1min'", "C SET", "60000ms"),
        (f"RESET {TIMEOUT}", "C SET", "10000ms"),
        (f"SET {TIMEOUT} = DEFAULT", "C SET", "10000ms"),
        (f"SET {TIMEOUT} = '61s'", "E ERROR 42501", "10000ms"),
        (f"SET {TIMEOUT} = 0", "E ERROR 42501", "10000ms"),
        (f"SET {TIMEOUT} = 'soon'", "E ERROR 22023", "10000ms"),
        (f"SET {TIMEOUT} = '-1s'", "E ERROR 22023", "10000ms"),
        ("SET txproxy.colour = 'red'", "E ERROR 42704", "10000ms"),
    ],
)
@pytest.mark.parametrize("status", ["I", "T"])
def test_a_timeout_can_be_shortened_and_lengthened_within_bounds(
    sql: str, answer: str, shown: str, status: str
) -> None:
    _, client, backend = scene()
    if status == "T":
        begin(client, backend)
    client.sends(query(sql), query(f"SHOW {TIMEOUT}"))
    got = client.got()
    assert got[1:] == [f"Z {status}", "T", f"D {shown}", "C SHOW", f"Z {status}"]
    assert got[0] in {answer, answer.replace("SET", sql.split(maxsplit=1)[0])}
    assert backend.got() == []


@pytest.mark.parametrize(
    ("configured", "sql", "answer"),
    [
        ("rollback", f"SET {ACTION} = 'disconnect'", "C SET"),
        ("rollback", f"SET {ACTION} = 'rollback'", "C SET"),
        ("rollback", f"SET {ACTION} = 'report'", "E ERROR 42501"),
        ("report", f"SET {ACTION} = 'report'", "C SET"),
        ("report", f"SET {ACTION} = 'rollback'", "C SET"),
        ("rollback", f"SET {ACTION} = 'explode'", "E ERROR 22023"),
    ],
)
def test_an_action_can_be_made_stricter(configured: str, sql: str, answer: str) -> None:
    _, client, _ = scene(idle_transaction_action=configured)
    client.sends(query(sql))
    assert client.got() == [answer, "Z I"]


def test_settings_in_a_failed_transaction_that_a_backend_carries() -> None:
    _, client, backend = scene()
    client.sends(parse(f"SHOW {TIMEOUT}", "ours"), SYNC)
    begin(client, backend)
    client.got()
    fail(client, backend)
    for said in (
        unit(f"SET {TIMEOUT} = '1s'"),
        query(f"SET {TIMEOUT} = '1s'"),
        bind("ours") + SYNC,
    ):
        client.sends(said)
        assert client.got() == [REFUSED, "Z E"]
    assert client.session.ours.timeout == 10.0
    assert backend.got() == []
    assert client.state == "OPEN"


def test_a_timeout_that_is_off_can_be_switched_on() -> None:
    ours = Ours(0.0, 0.0, "rollback")
    assert ours.show(TIMEOUT) == "0"
    ours.change(TIMEOUT, "5s")
    assert ours.timeout == 5.0
    ours.change(TIMEOUT, "0")
    assert ours.timeout == 0.0


def test_a_shorter_timeout_is_the_one_that_counts() -> None:
    world, client, backend = scene()
    client.sends(query(f"SET {TIMEOUT} = '1s'"))
    client.got()
    begin(client, backend)
    world.sleeps(1.5)
    assert client.state == "REAPED"


def test_settings_by_the_extended_protocol() -> None:
    _, client, backend = scene()
    client.sends(parse(f"SET {TIMEOUT} = '5s'"), describe(), bind(), execute(), SYNC)
    assert client.got() == ["1", "t", "n", "2", "C SET", "Z I"]
    client.sends(parse(f"SHOW {TIMEOUT}"), describe(), bind(), describe("", "P"), execute(), SYNC)
    assert client.got() == ["1", "t", "T", "2", "T", "D 5000ms", "C SHOW", "Z I"]
    assert backend.got() == []


def test_a_refusal_by_the_extended_protocol_discards_the_unit() -> None:
    _, client, backend = scene()
    client.sends(parse(f"SET {TIMEOUT} = '2h'"), bind(), execute(), execute(), SYNC)
    assert client.got() == ["1", "2", "E ERROR 42501", "Z I"]
    client.sends(query("SELECT 1"))
    assert backend.got() == ["Q SELECT 1"]


def test_a_named_setting_of_ours_is_known_in_later_units() -> None:
    _, client, backend = scene()
    client.sends(parse(f"SHOW {TIMEOUT}", "ours"), SYNC)
    assert client.got() == ["1", "Z I"]
    client.sends(bind("ours"), execute(), SYNC)
    assert client.got() == ["2", "D 10000ms", "C SHOW", "Z I"]
    assert backend.got() == []


def test_a_setting_of_ours_waits_for_the_answers_before_it() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 'x'"), query(f"SHOW {TIMEOUT}"), query("SELECT 'y'"))
    assert client.got() == []
    assert backend.got() == ["Q SELECT 'x'"]
    backend.says(selected("x"))
    assert client.got() == ["T", "D x", "C SELECT 1", "Z I", "T", "D 10000ms", "C SHOW", "Z I"]
    assert backend.got() == ["Q SELECT 'y'"]


def test_a_setting_of_ours_inside_an_unsynced_unit_does_not_wait_for_ever() -> None:
    _, client, backend = scene()
    client.sends(parse("SELECT 1"), FLUSH)
    backend.says(PARSED)
    backend.got()
    client.sends(query(f"SHOW {TIMEOUT}"), SYNC)
    assert client.got()[-1:] == ["Z I"] or backend.got()[-1:] == ["S"]


def test_a_text_that_only_mentions_our_settings_is_the_servers() -> None:
    _, client, backend = scene()
    client.sends(query("SELECT 'txproxy.idle_transaction_timeout'"))
    assert backend.got() == ["Q SELECT 'txproxy.idle_transaction_timeout'"]
    assert client.got() == []


def test_a_portal_that_does_not_exist_is_no_failed_transaction() -> None:
    _, client, _ = scene()
    client.sends(parse(f"SHOW {TIMEOUT}"), execute("unknown"), SYNC)
    first, second, last = client.got()
    assert (first, last) == ("1", "Z I")
    assert second.startswith("E ERROR")
    assert second != REFUSED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5.0), ("500ms", 0.5), ("2min", 120.0), ("1h", 3600.0), ("7", 7.0), (" 1.5 s ", 1.5),
        ("0", 0.0), ("", -1.0), ("s", -1.0), ("-1s", -1.0), ("1d", -1.0), ("1e3", -1.0),
        ("1.2.3s", -1.0), (".", -1.0), ("5 S", 5.0),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("name", ["txproxy.colour", "txproxy.", "idle_transaction_timeout"])
def test_settings_that_we_do_not_have_are_refused(name: str) -> None:
    ours = Ours(10.0, 60.0, "rollback")
    with pytest.raises(Refusal):
        ours.show(name)
    with pytest.raises(Refusal):
        ours.change(name, "1s")
