import pytest
from hypothesis import given
from hypothesis import strategies as st

from txproxy.wire import encode, messages
from txproxy.wire.codes import PROTOCOL_3_0
from txproxy.wire.messages import Startup

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(st.integers(0, 2**32 - 1), st.binary(max_size=4))
def test_numbers_are_unsigned_and_big_endian(number: int, ahead: bytes) -> None:
    assert messages.int32(ahead + number.to_bytes(4, "big"), len(ahead)) == number


@given(texts, texts)
def test_parameter_status_there_and_back(name: str, value: str) -> None:
    assert messages.parameter_status(encode.parameter_status(name, value)[5:]) == (name, value)


@pytest.mark.parametrize("body", [b"", b"a", b"a\0", b"a\0b", b"a\0b\0c\0"])
def test_a_malformed_parameter_status_has_no_name(body: bytes) -> None:
    assert messages.parameter_status(body) == ("", "")


@given(st.dictionaries(names, texts))
def test_start_up_parameters_there_and_back(parameters: dict[str, str]) -> None:
    assert Startup(PROTOCOL_3_0, encode.startup(parameters)[8:]).parameters() == parameters


@given(st.binary(max_size=50))
def test_nothing_that_is_read_raises(body: bytes) -> None:
    messages.parameter_status(body)
    messages.error_fields(body)
    messages.is_fatal(body)
    messages.strings(body, 0, len(body))
    Startup(PROTOCOL_3_0, body).parameters()
    Startup(PROTOCOL_3_0, body).cancel_key()


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"", []), (b"a", []), (b"a\0", [b"a"]), (b"a\0\0b\0c", [b"a", b"", b"b"])],
)
def test_strings_end_with_nul(data: bytes, found: list[bytes]) -> None:
    assert messages.strings(data, 0, len(data)) == found
    assert messages.strings(b"x\0" + data + b"y\0", 2, 2 + len(data)) == found


@pytest.mark.parametrize(
    ("severity", "fatal"), [("ERROR", False), ("FATAL", True), ("PANIC", True), ("NOTICE", False)]
)
def test_what_ends_a_connection(severity: str, fatal: bool) -> None:
    assert messages.is_fatal(encode.error(severity, "57P01", "VFATAL")[5:]) is fatal


def test_the_severity_counts_that_is_not_translated() -> None:
    assert messages.is_fatal(b"SSCHWERWIEGEND\0VFATAL\0C57P01\0Mx\0\0")
    assert not messages.is_fatal(b"SFEHLER\0VERROR\0C57P01\0Mx\0\0")


def test_error_fields_by_their_letter() -> None:
    assert messages.error_fields(b"SERROR\0C42P01\0P15\0\0") == {
        "S": "ERROR", "C": "42P01", "P": "15",
    }  # fmt: skip
