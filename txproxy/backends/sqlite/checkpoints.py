"""When what is in the WAL is copied into the file, and how.

SQLite's own rule (at every 1000 pages, in the commit that goes over) with two more: also when
nobody writes, and cut the file down when it has grown large and nobody reads. Nothing of it with
`checkpoint = "external"`: Litestream wants to see every page.
"""

from time import monotonic
from typing import Final

import apsw

from txproxy.backends.sqlite.opening import Settings

PAGES: Final = 1000
"""As many pages in the WAL make a checkpoint due."""

LARGE: Final = 4000
"""More than these are not left in a file that nobody uses."""


class Checkpoints:
    """Of one file; all of it belongs to the writer's thread, but for looking."""

    def __init__(self, settings: Settings) -> None:
        self._is_ours = settings.is_wal and settings.checkpoint == "auto"
        self._next = PAGES
        self.pages = 0  # in the WAL
        self.left = 0  # of these, not yet in the file
        self.file_pages = 0  # the most that there were: the WAL's file does not shrink by itself
        self.count = 0
        self.last = 0.0  # time.monotonic() of the last one; 0: none yet

    @property
    def is_due(self) -> bool:
        """Whether the next pause between two batches is to be used."""
        return self._is_ours and self.pages >= self._next

    @property
    def is_due_when_idle(self) -> bool:
        """Whether nobody's writing is reason enough."""
        return self._is_ours and (self.left > 0 or self.file_pages > LARGE)

    def committed(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        """SQLite's WAL hook."""
        if pages < self.pages:  # it has begun again from its start
            self._next = PAGES
        self.pages = self.left = pages
        self.file_pages = max(self.file_pages, pages)
        return apsw.SQLITE_OK

    def run(self, connection: apsw.Connection, *, nobody_reads: bool = False) -> None:
        """Copy what can be copied; with nobody_reads cut a large WAL down, too."""
        cut = nobody_reads and self.file_pages > LARGE
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if cut else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            pages, copied = connection.wal_checkpoint(mode=mode)
        except apsw.Error:
            # A foreign reader or writer is in the way, or the disk is full: the next one may do.
            self._next = self.pages + PAGES
            return
        self.count += 1
        self.last = monotonic()
        self.pages = max(pages, 0)
        self.left = max(pages - copied, 0)
        if cut and pages == 0:
            self.file_pages = 0
        self._next = self.pages + PAGES
