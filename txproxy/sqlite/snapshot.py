"""The reader that a begun transaction has to itself, and whether what it read still holds.

`PRAGMA data_version` is another number as soon as anybody else has committed; within a snapshot it
is the snapshot's. The server's token in hand, nobody commits: what has not changed by then holds.

Source: https://www.sqlite.org/pragma.html#pragma_data_version
"""

from collections.abc import Iterable

from txproxy.sqlite.asked import Asked
from txproxy.sqlite.local import Reader, Readers, Setting


class Snapshot:
    """One reader, in a transaction of its own while there are reads."""

    def __init__(self, readers: Readers, settings: Iterable[Setting]) -> None:
        self._readers = readers
        self._reader = readers.lease(settings)
        self._version = 0  # what it has read, if it has ended
        self.asked = Asked()

    def __repr__(self) -> str:
        return f"<Snapshot {self._reader} version={self._version}>"

    def read(self) -> Reader | None:
        """The reader, for a read. None: it had ended, and others have written since."""
        connection = self._reader.connection
        if not connection.in_transaction:
            connection.execute("BEGIN")
            if self._version and self.is_stale():
                connection.execute("COMMIT")
                return None
        return self._reader

    def end(self) -> None:
        """Remember what was read; unfinished results are read to their ends."""
        if self._reader.connection.in_transaction:
            for rows in list(self._reader.results):
                rows.keep()
            self._version = self._data_version()
            self._reader.connection.execute("COMMIT")

    def is_stale(self) -> bool:
        """Whether others have written since it ended, and what was read would be otherwise now."""
        if self._data_version() == self._version:
            return False
        return not self.asked.is_still_so(self._reader.connection)

    def release(self) -> None:
        """The transaction is over, or is the server's from here on."""
        if self._reader.connection.in_transaction:
            self._reader.connection.execute("COMMIT")
        self._readers.release(self._reader)

    def _data_version(self) -> int:
        found: int = self._reader.connection.execute("PRAGMA data_version").fetchone()[0]
        return found
