"""The configuration: a file → a Config, or a ConfigError that names file, line and key.

`values` has what values can be, `table` every setting, `model` what becomes of them, `rules` what
cannot be together; `sqlite` says which file a name means. `toml` reads a proxy.toml, `ini` a
pgbouncer.ini by the words of `pgbouncer`.
"""

from txproxy.config import files, ini
from txproxy.config.model import (
    ANY_DATABASE,
    AuthSettings,
    Config,
    Database,
    Overrides,
    PoolSettings,
    SessionSettings,
    TcpSettings,
    TlsSettings,
    User,
    shown,
    shown_default,
)
from txproxy.config.rules import CONSOLE_DATABASES
from txproxy.config.sqlite import ANY_FILE, SqliteFile
from txproxy.config.table import AUTH_QUERY, EVERYWHERE, SETTINGS, Setting
from txproxy.config.toml import parse
from txproxy.config.values import (
    Address,
    Secret,
    TcpAddress,
    UnixAddress,
    duration_text,
)

__all__ = [
    "load",
    "parse",
    "Config",
    "Database",
    "User",
    "SqliteFile",
    "Overrides",
    "PoolSettings",
    "SessionSettings",
    "AuthSettings",
    "TlsSettings",
    "TcpSettings",
    "Secret",
    "Address",
    "TcpAddress",
    "UnixAddress",
    "Setting",
    "SETTINGS",
    "EVERYWHERE",
    "ANY_DATABASE",
    "ANY_FILE",
    "AUTH_QUERY",
    "CONSOLE_DATABASES",
    "shown",
    "shown_default",
    "duration_text",
]


def load(path: str) -> Config:
    """Read and parse a file: a pgbouncer.ini if it ends in .ini, else a proxy.toml.

    Raises ConfigError.
    """
    if path.endswith(".ini"):
        return ini.load(path)
    file = files.read(path)
    return parse(file.text, path, private=file.private)
