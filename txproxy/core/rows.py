"""Rows that we make ourselves: columns of text and int8, and how they look on the wire.

Source: PostgreSQL 18, section 54.7 "Message Formats"; the formats of text and int8 are those of
textsend() and int8send().
"""

from dataclasses import dataclass
from typing import Final

from txproxy.wire.encode import message

Value = str | int | None

TEXT: Final = 0
BINARY: Final = 1

_TEXT_OID: Final = 25
_INT8_OID: Final = 20


@dataclass(frozen=True)
class Column:
    """A column: text if `text`, else int8."""

    name: str
    text: bool


@dataclass(frozen=True)
class Table:
    """Rows, each with a value for each column."""

    columns: tuple[Column, ...]
    rows: list[tuple[Value, ...]]


def columns(spec: str) -> tuple[Column, ...]:
    """Columns from their names; those of type text are marked: "name:text value"."""
    named = [name.partition(":") for name in spec.split()]
    return tuple(Column(name, kind == "text") for name, _, kind in named)


def formats_for(formats: list[int], count: int) -> list[int] | None:
    """The format of each of `count` columns, from the codes of a Bind: none is text, one holds for
    all. None if they do not fit, or are not TEXT or BINARY.
    """
    if any(code != TEXT and code != BINARY for code in formats):
        return None
    if len(formats) < 2:
        return (formats or [TEXT]) * count
    return formats if len(formats) == count else None


def row_description(described: tuple[Column, ...], formats: list[int]) -> bytes:
    """RowDescription."""
    fields = [
        column.name.encode()
        + b"\0" * 7
        + (_TEXT_OID if column.text else _INT8_OID).to_bytes(4, "big")
        + (b"\xff\xff" if column.text else b"\0\x08")
        + b"\xff\xff\xff\xff"
        + code.to_bytes(2, "big")
        for column, code in zip(described, formats, strict=True)
    ]
    return message(b"T", len(fields).to_bytes(2, "big") + b"".join(fields))


def data_row(row: tuple[Value, ...], formats: list[int]) -> bytes:
    """DataRow."""
    parts = [len(row).to_bytes(2, "big")]
    for value, code in zip(row, formats, strict=True):
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
            continue
        data = _encoded(value, code)
        parts.append(len(data).to_bytes(4, "big") + data)
    return message(b"D", b"".join(parts))


def _encoded(value: str | int, code: int) -> bytes:
    if isinstance(value, str):
        # A name that came as no UTF-8 is kept with surrogates, which UTF-8 does not know.
        return value.encode("utf-8", "replace").replace(b"\0", b"")
    return value.to_bytes(8, "big", signed=True) if code == BINARY else str(value).encode()
