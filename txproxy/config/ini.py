"""pgbouncer.ini → Config: the file as it is, with PgBouncer's defaults where its users count on
them.

What means nothing here is accepted and noted in `Config.notes`; what must not be ignored is an
error. A key of [proxy] may stand in [pgbouncer] too. Syntax: PgBouncer's manual, "Section
[databases]", "Include directive" and "Authentication file format".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from txproxy.config import files, pgbouncer, rules, values
from txproxy.config.files import File
from txproxy.config.model import Config, Database, User
from txproxy.config.rules import KeyPath, dotted
from txproxy.config.table import SETTINGS, Setting, TableName
from txproxy.config.values import Address, Secret, TcpAddress, UnixAddress, nearest
from txproxy.errors import ConfigError

DEEPEST_INCLUDE: Final = 10
LISTENING: Final = ("listen_addr", "unix_socket_dir", "listen_port")
SECTIONS: Final = ("pgbouncer", "databases", "users", "peers")


def load(path: str) -> Config:
    """The Config that this pgbouncer.ini says. Raises ConfigError."""
    return _Ini(path).config()


# The file


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """A key and its value, as text, and where they stand."""

    section: str
    name: str
    value: str
    file: File
    line: int

    def error(self, problem: str, *key: str) -> ConfigError:
        """A problem with this; outside of [pgbouncer] perhaps with a key in its value."""
        path = (self.name,) if self.section == "pgbouncer" else (self.section, self.name, *key)
        return ConfigError(problem, file=self.file.path, line=self.line, key=dotted(path))


_SECTION: Final = re.compile(r"\[([^\]]*)\][ \t]*(?:[;#].*)?")
_INCLUDE: Final = re.compile(r"%include[ \t]+(.+)")
_ENTRY: Final = re.compile(r'("(?:[^"]|"")*"|[A-Za-z0-9_.*-]+)[ \t]*=[ \t]*(.*)')


def _entries(file: File, section: str = "", depth: int = 0) -> Iterator[Entry]:
    """What the file and those that it includes say, in their order."""
    for number, raw in enumerate(file.text.split("\n"), start=1):
        line = raw.strip()
        if not line or line[0] in ";#":
            continue
        if found := _SECTION.fullmatch(line):
            section = found[1]
            if section not in SECTIONS:
                problem = f"unknown section{nearest(section, SECTIONS)}"
                raise ConfigError(problem, file=file.path, line=number, key=f"[{section}]")
        elif found := _INCLUDE.fullmatch(line):
            if depth == DEEPEST_INCLUDE:
                raise ConfigError("too many files inside files", file=file.path, line=number)
            # A section that the included file begins goes on behind it.
            for entry in _entries(files.read(found[1]), section, depth + 1):
                section = entry.section
                yield entry
        elif found := _ENTRY.fullmatch(line):
            if not section:
                raise ConfigError("belongs in a section", file=file.path, line=number)
            yield Entry(section, _name(found[1]), found[2], file, number)
        else:
            # not repeated: it may hold a password
            raise ConfigError("must be key = value", file=file.path, line=number)


def _name(written: str) -> str:
    return written[1:-1].replace('""', '"') if written.startswith('"') else written


_PAIR: Final = re.compile(r"([^\s=']+)\s*=\s*(?:'((?:[^']|'')*)'(?=\s|$)|([^\s']\S*))\s*")


def _pairs(entry: Entry) -> Iterator[tuple[str, str]]:
    """The keys and values of a connection string."""
    position = 0
    while position < len(entry.value):
        found = _PAIR.match(entry.value, position)
        if not found:
            # not repeated: it may hold a password
            raise entry.error("must be key=value pairs, with values of several words in ''")
        yield found[1], found[3] or found[2].replace("''", "'")
        position = found.end()


_USER: Final = re.compile(r'"((?:[^"]|"")*)"[ \t]+"((?:[^"]|"")*)".*')


def _users_in(file: File) -> Iterator[Entry]:
    """The names and secrets of an auth_file."""
    for number, raw in enumerate(file.text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith(";"):
            continue
        found = _USER.fullmatch(line)
        if not found:
            # not repeated: it may hold a password
            raise ConfigError('must be "user" "secret"', file=file.path, line=number)
        name, value = (part.replace('""', '"') for part in found.groups())
        yield Entry("users", name, value, file, number)


# What it says


class _Ini:
    """One pgbouncer.ini. Keys that stand twice: the later one counts, as in PgBouncer."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sections: dict[str, dict[str, Entry]] = {name: {} for name in SECTIONS}
        self.notes: list[str] = []
        self.secrets: dict[str, Entry] = {}
        for entry in _entries(files.read(path)):
            if not entry.name or not entry.name.isprintable():
                raise entry.error("is no name")
            self.sections[entry.section][entry.name] = entry

    def config(self) -> Config:
        for entry in self.sections["peers"].values():
            raise entry.error(pgbouncer.PEERS)
        said = self._proxy()
        databases = self._databases()
        users = self._users()
        config = Config(
            path=self.path,
            listen=self._listen(),
            databases=MappingProxyType(databases),
            users=MappingProxyType(users),
            notes=tuple(self.notes),
            **(pgbouncer.DEFAULTS | said),
        )
        if not databases:
            raise ConfigError("no database is configured", file=self.path, key="[databases]")
        rules.check(config, self._error)
        return config

    def _error(self, key: KeyPath, problem: str) -> ConfigError:
        """The error for a combination, where the nearest of its keys stands."""
        kind, name = key[0], key[1]
        entries = self.sections["pgbouncer" if kind == "proxy" else kind]
        places = LISTENING if key == ("proxy", "listen") else (name,)
        found = next((entries[place] for place in places if place in entries), None)
        if found is None:
            return ConfigError(problem, file=self.path, key=name)
        return found.error(problem, *key[2:])

    def _proxy(self) -> dict[str, Any]:
        known = {each.name: each for each in SETTINGS if "proxy" in each.tables}
        del known["listen"]
        said = {}
        for name, entry in self.sections["pgbouncer"].items():
            if name in (*LISTENING, "auth_file") or self._is_void(entry, name, entry.value):
                continue
            if name not in known:
                words = [*known, *LISTENING, "auth_file", *pgbouncer.NOTED["pgbouncer"]]
                raise entry.error(f"unknown key{nearest(name, words)}")
            if entry.value:
                said[name] = self._value(entry, known[name], entry.value)
        return said

    def _is_void(self, entry: Entry, name: str, value: str) -> bool:
        """Whether a setting means nothing here, which is noted. Raises ConfigError if it must not
        be passed over.
        """
        if refusal := pgbouncer.REFUSED[entry.section].get(name):
            if value not in pgbouncer.SWITCHED_OFF:
                raise entry.error(refusal, name)
            return True
        if note := pgbouncer.NOTED[entry.section].get(name):
            self.notes.append(str(entry.error(note, name)))
            return True
        return False

    def _value(self, entry: Entry, setting: Setting, written: str) -> object:
        name = setting.name
        if refusal := pgbouncer.REFUSED_VALUES.get(name, {}).get(written.lower()):
            raise entry.error(f'"{written}" {refusal}', name)
        if note := pgbouncer.NOTED_VALUES.get((name, written)):
            self.notes.append(str(entry.error(note, name)))
        if name == "unix_socket_mode" and not written.startswith("0"):
            raise entry.error("must be octal, with a 0 in front: 0770")
        try:
            value = setting.kind.parse(setting.kind.read(_translated(name, written)))
            return files.refuse_plain(value, entry.file) if setting.secret else value
        except ValueError as error:
            raise entry.error(str(error), name) from error

    def _listen(self) -> tuple[Address, ...]:
        entries = self.sections["pgbouncer"]
        port = self._port()
        hosts = (
            re.split(r"[,\s]+", entries["listen_addr"].value) if "listen_addr" in entries else []
        )
        addresses: list[Address] = []
        for host in filter(None, hosts):
            everywhere = _every_address() if host == "*" else [host]
            addresses += [TcpAddress(each, port) for each in everywhere]
        if directory := self._socket_directory():
            addresses.append(UnixAddress(directory, port))
        if not addresses:
            raise self._error(("proxy", "listen"), "there is nowhere to listen")
        try:
            return values.placed(addresses, port)
        except ValueError as error:
            raise self._error(("proxy", "listen"), str(error)) from error

    def _port(self) -> int:
        entry = self.sections["pgbouncer"].get("listen_port")
        if entry is None:
            return values.DEFAULT_PORT
        kind = values.integer(1, 65535)
        try:
            port: int = kind.parse(kind.read(entry.value))
        except ValueError as error:
            raise entry.error(str(error)) from error
        return port

    def _socket_directory(self) -> str:
        entry = self.sections["pgbouncer"].get("unix_socket_dir")
        if entry is None:
            return pgbouncer.UNIX_SOCKET_DIR
        if entry.value and not entry.value.startswith("/"):
            raise entry.error("must name a directory from the root; others are not supported")
        return entry.value

    def _databases(self) -> dict[str, Database]:
        databases = {}
        for name, entry in self.sections["databases"].items():
            said = self._said(entry, "databases")
            if "hosts" not in said:
                directory = self._socket_directory()
                if not directory:
                    raise entry.error("has no host, and there is no unix_socket_dir")
                said["hosts"] = (directory,)
            if "password" in said and "user" not in said:
                del said["password"]
                note = "is nobody's: it counts only together with user"
                self.notes.append(str(entry.error(note, "password")))
            databases[name] = Database(name=name, **said)
        return databases

    def _users(self) -> dict[str, User]:
        said: dict[str, dict[str, Any]] = {}
        for name, password in self._secrets().items():
            said[name] = {"password": password}
        for name, entry in self.sections["users"].items():
            said.setdefault(name, {}).update(self._said(entry, "users"))
        return {name: User(name=name, **own) for name, own in said.items()}

    def _secrets(self) -> dict[str, Secret | None]:
        """Who is in auth_file. An empty secret is none: it proves nothing to anybody."""
        where = self.sections["pgbouncer"].get("auth_file")
        if where is None or not where.value:
            return {}
        file = files.read(where.value)
        found: dict[str, Secret | None] = {}
        for entry in _users_in(file):
            try:
                text = entry.value
                found[entry.name] = files.refuse_plain(values.secret(text), file) if text else None
            except ValueError as error:
                raise entry.error(str(error)) from error
        return found

    def _said(self, entry: Entry, kind: TableName) -> dict[str, Any]:
        """What a connection string says, by the names of the dataclass's fields."""
        known = {each.name: each for each in SETTINGS if kind in each.tables}
        for name in ("password_file", "password_env"):
            del known[name]
        said = {}
        for written, value in _pairs(entry):
            name = "reserve_pool_size" if written == "reserve_pool" else written
            if self._is_void(entry, name, value):
                continue
            if name not in known and "password" in said:
                # not repeated: it may be the rest of the password
                raise entry.error("unknown key behind password; if that has spaces, in ''")
            if name not in known:
                raise entry.error(f"unknown key{nearest(name, known)}", name)
            said[known[name].field] = self._value(entry, known[name], value)
        return said


def _translated(name: str, written: str) -> str:
    """A value in PgBouncer's words, in ours."""
    if name == "tcp_user_timeout" and written.isdigit():
        return f"{written}ms"
    if name.endswith("_tls_ciphers"):
        return pgbouncer.CIPHERS.get(written, written)
    if name.endswith("_tls_protocols"):
        return pgbouncer.PROTOCOLS.get(written, written)
    return written


def _every_address() -> list[str]:
    """What "*" stands for. On a system without IPv6, [::] cannot be listened on."""
    interfaces = Path("/proc/net/if_inet6")
    has_ipv6 = interfaces.exists() and interfaces.read_text()
    return ["0.0.0.0", "::"] if has_ipv6 else ["0.0.0.0"]  # noqa: S104
