"""The setups that idle_in_transaction.py measures: poolers and their clients."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from poolers import (
    DIRECT,
    HOST,
    PGBOUNCER,
    TXPROXY,
    USER,
    Pooling,
    Target,
    start_pgbouncer,
    txproxy,
)
from statements import PAGE

from txproxy.cli.embedded import EmbeddedPostgres

POOL_SIZE: Final = 10
TIMEOUT: Final = 1  # seconds: idle_transaction_timeout, where there is one
LEAD: Final = 2.0  # seconds until the sleepers come
DIRECT_LIMIT: Final = 300  # clients that a server has processes for
ALONE: Final = "active alone"
SLEEPERS: Final = "sleepers"
WITH_TIMEOUT: Final = f"{SLEEPERS}, timeout {TIMEOUT} s"
OFF: Final = f"{SLEEPERS}, early_release off"
OFF_WITH_TIMEOUT: Final = f"{OFF}, timeout {TIMEOUT} s"


@dataclass(frozen=True)
class Configuration:
    """What is measured: a target, named by its pooler, and who its clients are."""

    pooler: str
    load: str
    target: Target

    def __str__(self) -> str:
        return f"{self.pooler}, {self.load}"


def start(
    stack: contextlib.ExitStack, server: EmbeddedPostgres, root: Path, clients: int
) -> list[Configuration]:
    """Start the poolers; the stack stops them. Each way to set one up is a process of its own."""

    def pooling(more: str) -> Pooling:
        return Pooling(POOL_SIZE, 2 * clients, more)

    found = []
    if clients <= DIRECT_LIMIT:
        found += [Configuration(DIRECT, SLEEPERS, Target(DIRECT, server.port))]
    stats = f"stats_users = {USER}\n"
    for target in start_pgbouncer(stack, server.port, root / "bouncer", pooling(stats)):
        found += [Configuration(PGBOUNCER, load, target) for load in (ALONE, SLEEPERS)]
    timeout = f"{stats}idle_transaction_timeout = {TIMEOUT}\n"
    for target in start_pgbouncer(stack, server.port, root / "bouncer-timeout", pooling(timeout)):
        found += [Configuration(PGBOUNCER, WITH_TIMEOUT, target)]

    def one(name: str, more: str) -> Target:
        more = f'stats_users = ["{USER}"]\n{more}'
        return stack.enter_context(txproxy(server.port, root / name, pooling(more)))

    off = 'early_release = "off"\n'
    timeout = f"{off}idle_transaction_timeout = {TIMEOUT}\n"
    usual = one("txproxy", "")
    return [
        *found,
        Configuration(TXPROXY, ALONE, usual),
        Configuration(TXPROXY, OFF, one("txproxy-off", off)),
        Configuration(TXPROXY, OFF_WITH_TIMEOUT, one("txproxy-timeout", timeout)),
        Configuration(TXPROXY, SLEEPERS, usual),
    ]


def make_page(server: EmbeddedPostgres) -> None:
    """The table that sleepers read."""
    where = f"host={HOST} port={server.port} user={USER} dbname={USER}"
    with psycopg.connect(where, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {PAGE} AS SELECT 1 AS id")
