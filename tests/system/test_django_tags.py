"""txproxy.django: a site's statements say which view they are of, and the proxy tells."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.system.console import SETTINGS, connect, one
from tests.system.proxy import Proxy, prepare, wait_until
from tests.system.test_django import Site
from txproxy.cli.embedded import EmbeddedPostgres


@pytest.fixture(scope="session")
def server(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """One version is enough: comments are nothing new."""
    return prepare(postgres)


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    databases: dict[str, Any] = {"app": {}, "quick": {"idle_transaction_timeout": "1s"}}
    return {"proxy": SETTINGS, "databases": databases}


@pytest.fixture(scope="module", params=["psycopg", "psycopg2"])
def site(module_proxy: Proxy, request: pytest.FixtureRequest) -> Iterator[Site]:
    site = Site(module_proxy, request.param)
    try:
        site.act("migrate")
        site.act("clear")
        yield site
        site.act("migrate_back")
    finally:
        site.close()


@pytest.mark.parametrize("scenario", ["tags_by_wsgi", "tags_by_asgi", "tags_of_threads"])
def test_statements_are_tagged(site: Site, proxy: Proxy, scenario: str) -> None:
    proxy.kwargs("app")
    site.act(scenario)


def test_the_view_that_left_a_transaction_open_is_told(site: Site, proxy: Proxy) -> None:
    proxy.kwargs("quick")
    site.act("sleep_in_a_view", lambda: proxy.wait_for("reaped", 1))
    [event] = proxy.events("reaped")
    expected = {"controller": "tests.system.django_site.tagged.asleep", "route": "/tagged/asleep"}
    assert event["tags"] == expected
    tags = ",".join(f"{key}='{value}'" for key, value in expected.items())
    with connect(proxy) as console:
        row = wait_until(lambda: one(console, "OFFENDERS", tags=tags), lambda seen: seen["process"])
    assert row["database"] == "quick"
    assert row["reaped"] >= 1
    assert row["idle_ms"] >= row["longest_ms"] >= 1000
    assert row["process"].endswith("-m tests.system.django_site")
