"""A connection that only reads, with a thread of its own, leased to one session at a time."""

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic

import apsw

from txproxy.backends.sqlite import opening
from txproxy.backends.sqlite.calls import MORE, Answers, Job
from txproxy.backends.sqlite.errors import SqliteError, fields
from txproxy.backends.sqlite.failures import INTERRUPTED, bug
from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.pragmas import DEFAULTS
from txproxy.backends.sqlite.running import CEILING, NO_CEILING, Cursors, run


class Reader:
    """Runs what it is given, in order. `deliver` is called in its thread with each job."""

    def __init__(self, path: str, settings: Settings, deliver: Callable[[Job], None]) -> None:
        self._path = path
        self._settings = settings
        self.functions = settings.functions
        self._deliver = deliver
        self._inbox: SimpleQueue[Job | Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()  # the writer asks is_fresh
        self._connection: apsw.Connection | None = None
        self._applied = DEFAULTS
        self._answers = Answers()
        self._version = 0  # PRAGMA data_version of the snapshot
        self._cursors = Cursors()
        self.running: Job | None = None
        self.since = 0.0  # time.monotonic() when what is running began
        self.leased = 0.0  # and when it was leased; for its owner to keep
        self._thread = threading.Thread(target=self._serve, name="reader", daemon=True)
        self._thread.start()

    def give(self, job: Job) -> None:
        """Run it."""
        self._inbox.put(job)

    def reset(self) -> None:
        """End what its session has open here."""
        self._inbox.put(self._reset)

    def close(self) -> None:
        """Close the connection, behind all that was given."""
        self._inbox.put(None)

    def join(self, patience: float) -> bool:
        """Whether it has closed, after so many seconds at most."""
        self._thread.join(patience)
        return not self._thread.is_alive()

    def interrupt(self, job: Job) -> None:
        """Stop the job's statement, if that is what is running."""
        if self.running is job and self._connection is not None:
            self._connection.interrupt()

    def is_fresh(self) -> bool:
        """Whether nothing was committed since its last snapshot began; the snapshot is ended."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return False
            self._end(connection)
            return bool(connection.pragma("data_version") == self._version)

    def _serve(self) -> None:
        while (item := self._inbox.get()) is not None:
            if isinstance(item, Job):
                with self._lock:
                    self._try(item)
                self._deliver(item)
            else:
                item()
        if self._connection is not None:
            self._connection.close(force=True)

    def _try(self, job: Job) -> None:
        try:
            self._run(job)
        except Exception as error:  # noqa: BLE001 - a bug: nobody is to wait for ever
            traceback.print_exc()
            self.running = None
            job.fail(bug(error))

    def _connect(self) -> apsw.Connection:
        if self._connection is None:
            connection, _ = opening.connect(self._path, self._settings, writes=False)
            # What the session's own statements have done: on the writer, and among others'.
            for name in ("last_insert_rowid", "changes", "total_changes"):
                connection.create_scalar_function(name, self._answer(name), 0)
            self._connection = connection
        return self._connection

    def _answer(self, name: str) -> Callable[..., int]:
        return lambda: int(getattr(self._answers, name))

    def _run(self, job: Job) -> None:
        try:
            connection = self._connect()
            if job.pragmas != self._applied:
                job.pragmas.apply(connection, self._applied)
                self._applied = job.pragmas
            if job.begins:
                self._begin(connection, job)
        except Exception as error:  # noqa: BLE001 - also what functions of users raise
            job.fail(fields(error))
            return
        self._answers = job.answers
        self.since = monotonic()
        self.running = job
        self._calls(connection, job)
        self.running = None

    def _calls(self, connection: apsw.Connection, job: Job) -> None:
        # Off WAL a cursor that stays open keeps the writer from committing.
        ceiling = CEILING if self._settings.is_wal else NO_CEILING
        while not job.cancelled:
            call = job.calls[job.position]
            run(connection, call, ceiling)
            self._cursors.note(call)
            if call.failure is not None or call.outcome == MORE or job.is_at_end:
                return
            job.position += 1
        job.fail(INTERRUPTED)

    def _begin(self, connection: apsw.Connection, job: Job) -> None:
        """A transaction's snapshot; the same as before, if it had one and dropped it."""
        job.begins = False
        connection.execute("BEGIN")
        version = connection.pragma("data_version")
        if job.snapshot is not None and version != self._version:
            self._end(connection)
            raise SqliteError("database is locked", apsw.SQLITE_BUSY_SNAPSHOT)
        self._version = version

    def _reset(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._end(self._connection)

    def _end(self, connection: apsw.Connection) -> None:
        self._cursors.close()
        if connection.in_transaction:
            connection.execute("ROLLBACK")
