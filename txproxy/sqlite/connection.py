"""The connection of the DB-API, as `sqlite3.Connection` is used.

What runs Python while a statement runs (functions, collations, an authorizer) and what handles the
file itself (backup, blobs) is there for the readers of this process, and nowhere else: on the
server it is the configuration's.

Source: https://docs.python.org/3/library/sqlite3.html#connection-objects
"""

import os
import sqlite3
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, suppress
from types import MappingProxyType
from typing import Any, Final, Literal, Self, cast

from txproxy.sqlite import limits, place
from txproxy.sqlite.cursor import Cursor
from txproxy.sqlite.engine import Engine
from txproxy.sqlite.link import LEGACY, Link, NoLink, checked_autocommit, checked_level
from txproxy.sqlite.local import Setting
from txproxy.sqlite.protocol import address_of, user
from txproxy.sqlite.reading import Reading, Reads
from txproxy.sqlite.session import Session

HOST: Final = "/run/txproxy"
PORT: Final = 6432

_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_LEAST_TIMEOUT: Final = 50  # ms; to see that nobody waits takes a moment, the queue is not here


class Connection:
    """A file, by way of the endpoint that holds it.

    As `sqlite3.Connection`, and: `host` is the directory of the proxy's unix socket and `port` its
    number; `reads` says who reads outside of writing transactions: "local" this process, "server"
    the server, "auto" this process where it may; `parameters` go into the start-up packet, PRAGMAs
    of the session such as foreign_keys among them: so they hold again after a lost connection.
    `reading` has what the server says of itself, `txproxy.file` is its path.

    sqlite3.OperationalError: the endpoint is not there, it has no such file, or with "local" why
    that cannot be.
    """

    Warning = sqlite3.Warning
    Error = sqlite3.Error
    InterfaceError = sqlite3.InterfaceError
    DatabaseError = sqlite3.DatabaseError
    DataError = sqlite3.DataError
    OperationalError = sqlite3.OperationalError
    IntegrityError = sqlite3.IntegrityError
    InternalError = sqlite3.InternalError
    ProgrammingError = sqlite3.ProgrammingError
    NotSupportedError = sqlite3.NotSupportedError

    link: Link = cast(Link, NoLink())
    """What its cursors use; not of the DB-API."""

    def __init__(
        self,
        database: Any,
        timeout: float = 5.0,
        detect_types: int = 0,
        isolation_level: str | None = "",
        check_same_thread: bool = True,
        factory: Any = None,  # noqa: ARG002  # it has made us
        cached_statements: int = 128,
        uri: bool = False,
        *,
        host: str = HOST,
        port: int = PORT,
        reads: Reads = "auto",
        autocommit: int = LEGACY,
        parameters: Mapping[str, str] = _NONE,
    ) -> None:
        if "link" in self.__dict__:
            self.link.close()
            del self.link
        checked_level(isolation_level)
        checked_autocommit(autocommit)
        self._database = place.name_of(database, is_uri=uri)
        self.reading = reading = Reading(
            self._database, reads, timeout, detect_types, cached_statements
        )
        self._limits: dict[int, int] = {}
        self.row_factory: Any = None
        said = {
            "user": user(),
            "database": self._database,
            "client_encoding": "UTF8",
            "application_name": os.path.basename(sys.argv[0] if sys.argv else ""),  # noqa: PTH119
            "busy_timeout": str(max(_LEAST_TIMEOUT, int(timeout * 1000))),
            **parameters,
        }
        session = Session(address_of(host, port), said)
        session.open(reading.settle)
        engine = Engine(session, reading, detect_types, cached_statements)
        self.link = Link(
            engine,
            is_bound=check_same_thread,
            isolation_level=isolation_level,
            autocommit=autocommit,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} {self._database!r}>"

    # Statements

    def cursor(self, factory: Callable[[Any], Any] = Cursor) -> Any:
        """A cursor; `factory` makes it of this connection."""
        self.link.engine()
        cursor = factory(self)
        kind = type(cursor)
        if kind is not Cursor and not issubclass(kind, Cursor):  # whatever __class__ says
            raise TypeError(f"factory must return a cursor, not {type(cursor).__name__}")
        if self.row_factory is not None:
            cursor.row_factory = self.row_factory
        return cursor

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """A cursor that has run this statement."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:
        """A cursor that has run this statement with each of these."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:
        """A cursor that has run this script."""
        return self.cursor().executescript(sql_script)

    def __call__(self, *sql: str) -> Any:
        """The statement of one text; of no use but to `sqlite3` itself."""
        self.link.engine()
        if len(sql) != 1:
            raise TypeError(f"one statement expected, not {len(sql)}")
        return self.link.statement(sql[0])

    # Transactions

    def commit(self) -> None:
        """COMMIT, if a transaction is open."""
        self.link.commit()

    def rollback(self) -> None:
        """ROLLBACK, if a transaction is open."""
        self.link.rollback()

    def __enter__(self) -> Self:
        self.link.engine()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> Literal[False]:
        if kind is None:
            try:
                self.commit()
            except BaseException:
                self.rollback()
                raise
        else:
            self.rollback()
        return False

    def close(self) -> None:
        """Close; what is not committed is rolled back."""
        self.link.close()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self.link.in_transaction

    @property
    def isolation_level(self) -> str | None:
        """How Python's own transactions begin; None: they do not."""
        return self.link.isolation_level

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        self.link.isolation_level = level

    @property
    def autocommit(self) -> int:
        """LEGACY_TRANSACTION_CONTROL (-1), True or False, in every Python."""
        return self.link.autocommit

    @autocommit.setter
    def autocommit(self, value: int) -> None:
        self.link.autocommit = value

    @property
    def total_changes(self) -> int:
        """The rows that its statements have changed; what triggers do is not in it."""
        return self.link.engine().changes.total

    @property
    def text_factory(self) -> Callable[[bytes], Any]:
        """What makes a text of its UTF-8."""
        return self.link.engine().text_factory

    @text_factory.setter
    def text_factory(self, factory: Callable[[bytes], Any]) -> None:
        self.link.engine().text_factory = factory

    def interrupt(self) -> None:
        """Interrupt the statement that runs; from any thread."""
        self.link.running().interrupt()

    # What Python does while SQLite runs: in the readers here

    def create_function(
        self, name: str, narg: int, func: Callable[..., Any] | None, *, deterministic: bool = False
    ) -> None:
        """A function for reads here; on the server it is the setting `functions`."""
        self._register(
            ("function", str(name).lower(), narg),
            lambda reader: reader.create_function(name, narg, func, deterministic=deterministic),
        )
        self.link.engine().functions.add(name.lower())

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Any) -> None:
        """An aggregate for reads here; on the server it is the setting `functions`."""
        self._register(
            ("function", str(name).lower(), n_arg),
            lambda reader: reader.create_aggregate(name, n_arg, aggregate_class),
        )
        self.link.engine().functions.add(name.lower())

    def create_window_function(self, name: str, num_params: int, aggregate_class: Any, /) -> None:
        """A window function for reads here; on the server it is the setting `functions`."""
        self._register(
            ("function", str(name).lower(), num_params),
            lambda reader: reader.create_window_function(name, num_params, aggregate_class),
        )
        self.link.engine().functions.add(name.lower())

    def create_collation(self, name: str, callback: Any, /) -> None:
        """A collation for reads here; None takes it away."""
        self._register(
            ("collation", str(name).lower()), lambda reader: reader.create_collation(name, callback)
        )

    def set_authorizer(self, authorizer_callback: Any) -> None:
        """For reads here. sqlite3.NotSupportedError: the server reads."""
        self.link.engine().reading.local("set_authorizer")
        self._register(("authorizer",), lambda reader: reader.set_authorizer(authorizer_callback))

    def set_progress_handler(self, progress_handler: Any, n: int) -> None:
        """For reads here. sqlite3.NotSupportedError: the server reads."""
        self.link.engine().reading.local("set_progress_handler")
        self._register(
            ("progress",), lambda reader: reader.set_progress_handler(progress_handler, n)
        )

    def set_trace_callback(self, trace_callback: Any) -> None:
        """For reads here, and for what goes to the server, as it was written."""
        self._register(("trace",), lambda reader: reader.set_trace_callback(trace_callback))
        self.link.engine().trace = None if trace_callback is None else _quiet(trace_callback)

    def _register(self, what: tuple[object, ...], setting: Setting) -> None:
        """Apply it to the readers, or to a connection made for the purpose: it may be wrong."""
        reading = self.link.engine().reading
        with self.link.lock:
            if reading.readers is None:
                with closing(sqlite3.connect(":memory:")) as trial:
                    setting(trial)
            else:
                reading.readers.open(reading.settings.values())
                for reader in reading.readers.connections():
                    setting(reader)
            reading.settings[what] = setting

    def enable_load_extension(self, enable: bool, /) -> None:
        """sqlite3.NotSupportedError: extensions are the configuration's."""
        self.link.engine()
        if enable:
            raise sqlite3.NotSupportedError(
                "extensions are the endpoint's: name them in the file's setting `extensions`"
            )

    def load_extension(self, path: str, /, *, entrypoint: str | None = None) -> None:  # noqa: ARG002
        """sqlite3.NotSupportedError: extensions are the configuration's."""
        self.enable_load_extension(True)

    # The file itself

    def _fresh(self, what: str) -> sqlite3.Connection:
        reading = self.link.engine().reading
        return reading.local(what).fresh(reading.settings.values())

    def blobopen(
        self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main"
    ) -> Any:
        """A blob, to be read here. sqlite3.NotSupportedError: it is to be written."""
        reader = self._fresh("blobopen")
        if not readonly:
            raise sqlite3.NotSupportedError(
                "blobopen works with readonly=True; UPDATE writes blobs"
            )
        return reader.blobopen(table, column, row, readonly=True, name=name)

    def backup(
        self,
        target: sqlite3.Connection,
        *,
        pages: int = -1,
        progress: Callable[[int, int, int], object] | None = None,
        name: str = "main",
        sleep: float = 0.250,
    ) -> None:
        """Copy what is committed into a connection of `sqlite3`'s."""
        if not isinstance(target, sqlite3.Connection):
            raise TypeError(
                f"backup() argument 1 must be sqlite3.Connection, not {type(target).__name__}"
            )
        reader = self._fresh("backup")
        try:
            reader.backup(target, pages=pages, progress=progress, name=name, sleep=sleep)
        finally:
            reader.close()

    def iterdump(self) -> Generator[str, None, None]:
        """The database as SQL."""
        from sqlite3 import dump  # noqa: PLC0415

        self.link.engine()
        found: Generator[str, None, None] = dump._iterdump(self)  # type: ignore[attr-defined]  # noqa: SLF001
        return found

    def serialize(self, *, name: str = "main") -> bytes:
        """What is committed, as the bytes of a file."""
        reader = self._fresh("serialize")
        try:
            return reader.serialize(name=name)
        finally:
            reader.close()

    def deserialize(self, data: Any, /, *, name: str = "main") -> None:  # noqa: ARG002
        """sqlite3.NotSupportedError: others use the file."""
        self.link.engine()
        raise sqlite3.NotSupportedError("deserialize would replace a file that others use")

    # Limits

    def getlimit(self, category: int, /) -> int:
        """The smaller of SQLite's limit here and on the server."""
        self.link.engine()
        if category not in self._limits:
            self._limits[category] = limits.smaller(category, limits.here(category))
        return self._limits[category]

    def setlimit(self, category: int, limit: int, /) -> int:
        """For reads here; the length of statements, and variables, everywhere. What it was."""
        before = self.getlimit(category)
        if limit >= 0:
            self._limits[category] = limits.smaller(category, limit)
        if category == sqlite3.SQLITE_LIMIT_SQL_LENGTH:
            self.link.limit(self._limits[category], self.link.most_variables)
        elif category == sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER:
            self.link.limit(self.link.longest, self._limits[category])
        else:
            self._register(("limit", category), lambda reader: reader.setlimit(category, limit))
        return before


def _quiet(callback: Callable[[str], object]) -> Callable[[str], None]:
    """As SQLite calls it: what it raises is ignored."""

    def call(sql: str) -> None:
        with suppress(Exception):
            callback(sql)

    return call
