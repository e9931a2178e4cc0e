"""The bytes of the protocol, by name: the only place that spells them.

Source: PostgreSQL 18, chapter 54 "Frontend/Backend Protocol", section 54.7 "Message Formats".
"""

from typing import Final

# What a client sends.
BIND: Final = 0x42  # B
CLOSE: Final = 0x43  # C
DESCRIBE: Final = 0x44  # D
EXECUTE: Final = 0x45  # E
FUNCTION_CALL: Final = 0x46  # F
FLUSH: Final = 0x48  # H
PARSE: Final = 0x50  # P
QUERY: Final = 0x51  # Q
SYNC: Final = 0x53  # S
TERMINATE: Final = 0x58  # X
COPY_FAIL: Final = 0x66  # f

# What both sides send.
COPY_DONE: Final = 0x63  # c
COPY_DATA: Final = 0x64  # d

# What a server sends.
PARSE_COMPLETE: Final = 0x31  # 1
BIND_COMPLETE: Final = 0x32  # 2
CLOSE_COMPLETE: Final = 0x33  # 3
NOTIFICATION: Final = 0x41  # A
COMMAND_COMPLETE: Final = 0x43  # C
DATA_ROW: Final = 0x44  # D
ERROR_RESPONSE: Final = 0x45  # E
COPY_IN_RESPONSE: Final = 0x47  # G
COPY_OUT_RESPONSE: Final = 0x48  # H
EMPTY_QUERY: Final = 0x49  # I
BACKEND_KEY_DATA: Final = 0x4B  # K
NOTICE_RESPONSE: Final = 0x4E  # N
AUTHENTICATION: Final = 0x52  # R
PARAMETER_STATUS: Final = 0x53  # S
ROW_DESCRIPTION: Final = 0x54  # T
FUNCTION_RESULT: Final = 0x56  # V
COPY_BOTH_RESPONSE: Final = 0x57  # W
READY_FOR_QUERY: Final = 0x5A  # Z
NO_DATA: Final = 0x6E  # n
PORTAL_SUSPENDED: Final = 0x73  # s
PARAMETER_DESCRIPTION: Final = 0x74  # t
NEGOTIATE_VERSION: Final = 0x76  # v

# The transaction status in ReadyForQuery.
IDLE: Final = 0x49  # I
IN_TRANSACTION: Final = 0x54  # T
IN_FAILED: Final = 0x45  # E

# The first packet of a connection.
PROTOCOL_3_0: Final = 0x00030000
CANCEL_REQUEST: Final = 80877102
SSL_REQUEST: Final = 80877103
GSS_REQUEST: Final = 80877104

# Bounds, in bytes.
STARTUP_LIMIT: Final = 10_000  # PostgreSQL's MAX_STARTUP_PACKET_LENGTH
SMALL_LIMIT: Final = 10_000  # and its bound for messages that are never long
LARGE_LIMIT: Final = 0x3FFFFFFF  # and for those that may be: 1 GB
SHOWN_LIMIT: Final = 256  # of a statement's beginning, and of its end, for the log
HELD_LIMIT: Final = 65_536  # what we hold of a message that has not come completely

EXTENDED: Final = frozenset((BIND, CLOSE, DESCRIBE, EXECUTE, PARSE))
"""After an error in one of these the server skips everything up to Sync."""

_LARGE: Final = (BIND, FUNCTION_CALL, PARSE, QUERY, COPY_DATA, COPY_FAIL)
_SMALL: Final = (CLOSE, DESCRIBE, EXECUTE, FLUSH, SYNC, TERMINATE, COPY_DONE)


_SHORTEST: Final = {QUERY: 5, PARSE: 8, BIND: 12, DESCRIBE: 6, CLOSE: 6, EXECUTE: 9, COPY_FAIL: 5}


def client_least() -> list[int]:
    """For each type byte the least length that a client's message of it has."""
    least = [4] * 256
    for kind, length in _SHORTEST.items():
        least[kind] = length
    return least


def client_limits() -> list[int]:
    """For each type byte the largest length a client may announce; 0: no such message."""
    limits = [0] * 256
    for kind in _SMALL:
        limits[kind] = SMALL_LIMIT
    for kind in _LARGE:
        limits[kind] = LARGE_LIMIT
    return limits
