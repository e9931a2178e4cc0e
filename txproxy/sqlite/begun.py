"""The savepoints of a transaction that has begun here, of which the server may know nothing yet.

BEGIN takes no token, so nothing need be sent: what was said is kept until a statement goes to the
server, and goes in front of it then. Savepoints are kept as a stack of names; before the first
write ROLLBACK TO and RELEASE change nothing but that stack.

A transaction may have been opened by a SAVEPOINT: RELEASE of it is its COMMIT.
"""

import sqlite3

from txproxy.sqlite import failures
from txproxy.sqlite.statements import Kind, Statement


class Savepoints:
    """The savepoints that are open, and whether the first of them opened the transaction.

    RELEASE and ROLLBACK TO find the newest one of that name, as SQLite does.
    """

    def __init__(self, opening: Statement) -> None:
        self.outermost = opening.kind is Kind.SAVEPOINT
        self._open: list[Statement] = [opening] if self.outermost else []

    def __repr__(self) -> str:
        return f"<Savepoints {[one.savepoint for one in self._open]} outermost={self.outermost}>"

    def opening(self) -> list[str]:
        """What brings a transaction of the server's to here, behind its BEGIN."""
        return [one.sql for one in self._open]

    def apply(self, statement: Statement) -> bool:
        """A SAVEPOINT, RELEASE or ROLLBACK TO. True: the transaction is to be committed now.

        sqlite3.OperationalError: there is no such savepoint.
        """
        if statement.kind is Kind.SAVEPOINT:
            self._open.append(statement)
            return False
        index = self._index(statement.savepoint)
        if statement.kind is Kind.ROLLBACK_TO:
            del self._open[index + 1 :]
            return False
        del self._open[index:]
        return index == 0 and self.outermost

    def ends(self, statement: Statement) -> bool:
        """Whether this is the RELEASE of the savepoint that opened the transaction."""
        return (
            self.outermost
            and statement.kind is Kind.RELEASE
            and [one.savepoint for one in self._open].count(statement.savepoint) == 1
            and self._open[0].savepoint == statement.savepoint
        )

    def _index(self, name: str) -> int:
        for index in range(len(self._open) - 1, -1, -1):
            if self._open[index].savepoint == name:
                return index
        raise no_such_savepoint(name)


def no_such_savepoint(name: str) -> sqlite3.OperationalError:
    """SQLite's error for a RELEASE or ROLLBACK TO of what there is not."""
    return failures.operational(f"no such savepoint: {name}")
