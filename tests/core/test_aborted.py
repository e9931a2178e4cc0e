"""A failed transaction without savepoints holds nothing: when it is let go of, and what is then
answered, cell by cell. tests/system/test_failed.py compares the same with real servers.
"""

import pytest

from tests.core.scenario import (
    BOUND,
    CLOSED,
    COLUMNS,
    COPY_DONE,
    COPY_IN,
    FLUSH,
    FUNCTION_CALL,
    NO_DATA,
    NO_PARAMETERS,
    PARSED,
    SYNC,
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
    error,
    execute,
    notification,
    parameter,
    parse,
    query,
    ready,
    scene,
    selected,
    unit,
)
from txproxy.core import endings
from txproxy.core.aborted import PORTALS_LIMIT
from txproxy.wire.codes import HELD_LIMIT
from txproxy.wire.encode import message

REFUSED = "E ERROR 25P02"
INT4 = b"\0\0\0\x17"


def fail(client: FakeClient, backend: FakeBackend) -> None:
    """A statement of the client's fails, which it is told as ever."""
    client.sends(query("SELECT 1/0"))
    backend.says(error("22012"), ready("E"))
    assert client.got() == ["E ERROR 22012", "Z E"]


def failed(**settings: object) -> tuple[World, FakeClient, FakeBackend]:
    """A client in a failed transaction, whose backend is free."""
    world, client, backend = scene(**settings)
    begin(client, backend)
    fail(client, backend)
    assert_let_go(client, backend)
    return world, client, backend


def assert_let_go(client: FakeClient, backend: FakeBackend) -> None:
    assert backend.got()[-1] == "Q ROLLBACK"
    assert client.state == "FAILED"
    assert client.session.backend is None
    backend.says(done("ROLLBACK"), ready())
    assert backend.is_idle()
    assert client.got() == []


def prepared() -> tuple[World, FakeClient, FakeBackend]:
    """The same; it has prepared SELECT as "sel", INSERT as "ins", ROLLBACK as "end" before."""
    world, client, backend = scene()
    client.sends(
        parse("SELECT $1::int", "sel"),
        message(b"P", b"ins\0INSERT INTO t VALUES ($1, $2)\0\0\2" + INT4 + INT4),
        parse("INSERT INTO t VALUES ($1)", "untyped"),
        parse("ROLLBACK", "end"),
        SYNC,
    )
    backend.says(PARSED, PARSED, PARSED, PARSED, ready())
    assert client.got() == ["1", "1", "1", "1", "Z I"]
    backend.got()
    begin(client, backend)
    fail(client, backend)
    assert_let_go(client, backend)
    return world, client, backend


# When it is let go of.


def test_its_backend_is_rolled_back_and_lent_to_others() -> None:
    world, client, backend = failed(pool_size=1)
    assert world.pool.stats.failed_released == 1
    other = world.client()
    other.sends(query("SELECT 'x'"))
    assert backend.got() == ["Q SELECT 'x'"]
    backend.says(selected("x"))
    assert other.got() == ["T", "D x", "C SELECT 1", "Z I"]
    assert client.got() == []
    client.sends(query("SELECT 1"), query("ROLLBACK"), query("SELECT 'y'"))
    assert client.got() == [REFUSED, "Z E", "C ROLLBACK", "Z I"]
    assert backend.got() == ["Q SELECT 'y'"]


def test_it_counts_as_a_transaction_that_has_ended() -> None:
    world, client, _ = failed()
    stats = world.pool.stats
    assert stats.xacts == 1
    assert sum(stats.transactions.counts) == 1
    client.sends(query("ROLLBACK"))
    assert stats.xacts == 1


def test_a_deferred_begin_whose_first_statement_fails() -> None:
    _, client, backend = scene(deferred_begin=True)
    client.sends(query("BEGIN"))
    assert client.got() == ["C BEGIN", "Z T"]
    client.sends(unit("SELECT 1/0"))
    backend.says(PARSED, BOUND, done("BEGIN"), CLOSED)
    backend.says(PARSED, BOUND, error("22012"), ready("E"))
    assert client.got() == ["1", "2", "E ERROR 22012", "Z E"]
    assert_let_go(client, backend)


def test_an_error_in_a_unit_counts_at_its_sync() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(parse("SELECT 1"), FLUSH)
    backend.says(error("42601"))
    assert client.got() == ["E ERROR 42601"]
    assert client.state == "OPEN"
    client.sends(SYNC)
    assert backend.got() == ["P :SELECT 1", "H", "S"]
    backend.says(ready("E"))
    assert client.got() == ["Z E"]
    assert_let_go(client, backend)


def test_what_was_sent_before_the_error_came_goes_on_there() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT 1/0"), query("SELECT 2"), query("ROLLBACK; SELECT 'x'"))
    backend.says(error("22012"), ready("E"), error("25P02"), ready("E"))
    assert backend.got() == ["Q SELECT 1/0", "Q SELECT 2", "Q ROLLBACK; SELECT 'x'"]
    backend.says(done("ROLLBACK"), selected("x"))
    assert client.got()[-4:] == ["T", "D x", "C SELECT 1", "Z I"]
    assert backend.is_idle()


def test_a_copy_that_fails() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("COPY t FROM STDIN"))
    backend.says(COPY_IN)
    client.sends(copy_data("bad"))
    backend.says(error("22P02"), ready("E"))
    assert client.got() == ["G", "E ERROR 22P02", "Z E"]
    assert_let_go(client, backend)
    client.sends(copy_data("late"), COPY_DONE, query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]


@pytest.mark.parametrize(
    "said",
    [
        query("SAVEPOINT s"),
        query("INSERT INTO t VALUES (1); SAVEPOINT s"),
        query("savepoint s; RELEASE s"),
        query("INSERT INTO t VALUES ('x'); /* */ SavePoint s"),
        unit("SAVEPOINT s"),
        parse("SAVEPOINT s", "a") + bind("a") + execute() + SYNC,
    ],
)
def test_with_a_savepoint_it_keeps_its_backend(said: bytes) -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(said)
    complete = PARSED + BOUND if said[:1] == b"P" else b""
    backend.says(complete, done("SAVEPOINT"), ready("T"))
    client.got()
    fail(client, backend)
    assert client.state == "OPEN"
    assert client.session.backend is backend.backend
    client.sends(query("ROLLBACK TO s"))
    backend.says(done("ROLLBACK"), ready("T"))
    assert backend.got()[-2:] == ["Q SELECT 1/0", "Q ROLLBACK TO s"]
    client.sends(query("ROLLBACK"))
    backend.says(done("ROLLBACK"), ready())
    # The next transaction has none.
    backend.got()
    client.got()
    begin(client, backend)
    fail(client, backend)
    assert_let_go(client, backend)
    assert world.pool.stats.failed_released == 1


def test_a_savepoint_that_was_only_prepared_is_none() -> None:
    _, client, backend = scene()
    client.sends(parse("SAVEPOINT s", "a"), SYNC)
    backend.says(PARSED, ready())
    client.got()
    backend.got()
    begin(client, backend)
    fail(client, backend)
    assert_let_go(client, backend)


def test_a_savepoint_behind_the_end_of_a_failed_transaction() -> None:
    _, client, backend = failed()
    client.sends(query("ROLLBACK AND CHAIN; SAVEPOINT s"))
    backend.says(PARSED, BOUND, done("BEGIN"), CLOSED, done("SAVEPOINT"), ready("T"))
    assert client.got() == ["C ROLLBACK", "C SAVEPOINT", "Z T"]
    fail(client, backend)
    assert client.state == "OPEN"


def test_a_savepoint_of_the_next_transaction_in_a_pipeline() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("COMMIT"), query("BEGIN"), query("SAVEPOINT s"), query("SELECT 1/0"))
    backend.says(done("COMMIT"), ready(), done("BEGIN"), ready("T"))
    backend.says(done("SAVEPOINT"), ready("T"), error("22012"), ready("E"))
    assert client.state == "OPEN"
    assert backend.got()[-1] == "Q SELECT 1/0"


def test_with_a_portal_that_has_a_name_it_keeps_its_backend() -> None:
    """Which names there are is not written down; there they are told apart."""
    _, client, backend = scene()
    begin(client, backend)
    client.sends(parse("SELECT 1"), bind("", "p"), SYNC)
    backend.says(PARSED, BOUND, ready("T"))
    client.got()
    fail(client, backend)
    assert client.state == "OPEN"


def test_what_cannot_be_read_may_have_set_one() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT 'x; SAVEPOINT s"))
    backend.says(error("42601"), ready("E"))
    client.got()
    assert client.state == "OPEN"
    assert client.session.backend is backend.backend


@pytest.mark.parametrize("sql", ["SET work_mem = '1MB'", "CREATE TEMP TABLE x ()", "DO 'x'"])
def test_what_is_kept_or_must_be_asked_for_stays_on_its_backend(sql: str) -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query(sql))
    backend.says(done("X"), ready("T"))
    client.got()
    fail(client, backend)
    assert client.state == "OPEN"
    assert client.session.backend is backend.backend


def test_session_mode_is_left_alone() -> None:
    _, client, backend = scene(pool_mode="session")
    begin(client, backend)
    fail(client, backend)
    assert client.state == "OPEN"


def test_after_half_a_message_it_is_let_go_of_behind_the_rest() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT 1/0"), query("SELECT 2")[:8])
    backend.says(error("22012"), ready("E"))
    assert client.state == "OPEN"
    client.sends(query("SELECT 2")[8:])
    assert backend.got() == ["Q SELECT 1/0", "Q SELECT 2"]
    backend.says(error("25P02"), ready("E"))
    assert client.got() == ["E ERROR 22012", "Z E", REFUSED, "Z E"]
    assert_let_go(client, backend)


def test_half_a_long_message_belongs_to_its_backend() -> None:
    _, client, backend = scene()
    begin(client, backend)
    fail_then_long = query("SELECT " + "1 + " * HELD_LIMIT + "1")
    client.sends(query("SELECT 1/0"), fail_then_long[: HELD_LIMIT + 100])
    backend.says(error("22012"), ready("E"))
    assert client.session.backend is backend.backend


def test_what_it_has_set_is_undone_and_told_once() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET timezone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready("T"))
    assert client.got() == ["C SET", "S TimeZone=Asia/Tokyo", "Z T"]
    client.sends(query("SELECT 1/0"))
    backend.says(error("22012"), parameter("TimeZone", "UTC"), ready("E"))
    assert client.got() == ["E ERROR 22012", "S TimeZone=UTC", "Z E"]
    assert_let_go(client, backend)
    client.sends(query("SELECT 1"), query("ROLLBACK"), query("SELECT 'x'"))
    assert client.got() == [REFUSED, "Z E", "C ROLLBACK", "Z I"]
    assert backend.got() == ["Q SELECT 'x'"]
    backend.says(selected("x"))
    assert client.got() == ["T", "D x", "C SELECT 1", "Z I"]


def test_what_it_has_set_before_stays_set() -> None:
    world, client, backend = scene()
    client.sends(query("SET timezone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready())
    client.got()
    backend.got()
    begin(client, backend)
    fail(client, backend)
    assert_let_go(client, backend)
    other = world.client()
    other.sends(query("SELECT 'x'"))
    assert "RESET timezone" in backend.got()[0]
    backend.says(done("RESET"), parameter("TimeZone", "UTC"), ready(), selected("x"))
    client.sends(query("ROLLBACK"), query("SELECT 'y'"))
    assert "Asia/Tokyo" in backend.got()[0]


def test_a_listen_in_it_is_undone() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("LISTEN jobs"))
    listening = world.connects_listening()
    for question in listening.got():
        listening.says(done(question[2:]), ready())
    backend.says(done("LISTEN"), ready("T"))
    client.got()
    fail(client, backend)
    assert client.state == "FAILED"
    assert client.session.listening is None
    assert listening.got() == ['Q UNLISTEN "jobs"']
    listening.says(notification("jobs"))
    client.sends(query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]


def test_a_rollback_that_fails_closes_the_backend_and_harms_nobody() -> None:
    world, client, backend = scene()
    begin(client, backend)
    fail(client, backend)
    world.sleeps(6)
    assert backend.finished
    assert client.got() == []
    client.sends(query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]


def test_it_sleeps_as_long_as_it_likes() -> None:
    world, client, _ = failed(transaction_timeout=20.0)
    world.sleeps(1000)
    assert world.pool.stats.reaped == world.pool.stats.transaction_timeouts == 0
    client.sends(query("COMMIT"))
    assert client.got() == ["C ROLLBACK", "Z I"]


def test_a_transaction_that_has_taken_too_long_is_told_so() -> None:
    world, client, backend = scene(transaction_timeout=1.0)
    begin(client, backend)
    client.sends(query("SELECT pg_sleep(9)"))
    backend.got()
    world.sleeps(2)
    assert backend.cancels == 1
    backend.says(error("57014"), ready("E"))
    backend.reads_cancel()
    assert client.state == "REAPED"
    client.got()
    client.sends(query("SELECT 1"))
    assert client.got() == ["E ERROR 25P04", "Z E"]


def test_a_cancel_finds_nothing() -> None:
    _, client, backend = failed()
    endings.cancel(client.session)
    assert backend.cancels == 0
    client.sends(query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]


def test_a_client_that_leaves_leaves_nothing() -> None:
    world, client, backend = failed()
    client.leaves()
    assert backend.is_idle()
    assert world.pool.stats.vanished == 0


# What is answered: Query.

ENDINGS = [
    "ROLLBACK", "rollback;", ";;ROLLBACK", "ABORT", "ROLLBACK WORK", "/* */ABORT TRANSACTION",
    "COMMIT", "END", "commit and no chain", "PREPARE TRANSACTION 'x'",
]  # fmt: skip
CHAINS = ["ROLLBACK AND CHAIN", "ABORT AND CHAIN", "COMMIT AND CHAIN", "END WORK AND CHAIN"]
OTHERS = [
    "SELECT 1", "SELECT 1; ROLLBACK", "BEGIN", "START TRANSACTION", "SAVEPOINT s", "RELEASE s",
    "COMMIT PREPARED 'x'", "ROLLBACK PREPARED 'x'", "DEALLOCATE end", "DEALLOCATE ALL",
    "SET txproxy.idle_transaction_timeout = '1s'", "SHOW txproxy.idle_transaction_timeout",
    "ABORT TO s", "COPY t TO STDOUT",
    "LISTEN jobs", "COPY t FROM STDIN", "nonsense", "SELECT 'unterminated", "ROLLBACK 'junk",
]  # fmt: skip


@pytest.mark.parametrize("sql", ENDINGS)
def test_what_ends_it(sql: str) -> None:
    _, client, backend = failed()
    client.sends(query(sql))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert client.state == "NONE"
    assert backend.got() == []


@pytest.mark.parametrize("sql", CHAINS)
def test_what_chains(sql: str) -> None:
    _, client, backend = failed()
    client.sends(query(sql))
    assert client.got() == ["C ROLLBACK", "Z T"]
    assert client.state == "BEGUN"
    client.sends(query("INSERT INTO t VALUES (1)"))
    assert backend.got() == ["P :BEGIN", "B :", "E", "C P:", "Q INSERT INTO t VALUES (1)"]


@pytest.mark.parametrize("sql", OTHERS)
def test_what_is_refused(sql: str) -> None:
    _, client, backend = prepared()
    client.sends(query(sql))
    assert client.got() == [REFUSED, "Z E"]
    assert client.state == "FAILED"
    assert backend.got() == []


def test_what_is_refused_is_refused_in_the_servers_words() -> None:
    _, client, _ = failed()
    client.sends(query("SELECT 1"))
    client.got()
    assert client.error == {
        "S": "ERROR",
        "V": "ERROR",
        "C": "25P02",
        "M": "current transaction is aborted, commands ignored until end of transaction block",
    }


@pytest.mark.parametrize("sql", ["", ";", "-- nothing", " /* */ ; "])
def test_nothing(sql: str) -> None:
    _, client, _ = failed()
    client.sends(query(sql))
    assert client.got() == ["I", "Z E"]


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("ROLLBACK TO s", "s"),
        ("ROLLBACK WORK TO SAVEPOINT S", "s"),
        ('ROLLBACK TRANSACTION TO "S s"; SELECT 1', "S s"),
        ("ROLLBACK TO s; ROLLBACK", "s"),
        ("ROLLBACK TO " + "a" * 70, "a" * 63),
    ],
)
def test_there_is_no_savepoint(sql: str, name: str) -> None:
    _, client, _ = failed()
    client.sends(query(sql))
    assert client.got() == ["E ERROR 3B001", "Z E"]
    assert client.error["M"] == f'savepoint "{name}" does not exist'
    assert client.state == "FAILED"


@pytest.mark.parametrize(
    "ending", ["ROLLBACK;", ";;ROLLBACK;", "END ;", "PREPARE TRANSACTION 'x';"]
)
def test_an_ending_and_more(ending: str) -> None:
    _, client, backend = failed()
    client.sends(query(ending + " select 1"))
    (written,) = backend.writes
    assert written.strip(b"\0").endswith(b"select 1")
    assert len(written) == len(query(ending + " select 1"))
    assert written[5:-1].strip(b" ;") == b"select 1"
    assert client.got() == ["C ROLLBACK"]
    backend.says(selected("x"))
    assert client.got() == ["T", "D x", "C SELECT 1", "Z I"]


def test_a_chain_and_more() -> None:
    _, client, backend = failed()
    client.sends(query("COMMIT AND CHAIN; select 1"))
    assert client.got() == ["C ROLLBACK"]
    sent = backend.got()
    assert sent[:4] == ["P :BEGIN", "B :", "E", "C P:"]
    assert sent[4].strip("Q ") == "select 1"
    backend.says(PARSED, BOUND, done("BEGIN"), CLOSED, selected("x", "T"))
    assert client.got() == ["T", "D x", "C SELECT 1", "Z T"]
    assert client.state == "OPEN"


def test_a_chain_and_an_end() -> None:
    _, client, backend = failed()
    client.sends(query("ROLLBACK AND CHAIN; COMMIT"))
    assert client.got() == ["C ROLLBACK", "C COMMIT", "Z I"]
    assert client.state == "NONE"
    assert backend.got() == []
    assert backend.is_idle()


def test_an_ending_and_a_listen_that_must_wait_is_answered_once() -> None:
    world, client, backend = failed()
    client.sends(query("ROLLBACK; LISTEN jobs"), query("SELECT 'x'"))
    assert client.got() == ["C ROLLBACK"]
    assert backend.got() == []
    listening = world.connects_listening()
    for question in listening.got():
        listening.says(done(question[2:]), ready())
    assert [text.strip("Q ") for text in backend.got()] == ["LISTEN jobs", "SELECT 'x'"]
    backend.says(done("LISTEN"), ready(), selected("x"))
    assert client.got() == ["C LISTEN", "Z I", "T", "D x", "C SELECT 1", "Z I"]


def test_function_calls_and_copy_messages() -> None:
    _, client, backend = failed()
    client.sends(FUNCTION_CALL, copy_data("x"), COPY_DONE, copy_fail(), FLUSH, SYNC)
    assert client.got() == [REFUSED, "Z E", "Z E"]
    assert backend.got() == []


# The extended protocol.


@pytest.mark.parametrize("sql", ["ROLLBACK", "COMMIT", "ABORT", "PREPARE TRANSACTION 'x'"])
def test_a_unit_that_ends_it(sql: str) -> None:
    _, client, _ = failed()
    client.sends(parse(sql), describe(), bind(), describe("", "P"), execute(), SYNC)
    assert client.got() == ["1", "t", "n", "2", "n", "C ROLLBACK", "Z I"]
    assert client.state == "NONE"


@pytest.mark.parametrize(
    ("said", "sqlstate", "words"),
    [
        (parse("SELECT 1"), "25P02", "current transaction is aborted"),
        (parse("BEGIN"), "25P02", "current transaction is aborted"),
        (parse("DEALLOCATE end"), "25P02", "current transaction is aborted"),
        (parse("SET txproxy.idle_transaction_timeout = '1s'"), "25P02", "current transaction"),
        (parse("SELECT 1", "sel"), "25P02", "current transaction is aborted"),
        (parse("ROLLBACK; SELECT 1"), "42601", "cannot insert multiple commands into a prepared"),
        (parse("ROLLBACK", "sel"), "42P05", 'prepared statement "sel" already exists'),
        (bind("other"), "26000", 'prepared statement "other" does not exist'),
        (bind(), "26000", "unnamed prepared statement does not exist"),
        (bind("sel"), "08P01", 'supplies 0 parameters, but prepared statement "sel" requires 1'),
        (message(b"B", b"\0end\0" + b"\0\0\0\1" + b"\xff\xff\xff\xff\0\0"), "08P01", "requires 0"),
        (message(b"B", b"\0sel\0" + b"\0\2\0\0\0\0\0\1" + b"\xff" * 4 + b"\0\0"), "08P01",
         "bind message has 2 parameter formats but 1 parameters"),
        (message(b"B", b"\0sel\0" + b"\0\0\0\1" + b"\xff\xff\xff\xff\0\0"), "25P02", "current"),
        (parse("") + bind(), "25P02", "current transaction is aborted"),
        (bind("end", "p") + bind("end", "p"), "42P03", 'cursor "p" already exists'),
        (describe("other"), "26000", 'prepared statement "other" does not exist'),
        (describe(), "26000", "unnamed prepared statement does not exist"),
        (describe("sel"), "25P02", "current transaction is aborted"),
        (describe("untyped"), "25P02", "current transaction is aborted"),
        (describe("p", "P"), "34000", 'portal "p" does not exist'),
        (describe("p", "X"), "08P01", "invalid DESCRIBE message subtype 88"),
        (close("p", "X"), "08P01", "invalid CLOSE message subtype 88"),
        (execute("p"), "34000", 'portal "p" does not exist'),
        (execute(), "34000", 'portal "" does not exist'),
        (bind("end") + close("", "P") + execute(), "34000", 'portal "" does not exist'),
        (close("end") + bind("end"), "26000", 'prepared statement "end" does not exist'),
        (parse("ROLLBACK") + close() + bind(), "26000", "unnamed prepared statement does not"),
        (parse("ROLLBACK TO s") + bind() + execute(), "3B001", 'savepoint "s" does not exist'),
        (message(b"P", b"\0ROLLBACK\0\0\1\0\0\0\0"), "42P18", "type of parameter $1"),
        (message(b"P", b"\0ROLLBACK\0\0\1" + INT4) + bind(), "08P01", "requires 1"),
        (message(b"P", b"ROLLBACK without an end"), "25P02", "current transaction is aborted"),
        (message(b"B", b"\0end\0\0\1\0\0"), "25P02", "current transaction is aborted"),
    ],
)  # fmt: skip
def test_what_fails_in_a_unit_and_how(said: bytes, sqlstate: str, words: str) -> None:
    _, client, backend = prepared()
    client.sends(said)
    assert client.got()[-1] == f"E ERROR {sqlstate}"
    assert words in client.error["M"]
    client.sends(parse("ROLLBACK"), bind("end"), execute(), query("ROLLBACK"))
    assert client.got() == []
    client.sends(SYNC, query("ROLLBACK"))
    assert client.got() == ["Z E", "C ROLLBACK", "Z I"]
    assert backend.got() == []


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (describe("end"), ["t", "n"]),
        (describe("ins"), ["t", "n"]),
        (parse("") + describe(), ["1", "t", "n"]),
        (parse("ROLLBACK TO s") + describe() + bind(), ["1", "t", "n", "2"]),
        (bind("end") + bind("end"), ["2", "2"]),
        (bind("end", "p") + close("p", "P") + bind("end", "p"), ["2", "3", "2"]),
        (close("other") + close("other", "P") + close(), ["3", "3", "3"]),
        (parse("COMMIT", "c") + close("c") + parse("END", "c"), ["1", "3", "1"]),
        (FLUSH, []),
    ],
)  # fmt: skip
def test_what_does_not_fail(said: bytes, answer: list[str]) -> None:
    _, client, backend = prepared()
    client.sends(said, SYNC)
    assert client.got() == [*answer, "Z E"]
    assert backend.got() == []


def test_parameters_are_described_by_their_types() -> None:
    _, client, _ = prepared()
    client.sends(describe("ins"), SYNC)
    assert b"".join(client.writes).startswith(message(b"t", b"\0\2" + INT4 + INT4) + NO_DATA)
    client.got()
    client.sends(message(b"P", b"\0ROLLBACK\0\0\1" + INT4), describe(), SYNC)
    assert message(b"t", b"\0\1" + INT4) + NO_DATA in b"".join(client.writes)


def test_statements_and_portals_last_beyond_sync() -> None:
    _, client, _ = failed()
    client.sends(parse("ROLLBACK"), parse("COMMIT", "c"), SYNC)
    client.sends(bind("c", "p"), bind(), SYNC)
    client.sends(describe("p", "P"), execute("p"), SYNC)
    assert client.got() == ["1", "1", "Z E", "2", "2", "Z E", "n", "C ROLLBACK", "Z I"]


def test_a_query_and_a_parse_that_fails_forget_the_unnamed_statement() -> None:
    _, client, _ = failed()
    for forgets in (query(""), parse("SELECT 1") + SYNC):
        client.sends(parse("ROLLBACK"), SYNC, forgets)
        client.got()
        client.sends(bind(), SYNC)
        assert client.got() == ["E ERROR 26000", "Z E"]


def test_portals_end_with_the_transaction() -> None:
    _, client, backend = failed()
    client.sends(parse("ROLLBACK AND CHAIN"), bind("", "p"), execute("p"), SYNC)
    assert client.got() == ["1", "2", "C ROLLBACK", "Z T"]
    client.sends(execute("p"), SYNC)
    assert backend.got()[-2:] == ["E p", "S"]


def test_a_unit_goes_on_behind_the_end_of_the_transaction() -> None:
    _, client, backend = prepared()
    client.sends(
        bind("end") + execute() + bind("end", "q") + execute("q") + parse("SELECT 1") + SYNC
    )
    assert client.got() == ["2", "C ROLLBACK"]
    assert [text[0] for text in backend.got()] == ["B", "E", "P", "S"]
    backend.says(BOUND, done("ROLLBACK"), PARSED, ready())
    assert client.got() == ["2", "C ROLLBACK", "1", "Z I"]


def test_a_statement_prepared_before_is_used_behind_the_end_of_the_transaction() -> None:
    """In the same unit: it is the server's to answer."""
    _, client, backend = prepared()
    asked = message(b"B", b"\0sel\0" + b"\0\0\0\1" + b"\0\0\0\1" + b"7\0\0")
    client.sends(parse("ROLLBACK"), bind(), execute(), describe("sel"), asked, execute(), SYNC)
    assert client.got() == ["1", "2", "C ROLLBACK"]
    assert [text[0] for text in backend.got()] == ["D", "B", "E", "S"]
    backend.says(NO_PARAMETERS, COLUMNS, BOUND, done("SELECT 1"), ready())
    assert client.got() == ["t", "T", "2", "C SELECT 1", "Z I"]


def test_what_was_parsed_there_can_be_bound_later() -> None:
    _, client, backend = failed()
    client.sends(parse("ROLLBACK"), parse("COMMIT", "c"), SYNC, bind("c"), execute(), SYNC)
    assert client.got() == ["1", "1", "Z E", "2", "C ROLLBACK", "Z I"]
    client.sends(bind("c"), execute(), SYNC)
    assert [text.split(":")[-1] for text in backend.got()[:1]] == ["COMMIT"]
    backend.says(PARSED, BOUND, done("COMMIT"), ready())
    assert client.got() == ["2", "C COMMIT", "Z I"]
    client.sends(bind(), execute(), SYNC)
    assert backend.got() == ["P :ROLLBACK", "B :", "E", "S"]


def test_what_was_closed_there_is_gone() -> None:
    _, client, backend = prepared()
    client.sends(close("sel"), SYNC, query("ROLLBACK"), parse("SELECT 2", "sel"), SYNC)
    assert client.got() == ["3", "Z E", "C ROLLBACK", "Z I"]
    assert [text.split(":")[-1] for text in backend.got()] == ["SELECT 2", "S"]


def test_portals_are_limited() -> None:
    _, client, _ = prepared()
    for number in range(PORTALS_LIMIT):
        client.sends(bind("end", f"p{number}"))
    assert client.got() == ["2"] * PORTALS_LIMIT
    client.sends(bind("end", "more"), SYNC)
    assert client.got() == [REFUSED, "Z E"]
    client.sends(close("p0", "P"), bind("end", "p" * 1001), SYNC)
    assert client.got() == ["3", REFUSED, "Z E"]


def test_statements_that_are_longer_than_what_is_held_are_refused() -> None:
    for head in (b"P\0\2\0\4\0ROLLBACK\0", b"P\0\2\0\4\0ROLLBACK;;;;"):
        _, client, backend = failed()
        client.sends(head.ljust(HELD_LIMIT + 100, b";"))
        assert client.got() == [REFUSED]
        client.sends(b";" * (0x20005 - HELD_LIMIT - 100), SYNC, query("ROLLBACK"))
        assert client.got() == ["Z E", "C ROLLBACK", "Z I"]
        assert backend.got() == []


def test_names_that_may_be_the_backends_are_not_denied_after_a_reaping() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.sleeps(11)
    backend.says(done("ROLLBACK"), ready())
    client.sends(query("SELECT 1"))
    assert client.got() == ["E ERROR 25P03", "Z E"]
    for said in (bind("other"), describe("other"), describe("p", "P"), execute("p")):
        client.sends(said, SYNC)
        assert client.got() == [REFUSED, "Z E"]
    client.sends(query("ROLLBACK TO s"))
    assert client.got() == [REFUSED, "Z E"]
