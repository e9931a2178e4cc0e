"""Clients of the endpoint, for tests."""

from contextlib import AbstractContextManager, closing
from typing import Any

from tests.sqlite.endpoint import Endpoint
from txproxy import sqlite

PORT = 5432


def connect(shared: Endpoint, database: str, reads: str = "local", **keywords: Any) -> Any:
    """A connection; closed by the test."""
    where: dict[str, Any] = {"host": str(shared.directory), "port": PORT, "reads": reads}
    return sqlite.connect(database, **{**where, **keywords})


def client(
    shared: Endpoint, database: str, reads: str = "local", **keywords: Any
) -> AbstractContextManager[Any]:
    """The same, closed at the end."""
    return closing(connect(shared, database, reads, **keywords))
