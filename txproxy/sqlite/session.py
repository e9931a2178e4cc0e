"""The session on the server: its connection, its prepared statements, its portals.

A connection that is lost outside a transaction is made anew at the next statement, once, if the
server cannot have got that statement, or if doing it twice changes nothing. What may have been
done is never sent again: OperationalError, "outcome unknown". After a fork the child leaves the
inherited socket alone and has a session of its own.

Statements are Parsed under a name the first time they run, in the same send; results that are
longer than a first helping stay behind in a portal.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from txproxy.sqlite import failures, forks
from txproxy.sqlite.protocol import Answer, LostError, Wire
from txproxy.sqlite.statements import Kind, Statement
from txproxy.wire import encode, values
from txproxy.wire.codes import IDLE

FIRST_ROWS: Final = 256
NEXT_ROWS: Final = 2048
_LONG_TEXT: Final = 65_536  # letters of a statement that is not worth a name on the server

_FORMAT: Final = b"\0\1" + values.FORMAT.to_bytes(2, "big")
_RUN: Final = _FORMAT + encode.EXECUTE_UNNAMED + encode.SYNC  # behind a Bind's parameters
_DESCRIBE_UNNAMED: Final = encode.message(b"D", b"P\0")


class Portal:
    """A result of which rows are left on the server."""

    def __init__(self, session: "Session", name: bytes, epoch: int) -> None:
        self._session = session
        self._epoch = epoch
        self.name = name

    def __repr__(self) -> str:
        return f"<Portal {self.name.decode()}>"

    def fetch(self, rows: int) -> Answer:
        """Up to so many rows; OperationalError: the session that had it is gone."""
        return self._session.resume(self, rows)

    def is_of(self, epoch: int) -> bool:
        """Whether it belongs to the session of that number."""
        return self._epoch == epoch

    def abandon(self) -> None:
        """Nobody will read the rest; from any thread, also the collector's."""
        epoch, self._epoch = self._epoch, 0
        self._session.close_portal(self.name, epoch)

    def __del__(self) -> None:
        self.abandon()


class Session:
    """What one connection of the client's has on the server.

    `open` comes first. `epoch` counts sessions from 1. sqlite3.OperationalError from everything:
    nobody listens there, or what was begun is lost.
    """

    def __init__(self, address: str, said: dict[str, str]) -> None:
        self._address = address
        self._said = said
        self._opened: Callable[[dict[str, str]], None] = lambda _: None
        self._wire: Wire | None = None
        self._forks = forks.count
        self._abandoned: list[bytes] = []  # whole Close messages, sent with what comes next
        self._names = 0
        self._free_portals: list[bytes] = []
        self._used_portals: set[bytes] = set()  # those of them that the server may still have
        self._is_asking = False  # a statement is on its way
        self.epoch = 0
        self.status: int = IDLE  # the transaction status of the server's last answer

    def open(self, opened: Callable[[dict[str, str]], None]) -> None:
        """Connect. `opened` is called with the server's parameters, now and as they change."""
        self._opened = opened
        self._connect()

    def __repr__(self) -> str:
        return f"<Session {self.epoch} {self._wire}>"

    def was_inherited(self) -> bool:
        """After a fork: leave what the parent has. True: there was something to leave."""
        if self._forks == forks.count:
            return False
        self._forks = forks.count
        self._lose()
        return True

    def _connect(self) -> Wire:
        wire = Wire(self._address, self._said)
        self.epoch += 1
        self._wire = wire
        self._abandoned.clear()
        self._used_portals.clear()
        wire.has_changed = False
        self._opened(wire.parameters)
        return wire

    def _lose(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self._is_asking = False
        self.status = IDLE

    # What is asked

    def run(
        self,
        statement: Statement,
        bound: bytes = b"",
        *,
        before: Sequence[str] = (),
        rows: int = 0,
    ) -> tuple[Answer, Portal | None]:
        """One statement, `before` it others without results, all in one send.

        `rows` is the helping after which the rest stays in the portal that comes back; 0: all.
        An error of SQLite's is in the answer.
        """
        name = self._portal_name() if rows else b""
        again = _close(name) if name in self._used_portals else b""

        def message() -> bytes:
            return again + self._opening(before) + self._execution(statement, bound, name, rows)

        known = statement.epoch
        answer = self._ask(message, repeatable=statement.kind is Kind.READ and not before)
        self._note(statement, answer, known)
        if not rows:
            return answer, None
        if answer.suspended:
            return answer, Portal(self, name, self.epoch)
        self._free_portals.append(name)
        self._used_portals.add(name)
        return answer, None

    def run_many(
        self, statement: Statement, bound: Sequence[bytes], *, before: Sequence[str] = ()
    ) -> Answer:
        """One statement with each of these parameters, until one fails."""

        def message() -> bytes:
            runs = [self._parsed(statement)]
            for one in bound:
                runs.append(self._bind(statement, one, b""))
                runs.append(encode.EXECUTE_UNNAMED)
            return self._opening(before) + b"".join(runs) + encode.SYNC

        known = statement.epoch
        answer = self._ask(message, repeatable=False)
        self._note(statement, answer, known)
        return answer

    def script(self, sql: str) -> Answer:
        """Several statements, each by itself."""
        body = sql.encode()
        return self._ask(lambda: encode.query(body), repeatable=False)

    def resume(self, portal: Portal, rows: int) -> Answer:
        """More rows of a portal."""
        self.was_inherited()
        if self._wire is None or not portal.is_of(self.epoch):
            raise failures.lost("the connection was lost, and with it the rest of this result")
        try:
            self._is_asking = True
            answer = self._wire.exchange(_execute(portal.name, rows) + encode.SYNC)
            self._is_asking = False
            self.status = self._wire.status
        except LostError as error:
            raise failures.lost(f"the connection was lost: {error}") from error
        return answer

    def _ask(self, message: Callable[[], bytes], *, repeatable: bool) -> Answer:
        """`repeatable`: to do it twice changes nothing, and no transaction is needed for it."""
        in_transaction = self.status != IDLE
        for is_last in (False, True):
            wire = self._wire or self._connect()
            closing = b""
            if self._abandoned:
                abandoned, self._abandoned = self._abandoned, []
                closing = b"".join(abandoned)
            try:
                data = closing + message()
                self._is_asking = True
                answer = wire.exchange(data)
                self._is_asking = False
                self.status = wire.status
                if wire.has_changed:
                    wire.has_changed = False
                    self._opened(wire.parameters)
                return answer
            except LostError as error:
                self._lose()
                if in_transaction or is_last or (error.sent and not repeatable):
                    raise self._lost(error, repeatable=repeatable) from error
            except BaseException:
                self._lose()
                raise
        raise AssertionError

    @staticmethod
    def _lost(error: LostError, *, repeatable: bool) -> sqlite3.OperationalError:
        if error.sent and not repeatable:
            return failures.lost(f"outcome unknown: the connection was lost ({error})")
        return failures.lost(f"the connection was lost: {error}")

    # How it is said

    def _opening(self, before: Sequence[str]) -> bytes:
        return b"".join([_unnamed(sql) for sql in before])

    def _execution(self, statement: Statement, bound: bytes, portal: bytes, rows: int) -> bytes:
        if statement.silent and statement.epoch == self.epoch:
            body = statement.bind + bound + _FORMAT
            size = (len(body) + 4).to_bytes(4, "big")
            return b"B" + size + body + encode.EXECUTE_UNNAMED + encode.SYNC
        return b"".join(
            (
                self._parsed(statement),
                self._bind(statement, bound, portal),
                _describe(portal),
                _execute(portal, rows),
                encode.SYNC,
            )
        )

    def _parsed(self, statement: Statement) -> bytes:
        """The Parse that the server still needs."""
        if statement.epoch == self.epoch:
            return b""
        sql = statement.encoded
        if not statement.is_kept or len(sql) > _LONG_TEXT:
            statement.name = b""
        else:
            self._names += 1
            statement.name = b"s%d" % self._names
            statement.epoch = self.epoch
        count = len(statement.names).to_bytes(2, "big")
        statement.bind = b"\0" + statement.name + b"\0" + _FORMAT + count
        return encode.message(b"P", statement.name + b"\0" + sql + b"\0\0\0")

    @staticmethod
    def _bind(statement: Statement, bound: bytes, portal: bytes) -> bytes:
        return encode.message(b"B", portal + statement.bind + bound + _FORMAT)

    def _note(self, statement: Statement, answer: Answer, known: int) -> None:
        """What is known of a statement after it ran; `known`: its epoch before."""
        if answer.fields is not None:
            if known != self.epoch:
                self.forget(statement)  # whether the server has it depends on how far it came
        elif answer.described and answer.columns is None and statement.kind is not Kind.OTHER:
            statement.silent = True

    def forget(self, statement: Statement) -> None:
        """It will not run again under this name."""
        if statement.epoch == self.epoch:
            self._abandoned.append(encode.close_statement(statement.name))
        statement.epoch = 0

    def _portal_name(self) -> bytes:
        if self._free_portals:
            return self._free_portals.pop()
        self._names += 1
        return b"p%d" % self._names

    def close_portal(self, portal: bytes, epoch: int) -> None:
        """Close a portal of the session of that number, with what is sent next."""
        if epoch == self.epoch:
            self._abandoned.append(_close(portal))

    # Its end

    def cancel(self) -> None:
        """Interrupt what runs; nothing that comes later."""
        if self._wire is not None and self._is_asking and self._forks == forks.count:
            self._wire.cancel()

    def close(self) -> None:
        """Leave; an open transaction is rolled back by the server."""
        if self._wire is None:
            return
        if self._forks == forks.count:
            self._wire.terminate()
        self._lose()


def _execute(portal: bytes, rows: int) -> bytes:
    return encode.message(b"E", portal + b"\0" + rows.to_bytes(4, "big"))


def _describe(portal: bytes) -> bytes:
    return _DESCRIBE_UNNAMED if not portal else encode.message(b"D", b"P" + portal + b"\0")


def _close(portal: bytes) -> bytes:
    return encode.message(b"C", b"P" + portal + b"\0")


def _unnamed(sql: str) -> bytes:
    return encode.parse(sql.encode()) + encode.BIND_UNNAMED + encode.EXECUTE_UNNAMED
