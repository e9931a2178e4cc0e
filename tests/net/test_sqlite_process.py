"""The SQLite process is kept running; lines and sockets go over the control channel."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.wire import PATIENCE
from txproxy.net.sqlite_process import Channel, Line, SqliteProcess


async def until(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0)


class Kept:
    """A process that is kept running, and what was heard of it."""

    def __init__(self) -> None:
        self.heard: list[Line] = []
        self.lost = 0
        self.process = SqliteProcess(self.heard.append, self._lost)
        self._news = asyncio.Event()

    def _lost(self) -> None:
        self.lost += 1
        self._news.set()

    async def ready(self) -> int:
        """Until it is: returns its process id."""
        await asyncio.wait_for(self.process.ready.wait(), PATIENCE)
        return self.process.pid

    async def is_lost(self) -> None:
        await asyncio.wait_for(self._news.wait(), PATIENCE)
        self._news.clear()


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@asynccontextmanager
async def kept() -> AsyncIterator[Kept]:
    found = Kept()
    found.process.start()
    yield found
    await asyncio.wait_for(found.process.close(), PATIENCE)


async def test_it_is_started_and_says_that_it_is_ready() -> None:
    async with kept() as found:
        pid = await found.ready()
        assert found.heard == [{"is": "ready"}]
        assert found.process.starts == 1
    assert not is_there(pid)
    assert found.lost == 1


async def test_it_is_started_once_however_often_it_is_asked_for() -> None:
    async with kept() as found:
        found.process.start()
        await found.ready()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
async def test_it_is_started_again_when_it_dies(signum: signal.Signals) -> None:
    async with kept() as found:
        for starts in (1, 2):
            pid = await found.ready()
            assert found.process.starts == starts
            os.kill(pid, signum)
            await found.is_lost()
            assert not found.process.ready.is_set()
        await found.ready()
        assert found.lost == 2


async def test_one_that_does_not_leave_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txproxy.net.sqlite_process._LEAVING_TAKES", 0.1)
    async with kept() as found:
        pid = await found.ready()
        os.kill(pid, signal.SIGSTOP)
    assert not is_there(pid)


async def test_it_can_be_closed_before_it_was_started_and_while_it_is() -> None:
    await asyncio.wait_for(Kept().process.close(), PATIENCE)
    async with kept() as found:
        await asyncio.sleep(0)
    assert not found.process.pid
    assert not found.process.ready.is_set()


async def test_lines_that_nobody_hears_close_their_socket() -> None:
    ours, theirs = socket.socketpair()
    Kept().process.tell({"do": "client"}, os.dup(theirs.fileno()))
    theirs.close()
    with ours:
        assert ours.recv(1) == b""


async def test_what_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", "/nonexistent")
        found = Kept()
        found.process.start()
        await until(lambda: "sqlite process cannot be started" in caplog.messages)
    await found.ready()
    await found.process.close()


# The channel.


class Ends:
    """A channel, and the process's end of it: `heard` is what the channel has heard."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.heard: list[Line] = []
        self.lost = 0
        self.channel = Channel(ours, self.heard.append, self._lost)
        self._fds: list[int] = []

    def _lost(self) -> None:
        self.lost += 1

    def read(self) -> tuple[list[Any], list[int]]:
        """All lines that have come, and the descriptors that came with them."""
        self.theirs.setblocking(False)
        data = b""
        fds: list[int] = []
        try:
            while True:
                more, found, _, _ = socket.recv_fds(self.theirs, 1 << 16, 16)
                data += more
                fds += found
        except BlockingIOError:
            return [json.loads(line) for line in data.splitlines()], fds

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    found = Ends()
    yield found
    found.close()


async def test_a_socket_goes_with_its_line(ends: Ends) -> None:
    near, far = socket.socketpair()
    ends.channel.tell({"a": 1})
    ends.channel.tell({"b": 2}, os.dup(far.fileno()))
    far.close()
    lines, [fd] = ends.read()
    assert lines == [{"a": 1}, {"b": 2}]
    near.send(b"x")
    with near, socket.socket(fileno=fd) as theirs:
        assert theirs.recv(1) == b"x"
    assert near.fileno() == -1


async def test_who_does_not_read_gets_all_of_it_later(ends: Ends) -> None:
    """More lines than the socket takes, each with a descriptor, in their order."""
    sent = []
    for number in range(100):
        near, far = socket.socketpair()
        sent.append(near)
        ends.channel.tell({"number": number, "text": "x" * 10_000}, os.dup(far.fileno()))
        far.close()
    lines: list[Any] = []
    fds: list[int] = []
    partial = b""
    ends.theirs.setblocking(False)
    while len(lines) < 100:
        await asyncio.sleep(0)
        try:
            data, found, _, _ = socket.recv_fds(ends.theirs, 3000, 16)
        except BlockingIOError:
            continue
        fds += found
        *whole, partial = (partial + data).split(b"\n")
        lines += map(json.loads, whole)
    assert [line["number"] for line in lines] == [*range(100)]
    assert len(fds) == 100
    for near, fd in zip(sent, fds, strict=True):
        near.send(b"x")
        near.close()
        with socket.socket(fileno=fd) as theirs:
            assert theirs.recv(2) == b"x"


async def test_lines_come_in_pieces_and_together(ends: Ends) -> None:
    whole = b"".join(json.dumps({"line": number}).encode() + b"\n" for number in range(20))
    for start in range(0, len(whole), 7):
        ends.theirs.send(whole[start : start + 7])
        if start % 3 == 0:
            await asyncio.sleep(0)
    await until(lambda: len(ends.heard) == 20)
    assert ends.heard == [{"line": number} for number in range(20)]


async def test_the_other_end_is_closed(ends: Ends) -> None:
    ends.theirs.close()
    await until(lambda: ends.lost)
    ends.channel.tell({"a": 1})
    ends.channel.close()
    assert ends.lost == 1
