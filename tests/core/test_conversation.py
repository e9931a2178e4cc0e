"""What the console answers, message by message, and to whom."""

import struct

import pytest

from tests.core.scenario import (
    FLUSH,
    FUNCTION_CALL,
    SYNC,
    bind,
    close,
    copy_data,
    describe,
    execute,
    from_server,
    parse,
    query,
    split,
    unit,
)
from txproxy.core.console import ADMIN, ANYBODY, COMMANDS, STATS, Call
from txproxy.core.conversation import Conversation, Wait
from txproxy.core.rows import Table
from txproxy.core.tables import COLUMNS
from txproxy.errors import TxproxyError
from txproxy.wire.encode import message
from txproxy.wire.messages import error_fields

BIND_PARAMETER = message(b"B", b"\0\0\0\0\0\1\0\0\0\1x\0\0")


class FakeAdmin:
    """What the console is told to do is written down."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str, str, str]] = []
        self.texts: list[bool] = []
        self.done = False
        self.undone = 0

    def show(self, name: str, texts: bool) -> Table:
        self.texts.append(texts)
        count = len(COLUMNS[name])
        rows: list[tuple[str | int | None, ...]] = [(None,) * count] * 3
        return Table(COLUMNS[name], rows)

    def run(self, call: Call, user: str) -> Wait | None:
        self.ran.append((user, call.command.name, call.argument, call.value))
        if call.command.name == "RELOAD":
            raise TxproxyError("it is wrong", hint="put it right", sqlstate="F0000")
        if call.command.name == "PAUSE":
            return Wait(lambda: self.done, self._undo)
        return None

    def _undo(self) -> None:
        self.undone += 1


class Console:
    """A client of the console, and its conversation."""

    def __init__(self, role: int = ADMIN) -> None:
        self.admin = FakeAdmin()
        self.conversation = Conversation(self.admin)
        self.conversation.user = "ann"
        self.conversation.role = role
        self.error: dict[str, str] = {}

    def says(self, *messages: bytes) -> list[str]:
        """The answers to these messages, as short texts."""
        sent, rest = split(b"".join(messages))
        assert not rest
        return self.heard(b"".join(self.conversation.take(ord(kind), body) for kind, body in sent))

    def heard(self, data: bytes) -> list[str]:
        said, rest = split(data)
        assert not rest
        for kind, body in said:
            if kind == "E":
                self.error = error_fields(body)
        return [kind if kind == "D" else from_server(kind, body) for kind, body in said]


# The simple protocol.


def test_a_table() -> None:
    console = Console()
    assert console.says(query("SHOW POOLS;")) == ["T", "D", "D", "D", "C SHOW", "Z I"]


def test_a_command() -> None:
    console = Console()
    assert console.says(query("RECONNECT app")) == ["C RECONNECT", "Z I"]
    assert console.says(query("SET query_timeout = '5s'")) == ["C SET", "Z I"]
    assert console.admin.ran == [
        ("ann", "RECONNECT", "app", ""),
        ("ann", "SET", "query_timeout", "5s"),
    ]


def test_what_a_command_raises_is_its_answer() -> None:
    console = Console()
    assert console.says(query("RELOAD")) == ["E ERROR F0000", "Z I"]
    assert console.error["M"] == "it is wrong"
    assert console.error["H"] == "put it right"


def test_nothing_and_nonsense() -> None:
    console = Console()
    assert console.says(query("")) == ["I", "Z I"]
    assert console.says(query("SELECT 1")) == ["E ERROR 42601", "Z I"]
    assert console.error["M"] == "invalid command 'SELECT 1', use SHOW HELP;"


def test_a_transaction_has_its_status_and_no_effect() -> None:
    console = Console()
    assert console.says(query("BEGIN")) == ["C BEGIN", "Z T"]
    assert console.says(query("SHOW VERSION"))[-2:] == ["C SHOW", "Z T"]
    assert console.says(query("RECONNECT")) == ["C RECONNECT", "Z T"]
    assert console.says(query("COMMIT")) == ["C COMMIT", "Z I"]
    assert console.says(query("START TRANSACTION")) == ["C BEGIN", "Z T"]
    assert console.says(query("ROLLBACK")) == ["C ROLLBACK", "Z I"]
    assert [name for _, name, *_ in console.admin.ran] == ["RECONNECT"]


def test_a_transaction_fails_until_it_ends() -> None:
    console = Console()
    console.says(query("BEGIN"))
    assert console.says(query("nonsense")) == ["E ERROR 42601", "Z E"]
    assert console.says(query("SHOW VERSION")) == ["E ERROR 25P02", "Z E"]
    assert console.says(query("SHUTDOWN")) == ["E ERROR 25P02", "Z E"]
    assert console.admin.ran == []
    assert console.says(query("COMMIT")) == ["C ROLLBACK", "Z I"]
    assert console.says(query("SHOW VERSION"))[-1] == "Z I"


def test_what_drivers_set_and_ask() -> None:
    console = Console(ANYBODY)
    assert console.says(query("SET datestyle TO 'ISO'")) == ["C SET", "Z I"]
    assert console.says(query("SHOW client_encoding")) == ["T", "D", "C SHOW", "Z I"]
    assert console.says(query("SET application_name = 'me'")) == [
        "S application_name=me",
        "C SET",
        "Z I",
    ]
    assert console.says(query("DISCARD ALL")) == ["S application_name=", "C RESET", "Z I"]
    assert console.admin.ran == []


def test_shown_parameters_are_what_was_reported() -> None:
    console = Console()
    console.says(query("SET application_name = 'me'"))
    [described, row, *_] = split(console.conversation.take(ord("Q"), b"SHOW application_name\0"))[0]
    assert described[1].startswith(b"\0\1application_name\0")
    assert row[1] == b"\0\1\0\0\0\2me"


def test_function_calls_and_copy_data() -> None:
    console = Console()
    assert console.says(FUNCTION_CALL) == ["E ERROR 0A000", "Z I"]
    assert console.says(copy_data("x"), FLUSH) == []


# Who may do what.


@pytest.mark.parametrize("command", COMMANDS.values(), ids=str)
@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("role", [ANYBODY, STATS, ADMIN])
def test_each_command_needs_its_role(command: object, extended: bool, role: int) -> None:
    console = Console(role)
    text = _example(str(command))
    said = console.says(unit(text) if extended else query(text))
    needs = COMMANDS[_name(str(command))].needs
    if role < needs:
        assert "E ERROR 42501" in said
        assert said[-1] == "Z I"
        assert "permission denied" in console.error["M"]
        assert console.admin.ran == []
        assert console.admin.texts == []
    else:
        assert "E ERROR 42501" not in said


def _name(command: str) -> str:
    return next(
        name
        for name in sorted(COMMANDS, key=len, reverse=True)
        if command == name or command.startswith(f"{name} ")
    )


def _example(command: str) -> str:
    """A text that gives it."""
    examples = {
        "SET": "SET query_timeout = 1",
        "SET parameter": "SET timezone = 'UTC'",
        "SHOW parameter": "SHOW timezone",
        "RESET": "RESET ALL",
        "KILL_CLIENT": "KILL_CLIENT 1",
        "REAP": "REAP 1",
        "ENABLE": "ENABLE app",
        "DISABLE": "DISABLE app",
    }
    name = _name(command)
    return examples.get(name, name)


def test_only_admins_see_statements() -> None:
    for role, texts in ((STATS, False), (ADMIN, True)):
        console = Console(role)
        console.says(query("SHOW TRANSACTIONS"), unit("SHOW REAPED"))
        assert console.admin.texts == [texts, texts]


def test_the_role_is_that_of_the_moment() -> None:
    """What an admin has prepared does not run for somebody else."""
    console = Console()
    console.says(parse("SHUTDOWN", "s"), bind("s"), SYNC)
    console.conversation.role = STATS
    assert console.says(bind("s"), execute(), SYNC) == ["2", "E ERROR 42501", "Z I"]
    assert console.admin.ran == []


# The extended protocol.


def test_a_unit() -> None:
    console = Console()
    assert console.says(
        parse("SHOW POOLS"), describe(), bind(), describe(what="P"), execute(), SYNC
    ) == ["1", "t", "T", "2", "T", "D", "D", "D", "C SHOW", "Z I"]
    assert console.says(parse("RECONNECT"), describe(), bind(), execute(), SYNC) == [
        "1",
        "t",
        "n",
        "2",
        "C RECONNECT",
        "Z I",
    ]


def test_an_empty_statement() -> None:
    console = Console()
    assert console.says(parse(""), bind(), describe(what="P"), execute(), SYNC) == [
        "1",
        "2",
        "n",
        "I",
        "Z I",
    ]


def test_results_in_binary() -> None:
    console = Console()
    console.says(parse("SHOW LISTS"))
    binary = message(b"B", b"\0\0" + struct.pack("!hhhh", 0, 0, 1, 1))
    assert console.says(binary) == ["2"]
    described = console.conversation.take(ord("D"), b"P\0")
    assert described.endswith(b"\0\1")


def test_formats_that_do_not_fit() -> None:
    console = Console()
    console.says(parse("SHOW LISTS"))
    three = message(b"B", b"\0\0" + struct.pack("!hhhhhh", 0, 0, 3, 1, 1, 1))
    assert console.says(three, SYNC) == ["E ERROR 08P01", "Z I"]


def test_after_an_error_everything_is_skipped_up_to_sync() -> None:
    console = Console()
    assert console.says(
        parse("nonsense"), bind(), describe(), execute(), query("RECONNECT"), FUNCTION_CALL, SYNC
    ) == ["E ERROR 42601", "Z I"]
    assert console.admin.ran == []
    assert console.says(unit("RECONNECT")) == ["1", "2", "C RECONNECT", "Z I"]


def test_an_error_fails_the_transaction() -> None:
    console = Console()
    assert console.says(unit("BEGIN"))[-1] == "Z T"
    assert console.says(unit("nonsense")) == ["E ERROR 42601", "Z E"]
    assert console.says(unit("SHOW VERSION")) == ["1", "2", "E ERROR 25P02", "Z E"]
    assert console.says(unit("COMMIT")) == ["1", "2", "C ROLLBACK", "Z I"]


def test_a_query_behind_a_unit_without_sync() -> None:
    """As the proxy sends it: a deferred BEGIN, then the client's Query."""
    console = Console()
    assert console.says(parse("BEGIN"), bind(), execute(), query("SHOW VERSION")) == [
        "1",
        "2",
        "C BEGIN",
        "T",
        "D",
        "D",
        "D",
        "C SHOW",
        "Z T",
    ]


@pytest.mark.parametrize(
    "messages",
    [
        parse("SET query_timeout = $1"),
        message(b"P", b"\0SHOW POOLS\0\0\1\0\0\0\x19"),
    ],
    ids=["in the text", "by its type"],
)
def test_parameters_are_not_supported(messages: bytes) -> None:
    console = Console()
    assert console.says(messages, SYNC) == ["E ERROR 0A000", "Z I"]


def test_values_for_no_parameters() -> None:
    console = Console()
    assert console.says(parse("SHOW POOLS"), BIND_PARAMETER, SYNC) == ["1", "E ERROR 08P01", "Z I"]


def test_names() -> None:
    console = Console()
    assert console.says(parse("SHOW LISTS", "a"), SYNC) == ["1", "Z I"]
    assert console.says(parse("SHOW LISTS", "a"), SYNC) == ["E ERROR 42P05", "Z I"]
    assert console.says(bind("a", "p"), execute("p"), SYNC)[-2:] == ["C SHOW", "Z I"]
    assert console.says(execute("p"), SYNC) == ["E ERROR 34000", "Z I"]  # Sync has closed it
    assert console.says(describe("p", "P"), SYNC) == ["E ERROR 34000", "Z I"]
    assert console.says(close("a"), close("a"), SYNC) == ["3", "3", "Z I"]
    assert console.says(bind("a"), SYNC) == ["E ERROR 26000", "Z I"]
    assert console.says(describe("a"), SYNC) == ["E ERROR 26000", "Z I"]


def test_portals_live_as_long_as_a_transaction() -> None:
    console = Console()
    console.says(unit("BEGIN"), parse("SHOW LISTS", "a"), bind("a", "p"), SYNC)
    assert console.says(execute("p"), SYNC) == ["D", "D", "D", "C SHOW", "Z T"]
    assert console.says(close("p", "P"), execute("p"), SYNC) == ["3", "E ERROR 34000", "Z E"]


def test_rows_in_portions() -> None:
    console = Console()
    some = message(b"E", b"\0" + struct.pack("!i", 2))
    assert console.says(parse("SHOW LISTS"), bind(), some) == ["1", "2", "D", "D", "s"]
    assert console.says(some, some, SYNC) == ["D", "C SHOW", "C SHOW", "Z I"]
    assert len(console.admin.texts) == 1  # asked once


def test_a_command_runs_once_for_a_portal() -> None:
    console = Console()
    assert console.says(parse("RECONNECT"), bind(), execute(), execute(), SYNC) == [
        "1",
        "2",
        "C RECONNECT",
        "E ERROR 55000",
        "Z I",
    ]
    assert len(console.admin.ran) == 1


def test_there_is_an_end_to_what_is_kept() -> None:
    console = Console()
    for number in range(1000):
        assert console.says(parse("SHOW LISTS", f"s{number}")) == ["1"]
    assert console.says(parse("SHOW LISTS", "one more"), SYNC) == ["E ERROR 54000", "Z I"]
    assert console.says(query("DEALLOCATE ALL")) == ["C RESET", "Z I"]
    assert console.says(parse("SHOW LISTS", "one more"), SYNC) == ["1", "Z I"]


@pytest.mark.parametrize("kind", "PBDEC")
def test_a_malformed_message_is_an_error(kind: str) -> None:
    console = Console()
    for body in (b"abc", b"S", b"\0", b"\0\0\xff\xff\xff\xff"):
        said = console.says(message(kind.encode(), body), SYNC)
        assert said[-1] == "Z I"
        assert len(said) == 2
        assert said[0] == "3" if kind == "C" else said[0].startswith("E ERROR")


def test_messages_that_are_too_long() -> None:
    console = Console()
    heard = console.heard(console.conversation.too_long(ord("Q")))
    assert heard == ["E ERROR 54000", "Z I"]
    assert console.heard(console.conversation.too_long(ord("P"))) == ["E ERROR 54000"]
    assert console.heard(console.conversation.too_long(ord("B"))) == []
    assert console.says(execute(), SYNC) == ["Z I"]
    assert console.heard(console.conversation.too_long(ord("d"))) == []


# Commands that take their time.


def paused(*messages: bytes) -> Console:
    console = Console()
    assert console.says(*messages) == []
    assert console.conversation.waits is not None
    return console


def test_a_command_that_waits() -> None:
    console = paused(query("PAUSE"))
    assert console.conversation.waits is not None
    assert not console.conversation.waits.done()
    assert console.heard(console.conversation.answered()) == ["C PAUSE", "Z I"]
    assert console.conversation.waits is None


def test_a_command_that_waits_in_a_unit() -> None:
    console = Console()
    assert console.says(parse("PAUSE"), bind(), execute()) == ["1", "2"]
    assert console.heard(console.conversation.answered()) == ["C PAUSE"]
    assert console.says(SYNC) == ["Z I"]


@pytest.mark.parametrize("in_transaction", [False, True])
def test_it_is_cancelled(in_transaction: bool) -> None:
    console = Console()
    if in_transaction:
        console.says(query("BEGIN"))
    assert console.says(query("PAUSE")) == []
    status = "Z E" if in_transaction else "Z I"
    assert console.heard(console.conversation.cancelled()) == ["E ERROR 57014", status]
    assert console.conversation.waits is None


def test_it_is_cancelled_in_a_unit() -> None:
    console = Console()
    assert console.says(parse("PAUSE"), bind(), execute()) == ["1", "2"]
    assert console.heard(console.conversation.cancelled()) == ["E ERROR 57014"]
    assert console.says(query("RECONNECT"), SYNC) == ["Z I"]
    assert [name for _, name, *_ in console.admin.ran] == ["PAUSE"]


# The proxy's own words.


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SELECT pg_catalog.set_config('application_name','x''y',false)", "x'y"),
        (r"SELECT pg_catalog.set_config('application_name',E'a\\b',false)", r"a\b"),
        (
            "RESET a;SELECT pg_catalog.set_config('application_name','x',false)",
            "x",
        ),
    ],
)
def test_the_settings_of_the_session_whose_turn_has_come(text: str, name: str) -> None:
    console = Console(ANYBODY)
    body = text.encode() + b"\0"
    heard = [f"S application_name={name}", "C SELECT 1", "Z I"]
    assert console.heard(console.conversation.settings(body)) == heard
    assert console.heard(console.conversation.settings(body)) == heard[1:]
    assert console.heard(console.conversation.settings(b"RESET application_name\0")) == [
        "S application_name=",
        "C SELECT 1",
        "Z I",
    ]


@pytest.mark.parametrize("text", ["ROLLBACK", "RESET ROLE", "DISCARD ALL", "", "BEGIN", "COMMIT"])
def test_what_the_proxy_says_needs_no_role(text: str) -> None:
    said = Console(ANYBODY).says(query(text))
    assert not [each for each in said if each.startswith("E")]
