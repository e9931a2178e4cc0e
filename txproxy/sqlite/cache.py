"""The statements of a connection by their texts, as many as cached_statements says."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from txproxy.sqlite.statements import Statement

_LONG_TEXT: Final = 1 << 20  # letters of a statement that is not kept


class Statements:
    """The last ones used; `forget` is called with each that leaves."""

    def __init__(self, most: int, forget: Callable[[Statement], None]) -> None:
        self._most = most
        self._forget = forget
        self._found: OrderedDict[str, Statement] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Statements {len(self._found)} of {self._most}>"

    def known(self, sql: str) -> Statement | None:
        """The statement of that text, if it is here."""
        found = self._found.get(sql)
        if found is not None:
            self._found.move_to_end(sql)
        return found

    def get(self, sql: str) -> Statement:
        """The statement of that text, from now on here."""
        found = self.known(sql)
        if found is not None:
            return found
        found = Statement(sql)
        if self._most and len(sql) < _LONG_TEXT:
            self._found[sql] = found
            found.is_kept = True
            if len(self._found) > self._most:
                _, oldest = self._found.popitem(last=False)
                self._forget(oldest)
        return found

    def clear(self) -> None:
        """Look at each of them anew."""
        for statement in self._found.values():
            self._forget(statement)
        self._found.clear()
