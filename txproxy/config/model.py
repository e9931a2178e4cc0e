"""What a configuration becomes: frozen dataclasses, whose defaults are the settings' defaults.

A Config has the settings of [proxy] as its fields, by their names; a Database and a User what they
say of their own. `pool_settings` and `session_settings` put together what holds for one database
and user: what is said for the user beats what is said for the database, and that beats [proxy].
Times are seconds. 0 is off, unless the setting says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final

from txproxy.config import rules
from txproxy.config.sqlite import SqliteFile
from txproxy.config.table import AUTH_QUERY, SETTINGS, SQLITE, Setting
from txproxy.config.values import Address, Secret, TcpAddress, nearest
from txproxy.errors import ConfigError

ANY_DATABASE: Final = "*"

# What holds for one database and user


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS on one side. Files, protocols and ciphers are as written; "" is not given."""

    sslmode: str
    key_file: str
    cert_file: str
    ca_file: str
    protocols: str  # as PgBouncer: "secure", "all", "tlsv1.2,tlsv1.3"
    ciphers: str  # "default" or an OpenSSL list


@dataclass(frozen=True, slots=True)
class TcpSettings:
    """Options of every TCP socket, in seconds and probes; 0: the system's own."""

    keepalive: bool
    keepidle: int
    keepintvl: int
    keepcnt: int
    user_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What holds for the server connections of one database and user."""

    database: str  # what clients ask for
    user: str  # the server's user, as server_user; pools are kept by database and this
    hosts: tuple[str, ...]  # names, addresses, or directories of unix sockets
    port: int
    dbname: str
    server_user: str
    password: Secret | None
    load_balance_hosts: str  # "round-robin" or "disable"
    connect_query: str
    parameters: tuple[tuple[str, str], ...]  # for the server's start-up packet
    pool_size: int
    min_pool_size: int
    reserve_pool_size: int
    reserve_pool_timeout: float
    max_db_connections: int
    max_user_connections: int
    server_lifetime: float
    server_idle_timeout: float
    server_check_delay: float
    server_connect_timeout: float
    server_login_retry: float
    tls: TlsSettings
    tcp: TcpSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What holds for the clients of one database and user."""

    database: str  # database and user are what the client asked for
    user: str
    pool_mode: str  # "transaction" or "session"
    deferred_begin: bool
    idle_transaction_timeout: float
    idle_transaction_soft_timeout: float
    max_xmin_age: int
    idle_transaction_timeout_max: float  # what a client may lengthen it to; 0: only shorten
    idle_transaction_action: str  # "rollback", "disconnect" or "report"
    idle_transaction_sqlstate: str
    early_release: str  # "auto", "off" or "report"
    early_release_after: float
    early_release_min: float
    early_release_functions: tuple[str, ...]
    query_timeout: float
    transaction_timeout: float
    query_wait_timeout: float
    client_idle_timeout: float
    pin_timeout: float


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Where passwords of users are asked for, and how: `query`, with the user's name as $1."""

    query: str
    server: PoolSettings  # server_user and password are auth_user's


# What is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What a database and a user may both have of their own; None: as it is elsewhere."""

    name: str
    password: Secret | None = None
    pool_size: int | None = None
    reserve_pool_size: int | None = None
    pool_mode: str | None = None
    deferred_begin: bool | None = None
    idle_transaction_timeout: float | None = None
    idle_transaction_soft_timeout: float | None = None
    max_xmin_age: int | None = None
    idle_transaction_timeout_max: float | None = None
    idle_transaction_action: str | None = None
    idle_transaction_sqlstate: str | None = None
    early_release: str | None = None
    early_release_after: float | None = None
    early_release_min: float | None = None
    early_release_functions: tuple[str, ...] | None = None
    query_timeout: float | None = None
    transaction_timeout: float | None = None
    query_wait_timeout: float | None = None
    client_idle_timeout: float | None = None
    pin_timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Database(Overrides):
    """One [databases.NAME]. dbname and user None: as the client says."""

    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 5432
    load_balance_hosts: str = "round-robin"
    dbname: str | None = None
    user: str | None = None
    connect_query: str = ""
    client_encoding: str = ""
    datestyle: str = ""
    timezone: str = ""
    auth_user: str | None = None
    auth_query: str | None = None
    auth_dbname: str | None = None
    min_pool_size: int | None = None
    max_db_connections: int | None = None
    max_db_client_connections: int | None = None
    server_lifetime: float | None = None

    @property
    def parameters(self) -> tuple[tuple[str, str], ...]:
        """What a server connection begins with, by the parameters' names."""
        named = ("client_encoding", "datestyle", "timezone")
        return tuple((name, getattr(self, name)) for name in named if getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Overrides):
    """One [users.NAME]."""

    max_user_connections: int | None = None
    max_user_client_connections: int | None = None


def _none() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration."""

    path: str = "proxy.toml"
    databases: Mapping[str, Database] = field(default_factory=_none)
    users: Mapping[str, User] = field(default_factory=_none)
    sqlite: Mapping[str, SqliteFile] = field(default_factory=_none)
    metrics: tuple[TcpAddress, ...] = ()
    notes: tuple[str, ...] = ()  # what somebody who reads the log should know of the file

    listen: tuple[Address, ...] = (TcpAddress("127.0.0.1", 6432),)
    unix_socket_mode: int = 0o700
    unix_socket_group: str = ""
    auth_type: str = "trust"
    auth_user: str = ""
    auth_query: str = AUTH_QUERY
    auth_dbname: str = ""
    admin_users: tuple[str, ...] = ()
    stats_users: tuple[str, ...] = ()
    pool_mode: str = "transaction"
    default_pool_size: int = 20
    min_pool_size: int = 0
    reserve_pool_size: int = 0
    reserve_pool_timeout: float = 5.0
    max_db_connections: int = 0
    max_user_connections: int = 0
    max_client_conn: int = 10000
    max_db_client_connections: int = 0
    max_user_client_connections: int = 0
    deferred_begin: bool = True
    workers: int = 1
    idle_transaction_timeout: float = 30.0
    idle_transaction_soft_timeout: float = 0.0
    max_xmin_age: int = 0
    idle_transaction_timeout_max: float = 0.0
    idle_transaction_action: str = "rollback"
    idle_transaction_sqlstate: str = "25P03"
    early_release: str = "auto"
    early_release_after: float = 0.1
    early_release_min: float = 0.01
    early_release_functions: tuple[str, ...] = ()
    query_timeout: float = 0.0
    transaction_timeout: float = 0.0
    query_wait_timeout: float = 120.0
    client_idle_timeout: float = 0.0
    pin_timeout: float = 0.0
    client_login_timeout: float = 60.0
    server_connect_timeout: float = 15.0
    server_login_retry: float = 2.0
    server_lifetime: float = 3600.0
    server_idle_timeout: float = 600.0
    server_check_delay: float = 30.0
    cancel_on_disconnect: bool = True
    cancel_timeout: float = 10.0
    rollback_timeout: float = 5.0
    shutdown_timeout: float = 30.0
    client_tls_sslmode: str = "disable"
    client_tls_key_file: str = ""
    client_tls_cert_file: str = ""
    client_tls_ca_file: str = ""
    client_tls_protocols: str = "secure"
    client_tls_ciphers: str = "default"
    server_tls_sslmode: str = "prefer"
    server_tls_key_file: str = ""
    server_tls_cert_file: str = ""
    server_tls_ca_file: str = ""
    server_tls_protocols: str = "secure"
    server_tls_ciphers: str = "default"
    tcp_keepalive: bool = True
    tcp_keepidle: int = 0
    tcp_keepintvl: int = 0
    tcp_keepcnt: int = 0
    tcp_user_timeout: float = 0.0
    log_format: str = "text"
    log_level: str = "info"
    log_statement_literals: bool = False
    log_connections: bool = True
    log_disconnections: bool = True
    log_stats: bool = True
    stats_period: float = 60.0

    @property
    def client_tls(self) -> TlsSettings:
        """TLS with clients."""
        return self._tls("client_tls_")

    @property
    def server_tls(self) -> TlsSettings:
        """TLS with servers."""
        return self._tls("server_tls_")

    def _tls(self, prefix: str) -> TlsSettings:
        return TlsSettings(*(getattr(self, prefix + each.name) for each in fields(TlsSettings)))

    @property
    def tcp(self) -> TcpSettings:
        """Options of every TCP socket."""
        return TcpSettings(*(getattr(self, "tcp_" + each.name) for each in fields(TcpSettings)))

    def database(self, name: str) -> Database | None:
        """The one that clients get who ask for this name; "*" is for names without their own."""
        return self.databases.get(name) or self.databases.get(ANY_DATABASE)

    def pool_settings(self, database: str, user: str) -> PoolSettings | None:
        """What holds for the server connections of this client; None: no such database.

        All clients of a database that has a user of its own share one pool, which is that user's.
        """
        db = self.database(database)
        return None if db is None else self._pool_settings(database, db, db.user or user)

    def _pool_settings(self, database: str, db: Database, user: str) -> PoolSettings:
        own = self.users.get(user) or User(name=user)
        password = db.password if db.user == user else None
        return PoolSettings(
            database=database,
            user=user,
            hosts=db.hosts,
            port=db.port,
            dbname=db.dbname or database,
            server_user=user,
            password=password or own.password,
            load_balance_hosts=db.load_balance_hosts,
            connect_query=db.connect_query,
            parameters=db.parameters,
            pool_size=own.pool_size or db.pool_size or self.default_pool_size,
            tls=self.server_tls,
            tcp=self.tcp,
            **self._in_force(PoolSettings, db, own),
        )

    def session_settings(self, database: str, user: str) -> SessionSettings | None:
        """What holds for this client's session; None: no such database."""
        db = self.database(database)
        if db is None:
            return None
        own = self.users.get(user) or User(name=user)
        values = self._in_force(SessionSettings, db, own)
        return SessionSettings(database=database, user=user, **values)

    def _in_force(self, kind: type, db: Database, own: User) -> dict[str, Any]:
        """What holds of those settings that [proxy] and this kind of dataclass both have."""
        values = {}
        for name in {each.name for each in fields(kind)} & {each.name for each in fields(Config)}:
            said = (getattr(table, name, None) for table in (own, db, self))
            values[name] = next(value for value in said if value is not None)
        return values

    def auth_settings(self, database: str) -> AuthSettings | None:
        """Where the passwords of this database's clients are asked for; None: nowhere."""
        db = self.database(database)
        user = (db and db.auth_user) or self.auth_user
        if db is None or not user:
            return None
        name = db.auth_dbname or self.auth_dbname or database
        where = self.database(name)
        if where is None:
            return None
        query = db.auth_query or self.auth_query
        return AuthSettings(query, self._pool_settings(name, where, user))

    def file_settings(self, file: SqliteFile) -> dict[str, Any]:
        """What holds for an SQLite file, by the names of SqliteFile's fields."""
        left_to_us = ("name", "path", "directory", "peer_uids")
        said = {each.name: getattr(file, each.name) for each in fields(SqliteFile)}
        return {
            name: getattr(self, name) if value is None else value
            for name, value in said.items()
            if name not in left_to_us
        }

    def changed(self, name: str, text: str) -> "Config":
        """A copy with another value for a setting of [proxy], written as the console's SET has it.

        Raises ConfigError: no such setting, no such value, not without a restart, or impossible
        together with another.
        """
        known = {setting.name: setting for setting in SETTINGS if "proxy" in setting.tables}
        setting = known.get(name)
        if setting is None:
            raise ConfigError(f"unknown setting{nearest(name, known)}", key=name)
        if not setting.reloads:
            raise ConfigError("takes a restart", key=name)
        try:
            value = setting.kind.parse(setting.kind.read(text))
        except ValueError as error:
            raise ConfigError(str(error), key=name) from error
        config = replace(self, **{name: value})
        rules.check(config, _error)
        return config

    def database_limits(self, name: str) -> tuple[int, int]:
        """The most server connections and the most clients of a database; 0: no limit."""
        db = self.database(name)
        connections = db.max_db_connections if db else None
        clients = db.max_db_client_connections if db else None
        return (
            self.max_db_connections if connections is None else connections,
            self.max_db_client_connections if clients is None else clients,
        )

    def user_limits(self, name: str) -> tuple[int, int]:
        """The most server connections and the most clients of a user; 0: no limit."""
        own = self.users.get(name)
        connections = own.max_user_connections if own else None
        clients = own.max_user_client_connections if own else None
        return (
            self.max_user_connections if connections is None else connections,
            self.max_user_client_connections if clients is None else clients,
        )

    def reloaded(self, new: "Config") -> "Config":
        """What a reload makes of this: `new`, but for what takes a restart.

        Raises ConfigError: the two do not go together. An auth_type that is right for where `new`
        listens may be an open door where we do.
        """
        kept = {each.field: getattr(self, each.field) for each in SETTINGS if not each.reloads}
        config = replace(new, **kept)
        rules.check(config, _error)
        return config

    def needs_restart(self, new: "Config") -> list[str]:
        """The settings in which `new` differs and that a reload cannot change, by name."""
        return [
            setting.name
            for setting in SETTINGS
            if not setting.reloads and getattr(self, setting.field) != getattr(new, setting.field)
        ]


def _error(key: rules.KeyPath, problem: str) -> ConfigError:
    return ConfigError(problem, key=rules.dotted(key))


def shown(config: Config, setting: Setting) -> str:
    """A setting of [proxy] or [metrics] as it could be written; a secret is not shown."""
    return setting.kind.show(getattr(config, setting.field))


def shown_default(setting: Setting) -> str:
    """What holds if a setting is left out, as it could be written; "" if that depends."""
    kinds: tuple[type, ...] = (SqliteFile,) if setting.tables == SQLITE else (Config, Database)
    for kind in kinds:
        for each in fields(kind):
            if each.name == setting.field:
                return "" if each.default is None else setting.kind.show(each.default)
    return ""
