"""manage.py dbshell: sqlite3's shell on the file itself, for reading."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from django.db.backends.sqlite3.client import DatabaseClient as Stock

from txproxy import sqlite
from txproxy.django.sqlite3 import endpoint


class DatabaseClient(Stock):  # type: ignore[misc]  # Django has no types
    """Writing is the endpoint's: a shell that writes would take its lock from it."""

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Sequence[str]
    ) -> tuple[list[str], None]:
        """The command line. sqlite3.OperationalError: the endpoint does not say where it is."""
        host, port = endpoint.place(settings_dict)
        name = settings_dict["NAME"]
        with closing(sqlite.connect(name, host=host, port=port, reads="server")) as connection:
            path = connection.reading.said["txproxy.file"]
        return [cls.executable_name, "-readonly", path, *parameters], None
