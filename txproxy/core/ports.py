"""What the decisions need from the outside world, as interfaces.

The sockets in net/ and backends/ have these methods; tests have objects that write things down.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from txproxy.core.pool import Pool
    from txproxy.core.session import Session


class ClientPort(Protocol):
    """A client's socket."""

    def write(self, data: bytes) -> None:
        """Send, in order, now or as soon as the socket takes it."""

    def admitted(self, params: dict[str, str]) -> None:
        """The login is complete: tell the client, with these parameters and its cancel key."""

    def finish(self) -> None:
        """Send what was written, then close."""

    def update_reading(self) -> None:
        """Look again at whether to read on: `Session.wants_pause` may have changed."""


class BackendPort(Protocol):
    """A server connection."""

    def write(self, data: bytes) -> None:
        """Send, in order, now or as soon as the socket takes it."""

    def finish(self) -> None:
        """Say Terminate and close; later bytes from the server are not reported."""

    def cancel(self) -> None:
        """Send the server a CancelRequest; `Backend.cancel_done()` is called when it is over."""

    def update_reading(self) -> None:
        """Look again at whether to read on: `Backend.wants_pause` may have changed."""


class PoolPort(Protocol):
    """Who makes server connections and keeps the log."""

    now: float
    """Seconds on a clock that stands still while the proxy is stalled; the janitor moves it."""
    cancel_timeout: float
    """Seconds that a backend whose client has left may take to come to an end."""
    rollback_timeout: float
    """Seconds that our ROLLBACK or DISCARD ALL may take."""
    cancel_on_disconnect: bool
    """Whether the statement of a client that has left is cancelled."""
    log_statement_literals: bool
    """Whether literals stay in statements in the log."""

    def connect(self, pool: "Pool") -> None:
        """Begin a connection; `Pool.connected()` or `Pool.connect_failed()` is called later."""

    def event(self, name: str, fields: dict[str, object]) -> None:
        """One line for the log."""

    def bug(self, session: "Session", error: Exception) -> None:
        """A session raised: log it with its traceback and close that session."""
