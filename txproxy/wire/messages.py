"""The few messages that we read. Each function takes a message's body, without type and length.

Source: PostgreSQL 18, section 54.7 "Message Formats".
"""

from txproxy.wire.codes import CANCEL_REQUEST, GSS_REQUEST, SSL_REQUEST


def text(raw: bytes) -> str:
    """Bytes of unknown encoding as text that turns back into the same bytes."""
    return raw.decode("utf-8", "surrogateescape")


def int32(data: bytes, i: int) -> int:
    """An unsigned 32-bit number, big-endian, at offset i."""
    return (data[i] << 24) | (data[i + 1] << 16) | (data[i + 2] << 8) | data[i + 3]


def strings(data: bytes, start: int, end: int) -> list[bytes]:
    """The NUL-terminated strings in data[start:end]; an unterminated rest is left out."""
    return data[start:end].split(b"\0")[:-1]


def parameter_status(body: bytes) -> tuple[str, str]:
    """Name and value in a ParameterStatus; ("", "") if it is malformed."""
    parts = strings(body, 0, len(body))
    return (text(parts[0]), text(parts[1])) if len(parts) == 2 else ("", "")


def error_fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse by their letter."""
    return {text(part[:1]): text(part[1:]) for part in strings(body, 0, len(body)) if part}


def is_fatal(body: bytes) -> bool:
    """Whether an ErrorResponse ends its connection: severity FATAL or PANIC."""
    head = body[:100]  # V is the second field, behind the same word in the server's language
    return b"\0VFATAL\0" in head or b"\0VPANIC\0" in head


class Startup:
    """What a client asks for in the first packet of a connection."""

    def __init__(self, code: int, body: bytes) -> None:
        self.code = code
        self.body = body

    @property
    def is_tls_request(self) -> bool:
        """SSLRequest or GSSENCRequest: answered with one byte, then the client begins again."""
        return self.code in (SSL_REQUEST, GSS_REQUEST)

    @property
    def is_cancel(self) -> bool:
        """CancelRequest: no login follows."""
        return self.code == CANCEL_REQUEST

    def cancel_key(self) -> tuple[int, bytes]:
        """Process id and secret of a CancelRequest; (0, b"") if it is malformed."""
        return (int32(self.body, 0), self.body[4:]) if len(self.body) >= 8 else (0, b"")

    def parameters(self) -> dict[str, str] | None:
        """Names and values of a StartupMessage; None if it is malformed."""
        if self.body[-1:] != b"\0":
            return None
        parts = strings(self.body, 0, len(self.body) - 1)
        if len(parts) % 2 or not all(parts[::2]):
            return None
        return {text(name): text(parts[2 * k + 1]) for k, name in enumerate(parts[::2])}
