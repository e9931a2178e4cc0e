"""The control channel to the proxy: lines of JSON both ways, a socket riding on its line."""

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

_CHUNK: Final = 65_536  # bytes read at once
_SOCKETS: Final = 16  # taken at once; one message carries one

Line = dict[str, Any]


class Channel:
    """Reads what the proxy asks, and tells it what happens. `lost` is called once, at its end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        take: Callable[[Line], None],
        lost: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._take = take
        self._lost = lost
        self._partial = b""
        self._unsent = bytearray()
        self._fds: deque[int] = deque()
        sock.setblocking(False)
        loop.add_reader(sock, self._read)

    def tell(self, line: Line) -> None:
        """Send a line, now or as soon as the proxy reads again."""
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent += json.dumps(line).encode() + b"\n"

    def next_socket(self) -> socket.socket:
        """The client's socket that came with the line being taken. IndexError: none did."""
        return socket.socket(fileno=self._fds.popleft())

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _CHUNK, _SOCKETS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds.extend(fds)
        if not data:
            self._end()
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _send(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._unsent.clear()  # its end is for the reader to see
            return
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._sock, self._send)
        else:
            self._loop.remove_writer(self._sock)

    def _end(self) -> None:
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._lost()
