"""The values of settings: what they become, how they are written, how they are shown.

A Kind is one sort of value. `parse` takes what TOML gave and returns what is used; `read` turns the
text of a pgbouncer.ini or of the console's SET into what TOML would have given; `show` writes the
value as it could have been written. The first two raise ValueError, whose text goes behind the key:
"must be …". No error repeats a secret.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

DEFAULT_PORT: Final = 6432
LONGEST_DURATION: Final = 365 * 24 * 3600.0
LONGEST_SOCKET_PATH: Final = 107  # sun_path holds 108 bytes, with a NUL at the end
HIDDEN: Final = "********"

# Iterations, salt, and two keys of 32 bytes, all in base64.
_SALT: Final = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)"
_KEY: Final = "[A-Za-z0-9+/]{43}="
VERIFIER: Final = re.compile(rf"SCRAM-SHA-256\$[1-9][0-9]{{0,9}}:{_SALT}\${_KEY}:{_KEY}")


# What values become


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


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A password as it was configured: plain, "md5" and 32 hex digits, or a SCRAM verifier as
    PostgreSQL stores it. Only `text` shows it.
    """

    text: str

    @property
    def kind(self) -> str:
        """Which it is: "plain", "md5" or "scram-sha-256"; PostgreSQL tells them apart so too."""
        if re.fullmatch(r"md5[0-9a-f]{32}", self.text):
            return "md5"
        return "scram-sha-256" if VERIFIER.fullmatch(self.text) else "plain"

    def __repr__(self) -> str:
        return HIDDEN


# Kinds


def _same(text: str) -> object:
    return text


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of value; see the module. `unit` is what the value counts."""

    parse: Callable[[object], Any]
    read: Callable[[str], object] = _same
    show: Callable[[Any], str] = str
    unit: str = ""


def text(value: object) -> str:
    """A string that is not empty. Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a string, and not an empty one")
    if not value.isprintable():
        raise ValueError("must not have control characters in it")
    return value


def _text_or_nothing(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004
    return value and text(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004
    return value


BOOLEANS: Final = {"true": True, "on": True, "yes": True, "1": True} | {
    "false": False,
    "off": False,
    "no": False,
    "0": False,
}


def _read_boolean(written: str) -> object:
    return BOOLEANS.get(written.lower())


def _read_number(written: str) -> object:
    # not 010, which is 8 to C and 10 to people
    return int(written) if re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", written) else written


def integer(least: int, most: int, unit: str = "") -> Kind:
    """Whole numbers."""

    def parse(value: object) -> int:
        # bool is an int to Python, and to nobody else
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return Kind(parse, _read_number, unit=unit)


def choice(*words: str) -> Kind:
    """One of these words."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"must be {_listed(words)}{nearest(value, words)}")
        return value

    return Kind(parse, str.lower)


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


def _read_duration(written: str) -> object:
    is_number = re.fullmatch(r"[0-9]{1,15}\.?[0-9]{0,9}|\.[0-9]{1,9}", written)
    return float(written) if is_number else written


def duration_text(seconds: float) -> str:
    """A duration in the largest unit that it is a whole number of: "90s", "2min", "0"."""
    if not seconds:
        return "0"
    for unit in ("h", "min", "s"):
        if seconds % SECONDS[unit] == 0:
            return f"{seconds / SECONDS[unit]:.0f}{unit}"
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"


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


def secret(value: object) -> Secret:
    """A password or a verifier, from wherever it was kept. Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a string, and not an empty one")
    if "\0" in value or "\n" in value or "\r" in value or not _is_utf8(value):
        raise ValueError("must be one line of UTF-8")
    found = Secret(value)
    if value.startswith("SCRAM-SHA-256$") and found.kind == "plain":
        raise ValueError("begins as a SCRAM verifier and is none; was it cut off?")
    return found


def _is_utf8(written: str) -> bool:
    # What the environment holds may be anything: Python smuggles other bytes in as lone surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in written)


# Lists


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError('must be a list of names, such as ["postgres"]')  # noqa: TRY004
    return tuple(text(each) for each in value)


def _read_list(written: str) -> object:
    return [each for each in re.split(r"[,\s]+", written) if each]


def _show_list(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


def _hosts(value: object) -> tuple[str, ...]:
    if not isinstance(value, str | list) or not value:
        raise ValueError('must be a host, or a list such as ["one", "two"]')
    written = value if isinstance(value, list) else [value]
    hosts = tuple(map(_host, written))
    if len(set(hosts)) < len(hosts):
        raise ValueError("has a host in it twice")
    return hosts


def _host(value: object) -> str:
    host = text(value)
    if "," in host:
        raise ValueError('must be a list where there is more than one: ["one", "two"]')
    if host.startswith("@"):
        raise ValueError("must not be an abstract socket; those are not supported")
    if host.startswith("unix:"):
        raise ValueError('write only the directory of the unix socket: "/var/run/postgresql"')
    if not host.startswith("/") and ":" in host and ip_address(host) is None:
        raise ValueError("must be a host without a port; that is a key of its own")
    return host


def _listen(value: object) -> tuple[Address, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'must be a list such as ["127.0.0.1:{DEFAULT_PORT}", "unix:/run/txproxy"]'
        )
    addresses = [_address(text(each)) for each in value]
    named = [each.port for each in addresses if isinstance(each, TcpAddress) and each.port]
    return placed(addresses, named[0] if named else DEFAULT_PORT)


def _show_address(address: Address) -> str:
    return f"unix:{address.directory}" if isinstance(address, UnixAddress) else str(address)


def _metrics(value: object) -> tuple[TcpAddress, ...]:
    written = value if isinstance(value, list) else [value]
    found = [_address(each) for each in written if isinstance(each, str)]
    addresses = tuple(each for each in found if isinstance(each, TcpAddress))
    if not addresses or len(addresses) < len(written):
        raise ValueError('must be an address such as "127.0.0.1:9127", or a list of them')
    if len(set(addresses)) < len(addresses):
        raise ValueError("has an address in it twice")
    return addresses


def _address(written: str) -> Address:
    if written.startswith("unix:"):
        directory = written.removeprefix("unix:")
        if not directory.startswith("/"):
            raise ValueError(
                f'"{written}" must name a directory from the root: "unix:/run/txproxy"'
            )
        return UnixAddress(directory, DEFAULT_PORT)
    match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]+):([0-9]{1,5})", written)
    if not match or int(match[2]) > 65535:
        raise ValueError(
            f'"{written}" must be "address:port", "[IPv6 address]:port" or "unix:/directory"'
        )
    if match[1] == "*":
        raise ValueError(f'"{written}": for every address, write "0.0.0.0" and "[::]"')
    return TcpAddress(match[1].strip("[]"), int(match[2]))


def placed(addresses: Iterable[Address], port: int) -> tuple[Address, ...]:
    """The addresses, the unix sockets among them with this port. Raises ValueError."""
    found: list[Address] = []
    for address in addresses:
        if isinstance(address, UnixAddress):
            here: Address = UnixAddress(address.directory, port)
            if len(str(here).encode()) > LONGEST_SOCKET_PATH:
                raise ValueError(f"{here} is longer than a socket's path can be")
        else:
            here = address
        if here in found:
            raise ValueError(f"{here} is listed twice")
        found.append(here)
    return tuple(found)


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The host as an address; None if it is a name or a directory."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


PROTOCOL_NAMES: Final = ("tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3")


def _protocols(value: object) -> str:
    written = text(value)
    for name in written.split(","):
        if name.strip() not in ("secure", "all", *PROTOCOL_NAMES):
            names = ",".join(PROTOCOL_NAMES)
            raise ValueError(f'must be "secure", "all", or some of "{names}"')
    return written


TEXT: Final = Kind(text)
TEXT_OR_NOTHING: Final = Kind(_text_or_nothing)
BOOLEAN: Final = Kind(_boolean, _read_boolean, lambda value: "true" if value else "false")
DURATION: Final = Kind(_duration, _read_duration, duration_text, "seconds")
CONNECTIONS: Final = integer(1, 1_000_000, "connections")
CONNECTIONS_OR_NONE: Final = integer(0, 1_000_000, "connections")
SQLSTATE: Final = Kind(_sqlstate)
FILE_MODE: Final = Kind(_file_mode, show=lambda mode: f"{mode:04o}")
SECRET: Final = Kind(secret, show=lambda _: HIDDEN)
PROTOCOLS: Final = Kind(_protocols)
NAMES: Final = Kind(_names, _read_list, _show_list)
HOSTS: Final = Kind(_hosts, _read_list, _show_list)
LISTEN: Final = Kind(_listen, _read_list, lambda value: _show_list(map(_show_address, value)))
METRICS: Final = Kind(_metrics, _read_list, _show_list)


# SQLite files


def _path(value: object) -> str:
    written = text(value)
    if not written.startswith("/"):
        raise ValueError('must be a path from the root, such as "/srv/app/app.sqlite3"')
    return "/" + os.path.normpath(written).lstrip("/")  # which leaves two where there are two


def _paths(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError('must be a list of paths, such as ["/usr/lib/sqlite3/pcre.so"]')  # noqa: TRY004
    return tuple(_path(each) for each in value)


LARGEST_UID: Final = (1 << 32) - 2


def _uids(value: object) -> tuple[int, ...]:
    known = isinstance(value, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each <= LARGEST_UID
        for each in value
    )
    if not known or not value:
        raise ValueError("must be a list of users' numbers, such as [33, 1000]")
    assert isinstance(value, list)
    return tuple(value)


_FUNCTION: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def _functions(value: object) -> tuple[str, ...]:
    problem = 'must be a list such as ["package.module:function"]'
    if not isinstance(value, list):
        raise ValueError(problem)  # noqa: TRY004
    for each in value:
        if not isinstance(each, str) or not _FUNCTION.fullmatch(each):
            raise ValueError(problem)
    return tuple(value)


PATH: Final = Kind(_path)
PATHS: Final = Kind(_paths, _read_list, _show_list)
UIDS: Final = Kind(_uids, _read_list, _show_list)
FUNCTIONS: Final = Kind(_functions, _read_list, _show_list)


# Words for the errors


def _listed(words: Iterable[str]) -> str:
    return " or ".join(f'"{word}"' for word in words)


def nearest(value: object, words: Iterable[str]) -> str:
    """The end of an error's text: which of the words may have been meant."""
    near = difflib.get_close_matches(str(value), list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""
