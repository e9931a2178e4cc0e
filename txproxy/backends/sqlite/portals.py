"""The portals of one session whose cursors are open."""

from txproxy.backends.sqlite.calls import SUSPENDED, Job, Portal
from txproxy.backends.sqlite.file import File
from txproxy.backends.sqlite.reader import Reader


class OpenPortals:
    """A cursor is closed in the thread that it belongs to."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._portals: set[Portal] = set()

    def __bool__(self) -> bool:
        return bool(self._portals)

    def __contains__(self, portal: Portal) -> bool:
        return portal in self._portals

    def forget_snapshot(self) -> None:
        """A transaction's snapshot ends, and the cursors in it."""
        self._portals = {portal for portal in self._portals if portal.reader is not None}

    def note(self, job: Job) -> None:
        """Some of its calls may have been suspended."""
        for call in job.calls:
            if call.outcome == SUSPENDED and call.failure is None:
                self._portals.add(call.portal)

    def goes_on(self, portal: Portal) -> None:
        """It is run again."""
        self._portals.discard(portal)

    def drop(self, portal: Portal, *, on_writer: bool) -> None:
        """Close one, wherever it is; nothing if it is not open.

        One of a transaction's snapshot is closed with that.
        """
        if portal not in self._portals:
            return
        self._portals.remove(portal)
        if isinstance(portal.reader, Reader):
            self._file.release(portal.reader, is_clean=False)
        elif on_writer:
            self._file.writer.do(lambda _: portal.close())
        portal.reader = None

    def drop_all(self, *, on_writer: bool) -> None:
        """Close all of them."""
        for portal in list(self._portals):
            self.drop(portal, on_writer=on_writer)
