"""The servers that tests run against, and the event loop that they run on."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from txproxy.cli import embedded
from txproxy.cli.embedded import PORTS, EmbeddedPostgres


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], uvloop.Loop]]:
    """Tests run on the loop that the proxy runs on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """Workers share nothing: each starts servers of its own, on ports that are its own.

    A port where nobody listens may be that of a server which is down for a moment, or not yet up.
    """
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        # a worker that died is replaced by one with a higher number
        pytest.MonkeyPatch().setattr(embedded, "PORTS", PORTS[number % count :: count])


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for the whole run. A test that stops, restarts or kills one starts its own."""
    with EmbeddedPostgres(settings={"max_connections": 200}) as server:
        yield server


@pytest.fixture(scope="session")
def debian_bin_dir() -> Path:
    """The binaries of the newest PostgreSQL that Debian's packages have installed."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda path: float(path.parts[-3]), default=None)
    if newest is None:
        pytest.skip("no /usr/lib/postgresql/*/bin: Debian's postgresql is not installed")
    return newest.parent


@pytest.fixture(scope="session")
def debian_postgres(debian_bin_dir: Path) -> Iterator[EmbeddedPostgres]:
    """The same, of Debian's version: older than the embedded one, and with OpenSSL."""
    settings = {"max_connections": 200}
    with EmbeddedPostgres(bin_dir=debian_bin_dir, settings=settings) as server:
        yield server
