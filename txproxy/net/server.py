"""The proxy as a whole: listeners, pools, the janitor, shutdown."""

import asyncio
import math
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from txproxy.backends.postgres import connect
from txproxy.config import Config, TcpAddress, UnixAddress
from txproxy.core import endings
from txproxy.core.backend import Backend
from txproxy.core.cancel import CancelKeys
from txproxy.core.handshake import ServerRefusal
from txproxy.core.pool import Pool
from txproxy.core.session import Session
from txproxy.core.transaction import OPEN
from txproxy.errors import ConnectError, TxproxyError
from txproxy.net.client import Client
from txproxy.net.log import LOGGER
from txproxy.wire import encode

TICK: Final = 0.05
"""Seconds between two passes of the janitor."""

_CANCELS_TAKE: Final = 2.0  # seconds at most, at the end
_ALL_EVERY: Final = 1.0  # seconds between two looks at every client
_TOTALS_EVERY: Final = 60.0  # seconds between two lines of totals, as PgBouncer's stats_period
_BACKLOG: Final = 1024
_SHUTTING_DOWN: Final = encode.error(
    "FATAL", "57P01", "terminating connection due to administrator command"
)
_QUIET: Final = frozenset(("backend connected", "backend closed"))


class Server:
    """One proxy. `now` is the janitor's clock: seconds, standing still while the proxy is stalled,
    so that a stall makes nobody look idle.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.now = 1.0
        self.cancel_timeout = config.cancel_timeout or math.inf
        self.rollback_timeout = config.rollback_timeout or math.inf
        self.cancel_on_disconnect = config.cancel_on_disconnect
        self.log_statement_literals = config.log_statement_literals
        self.keys = CancelKeys()
        self.clients: set[Client] = set()
        self.pools: dict[tuple[str, str], Pool] = {}
        self.draining = False
        self._look_at_all_at = 0.0
        self._totals_at = _TOTALS_EVERY
        self._told: dict[str, dict[str, int]] = {}
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[UnixAddress] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._janitor: asyncio.Task[None] | None = None

    # Life.

    async def start(self) -> None:
        """Listen. Raises ConnectError if an address is not to be had."""
        for address in self.config.listen:
            await self._listen(address)
        self._janitor = asyncio.get_running_loop().create_task(self._clean_up())

    async def _listen(self, address: TcpAddress | UnixAddress) -> None:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(address, UnixAddress):
                _check_free(address.path)
                # The umask counts from the first moment; a chmod behind bind() would come late.
                mask = os.umask(0o777 & ~self.config.unix_socket_mode)
                try:
                    listener = await loop.create_unix_server(
                        lambda: Client(self), address.path, backlog=_BACKLOG
                    )
                finally:
                    os.umask(mask)
                self._sockets.append(address)
            else:
                listener = await loop.create_server(
                    lambda: Client(self), address.host, address.port, backlog=_BACKLOG
                )
        except OSError as error:
            await self.close()
            raise ConnectError(f"cannot listen on {address}: {_reason(error)}") from error
        self._listeners.append(listener)

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with the ports that the system chose where the configuration says 0."""
        names = [sock.getsockname() for server in self._listeners for sock in server.sockets]
        return [name if isinstance(name, str) else f"{name[0]}:{name[1]}" for name in names]

    def stop_listening(self) -> None:
        """Take no new clients."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        for address in self._sockets:
            Path(address.path).unlink(missing_ok=True)
        self._sockets = []

    async def drain(self, timeout: float) -> None:
        """Take no new clients, close those in no transaction, wait for the others.

        `timeout` in seconds; 0: as long as it takes.
        """
        self.draining = True
        self.stop_listening()
        deadline = asyncio.get_running_loop().time() + (timeout or math.inf)
        while self.clients and asyncio.get_running_loop().time() < deadline:
            for client in list(self.clients):
                self._drain(client)
            await asyncio.sleep(TICK)

    def _drain(self, client: Client) -> None:
        session = client.session
        if session is None:
            client.close()
        elif not session.ended and not session.queued and session.state != OPEN:
            backend = session.backend
            if backend is None or not backend.fifo.exchanges:
                session.fatal(_SHUTTING_DOWN)

    async def close(self) -> None:
        """End at once: clients get FATAL 57P01, backends a Terminate."""
        self.stop_listening()
        if self._janitor is not None:
            self._janitor.cancel()
        for client in list(self.clients):
            if client.session is not None:
                client.session.fatal(_SHUTTING_DOWN)
            client.close()
        for task in list(self._tasks):
            task.cancel()
        await self._cancels_are_sent()
        for backend in self._backends():
            backend.close("shutdown")
        # One turn of the loop writes out what was said.
        await asyncio.sleep(TICK)

    async def _cancels_are_sent(self) -> None:
        """Wait for the CancelRequests that are on their way: without them the server would go on
        with statements that nobody waits for.
        """
        deadline = asyncio.get_running_loop().time() + _CANCELS_TAKE
        while any(backend.cancels for backend in self._backends()):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(TICK)

    def _backends(self) -> list[Backend]:
        return [backend for pool in self.pools.values() for backend in pool.backends]

    # Clients.

    def check_room(self) -> None:
        """Raises TxproxyError 53300 when there are too many clients, 57P03 when we are leaving."""
        if self.draining:
            raise TxproxyError("the proxy is shutting down", sqlstate="57P03")
        if len(self.clients) > self.config.max_client_conn:
            raise TxproxyError(
                "sorry, too many clients already",
                hint="max_client_conn is the limit, in the proxy's configuration.",
                sqlstate="53300",
            )

    def pool(self, database: str, user: str) -> Pool | None:
        """The pool for this database and user; None if no such database is configured."""
        pool = self.pools.get((database, user))
        if pool is None:
            settings = self.config.pool_settings(database, user)
            if settings is None:
                return None
            pool = Pool(settings, self)
            self.pools[(database, user)] = pool
        return pool

    def cancel(self, pid: int, secret: bytes) -> None:
        """A CancelRequest came. A wrong key is answered by nothing, as the server does."""
        session = self.keys.find(pid, secret)
        if session is not None:
            endings.cancel(session)

    def forget(self, client: Client, pid: int) -> None:
        """A client's socket is closed."""
        self.clients.discard(client)
        self.keys.forget(pid)

    # Backends.

    def connect(self, pool: Pool) -> None:
        """Begin a connection for a pool."""
        task = asyncio.get_running_loop().create_task(self._connect(pool))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, pool: Pool) -> None:
        try:
            backend = await connect(pool, self.config.server_connect_timeout, self.contain)
        except ServerRefusal as refusal:
            self._connect_failed(pool, refusal.fields)
        except TxproxyError as error:
            fields = {"C": error.sqlstate, "M": error.message, "H": error.hint}
            self._connect_failed(pool, fields)
        except Exception as bug:
            self.log_bug("connect", bug)
            self._connect_failed(pool, {"C": "XX000", "M": "internal error of the proxy"})
        else:
            self.event("backend connected", {"pool": pool.name})
            if backend.closed or (self.draining and not pool.waiters):
                pool.connecting -= 1
                backend.port.finish()
            else:
                pool.connected(backend)

    def _connect_failed(self, pool: Pool, fields: dict[str, str]) -> None:
        LOGGER.warning(
            "cannot connect",
            extra={
                "fields": {"pool": pool.name, "sqlstate": fields.get("C"), "why": fields.get("M")}
            },
        )
        pool.connect_failed(fields)

    # The janitor.

    async def _clean_up(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(TICK)
            time = loop.time()
            # A pass that comes late moves every deadline: the clock goes on by two ticks at most.
            self.now += min(time - last, 2 * TICK)
            last = time
            try:
                self._pass()
            except Exception as bug:
                self.log_bug("janitor", bug)

    def _pass(self) -> None:
        now = self.now
        for key, pool in list(self.pools.items()):
            for backend in list(pool.backends):
                self._look_at(backend, now)
            self._look_at_waiters(pool, now)
            if pool.unused:
                del self.pools[key]
        if now >= self._totals_at:
            self._totals_at = now + _TOTALS_EVERY
            self.log_totals()
        if now >= self._look_at_all_at:
            self._look_at_all_at = now + _ALL_EVERY
            self._look_at_all(now)

    def _look_at_all(self, now: float) -> None:
        """What may take a second longer: clients that are silent, or never say who they are."""
        for pool in list(self.pools.values()):
            if pool.settings.client_idle_timeout:
                for session in list(pool.sessions):
                    endings.look_if_idle(session, now)
        limit = self.config.client_login_timeout
        for client in list(self.clients) if limit else ():
            if client.session is None and now - client.began > limit:
                client.close()

    def _look_at(self, backend: Backend, now: float) -> None:
        session = backend.session
        try:
            if now > backend.deadline:
                backend.close("it did not get clean in time")
            elif session is not None:
                endings.look(session, now)
        except Exception as bug:
            self.contain(backend, bug)

    def _look_at_waiters(self, pool: Pool, now: float) -> None:
        limit = pool.settings.query_wait_timeout
        waiters = pool.waiters
        while limit and waiters and now - waiters[0].queued_at > limit:
            session = waiters.popleft()
            try:
                endings.wait_is_over(session)
            except Exception as bug:
                self.bug(session, bug)
        if waiters:
            pool.want()

    # The log.

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        """One line."""
        log = LOGGER.debug if name in _QUIET else LOGGER.info
        log(name, extra={"fields": fields})

    def log_totals(self) -> None:
        """A line of counters, since the start, for each pool where something has happened."""
        told = self._told
        self._told = {pool.name: pool.stats.as_dict() for pool in self.pools.values()}
        for name, totals in self._told.items():
            if totals != told.get(name):
                LOGGER.info("totals", extra={"fields": {"pool": name, **totals}})

    def log_refusal(self, address: str, error: TxproxyError) -> None:
        """A client was not let in."""
        fields = {"client": address, "sqlstate": error.sqlstate, "why": error.message}
        LOGGER.warning("login refused", extra={"fields": fields})

    def log_bug(self, where: str, error: Exception) -> None:
        """Something that must not happen, with its traceback."""
        LOGGER.error("bug", exc_info=error, extra={"fields": {"where": where}})

    def bug(self, session: Session, error: Exception) -> None:
        """A session raised: log it, close that one and its backend, whose state nobody knows."""
        self.log_bug(repr(session), error)
        backend = session.backend
        session.ended = True
        session.backend = None
        session.pool.sessions.discard(session)
        session.pool.forget(session)
        session.client.write(encode.error("FATAL", "XX000", "internal error of the proxy"))
        session.client.finish()
        if backend is not None:
            backend.session = None
            backend.close("a bug in its session")

    def contain(self, backend: Backend, error: Exception) -> None:
        """A backend raised: close it and its session."""
        session = backend.session
        if session is not None:
            self.bug(session, error)
        else:
            self.log_bug(repr(backend), error)
            backend.close("a bug")


def _check_free(path: str) -> None:
    """Raises OSError if somebody listens on this unix socket; binding would take it from them."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise FileExistsError(17, "a file that is no socket is in the way")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise OSError(98, "Address already in use")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
