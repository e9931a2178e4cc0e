"""A result: the rows that have come, and where the rest of them is."""

import sqlite3
from collections.abc import Callable
from typing import Any

from txproxy.sqlite import failures
from txproxy.sqlite.local import LocalRows
from txproxy.sqlite.session import NEXT_ROWS, Portal

Decode = Callable[[bytes], tuple[Any, ...]]


class Rows:
    """What a statement has brought, in order.

    The rows of the server are decoded when they are asked for, since text factories and converters
    may raise. `rest` has those that have not come yet.
    """

    def __init__(
        self,
        ready: list[Any],
        decode: Decode | None = None,
        rest: LocalRows | Portal | None = None,
    ) -> None:
        self._ready = ready
        self._next = 0
        self._decode = decode
        self._rest = rest
        self._error: sqlite3.Error | None = None

    def __repr__(self) -> str:
        return f"<Rows ready={len(self._ready) - self._next} rest={self._rest}>"

    def one(self) -> tuple[Any, ...] | None:
        """The next row."""
        if self._next >= len(self._ready) and not self._fill():
            return None
        row = self._ready[self._next]
        self._next += 1
        return row if self._decode is None else self._decode(row)

    def many(self, count: int) -> list[tuple[Any, ...]]:
        """The next ones, at most so many."""
        found: list[Any] = []
        while len(found) < count and (self._next < len(self._ready) or self._fill()):
            some = self._ready[self._next : self._next + count - len(found)]
            self._next += len(some)
            found += some
        return found if self._decode is None else [self._decode(row) for row in found]

    def _fill(self) -> bool:
        """Fetch more, all that were there being handed out."""
        self._ready, self._next = self._fetch(NEXT_ROWS), 0
        return bool(self._ready)

    def _fetch(self, count: int) -> list[Any]:
        rest = self._rest
        if rest is None:
            if self._error is not None:
                raise self._error
            return []
        if isinstance(rest, LocalRows):
            found = rest.fetch(count)
            if len(found) < count:
                self._rest = None
            return found
        answer = rest.fetch(count)
        if not answer.suspended:
            rest.abandon()
            self._rest = None
        if answer.fields is not None:
            raise failures.of(answer.fields)
        return answer.rows

    def keep(self) -> None:
        """Fetch the rest: what holds it is about to end. An error is for who asks for the rows."""
        if isinstance(self._rest, LocalRows):
            self._rest.keep()
            return
        try:
            while self._rest is not None:
                self._ready += self._fetch(NEXT_ROWS)
        except sqlite3.Error as error:
            self._rest = None
            self._error = error

    def close(self) -> None:
        """Nobody will read the rest."""
        if isinstance(self._rest, LocalRows):
            self._rest.close()
        elif self._rest is not None:
            self._rest.abandon()
        self._rest = None
        self._ready = []
        self._next = 0
