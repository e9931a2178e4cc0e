"""What is measured, as Prometheus wants it: read from the pools when somebody asks, never pushed.

The data path counts in plain numbers (core/stats.py); everything here happens at scrape time.
Labels are the database and the server's user, so that there are as many series as pools, however
many clients there are.
"""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from txproxy import __version__
from txproxy.core.endings import sleeps
from txproxy.core.pool import Pool
from txproxy.core.state import REASONS
from txproxy.core.stats import Histogram, Stats
from txproxy.core.view import is_console
from txproxy.net import sqlite_metrics

if TYPE_CHECKING:
    from txproxy.net.server import Server

_LABELS: Final = ("database", "user")
_OFFENDERS: Final = 20  # the worst; each is three labels and two series
_AT_ONCE: Final = 200  # samples: 2 ms or so, in which no client is served

COUNTERS: Final = {
    "queries": ("queries", "Query and Execute messages passed on to a server."),
    "xacts": ("transactions", "Transactions that ended, statements outside of one included."),
    "received": ("client_received_bytes", "What clients have sent."),
    "sent": ("client_sent_bytes", "What clients were sent."),
    "xact_time": ("transaction_time_seconds", "Spent in transactions, sampled."),
    "query_time": ("query_time_seconds", "Spent by servers on statements, sampled."),
    "wait_time": ("wait_time_seconds", "Spent by clients waiting for a backend, sampled."),
    "client_parses": ("client_parses", "Parse messages that came from clients."),
    "server_parses": ("server_parses", "Parse messages that were sent to servers."),
    "binds": ("binds", "Bind messages that were sent to servers."),
    "assignments": ("backend_assignments", "Backends lent to a client."),
    "clients": ("client_logins", "Clients that were let in."),
    "backends_opened": ("backends_opened", "Connections made to servers."),
    "backends_closed": ("backends_closed", "Connections to servers that were closed or lost."),
    "connects_failed": ("connects_failed", "Attempts to connect to servers that failed."),
    "waited": ("waits", "Requests for a backend that found none idle."),
    "reaped": ("transactions_reaped", "Idle transactions rolled back, their clients alive."),
    "disconnected": ("transactions_disconnected", "Idle transactions ended with their clients."),
    "would_reap": ("transactions_would_reap", 'Idle transactions left alone, by action "report".'),
    "failed_released": (
        "transactions_failed_released",
        "Failed transactions rolled back before their clients did.",
    ),
    "cancelled": ("cancel_requests", "CancelRequests of clients."),
    "query_timeouts": ("query_timeouts", "Statements cancelled by query_timeout."),
    "query_wait_timeouts": ("query_wait_timeouts", "Waits ended by query_wait_timeout."),
    "transaction_timeouts": ("transaction_timeouts", "Transactions ended by transaction_timeout."),
    "client_idle_timeouts": ("client_idle_timeouts", "Clients closed by client_idle_timeout."),
    "vanished": ("clients_vanished", "Clients that left in a transaction or a statement."),
    "backends_lost": ("backends_lost", "Backends that went while a client held them."),
    "notifications": ("notifications", "Notifications that clients were told of."),
    "released": (
        "transactions_released",
        "Transactions that had only read and let go of their server while their clients slept.",
    ),
    "would_release": (
        "transactions_would_release",
        "The same where early_release is report: nothing was done.",
    ),
    "releases_refused": (
        "transactions_not_released",
        "Transactions of sleeping clients that could not be released.",
    ),
    "begun_again": (
        "transactions_begun_again",
        "Released transactions whose clients went on.",
    ),
    "begins_deferred": ("begins_deferred", "BEGINs that were answered before a server was told."),
    "begins_saved": ("begins_saved", "Those of them that no server ever heard of."),
    "pins_set": ("pins_set", "Clients that began to keep a backend, by state of their own."),
    "pins_released": ("pins_released", "Clients whose pin was released: the state was gone."),
    "pin_timeouts": ("pin_timeouts", "Clients closed by pin_timeout."),
}
"""For each of Stats.COUNTERS the metric's name, less txproxy_ and _total, and what it says."""

HISTOGRAMS: Final = {
    "waiting": ("wait_seconds", "How long clients waited for a backend."),
    "transactions": ("transaction_seconds", "How long transactions took."),
    "idle_in_transaction": (
        "idle_in_transaction_seconds",
        "How long clients slept in a transaction that held a backend.",
    ),
}
"""The same for each histogram of Stats."""


@dataclass(slots=True)
class Census:
    """How many clients and backends of a pool are in which state at this moment."""

    active: int = 0  # sessions that a server works for
    idle_in_transaction: int = 0  # sessions that a server waits for
    waiting: int = 0
    idle: int = 0  # sessions in no need of a backend, though they may be pinned to one
    lent: int = 0  # backends that a session holds
    settling: int = 0  # backends that are rolled back, reset or checked
    resting: int = 0  # backends that anybody may have
    connecting: int = 0
    longest_wait: float = 0.0  # seconds, as the other one
    longest_sleep: float = 0.0  # in a transaction
    pins: Counter[str] = dataclasses.field(default_factory=Counter)  # sessions by each reason


def census(pool: Pool, now: float) -> Census:
    """Count; `now` is the janitor's clock. It looks at the backends and not at every client."""
    found = Census(waiting=len(pool.waiters), resting=len(pool.idle), connecting=pool.connecting)
    for backend in pool.backends:
        session = backend.session
        if session is None:
            continue
        found.lent += 1
        if session.kept is not None:
            found.pins.update(session.kept.reasons)
        if sleeps(session):
            found.idle_in_transaction += 1
            found.longest_sleep = max(found.longest_sleep, now - session.active_at)
        elif backend.fifo.exchanges or backend.settling:
            found.active += 1
    held = found.active + found.idle_in_transaction + found.waiting
    found.idle = max(0, len(pool.sessions) - held)
    found.settling = len(pool.backends) - found.lent - found.resting
    if pool.waiters:
        found.longest_wait = max(0.0, now - pool.waiters.since)
    return found


def pools(server: "Server") -> list[Pool]:
    """Those that lead to a server: the console's is none of them."""
    return [pool for pool in server.pools.values() if not is_console(pool)]


def collect(server: "Server") -> Iterator[Metric]:
    """Every family. Counters include the pools that are forgotten by now."""
    rows = [
        (_legible(database), _legible(user), stats)
        for database, user, stats in server.all_stats()
        if not server.is_console(database)
    ]
    yield from _counters(rows)
    yield from _histograms(rows)
    yield from _pools(server)
    yield from _offenders(server)
    yield from sqlite_metrics.collect(server.sqlite)
    yield from _proxy(server)
    yield from ProcessCollector(registry=None).collect()


def _counters(rows: list[tuple[str, str, Stats]]) -> Iterator[Metric]:
    for field, (name, meaning) in COUNTERS.items():
        family = CounterMetricFamily(f"txproxy_{name}", meaning, labels=_LABELS)
        for database, user, stats in rows:
            family.add_metric((database, user), getattr(stats, field))
        yield family


def _histograms(rows: list[tuple[str, str, Stats]]) -> Iterator[Metric]:
    for field, (name, meaning) in HISTOGRAMS.items():
        family = HistogramMetricFamily(f"txproxy_{name}", meaning, labels=_LABELS)
        for database, user, stats in rows:
            histogram: Histogram = getattr(stats, field)
            family.add_metric((database, user), _buckets(histogram), histogram.total)
        yield family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them: how many took so long at most."""
    names = [*map(str, histogram.bounds), "+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for name, count in zip(names, histogram.counts, strict=True):
        total += count
        buckets.append((name, total))
    return buckets


def _pools(server: "Server") -> Iterator[Metric]:
    clients = GaugeMetricFamily(
        "txproxy_clients",
        "Clients by state: active (a server works for it), idle_in_transaction, waiting, idle.",
        labels=(*_LABELS, "state"),
    )
    backends = GaugeMetricFamily(
        "txproxy_backends",
        "Connections to servers by state: active (a client holds it), idle,"
        " settling (being rolled back, reset or checked), connecting, listening.",
        labels=(*_LABELS, "state"),
    )
    pinned = GaugeMetricFamily(
        "txproxy_pinned_clients",
        "Clients that keep a backend, by reason; one may have several.",
        labels=(*_LABELS, "reason"),
    )
    plain = {
        name: GaugeMetricFamily(f"txproxy_{name}", meaning, labels=_LABELS)
        for name, meaning in {
            "oldest_wait_seconds": "How long the client has waited that has waited longest.",
            "oldest_idle_in_transaction_seconds": "The same for sleeping in a transaction.",
            "pool_size": "Connections to servers that the pool may have.",
            "reserve_pool_size": "Those that it may have beyond that when clients wait.",
            "paused": "1 while PAUSE holds for the pool.",
            "listening_clients": "Clients that LISTEN.",
        }.items()
    }
    for pool in pools(server):
        names = (_legible(pool.settings.database), _legible(pool.settings.user))
        found = census(pool, server.now)
        for state, count in {
            "active": found.active,
            "idle_in_transaction": found.idle_in_transaction,
            "waiting": found.waiting,
            "idle": found.idle,
        }.items():
            clients.add_metric((*names, state), count)
        for state, count in {
            "active": found.lent,
            "idle": found.resting,
            "settling": found.settling,
            "connecting": found.connecting,
            "listening": pool.listener.backend is not None,
        }.items():
            backends.add_metric((*names, state), count)
        for reason in REASONS:
            pinned.add_metric((*names, reason), found.pins[reason])
        for name, value in {
            "oldest_wait_seconds": found.longest_wait,
            "oldest_idle_in_transaction_seconds": found.longest_sleep,
            "pool_size": pool.settings.pool_size,
            "reserve_pool_size": pool.settings.reserve_pool_size,
            "paused": pool.paused,
            "listening_clients": len(pool.listener.sessions()),
        }.items():
            plain[name].add_metric(names, value)
    yield from (clients, backends, pinned, *plain.values())


def _offenders(server: "Server") -> Iterator[Metric]:
    """By the tags that say which code it was: there are as many as the code has places. Statements
    and names that clients make up stay in the console; who has no tags is counted by database and
    user.
    """
    worst = server.offenders.tagged.worst_first()[:_OFFENDERS]
    labels = (*_LABELS, "tags")
    times = CounterMetricFamily(
        "txproxy_offender_transactions",
        "Transactions that the worst offenders have left open.",
        labels=labels,
    )
    seconds = CounterMetricFamily(
        "txproxy_offender_idle_seconds", "How long these were idle.", labels=labels
    )
    for each in worst:
        names = (_legible(each.database), _legible(each.user), _legible(each.tags))
        times.add_metric(names, each.times)
        seconds.add_metric(names, each.held)
    yield from (times, seconds)


def _proxy(server: "Server") -> Iterator[Metric]:
    version = GaugeMetricFamily("txproxy_build_info", "The version that runs.", labels=("version",))
    version.add_metric((__version__,), 1)
    yield version
    yield CounterMetricFamily(
        "txproxy_logins_refused", "Clients that were not let in.", value=server.logins_refused
    )
    for name, meaning, value in (
        ("client_connections", "Clients' sockets, before and after login.", server.client_count),
        (
            "max_client_connections",
            "How many of them are let in: max_client_conn.",
            server.config.max_client_conn,
        ),
    ):
        yield GaugeMetricFamily(f"txproxy_{name}", meaning, value=value)


def _legible(name: str) -> str:
    """Names are bytes to PostgreSQL; Prometheus takes UTF-8 only."""
    return name.encode("utf-8", "backslashreplace").decode()


# As text.


class _Piece(Collector):
    """One family, or some of its samples."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


async def exposition(families: Iterable[Metric]) -> bytes:
    """All of it in the text format 0.0.4.

    A hundred pools take a tenth of a second, which nobody shall wait for: it is made in pieces, and
    between them clients are served.
    """
    pieces: list[bytes] = []
    for family in families:
        for start in range(0, max(1, len(family.samples)), _AT_ONCE):
            piece = Metric(family.name, family.documentation, family.type)
            piece.samples = family.samples[start : start + _AT_ONCE]
            registry = CollectorRegistry()
            registry.register(_Piece(piece))
            text = generate_latest(registry)
            # What HELP and TYPE say stands only in front of the first piece.
            pieces.append(text if start == 0 else text.split(b"\n", 2)[2])
            await asyncio.sleep(0)
    return b"".join(pieces)
