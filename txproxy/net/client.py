"""A client's socket: bytes to its login, then to its session."""

import asyncio
import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from txproxy.backends import reach
from txproxy.core.handshake import WrongPasswordError
from txproxy.core.ports import Endpoint
from txproxy.core.session import Session
from txproxy.core.sqlite import FileClient
from txproxy.errors import LoginError, TxproxyError, too_many
from txproxy.net.login import Login
from txproxy.net.sqlite import who
from txproxy.wire import encode
from txproxy.wire.codes import IDLE

if TYPE_CHECKING:
    from txproxy.net.server import Server

_LINGER: Final = 5.0  # seconds that a client has to read our last words
_HEARD_OUT: Final = 100  # clients beyond max_client_conn that may say who they are, or cancel


class Client(asyncio.Protocol):
    """The socket of one client. Before `session` is set it has not said who it is.

    transport   what is spoken on: with TLS the one inside
    address     for the log
    process     which process it is, in words; None: nobody has asked (see process.py)
    """

    __slots__ = (
        "_admitted",
        "_has_long_key",
        "_login",
        "_paused",
        "_pid",
        "_server",
        "address",
        "began",
        "is_beyond",
        "is_tls",
        "is_unix",
        "process",
        "session",
        "transport",
        "write",
    )

    transport: asyncio.Transport

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._login: Login | None = Login(self, server)
        self._has_long_key = False
        self._paused = False
        self._admitted = False
        self._pid = 0
        self.address = ""
        self.began = server.now
        self.is_beyond = False
        self.is_tls = False
        self.is_unix = False
        self.process: str | None = None
        self.session: Session | None = None
        self.write: Callable[[bytes], None] = _drop

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self.write = self.transport.write
        server = self._server
        server.clients.add(self)
        beyond = server.client_count - server.config.max_client_conn
        self.is_beyond = beyond > 0
        peer = transport.get_extra_info("peername")
        self.is_unix = not isinstance(peer, tuple)
        if self.is_unix:
            # 0: it has another pid namespace, a container.
            self.address = f"unix pid={self.peer_pid() or 'unknown'}"
        else:
            self.address = f"{peer[0]}:{peer[1]}"
            reach.keep_alive(transport, self._server.tcp)
        if beyond > _HEARD_OUT:
            server.log_refusal(self.address, too_many("max_client_conn"))
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        session = self.session
        try:
            if session is not None:
                session.client_sent(data)
            elif self._login is not None:
                self._login.received(data)
        except Exception as bug:
            self.failed(bug)

    def eof_received(self) -> bool:
        """The client has closed its side: close ours."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone; why makes no difference. May come twice: see `failed_tls`."""
        if self not in self._server.clients:
            return
        self.write = _drop
        self._server.forget(self, self._pid)
        if self._login is not None:
            self._login.stop()
            self._login = None
        if self._admitted and self._server.config.log_disconnections:
            self._server.event("client disconnected", self._who())
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

    def peer_pid(self) -> int:
        """The process that has connected, on a unix socket; 0 where nobody says."""
        return _peer(self.transport)[0] if self.is_unix else 0

    # What its login calls.

    def peer_uid(self) -> int | None:
        """The operating-system user at the other end of a unix socket; None where nobody says."""
        return _peer(self.transport)[1] if self.is_unix else None

    def secured(self, inside: asyncio.Transport) -> None:
        """TLS is established."""
        if self.write is not _drop:
            self.write = inside.write
        self.transport = inside
        self.is_tls = True

    def failed_tls(self, error: TxproxyError) -> None:
        """The handshake failed: the connection is closed, and the loop need not have told us."""
        self._server.log_refusal(self.address, error)
        self.close()
        self.connection_lost(None)

    def begin(self, session: Session, rest: bytes, *, has_long_key: bool) -> None:
        """The login is done; `rest` has come behind it."""
        self.session = session
        self._login = None
        self._has_long_key = has_long_key
        self._server.admitted(session)
        session.login()
        if rest:
            session.client_sent(rest)

    def handed_over(self, to: FileClient) -> None:
        """Its socket is another process's now: ours is closed, and the connection stays."""
        self.write = _drop
        self._login = None
        self.transport.abort()
        if self._server.config.log_connections:
            self._server.event("client connected", {**who(to), "tls": ""})

    def refuse(self, error: TxproxyError) -> None:
        """Say why the client cannot come in, and close."""
        logged = error
        if isinstance(error, WrongPasswordError):
            logged = LoginError(f"{error.message}: {error.reason}", sqlstate=error.sqlstate)
        self._server.log_refusal(self.address, logged)
        self.write(encode.error("FATAL", error.sqlstate, error.message, hint=error.hint))
        self.close()

    def failed(self, bug: Exception) -> None:
        """Something raised that must not."""
        if self.session is not None:
            self._server.bug(self.session, bug)
        else:
            self._server.log_bug("login", bug)
            self.close()

    # What the session calls.

    def admitted(self, params: dict[str, str]) -> None:
        """The login is complete."""
        assert self.session is not None
        self._pid, secret = self._server.keys.issue(self.session, self._has_long_key)
        self.session.pid = self._pid
        self.write(
            encode.AUTHENTICATION_OK
            + _parameters(tuple(params.items()))
            + encode.backend_key_data(self._pid, secret)
            + encode.ready(IDLE)
        )
        self._admitted = True
        if self._server.config.log_connections:
            self._server.event("client connected", {**self._who(), "tls": self.endpoint.tls})

    def _who(self) -> dict[str, object]:
        assert self.session is not None
        settings = self.session.settings
        return {"client": self.address, "database": settings.database, "user": settings.user}

    @property
    def endpoint(self) -> Endpoint:
        """Where the client is."""
        name = self.transport.get_extra_info("sockname") if self.is_unix else ""
        port = str(name).rpartition(".")[2]
        return reach.endpoint(self.transport, int(port) if port.isdigit() else 0)

    def finish(self) -> None:
        """Send what was written, then close."""
        self.close()

    def close(self) -> None:
        """Close once what was written is sent, or after a while."""
        transport = self.transport
        self.write = _drop
        if self._login is not None:
            self._login.stop()
        if not transport.is_closing():
            transport.close()
            asyncio.get_running_loop().call_later(_LINGER, transport.abort)

    def update_reading(self) -> None:
        """Pause or resume reading, as the session wants it."""
        transport = self.transport
        session = self.session
        if session is None or transport.is_closing():
            return
        wants_pause = session.wants_pause
        if wants_pause != self._paused:
            self._paused = wants_pause
            if wants_pause:
                transport.pause_reading()
            else:
                transport.resume_reading()


@lru_cache(maxsize=1000)
def _parameters(named: tuple[tuple[str, str], ...]) -> bytes:
    """What nearly all clients are told alike."""
    return b"".join(encode.parameter_status(name, value) for name, value in named)


def _drop(_data: bytes) -> None:
    """What is written to a client that is gone."""


def _peer(transport: asyncio.BaseTransport) -> tuple[int, int | None]:
    """Process and user at the other end of a unix socket; (0, None) if the system does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0, None
    sock = transport.get_extra_info("socket")
    pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, option, 12))
    return pid, uid
