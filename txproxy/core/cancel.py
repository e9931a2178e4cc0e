"""Cancel keys: ours, given to clients, so that a CancelRequest finds its session.

Source: PostgreSQL 18, section 54.2.9 "Canceling Requests in Progress".
"""

from hmac import compare_digest
from secrets import randbits, token_bytes
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from txproxy.core.session import Session
    from txproxy.core.sqlite import FileClient

_SHORT: Final = 4  # bytes of a secret
_LONG: Final = 32  # since protocol 3.2


class CancelKeys:
    """The keys of all sessions, by the process id in them (a number of ours, 31 bits)."""

    def __init__(self) -> None:
        self._next = randbits(30)
        self._sessions: dict[int, tuple[bytes, Session | FileClient]] = {}

    def issue(self, session: "Session | FileClient", is_long: bool = False) -> tuple[int, bytes]:
        """A key for a session: process id and secret, which is long for clients that speak 3.2."""
        self._next = (self._next + 1) & 0x7FFFFFFF
        while self._next in self._sessions or self._next == 0:
            self._next = (self._next + 1) & 0x7FFFFFFF
        secret = token_bytes(_LONG if is_long else _SHORT)
        self._sessions[self._next] = (secret, session)
        return self._next, secret

    def find(self, pid: int, secret: bytes) -> "Session | FileClient | None":
        """The session that this key was issued for; None for a wrong key."""
        known = self._sessions.get(pid)
        return known[1] if known is not None and compare_digest(known[0], secret) else None

    def forget(self, pid: int) -> None:
        """The session has ended."""
        self._sessions.pop(pid, None)
