"""A file's settings, and connections to it as clients' statements may use them.

A file is opened in this process only, by apsw only, and never by open(): POSIX locks belong to the
process, and closing any other descriptor of the file drops those that SQLite holds.
"""

import ctypes
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Self

import apsw

from txproxy.backends.sqlite import security
from txproxy.backends.sqlite.security import Guard

_CACHED_STATEMENTS: Final = 500
_READER_PATIENCE: Final = 5000  # milliseconds: off WAL a commit locks readers out for a moment


@dataclass(frozen=True)
class Settings:
    """Of one file, as the proxy has told; times in seconds, 0 is off."""

    journal_mode: str = "wal"
    busy_timeout: float = 5.0
    idle_writer_timeout: float = 2.0
    idle_transaction_timeout: float = 30.0
    query_timeout: float = 0.0
    commit_train: bool = False
    checkpoint: str = "auto"
    begin: str = "deferred"
    functions: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    allow_create: bool = False

    @classmethod
    def of(cls, line: dict[str, Any]) -> Self:
        """From the control channel. TypeError: a name that is none of these."""
        lists = {name: tuple(line.get(name, ())) for name in ("functions", "extensions")}
        return cls(**{**line, **lists})

    @property
    def is_wal(self) -> bool:
        """Whether readers and the writer do not wait for each other."""
        return self.journal_mode == "wal"

    @property
    def has_train(self) -> bool:
        """Whether commits are synced by another thread, several at once."""
        return self.commit_train and self.is_wal


def connect(path: str, settings: Settings, *, writes: bool) -> tuple[apsw.Connection, Guard]:
    """A connection that clients' statements may use, and what keeps them in bounds.

    apsw.Error: it cannot be opened, or is no database; ImportError, AttributeError: `functions`.
    """
    connection = apsw.Connection(
        path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=_CACHED_STATEMENTS
    )
    try:
        return connection, _prepare(connection, settings, writes)
    except BaseException:
        connection.close()
        raise


def inspector(path: str, settings: Settings) -> apsw.Connection:
    """One that says what statements are, and runs none. Errors as those of `connect`.

    With all that may add to a statement's program, whichever session will run it.
    """
    connection, _ = connect(path, settings, writes=False)
    for pragma in ("foreign_keys", "recursive_triggers"):
        connection.execute(f"PRAGMA {pragma} = 1").close()
    return connection


def _prepare(connection: apsw.Connection, settings: Settings, writes: bool) -> Guard:
    connection.set_busy_timeout(_READER_PATIENCE)
    if writes:
        _set_journal(connection, settings)
    connection.wal_autocheckpoint(0)
    leaves_wal = not writes or settings.checkpoint != "auto"
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(leaves_wal))
    if settings.extensions:
        connection.enable_load_extension(True)
        for extension in settings.extensions:
            connection.load_extension(extension)
    for function in settings.functions:
        register(connection, function)
    if not writes:
        connection.execute("PRAGMA query_only = 1").close()
    return security.install(connection)


def register(connection: apsw.Connection, function: str) -> None:
    """Call "package.module:function". ImportError, AttributeError, and what that raises."""
    module, _, name = function.partition(":")
    getattr(import_module(module), name)(connection)


def _set_journal(connection: apsw.Connection, settings: Settings) -> None:
    """WAL is synced at each commit, or by the train; else EXTRA: the directory is synced, too."""
    if connection.pragma("journal_mode") != settings.journal_mode:
        connection.execute(f"PRAGMA journal_mode = {settings.journal_mode}").close()
    level = "NORMAL" if settings.has_train else "FULL" if settings.is_wal else "EXTRA"
    connection.execute(f"PRAGMA synchronous = {level}").close()
    connection.execute("PRAGMA fullfsync = 1").close()


def has_moved(connection: apsw.Connection) -> bool:
    """Whether another file, or none, is now where this one was opened."""
    answer = ctypes.c_int(0)
    connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(answer))
    return bool(answer.value)
