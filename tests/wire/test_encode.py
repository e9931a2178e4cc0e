import pytest
from hypothesis import given
from hypothesis import strategies as st

from txproxy.wire import encode
from txproxy.wire.messages import error_fields, int32, is_fatal, parameter_status

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (encode.SYNC, b"S\0\0\0\4"),
        (encode.TERMINATE, b"X\0\0\0\4"),
        (encode.AUTHENTICATION_OK, b"R\0\0\0\x08\0\0\0\0"),
        (encode.NO_PARAMETERS, b"t\0\0\0\6\0\0"),
        (encode.ready(0x49), b"Z\0\0\0\5I"),
        (encode.query(b"SELECT 1"), b"Q\0\0\0\x0dSELECT 1\0"),
        (encode.copy_fail("no"), b"f\0\0\0\7no\0"),
        (encode.describe_statement(b"s1"), b"D\0\0\0\x08Ss1\0"),
        (encode.command_complete(b"SET"), b"C\0\0\0\x08SET\0"),
        (encode.parameter_status("a", "b"), b"S\0\0\0\x08a\0b\0"),
        (encode.backend_key_data(1, b"key!"), b"K\0\0\0\x0c\0\0\0\1key!"),
        (encode.negotiate_version(0, ["_pq_.x"]), b"v\0\0\0\x13\0\3\0\0\0\0\0\1_pq_.x\0"),
        (encode.data_row("ab"), b"D\0\0\0\x0c\0\1\0\0\0\2ab"),
        (encode.startup({"user": "a"}), b"\0\0\0\x10\0\3\0\0user\0a\0\0"),
        (encode.cancel_request(1, b"key!"), b"\0\0\0\x10\4\xd2\x16\x2e\0\0\0\1key!"),
        (
            encode.row_description("x"),
            b"T\0\0\0\x1a\0\1x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
        ),
        (
            encode.error("ERROR", "22012", "no"),
            b"E\0\0\0\x1eSERROR\0VERROR\0C22012\0Mno\0\0",
        ),
    ],
)
def test_messages_as_the_specification_has_them(message: bytes, data: bytes) -> None:
    assert message == data


@given(st.sampled_from([b"Q", b"d", b"E"]), st.binary(max_size=300))
def test_the_length_counts_itself_and_the_body(kind: bytes, body: bytes) -> None:
    message = encode.message(kind, body)
    assert message[:1] == kind
    assert int32(message, 1) == len(message) - 1 == len(body) + 4
    assert message[5:] == body


@given(texts, texts, texts)
def test_an_error_says_what_it_was_told(text: str, detail: str, hint: str) -> None:
    said = error_fields(encode.error("ERROR", "25P03", text, detail=detail, hint=hint)[5:])
    assert said.pop("D", "") == detail
    assert said.pop("H", "") == hint
    assert said == {"S": "ERROR", "V": "ERROR", "C": "25P03", "M": text}


@pytest.mark.parametrize("severity", ["FATAL", "ERROR"])
def test_a_servers_error_under_another_severity(severity: str) -> None:
    fields = {"S": "FATAL", "C": "57P01", "M": "bye", "D": "why", "H": "what", "F": "postgres.c"}
    said = error_fields(encode.error_of(severity, fields)[5:])
    assert said == {
        "S": severity, "V": severity, "C": "57P01", "M": "bye", "D": "why", "H": "what",
    }  # fmt: skip


def test_a_servers_error_without_words() -> None:
    said = error_fields(encode.error_of("ERROR", {})[5:])
    assert (said["C"], said["M"]) == ("XX000", "the server gave no message")


def test_an_error_can_become_fatal_as_it_is() -> None:
    response = encode.error("ERROR", "42501", "SERROR VERROR")
    fatal = encode.as_fatal(response)
    assert len(fatal) == len(response)
    assert is_fatal(fatal[5:])
    assert error_fields(fatal[5:]) == {
        "S": "FATAL", "V": "FATAL", "C": "42501", "M": "SERROR VERROR",
    }  # fmt: skip


def test_a_nul_in_a_text_cannot_end_it() -> None:
    assert encode.parameter_status("a", "b\0c") == b"S\0\0\0\x09a\0bc\0"


def test_bytes_that_are_no_utf_8_go_through_unchanged() -> None:
    name, value = parameter_status(b"application_name\0caf\xe9\0")
    assert encode.parameter_status(name, value)[5:] == b"application_name\0caf\xe9\0"
