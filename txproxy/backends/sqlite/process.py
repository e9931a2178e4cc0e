"""The SQLite process: clients that the proxy hands over, the files that they speak of."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any, Final

import apsw

from txproxy.backends.sqlite import databases, django, replies, report
from txproxy.backends.sqlite.channel import Channel, Line
from txproxy.backends.sqlite.databases import Create, Drop
from txproxy.backends.sqlite.errors import Fields, fields
from txproxy.backends.sqlite.file import File
from txproxy.backends.sqlite.maintenance import Maintenance, locate
from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.owner import SUFFIX
from txproxy.backends.sqlite.session import Client, Session
from txproxy.config.sqlite import ANY_FILE
from txproxy.errors import TxproxyError

_TICK: Final = 0.05  # seconds
_REPORT: Final = 20  # ticks
_LINGER: Final = 10.0  # seconds that a file stays open for the next client
_PATIENCE: Final = 5.0  # seconds for a statement to end after it was interrupted
_LEAVING_TAKES: Final = 5.0  # seconds for clients to be gone from a file that is to be removed
_LONG: Final = 1000  # bytes of a Query that is no command of ours
_STUCK: Final = 3  # exit status


class Process:
    """All of it, from "ready" to the end of the channel."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: socket.socket) -> None:
        self._loop = loop
        self._channel = Channel(loop, channel, self._take, self._lost)
        self._arriving: dict[int, Fields | None] = {}  # and why one is to leave at once
        self._sessions: dict[int, Session] = {}
        self._maintenance: dict[int, Maintenance] = {}
        self._configured: frozenset[str] = frozenset()  # files with names of their own
        self._files: dict[str, File] = {}
        self._opening = asyncio.Lock()
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticks = 0
        self._reported = False
        self._is_draining = False

    async def serve(self) -> None:
        """Until the channel ends."""
        self._channel.tell({"is": "ready"})
        while not self._ended.is_set():
            await asyncio.sleep(_TICK)
            self._tick()
        for number, session in list(self._sessions.items()):
            if number not in self._arriving:
                session.close()
        # Whoever waits for a lock, or cannot be interrupted, does not keep us.
        watchdog = threading.Timer(_PATIENCE, os._exit, (_STUCK,))
        watchdog.daemon = True
        watchdog.start()
        async with self._opening:
            for file in self._files.values():
                file.close()

    def _take(self, line: Line) -> None:
        _DO[line["do"]](self, line)

    def _lost(self) -> None:
        self._ended.set()

    def _log(self, level: str, event: str, **more: Any) -> None:
        self._channel.tell({"is": "log", "level": level, "event": event, "fields": more})

    # Clients.

    def _client(self, line: Line) -> None:
        sock = self._channel.next_socket()
        self._arriving[line["id"]] = None
        self._start(self._arrive(line, sock))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _arrive(self, line: Line, sock: socket.socket) -> None:
        """Opening its file takes time, in which it may be told to leave."""
        number = line["id"]
        try:
            await self._adopt(line, sock)
        finally:
            why = self._arriving.pop(number)
        session = self._found(number)
        if why is not None and session is not None:
            session.die(why)

    def _found(self, number: int) -> Session | Maintenance | None:
        return self._sessions.get(number) or self._maintenance.get(number)

    async def _adopt(self, line: Line, sock: socket.socket) -> None:
        client = Client.of(line)
        sock.setblocking(False)
        self._configured = frozenset(line.get("configured", ()))
        if client.database == ANY_FILE:
            await self._maintain(client, sock)
            return
        try:
            wanted = client.parameters.get(django.PARAMETER)
            if wanted is not None:
                await asyncio.to_thread(django.prepare, wanted)
            file = await self._file(client.database, client.path, line["file"])
            try:
                if wanted is not None:
                    file.need(django.FUNCTIONS)
                session = Session(client, file, self)
                self._sessions[client.number] = session
                await self._loop.connect_accepted_socket(lambda: session, sock)
            finally:
                file.expected -= 1
        except Exception as error:  # noqa: BLE001 - whatever opening the file raises
            self._sessions.pop(client.number, None)
            await self._refuse(client, sock, _refusal(error, client))

    async def _maintain(self, client: Client, sock: socket.socket) -> None:
        async def run(asked: Create | Drop) -> None:
            path = locate(client.path, asked.name)
            if isinstance(asked, Drop):
                await self._vacated(path)
                async with self._opening:
                    await self._drop(path, asked.may_be_missing)
            else:
                template = locate(client.path, asked.template) if asked.template else None
                async with self._opening:
                    await asyncio.to_thread(databases.create, path, template, None)

        session = Maintenance(client, run, self._maintained)
        self._maintenance[client.number] = session
        await self._loop.connect_accepted_socket(lambda: session, sock)

    def _maintained(self, client: Client) -> None:
        del self._maintenance[client.number]
        self._channel.tell({"is": "closed", "id": client.number})

    async def _vacated(self, path: str) -> None:
        """Until its clients are gone, or patience is: they tell nobody that they go."""
        deadline = monotonic() + _LEAVING_TAKES
        while (  # noqa: ASYNC110
            (file := self._files.get(path)) and not file.is_unused and monotonic() < deadline
        ):
            await asyncio.sleep(_TICK)

    async def _refuse(self, client: Client, sock: socket.socket, why: Fields) -> None:
        self._log("warning", "cannot open file", database=client.database, why=why.message)
        with sock, contextlib.suppress(OSError):
            await self._loop.sock_sendall(sock, replies.error(why, "FATAL"))
        self._channel.tell({"is": "closed", "id": client.number})

    async def _file(self, database: str, path: str, settings: dict[str, Any]) -> File:
        real = _real(path)
        async with self._opening:
            if real not in self._files:
                wanted = Settings.of(settings)
                opened = await asyncio.to_thread(_open, self._loop, real, wanted)
                opened.database = database
                self._files[real] = opened
            file = self._files[real]
            file.expected += 1
            return file

    async def _leave(self, file: File) -> None:
        """Nobody has used it for a while: its threads, connections and lock are let go."""
        async with self._opening:
            file.is_leaving = False
            if file.is_unused and self._files.get(file.path) is file:
                await asyncio.to_thread(file.close)
                del self._files[file.path]

    def closed(self, session: Session) -> None:
        """A client is gone."""
        if self._sessions.pop(session.client.number, None) is not None:
            self._channel.tell({"is": "closed", "id": session.client.number})

    def _cancel(self, line: Line) -> None:
        session = self._sessions.get(line["id"])
        if session is not None:
            session.conversation.course.cancel()

    def _close(self, line: Line) -> None:
        number = line["id"]
        why = Fields(line["fields"]["C"], apsw.SQLITE_ERROR, "SQLITE_ERROR", line["fields"]["M"])
        session = self._found(number)
        if number in self._arriving:
            self._arriving[number] = why
        elif session is not None and not (line.get("only_between") and _is_busy(session)):
            session.die(why)

    def _reap(self, line: Line) -> None:
        session = self._sessions.get(line["id"])
        if session is not None:
            session.conversation.course.reap("the transaction was rolled back by an administrator")

    def _drain(self, _: Line) -> None:
        self._is_draining = True

    # Files.

    def _reopen(self, line: Line) -> None:
        file = self._files.get(_real(line["path"]))
        if file is not None:
            file.reopen()

    def _settings(self, line: Line) -> None:
        file = self._files.get(_real(line["path"]))
        if file is not None:
            file.configure(Settings.of(line["file"]))

    def command(self, file: File, sql: bytes, then: Callable[[bytes | Exception], None]) -> bool:
        """Of `Files`."""
        order = databases.command(sql.decode("utf-8", "replace")) if len(sql) < _LONG else None
        if order is None:
            return False
        self._start(self._obey(file, order, then))
        return True

    async def _obey(
        self, file: File, order: Create | Drop, then: Callable[[bytes | Exception], None]
    ) -> None:
        try:
            if not file.settings.allow_create:
                raise TxproxyError("allow_create is off for this file", sqlstate="42501")
            path = databases.beside(file.path, order.name)
            async with self._opening:
                if isinstance(order, Drop):
                    await self._drop(path, order.may_be_missing)
                else:
                    await self._create(file, path, order.template)
        except Exception as error:  # noqa: BLE001 - it is told to the client
            then(error)
        else:
            then(b"DROP DATABASE" if isinstance(order, Drop) else b"CREATE DATABASE")

    async def _create(self, file: File, path: str, template: str | None) -> None:
        source = databases.beside(file.path, template) if template else None
        await asyncio.to_thread(databases.create, path, source, file.path)

    async def _drop(self, path: str, may_be_missing: bool) -> None:
        if path in self._configured:
            raise TxproxyError(f'"{path}" is configured by itself', sqlstate="42501")
        opened = self._files.get(path)
        if opened is not None:
            if not opened.is_unused:
                raise databases.in_use(path)
            del self._files[path]
            await asyncio.to_thread(opened.close)
        await asyncio.to_thread(databases.drop, path, may_be_missing=may_be_missing)

    # Time.

    def _tick(self) -> None:
        now = monotonic()
        for file in list(self._files.values()):
            file.tick(now)
            if file.overdue(now, _PATIENCE):
                # No interrupt reaches it, and it may keep the interpreter from everybody.
                os._exit(_STUCK)
            if file.is_unused and now - file.unused_since > _LINGER and not file.is_leaving:
                file.is_leaving = True
                self._start(self._leave(file))
        if self._is_draining:
            self._send_away()
        self._ticks += 1
        if self._ticks % _REPORT == 0 or (self._reported and not self._sessions):
            self._report(now)

    def _send_away(self) -> None:
        for number, session in list(self._sessions.items()):
            if number not in self._arriving and not _is_busy(session):
                session.die(_SHUTDOWN)
        for number, other in list(self._maintenance.items()):
            if number not in self._arriving:
                other.die(_SHUTDOWN)
        if not self._sessions and not self._maintenance and not self._arriving:
            self._is_draining = False
            self._channel.tell({"is": "drained"})

    def _report_now(self, _: Line) -> None:
        """Asked for: for tests, or whoever looks closely."""
        self._channel.tell(report.line(self._files.values(), self._sessions.values(), monotonic()))

    def _report(self, now: float) -> None:
        for file in self._files.values():
            file.look_at_schema()
        if self._sessions or self._reported:
            self._reported = bool(self._sessions)
            self._channel.tell(report.line(self._files.values(), self._sessions.values(), now))


_SHUTDOWN: Final = Fields(
    "57P01",
    apsw.SQLITE_ERROR,
    "SQLITE_ERROR",
    "terminating connection due to administrator command",
)


def _is_busy(session: Session | Maintenance) -> bool:
    """Whether something of it would be lost."""
    return isinstance(session, Session) and not session.conversation.course.is_between


def _real(path: str) -> str:
    return str(Path(path).resolve())


def _open(loop: asyncio.AbstractEventLoop, path: str, settings: Settings) -> File:
    if not Path(path).is_file():
        raise TxproxyError(f'the file "{path}" does not exist', sqlstate="3D000")
    return File(loop, path, settings)


def _refusal(error: Exception, client: Client) -> Fields:
    """Why a client may not in."""
    if isinstance(error, BlockingIOError):
        message = f'another process owns "{client.path}": it has locked {client.path}{SUFFIX}'
        return Fields("55000", apsw.SQLITE_BUSY, "SQLITE_BUSY", message)
    if isinstance(error, TxproxyError):
        return fields(error)._replace(code=apsw.SQLITE_CANTOPEN, name="SQLITE_CANTOPEN")
    found = fields(error) if isinstance(error, apsw.Error) else None
    message = f'"{client.path}" cannot be opened: {error}'
    if found is None:
        return Fields("58030", apsw.SQLITE_CANTOPEN, "SQLITE_CANTOPEN", message)
    return found._replace(sqlstate="58030", message=message)


_DO: Final[dict[str, Callable[[Process, Line], None]]] = {
    "client": Process._client,  # noqa: SLF001 - its own
    "cancel": Process._cancel,  # noqa: SLF001
    "close": Process._close,  # noqa: SLF001
    "drain": Process._drain,  # noqa: SLF001
    "reopen": Process._reopen,  # noqa: SLF001
    "report": Process._report_now,  # noqa: SLF001
    "reap": Process._reap,  # noqa: SLF001
    "file": Process._settings,  # noqa: SLF001
}
