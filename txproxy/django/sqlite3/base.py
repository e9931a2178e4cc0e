"""Django's SQLite backend with a connection to txproxy's endpoint in place of its own.

Its exceptions, adapters and converters are `sqlite3`'s, so everything else is Django's. Where the
stock backend says "Cannot operate on a closed database":

1. `close_old_connections()` inside `atomic`, by a signal or a task that runs there, closes the
   connection under the transaction: here it closes nothing until the block has ended.
2. A connection that was closed behind Django's back stays closed under CONN_MAX_AGE, because the
   stock `is_usable()` always says yes: here it asks, and outside of `atomic` a closed connection
   is opened again at once.
3. A wrapper that several threads share is closed by one of them: here outside of `atomic` it is
   opened again, and inside the error says who has closed it.
"""

import re
import threading
from sqlite3 import Error
from typing import Any, Final

import django
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3._functions import register
from django.db.backends.sqlite3.base import DatabaseWrapper as Stock

from txproxy import sqlite
from txproxy.django.sqlite3 import endpoint
from txproxy.django.sqlite3.client import DatabaseClient
from txproxy.django.sqlite3.creation import DatabaseCreation
from txproxy.django.sqlite3.cursor import CursorWrapper
from txproxy.django.sqlite3.features import DatabaseFeatures
from txproxy.django.sqlite3.operations import DatabaseOperations
from txproxy.django.sqlite3.validation import DatabaseValidation

OUR_OPTIONS: Final = ("select_for_update",)

_SAID: Final = {
    "txproxy.django": "{}.{}".format(*django.VERSION[:2]),
    "foreign_keys": "on",
    "legacy_alter_table": "off",
}


_PRAGMA: Final = re.compile(r"\s*PRAGMA\s+(\w+)\s*=\s*(\w+)\s*", re.IGNORECASE)


def _pragmas(commands: list[str]) -> dict[str, str]:
    """Those that OPTIONS["init_command"] sets: a connection that was lost has them again."""
    found = [match for match in map(_PRAGMA.fullmatch, commands) if match]
    return {match[1].lower(): match[2] for match in found}


class Connection(sqlite.Connection):
    """One that says who has closed it."""

    def close(self) -> None:
        """Close; what is not committed is rolled back."""
        if not self.link.is_closed:
            self.link.why_closed = (
                "Cannot operate on a closed database: the connection was closed by the thread"
                f' "{threading.current_thread().name}".'
            )
        super().close()


class DatabaseWrapper(Stock):  # type: ignore[misc]  # Django has no types
    """An alias whose ENGINE is txproxy.django.sqlite3.

    OPTIONS are those of Django's SQLite, `reads` ("auto", "local", "server") as of
    txproxy.sqlite.connect, and `select_for_update`: False ignores it, as Django's SQLite does.
    """

    client_class = DatabaseClient
    creation_class = DatabaseCreation
    features_class = DatabaseFeatures
    ops_class = DatabaseOperations
    validation_class = DatabaseValidation

    @property
    def takes_token(self) -> bool:
        """Whether select_for_update() does."""
        return bool(self.settings_dict["OPTIONS"].get("select_for_update", True))

    def get_connection_params(self) -> dict[str, Any]:
        found: dict[str, Any] = super().get_connection_params()
        for name in OUR_OPTIONS:
            found.pop(name, None)
        if self.is_in_memory_db():
            found.pop("reads", None)
            return found
        host, port = endpoint.place(self.settings_dict)
        said = {**_SAID, **_pragmas(self.init_commands)}
        return {**found, "host": host, "port": port, "parameters": said, "factory": Connection}

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Raises sqlite3.OperationalError: which socket nobody listens on, or why it said no."""
        if self.is_in_memory_db():
            return super().get_new_connection(conn_params)
        connection = sqlite.connect(**conn_params)
        register(connection)
        for command in self.init_commands:
            if command.strip():
                connection.execute(command)
        return connection

    def create_cursor(self, name: str | None = None) -> Any:
        if self.is_in_memory_db():
            return super().create_cursor(name)
        return self.connection.cursor(factory=CursorWrapper)

    def _cursor(self, name: str | None = None) -> Any:
        """A connection that somebody has closed is opened again, outside of `atomic`."""
        raw = self.connection
        if not self.in_atomic_block and isinstance(raw, Connection) and raw.link.is_closed:
            self.close()
        return super()._cursor(name)

    def is_usable(self) -> bool:
        """Whether the endpoint answers on this connection."""
        if self.is_in_memory_db():
            return True
        try:
            self.connection.execute("PRAGMA busy_timeout").fetchone()
        except Error:
            return False
        return True

    def close_if_unusable_or_obsolete(self) -> None:
        """What close_old_connections() calls: not under a transaction."""
        if not self.in_atomic_block or self.is_in_memory_db():
            BaseDatabaseWrapper.close_if_unusable_or_obsolete(self)
