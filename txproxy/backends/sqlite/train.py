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
from txproxy.backends.sqlite.errors import Fields

_UNKNOWN: Final = Fields(
    "08007",
    apsw.SQLITE_IOERR_FSYNC,
    "SQLITE_IOERR_FSYNC",
    "the outcome is unknown: the file could not be synced",
)


class Train:
    """`deliver` is called in its thread with jobs that are durable, or have failed with that;
    `failed` if syncing has failed.
    """

    def __init__(
        self, path: str, deliver: Callable[[list[Job]], None], failed: Callable[[], None]
    ) -> None:
        self._path = path + "-wal"
        self._deliver = deliver
        self._failed = failed
        self._platform: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="train", daemon=True)
        self._thread.start()

    def board(self, jobs: list[Job]) -> None:
        """They have committed."""
        self._platform.put(jobs)

    def close(self) -> None:
        """Behind all that has boarded."""
        self._platform.put(None)

    def join(self) -> None:
        """Until it has closed."""
        self._thread.join()

    def _run(self) -> None:
        fd = -1
        while (jobs := self._platform.get()) is not None:
            with contextlib.suppress(Empty):
                while (more := self._platform.get_nowait()) is not None:
                    jobs = jobs + more
                self._platform.put(None)
            try:
                if fd < 0:
                    fd = os.open(self._path, os.O_RDWR)
                _sync(fd)
            except OSError:
                for job in jobs:
                    job.fail(_UNKNOWN)
                self._failed()
            self._deliver(jobs)
        if fd >= 0:
            os.close(fd)


def _sync(fd: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync does not reach the disk there
    if full is None:
        os.fdatasync(fd)
    else:
        fcntl.fcntl(fd, full)
