"""A client's messages, and what they lead to.

    Parse ─▶ Prepared ─Bind▶ Portal ─Execute▶ Call ─▶ Job ─▶ a thread ─▶ finished() ─▶ replies

Replies are kept in order in `_out`, with the call itself where its reply will be. While a job is
away no message is taken. But what follows an Execute up to Sync, and cannot outlive a failure,
joins the same job: executemany is one message to the writer's thread, and one back.
"""

import traceback
from collections.abc import Callable
from typing import Final, Protocol

import apsw

from txproxy.backends.sqlite import binding, calls, replies, requests
from txproxy.backends.sqlite.backup import COMMAND, COPY_DONE, COPY_OUT, Backup
from txproxy.backends.sqlite.calls import Call, Portal, Prepared
from txproxy.backends.sqlite.course import Course
from txproxy.backends.sqlite.errors import Fields, SqliteError, fields
from txproxy.backends.sqlite.failures import bug
from txproxy.backends.sqlite.file import File
from txproxy.backends.sqlite.prepared import PreparedStatements
from txproxy.backends.sqlite.statements import Kind, Statement
from txproxy.errors import ProtocolError, TxproxyError
from txproxy.wire import encode
from txproxy.wire.codes import BIND, CLOSE, DESCRIBE, EXECUTE, FLUSH, PARSE, QUERY, SYNC

_PORTALS: Final = 1000


class _Sync:
    """Where ReadyForQuery stands among the replies."""


_SYNC: Final = _Sync()


class Files(Protocol):
    """Who makes and removes files."""

    def command(self, file: File, sql: bytes, then: Callable[[bytes | Exception], None]) -> bool:
        """Whether a Query is for it. Then `then` is called: with the tag, or what went wrong."""


class Conversation:
    """`write` sends bytes; `go` is called when the next message may be taken, `die`
    when none may any more.
    """

    def __init__(
        self,
        file: File,
        files: Files,
        parameters: dict[str, str],
        write: Callable[[bytes], None],
        go: Callable[[], None],
        die: Callable[[Fields], None],
    ) -> None:
        self._file = file
        self._files = files
        self._write = write
        self._go = go
        self._die = die
        self._out: list[bytes | Call | _Sync] = []
        self._prepared = PreparedStatements()
        self.portals: dict[bytes, Portal] = {}
        self._script: bytes | None = None  # what is left of a Query
        self._is_skipping = False
        self._is_paused = False  # the client does not read
        self._backup: Backup | None = None
        self._is_copying = False  # the client has been told
        self.course = Course(file, self, parameters)

    def __repr__(self) -> str:
        return f"<Conversation {self.course!r}>"

    @property
    def is_waiting(self) -> bool:
        """Whether no message may be taken now."""
        return self.course.is_waiting

    def take(self, kind: int, body: bytes) -> bool:
        """One message; False: not before the job that is being collected has been run."""
        if self._is_skipping and kind != SYNC:
            return True
        try:
            return _TAKE[kind](self, body)
        except KeyError:
            self.fail(fields(ProtocolError(f"message {chr(kind)!r} is not understood here")))
        except Exception as error:  # noqa: BLE001 - preparing may raise whatever apsw does
            self.fail(fields(error))
        return True

    def submit(self) -> None:
        """Nothing more joins: the job goes its way, or the replies do."""
        self.course.submit()
        if self._out and not self.is_waiting:
            self._reply()

    # Extended protocol.

    def _parse(self, body: bytes) -> bool:
        if body[:1] == b"\0":
            self._prepared.unnamed = self._file.parsed(body)
        elif self.course.job is not None:
            return False
        else:
            self._prepared.add(requests.parse(body))
        self._out.append(encode.PARSE_COMPLETE)
        return True

    def _bind(self, body: bytes) -> bool:
        message = requests.bind(body)
        prepared = self._prepared.find(message.statement)
        statement = self._resolve(prepared)
        if statement is None or (message.portal and self.course.job is not None):
            return False
        if message.portal:
            self._check_name(message.portal)
        else:
            old = self.portals.get(b"")
            if old is not None and old.rows is not None:
                if self.course.job is not None:
                    return False
                self.course.drop(old)
        self.portals[message.portal] = binding.portal(statement, message, prepared.oids)
        self._out.append(encode.BIND_COMPLETE)
        return True

    def _check_name(self, portal: bytes) -> None:
        if portal in self.portals:
            raise TxproxyError("the portal exists already", sqlstate="42P03")
        if len(self.portals) >= _PORTALS:
            raise TxproxyError("too many portals", sqlstate="54000")

    def _resolve(self, prepared: Prepared) -> Statement | None:
        """What it is; None: the message is to be taken again, when that is known."""
        if prepared.statement is not None and prepared.generation == self.course.generation:
            return prepared.statement
        if not self.course.has_own_schema:
            statement = self._file.inspect(prepared.sql)
            if statement.rest and self._file.inspect(statement.rest.encode()).kind != Kind.EMPTY:
                raise SqliteError(
                    "You can only execute one statement at a time.",
                    apsw.SQLITE_MISUSE,
                    sqlstate="42601",
                )
            prepared.statement, prepared.generation = statement, self.course.generation
            return statement
        if self.course.job is None:
            self.course.inspect(prepared.sql, lambda found: self._resolved(prepared, found))
        return None

    def _resolved(self, prepared: Prepared, found: Statement | Exception) -> None:
        if isinstance(found, Exception):
            # Of a message that will be taken again, and skipped.
            self.fail(fields(found))
        else:
            prepared.statement, prepared.generation = found, self.course.generation
        self._go()

    def _describe(self, body: bytes) -> bool:
        kind, name = requests.target(body)
        if kind == b"P":
            portal = self._portal(name)
            self._out.append(binding.description(portal))
            return True
        if self.course.job is not None:
            return False
        statement = self._resolve(self._prepared.find(name))
        if statement is None:
            return False
        self._out.append(encode.parameter_description([_TEXT] * binding.count(statement)))
        if statement.columns:
            formats = (0,) * len(statement.columns)
            self._out.append(replies.row_description(statement.columns, formats, private=False))
        else:
            self._out.append(encode.NO_DATA)
        return True

    def _portal(self, name: bytes) -> Portal:
        portal = self.portals.get(name)
        if portal is None:
            raise TxproxyError("the portal does not exist", sqlstate="34000")
        return portal

    def _execute(self, body: bytes) -> bool:
        name, limit = requests.execute(body)
        call = Call(self._portal(name), limit)
        if self.course.job is not None:
            if not self.course.join(call):
                return False
            self._out.append(call)
        else:
            self._run(call)
        return True

    def _close(self, body: bytes) -> bool:
        if self.course.job is not None:
            return False
        kind, name = requests.target(body)
        if kind == b"P":
            portal = self.portals.pop(name, None)
            if portal is not None:
                self.course.drop(portal)
        else:
            self._prepared.forget(name)
        self._out.append(encode.CLOSE_COMPLETE)
        return True

    def _flush(self, _: bytes) -> bool:
        return self.course.job is None

    def _sync(self, _: bytes) -> bool:
        self._is_skipping = False
        self._out.append(_SYNC)
        course = self.course
        if course.job is not None:
            course.submit()
        else:
            self._reply()
        return True

    # Simple protocol.

    def _query(self, body: bytes) -> bool:
        if self.course.job is not None:
            return False
        self._is_skipping = False
        if COMMAND.fullmatch(body[:-1]):
            self._begin_backup()
            return True
        if tag := self._prepared.deallocate(body[:-1]):
            self._out += [encode.command_complete(tag), _SYNC]
            self.submit()
            return True
        if self._files.command(self._file, body[:-1], self._obeyed):
            self.course.is_waiting = True
            return True
        self._script = body[:-1]
        self._next_statement(is_first=True)
        return True

    def _next_statement(self, *, is_first: bool = False) -> None:
        """Go on with a Query, as far as nothing has to be waited for."""
        while self._script is not None and not self.is_waiting:
            if self.course.has_own_schema and self._script.strip():
                self.course.inspect(self._script, self._inspected)
                return
            try:
                self._statement(self._file.inspect(self._script), is_first)
            except Exception as error:  # noqa: BLE001 - whatever preparing raises
                self.fail(fields(error))
            is_first = False
            self.course.submit()

    def _inspected(self, found: Statement | Exception) -> None:
        try:
            if isinstance(found, Exception):
                raise found
            self._statement(found, is_first=False)
        except Exception as error:  # noqa: BLE001 - whatever preparing raises
            self.fail(fields(error))
        self._go_on()

    def _statement(self, statement: Statement, is_first: bool) -> None:
        if statement.kind is Kind.EMPTY:
            if is_first:
                self._out.append(encode.EMPTY_QUERY)
            self._script = None
            self._out.append(_SYNC)
            return
        self._script = statement.rest.encode()
        message = requests.Bind(b"", b"", False, (), [None] * binding.count(statement), ())
        portal = binding.portal(statement, message, ())
        self._run(Call(portal), binding.description(portal) if statement.columns else b"")

    def _begin_backup(self) -> None:
        self._reply()
        self.course.is_waiting = True
        self._backup = Backup(self._file.path, self._copied)

    def _obeyed(self, found: bytes | Exception) -> None:
        self.course.is_waiting = False
        if isinstance(found, bytes):
            self._out.append(encode.command_complete(found))
        else:
            self._out.append(replies.error(fields(found)))
        self._out.append(_SYNC)
        self._go_on()

    def _copied(self, found: bytes | Exception) -> None:
        backup = self._backup
        if backup is None:
            return  # the client is gone
        if found and isinstance(found, bytes):
            begin = b"" if self._is_copying else COPY_OUT
            self._is_copying = True
            self._write(begin + encode.message(b"d", found))
            if not self._is_paused:
                backup.go_on()
            return
        self._backup = None
        self._is_copying = False
        self.course.is_waiting = False
        if isinstance(found, bytes):
            self._out += [COPY_DONE, encode.command_complete(b"BACKUP")]
        else:
            self._out.append(replies.error(fields(found)))
        self._out.append(_SYNC)
        self._go_on()

    # Both.

    def _run(self, call: Call, description: bytes = b"") -> None:
        """What the course answers by itself, or the call, whose reply comes later."""
        reply = self.course.run(call)
        if description:
            self._out.append(description)
        self._out.append(call if reply is None else reply)

    def fail(self, why: Fields) -> None:
        """An error in its place among the replies."""
        self._out.append(replies.error(why))
        if self._script is None:
            self._is_skipping = True
        else:
            self._script = None
            self._out.append(_SYNC)

    def finished(self, job: calls.Job) -> None:
        """Of `Waits`: a thread has run it, or nobody will."""
        try:
            if self.course.finished(job):
                self._go_on()
        except Exception as error:  # noqa: BLE001 - a bug, which is to harm nobody else
            traceback.print_exc()
            self._die(bug(error))

    def _go_on(self) -> None:
        self.course.submit()
        if self._script is not None and not self.is_waiting:
            failed = self._reply()
            if failed:
                self._script = None
                self._write(encode.ready(self.course.status))
            self._next_statement()
        if not self.course.is_waiting:
            self._reply()
            self._go()

    def deliver(self, call: Call) -> bool:
        """Rows of a call that goes on, after those of the replies before it. Whether the client
        takes more now; else `Course.resume` is called.
        """
        reply, call.reply = call.reply, []
        before = []
        while self._out and isinstance(part := self._out[0], bytes):
            before.append(part)
            del self._out[0]
        while self._out and self._out[0] is not call:
            part = self._out.pop(0)
            assert isinstance(part, (bytes, Call))
            before += [part] if isinstance(part, bytes) else part.reply
        self._write(b"".join(before + reply))
        return not self._is_paused

    def _reply(self) -> bool:
        """Send what there is up to now. Whether it ends with an error."""
        parts: list[bytes] = []
        failed = False
        for part in self._out:
            if part is _SYNC:
                failed = False
                parts.append(encode.ready(self.course.status))
            elif failed:
                continue
            elif isinstance(part, bytes):
                parts.append(part)
            elif isinstance(part, Call):
                parts += part.reply
                if part.failure is not None:
                    parts.append(replies.error(part.failure))
                    failed = True
        if failed and self._script is None:
            self._is_skipping = True
        self._out = []
        if parts:
            self._write(b"".join(parts))
        return failed

    def pause(self) -> None:
        """The client does not read what it has asked for."""
        self._is_paused = True

    def resume(self) -> None:
        """It does again."""
        self._is_paused = False
        if self._backup is not None:
            self._backup.go_on()
        self.course.resume()

    def end(self) -> None:
        """The client is gone."""
        backup, self._backup = self._backup, None
        if backup is not None:
            backup.stop()
        self.course.leave()
        self._prepared.clear()
        self._out.clear()


_TEXT: Final = 25

_TAKE: Final[dict[int, Callable[[Conversation, bytes], bool]]] = {
    PARSE: Conversation._parse,  # noqa: SLF001 - its own
    BIND: Conversation._bind,  # noqa: SLF001
    DESCRIBE: Conversation._describe,  # noqa: SLF001
    EXECUTE: Conversation._execute,  # noqa: SLF001
    CLOSE: Conversation._close,  # noqa: SLF001
    FLUSH: Conversation._flush,  # noqa: SLF001
    SYNC: Conversation._sync,  # noqa: SLF001
    QUERY: Conversation._query,  # noqa: SLF001
}
