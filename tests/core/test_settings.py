import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txproxy.core import settings
from txproxy.core.settings import (
    NO_SETTINGS,
    difference,
    encoding_first,
    parse_options,
    share,
)


def test_the_same_settings_are_the_same_object() -> None:
    assert share({"a": "1", "b": "2"}) is share({"b": "2", "a": "1"})
    assert share({}) is NO_SETTINGS
    assert share({"a": "1"}).changed("B", "2") is share({"a": "1", "b": "2"})


def test_no_change_is_no_other_object() -> None:
    some = share({"timezone": "UTC"})
    assert some.changed("TimeZone", "UTC") is some
    assert repr(some) == "<Settings {'timezone': 'UTC'}>"


@pytest.mark.parametrize(
    ("applied", "wanted", "sql"),
    [
        ({}, {}, b""),
        ({"a": "1"}, {"a": "1"}, b""),
        ({}, {"a": "1"}, b"SELECT pg_catalog.set_config('a','1',false)"),
        ({"a": "1"}, {"a": "2"}, b"SELECT pg_catalog.set_config('a','2',false)"),
        ({"a": "1"}, {}, b"RESET a"),
        ({"a": "1", "b": "2"}, {"b": "3"}, b"RESET a;SELECT pg_catalog.set_config('b','3',false)"),
        (
            {},
            {"a": "1", "b": "2"},
            b"SELECT pg_catalog.set_config('a','1',false),pg_catalog.set_config('b','2',false)",
        ),
        ({}, {"a": "it's"}, b"SELECT pg_catalog.set_config('a','it''s',false)"),
        ({}, {"a": "\\'"}, b"SELECT pg_catalog.set_config('a',E'\\\\''',false)"),
        ({}, {"a": "\udcff"}, b"SELECT pg_catalog.set_config('a','\xff',false)"),
    ],
)
def test_the_difference_is_one_string_of_sql(
    applied: dict[str, str], wanted: dict[str, str], sql: bytes
) -> None:
    assert difference(share(applied), share(wanted)) == sql


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_no_value_gets_out_of_its_quotes(value: str) -> None:
    sql = difference(NO_SETTINGS, share({"a": value})).decode()
    literal = sql.removeprefix("SELECT pg_catalog.set_config('a',").removesuffix(",false)")
    escaped = literal.startswith("E")
    inside = literal[2:-1] if escaped else literal[1:-1]
    unquoted = inside.replace("''", "\0")
    assert "'" not in unquoted
    assert escaped == ("\\" in value)
    plain = unquoted.replace("\\\\", "\\") if escaped else unquoted
    assert plain.replace("\0", "'") == value


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("", {}),
        ("   ", {}),
        ("-c a=1", {"a": "1"}),
        ("-ca=1", {"a": "1"}),
        ("--a=1", {"a": "1"}),
        ("--work-mem=1MB", {"work_mem": "1MB"}),
        ("-c search_path=a,b -c B=2", {"search_path": "a,b", "b": "2"}),
        (r"-c a=one\ two", {"a": "one two"}),
        (r"-c a=back\\slash", {"a": "back\\slash"}),
        ("-c a=", {"a": ""}),
        ("-c a=b=c", {"a": "b=c"}),
        ("-c txproxy.idle_transaction_timeout=5s", {"txproxy.idle_transaction_timeout": "5s"}),
        ("-c", None),
        ("-c a", None),
        ("-x 1", None),
        ("a=1", None),
        ("-c a;b=1", None),
        ("-c 1a=1", None),
    ],
)
def test_options_of_the_start_up_packet(options: str, found: dict[str, str] | None) -> None:
    assert parse_options(options) == found


@given(st.text())
def test_options_never_raise(options: str) -> None:
    found = parse_options(options)
    assert found is None or all(settings.is_name(name) for name in found)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("timezone", True), ("txproxy.a_b", True), ("_a$1", True), ("", False), ("a b", False),
        ("a'", False), ("a;", False), ("1a", False), ("a.", False), (".a", False), ("a\n", False),
    ],
)  # fmt: skip
def test_names(name: str, good: bool) -> None:
    assert settings.is_name(name) is good


@pytest.mark.parametrize(
    ("encoding", "good"),
    [
        ("UTF8", True), ("LATIN1", True), ("", True), ("SJIS", False), ("sjis", False),
        ("shift-jis-2004", False), ("GB18030", False), ("Big5", False), ("UHC", False),
        ("EUC_JP", True), ("SQL_ASCII", True),
    ],
)  # fmt: skip
def test_encodings_whose_texts_we_can_read(encoding: str, good: bool) -> None:
    assert settings.judgeable(encoding) is good


@pytest.mark.parametrize(
    ("applied", "wanted", "sql"),
    [
        ({"role": "a"}, {}, "RESET role"),
        ({}, {"role": "a"}, "SELECT {role:a}"),
        ({"role": "a"}, {"role": "b"}, "RESET role;SELECT {role:b}"),
        (
            {"role": "a", "x": "1", "y": "1"},
            {"role": "a", "x": "2", "z": "3"},
            "RESET role;RESET y;SELECT {x:2},{z:3},{role:a}",
        ),
        (
            {"role": "a", "session_authorization": "b"},
            {"role": "c", "session_authorization": "d"},
            "RESET role;RESET SESSION AUTHORIZATION;SELECT {session_authorization:d},{role:c}",
        ),
        ({"app.user": "1"}, {}, 'RESET "app"."user"'),
    ],
)
def test_who_the_session_is_goes_off_first_and_comes_on_last(
    applied: dict[str, str], wanted: dict[str, str], sql: str
) -> None:
    said = difference(share(applied), share(wanted)).decode()
    calls = re.sub(r"pg_catalog\.set_config\('(\w+)','(\w+)',false\)", r"{\1:\2}", said)
    assert calls == sql


def test_the_encoding_by_itself() -> None:
    latin, none = share({"client_encoding": "LATIN1", "a": "1"}), share({"a": "2"})
    assert encoding_first(latin, none) == b"RESET client_encoding"
    assert encoding_first(none, latin).startswith(b"SELECT pg_catalog.set_config('client_enc")
    assert encoding_first(latin, latin.changed("b", "1")) == b""


def test_large_values_are_not_kept_for_others() -> None:
    large = share({"a": "x" * 10_000})
    assert large is not share({"a": "x" * 10_000})
    assert difference(large, share({"a": "x" * 10_000})) == b""
