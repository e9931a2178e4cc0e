"""A client that speaks the protocol by hand: any bytes, in any pieces, at any moment.

Drivers send only what is right. Here a conversation is bytes, cut where the test wants it, and the
answers are messages as they came. `Wire` blocks, each read up to `PATIENCE`; `AsyncWire` is the
same for many clients in one event loop.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

PATIENCE: Final = 30.0  # seconds, for a machine that is busy; nothing that works waits so long
PROTOCOL_3_0: Final = 3 << 16
CANCEL_REQUEST: Final = 80877102
SSL_REQUEST: Final = 80877103
GSS_REQUEST: Final = 80877104

Address = tuple[str, int] | str
"""Host and port, or the path of a unix socket."""


# Messages that a client sends.


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message: type, length, body."""
    return kind + struct.pack("!i", len(body) + 4) + body


def startup(parameters: Mapping[str, str], protocol: int = PROTOCOL_3_0) -> bytes:
    """StartupMessage."""
    words = [word.encode() + b"\0" for pair in parameters.items() for word in pair]
    return packet(protocol, b"".join(words) + b"\0")


def packet(code: int, body: bytes = b"") -> bytes:
    """What a connection may begin with: a length, a code, a body."""
    return struct.pack("!ii", len(body) + 8, code) + body


def query(sql: str) -> bytes:
    """Query."""
    return message(b"Q", sql.encode() + b"\0")


def parse(sql: str, name: str = "") -> bytes:
    """Parse, types left to the server."""
    return message(b"P", name.encode() + b"\0" + sql.encode() + b"\0\0\0")


def bind(*values: str, name: str = "", portal: str = "") -> bytes:
    """Bind, parameters and results as text."""
    counted = [struct.pack("!i", len(value.encode())) + value.encode() for value in values]
    count = struct.pack("!h", len(values))
    head = portal.encode() + b"\0" + name.encode() + b"\0\0\0"
    return message(b"B", head + count + b"".join(counted) + b"\0\0")


def describe(name: str = "", what: bytes = b"P") -> bytes:
    """Describe of a portal (P) or a statement (S)."""
    return message(b"D", what + name.encode() + b"\0")


def execute(portal: str = "", rows: int = 0) -> bytes:
    """Execute, all rows or the first so many."""
    return message(b"E", portal.encode() + b"\0" + struct.pack("!i", rows))


def close(name: str = "", what: bytes = b"S") -> bytes:
    """Close of a portal (P) or a statement (S)."""
    return message(b"C", what + name.encode() + b"\0")


def copy_data(data: bytes) -> bytes:
    """CopyData."""
    return message(b"d", data)


def copy_fail(reason: str = "enough") -> bytes:
    """CopyFail."""
    return message(b"f", reason.encode() + b"\0")


SYNC: Final = message(b"S")
FLUSH: Final = message(b"H")
TERMINATE: Final = message(b"X")
COPY_DONE: Final = message(b"c")


def unit(sql: str, *values: str) -> bytes:
    """The usual extended unit: Parse, Bind, Describe, Execute, Sync, all unnamed."""
    return parse(sql) + bind(*values) + describe() + execute() + SYNC


# Messages that come back.


@dataclass(frozen=True)
class Message:
    """One message from the server: its type as a letter, its body."""

    kind: str
    body: bytes

    def __repr__(self) -> str:
        said = self.fields if self.kind in "EN" else self.body[:40]
        return f"<{self.kind} {said!r}>"

    @property
    def fields(self) -> dict[str, str]:
        """What an ErrorResponse or NoticeResponse says, by the letter of the field."""
        parts = self.body.split(b"\0")
        return {part[:1].decode(): part[1:].decode() for part in parts if part}

    @property
    def sqlstate(self) -> str:
        """Of an ErrorResponse."""
        return self.fields["C"]

    @property
    def severity(self) -> str:
        """Of an ErrorResponse: ERROR, or FATAL when the connection ends."""
        return self.fields["V"]

    @property
    def row(self) -> list[str | None]:
        """The values of a DataRow, as text."""
        values: list[str | None] = []
        i = 2
        for _ in range(struct.unpack_from("!h", self.body)[0]):
            (size,) = struct.unpack_from("!i", self.body, i)
            i += 4
            values.append(None if size < 0 else self.body[i : i + size].decode())
            i += max(size, 0)
        return values

    @property
    def status(self) -> str:
        """The transaction status in a ReadyForQuery: I, T or E."""
        return self.body.decode()


def kinds(messages: Sequence[Message]) -> str:
    """The types of the messages, in order: "TDCZ"."""
    return "".join(each.kind for each in messages)


def errors(messages: Sequence[Message]) -> list[Message]:
    """The ErrorResponses among the messages."""
    return [each for each in messages if each.kind == "E"]


def rows(messages: Sequence[Message]) -> list[list[str | None]]:
    """The rows in the messages."""
    return [each.row for each in messages if each.kind == "D"]


class Closed(Exception):
    """The other side has closed the connection. The argument: messages that came before."""


class _Reader:
    """Bytes to messages."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def next(self) -> Message | None:
        """The next message that has come completely."""
        buffer = self.buffer
        if len(buffer) < 5:
            return None
        (length,) = struct.unpack_from("!i", buffer, 1)
        if length < 4:
            raise ValueError(f"a message of length {length}: {bytes(buffer[:20])!r}")
        if len(buffer) < 1 + length:
            return None
        found = Message(chr(buffer[0]), bytes(buffer[5 : 1 + length]))
        del buffer[: 1 + length]
        return found


class Wire:
    """A connection whose bytes the test writes itself."""

    def __init__(self, address: Address, accepted: socket.socket | None = None) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = accepted or socket.socket(family)
        self.socket.settimeout(PATIENCE)
        self.key = (0, b"")
        self._reader = _Reader()
        if accepted is None:
            try:
                self.socket.connect(address)
            except BaseException:
                self.socket.close()
                raise
        if family == socket.AF_INET:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def of(cls, accepted: socket.socket) -> Self:
        """The other side: a connection that was accepted, over TCP."""
        return cls(("", 0), accepted)

    @classmethod
    def log_in(cls, address: Address, /, user: str, database: str, **parameters: str) -> Self:
        """A connection that is logged in."""
        wire = cls(address)
        try:
            wire.send(startup({"user": user, "database": database, **parameters}))
            for each in wire.until("Z"):
                if each.kind == "K":
                    wire.key = (struct.unpack_from("!i", each.body)[0], each.body[4:])
        except BaseException:
            wire.close()
            raise
        return wire

    def send(self, *pieces: bytes) -> None:
        """Send each piece by itself; that they arrive so is likely, not certain."""
        for piece in pieces:
            self.socket.sendall(piece)

    def read(self) -> Message:
        """The next message. Raises Closed at the connection's end, TimeoutError if none comes."""
        while True:
            found = self._reader.next()
            if found is not None:
                return found
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed([])
            self._reader.buffer += data

    def receive(self, size: int) -> bytes:
        """At most `size` of the next bytes; b"" at the connection's end."""
        buffer = self._reader.buffer
        if not buffer:
            return self.socket.recv(size)
        found = bytes(buffer[:size])
        del buffer[:size]
        return found

    def until(self, last: str) -> list[Message]:
        """Messages up to the first of a type in `last`."""
        found: list[Message] = []
        while True:
            try:
                found.append(self.read())
            except Closed as end:
                raise Closed(found) from end
            if found[-1].kind in last:
                return found

    def ask(self, data: bytes, count: int = 1) -> list[Message]:
        """Send, and read up to the `count`th ReadyForQuery."""
        self.send(data)
        return [each for _ in range(count) for each in self.until("Z")]

    def value(self, sql: str) -> str | None:
        """The first value of the first row of a Query that must not fail."""
        answer = self.ask(query(sql))
        assert not errors(answer), answer
        return rows(answer)[0][0]

    def rest(self) -> list[Message]:
        """Messages up to the connection's end, which must come."""
        found: list[Message] = []
        with contextlib.suppress(Closed):
            while True:
                found.append(self.read())
        return found

    def close(self) -> None:
        """Close, without a word."""
        self.socket.close()

    def reset(self) -> None:
        """Close so that the other side sees a reset, as of a process that was killed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def cancel(address: Address, key: tuple[int, bytes]) -> None:
    """Send a CancelRequest and wait until it was taken."""
    with Wire(address) as wire:
        wire.send(packet(CANCEL_REQUEST, struct.pack("!i", key[0]) + key[1]))
        assert wire.rest() == []


class AsyncWire:
    """`Wire` in an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._stream = reader
        self._reader = _Reader()
        self.writer = writer
        self.key = (0, b"")

    @classmethod
    @contextlib.asynccontextmanager
    async def log_in(
        cls, host: str, port: int, /, user: str, database: str, **parameters: str
    ) -> AsyncIterator[Self]:
        """A connection that is logged in, and closed at the end of its block."""
        wire = cls(*await asyncio.open_connection(host, port))
        try:
            wire.send(startup({"user": user, "database": database, **parameters}))
            for each in await wire.until("Z"):
                if each.kind == "K":
                    wire.key = (struct.unpack_from("!i", each.body)[0], each.body[4:])
            yield wire
        finally:
            wire.close()

    def send(self, data: bytes) -> None:
        """Send."""
        self.writer.write(data)

    async def read(self) -> Message:
        """The next message. Raises Closed at the connection's end, TimeoutError if none comes."""
        while True:
            found = self._reader.next()
            if found is not None:
                return found
            try:
                async with asyncio.timeout(PATIENCE):
                    data = await self._stream.read(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed([])
            self._reader.buffer += data

    async def until(self, last: str) -> list[Message]:
        """Messages up to the first of a type in `last`."""
        found: list[Message] = []
        while True:
            try:
                found.append(await self.read())
            except Closed as end:
                raise Closed(found) from end
            if found[-1].kind in last:
                return found

    async def ask(self, data: bytes) -> list[Message]:
        """Send, and read up to ReadyForQuery."""
        self.send(data)
        return await self.until("Z")

    def close(self) -> None:
        """Close, without a word."""
        self.writer.close()

    def reset(self) -> None:
        """Close at once, with what was not sent yet unsent."""
        self.writer.transport.abort()
