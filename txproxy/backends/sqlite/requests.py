"""What a client's messages say: bodies without type and length, checked.

Source: PostgreSQL 18, section 54.7 "Message Formats". ProtocolError (08P01): a malformed one.
"""

import struct
from struct import Struct
from typing import Final, NamedTuple

from txproxy.errors import ProtocolError
from txproxy.wire import values

TEXT: Final = 0
BINARY: Final = 1

_INT16: Final = Struct("!H")
_ALL_OF_UNNAMED: Final = bytes(5)
_INT32: Final = Struct("!i")
_NULL: Final = 0xFFFFFFFF
_PRIVATE_ONLY: Final[tuple[int, ...]] = (values.FORMAT,)
_PRIVATE: Final = struct.pack("!HH", 1, values.FORMAT)  # one code, for all

Parameter = int | float | str | bytes | None


class Parse(NamedTuple):
    """`oids` may be fewer than there are parameters."""

    name: bytes
    sql: bytes
    oids: tuple[int, ...]


class Bind(NamedTuple):
    """`formats` has none, one for all, or one for each, as on the wire; None is NULL.

    If `is_private`, all parameters were in the private format, and are values already.
    """

    portal: bytes
    statement: bytes
    is_private: bool
    formats: tuple[int, ...]
    parameters: list[Parameter]
    results: tuple[int, ...]


def parse(body: bytes) -> Parse:
    """Parse."""
    name, rest = _string(body, 0)
    sql, rest = _string(body, rest)
    if len(body) < rest + 2:
        raise _malformed("Parse")
    count = _INT16.unpack_from(body, rest)[0]
    if len(body) != rest + 2 + 4 * count:
        raise _malformed("Parse")
    oids = tuple(int.from_bytes(body[i : i + 4]) for i in range(rest + 2, len(body), 4))
    return Parse(name, sql, oids)


def bind(body: bytes) -> Bind:
    """Bind. Its counts are unsigned: up to 65,535 parameters."""
    try:
        name = body.index(b"\0") + 1
        at = body.index(b"\0", name) + 1
        portal, statement = body[: name - 1], body[name : at - 1]
        is_private = body[at : at + 4] == _PRIVATE
        formats, at = (_PRIVATE_ONLY, at + 4) if is_private else _codes(body, at)
        count = (body[at] << 8) | body[at + 1]
        at += 2
        parameters: list[Parameter] = []
        for _ in range(count):
            size = int.from_bytes(body[at : at + 4])
            at += 4
            if size == _NULL:
                parameters.append(None)
                continue
            raw = body[at : at + size]
            at += size
            parameters.append(values.decode(raw) if is_private else raw)
        if at == len(body) - 4 and body[at:] == _PRIVATE:
            results = _PRIVATE_ONLY
        else:
            results, at = _codes(body, at)
            if at != len(body):
                raise _malformed("Bind")
    except (ValueError, IndexError, struct.error):
        raise _malformed("Bind") from None
    if len(formats) > 1 and len(formats) != count:
        raise _malformed("Bind")
    return Bind(portal, statement, is_private, formats, parameters, results)


def execute(body: bytes) -> tuple[bytes, int]:
    """Execute: the portal and the most rows, 0 for all."""
    if body == _ALL_OF_UNNAMED:
        return b"", 0
    portal, at = _string(body, 0)
    if len(body) != at + 4:
        raise _malformed("Execute")
    return portal, max(0, int(_INT32.unpack_from(body, at)[0]))


def target(body: bytes) -> tuple[bytes, bytes]:
    """Describe or Close: S for a statement or P for a portal, and its name."""
    name, at = _string(body, 1)
    if at != len(body) or body[:1] not in {b"S", b"P"}:
        raise _malformed("Describe or Close")
    return body[:1], name


def parameters(bound: Bind, oids: tuple[int, ...]) -> list[Parameter]:
    """The values of a Bind, of the types that Parse has named."""
    if bound.is_private:
        return bound.parameters
    formats = bound.formats
    found: list[Parameter] = []
    for i, raw in enumerate(bound.parameters):
        code = formats[i] if len(formats) > 1 else formats[0] if formats else TEXT
        assert raw is None or isinstance(raw, bytes)
        found.append(None if raw is None else _parameter(raw, code, oids[i : i + 1]))
    return found


def _parameter(raw: bytes, code: int, oid: tuple[int, ...]) -> Parameter:
    if code == values.FORMAT:
        return _private(raw)
    try:
        if code == BINARY:
            return _binary(raw, oid[0] if oid else 0)
        if code == TEXT:
            return _text(raw, oid[0] if oid else 0)
    except (ValueError, struct.error):
        raise ProtocolError("a parameter is not of its type", sqlstate="22P02") from None
    raise ProtocolError(f"there is no format {code}")


def _private(raw: bytes) -> Parameter:
    try:
        return values.decode(raw)
    except ValueError:
        raise ProtocolError("a parameter is not a value of the SQLite format") from None


_BOOL: Final = 16
_BYTEA: Final = 17
_INTEGERS: Final = {20: 8, 21: 2, 23: 4, 26: 4}  # int8, int2, int4, oid: their sizes
_FLOATS: Final = {700: Struct("!f"), 701: Struct("!d")}


def _binary(raw: bytes, oid: int) -> Parameter:
    if oid in _INTEGERS:
        if len(raw) != _INTEGERS[oid]:
            raise ValueError
        return int.from_bytes(raw, signed=oid != 26)
    if oid in _FLOATS:
        return float(_FLOATS[oid].unpack(raw)[0])
    if oid == _BOOL:
        return int(raw != b"\0")
    return raw if oid == _BYTEA else raw.decode()


def _text(raw: bytes, oid: int) -> Parameter:
    text = raw.decode()
    if oid in _INTEGERS:
        return int(text)
    if oid in _FLOATS:
        return float(text)
    if oid == _BOOL:
        return int(text[:1] in {"t", "T", "1", "y", "Y"} or text.lower() == "on")
    if oid == _BYTEA and text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    return text


def _string(body: bytes, start: int) -> tuple[bytes, int]:
    end = body.find(b"\0", start)
    if end < 0:
        raise _malformed("a message")
    return body[start:end], end + 1


def _codes(body: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """Format codes."""
    count = _INT16.unpack_from(body, at)[0]
    if count == 0:
        return (), at + 2
    if count == 1:
        return _INT16.unpack_from(body, at + 2), at + 4
    return Struct(f"!{count}H").unpack_from(body, at + 2), at + 2 + 2 * count


def _malformed(what: str) -> ProtocolError:
    return ProtocolError(f"{what} is malformed")
