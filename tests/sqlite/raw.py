"""A small client that speaks the endpoint's private format, message by message."""

import socket
import struct
from types import TracebackType
from typing import NamedTuple, Self

from tests.sqlite.endpoint import PATIENCE, Endpoint
from txproxy.wire import encode, values

Value = int | float | str | bytes | None

SYNC = b"S\0\0\0\4"
FLUSH = b"H\0\0\0\4"


class Reply(NamedTuple):
    """All messages up to ReadyForQuery."""

    messages: list[tuple[str, bytes]]

    @property
    def kinds(self) -> str:
        """Their types."""
        return "".join(kind for kind, _ in self.messages)

    @property
    def status(self) -> str:
        """That of ReadyForQuery."""
        return self.messages[-1][1].decode()

    @property
    def tags(self) -> list[str]:
        """Of CommandComplete."""
        return [body[:-1].decode() for kind, body in self.messages if kind == "C"]

    @property
    def errors(self) -> list[dict[str, str]]:
        """The fields of errors."""
        return [fields(body) for kind, body in self.messages if kind == "E"]

    @property
    def rows(self) -> list[tuple[Value, ...]]:
        """Rows in the private format."""
        return [row(body) for kind, body in self.messages if kind == "D"]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Names and declared types of the private format."""
        return [c for kind, body in self.messages if kind == "T" for c in columns(body)]


def fields(body: bytes) -> dict[str, str]:
    """Of an ErrorResponse."""
    return {part[:1].decode(): part[1:].decode() for part in body.split(b"\0") if part}


def row(body: bytes) -> tuple[Value, ...]:
    """Of a DataRow."""
    found: list[Value] = []
    at = 2
    for _ in range(struct.unpack_from("!H", body)[0]):
        size = struct.unpack_from("!i", body, at)[0]
        at += 4
        found.append(None if size < 0 else values.decode(body[at : at + max(size, 0)]))
        at += max(size, 0)
    return tuple(found)


def columns(body: bytes) -> list[tuple[str, str]]:
    """Of a RowDescription in the private format."""
    found = []
    at = 2
    for _ in range(struct.unpack_from("!H", body)[0]):
        end = body.index(b"\0", at)
        name, _, declared = body[at:end].decode().rpartition("\x01")
        found.append((name, declared))
        at = end + 19
    return found


def parse(sql: str, name: str = "") -> bytes:
    """Parse."""
    return encode.message(b"P", name.encode() + b"\0" + sql.encode() + b"\0\0\0")


def bind(*parameters: Value, portal: str = "", name: str = "") -> bytes:
    """Bind, all in the private format."""
    parts = [portal.encode(), b"\0", name.encode(), b"\0", struct.pack("!HH", 1, values.FORMAT)]
    parts.append(struct.pack("!H", len(parameters)))
    for value in parameters:
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            data = values.encode(value)
            parts.append(struct.pack("!i", len(data)) + data)
    return encode.message(b"B", b"".join(parts) + struct.pack("!HH", 1, values.FORMAT))


def describe(portal: str = "") -> bytes:
    """Describe of a portal."""
    return encode.message(b"D", b"P" + portal.encode() + b"\0")


def execute(limit: int = 0, portal: str = "") -> bytes:
    """Execute."""
    return encode.message(b"E", portal.encode() + b"\0" + limit.to_bytes(4))


def close_portal(portal: str = "") -> bytes:
    """Close of a portal."""
    return encode.message(b"C", b"P" + portal.encode() + b"\0")


class Raw:
    """One connection, logged in. `greeting` are the messages of the login."""

    def __init__(self, endpoint: Endpoint, database: str, **parameters: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(endpoint.socket_path)
        self._stream = self.socket.makefile("rb")
        words = {"user": "u", "database": database, **parameters}
        self.send(encode.startup(words))
        try:
            self.greeting = self.read()
        except BaseException:
            self.close()
            raise
        self.number = next(
            int.from_bytes(body[:4]) for kind, body in self.greeting.messages if kind == "K"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Without a word."""
        self._stream.close()
        self.socket.close()

    def send(self, *messages: bytes) -> None:
        """Without waiting for anything."""
        self.socket.sendall(b"".join(messages))

    def message(self) -> tuple[str, bytes]:
        """The next one. EOFError: the server has closed the connection."""
        head = self._stream.read(5)
        if len(head) < 5:
            raise EOFError
        return head[:1].decode(), self._stream.read(int.from_bytes(head[1:]) - 4)

    def read(self) -> Reply:
        """Up to ReadyForQuery."""
        found: list[tuple[str, bytes]] = []
        while not found or found[-1][0] != "Z":
            found.append(self.message())
        return Reply(found)

    def ask(self, *messages: bytes) -> Reply:
        """Send, Sync, and read."""
        self.send(*messages, SYNC)
        return self.read()

    def run(self, sql: str, *parameters: Value) -> Reply:
        """Parse, Bind, Describe, Execute, Sync."""
        return self.ask(parse(sql), bind(*parameters), describe(), execute())

    def begin_run(self, sql: str, *parameters: Value) -> None:
        """The same, without waiting for the reply."""
        self.send(parse(sql), bind(*parameters), describe(), execute(), SYNC)

    def query(self, sql: str) -> Reply:
        """A simple Query."""
        self.send(encode.query(sql.encode()))
        return self.read()

    def rows(self, sql: str, *parameters: Value) -> list[tuple[Value, ...]]:
        """The rows. AssertionError: an error."""
        reply = self.run(sql, *parameters)
        assert not reply.errors, reply.errors
        return reply.rows

    def status(self) -> dict[str, str]:
        """The parameters that the server has told at login."""
        found = {}
        for kind, body in self.greeting.messages:
            if kind == "S":
                name, value, _ = body.decode().split("\0")
                found[name] = value
        return found
