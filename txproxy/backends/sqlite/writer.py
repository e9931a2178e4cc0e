"""The thread that writes a file. What it does next it asks the queue (`tokens`). No timer waits for
more units: what has come while the last batch was synced is the next one.

To wake a thread and to be woken by it takes longer than many a statement. So the loop's thread runs
short ones of the holder's itself (`held_here`, `take_here`), if this one has nothing to do: only
what is over in a moment whatever is in the file (`programs`), and what no disk is waited for.
"""

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock

from txproxy.backends.sqlite.calls import Job
from txproxy.backends.sqlite.failures import bug
from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.tokens import Tokens
from txproxy.backends.sqlite.train import Train
from txproxy.backends.sqlite.work import Deliver, Work

Item = list[Job] | Job | Callable[[Work], None]


class Writer:
    """`deliver` is called in whichever thread has run the jobs."""

    def __init__(
        self, path: str, settings: Settings, tokens: Tokens, deliver: Deliver, train: Train | None
    ) -> None:
        """Opens the file. Raises what that raises."""
        self._tokens = tokens
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

    def wake(self) -> None:
        """There is somebody in the queue."""
        self._inbox.put(_nothing)

    def give(self, job: Job) -> None:
        """A job of the token's holder."""
        self._inbox.put(job)

    def do(self, task: Callable[[Work], None]) -> None:
        """Something else, in its thread, between jobs."""
        self._inbox.put(task)

    def close(self) -> None:
        """Roll back, and close the connection."""
        self._inbox.put(None)

    def join(self) -> None:
        """Until it has closed."""
        self._thread.join()

    # In the loop's thread.

    def held_here(self, job: Job) -> bool:
        """Run a job of the holder's, if it is short and the thread does nothing."""
        if not (self.work.is_short(job) and self._inbox.empty() and self._using.acquire(False)):
            return False
        try:
            self._run_here(job)
            if self._tokens.holder is None:
                self._go_on_here()
        finally:
            self._using.release()
        return True

    def take_here(self, job: Job) -> bool:
        """Give the token to the only one in the queue, while the thread sleeps, if what it wants is
        short.
        """
        if not (self.work.is_short(job) and self._using.acquire(False)):
            return False
        try:
            self._go_on_here()
        finally:
            self._using.release()
        return True

    def _go_on_here(self) -> None:
        """The token is free: give it to whose turn it is."""
        if self.work.checkpoints.is_due:
            self.wake()
            return
        while batch := self._tokens.next():
            if not self.work.is_short(batch[0]):
                self._inbox.put(batch)
                return
            self._run_here(batch)
            if self._tokens.first() is batch[0]:
                self.wake()  # another process has the lock: the thread can wait for it
                return

    def _run_here(self, item: list[Job] | Job) -> None:
        self.work.may_wait = False
        self._run(item)
        self.work.may_wait = True

    # In the thread.

    def _serve(self) -> None:
        while True:
            # What was put in comes first: RECONNECT must not wait for a queue that never ends.
            with self._using:
                while self._inbox.empty() and (batch := self._tokens.next()):
                    self._run(batch)
                    self.work.checkpoint_if_due()
            item = self._inbox.get()
            if item is None:
                break
            with self._using:
                self._run(item)
                self.work.checkpoint_if_due()
        self.work.disconnect()

    # In either, with the lock.

    def _run(self, item: Item) -> None:
        try:
            if isinstance(item, list):
                self.work.take(item)
            elif isinstance(item, Job):
                self.work.held(item)
            else:
                item(self.work)
        except Exception as error:  # noqa: BLE001 - a bug: nobody is to wait for ever
            traceback.print_exc()
            jobs = [item] if isinstance(item, Job) else item if isinstance(item, list) else []
            self.work.broken(jobs, bug(error))


def _nothing(_: Work) -> None:
    """Wakes the thread."""
