"""Counters of a pool: plain numbers, read by whoever reports them."""

from bisect import bisect_left
from typing import Final

_SECONDS: Final[tuple[float, ...]] = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """How often which durations were seen: `counts[i]` are those up to `bounds[i]` seconds and
    above the bound before, the last of `counts` those above all bounds.
    """

    def __init__(self) -> None:
        self.bounds = _SECONDS
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def add(self, other: "Histogram") -> None:
        """Count all of another's too."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class Stats:
    """What has happened since the start. Times in seconds, sizes in bytes."""

    COUNTERS: Final = (
        "queries",  # Query and Execute messages passed on
        "xacts",  # transactions that ended, statements outside of one included
        "received",  # from clients
        "sent",  # to clients
        "xact_time",
        "query_time",
        "wait_time",
        "client_parses",
        "server_parses",
        "binds",
        "assignments",  # backends lent
        "clients",
        "backends_opened",
        "backends_closed",
        "connects_failed",
        "waited",  # requests that found no idle backend
        "reaped",  # idle transactions rolled back, their clients alive
        "disconnected",  # idle transactions rolled back, their clients thrown out
        "would_reap",
        "failed_released",  # transactions that had failed, rolled back before their clients did
        "cancelled",
        "query_timeouts",
        "query_wait_timeouts",
        "transaction_timeouts",
        "client_idle_timeouts",
        "vanished",  # clients that left in a transaction or a statement
        "backends_lost",  # backends that went while a session held them
        "notifications",  # told to clients by the listening connection
        "released",  # transactions that have only read, let go of while their clients slept
        "would_release",
        "releases_refused",  # those that could not be
        "begun_again",  # released transactions that went on
        "begins_deferred",
        "begins_saved",  # those of them that no backend ever heard of
        "pins_set",  # sessions that from then on kept their backend
        "pins_released",  # sessions whose state was seen to be gone
        "pin_timeouts",
    )

    def __init__(self) -> None:
        self.queries = 0
        self.xacts = 0
        self.received = 0
        self.sent = 0
        # The janitor adds, at each tick, the time since the last one for each that is under way:
        # the data path pays nothing, and the sums are right on average.
        self.xact_time = 0.0
        self.query_time = 0.0
        self.wait_time = 0.0
        self.client_parses = 0
        self.server_parses = 0
        self.binds = 0
        self.assignments = 0
        self.clients = 0
        self.backends_opened = 0
        self.backends_closed = 0
        self.connects_failed = 0
        self.waited = 0
        self.reaped = 0
        self.disconnected = 0
        self.would_reap = 0
        self.failed_released = 0
        self.cancelled = 0
        self.query_timeouts = 0
        self.query_wait_timeouts = 0
        self.transaction_timeouts = 0
        self.client_idle_timeouts = 0
        self.vanished = 0
        self.backends_lost = 0
        self.notifications = 0
        self.released = 0
        self.would_release = 0
        self.releases_refused = 0
        self.begun_again = 0
        self.begins_deferred = 0
        self.begins_saved = 0
        self.pins_set = 0
        self.pins_released = 0
        self.pin_timeouts = 0
        self.waiting = Histogram()
        self.transactions = Histogram()
        self.idle_in_transaction = Histogram()

    def as_dict(self) -> dict[str, float]:
        """All counters by name."""
        return {name: getattr(self, name) for name in self.COUNTERS}

    def add(self, other: "Stats") -> None:
        """Count all of another's too."""
        for name in self.COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.waiting.add(other.waiting)
        self.transactions.add(other.transactions)
        self.idle_in_transaction.add(other.idle_in_transaction)
