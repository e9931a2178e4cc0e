"""What a session keeps: whether it has a pin, and how it is made to go to another backend."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import psycopg

from tests.system import console
from tests.system.proxy import DATABASE, Proxy, ask, wait_until

Connection = psycopg.Connection[Any]


def value(connection: Connection, query: str) -> Any:
    """The first column of the first row."""
    found = connection.execute(query.encode()).fetchone()
    assert found is not None
    return found[0]


def pid(connection: Connection) -> int:
    """The backend that serves it now."""
    found: int = value(connection, "SELECT pg_backend_pid()")
    return found


def pin(proxy: Proxy, fileno: int, expected: str) -> str:
    """Why the client on this socket keeps its backend, once that is as expected: the proxy looks
    behind the answer to a statement.
    """
    with socket.socket(fileno=os.dup(fileno)) as mine:
        port = mine.getsockname()[1]
    with console.connect(proxy) as watcher:
        return wait_until(
            lambda: str(console.one(watcher, "CLIENTS", port=port)["pin"]), expected.__eq__
        )


@contextlib.contextmanager
def elsewhere(proxy: Proxy, client: Connection, dbname: str = DATABASE) -> Iterator[None]:
    """While the client's last backend is somebody else's. The pool must have two."""
    mine = pid(client)
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(proxy.connect(dbname)) for _ in range(2)]
        held = {pid(other): other for other in others}
        for other in others:
            stack.callback(other.rollback)
        assert mine in held, "the client keeps its backend"
        for each, other in held.items():
            if each != mine:
                other.rollback()
        ask(client)
        assert pid(client) != mine
        yield
