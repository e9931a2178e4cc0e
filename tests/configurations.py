"""Configurations, read: what the tests of txproxy.config share."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from txproxy.config import (
    Config,
    PoolSettings,
    Secret,
    SessionSettings,
    Setting,
    TcpAddress,
    UnixAddress,
    load,
    parse,
)
from txproxy.errors import ConfigError

ANY: Final = '[databases."*"]\n'
SCRAM: Final = (
    "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg=="
    "$tSgetjYW5SQlNzIxJAKMryuDGH8Snw5oWcj1eOW0ZyI=:bbZ1dJMgYYaKKR1fU1oGHkWJzi9OQY4yU8Fuksa1t70="
)
MD5: Final = "md5" + "0123456789abcdef" * 2


def read(text: str) -> Config:
    """A proxy.toml."""
    return parse(text, "proxy.toml")


def proxy(text: str) -> Config:
    """A proxy.toml of which this is the table [proxy]."""
    return read(f"[proxy]\n{text}\n{ANY}")


def error(text: str) -> ConfigError:
    """What is wrong with a proxy.toml."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    return caught.value


def wrong(text: str) -> str:
    """The error's text, without the file's name."""
    return str(error(text)).removeprefix("proxy.toml:").removeprefix(" ")


def load_error(path: Path) -> ConfigError:
    """What is wrong with a file."""
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    return caught.value


def pool(config: Config, database: str = "app", user: str = "ann") -> PoolSettings:
    """What holds for the server connections of this client."""
    found = config.pool_settings(database, user)
    assert found is not None
    return found


def session(config: Config, database: str = "app", user: str = "ann") -> SessionSettings:
    """What holds for this client's session."""
    found = config.session_settings(database, user)
    assert found is not None
    return found


def fields(kind: type) -> set[str]:
    return {each.name for each in dataclasses.fields(kind)}


# A value for every setting, other than the default: as written, and what it becomes.
VALUES: Final[Mapping[str, tuple[str, object]]] = {
    "listen": ('["unix:/run/x"]', (UnixAddress("/run/x", 6432),)),
    "unix_socket_mode": ('"0770"', 0o770),
    "unix_socket_group": ('"www-data"', "www-data"),
    "auth_type": ('"peer"\nlisten = ["unix:/run/x"]', "peer"),
    "auth_user": ('"asker"', "asker"),
    "auth_query": ("\"SELECT 'a', $1\"\nauth_user = 'asker'", "SELECT 'a', $1"),
    "auth_dbname": ('"app"', "app"),
    "admin_users": ('["postgres", "ann"]', ("postgres", "ann")),
    "stats_users": ('["watch"]', ("watch",)),
    "password": (f'"{SCRAM}"\nuser = "web"', Secret(SCRAM)),
    "host": ('["one", "::1"]', ("one", "::1")),
    "port": ("5433", 5433),
    "load_balance_hosts": ('"disable"', "disable"),
    "dbname": ('"real"', "real"),
    "user": ('"web"', "web"),
    "connect_query": ('"SELECT 1"', "SELECT 1"),
    "client_encoding": ('"LATIN1"', "LATIN1"),
    "datestyle": ('"ISO, DMY"', "ISO, DMY"),
    "timezone": ('"Europe/Vienna"', "Europe/Vienna"),
    "pool_mode": ('"session"', "session"),
    "default_pool_size": ("1", 1),
    "pool_size": ("7", 7),
    "min_pool_size": ("3", 3),
    "reserve_pool_size": ("4", 4),
    "reserve_pool_timeout": ('"1s"', 1.0),
    "max_db_connections": ("11", 11),
    "max_user_connections": ("12", 12),
    "max_client_conn": ("13", 13),
    "max_db_client_connections": ("14", 14),
    "max_user_client_connections": ("15", 15),
    "deferred_begin": ("false", False),
    "idle_transaction_timeout": ('"1min"', 60.0),
    "idle_transaction_soft_timeout": ('"2s"', 2.0),
    "max_xmin_age": ("1000", 1000),
    "idle_transaction_timeout_max": ('"1h"', 3600.0),
    "idle_transaction_action": ('"report"', "report"),
    "idle_transaction_sqlstate": ('"40001"', "40001"),
    "early_release": ('"report"', "report"),
    "early_release_after": ('"1s"', 1.0),
    "early_release_min": ('"20ms"', 0.02),
    "early_release_functions": ('["slugify", "app.total"]', ("slugify", "app.total")),
    "query_timeout": ("1.5", 1.5),
    "transaction_timeout": ('"250ms"', 0.25),
    "query_wait_timeout": ("7", 7.0),
    "client_idle_timeout": ('"2min"', 120.0),
    "pin_timeout": ('"3min"', 180.0),
    "client_login_timeout": ('"5s"', 5.0),
    "server_connect_timeout": ('"6s"', 6.0),
    "server_login_retry": ('"7s"', 7.0),
    "server_lifetime": ('"2h"', 7200.0),
    "server_idle_timeout": ('"9s"', 9.0),
    "server_check_delay": ("0", 0.0),
    "cancel_on_disconnect": ("false", False),
    "cancel_timeout": ('"11s"', 11.0),
    "rollback_timeout": ('"12s"', 12.0),
    "shutdown_timeout": ('"13s"', 13.0),
    "client_tls_sslmode": (
        '"require"\nclient_tls_key_file = "k"\nclient_tls_cert_file = "c"',
        "require",
    ),
    "client_tls_key_file": ('"k"', "k"),
    "client_tls_cert_file": ('"c"', "c"),
    "client_tls_ca_file": ('"ca"', "ca"),
    "client_tls_protocols": ('"tlsv1.2, tlsv1.3"', "tlsv1.2, tlsv1.3"),
    "client_tls_ciphers": ('"HIGH:!aNULL"', "HIGH:!aNULL"),
    "server_tls_sslmode": ('"verify-full"', "verify-full"),
    "server_tls_key_file": ('"k"\nserver_tls_cert_file = "c"', "k"),
    "server_tls_cert_file": ('"c"\nserver_tls_key_file = "k"', "c"),
    "server_tls_ca_file": ('"ca"', "ca"),
    "server_tls_protocols": ('"all"', "all"),
    "server_tls_ciphers": ('"HIGH"', "HIGH"),
    "tcp_keepalive": ("false", False),
    "tcp_keepidle": ("60", 60),
    "tcp_keepintvl": ("10", 10),
    "tcp_keepcnt": ("3", 3),
    "tcp_user_timeout": ('"20s"', 20.0),
    "log_format": ('"json"', "json"),
    "log_level": ('"debug"', "debug"),
    "log_statement_literals": ("true", True),
    "log_connections": ("false", False),
    "log_disconnections": ("false", False),
    "log_stats": ("false", False),
    "stats_period": ('"10s"', 10.0),
    "path": ('"/srv//a.db"', "/srv/a.db"),
    "directory": ('"/srv/data/"', "/srv/data"),
    "allow_create": ("true", True),
    "peer_uids": ("[33, 1000]", (33, 1000)),
    "journal_mode": ('"delete"', "delete"),
    "begin": ('"immediate"', "immediate"),
    "busy_timeout": ('"20s"', 20.0),
    "idle_writer_timeout": ('"1s"', 1.0),
    "commit_train": ("true", True),
    "checkpoint": ('"external"', "external"),
    "functions": ('["site.sql:register", "f:g"]', ("site.sql:register", "f:g")),
    "extensions": ('["/usr/lib/x.so"]', ("/usr/lib/x.so",)),
    "metrics.listen": ('"127.0.0.1:9127"', (TcpAddress("127.0.0.1", 9127),)),
}


UNIX: Final = '[proxy]\nlisten = ["unix:/run/x"]\n'


def sqlite(text: str) -> Config:
    """A proxy.toml that listens on a unix socket, and has this."""
    return read(UNIX + text)


HEADERS: Final = {"databases": "databases.app", "users": "users.ann", "sqlite": "sqlite.notes"}


def written(setting: Setting, table: str) -> str:
    """A table in which the setting stands with its value above, and a "*" database."""
    header = HEADERS.get(table, table)
    if table == "sqlite":
        return _of_file(setting)
    value = VALUES[setting.name][0]
    if table != "proxy":
        value = value.replace("\nlisten = ", "\n# listen = ")
    if table == "users":
        value = value.partition("\n")[0]
    return f"[{header}]\n{setting.key} = {value}\n{ANY}"


def _of_file(setting: Setting) -> str:
    key = f"{setting.key} = {VALUES[setting.name][0]}\n"
    if setting.name == "directory":
        return f'[sqlite."*"]\n{key}{UNIX}'
    path = "" if setting.name == "path" else 'path = "/srv/notes.db"\n'
    return f"[sqlite.notes]\n{key}{path}{UNIX}"
