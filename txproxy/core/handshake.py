"""Login, both sides: what a client asks for, and the conversation with a server as a generator.

Source: PostgreSQL 18, section 54.2.1 "Start-up".
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from txproxy.core import settings
from txproxy.errors import LoginError, ProtocolError, TxproxyError
from txproxy.wire import encode
from txproxy.wire.codes import (
    AUTHENTICATION,
    BACKEND_KEY_DATA,
    ERROR_RESPONSE,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    READY_FOR_QUERY,
    STARTUP_LIMIT,
)
from txproxy.wire.messages import Startup, error_fields, int32, parameter_status

_OPTION_PREFIX: Final = "_pq_."
_TRUE: Final = frozenset(("true", "on", "yes", "1", "t", "y", "tr", "tru", "ye", "database"))


def read_startup(data: bytes) -> tuple[Startup, int] | None:
    """The first packet in `data` and its length; None while it is not complete.

    Raises ProtocolError for a length that no start-up packet has.
    """
    if len(data) < 4:
        return None
    length = int32(data, 0)
    if length < 8 or length > STARTUP_LIMIT:
        raise ProtocolError("invalid length of startup packet")
    if len(data) < length:
        return None
    return Startup(int32(data, 4), data[8:length]), length


@dataclass(frozen=True)
class Request:
    """What a client asks for: `ours` are its `txproxy.` settings, `wanted` all others."""

    database: str
    user: str
    wanted: dict[str, str]
    ours: dict[str, str]
    minor: int
    unknown_options: list[str]


def read_request(startup: Startup) -> Request:
    """The request in a StartupMessage. Raises ProtocolError or LoginError."""
    if startup.code >> 16 != 3:
        raise ProtocolError(
            f"unsupported frontend protocol {startup.code >> 16}.{startup.code & 0xFFFF}",
            sqlstate="0A000",
        )
    parameters = startup.parameters()
    if parameters is None:
        raise ProtocolError("invalid startup packet layout: expected terminator as last byte")
    user = parameters.pop("user", "")
    if not user:
        raise LoginError("no PostgreSQL user name specified in startup packet")
    database = parameters.pop("database", "") or user
    if parameters.pop("replication", "").lower() in _TRUE:
        raise LoginError(
            "replication connections are not supported by txproxy",
            hint="Connect to the server itself for replication.",
            sqlstate="0A000",
        )
    found = settings.parse_options(parameters.pop("options", ""))
    if found is None:
        raise LoginError(
            "invalid command-line argument in options",
            hint="Only -c name=value and --name=value are understood.",
            sqlstate="42601",
        )
    unknown = [name for name in parameters if name.startswith(_OPTION_PREFIX)]
    found |= {name.lower(): value for name, value in parameters.items() if name not in unknown}
    for name in found:
        if not settings.is_name(name):
            raise LoginError(f'unrecognized configuration parameter "{name}"', sqlstate="42704")
    ours = {name: value for name, value in found.items() if name.startswith("txproxy.")}
    wanted = {name: _clean(name, value) for name, value in found.items() if name not in ours}
    return Request(database, user, wanted, ours, startup.code & 0xFFFF, unknown)


def _clean(name: str, value: str) -> str:
    """application_name as the server would take it: anything but printable ASCII becomes `?`."""
    if name != "application_name":
        return value
    raw = value.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in raw)


@dataclass(frozen=True)
class Welcome:
    """What a server says of itself at login: parameters, and the key that cancels."""

    params: dict[str, str]
    pid: int
    secret: bytes


class ServerRefusal(TxproxyError):
    """The server's ErrorResponse to our login; `fields` by their letter."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields.get("M", "the server refused the login"))
        self.sqlstate = fields.get("C", "08001")
        self.fields = fields


_METHODS: Final = {3: "password", 5: "md5", 7: "gss", 9: "sspi", 10: "scram-sha-256"}


def server_login(user: str, database: str) -> Generator[bytes, tuple[int, bytes], Welcome]:
    """Log in to a server: yields what to send, is sent (type, body) of each message that comes.

    Raises ServerRefusal with the server's error, LoginError for what we cannot do, ProtocolError
    for what does not belong there.
    """
    params: dict[str, str] = {}
    pid, secret = 0, b""
    authenticated = False
    out = encode.startup({"user": user, "database": database})
    while True:
        kind, body = yield out
        out = b""
        if kind == AUTHENTICATION:
            method = int32(body, 0)
            if method != 0:
                name = _METHODS.get(method, str(method))
                raise LoginError(
                    f"the server asks for {name} authentication, which is not supported yet",
                    hint="Let the proxy in by trust, in the server's pg_hba.conf.",
                )
            authenticated = True
        elif kind == ERROR_RESPONSE:
            raise ServerRefusal(error_fields(body))
        elif kind == NOTICE_RESPONSE:
            pass
        elif not authenticated:
            raise ProtocolError(f"unexpected message type 0x{kind:02X} from the server at login")
        elif kind == PARAMETER_STATUS:
            name, value = parameter_status(body)
            params[name] = value
        elif kind == BACKEND_KEY_DATA:
            pid, secret = int32(body, 0), body[4:]
        elif kind == READY_FOR_QUERY:
            return Welcome(params, pid, secret)
        else:
            raise ProtocolError(f"unexpected message type 0x{kind:02X} from the server at login")
