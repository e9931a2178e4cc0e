"""One call, run on a connection: rows, tag, or what went wrong."""

from collections.abc import Iterator
from typing import Final

import apsw

from txproxy.backends.sqlite import statements
from txproxy.backends.sqlite.calls import DONE, MORE, SUSPENDED, Call, Portal
from txproxy.backends.sqlite.errors import SqliteError, fields
from txproxy.backends.sqlite.replies import Row
from txproxy.backends.sqlite.statements import Kind
from txproxy.wire import encode

CEILING: Final = 1 << 18
"""Bytes of rows after which a call pauses until its client has them."""

NO_CEILING: Final = 1 << 62

_PORTAL_SUSPENDED: Final = b"s\0\0\0\4"


def run(connection: apsw.Connection, call: Call, ceiling: int = NO_CEILING) -> None:
    """Run it, or go on with it. Whatever it raises is its failure: a client's statement's."""
    try:
        if call.portal.statement.columns:
            _rows(connection, call, ceiling)
        else:
            portal = call.portal
            if not call.is_void:
                connection.execute(portal.statement.text, portal.parameters)
            call.outcome = DONE
            portal.is_done = True
            call.reply.append(_complete(connection, call, 0))
    except BaseException as error:  # noqa: BLE001 - also what functions of users raise
        call.portal.rows = None
        call.failure = fields(error)


def _rows(connection: apsw.Connection, call: Call, ceiling: int) -> None:
    portal = call.portal
    encode_row = portal.encode
    assert encode_row is not None
    if portal.rows is None:
        portal.rows = _open(connection, portal)
    width = len(portal.statement.columns)
    delivered = call.delivered
    size = 0
    for row in portal.rows:
        if len(row) != width:
            raise SqliteError("database schema has changed", apsw.SQLITE_SCHEMA)
        data = encode_row(row)
        call.reply.append(data)
        delivered += 1
        size += len(data)
        if delivered == call.limit:
            call.outcome = SUSPENDED
            call.reply.append(_PORTAL_SUSPENDED)
            return
        if size > ceiling:
            call.outcome = MORE
            call.delivered = delivered
            return
    portal.rows = None
    portal.is_done = True
    call.outcome = DONE
    call.reply.append(_complete(connection, call, delivered))


def _open(connection: apsw.Connection, portal: Portal) -> Iterator[Row]:
    statement = portal.statement
    if statement.verb == statements.EXPLAIN:
        # SQLite does not run the program, so does not see that the schema is another one by now:
        # it would follow pointers to tables that are gone. So none is kept, and none stays open.
        program = connection.execute(statement.text, portal.parameters, can_cache=False)
        return iter(program.fetchall())
    return connection.execute(statement.text, portal.parameters)


def _complete(connection: apsw.Connection, call: Call, rows: int) -> bytes:
    statement = call.portal.statement
    if statement.kind is Kind.WRITE:
        changes = connection.changes()
        tag = statements.tag(statement, changes, connection.last_insert_rowid(), rows)
    else:
        tag = statements.tag(statement, 0, 0, rows)
    return encode.command_complete(tag.encode())


class Cursors:
    """The portals whose cursors are open on one connection."""

    def __init__(self) -> None:
        self._portals: set[Portal] = set()

    def note(self, call: Call) -> None:
        """It has been run."""
        if call.portal.rows is None:
            self._portals.discard(call.portal)
        else:
            self._portals.add(call.portal)

    def close(self) -> None:
        """All of them."""
        for portal in self._portals:
            portal.close()
        self._portals.clear()
