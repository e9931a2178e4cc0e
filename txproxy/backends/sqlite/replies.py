"""Rows, their descriptions, and errors as a client reads them.

A client of ours asks for every column in the private format (`wire/values.py`) and gets the
declared type behind the column's name. Others get a type by the declared type's affinity, and text.
"""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

from txproxy.backends.sqlite.errors import Fields
from txproxy.errors import ProtocolError
from txproxy.wire import encode, values

Cell = int | float | str | bytes | None
Row = Sequence[Cell]
RowEncoder = Callable[[Row], bytes]

DECLARED: Final = b"\x01"
"""Between a column's name and its declared type, in a description of the private format."""

_INT8: Final = 20
_BYTEA: Final = 17
_FLOAT8: Final = 701
_TEXT: Final = 25
_SIZES: Final = {_INT8: 8, _FLOAT8: 8}

_NULL: Final = b"\xff\xff\xff\xff"
_LENGTH: Final = Struct("!i")
_HEAD: Final = Struct("!ciH")
_FIELD: Final = Struct("!IHIhiH")
_INT64: Final = Struct("!q")
_FLOAT64: Final = Struct("!d")


def oid(declared: str) -> int:
    """The type that stands for a column's declared type: by its affinity, else text.

    Source: sqlite.org/datatype3.html, section 3.1; what has no certain storage class is text.
    """
    upper = declared.upper()
    if "INT" in upper:
        return _INT8
    if "CHAR" in upper or "CLOB" in upper or "TEXT" in upper:
        return _TEXT
    if "BLOB" in upper:
        return _BYTEA
    return _FLOAT8 if "REAL" in upper or "FLOA" in upper or "DOUB" in upper else _TEXT


def is_private(formats: tuple[int, ...]) -> bool:
    """Whether all results are asked for in the private format."""
    return bool(formats) and all(code == values.FORMAT for code in formats)


def formats_for(formats: tuple[int, ...], columns: int) -> tuple[int, ...]:
    """One format code for each column. ProtocolError: their number does not fit."""
    if len(formats) <= 1:
        return (formats[0] if formats else 0,) * columns
    if len(formats) != columns:
        raise ProtocolError(f"{len(formats)} result formats for {columns} columns")
    return formats


def row_description(
    columns: Sequence[tuple[str, str]], formats: tuple[int, ...], private: bool
) -> bytes:
    """RowDescription of columns with name and declared type."""
    parts = [len(columns).to_bytes(2)]
    for (name, declared), code in zip(columns, formats, strict=True):
        parts.append(name.encode().replace(b"\0", b""))
        if private:
            parts.append(DECLARED + declared.encode().replace(b"\0", b""))
        kind = _TEXT if private else oid(declared)
        parts.append(b"\0" + _FIELD.pack(0, 0, kind, _SIZES.get(kind, -1), -1, code))
    return encode.message(b"T", b"".join(parts))


def encoder(columns: Sequence[tuple[str, str]], formats: tuple[int, ...]) -> RowEncoder:
    """What makes DataRows of rows, in these formats."""
    if is_private(formats):
        return _private
    oids = [oid(declared) for _, declared in columns]

    def standard(row: Row) -> bytes:
        parts = []
        for value, code, kind in zip(row, formats, oids, strict=True):
            if value is None:
                parts.append(_NULL)
                continue
            if code == values.FORMAT:
                data = values.encode(value)
            else:
                data = _binary(value, kind) if code else _as_text(value)
            parts.append(_LENGTH.pack(len(data)) + data)
        return _row(len(row), parts)

    return standard


def _private(row: Row) -> bytes:
    parts = []
    for value in row:
        if value is None:
            parts.append(_NULL)
            continue
        data = values.encode(value)
        parts.append(_LENGTH.pack(len(data)) + data)
    return _row(len(row), parts)


def _row(columns: int, parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    return _HEAD.pack(b"D", len(body) + 6, columns) + body


def _binary(value: float | str | bytes, kind: int) -> bytes:
    if kind == _INT8 and isinstance(value, int):
        return _INT64.pack(value)
    if kind == _FLOAT8 and isinstance(value, (int, float)):
        return _FLOAT64.pack(value)
    if kind == _BYTEA:
        return value if isinstance(value, bytes) else str(value).encode()
    return _as_text(value)


def _as_text(value: float | str | bytes) -> bytes:
    return b"\\x" + value.hex().encode() if isinstance(value, bytes) else str(value).encode()


def error(fields: Fields, severity: str = "ERROR") -> bytes:
    """ErrorResponse: F says whose error it is, L its extended code, R that code's name."""
    parts = [
        ("S", severity),
        ("V", severity),
        ("C", fields.sqlstate),
        ("M", fields.message),
        ("H", fields.hint),
        ("F", "sqlite"),
        ("L", str(fields.code)),
        ("R", fields.name),
    ]
    body = b"".join(
        (kind + value.replace("\0", "")).encode("utf-8", "replace") + b"\0"
        for kind, value in parts
        if value
    )
    return encode.message(b"E", body + b"\0")
