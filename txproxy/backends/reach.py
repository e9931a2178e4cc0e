"""The way to a server: its address, TLS, keepalive. What is said on it is said elsewhere."""

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from txproxy.backends.tls import server_context
from txproxy.config import TcpSettings, TlsSettings
from txproxy.core.ports import Endpoint
from txproxy.errors import ConnectError
from txproxy.wire.codes import SSL_REQUEST

_SSL_REQUEST: Final = b"\0\0\0\x08" + SSL_REQUEST.to_bytes(4, "big")
_MILLISECONDS: Final = 1000


@dataclass(frozen=True)
class Way:
    """Where a server is, and how it is reached.

    host      a name, an address, or the directory of a unix socket
    context   None: without TLS
    must      with TLS or not at all; else without it where the server has none to offer
    """

    host: str
    port: int
    context: ssl.SSLContext | None = None
    must: bool = False

    @property
    def path(self) -> str:
        """The file of the unix socket; "" for TCP."""
        return f"{self.host}/.s.PGSQL.{self.port}" if self.host.startswith("/") else ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ways(host: str, port: int, tls: TlsSettings) -> list[Way]:
    """The ways to a server, in the order in which they are tried. No TLS over unix sockets.

    Raises ConfigError.
    """
    plain = Way(host, port)
    context = None if plain.path else server_context(tls)
    if context is None:
        return [plain]
    if tls.sslmode == "allow":
        return [plain, Way(host, port, context, must=True)]
    if tls.sslmode == "prefer":
        return [Way(host, port, context), plain]
    return [Way(host, port, context, must=True)]


class NoTlsError(ConnectError):
    """The server is there, but TLS with it is not to be had."""


async def reach(way: Way, tcp: TcpSettings, protocol: asyncio.Protocol) -> bool:
    """Connect, and give the protocol its connection; whether TLS is in use.

    Raises NoTlsError, and OSError if there is no connection at all.
    """
    loop = asyncio.get_running_loop()
    if way.path:
        await loop.create_unix_connection(lambda: protocol, way.path)
        return False
    if way.context is None:
        plain, _ = await loop.create_connection(lambda: protocol, way.host, way.port)
        keep_alive(plain, tcp)
        return False
    question = _Question()
    outside, _ = await loop.create_connection(lambda: question, way.host, way.port)
    keep_alive(outside, tcp)
    try:
        inside = await _secured(outside, question, way, way.context)
    except BaseException:
        outside.abort()
        raise
    inside.set_protocol(protocol)
    protocol.connection_made(inside)
    if inside is outside:
        outside.resume_reading()
    return inside is not outside


async def _secured(
    outside: asyncio.Transport, question: "_Question", way: Way, context: ssl.SSLContext
) -> asyncio.Transport:
    """The transport to speak on: with TLS, or the same one where the server has none to offer."""
    answer = await question.answer
    if answer == b"N" and not way.must:
        return outside
    if answer == b"N":
        raise NoTlsError(f"the server at {way} does not offer TLS")
    if answer != b"S":
        # An ErrorResponse is no better: nobody knows who wrote it (CVE-2024-10977). What comes
        # behind the S could pass for something that came inside TLS (CVE-2021-23222).
        raise NoTlsError(f"the server at {way} gave no proper answer when asked for TLS")
    loop = asyncio.get_running_loop()
    try:
        inside = await loop.start_tls(outside, question, context, server_hostname=way.host)
    except ssl.CertificateError as error:
        reason = error.verify_message
        raise NoTlsError(f"the certificate of {way} is not good: {reason}") from error
    except OSError as error:
        reason = getattr(error, "reason", "") or error.strerror or "the connection was closed"
        raise NoTlsError(f"the TLS handshake with {way} failed: {reason}") from error
    if inside is None or inside.is_closing():
        raise NoTlsError(f"the TLS handshake with {way} failed: the connection was closed")
    return inside


class _Question(asyncio.Protocol):
    """SSLRequest, and the one byte that answers it; reading stops behind it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected: ask."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        transport.write(_SSL_REQUEST)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """The answer; whatever else the server says is said too early."""
        assert self._transport is not None
        if self.answer.done():
            self._transport.abort()
        else:
            self._transport.pause_reading()
            self.answer.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The server is gone; why makes no difference."""
        if not self.answer.done():
            self.answer.set_result(b"")


def keep_alive(transport: asyncio.BaseTransport, tcp: TcpSettings) -> None:
    """Have the system notice, as it is told to, when the other side is gone without a word."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = {
        "TCP_KEEPIDLE": tcp.keepidle if tcp.keepalive else 0,
        "TCP_KEEPINTVL": tcp.keepintvl if tcp.keepalive else 0,
        "TCP_KEEPCNT": tcp.keepcnt if tcp.keepalive else 0,
        "TCP_USER_TIMEOUT": round(tcp.user_timeout * _MILLISECONDS),
    }
    # A connection that is gone already takes no options; the loop will say so.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(tcp.keepalive))
        for name, value in options.items():
            # Not every system has each of them.
            option = getattr(socket, name, None)
            if value and option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def endpoint(transport: asyncio.BaseTransport, unix_port: int) -> Endpoint:
    """Both ends of a connection; a unix socket's port is the one in its name."""
    peer, local = (transport.get_extra_info(name) for name in ("peername", "sockname"))
    if not isinstance(peer, tuple) or not isinstance(local, tuple):
        return Endpoint("unix", unix_port, "unix", unix_port)
    return Endpoint(peer[0], peer[1], local[0], local[1], _tls_of(transport))


def _tls_of(transport: asyncio.BaseTransport) -> str:
    """Version and cipher, as "TLSv1.3/TLS_AES_256_GCM_SHA384"; "" without TLS."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    cipher = tls.cipher() if tls is not None else None
    return f"{tls.version()}/{cipher[0]}" if tls is not None and cipher is not None else ""
