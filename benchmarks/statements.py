"""The messages that the benchmarks' clients send, and the answers that are right, made once."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HOST: Final = "127.0.0.1"
USER: Final = "postgres"  # also the name of the database
PAGE: Final = "page"  # the table that sleepers read: it has one row

IDLE: Final = b"I"
IN_TRANSACTION: Final = b"T"
UNASKED: Final = b"ANS"  # notifications, notices, parameters: may stand between other messages


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def query(statement: str) -> bytes:
    return message(b"Q", statement.encode() + b"\0")


def startup() -> bytes:
    body = struct.pack("!I", 0x30000) + f"user\0{USER}\0database\0{USER}\0\0".encode()
    return struct.pack("!I", len(body) + 4) + body


def ready(status: bytes) -> bytes:
    return message(b"Z", status)


def done(tag: str) -> bytes:
    return message(b"C", tag.encode() + b"\0")


STARTUP: Final = startup()
TERMINATE: Final = message(b"X", b"")
INT4: Final = (23, 4)  # type and length, as in pg_type
TEXT: Final = (25, -1)


def row(value: str, kind: tuple[int, int]) -> bytes:
    """The answer to a SELECT of one value without a name, to its CommandComplete."""
    column = b"?column?\0" + struct.pack("!IHIhih", 0, 0, *kind, -1, 0)
    data = value.encode()
    return (
        message(b"T", struct.pack("!H", 1) + column)
        + message(b"D", struct.pack("!HI", 1, len(data)) + data)
        + done("SELECT 1")
    )


ONE: Final = row("1", INT4)


@dataclass(frozen=True)
class Statement:
    """What is sent, and what comes back if all is well."""

    query: bytes
    answer: bytes


BEGIN: Final = Statement(query("BEGIN"), done("BEGIN") + ready(IN_TRANSACTION))
SELECT: Final = Statement(query("SELECT 1"), ONE + ready(IN_TRANSACTION))
COMMIT: Final = Statement(query("COMMIT"), done("COMMIT") + ready(IDLE))
ROLLBACK: Final = Statement(query("ROLLBACK"), done("ROLLBACK") + ready(IDLE))
SELECT_ALONE: Final = Statement(query("SELECT 1"), ONE + ready(IDLE))


def marked(token: str) -> Statement:
    """A read whose answer is nobody else's."""
    return Statement(
        query(f"SELECT '{token}' FROM {PAGE}"), row(token, TEXT) + ready(IN_TRANSACTION)
    )


# What came.


def split(received: bytes) -> list[bytes]:
    """The messages that are there as a whole."""
    messages, at = [], 0
    while len(received) >= at + 5:
        end = at + 1 + int.from_bytes(received[at + 1 : at + 5], "big")
        if end > len(received):
            break
        messages.append(received[at:end])
        at = end
    return messages


def sqlstate(messages: Sequence[bytes]) -> str:
    """That of the last ErrorResponse, "" if there is none."""
    errors = [each[5:].split(b"\0") for each in messages if each[:1] == b"E"]
    return (
        next((each[1:].decode() for each in errors[-1] if each[:1] == b"C"), "") if errors else ""
    )
