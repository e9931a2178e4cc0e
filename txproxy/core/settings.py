"""Session settings: what a client wants, what a backend has, and the difference as SQL.

A client's wishes come with its start-up packet, and change when the server reports a setting of
FOLLOWED, or answers our question what holds (state.py). They go to each backend that serves the
client, ahead of its statement. Values are shared: sessions that want the same hold the same object,
so that comparing them is comparing addresses.

Source: PostgreSQL 18, section 54.2.7 "Asynchronous Operations" (which settings are reported).
"""

import re
from typing import Final

FOLLOWED: Final = frozenset(
    (
        "application_name",
        "client_encoding",
        "datestyle",
        "default_transaction_read_only",
        "intervalstyle",
        "search_path",
        "standard_conforming_strings",
        "timezone",
    )
)
"""Settings of whose change the server tells us by itself, where it reports them."""

WHO: Final = ("session_authorization", "role")
"""Who the session is. All other settings are set as the user that logged in."""

_BACKSLASH_SECOND: Final = frozenset(
    ("SJIS", "SHIFT_JIS_2004", "BIG5", "GBK", "GB18030", "UHC", "JOHAB")
)

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")
_SHARED_LIMIT: Final = 10_000
_SHARED_SIZE: Final = 2048  # characters of values; larger ones are not kept for others


class Settings:
    """Settings by lower-case name. Immutable; `items` is sorted. Make one with `share()`."""

    def __init__(self, items: tuple[tuple[str, str], ...]) -> None:
        self.items = items
        self.by_name: dict[str, str] = dict(items)
        self.parsing = self.without("application_name")  # what a statement's meaning depends on

    def __repr__(self) -> str:
        return f"<Settings {self.by_name}>"

    def without(self, name: str) -> tuple[tuple[str, str], ...]:
        """The items but one."""
        return tuple(item for item in self.items if item[0] != name)

    def changed(self, name: str, value: str) -> "Settings":
        """These with one more."""
        name = name.lower()
        if self.by_name.get(name) == value:
            return self
        return share({**self.by_name, name: value})


_shared: dict[tuple[tuple[str, str], ...], Settings] = {}


def share(by_name: dict[str, str]) -> Settings:
    """The one object for these settings, whose names must be lower-case."""
    items = tuple(sorted(by_name.items()))
    known = _shared.get(items)
    if known is None:
        known = Settings(items)
        if size(items) <= _SHARED_SIZE:
            if len(_shared) >= _SHARED_LIMIT:
                _shared.clear()
                _shared[()] = NO_SETTINGS
            _shared[items] = known
    return known


def size(items: tuple[tuple[str, str], ...]) -> int:
    """Characters in names and values."""
    return sum(len(name) + len(value) for name, value in items)


NO_SETTINGS: Final = Settings(())
_shared[()] = NO_SETTINGS


def is_name(name: str) -> bool:
    """Whether this can be a setting's name at all, and be put into SQL as it is."""
    return _NAME.fullmatch(name) is not None


def judgeable(client_encoding: str) -> bool:
    """Whether texts in this encoding can be read byte by byte: no backslash as second byte."""
    return client_encoding.upper().replace("-", "_") not in _BACKSLASH_SECOND


def difference(applied: Settings, wanted: Settings) -> bytes:
    """The SQL that brings a backend from `applied` to `wanted`; b"" if they agree.

    One string is one transaction: all of it happens or none. set_config() and not SET, because a
    start-up packet gives values as set_config() takes them (a search_path is a list in one string).
    Who the session is goes off first and comes on last: a role may be allowed less.
    """
    if applied.items == wanted.items:
        return b""
    had = applied.by_name
    wants = wanted.by_name
    parts = [_reset(name) for name in reversed(WHO) if name in had]
    parts += [_reset(name) for name in had if name not in wants and name not in WHO]
    calls = [
        _call(name, value)
        for name, value in wanted.items
        if had.get(name) != value and name not in WHO
    ]
    calls += [_call(name, wants[name]) for name in WHO if name in wants]
    if calls:
        parts.append("SELECT " + ",".join(calls))
    return ";".join(parts).encode("utf-8", "surrogateescape")


def encoding_first(applied: Settings, wanted: Settings) -> bytes:
    """The SQL that changes client_encoding alone; b"" if it stays as it is.

    The server converts a string before it reads it, so values that are not ASCII must come in a
    string behind this one.
    """
    value = wanted.by_name.get("client_encoding")
    if applied.by_name.get("client_encoding") == value:
        return b""
    if value is None:
        return b"RESET client_encoding"
    return f"SELECT {_call('client_encoding', value)}".encode("utf-8", "surrogateescape")


def changes_who(wanted: Settings) -> bool:
    """Whether replaying these may make the session somebody else: that may fail at any time."""
    return any(name in wanted.by_name for name in WHO)


def _call(name: str, value: str) -> str:
    return f"pg_catalog.set_config('{name}',{_literal(value)},false)"


def _reset(name: str) -> str:
    if name == "session_authorization":
        return "RESET SESSION AUTHORIZATION"
    # A part of a name like app.user may be a reserved word.
    quoted = ".".join(f'"{part}"' for part in name.split(".")) if "." in name else name
    return f"RESET {quoted}"


def restoring(start: Settings) -> bytes:
    """The SQL that gives a session its start-up settings back after it may have reset them.

    On a direct connection RESET goes back to what the start-up packet said. What the session has
    set since stays: the server knows it as set by the session.
    """
    return b";".join(_restore(name, value) for name, value in start.items)


def _restore(name: str, value: str) -> bytes:
    equal = "OPERATOR(pg_catalog.=)"
    if "." in name or name in ("role", "session_authorization"):
        # pg_settings does not show these; a setting of nobody's is empty once it was reset.
        now = f"pg_catalog.current_setting('{name}',true)"
        unless = f"coalesce({now},'') {equal} ANY ('{{\"\",none}}'::text[])"
    else:
        unless = (
            "NOT EXISTS (SELECT FROM pg_catalog.pg_settings"
            f" WHERE pg_catalog.lower(name) {equal} '{name}' AND source {equal} 'session')"
        )
    sql = f"SELECT pg_catalog.set_config('{name}',{_literal(value)},false) WHERE {unless}"
    return sql.encode("utf-8", "surrogateescape")


def _literal(value: str) -> str:
    quoted = value.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in quoted else f"'{quoted}'"


def parse_options(options: str) -> dict[str, str] | None:
    """The settings in a start-up packet's `options`: -c name=value, -cname=value, --name=value.

    A backslash quotes the next character. None if there is anything else in it.
    """
    found: dict[str, str] = {}
    words = [_unescape(word) for word in re.findall(r"(?:\\.|[^\s\\])+", options)]
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            setting = words.pop(0)
        elif word.startswith(("--", "-c")):
            setting = word[2:]
        else:
            return None
        name, equals, value = setting.partition("=")
        name = name.replace("-", "_").lower()
        if not equals or not is_name(name):
            return None
        found[name] = value
    return found


def _unescape(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word)
