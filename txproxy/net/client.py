"""A client's socket: start-up, then bytes to its session."""

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from txproxy.core.answers import Ours, Refusal
from txproxy.core.handshake import Request, read_request, read_startup
from txproxy.core.session import Session
from txproxy.core.settings import share
from txproxy.errors import NoSuchDatabaseError, TxproxyError
from txproxy.wire import encode
from txproxy.wire.codes import IDLE
from txproxy.wire.messages import Startup

if TYPE_CHECKING:
    from txproxy.net.server import Server

_LINGER: Final = 5.0  # seconds that a client has to read our last words


class Client(asyncio.Protocol):
    """The socket of one client. Before `session` is set it has not said who it is."""

    __slots__ = (
        "_buffer",
        "_encryption_asked",
        "_paused",
        "_pid",
        "_server",
        "_transport",
        "began",
        "request",
        "session",
        "write",
    )

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._buffer = b""
        self._encryption_asked = 0
        self._paused = False
        self._pid = 0
        self._transport: asyncio.Transport | None = None
        self.began = server.now
        self.request: Request | None = None
        self.session: Session | None = None
        self.write: Callable[[bytes], None] = _drop

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self.write = transport.write  # type: ignore[attr-defined]
        self._server.clients.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        session = self.session
        try:
            if session is not None:
                session.client_sent(data)
            else:
                self._start_up(data)
        except Exception as bug:
            if session is None:
                self._server.log_bug("login", bug)
                self.close()
            else:
                self._server.bug(session, bug)

    def eof_received(self) -> bool:
        """The client has closed its side: close ours."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone; why makes no difference."""
        self.write = _drop
        self._server.forget(self, self._pid)
        if self.session is not None:
            try:
                self.session.gone(cancel=True)
            except Exception as bug:
                self._server.bug(self.session, bug)

    def pause_writing(self) -> None:
        """The client does not read what it is sent."""
        if self.session is not None:
            self.session.client_is_full(True)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self.session is not None:
            self.session.client_is_full(False)

    # Start-up.

    def _start_up(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._buffer += data
        try:
            read = read_startup(self._buffer)
            if read is None:
                return
            startup, length = read
            rest = self._buffer[length:]
            self._buffer = b""
            if startup.is_tls_request:
                self._refuse_encryption(rest)
            elif startup.is_cancel:
                self._server.cancel(*startup.cancel_key())
                self.close()
            else:
                self._ask(startup, rest)
        except TxproxyError as error:
            self.refuse(error)

    def _refuse_encryption(self, rest: bytes) -> None:
        # Bytes that came with the request were sent before the client knew the answer: somebody
        # may have put them there (CVE-2021-23214).
        self._encryption_asked += 1
        if rest or self._encryption_asked > 2:
            self.close()
        else:
            self.write(b"N")

    def _ask(self, startup: Startup, rest: bytes) -> None:
        server = self._server
        request = read_request(startup)
        server.check_room()
        pool = server.pool(request.database, request.user)
        if pool is None:
            raise NoSuchDatabaseError(f'database "{request.database}" does not exist')
        settings = pool.settings
        ours = Ours(
            settings.idle_transaction_timeout,
            settings.idle_transaction_timeout_max,
            settings.idle_transaction_action,
        )
        try:
            for name, value in request.ours.items():
                ours.change(name, value)
        except Refusal as refusal:
            self.write(encode.as_fatal(refusal.args[0]))
            self.close()
            return
        self.request = request
        session = Session(self, pool, share(request.wanted), ours, self._address())
        self.session = session
        if request.minor > 0 or request.unknown_options:
            self.write(encode.negotiate_version(0, request.unknown_options))
        session.login()
        if rest:
            session.client_sent(rest)

    def _address(self) -> str:
        assert self._transport is not None
        peer = self._transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            return f"{peer[0]}:{peer[1]}"
        return f"unix pid={_peer_pid(self._transport.get_extra_info('socket'))}"

    # What the session calls.

    def admitted(self, params: dict[str, str]) -> None:
        """The login is complete."""
        assert self.session is not None
        self._pid, secret = self._server.keys.issue(self.session)
        self.write(
            encode.AUTHENTICATION_OK
            + b"".join(encode.parameter_status(name, value) for name, value in params.items())
            + encode.backend_key_data(self._pid, secret)
            + encode.ready(IDLE)
        )
        self.request = None

    def refuse(self, error: TxproxyError) -> None:
        """Say why the client cannot come in, and close."""
        self._server.log_refusal(self._address(), error)
        self.write(encode.error("FATAL", error.sqlstate, error.message, hint=error.hint))
        self.close()

    def finish(self) -> None:
        """Send what was written, then close."""
        self.close()

    def close(self) -> None:
        """Close once what was written is sent, or after a while."""
        transport = self._transport
        self.write = _drop
        if transport is not None and not transport.is_closing():
            transport.close()
            asyncio.get_running_loop().call_later(_LINGER, transport.abort)

    def update_reading(self) -> None:
        """Pause or resume reading, as the session wants it."""
        transport = self._transport
        session = self.session
        if transport is None or session is None or transport.is_closing():
            return
        wants_pause = session.wants_pause
        if wants_pause != self._paused:
            self._paused = wants_pause
            if wants_pause:
                transport.pause_reading()
            else:
                transport.resume_reading()


def _drop(_data: bytes) -> None:
    """What is written to a client that is gone."""


def _peer_pid(sock: socket.socket) -> int:
    """The process at the other end of a unix socket; 0 if the system does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0
    credentials = sock.getsockopt(socket.SOL_SOCKET, option, 12)
    return int.from_bytes(credentials[:4], sys.byteorder)
