"""The SQLite endpoint: who may in, to which file, and the handing over to the SQLite process.

A client whose database is an SQLite file is not served here. Once it has said so, and the system
has said whose process it is, its socket itself goes to the SQLite process, and ours is closed
without a word: from then on the two speak with each other, and no statement passes the proxy. What
stays here is its place in max_client_conn, its cancel key, and what the process reports once a
second for the console and the metrics.
"""

import asyncio
import base64
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from txproxy.config import ANY_FILE, SqliteFile
from txproxy.config.sqlite import find
from txproxy.core import endings
from txproxy.core.handshake import Request
from txproxy.core.offenders import REAPED
from txproxy.core.ports import next_id
from txproxy.core.sqlite import (
    Endpoint,
    FileClient,
    FileReport,
    SessionReport,
    about_reaped,
    read,
)
from txproxy.errors import LoginError, NoSuchDatabaseError, TxproxyError, too_many
from txproxy.net.log import LOGGER
from txproxy.net.sqlite_process import Line, SqliteProcess

if TYPE_CHECKING:
    from txproxy.net.client import Client
    from txproxy.net.server import Server

# Seconds that a client waits for the process: it starts within one, but on a machine that is busy.
_STARTING_TAKES: Final = 30.0
_LONG_KEYS: Final = 2  # the minor version of the protocol with which they came
_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_ENDED: Final = {"C": "57P01", "M": "terminating connection due to administrator command"}
_REMOVED: Final = {"C": "57P01", "M": "the file was removed from the proxy's configuration"}

Place = tuple[SqliteFile, str, Path]
"""Where a client may go: what is configured, the database's one name, and the file."""


class Sqlite:
    """The endpoint of one proxy. `seen` is what is known of its clients and files.

    orphans   clients whose file is no longer configured: they leave as their transactions end
    reaping   clients whose transactions an administrator has ended
    """

    def __init__(self, server: "Server") -> None:
        self.seen = Endpoint()
        self._server = server
        self._process = SqliteProcess(self._heard, self._lost)
        self._orphans: set[int] = set()
        self._reaping: set[int] = set()

    # Its life.

    def configure(self) -> None:
        """The configuration is new, or has changed."""
        config = self._server.config
        if config.sqlite:
            self._process.start()
        known = set()
        for path, database in self.seen.names.items():
            found = find(config.sqlite, database)
            if found is not None and str(found[1]) == path:
                known.add(path)
                settings = self._settings(found[0])
                self._process.tell({"do": "file", "path": path, "file": settings})
        self._orphans = {
            client.id for client in self.seen.clients.values() if client.path not in known
        }

    def drain(self) -> None:
        """End sessions as they are out of transactions."""
        self._process.tell({"do": "drain"})

    async def close(self) -> None:
        """End all sessions, and the process."""
        for number in self.seen.clients:
            self.kill(number)
        await self._process.close()

    # Clients.

    def is_file(self, database: str) -> bool:
        """Whether a client that asks for this means an SQLite file."""
        config = self._server.config
        if database == ANY_FILE and ANY_FILE in config.sqlite:
            return config.sqlite[ANY_FILE].allow_create
        if database in config.sqlite:
            return True
        is_console = self._server.is_console(database)
        return bool(config.sqlite) and not is_console and config.database(database) is None

    async def admit(self, client: "Client", database: str) -> Place:
        """Where this client may go, once there is somebody to give it to. Raises TxproxyError."""
        config = self._server.config
        if not client.is_unix:
            if ANY_FILE not in config.sqlite and database not in config.sqlite:
                raise _no_such(database)
            raise LoginError(
                f'database "{database}" is an SQLite file, for processes of this machine only',
                hint="Connect to the unix socket: its directory is the host.",
                sqlstate="0A000",
            )
        uid = client.peer_uid()
        # A slow file system is not to hold up the event loop.
        file, name, path = await asyncio.to_thread(self._find, database)
        _check_peer(file, name, uid)
        if name in self.seen.disabled:
            raise TxproxyError(
                f'database "{name}" is not currently accepting connections', sqlstate="55000"
            )
        if file.path and file.allow_create:
            await asyncio.to_thread(_make, path)
        await self._until_ready()
        return file, name, path

    def _find(self, database: str) -> Place:
        files = self._server.config.sqlite
        if database == ANY_FILE and ANY_FILE in files:
            others = files[ANY_FILE]
            return others, ANY_FILE, Path(others.directory).resolve()
        found = find(files, database)
        if found is None:
            raise _no_such(database)
        file, path = found
        return file, path.name if file.name == ANY_FILE else file.name, path

    async def _until_ready(self) -> None:
        try:
            await asyncio.wait_for(self._process.ready.wait(), _STARTING_TAKES)
        except TimeoutError:
            raise TxproxyError(
                "the SQLite process is not running",
                hint="It is started again and again: the proxy's log says why it ends.",
                sqlstate="57P03",
            ) from None

    def check_room(self, user: str, place: Place) -> None:
        """Raises TxproxyError 53300 if the user or the database has as many clients as may be."""
        _, name, _ = place
        limit = self._server.config.max_db_client_connections
        if 0 < limit <= self.seen.clients_of(name):
            raise too_many("max_db_client_connections")
        # The last: it remembers the name, for whoever is let in.
        self._server.check_user(user)

    def give(self, client: "Client", request: Request, place: Place, rest: bytes) -> FileClient:
        """Hand the client over: nothing is read from it here any more, and all that was written to
        it is sent. `rest` has come behind its start-up packet.
        """
        file, name, path = place
        known = FileClient(
            id=next_id(),
            database=name,
            path=str(path),
            user=request.user,
            application_name=request.wanted.get("application_name", ""),
            address=client.address,
            peer_pid=client.peer_pid(),
            connected_at=time.time(),
        )
        is_long = request.minor >= _LONG_KEYS
        known.pid, secret = self._server.keys.issue(known, is_long)
        line = {
            "do": "client",
            "id": known.id,
            "pid": known.pid,
            "secret": secret.hex(),
            "user": known.user,
            "peer_pid": known.peer_pid,
            "uid": client.peer_uid(),
            "database": name,
            "path": known.path,
            "file": self._settings(file),
            "parameters": {**request.wanted, **request.ours},
            "configured": self._configured(),
            "rest": base64.b64encode(rest).decode(),
        }
        self.seen.admitted(known)
        self._server.user(known.user).clients += 1
        self._process.tell(line, os.dup(client.transport.get_extra_info("socket").fileno()))
        return known

    def _settings(self, file: SqliteFile) -> dict[str, Any]:
        """What the process is to know; one file by itself gives no right to those beside it."""
        settings = self._server.config.file_settings(file)
        return {**settings, "allow_create": file.allow_create and file.name == ANY_FILE}

    def _configured(self) -> list[str]:
        """The files that have names of their own: CREATE and DROP DATABASE are not for them."""
        files = self._server.config.sqlite.values()
        return [os.path.realpath(file.path) for file in files if file.path]

    def _left(self, client: FileClient) -> None:
        server = self._server
        server.keys.forget(client.pid)
        server.left(client.user)
        self._orphans.discard(client.id)
        self._reaping.discard(client.id)
        if server.config.log_disconnections:
            server.event("client disconnected", who(client))

    # What the process says.

    def _heard(self, line: Line) -> None:
        said = line["is"]
        if said == "ready":
            self.seen.running = True
            self.seen.starts = self._process.starts
            LOGGER.info("sqlite process ready", extra={"fields": {"pid": self._process.pid}})
        elif said == "closed":
            client = self.seen.left(line["id"])
            if client is not None:
                self._left(client)
        elif said == "log":
            level = _LEVELS.get(line["level"], logging.ERROR)
            LOGGER.log(level, line["event"], extra={"fields": line["fields"]})
        elif said == "report":
            self.seen.reported(
                [read(FileReport, each) for each in line["files"]],
                [read(SessionReport, each) for each in line["sessions"]],
            )
            self._tell_of_reaped()
            self._end_orphans()

    def _tell_of_reaped(self) -> None:
        for client, before, now in self.seen.newly_reaped:
            fields = about_reaped(client, before, now, self._idle_limit(client.database))
            if client.id in self._reaping:
                fields["why"] = endings.REAP
            self._reaping.discard(client.id)
            self._server.left_open(client, REAPED, fields)

    def _idle_limit(self, database: str) -> float:
        config = self._server.config
        file = config.sqlite.get(database) or config.sqlite.get(ANY_FILE)
        limit: float = config.file_settings(file)["idle_transaction_timeout"] if file else 0.0
        return limit

    def _end_orphans(self) -> None:
        for number in self._orphans:
            session = self.seen.sessions.get(number)
            if session is not None and session.state == "idle":
                # It may have begun a transaction since; then the next report leads here again.
                self._end(number, _REMOVED, only_between=True)

    def _lost(self) -> None:
        for client in self.seen.lost():
            self._left(client)

    # What the console asks.

    def cancel(self, client: FileClient) -> None:
        """A CancelRequest came for it."""
        self._process.tell({"do": "cancel", "id": client.id})

    def kill(self, number: int) -> None:
        """End this client."""
        self._end(number, _ENDED)

    def _end(self, number: int, fields: Mapping[str, str], *, only_between: bool = False) -> None:
        line = {"do": "close", "id": number, "fields": fields, "only_between": only_between}
        self._process.tell(line)

    def reap(self, number: int) -> bool:
        """End this client's transaction; whether it was asleep in one, when last seen."""
        session = self.seen.sessions.get(number)
        sleeps = session is not None and session.state == "idle in transaction"
        if sleeps:
            self._reaping.add(number)
            self._process.tell({"do": "reap", "id": number})
        return sleeps

    def reopen(self, database: str) -> None:
        """Open the file of this name anew, or all if it is "". Raises TxproxyError."""
        paths = [str(self._find(database)[2])] if database else list(self.seen.files)
        for path in paths:
            self._process.tell({"do": "reopen", "path": path})

    def set_disabled(self, database: str, disabled: bool) -> None:
        """Take no new clients for the file of this name, or take them again.

        Raises TxproxyError.
        """
        name = self._find(database)[1]
        if disabled:
            self.seen.disabled.add(name)
        else:
            self.seen.disabled.discard(name)


def who(client: FileClient) -> dict[str, Any]:
    """A client, for the log."""
    return {"client": client.address, "database": client.database, "user": client.user}


def _check_peer(file: SqliteFile, name: str, uid: int | None) -> None:
    if not file.lets_in(uid):
        peer = "a user that the system does not name" if uid is None else f"user {uid}"
        raise LoginError(
            f'{peer} may not use the SQLite file "{name}"',
            hint="peer_uids are who may, in the proxy's configuration.",
        )


def _make(path: Path) -> None:
    """An empty file is an SQLite database."""
    try:
        path.touch(0o644)
    except OSError as error:
        raise TxproxyError(f"cannot make {path}: {error.strerror}", sqlstate="58030") from error


def _no_such(database: str) -> NoSuchDatabaseError:
    return NoSuchDatabaseError(f'database "{database}" does not exist')
