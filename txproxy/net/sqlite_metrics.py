"""What Prometheus is told of SQLite files: the process's last report, by database."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from txproxy.core.sqlite import Endpoint

COUNTERS: Final = {
    "statements": ("statements", "Statements executed."),
    "writes": ("writes", "Statements that wrote."),
    "commits": ("commits", "Commits of clients' transactions and of statements by themselves."),
    "batches": ("batches", "Commits of the file: one is for all who wrote meanwhile."),
    "checkpoints": ("checkpoints", "Checkpoints: the WAL was moved into the file."),
    "busy_foreign": ("busy_foreign", "Times that a process that is no client held the lock."),
    "reaped": ("transactions_reaped", "Idle transactions ended, their clients alive."),
    "rolled_back": ("transactions_rolled_back", "Transactions that did not come to a commit."),
}
"""For each of core.sqlite.COUNTERS the metric's name, less txproxy_sqlite_ and _total."""

GAUGES: Final = {
    "queue": ("waiting", "Clients that wait for their turn to write."),
    "longest_wait_now": ("oldest_wait_seconds", "How long the one has waited that has longest."),
    "wal_bytes": ("wal_bytes", "Size of the WAL."),
    "readers": ("readers", "Snapshots that the process holds for clients."),
    "oldest_reader": ("oldest_reader_seconds", "How long the oldest of them has been held."),
    "batch_max": ("batch_max", "The most clients' commits that shared one commit of the file."),
    "moved": ("moved", "1 if the file was replaced: writes are refused until RECONNECT."),
}
"""For each attribute of FileReport the metric's name, less txproxy_sqlite_."""

STATES: Final = ("active", "idle_in_transaction", "waiting", "idle")


def collect(endpoint: Endpoint) -> Iterator[Metric]:
    """Every family; none where no SQLite process was ever started."""
    if not endpoint.starts:
        return
    yield GaugeMetricFamily(
        "txproxy_sqlite_up", "1 while the SQLite process runs.", endpoint.running
    )
    yield CounterMetricFamily(
        "txproxy_sqlite_starts", "Times that the SQLite process was started.", endpoint.starts
    )
    for counter, (name, meaning) in COUNTERS.items():
        family = CounterMetricFamily(f"txproxy_sqlite_{name}", meaning, labels=("database",))
        for database, totals in endpoint.totals().items():
            family.add_metric((database,), totals[counter])
        yield family
    yield from _gauges(endpoint)
    yield _clients(endpoint)


def _gauges(endpoint: Endpoint) -> Iterator[Metric]:
    for attribute, (name, meaning) in GAUGES.items():
        family = GaugeMetricFamily(f"txproxy_sqlite_{name}", meaning, labels=("database",))
        for report in endpoint.files.values():
            family.add_metric((endpoint.name(report),), getattr(report, attribute))
        yield family
    yield _checkpoint_age(endpoint)


def _checkpoint_age(endpoint: Endpoint) -> Metric:
    family = GaugeMetricFamily(
        "txproxy_sqlite_checkpoint_age_seconds", "Since the last checkpoint.", labels=("database",)
    )
    for report in endpoint.files.values():
        if report.last_checkpoint >= 0:
            family.add_metric((endpoint.name(report),), report.last_checkpoint)
    return family


def _clients(endpoint: Endpoint) -> Metric:
    family = GaugeMetricFamily(
        "txproxy_sqlite_clients",
        "Clients by state: active, idle_in_transaction, waiting (for their turn to write), idle.",
        labels=("database", "state"),
    )
    states: dict[str, Counter[str]] = {}
    for client in endpoint.clients.values():
        state = endpoint.session(client).state.replace(" ", "_")
        states.setdefault(client.database, Counter())[state] += 1
    for database, counts in sorted(states.items()):
        for state in STATES:
            family.add_metric((database, state), counts[state])
    return family
