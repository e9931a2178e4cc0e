"""The protocol as real clients speak it."""

from pathlib import Path

import psycopg

from tests.sqlite.endpoint import Endpoint


def test_a_client_logs_in_and_asks(tmp_path: Path) -> None:
    with Endpoint(tmp_path) as endpoint:
        endpoint.create("a.db")
        with psycopg.connect(endpoint.conninfo("a.db"), autocommit=True) as connection:
            assert psycopg.ClientCursor(connection).execute("SELECT 1").fetchall() == [("1",)]
