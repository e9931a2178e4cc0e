"""One owner for each file: a lock on a file of its own beside it, never on the database."""

import errno
import fcntl
import os
from typing import Final

SUFFIX: Final = "-txproxy"


class Owner:
    """Holds the lock while it lives. BlockingIOError: another process does; OSError: no lock file
    can be made there.
    """

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path + SUFFIX, flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise
        # It may have been removed, with its database, before it was locked.
        if os.fstat(self._fd).st_nlink == 0:
            os.close(self._fd)
            raise BlockingIOError(errno.EWOULDBLOCK, "the database is being removed")

    def release(self) -> None:
        """The file stays: removing it could let two believe that they own it."""
        os.close(self._fd)
