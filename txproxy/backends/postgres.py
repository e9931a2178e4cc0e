"""A PostgreSQL server as a backend: its connection, login and cancel requests."""

import asyncio
from collections.abc import Callable, Generator
from typing import Final

from txproxy.config import PoolSettings
from txproxy.core.backend import Backend
from txproxy.core.handshake import ServerRefusal, Welcome, server_login
from txproxy.core.pool import Pool
from txproxy.errors import ConnectError, LoginError, ProtocolError
from txproxy.wire import encode
from txproxy.wire.messages import int32

_LOGIN_LIMIT: Final = 1 << 20
_CANCEL_LIMIT: Final = 10.0


class PostgresBackend(asyncio.Protocol):
    """The socket of one backend. Before `backend` is set it is logging in."""

    def __init__(self, pool: Pool, contain: Callable[[Backend, Exception], None]) -> None:
        self._pool = pool
        self._contain = contain
        self._login: Generator[bytes, tuple[int, bytes], Welcome] = server_login(
            pool.settings.server_user, pool.settings.dbname
        )
        self._buffer = b""
        self._paused = False
        self._cancelling: set[asyncio.Task[None]] = set()
        self.transport: asyncio.Transport | None = None
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.backend: Backend | None = None
        self.write: Callable[[bytes], None] = _not_connected

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected: begin to log in."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self.write = transport.write  # type: ignore[attr-defined]
        self.write(next(self._login))

    def data_received(self, data: bytes) -> None:
        """Bytes from the server."""
        backend = self.backend
        if backend is None:
            self._log_in(data)
            return
        try:
            backend.server_sent(data)
        except Exception as bug:
            self._contain(backend, bug)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server's connection is gone."""
        if not self.welcome.done():
            reason = str(exc) if exc else "the server closed the connection during login"
            self.welcome.set_exception(ConnectError(reason))
        if self.backend is not None:
            try:
                self.backend.lost()
            except Exception as bug:
                self._contain(self.backend, bug)

    def pause_writing(self) -> None:
        """The server takes no more for now."""
        self._set_full(True)

    def resume_writing(self) -> None:
        """The server takes data again."""
        self._set_full(False)

    def _set_full(self, full: bool) -> None:
        backend = self.backend
        if backend is not None:
            backend.full = full
            if backend.session is not None:
                backend.session.client.update_reading()

    def _log_in(self, data: bytes) -> None:
        self._buffer += data
        while self.backend is None and len(self._buffer) >= 5:
            length = int32(self._buffer, 1)
            if length < 4 or length > _LOGIN_LIMIT:
                self._refuse(
                    ProtocolError("what answers there does not speak PostgreSQL's protocol")
                )
                return
            if len(self._buffer) < 1 + length:
                return
            body = self._buffer[5 : 1 + length]
            kind = self._buffer[0]
            self._buffer = self._buffer[1 + length :]
            try:
                out = self._login.send((kind, body))
            except StopIteration as done:
                self._logged_in(done.value)
            except (ServerRefusal, LoginError, ProtocolError) as refusal:
                self._refuse(refusal)
                return
            except IndexError:
                self._refuse(ProtocolError("a message of the server's login is cut short"))
                return
            else:
                if out:
                    self.write(out)

    def _logged_in(self, welcome: Welcome) -> None:
        if self.welcome.done():
            return
        self.backend = Backend(self._pool, self, welcome.params)
        self.welcome.set_result(welcome)
        if self._buffer:
            rest, self._buffer = self._buffer, b""
            self.data_received(rest)

    def _refuse(self, error: Exception) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(error)
        self.abort()

    # What the backend calls.

    def update_reading(self) -> None:
        """Pause or resume reading, as the backend wants it."""
        wants_pause = self.backend is not None and self.backend.wants_pause
        if wants_pause == self._paused or self.transport is None or self.transport.is_closing():
            return
        self._paused = wants_pause
        if wants_pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def finish(self) -> None:
        """Say Terminate and close."""
        if self.transport is not None and not self.transport.is_closing():
            self.write(encode.TERMINATE)
            self.transport.close()
            # A server that does not read would keep the socket open.
            asyncio.get_running_loop().call_later(1.0, self.transport.abort)

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def cancel(self) -> None:
        """Send a CancelRequest on a connection of its own, and say when the server has read it."""
        task = asyncio.get_running_loop().create_task(self._cancel())
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def _cancel(self) -> None:
        welcome = self.welcome.result()
        try:
            async with asyncio.timeout(_CANCEL_LIMIT):
                await _send_cancel(self._pool.settings, welcome)
        except (OSError, TimeoutError) as error:
            self._pool.outside.event("cancel failed", {"why": str(error), "pool": self._pool.name})
        finally:
            backend = self.backend
            if backend is not None:
                try:
                    backend.cancel_done()
                except Exception as bug:
                    self._contain(backend, bug)


def _not_connected(_data: bytes) -> None:
    raise ConnectError("not connected")


async def _send_cancel(settings: PoolSettings, welcome: Welcome) -> None:
    if settings.host.startswith("/"):
        path = f"{settings.host}/.s.PGSQL.{settings.port}"
        reader, writer = await asyncio.open_unix_connection(path)
    else:
        reader, writer = await asyncio.open_connection(settings.host, settings.port)
    try:
        writer.write(encode.cancel_request(welcome.pid, welcome.secret))
        # The server closes the connection after it has sent the signal, not before.
        await reader.read()
    finally:
        writer.close()


async def connect(
    pool: Pool, timeout: float, contain: Callable[[Backend, Exception], None]
) -> Backend:
    """A backend that is logged in, within `timeout` seconds (0: however long it takes).

    Raises ConnectError, ProtocolError, LoginError, or ServerRefusal with the server's own error.
    """
    settings = pool.settings
    loop = asyncio.get_running_loop()
    socket = PostgresBackend(pool, contain)
    try:
        async with asyncio.timeout(timeout or None):
            if settings.host.startswith("/"):
                path = f"{settings.host}/.s.PGSQL.{settings.port}"
                await loop.create_unix_connection(lambda: socket, path)
            else:
                await loop.create_connection(lambda: socket, settings.host, settings.port)
            await asyncio.shield(socket.welcome)
    except (TimeoutError, OSError, asyncio.CancelledError) as error:
        _give_up(socket)
        if isinstance(error, TimeoutError):
            raise ConnectError(
                f"no connection to {settings.host}:{settings.port} within {timeout:g} s"
            ) from error
        if isinstance(error, OSError):
            raise ConnectError(
                f"could not connect to {settings.host}:{settings.port}: {error.strerror or error}"
            ) from error
        raise
    assert socket.backend is not None
    return socket.backend


def _give_up(socket: PostgresBackend) -> None:
    socket.welcome.cancel()
    socket.abort()
