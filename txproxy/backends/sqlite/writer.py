"""Who writes next, and in which thread.

To wake a thread and to be woken by it takes longer than many a statement. So the loop's thread does
by itself what is over in a moment, whatever is in the file (`Work.is_short`): statements of whoever
holds the token, and units up to their commit. All else the writer's thread does, which waits for
the disk, for other processes, and for statements that take their time. No timer waits for more
units: what has come while the last ones were committed is the next batch.
"""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock

from txproxy.backends.sqlite.calls import Job
from txproxy.backends.sqlite.failures import bug
from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.tokens import Tokens
from txproxy.backends.sqlite.train import Train
from txproxy.backends.sqlite.work import Deliver, Work


@dataclass
class Started:
    """Units that wait for their commit."""

    batch: list[Job]


Item = Started | list[Job] | Job | Callable[[Work], None]


class Writer:
    """`deliver` is called in whichever thread has run the jobs; `call_soon` calls in the loop's
    thread, from any.
    """

    def __init__(
        self,
        path: str,
        settings: Settings,
        tokens: Tokens,
        deliver: Deliver,
        call_soon: Callable[[Callable[[], None]], object],
        train: Train | None,
    ) -> None:
        """Opens the file. Raises what that raises."""
        self._tokens = tokens
        self._call_soon = call_soon
        self._has_started = False  # units, which are not committed yet
        self._inbox: SimpleQueue[Item | None] = SimpleQueue()
        self.work = Work(path, settings, tokens, deliver, train)
        self._using = Lock()  # the work
        self._thread = threading.Thread(target=self._serve, name="writer", daemon=True)
        self._thread.start()

    @property
    def running(self) -> Job | None:
        """What is run now."""
        return self.work.running

    @property
    def since(self) -> float:
        """The time.monotonic() when that began."""
        return self.work.since

    def interrupt(self, job: Job) -> None:
        """Stop the job's statement, if that is what is running."""
        self.work.interrupt(job)

    def give(self, job: Job) -> None:
        """A job of the token's holder."""
        self._inbox.put(job)

    def do(self, task: Callable[[Work], None]) -> None:
        """Something else, in its thread, between jobs."""
        self._inbox.put(task)

    def close(self) -> None:
        """Roll back, and close the connection."""
        self._inbox.put(None)

    def join(self, patience: float) -> bool:
        """Whether it has closed, after so many seconds at most."""
        self._thread.join(patience)
        return not self._thread.is_alive()

    # In the loop's thread.

    def held_here(self, job: Job) -> bool:
        """Run a job of the holder's, if it is short and the thread does nothing."""
        if not (self._inbox.empty() and self.work.is_short([job]) and self._using.acquire(False)):
            return False
        try:
            self._run_here(job)
            if self._tokens.holder is None:
                self._go_on_here()
        finally:
            self._using.release()
        return True

    def go_on(self) -> None:
        """Give the token to whose turn it is, unless the thread is about to."""
        if not self._inbox.empty():
            return
        if not self._using.acquire(False):
            # It may have looked at the queue already, and be about to sleep.
            self._inbox.put(_nothing)
            return
        try:
            self._go_on_here()
        finally:
            self._using.release()

    def _go_on_here(self) -> None:
        if self._has_started:
            return
        if self.work.checkpoints.is_due:
            self._inbox.put(_nothing)
            return
        while batch := self._tokens.next():
            if not self.work.is_short(batch):
                self._inbox.put(batch)
                return
            if self._run_here(batch):
                self._inbox.put(Started(batch))
                return
            if self._tokens.first() is batch[0]:
                self._inbox.put(_nothing)  # another process has the lock: the thread can wait
                return

    def _run_here(self, item: list[Job] | Job) -> bool:
        """Whether units wait for their commit now."""
        self.work.may_wait = False
        self._run(item)
        self.work.may_wait = True
        return self._has_started

    # In the thread.

    def _serve(self) -> None:
        while (item := self._inbox.get()) is not None:
            with self._using:
                self._run(item)
                self.work.checkpoint_if_due()
                # What is put in comes first: RECONNECT must not wait for a queue that never ends.
                while (
                    not isinstance(item, Started)
                    and self._inbox.empty()
                    and (batch := self._tokens.next())
                ):
                    self._run(batch)
                    self.work.checkpoint_if_due()
            if isinstance(item, Started):
                self._call_soon(self.go_on)
        self.work.disconnect()

    # In either, with the lock.

    def _run(self, item: Item) -> None:
        try:
            if isinstance(item, Started):
                self._has_started = False
                self.work.finish(item.batch)
            elif isinstance(item, list):
                self._take(item)
            elif isinstance(item, Job):
                self.work.held(item)
            else:
                item(self.work)
        except Exception as error:  # noqa: BLE001 - a bug: nobody is to wait for ever
            traceback.print_exc()
            self.work.broken(_jobs(item), bug(error))

    def _take(self, batch: list[Job]) -> None:
        is_started = self.work.start(batch)
        if is_started and not self.work.may_wait and self.work.syncs:
            self._has_started = True
        elif is_started:
            self.work.finish(batch)


def _jobs(item: Item) -> list[Job]:
    if isinstance(item, Started):
        return item.batch
    if isinstance(item, Job):
        return [item]
    return item if isinstance(item, list) else []


def _nothing(_: Work) -> None:
    """Wakes the thread."""
