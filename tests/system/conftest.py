"""One proxy for the tests of a module, and after each test a look at what it left behind."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.system.proxy import Proxy, prepare
from txproxy.cli.embedded import EmbeddedPostgres


@pytest.fixture(scope="session", params=["postgres", "debian_postgres"], ids=["new", "old"])
def server(request: pytest.FixtureRequest) -> EmbeddedPostgres:
    """Each server in turn: the embedded one, and Debian's."""
    found: EmbeddedPostgres = request.getfixturevalue(request.param)
    return prepare(found)


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    """What the module's proxy is started with: keyword arguments of Proxy."""
    return {}


@pytest.fixture(scope="module")
def module_proxy(server: EmbeddedPostgres, proxy_settings: Mapping[str, Any]) -> Iterator[Proxy]:
    """The module's proxy."""
    with Proxy(server, **proxy_settings) as proxy:
        yield proxy


@pytest.fixture
def proxy(module_proxy: Proxy) -> Iterator[Proxy]:
    """The module's proxy, whose log begins anew; after the test all of its backends are clean."""
    module_proxy.mark()
    yield module_proxy
    module_proxy.assert_clean()
