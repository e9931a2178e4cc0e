"""TXPROXY BACKUP: a consistent copy of the file, streamed to a client.

SQLite copies it, on a connection of its own, into a file beside it that has no name any more when
the first page is written. Only that one is opened by anybody but SQLite: see `opening`.
"""

import asyncio
import os
import re
import secrets
import threading
from collections.abc import Callable
from typing import Final

import apsw

from txproxy.wire import encode

COMMAND: Final = re.compile(rb"\s*TXPROXY\s+BACKUP\s*;?\s*", re.IGNORECASE)

COPY_OUT: Final = encode.message(b"H", b"\1\0\0")
"""CopyOutResponse: binary, of no columns."""
COPY_DONE: Final = b"c\0\0\0\4"

_CHUNK: Final = 1 << 18


class Backup:
    """`deliver` is called in the loop's thread: with each chunk, b"" at the end, or what went
    wrong. After a chunk comes nothing more before `go_on`.
    """

    def __init__(self, path: str, deliver: Callable[[bytes | Exception], None]) -> None:
        self._path = path
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Semaphore(0)
        self._is_stopped = False
        threading.Thread(target=self._run, name="backup", daemon=True).start()

    def go_on(self) -> None:
        """The next chunk, please."""
        self._wanted.release()

    def stop(self) -> None:
        """Nobody wants it any more."""
        self._is_stopped = True
        self._wanted.release()

    def _run(self) -> None:
        try:
            fd = _copy(self._path)
            try:
                while data := os.read(fd, _CHUNK):
                    self._tell(data)
                    self._wanted.acquire()
                    if self._is_stopped:
                        return
            finally:
                os.close(fd)
            self._tell(b"")
        except Exception as error:  # noqa: BLE001 - it is told to the client
            self._tell(error)

    def _tell(self, what: bytes | Exception) -> None:
        self._loop.call_soon_threadsafe(self._deliver, what)


def _copy(path: str) -> int:
    """A descriptor of the copy, at its beginning."""
    name = f"{path}-txproxy-{secrets.token_hex(8)}"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        copy(path, name, is_nameless=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def copy(path: str, name: str, *, is_nameless: bool = False) -> None:
    """Copy the file into another one, which is empty and nobody's; is_nameless: which has no name
    any more before the first page is written. apsw.Error.
    """
    target = apsw.Connection(name)
    try:
        target.execute("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        if is_nameless:
            os.unlink(name)  # noqa: PTH108 - it is beside the file, and never more than a name
        source = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            source.set_busy_timeout(_PATIENCE)
            with target.backup("main", source, "main") as backup:
                while not backup.done:
                    backup.step(-1)
        finally:
            source.close()
    finally:
        target.close()


_PATIENCE: Final = 10_000  # milliseconds for a lock, off WAL
