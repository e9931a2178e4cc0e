"""Runs in the programs that `txproxy doctor --audit` watches, as their `sitecustomize`: writes down
who opens connections of the sqlite3 module, who closes them, and who uses them after that.

Python finds it in the first directory of PYTHONPATH; the `sitecustomize` that it would have found
otherwise is run behind it. It imports nothing but the standard library, for the program's Python
may be another one. Nothing in here may ever fail into the program.

Opening is an audit event (`sqlite3.connect/handle`). Closing is none, and the type cannot be
changed: so `sqlite3.connect` is given a factory that makes a subclass of the connection, or of the
factory that the program gives, and this makes cursors of a subclass. A connection that is made
by calling its class comes to the audit hook only: opened, and nothing more is known.

Each event is a line of JSON in the file that TXPROXY_AUDIT names, written at once, so that a
process that is killed has told what it knew. Sources: sys.addaudithook, "Audit events table".
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib.machinery
import importlib.util
import json
import os
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_SINCE = (3, 10)  # there is sqlite3.connect/handle
_STACK = 60  # frames that are written of a stack
_EVENTS = 200_000  # of a process; then only this is said


class _Record:
    """What is known of a connection; as the attribute `_txproxy_record` of the connection."""

    def __init__(self, number: str) -> None:
        self.number = number
        self.pid = _log.pid
        self.closed = False
        self.in_transaction = False


class _Log:
    """The file of events."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pid = os.getpid()
        self.written = 0
        self.opened = 0
        self.over = False
        self.opening = threading.local()  # what the connect that is under way has named

    def next_number(self) -> str:
        """A connection's name, of its own among all processes."""
        self.opened += 1
        return f"{self.pid}.{self.opened}"

    def forked(self) -> None:
        self.pid = os.getpid()
        self.written = self.opened = 0
        self.write("process")

    def ended(self) -> None:
        gc.collect()  # what nobody can close any more is not among what is left open
        self.over = True

    def write(self, event: str, **fields: Any) -> None:
        """A line for an event, with the stack that it happens on."""
        if self.over:
            return
        self.written += 1
        if self.written >= _EVENTS:
            self.over, event, fields = True, "full", {}
        said = {"event": event, "pid": self.pid, **fields}
        if "connection" in fields:
            said["thread"] = threading.current_thread().name
            said["stack"] = _stack()
        try:
            # Opened for each: a program may close what it has not opened, as daemons do, and
            # its database may then get the descriptor that this had.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(file, json.dumps(said).encode("ascii") + b"\n")
            finally:
                os.close(file)
        except (OSError, ValueError, TypeError):
            self.over = True


def _stack() -> list[tuple[str, str, int]]:
    """Function, file and line, the innermost first, without what is in here."""
    found: list[tuple[str, str, int]] = []
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None and len(found) < _STACK:
        code = frame.f_code
        if code.co_filename != __file__:
            name = getattr(code, "co_qualname", code.co_name)
            found.append((name, code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return found


_log: _Log


# What happens to a connection.


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "sqlite3.connect":
        _log.opening.name = _named(arguments[0])
    elif event == "sqlite3.connect/handle":
        connection = arguments[0]
        record = _Record(_log.next_number())
        watched = hasattr(connection, "__dict__") and hasattr(type(connection), "_txproxy_watched")
        if watched:
            connection._txproxy_record = record  # noqa: SLF001
        _log.write(
            "opened",
            connection=record.number,
            database=getattr(_log.opening, "name", ""),
            watched=watched,
        )


def _named(database: Any) -> str:
    try:
        return os.fsdecode(database)
    except TypeError:
        return str(database)


def _look(connection: Any) -> None:
    """Write down that it has got into a transaction, or out of one, or to another process."""
    record = getattr(connection, "_txproxy_record", None)
    if record is None or record.closed:
        return
    if record.pid != _log.pid:
        record.pid = _log.pid
        _log.write("carried", connection=record.number)
    now = _in_transaction(connection)
    if now != record.in_transaction:
        record.in_transaction = now
        _log.write("begun" if now else "ended", connection=record.number)


def _failed(connection: Any, error: sqlite3.ProgrammingError) -> None:
    record = getattr(connection, "_txproxy_record", None)
    if record is not None and "closed database" in str(error):
        _log.write("used closed", connection=record.number)


def _in_transaction(connection: Any) -> bool:
    try:
        return bool(connection.in_transaction)
    except sqlite3.ProgrammingError:  # it is closed, or was never opened
        return False


def _gone(connection: Any, event: str, in_transaction: bool) -> None:
    record = getattr(connection, "_txproxy_record", None)
    if record is not None and not record.closed:
        record.closed = True
        _log.write(event, connection=record.number, in_transaction=in_transaction)


# The subclasses.


def _watched(
    original: Callable[..., Any], connection_of: Callable[[Any], Any]
) -> Callable[..., Any]:
    """A method that looks at the connection behind each call."""

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return original(self, *arguments, **named)
        except sqlite3.ProgrammingError as error:
            _failed(connection_of(self), error)
            raise
        finally:
            _look(connection_of(self))

    return method


def _itself(connection: Any) -> Any:
    return connection


def _of_cursor(cursor: Any) -> Any:
    return getattr(cursor, "connection", None)


_STATEMENTS = ("execute", "executemany", "executescript")
_CONNECTIONS = (
    *("__call__", "__enter__", "__exit__"),
    *(
        name
        for name, member in vars(sqlite3.Connection).items()
        if callable(member) and not name.startswith("_") and not isinstance(member, type)
    ),
)
_CURSORS = (*_STATEMENTS, "fetchone", "fetchmany", "fetchall", "__next__")


def _is(factory: Any, base: type) -> bool:
    return isinstance(factory, type) and issubclass(factory, base)


def _shortcut(base: Any, name: str) -> Callable[..., Any]:
    """A method of a class. sqlite3's own execute() would make a plain cursor, past cursor()."""
    method: Callable[..., Any] = getattr(base, name)
    if name not in _STATEMENTS or method is not getattr(sqlite3.Connection, name):
        return method

    @functools.wraps(method)
    def execute(self: Any, *arguments: Any, **named: Any) -> Any:
        cursor = base.cursor(self, _cursors(sqlite3.Cursor))
        return getattr(cursor, name)(*arguments, **named)

    return execute


@functools.lru_cache(maxsize=None)  # noqa: UP033 an old Python is told that it is too old
def _connections(base: Any) -> Any:
    """The subclass of a class of connections."""

    def cursor(self: Any, factory: Any = sqlite3.Cursor) -> Any:
        try:
            watched = _cursors(factory) if _is(factory, sqlite3.Cursor) else factory
            return base.cursor(self, watched)
        except sqlite3.ProgrammingError as error:
            _failed(self, error)
            raise

    def close(self: Any) -> None:
        in_transaction = _in_transaction(self)
        base.close(self)  # which another thread, say, may not
        _gone(self, "closed", in_transaction)

    def __del__(self: Any) -> None:  # noqa: N807
        _gone(self, "collected", _in_transaction(self))
        inherited = getattr(base, "__del__", None)
        if inherited is not None:
            inherited(self)

    methods = {name: _watched(_shortcut(base, name), _itself) for name in _CONNECTIONS}
    own = {"cursor": cursor, "close": close, "__del__": __del__, "_txproxy_watched": True}
    return type(base.__name__, (base,), {**methods, **own, "__module__": base.__module__})


@functools.lru_cache(maxsize=None)  # noqa: UP033 an old Python is told that it is too old
def _cursors(base: Any) -> Any:
    """The subclass of a class of cursors."""
    methods = {name: _watched(getattr(base, name), _of_cursor) for name in _CURSORS}
    return type(base.__name__, (base,), {**methods, "__module__": base.__module__})


def _connect(original: Callable[..., Any]) -> Callable[..., Any]:
    """sqlite3.connect with a factory of ours: its sixth argument."""

    @functools.wraps(original)
    def connect(*arguments: Any, **named: Any) -> Any:
        given = arguments[5] if len(arguments) > 5 else named.pop("factory", sqlite3.Connection)
        factory = _connections(given) if _is(given, sqlite3.Connection) else given
        if len(arguments) > 5:
            arguments = (*arguments[:5], factory, *arguments[6:])
        else:
            named["factory"] = factory
        try:
            return original(*arguments, **named)
        except sqlite3.Error as error:
            name = getattr(_log.opening, "name", "")
            _log.write("failed", connection="", database=name, error=str(error))
            raise

    return connect


# Into the program.


def _begin(path: str) -> None:
    global _log  # noqa: PLW0603
    _log = _Log(path)
    if sys.version_info < _SINCE:
        _log.write("old", version=sys.version.split()[0])
        return
    _log.write("process")
    os.register_at_fork(after_in_child=_log.forked)
    atexit.register(_log.ended)  # the first that is registered runs last
    sys.addaudithook(_hook)
    sqlite3.connect = sqlite3.dbapi2.connect = _connect(sqlite3.connect)


def _go_on(directory: str) -> None:
    """Run the sitecustomize that this one stands before, if there is one."""
    others = [each for each in sys.path if os.path.abspath(each or ".") != directory]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


if __name__ == "sitecustomize" and "TXPROXY_AUDIT" in os.environ:
    _begin(os.environ["TXPROXY_AUDIT"])
    _go_on(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
