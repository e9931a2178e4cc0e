"""Which pools lead to a database of a server, and what is said of those that leave it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from tests.core.scenario import POOL_SETTINGS, FakeBackend, World
from txproxy.config import PoolSettings
from txproxy.core.backend import Backend
from txproxy.core.claims import Claim
from txproxy.core.exchange import Exchange
from txproxy.core.pool import Pool
from txproxy.net.databases import Databases
from txproxy.net.server import Server
from txproxy.wire.codes import QUERY


class NobodyAsks:
    """A monitor without connections."""

    def leave(self, leads_there: Callable[[PoolSettings], bool]) -> list[PoolSettings]:
        del leads_there
        return []


class FakeServer:
    """What Databases asks of the server, and its log."""

    def __init__(self, *pools: Pool, asked: PoolSettings | None = None) -> None:
        self.pools = dict(enumerate(pools))
        self.orphans: set[Pool] = set()
        self.authenticator = self
        self.monitor = NobodyAsks()
        self.time = 100.0
        self.log: list[tuple[str, dict[str, object]]] = []
        self._asked = asked

    def clock(self) -> float:
        return self.time

    def event(self, name: str, fields: dict[str, object]) -> None:
        self.log.append((name, fields))

    def leave(self, leads_there: Callable[[PoolSettings], bool]) -> list[PoolSettings]:
        return [self._asked] if self._asked and leads_there(self._asked) else []

    @property
    def databases(self) -> Databases:
        return Databases(cast("Server", self))


def world(**settings: Any) -> World:
    """One pool, with an idle backend."""
    made = World(**settings)
    made.pool.connecting = made.wanted_connections = 1
    made.connects()
    return made


def claim(on: World) -> Claim:
    """A statement on a backend of this pool that has not been answered."""
    backend = Backend(on.pool, FakeBackend(on, {}), {})
    exchange = Exchange(QUERY, True)
    backend.fifo.exchanges.append(exchange)
    return Claim(backend, exchange)


@pytest.mark.parametrize(
    ("host", "leaves"),
    [
        ("10.0.0.1", {"hosts": ("10.0.0.1",)}),
        ("10.0.0.1", {"hosts": ("10.0.0.2", "10.0.0.1")}),
        ("localhost", {"hosts": ("/run/postgresql",)}),
        ("127.0.0.1", {"hosts": ("::1",)}),
        ("10.0.0.1", {"hosts": ("10.0.0.1",), "database": "another name", "user": "somebody"}),
    ],
)
def test_it_is_the_same_server(host: str, leaves: dict[str, Any]) -> None:
    asking, other = world(hosts=(host,), dbname="admin"), world(**leaves)
    server = FakeServer(asking.pool, other.pool)
    server.databases.claimed(asking.pool, ["app"], claim(asking))
    assert not other.pool.backends
    assert len(asking.pool.backends) == 1
    fields = {"database": "app", "connections": 1, "pool": asking.pool.name}
    assert server.log == [("left database", fields)]


@pytest.mark.parametrize(
    "stays",
    [{"hosts": ("10.0.0.2",)}, {"port": 5433}, {"dbname": "App"}, {"hosts": ("/run/postgresql",)}],
)
def test_it_is_another_server_or_database(stays: dict[str, Any]) -> None:
    asking = world(hosts=("10.0.0.1",), dbname="admin")
    other = world(**{"hosts": ("10.0.0.1",), **stays})
    server = FakeServer(asking.pool, other.pool)
    server.databases.claimed(asking.pool, ["app"], claim(asking))
    assert len(other.pool.backends) == 1
    assert server.log == []


def test_a_pool_whose_database_is_no_longer_configured_leaves() -> None:
    asking, orphan = world(dbname="admin"), world()
    server = FakeServer(asking.pool)
    server.orphans.add(orphan.pool)
    server.databases.claimed(asking.pool, ["app"], claim(asking))
    assert not orphan.pool.backends


def test_connections_that_ask_for_passwords_are_counted() -> None:
    asking = world(dbname="admin")
    server = FakeServer(asking.pool, asked=replace(POOL_SETTINGS, server_user="asker"))
    server.databases.claimed(asking.pool, ["app", "none"], claim(asking))
    assert [fields["connections"] for _, fields in server.log] == [1]


def test_a_line_a_second_for_each_database() -> None:
    asking = world(dbname="admin")
    server = FakeServer(asking.pool, asked=POOL_SETTINGS)
    databases = server.databases
    databases.claimed(asking.pool, ["app"], claim(asking))
    server.time += 0.9
    databases.claimed(asking.pool, ["app"], claim(asking))
    assert len(server.log) == 1
    server.time += 0.2
    databases.claimed(asking.pool, ["app"], claim(asking))
    assert len(server.log) == 2


def test_new_defaults_are_those_of_all_databases_of_the_server() -> None:
    asking, same, other = world(dbname="admin"), world(), world(port=5433)
    server = FakeServer(asking.pool, same.pool, other.pool)
    server.databases.defaults_changed(asking.pool)
    assert not asking.pool.backends
    assert not same.pool.backends
    assert len(other.pool.backends) == 1
