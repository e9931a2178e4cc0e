"""proxy.toml → Config.

`parse` reads the TOML and takes each key to its Setting, whose Kind turns the value as written into
the value as used. The first thing that is wrong ends it with a ConfigError that names file, line
and key.
"""

import re
import tomllib
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final

from txproxy.config import files, rules
from txproxy.config.files import File
from txproxy.config.model import ANY_DATABASE, Config, Database, User
from txproxy.config.rules import KeyPath, dotted
from txproxy.config.sqlite import SqliteFile
from txproxy.config.table import SETTINGS, TABLES, Setting, TableName
from txproxy.config.values import nearest
from txproxy.errors import ConfigError

PASSWORDS: Final = ("password", "password_file", "password_env")


def parse(text: str, path: str, *, private: bool = True) -> Config:
    """The Config that this TOML says. Raises ConfigError.

    `path` is for the errors. `private`: nobody else can read the text; else plain passwords in it
    are errors.
    """
    document = _Document(File(path, text, private))
    tables = document.tables()
    databases = {
        name: Database(name=name, **document.settings("databases", ("databases", name), table))
        for name, table in document.named_tables("databases", tables)
    }
    users = {
        name: User(name=name, **document.settings("users", ("users", name), table))
        for name, table in document.named_tables("users", tables)
    }
    sqlite = {
        name: SqliteFile(name=name, **document.settings("sqlite", ("sqlite", name), table))
        for name, table in document.named_tables("sqlite", tables)
    }
    config = Config(
        path=path,
        databases=MappingProxyType(databases),
        users=MappingProxyType(users),
        sqlite=MappingProxyType(sqlite),
        **document.settings("proxy", ("proxy",), tables.get("proxy", {})),
        **document.settings("metrics", ("metrics",), tables.get("metrics", {})),
    )
    if not databases and not sqlite:
        raise document.error(
            ("databases",), 'no database is configured; for all of a server: [databases."*"]'
        )
    rules.check(config, document.error)
    return config


class _Document:
    """The TOML as tomllib read it, and the lines where its keys stand, for the errors."""

    def __init__(self, file: File) -> None:
        self.file = file
        try:
            self.data: dict[str, Any] = tomllib.loads(file.text)
        except ValueError as error:  # TOMLDecodeError; for a number of 5000 digits, int's own
            raise _toml_error(error, file) from error
        self.lines = _key_lines(file.text)

    def error(self, key: KeyPath, problem: str) -> ConfigError:
        """The problem with this key, at its line, or at that of the nearest table around it."""
        found = (self.lines.get(key[:length]) for length in range(len(key), 0, -1))
        line = next(filter(None, found), 0)
        return ConfigError(problem, file=self.file.path, line=line, key=dotted(key))

    def tables(self) -> dict[str, dict[str, Any]]:
        """The tables, by name."""
        for name, value in self.data.items():
            if name not in TABLES:
                raise self.error((name,), _unknown_table(name))
            if not isinstance(value, dict):
                raise self.error((name,), f"must be a table: [{name}]")
        return self.data

    def named_tables(
        self, kind: str, tables: dict[str, dict[str, Any]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tables of [databases.NAME], [users.NAME] or [sqlite.NAME], with their names."""
        for name, table in tables.get(kind, {}).items():
            if not isinstance(table, dict):
                raise self.error((kind, name), f"must be a table: [{dotted((kind, name))}]")
            if not name or not name.isprintable():
                raise self.error((kind, name), "is no name")
            if kind == "users" and name == ANY_DATABASE:
                raise self.error((kind, name), "what holds for every user belongs in [proxy]")
            yield name, table

    def settings(self, kind: TableName, where: KeyPath, table: dict[str, Any]) -> dict[str, Any]:
        """What a table says, by the names of the dataclass's fields."""
        known = {setting.key: setting for setting in SETTINGS if kind in setting.tables}
        said: dict[str, Any] = {}
        for key, value in table.items():
            if key not in known:
                raise self.error((*where, key), f"unknown key{nearest(key, known)}")
            said[known[key].field] = self._value(known[key], (*where, key), value)
        given = [name for name in PASSWORDS if name in said]
        if len(given) > 1:
            raise self.error((*where, given[1]), f"{given[0]} says it already; only one of them")
        for name in given:
            said["password"] = said.pop(name)
        return said

    def _value(self, setting: Setting, key: KeyPath, value: object) -> object:
        try:
            parsed = setting.kind.parse(value)
            if setting.name == "password":
                return files.refuse_plain(parsed, self.file)
            if setting.name == "password_file":
                return files.password_in(parsed)
            if setting.name == "password_env":
                return files.password_in_environment(parsed)
            return parsed
        except ValueError as error:
            raise self.error(key, str(error)) from error


# Lines and words for the errors

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


def _key_path(written: str) -> KeyPath:
    """The parts of a dotted key, as TOML itself reads them: none if it is no key after all."""
    try:
        value: object = tomllib.loads(f"{written} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts: list[str] = []
    while isinstance(value, dict):
        [(part, value)] = value.items()
        parts.append(part)
    return tuple(parts)


def _toml_error(error: ValueError, file: File) -> ConfigError:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
    if not match:
        return ConfigError(str(error), file=file.path)
    line = int(match[2]) if match[2] else file.text.rstrip("\n").count("\n") + 1
    return ConfigError(match[1], file=file.path, line=line)


def _unknown_table(name: str) -> str:
    if any(setting.name == name and "proxy" in setting.tables for setting in SETTINGS):
        return "belongs in the table [proxy]"
    return f"unknown table{nearest(name, TABLES)}"
