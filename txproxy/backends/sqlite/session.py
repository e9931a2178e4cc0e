"""A client's socket: bytes in, messages one after the other, bytes out."""

import asyncio
import base64
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final, Protocol, cast

import apsw

import txproxy
from txproxy.backends.sqlite import replies
from txproxy.backends.sqlite.conversation import Conversation, Files
from txproxy.backends.sqlite.errors import Fields
from txproxy.backends.sqlite.file import File
from txproxy.wire import encode
from txproxy.wire.codes import IDLE, TERMINATE, client_limits

_HELD: Final = 1 << 20  # bytes of messages that wait; then the client has to
_LIMITS: Final = client_limits()
_HEAD: Final = Struct("!BI").unpack_from  # of a message: its type, its length


@dataclass(frozen=True)
class Client:
    """What the proxy knows of a client that it hands over. `rest` has come behind its start-up
    packet: it is taken before anything is read.
    """

    number: int
    pid: int
    secret: bytes = field(repr=False)
    user: str
    database: str
    path: str
    parameters: dict[str, str]
    rest: bytes = field(repr=False)

    @classmethod
    def of(cls, line: dict[str, Any]) -> "Client":
        """From the control channel."""
        return cls(
            number=line["id"],
            pid=line["pid"],
            secret=bytes.fromhex(line["secret"]),
            user=line["user"],
            database=line["database"],
            path=line["path"],
            parameters=line["parameters"],
            rest=base64.b64decode(line["rest"]),
        )


class Keeper(Files, Protocol):
    """Who has all files, and is told when a session is gone."""

    def closed(self, session: "Session") -> None:
        """Called once."""


class Session(asyncio.Protocol):
    """One client, from the end of its start-up packet on."""

    def __init__(self, client: Client, file: File, process: Keeper) -> None:
        self.client = client
        self.file = file
        self._process = process
        self._transport: asyncio.Transport
        self._parts: list[bytes] = []
        self._size = 0  # of these
        self._needed = 0  # bytes of the message that they begin with
        self._is_reading = True
        self._is_closing = False
        self.conversation = Conversation(
            file, process, client.parameters, self._write, self._go, self.die
        )

    def __repr__(self) -> str:
        return f"<Session {self.client.number} {self.conversation!r}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no asyncio.Transport
        self._transport = cast("asyncio.Transport", transport)
        self.file.users.add(self.conversation.course)
        client = self.client
        parts = [encode.AUTHENTICATION_OK]
        parts += [encode.parameter_status(*pair) for pair in self._statuses().items()]
        parts += [encode.backend_key_data(client.pid, client.secret), encode.ready(IDLE)]
        self._transport.write(b"".join(parts))
        if client.rest:
            self.data_received(client.rest)

    def _statuses(self) -> dict[str, str]:
        client = self.client
        return {
            "server_version": "18.0",
            "server_encoding": "UTF8",
            "client_encoding": "UTF8",
            "standard_conforming_strings": "on",
            "integer_datetimes": "on",
            "DateStyle": "ISO, MDY",
            "TimeZone": "UTC",
            "IntervalStyle": "postgres",
            "is_superuser": "off",
            "session_authorization": client.user,
            "application_name": client.parameters.get("application_name", ""),
            "in_hot_standby": "off",
            "default_transaction_read_only": "off",
            "txproxy.sqlite_version": apsw.sqlite_lib_version(),
            "txproxy.file": self.file.path,
            "txproxy.file_id": self.file.identity,
            "txproxy.journal_mode": self.file.settings.journal_mode,
            "txproxy.version": txproxy.__version__,
        }

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        if not self._parts and not self.conversation.course.is_waiting:
            self._take(data)
            return
        self._parts.append(data)
        if not self.conversation.is_waiting:
            if self._size >= self._needed:
                self._go()
        elif self._size > _HELD and self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def _go(self) -> None:
        """Go on, with what has come meanwhile."""
        if self._parts:
            data = b"".join(self._parts)
            self._parts = []
            self._take(data)
        if not self._is_reading and not self.conversation.is_waiting and not self._is_closing:
            self._is_reading = True
            self._transport.resume_reading()

    def _take(self, data: bytes) -> None:
        """Take messages, as far as nothing has to be waited for; keep the rest."""
        take = self.conversation.take
        course = self.conversation.course
        at = 0
        end = len(data)
        self._needed = 0
        while end - at >= 5 and not course.is_waiting:
            kind, length = _HEAD(data, at)
            if not 4 <= length <= _LIMITS[kind]:
                self.die(Fields("08P01", 21, "SQLITE_MISUSE", "invalid message from the client"))
                return
            if end - at <= length:
                self._needed = length + 1
                break
            if kind == TERMINATE:
                self.close()
                return
            if not take(kind, data[at + 5 : at + 1 + length]):
                break
            at += length + 1
        self._size = end - at
        if at < end:
            self._parts.append(data[at:])
        if not course.is_waiting:
            self.conversation.submit()

    def _write(self, data: bytes) -> None:
        if not self._is_closing:
            self._transport.write(data)

    def pause_writing(self) -> None:
        self.conversation.pause()

    def resume_writing(self) -> None:
        self.conversation.resume()

    def die(self, fields: Fields) -> None:
        """Tell the client why, and close."""
        self._write(replies.error(fields, "FATAL"))
        self.close()

    def close(self) -> None:
        """Behind what has been written."""
        self._is_closing = True
        self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._is_closing = True
        self._parts.clear()
        self.conversation.end()
        self.file.leave(self.conversation.course)
        self._process.closed(self)
