"""What the metrics endpoint sees of a proxy, without one: pools are scenarios (tests/core)."""

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from tests.core.scenario import World
from txproxy.core.offenders import Offenders
from txproxy.core.pool import Pool
from txproxy.core.sqlite import Endpoint
from txproxy.core.stats import Stats

if TYPE_CHECKING:
    from txproxy.net.server import Server


class FakeServer:
    """The attributes of Server that net/metrics.py, collector.py and page.py read."""

    def __init__(self, *worlds: World) -> None:
        self.pools: dict[tuple[str, str], Pool] = {}
        self.now = 1000.0
        self.time = 5000.0
        self.clients: set[object] = set()
        self.draining = False
        self.addresses = ["127.0.0.1:6432"]
        self.config = SimpleNamespace(max_client_conn=100)
        self.passed_at = self.time
        self.logins_refused = 0
        self.admin = SimpleNamespace(paused="")
        self.offenders = Offenders()
        self.sqlite = Endpoint()
        self.bugs: list[Exception] = []
        for world in worlds:
            self.add(world)

    def add(self, world: World) -> None:
        pool = world.pool
        self.pools[(pool.settings.database, pool.settings.user)] = pool

    @property
    def client_count(self) -> int:
        return len(self.clients)

    def clock(self) -> float:
        return self.time

    def is_console(self, database: str) -> bool:
        return database == "txproxy"

    def all_stats(self) -> list[tuple[str, str, Stats]]:
        return [(*key, pool.stats) for key, pool in self.pools.items()]

    def log_bug(self, _where: str, error: Exception) -> None:
        self.bugs.append(error)


def as_server(fake: FakeServer) -> "Server":
    """The same object, for whoever wants a Server."""
    return cast("Server", fake)


def named(name: str) -> World:
    """A pool whose database and user are called so."""
    world = World()
    world.pool.settings = replace(world.pool.settings, database=name, user=name)
    world.pool.name = f"{name}/{name}"
    return world
