"""Where the endpoint is, and what is asked of it without a connection to a file."""

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from django.db.utils import OperationalError

from txproxy.sqlite.connection import HOST, PORT
from txproxy.sqlite.protocol import LostError, Wire, address_of, user
from txproxy.wire import encode

_NO_FILE: Final = "*"
"""The database whose clients have no file, and may make and remove some."""

EXISTS: Final = "42P04"


def place(settings: Mapping[str, Any]) -> tuple[str, int]:
    """The socket's directory and its number, of an alias's settings."""
    return str(settings.get("HOST") or HOST), int(settings.get("PORT") or PORT)


def address(settings: Mapping[str, Any]) -> str:
    """The socket's path."""
    return address_of(*place(settings))


def command(settings: Mapping[str, Any], sql: str) -> str:
    """Run CREATE or DROP DATABASE. "" or the SQLSTATE EXISTS; OperationalError: what went wrong."""
    said = {"user": user(), "database": _NO_FILE, "client_encoding": "UTF8"}
    try:
        wire = Wire(address(settings), said)
        try:
            answer = wire.exchange(encode.query(sql.encode()))
        finally:
            wire.terminate()
    except (LostError, sqlite3.Error) as error:
        raise OperationalError(f"{sql}: {error}. {_NEEDED}") from error
    if answer.fields is None:
        return ""
    if answer.fields["C"] == EXISTS:
        return EXISTS
    raise OperationalError(f"{sql}: {answer.fields['M']}")


_NEEDED: Final = (
    'Test databases are made by txproxy, in the directory of [sqlite."*"], if that has'
    " allow_create = true."
)
