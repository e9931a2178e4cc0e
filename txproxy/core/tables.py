"""What the console shows: columns and rows of each SHOW.

Columns are PgBouncer's in PgBouncer's order, ours after them; what each of them means, and which of
PgBouncer's have no meaning here, is in docs/console.md.

Source: PgBouncer 1.25, admin.c.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from txproxy.config import CONSOLE_DATABASES, SETTINGS, Config, PoolSettings, shown, shown_default
from txproxy.core import offenders, sockets, sqlite_tables, totals
from txproxy.core.console import COMMANDS, ROLES, STATS
from txproxy.core.rows import Column, Table, columns
from txproxy.core.view import (
    Row,
    ServerView,
    View,
    all_pools,
    database_names,
    is_console,
    server_state,
    servers,
    split_seconds,
)

if TYPE_CHECKING:
    from txproxy.core.pool import Pool
    from txproxy.core.stats import Stats

COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "POOLS": columns(
        "database:text user:text cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req"
        " sv_active sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait"
        " maxwait_us pool_mode:text load_balance_hosts:text"
    ),
    "DATABASES": columns(
        "name:text host:text port database:text force_user:text pool_size min_pool_size"
        " reserve_pool_size server_lifetime pool_mode:text load_balance_hosts:text max_connections"
        " current_connections max_client_connections current_client_connections paused disabled"
    ),
    "USERS": columns(
        "name:text pool_size reserve_pool_size pool_mode:text max_user_connections"
        " current_connections max_user_client_connections current_client_connections"
    ),
    "LISTS": columns("list:text items"),
    "CONFIG": columns("key:text value:text default:text changeable:text"),
    "MEM": columns("name:text size used free memtotal"),
    "STATE": columns("key:text value:text"),
    "VERSION": columns("version:text"),
    "HELP": columns("command:text who:text meaning:text"),
    **sockets.COLUMNS,
    **offenders.COLUMNS,
    **sqlite_tables.COLUMNS,
    **totals.COLUMNS,
}


def show(name: str, view: View) -> Table:
    """One table, by its name in COLUMNS."""
    if name in totals.COLUMNS:
        rows = view.averages.rows(name, view.server.now, stats_by_database(view.server))
    else:
        rows = _ROWS[name](view)
    return Table(COLUMNS[name], rows)


def stats_by_database(server: ServerView) -> "dict[str, Stats]":
    """The counters of each database that has been used or is configured."""
    found = {name: server.stats_of(name) for name in database_names(server)}
    files = server.sqlite.databases(server.config)
    return found | {name: server.sqlite.stats_of(name) for name in files}


# Pools, databases, users.


def _pools(view: View) -> list[Row]:
    return [_pool(pool, view) for pool in all_pools(view.server)] + sqlite_tables.pools(view)


def _pool(pool: "Pool", view: View) -> Row:
    settings = pool.settings
    idle = set(pool.idle)
    states = [server_state(backend, idle) for backend in servers(pool)]
    now = view.server.now
    waiting = [now - session.queued_at for session in pool.sessions if session.queued]
    maxwait, maxwait_us = split_seconds(max(waiting, default=0.0))
    return (
        settings.database,
        settings.server_user,
        len(pool.sessions) - len(waiting),
        len(waiting),
        0,
        0,
        states.count("active"),
        sum(backend.cancels for backend in servers(pool)),
        states.count("being_canceled"),
        states.count("idle"),
        0,
        states.count("tested"),
        0 if is_console(pool) else pool.connecting,
        maxwait,
        maxwait_us,
        _pool_mode(pool, view.server.config),
        _load_balancing(settings),
    )


def _pool_mode(pool: "Pool", config: Config) -> str:
    """That of its server's user; clients of others may have another."""
    said = config.session_settings(pool.settings.database, pool.settings.server_user)
    return said.pool_mode if said is not None else config.pool_mode


def _databases(view: View) -> list[Row]:
    found = [_database(name, view) for name in database_names(view.server)]
    return found + sqlite_tables.databases(view)


def _database(name: str, view: View) -> Row:
    config = view.server.config
    group = view.server.databases.get(name)
    limit, client_limit = config.database_limits(name)
    now = (
        limit,
        group.connections if group and name not in CONSOLE_DATABASES else 0,
        client_limit,
        group.clients if group else 0,
        int(group.paused) if group else 0,
        int(group.disabled) if group else 0,
    )
    configured = config.database(name)
    pool = config.pool_settings(name, "")
    if name in CONSOLE_DATABASES or configured is None or pool is None:
        return (name, *(None,) * 10, *now)
    return (
        name,
        ",".join(pool.hosts),
        pool.port,
        pool.dbname,
        configured.user,
        pool.pool_size,
        pool.min_pool_size,
        pool.reserve_pool_size,
        int(pool.server_lifetime),
        configured.pool_mode,
        _load_balancing(pool),
        *now,
    )


def _load_balancing(pool: PoolSettings) -> str | None:
    return pool.load_balance_hosts if len(pool.hosts) > 1 else None


def _users(view: View) -> list[Row]:
    server = view.server
    found: list[Row] = []
    for name in sorted(set(server.users) | set(server.config.users)):
        own = server.config.users.get(name)
        group = server.users.get(name)
        limit, client_limit = server.config.user_limits(name)
        found.append(
            (
                name,
                own.pool_size if own else None,
                own.reserve_pool_size if own else None,
                own.pool_mode if own else None,
                limit,
                group.connections if group else 0,
                client_limit,
                group.clients if group else 0,
            )
        )
    return found


# The proxy itself.


def _lists(view: View) -> list[Row]:
    server = view.server
    pools = all_pools(server)
    return [
        ("databases", len(database_names(server)) + len(server.sqlite.databases(server.config))),
        ("users", len(set(server.users) | set(server.config.users))),
        ("peers", 0),
        ("pools", len(_pools(view))),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", sum(len(pool.sessions) for pool in pools) + len(server.sqlite.clients)),
        ("login_clients", view.logins),
        ("free_servers", 0),
        ("used_servers", sum(len(list(servers(pool))) for pool in pools)),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ]


def _config(view: View) -> list[Row]:
    return sorted(
        (
            setting.name,
            shown(view.server.config, setting),
            shown_default(setting),
            "yes" if setting.reloads else "no",
        )
        for setting in SETTINGS
        if "proxy" in setting.tables or "metrics" in setting.tables
    )


def _mem(view: View) -> list[Row]:
    pools = all_pools(view.server)
    used = (
        ("client_cache", sum(len(pool.sessions) for pool in pools)),
        ("server_cache", sum(len(list(servers(pool))) for pool in pools)),
        ("pool_cache", len(pools)),
        ("db_cache", len(view.server.databases)),
        ("user_cache", len(view.server.users)),
    )
    rows: list[Row] = [(name, 0, count, 0, 0) for name, count in used]
    return [*rows, ("process", view.resident, 1, 0, view.resident)]


def _state(view: View) -> list[Row]:
    return [
        ("active", "no" if view.paused else "yes"),
        ("paused", "yes" if view.paused == "PAUSE" else "no"),
        ("suspended", "yes" if view.paused == "SUSPEND" else "no"),
    ]


def _version(view: View) -> list[Row]:
    return [(f"txproxy {view.version}",)]


def _help(_view: View) -> list[Row]:
    return [
        (str(command), ROLES[command.needs], command.meaning)
        for command in COMMANDS.values()
        if command.needs >= STATS
    ]


_ROWS: Final[dict[str, Callable[[View], list[Row]]]] = {
    "POOLS": _pools,
    "DATABASES": _databases,
    "USERS": _users,
    "LISTS": _lists,
    "CONFIG": _config,
    "MEM": _mem,
    "STATE": _state,
    "VERSION": _version,
    "HELP": _help,
    **sockets.ROWS,
    **offenders.ROWS,
    **sqlite_tables.ROWS,
}
