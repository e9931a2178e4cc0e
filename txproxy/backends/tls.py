"""TLS, from what the configuration says to what OpenSSL is told.

Source: PgBouncer's client_tls_… and server_tls_…, whose names and meaning these settings have.
"""

import ssl
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from txproxy.config import TlsSettings
from txproxy.errors import ConfigError

ALPN: Final = "postgresql"
"""What both sides call the protocol (PostgreSQL 17). Without it, TLS to another service on the same
name could be led to us (the ALPACA attack).
"""

VERIFYING: Final = ("verify-ca", "verify-full")

_VERSIONS: Final = (
    ("tlsv1.0", ssl.TLSVersion.TLSv1),
    ("tlsv1.1", ssl.TLSVersion.TLSv1_1),
    ("tlsv1.2", ssl.TLSVersion.TLSv1_2),
    ("tlsv1.3", ssl.TLSVersion.TLSv1_3),
)
_NAMES: Final = tuple(name for name, _ in _VERSIONS)
_SHORTHANDS: Final = {"secure": _NAMES[2:], "all": _NAMES, "legacy": _NAMES}


def server_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """How we speak TLS with servers; None with `disable`.

    Files that have changed since they were read are read again. Raises ConfigError.
    """
    if settings.sslmode == "disable":
        return None
    files = (settings.key_file, settings.cert_file, settings.ca_file)
    return _server_context(settings, tuple(map(_stamp, files)))


def _stamp(file: str) -> tuple[int, int]:
    """What changes with a file's content. A file that is not there is noticed when it is read."""
    try:
        status = Path(file).stat()
    except OSError:
        return (0, 0)
    return (status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=100)
def _server_context(
    settings: TlsSettings,
    stamps: tuple[tuple[int, int], ...],  # noqa: ARG001 a part of the cache's key
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = settings.sslmode == "verify-full"
    verifies = settings.sslmode in VERIFYING
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    if verifies and not settings.ca_file:
        context.load_default_certs()
    configure(context, settings, "server_tls")
    return context


def configure(context: ssl.SSLContext, settings: TlsSettings, prefix: str) -> None:
    """Tell a context what both sides have in common: files, protocols, ciphers.

    Raises ConfigError; its key begins with `prefix`: "client_tls" or "server_tls".
    """
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([ALPN])
    _limit(context, settings.protocols, f"{prefix}_protocols")
    if settings.ciphers not in ("", "default"):
        _told(lambda: context.set_ciphers(settings.ciphers), f"{prefix}_ciphers", settings.ciphers)
    if settings.ca_file:
        key = f"{prefix}_ca_file"
        ca_file = _readable(settings.ca_file, key)
        _told(lambda: context.load_verify_locations(ca_file), key, ca_file)
    if settings.cert_file or settings.key_file:
        _load_pair(context, settings, prefix)


def _load_pair(context: ssl.SSLContext, settings: TlsSettings, prefix: str) -> None:
    key = f"{prefix}_cert_file"
    cert_file = _readable(settings.cert_file, key)
    key_file = _readable(settings.key_file, f"{prefix}_key_file")
    # An empty password: OpenSSL would ask the terminal for that of an encrypted key.
    _told(
        lambda: context.load_cert_chain(cert_file, key_file, password=""),
        key,
        f"{cert_file} with the key {key_file}",
    )


def _readable(file: str, key: str) -> str:
    try:
        with Path(file).open("rb"):
            return file
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", key=key) from error


def _told(act: Callable[[], None], key: str, what: str) -> None:
    """Raises ConfigError with what OpenSSL says of it."""
    try:
        act()
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(f"{what}: OpenSSL does not take it: {reason}", key=key) from error


def _limit(context: ssl.SSLContext, protocols: str, key: str) -> None:
    """PgBouncer's list of versions, or a shorthand, as the least and the greatest."""
    words = [word.strip() for word in protocols.lower().split(",")]
    wanted = {name for word in words for name in _SHORTHANDS.get(word, (word,))}
    allowed = [number for number, name in enumerate(_NAMES) if name in wanted]
    if len(allowed) != len(wanted) or not allowed:
        known = ", ".join((*_NAMES, *_SHORTHANDS))
        raise ConfigError(f'"{protocols}": must be a list of {known}', key=key)
    if allowed != list(range(allowed[0], allowed[-1] + 1)):
        raise ConfigError(f'"{protocols}": there is a version missing in between', key=key)
    with warnings.catch_warnings():
        # Whoever asks for TLS 1.0 by name knows that it is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = _VERSIONS[allowed[0]][1]
        context.maximum_version = _VERSIONS[allowed[-1]][1]
