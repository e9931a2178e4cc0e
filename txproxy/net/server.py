"""The proxy as a whole: listeners, pools, configuration, shutdown."""

import asyncio
import math
import os
import shutil
import socket
import ssl
import stat
import time
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Final

from txproxy import config as configuration
from txproxy.backends import console, postgres
from txproxy.backends.tls import server_context
from txproxy.config import Config, SessionSettings, TcpAddress, UnixAddress
from txproxy.core import endings
from txproxy.core.backend import Backend
from txproxy.core.cancel import CancelKeys
from txproxy.core.claims import Claim
from txproxy.core.handshake import Credentials, ServerRefusal
from txproxy.core.limits import Group
from txproxy.core.listener import Listener
from txproxy.core.offenders import REAPED, RELEASED, Offenders
from txproxy.core.pool import Pool
from txproxy.core.release import Candidate
from txproxy.core.session import Session
from txproxy.core.sqlite import FileClient
from txproxy.core.stats import Stats
from txproxy.core.transaction import BEGUN, OPEN
from txproxy.errors import ConfigError, ConnectError, TxproxyError, too_many
from txproxy.net import log, tls
from txproxy.net.admin import Admin
from txproxy.net.auth import Authenticator
from txproxy.net.client import Client
from txproxy.net.databases import Databases
from txproxy.net.janitor import TICK, Janitor
from txproxy.net.log import LOGGER
from txproxy.net.metrics import Metrics
from txproxy.net.monitor import Monitor
from txproxy.net.process import Processes, described
from txproxy.net.sqlite import Sqlite
from txproxy.wire import encode

_CANCELS_TAKE: Final = 2.0  # seconds at most, at the end
_BACKLOG: Final = 1024
_JUST_BEGUN: Final = 1.0  # seconds
_KNOWN_LIMIT: Final = 1000  # users and databases whose settings and counters are kept
_SHUTTING_DOWN: Final = encode.error(
    "FATAL", "57P01", "terminating connection due to administrator command"
)
_REMOVED: Final = encode.error(
    "FATAL", "57P01", "the database was removed from the proxy's configuration"
)
_QUIET: Final = frozenset(("backend connected", "backend closed", RELEASED))


class Server:
    """One proxy. `now` is the janitor's clock: see janitor.py.

    pools       by database, as clients name it, and user that logs in to the server
    databases   what all pools of a database share, by its name; `users` by that user
    orphans     pools whose database is no longer configured: their clients leave
    forgotten   the counters of pools that are no more
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.now = 1.0
        self.started_at = time.time()
        self.keys = CancelKeys()
        self.clients: set[Client] = set()
        self.pools: dict[tuple[str, str], Pool] = {}
        self.databases: dict[str, Group] = {}
        self.users: dict[str, Group] = {}
        self.forgotten: dict[tuple[str, str], Stats] = {}
        self.logins_refused = 0
        self.draining = False
        self.stopping = asyncio.Event()
        self.stop_mode = ""
        self.tls = _contexts(config)
        self.tcp = config.tcp
        self.authenticator = Authenticator(self)
        self.monitor = Monitor(self)
        self.admin = Admin(self)
        self.janitor = Janitor(self)
        self.metrics = Metrics(self)
        self.offenders = Offenders()
        self.processes = Processes()
        self.files = Sqlite(self)
        self.sqlite = self.files.seen
        self._settings: dict[tuple[str, str], SessionSettings] = {}
        self.orphans: set[Pool] = set()
        self._told: dict[str, dict[str, float]] = {}
        self._by_server = Databases(self)
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[UnixAddress] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._janitor: asyncio.Task[None] | None = None

    # What core/ asks (PoolPort).

    @property
    def cancel_timeout(self) -> float:
        return self.config.cancel_timeout or math.inf

    @property
    def rollback_timeout(self) -> float:
        return self.config.rollback_timeout or math.inf

    @property
    def cancel_on_disconnect(self) -> bool:
        return self.config.cancel_on_disconnect

    @property
    def log_statement_literals(self) -> bool:
        return self.config.log_statement_literals

    def ask_about(self, pool: Pool, candidates: list[Candidate]) -> None:
        self.monitor.ask(pool, candidates)

    def claimed(self, pool: Pool, names: tuple[str, ...], claim: Claim) -> None:
        self._by_server.claimed(pool, names, claim)

    def defaults_changed(self, pool: Pool) -> None:
        self._by_server.defaults_changed(pool)

    def clock(self) -> float:
        """Exact seconds."""
        return time.monotonic()

    @property
    def client_count(self) -> int:
        """Clients, those at SQLite files included."""
        return len(self.clients) + len(self.sqlite.clients)

    @property
    def passed_at(self) -> float:
        """When the janitor last passed, by the exact clock."""
        return self.janitor.passed_at

    # Life.

    async def start(self) -> None:
        """Listen. Raises ConnectError if an address is not to be had."""
        for address in self.config.listen:
            await self._listen(address)
        try:
            await self.metrics.start(self.config.metrics)
        except ConnectError:
            await self.close()
            raise
        self._janitor = asyncio.get_running_loop().create_task(self.janitor.run())
        self._fill_pools()
        self.files.configure()

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
                if self.config.unix_socket_group:
                    shutil.chown(address.path, group=self.config.unix_socket_group)
            else:
                listener = await loop.create_server(
                    lambda: Client(self), address.host, address.port, backlog=_BACKLOG
                )
        except (OSError, LookupError) as error:
            await self.close()
            raise ConnectError(f"cannot listen on {address}: {_reason(error)}") from error
        self._listeners.append(listener)

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with the ports that the system chose where the configuration says 0."""
        names = [sock.getsockname() for server in self._listeners for sock in server.sockets]
        return [
            name if isinstance(name, str) else str(TcpAddress(name[0], name[1])) for name in names
        ]

    def _fill_pools(self) -> None:
        """Make the pools whose user is known before a client comes, for min_pool_size."""
        for database in self.config.databases.values():
            if database.name != configuration.ANY_DATABASE and database.user:
                settings = self.config.pool_settings(database.name, database.user)
                if settings is not None and settings.min_pool_size:
                    self._pool(database.name, database.user)

    def stop(self, mode: str) -> None:
        """Ask for the end: "now", once "servers" have no transaction left, or once "clients" have
        left.
        """
        self.stop_mode = mode
        self.stopping.set()

    def stop_listening(self) -> None:
        """Take no new clients."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        for address in self._sockets:
            Path(address.path).unlink(missing_ok=True)
        self._sockets = []

    async def drain(self, timeout: float, *, wait_for_clients: bool = False) -> None:
        """Take no new clients, close those in no transaction, wait for the others; with
        `wait_for_clients` for all of them to leave by themselves.

        `timeout` in seconds; 0: as long as it takes.
        """
        self.draining = True
        self.stop_listening()
        deadline = self.clock() + (timeout or math.inf)
        if not wait_for_clients:
            self.files.drain()
        while self.client_count and self.clock() < deadline:
            for client in list(self.clients):
                if client.session is None:
                    client.close()
                elif not wait_for_clients:
                    _close_if_free(client.session, _SHUTTING_DOWN)
            await asyncio.sleep(TICK)

    async def close(self) -> None:
        """End at once: clients get FATAL 57P01, backends a Terminate."""
        self.stop_listening()
        self.metrics.close()
        if self._janitor is not None:
            self._janitor.cancel()
        for client in list(self.clients):
            if client.session is not None:
                client.session.fatal(_SHUTTING_DOWN)
            client.close()
        for task in list(self._tasks):
            task.cancel()
        self.processes.close()
        await self.files.close()
        await self.authenticator.close()
        await self.monitor.close()
        await self._cancels_are_sent()
        for backend in self._backends():
            backend.close("shutdown")
        # One turn of the loop writes out what was said.
        await asyncio.sleep(TICK)

    async def _cancels_are_sent(self) -> None:
        """Wait for the CancelRequests that are on their way: without them the server would go on
        with statements that nobody waits for.
        """
        deadline = self.clock() + _CANCELS_TAKE
        while any(backend.cancels for backend in self._backends()):
            if self.clock() > deadline:
                return
            await asyncio.sleep(TICK)

    def _backends(self) -> list[Backend]:
        pools = [*self.pools.values(), *self.orphans]
        return [backend for pool in pools for backend in pool.connections]

    # Configuration.

    def reload_file(self) -> None:
        """Read the configuration's file again. Raises ConfigError, and then nothing has changed."""
        old = self.config
        try:
            new = configuration.load(old.path)
            self.apply(old.reloaded(new))
        except ConfigError as error:
            LOGGER.error("not reloaded", extra={"fields": {"why": str(error)}})
            raise
        left = old.needs_restart(new)
        if left:
            LOGGER.warning("needs a restart", extra={"fields": {"settings": ", ".join(left)}})
        LOGGER.info("reloaded", extra={"fields": {"config": self.config.path}})

    def apply(self, config: Config) -> None:
        """From now on this configuration. Raises ConfigError, and then nothing has changed."""
        self.tls = _contexts(config)
        self.tcp = config.tcp
        self.config = config
        log.set_up(config.log_format, config.log_level)
        self._settings.clear()
        for name, group in self.databases.items():
            self._limit_database(group, name)
        for name, group in self.users.items():
            self._limit_user(group, name)
        for pool in list(self.pools.values()):
            self._reconfigure(pool)
        self.authenticator.reload(config)
        self._fill_pools()
        self.files.configure()

    def _reconfigure(self, pool: Pool) -> None:
        database = pool.settings.database
        if console.is_console(database):
            return
        settings = self.config.pool_settings(database, pool.settings.server_user)
        if settings is None or settings.server_user != pool.settings.server_user:
            self.pools.pop((database, pool.settings.server_user), None)
            self.orphans.add(pool)
            return
        password_changed = settings.password != pool.settings.password
        pool.reconfigure(settings)
        if password_changed:
            self._set_credentials(pool, settings)
        for session in pool.sessions:
            said = self.session_settings(database, session.user)
            if said is not None:
                session.reconfigure(said)

    def close_orphans(self) -> None:
        """Clients of databases that are no longer configured, as their transactions end."""
        for pool in list(self.orphans):
            for session in list(pool.sessions):
                _close_if_free(session, _REMOVED)
            if not pool.sessions:
                for backend in pool.connections:
                    backend.close("its database is no longer configured")
                self.orphans.discard(pool)
                self._remember(pool)

    def session_settings(self, database: str, user: str) -> SessionSettings | None:
        """What the configuration says for such a client: one object for all that are alike."""
        known = self._settings.get((database, user))
        if known is None:
            if console.is_console(database):
                known = console.session_settings(database, user)
            else:
                known = self.config.session_settings(database, user)
            if known is None:
                return None
            if len(self._settings) >= _KNOWN_LIMIT:
                self._settings.clear()
            self._settings[(database, user)] = known
        return known

    # Clients.

    def check_room(self, client: Client) -> None:
        """Raises TxproxyError 53300 when there are too many clients, 57P03 when we are leaving.

        Of many that come at once the first are let in: those beyond were so when they connected.
        """
        if self.draining:
            raise TxproxyError("the proxy is shutting down", sqlstate="57P03")
        if client.is_beyond and self.client_count > self.config.max_client_conn:
            raise too_many("max_client_conn")

    def is_console(self, database: str) -> bool:
        """Whether this is the name of the admin console."""
        return console.is_console(database)

    def pool(self, database: str, user: str) -> Pool | None:
        """The pool for a client of this database and user; None if no such database is configured.

        Raises TxproxyError if the database is disabled, or has too many clients.
        """
        pool = self._pool(database, user)
        if pool is None or console.is_console(database):
            return pool
        group = pool.database
        if group.disabled:
            raise TxproxyError(
                f'database "{database}" is not currently accepting connections', sqlstate="55000"
            )
        if 0 < group.client_limit <= group.clients:
            raise too_many("max_db_client_connections")
        self.check_user(user)
        return pool

    def check_user(self, name: str) -> None:
        """Raises TxproxyError 53300 if the user has as many clients as may be."""
        own = self.user(name)
        if 0 < own.client_limit <= own.clients:
            raise too_many("max_user_client_connections")

    def _pool(self, database: str, user: str) -> Pool | None:
        if console.is_console(database):
            return self._console_pool(database)
        found = self.config.database(database)
        if found is None:
            return None
        key = (database, found.user or user)
        pool = self.pools.get(key)
        if pool is None:
            settings = self.config.pool_settings(database, user)
            assert settings is not None
            pool = Pool(settings, self, self.database(database), self.user(settings.server_user))
            self._set_credentials(pool, settings)
            self.pools[key] = pool
        return pool

    def _set_credentials(self, pool: Pool, settings: configuration.PoolSettings) -> None:
        secret = settings.password
        pool.credentials = Credentials.of(settings.server_user, secret.text if secret else None)
        pool.credentials_changed()

    def _console_pool(self, database: str) -> Pool:
        pool = self.pools.get((database, database))
        if pool is None:
            settings = console.pool_settings(database)
            pool = Pool(settings, self, self.database(database), Group(database))
            self.pools[(database, database)] = pool
        return pool

    def database(self, name: str) -> Group:
        """What the pools of this database have in common."""
        group = self.databases.get(name)
        if group is None:
            group = self.databases[name] = Group(name)
            self._limit_database(group, name)
            group.paused = bool(self.admin.paused) and not console.is_console(name)
        return group

    def user(self, name: str) -> Group:
        """What the clients and the server connections of this user have in common."""
        group = self.users.get(name)
        if group is None:
            group = self.users[name] = Group(name)
            self._limit_user(group, name)
        return group

    def _limit_database(self, group: Group, name: str) -> None:
        if not console.is_console(name):
            group.limit, group.client_limit = self.config.database_limits(name)

    def _limit_user(self, group: Group, name: str) -> None:
        group.limit, group.client_limit = self.config.user_limits(name)

    def admitted(self, session: Session) -> None:
        """A client has logged in: it counts."""
        session.pool.database.clients += 1
        self.user(session.user).clients += 1

    def left(self, user: str) -> None:
        """A client of this user has left."""
        self.user(user).clients -= 1
        self._forget_group(self.users, user)

    def forget(self, client: Client, pid: int) -> None:
        """A client's socket is closed."""
        self.clients.discard(client)
        self.keys.forget(pid)
        session = client.session
        if session is not None:
            session.pool.database.clients -= 1
            self.left(session.user)

    def cancel(self, pid: int, secret: bytes) -> None:
        """A CancelRequest came. A wrong key is answered by nothing, as the server does."""
        owner = self.keys.find(pid, secret)
        if isinstance(owner, FileClient):
            self.files.cancel(owner)
        elif owner is not None:
            endings.cancel(owner)

    # Backends.

    def connect(self, pool: Pool) -> None:
        """Begin a connection for a pool."""
        self._begin(self._connect(pool, pool))

    def connect_listening(self, listener: Listener) -> None:
        """Begin the connection that listens for a pool."""
        self._begin(self._connect(listener.pool, listener))

    def _begin(self, connecting: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(connecting)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, pool: Pool, owner: Pool | Listener) -> None:
        epoch = pool.epoch
        try:
            if console.is_console(pool.settings.database):
                backend = console.connect(pool, self.admin)
            else:
                backend = await postgres.connect(pool, self.contain)
        except ServerRefusal as refusal:
            self._connect_failed(owner, refusal.fields, epoch)
        except TxproxyError as error:
            fields = {"C": error.sqlstate, "M": error.message, "H": error.hint}
            self._connect_failed(owner, fields, epoch)
        except Exception as bug:
            self.log_bug("connect", bug)
            fields = {"C": "XX000", "M": "internal error of the proxy"}
            self._connect_failed(owner, fields, epoch)
        else:
            self.event("backend connected", {"pool": pool.name})
            if (self.draining or pool in self.orphans) and not owner.waiters:
                owner.dropped(epoch)
                backend.port.finish()
            else:
                owner.connected(backend, epoch)

    def _connect_failed(self, owner: Pool | Listener, fields: dict[str, str], epoch: int) -> None:
        pool = owner if isinstance(owner, Pool) else owner.pool
        said = {"pool": pool.name, "sqlstate": fields.get("C"), "why": fields.get("M")}
        LOGGER.warning("cannot connect", extra={"fields": said})
        owner.connect_failed(fields, epoch)

    def forget_pool(self, pool: Pool) -> None:
        """A pool that nobody uses; its counters stay."""
        key = (pool.settings.database, pool.settings.server_user)
        if self.pools.pop(key, None) is not None:
            self._remember(pool)
        self._forget_group(self.databases, key[0])
        self._forget_group(self.users, key[1])

    def _remember(self, pool: Pool) -> None:
        pool.leave()
        key = (pool.settings.database, pool.settings.server_user)
        if key not in self.forgotten and len(self.forgotten) >= _KNOWN_LIMIT:
            key = ("*", "*")  # names that clients make up must not fill memory
        self.forgotten.setdefault(key, Stats()).add(pool.stats)

    def _forget_group(self, groups: dict[str, Group], name: str) -> None:
        group = groups.get(name)
        if group is not None and group.unused:
            del groups[name]

    # Counters.

    def all_stats(self) -> Iterable[tuple[str, str, Stats]]:
        """The counters since the start by database and user."""
        found: dict[tuple[str, str], Stats] = {}
        for key, stats in self.forgotten.items():
            found.setdefault(key, Stats()).add(stats)
        for pool in (*self.pools.values(), *self.orphans):
            key = (pool.settings.database, pool.settings.server_user)
            found.setdefault(key, Stats()).add(pool.stats)
        return [(database, user, stats) for (database, user), stats in found.items()]

    def stats_of(self, database: str) -> Stats:
        """The counters of a database since the start."""
        total = Stats()
        for name, _, stats in self.all_stats():
            if name == database:
                total.add(stats)
        return total

    def period_is_over(self) -> None:
        """Each stats_period: averages, and the log."""
        self.admin.period(self.now)
        if self.config.log_stats:
            self.log_totals()

    def log_totals(self) -> None:
        """A line of counters, since the start, for each pool where something has happened."""
        told = self._told
        self._told = {pool.name: pool.stats.as_dict() for pool in self.pools.values()}
        for name, totals in self._told.items():
            if totals != told.get(name):
                rounded = {key: round(value, 3) for key, value in totals.items()}
                LOGGER.info("totals", extra={"fields": {"pool": name, **rounded}})

    # Transactions that are left open.

    def process(self, client: Session | FileClient) -> str:
        """Which process it is, in words, as far as it is known."""
        if isinstance(client, FileClient):
            return described(client.peer_pid, client.connected_at)
        socket_of = client.client
        return self.processes.known(socket_of) if isinstance(socket_of, Client) else ""

    def left_open(
        self, session: Session | FileClient, how: str, fields: Mapping[str, object]
    ) -> None:
        """Whose code it was is counted, and logged."""
        process = self.process(session)
        said = {**fields, "process": process} if process else fields
        if how == REAPED:
            self.admin.remember(said)
        offender = self.offenders.count(time.time(), how, said)
        self.event(how, said)
        if process or isinstance(session, FileClient):
            return
        if isinstance(session.client, Client):
            self.processes.tell(session.client, offender.is_process)

    # The log.

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        """One line."""
        log = LOGGER.debug if name in _QUIET else LOGGER.info
        log(name, extra={"fields": fields})

    def log_refusal(self, address: str, error: TxproxyError) -> None:
        """A client was not let in."""
        self.logins_refused += 1
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
        session.pool.listener.forget(session)
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


def _contexts(config: Config) -> ssl.SSLContext | None:
    """What our listeners offer. Raises ConfigError, also for what we show to servers: that is made
    when it is needed, and would fail then.
    """
    server_context(config.server_tls)
    return tls.client_context(config.client_tls)


def _close_if_free(session: Session, error: bytes) -> None:
    """Close a client with this FATAL, unless a backend works for it or holds its transaction, or it
    has just begun one: its first statement is on the way.
    """
    state = session.state
    if session.ended or session.queued or state == OPEN:
        return
    if state == BEGUN and session.outside.now - session.active_at < _JUST_BEGUN:
        return
    if session.backend is None or not session.backend.fifo.exchanges:
        session.fatal(error)


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


def _reason(error: OSError | LookupError) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)
