"""A proxy as its operator meets it: scraped, and told to read its configuration again."""

import http.client
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.system.proxy import DATABASE, PATIENCE, USER, Event, Proxy, Table, wait_until

SERIES: Final = {"database": DATABASE, "user": USER}
"""The labels of the pool that most tests use."""


class Scrape:
    """What Prometheus reads at one moment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {
            family.name: family for family in text_string_to_metric_families(text)
        }

    def value(self, name: str, **labels: str) -> float:
        """A sample of a family of ours, both named without txproxy_; 0 if it is not there."""
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == f"txproxy_{name}" and sample.labels == labels
        ]
        assert len(found) <= 1
        return found[0] if found else 0.0

    def totals(self) -> dict[str, float]:
        """What must never become less, by name: sums over all pools."""
        sums: dict[str, float] = {}
        for family in self.families.values():
            for sample in family.samples if family.type in {"counter", "histogram"} else ():
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums


class Running(Proxy):
    """The proxy, with [metrics]."""

    def _start(self) -> bool:
        # passwords may be in it
        self.config.touch(mode=0o600)
        return super()._start()

    def _toml(self) -> str:
        return super()._toml() + '[metrics]\nlisten = "127.0.0.1:0"\n'

    # Metrics.

    @property
    def metrics(self) -> tuple[str, int]:
        """Where they are served."""
        [ready] = self._find("ready", {}, 0)
        host, _, port = ready["metrics"].rpartition(":")
        return host, int(port)

    def http(self, path: str) -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection(*self.metrics, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def scrape(self) -> Scrape:
        status, text = self.http("/metrics")
        assert status == 200
        return Scrape(text)

    def scrape_until(self, name: str, value: float, **labels: str) -> Scrape:
        """Scrape until a sample has this value."""
        found = wait_until(self.scrape, lambda seen: seen.value(name, **labels) == value)
        assert found.value(name, **labels) == value
        return found

    # Configuration.

    @property
    def config(self) -> Path:
        """The file."""
        return Path(self._directory.name, "proxy.toml")

    def change(
        self,
        proxy: Table | None = None,
        databases: Mapping[str, Table | None] | None = None,
        users: Mapping[str, Table | None] | None = None,
    ) -> Event:
        """Change the file, reload, and wait until that is done. A table that is None is removed."""
        self._proxy = {**self._proxy, **(proxy or {})}
        self._databases = _changed(self._databases, databases or {})
        self._users = _changed(self._users, users or {})
        self.config.write_text(self._toml(), encoding="utf-8")
        return self.reload()

    def reload(self, outcome: str = "reloaded") -> Event:
        """SIGHUP; returns the event that tells how it ended."""
        before = len(self._outcomes())
        self.signal(signal.SIGHUP)
        with self._news:
            self._news.wait_for(lambda: len(self._outcomes()) > before, PATIENCE)
        [ended] = self._outcomes()[before:]
        assert ended["event"] == outcome, ended
        return ended

    def _outcomes(self) -> list[Event]:
        return [
            event for event in self._events if event.get("event") in {"reloaded", "not reloaded"}
        ]

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal, and do not wait."""
        assert self._process is not None
        self._process.send_signal(signum)


def _changed(tables: Mapping[str, Table], changes: Mapping[str, Table | None]) -> dict[str, Table]:
    merged = {**tables, **changes}
    return {name: table for name, table in merged.items() if table is not None}


def backend_pid(connection: psycopg.Connection[Any]) -> int:
    """The server's process that answered, in autocommit."""
    [pid] = connection.execute("SELECT pg_backend_pid()").fetchone() or [0]
    assert isinstance(pid, int)
    return pid


def line_of(config: Path, key: str) -> int:
    """The number of the line that sets this key."""
    lines = config.read_text(encoding="utf-8").splitlines()
    [found] = [number for number, line in enumerate(lines, 1) if re.match(rf"{key}\s*=", line)]
    return found
