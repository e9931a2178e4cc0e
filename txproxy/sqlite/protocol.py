"""One connection to the endpoint: a blocking socket, PostgreSQL's framing, SQLite's statements.

Everything up to a Sync goes out in one send, and everything up to ReadyForQuery is read: an
`Answer`. Nothing here knows what is asked or why; what was lost is said as `LostError`, with
whether the server can have got anything of it.

Source: PostgreSQL 18, chapter 54; the SQLite endpoint's own value format: txproxy/wire/values.py
"""

import logging
import os
import pwd
import socket
from contextlib import suppress
from typing import Final

from txproxy.sqlite import failures
from txproxy.wire import encode, messages
from txproxy.wire.codes import (
    AUTHENTICATION,
    BACKEND_KEY_DATA,
    COMMAND_COMPLETE,
    DATA_ROW,
    ERROR_RESPONSE,
    IDLE,
    NO_DATA,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    PORTAL_SUSPENDED,
    READY_FOR_QUERY,
    ROW_DESCRIPTION,
)

log = logging.getLogger("txproxy.sqlite")

_LOGIN_TIMEOUT: Final = 30.0  # seconds; the proxy may hold a client back that is one too many
_CHUNK: Final = 65_536  # bytes
_LARGE_CHUNK: Final = 1 << 20
_DONE: Final = encode.BIND_COMPLETE + b"C"
_LONGEST_TAG: Final = 64


class LostError(Exception):
    """The connection is gone. `sent`: the server may have got what was asked, and done it."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class Column:
    """A column of a result: its name and the type that its table declares, "" if there is none."""

    __slots__ = ("declared", "name")

    def __init__(self, name: str, declared: str) -> None:
        self.name = name
        self.declared = declared


class Answer:
    """What came back up to ReadyForQuery.

    `columns` is None where there was none to describe, `rows` holds the bodies of DataRow, `tags`
    those of CommandComplete, `fields` the first ErrorResponse's.
    """

    __slots__ = ("columns", "described", "fields", "rows", "suspended", "tags")

    def __init__(self) -> None:
        self.columns: tuple[Column, ...] | None = None
        self.described = False
        self.rows: list[bytes] = []
        self.tags: list[bytes] = []
        self.suspended = False
        self.fields: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"<Answer {self.tags} rows={len(self.rows)} error={self.fields}>"


class Wire:
    """A connection after its login. Not safe for use by two threads at once.

    `status` is the last ReadyForQuery's, `parameters` are the server's, newest value.
    sqlite3.OperationalError: nobody listens there, we may not connect, or the server said no.
    """

    def __init__(self, address: str, said: dict[str, str]) -> None:
        self.address = address
        self.parameters: dict[str, str] = {}
        self.has_changed = False  # one of them, since somebody looked
        self.status = IDLE
        self._key: tuple[int, bytes] = (0, b"")
        self._socket = _connected(address)
        try:
            self._login(said)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Wire {self.address} status={chr(self.status)}>"

    def _login(self, said: dict[str, str]) -> None:
        self._socket.settimeout(_LOGIN_TIMEOUT)
        try:
            answer = self.exchange(encode.startup(said))
        except LostError as error:
            raise failures.lost(
                f"the endpoint at {self.address} did not answer: {error}"
            ) from error
        if answer.fields is not None:
            raise failures.of(answer.fields)
        self._socket.settimeout(None)

    def exchange(self, data: bytes) -> Answer:
        """Send, and read up to ReadyForQuery. LostError, after which the connection is closed."""
        try:
            sent = self._socket.send(data)
        except OSError as error:
            self.close()
            raise LostError(str(error), sent=False) from error
        try:
            if sent < len(data):
                self._socket.sendall(memoryview(data)[sent:])
            return self._receive()
        except OSError as error:
            self.close()
            raise LostError(str(error), sent=True) from error
        except BaseException:  # interrupted in the middle of an answer: the rest is never read
            self.close()
            raise

    def _receive(self) -> Answer:
        answer = Answer()
        data = self._socket.recv(_CHUNK)
        if data[:6] == _DONE and len(data) < _LONGEST_TAG and data[9] + 12 == len(data):
            # One statement without rows: the way of every INSERT.
            answer.tags.append(data[10:-7])
            self.status = data[-1]
            return answer
        start = 0
        while True:
            end = len(data)
            while end - start >= 5:
                stop = start + 1 + int.from_bytes(data[start + 1 : start + 5], "big")
                if stop > end:
                    break
                if self._take(answer, data[start], data[start + 5 : stop]):
                    return answer
                start = stop
            data = data[start:] + self._more(data, start)
            start = 0

    def _more(self, data: bytes, start: int) -> bytes:
        """The rest of the message that begins at `start`, at least, if its length is known."""
        have = len(data) - start
        lacking = 1
        if have >= 5:
            lacking = 1 + int.from_bytes(data[start + 1 : start + 5], "big") - have
        parts = []
        while lacking > 0:
            part = self._socket.recv(min(max(lacking, _CHUNK), _LARGE_CHUNK))
            if not part:
                raise ConnectionResetError("the server closed the connection")
            parts.append(part)
            lacking -= len(part)
        return b"".join(parts)

    def _take(self, answer: Answer, kind: int, body: bytes) -> bool:
        """One message. True: it was the last one."""
        if kind == DATA_ROW:
            answer.rows.append(body)
        elif kind == COMMAND_COMPLETE:
            answer.tags.append(body[:-1])
        elif kind == READY_FOR_QUERY:
            self.status = body[0]
            return True
        elif kind == ROW_DESCRIPTION:
            answer.columns = columns(body)
            answer.described = True
        elif kind == NO_DATA:
            answer.described = True
        elif kind == PORTAL_SUSPENDED:
            answer.suspended = True
        elif kind == ERROR_RESPONSE:
            if answer.fields is None:
                answer.fields = messages.error_fields(body)
            if messages.is_fatal(body):
                self._fatal(answer.fields)
                return True
        elif kind == PARAMETER_STATUS:
            name, value = messages.parameter_status(body)
            self.parameters[name] = value
            self.has_changed = True
        elif kind == NOTICE_RESPONSE:
            log.warning("%s", messages.error_fields(body).get("M", ""))
        elif kind == BACKEND_KEY_DATA:
            self._key = (messages.int32(body, 0), body[4:])
        elif kind == AUTHENTICATION and body != b"\0\0\0\0":
            raise failures.operational("the endpoint wants a password; this client has none")
        return False

    def _fatal(self, fields: dict[str, str]) -> None:
        """A login that was refused is an answer; later the connection is lost."""
        self.close()
        if self._key[1]:
            raise ConnectionResetError(fields.get("M", "the server closed the connection"))

    def close(self) -> None:
        """Close the socket without a word: the server rolls back. The parent's is not touched."""
        self._socket.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()

    def terminate(self) -> None:
        """Take leave."""
        with suppress(OSError):  # gone before we were
            self._socket.send(encode.TERMINATE)
        self.close()

    def cancel(self) -> None:
        """Ask for the running statement to be interrupted; from any thread, and without an answer.

        sqlite3.OperationalError: nobody listens there any more.
        """
        pid, secret = self._key
        with _connected(self.address) as asking:
            asking.sendall(encode.cancel_request(pid, secret))
            asking.settimeout(_LOGIN_TIMEOUT)
            asking.recv(1)  # it is closed when the request has been passed on


def address_of(host: str, port: int) -> str:
    """The unix socket's path: `host` is its directory."""
    return f"{host}/.s.PGSQL.{port}"


def user() -> str:
    """Who runs this process."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _connected(address: str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.connect(address)
    except PermissionError as error:
        found.close()
        raise failures.operational(
            f"unable to open database file: {user()} may not connect to {address}: txproxy's"
            " unix_socket_mode and unix_socket_group say who may, and the mode of the directory",
            failures.CANTOPEN,
        ) from error
    except OSError as error:
        found.close()
        raise failures.operational(
            f"unable to open database file: nobody listens on {address}"
            f" ({error.strerror or error});"
            ' start txproxy with this unix listener ("unix:DIRECTORY" in listen), or say which'
            " directory and port it has",
            failures.CANTOPEN,
        ) from error
    return found


def columns(body: bytes) -> tuple[Column, ...]:
    """The columns of a RowDescription; a declared type follows the name, behind byte 1."""
    found = []
    start = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        end = body.index(b"\0", start)
        name, _, declared = body[start:end].rpartition(b"\1")
        found.append(Column(name.decode("utf-8", "replace"), declared.decode("utf-8", "replace")))
        start = end + 19
    return tuple(found)
