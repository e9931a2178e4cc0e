"""The one connection that writes a file: what is done with it, by one thread at a time.

Units are run in one transaction, committed, and only then answered; whoever holds the token has
its statements run as they come. If the transaction of a batch vanishes (a statement may roll back
all of it) or one unit leaves a foreign key violated, nothing has been answered yet: each call is
run again by itself.
"""

from collections.abc import Callable
from time import monotonic, sleep
from typing import Final

import apsw

from txproxy.backends.sqlite import calls, opening
from txproxy.backends.sqlite.calls import MORE, Answers, Call, Job
from txproxy.backends.sqlite.checkpoints import Checkpoints
from txproxy.backends.sqlite.counters import Counters
from txproxy.backends.sqlite.errors import Fields, SqliteError, fields
from txproxy.backends.sqlite.failures import INTERRUPTED, REOPENED, STALE, UNKNOWN
from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.pragmas import DEFAULTS, SessionPragmas
from txproxy.backends.sqlite.running import CEILING, NO_CEILING, Cursors, run
from txproxy.backends.sqlite.security import Guard
from txproxy.backends.sqlite.statements import Kind
from txproxy.backends.sqlite.tokens import Tokens
from txproxy.backends.sqlite.train import Train

_NAP: Final = 0.001  # seconds between two looks at another process' lock, growing
_LONGEST_NAP: Final = 0.01
_COMMIT_PATIENCE: Final = 10.0  # seconds for readers to let a commit through, off WAL

_ENDINGS: Final = (Kind.COMMIT, Kind.ROLLBACK)
_FEW: Final = 20  # calls of a job
# None waits for the disk, but for a COMMIT without a train.
_SHORT: Final = frozenset(
    {Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT, Kind.RELEASE, Kind.ROLLBACK_TO}
)

Deliver = Callable[[list[Job]], None]


class Work:
    """`deliver` is called with jobs that were run, but for those that have committed something and
    go with the train, if there is one.
    """

    def __init__(
        self, path: str, settings: Settings, tokens: Tokens, deliver: Deliver, train: Train | None
    ) -> None:
        """Opens the file. Raises what that raises."""
        self._path = path
        self._settings = settings
        self._tokens = tokens
        self._deliver = deliver
        self._train = train
        self._commit = deliver if train is None else train.board
        self.syncs = train is None  # a commit waits for the disk
        self._needed: list[str] = []  # functions that came after the connection
        self._connection: apsw.Connection | None = None
        self._guard: Guard
        self._applied = DEFAULTS
        self._answers: Answers | None = None
        self._total = 0  # changes on the connection before the job
        self._cursors = Cursors()  # of the holder: others' changes must not be read
        self._batch: list[Job] = []
        self._is_lost = False  # its transaction, or it must not be committed
        self._until = 0.0  # how long to wait for another process' lock
        self.may_wait = True  # for it, at all
        self.moved = False
        self.counters = Counters()
        self.checkpoints = Checkpoints(settings)
        self.running: Job | None = None
        self.since = 0.0  # time.monotonic() when what is running began
        self.connect()

    # From the loop's thread.

    def need(self, settings: Settings, function: str) -> None:
        """These hold from now on; the function is new among them."""
        self._settings = settings
        self._needed.append(function)

    def interrupt(self, job: Job) -> None:
        """Stop the job's statement, if that is what is running."""
        if self.running is job and self._connection is not None:
            self._connection.interrupt()

    def is_short(self, jobs: list[Job]) -> bool:
        """Whether they are over in a moment, whatever is in the file, and wait for no disk: but for
        the commit of units.
        """
        train = self._train
        if not self._settings.is_wal or self._needed or self._connection is None:
            return False
        if train is not None and train.is_broken:
            return False
        return all(
            len(job.calls) <= _FEW and all(self._is_short(call, job.kind) for call in job.calls)
            for job in jobs
        )

    def _is_short(self, call: Call, kind: int) -> bool:
        statement = call.portal.statement
        if statement.kind is Kind.COMMIT and self.syncs:
            return False
        return kind != calls.ALONE and (
            statement.is_short or statement.kind in _SHORT or call.is_void
        )

    # The connection.

    def connect(self) -> apsw.Connection:
        """The connection. Raises what opening the file raises."""
        if self._connection is None:
            connection, guard = opening.connect(self._path, self._settings, writes=True)
            connection.set_busy_handler(self._is_worth_waiting)
            connection.set_wal_hook(self.checkpoints.committed)
            self._connection, self._guard = connection, guard
            self._applied = DEFAULTS
            self._answers = None
            self.moved = False
        return self._connection

    def disconnect(self) -> None:
        """The file is opened anew when it is needed next; what is open is rolled back."""
        if self._connection is not None:
            self._cursors.close()
            self._connection.close(force=True)
            self._connection = None
            self._tokens.release()
            if self._train is not None:
                self._train.reopen()

    def roll_back(self) -> None:
        """End the holder's transaction."""
        self._cursors.close()
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._applied = self._applied.ended()
        self._tokens.release()

    def checkpoint(self, nobody_reads: bool) -> None:
        """When nobody writes."""
        if self._connection is not None and self._tokens.holder is None:
            self._until = monotonic()
            self.checkpoints.run(self._connection, nobody_reads=nobody_reads)

    def checkpoint_if_due(self) -> None:
        """When nobody writes, and there is much to copy."""
        if self.checkpoints.is_due and self._connection and self._tokens.holder is None:
            self.checkpoints.run(self._connection)

    def broken(self, jobs: list[Job], why: Fields) -> None:
        """A bug: nobody is to wait for ever."""
        self.running = None
        self.disconnect()
        for job in jobs:
            job.in_transaction = False
            job.fail(why)
        self._deliver(jobs)

    def start(self, batch: list[Job]) -> bool:
        """Whose turn it is, units up to their commit. True: `finish` is to follow."""
        self._batch = batch
        kind = batch[0].kind
        try:
            connection = self._ready(batch)
            if kind != calls.ALONE:
                connection.execute("BEGIN IMMEDIATE")
        except apsw.BusyError as error:
            self._not_now(batch, fields(error))
            return False
        except Exception as error:  # noqa: BLE001 - also what functions of users raise
            self._tokens.release()
            self._fail(batch, fields(error))
            return False
        if kind == calls.HOLDING:
            self._grant(connection, batch[0])
        elif kind == calls.ALONE:
            self._alone(connection, batch)
        else:
            checks = batch[0].pragmas.foreign_keys
            self._is_lost = not all(self._unit(connection, job, checks) for job in batch)
            self.running = None
        return kind == calls.UNIT

    def _ready(self, batch: list[Job]) -> apsw.Connection:
        connection = self.connect()
        if self.moved or opening.has_moved(connection):
            self.moved = True
            raise SqliteError(
                "the file was replaced by another one, or removed: it is not written any more",
                apsw.SQLITE_READONLY_DBMOVED,
                sqlstate="58030",
                hint="RECONNECT opens what is there now",
            )
        while self._needed:  # here nothing is open, and SQLite lets functions be replaced
            opening.register(connection, self._needed.pop())
        self._until = min((job.deadline for job in batch if job.deadline), default=0.0)
        if self._train is not None and self._train.is_broken:
            self._repair(connection, self._train)
        wait = monotonic() - batch[0].since
        self.counters.longest_wait = max(self.counters.longest_wait, wait)
        self._apply(connection, batch[0].pragmas)
        return connection

    def _repair(self, connection: apsw.Connection, train: Train) -> None:
        connection.execute("BEGIN IMMEDIATE")  # no other process may write into the WAL meanwhile
        try:
            train.repair()
        finally:
            connection.execute("ROLLBACK")

    def _apply(self, connection: apsw.Connection, pragmas: SessionPragmas) -> None:
        if pragmas is not self._applied and pragmas != self._applied:
            pragmas.apply(connection, self._applied)
            self._applied = pragmas

    def _is_worth_waiting(self, naps: int) -> bool:
        """SQLite's busy handler: another process has the lock."""
        if not naps:
            self.counters.busy_foreign += 1
        if not self.may_wait or (self._until and monotonic() >= self._until):
            return False
        if any(job.cancelled for job in self._batch):
            return False
        sleep(min(_NAP * (naps + 1), _LONGEST_NAP))
        return True

    def _not_now(self, batch: list[Job], busy: Fields) -> None:
        """Another process kept the lock too long for some of the batch, or one was cancelled."""
        now = monotonic()
        late = [job for job in batch if job.cancelled or 0 < job.deadline <= now]
        self._tokens.put_back([job for job in batch if job not in late])
        for job in late:
            job.fail(INTERRUPTED if job.cancelled else busy)
        self._deliver(late)

    def _fail(self, batch: list[Job], why: Fields) -> None:
        for job in batch:
            job.restart()
            job.fail(why)
        self._deliver(batch)

    # Units.

    def finish(self, batch: list[Job]) -> None:
        """Commit them."""
        connection = self._connection
        if connection is None:  # opened anew since: nothing of it was done
            for job in batch:
                job.restart()
            self._tokens.put_back(batch)
            return
        if self._is_lost:
            self._again(connection, batch)
            return
        self._until = monotonic() + _COMMIT_PATIENCE
        try:
            connection.execute("COMMIT")
        except apsw.IOError:
            self._lost(batch)
            return
        except apsw.BusyError as error:
            connection.execute("ROLLBACK")
            self._fail(batch, fields(error))
            return
        except apsw.Error:
            self._again(connection, batch)
            return
        self._applied = self._applied.ended()
        self._count(len(batch))
        self._commit(batch)

    def _count(self, jobs: int) -> None:
        counters = self.counters
        counters.commits += 1
        counters.batches += 1
        counters.writes += jobs
        counters.batch_max = max(counters.batch_max, jobs)

    def _unit(self, connection: apsw.Connection, job: Job, checks: bool) -> bool:
        """False: the batch's transaction is lost, or must not be committed."""
        self._begin_job(connection, job)
        while True:
            call = job.calls[job.position]
            if job.cancelled:
                job.fail(INTERRUPTED)
            else:
                run(connection, call)
            if call.failure is not None:
                self._keep_answers(connection, job)
                return bool(connection.in_transaction)
            if checks and connection.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0]:
                return False
            if job.is_at_end:
                self._keep_answers(connection, job)
                return True
            job.position += 1

    def _begin_job(self, connection: apsw.Connection, job: Job) -> None:
        if job.answers is not self._answers:
            self._answers = job.answers
            connection.set_last_insert_rowid(job.answers.last_insert_rowid)
        self._total = connection.total_changes()
        self.since = monotonic()
        self.running = job

    def _keep_answers(self, connection: apsw.Connection, job: Job) -> None:
        answers = job.answers
        answers.last_insert_rowid = connection.last_insert_rowid()
        job.changes = connection.total_changes() - self._total
        answers.total_changes += job.changes
        if job.calls[job.position].portal.statement.kind is Kind.WRITE:
            answers.changes = connection.changes()

    def _again(self, connection: apsw.Connection, batch: list[Job]) -> None:
        """Each call by itself: nobody was told anything."""
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        self._applied = self._applied.ended()
        for job in batch:
            job.restart()
        self._alone(connection, batch)

    def _alone(self, connection: apsw.Connection, batch: list[Job]) -> None:
        for i, job in enumerate(batch):
            self._until = job.deadline
            self._apply(connection, job.pragmas)
            self._begin_job(connection, job)
            self._calls_alone(connection, job)
            self._keep_answers(connection, job)
            self.running = None
            self._applied = self._applied.ended()
            self._count(1)
            if job.failed and _is_io(job):
                self._lost(batch[i : i + 1])
                self._fail(batch[i + 1 :], REOPENED)
                batch = batch[:i]
                break
        self._commit(batch)

    def _calls_alone(self, connection: apsw.Connection, job: Job) -> None:
        while not job.cancelled:
            call = job.calls[job.position]
            if call.portal.statement.kind is Kind.VACUUM:
                with self._guard.vacuum():
                    run(connection, call)
            else:
                run(connection, call)
            if call.failure is not None or job.is_at_end:
                return
            job.position += 1
        job.fail(INTERRUPTED)

    # A transaction that holds the token.

    def _grant(self, connection: apsw.Connection, job: Job) -> None:
        if job.snapshot is not None and not job.snapshot.is_fresh():
            connection.execute("ROLLBACK")
            self._tokens.release()
            job.fail(STALE)
            self._deliver([job])
            return
        for name in job.savepoints:
            connection.execute('SAVEPOINT "' + name.replace('"', '""') + '"')
        job.started = True
        self.held(job)

    def held(self, job: Job) -> None:
        """A job of the holder's."""
        connection = self._connection
        if connection is None:  # opened anew since
            job.fail(REOPENED)
            self._deliver([job])
            return
        self._until = monotonic() + _COMMIT_PATIENCE
        self._begin_job(connection, job)
        committed = self._run_held(connection, job)
        self.running = None
        self._keep_answers(connection, job)
        job.in_transaction = connection.in_transaction
        self._applied = job.pragmas  # a PRAGMA among the calls may have changed them
        if not job.in_transaction:
            self._applied = self._applied.ended()
            self._cursors.close()
            self._tokens.release()
        if committed and job.failed and _is_io(job):
            self._lost([job])
        elif committed:
            self.counters.commits += 1
            self.counters.writes += 1
            self._commit([job])
        else:
            self._deliver([job])

    def _run_held(self, connection: apsw.Connection, job: Job) -> bool:
        """Whether a COMMIT was tried."""
        ceiling = CEILING if self._settings.is_wal else NO_CEILING
        while not job.cancelled:
            call = job.calls[job.position]
            kind = call.portal.statement.kind
            if kind in _ENDINGS:
                self._cursors.close()
            run(connection, call, ceiling)
            self._cursors.note(call)
            if call.failure is not None or call.outcome == MORE or job.is_at_end:
                return kind is Kind.COMMIT
            job.position += 1
        job.fail(INTERRUPTED)
        return False

    # When the file fails.

    def _lost(self, batch: list[Job]) -> None:
        """Nobody knows what of it is in the file; it is not tried again."""
        self.running = None
        self.disconnect()
        for job in batch:
            job.fail(UNKNOWN)
        self._deliver(batch)


def _is_io(job: Job) -> bool:
    failure = job.calls[job.position].failure
    return failure is not None and failure.code & 0xFF == apsw.SQLITE_IOERR
