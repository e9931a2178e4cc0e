"""Who reads outside of writing transactions: readers of this process, or the server.

The server says at the start which file it holds, and may say so anew. `reads` is what was asked
for: "local", "server", or "auto": here where that is possible.
"""

import sqlite3
from collections.abc import Mapping
from typing import Literal

from txproxy.sqlite import greeting, place
from txproxy.sqlite.local import Readers, Setting

Reads = Literal["auto", "local", "server"]


class Reading:
    """Of one connection. `readers` is None while the server reads, and `objection` says why.

    `said` are the server's parameters.

    `settings` are those of every reader, today's and later ones, by what they set.
    """

    def __init__(
        self, database: str, reads: Reads, timeout: float, detect_types: int, cached: int
    ) -> None:
        if reads not in {"auto", "local", "server"}:
            raise ValueError('reads must be "auto", "local" or "server"')
        self.readers: Readers | None = None
        self.objection = 'reads="server"'
        self.said: Mapping[str, str] = {}
        self.settings: dict[tuple[object, ...], Setting] = {}
        self._database = database
        self._reads = reads
        self._timeout = timeout
        self._detect_types = detect_types
        self._cached = cached
        self._identity: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Reading {self._database} {self.readers or self.objection}>"

    def settle(self, said: Mapping[str, str]) -> None:
        """Decide, by the server's parameters. sqlite3.OperationalError: "local" cannot be."""
        self.said = said
        greeting.compare_versions(said)
        if self._reads == "server":
            return
        names = ("txproxy.file", "txproxy.file_id", "txproxy.journal_mode")
        identity = tuple(said.get(name, "") for name in names)
        if identity == self._identity:
            return
        self._identity = identity
        self.objection = place.objection(said)
        self.readers = None
        if not self.objection:
            path = said["txproxy.file"]
            self.readers = Readers(path, self._timeout, self._detect_types, self._cached)
        elif self._reads == "local":
            raise sqlite3.OperationalError(
                f"{self._database} cannot be read here: {self.objection}"
            )
        else:
            greeting.log_once(f"the server reads {self._database}: {self.objection}")

    def local(self, what: str) -> Readers:
        """The readers. sqlite3.NotSupportedError: there are none for what needs them."""
        if self.readers is None:
            raise sqlite3.NotSupportedError(
                f"{what} needs a reader in this process, and the server reads: {self.objection}"
            )
        return self.readers
