"""Clients of the console, for the tests of what it shows and what it does."""

from typing import Any, Final

import psycopg

from tests.system.proxy import USER, Proxy

ADMIN: Final = USER
WATCHER: Final = "watcher"
"""One of stats_users; the server does not know it."""

SETTINGS: Final = {"admin_users": [ADMIN], "stats_users": [WATCHER]}


def connect(
    proxy: Proxy, user: str = ADMIN, dbname: str = "txproxy", **more: Any
) -> psycopg.Connection[Any]:
    """A console, in autocommit."""
    return proxy.connect(dbname, user, **{"autocommit": True, **more})


def show(console: psycopg.Connection[Any], name: str) -> list[dict[str, Any]]:
    """The rows of a table, by column."""
    cursor = console.execute(f"SHOW {name}".encode())
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def one(console: psycopg.Connection[Any], table: str, /, **where: object) -> dict[str, Any]:
    """The only row with these values."""
    [found] = [row for row in show(console, table) if where.items() <= row.items()]
    return found


def refusal(console: psycopg.Connection[Any], command: str) -> psycopg.Error:
    """The error with which a command is refused."""
    try:
        console.execute(command.encode())
    except psycopg.Error as error:
        return error
    raise AssertionError(f"{command} was not refused")
