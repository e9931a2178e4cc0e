"""What a session keeps on its backend: what is asked, and what follows from the answer."""

import pytest

from tests.core.scenario import (
    FUNCTION_CALL,
    FakeBackend,
    FakeClient,
    World,
    begin,
    done,
    error,
    kept,
    parameter,
    query,
    ready,
    reap,
    scene,
    selected,
    unit,
)
from txproxy.core.state import REASONS
from txproxy.wire.codes import HELD_LIMIT
from txproxy.wire.encode import message

ANSWER = ["T", "D x", "C SELECT 1", "Z I"]
CLEANING = ["Q RESET ROLE", "Q DISCARD ALL"]


def question(backend: FakeBackend) -> str:
    """What the proxy asks the server, which must be all that it has said."""
    said = backend.got()
    assert len(said) == 1
    assert said[0].startswith("Q SELECT ")
    assert "UPDATE" not in said[0]
    return said[0]


def sets(client: FakeClient, backend: FakeBackend, sql: str = "SET work_mem = '1GB'") -> str:
    """The client sets something, and has its answer; the question that follows."""
    client.sends(query(sql))
    assert backend.got() == [f"Q {sql}"]
    backend.says(done("SET"), ready())
    assert client.got() == ["C SET", "Z I"]
    return question(backend)


def pinned(client: FakeClient, backend: FakeBackend) -> None:
    """The client has a temporary table."""
    sets(client, backend, "CREATE TEMP TABLE t ()")
    backend.says(kept(("temporary table", "", "")))
    assert client.session.pin == "temporary table"


# Settings.


def test_a_setting_is_asked_for_behind_the_answer_and_carried_on() -> None:
    world, client, backend = scene()
    asked = sets(client, backend)
    assert "'{work_mem}'" in asked
    assert "pg_locks" not in asked
    assert not backend.is_idle()
    backend.says(kept(("user", "work_mem", "1GB")))
    assert client.got() == []
    assert backend.is_idle()
    assert client.session.pin == ""
    assert client.session.kept is None
    other = world.client()
    other.sends(query("SELECT 1"))
    assert backend.got() == ["Q RESET work_mem", "Q SELECT 1"]
    client.sends(query("SELECT 2"))
    second = world.connects()
    assert second.got() == [
        "Q SELECT pg_catalog.set_config('work_mem','1GB',false)",
        "Q SELECT 2",
    ]


def test_a_setting_that_does_not_hold_is_wanted_no_more() -> None:
    world, client, backend = scene()
    sets(client, backend)
    backend.says(kept(("user", "work_mem", "1GB")))
    sets(client, backend, "RESET work_mem")
    backend.says(kept())
    assert client.session.wanted.by_name == {}
    world.client().sends(query("SELECT 1"))
    assert backend.got() == ["Q SELECT 1"]


def test_the_server_is_asked_once_at_the_end_of_a_transaction() -> None:
    _, client, backend = scene()
    begin(client, backend)
    for sql in ("SET work_mem = '1GB'", "SET my.own = 'x'", "SAVEPOINT s"):
        client.sends(query(sql))
        backend.says(done("SET"), ready("T"))
    assert len(backend.got()) == 3
    client.sends(query("COMMIT"))
    assert backend.got() == ["Q COMMIT"]
    backend.says(done("COMMIT"), ready())
    asked = question(backend)
    assert "'{work_mem}'" in asked
    assert "'{my.own}'" in asked
    backend.says(kept(("custom", "my.own", "x")))
    assert client.session.wanted.by_name == {"my.own": "x"}


def test_a_client_that_goes_on_meanwhile_is_served_behind_the_question() -> None:
    _, client, backend = scene()
    sets(client, backend)
    client.sends(query("SELECT 'x'"))
    assert backend.got() == ["Q SELECT 'x'"]
    backend.says(kept(("user", "work_mem", "1GB")), selected("x"))
    assert client.got() == ANSWER
    assert backend.is_idle()
    assert client.session.wanted.by_name == {"work_mem": "1GB"}


def test_what_is_set_meanwhile_is_asked_for_again() -> None:
    _, client, backend = scene()
    sets(client, backend)
    client.sends(query("SET my.own = 'x'"))
    backend.got()
    backend.says(kept(("user", "work_mem", "1GB")))
    backend.says(done("SET"), ready())
    assert "work_mem" not in question(backend)
    backend.says(kept(("custom", "my.own", "x")))
    assert backend.is_idle()
    assert client.session.wanted.by_name == {"work_mem": "1GB", "my.own": "x"}


def test_a_setting_that_is_reported_meanwhile_is_kept() -> None:
    _, client, backend = scene()
    sets(client, backend, "SET work_mem = '1GB'")
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(kept(("user", "work_mem", "1GB")), done("SET"))
    backend.says(parameter("TimeZone", "Asia/Tokyo"), ready())
    assert backend.is_idle()
    wanted = {"work_mem": "1GB", "timezone": "Asia/Tokyo"}
    assert client.session.wanted.by_name == wanted
    assert backend.backend.applied.by_name == wanted


def test_who_sets_nothing_is_never_asked_about() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready())
    client.sends(query("SET LOCAL work_mem = '1GB'"))
    backend.says(done("SET"), ready())
    assert client.session.kept is None
    assert backend.is_idle()
    assert backend.got() == [
        "Q COMMIT", "Q SET TimeZone = 'Asia/Tokyo'", "Q SET LOCAL work_mem = '1GB'",
    ]  # fmt: skip


def test_any_setting_is_all_that_the_session_has_set() -> None:
    world, _, backend = scene()
    client = world.client(application_name="mine")
    client.sends(query("SELECT 'x'"))
    assert len(backend.got()) == 2
    backend.says(done("SELECT 1"), parameter("application_name", "mine"), ready())
    backend.says(selected("x"))
    client.got()
    sets(client, backend, "SET my.own = 'x'")
    backend.says(kept(("custom", "my.own", "x")))
    client.sends(query("UPDATE pg_settings SET setting = '1' WHERE name = 'work_mem'"))
    backend.got()
    backend.says(selected("1"))
    asked = question(backend)
    assert "source OPERATOR(pg_catalog.=) 'session'" in asked
    assert "'{my.own}'" in asked
    backend.says(
        kept(
            ("user", "work_mem", "1kB"),
            ("user", "application_name", "mine"),
            ("custom", "my.own", ""),
        )
    )
    assert client.session.wanted.by_name == {"work_mem": "1kB", "application_name": "mine"}
    assert client.session.pin == ""


def test_null_is_a_setting_that_there_is_not() -> None:
    _, client, backend = scene()
    sets(client, backend, "SET my.own = 'x'")
    backend.says(kept(("custom", "my.own", None)))
    assert client.session.wanted.by_name == {}
    assert backend.is_idle()


def test_a_row_may_come_in_pieces() -> None:
    _, client, backend = scene()
    sets(client, backend)
    answer = kept(("user", "work_mem", "1GB"))
    for i in range(len(answer)):
        backend.says(answer[i : i + 1])
    assert backend.is_idle()
    assert client.session.wanted.by_name == {"work_mem": "1GB"}
    assert client.got() == []


@pytest.mark.parametrize(
    "answer",
    [
        error("57014") + ready(),
        message(b"D", b"\0\1\0\0\0\1x") + done("SELECT 1") + ready(),
        message(b"D", b"\0\3\0\0\0\1x\0\0\0\1x\0\0\0\x7fx") + done("SELECT 1") + ready(),
        message(b"D", b"") + done("SELECT 1") + ready(),
        kept(("user", "work_mem", "x" * HELD_LIMIT)),
        kept(("user", "work_mem", "x" * 2_000_000)),
        kept(*[("user", f"n{i}", "x" * 1000) for i in range(100)]),
        kept(("superuser", "work_mem", "1GB")),
    ],
    ids=["error", "columns", "short", "empty", "large", "larger", "many", "superuser"],
)
def test_an_answer_that_is_of_no_use_pins(answer: bytes) -> None:
    world, client, backend = scene()
    sets(client, backend)
    for i in range(0, len(answer), 50_000):
        backend.says(answer[i : i + 50_000])
    assert client.session.pin == "settings"
    assert client.got() == []
    assert not backend.is_idle()
    client.sends(query("SELECT 'x'"))
    assert backend.got() == ["Q SELECT 'x'"]
    backend.says(selected("x"))
    assert client.got() == ANSWER
    # what is set next makes it ask again for all of it
    asked = sets(client, backend, "RESET work_mem")
    assert "work_mem" in asked or " AND NOT name " in asked
    backend.says(kept())
    assert client.session.pin == ""
    assert backend.is_idle()
    assert world.pool.stats.pins_set == world.pool.stats.pins_released == 1


def test_more_names_than_are_asked_for_pin() -> None:
    _, client, backend = scene()
    asked = sets(client, backend, "; ".join(f"SET my.n{i} = 1" for i in range(51)))
    assert client.session.pin == "settings"
    assert asked.count("my.n") == 50
    assert "set_config('txproxy.hidden','on',false)" in asked
    backend.says(kept(("hidden", "", "on")))
    assert client.session.pin == "settings"


def test_a_name_that_nobody_knows_pins_until_all_are_reset() -> None:
    world, client, backend = scene()
    sql = "SELECT set_config('my.' || 'own', 'x', false)"
    assert "set_config('txproxy.hidden','on',false)" in sets(client, backend, sql)
    backend.says(kept(("hidden", "", "on")))
    assert client.session.pin == "settings"
    for value, pin in (("on", "settings"), ("", "")):
        asked = sets(client, backend, "RESET ALL")
        assert "current_setting('txproxy.hidden',true)" in asked
        assert "set_config" not in asked
        backend.says(kept(("hidden", "", value)))
        assert client.session.pin == pin
    assert backend.is_idle()
    assert world.pool.stats.pins_released == 1


def test_another_such_name_while_the_question_is_on_its_way() -> None:
    _, client, backend = scene()
    sql = "SELECT set_config('my.' || 'own', 'x', false)"
    sets(client, backend, sql)
    backend.says(kept(("hidden", "", "on")))
    sets(client, backend, "RESET ALL")
    client.sends(query(sql))
    backend.says(kept(("hidden", "", "")))
    backend.got()
    backend.says(selected("x"))
    assert "set_config('txproxy.hidden','on',false)" in question(backend)
    backend.says(kept(("hidden", "", "on")))
    assert client.session.pin == "settings"


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
@pytest.mark.parametrize(
    ("sql", "pin"),
    [
        ("; SET my.own = 'x'", "settings"),
        ('; SET SESSION "my" . own = 1', "settings"),
        ("; SELECT set_config('my' || '.own', 'x', false)", "settings"),
        ("; SET work_mem = '1GB'; UPDATE t SET x = 1; reset my.own", ""),
    ],
)
def test_a_text_in_pieces_that_may_set_what_cannot_be_seen_keeps_its_pin(
    sql: str, pin: str, size: int, extended: bool
) -> None:
    _, client, backend = scene()
    text = "SELECT '" + "x" * HELD_LIMIT + "'" + sql
    asked = unit(text) if extended else query(text)
    assert client.session.scanned == b""
    for i in [0, *range(HELD_LIMIT + 5, len(asked), size)]:
        client.sends(asked[i : HELD_LIMIT + 5 if i == 0 else i + size])
    assert client.session.scanned == b""
    assert "cannot judge" in client.session.pin
    backend.says(b"1\0\0\0\4" * extended, b"2\0\0\0\4" * extended, done("SELECT 1"), ready())
    backend.says(kept(("hidden", "", "on")) if pin else kept())
    assert client.session.pin == pin


@pytest.mark.parametrize("how", ["asking", "due"])
def test_a_client_that_leaves_before_the_answer_leaves_a_backend_that_is_reset(how: str) -> None:
    _, client, backend = scene()
    if how == "asking":
        sets(client, backend)
        client.leaves()
        backend.says(kept(("user", "work_mem", "1GB")))
    else:
        client.sends(query("SET work_mem = '1GB'"))
        client.leaves()
        backend.says(done("SET"), ready())
        backend.reads_cancel()
    assert backend.got()[-2:] == CLEANING
    assert not backend.is_idle()


def test_a_backend_that_is_lost_while_it_is_asked_takes_its_session_along() -> None:
    _, client, backend = scene()
    sets(client, backend)
    backend.dies()
    assert client.got() == ["E FATAL 08006"]
    assert client.error["H"] == "The session had state of its own on that backend (settings)."


def test_a_setting_that_is_lost_with_its_transaction_is_forgotten() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET work_mem = '1GB'"))
    backend.says(done("SET"), ready("T"))
    client.got()
    backend.dies()
    client.sends(query("ROLLBACK"))
    assert client.got() == ["C ROLLBACK", "Z I"]
    assert client.session.kept is None


def test_who_is_reaped_is_asked_about_before_the_backend_is_anothers() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET work_mem = '1GB'"))
    backend.says(done("SET"), ready("T"))
    backend.got()
    client.got()
    reap(world, client, backend)
    question(backend)
    assert not backend.is_idle()
    backend.says(kept())
    assert backend.is_idle()
    client.sends(query("SELECT 1"))
    assert client.got() == ["E ERROR 25P03", "Z E"]


@pytest.mark.parametrize("end", ["COMMIT AND CHAIN", "COMMIT; BEGIN"])
def test_what_was_committed_stays_when_the_next_transaction_of_a_chain_is_lost(end: str) -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready("T"))
    client.sends(query(end))
    backend.says(done("COMMIT"), ready("T"))
    backend.got()
    client.got()
    world.sleeps(11)
    assert client.state == "REAPED"
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert "source" in question(backend)
    backend.says(kept(("user", "timezone", "Asia/Tokyo")))
    assert backend.is_idle()
    # it has heard of that already, and it holds
    assert client.got() == []
    assert client.session.wanted.by_name == {"timezone": "Asia/Tokyo"}
    world.client().sends(query("SELECT 1"))
    assert backend.got() == ["Q RESET timezone", "Q SELECT 1"]


def test_a_client_that_leaves_in_a_chain_leaves_a_backend_that_is_reset() -> None:
    _, client, backend = scene()
    begin(client, backend)
    client.sends(query("SET TimeZone = 'Asia/Tokyo'"))
    backend.says(done("SET"), parameter("TimeZone", "Asia/Tokyo"), ready("T"))
    client.sends(query("COMMIT AND CHAIN"))
    backend.says(done("COMMIT"), ready("T"))
    backend.got()
    client.leaves()
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert backend.got() == CLEANING


def test_no_question_while_a_cancel_is_on_its_way() -> None:
    _, client, backend = scene()
    client.sends(query("SET work_mem = '1GB'"))
    client.session.pool.outside.now += 1
    backend.backend.cancel()
    backend.got()
    backend.says(done("SET"), ready())
    assert backend.got() == []
    assert not backend.is_idle()
    backend.reads_cancel()
    question(backend)
    backend.says(kept(("user", "work_mem", "1GB")))
    assert backend.is_idle()


def test_start_up_settings_come_back_before_the_question() -> None:
    world, _, backend = scene()
    client = world.client(work_mem="1MB")
    client.sends(query("RESET ALL"))
    backend.got()
    backend.says(done("RESET"), ready())
    assert "set_config('work_mem','1MB',false)" in question(backend)
    backend.says(done("SELECT 1"), ready())
    question(backend)
    backend.says(kept(("user", "work_mem", "1MB")))
    assert client.session.wanted is client.session.start
    assert backend.is_idle()


# Replaying.


def as_bob() -> tuple[World, FakeClient, FakeBackend]:
    """A client that is bob by SET ROLE; its backend has been used by another."""
    world, client, backend = scene(pool_size=1)
    sets(client, backend, "SET ROLE bob")
    backend.says(kept(("custom", "role", "bob")))
    other = world.client()
    other.sends(query("SELECT 'x'"))
    assert backend.got() == ["Q RESET role", "Q SELECT 'x'"]
    backend.says(done("RESET"), ready(), selected("x"))
    assert other.got() == ANSWER
    return world, client, backend


def test_who_the_session_is_must_be_answered_before_its_statement_is_sent() -> None:
    _, client, backend = as_bob()
    client.sends(query("SELECT 'x'"), query("SELECT 'y'"))
    assert backend.got() == ["Q SELECT pg_catalog.set_config('role','bob',false)"]
    client.sends(query("SELECT 'z'"))
    assert backend.got() == []
    backend.says(done("SELECT 1"), ready())
    assert backend.got() == ["Q SELECT 'x'", "Q SELECT 'y'", "Q SELECT 'z'"]
    backend.says(selected("x"), selected("y"), selected("z"))
    assert [text for text in client.got() if text[0] == "D"] == ["D x", "D y", "D z"]
    # it has that role now
    client.sends(query("SELECT 'x'"))
    assert backend.got() == ["Q SELECT 'x'"]


@pytest.mark.parametrize("extended", [False, True])
def test_a_role_that_is_refused_is_the_clients_error(extended: bool) -> None:
    world, client, backend = as_bob()
    client.sends(unit("SELECT 'x'") if extended else query("SELECT 'x'"))
    backend.got()
    backend.says(error("42501"), ready())
    assert client.got() == ["E ERROR 42501", "Z I"]
    assert client.state == "NONE"
    assert backend.got() == CLEANING
    backend.says(done("RESET"), ready(), done("DISCARD ALL"), ready())
    assert backend.is_idle()
    other = world.client()
    other.sends(query("SELECT 'x'"))
    assert backend.got() == ["Q SELECT 'x'"]


def test_a_role_that_is_refused_behind_a_deferred_begin_fails_the_transaction() -> None:
    world, client, backend = scene(pool_size=1, deferred_begin=True)
    sets(client, backend, "SET ROLE bob")
    backend.says(kept(("custom", "role", "bob")))
    other = world.client()
    other.sends(query("SELECT 'x'"))
    backend.says(done("RESET"), ready(), selected("x"))
    backend.got()
    client.sends(query("BEGIN"))
    client.sends(query("INSERT INTO t VALUES (1)"))
    assert backend.got() == ["Q SELECT pg_catalog.set_config('role','bob',false)"]
    backend.says(error("42501"), ready())
    assert client.got() == ["C BEGIN", "Z T", "E ERROR 42501", "Z E"]
    client.sends(query("INSERT INTO t VALUES (2)"), query("ROLLBACK"))
    assert client.got() == ["E ERROR 25P02", "Z E", "C ROLLBACK", "Z I"]
    assert backend.got() == CLEANING


def test_a_backend_that_is_lost_before_it_has_taken_the_role_is_replaced() -> None:
    world, client, backend = as_bob()
    client.sends(query("SELECT 'x'"))
    backend.dies()
    second = world.connects()
    assert second.got() == ["Q SELECT pg_catalog.set_config('role','bob',false)"]
    second.says(done("SELECT 1"), ready())
    assert second.got() == ["Q SELECT 'x'"]
    second.says(selected("x"))
    assert client.got() == ANSWER


def test_a_client_that_leaves_while_its_role_is_on_its_way() -> None:
    _, client, backend = as_bob()
    client.sends(query("SELECT 'x'"))
    client.leaves()
    backend.got()
    backend.says(done("SELECT 1"), ready())
    assert backend.got() == CLEANING


def test_a_role_for_who_waits_in_the_queue() -> None:
    world, client, backend = as_bob()
    other = world.client()
    other.sends(query("SELECT 'x'"))
    client.sends(query("SELECT 'y'"))
    backend.got()
    backend.says(selected("x"))
    assert backend.got() == ["Q SELECT pg_catalog.set_config('role','bob',false)"]
    backend.says(done("SELECT 1"), ready())
    assert backend.got() == ["Q SELECT 'y'"]


def test_settings_for_a_server_that_we_have_not_met_must_be_answered_first() -> None:
    world, client, backend = scene()
    sets(client, backend)
    backend.says(kept(("user", "work_mem", "1GB")))
    world.pool.reconnect()
    assert backend.finished
    for waited_for in (True, False):
        client.sends(query("SELECT 'x'"))
        backend = world.connects() if waited_for else backend
        if waited_for:
            assert backend.got() == ["Q SELECT pg_catalog.set_config('work_mem','1GB',false)"]
            backend.says(done("SELECT 1"), ready())
        else:
            backend.backend.applied = world.client().session.wanted
        assert backend.got()[-1] == "Q SELECT 'x'"
        backend.says(selected("x"))
        client.got()


def test_values_that_are_not_ascii_come_behind_their_encoding() -> None:
    world, client, backend = scene(pool_size=1)
    sets(client, backend, "SET my.own = 'x'")
    backend.says(kept(("custom", "my.own", "Jürgen")))
    latin = world.client(client_encoding="LATIN1")
    latin.sends(query("SELECT 'x'"))
    backend.says(*[done("RESET") + ready()] * (len(backend.got()) - 1), selected("x"))
    client.sends(query("SELECT 'x'"))
    assert backend.got() == [
        "Q RESET client_encoding",
        "Q RESET client_encoding;SELECT pg_catalog.set_config('my.own','Jürgen',false)",
        "Q SELECT 'x'",
    ]


def test_an_idle_backend_that_has_the_settings_is_preferred() -> None:
    world, client, backend = scene(pool_size=3)
    others = [world.client() for _ in range(2)]
    sets(client, backend)
    for other in others:
        other.sends(query("SELECT 'x'"))
        world.connects()
    backend.says(kept(("user", "work_mem", "1GB")))
    for each in list(world.pool.backends):
        port = each.port
        assert isinstance(port, FakeBackend)
        if port is not backend:
            port.says(selected("x"))
            port.got()
    assert world.pool.idle[0] is backend.backend
    client.sends(query("SELECT 'x'"))
    assert backend.got() == ["Q SELECT 'x'"]
    backend.says(selected("x"))
    others[0].sends(query("SELECT 'x'"))
    assert backend.got() == []


# Pins.


@pytest.mark.parametrize(
    ("sql", "part", "others"),
    [
        ("CREATE TEMP TABLE t ()", "pg_depend", "pg_locks pg_cursors pg_prepared pg_settings"),
        ("SELECT pg_advisory_lock(1)", "pg_locks", "pg_depend pg_cursors pg_prepared pg_settings"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "pg_cursors", "pg_depend pg_locks"),
        ("PREPARE p AS SELECT 1", "pg_prepared_statements", "pg_depend pg_locks pg_cursors"),
        ("DO $$BEGIN END$$", "pg_depend", ""),
        ("CALL p()", "pg_locks", ""),
        ("FROBNICATE", "pg_settings", ""),
        ("CREATE FUNCTION f() BEGIN ATOMIC END", "pg_cursors", ""),
        ("CREATE TEMP TABLE t (); PREPARE p AS SELECT 1", "pg_prepared", "pg_locks pg_cursors"),
    ],
)
def test_a_look_is_at_what_the_reasons_call_for(sql: str, part: str, others: str) -> None:
    world, client, backend = scene()
    asked = sets(client, backend, sql)
    assert part in asked
    assert not [name for name in others.split() if name in asked]
    backend.says(kept())
    assert client.session.pin == ""
    assert backend.is_idle()
    assert backend.backend.dirty == ""
    stats = world.pool.stats
    assert (stats.pins_set, stats.pins_released) == (1, 1)


@pytest.mark.parametrize(
    ("sql", "looks"),
    [
        ("DROP TABLE t", True),
        ("SELECT pg_advisory_unlock(1)", True),
        ("CLOSE c", True),
        ("DEALLOCATE p", True),
        ("DISCARD ALL", True),
        ("RESET ALL", True),
        ("ALTER TABLE t SET SCHEMA public", True),
        ("CREATE TEMP TABLE another ()", True),
        ("SELECT 1", False),
        ("INSERT INTO t VALUES (1)", False),
        ("SET work_mem = '1GB'", False),
        ("COMMIT", False),
    ],
)
def test_a_pinned_session_is_looked_at_when_its_state_may_be_gone(sql: str, looks: bool) -> None:
    _, client, backend = scene()
    pinned(client, backend)
    client.sends(query(sql))
    backend.got()
    backend.says(done("OK"), ready())
    assert bool(backend.got()) is looks
    if looks:
        backend.says(kept())
        assert backend.is_idle()


def test_in_a_transaction_it_is_looked_at_at_the_end() -> None:
    _, client, backend = scene()
    pinned(client, backend)
    begin(client, backend)
    client.sends(query("DROP TABLE t"))
    backend.says(done("DROP TABLE"), ready("T"))
    assert backend.got() == ["Q DROP TABLE t"]
    client.sends(query("ROLLBACK"))
    backend.says(done("ROLLBACK"), ready())
    assert backend.got()[0] == "Q ROLLBACK"
    backend.says(kept(("temporary table", "", "")))
    assert client.session.pin == "temporary table"
    assert not backend.is_idle()


def test_the_reasons_are_what_is_found() -> None:
    _, client, backend = scene()
    sets(client, backend, "DO $$BEGIN END$$")
    backend.says(kept(("advisory lock", "", ""), ("PREPARE", "", ""), ("user", "work_mem", "1kB")))
    assert client.session.pin == "PREPARE, advisory lock"
    assert backend.backend.dirty == client.session.pin
    assert client.session.wanted.by_name == {"work_mem": "1kB"}


def test_what_a_prepared_statement_may_set_is_asked_for_when_it_is_gone() -> None:
    _, client, backend = scene()
    sets(client, backend, "PREPARE p AS SELECT set_config('my.own', 'x', false)")
    backend.says(kept(("PREPARE", "", ""), ("custom", "my.own", None)))
    client.sends(query("EXECUTE p"))
    backend.says(selected("x"))
    backend.got()
    client.got()
    backend.says(kept(("PREPARE", "", ""), ("custom", "my.own", "x")))
    assert "'{my.own}'" in sets(client, backend, "DEALLOCATE p")
    backend.says(kept(("custom", "my.own", "x")))
    assert client.session.pin == ""
    assert client.session.wanted.by_name == {"my.own": "x"}


def test_what_is_made_while_the_look_is_on_its_way_is_not_forgotten() -> None:
    _, client, backend = scene()
    pinned(client, backend)
    sets(client, backend, "DROP TABLE t")
    client.sends(query("CREATE TEMP TABLE t ()"))
    backend.says(kept())
    assert client.session.pin == "temporary table"
    backend.got()
    backend.says(done("CREATE TABLE"), ready())
    question(backend)
    backend.says(kept(("temporary table", "", "")))
    assert client.session.pin == "temporary table"


def test_what_is_set_while_the_look_finds_nothing_is_asked_for() -> None:
    """The pin that made the question unnecessary goes with the answer."""
    world, client, backend = scene()
    pinned(client, backend)
    sets(client, backend, "DROP TABLE t")
    client.sends(query("SET work_mem = '1GB'"))
    assert backend.got() == ["Q SET work_mem = '1GB'"]
    backend.says(kept())
    assert client.session.pin == ""
    backend.says(done("SET"), ready())
    assert "'{work_mem}'" in question(backend)
    backend.says(kept(("user", "work_mem", "1GB")))
    assert backend.is_idle()
    world.client().sends(query("SELECT 1"))
    assert backend.got() == ["Q RESET work_mem", "Q SELECT 1"]


def test_a_function_call_is_looked_at_each_time() -> None:
    _, client, backend = scene()
    for _ in range(2):
        client.sends(FUNCTION_CALL)
        assert client.session.pin == "FunctionCall"
        assert backend.got() == ["F"]
        backend.says(b"V\0\0\0\x08\xff\xff\xff\xff", ready())
        question(backend)
        backend.says(kept())
        assert backend.is_idle()


@pytest.mark.parametrize("lasting", ["LOAD 'lib'", "session mode", "client_encoding"])
def test_what_cannot_be_looked_at_lasts(lasting: str) -> None:
    world = World(pool_mode="session" if lasting == "session mode" else "transaction")
    client = world.client(client_encoding="SJIS" if lasting == "client_encoding" else "UTF8")
    client.sends(query(lasting if "LOAD" in lasting else "SELECT 'x'"))
    (backend,) = (each.port for each in world.pool.backends)
    assert isinstance(backend, FakeBackend)
    backend.says(selected("x"))
    client.sends(query("CREATE TEMP TABLE t ()"))
    backend.says(done("CREATE TABLE"), ready())
    client.sends(query("DISCARD ALL"))
    backend.got()
    backend.says(done("DISCARD ALL"), ready())
    assert not [said for said in backend.got() if "pg_depend" in said]
    assert lasting.partition(" '")[0] in client.session.pin
    assert not backend.is_idle()


def test_asyncpgs_reset_leaves_no_pin() -> None:
    _, client, backend = scene()
    pinned(client, backend)
    sets(client, backend, "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;")
    backend.says(kept())
    assert client.session.pin == ""
    assert backend.is_idle()


@pytest.mark.parametrize("last", ["'", "SELECT set_config($1, 'x', false)"])
def test_all_reasons_have_a_name(last: str) -> None:
    """What comes last holds all behind it."""
    _, client, _ = scene()
    said = (
        "CREATE TEMP TABLE t ()", "SELECT pg_advisory_lock(1)", "PREPARE p AS SELECT 1",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "LOAD 'lib'", "DO $$BEGIN END$$", "CALL p()",
        "FROBNICATE", last,
    )  # fmt: skip
    for sql in said:
        client.sends(query(sql))
    kept_now = client.session.kept
    assert kept_now is not None
    assert len(kept_now.reasons) == len(said)
    assert set(kept_now.reasons) <= set(REASONS)
