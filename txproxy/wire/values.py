"""SQLite's values on the wire, exactly: the private format of the SQLite endpoint and its client.

A value is one tag byte and what it holds; NULL is PostgreSQL's length of -1 and has no bytes here.

    i   integer   8 bytes, two's complement, big-endian
    f   real      8 bytes, IEEE 754, big-endian; no NaN, which SQLite stores as NULL
    s   text      UTF-8, NUL characters included
    b   blob      the bytes
"""

from struct import Struct
from typing import Final

FORMAT: Final = 0x5351
"""Its format code in Bind and RowDescription, where 0 is text and 1 is binary."""

Value = int | float | str | bytes

_INTEGER: Final = Struct("!cq")
_REAL: Final = Struct("!cd")
_INT64: Final = Struct("!q")
_FLOAT64: Final = Struct("!d")
_SIZE: Final = 9  # of a tag and a number


def encode(value: Value) -> bytes:
    """One value. OverflowError: an integer beyond 64 bits; UnicodeEncodeError: a lone surrogate."""
    if isinstance(value, str):
        return b"s" + value.encode()
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return _INTEGER.pack(b"i", value)
    if isinstance(value, float):
        return _REAL.pack(b"f", value)
    return b"b" + value


def decode(data: bytes) -> Value:
    """What `encode` was given. ValueError: it is no value of this format."""
    tag = data[:1]
    if tag == b"s":
        return data[1:].decode()
    if tag == b"b":
        return data[1:]
    if len(data) != _SIZE or tag not in {b"i", b"f"}:
        raise ValueError("not a value of the SQLite format")
    if tag == b"i":
        return int(_INT64.unpack_from(data, 1)[0])
    return float(_FLOAT64.unpack_from(data, 1)[0])
