"""What is right by itself and cannot be together."""

import importlib.util
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from txproxy.config.sqlite import ANY_FILE
from txproxy.config.table import AUTH_QUERY
from txproxy.config.values import Address, TcpAddress, UnixAddress, ip_address
from txproxy.errors import ConfigError

if TYPE_CHECKING:
    from txproxy.config.model import Config, Database, Overrides
    from txproxy.config.sqlite import SqliteFile

KeyPath = tuple[str, ...]
Error = Callable[[KeyPath, str], ConfigError]
"""Makes the error from a key and what is wrong with it."""

CONSOLE_DATABASES: Final = ("txproxy", "pgbouncer")
PASSWORD_TYPES: Final = ("md5", "scram-sha-256")
VERIFYING: Final = ("verify-ca", "verify-full")

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def dotted(key: KeyPath) -> str:
    """A key as TOML writes it."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part) for part in key)


def check(config: "Config", error: Error) -> None:
    """Raise the error for the first combination that cannot work."""
    _check_proxy(config, error)
    _check_tls(config, error)
    _check_who_may_log_in(config, error)
    _check_auth_query(config, error)
    for name, database in config.databases.items():
        _check_database(name, database, config, error)
    for name, file in config.sqlite.items():
        _check_file(name, file, config, error)
    _check_timeouts(("proxy",), config, error)
    for kind, named in (("databases", config.databases), ("users", config.users)):
        for name, overrides in named.items():
            _check_timeouts((kind, name), overrides, error)


def _check_proxy(config: "Config", error: Error) -> None:
    if config.workers > 1:
        raise error(("proxy", "workers"), "more than 1 is not supported yet")
    if not config.stats_period:
        raise error(("proxy", "stats_period"), "must not be 0; log_stats = false logs none")
    for metrics in config.metrics:
        if metrics.port and metrics in config.listen:
            raise error(("metrics", "listen"), f"{metrics} is where clients connect")
    for address in config.listen:
        if config.auth_type == "trust" and not _is_local(address):
            raise error(
                ("proxy", "listen"),
                f'{address} is open to others, and auth_type "trust" lets everybody in:'
                " listen on loopback or a unix socket",
            )
        if config.auth_type == "peer" and not isinstance(address, UnixAddress):
            raise error(
                ("proxy", "listen"),
                f'{address} is no unix socket, and auth_type "peer" works on nothing else',
            )


def _is_local(address: Address) -> bool:
    if isinstance(address, UnixAddress) or address.host == "localhost":
        return True
    ip = ip_address(address.host)
    return ip is not None and ip.is_loopback


def _check_tls(config: "Config", error: Error) -> None:
    clients, servers = config.client_tls, config.server_tls
    needed = []
    if clients.sslmode != "disable":
        needed += ["key_file", "cert_file"]
    if clients.sslmode in VERIFYING:
        needed.append("ca_file")
    for name in needed:
        if not getattr(clients, name):
            raise error(
                ("proxy", "client_tls_sslmode"),
                f'"{clients.sslmode}" needs client_tls_{name}',
            )
    if bool(servers.key_file) != bool(servers.cert_file):
        there, missing = ("key", "cert") if servers.key_file else ("cert", "key")
        raise error(
            ("proxy", f"server_tls_{there}_file"), f"is nothing without server_tls_{missing}_file"
        )
    if config.auth_type == "cert" and clients.sslmode not in VERIFYING:
        raise error(
            ("proxy", "auth_type"),
            '"cert" needs client_tls_sslmode "verify-full" or "verify-ca"',
        )


def _check_who_may_log_in(config: "Config", error: Error) -> None:
    if config.auth_type not in PASSWORD_TYPES or not config.databases:
        return
    # an md5 hash cannot be checked by SCRAM
    known = [
        user.password is not None and (config.auth_type == "md5" or user.password.kind != "md5")
        for user in config.users.values()
    ]
    asked = [config.auth_user, *(each.auth_user for each in config.databases.values())]
    if not any(known) and not any(asked):
        raise error(
            ("proxy", "auth_type"),
            f'nobody could log in: "{config.auth_type}" needs a password that fits it in'
            " [users.NAME], or auth_user",
        )


def _check_auth_query(config: "Config", error: Error) -> None:
    asked = any(database.auth_user for database in config.databases.values())
    for name in filter(
        None, [config.auth_user, *(db.auth_user for db in config.databases.values())]
    ):
        own = config.users.get(name)
        if own is not None and own.password is not None and own.password.kind != "plain":
            raise error(
                ("users", name, "password"),
                "is auth_user's: the proxy logs in with it, which takes a plain password",
            )
    if config.auth_query != AUTH_QUERY and not config.auth_user and not asked:
        raise error(("proxy", "auth_query"), "needs auth_user, who asks it")
    if config.auth_dbname and config.database(config.auth_dbname) is None:
        raise error(("proxy", "auth_dbname"), "no such database is configured")


def _check_database(name: str, database: "Database", config: "Config", error: Error) -> None:
    where = ("databases", name)
    if name in CONSOLE_DATABASES:
        raise error(where, "is the console's name: call it otherwise")
    if any(_leads_to(host, database.port) in config.listen for host in database.hosts):
        raise error((*where, "port"), "leads to the proxy itself, which listens there")
    if database.password and not database.user:
        raise error((*where, "password"), "is nobody's: name its user, with user")
    if database.auth_query and not (database.auth_user or config.auth_user):
        raise error((*where, "auth_query"), "needs auth_user, who asks it")
    if database.auth_dbname and config.database(database.auth_dbname) is None:
        raise error((*where, "auth_dbname"), "no such database is configured")
    _check_min_pool_size(where, database, config, error)


def _leads_to(host: str, port: int) -> Address:
    return UnixAddress(host, port) if host.startswith("/") else TcpAddress(host, port)


def _check_min_pool_size(
    where: KeyPath, database: "Database", config: "Config", error: Error
) -> None:
    own = database.min_pool_size
    wanted = config.min_pool_size if own is None else own
    if not wanted or not database.user or config.auth_type not in PASSWORD_TYPES:
        return
    user = config.users.get(database.user)
    secret = database.password or (user and user.password)
    if secret and secret.kind == "scram-sha-256":
        key = ("proxy",) if own is None else where
        raise error(
            (*key, "min_pool_size"),
            f"of {dotted(where)}: all that is known of its user is a SCRAM verifier, which logs in"
            " to no server before a client has: give the password itself",
        )


def _check_file(name: str, file: "SqliteFile", config: "Config", error: Error) -> None:
    where = ("sqlite", name)
    if name in CONSOLE_DATABASES:
        raise error(where, "is the console's name: call it otherwise")
    if name in config.databases:
        raise error(where, f"is in [{dotted(('databases', name))}] too; only one of them")
    if "/" in name:
        raise error(where, "is no name: clients could mean a path by it")
    wanted, other = ("directory", "path") if name == ANY_FILE else ("path", "directory")
    if not getattr(file, wanted):
        raise error(where, f"needs a {wanted}")
    if getattr(file, other):
        raise error((*where, other), f"does not belong here: {wanted} does")
    for twin in config.sqlite.values():
        if file.path and twin.path == file.path and twin is not file:
            raise error((*where, "path"), f"is that of [{dotted(('sqlite', twin.name))}] too")
    if file.commit_train and file.journal_mode != "wal":
        raise error((*where, "commit_train"), 'needs journal_mode "wal"')
    if not any(isinstance(address, UnixAddress) for address in config.listen):
        raise error(
            where,
            "is reached on unix sockets only: let [proxy] listen on one, such as"
            ' "unix:/run/txproxy"',
        )
    if importlib.util.find_spec("apsw") is None:
        raise error(where, "needs a package: pip install 'txproxy[sqlite]'")


def _check_timeouts(where: KeyPath, said: "Config | Overrides", error: Error) -> None:
    timeout, longest = said.idle_transaction_timeout, said.idle_transaction_timeout_max
    if timeout is None or not longest:
        return
    if timeout == 0 or timeout > longest:
        raise error(
            (*where, "idle_transaction_timeout_max"),
            "is less than idle_transaction_timeout (where 0 is for ever)",
        )
