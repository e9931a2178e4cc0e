"""Login, both sides: what a client asks for, and the conversations that follow, as generators.

Source: PostgreSQL 18, section 54.2.1 "Start-up" and 54.3 "SASL Authentication".
"""

import hmac
import secrets
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Final

from txproxy.core import settings
from txproxy.errors import LoginError, ProtocolError, TxproxyError
from txproxy.wire import encode, scram
from txproxy.wire.codes import (
    AUTHENTICATION,
    BACKEND_KEY_DATA,
    ERROR_RESPONSE,
    NEGOTIATE_VERSION,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    PROTOCOL_3_0,
    READY_FOR_QUERY,
    STARTUP_LIMIT,
)
from txproxy.wire.messages import Startup, error_fields, int32, parameter_status, strings
from txproxy.wire.scram import Keys, ScramClient, ScramServer, Verifier

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


# Who may in.

# What AuthenticationXxx asks for, by its number: section 54.7 "Message Formats".
_OK: Final = 0
_CLEARTEXT: Final = 3
_MD5: Final = 5
_SASL: Final = 10
_SASL_CONTINUE: Final = 11
_SASL_FINAL: Final = 12
_METHODS: Final = {
    _CLEARTEXT: "password",
    _MD5: "md5",
    7: "gss",
    9: "sspi",
    _SASL: "scram-sha-256",
}

PROCESS_SECRET: Final = secrets.token_bytes(32)
"""What the salts of users that there are not are made of: they must not change between logins."""


@dataclass(frozen=True, repr=False)
class Credentials:
    """A user and what is known of its password: at most one of `password`, `md5`, `verifier`.

    `keys` are those of a login by `verifier`.
    """

    user: str
    password: str | None = None
    md5: str | None = None
    verifier: Verifier | None = None
    keys: Keys | None = None

    @staticmethod
    def of(user: str, secret: str | None) -> "Credentials":
        """From the text that a configuration or pg_authid has; its form says what it is."""
        if secret is None:
            return Credentials(user)
        if len(secret) == 35 and secret[:3] == "md5" and not secret[3:].strip("0123456789abcdef"):
            return Credentials(user, md5=secret)
        verifier = Verifier.parse(secret)
        if verifier is not None:
            return Credentials(user, verifier=verifier)
        return Credentials(user, password=secret)

    def with_keys(self, keys: Keys) -> "Credentials":
        """The same, with the keys of a login by the same verifier."""
        return Credentials(self.user, self.password, self.md5, self.verifier, keys)

    @property
    def can_log_in(self) -> bool:
        """Whether some server could ask for what we have; one that trusts us asks for nothing."""
        return self.password is not None or self.md5 is not None or self.keys is not None

    def md5_hash(self) -> str | None:
        """What PostgreSQL would store in md5 times; None if it cannot be known."""
        if self.password is not None:
            return scram.md5_hash(self.password, self.user)
        return self.md5

    def __repr__(self) -> str:
        return f"<Credentials of {self.user}>"


@dataclass(frozen=True, repr=False)
class Proven:
    """A client is who it says it is. `answer` is the last that it must be sent, at once; then comes
    AuthenticationOk. `keys` are those of a login by SCRAM.
    """

    answer: bytes
    keys: Keys | None


class WrongPasswordError(LoginError):
    """A client has not proven who it is. It is told no more; `reason` is for the log."""

    def __init__(self, user: str, reason: str) -> None:
        super().__init__(f'password authentication failed for user "{user}"', sqlstate="28P01")
        self.reason = reason


def client_login(
    method: str,
    user: str,
    secret: Credentials | None,
    *,
    process_secret: bytes = PROCESS_SECRET,
    nonce: bytes | None = None,
    salt: bytes | None = None,
) -> Generator[bytes, bytes, Proven]:
    """Let a client prove who it is: yields what to send it, is sent the body of each of its
    messages of type `p`. AuthenticationOk is left to the caller.

    `method` is md5 or scram-sha-256. For md5 the stored secret may be an md5 hash; where it is a
    SCRAM verifier, SCRAM is used, as PgBouncer does. `secret` None: there is no such user, or it
    has no password; the conversation is the same and fails at its end. `nonce` and `salt` (md5's 4
    bytes) are random unless given; processes that share an address should share `process_secret`.

    Raises WrongPasswordError, and ProtocolError for what is malformed.
    """
    if method == "md5" and (secret is None or secret.verifier is None):
        return (yield from _prove_by_md5(user, secret, salt or secrets.token_bytes(4)))
    return (yield from _prove_by_scram(user, secret, process_secret, nonce))


_NOTHING_KNOWN: Final = "no such user, or no password is known for it"


def _prove_by_md5(
    user: str, secret: Credentials | None, salt: bytes
) -> Generator[bytes, bytes, Proven]:
    body = yield _authentication(_MD5, salt)
    if not body or body.find(b"\0") != len(body) - 1:
        raise ProtocolError("invalid password packet size")
    known = secret.md5_hash() if secret is not None else None
    expected = scram.md5_response(known or scram.md5_hash("", user), salt).encode() + b"\0"
    if not hmac.compare_digest(expected, body) or known is None:
        raise WrongPasswordError(user, "wrong password" if known else _NOTHING_KNOWN)
    return Proven(b"", None)


def _prove_by_scram(
    user: str, secret: Credentials | None, process_secret: bytes, nonce: bytes | None
) -> Generator[bytes, bytes, Proven]:
    verifier, reason = _scram_verifier(user, secret, process_secret)
    exchange = ScramServer(verifier, not reason, nonce)
    body = yield _authentication(_SASL, scram.MECHANISM.encode() + b"\0\0")
    body = yield _authentication(_SASL_CONTINUE, exchange.first(_initial_response(body)))
    try:
        answer = exchange.final(body)
    except LoginError:
        raise WrongPasswordError(user, reason or "wrong password") from None
    return Proven(_authentication(_SASL_FINAL, answer), exchange.keys)


def _scram_verifier(
    user: str, secret: Credentials | None, process_secret: bytes
) -> tuple[Verifier, str]:
    """What a client has to fit, and why it cannot if it cannot."""
    if secret is not None and secret.verifier is not None:
        return secret.verifier, ""
    if secret is not None and secret.password is not None:
        # The salt is that of a user that there is not: a configured one is no different to see.
        return Verifier.of(secret.password, scram.mock_salt(process_secret, user)), ""
    reason = _NOTHING_KNOWN
    if secret is not None and secret.md5 is not None:
        reason = "its password is stored as an md5 hash, which does not do for SCRAM"
    return scram.mock_verifier(process_secret, user), reason


def _initial_response(body: bytes) -> bytes:
    """The client-first-message in a SASLInitialResponse."""
    mechanism, _, rest = body.partition(b"\0")
    if mechanism != scram.MECHANISM.encode():
        raise ProtocolError("client selected an invalid SASL authentication mechanism")
    if len(rest) < 4 or int32(rest, 0) != len(rest) - 4:
        raise ProtocolError("malformed SASLInitialResponse")
    return rest[4:]


def _authentication(method: int, data: bytes) -> bytes:
    return encode.message(b"R", method.to_bytes(4, "big") + data)


# Into a server.

_MESSAGE_LIMIT: Final = 1000  # messages of a server in one login; PostgreSQL sends some 20
_BYTE_LIMIT: Final = 1 << 20  # and their bytes
_SECRET_LIMIT: Final = 256  # bytes of a cancel key; 4 before protocol 3.2
_UNKNOWN_STATE: Final = "08006"  # a connection failed, and nobody said why


@dataclass(frozen=True, repr=False)
class Welcome:
    """What a server says of itself at login: parameters, the key that cancels, and the minor
    version of protocol 3 that it speaks with us.
    """

    params: dict[str, str]
    pid: int
    secret: bytes
    minor: int = 0


class ServerRefusal(TxproxyError):
    """The server's ErrorResponse to our login; `fields` by their letter, S, V, C and M always."""

    def __init__(self, fields: dict[str, str]) -> None:
        severity = fields.get("V") or fields.get("S") or "FATAL"
        sqlstate = fields.get("C", "")
        if len(sqlstate) != 5 or not sqlstate.isascii() or not sqlstate.isalnum():
            sqlstate = _UNKNOWN_STATE
        message = fields.get("M") or "the server refused the login"
        super().__init__(message, sqlstate=sqlstate)
        self.fields = {"S": severity, **fields, "V": severity, "C": sqlstate, "M": message}


class _Server:
    """What comes from a server during one login, counted."""

    def __init__(self) -> None:
        self._messages = 0
        self._bytes = 0

    def receive(self, out: bytes) -> Generator[bytes, tuple[int, bytes], tuple[int, bytes]]:
        """Send this, and wait for a message that is neither a notice nor an error."""
        while True:
            kind, body = yield out
            out = b""
            self._messages += 1
            self._bytes += len(body)
            if self._messages > _MESSAGE_LIMIT or self._bytes > _BYTE_LIMIT:
                raise ProtocolError("the server's login goes on and on")
            if kind == ERROR_RESPONSE:
                raise ServerRefusal(error_fields(body))
            if kind != NOTICE_RESPONSE:
                return kind, body


def server_login(
    credentials: Credentials,
    database: str,
    parameters: Iterable[tuple[str, str]] = (),
    minor: int = 0,
) -> Generator[bytes, tuple[int, bytes], Welcome]:
    """Log in to a server: yields what to send, is sent (type, body) of each message that comes.

    `parameters` go into the start-up packet; `minor` 2 asks for protocol 3.2.

    Raises ServerRefusal with the server's error, LoginError for what we cannot do or have no
    password for, ProtocolError for what does not belong there.
    """
    server = _Server()
    asked = {"user": credentials.user, "database": database, **dict(parameters)}
    kind, body = yield from server.receive(_startup(minor, asked))
    if kind == NEGOTIATE_VERSION:
        minor = _negotiated(body, minor)
        kind, body = yield from server.receive(b"")
    yield from _authenticate(server, credentials, kind, body)
    params: dict[str, str] = {}
    pid, secret = 0, b""
    while True:
        kind, body = yield from server.receive(b"")
        if kind == PARAMETER_STATUS:
            name, value = parameter_status(body)
            if not name:
                raise ProtocolError("a malformed ParameterStatus in the server's login")
            params[name] = value
        elif kind == BACKEND_KEY_DATA:
            if not 8 <= len(body) <= 4 + _SECRET_LIMIT:
                raise ProtocolError("invalid length of the server's cancel key")
            pid, secret = int32(body, 0), body[4:]
        elif kind == READY_FOR_QUERY:
            return Welcome(params, pid, secret, minor)
        else:
            raise _unexpected(kind)


def _startup(minor: int, parameters: dict[str, str]) -> bytes:
    version = (PROTOCOL_3_0 + minor).to_bytes(4, "big")
    return encode.message(b"", version + encode.startup(parameters)[8:])


def _negotiated(body: bytes, minor: int) -> int:
    """The minor version in a NegotiateProtocolVersion, which comes if it is not the one we asked
    for. It names the options that the server does not know; we ask for none.
    """
    if len(body) != 8 or int32(body, 4) != 0:
        raise ProtocolError("the server refuses protocol options that were not asked for")
    version = int32(body, 0)
    if not PROTOCOL_3_0 <= version < PROTOCOL_3_0 + minor:
        raise ProtocolError("the server asks for a protocol version that was not offered")
    return version - PROTOCOL_3_0


def _authenticate(
    server: _Server, credentials: Credentials, kind: int, body: bytes
) -> Generator[bytes, tuple[int, bytes], None]:
    """From the first AuthenticationXxx, which is given, to AuthenticationOk."""
    method = _method(kind, body)
    if method == _CLEARTEXT:
        # Whoever answers there gets it. Against impostors: TLS with verify-full, or a verifier.
        if credentials.password is None:
            raise _no_password(credentials, method)
        kind, body = yield from server.receive(_password(credentials.password))
    elif method == _MD5:
        stored = credentials.md5_hash()
        if stored is None:
            raise _no_password(credentials, method)
        if len(body) != 8:
            raise ProtocolError("invalid length of the server's md5 salt")
        kind, body = yield from server.receive(_password(scram.md5_response(stored, body[4:])))
    elif method == _SASL:
        kind, body = yield from _authenticate_by_scram(server, credentials, body)
    elif method != _OK:
        raise LoginError(
            f"the server asks for {_METHODS.get(method, str(method))} authentication,"
            " which is not supported",
            hint="Let the proxy in by scram-sha-256, in the server's pg_hba.conf.",
        )
    if _method(kind, body) != _OK:
        raise ProtocolError("the server's authentication does not end")


def _authenticate_by_scram(
    server: _Server, credentials: Credentials, body: bytes
) -> Generator[bytes, tuple[int, bytes], tuple[int, bytes]]:
    """The exchange; returns what comes after it, which should be AuthenticationOk."""
    mechanism = scram.MECHANISM.encode()
    if mechanism not in strings(body, 4, len(body)):
        raise LoginError(f"the server offers SASL authentication, but not {scram.MECHANISM}")
    if credentials.password is None and credentials.keys is None:
        raise _no_password(credentials, _SASL)
    exchange = ScramClient(credentials.password, credentials.verifier, credentials.keys)
    first = exchange.first()
    response = mechanism + b"\0" + len(first).to_bytes(4, "big") + first
    kind, body = yield from server.receive(encode.message(b"p", response))
    _expect(_SASL_CONTINUE, kind, body)
    kind, body = yield from server.receive(encode.message(b"p", exchange.final(body[4:])))
    # An AuthenticationOk in its place would come from somebody who does not know the password.
    _expect(_SASL_FINAL, kind, body)
    exchange.verify(body[4:])
    return (yield from server.receive(b""))


def _method(kind: int, body: bytes) -> int:
    if kind != AUTHENTICATION:
        raise _unexpected(kind)
    if len(body) < 4:
        raise ProtocolError("an Authentication message of the server is cut short")
    return int32(body, 0)


def _expect(wanted: int, kind: int, body: bytes) -> None:
    if _method(kind, body) != wanted:
        raise ProtocolError("the server does not complete the SCRAM exchange")


def _unexpected(kind: int) -> ProtocolError:
    return ProtocolError(f"unexpected message type 0x{kind:02X} from the server at login")


def _password(text: str) -> bytes:
    return encode.message(b"p", text.encode("utf-8", "surrogateescape") + b"\0")


def _no_password(credentials: Credentials, method: int) -> LoginError:
    """The error, whose hint is the key of the configuration that would help."""
    key = f"[users.{credentials.user}] password"
    if method == _SASL and credentials.verifier is not None:
        hint = (
            f"{key} is a SCRAM verifier, which does only once a client has logged in by it"
            " (auth_type scram-sha-256); and the verifier must be the one of the server: same salt"
            " and iterations."
        )
    elif method == _CLEARTEXT:
        hint = f"Set {key} as plain text, or let the server ask for scram-sha-256."
    elif method == _MD5:
        hint = f"Set {key} as plain text or md5 hash, or let the server ask for scram-sha-256."
    else:
        hint = f"Set {key}: as plain text, or as the server's own SCRAM verifier."
    return LoginError(
        f'the server asks for {_METHODS[method]} authentication of user "{credentials.user}",'
        " and there is no password that would do",
        hint=hint,
        sqlstate="28P01",
    )
