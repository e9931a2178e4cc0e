"""What a begun transaction has read, so that it can be asked again.

A transaction that has read, and is granted the token after others have committed, is not stale if
each of its reads would give the same rows now: then it is serialised now, as if it had begun here.

Of 8 processes that begin, read, insert and commit without a pause, one gets on without this, and
the others' writes fail; with it all of them get on.

Rows are compared by a digest of their values' `repr`, which tells 1 from 1.0 and from '1': so only
values of known types are kept. What cannot be kept makes the transaction one that cannot be asked
again.
"""

import datetime as dt
import decimal
import hashlib
import sqlite3
import uuid
from typing import Any, Final

MOST: Final = 64  # reads of one transaction
LONGEST: Final = 0.05  # seconds of CPU time for all of them, while nobody else could have written
_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_KNOWN: Final = _PLAIN | {
    dt.date,
    dt.datetime,
    dt.time,
    dt.timedelta,
    decimal.Decimal,
    uuid.UUID,
}

Row = Any


class Asked:
    """The reads of one transaction, in their order."""

    def __init__(self) -> None:
        self._reads: list[tuple[str, Any, bytes]] = []
        self._took = 0.0
        self._is_whole = True

    def note(self, sql: str, parameters: Any, rows: list[Row] | None, took: float) -> None:
        """A read, its rows, and its seconds of CPU time: what it takes again, however busy others
        are. None: there were more rows.
        """
        self._took += took
        kept = _copy(parameters)
        digest = None if rows is None else _digest(rows)
        if kept is None or digest is None or len(self._reads) == MOST or self._took > LONGEST:
            self._is_whole = False
            self._reads.clear()
        elif self._is_whole:
            self._reads.append((sql, kept, digest))

    def is_still_so(self, connection: sqlite3.Connection) -> bool:
        """Whether each of them gives the same rows now."""
        if not self._is_whole:
            return False
        try:
            return all(
                _digest(connection.execute(sql, parameters).fetchall()) == digest
                for sql, parameters, digest in self._reads
            )
        except sqlite3.Error:
            return False


def _copy(parameters: Any) -> Any:
    """Parameters that nobody changes meanwhile; None: they may be."""
    if type(parameters) in {tuple, list}:
        return tuple(parameters) if all(type(each) in _KNOWN for each in parameters) else None
    if type(parameters) is dict:
        known = all(type(each) in _KNOWN for each in parameters.values())
        return dict(parameters) if known else None
    return None


def _digest(rows: list[Row]) -> bytes | None:
    if any(type(value) not in _KNOWN for row in rows for value in row):
        return None
    return hashlib.blake2b(repr(rows).encode("utf-8", "surrogatepass"), digest_size=16).digest()
