"""A client's way in, from its first byte to its session: TLS, who it is, where it may go.

Each step is a method that reads what has come so far (`_read`). Two steps take time, the TLS
handshake and the question for the client's secret: they are tasks, and meanwhile what comes is held
up to a bound. Nothing that came before TLS is ever read as if it had come inside.

Source: PostgreSQL 18, section 54.2.1 "Start-up" and 54.2.10 "SSL Session Encryption".
"""

import asyncio
import os
import pwd
import ssl
import time
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final

from txproxy.backends.tls import ALPN
from txproxy.config import CONSOLE_DATABASES
from txproxy.core.answers import Ours, Refusal
from txproxy.core.handshake import (
    Credentials,
    Proven,
    Request,
    client_login,
    read_request,
    read_startup,
)
from txproxy.core.pool import Pool
from txproxy.core.session import Session
from txproxy.core.settings import NO_SETTINGS, share
from txproxy.errors import LoginError, NoSuchDatabaseError, ProtocolError, TxproxyError
from txproxy.net import tls
from txproxy.wire import encode
from txproxy.wire.codes import SSL_REQUEST, STARTUP_LIMIT
from txproxy.wire.messages import Startup, int32
from txproxy.wire.scram import Keys

if TYPE_CHECKING:
    from txproxy.net.client import Client
    from txproxy.net.server import Server

NEWEST_MINOR: Final = 2
"""Of protocol 3, that clients get: 3.2 has long cancel keys."""

_LONG_KEYS: Final = 2  # the minor version with which they came
_PASSWORD: Final = 0x70  # p
_PASSWORD_LIMIT: Final = 2048
_TLS_HANDSHAKE: Final = 0x16  # the first byte of a TLS record that begins a handshake
_HANDSHAKE_TAKES: Final = 60.0  # seconds at most, where client_login_timeout has no limit
_PASSWORD_TYPES: Final = ("md5", "scram-sha-256")
_TLS_MODES: Final = ("require", "verify-ca", "verify-full")


class Login:
    """One client before it has a session."""

    __slots__ = (
        "_asked",
        "_buffer",
        "_client",
        "_proof",
        "_read",
        "_request",
        "_secret",
        "_server",
        "_task",
    )

    def __init__(self, client: "Client", server: "Server") -> None:
        self._client = client
        self._server = server
        self._buffer = b""
        self._asked: set[int] = set()  # SSLRequest, GSSENCRequest
        self._read: Callable[[Login], None] = Login._read_startup
        self._task: asyncio.Task[None] | None = None
        self._proof: Generator[bytes, bytes, Proven] | None = None
        self._secret: Credentials | None = None
        self._request: Request | None = None

    def received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._buffer += data
        self._go_on()

    def stop(self) -> None:
        """The client is gone, or is to go. What takes time goes on, and leads nowhere."""
        self._read = Login._drop

    def _go_on(self) -> None:
        try:
            self._read(self)
        except TxproxyError as error:
            self._client.refuse(error)

    def _go_on_with(self, read: Callable[["Login"], None]) -> None:
        """What was waited for is there."""
        if self._client.transport.is_closing():
            return
        self._read = read
        if self._buffer:
            read(self)

    def _wait_for(self, step: Coroutine[Any, Any, None], read: Callable[["Login"], None]) -> None:
        """What comes meanwhile is for `read`."""
        self._read = read
        self._task = asyncio.get_running_loop().create_task(self._contained(step))

    async def _contained(self, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except TxproxyError as error:
            self._client.refuse(error)
        except Exception as bug:
            self._client.failed(bug)

    def _hold(self) -> None:
        if len(self._buffer) > STARTUP_LIMIT:
            raise ProtocolError("too much was sent before the login was complete")

    def _drop(self) -> None:
        self._buffer = b""

    # Start-up packets.

    def _read_startup(self) -> None:
        context = self._server.tls
        if context is not None and self._is_direct_tls():
            already, self._buffer = self._buffer, b""
            self._begin_tls(context, already)
            return
        read = read_startup(self._buffer)
        if read is None:
            return
        startup, length = read
        self._buffer = self._buffer[length:]
        if startup.is_tls_request:
            self._answer_tls_request(startup.code)
        elif startup.is_cancel:
            self._server.cancel(*startup.cancel_key())
            self._client.close()
        else:
            self._begin(startup)

    def _is_direct_tls(self) -> bool:
        """TLS without asking for it first (PostgreSQL 17)."""
        client = self._client
        begins = self._buffer[:1] == bytes((_TLS_HANDSHAKE,))
        return begins and not (self._asked or client.is_tls or client.is_unix)

    def _answer_tls_request(self, code: int) -> None:
        client = self._client
        # Bytes that came with the request were sent before the client knew the answer: somebody may
        # have put them there (CVE-2021-23214).
        if self._buffer or code in self._asked or client.is_tls:
            client.close()
            return
        self._asked.add(code)
        context = self._server.tls
        if code == SSL_REQUEST and context is not None and not client.is_unix:
            client.write(b"S")
            self._begin_tls(context, b"")
        else:
            client.write(b"N")

    # TLS.

    def _begin_tls(self, context: ssl.SSLContext, already: bytes) -> None:
        self._client.transport.pause_reading()
        self._wait_for(self._secure(context, already), Login._hold_during_handshake)

    def _hold_during_handshake(self) -> None:
        client = self._client
        if client.transport.get_protocol() is client:
            # It was not decrypted by anybody.
            client.close()
        else:
            self._hold()

    async def _secure(self, context: ssl.SSLContext, already: bytes) -> None:
        client = self._client
        limit = self._server.config.client_login_timeout or _HANDSHAKE_TAKES
        try:
            inside = await tls.accept(client.transport, client, context, already, limit)
        except OSError as error:
            reason = getattr(error, "reason", "") or error.strerror or str(error)
            client.failed_tls(LoginError(f"the TLS handshake failed: {reason or 'closed'}"))
            return
        client.secured(inside)
        if already and inside.get_extra_info("ssl_object").selected_alpn_protocol() != ALPN:
            raise ProtocolError(
                "received direct SSL connection request without ALPN protocol negotiation extension"
            )
        self._go_on_with(Login._read_startup)

    # Authentication.

    def _begin(self, startup: Startup) -> None:
        request = self._request = read_request(startup)
        server, client = self._server, self._client
        server.check_room(client)
        if server.config.client_tls_sslmode in _TLS_MODES and not (client.is_tls or client.is_unix):
            raise LoginError("SSL required")
        if request.minor > NEWEST_MINOR or request.unknown_options:
            minor = min(request.minor, NEWEST_MINOR)
            client.write(encode.negotiate_version(minor, request.unknown_options))
        if server.files.is_file(request.database):
            self._wait_for(self._hand_over(request), Login._hold)
            return
        method = server.config.auth_type
        if self._is_operator(request):
            self._let_in(request, None)
        elif method in _PASSWORD_TYPES:
            self._wait_for(self._challenge(method, request), Login._hold)
            self._hold()
        else:
            self._look_who_it_is(method, request.user)
            self._let_in(request, None)

    async def _hand_over(self, request: Request) -> None:
        """Its database is an SQLite file: who it is, the system says."""
        server, client = self._server, self._client
        place = await server.files.admit(client, request.database)
        server.check_room(client)
        transport = client.transport
        if transport.is_closing():
            return
        transport.pause_reading()
        # What was written is sent at the end of this turn of the loop; it is a few bytes.
        await asyncio.sleep(0)
        if transport.is_closing() or transport.get_write_buffer_size():
            client.close()
            return
        server.files.check_room(request.user, place)
        rest, self._buffer = self._buffer, b""
        client.handed_over(server.files.give(client, request, place, rest))

    def _is_operator(self, request: Request) -> bool:
        """Whether whoever runs the proxy asks for its console, as PgBouncer knows them."""
        return (
            self._server.is_console(request.database)
            and request.user in CONSOLE_DATABASES
            and self._client.peer_uid() == os.getuid()
        )

    def _look_who_it_is(self, method: str, user: str) -> None:
        if method == "cert":
            good = tls.names_in_certificate(self._client.transport) == [user]
        elif method == "peer":
            good = _name_of(self._client.peer_uid()) == user
        else:
            good = method == "trust"
        if not good:
            raise LoginError(f'{method} authentication failed for user "{user}"')

    async def _challenge(self, method: str, request: Request) -> None:
        server = self._server
        if server.is_console(request.database):
            # The console must not depend on a server, nor trust what one says.
            self._secret = server.authenticator.configured(request.user)
        else:
            self._secret = await server.authenticator.secret(request.database, request.user)
        self._proof = client_login(method, request.user, self._secret)
        self._client.write(next(self._proof))
        self._go_on_with(Login._read_proof)

    def _read_proof(self) -> None:
        while self._proof is not None and len(self._buffer) >= 5:
            kind, length = self._buffer[0], int32(self._buffer, 1)
            if kind != _PASSWORD:
                raise ProtocolError(f"expected password response, got message type {kind}")
            if not 5 <= length <= _PASSWORD_LIMIT:
                raise ProtocolError("invalid password packet size")
            if len(self._buffer) < 1 + length:
                return
            body = self._buffer[5 : 1 + length]
            self._buffer = self._buffer[1 + length :]
            try:
                self._client.write(self._proof.send(body))
            except StopIteration as done:
                self._proven(done.value)

    def _proven(self, proven: Proven) -> None:
        self._proof = None
        if proven.answer:
            self._client.write(proven.answer)
        assert self._request is not None
        self._let_in(self._request, proven.keys)

    # In.

    def _let_in(self, request: Request, keys: Keys | None) -> None:
        server, client = self._server, self._client
        console = server.is_console(request.database)
        if console and not self._may_use_console(request):
            raise LoginError("not allowed to use the console")
        pool = server.pool(request.database, request.user)
        settings = server.session_settings(request.database, request.user)
        if pool is None or settings is None:
            raise NoSuchDatabaseError(f'database "{request.database}" does not exist')
        ours = Ours(
            settings.idle_transaction_timeout,
            settings.idle_transaction_timeout_max,
            settings.idle_transaction_action,
        )
        try:
            for name, value in () if console else request.ours.items():
                ours.change(name, value)
        except Refusal as refusal:
            client.write(encode.as_fatal(refusal.args[0]))
            client.close()
            return
        if self._secret is not None and not console:
            _pass_on(pool, self._secret, keys)
        wanted = NO_SETTINGS if console else share(request.wanted)
        session = Session(client, pool, settings, wanted, ours, client.address)
        session.connected_at = time.time()
        rest, self._buffer = self._buffer, b""
        client.begin(session, rest, has_long_key=request.minor >= _LONG_KEYS)

    def _may_use_console(self, request: Request) -> bool:
        config = self._server.config
        listed = request.user in config.admin_users or request.user in config.stats_users
        return listed or self._is_operator(request)


def _name_of(uid: int | None) -> str | None:
    """A user's name in the operating system."""
    try:
        return pwd.getpwuid(uid).pw_name if uid is not None else None
    except KeyError:
        return None


def _pass_on(pool: Pool, secret: Credentials, keys: Keys | None) -> None:
    """What a client has proven to know opens the server for its pool, if the pool is that user's
    and the configuration has no better.
    """
    settings = pool.settings
    own = settings.password
    if settings.server_user != secret.user or (own is not None and own.kind == "plain"):
        return
    known = secret.with_keys(keys) if keys is not None else secret
    if known.can_log_in and known != pool.credentials:
        pool.credentials = known
        pool.credentials_changed()
