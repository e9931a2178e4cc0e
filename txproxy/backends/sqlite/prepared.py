"""The prepared statements of one session, which are bounded."""

import re
from typing import Final

from txproxy.backends.sqlite.calls import Prepared
from txproxy.backends.sqlite.requests import Parse
from txproxy.errors import TxproxyError

_STATEMENTS: Final = 5000
_TEXTS: Final = 64 << 20  # bytes
_DEALLOCATE: Final = re.compile(
    rb"\s*DEALLOCATE\s+(?:PREPARE\s+)?(?:(ALL)|\"?([^\s;\"]+)\"?)\s*;?\s*", re.IGNORECASE
)


class PreparedStatements:
    """By name; the unnamed one is shared with other sessions that have parsed the same."""

    def __init__(self) -> None:
        self.unnamed: Prepared | None = None
        self._named: dict[bytes, Prepared] = {}
        self._texts = 0

    def add(self, message: Parse) -> None:
        """A named one. TxproxyError: the name is taken, or there are too many."""
        if message.name in self._named:
            raise TxproxyError("the prepared statement exists already", sqlstate="42P05")
        texts = self._texts + len(message.sql)
        if len(self._named) >= _STATEMENTS or texts > _TEXTS:
            raise TxproxyError("too many prepared statements", sqlstate="54000")
        self._texts = texts
        self._named[message.name] = Prepared(message.sql, message.oids)

    def forget(self, name: bytes) -> None:
        """Close, which is no error if there is none."""
        if not name:
            self.unnamed = None
        old = self._named.pop(name, None)
        if old is not None:
            self._texts -= len(old.sql)

    def find(self, name: bytes) -> Prepared:
        """TxproxyError: there is none."""
        found = self._named.get(name) if name else self.unnamed
        if found is None:
            raise TxproxyError("the prepared statement does not exist", sqlstate="26000")
        return found

    def deallocate(self, sql: bytes) -> bytes | None:
        """PostgreSQL's DEALLOCATE, which drivers send of themselves: its tag; else None."""
        found = _DEALLOCATE.fullmatch(sql)
        if found is None:
            return None
        if found[1]:
            self.clear()
            return b"DEALLOCATE ALL"
        self.forget(found[2])
        return b"DEALLOCATE"

    def clear(self) -> None:
        """All of them."""
        self.unnamed = None
        self._named.clear()
        self._texts = 0
