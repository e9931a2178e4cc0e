"""What a session's statements do, one after the other: its transaction, its jobs, its readers.

`transaction.TABLE` says what is to be done with a statement; here it is done. What needs a thread
becomes a job. It is collected until `submit`, then away until `finished`.
"""

from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final

import apsw

from txproxy.backends.sqlite import calls, reaping, transaction
from txproxy.backends.sqlite.answering import answer
from txproxy.backends.sqlite.calls import DONE, MORE, SUSPENDED, Answers, Call, Job, Portal, Waits
from txproxy.backends.sqlite.errors import SqliteError
from txproxy.backends.sqlite.failures import INTERRUPTED
from txproxy.backends.sqlite.file import File
from txproxy.backends.sqlite.portals import OpenPortals
from txproxy.backends.sqlite.reader import Reader
from txproxy.backends.sqlite.statements import Kind, Statement
from txproxy.backends.sqlite.transaction import (
    BEGUN,
    FAILED,
    NONE,
    READING,
    WAITING,
    WRITING,
    Transaction,
)
from txproxy.backends.sqlite.wishes import Wishes
from txproxy.errors import TxproxyError
from txproxy.wire import encode
from txproxy.wire.codes import IDLE, IN_FAILED, IN_TRANSACTION

_ENDINGS: Final = (Kind.COMMIT, Kind.ROLLBACK)
# What may follow another statement of the same session to the writer, without coming back first.
_JOINING: Final = (Kind.READ, Kind.WRITE, Kind.DDL, Kind.COMMIT, Kind.ROLLBACK)


class Course:
    """`waits` is told when a job is finished."""

    def __init__(self, file: File, waits: Waits, parameters: dict[str, str]) -> None:
        self.file = file
        self._waits = waits
        self.tx = Transaction()
        self.wishes = Wishes(file.settings, parameters)
        self.answers = Answers()
        self.job: Job | None = None
        self.is_waiting = False
        self._is_gone = False
        self._stalled: Job | None = None  # until the client reads on
        self._before = NONE  # the state from which the token was asked for
        self._reader: Reader | None = None  # with the transaction's snapshot
        self._portals = OpenPortals(file)
        self._own_schema = 0  # changed by the transaction; no two are equal
        self.idle_since = monotonic()
        self.last: Statement | None = None
        self.statements = 0
        self.reaped = 0

    def __repr__(self) -> str:
        return f"<Course {self.tx!r}{' waiting' if self.is_waiting else ''}>"

    @property
    def status(self) -> int:
        """For ReadyForQuery."""
        if self.tx.state == NONE:
            return IDLE
        return IN_FAILED if self.tx.state == FAILED else IN_TRANSACTION

    @property
    def generation(self) -> int:
        """Of the schema that this session's statements see."""
        return -self._own_schema if self._own_schema else self.file.generation

    @property
    def has_own_schema(self) -> bool:
        """Whether its transaction has changed the schema: only the writer knows it."""
        return self._own_schema > 0

    @property
    def is_between(self) -> bool:
        """Whether nothing of it would be lost."""
        return self.tx.state == NONE and not self.is_waiting

    @property
    def waiting_since(self) -> float:
        """When it asked for the token, which it has not got yet; 0: it is not waiting for it."""
        job = self.job
        if job is None or job.kind not in {calls.UNIT, calls.ALONE, calls.HOLDING}:
            return 0.0
        return 0.0 if job.is_taken else job.since

    def inspect(self, sql: bytes, then: Callable[[Statement | Exception], None]) -> None:
        """What a statement is in the transaction's own schema."""
        self.is_waiting = True

        def found(statement: Statement | Exception) -> None:
            self.is_waiting = False
            if not self._is_gone:
                then(statement)

        self.file.inspect_on_writer(sql, found)

    # Statements.

    def run(self, call: Call) -> bytes | None:
        """The reply, or None: it is a job's, which may be joined until `submit`.

        Raises what the client is to be told.
        """
        self.statements += 1
        portal = call.portal
        if portal in self._portals:
            self._continue(call)
            return None
        statement = self.last = portal.statement
        if portal.is_lost or portal.rows is not None:  # which is about to be closed
            raise SqliteError(
                "the cursor was closed when its transaction began to write, or ended",
                apsw.SQLITE_ABORT_ROLLBACK,
                sqlstate="34000",
            )
        if portal.is_done and not statement.columns:
            raise TxproxyError("the portal has been run", sqlstate="55000")
        if portal.is_done:
            return encode.command_complete(b"SELECT 0")
        if statement.kind is Kind.EMPTY:
            return encode.EMPTY_QUERY
        kind = self.wishes.classify(statement, self.tx.state)
        if kind == transaction.WRITE and self.tx.state == NONE:
            self._unit(call)  # as the table says: this is the one that must be quick
            return None
        if kind is None:
            return answer(self, portal)
        action = self.tx.decide(kind)
        if action == transaction.SNAPSHOT and not self.file.settings.is_wal:
            action = transaction.ASK  # a snapshot would keep writers from committing
        return _DO[action](self, call)

    def _job(self, kind: int, call: Call) -> Job:
        wishes = self.wishes
        job = Job(self._waits, kind, [call], self.answers)
        job.pragmas = wishes.pragmas
        job.since = now = monotonic()
        if wishes.has_timeout:
            job.deadline = now + wishes.busy_timeout
        self.job = job
        return job

    def _lend(self, call: Call) -> None:
        self._job(calls.READING, call)

    def _unit(self, call: Call) -> None:
        alone = call.portal.statement.kind is not Kind.WRITE
        self._job(calls.ALONE if alone else calls.UNIT, call)

    def _begin_here(self, call: Call) -> bytes:
        statement = call.portal.statement
        self.tx.begin(BEGUN, monotonic(), statement.name)
        return _tag(statement)

    def _snapshot(self, call: Call) -> None:
        job = self._job(calls.READING, call)
        if self.tx.state == BEGUN:
            job.begins = True
            job.snapshot = self._reader  # which it has had already, before it waited in vain

    def _ask(self, call: Call) -> None:
        call.is_void = call.portal.statement.kind is Kind.BEGIN
        self._before = self.tx.state
        job = self._job(calls.HOLDING, call)
        job.savepoints = list(self.tx.savepoints)
        if self._reader is not None:
            # Whoever waits holds no snapshot: the WAL could not be begun anew.
            self._reader.reset()
            self._portals.forget_snapshot()
            job.snapshot = self._reader
        if self.tx.state == NONE:
            self.tx.begin(WAITING, monotonic())
        self.tx.state = WAITING

    def _pass(self, call: Call) -> None:
        statement = call.portal.statement
        if statement.kind is Kind.SAVEPOINT:
            self.tx.push(statement.name)
        elif statement.kind is Kind.RELEASE and self._release(statement):
            # It began with BEGIN on the writer, whatever its client has said.
            commit = replace(statement, text="COMMIT", kind=Kind.COMMIT)
            call.portal = Portal(commit, (), (), None)
        elif statement.kind is Kind.ROLLBACK_TO:
            self._roll_back_to(statement)
        self._job(calls.HELD, call)

    def _end_here(self, call: Call) -> bytes:
        self._over()
        return _tag(call.portal.statement)

    def _on_stack(self, call: Call) -> bytes:
        statement = call.portal.statement
        if statement.kind is Kind.SAVEPOINT:
            self.tx.push(statement.name)
        elif statement.kind is Kind.ROLLBACK_TO:
            self._roll_back_to(statement)
        elif self._release(statement):
            self._over()
        return _tag(statement)

    def _release(self, statement: Statement) -> bool:
        try:
            return self.tx.release(statement.name)
        except KeyError:
            raise _no_savepoint(statement) from None

    def _roll_back_to(self, statement: Statement) -> None:
        try:
            self.tx.roll_back_to(statement.name)
        except KeyError:
            raise _no_savepoint(statement) from None

    def _no_transaction(self, call: Call) -> bytes:
        verb = "commit" if call.portal.statement.kind is Kind.COMMIT else "rollback"
        raise SqliteError(f"cannot {verb} - no transaction is active", apsw.SQLITE_ERROR)

    def _nested(self, _: Call) -> bytes:
        raise SqliteError("cannot start a transaction within a transaction", apsw.SQLITE_ERROR)

    def _aborted(self, _: Call) -> bytes:
        why, self.tx.why = self.tx.why, ""
        raise SqliteError(
            why or "the transaction has failed, and waits for its ROLLBACK",
            apsw.SQLITE_ABORT_ROLLBACK,
            sqlstate="25P03" if why else "25P02",
        )

    def _forget(self, call: Call) -> bytes:
        self._over()
        return _tag(call.portal.statement)

    def _aborted_over(self, call: Call) -> bytes:
        try:
            return self._aborted(call)
        finally:
            self._over()

    def _over(self) -> None:
        """The transaction is over, for its client, too."""
        if self._own_schema:
            self._own_schema = 0
            self.file.schema_changed()
        self.tx.end()
        self.wishes.ended()
        self._drop_all()
        self._let_go()

    def _let_go(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self.file.release(reader, is_clean=False)

    # Jobs.

    def join(self, call: Call) -> bool:
        """Whether it may be run right behind those of the job that is being collected."""
        job = self.job
        assert job is not None
        portal = call.portal
        last = job.calls[-1]
        kind = portal.statement.kind
        if portal.rows is not None or portal.is_done or any(c.portal is portal for c in job.calls):
            return False
        if job.kind == calls.UNIT:
            fits = kind is Kind.WRITE and not self.wishes.pragmas.query_only
        elif job.kind == calls.READING:
            fits = kind is Kind.READ and not last.limit and not call.limit
        elif job.kind == calls.ALONE:
            fits = False
        else:
            before = last.portal.statement.kind
            fits = (
                kind in _JOINING and before not in _ENDINGS and not self.wishes.pragmas.query_only
            )
        if fits:
            self.statements += 1
            job.calls.append(call)
        return fits

    def submit(self) -> None:
        """The job that is being collected goes its way."""
        job = self.job
        if job is None or self.is_waiting:
            return
        self.is_waiting = True
        if job.kind == calls.READING:
            reader = job.calls[0].portal.reader or self._reader
            self.file.read(job, reader if isinstance(reader, Reader) else None)
        elif job.kind == calls.HELD:
            self.file.held(job)
        else:
            self.file.ask(job)

    def finished(self, job: Job) -> bool:
        """It is back; False: not for good, or nobody waits for it any more."""
        if job is not self.job:
            return False  # it was told before
        call = job.calls[job.position]
        if call.outcome == MORE and call.failure is None and not self._is_gone:
            self._stalled = job
            if self._waits.deliver(call):
                self.resume()
            return False
        self.job = None
        self.is_waiting = False
        self.idle_since = monotonic()
        if job.kind == calls.UNIT and not self._is_gone:
            self.wishes.ended()
            return True
        self._portals.note(job)
        if job.kind == calls.READING:
            self._read(job, call)
        elif job.kind in {calls.HOLDING, calls.HELD}:
            self._wrote(job, call)
        else:
            self.wishes.ended()
        if self._is_gone:
            self._clean_up()
        return not self._is_gone

    def resume(self) -> None:
        """The client reads again."""
        job, self._stalled = self._stalled, None
        if job is None:
            return
        if job.kind == calls.READING:
            reader = self.file.reader_of(job)
            self.file.read(job, reader)
        else:
            self.file.writer.give(job)

    def _read(self, job: Job, call: Call) -> None:
        reader = self.file.reader_of(job)
        if reader is None:
            return  # it has waited for one in vain
        portal = call.portal
        if self.tx.state in {BEGUN, READING}:
            self._reader = reader
            if call.failure is not None and call.failure.code == apsw.SQLITE_BUSY_SNAPSHOT:
                self.tx.fail("")
                self._let_go()
            elif not job.begins:
                self.tx.state = READING
        elif call.outcome == SUSPENDED and call.failure is None:
            portal.reader = reader
        else:
            portal.reader = None
            self.file.release(reader, is_clean=call.outcome == DONE)

    def _wrote(self, job: Job, call: Call) -> None:
        if job.kind == calls.HOLDING and not job.started:
            self._not_granted(call)
            return
        self._let_go()
        if job.in_transaction:
            self.tx.state = WRITING
            if job.changes_schema:
                self._own_schema = self.file.own_schema()
        elif call.portal.statement.kind in _ENDINGS:
            self._over()
        else:
            # A statement has ended it: INSERT OR ROLLBACK, RAISE(ROLLBACK), a full disk.
            self._own_schema = 0
            self.tx.fail("")
            self._drop_all()

    def _not_granted(self, call: Call) -> None:
        failure = call.failure
        assert failure is not None
        if failure.code == apsw.SQLITE_BUSY_SNAPSHOT:
            self.tx.fail("")
            self._let_go()
        elif self._before == NONE:
            self.tx.end()
        else:
            self.tx.state = BEGUN  # the reader stays: it knows what has been read

    def _continue(self, call: Call) -> None:
        portal = call.portal
        self._job(calls.HELD if self.tx.state == WRITING else calls.READING, call)
        call.outcome = DONE
        self._portals.goes_on(portal)

    def drop(self, portal: Portal) -> None:
        """Close a portal."""
        self._portals.drop(portal, on_writer=self.tx.state == WRITING)

    def _drop_all(self) -> None:
        self._portals.drop_all(on_writer=self.tx.state == WRITING)

    # Time, and ends.

    def tick(self, now: float) -> None:
        """Whether it has slept for too long."""
        if self.is_waiting:
            return
        state = self.tx.state
        if state == NONE and self._portals:
            state = READING  # an open cursor keeps a snapshot as a transaction does
        idle = now - self.idle_since
        why = reaping.verdict(self.file.settings, state, idle, len(self.file.tokens))
        if why and self.tx.state == NONE:
            self._drop_all()
        elif why:
            self.reap(why)

    def reap(self, why: str) -> None:
        """End the transaction; its client is told when it says something."""
        if self.is_waiting or self.tx.state not in {BEGUN, READING, WRITING}:
            return
        self.reaped += 1
        self.file.reaped += 1
        self._end_transaction()
        self.tx.fail(why)

    def _end_transaction(self) -> None:
        if self.tx.state == WRITING:
            self.file.roll_back()
        self._drop_all()
        self._own_schema = 0
        self._let_go()

    def cancel(self) -> None:
        """Stop what is running, or take it out of the queue."""
        job = self.job
        if job is None or not self.is_waiting:
            return
        if self.file.withdraw(job):
            job.fail(INTERRUPTED)
            self._waits.finished(job)
        else:
            self.file.interrupt(job)

    def leave(self) -> None:
        """The client is gone: with its transaction, and its place in the queue."""
        self._is_gone = True
        job = self.job
        if job is None or not self.is_waiting:
            self._clean_up()
        elif self._stalled is not None:
            self.finished(job)
        elif self.file.withdraw(job):
            job.fail(INTERRUPTED)
            self.finished(job)
        elif job.kind not in {calls.UNIT, calls.ALONE}:
            self.file.interrupt(job)

    def _clean_up(self) -> None:
        self.job = None
        self._end_transaction()
        self.tx.end()


def _tag(statement: Statement) -> bytes:
    return encode.command_complete(statement.verb.encode())


def _no_savepoint(statement: Statement) -> TxproxyError:
    return SqliteError(f"no such savepoint: {statement.name}", apsw.SQLITE_ERROR)


_DO: Final[dict[int, Callable[[Course, Call], bytes | None]]] = {
    transaction.LEND: Course._lend,  # noqa: SLF001 - its own
    transaction.UNIT: Course._unit,  # noqa: SLF001
    transaction.BEGIN_HERE: Course._begin_here,  # noqa: SLF001
    transaction.SNAPSHOT: Course._snapshot,  # noqa: SLF001
    transaction.ASK: Course._ask,  # noqa: SLF001
    transaction.PASS: Course._pass,  # noqa: SLF001
    transaction.END_HERE: Course._end_here,  # noqa: SLF001
    transaction.ON_STACK: Course._on_stack,  # noqa: SLF001
    transaction.NO_TRANSACTION: Course._no_transaction,  # noqa: SLF001
    transaction.NESTED: Course._nested,  # noqa: SLF001
    transaction.ABORTED: Course._aborted,  # noqa: SLF001
    transaction.FORGET: Course._forget,  # noqa: SLF001
    transaction.ABORTED_OVER: Course._aborted_over,  # noqa: SLF001
}
