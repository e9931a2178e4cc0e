"""`txproxy check`: what the configuration means, in plain words."""

from collections.abc import Iterable, Iterator

from txproxy.config import (
    ANY_DATABASE,
    SETTINGS,
    Config,
    Database,
    PoolSettings,
    UnixAddress,
    User,
)

SPANS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def check(config: Config) -> int:
    """Print what the configuration means; returns the exit code, 0."""
    for line in describe(config):
        print(line)
    return 0


def describe(config: Config) -> Iterator[str]:
    """The lines that `txproxy check` prints."""
    yield f"{config.path} is a valid configuration."
    yield from _section("the proxy", _proxy(config))
    for database in config.databases.values():
        every = database.name == ANY_DATABASE
        title = "any other database" if every else f"database {database.name}"
        # "" is nobody's name: these are the settings of a user that has none of its own
        settings = config.pool_settings(database.name, "")
        assert settings is not None
        yield from _section(title, [("goes to", _way(database)), *_pool(settings)])
    for user in config.users.values():
        yield from _section(f"user {user.name}, in every database", _own(user))


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield ""
    yield title
    for name, value in rows:
        yield f"  {name:<24}{value}"


def _proxy(config: Config) -> Iterator[tuple[str, str]]:
    for address in config.listen:
        mode = f", mode {config.unix_socket_mode:04o}" if isinstance(address, UnixAddress) else ""
        yield "listens on", f"{address}{mode}"
    yield "authentication", f"{config.auth_type}: every client is who it says it is"
    yield "clients", f"at most {config.max_client_conn}"
    yield "a client's login", _limit(config.client_login_timeout)
    yield "connecting to a server", _limit(config.server_connect_timeout)
    leaves = "is cancelled" if config.cancel_on_disconnect else "runs to its end"
    yield "a client that leaves", f"its statement {leaves}; {_limit(config.cancel_timeout)}"
    yield "a rollback of ours", _limit(config.rollback_timeout)
    yield "shutting down", f"waits for transactions, {_limit(config.shutdown_timeout)}"
    literals = "with" if config.log_statement_literals else "without"
    yield "logs", f"{config.log_level} and worse, as {config.log_format}, {literals} literals"


def _way(database: Database) -> str:
    every = database.name == ANY_DATABASE
    host = f"[{database.host}]" if ":" in database.host else database.host
    name = database.dbname or ("of the name that the client gives" if every else database.name)
    user = f"user {database.user}" if database.user else "the user that the client gives"
    return f"{host}:{database.port}, database {name}, as {user}"


def _pool(settings: PoolSettings) -> Iterator[tuple[str, str]]:
    lent = "a transaction" if settings.pool_mode == "transaction" else "as long as a client stays"
    yield "pool", f"at most {settings.pool_size} connections for each user, lent for {lent}"
    yield "waiting for one", _limit(settings.query_wait_timeout)
    yield "idle in a transaction", _idle(settings)
    yield "a statement", _limit(settings.query_timeout)
    yield "a transaction", _limit(settings.transaction_timeout)
    yield "a silent client", _limit(settings.client_idle_timeout)


def _idle(settings: PoolSettings) -> str:
    limit = _limit(settings.idle_transaction_timeout)
    if settings.idle_transaction_timeout:
        told = f"the client is told {settings.idle_transaction_sqlstate}"
        limit += {
            "rollback": f", then it is rolled back and {told}",
            "disconnect": f", then {told} and disconnected",
            "report": ", then it is reported and left alone",
        }[settings.idle_transaction_action]
    if settings.idle_transaction_timeout_max:
        longest = _span(settings.idle_transaction_timeout_max)
        return f"{limit}; a client may set up to {longest} for itself"
    return f"{limit}; a client may only shorten that"


def _own(user: User) -> Iterator[tuple[str, str]]:
    """What is set for this user, by the settings' names."""
    for setting in SETTINGS:
        value = getattr(user, setting.name, None)
        if "users" not in setting.tables or value is None:
            continue
        if setting.unit == "seconds":
            yield setting.name, _span(value) if value else "off"
        else:
            yield setting.name, f"{value} {setting.unit}".rstrip()
    if user == User(name=user.name):
        yield "nothing of its own", "as in [proxy] and the databases"


def _limit(seconds: float) -> str:
    return f"at most {_span(seconds)}" if seconds else "no limit"


def _span(seconds: float) -> str:
    """A duration in the largest unit that it is a whole number of."""
    for size, unit in SPANS:
        if seconds and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"
