"""What a server says of a prepared statement in Describe, as far as its Parse tells.

A statement is given as in the Parse message, behind its name: the text, and the types of its
parameters. Nothing is made up: what cannot be told from that is None.

Source: PostgreSQL 18, UtilityReturnsTuples() in utility.c, parse_param.c.
"""

import re
from typing import Final

from txproxy.wire import lexer

_PARAMETER: Final = re.compile(rb'(?<![\w$.\x80-\xff"])\$([0-9]{1,5})')
_MAY_RETURN: Final = re.compile(
    rb"\(|(?:select|values|table|with|call|execute|explain|fetch|show)\b|.*\breturning\b"
)


def declared(body: bytes) -> list[int] | None:
    """The types that the Parse gave, by oid, 0 where that is left to the server; None if the
    message is not whole.
    """
    end = body.find(b"\0")
    if end < 0 or len(body) < end + 3:
        return None
    types = body[end + 3 :]
    if len(types) != 4 * int.from_bytes(body[end + 1 : end + 3]):
        return None
    return [int.from_bytes(types[i : i + 4]) for i in range(0, len(types), 4)]


def parameter_count(body: bytes) -> int | None:
    """How many parameters it has."""
    types = declared(body)
    words = _words(body)
    if types is None or words is None:
        return None
    return max([len(types), *map(int, _PARAMETER.findall(words))])


def parameter_types(body: bytes) -> list[int] | None:
    """The oids of their types."""
    types = declared(body)
    if types is None or 0 in types or parameter_count(body) != len(types):
        return None
    return types


def may_return_rows(body: bytes) -> bool:
    """Whether it may have a result."""
    words = _words(body)
    return words is None or _MAY_RETURN.match(words) is not None


def _words(body: bytes) -> bytes | None:
    """Those of its statement; None if it cannot be read."""
    end = body.find(b"\0")
    statements = lexer.split(body[:end], True) if end >= 0 else None
    if statements is None or len(statements) > 1:
        return None
    return statements[0].words if statements else b""
