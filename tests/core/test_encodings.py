"""Which client encodings can be read byte by byte: those with no ASCII in a longer character."""

from functools import cache

import pytest

from txproxy.core.settings import judgeable
from txproxy.wire.sql import judge

# PostgreSQL's names, and Python's. Python knows no EUC_TW and no MULE_INTERNAL, which have none.
ENCODINGS = {
    "UTF8": "utf-8",
    "LATIN1": "latin-1",
    "LATIN5": "iso8859-9",
    "WIN1252": "cp1252",
    "WIN1251": "cp1251",
    "KOI8R": "koi8-r",
    "EUC_CN": "gb2312",
    "EUC_JP": "euc_jp",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_KR": "euc_kr",
    "SJIS": "shift_jis",
    "SHIFT_JIS_2004": "shift_jis_2004",
    "BIG5": "big5",
    "GBK": "gbk",
    "GB18030": "gb18030",
    "UHC": "cp949",
    "JOHAB": "johab",
}


@cache
def encoded(codec: str) -> list[bytes]:
    """The characters that take more than a byte, of those that UTF-16 says in one unit."""
    characters = (chr(code).encode(codec, "ignore") for code in range(0x80, 0x10000))
    return [character for character in characters if len(character) != 1]


@pytest.mark.parametrize(("encoding", "codec"), ENCODINGS.items())
def test_what_can_be_read_byte_by_byte(encoding: str, codec: str) -> None:
    characters = encoded(codec)
    assert judgeable(encoding) == all(byte >= 0x80 for byte in b"".join(characters))


@pytest.mark.parametrize("encoding", ["SJIS", "SHIFT_JIS_2004", "BIG5", "GBK", "GB18030", "JOHAB"])
def test_a_reader_of_bytes_would_lose_its_way(encoding: str) -> None:
    r"""Why they are not: half a character quotes the quote, and hides what is behind."""
    codec = ENCODINGS[encoding]
    character = next(one for one in encoded(codec) if one[-1:] == b"\\")
    assert len(character.decode(codec)) == 1
    assert judge(b"SELECT E'" + character + b"'; RESET ALL; --'").settings == ()
    assert not judgeable(encoding)
