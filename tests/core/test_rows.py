"""Rows on the wire: as PostgreSQL sends text and int8, as text and as binary."""

import struct

import pytest

from txproxy.core.rows import BINARY, TEXT, columns, data_row, formats_for, row_description

COLUMNS = columns("name:text count")


def test_columns_are_named_and_typed() -> None:
    described = row_description(COLUMNS, [TEXT, BINARY])
    name = b"name\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0)
    count = b"count\0" + struct.pack("!ihihih", 0, 0, 20, 8, -1, 1)
    body = struct.pack("!h", 2) + name + count
    assert described == b"T" + struct.pack("!i", len(body) + 4) + body


@pytest.mark.parametrize(
    ("code", "number"), [(TEXT, b"-7"), (BINARY, struct.pack("!q", -7))], ids=["text", "binary"]
)
def test_values(code: int, number: bytes) -> None:
    row = data_row(("zwölf", -7, None), [code] * 3)
    text = "zwölf".encode()
    values = struct.pack("!i", len(text)) + text + struct.pack("!i", len(number)) + number
    body = struct.pack("!h", 3) + values + struct.pack("!i", -1)
    assert row == b"D" + struct.pack("!i", len(body) + 4) + body


def test_a_name_that_is_no_utf_8_is_shown_all_the_same() -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert data_row((odd,), [TEXT]).endswith(b"caf?")


@pytest.mark.parametrize(
    ("codes", "formats"),
    [
        ([], [TEXT, TEXT]),
        ([BINARY], [BINARY, BINARY]),
        ([TEXT, BINARY], [TEXT, BINARY]),
        ([TEXT, TEXT, TEXT], None),
        ([2], None),
    ],
)
def test_the_formats_of_a_bind(codes: list[int], formats: list[int] | None) -> None:
    assert formats_for(codes, 2) == formats
