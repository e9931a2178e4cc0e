"""`txproxy check`: what the configuration means, in plain words. Secrets are not among them."""

import os
from collections.abc import Iterable, Iterator
from typing import Final

from txproxy.backends.tls import server_context
from txproxy.config import (
    ANY_DATABASE,
    ANY_FILE,
    SETTINGS,
    Config,
    Database,
    PoolSettings,
    Secret,
    SessionSettings,
    SqliteFile,
    TlsSettings,
    UnixAddress,
    User,
    duration_text,
)
from txproxy.net.tls import client_context

LOGINS: Final = {
    "trust": "trust: every client is who it says it is",
    "md5": "md5: by password, with SCRAM where a verifier is known",
    "scram-sha-256": "scram-sha-256: by password",
    "cert": "cert: by the name in the client's TLS certificate",
    "peer": "peer: by the name of the client's operating-system user",
}
CLIENT_TLS: Final = {
    "disable": "none",
    "allow": "for those that want it",
    "prefer": "for those that want it",
    "require": "for all; others are refused",
    "verify-ca": "for all, with a certificate of theirs; others are refused",
    "verify-full": "for all, with a certificate of theirs; others are refused",
}
SERVER_TLS: Final = {
    "disable": "none",
    "allow": "if the server insists",
    "prefer": "if the server can; its certificate is not looked at",
    "require": "always; the server's certificate is not looked at",
    "verify-ca": "always; the server's certificate must be signed by an authority of ours",
    "verify-full": "always; the server's certificate must be signed and in its host's name",
}
_BEGINS: Final = {
    "deferred": "waits for its turn at its first write",
    "immediate": "waits for its turn to write at once",
}
KINDS: Final = {"plain": "a plain password", "md5": "an md5 hash", "scram-sha-256": "a verifier"}


def check(config: Config) -> int:
    """Print what the configuration means; returns the exit code, 0.

    Raises ConfigError: certificates and keys are not what they should be.
    """
    client_context(config.client_tls)
    server_context(config.server_tls)
    for line in describe(config):
        print(line)
    return 0


def describe(config: Config) -> Iterator[str]:
    """The lines that `txproxy check` prints."""
    yield f"{config.path} is a valid configuration."
    if config.notes:
        yield ""
        yield from config.notes
    yield from _section("the proxy", _proxy(config))
    yield from _section("logins", _logins(config))
    for database in config.databases.values():
        every = database.name == ANY_DATABASE
        title = "any other database" if every else f"database {database.name}"
        yield from _section(title, _database(database, config))
    for file in config.sqlite.values():
        every = file.name == ANY_FILE
        title = "any other SQLite file" if every else f"SQLite file {file.name}"
        yield from _section(title, _file(file, config))
    for user in config.users.values():
        yield from _section(f"user {user.name}, in every database", _own(user))


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield ""
    yield title
    for name, value in rows:
        yield f"  {name:<24}{value}"


Rows = Iterator[tuple[str, str]]


def _proxy(config: Config) -> Rows:
    for address in config.listen:
        yield "listens on", f"{address}{_mode(config) if isinstance(address, UnixAddress) else ''}"
    yield "clients", _most(config.max_client_conn, "")
    yield "TLS with clients", CLIENT_TLS[config.client_tls.sslmode]
    yield "TLS with servers", _server_tls(config.server_tls)
    yield "connecting to a server", _limit(config.server_connect_timeout)
    yield "a server connection", _age(config.server_idle_timeout, config.server_lifetime)
    leaves = "is cancelled" if config.cancel_on_disconnect else "runs to its end"
    yield "a client that leaves", f"its statement {leaves}; {_limit(config.cancel_timeout)}"
    yield "a rollback of ours", _limit(config.rollback_timeout)
    yield "shutting down", f"waits for transactions, {_limit(config.shutdown_timeout)}"
    literals = "with" if config.log_statement_literals else "without"
    yield "logs", f"{config.log_level} and worse, as {config.log_format}, {literals} literals"
    every = f"each {duration_text(config.stats_period)}" if config.log_stats else "not logged"
    yield "counters", every
    yield "metrics", ", ".join(f"http://{each}/metrics" for each in config.metrics) or "not served"


def _mode(config: Config) -> str:
    group = f", group {config.unix_socket_group}" if config.unix_socket_group else ""
    return f", mode {config.unix_socket_mode:04o}{group}"


def _server_tls(tls: TlsSettings) -> str:
    ours = ", with a certificate of ours" if tls.cert_file else ""
    return SERVER_TLS[tls.sslmode] + ours


def _age(idle: float, lifetime: float) -> str:
    unused = f"closed after {duration_text(idle)} without use" if idle else "kept, used or not"
    return f"{unused}; replaced after {duration_text(lifetime)}" if lifetime else unused


def _logins(config: Config) -> Rows:
    yield "how", LOGINS[config.auth_type]
    if config.auth_type in ("md5", "scram-sha-256"):
        known = sum(user.password is not None for user in config.users.values())
        yield "passwords", f"of {known} user{'' if known == 1 else 's'}, from here"
        if config.auth_user:
            where = f"database {config.auth_dbname}" if config.auth_dbname else "their database"
            yield "passwords of others", f"asked of {where} by {config.auth_user}"
    yield "a login", _limit(config.client_login_timeout)
    admins = ", ".join(config.admin_users) or "nobody"
    if any(isinstance(address, UnixAddress) for address in config.listen):
        admins += "; over a unix socket txproxy, if it is who runs the proxy"
    yield "on the console", admins
    yield "looking at it", ", ".join(config.stats_users) or "nobody else"


def _database(database: Database, config: Config) -> Rows:
    # "" is nobody's name: these are the settings of a user that has none of its own
    pool = config.pool_settings(database.name, "")
    session = config.session_settings(database.name, "")
    assert pool is not None
    assert session is not None
    yield "goes to", _way(database)
    yield "logs in", _server_login(database, pool.password)
    if database.auth_user:
        yield "passwords of others", f"asked by {database.auth_user}"
    yield "pool", _size(database, pool, session)
    yield from _limits(database, pool, config)
    yield from _session(session)


def _way(database: Database) -> str:
    every = database.name == ANY_DATABASE
    hosts = [f"[{host}]" if ":" in host else host for host in database.hosts]
    places = ", ".join(f"{host}:{database.port}" for host in hosts)
    if len(hosts) > 1:
        in_turn = database.load_balance_hosts == "round-robin"
        places += " (each in turn)" if in_turn else " (the first that answers)"
    name = database.dbname or ("of the name that the client gives" if every else database.name)
    user = f"user {database.user}" if database.user else "the user that the client gives"
    return f"{places}, database {name}, as {user}"


def _server_login(database: Database, password: Secret | None) -> str:
    if password is not None:
        return f"with {KINDS[password.kind]} from here"
    if database.user:
        return "without a password"
    return "with the password of the client's user, as far as it is known"


def _size(database: Database, pool: PoolSettings, session: SessionSettings) -> str:
    each = "" if database.user else " for each user"
    lent = "a transaction" if session.pool_mode == "transaction" else "as long as a client stays"
    kept = f", {pool.min_pool_size} of them always open" if pool.min_pool_size else ""
    return f"at most {pool.pool_size} connections{each}, lent for {lent}{kept}"


def _limits(database: Database, pool: PoolSettings, config: Config) -> Rows:
    if pool.reserve_pool_size and pool.reserve_pool_timeout:
        wait = duration_text(pool.reserve_pool_timeout)
        yield "reserve", f"{pool.reserve_pool_size} more, for clients that have waited {wait}"
    if database.server_lifetime is not None:
        yield "a server connection", _age(pool.server_idle_timeout, pool.server_lifetime)
    if pool.max_db_connections:
        yield "all its pools", _most(pool.max_db_connections, " connections")
    if pool.max_user_connections:
        yield "all pools of a user", _most(pool.max_user_connections, " connections")
    own = database.max_db_client_connections
    clients = config.max_db_client_connections if own is None else own
    if clients:
        yield "its clients", _most(clients, "")
    if config.max_user_client_connections:
        yield "clients of one user", _most(config.max_user_client_connections, "")


def _session(settings: SessionSettings) -> Rows:
    yield "waiting for one", _limit(settings.query_wait_timeout)
    yield "idle in a transaction", _idle(settings)
    yield "a statement", _limit(settings.query_timeout)
    yield "a transaction", _limit(settings.transaction_timeout)
    yield "a silent client", _limit(settings.client_idle_timeout)
    yield "a pinned client", _limit(settings.pin_timeout)


def _idle(settings: SessionSettings) -> str:
    limit = _limit(settings.idle_transaction_timeout)
    if settings.idle_transaction_timeout:
        told = f"the client is told {settings.idle_transaction_sqlstate}"
        limit += {
            "rollback": f", then it is rolled back and {told}",
            "disconnect": f", then {told} and disconnected",
            "report": ", then it is reported and left alone",
        }[settings.idle_transaction_action]
    if settings.idle_transaction_timeout_max:
        longest = duration_text(settings.idle_transaction_timeout_max)
        return f"{limit}; a client may set up to {longest} for itself"
    return f"{limit}; a client may only shorten that"


def _file(file: SqliteFile, config: Config) -> Rows:
    holds = config.file_settings(file)
    if file.name == ANY_FILE:
        yield "is", f"the file of that name directly inside {file.directory}"
    else:
        yield "is", file.path
    if file.allow_create:
        yield "if it is not there", "it is made"
    own = "root" + (f", and {os.getuid()}, who runs this" if os.getuid() else "")
    yield "processes of users", own if file.peer_uids is None else _listed(file.peer_uids)
    yield "journal", file.journal_mode
    yield "a plain BEGIN", _BEGINS[file.begin]
    yield "waiting to write", _limit(file.busy_timeout)
    yield "asleep as others wait", f"{_limit(file.idle_writer_timeout)}, if it has written"
    yield "idle in a transaction", f"{_limit(holds['idle_transaction_timeout'])}, if nobody waits"
    yield "a statement", _limit(holds["query_timeout"])
    if file.commit_train:
        yield "commits", "share a sync: others may see one before it is durable"
    yield "checkpoints", "ours" if file.checkpoint == "auto" else "left to another program"
    for name in ("functions", "extensions"):
        if getattr(file, name):
            yield name, _listed(getattr(file, name))


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _own(user: User) -> Rows:
    """What is set for this user, by the settings' names."""
    if user.password is not None:
        yield "password", KINDS[user.password.kind]
    for setting in SETTINGS:
        value = None if setting.secret else getattr(user, setting.field, None)
        if "users" not in setting.tables or value is None:
            continue
        if setting.kind.unit == "seconds":
            yield setting.name, duration_text(value) if value else "off"
        else:
            yield setting.name, f"{setting.kind.show(value)} {setting.kind.unit}".rstrip()
    if user == User(name=user.name):
        yield "nothing of its own", "as in [proxy] and the databases"


def _limit(seconds: float) -> str:
    return f"at most {duration_text(seconds)}" if seconds else "no limit"


def _most(number: int, of: str) -> str:
    return f"at most {number}{of}"
