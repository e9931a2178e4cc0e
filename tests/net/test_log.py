"""The log: whatever values hold, an event is one line, and JSON is JSON."""

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from txproxy.net import log
from txproxy.net.log import LOGGER, JsonFormatter, TextFormatter

ANY_TEXT = st.text(st.characters())  # halves of surrogate pairs too
EVIL = "x\n2026-11-21 21:31:00.123 INFO reaped user=root\r\x1b[2J\u2028\x85\x00\udcff"
START = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ ")


def record(fields: dict[str, Any] | None = None, error: Exception | None = None) -> Any:
    """A record of an event."""
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("txproxy", logging.INFO, "", 1, "event", (), info)
    if fields is not None:
        made.fields = fields
    return made


def text(fields: dict[str, Any] | None = None, error: Exception | None = None) -> str:
    return TextFormatter().format(record(fields, error))


def as_json(fields: dict[str, Any] | None = None, error: Exception | None = None) -> dict[str, Any]:
    """What a strict reader finds in the line."""
    line = JsonFormatter().format(record(fields, error))
    assert line.splitlines() == [line]

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    read: dict[str, Any] = json.loads(line, parse_constant=refuse)
    json.dumps(read, ensure_ascii=False).encode()  # raises on half a surrogate pair
    return read


def raised(message: str) -> Exception:
    """An exception with a traceback, from a frame that knows a secret."""
    password = "hunter" + "2"

    def deeper(_secret: str) -> None:
        raise ValueError(message)

    try:
        deeper(password)
    except ValueError as error:
        return error
    raise AssertionError


# As text.


def test_a_line() -> None:
    fields = {"pool": "app/web", "number": 3, "said": 'a "b"', "nothing": "", "is": "a=b"}
    stamp, word, rest = text(fields).partition(" INFO ")
    assert START.match(stamp + word)
    assert rest == r'event pool=app/web number=3 said="a \"b\"" nothing="" is="a=b"'


def test_its_time_is_the_record_s() -> None:
    made = record()
    made.created, made.msecs = 1_000_000_000.25, 250.0
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_000_000_000))
    assert TextFormatter().format(made) == f"{stamp}.250 INFO event"
    assert json.loads(JsonFormatter().format(made))["time"] == 1_000_000_000.25


@given(ANY_TEXT)
def test_a_value_is_on_one_line_and_can_be_read_back(value: str) -> None:
    line = text({"value": value, "last": 1})
    assert line.isprintable()
    line.encode()
    found = re.fullmatch(r".* INFO event value=(.*) last=1", line)
    assert found
    word = found[1]
    assert (json.loads(word) if word.startswith('"') else word) == value


@pytest.mark.parametrize(
    "value",
    [EVIL, [EVIL], {"tag": EVIL}, EVIL.encode("utf-8", "surrogateescape"), ValueError(EVIL)],
)
def test_no_value_makes_a_line(value: object) -> None:
    assert text({"value": value}).isprintable()


def test_a_traceback_is_indented() -> None:
    first, *others = text({"where": "x"}, raised("no")).splitlines()
    assert START.match(first)
    assert others[0] == "    Traceback (most recent call last):"
    assert others[-1] == "    ValueError: no"


def test_an_error_s_text_makes_no_event_either() -> None:
    first, *others = text({}, raised(EVIL)).split("\n")
    assert START.match(first)
    for line in others:
        assert line.startswith("    ")
        assert line.isprintable()
    assert r"\x1b" in "".join(others)


# As JSON.


@given(ANY_TEXT)
def test_json_holds_any_text(value: str) -> None:
    plain = value.encode("utf-8", "backslashreplace").decode()
    read = as_json({"value": value, "list": [value], "tags": {value: value}})
    assert read["value"] == plain
    assert read["list"] == [plain]
    assert read["tags"] == {plain: plain}


def test_json_of_what_json_does_not_have() -> None:
    read = as_json(
        {
            "inf": float("inf"),
            "nan": float("nan"),
            "bytes": b"\xff",
            "error": ValueError("no"),
            "tuple": (1, 2.5, True, None),
            "keys": {1: 2},
            "big": 10**30,
        }
    )
    assert read["inf"] == "inf"
    assert read["nan"] == "nan"
    assert read["bytes"] == r"b'\xff'"
    assert read["error"] == "no"
    assert read["tuple"] == [1, 2.5, True, None]
    assert read["keys"] == {"1": 2}
    assert read["big"] == 10**30


def test_json_of_a_traceback() -> None:
    read = as_json({"where": "x"}, raised(EVIL))
    assert list(read) == ["time", "level", "event", "where", "traceback"]
    assert read["traceback"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("shown", [text, as_json])
def test_a_traceback_has_no_variables(shown: Any) -> None:
    assert "hunter2" not in str(shown({}, raised("no")))


# Set up.


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The project's logger, put back afterwards."""
    before = (LOGGER.handlers[:], LOGGER.level, LOGGER.propagate)
    yield LOGGER
    LOGGER.handlers[:], LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], level: str, seen: list[str]
) -> None:
    log.set_up("json", level)
    log.set_up("json", level)  # a second time makes no second handler
    for name in ("debug", "info", "warning", "error"):
        getattr(logger, name)(f"it is {name}")
    out, err = capsys.readouterr()
    assert out == ""
    read = [json.loads(line) for line in err.splitlines()]
    assert [(each["level"], each["event"]) for each in read] == [
        (name, f"it is {name}") for name in seen
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_nobody_catches_is_a_bug(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    log.set_up(log_format, "info")

    def fail() -> None:
        raise ValueError(EVIL)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log.unhandled)
        loop.call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    uvloop.run(main())
    err = capsys.readouterr().err
    if log_format == "json":
        [read] = [json.loads(line) for line in err.splitlines()]
        assert (read["level"], read["event"]) == ("error", "bug")
        assert "ValueError" in read["traceback"]
    else:
        first, *others = err.rstrip("\n").split("\n")
        assert " ERROR bug where=" in first
        assert all(line.startswith("    ") for line in others)


def test_a_reader_that_has_gone_ends_nothing(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def write(self, _text: str) -> None:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    log.set_up("text", "info")
    logger.info("nobody reads it")
