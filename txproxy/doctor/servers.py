"""A proxy's configuration against its servers: their limits, and who is idle in transactions there;
and the SQLite files that it names.

It asks the servers, as the users whose passwords the configuration has; the proxy need not run.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from txproxy.backends import asking
from txproxy.config import ANY_DATABASE, Config, PoolSettings
from txproxy.doctor.finding import Finding, Section, count, ok, printable, problem, warning
from txproxy.doctor.sqlite import examine, is_database

_ASK: Final = """
SELECT pg_catalog.current_setting('max_connections')::int
    - pg_catalog.current_setting('superuser_reserved_connections')::int
    - COALESCE(pg_catalog.current_setting('reserved_connections', true)::int, 0) AS slots,
    (SELECT setting::int FROM pg_catalog.pg_settings
     WHERE name = 'idle_in_transaction_session_timeout') / 1000.0 AS timeout,
    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
     WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()) AS clients,
    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
     WHERE state LIKE 'idle in transaction%') AS idle,
    COALESCE((SELECT pg_catalog.max(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - state_change))
     FROM pg_catalog.pg_stat_activity
     WHERE state LIKE 'idle in transaction%'), 0)::float8 AS longest
"""
_LONG: Final = 10.0  # seconds that nobody should be idle in a transaction
_NAME: Final = "txproxy doctor"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server has said, and what the proxy may ask of it."""

    pools: int  # connections that all pools together may have; reserves included
    more: bool  # pools of users or databases that the configuration does not name come on top
    reaps: float  # the pools' shortest idle_transaction_timeout, seconds; 0: never
    slots: int = 0  # connections that it has for ordinary users
    timeout: float = 0.0  # idle_in_transaction_session_timeout, seconds; 0: never
    clients: int = 0
    idle: int = 0  # sessions that are idle in a transaction, as far as this user may see
    longest: float = 0.0  # seconds
    failure: str = ""  # it could not be asked


def examine_configuration(config: Config) -> Iterator[Section]:
    """Judge each server and each SQLite file of a configuration."""
    yield from examine_servers(config)
    for path in sqlite_files(config):
        yield examine(path)


def sqlite_files(config: Config) -> Iterator[str]:
    """The files that are configured by name, and the databases in a configured directory."""
    named = [file.path for file in config.sqlite.values() if file.path]
    yield from named
    for file in config.sqlite.values():
        if file.directory:
            for path in sorted(Path(file.directory).glob("*")):
                if str(path) not in named and is_database(str(path)):
                    yield str(path)


def examine_servers(config: Config) -> Iterator[Section]:
    """Ask each server once, and judge it."""
    for pools in _by_server(config):
        facts = asyncio.run(server_facts(config, pools))
        where = f"{', '.join(pools[0].hosts)} port {pools[0].port}"
        yield Section(f"server {printable(where)}", tuple(judge(facts)))


def _by_server(config: Config) -> Iterable[list[PoolSettings]]:
    """The pools that the configuration names, by server."""
    found: dict[tuple[object, int], list[PoolSettings]] = {}
    for name, database in config.databases.items():
        for user in [database.user] if database.user else [*config.users, ""]:
            pool = config.pool_settings(name, user)
            if pool is not None:
                found.setdefault((pool.hosts, pool.port), []).append(pool)
    return found.values()


async def server_facts(config: Config, pools: list[PoolSettings]) -> ServerFacts:
    """Ask a server by one of its pools whose password is known, else by any of a user's."""
    named = [pool for pool in pools if pool.server_user and pool.database != ANY_DATABASE]
    sessions = [config.session_settings(pool.database, pool.server_user) for pool in pools]
    facts = ServerFacts(
        pools=_most(named),
        more=len(named) < len(pools),
        reaps=min((each.idle_transaction_timeout for each in sessions if each), default=0.0),
    )
    named.sort(key=lambda pool: pool.password is None or pool.password.kind != "plain")
    if not named:
        return _with(facts, {"failure": "no database and user of it are named"})
    try:
        connection = await asking.connect(named[0], _NAME)
        try:
            said = dict(await connection.fetchrow(_ASK, timeout=asking.PATIENCE))
        finally:
            await asking.take_leave(connection)
    except Exception as error:  # noqa: BLE001 whatever asyncpg, the network and TLS raise
        return _with(facts, {"failure": str(error) or type(error).__name__})
    return _with(facts, said | {"timeout": float(said["timeout"])})


def _with(facts: ServerFacts, said: dict[str, Any]) -> ServerFacts:
    return ServerFacts(**{"pools": facts.pools, "more": facts.more, "reaps": facts.reaps} | said)


def _most(pools: Iterable[PoolSettings]) -> int:
    """What pools may have together: each database's at most its max_db_connections."""
    by_database: dict[str, tuple[int, int]] = {}
    for pool in pools:
        had, _ = by_database.get(pool.database, (0, 0))
        wanted = had + pool.pool_size + pool.reserve_pool_size
        by_database[pool.database] = wanted, pool.max_db_connections
    return sum(min(wanted, limit or wanted) for wanted, limit in by_database.values())


def judge(facts: ServerFacts) -> Iterator[Finding]:
    """What is to be said about a server."""
    if facts.failure:
        yield warning(
            "server",
            f"it cannot be asked: {printable(facts.failure)}",
            "Start it, or give [users.…] a user's plain password, and run this again.",
        )
        return
    yield _connections(facts)
    if facts.idle and facts.longest > _LONG:
        yield warning(
            "idle transactions",
            f"{count(facts.idle, 'session')} idle in a transaction now, one for"
            f" {facts.longest:.0f} s",
            "Find whose: SHOW TRANSACTIONS on the console, or pg_stat_activity on the server.",
        )
    else:
        yield ok("idle transactions", f"{count(facts.idle, 'session')} that this user may see")
    yield _timeout(facts)


def _connections(facts: ServerFacts) -> Finding:
    more = ", and those of others as they come" if facts.more else ""
    found = (
        f"pools may have {facts.pools}{more}; the server has {facts.slots}, {facts.clients} used"
    )
    if facts.pools > facts.slots:
        advice = "Lower pool_size, set max_db_connections, or raise the server's max_connections."
        return problem("connections", found, advice)
    return ok("connections", found)


def _timeout(facts: ServerFacts) -> Finding:
    about = "idle in transaction"
    if facts.timeout and (not facts.reaps or facts.timeout <= facts.reaps):
        return warning(
            about,
            f"the server ends such a session after {facts.timeout:g} s, before the proxy would roll"
            " it back: its client loses its connection",
            "Raise idle_in_transaction_session_timeout, or lower idle_transaction_timeout.",
        )
    if not facts.timeout and not facts.reaps:
        return warning(
            about,
            "neither the proxy nor the server ends transactions that are idle",
            "Set idle_transaction_timeout in the configuration.",
        )
    proxy = f"the proxy rolls back after {facts.reaps:g} s" if facts.reaps else "the proxy: never"
    server = f"the server after {facts.timeout:g} s" if facts.timeout else "the server: never"
    return ok(about, f"{proxy}; {server}")
