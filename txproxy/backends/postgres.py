"""A PostgreSQL server as a backend: its connection, login and cancel requests."""

import asyncio
import select
import time
from collections.abc import Callable, Generator
from itertools import count
from typing import Final

from txproxy.backends import reach
from txproxy.backends.reach import NoTlsError, Way, ways
from txproxy.config import PoolSettings
from txproxy.core.backend import Backend
from txproxy.core.handshake import Credentials, ServerRefusal, Welcome, server_login
from txproxy.core.pool import Pool
from txproxy.core.ports import Endpoint
from txproxy.errors import ConnectError, LoginError, ProtocolError, TxproxyError
from txproxy.wire import encode
from txproxy.wire.codes import (
    COPY_BOTH_RESPONSE,
    COPY_IN_RESPONSE,
    ERROR_RESPONSE,
    IDLE,
    PARAMETER_STATUS,
    READY_FOR_QUERY,
)
from txproxy.wire.messages import error_fields, int32, parameter_status

NEWEST_MINOR: Final = 2
"""Of protocol 3, that we ask servers for: 3.2 has long cancel keys."""

_LOGIN_LIMIT: Final = 1 << 20
_CANCEL_LIMIT: Final = 10.0

_Conversation = Generator[bytes, tuple[int, bytes], Welcome]


class PostgresBackend(asyncio.Protocol):
    """The socket of one backend. Before `backend` is set it is logging in."""

    def __init__(
        self, pool: Pool, login: _Conversation, contain: Callable[[Backend, Exception], None]
    ) -> None:
        self._pool = pool
        self._contain = contain
        self._login = login
        self._buffer = b""
        self._paused = False
        self._cancelling: set[asyncio.Task[None]] = set()
        self._tcp = pool.settings.tcp
        self.way: Way | None = None  # how it was reached: a CancelRequest goes the same way
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
            except TxproxyError as refusal:
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
        self.backend.connected_at = time.time()
        self.welcome.set_result(welcome)
        if self._buffer:
            rest, self._buffer = self._buffer, b""
            self.data_received(rest)

    def _refuse(self, error: Exception) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(error)
        self.abort()

    # What the backend calls.

    @property
    def endpoint(self) -> Endpoint:
        """Where the server is."""
        if self.transport is None or self.way is None:
            return Endpoint()
        return reach.endpoint(self.transport, self.way.port)

    @property
    def pid(self) -> int:
        """The server process's number, as BackendKeyData has it."""
        return self.welcome.result().pid

    def is_stale(self) -> bool:
        """Whether the server has closed it, or said something that was not asked for."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return True
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

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
        """Close at once, logged in or not."""
        self.welcome.cancel()
        if self.transport is not None:
            self.transport.abort()

    def cancel(self) -> None:
        """Send a CancelRequest on a connection of its own, and say when the server has read it."""
        task = asyncio.get_running_loop().create_task(self._cancel())
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def _cancel(self) -> None:
        welcome = self.welcome.result()
        request = _CancelRequest(encode.cancel_request(welcome.pid, welcome.secret))
        try:
            async with asyncio.timeout(_CANCEL_LIMIT):
                assert self.way is not None
                await reach.reach(self.way, self._tcp, request)
                await request.read
        except (OSError, TimeoutError, TxproxyError) as error:
            self._pool.outside.event("cancel failed", {"why": str(error), "pool": self._pool.name})
        finally:
            request.close()
            backend = self.backend
            if backend is not None:
                try:
                    backend.cancel_done()
                except Exception as bug:
                    self._contain(backend, bug)


def _not_connected(_data: bytes) -> None:
    raise ConnectError("not connected")


class _CancelRequest(asyncio.Protocol):
    """The socket of one cancel request. The server closes it after it has sent the signal, not
    before; then `read` is done.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport | None = None
        self.read: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected: ask."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        transport.write(self._request)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The server has closed it; why makes no difference."""
        if not self.read.done():
            self.read.set_result(None)

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


# Connecting: hosts in turn, with TLS or without, in the newest protocol that is spoken there.

_turns: dict[tuple[str, ...], "count[int]"] = {}
_minors: dict[tuple[str, int], int] = {}


async def connect(pool: Pool, contain: Callable[[Backend, Exception], None]) -> Backend:
    """A backend that is logged in, within server_connect_timeout.

    Hosts are tried one after the other until one takes us, each for its share of the time. Raises
    what the last one said: ConnectError, ProtocolError, LoginError, ConfigError, or ServerRefusal
    with the server's own error.
    """
    settings = pool.settings
    share = settings.server_connect_timeout / len(settings.hosts)
    error: TxproxyError = ConnectError("no host")
    for host in _in_turn(settings):
        try:
            async with asyncio.timeout(share or None):
                return await _connect_to(host, pool, contain)
        except TimeoutError:
            error = ConnectError(f"no connection to {_place(host, settings)} within {share:g} s")
        except OSError as failure:
            reason = failure.strerror or str(failure)
            error = ConnectError(f"could not connect to {_place(host, settings)}: {reason}")
        except TxproxyError as refusal:
            if not _another_may_do(refusal):
                raise
            error = refusal
    raise error


def _place(host: str, settings: PoolSettings) -> str:
    return str(Way(host, settings.port))


def _in_turn(settings: PoolSettings) -> list[str]:
    """The pool's hosts in the order in which this connection tries them."""
    hosts = list(settings.hosts)
    if len(hosts) == 1 or settings.load_balance_hosts == "disable":
        return hosts
    first = next(_turns.setdefault(settings.hosts, count())) % len(hosts)
    return hosts[first:] + hosts[:first]


def _another_may_do(error: TxproxyError) -> bool:
    """Whether another host is worth trying: not where this one knows us and does not let us in."""
    if isinstance(error, ServerRefusal):
        return error.sqlstate[:2] in ("08", "53", "57")
    return isinstance(error, ConnectError | ProtocolError)


async def _connect_to(
    host: str, pool: Pool, contain: Callable[[Backend, Exception], None]
) -> Backend:
    """With TLS and without, as server_tls_sslmode says."""
    *others, last = ways(host, pool.settings.port, pool.settings.tls)
    for way in others:
        try:
            return await _connect_by(way, pool, contain)
        except (_UnlikedError, NoTlsError) as error:
            fields = {"pool": pool.name, "server": str(way), "why": error.message}
            pool.outside.event("another way", {**fields})
    return await _connect_by(last, pool, contain)


async def _connect_by(
    way: Way, pool: Pool, contain: Callable[[Backend, Exception], None]
) -> Backend:
    """In protocol 3.2, or in 3.0 where the server has refused that once."""
    place = (way.host, way.port)
    minor = _minors.get(place, NEWEST_MINOR)
    try:
        return await _log_in(way, pool, minor, contain)
    except ServerRefusal as refusal:
        if minor == 0 or refusal.sqlstate not in ("0A000", "08P01"):
            raise
    backend = await _log_in(way, pool, 0, contain)
    _minors[place] = 0
    return backend


class _UnlikedError(ServerRefusal):
    """pg_hba.conf may have a line for us, but for TLS, or for a connection without it."""


async def _log_in(
    way: Way, pool: Pool, minor: int, contain: Callable[[Backend, Exception], None]
) -> Backend:
    socket = PostgresBackend(pool, _conversation(pool, minor), contain)
    context = way.context
    try:
        if not await reach.reach(way, pool.settings.tcp, socket):
            context = None
        socket.way = Way(way.host, way.port, context, must=True)
        await asyncio.shield(socket.welcome)
    except ServerRefusal as refusal:
        if refusal.sqlstate == "28000" and context is way.context:
            raise _UnlikedError(refusal.fields) from refusal
        raise
    finally:
        if socket.backend is None:
            socket.abort()
    assert socket.backend is not None
    return socket.backend


def _conversation(pool: Pool, minor: int) -> _Conversation:
    """What is said before the backend is given out."""
    settings = pool.settings
    credentials = pool.credentials or Credentials(settings.server_user)
    welcome = yield from server_login(credentials, settings.dbname, settings.parameters, minor)
    if settings.connect_query:
        yield from _first_query(settings.connect_query, welcome.params)
    return welcome


def _first_query(sql: str, params: dict[str, str]) -> Generator[bytes, tuple[int, bytes], None]:
    """connect_query; what the server reports meanwhile goes into `params`."""
    out = encode.query(sql.encode("utf-8", "surrogateescape"))
    while True:
        kind, body = yield out
        out = b""
        if kind == ERROR_RESPONSE:
            fields = error_fields(body)
            raise ServerRefusal({**fields, "M": f"connect_query failed: {fields.get('M', '')}"})
        if kind == PARAMETER_STATUS:
            name, value = parameter_status(body)
            params[name] = value
        elif kind in (COPY_IN_RESPONSE, COPY_BOTH_RESPONSE):
            raise LoginError("connect_query must not COPY from us", sqlstate="08001")
        elif kind == READY_FOR_QUERY:
            if body[0] != IDLE:
                raise LoginError("connect_query leaves a transaction open", sqlstate="08001")
            return
