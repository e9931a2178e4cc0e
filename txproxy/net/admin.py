"""What the console's commands do to the server; they mean what PgBouncer's mean."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from txproxy import __version__
from txproxy.config import CONSOLE_DATABASES
from txproxy.core import endings, tables
from txproxy.core.backend import Backend
from txproxy.core.console import ADMIN, ANYBODY, STATS, Call
from txproxy.core.conversation import Wait
from txproxy.core.limits import Group
from txproxy.core.pool import Pool
from txproxy.core.rows import Table
from txproxy.core.session import Session
from txproxy.core.totals import Averages
from txproxy.core.view import Reaped, View, all_pools
from txproxy.errors import TxproxyError
from txproxy.net.client import Client
from txproxy.wire import encode

if TYPE_CHECKING:
    from txproxy.net.server import Server

_KILLED: Final = encode.error(
    "FATAL", "57P01", "terminating connection due to administrator command"
)
_STOP_MODES: Final = {"": "now", "WAIT_FOR_CLIENTS": "clients", "WAIT_FOR_SERVERS": "servers"}


class Admin:
    """The console's hands and eyes (AdminPort).

    `paused` is "PAUSE" or "SUSPEND" while all databases are paused, those too that come into use
    meanwhile; else "".
    """

    def __init__(self, server: "Server") -> None:
        self.paused = ""
        self._server = server
        self._reaped = Reaped()
        self._averages = Averages(server.now)
        self._commands: dict[str, Callable[[Call], Wait | None]] = {
            "SET": self._set,
            "RELOAD": self._reload,
            "PAUSE": self._pause,
            "SUSPEND": self._pause,
            "RESUME": self._resume,
            "RECONNECT": self._reconnect,
            "WAIT_CLOSE": self._wait_close,
            "KILL": self._kill,
            "KILL_CLIENT": self._kill_client,
            "REAP": self._reap,
            "DISABLE": self._disable,
            "ENABLE": self._enable,
            "SHUTDOWN": self._shutdown,
        }

    # What the server tells it.

    def remember(self, fields: Mapping[str, object]) -> None:
        """A transaction was rolled back while its client slept: what the log is told of it."""
        self._reaped.remember(time.time(), fields)

    def period(self, now: float) -> None:
        """A stats_period is over; `now` is the janitor's clock."""
        self._averages.period(now, tables.stats_by_database(self._server))

    # What the console asks (AdminPort).

    def role(self, session: Session) -> int:
        """As the configuration says at this moment; whoever runs the proxy may do everything.

        Not by the name alone: a `pgbouncer` that a reload takes off stats_users is nobody.
        """
        config = self._server.config
        if session.user in config.admin_users or _is_operator(session):
            return ADMIN
        return STATS if session.user in config.stats_users else ANYBODY

    def show(self, name: str, texts: bool) -> Table:
        server = self._server
        return tables.show(
            name,
            View(
                server=server,
                time=time.time(),
                resident=_resident(),
                logins=sum(client.session is None for client in server.clients),
                paused=self.paused,
                version=__version__,
                reaped=self._reaped,
                averages=self._averages,
                texts=texts,
            ),
        )

    def run(self, call: Call, user: str) -> Wait | None:
        said = " ".join(part for part in (call.command.name, call.argument, call.value) if part)
        self._server.event("console", {"user": user, "command": said})
        return self._commands[call.command.name](call)

    def contain(self, backend: Backend, error: Exception) -> None:
        self._server.contain(backend, error)

    # The configuration.

    def _set(self, call: Call) -> None:
        self._server.apply(self._server.config.changed(call.argument, call.value))

    def _reload(self, _call: Call) -> None:
        self._server.reload_file()

    # Databases.

    def _groups(self, name: str) -> list[Group]:
        """The database of this name; all that are in use if it is ""."""
        if name:
            return [self._group(name)]
        found = self._server.databases.items()
        return [group for name, group in found if name not in CONSOLE_DATABASES]

    def _group(self, name: str) -> Group:
        if name in CONSOLE_DATABASES:
            raise TxproxyError("that is the console itself", sqlstate="0A000")
        if self._server.files.is_file(name):
            raise TxproxyError(
                f"{name} is an SQLite file: it can be disabled and reopened, its clients killed and"
                " reaped, and no more",
                hint="See DISABLE, RECONNECT, KILL_CLIENT and REAP.",
                sqlstate="0A000",
            )
        known = name in self._server.databases or self._server.config.database(name) is not None
        if not known:
            raise TxproxyError(f"no such database: {name}", sqlstate="3D000")
        return self._server.database(name)

    def _pause(self, call: Call) -> Wait:
        groups = self._groups(call.argument)
        if not call.argument:
            if self.paused:
                raise _not_now("already suspended/paused")
            self.paused = call.command.name
        for group in groups:
            group.pause()

        def done() -> bool:
            return not any(group.paused and group.connections for group in groups)

        def undo() -> None:
            if not call.argument:
                self.paused = ""
            for group in groups:
                group.resume()

        return Wait(done, undo)

    def _resume(self, call: Call) -> None:
        paused = [group for group in self._groups(call.argument) if group.paused]
        if not (paused or (self.paused and not call.argument)):
            raise _not_now(
                f"database {call.argument} is not paused"
                if call.argument
                else "pooler is not paused/suspended"
            )
        if not call.argument:
            self.paused = ""
        for group in paused:
            group.resume()

    def _reconnect(self, call: Call) -> None:
        files = self._server.files
        if not call.argument or files.is_file(call.argument):
            files.reopen(call.argument)
        if files.is_file(call.argument):
            return
        for pool in _pools(self._groups(call.argument)):
            pool.reconnect()
            pool.listener.retire("RECONNECT")

    def _wait_close(self, call: Call) -> Wait:
        groups = self._groups(call.argument)

        def done() -> bool:
            return not any(
                backend.retiring for pool in _pools(groups) for backend in pool.connections
            )

        return Wait(done, _nothing)

    def _kill(self, call: Call) -> None:
        groups = self._groups(call.argument)
        for group in groups:
            group.pause()
        for pool in _pools(groups):
            for session in list(pool.sessions):
                session.fatal(_KILLED)
            for backend in pool.connections:
                backend.close("KILL")

    def _disable(self, call: Call) -> None:
        self._set_disabled(call.argument, True)

    def _enable(self, call: Call) -> None:
        self._set_disabled(call.argument, False)

    def _set_disabled(self, name: str, disabled: bool) -> None:
        if self._server.files.is_file(name):
            self._server.files.set_disabled(name, disabled)
        else:
            self._group(name).disabled = disabled

    # Clients.

    def _session(self, number: str) -> Session:
        for pool in all_pools(self._server):
            for session in pool.sessions:
                if session.id == int(number):
                    return session
        raise TxproxyError(f"client {number} not found", sqlstate="42704")

    def _kill_client(self, call: Call) -> None:
        if self._is_at_file(call.argument):
            self._server.files.kill(int(call.argument))
        else:
            self._session(call.argument).fatal(_KILLED)

    def _reap(self, call: Call) -> None:
        if self._is_at_file(call.argument):
            asleep = self._server.files.reap(int(call.argument))
        else:
            session = self._session(call.argument)
            asleep = endings.sleeps(session)
            if asleep:
                endings.reap(session, endings.REAP)
        if not asleep:
            raise _not_now(f"client {call.argument} is not idle in a transaction")

    def _is_at_file(self, number: str) -> bool:
        return int(number) in self._server.sqlite.clients

    # The end.

    def _shutdown(self, call: Call) -> None:
        self._server.stop(_STOP_MODES[call.argument])


def _is_operator(session: Session) -> bool:
    """The console's own user, on a unix socket, as the proxy's operating-system user: net/login.py
    lets it in without a password.
    """
    client = session.client
    if session.user not in CONSOLE_DATABASES or not isinstance(client, Client):
        return False
    return client.peer_uid() == os.getuid()


def _pools(groups: Iterable[Group]) -> list[Pool]:
    return [pool for group in groups for pool in group.pools]


def _not_now(message: str) -> TxproxyError:
    return TxproxyError(message, sqlstate="55000")


def _nothing() -> None:
    """There is nothing to take back."""


def _resident() -> int:
    """Bytes of memory that the process has; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGESIZE")
