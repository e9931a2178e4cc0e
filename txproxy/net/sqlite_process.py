"""The SQLite process: started, heard, and started again when it dies.

SQLite runs in a process of its own because a statement can hold the interpreter for seconds, and
clients of PostgreSQL are not to feel that. The two share a socket, the control channel: lines of
JSON both ways, and a client's socket rides on the line that hands it over (SCM_RIGHTS). When one of
the two ends, the system tells the other by the end of the channel.
"""

import asyncio
import json
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from txproxy.core.limits import BackOff
from txproxy.net.log import LOGGER

Line = Mapping[str, Any]

_CHUNK: Final = 1 << 18
_LEAVING_TAKES: Final = 5.0  # seconds that it has to end once the channel is closed
_LONGEST_PAUSE: Final = 5.0  # seconds between two attempts to start it
_LOOK_EVERY: Final = 0.05  # seconds


class Channel:
    """Our end of the control channel. `lost` is called once, when nothing more will come."""

    def __init__(
        self, sock: socket.socket, heard: Callable[[Line], None], lost: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._heard = heard
        self._lost = lost
        self._unsent: deque[tuple[bytes, int]] = deque()  # and the socket that goes with it, or -1
        self._partial: list[bytes] = []
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._read)

    def tell(self, line: Line, fd: int = -1) -> None:
        """Send a line, and a descriptor with it, which is closed then."""
        if self._closed:
            _close(fd)
            return
        self._unsent.append((json.dumps(line).encode() + b"\n", fd))
        if len(self._unsent) == 1:
            self._send()

    def close(self) -> None:
        """The end: the process will see it."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fd in self._unsent:
            _close(fd)
        self._unsent.clear()
        self._lost()

    def _send(self) -> None:
        try:
            while self._unsent:
                data, fd = self._unsent[0]
                if fd >= 0:
                    sent = socket.send_fds(self._sock, [data], [fd])
                    _close(fd)
                else:
                    sent = self._sock.send(data)
                self._unsent.popleft()
                if sent < len(data):
                    # The descriptor has gone with the first byte.
                    self._unsent.appendleft((data[sent:], -1))
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._send)
        except OSError:
            self.close()
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._partial, lines[0]])
            self._partial.clear()
        self._partial.append(rest)
        for line in lines:
            self._heard(json.loads(line))


class SqliteProcess:
    """Keeps it running from `start()` to `close()`. `ready` is set while it can be spoken to.

    `pid` is its number, 0 while there is none. `heard` is called with each line that it says,
    `lost` when it is gone.
    """

    def __init__(self, heard: Callable[[Line], None], lost: Callable[[], None]) -> None:
        self.ready = asyncio.Event()
        self.starts = 0
        self.pid = 0
        self._heard = heard
        self._lost = lost
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Start it, now and whenever it dies."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    def tell(self, line: Line, fd: int = -1) -> None:
        """Send a line; nobody hears it if the process is gone. `fd` goes with it."""
        if self._channel is None:
            _close(fd)
        else:
            self._channel.tell(line, fd)

    async def close(self) -> None:
        """End it, and wait for that."""
        self._closing = True
        if self._channel is not None:
            self._channel.close()
        if self._task is not None:
            await self._task

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        back_off = BackOff()
        while not self._closing:
            if not back_off.allows(loop.time(), 0):
                await asyncio.sleep(_LOOK_EVERY)
                continue
            began = loop.time()
            try:
                code = await self._run()
            except OSError as error:
                LOGGER.error(
                    "sqlite process cannot be started", extra={"fields": {"why": str(error)}}
                )
            else:
                self._died(code)
            if loop.time() - began > _LONGEST_PAUSE:
                back_off.reset()
            back_off.failed(loop.time(), _LONGEST_PAUSE)

    def _died(self, code: int) -> None:
        if not self._closing:
            LOGGER.error("sqlite process died", extra={"fields": {"exit_code": code}})

    async def _run(self) -> int:
        """Start it, and stay until it has ended: returns its exit code. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # what lies in the working directory is no module of ours
                    "-m",
                    "txproxy.backends.sqlite",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # Ctrl-C on a terminal is for the proxy, which tells it what to do.
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        ended = asyncio.Event()
        self._channel = Channel(ours, self._take, ended.set)
        self.starts += 1
        self.pid = process.pid
        if self._closing:
            self._channel.close()
        try:
            return await self._stay(process, ended)
        finally:
            self._channel.close()
            self._channel = None
            self.pid = 0
            self.ready.clear()
            self._lost()

    async def _stay(self, process: asyncio.subprocess.Process, ended: asyncio.Event) -> int:
        exited = asyncio.ensure_future(process.wait())
        closed = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait((exited, closed), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((exited,), timeout=_LEAVING_TAKES)
            if not exited.done():
                process.kill()
            return await exited
        finally:
            closed.cancel()

    def _take(self, line: Line) -> None:
        if line["is"] == "ready":
            self.ready.set()
        self._heard(line)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
