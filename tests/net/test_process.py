"""Which process a client is: on real sockets, of real processes."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Final, cast

import pytest

from txproxy.core.ports import Endpoint
from txproxy.net.client import Client
from txproxy.net.process import Ends, Processes, described, owners, shown_command

CONNECTS: Final = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def connected(listening: str, calling: str) -> Iterator[tuple[int, Ends]]:
    """A process that has a connection to us: its number, and the connection as it sees it."""
    family = socket.AF_INET6 if ":" in listening else socket.AF_INET
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((listening, 0))
        listener.listen()
        command = [sys.executable, "-c", CONNECTS, calling, str(listener.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            sock, peer = listener.accept()
            with sock:
                ours = sock.getsockname()
                yield process.pid, (plain(peer[0]), peer[1], plain(ours[0]), ours[1])
                process.communicate()


def plain(address: str) -> str:
    return address.removeprefix("::ffff:")


@pytest.fixture(params=["127.0.0.1", "::1"])
def address(request: pytest.FixtureRequest) -> str:
    with socket.socket(socket.AF_INET6 if ":" in request.param else socket.AF_INET) as sock:
        try:
            sock.bind((request.param, 0))
        except OSError:
            pytest.skip(f"no {request.param} here")
    return str(request.param)


# Who has a connection.


def test_a_connections_process_is_found(address: str) -> None:
    with connected(address, address) as (pid, ends):
        assert owners([ends]) == {ends: pid}


def test_ipv4_by_way_of_ipv6(address: str) -> None:
    if address == "::1":
        with connected("::", "::ffff:127.0.0.1") as (pid, ends):
            assert owners([ends]) == {ends: pid}


def test_many_are_found_together() -> None:
    with (
        connected("127.0.0.1", "127.0.0.1") as (first, one),
        connected("127.0.0.1", "127.0.0.1") as (second, other),
    ):
        absent = ("127.0.0.1", 1, "127.0.0.1", 2)
        assert owners([one, absent, other]) == {one: first, other: second}


def test_a_machine_that_stands_still_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = os.scandir
    stalls = iter([1.1])

    def scandir(path: Path) -> Iterator[os.DirEntry[str]]:
        time.sleep(next(stalls, 0))
        return looked(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with connected("127.0.0.1", "127.0.0.1") as (pid, ends):
        assert owners([ends]) == {ends: pid}


def test_a_connection_that_is_gone_has_none() -> None:
    with connected("127.0.0.1", "127.0.0.1") as (_, ends):
        pass
    assert owners([ends]) == {}
    assert owners([]) == {}


# A process.


@contextmanager
def running() -> Iterator[int]:
    """A process that has begun."""
    command = [sys.executable, "-c", "print(flush=True); input()", "secret"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate(b"\n")


def test_a_process_in_words() -> None:
    with running() as pid:
        said = described(pid)
        now = time.time()
        found = re.fullmatch(rf"{pid} since (.+) UTC: (.+)", said)
        assert found is not None
        assert found[2] == f"{sys.executable} -c"
        began = datetime.fromisoformat(f"{found[1]}+00:00").timestamp()
        assert abs(began - now) < 600
        assert described(pid, before=now + 1).endswith(f": {sys.executable} -c")
    assert described(pid) == ""


def test_a_process_that_has_taken_over_a_number_is_not_named() -> None:
    with running() as pid:
        assert described(pid, before=time.time() - 600) == ""


def test_there_is_no_such_process() -> None:
    assert described(0) == described(-1) == ""


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("python manage.py runserver --password x", "python manage.py"),
        ("/v/bin/python3.12 /v/bin/gunicorn site.wsgi", "/v/bin/python3.12 /v/bin/gunicorn"),
        ("python -m celery -b redis://:secret@host worker", "python -m celery"),
        ("python -mcelery secret", "python -m celery"),
        ("python -Im celery secret", "python -m celery"),
        ("python -c print('secret') secret", "python -c"),
        ("python -cprint('secret')", "python -c"),
        ("python -uBc secret", "python -c"),
        ("python -W ignore -X dev -u script.py secret", "python script.py"),
        ("python -Wignore -Xdev script.py", "python script.py"),
        ("python --check-hash-based-pycs always script.py", "python script.py"),
        ("python - secret", "python -"),
        ("python", "python"),
        ("python -m", "python -m "),
        ("python --version", "python"),
        ("python -Z secret", "python"),
        ("pypy3 script.py", "pypy3 script.py"),
        ("python3.13t script.py", "python3.13t script.py"),
        ("psql -U secret", "psql"),
        ("pythonic secret", "pythonic"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_is_shown_of_a_command(command: str, shown: str) -> None:
    """The program, and what Python runs; nothing behind it."""
    said = b"".join(word.encode() + b"\0" for word in command.split())
    assert " ".join(shown_command(said)) == shown


@pytest.mark.parametrize(
    ("cmdline", "shown"),
    [
        (b"gunicorn: worker [secret]\0\0\0", ["gunicorn:"]),
        (b"[celeryd: a@b] -active- (-b redis://:secret@host)", ["[celeryd:"]),
        (b"python\0/srv/\x1b[31m\xff.py\0", ["python", "/srv/?[31m\ufffd.py"]),
        (b"python\0" + b"x" * 1000, ["python", "x" * 200]),
        (b"   ", []),
    ],
)
def test_titles_and_terminals(cmdline: bytes, shown: list[str]) -> None:
    assert shown_command(cmdline) == shown


# Clients.


class FakeClient:
    """As much of one as is looked at."""

    def __init__(self, ends: Ends, *, is_unix: bool = False) -> None:
        self.is_unix = is_unix
        self.process: str | None = None
        self.session = SimpleNamespace(connected_at=time.time())
        self.endpoint = Endpoint(*ends)

    def peer_pid(self) -> int:
        return os.getpid()


def client(ends: Ends, *, is_unix: bool = False) -> Client:
    return cast("Client", FakeClient(ends, is_unix=is_unix))


async def test_on_loopback_it_is_told_a_little_later() -> None:
    processes = Processes()
    told: list[str] = []
    with connected("127.0.0.1", "127.0.0.1") as (pid, ends):
        one = client(ends)
        absent = client(("127.0.0.1", 1, "127.0.0.1", 2))
        assert processes.known(one) == ""
        processes.tell(one, told.append)
        processes.tell(one, told.append)
        gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        processes.tell(absent, gone.set_result)
        assert told == []
        assert await gone == ""
    assert told == [one.process] * 2
    assert one.process is not None
    assert one.process.startswith(f"{pid} since ")
    assert processes.known(one) == one.process
    assert absent.process == ""


async def test_on_a_unix_socket_it_is_told_at_once() -> None:
    one = client(("unix", 6432, "unix", 6432), is_unix=True)
    assert Processes().known(one).startswith(f"{os.getpid()} since ")


async def test_of_another_host_nothing_is_told() -> None:
    for address in ("10.0.0.1", "2001:db8::1", "localhost"):
        told: list[str] = []
        Processes().tell(client((address, 1, "10.0.0.2", 2)), told.append)
        assert told == [""]


async def test_at_the_end_who_waits_is_told_nothing() -> None:
    processes = Processes()
    told: list[str] = []
    processes.tell(client(("127.0.0.1", 1, "127.0.0.1", 2)), told.append)
    processes.close()
    assert told == [""]
