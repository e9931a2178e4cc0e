"""One file: its queue, its threads, and what is known of its statements. The loop's side of it."""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from threading import get_ident, main_thread
from time import monotonic
from typing import Final, Protocol

import apsw

from txproxy.backends.sqlite import calls, opening, replies, requests, statements
from txproxy.backends.sqlite.calls import Job, Prepared
from txproxy.backends.sqlite.failures import LOCKED
from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.owner import Owner
from txproxy.backends.sqlite.reader import Reader
from txproxy.backends.sqlite.statements import Statement
from txproxy.backends.sqlite.tokens import Tokens
from txproxy.backends.sqlite.train import Train
from txproxy.backends.sqlite.work import Work
from txproxy.backends.sqlite.writer import Writer

READERS: Final = 64
"""Connections that read, at most: each may keep a snapshot, and a thread."""

_STATEMENTS: Final = 2000  # texts whose statements are remembered
_LONG: Final = 16_384  # bytes of a text that is not
_INSPECTOR_PATIENCE: Final = 50  # milliseconds, in which the loop stands still
_IDLE: Final = 0.5  # seconds without a write
_AGAIN: Final = 0.05  # seconds between interrupts
_FROM_OPENING: Final = ("checkpoint", "commit_train", "extensions", "functions", "journal_mode")
"""Settings that all connections must have alike: they stay while the file is open."""


class User(Protocol):
    """A session, as its file sees it."""

    statements: int

    def tick(self, now: float) -> None:
        """Time has passed."""


class File:
    """Opened by `File.open`, in a thread: it may have to wait for another process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, settings: Settings) -> None:
        self._loop = loop
        self._loop_thread = main_thread().ident
        self.path = path
        self.database = ""  # what the first client called it
        self.settings = settings
        self._owner = Owner(path)
        self.tokens = Tokens()
        self.users: set[User] = set()
        self.expected = 0  # sessions that are about to be users
        self.unused_since = monotonic()
        self.is_leaving = False  # it is about to be closed, if it is still unused then
        self.generation = 0  # of the schema, as far as it is known
        self.statements = 0  # of sessions that are gone
        self.late = 0  # jobs that have waited too long
        self.reaped = 0  # transactions that slept for too long
        self.rolled_back = 0  # of those that would have written
        self._own_schemas = 0
        self._statements: dict[bytes, Statement] = {}
        self._is_stale = False  # the inspector's schema, for all we know
        self._parsed: dict[bytes, Prepared] = {}
        self._readers: list[Reader] = []
        self._idle: list[Reader] = []
        self._wanting: deque[Job] = deque()  # no reader is left for these
        self._reader_of: dict[Job, Reader] = {}
        self._checked = 0.0
        self.train: Train | None = None
        try:
            if settings.has_train:
                self.train = Train(path, self._deliver)
            self.writer = Writer(
                path,
                settings,
                self.tokens,
                self._deliver,
                loop.call_soon_threadsafe,
                self.train,
            )
            self._open_inspector()
        except BaseException:
            self._owner.release()
            raise

    def _open_inspector(self) -> None:
        self._inspector = opening.inspector(self.path, self.settings)
        statements.refresh(self._inspector)
        self._inspector.set_busy_timeout(_INSPECTOR_PATIENCE)
        self._schema = self._inspector.pragma("schema_version")
        self.page_size = int(self._inspector.pragma("page_size"))
        found = os.stat(self.path)  # noqa: PTH116 - no Path on purpose: nothing here may open it
        self.identity = f"{found.st_dev}:{found.st_ino}"

    def close(self) -> None:
        """Roll back what is open, close everything. Blocks until the threads have ended."""
        for reader in self._readers:
            reader.close()
        for reader in self._readers:
            _join(reader)
        self._inspector.close(force=True)
        # The last one: SQLite then copies the WAL back, and removes it.
        self.writer.close()
        _join(self.writer)
        if self.train is not None:
            self.train.close()
            self.train.join()
        self._owner.release()

    @property
    def _threads(self) -> list[Reader | Writer]:
        return [*self._readers, self.writer]

    # Settings.

    def configure(self, settings: Settings) -> None:
        """The configuration has changed."""
        kept = {name: getattr(self.settings, name) for name in _FROM_OPENING}
        self.settings = replace(settings, **kept)

    def need(self, function: str) -> None:
        """Register it with every connection: "package.module:function", imported before."""
        if function in self.settings.functions:
            return
        self.settings = replace(self.settings, functions=(*self.settings.functions, function))
        opening.register(self._inspector, function)
        self.writer.work.need(self.settings, function)
        self._dismiss_idle()
        self.schema_changed()

    def _dismiss_idle(self) -> None:
        for reader in self._idle:
            self._dismiss(reader)
        self._idle.clear()

    # Statements.

    def inspect(self, sql: bytes) -> Statement:
        """The first statement of a text. Raises what `statements.inspect` does, UnicodeError."""
        found = self._statements.get(sql)
        if found is None:
            self._refresh()
            found = statements.inspect(self._inspector, sql.decode())
            if len(sql) < _LONG:
                if len(self._statements) >= _STATEMENTS:
                    self._statements.clear()
                self._statements[sql] = found
        return found

    def _refresh(self) -> None:
        try:
            statements.refresh(self._inspector)
        except apsw.BusyError:  # off WAL, while somebody commits
            if self._is_stale:
                raise
        else:
            self._is_stale = False

    def parsed(self, body: bytes) -> Prepared:
        """What a Parse of the unnamed statement says: the same for all that send the same.

        ProtocolError: it is malformed.
        """
        found = self._parsed.get(body)
        if found is None:
            message = requests.parse(body)
            found = Prepared(message.sql, message.oids)
            if len(body) < _LONG:
                if len(self._parsed) >= _STATEMENTS:
                    self._parsed.clear()
                self._parsed[body] = found
        return found

    def own_schema(self) -> int:
        """A number for what a transaction makes of the schema: no two have the same."""
        self._own_schemas += 1
        return self._own_schemas

    def schema_changed(self) -> None:
        """What was known of statements may not be true any more."""
        self.generation += 1
        self._is_stale = True
        self._statements.clear()

    # Writing.

    def ask(self, job: Job) -> None:
        """Stand in the queue for the token."""
        if not self.tokens.ask(job):
            return  # it is not asleep, and will come to it
        if job.kind == calls.UNIT:
            self._loop.call_soon(self.writer.go_on)  # with all that come at the same time
        else:
            self.writer.go_on()

    def held(self, job: Job) -> None:
        """One of the token's holder."""
        if not self.writer.held_here(job):
            self.writer.give(job)

    # Reading.

    def read(self, job: Job, reader: Reader | None = None) -> None:
        """Run it on this reader, else on one that is leased for it: see `reader_of`."""
        if reader is None:
            reader = self._lease()
            if reader is None:
                self._wanting.append(job)
                return
        self._reader_of[job] = reader
        reader.give(job)

    def reader_of(self, job: Job) -> Reader | None:
        """The reader that has run it."""
        return self._reader_of.pop(job, None)

    def _lease(self) -> Reader | None:
        if self._idle:
            reader = self._idle.pop()
        elif len(self._readers) < READERS:
            reader = Reader(self.path, self.settings, self._deliver_one)
            self._readers.append(reader)
        else:
            return None
        reader.leased = monotonic()
        return reader

    def release(self, reader: Reader, *, is_clean: bool) -> None:
        """Its session does not need it any more; not is_clean: it has something open there."""
        if not is_clean:
            reader.reset()
        reader.leased = 0.0
        if reader not in self._readers:
            reader.close()  # it has the file that was there before `reopen`
        elif reader.functions != self.settings.functions:
            self._dismiss(reader)
        else:
            self._idle.append(reader)
        if self._wanting:
            self.read(self._wanting.popleft())

    def _dismiss(self, reader: Reader) -> None:
        reader.close()
        self._readers.remove(reader)

    # Stopping.

    def withdraw(self, job: Job) -> bool:
        """Whether it was still waiting, and is not run."""
        if job.kind == calls.READING:
            if job in self._wanting:
                self._wanting.remove(job)
                return True
            return False
        return job.kind != calls.HELD and self.tokens.withdraw(job)

    def interrupt(self, job: Job) -> None:
        """Stop it where it is; one that has been withdrawn is not meant."""
        job.cancelled = True
        reader = self._reader_of.get(job)
        if reader is not None:
            reader.interrupt(job)
        else:
            self.writer.interrupt(job)

    def inspect_on_writer(self, sql: bytes, then: Callable[[Statement | Exception], None]) -> None:
        """The same, in the transaction of the token's holder."""

        def run(work: Work) -> None:
            found: Statement | Exception
            try:
                connection = work.connect()
                statements.refresh(connection)
                found = statements.inspect(connection, sql.decode())
            except Exception as error:  # noqa: BLE001 - it is told to whoever has asked
                found = error
            self._loop.call_soon_threadsafe(then, found)

        self.writer.do(run)

    def pragma(self, name: str) -> tuple[replies.Cell, ...] | None:
        """What a PRAGMA answers that only asks. apsw.Error."""
        row: tuple[replies.Cell, ...]
        for row in self._inspector.execute(f"PRAGMA {name}"):
            return row
        return None

    def roll_back(self) -> None:
        """End the transaction of the token's holder."""
        self.rolled_back += 1
        self.writer.do(Work.roll_back)

    # What comes back; the first three are called by the threads, the first by the loop's as well.

    def _deliver(self, jobs: list[Job]) -> None:
        if get_ident() == self._loop_thread:
            self._loop.call_soon(self._finished, jobs)
        else:
            self._loop.call_soon_threadsafe(self._finished, jobs)

    def _deliver_one(self, job: Job) -> None:
        self._loop.call_soon_threadsafe(job.owner.finished, job)

    def _reopen(self) -> None:
        self.writer.do(Work.disconnect)

    def _finished(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.kind != calls.UNIT and job.changes_schema:
                self.schema_changed()
            job.owner.finished(job)

    # Time.

    def tick(self, now: float) -> None:
        """Whoever has waited too long is told so; sessions look at their clocks."""
        for job in self.tokens.withdraw_late(now):
            self._too_late(job)
        for job in [job for job in self._wanting if 0 < job.deadline <= now]:
            self._wanting.remove(job)
            self._too_late(job)
        for user in list(self.users):
            user.tick(now)
        self._check_queries(now)
        self._check_wal(now)

    def _too_late(self, job: Job) -> None:
        self.late += 1
        job.fail(LOCKED)
        job.owner.finished(job)

    def _check_queries(self, now: float) -> None:
        """Stop what runs for too long, and again what was stopped: an interrupt that comes before
        SQLite has begun with the statement is lost.
        """
        limit = self.settings.query_timeout
        for thread in self._threads:
            job = thread.running
            if job is None:
                continue
            if limit and now - thread.since > limit:
                job.cancelled = True
            if job.cancelled:
                thread.interrupt(job)

    def _check_wal(self, now: float) -> None:
        """Nobody writes: a good time for a checkpoint."""
        is_idle = not self.tokens and self.tokens.holder is None and now - self.writer.since > _IDLE
        if (
            is_idle
            and now - self._checked > _IDLE
            and self.writer.work.checkpoints.is_due_when_idle
        ):
            self._checked = now
            nobody_reads = not self.leased
            self.writer.do(lambda work: work.checkpoint(nobody_reads))

    def overdue(self, now: float, patience: float) -> bool:
        """Whether a statement goes on so long after it should have stopped."""
        limit = self.settings.query_timeout
        return bool(limit) and any(
            thread.running is not None and now - thread.since > limit + patience
            for thread in self._threads
        )

    def look_at_schema(self) -> None:
        """Another process may have changed it."""
        try:
            schema = self._inspector.pragma("schema_version")
        except apsw.Error:
            return
        if schema != self._schema:
            self._schema = schema
            self.schema_changed()

    def leave(self, user: User) -> None:
        """A session is over."""
        self.users.discard(user)
        self.statements += user.statements
        self.unused_since = monotonic()

    @property
    def is_unused(self) -> bool:
        """Whether no session has it, or is about to."""
        return not self.users and not self.expected

    def reopen(self) -> None:
        """Open what is there now; transactions that write are rolled back."""
        self._dismiss_idle()
        self._readers.clear()
        self._reopen()
        self._inspector.close(force=True)
        self._open_inspector()
        self.schema_changed()

    @property
    def leased(self) -> list[Reader]:
        """The readers that sessions have leased."""
        return [reader for reader in self._readers if reader.leased]


def _join(thread: Reader | Writer) -> None:
    """Stop what it runs, and wait for its end."""
    while True:
        job = thread.running
        if job is not None:
            thread.interrupt(job)
        if thread.join(_AGAIN):
            return
