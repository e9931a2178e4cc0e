"""What the decisions need from the outside world, as interfaces.

The sockets in net/ and backends/ have these methods; tests have objects that write things down.
"""

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from txproxy.core.claims import Claim
    from txproxy.core.listener import Listener
    from txproxy.core.pool import Pool
    from txproxy.core.release import Candidate
    from txproxy.core.session import Session


next_id: Final = count(1).__next__
"""A number for a session or a backend, never given twice."""


@dataclass(frozen=True)
class Endpoint:
    """Both ends of a connection, for people. A unix socket's `addr` is "unix", its `port` the one
    in the socket's name. `tls` is "" or version/cipher.
    """

    addr: str = ""
    port: int = 0
    local_addr: str = ""
    local_port: int = 0
    tls: str = ""


class ClientPort(Protocol):
    """A client's socket."""

    @property
    def endpoint(self) -> Endpoint:
        """Where the client is."""

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

    @property
    def endpoint(self) -> Endpoint:
        """Where the server is."""

    @property
    def pid(self) -> int:
        """The process id in BackendKeyData; behind another pooler it is not the server's."""

    def is_stale(self) -> bool:
        """Whether the server has closed it, or said something that was not asked for: a look at the
        socket, without waiting.
        """

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

    @property
    def cancel_timeout(self) -> float:
        """Seconds that a backend whose client has left may take to come to an end."""

    @property
    def rollback_timeout(self) -> float:
        """Seconds that our ROLLBACK or DISCARD ALL may take."""

    @property
    def cancel_on_disconnect(self) -> bool:
        """Whether the statement of a client that has left is cancelled."""

    @property
    def log_statement_literals(self) -> bool:
        """Whether literals stay in statements in the log."""

    def clock(self) -> float:
        """Exact seconds, for what happens seldom: `now` goes by the janitor's ticks."""

    def connect(self, pool: "Pool") -> None:
        """Begin a connection; `Pool.connected()` or `Pool.connect_failed()` is called later."""

    def connect_listening(self, listener: "Listener") -> None:
        """Begin the connection that listens; `Listener.connected()` or `Listener.connect_failed()`
        is called later.
        """

    def ask_about(self, pool: "Pool", candidates: "list[Candidate]") -> None:
        """Ask the server whether these hold nothing; `release.answered()` is called later."""

    def claimed(self, pool: "Pool", names: tuple[str, ...], claim: "Claim") -> None:
        """A statement on `pool`'s server needs these databases without connections."""

    def defaults_changed(self, pool: "Pool") -> None:
        """What sessions on `pool`'s server begin with has changed."""

    def left_open(self, session: "Session", how: str, fields: dict[str, object]) -> None:
        """A transaction was left open, and `how` says what became of it (see offenders.py): a line
        for the log, and one more for SHOW OFFENDERS.
        """

    def event(self, name: str, fields: dict[str, object]) -> None:
        """One line for the log."""

    def bug(self, session: "Session", error: Exception) -> None:
        """A session raised: log it with its traceback and close that session."""
