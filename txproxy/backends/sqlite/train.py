"""The commit train: commits that wait to be durable, synced together.

With `commit_train` the writer commits without waiting for the disk, gives the token away, and what
was committed boards the train: one fdatasync of the WAL for all that are there, then they are
answered. Others may read a commit before it is durable, which is why it is an option. WAL only.

The WAL carries no lock of SQLite's, so a descriptor of our own harms nothing.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

import apsw

from txproxy.backends.sqlite.calls import Job
from txproxy.backends.sqlite.errors import Fields, SqliteError

_CHUNK: Final = 1 << 20

_UNKNOWN: Final = Fields(
    "08007",
    apsw.SQLITE_IOERR_FSYNC,
    "SQLITE_IOERR_FSYNC",
    "the outcome is unknown: the file could not be synced",
)


class Train:
    """`deliver` is called in its thread with jobs that are durable, or have failed with that."""

    def __init__(self, path: str, deliver: Callable[[list[Job]], None]) -> None:
        self._path = path + "-wal"
        self._deliver = deliver
        self._platform: SimpleQueue[list[Job] | None] = SimpleQueue()
        self.is_broken = False  # a sync has failed: nothing is durable until `repair`
        self._thread = threading.Thread(target=self._run, name="train", daemon=True)
        self._thread.start()

    def board(self, jobs: list[Job]) -> None:
        """They have committed."""
        self._platform.put(jobs)

    def reopen(self) -> None:
        """What boards from now on may have committed into another file of that name."""
        self._platform.put([])

    def repair(self) -> None:
        """Make the WAL durable, while nobody else writes. SqliteError: it still cannot be.

        What a sync could not write the kernel does not write again, and the next sync says that
        all is well: so it is written here once more, as it is.
        """
        try:
            fd = os.open(self._path, os.O_RDWR)
            try:
                at = 0
                while data := os.pread(fd, _CHUNK, at):
                    at += os.pwrite(fd, data, at)
                _sync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            message = f"the file cannot be synced: {error.strerror}"
            raise SqliteError(message, apsw.SQLITE_IOERR_FSYNC) from error
        self.is_broken = False

    def close(self) -> None:
        """Behind all that has boarded."""
        self._platform.put(None)

    def join(self) -> None:
        """Until it has closed."""
        self._thread.join()

    def _run(self) -> None:
        fd = -1
        while (jobs := self._platform.get()) is not None:
            after: list[Job] | None = jobs
            with contextlib.suppress(Empty):
                while jobs and (after := self._platform.get_nowait()):
                    jobs = jobs + after
            if jobs:
                fd = self._depart(fd, jobs)
            if not after:  # which is where the journey of these ends
                if fd >= 0:
                    os.close(fd)
                fd = -1
                if after is None:
                    return

    def _depart(self, fd: int, jobs: list[Job]) -> int:
        try:
            if self.is_broken:
                raise OSError
            if fd < 0:
                fd = os.open(self._path, os.O_RDWR)
            _sync(fd)
        except OSError:
            self.is_broken = True
            for job in jobs:
                job.fail(_UNKNOWN)
        self._deliver(jobs)
        return fd


def _sync(fd: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync does not reach the disk there
    if full is None:
        os.fdatasync(fd)
    else:
        fcntl.fcntl(fd, full)
