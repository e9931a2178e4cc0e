"""SQLite through the proxy: `import txproxy.sqlite as sqlite3`.

A DB-API 2.0 module that is used as Python's own `sqlite3` is. Statements that write go to the
process that holds the file, which lets many processes write to it in turn; reads are made here
where that is possible. Exceptions, adapters, converters and rows are `sqlite3`'s own.

    statements.py   what a statement is, as far as the client must know
    protocol.py     the socket, and PostgreSQL's framing
    session.py      what we have on the server: statements, portals; lost connections, forks
    forks.py        whether this is a child of the process that connected
    local.py        the readers of this process; place.py, reading.py: whether there are any
    snapshot.py     the reader that a transaction has
    begun.py        a transaction that the server does not know of yet
    engine.py       where a statement runs, and in which transaction
    link.py         Python's implicit BEGINs, threads
    adapters.py     values, out and in; failures.py: errors; rows.py: results; changes.py: counts
    limits.py       limits; cache.py: statements that are kept
    greeting.py     the server's version and ours
    cursor.py, connection.py    the DB-API

A site's process runs no part of the proxy: nothing of txproxy is imported but wire and errors.
"""

import datetime as dt
import sqlite3
from sqlite3 import (
    PARSE_COLNAMES,
    PARSE_DECLTYPES,
    Binary,
    DatabaseError,
    DataError,
    Date,
    DateFromTicks,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    PrepareProtocol,
    ProgrammingError,
    Row,
    Time,
    TimeFromTicks,
    TimestampFromTicks,
    Warning,  # noqa: A004
    adapt,
    apilevel,
    complete_statement,
    paramstyle,
    register_adapter,
    register_converter,
    sqlite_version,
    sqlite_version_info,
    threadsafety,
)
from typing import Any, Final

from txproxy.sqlite.connection import Connection
from txproxy.sqlite.cursor import Cursor
from txproxy.sqlite.link import LEGACY as LEGACY_TRANSACTION_CONTROL

Timestamp = dt.datetime

__all__ = [
    "apilevel",
    "paramstyle",
    "threadsafety",
    "connect",
    "Connection",
    "Cursor",
    "Row",
    "LEGACY_TRANSACTION_CONTROL",
    "PARSE_COLNAMES",
    "PARSE_DECLTYPES",
    "Binary",
    "Date",
    "DateFromTicks",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "Error",
    "InterfaceError",
    "DatabaseError",
    "DataError",
    "OperationalError",
    "IntegrityError",
    "InternalError",
    "ProgrammingError",
    "NotSupportedError",
    "PrepareProtocol",
    "adapt",
    "complete_statement",
    "register_adapter",
    "register_converter",
    "sqlite_version",
    "sqlite_version_info",
]

_FACTORY: Final = 4  # its place in sqlite3.connect(), behind the database


def connect(database: Any, *arguments: Any, factory: Any = Connection, **keywords: Any) -> Any:
    """A connection to the file of that name or path; `factory` is called with the arguments.

    They are those of `Connection`. Raises what that raises.
    """
    if len(arguments) > _FACTORY:
        factory = arguments[_FACTORY]
    return factory(database, *arguments, **keywords)


def __getattr__(name: str) -> Any:
    """The codes and flags of `sqlite3`, SQLITE_DENY and so on."""
    if name.startswith("SQLITE_"):
        return getattr(sqlite3, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
