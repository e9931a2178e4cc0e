"""The few messages that we originate ourselves.

Source: PostgreSQL 18, section 54.7 "Message Formats" and 54.8 "Error and Notice Message Fields".
"""

from typing import Final

from txproxy.wire.codes import CANCEL_REQUEST, PROTOCOL_3_0

SYNC: Final = b"S\0\0\0\4"
FLUSH: Final = b"H\0\0\0\4"
TERMINATE: Final = b"X\0\0\0\4"
PARSE_COMPLETE: Final = b"1\0\0\0\4"
BIND_COMPLETE: Final = b"2\0\0\0\4"
CLOSE_COMPLETE: Final = b"3\0\0\0\4"
NO_DATA: Final = b"n\0\0\0\4"
NO_PARAMETERS: Final = b"t\0\0\0\6\0\0"
EMPTY_QUERY: Final = b"I\0\0\0\4"
AUTHENTICATION_OK: Final = b"R\0\0\0\x08\0\0\0\0"
_READY: Final = b"Z\0\0\0\5"
_TEXT_OID: Final = 25


def message(kind: bytes, body: bytes) -> bytes:
    """One message: its type byte, its length, its body."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape").replace(b"\0", b"") + b"\0"


def ready(status: int) -> bytes:
    """ReadyForQuery with a transaction status."""
    return _READY + bytes((status,))


def query(sql: bytes) -> bytes:
    """Query."""
    return message(b"Q", sql + b"\0")


def parse(sql: bytes) -> bytes:
    """Parse of the unnamed statement, without parameters."""
    return message(b"P", b"\0" + sql + b"\0\0\0")


BIND_UNNAMED: Final = message(b"B", b"\0" * 8)
"""Bind of the unnamed statement to the unnamed portal, without parameters."""

EXECUTE_UNNAMED: Final = message(b"E", b"\0" * 5)
"""Execute of the unnamed portal, all rows."""


CLOSE_UNNAMED_PORTAL: Final = message(b"C", b"P\0")
"""Close of the unnamed portal."""


def copy_fail(reason: str) -> bytes:
    """CopyFail, with the reason that the server repeats in its error."""
    return message(b"f", _text(reason))


def describe_statement(name: bytes) -> bytes:
    """Describe of a prepared statement."""
    return message(b"D", b"S" + name + b"\0")


def close_statement(name: bytes) -> bytes:
    """Close of a prepared statement."""
    return message(b"C", b"S" + name + b"\0")


def parameter_description(types: list[int]) -> bytes:
    """ParameterDescription of parameters with types of these oids."""
    oids = b"".join([oid.to_bytes(4, "big") for oid in types])
    return message(b"t", len(types).to_bytes(2, "big") + oids)


def command_complete(tag: bytes) -> bytes:
    """CommandComplete."""
    return message(b"C", tag + b"\0")


def parameter_status(name: str, value: str) -> bytes:
    """ParameterStatus."""
    return message(b"S", _text(name) + _text(value))


def backend_key_data(pid: int, secret: bytes) -> bytes:
    """BackendKeyData: what the client shows again to cancel a statement."""
    return message(b"K", pid.to_bytes(4, "big") + secret)


def negotiate_version(newest_minor: int, unknown_options: list[str]) -> bytes:
    """NegotiateProtocolVersion: we speak 3.`newest_minor`, and not these options."""
    names = b"".join(_text(name) for name in unknown_options)
    count = len(unknown_options).to_bytes(4, "big")
    return message(b"v", (PROTOCOL_3_0 + newest_minor).to_bytes(4, "big") + count + names)


def row_description(column: str) -> bytes:
    """RowDescription of one column of type text."""
    field = _text(column) + b"\0" * 6 + _TEXT_OID.to_bytes(4, "big")
    return message(b"T", b"\0\1" + field + b"\xff\xff" + b"\xff\xff\xff\xff" + b"\0\0")


def data_row(value: str) -> bytes:
    """DataRow of one text value."""
    data = value.encode()
    return message(b"D", b"\0\1" + len(data).to_bytes(4, "big") + data)


def error(
    severity: str,
    sqlstate: str,
    text: str,
    *,
    detail: str = "",
    hint: str = "",
    routine: str = "",
) -> bytes:
    """ErrorResponse with S, V, C, M and, where given, D, H and R."""
    level = _text(severity)
    body = b"S" + level + b"V" + level + b"C" + _text(sqlstate) + b"M" + _text(text)
    if detail:
        body += b"D" + _text(detail)
    if hint:
        body += b"H" + _text(hint)
    if routine:
        body += b"R" + _text(routine)
    return message(b"E", body + b"\0")


def error_of(severity: str, fields: dict[str, str]) -> bytes:
    """ErrorResponse with a server's fields under another severity."""
    return error(
        severity,
        fields.get("C", "XX000"),
        fields.get("M", "the server gave no message"),
        detail=fields.get("D", ""),
        hint=fields.get("H", ""),
    )


def as_fatal(response: bytes) -> bytes:
    """An ErrorResponse made by `error("ERROR", …)` under severity FATAL: the words are as long."""
    return response.replace(b"SERROR\0VERROR\0", b"SFATAL\0VFATAL\0", 1)


def startup(parameters: dict[str, str]) -> bytes:
    """StartupMessage for protocol 3.0."""
    body = b"".join(_text(name) + _text(value) for name, value in parameters.items())
    return _packet(PROTOCOL_3_0, body + b"\0")


def cancel_request(pid: int, secret: bytes) -> bytes:
    """CancelRequest, sent on a connection of its own."""
    return _packet(CANCEL_REQUEST, pid.to_bytes(4, "big") + secret)


def _packet(code: int, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + body
