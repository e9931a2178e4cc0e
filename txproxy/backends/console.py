"""The console as a backend: it answers PostgreSQL's protocol, out of this process.

A client of database `txproxy` or `pgbouncer` is an ordinary session in an ordinary pool, whose
backends are these. What a session writes to one is kept, and handled in turns of the event loop,
one command each: nothing is answered while the session is still speaking.

Who asks is the session that holds the backend when its bytes come. That is sure: bytes of another
session come only when all that was sent before is answered. The proxy's own words, its
ROLLBACK or a client's settings, come between; they need no permission and have no effect.
"""

import asyncio
from types import MappingProxyType
from typing import Final, Protocol

from txproxy import __version__
from txproxy.config import CONSOLE_DATABASES, Config, Database, PoolSettings, SessionSettings
from txproxy.core import conversation
from txproxy.core.backend import RESTORING, Backend
from txproxy.core.conversation import Conversation, Wait
from txproxy.core.pool import Pool
from txproxy.core.ports import Endpoint
from txproxy.core.session import Session
from txproxy.wire.codes import EXECUTE, FUNCTION_CALL, HELD_LIMIT, QUERY, SYNC

_CONNECTIONS: Final = 1000  # each costs a few hundred bytes
_LOOK_EVERY: Final = 0.05  # seconds, at what a command waits for
_SETTINGS: Final = frozenset(("settings", RESTORING))
_TURN: Final = frozenset((QUERY, EXECUTE, SYNC, FUNCTION_CALL))

PARAMS: Final = {
    "application_name": "",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "default_transaction_read_only": "off",
    "in_hot_standby": "off",
    "integer_datetimes": "on",
    "IntervalStyle": "postgres",
    "is_superuser": "off",
    "server_encoding": "UTF8",
    "server_version": f"18.0 (txproxy {__version__})",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
}
"""What it reports. Drivers ask the server's version before they speak, and must know it."""

_CONFIG: Final = Config(
    databases=MappingProxyType(
        {name: Database(name=name, user=name, pool_size=_CONNECTIONS) for name in CONSOLE_DATABASES}
    ),
    idle_transaction_timeout=0.0,
    server_lifetime=0.0,
)


class AdminPort(conversation.AdminPort, Protocol):
    """What the console shows and does, who may do what, and who hears of a bug in it."""

    def role(self, session: Session) -> int:
        """What this client may do at this moment: ANYBODY, STATS or ADMIN."""

    def contain(self, backend: Backend, error: Exception) -> None:
        """The backend raised: log it, and close it with its session."""


def is_console(database: str) -> bool:
    """Whether this is the name of the console."""
    return database in CONSOLE_DATABASES


def pool_settings(database: str) -> PoolSettings:
    """What holds for the console's pool of this name."""
    settings = _CONFIG.pool_settings(database, database)
    assert settings is not None
    return settings


def session_settings(database: str, user: str) -> SessionSettings:
    """What holds for a client of the console."""
    settings = _CONFIG.session_settings(database, user)
    assert settings is not None
    return settings


def connect(pool: Pool, admin: AdminPort) -> Backend:
    """A backend of the console's pool."""
    return ConsoleBackend(pool, admin).backend


class ConsoleBackend:
    """One connection to the console (BackendPort)."""

    def __init__(self, pool: Pool, admin: AdminPort) -> None:
        self.backend = Backend(pool, self, dict(PARAMS))
        self.endpoint = Endpoint()
        self.pid = 0
        self._admin = admin
        self._conversation = Conversation(admin)
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._skip = 0  # bytes still to come of a message that is too long
        self._turn: asyncio.Handle | None = None
        self._closed = False

    # What the backend calls.

    def is_stale(self) -> bool:
        """It cannot be: nobody is at the other end."""
        return False

    def write(self, data: bytes) -> None:
        """Bytes from a session, or the proxy's own."""
        session = self.backend.session
        if session is not None:
            self._conversation.user = session.user
            self._conversation.role = self._admin.role(session)
        self._received += data
        self._drop_skipped()
        self._set_full()
        self._go_on()

    def update_reading(self) -> None:
        """The client takes more, or no more for now."""
        self._go_on()

    def finish(self) -> None:
        """Closed: nothing more is said."""
        self._closed = True
        self._received.clear()
        if self._turn is not None:
            self._turn.cancel()

    def cancel(self) -> None:
        """Cancel the command that is waited for; one whose client has left is not taken back."""
        self._loop.call_soon(self._cancel, self.backend.session is not None)

    # Turns.

    def _go_on(self) -> None:
        if self._turn is None and not self._closed:
            self._turn = self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        try:
            wait = self._conversation.waits
            if wait is not None:
                self._look(wait)
            elif not self.backend.wants_pause:
                self._say(self._handle())
        except Exception as bug:  # noqa: BLE001
            self._admin.contain(self.backend, bug)

    def _look(self, wait: Wait) -> None:
        if wait.done():
            self._say(self._conversation.answered())
        else:
            self._turn = self._loop.call_later(_LOOK_EVERY, self._take_turn)

    def _say(self, said: bytes) -> None:
        self._set_full()
        if said:
            self.backend.server_sent(said)
        if self._length() or self._conversation.waits is not None:
            self._go_on()

    def _cancel(self, wanted: bool) -> None:
        try:
            wait = self._conversation.waits
            if wait is not None and not self._closed:
                if wanted:
                    wait.undo()
                if self._turn is not None:
                    self._turn.cancel()
                    self._turn = None
                self._say(self._conversation.cancelled())
            self.backend.cancel_done()
        except Exception as bug:  # noqa: BLE001
            self._admin.contain(self.backend, bug)

    # Messages.

    def _handle(self) -> bytes:
        """The answers to the next messages, up to one that runs something."""
        said = b""
        kind = 0
        while kind not in _TURN:
            length = self._length()
            if not length:
                break
            kind = self._received[0]
            if length > HELD_LIMIT:
                said += self._conversation.too_long(kind)
                self._skip = length
                self._drop_skipped()
                continue
            body = bytes(self._received[5:length])
            del self._received[:length]
            said += self._answer(kind, body)
        return said

    def _length(self) -> int:
        """How long the next message is; 0 if it is not all there, and may come."""
        if len(self._received) < 5:
            return 0
        length = 1 + int.from_bytes(self._received[1:5])
        return length if length > HELD_LIMIT or length <= len(self._received) else 0

    def _answer(self, kind: int, body: bytes) -> bytes:
        exchanges = self.backend.fifo.exchanges
        if kind == QUERY and exchanges and exchanges[0].purpose in _SETTINGS:
            return self._conversation.settings(body)
        return self._conversation.take(kind, body)

    def _drop_skipped(self) -> None:
        dropped = min(self._skip, len(self._received))
        self._skip -= dropped
        del self._received[:dropped]

    def _set_full(self) -> None:
        """More than a message's worth that was not handled yet: take no more from the client."""
        full = len(self._received) > HELD_LIMIT
        if full != self.backend.full:
            self.backend.full = full
            if self.backend.session is not None:
                self.backend.session.client.update_reading()
