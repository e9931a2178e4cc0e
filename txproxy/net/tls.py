"""TLS with clients: what our listeners offer, and the moment in which a socket goes over to it."""

import asyncio
import ssl
from typing import Any, Final

from txproxy.backends.tls import VERIFYING, configure
from txproxy.config import TlsSettings

_CLOSED: Final = "closed during the TLS handshake"


def client_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """What our listeners offer; None with `disable`. Raises ConfigError with key and file.

    As with PgBouncer, verify-ca and verify-full are the same here: the client must have a
    certificate of one of our CAs; whose name is in it matters to auth_type = cert alone.
    """
    if settings.sslmode == "disable":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # PostgreSQL has neither: a session that is taken up again would skip what its client proved.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    configure(context, settings, "client_tls")
    if settings.sslmode in VERIFYING:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def accept(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    already: bytes,
    timeout: float,
) -> asyncio.Transport:
    """Begin TLS on an accepted connection, whose reading must be paused; the transport inside.

    `already` is what was read of the ClientHello, where the client did not ask first. `timeout` in
    seconds. The protocol may get its first bytes before this returns. Raises OSError (ssl.SSLError
    among them); then the connection is closed, and `connection_lost` may not have been called.
    """
    loop = asyncio.get_running_loop()
    starting = loop.create_task(_start(transport, protocol, context, timeout))
    if already:
        # start_tls() begins its handshake and then resumes reading, in two callbacks of the same
        # turn of the loop. What is there goes in behind them in that turn: the turn after has data
        # from the socket.
        loop.call_soon(loop.call_soon, _hand_over, transport, already)
    inside = await starting
    # A connection that we close meanwhile is no error to start_tls().
    if inside is None or inside.is_closing():
        raise ConnectionResetError(_CLOSED)
    return inside


async def _start(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    timeout: float,
) -> asyncio.Transport | None:
    if transport.is_closing():  # start_tls() would wait for nothing
        raise ConnectionResetError(_CLOSED)
    return await asyncio.get_running_loop().start_tls(
        transport, protocol, context, server_side=True, ssl_handshake_timeout=timeout
    )


def _hand_over(transport: asyncio.Transport, data: bytes) -> None:
    """As if the loop had just read these bytes."""
    tls: Any = transport.get_protocol()
    rest = memoryview(data)
    while rest and not transport.is_closing():
        buffer = tls.get_buffer(len(rest))
        size = min(len(buffer), len(rest))
        buffer[:size] = rest[:size]
        tls.buffer_updated(size)
        rest = rest[size:]


def names_in_certificate(transport: asyncio.BaseTransport) -> list[str]:
    """The common names in the client's certificate; none if it has none that was verified."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    certificate: Any = tls.getpeercert() if tls is not None else None
    subject = certificate.get("subject", ()) if certificate else ()
    return [value for part in subject for name, value in part if name == "commonName"]
