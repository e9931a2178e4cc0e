"""Where a statement runs, and in which transaction: the heart of the client.

The cases, in the order of the code:

1. The transaction has failed here (stale, or its connection lost): nothing runs until it is ended,
   so that its rest never runs in autocommit.
2. BEGIN, COMMIT, ROLLBACK and savepoints. BEGIN is not sent but remembered: the transaction is
   *begun*, and takes no token.
3. A read, while the server is in no transaction of ours, goes to a reader here; inside a begun
   transaction to one reader's snapshot. What that cannot do goes to the server.
4. All else goes to the server, and from then on the transaction with it. A begun transaction sends
   its BEGIN in the same send. If it has read here, its snapshot ends first (never wait with an open
   one), BEGIN IMMEDIATE waits for the token, and `PRAGMA data_version` tells whether anybody has
   committed in between. If so, and its reads would give other rows now (asked.py):
   SQLITE_BUSY_SNAPSHOT, with what was just done rolled back.
"""

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from time import thread_time
from typing import Any, Final, NoReturn
from weakref import WeakSet

from txproxy.sqlite import adapters, failures
from txproxy.sqlite.begun import Savepoints, no_such_savepoint
from txproxy.sqlite.cache import Statements
from txproxy.sqlite.changes import Changes
from txproxy.sqlite.local import Reader, Readers
from txproxy.sqlite.protocol import Answer
from txproxy.sqlite.reading import Reading
from txproxy.sqlite.rows import Rows
from txproxy.sqlite.session import FIRST_ROWS, Session
from txproxy.sqlite.snapshot import Snapshot
from txproxy.sqlite.statements import Kind, Statement
from txproxy.wire.codes import IDLE, IN_FAILED

_ELSEWHERE: Final = frozenset((1, 8, 10, 14, 26))
"""ERROR, READONLY, IOERR, CANTOPEN, NOTADB of a reader here: let the server say what there is."""

_MAY_WRITE: Final = (Kind.WRITE, Kind.OTHER)
_BEGIN: Final = Statement("BEGIN")
_LOST: Final = "the connection was lost, and with it the transaction"
_STALE: Final = "the transaction was rolled back: others had written since it read"


class Outcome:
    """What a statement did. `description` is None if it has no columns; `changes` -1 if unknown."""

    __slots__ = ("changes", "description", "rows")

    def __init__(
        self, description: adapters.Description | None, rows: Rows | None, changes: int
    ) -> None:
        self.description = description
        self.rows = rows
        self.changes = changes


class Engine:
    """One connection's statements and transaction.

    `reading` has the readers here, `changes` what lastrowid and its kin say.
    """

    def __init__(
        self, session: Session, reading: Reading, detect_types: int, cached_statements: int
    ) -> None:
        self._session = session
        self._detect_types = detect_types
        self.statements = Statements(cached_statements, session.forget)
        self.reading = reading
        self._open: WeakSet[Rows] = WeakSet()  # those with rows on the server
        self._begun = ""  # the BEGIN that is not sent yet
        self._savepoints: Savepoints | None = None
        self._snapshot: Snapshot | None = None  # what this transaction has read here
        self._has_written = False  # the server's transaction, as far as is known
        self._failed = ""  # why nothing runs until the transaction is ended
        self.functions: set[str] = set()  # that readers know, lower-case
        self.trace: Callable[[str], object] | None = None  # of what goes to the server
        self.text_factory: Callable[[bytes], Any] = str
        self.changes = Changes()

    def __repr__(self) -> str:
        return f"<Engine begun={self._begun!r} failed={self._failed!r} {self._session}>"

    @property
    def in_transaction(self) -> bool:
        """Whether one is open, begun here or on the server, failed or not."""
        return bool(self._begun or self._failed) or self._session.status != IDLE

    def refresh(self) -> None:
        """After a fork the transaction, and the readers, are the parent's."""
        if self._session.was_inherited():
            self._snapshot = None
            self._over()
            if self.reading.readers is not None:
                self.reading.readers.leave()

    # One statement

    def run(self, statement: Statement, parameters: Any) -> Outcome:
        """Run it. sqlite3.Error and its kin as `sqlite3` raises them."""
        kind = statement.kind
        if self._failed and kind is not Kind.COMMIT and kind is not Kind.ROLLBACK:
            raise failures.operational(self._failed, failures.ABORT_ROLLBACK)
        if kind is Kind.WRITE or kind is Kind.OTHER:
            return self._remote(statement, parameters)
        if kind is Kind.READ:
            if self.reading.readers is None or (not self._begun and self._session.status != IDLE):
                return self._remote(statement, parameters)
            return self._read(self.reading.readers, statement, parameters)
        return self._control(statement, parameters)

    def _read(self, readers: Readers, statement: Statement, parameters: Any) -> Outcome:
        try:
            reader = (
                self._reader(readers)
                if self._begun
                else readers.open(self.reading.settings.values())
            )
            if reader.connection.text_factory is not self.text_factory:
                reader.connection.text_factory = self.text_factory
            began = thread_time() if self._snapshot is not None else 0.0
            cursor = reader.connection.execute(statement.sql, parameters)
            found, rest = readers.rows(reader, cursor)
            if self._snapshot is not None:
                took = thread_time() - began
                self._snapshot.asked.note(statement.sql, parameters, None if rest else found, took)
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0)  # 0: not SQLite's error but Python's
            if code & 0xFF not in _ELSEWHERE or str(error).startswith("user-defined"):
                if self._snapshot is not None:
                    self._snapshot.asked.note(statement.sql, parameters, None, 0.0)
                raise
            return self._read_elsewhere(statement, parameters, error)
        return Outcome(cursor.description, Rows(found, rest=rest), -1)

    def _read_elsewhere(
        self, statement: Statement, parameters: Any, error: sqlite3.OperationalError
    ) -> Outcome:
        """Another SQLite may know what this one does not, or it is no read at all."""
        try:
            return self._remote(statement, parameters)
        except sqlite3.OperationalError as other:
            if failures.is_unknown_function(other, self.functions):
                raise error from None
            raise

    def _remote(self, statement: Statement, parameters: Any) -> Outcome:
        bound = adapters.bound(statement.names, parameters)
        if self.trace is not None:
            self.trace(statement.sql)
        opening = [] if statement.is_apart else self._opening()
        self._keep_what_ends(statement)
        status = self._session.status
        rows = FIRST_ROWS if statement.kind is Kind.READ else 0
        try:
            answer, portal = self._session.run(statement, bound, before=opening, rows=rows)
        except BaseException:
            self._lost(status)
            raise
        if opening:
            self._arrived(answer, len(opening))
        self._raise(answer)
        self._has_written |= statement.kind is Kind.WRITE
        changes = self.changes.count(answer.tags[len(opening) :])
        if answer.columns is None:
            return Outcome(None, None, changes)
        by_column = adapters.converters(answer.columns, self._detect_types)
        decode = partial(
            adapters.row,
            columns=answer.columns,
            by_column=by_column,
            text_factory=self.text_factory,
        )
        found = Rows(answer.rows, decode, portal)
        if portal is not None:
            self._open.add(found)
        names = [adapters.name_of(column, self._detect_types) for column in answer.columns]
        return Outcome(adapters.description_of(names), found, changes)

    def run_many(self, statement: Statement, parameters: Iterable[Any]) -> int:
        """Run it with each of these; how many rows were changed."""
        changes = 0
        for batch in adapters.batches(statement.names, parameters):
            opening = self._opening()
            self._keep_what_ends(statement)
            status = self._session.status
            try:
                answer = self._session.run_many(statement, batch, before=opening)
            except BaseException:
                self._lost(status)
                raise
            if opening:
                self._arrived(answer, len(opening))
            for tag in answer.tags[len(opening) :]:
                changes += max(0, self.changes.count([tag]))
            self._raise(answer)
            self._has_written |= statement.kind is Kind.WRITE
        return changes

    def script(self, sql: str) -> None:
        """Run several statements, each by itself, in the transaction that is open."""
        if self._failed:
            raise failures.operational(self._failed, failures.ABORT_ROLLBACK)
        if self._begun:
            self._enter()
        self._keep_open()
        status = self._session.status
        try:
            answer = self._session.script(sql)
        except BaseException:
            self._lost(status)
            raise
        self.changes.count(answer.tags)
        self._raise(answer)

    def _raise(self, answer: Answer) -> None:
        if answer.fields is None and (self._savepoints is None or self._session.status != IDLE):
            return
        if self._session.status == IN_FAILED and failures.is_constraint(answer.fields):
            # OR ROLLBACK, RAISE(ROLLBACK): it was asked for, and nobody expects a transaction.
            self._session.run(self.statements.get("ROLLBACK"))
        if self._session.status == IDLE and self._savepoints is not None and not self._begun:
            self._over()  # SQLite has ended it
        if answer.fields is not None:
            raise failures.of(answer.fields, self.functions)

    # The transaction

    def begin(self, mode: str) -> None:
        """Python's implicit BEGIN: it goes out with the statement that follows."""
        self._begun = f"BEGIN {mode}"
        if self.trace is not None:
            self.trace(self._begun)
        self._savepoints = Savepoints(_BEGIN)

    def _control(self, statement: Statement, parameters: Any) -> Outcome:
        adapters.bound(statement.names, parameters)
        kind = statement.kind
        if kind is Kind.BEGIN or kind is Kind.BEGIN_NOW:
            if self.in_transaction:
                raise failures.operational("cannot start a transaction within a transaction")
            if kind is Kind.BEGIN:
                self.begin("")
            else:
                self._remote(statement, ())
        elif kind is Kind.COMMIT:
            if not self.in_transaction:
                raise failures.operational("cannot commit - no transaction is active")
            self.commit()
        elif kind is Kind.ROLLBACK:
            if not self.in_transaction:
                raise failures.operational("cannot rollback - no transaction is active")
            self.rollback()
        else:
            self._savepoint(statement)
        return Outcome(None, None, -1)

    def _savepoint(self, statement: Statement) -> None:
        if not self.in_transaction:
            if statement.kind is not Kind.SAVEPOINT:
                raise no_such_savepoint(statement.savepoint)
            self._begun, self._savepoints = "BEGIN", Savepoints(statement)
        elif self._begun and self._savepoints is not None:
            if self._savepoints.apply(statement):
                self.commit()
        elif self._savepoints is not None and self._savepoints.ends(statement):
            self.commit()
        else:
            self._remote(statement, ())
            if self._savepoints is not None:
                self._savepoints.apply(statement)

    def commit(self) -> None:
        """COMMIT of the transaction, if there is one.

        sqlite3.OperationalError: it had failed (516), or its outcome is not known. After another
        error of SQLite's, such as a violated foreign key, it may be open still.
        """
        if self._failed:
            reason = self._failed
            self._over()
            raise failures.operational(reason, failures.ABORT_ROLLBACK)
        if self._session.status != IDLE:
            self._keep_open()
            if self.trace is not None:
                self.trace("COMMIT")
            answer, _ = self._session.run(self.statements.get("COMMIT"))
            if self._session.status == IDLE:
                self._over()
            if answer.fields is not None:
                raise failures.of(answer.fields)
        self._over()

    def rollback(self) -> None:
        """ROLLBACK of the transaction, if there is one; also of one that was lost."""
        if self._session.status != IDLE:
            self._keep_open()
            try:
                answer, _ = self._session.run(self.statements.get("ROLLBACK"))
            except sqlite3.OperationalError:
                self._over()  # the server rolls back what it lost
                return
            if answer.fields is not None:
                raise failures.of(answer.fields)
        self._over()

    def _over(self) -> None:
        self._begun = ""
        self._savepoints = None
        self._failed = ""
        if self._snapshot is not None:
            self._snapshot.release()
            self._snapshot = None

    def _keep_open(self) -> None:
        """COMMIT and ROLLBACK end the portals; what is left of them is fetched first."""
        for rows in list(self._open):
            rows.keep()
        self._open.clear()

    def _keep_what_ends(self, statement: Statement) -> None:
        """The server's snapshot ends when the transaction begins to write, with all portals."""
        if self._session.status == IDLE:
            self._has_written = False
        elif not self._has_written and statement.kind in _MAY_WRITE:
            self._keep_open()

    # From here to the server

    def _reader(self, readers: Readers) -> Reader:
        """The reader of the begun transaction, in its snapshot."""
        if self._snapshot is None:
            self._snapshot = Snapshot(readers, self.reading.settings.values())
        return self._snapshot.read() or self._stale()

    def _opening(self) -> list[str]:
        """What goes to the server in front of the next statement; the snapshot ends."""
        if not self._begun:
            return []
        begin = self._begun
        if self._snapshot is not None:
            self._snapshot.end()
            begin = "BEGIN IMMEDIATE"
        savepoints = self._savepoints.opening() if self._savepoints is not None else []
        return [begin, *savepoints]

    def _enter(self) -> None:
        """Send the BEGIN by itself."""
        opening = self._opening()
        *before, last = opening
        answer, _ = self._session.run(Statement(last), before=before)
        self._arrived(answer, len(opening))
        self._raise(answer)

    def _arrived(self, answer: Answer, opening: int) -> None:
        """The server has answered to a BEGIN. It failed: the transaction stays as it was here."""
        if len(answer.tags) < opening:
            if self._begun not in {"BEGIN", "BEGIN ", "BEGIN DEFERRED"}:
                self._over()  # as after a BEGIN IMMEDIATE that said "database is locked"
            return
        self._begun = ""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            return
        is_stale = snapshot.is_stale()
        snapshot.release()
        if is_stale:
            if self._session.status != IDLE:
                self._session.run(self.statements.get("ROLLBACK"))
            self._stale()

    def _stale(self) -> NoReturn:
        self._over()
        self._failed = _STALE
        raise failures.operational("database is locked", failures.BUSY_SNAPSHOT)

    def _lost(self, status: int) -> None:
        """After whatever was raised: with the connection, a transaction on the server is gone.

        One that was only begun here can begin again: what was sent with its BEGIN is undone.
        """
        if status != IDLE and self._session.status == IDLE:
            self._over()
            self._failed = _LOST

    # Its end

    def close(self) -> None:
        """Leave the server, which rolls back, and close the readers."""
        self.refresh()
        self._open.clear()
        if self._session.status != IDLE:
            with suppress(sqlite3.Error):  # and wait for it: who comes next is not to meet it
                self.rollback()
        self._session.close()
        if self.reading.readers is not None:
            self.reading.readers.close()

    def interrupt(self) -> None:
        """Interrupt what runs, here and there; from any thread."""
        if self.reading.readers is not None:
            self.reading.readers.interrupt()
        self._session.cancel()
