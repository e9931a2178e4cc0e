"""Every setting, once: where it may stand, what it can be, what it means.

Defaults are those of the dataclasses in `model`, whose fields have the settings' names.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from txproxy.config import values
from txproxy.config.values import Kind

TableName = Literal["proxy", "databases", "users", "sqlite", "metrics"]
TABLES: Final[tuple[TableName, ...]] = ("proxy", "databases", "users", "sqlite", "metrics")
PROXY: Final[tuple[TableName, ...]] = ("proxy",)
DATABASES: Final[tuple[TableName, ...]] = ("databases",)
USERS: Final[tuple[TableName, ...]] = ("users",)
PROXY_AND_DATABASES: Final = PROXY + DATABASES
PROXY_AND_USERS: Final = PROXY + USERS
DATABASES_AND_USERS: Final = DATABASES + USERS
EVERYWHERE: Final = PROXY + DATABASES + USERS
SQLITE: Final[tuple[TableName, ...]] = ("sqlite",)

AUTH_QUERY: Final = (
    "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END"
    " FROM pg_authid WHERE rolname=$1 AND rolcanlogin"
)
"""That of PgBouncer 1.25: the ones before let in whose password had expired."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of proxy.toml.

    In [databases.…], [users.…] and [sqlite.…] a setting that is left out is as it is in [proxy].
    `reloads`: a reload changes it; else it takes a restart. `secret`: its value is shown to nobody.
    """

    name: str
    tables: tuple[TableName, ...]
    kind: Kind = field(repr=False)
    help: str
    reloads: bool = True
    secret: bool = False

    @property
    def key(self) -> str:
        """What it is called in its table: the name, without the table of metrics.listen."""
        return self.name.removeprefix("metrics.")

    @property
    def field(self) -> str:
        """The field of the dataclass that holds it."""
        return {"host": "hosts", "metrics.listen": "metrics"}.get(self.name, self.name)


_SSLMODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

SETTINGS: Final[tuple[Setting, ...]] = (
    # Where clients connect, and who may.
    Setting(
        "listen",
        PROXY,
        values.LISTEN,
        'where clients connect: "address:port", "[IPv6 address]:port", "unix:/directory"',
        reloads=False,
    ),
    Setting(
        "unix_socket_mode",
        PROXY,
        values.FILE_MODE,
        "who may connect to the unix sockets",
        reloads=False,
    ),
    Setting(
        "unix_socket_group",
        PROXY,
        values.TEXT_OR_NOTHING,
        "the group that the unix sockets belong to; that of the process if empty",
        reloads=False,
    ),
    Setting(
        "auth_type",
        PROXY,
        values.choice("trust", "md5", "scram-sha-256", "cert", "peer"),
        "how clients prove who they are: not at all (on loopback and unix sockets only), by a "
        "password, by a TLS certificate, or by their operating-system user (unix sockets only)",
    ),
    Setting(
        "auth_user",
        PROXY_AND_DATABASES,
        values.TEXT_OR_NOTHING,
        "the user that asks the server for the passwords of users that are not in [users]",
    ),
    Setting(
        "auth_query",
        PROXY_AND_DATABASES,
        values.TEXT,
        "what it asks: $1 is the user's name; a row of name and password",
    ),
    Setting(
        "auth_dbname",
        PROXY_AND_DATABASES,
        values.TEXT_OR_NOTHING,
        "the database in which it asks; the one that the client wants if empty",
    ),
    Setting("admin_users", PROXY, values.NAMES, "who may do everything on the console"),
    Setting("stats_users", PROXY, values.NAMES, "who may look at the console"),
    Setting(
        "password",
        DATABASES_AND_USERS,
        values.SECRET,
        "of this user; in a database: of the server's user. A SCRAM verifier, an md5 hash, plain",
        secret=True,
    ),
    Setting(
        "password_file",
        DATABASES_AND_USERS,
        values.TEXT,
        "a file that holds it",
        secret=True,
    ),
    Setting(
        "password_env",
        DATABASES_AND_USERS,
        values.TEXT,
        "the environment variable that holds it",
        secret=True,
    ),
    # Where databases lead.
    Setting(
        "host",
        DATABASES,
        values.HOSTS,
        "the server: a name, an address, the directory of its unix socket, or a list of them",
    ),
    Setting("port", DATABASES, values.integer(1, 65535), "the server's port"),
    Setting(
        "load_balance_hosts",
        DATABASES,
        values.choice("round-robin", "disable"),
        "which of several hosts a new connection goes to: each in turn, or the first that answers",
    ),
    Setting(
        "dbname",
        DATABASES,
        values.TEXT,
        "the server's name of the database; the name that the client gave if left out",
    ),
    Setting(
        "user",
        DATABASES,
        values.TEXT,
        "the user that logs in to the server; the one that the client gave if left out",
    ),
    Setting(
        "connect_query",
        DATABASES,
        values.TEXT_OR_NOTHING,
        "SQL that a new server connection runs first",
    ),
    Setting(
        "client_encoding",
        DATABASES,
        values.TEXT_OR_NOTHING,
        "the parameter of this name, with which a server connection begins",
    ),
    Setting("datestyle", DATABASES, values.TEXT_OR_NOTHING, "the same"),
    Setting("timezone", DATABASES, values.TEXT_OR_NOTHING, "the same"),
    # Pools.
    Setting(
        "pool_mode",
        EVERYWHERE,
        values.choice("transaction", "session"),
        "how long a client keeps a server connection: for a transaction, or until it leaves",
    ),
    Setting(
        "default_pool_size",
        PROXY,
        values.CONNECTIONS,
        "server connections for each pair of database and user",
    ),
    Setting(
        "pool_size",
        DATABASES_AND_USERS,
        values.CONNECTIONS,
        "the same for this database or user; default_pool_size if left out",
    ),
    Setting(
        "min_pool_size",
        PROXY_AND_DATABASES,
        values.CONNECTIONS_OR_NONE,
        "server connections that are kept open, used or not, and opened ahead where user is set",
    ),
    Setting(
        "reserve_pool_size",
        EVERYWHERE,
        values.CONNECTIONS_OR_NONE,
        "more of them, for clients that have waited for reserve_pool_timeout",
    ),
    Setting(
        "reserve_pool_timeout",
        PROXY,
        values.DURATION,
        "how long a client waits before the reserve is touched; 0: it is not",
    ),
    Setting(
        "max_db_connections",
        PROXY_AND_DATABASES,
        values.CONNECTIONS_OR_NONE,
        "server connections of one database, whoever the user; 0: no limit",
    ),
    Setting(
        "max_user_connections",
        PROXY_AND_USERS,
        values.CONNECTIONS_OR_NONE,
        "server connections of one user, whatever the database; 0: no limit",
    ),
    Setting(
        "max_client_conn",
        PROXY,
        values.CONNECTIONS,
        "clients at once; those beyond are refused",
    ),
    Setting(
        "max_db_client_connections",
        PROXY_AND_DATABASES,
        values.CONNECTIONS_OR_NONE,
        "clients of one database at once; 0: no limit",
    ),
    Setting(
        "max_user_client_connections",
        PROXY_AND_USERS,
        values.CONNECTIONS_OR_NONE,
        "clients of one user at once; 0: no limit",
    ),
    Setting(
        "deferred_begin",
        EVERYWHERE,
        values.BOOLEAN,
        "a transaction takes a server connection at its first statement, not at its BEGIN",
    ),
    Setting(
        "workers",
        PROXY,
        values.integer(1, 1024, "processes"),
        "pools are divided among them; more than 1 is not supported yet",
        reloads=False,
    ),
    # Clients that take their time.
    Setting(
        "idle_transaction_timeout",
        EVERYWHERE + SQLITE,
        values.DURATION,
        "how long a client may sleep in a transaction that holds a server connection; 0: for ever",
    ),
    Setting(
        "idle_transaction_soft_timeout",
        EVERYWHERE,
        values.DURATION,
        "the same while that harms somebody: a client that waits for a server connection, a session"
        " that waits for its locks, or vacuum; 0: only idle_transaction_timeout counts",
    ),
    Setting(
        "max_xmin_age",
        EVERYWHERE,
        values.integer(0, 2_000_000_000, "transactions"),
        "how many others a sleeping transaction may have seen begin before it harms vacuum; 0: any",
    ),
    Setting(
        "idle_transaction_timeout_max",
        EVERYWHERE,
        values.DURATION,
        "how far a client may lengthen that for itself; 0: it may only shorten it",
    ),
    Setting(
        "idle_transaction_action",
        EVERYWHERE,
        values.choice("rollback", "disconnect", "report"),
        "what is done then: roll back and keep the client, disconnect it, or only say so",
    ),
    Setting(
        "idle_transaction_sqlstate",
        EVERYWHERE,
        values.SQLSTATE,
        "the SQLSTATE of the error that the client then gets",
    ),
    Setting(
        "early_release",
        EVERYWHERE,
        values.choice("auto", "off", "report"),
        "a transaction that has only read gives its server connection back while its client sleeps;"
        " report: only say which would",
    ),
    Setting(
        "early_release_after",
        EVERYWHERE,
        values.DURATION,
        "how long its client must have slept",
    ),
    Setting(
        "early_release_min",
        EVERYWHERE,
        values.DURATION,
        "the same when another client waits for a server connection",
    ),
    Setting(
        "early_release_functions",
        EVERYWHERE,
        values.NAMES,
        "functions that such a transaction may call beside those of PostgreSQL: they neither write"
        " nor keep anything",
    ),
    Setting(
        "query_timeout",
        EVERYWHERE + SQLITE,
        values.DURATION,
        "how long one statement may run; 0: for ever",
    ),
    Setting(
        "transaction_timeout",
        EVERYWHERE,
        values.DURATION,
        "how long a transaction may take, busy or idle; 0: for ever",
    ),
    Setting(
        "query_wait_timeout",
        EVERYWHERE,
        values.DURATION,
        "how long a client may wait for a server connection; 0: for ever",
    ),
    Setting(
        "client_idle_timeout",
        EVERYWHERE,
        values.DURATION,
        "how long a client may be silent outside a transaction; 0: for ever",
    ),
    Setting(
        "pin_timeout",
        EVERYWHERE,
        values.DURATION,
        "the same for a client that keeps its server connection by a pin; 0: for ever",
    ),
    Setting(
        "client_login_timeout",
        PROXY,
        values.DURATION,
        "how long a client may take to log in; 0: for ever",
    ),
    # Server connections.
    Setting(
        "server_connect_timeout",
        PROXY,
        values.DURATION,
        "how long connecting to a server and logging in may take; 0: for ever",
    ),
    Setting(
        "server_login_retry",
        PROXY,
        values.DURATION,
        "the longest pause between two attempts to connect while a server refuses",
    ),
    Setting(
        "server_lifetime",
        PROXY_AND_DATABASES,
        values.DURATION,
        "how old a server connection may get: it is closed when it is next free; 0: for ever",
    ),
    Setting(
        "server_idle_timeout",
        PROXY,
        values.DURATION,
        "how long a server connection may be unused; 0: for ever",
    ),
    Setting(
        "server_check_delay",
        PROXY,
        values.DURATION,
        "how often an unused server connection is asked whether it still answers; 0: never",
    ),
    Setting(
        "cancel_on_disconnect",
        PROXY,
        values.BOOLEAN,
        "cancel the statement of a client that has left",
    ),
    Setting(
        "cancel_timeout",
        PROXY,
        values.DURATION,
        "how long a server connection may take to come to rest once its client has left",
    ),
    Setting(
        "rollback_timeout",
        PROXY,
        values.DURATION,
        "how long a ROLLBACK of ours may take before the server connection is closed instead",
    ),
    Setting(
        "shutdown_timeout",
        PROXY,
        values.DURATION,
        "how long transactions may go on after SIGTERM",
    ),
    # TLS and TCP.
    Setting(
        "client_tls_sslmode",
        PROXY,
        values.choice(*_SSLMODES),
        "TLS with clients: none, offered (allow, prefer), demanded, with a certificate of theirs",
    ),
    Setting("client_tls_key_file", PROXY, values.TEXT_OR_NOTHING, "our private key, for clients"),
    Setting("client_tls_cert_file", PROXY, values.TEXT_OR_NOTHING, "our certificate, for clients"),
    Setting(
        "client_tls_ca_file",
        PROXY,
        values.TEXT_OR_NOTHING,
        "the authorities whose certificates clients may show",
    ),
    Setting(
        "client_tls_protocols",
        PROXY,
        values.PROTOCOLS,
        '"secure" (TLS 1.2 and newer), "all", or a list such as "tlsv1.2,tlsv1.3"',
    ),
    Setting("client_tls_ciphers", PROXY, values.TEXT, '"default", or a list as OpenSSL writes it'),
    Setting(
        "server_tls_sslmode",
        PROXY,
        values.choice(*_SSLMODES),
        "TLS with servers: never, if they want (allow), if they can (prefer), always, and with "
        "which proof of theirs",
    ),
    Setting("server_tls_key_file", PROXY, values.TEXT_OR_NOTHING, "our private key, for servers"),
    Setting("server_tls_cert_file", PROXY, values.TEXT_OR_NOTHING, "our certificate, for servers"),
    Setting(
        "server_tls_ca_file",
        PROXY,
        values.TEXT_OR_NOTHING,
        "the authorities that may have signed a server's certificate",
    ),
    Setting("server_tls_protocols", PROXY, values.PROTOCOLS, "the same with servers"),
    Setting("server_tls_ciphers", PROXY, values.TEXT, "the same with servers"),
    Setting("tcp_keepalive", PROXY, values.BOOLEAN, "keepalive on every TCP connection"),
    Setting(
        "tcp_keepidle",
        PROXY,
        values.integer(0, 32767, "seconds"),
        "silence before the first keepalive; 0: the system's",
    ),
    Setting(
        "tcp_keepintvl",
        PROXY,
        values.integer(0, 32767, "seconds"),
        "the time between two keepalives; 0: the system's",
    ),
    Setting(
        "tcp_keepcnt",
        PROXY,
        values.integer(0, 127),
        "keepalives without an answer before the connection is lost; 0: the system's",
    ),
    Setting(
        "tcp_user_timeout",
        PROXY,
        values.DURATION,
        "how long sent data may stay unacknowledged (TCP_USER_TIMEOUT); 0: the system's",
    ),
    # What it tells.
    Setting("log_format", PROXY, values.choice("text", "json"), "how an event is logged"),
    Setting(
        "log_level",
        PROXY,
        values.choice("debug", "info", "warning", "error"),
        "the least important events that are logged",
    ),
    Setting(
        "log_statement_literals",
        PROXY,
        values.BOOLEAN,
        "leave the literals in statements that are logged; they may be personal data",
    ),
    Setting("log_connections", PROXY, values.BOOLEAN, "log each client that logs in"),
    Setting("log_disconnections", PROXY, values.BOOLEAN, "log each client that leaves"),
    Setting("log_stats", PROXY, values.BOOLEAN, "log the counters of each pool"),
    Setting("stats_period", PROXY, values.DURATION, "how often, and what SHOW STATS averages over"),
    # SQLite files.
    Setting("path", SQLITE, values.PATH, "the file that clients reach by this name"),
    Setting(
        "directory",
        SQLITE,
        values.PATH,
        'of [sqlite."*"]: every file directly inside of it is reached by its own name',
    ),
    Setting(
        "allow_create",
        SQLITE,
        values.BOOLEAN,
        "the file is made if it is not there; under a directory, CREATE DATABASE and DROP DATABASE"
        " make and remove files",
    ),
    Setting(
        "peer_uids",
        SQLITE,
        values.UIDS,
        "the operating-system users whose processes may use it, by number; if left out, root and"
        " who runs the proxy",
    ),
    Setting(
        "journal_mode",
        SQLITE,
        values.choice("wal", "delete"),
        "how SQLite writes: with delete every transaction waits for the one before",
    ),
    Setting(
        "begin",
        SQLITE,
        values.choice("deferred", "immediate"),
        "whether a plain BEGIN waits for its turn to write at its first write, or at once",
    ),
    Setting(
        "busy_timeout",
        SQLITE,
        values.DURATION,
        "how long a client waits for its turn to write, unless it says otherwise; 0: not at all",
    ),
    Setting(
        "idle_writer_timeout",
        SQLITE,
        values.DURATION,
        "how long a client may sleep in a transaction that has written while others wait for their"
        " turn; 0: for ever",
    ),
    Setting(
        "commit_train",
        SQLITE,
        values.BOOLEAN,
        "transactions of several clients share a sync: readers may see a commit before it is"
        " durable, whoever made it is told after",
    ),
    Setting(
        "checkpoint",
        SQLITE,
        values.choice("auto", "external"),
        "who moves the WAL into the file: the proxy, or a program such as Litestream",
    ),
    Setting(
        "functions",
        SQLITE,
        values.FUNCTIONS,
        'Python that adds SQL functions: "package.module:function", called with each connection',
    ),
    Setting(
        "extensions",
        SQLITE,
        values.PATHS,
        "SQLite extensions that each connection loads: shared libraries",
    ),
    Setting(
        "metrics.listen",
        ("metrics",),
        values.METRICS,
        "where metrics are served over HTTP: an address, or a list of them",
        reloads=False,
    ),
)
