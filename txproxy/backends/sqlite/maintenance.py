"""A client of the database "*": no file, but the directory in which it may make and remove files.

It sends simple queries, one statement each; see `databases`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

import apsw

from txproxy.backends.sqlite import databases, replies
from txproxy.backends.sqlite.databases import Create, Drop
from txproxy.backends.sqlite.errors import Fields, fields
from txproxy.backends.sqlite.session import Client
from txproxy.config.sqlite import ANY_FILE, SqliteFile, find
from txproxy.errors import ProtocolError, TxproxyError
from txproxy.wire import encode
from txproxy.wire.codes import IDLE, QUERY, SYNC, TERMINATE

_LONGEST: Final = 65_536  # bytes of a message
_ONLY: Final = (
    "only CREATE DATABASE name [TEMPLATE other] and DROP DATABASE [IF EXISTS] name work here"
)
_STATUSES: Final = {
    "server_version": "18.0",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
}


class Maintenance(asyncio.Protocol):
    """`run` does what is asked; `closed` is called once, when the client is gone."""

    def __init__(
        self,
        client: Client,
        run: Callable[[Create | Drop], Awaitable[None]],
        closed: Callable[[Client], None],
    ) -> None:
        self._client = client
        self._run = run
        self._closed = closed
        self._transport: asyncio.Transport
        self._data = b""
        self._is_skipping = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no asyncio.Transport
        self._transport = cast("asyncio.Transport", transport)
        client = self._client
        parts = [encode.AUTHENTICATION_OK]
        parts += [encode.parameter_status(*pair) for pair in _STATUSES.items()]
        parts += [encode.backend_key_data(client.pid, client.secret), encode.ready(IDLE)]
        self._transport.write(b"".join(parts))
        if client.rest:
            self.data_received(client.rest)

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._go()

    def _go(self) -> None:
        while self._task is None and len(self._data) >= 5:
            length = int.from_bytes(self._data[1:5])
            if not 4 <= length <= _LONGEST:
                self.die(fields(ProtocolError("invalid message from the client")))
                return
            if len(self._data) <= length:
                return
            kind, body = self._data[0], self._data[5 : length + 1]
            self._data = self._data[length + 1 :]
            self._take(kind, body)

    def _take(self, kind: int, body: bytes) -> None:
        if kind == TERMINATE:
            self._transport.close()
        elif kind == SYNC:
            self._is_skipping = False
            self._transport.write(encode.ready(IDLE))
        elif kind == QUERY:
            self._task = asyncio.create_task(self._query(body))
        elif not self._is_skipping:
            self._is_skipping = True
            why = TxproxyError("only simple queries work here", sqlstate="0A000")
            self._transport.write(replies.error(fields(why)))

    async def _query(self, body: bytes) -> None:
        try:
            asked = databases.command(body[:-1].decode())
            if asked is None:
                raise TxproxyError(_ONLY, sqlstate="0A000")
            await self._run(asked)
            verb = b"CREATE" if isinstance(asked, Create) else b"DROP"
            reply = encode.command_complete(verb + b" DATABASE")
        except Exception as error:  # noqa: BLE001 - it is told to the client
            reply = replies.error(_told(error))
        self._transport.write(reply + encode.ready(IDLE))
        self._task = None
        self._go()

    def die(self, why: Fields) -> None:
        """Tell the client why, and close."""
        self._transport.write(replies.error(why, "FATAL"))
        self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._closed(self._client)


def locate(directory: str, name: str) -> str:
    """The path of a file of that name, or path, directly inside. TxproxyError: none can be."""
    place = find({ANY_FILE: SqliteFile(name=ANY_FILE, directory=directory)}, name)
    if place is None:
        raise TxproxyError(
            f'"{name}" is no name of a file directly inside {directory}', sqlstate="42602"
        )
    return str(place[1])


def _told(error: Exception) -> Fields:
    if isinstance(error, OSError):
        return Fields("58030", apsw.SQLITE_IOERR, "SQLITE_IOERR", str(error))
    return fields(error)
