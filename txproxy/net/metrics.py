"""The HTTP endpoint: /metrics for Prometheus, /healthz, /readyz, and a page for a person on /.

As little of HTTP/1.1 as these need: a GET or HEAD without a body, then the connection is closed.
"""

import asyncio
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from txproxy.config import TcpAddress
from txproxy.errors import ConnectError
from txproxy.net.collector import collect, exposition, pools
from txproxy.net.page import page

if TYPE_CHECKING:
    from txproxy.net.server import Server

_LONGEST_REQUEST: Final = 8192
_MOST_CONNECTIONS: Final = 64
_REQUEST_TAKES: Final = 5.0  # seconds at most, until it has come completely
_ANSWER_TAKES: Final = 10.0  # and until the answer is made and read: as long as Prometheus waits
_STALLED: Final = 5.0  # seconds without a pass of the janitor

_REQUEST_LINE: Final = re.compile(rb"([A-Za-z]+) (/[!-~]*) HTTP/1\.[01]")
_HEADER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\0\r\n]*")

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_TEXT: Final = "text/plain; charset=utf-8"
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"
_ALWAYS: Final = (
    "Cache-Control: no-store\r\n"
    "Connection: close\r\n"
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
    "X-Content-Type-Options: nosniff\r\n"
)

Answer = tuple[int, str, bytes]
"""Status, content type and body."""


class Metrics:
    """The endpoint of one proxy."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.connections: set[_Connection] = set()
        self._turn = asyncio.Lock()
        self._listeners: list[asyncio.Server] = []

    async def start(self, addresses: Iterable[TcpAddress]) -> None:
        """Listen. Raises ConnectError if an address is not to be had; call close() then."""
        loop = asyncio.get_running_loop()
        for address in addresses:
            try:
                listener = await loop.create_server(
                    lambda: _Connection(self), address.host, address.port
                )
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
                raise ConnectError(f"cannot listen on {address} (metrics): {why}") from error
            self._listeners.append(listener)

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with the ports that the system chose where the configuration says 0."""
        names = [sock.getsockname() for server in self._listeners for sock in server.sockets]
        return [str(TcpAddress(name[0], name[1])) for name in names]

    def close(self) -> None:
        """Listen no more, and answer nobody any more."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        for connection in list(self.connections):
            connection.abort()

    async def answer(self, method: str, path: str) -> Answer:
        """What there is under a path; "" is that of a request that could not be read."""
        if path not in _PATHS:
            return _plain(404 if path else 400)
        if method not in {"GET", "HEAD"}:
            return _plain(405)
        if path == "/metrics":
            # One at a time, however many ask: each takes its share of the loop.
            async with self._turn:
                return 200, _PROMETHEUS, await exposition(collect(self.server))
        if path == "/":
            return 200, _HTML, page(self.server).encode("utf-8", "backslashreplace")
        problem = _CHECKS[path](self.server)
        return 503 if problem else 200, _TEXT, f"{problem or 'ok'}\n".encode()


def unhealthy(server: "Server") -> str:
    """Why the process should be ended and started again; "" if it should not."""
    silent = server.clock() - server.passed_at
    return f"the janitor has not passed for {silent:.0f} s" if silent > _STALLED else ""


def unready(server: "Server") -> str:
    """Why clients should not be sent here now; "" if they may.

    One server that is down does not count: it would take away those that can be reached.
    """
    if server.draining:
        return "draining"
    if not server.addresses:
        return "not listening"
    if server.admin.paused:
        return "paused"
    known = pools(server)
    if known and all(pool.failing and not pool.backends for pool in known):
        return "no server can be reached"
    return ""


_CHECKS: Final = {"/healthz": unhealthy, "/readyz": unready}
_PATHS: Final = frozenset(("/", "/metrics", *_CHECKS))


def _plain(status: int) -> Answer:
    return status, _TEXT, f"{status} {_REASONS[status]}\n".encode()


class _Connection(asyncio.Protocol):
    """One connection: a request, its answer, the end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._request = b""
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has connected."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        others = self._metrics.connections
        if len(others) >= _MOST_CONNECTIONS:
            self.abort()
            return
        others.add(self)
        self._allow(_REQUEST_TAKES)

    def data_received(self, data: bytes) -> None:
        """Some of the request; what comes behind it is not looked at."""
        if self._task is not None:
            return
        self._request += data
        head, end, _ = self._request.partition(b"\r\n\r\n")
        if end or len(self._request) > _LONGEST_REQUEST:
            self._allow(_ANSWER_TAKES)
            complete = bool(end) and len(head) <= _LONGEST_REQUEST
            self._task = asyncio.get_running_loop().create_task(
                self._answer(head if complete else b"")
            )

    def eof_received(self) -> bool:
        """It says no more; it may still listen."""
        return self._task is not None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """It is gone; why makes no difference."""
        self._metrics.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """Close at once."""
        assert self._transport is not None
        self._transport.abort()

    def _allow(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    async def _answer(self, head: bytes) -> None:
        """Answer a request that ends where its headers do; `head` without what ends them."""
        method, path = _read(head)
        try:
            answer = await self._metrics.answer(method, path)
        except Exception as bug:
            self._metrics.server.log_bug("metrics", bug)
            answer = _plain(500)
        assert self._transport is not None
        self._transport.write(_written(answer, without_body=method == "HEAD"))
        self._transport.close()


def _read(head: bytes) -> tuple[str, str]:
    """The method and the path, less its query; ("", "") if it is no HTTP/1 request."""
    line, *headers = head.split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None or not all(_HEADER.fullmatch(header) for header in headers):
        return "", ""
    return found[1].decode(), found[2].decode().partition("?")[0]


def _written(answer: Answer, without_body: bool) -> bytes:
    status, kind, body = answer
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        f"Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{allow}{_ALWAYS}\r\n"
    )
    return head.encode() + (b"" if without_body else body)
