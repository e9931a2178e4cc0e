"""The SQLite process on a disk that is watched, and that fails when it is told to.

    python -m tests.sqlite.power_loss DIRECTORY FD

A VFS writes DIRECTORY/trace for `disk`, and does not sync for real. While DIRECTORY/fault is
there, calls that it names fail: one JSON object, see `Fault`. Checkpoints come early.
"""

import errno
import json
import os
import runpy
import sys
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from tests.sqlite import disk
from tests.sqlite.disk import Event
from txproxy.backends.sqlite import checkpoints

_WORDS: Final = {
    apsw.SQLITE_FULL: "database or disk is full",
    apsw.SQLITE_IOERR: "disk I/O error",
}


_pwrite: Final = os.pwrite


class Fault(NamedTuple):
    """Which calls fail: method, how the file's name ends, SQLite's result code, after how many."""

    call: str
    ending: str
    code: int
    skip: int = 0

    def put(self, directory: Path) -> None:
        """From now on; the process looks before each call."""
        hidden = directory / "fault.new"
        hidden.write_text(json.dumps(self))
        hidden.rename(directory / "fault")

    @staticmethod
    def end(directory: Path) -> None:
        """All is well again."""
        (directory / "fault").unlink()


class Watched(apsw.VFS):
    """The default VFS, watched."""

    def __init__(self, directory: Path) -> None:
        self.below = apsw.vfs_names()[0]
        super().__init__("watched", self.below, makedefault=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._trace = os.open(directory / "trace", flags, 0o600)
        self._fault = directory / "fault"
        self._skipped: dict[Fault, int] = {}
        self._syncs = count()

    def note(self, kind: bytes, path: str, offset: int = 0, data: bytes = b"") -> None:
        """One event into the trace, in one write: so threads need no lock."""
        os.write(self._trace, Event(kind, Path(path).name, offset, data).encode())

    def may_fail(self, call: str, path: str) -> None:
        """apsw.Error: it is to fail."""
        try:
            fault = Fault(*json.loads(self._fault.read_text()))
        except FileNotFoundError:
            self._skipped.clear()
            return
        if call != fault.call or not path.endswith(fault.ending):
            return
        skipped = self._skipped[fault] = self._skipped.get(fault, 0) + 1
        if skipped > fault.skip:
            raise _error(fault.code)

    def sync(self, path: str, ends: bytes) -> None:
        """apsw.Error: it is to fail."""
        number = next(self._syncs)
        self.note(disk.SYNC_BEGINS, path, number)
        try:
            self.may_fail("xSync", path)
        except apsw.Error:
            self.note(disk.SYNC_FAILS, path, number)
            raise
        self.note(ends, path, number)

    def fdatasync(self, fd: int) -> None:
        """Instead of os.fdatasync, which the commit train calls."""
        try:
            self.sync(os.readlink(f"/proc/self/fd/{fd}"), disk.DATA_SYNC_ENDS)  # noqa: PTH115
        except apsw.Error as error:
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Instead of os.pwrite."""
        written = _pwrite(fd, data, offset)
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        self.note(disk.WRITE, path, offset, data[:written])
        return written

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        if name is None:
            return apsw.VFSFile(
                self.below, name, flags
            )  # a temporary file, of which nothing is expected
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        file = _File(self, path, name, flags)
        self.note(disk.OPEN, path)
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.may_fail("xDelete", filename)
        super().xDelete(filename, False)
        self.note(disk.DELETE_FOR_SURE if syncdir else disk.DELETE, filename)


class _File(apsw.VFSFile):
    def __init__(self, vfs: Watched, path: str, name: Any, flags: list[int]) -> None:
        super().__init__(vfs.below, name, flags)
        self._vfs = vfs
        self._path = path

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        self._vfs.may_fail("xWrite", self._path)
        super().xWrite(data, offset)
        self._vfs.note(disk.WRITE, self._path, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._vfs.may_fail("xTruncate", self._path)
        super().xTruncate(newsize)
        self._vfs.note(disk.TRUNCATE, self._path, newsize)

    def xSync(self, _: int) -> None:  # noqa: N802
        self._vfs.sync(self._path, disk.SYNC_ENDS)


def _error(code: int) -> apsw.Error:
    """As apsw raises it where SQLite's own VFS returns the code, with SQLite's words."""
    raised: Any = type(apsw.exception_for(code))(_WORDS[code & 0xFF])
    raised.result, raised.extendedresult = code & 0xFF, code
    assert isinstance(raised, apsw.Error)
    return raised


if __name__ == "__main__":
    vars(checkpoints).update(PAGES=30, LARGE=60)
    watched = Watched(Path(sys.argv.pop(1)))
    os.fdatasync = watched.fdatasync  # type: ignore[assignment]
    os.pwrite = watched.pwrite  # type: ignore[assignment]
    runpy.run_module("txproxy.backends.sqlite", run_name="__main__", alter_sys=True)
