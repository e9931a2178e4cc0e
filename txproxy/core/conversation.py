"""The console's side of the protocol: what a client's messages are answered with.

Both protocols; no parameters; results as text or binary. `Conversation.take()` is given a message
and returns the answer. A command that takes its time (PAUSE) leaves a Wait in `waits`; then nothing
is taken until `answered()` or `cancelled()` has said its answer.

Source: PostgreSQL 18, section 54.2 "Message Flow", and exec_*_message() in postgres.c.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from txproxy.core.console import ADMIN, ANYBODY, PARAMETERS, ROLES, Call, parse
from txproxy.core.rows import (
    TEXT,
    Column,
    Table,
    Value,
    data_row,
    formats_for,
    row_description,
)
from txproxy.core.tables import COLUMNS
from txproxy.errors import TxproxyError
from txproxy.wire import encode
from txproxy.wire.codes import (
    BIND,
    CLOSE,
    DESCRIBE,
    EXECUTE,
    EXTENDED,
    FUNCTION_CALL,
    IDLE,
    IN_FAILED,
    IN_TRANSACTION,
    PARSE,
    QUERY,
    SYNC,
)
from txproxy.wire.messages import int32, text

_NAMES_LIMIT: Final = 1000  # statements, and portals, of a session
_PARAMETER: Final = re.compile(rb"\$[0-9]")
_SETTING: Final = re.compile(
    r"set_config\('application_name',(?:'((?:[^']|'')*)'|E'((?:[^']|'')*)'),false\)"
)
_SUSPENDED: Final = encode.message(b"s", b"")
_RUN: Final = frozenset((QUERY, EXECUTE, SYNC, FUNCTION_CALL))
"""Messages that run something, or end what was run."""


@dataclass(frozen=True)
class Wait:
    """A command that is answered once `done()`; `undo()` takes it back if its client cancels it."""

    done: Callable[[], bool]
    undo: Callable[[], None]


class AdminPort(Protocol):
    """What the console shows and does."""

    def show(self, name: str, texts: bool) -> Table:
        """A table of tables.COLUMNS, with the texts of statements or without."""

    def run(self, call: Call, user: str) -> Wait | None:
        """Execute a command that changes something. Raises TxproxyError."""


@dataclass
class _Portal:
    call: Call | None  # None: of an empty statement
    formats: list[int]
    run: bool = False
    table: Table | None = None
    at: int = 0  # the first row that was not sent


class Conversation:
    """One connection to the console. `user` is whose messages are taken now, `role` what that user
    may do: ANYBODY, STATS or ADMIN.
    """

    def __init__(self, admin: AdminPort) -> None:
        self.user = ""
        self.role = ANYBODY
        self.status = IDLE
        self.waits: Wait | None = None
        self._admin = admin
        self._waits_in = 0
        self._waiting_call: Call | None = None
        self._skipping = False
        self._application_name = ""
        self._statements: dict[bytes, Call | None] = {}
        self._portals: dict[bytes, _Portal] = {}

    def take(self, kind: int, body: bytes) -> bytes:
        """The answer to one message."""
        if kind == SYNC:
            self._skipping = False
            if self.status == IDLE:
                self._portals.clear()
            return encode.ready(self.status)
        if self._skipping:
            return b""
        if kind == QUERY:
            return self._and_ready(QUERY, self._query(body))
        if kind == FUNCTION_CALL:
            error = _unsupported("function calls are not supported by the console")
            return _error(error) + encode.ready(self._failed())
        if kind in EXTENDED:
            return self._extended(kind, body)
        return b""

    def too_long(self, kind: int) -> bytes:
        """The answer to a message that is longer than what is kept of one."""
        if self._skipping or kind not in _RUN | EXTENDED:
            return b""
        error = TxproxyError("this is too long for the console", sqlstate="54000")
        self._failed()
        if kind in EXTENDED:
            self._skipping = True
            return _error(error)
        return _error(error) + encode.ready(self.status)

    def settings(self, body: bytes) -> bytes:
        """The proxy's own words: the settings of the session whose turn has come. See
        settings.difference(); the name of the application is followed, anything else ignored.
        """
        said = text(body)
        found = _SETTING.search(said)
        news = b""
        if found is not None:
            plain = found[1] if found[1] is not None else found[2].replace("\\\\", "\\")
            news = self._rename(plain.replace("''", "'"))
        elif "RESET application_name" in said:
            news = self._rename("")
        return news + encode.command_complete(b"SELECT 1") + encode.ready(self.status)

    def answered(self) -> bytes:
        """The command that was waited for is done."""
        call = self._waiting_call
        assert call is not None
        self.waits = None
        return self._and_ready(self._waits_in, _complete(call))

    def cancelled(self) -> bytes:
        """It was cancelled."""
        self.waits = None
        error = TxproxyError("canceling statement due to user request", sqlstate="57014")
        self._failed()
        self._skipping = self._waits_in == EXECUTE
        return self._and_ready(self._waits_in, _error(error))

    def _and_ready(self, kind: int, said: bytes) -> bytes:
        if self.waits is not None:
            self._waits_in = kind
            return b""
        return said if kind == EXECUTE else said + encode.ready(self.status)

    def _failed(self) -> int:
        if self.status == IN_TRANSACTION:
            self.status = IN_FAILED
        return self.status

    # Commands.

    def _execute(self, call: Call) -> Table | None:
        """Run it; what it shows. The only place that looks at who may do what."""
        command = call.command
        if self.status == IN_FAILED and command.name not in ("COMMIT", "ROLLBACK"):
            raise TxproxyError(
                "current transaction is aborted, commands ignored until end of transaction block",
                sqlstate="25P02",
            )
        if self.role < command.needs:
            raise TxproxyError(
                f"permission denied for {command.name}",
                hint=f"It is for {ROLES[command.needs]}, in the proxy's configuration.",
                sqlstate="42501",
            )
        shown = command.name.removeprefix("SHOW ")
        if shown in COLUMNS:
            return self._admin.show(shown, self.role == ADMIN)
        if command.name == "SHOW parameter":
            return Table(_columns(call), [(self._parameter(call.argument),)])
        if command.name == "BEGIN":
            self.status = IN_TRANSACTION
        elif command.name in ("COMMIT", "ROLLBACK"):
            self.status = IDLE
        elif command.name not in ("SET parameter", "RESET"):
            self.waits = self._admin.run(call, self.user)
            self._waiting_call = call
        return None

    def _parameter(self, name: str) -> str:
        return self._application_name if name == "application_name" else PARAMETERS[name]

    def _rename(self, name: str) -> bytes:
        """Another application_name, which the client must be told."""
        if name == self._application_name:
            return b""
        self._application_name = name
        return encode.parameter_status("application_name", name)

    def _news(self, call: Call) -> bytes:
        """What a command changed that the client must be told."""
        said = call.argument
        if call.command.name == "RESET":
            if "discard" in said or "deallocate" in said:
                self._statements.clear()
                self._portals.clear()
            if "all" in said or "application_name" in said:
                return self._rename("")
        elif call.command.name == "SET parameter" and said == "application_name":
            return self._rename(call.value)
        return b""

    # Simple protocol.

    def _query(self, body: bytes) -> bytes:
        try:
            call = parse(text(body.split(b"\0", 1)[0]))
            if call is None:
                return encode.EMPTY_QUERY
            was_failed = self.status == IN_FAILED
            table = self._execute(call)
        except TxproxyError as error:
            self._failed()
            return _error(error)
        said = self._news(call)
        if table is not None:
            formats = [TEXT] * len(table.columns)
            said += row_description(table.columns, formats) + _rows(table.rows, formats)
        return said + _complete(call, was_failed)

    # Extended protocol.

    def _extended(self, kind: int, body: bytes) -> bytes:
        try:
            if kind == PARSE:
                return self._parse(body)
            if kind == BIND:
                return self._bind(body)
            if kind == DESCRIBE:
                return self._describe(body)
            if kind == EXECUTE:
                return self._and_ready(EXECUTE, self._execute_portal(body))
        except TxproxyError as error:
            self._failed()
            self._skipping = True
            return _error(error)
        if kind == CLOSE:
            what, name = _named(body)
            if what == b"S":
                self._statements.pop(name, None)
            else:
                self._portals.pop(name, None)
        return encode.CLOSE_COMPLETE

    def _parse(self, body: bytes) -> bytes:
        name, said, types = _split(body)
        if types[:2] not in (b"\0\0", b"") or _PARAMETER.search(said) is not None:
            raise _unsupported("parameters are not supported by the console")
        if name and name in self._statements:
            raise TxproxyError(
                f'prepared statement "{text(name)}" already exists', sqlstate="42P05"
            )
        _check_room(len(self._statements))
        self._statements[name] = parse(text(said))
        return encode.PARSE_COMPLETE

    def _bind(self, body: bytes) -> bytes:
        portal, name, rest = _split(body)
        if name not in self._statements:
            raise _no_statement(name)
        call = self._statements[name]
        at = 2 + 2 * _int16(rest, 0)
        if _int16(rest, at):
            raise TxproxyError(
                "bind message supplies parameters, but the statement requires none",
                sqlstate="08P01",
            )
        at += 2
        codes = [_int16(rest, at + 2 + 2 * i) for i in range(_int16(rest, at))]
        formats = formats_for(codes, len(_columns(call)))
        if formats is None:
            raise TxproxyError(
                "bind message has result formats that do not fit the columns", sqlstate="08P01"
            )
        _check_room(len(self._portals))
        self._portals[portal] = _Portal(call, formats)
        return encode.BIND_COMPLETE

    def _describe(self, body: bytes) -> bytes:
        what, name = _named(body)
        if what == b"S":
            if name not in self._statements:
                raise _no_statement(name)
            described = _columns(self._statements[name])
            return encode.NO_PARAMETERS + _described(described, [TEXT] * len(described))
        portal = self._portal(name)
        return _described(_columns(portal.call), portal.formats)

    def _portal(self, name: bytes) -> _Portal:
        portal = self._portals.get(name)
        if portal is None:
            raise TxproxyError(f'portal "{text(name)}" does not exist', sqlstate="34000")
        return portal

    def _execute_portal(self, body: bytes) -> bytes:
        name, _, rest = body.partition(b"\0")
        portal = self._portal(name)
        call = portal.call
        if call is None:
            return encode.EMPTY_QUERY
        was_failed = self.status == IN_FAILED
        said = b""
        if not portal.run:
            portal.run = True
            portal.table = self._execute(call)
            said = self._news(call)
        elif portal.table is None:
            raise TxproxyError(f'portal "{text(name)}" cannot be run', sqlstate="55000")
        if portal.table is None:
            return said + _complete(call, was_failed)
        rows = portal.table.rows
        limit = int32(rest, 0) if len(rest) == 4 else 0
        end = min(len(rows), portal.at + (limit or len(rows)))
        said += _rows(rows[portal.at : end], portal.formats)
        portal.at = end
        if end < len(rows):
            return said + _SUSPENDED
        return said + _complete(call)


def _columns(call: Call | None) -> tuple[Column, ...]:
    """The columns that a command shows; none if it shows nothing."""
    if call is None:
        return ()
    if call.command.name == "SHOW parameter":
        return (Column(call.argument, True),)
    return COLUMNS.get(call.command.name.removeprefix("SHOW "), ())


def _described(described: tuple[Column, ...], formats: list[int]) -> bytes:
    return row_description(described, formats) if described else encode.NO_DATA


def _rows(rows: list[tuple[Value, ...]], formats: list[int]) -> bytes:
    return b"".join([data_row(row, formats) for row in rows])


def _complete(call: Call, was_failed: bool = False) -> bytes:
    """CommandComplete. COMMIT of a transaction that failed is a ROLLBACK."""
    name = "ROLLBACK" if was_failed else call.command.name
    return encode.command_complete(name.split()[0].encode())


def _error(error: TxproxyError) -> bytes:
    """ErrorResponse."""
    return encode.error("ERROR", error.sqlstate, error.message, hint=error.hint)


def _unsupported(message: str) -> TxproxyError:
    return TxproxyError(message, sqlstate="0A000")


def _no_statement(name: bytes) -> TxproxyError:
    return TxproxyError(f'prepared statement "{text(name)}" does not exist', sqlstate="26000")


def _check_room(count: int) -> None:
    if count >= _NAMES_LIMIT:
        raise TxproxyError("too many prepared statements or portals", sqlstate="54000")


def _split(body: bytes) -> tuple[bytes, bytes, bytes]:
    """Two strings that end with a zero, and what is behind them."""
    parts = body.split(b"\0", 2)
    if len(parts) < 3:
        raise TxproxyError("invalid message format", sqlstate="08P01")
    return parts[0], parts[1], parts[2]


def _named(body: bytes) -> tuple[bytes, bytes]:
    """What a Describe or Close is about, S or P, and its name."""
    said = body.split(b"\0", 1)[0]
    return (said[:1], said[1:]) if said else (b"", b"")


def _int16(data: bytes, i: int) -> int:
    """An unsigned 16-bit number; 0 behind the end."""
    return (data[i] << 8) | data[i + 1] if i + 1 < len(data) else 0
