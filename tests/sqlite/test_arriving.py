"""Clients that are told to leave, or have said more, while their files are being opened."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sqlite.endpoint import PATIENCE, Endpoint, Line, eventually
from txproxy.wire import encode

CLOSE: Line = {"do": "close", "fields": {"C": "57P01", "M": "go away"}}

SLOW = """
import os, time

def register(connection):
    while not os.path.exists({go!r}):
        time.sleep(0.001)
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """Its file a.db is open once there is a file `go`."""
    (tmp_path / "slow_functions.py").write_text(SLOW.format(go=str(tmp_path / "go")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with Endpoint(tmp_path, functions=["slow_functions:register"]) as endpoint:
        endpoint.create("a.db")
        yield endpoint


def all_that_is_heard(
    endpoint: Endpoint,
    *behind: Line,
    database: str = "a.db",
    said: bytes = b"",
    rest: bytes = b"",
    meanwhile: Callable[[], object] = lambda: None,
) -> bytes:
    """By a client up to its end, which must come."""
    theirs, ours = socket.socketpair()
    with theirs:
        theirs.settimeout(PATIENCE)
        theirs.sendall(said)
        with ours:
            endpoint.give(ours, database, *behind, rest=rest)
        meanwhile()
        heard = b""
        while data := theirs.recv(65_536):
            heard += data
    return heard


def test_one_that_is_closed(shared: Endpoint, database: str) -> None:
    heard = all_that_is_heard(shared, CLOSE, database=database)
    assert b"SFATAL\0" in heard
    assert b"Mgo away\0" in heard


def test_one_that_comes_as_all_are_sent_away(slow: Endpoint) -> None:
    def drain() -> None:
        slow.tell({"do": "drain"})
        time.sleep(0.2)  # those who are there are sent away before it is
        (slow.directory / "go").touch()

    assert b"C57P01\0" in all_that_is_heard(slow, meanwhile=drain)
    eventually(lambda: slow.told("drained"))
    assert [line["is"] for line in slow.lines if line["is"] != "log"] == [
        "ready",
        "closed",
        "drained",
    ]


def test_the_end_of_the_channel_meanwhile(slow: Endpoint) -> None:
    def end() -> None:
        slow.end_channel()
        (slow.directory / "go").touch()

    all_that_is_heard(slow, meanwhile=end)
    assert slow.process.wait(PATIENCE) == 0


def test_what_the_proxy_has_read_comes_first(shared: Endpoint, database: str) -> None:
    heard = all_that_is_heard(
        shared,
        database=database,
        rest=encode.query(b"SELECT 'first'"),
        said=encode.query(b"SELECT 'second'") + encode.TERMINATE,
    )
    assert heard.index(b"first") < heard.index(b"second")


def test_a_message_may_be_cut_where_the_proxy_has_read_to(shared: Endpoint, database: str) -> None:
    query = encode.query(b"SELECT 'whole'")
    heard = all_that_is_heard(
        shared, database=database, rest=query[:8], said=query[8:] + encode.TERMINATE
    )
    assert b"whole" in heard


@pytest.mark.parametrize("database", ["a.db", "*"])
@pytest.mark.parametrize("rest", [encode.TERMINATE, b"garbage"])
def test_one_whose_end_the_proxy_has_read(tmp_path: Path, database: str, rest: bytes) -> None:
    with Endpoint(tmp_path) as endpoint:
        endpoint.create("a.db")
        heard = all_that_is_heard(endpoint, database=database, rest=rest)
        assert (b"C08P01\0" in heard) == (rest == b"garbage")
        eventually(lambda: endpoint.told("closed"))
        assert not endpoint.told("log")
        assert endpoint.process.poll() is None
