"""The sessions that wait for a backend of one pool: in the order in which they came, but who keeps
its backend asleep does not stand in everybody's way.

A transaction that had to be released early has kept its backend for ten times as long as it was
needed, and the next of the same client will. A thousand such clients in front of one that does not
sleep would let it wait for a second where it needs a millisecond. So for a while a client that has
slept so waits among its like, and when others wait too, each fourth backend is for those.
"""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from txproxy.core.session import Session

SLEPT: Final = 0.1
"""Seconds from an early release until its client wants a backend again, that count as sleep: some
are released because the machine was busy.
"""

REMEMBERED: Final = 30.0
"""Seconds for which a client that has slept so waits among its like."""

TURN: Final = 4
"""Each fourth backend is for those that sleep, while others wait as well."""


class Waiting:
    """Two queues, each by `queued_at`."""

    def __init__(self) -> None:
        self._awake: deque[Session] = deque()
        self._sleepers: deque[Session] = deque()
        self._passed = 0  # those that were served since the last of the sleepers

    def __len__(self) -> int:
        return len(self._awake) + len(self._sleepers)

    def __iter__(self) -> "Iterator[Session]":
        return iter([*self._awake, *self._sleepers])

    @property
    def since(self) -> float:
        """When the one that has waited longest was queued; there must be one."""
        return self._longest()[0].queued_at

    def _longest(self) -> "deque[Session]":
        if not self._awake:
            return self._sleepers
        sleepers = self._sleepers
        if sleepers and sleepers[0].queued_at < self._awake[0].queued_at:
            return sleepers
        return self._awake

    def append(self, session: "Session") -> None:
        """One more; `queued_at` is set."""
        now = session.queued_at
        if session.released_at:
            if now - session.released_at >= SLEPT:
                session.slept_at = now
            session.released_at = 0.0
        if session.slept_at and now - session.slept_at < REMEMBERED:
            self._sleepers.append(session)
        else:
            self._awake.append(session)

    def next(self) -> "Session":
        """Take out whose turn it is; there must be one."""
        self._passed += 1
        if self._sleepers and (self._passed >= TURN or not self._awake):
            self._passed = 0
            return self._sleepers.popleft()
        return self._awake.popleft()

    def longest(self) -> "Session":
        """Take out the one that has waited longest; there must be one."""
        return self._longest().popleft()

    def remove(self, session: "Session") -> None:
        """Take this one out, if it is there."""
        for queue in (self._awake, self._sleepers):
            if session in queue:
                queue.remove(session)
