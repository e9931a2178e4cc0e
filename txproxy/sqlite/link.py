"""What a connection and its cursors share: one engine, who may use it, and Python's own BEGINs.

`sqlite3` begins a transaction before INSERT, UPDATE, DELETE and REPLACE (isolation_level), or has
one open at all times (autocommit=False, since Python 3.12).

Source: https://docs.python.org/3/library/sqlite3.html#transaction-control
"""

import sqlite3
import threading
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from txproxy.sqlite import failures, forks
from txproxy.sqlite.engine import Engine, Outcome
from txproxy.sqlite.statements import Kind, Statement

LEGACY: Final = -1
"""sqlite3.LEGACY_TRANSACTION_CONTROL, which Python 3.11 does not have: isolation_level decides."""

LONGEST: Final = 1_000_000_000
"""SQLite's SQLITE_LIMIT_SQL_LENGTH, and SQLITE_LIMIT_LENGTH."""

MOST_VARIABLES: Final = 0xFFFF
"""Of one Bind."""

_get_ident: Final = threading.get_ident
_LEVELS: Final = ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE")


class NoLink:
    """In place of a link, until Connection.__init__ has run."""

    def __getattr__(self, name: str) -> NoReturn:
        raise sqlite3.ProgrammingError("Base Connection.__init__ not called.")


class Link:
    """One engine, used by one thread at a time, and only by the one that made it if `is_bound`."""

    def __init__(
        self, engine: Engine, *, is_bound: bool, isolation_level: str | None, autocommit: int
    ) -> None:
        self._engine: Engine | None = engine
        self._thread = threading.get_ident() if is_bound else 0
        self._isolation_level = checked_level(isolation_level)
        self._autocommit = autocommit
        self.lock = threading.RLock()
        self._forks = forks.count
        self.why_closed = "Cannot operate on a closed database."
        self.longest = LONGEST
        self.most_variables = MOST_VARIABLES
        if autocommit is False:
            engine.begin("")

    def engine(self) -> Engine:
        """The engine, ready for use.

        sqlite3.ProgrammingError: it is closed, or this is another thread.
        """
        engine = self._engine
        if engine is None or (self._thread and self._thread != _get_ident()):
            self.check_thread()
            raise sqlite3.ProgrammingError(self.why_closed)
        if self._forks != forks.count:
            self._forks = forks.count
            self.lock = threading.RLock()  # another thread of the parent's may have had it
            engine.refresh()
        if self._autocommit is False and not engine.in_transaction:
            engine.begin("")  # after a fork, or a transaction that SQLite has ended
        return engine

    def check_thread(self) -> None:
        """sqlite3.ProgrammingError: this is not the thread that may."""
        if self._thread and self._thread != threading.get_ident():
            raise sqlite3.ProgrammingError(
                "SQLite objects created in a thread can only be used in that same thread. The "
                f"object was created in thread id {self._thread} and this is thread id "
                f"{threading.get_ident()}."
            )

    def running(self) -> Engine:
        """The engine, for what may be called while it runs, and from any thread."""
        if self._engine is None:
            raise sqlite3.ProgrammingError(self.why_closed)
        return self._engine

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine is None

    def execute(self, sql: str, parameters: Any) -> Outcome:
        """One statement, and before it a BEGIN if Python wants one."""
        with self.lock:
            engine = self.engine()
            statement = self._statement(engine, sql)
            if statement.is_dml:
                self._begin_before(engine)
            return engine.run(statement, parameters)

    def execute_many(self, sql: str, parameters: Iterable[Any]) -> int:
        """One statement, once for each of these; how many rows it changed."""
        with self.lock:
            engine = self.engine()
            statement = self._statement(engine, sql)
            if statement.kind is Kind.READ:
                raise sqlite3.ProgrammingError("executemany() can only execute DML statements.")
            if statement.is_dml:
                self._begin_before(engine)
            return engine.run_many(statement, parameters)

    def execute_script(self, sql: str) -> None:
        """Several statements, after a COMMIT of what is open."""
        with self.lock:
            engine = self.engine()
            self._check(sql, ValueError("embedded null character"))
            if self._autocommit == LEGACY:
                engine.commit()
            engine.script(sql)

    def statement(self, sql: str) -> Statement:
        """What the text is. Errors as those of `execute`, if it is none that could be run."""
        return self._statement(self.engine(), sql)

    def limit(self, longest: int, most_variables: int) -> None:
        """Refuse longer statements, and those with more variables."""
        self.longest = longest
        self.most_variables = most_variables
        self.engine().statements.clear()

    def _statement(self, engine: Engine, sql: str) -> Statement:
        statement = engine.statements.known(sql)
        if statement is not None:
            return statement
        self._check(sql)
        statement = engine.statements.get(sql)
        if len(statement.names) > self.most_variables:
            raise failures.operational("too many SQL variables")
        return statement

    def _check(self, sql: str, null: Exception | None = None) -> None:
        if not isinstance(sql, str):
            raise TypeError(f"argument 1 must be str, not {type(sql).__name__}")
        if "\0" in sql:
            raise null or sqlite3.ProgrammingError("the query contains a null character")
        if len(sql) > self.longest:
            raise sqlite3.DataError("query string is too large")

    def _begin_before(self, engine: Engine) -> None:
        if (
            self._autocommit == LEGACY
            and self._isolation_level is not None
            and not engine.in_transaction
        ):
            engine.begin(self._isolation_level)

    def commit(self) -> None:
        """COMMIT; nothing where every statement commits itself."""
        with self.lock:
            engine = self.engine()
            if self._autocommit is not True:
                engine.commit()
            self._begin_next(engine)

    def rollback(self) -> None:
        """ROLLBACK; nothing where every statement commits itself."""
        with self.lock:
            engine = self.engine()
            if self._autocommit is not True:
                engine.rollback()
            self._begin_next(engine)

    def _begin_next(self, engine: Engine) -> None:
        if self._autocommit is False:
            engine.begin("")

    @property
    def isolation_level(self) -> str | None:
        """What BEGIN says, None: nothing begins by itself."""
        return self._isolation_level

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        level = checked_level(level)
        if level is None and self._autocommit == LEGACY:
            self.commit()
        self._isolation_level = level

    @property
    def autocommit(self) -> int:
        """LEGACY, True or False."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: int) -> None:
        checked_autocommit(value)
        with self.lock:
            engine = self.engine()
            if value is True and engine.in_transaction:
                engine.commit()
            self._autocommit = value
            if value is False and not engine.in_transaction:
                engine.begin("")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self.engine().in_transaction

    def close(self) -> None:
        """Close for good; what is not committed is rolled back."""
        self.check_thread()
        with self.lock:
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.close()


def checked_level(level: str | None) -> str | None:
    """In capitals. ValueError, TypeError: there is no such level."""
    if level is None:
        return None
    if not isinstance(level, str):
        raise TypeError("isolation_level must be str or None")
    level = str.upper(level)  # of a subclass too
    if level not in _LEVELS:
        raise ValueError(
            "isolation_level string must be '', 'DEFERRED', 'IMMEDIATE', or 'EXCLUSIVE'"
        )
    return level


def checked_autocommit(value: int) -> int:
    """ValueError: there is no such mode."""
    if not isinstance(value, bool) and value != LEGACY:
        raise ValueError("autocommit must be True, False, or sqlite3.LEGACY_TRANSACTION_CONTROL")
    return value
