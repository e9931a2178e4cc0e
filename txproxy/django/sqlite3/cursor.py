"""Cursors that take Django's placeholders, as its own do."""

from collections.abc import Iterable, Mapping
from itertools import tee
from typing import Any, Final, Self

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

from txproxy.django.sqlite3.operations import FOR_UPDATE
from txproxy.sqlite import Cursor

_AT_ONCE: Final = 50  # milliseconds: what to ask whether anybody waits takes
_NOTHING: Final = "PRAGMA optimize(0)"
"""A statement that takes the token, in a transaction, and does nothing with it."""


class CursorWrapper(Cursor):
    """`%s` and `%(name)s`; a select_for_update() takes the token before it reads."""

    convert_query = SQLiteCursorWrapper.convert_query

    def execute(self, query: str, params: Any = None, /) -> Self:
        if FOR_UPDATE in query:
            self._take_token(is_patient="UPDATE NOWAIT" not in query)
        if params is None:
            return super().execute(query)
        names = list(params) if isinstance(params, Mapping) else None
        return super().execute(self.convert_query(query, param_names=names), params)

    def executemany(self, query: str, param_list: Iterable[Any], /) -> Self:
        peekable, param_list = tee(iter(param_list))
        first = next(peekable, None)
        names = list(first) if first and isinstance(first, Mapping) else None
        return super().executemany(self.convert_query(query, param_names=names), param_list)

    def _take_token(self, *, is_patient: bool) -> None:
        """Until the transaction ends nobody else writes, and it does not become stale."""
        take = _NOTHING if self.connection.in_transaction else "BEGIN IMMEDIATE"
        if is_patient:
            super().execute(take)
            return
        before = super().execute("PRAGMA busy_timeout").fetchone()[0]
        super().execute(f"PRAGMA busy_timeout = {_AT_ONCE}")
        try:
            super().execute(take)
        finally:
            super().execute(f"PRAGMA busy_timeout = {before}")
