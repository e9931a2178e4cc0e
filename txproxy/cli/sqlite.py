"""`txproxy sqlite backup`: a copy of an SQLite file while it runs.

It is an ordinary client of the file: the SQLite process makes the copy, as its clients see the file
at one moment, and sends it over the socket.

Source: PostgreSQL 18, section 54.2.6 "COPY Operations".
"""

import contextlib
import getpass
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from txproxy.config import Config, UnixAddress
from txproxy.config.sqlite import find
from txproxy.errors import ConnectError, NoSuchDatabaseError, TxproxyError
from txproxy.wire import encode
from txproxy.wire.codes import COMMAND_COMPLETE, COPY_DATA, ERROR_RESPONSE
from txproxy.wire.messages import error_fields, int32

_COMMAND: Final = b"TXPROXY BACKUP"
_CONNECTING_TAKES: Final = 10.0  # seconds
_HEADER: Final = 5  # bytes of a message: its type and its length


def backup(config: Config, name: str, destination: Path) -> int:
    """Copy the file of this name to a new file that its owner alone can read.

    Returns the exit code, 0. Raises TxproxyError.
    """
    if find(config.sqlite, name) is None:
        raise NoSuchDatabaseError(f"no SQLite file {name} is configured in {config.path}")
    if destination.exists():
        raise TxproxyError(f"{destination} exists: it is not written over")
    partial = destination.with_name(destination.name + ".tmp")
    with _connected(config) as server:
        size = _write(_copied(server, name), partial, destination)
    print(f"{destination}: {size} bytes")
    return 0


def _write(pieces: Iterator[bytes], partial: Path, destination: Path) -> int:
    """Into the one file, which becomes the other when it is whole; returns its size."""
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise TxproxyError(
            f"{partial} exists", hint="Another backup writes it, or has left it: then remove it."
        ) from None
    except OSError as error:
        raise TxproxyError(f"cannot write {partial}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(descriptor)
            size = file.tell()
        partial.rename(destination)
    except OSError as error:
        raise TxproxyError(f"cannot write {destination}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return size


@contextlib.contextmanager
def _connected(config: Config) -> Iterator[socket.socket]:
    """The proxy's unix socket. Raises ConnectError."""
    [address, *_] = [each for each in config.listen if isinstance(each, UnixAddress)]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_CONNECTING_TAKES)
        try:
            sock.connect(address.path)
        except OSError as error:
            raise ConnectError(
                f"cannot connect to {address}: {error.strerror}",
                hint="Is the proxy running, with this configuration?",
            ) from error
        # The process makes the whole copy before it sends the first of it.
        sock.settimeout(None)
        yield sock


def _copied(server: socket.socket, name: str) -> Iterator[bytes]:
    """Log in, ask, and yield what comes: the file, piece by piece."""
    parameters = {"user": getpass.getuser(), "database": name, "application_name": "backup"}
    server.sendall(encode.startup(parameters) + encode.query(_COMMAND))
    kind = 0
    with server.makefile("rb") as answers:
        while kind != COMMAND_COMPLETE:
            kind, body = _message(answers)
            if kind == COPY_DATA:
                yield body
            elif kind == ERROR_RESPONSE:
                raise _error(name, error_fields(body))


def _error(name: str, fields: dict[str, str]) -> TxproxyError:
    said = f"{name}: {fields.get('M', 'refused')}"
    return TxproxyError(said, hint=fields.get("H", ""), sqlstate=fields.get("C"))


def _message(answers: IO[bytes]) -> tuple[int, bytes]:
    head = answers.read(_HEADER)
    body = answers.read(int32(head, 1) - 4) if len(head) == _HEADER else b""
    if len(head) < _HEADER or len(body) < int32(head, 1) - 4:
        raise ConnectError("the connection was closed before the copy was complete")
    return head[0], body
