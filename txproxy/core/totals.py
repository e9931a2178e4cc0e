"""SHOW STATS and its kin: what each database has done since the start, and on average.

Averages are PgBouncer's: over the time since the beginning of the last complete stats_period, so
over one to two of them; counters and bytes a second, times as explained at `_averages`.

Source: PgBouncer 1.25, stats.c.
"""

from typing import Final

from txproxy.core.rows import Column, Value, columns
from txproxy.core.stats import Stats

_MICROSECONDS: Final = 1_000_000

_COUNTERS: Final = (
    ("server_assignment_count", "assignments"),
    ("xact_count", "xacts"),
    ("query_count", "queries"),
    ("received", "received"),
    ("sent", "sent"),
    ("xact_time", "xact_time"),
    ("query_time", "query_time"),
    ("wait_time", "wait_time"),
    ("client_parse_count", "client_parses"),
    ("server_parse_count", "server_parses"),
    ("bind_count", "binds"),
)
"""PgBouncer's name in SHOW STATS, less total_, and the counter of Stats."""

_PER: Final = {"xact_time": "xacts", "query_time": "queries"}
"""Times whose average is for each of these; of all others it is for each second."""

_IN_AVERAGES: Final = {"received": "recv"}
_IN_SUBSETS: Final = {"received": "bytes_received", "sent": "bytes_sent"}
_IN_TOTALS: Final = {
    "received": "client_bytes",
    "sent": "server_bytes",
    "client_parse_count": "ps_client_parse_count",
    "server_parse_count": "ps_server_parse_count",
    "bind_count": "ps_bind_count",
}
"""What PgBouncer calls the same thing elsewhere."""

_NAMES: Final = [name for name, _ in _COUNTERS]
_SUBSET: Final = " ".join(["database:text", *(_IN_SUBSETS.get(name, name) for name in _NAMES)])

COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "STATS": columns(
        " ".join(
            [
                "database:text",
                *(f"total_{name}" for name in _NAMES),
                *(f"avg_{_IN_AVERAGES.get(name, name)}" for name in _NAMES),
            ]
        )
    ),
    "STATS_TOTALS": columns(_SUBSET),
    "STATS_AVERAGES": columns(_SUBSET),
    "TOTALS": columns("name:text value"),
}


class Averages:
    """What the counters of each database were at the beginnings of the last two periods."""

    def __init__(self, now: float) -> None:
        self._older: dict[str, Stats] = {}
        self._newer: dict[str, Stats] = {}
        self._older_at = now
        self._newer_at = now

    def period(self, now: float, stats: dict[str, Stats]) -> None:
        """A period is over: these are the counters, which must not change any more."""
        self._older, self._newer = self._newer, stats
        self._older_at, self._newer_at = self._newer_at, now

    def rows(self, table: str, now: float, stats: dict[str, Stats]) -> list[tuple[Value, ...]]:
        """The rows of one of COLUMNS: `stats` are the counters of each database at this moment."""
        if table == "TOTALS":
            return self._totals(now, stats)
        found: list[tuple[Value, ...]] = []
        for database, current in stats.items():
            row: list[Value] = [database]
            if table != "STATS_AVERAGES":
                row += _whole(current)
            if table != "STATS_TOTALS":
                row += self._averages(now, current, [database])
            found.append(tuple(row))
        return found

    def _totals(self, now: float, stats: dict[str, Stats]) -> list[tuple[Value, ...]]:
        total = Stats()
        for each in stats.values():
            total.add(each)
        names = [_IN_TOTALS.get(name, name) for name in _NAMES]
        averages = self._averages(now, total, list(stats))
        found: list[tuple[Value, ...]] = []
        for prefix, values in (("total", _whole(total)), ("avg", averages)):
            found += [(f"{prefix}_{name}", values[i]) for i, name in enumerate(names)]
        return found

    def _averages(self, now: float, current: Stats, databases: list[str]) -> list[int]:
        """Of these databases together. A transaction's and a statement's time is for each of them,
        the time waited for each second.
        """
        before = Stats()
        for database in databases:
            if database in self._older:
                before.add(self._older[database])
        seconds = now - self._older_at
        return [_average(name, counter, current, before, seconds) for name, counter in _COUNTERS]


def _average(name: str, counter: str, current: Stats, before: Stats, seconds: float) -> int:
    divisor = seconds
    if counter in _PER:
        divisor = _since(_PER[counter], current, before)
    if divisor <= 0:
        return 0
    return _unit(name, _since(counter, current, before) / divisor)


def _since(counter: str, current: Stats, before: Stats) -> float:
    value: float = getattr(current, counter) - getattr(before, counter)
    return max(0.0, value)


def _whole(stats: Stats) -> list[int]:
    return [_unit(name, getattr(stats, counter)) for name, counter in _COUNTERS]


def _unit(name: str, value: float) -> int:
    return round(value * _MICROSECONDS) if name.endswith("_time") else int(value)
