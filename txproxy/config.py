"""proxy.toml → frozen dataclasses. Every setting, with its default, stands in SETTINGS, once.

`parse` reads the TOML, takes each key to its Setting, whose parser turns the value as written into
the value as used, and builds a Config. The first thing that is wrong ends it with a ConfigError
that names file, line and key. From a Config, `pool_settings` says what holds for one database and
user: what is said for the user beats what is said for the database, and that beats [proxy].
"""

import difflib
import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from txproxy.errors import ConfigError

T = TypeVar("T")

ANY_DATABASE: Final = "*"
DEFAULT_PORT: Final = 6432
LONGEST_DURATION: Final = 365 * 24 * 3600.0
LONGEST_SOCKET_PATH: Final = 107  # sun_path holds 108 bytes, with a NUL at the end


# What the configuration becomes


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where to listen on TCP. Port 0 is any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Where to listen on a unix socket: a directory, and the port that its file is named after."""

    directory: str
    port: int

    @property
    def path(self) -> str:
        """The socket's file."""
        return f"{self.directory.rstrip('/')}/.s.PGSQL.{self.port}"

    def __str__(self) -> str:
        return self.path


Address = TcpAddress | UnixAddress


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What holds for the clients of one database and user. Times are seconds, 0 is off."""

    database: str  # database and user are what the client asked for
    user: str
    host: str  # a name, an address, or the directory of a unix socket
    port: int
    dbname: str
    server_user: str
    pool_size: int
    pool_mode: str  # "transaction" or "session"
    idle_transaction_timeout: float
    idle_transaction_timeout_max: float  # what a client may lengthen it to; 0: only shorten
    idle_transaction_action: str  # "rollback", "disconnect" or "report"
    idle_transaction_sqlstate: str
    query_timeout: float
    transaction_timeout: float
    query_wait_timeout: float
    client_idle_timeout: float


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a database or a user may have of its own; None: as it is elsewhere."""

    pool_size: int | None = None
    pool_mode: str | None = None
    idle_transaction_timeout: float | None = None
    idle_transaction_timeout_max: float | None = None
    idle_transaction_action: str | None = None
    idle_transaction_sqlstate: str | None = None
    query_timeout: float | None = None
    transaction_timeout: float | None = None
    query_wait_timeout: float | None = None
    client_idle_timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Database(Overrides):
    """One [databases.NAME]: where it leads. dbname and user None: as the client says."""

    name: str
    host: str
    port: int
    dbname: str | None
    user: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Overrides):
    """One [users.NAME]."""

    name: str


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. Times are seconds, 0 is off."""

    path: str
    listen: tuple[Address, ...]
    unix_socket_mode: int
    auth_type: str
    pool_mode: str
    default_pool_size: int
    max_client_conn: int
    workers: int
    idle_transaction_timeout: float
    idle_transaction_timeout_max: float
    idle_transaction_action: str
    idle_transaction_sqlstate: str
    query_timeout: float
    transaction_timeout: float
    query_wait_timeout: float
    client_idle_timeout: float
    client_login_timeout: float
    server_connect_timeout: float
    cancel_on_disconnect: bool
    cancel_timeout: float
    rollback_timeout: float
    shutdown_timeout: float
    log_statement_literals: bool
    log_format: str
    log_level: str
    databases: Mapping[str, Database]
    users: Mapping[str, User]

    def pool_settings(self, database: str, user: str) -> PoolSettings | None:
        """What holds for clients that ask for this database as this user; None: no such database.

        The "*" database stands in for every name that is not configured, and passes it on.
        """
        db = self.databases.get(database) or self.databases.get(ANY_DATABASE)
        if db is None:
            return None
        own = self.users.get(user) or User(name=user)
        return PoolSettings(
            database=database,
            user=user,
            host=db.host,
            port=db.port,
            dbname=_first(db.dbname, database),
            server_user=_first(db.user, user),
            pool_size=_first(own.pool_size, db.pool_size, self.default_pool_size),
            pool_mode=_first(own.pool_mode, db.pool_mode, self.pool_mode),
            idle_transaction_timeout=_first(
                own.idle_transaction_timeout,
                db.idle_transaction_timeout,
                self.idle_transaction_timeout,
            ),
            idle_transaction_timeout_max=_first(
                own.idle_transaction_timeout_max,
                db.idle_transaction_timeout_max,
                self.idle_transaction_timeout_max,
            ),
            idle_transaction_action=_first(
                own.idle_transaction_action,
                db.idle_transaction_action,
                self.idle_transaction_action,
            ),
            idle_transaction_sqlstate=_first(
                own.idle_transaction_sqlstate,
                db.idle_transaction_sqlstate,
                self.idle_transaction_sqlstate,
            ),
            query_timeout=_first(own.query_timeout, db.query_timeout, self.query_timeout),
            transaction_timeout=_first(
                own.transaction_timeout, db.transaction_timeout, self.transaction_timeout
            ),
            query_wait_timeout=_first(
                own.query_wait_timeout, db.query_wait_timeout, self.query_wait_timeout
            ),
            client_idle_timeout=_first(
                own.client_idle_timeout, db.client_idle_timeout, self.client_idle_timeout
            ),
        )


def _first(*values: T | None) -> T:
    return next(value for value in values if value is not None)


# Values: each parser takes what TOML gave and returns what is used, or raises ValueError, whose
# text goes after the key: "must be …".


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a string, and not an empty one")
    if not value.isprintable():
        raise ValueError("must not have control characters in it")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004
    return value


def _integer(least: int, most: int) -> Callable[[object], int]:
    def parse_integer(value: object) -> int:
        # bool is an int to Python, and to nobody else
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return parse_integer


def _choice(*words: str, not_yet: tuple[str, ...] = ()) -> Callable[[object], str]:
    def parse_choice(value: object) -> str:
        if value in not_yet:
            raise ValueError(f'"{value}" is not supported yet; what is: {_listed(words)}')
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"must be {_listed(words)}{_nearest(value, words)}")
        return value

    return parse_choice


SECONDS: Final = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


def _duration(value: object) -> float:
    seconds = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(ms|s|min|h)", value)
        seconds = float(match[1]) * SECONDS[match[2]] if match else None
    if seconds is None:
        raise ValueError(
            'must be a duration: "500ms", "30s", "5min", "1h", or a number of seconds; 0 is off'
        )
    # written so that nan fails too
    if not 0 <= seconds <= LONGEST_DURATION:
        raise ValueError("must be from 0 (off) to a year")
    return float(seconds)


def _sqlstate(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9A-Z]{5}", value):
        raise ValueError('must be five characters of 0-9 and A-Z, such as "25P03"')
    if value.startswith("00"):
        raise ValueError("class 00 means success; an error needs another")
    return value


def _file_mode(value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError('must be an octal mode in quotes, such as "0700"')
    return int(value, 8)


def _server_host(value: object) -> str:
    if isinstance(value, list) or (isinstance(value, str) and "," in value):
        raise ValueError("more than one host is not supported yet")
    host = _text(value)
    if host.startswith("unix:"):
        raise ValueError('write only the directory of the unix socket: "/var/run/postgresql"')
    if not host.startswith("/") and ":" in host and _ip_address(host) is None:
        raise ValueError("must be a host without a port; that is a key of its own")
    return host


def _listen(value: object) -> tuple[Address, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'must be a list such as ["127.0.0.1:{DEFAULT_PORT}", "unix:/run/txproxy"]'
        )
    addresses = [_address(_text(each)) for each in value]
    named = [each.port for each in addresses if isinstance(each, TcpAddress) and each.port]
    port = named[0] if named else DEFAULT_PORT
    placed = [_placed(each, port) for each in addresses]
    for number, address in enumerate(placed):
        if address in placed[:number]:
            raise ValueError(f"{address} is listed twice")
    return tuple(placed)


def _address(text: str) -> Address:
    if text.startswith("unix:"):
        directory = text.removeprefix("unix:")
        if not directory.startswith("/"):
            raise ValueError(f'"{text}" must name a directory from the root: "unix:/run/txproxy"')
        return UnixAddress(directory, DEFAULT_PORT)
    match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]+):([0-9]{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise ValueError(
            f'"{text}" must be "address:port", "[IPv6 address]:port" or "unix:/directory"'
        )
    if match[1] == "*":
        raise ValueError(f'"{text}": for every address, write "0.0.0.0" and "[::]"')
    return TcpAddress(match[1].strip("[]"), int(match[2]))


def _placed(address: Address, port: int) -> Address:
    """The address, with the port that a unix socket's file is named after."""
    if isinstance(address, TcpAddress):
        return address
    placed = UnixAddress(address.directory, port)
    if len(placed.path.encode()) > LONGEST_SOCKET_PATH:
        raise ValueError(f"{placed.path} is longer than a socket's path can be")
    return placed


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_local(address: Address) -> bool:
    if isinstance(address, UnixAddress) or address.host == "localhost":
        return True
    ip = _ip_address(address.host)
    return ip is not None and ip.is_loopback


# The settings

TableName = Literal["proxy", "databases", "users"]
PROXY: Final = ("proxy",)
DATABASES: Final = ("databases",)
DATABASES_AND_USERS: Final = ("databases", "users")
EVERYWHERE: Final = ("proxy", "databases", "users")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of proxy.toml.

    `default` is written as proxy.toml would write it, and is that of the first of `tables`: in the
    others a setting that is left out is as it is in [proxy]. None: `help` says what holds then.
    `unit` is what the parsed value counts.
    """

    name: str
    tables: tuple[TableName, ...]
    parse: Callable[[object], object] = field(repr=False)
    default: object
    unit: str
    help: str


_MOST: Final = 1_000_000

SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "listen",
        PROXY,
        _listen,
        [f"127.0.0.1:{DEFAULT_PORT}"],
        "",
        'where clients connect: "address:port", "[IPv6 address]:port", "unix:/directory"',
    ),
    Setting(
        "unix_socket_mode", PROXY, _file_mode, "0700", "", "who may connect to the unix sockets"
    ),
    Setting(
        "auth_type",
        PROXY,
        _choice("trust", not_yet=("md5", "scram-sha-256", "cert", "peer")),
        "trust",
        "",
        "how clients prove who they are; trust: not at all, on loopback and unix sockets only",
    ),
    Setting(
        "pool_mode",
        EVERYWHERE,
        _choice("transaction", "session"),
        "transaction",
        "",
        "how long a client keeps a server connection: for a transaction, or until it leaves",
    ),
    Setting(
        "default_pool_size",
        PROXY,
        _integer(1, _MOST),
        20,
        "connections",
        "server connections for each pair of database and user",
    ),
    Setting(
        "pool_size",
        DATABASES_AND_USERS,
        _integer(1, _MOST),
        None,
        "connections",
        "the same for this database or user; default_pool_size if left out",
    ),
    Setting(
        "max_client_conn",
        PROXY,
        _integer(1, _MOST),
        10000,
        "connections",
        "clients at once; those beyond are refused",
    ),
    Setting(
        "workers",
        PROXY,
        _integer(1, 1024),
        1,
        "processes",
        "pools are divided among them; more than 1 is not supported yet",
    ),
    Setting(
        "host",
        DATABASES,
        _server_host,
        "127.0.0.1",
        "",
        "the server: a name, an address, or the directory of its unix socket",
    ),
    Setting("port", DATABASES, _integer(1, 65535), 5432, "", "the server's port"),
    Setting(
        "dbname",
        DATABASES,
        _text,
        None,
        "",
        "the server's name of the database; the name that the client gave if left out",
    ),
    Setting(
        "user",
        DATABASES,
        _text,
        None,
        "",
        "the user that logs in to the server; the one that the client gave if left out",
    ),
    Setting(
        "idle_transaction_timeout",
        EVERYWHERE,
        _duration,
        "30s",
        "seconds",
        "how long a client may sleep in a transaction that holds a server connection; 0: for ever",
    ),
    Setting(
        "idle_transaction_timeout_max",
        EVERYWHERE,
        _duration,
        0,
        "seconds",
        "how far a client may lengthen that for itself; 0: it may only shorten it",
    ),
    Setting(
        "idle_transaction_action",
        EVERYWHERE,
        _choice("rollback", "disconnect", "report"),
        "rollback",
        "",
        "what is done then: roll back and keep the client, disconnect it, or only say so",
    ),
    Setting(
        "idle_transaction_sqlstate",
        EVERYWHERE,
        _sqlstate,
        "25P03",
        "",
        "the SQLSTATE of the error that the client then gets",
    ),
    Setting(
        "query_timeout",
        EVERYWHERE,
        _duration,
        0,
        "seconds",
        "how long one statement may run; 0: for ever",
    ),
    Setting(
        "transaction_timeout",
        EVERYWHERE,
        _duration,
        0,
        "seconds",
        "how long a transaction may take, busy or idle; 0: for ever",
    ),
    Setting(
        "query_wait_timeout",
        EVERYWHERE,
        _duration,
        "120s",
        "seconds",
        "how long a client may wait for a server connection; 0: for ever",
    ),
    Setting(
        "client_idle_timeout",
        EVERYWHERE,
        _duration,
        0,
        "seconds",
        "how long a client may be silent outside a transaction; 0: for ever",
    ),
    Setting(
        "client_login_timeout",
        PROXY,
        _duration,
        "60s",
        "seconds",
        "how long a client may take to log in; 0: for ever",
    ),
    Setting(
        "server_connect_timeout",
        PROXY,
        _duration,
        "15s",
        "seconds",
        "how long connecting to a server and logging in may take; 0: for ever",
    ),
    Setting(
        "cancel_on_disconnect",
        PROXY,
        _boolean,
        True,
        "",
        "cancel the statement of a client that has left",
    ),
    Setting(
        "cancel_timeout",
        PROXY,
        _duration,
        "10s",
        "seconds",
        "how long a server connection may take to come to rest once its client has left",
    ),
    Setting(
        "rollback_timeout",
        PROXY,
        _duration,
        "5s",
        "seconds",
        "how long a ROLLBACK of ours may take before the server connection is closed instead",
    ),
    Setting(
        "shutdown_timeout",
        PROXY,
        _duration,
        "30s",
        "seconds",
        "how long transactions may go on after SIGTERM",
    ),
    Setting(
        "log_statement_literals",
        PROXY,
        _boolean,
        False,
        "",
        "leave the literals in statements that are logged; they may be personal data",
    ),
    Setting("log_format", PROXY, _choice("text", "json"), "text", "", "how an event is logged"),
    Setting(
        "log_level",
        PROXY,
        _choice("debug", "info", "warning", "error"),
        "info",
        "",
        "the least important events that are logged",
    ),
)

# Documented for later: refused with better words than "unknown key".
NOT_YET: Final[Mapping[str, frozenset[str]]] = {
    "proxy": frozenset({"admin_users", "deferred_begin", "stats_users"}),
    "databases": frozenset({"password", "password_env", "password_file"}),
    "users": frozenset({"password", "password_env", "password_file"}),
}
TABLES: Final = ("proxy", "databases", "users")
TABLES_NOT_YET: Final = ("sqlite", "metrics")


# Reading


def load(path: str) -> Config:
    """Read and parse a file. Raises ConfigError."""
    if path.endswith(".ini"):
        raise ConfigError("pgbouncer.ini is not supported yet; write a proxy.toml", file=path)
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(error.strerror or str(error), file=path) from error
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8", file=path, line=line) from error
    return parse(text, path)


def parse(text: str, path: str) -> Config:
    """The Config that this TOML says; `path` is for the errors. Raises ConfigError."""
    document = _Document(text, path)
    tables = document.tables()
    proxy = document.settings("proxy", ("proxy",), tables.get("proxy", {}))
    databases = {
        name: Database(name=name, **document.settings("databases", ("databases", name), table))
        for name, table in document.named_tables("databases", tables)
    }
    users = {
        name: User(name=name, **document.settings("users", ("users", name), table))
        for name, table in document.named_tables("users", tables)
    }
    config = Config(
        path=path,
        databases=MappingProxyType(databases),
        users=MappingProxyType(users),
        **proxy,
    )
    _check_combinations(config, document)
    return config


KeyPath = tuple[str, ...]


class _Document:
    """The TOML as tomllib read it, and the lines where its keys stand, for the errors."""

    def __init__(self, text: str, path: str) -> None:
        self.path = path
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except ValueError as error:  # TOMLDecodeError; for a number of 5000 digits, int's own
            raise _toml_error(error, text, path) from error
        self.lines = _key_lines(text)

    def error(self, key: KeyPath, problem: str) -> ConfigError:
        """The problem with this key, at its line, or at that of the nearest table around it."""
        found = (self.lines.get(key[:length]) for length in range(len(key), 0, -1))
        line = next(filter(None, found), 0)
        return ConfigError(problem, file=self.path, line=line, key=_dotted(key))

    def tables(self) -> dict[str, dict[str, Any]]:
        """The tables, by name."""
        for name, value in self.data.items():
            if name in TABLES_NOT_YET:
                raise self.error((name,), "is not supported yet")
            if name not in TABLES:
                raise self.error((name,), _unknown_table(name))
            if not isinstance(value, dict):
                raise self.error((name,), f"must be a table: [{name}]")
        return self.data

    def named_tables(
        self, kind: str, tables: dict[str, dict[str, Any]]
    ) -> Iterable[tuple[str, dict[str, Any]]]:
        """The tables of [databases.NAME] or [users.NAME], with their names."""
        for name, table in tables.get(kind, {}).items():
            if not isinstance(table, dict):
                raise self.error((kind, name), f"must be a table: [{_dotted((kind, name))}]")
            if not name or not name.isprintable():
                raise self.error((kind, name), "is no name")
            if kind == "users" and name == ANY_DATABASE:
                raise self.error((kind, name), "what holds for every user belongs in [proxy]")
            yield name, table

    def settings(
        self, kind: TableName, where: KeyPath, table: Mapping[str, object]
    ) -> dict[str, Any]:
        """What a table says, with the defaults for what it leaves out."""
        known = {setting.name: setting for setting in SETTINGS if kind in setting.tables}
        for key in table:
            if key in NOT_YET[kind]:
                raise self.error((*where, key), "is not supported yet")
            if key not in known:
                raise self.error((*where, key), f"unknown key{_nearest(key, known)}")
        return {
            name: self._value(setting, (*where, name), table[name])
            if name in table
            else _default(setting, kind)
            for name, setting in known.items()
        }

    def _value(self, setting: Setting, key: KeyPath, value: object) -> object:
        try:
            return setting.parse(value)
        except ValueError as error:
            raise self.error(key, str(error)) from error


def _default(setting: Setting, kind: TableName) -> object:
    if setting.default is None or kind != setting.tables[0]:
        return None
    return setting.parse(setting.default)


def _check_combinations(config: Config, document: _Document) -> None:
    """Raise for what is right by itself and cannot be together."""
    if not config.databases:
        raise document.error(
            ("databases",), 'no database is configured; for all of a server: [databases."*"]'
        )
    if config.workers > 1:
        raise document.error(("proxy", "workers"), "more than 1 is not supported yet")
    for address in config.listen:
        if config.auth_type == "trust" and not _is_local(address):
            raise document.error(
                ("proxy", "listen"),
                f'{address} is open to others, and auth_type "trust" lets everybody in:'
                " listen on loopback or a unix socket",
            )
    for name, database in config.databases.items():
        if _leads_to(database) in config.listen:
            raise document.error(
                ("databases", name, "port"), "leads to the proxy itself, which listens there"
            )
    _check_timeouts(("proxy",), config, document)
    for kind, named in (("databases", config.databases), ("users", config.users)):
        for name, overrides in named.items():
            _check_timeouts((kind, name), overrides, document)


def _leads_to(database: Database) -> Address:
    if database.host.startswith("/"):
        return UnixAddress(database.host, database.port)
    return TcpAddress(database.host, database.port)


def _check_timeouts(where: KeyPath, said: Config | Overrides, document: _Document) -> None:
    timeout, longest = said.idle_transaction_timeout, said.idle_transaction_timeout_max
    if timeout is None or not longest:
        return
    if timeout == 0 or timeout > longest:
        raise document.error(
            (*where, "idle_transaction_timeout_max"),
            "is less than idle_transaction_timeout (where 0 is for ever)",
        )


# Words and lines for the errors

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_KEY: Final = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_DOTTED_KEY: Final = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_HEADER_LINE: Final = re.compile(rf"[ \t]*\[\[?[ \t]*({_DOTTED_KEY})[ \t]*\]")
_KEY_LINE: Final = re.compile(rf"[ \t]*({_DOTTED_KEY})[ \t]*=")


def _key_lines(text: str) -> dict[KeyPath, int]:
    """Where each header and each key of a TOML document that is valid stands: lines from 1.

    A line inside a string of several lines can be mistaken for a key. Nothing here is written so,
    and the harm would be a wrong line in an error message.
    """
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER_LINE.match(line):
            path = table = _key_path(header[1])
        elif key := _KEY_LINE.match(line):
            path = table + _key_path(key[1])
        else:
            continue
        # [databases.app] is where databases begins too
        for length in range(1, len(path) + 1):
            lines.setdefault(path[:length], number)
    return lines


def _key_path(dotted: str) -> KeyPath:
    """The parts of a dotted key, as TOML itself reads them: none if it is no key after all."""
    try:
        value: object = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts: list[str] = []
    while isinstance(value, dict):
        [(part, value)] = value.items()
        parts.append(part)
    return tuple(parts)


def _dotted(key: KeyPath) -> str:
    return ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part) for part in key)


def _toml_error(error: ValueError, text: str, path: str) -> ConfigError:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
    if not match:
        return ConfigError(str(error), file=path)
    line = int(match[2]) if match[2] else text.rstrip("\n").count("\n") + 1
    return ConfigError(match[1], file=path, line=line)


def _listed(words: Iterable[str]) -> str:
    return " or ".join(f'"{word}"' for word in words)


def _nearest(word: object, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _unknown_table(name: str) -> str:
    if any(setting.name == name and "proxy" in setting.tables for setting in SETTINGS):
        return "belongs in the table [proxy]"
    return f"unknown table{_nearest(name, TABLES)}"
