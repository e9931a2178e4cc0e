"""Django through the proxy, with both drivers: a process of its own, which acts out scenarios."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.system.proxy import Proxy, backends
from txproxy.cli.embedded import EmbeddedPostgres

ROOT: Final = Path(__file__).parents[2]


class Site:
    """The site's process: `act(scenario)` has it act one out, `on_sleep` runs when it sleeps."""

    def __init__(self, proxy: Proxy, driver: str) -> None:
        where = proxy.kwargs()
        command = [sys.executable, "-m", "tests.system.django_site"]
        self._process = subprocess.Popen(
            [*command, driver, where["host"], str(where["port"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith("PG")},
        )

    def act(self, scenario: str, on_sleep: Callable[[], object] | None = None) -> None:
        self._write(scenario)
        while True:
            answer = self._read()
            if "sleep" not in answer:
                break
            assert on_sleep is not None, f"{scenario} sleeps"
            on_sleep()
            self._write("go on")
        if "failed" in answer:
            pytest.fail(answer["failed"], pytrace=False)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the site has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {"databases": {"app": {}, "quick": {"idle_transaction_timeout": "1s"}}}


@pytest.fixture(scope="module", params=["psycopg", "psycopg2"])
def module_site(
    server: EmbeddedPostgres, module_proxy: Proxy, request: pytest.FixtureRequest
) -> Iterator[Site]:
    if request.param == "psycopg2" and int(server.version.split(".")[0]) < 18:
        pytest.skip("Django with psycopg 2 is tested on the newest server only")
    site = Site(module_proxy, request.param)
    try:
        site.act("migrate")
        yield site
        site.act("migrate_back")
    finally:
        site.close()


@pytest.fixture
def site(module_site: Site, proxy: Proxy) -> Site:
    """The site, whose connections are closed after each scenario; then its backends are clean."""
    proxy.kwargs("quick")
    return module_site


@pytest.mark.parametrize(
    "scenario",
    [
        "atomic",
        "threads",
        "atomic_requests",
        "persistent_connections",
        "time_zones",
        "iterators",
        "settings_of_each_thread",
        "bulk",
    ],
)
def test_work(site: Site, proxy: Proxy, scenario: str) -> None:
    proxy.kwargs("app")
    site.act(scenario)
    assert len(backends(proxy.server)) <= 4
    assert proxy.events("reaped") == []


@pytest.mark.parametrize(
    "scenario",
    [
        "sleep_in_atomic",
        "sleep_before_commit",
        "sleep_in_savepoint",
        "sleep_and_roll_back",
        "reads_left_open",
        "reads_left_open_and_checked",
    ],
)
def test_sleepers(site: Site, proxy: Proxy, scenario: str) -> None:
    slept = 0

    def until_reaped() -> None:
        nonlocal slept
        slept += 1
        proxy.wait_for("reaped", slept)

    site.act(scenario, until_reaped)
    assert slept > 0
    assert len(backends(proxy.server)) <= 4


def test_more_sleepers_than_backends(site: Site, proxy: Proxy) -> None:
    site.act("reads_left_open_by_many")
    assert len(backends(proxy.server)) <= 4


def test_migrations(site: Site) -> None:
    site.act("migrate_back")
    site.act("migrate")
