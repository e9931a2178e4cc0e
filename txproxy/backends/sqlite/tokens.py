"""Who may write next: one queue for each file, in the order of asking.

The token is the right to write. It goes to the head of the queue: to a transaction, which keeps it
until it ends, to a job that wants to be alone, or to as many units that stand there together and
want the same settings of the connection; these are committed together.

Two threads use it. The loop's asks, withdraws and looks; the writer's takes, holds and releases.
"""

from collections import deque
from threading import Lock
from typing import Final

from txproxy.backends.sqlite import calls
from txproxy.backends.sqlite.calls import Job

BATCH: Final = 512
"""Jobs that are committed together at most: what one waits for is bounded."""


class Tokens:
    """The queue, and who holds the token."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[Job] = deque()
        self._sleeping = True
        self.holder: Job | None = None

    def __repr__(self) -> str:
        return f"<Tokens {len(self._waiting)} waiting, {'held' if self.holder else 'free'}>"

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, job: Job) -> bool:
        """Stand in the queue. Whether the writer sleeps and must be woken."""
        with self._lock:
            self._waiting.append(job)
            sleeping, self._sleeping = self._sleeping, False
            return sleeping

    def withdraw(self, job: Job) -> bool:
        """Leave the queue; False: it is not there, because the writer has it."""
        with self._lock:
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
            return True

    def withdraw_late(self, now: float) -> list[Job]:
        """Those whose deadline is over leave the queue."""
        with self._lock:
            late = [job for job in self._waiting if job.deadline and job.deadline <= now]
            for job in late:
                self._waiting.remove(job)
            return late

    def first(self) -> Job | None:
        """Who has waited longest."""
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def next(self) -> list[Job]:
        """Whose turn it is; none while the token is held, or if nobody waits: the writer sleeps.

        One that is HOLDING holds the token from now on.
        """
        with self._lock:
            if self.holder is not None:
                return []
            if not self._waiting:
                self._sleeping = True
                return []
            job = self._waiting.popleft()
            if job.kind == calls.HOLDING:
                self.holder = job
            job.is_taken = True
            return self._together(job) if job.kind == calls.UNIT else [job]

    def _together(self, first: Job) -> list[Job]:
        found = [first]
        waiting = self._waiting
        while waiting and len(found) < BATCH:
            job = waiting[0]
            if job.kind != calls.UNIT or job.pragmas != first.pragmas:
                break
            job.is_taken = True
            found.append(waiting.popleft())
        return found

    def put_back(self, jobs: list[Job]) -> None:
        """They could not begin: to the head of the queue, in their order."""
        with self._lock:
            self.holder = None
            for job in jobs:
                job.is_taken = False
            self._waiting.extendleft(reversed(jobs))

    def release(self) -> None:
        """The holder's transaction is over."""
        with self._lock:
            self.holder = None
