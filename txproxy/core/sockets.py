"""SHOW CLIENTS, SERVERS, SOCKETS, TRANSACTIONS, REAPED: a row for each client or connection.

Columns are PgBouncer's in PgBouncer's order, ours after them: see docs/console.md.

Source: PgBouncer 1.25, admin.c.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from txproxy.core import endings, pressure, release, sqlite_tables
from txproxy.core.endings import sleeps
from txproxy.core.rows import Column, columns
from txproxy.core.transaction import NONE, OPEN, STATES
from txproxy.core.view import (
    Row,
    View,
    all_pools,
    is_console,
    milliseconds,
    moment,
    server_state,
    servers,
    split_seconds,
    tags_text,
)
from txproxy.wire.codes import IN_FAILED

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.ports import Endpoint
    from txproxy.core.session import Session

_SOCKET: Final = (
    "type:text user:text database:text replication:text state:text addr:text port local_addr:text"
    " local_port connect_time:text request_time:text wait wait_us close_needed ptr:text link:text"
    " remote_pid tls:text application_name:text prepared_statements id"
)

COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "CLIENTS": columns(_SOCKET + " transaction:text idle_in_transaction_ms pin:text"),
    "SERVERS": columns(_SOCKET + " pin:text"),
    "SOCKETS": columns(
        _SOCKET + " recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail"
    ),
    "TRANSACTIONS": columns(
        "id database:text user:text addr:text application_name:text state:text transaction_ms"
        " idle_ms remote_pid statement:text tags:text held_by:text blocks xmin_age process:text"
    ),
    "REAPED": columns(
        "time:text why:text database:text user:text addr:text application_name:text transaction_ms"
        " idle_ms statement:text tags:text"
    ),
}


# Clients and servers.


def _clients(view: View) -> list[Row]:
    found = [
        (*_client(session, _client_state(session), view), *_ours(session, view.server.now))
        for pool in all_pools(view.server)
        for session in pool.sessions
    ]
    return found + sqlite_tables.clients(view)


def _client_state(session: "Session") -> str:
    if session.queued:
        return "waiting"
    return "active" if session.backend is not None else "idle"


def _ours(session: "Session", now: float) -> Row:
    idle = now - session.active_at if sleeps(session) else None
    return (
        STATES[session.state].lower(),
        None if idle is None else milliseconds(idle),
        session.pin,
    )


def _client(session: "Session", state: str, view: View) -> Row:
    now = view.server.now
    backend = session.backend
    wait, wait_us = split_seconds(now - session.queued_at if session.queued else 0.0)
    linked = backend is not None and not is_console(session.pool)
    return (
        "C",
        session.user,
        session.pool.settings.database,
        "none",
        state,
        *_ends(session.client.endpoint),
        moment(session.connected_at),
        moment(view.time - (now - session.active_at)),
        wait,
        wait_us,
        0,
        f"C{session.id}",
        f"S{backend.id}" if backend is not None and linked else "",
        _peer_pid(session.address),
        session.client.endpoint.tls,
        session.told.get("application_name", ""),
        len(session.names.by_name),
        session.id,
    )


def _peer_pid(address: str) -> int:
    pid = address.removeprefix("unix pid=")
    return int(pid) if pid.isdecimal() else 0


def _ends(endpoint: "Endpoint") -> tuple[str, int, str, int]:
    return endpoint.addr, endpoint.port, endpoint.local_addr, endpoint.local_port


def _servers(view: View) -> list[Row]:
    return [
        (
            *_server(backend, server_state(backend, idle), view),
            backend.session.pin if backend.session is not None else "",
        )
        for pool in all_pools(view.server)
        for idle in (set(pool.idle),)
        for backend in servers(pool)
    ]


def _server(backend: "Backend", state: str, view: View) -> Row:
    session = backend.session
    settings = backend.pool.settings
    used_at = session.active_at if session is not None else backend.idle_since
    return (
        "S",
        settings.server_user,
        settings.database,
        "none",
        state,
        *_ends(backend.port.endpoint),
        moment(backend.connected_at),
        moment(view.time - (view.server.now - used_at)),
        0,
        0,
        1 if backend.retiring else 0,
        f"S{backend.id}",
        f"C{session.id}" if session is not None else "",
        backend.port.pid,
        backend.port.endpoint.tls,
        session.told.get("application_name", "") if session is not None else "",
        len(backend.prepared.by_name),
        backend.id,
    )


def _sockets(view: View) -> list[Row]:
    found: list[Row] = []
    for pool in all_pools(view.server):
        idle = set(pool.idle)
        for session in pool.sessions:
            state = "cl_waiting" if session.queued else "cl_active"
            held = (0, 0, session.stream, 0, 0, session.tail.size, 0)
            found.append((*_client(session, state, view), *held))
        for backend in servers(pool):
            state = "sv_" + server_state(backend, idle)
            held = (0, 0, backend.stream, 0, 0, backend.tail.size, 0)
            found.append((*_server(backend, state, view), *held))
    return found


# Transactions.


def _transactions(view: View) -> list[Row]:
    """Those that hold a server connection, the longest idle first."""
    sessions = [
        session
        for pool in all_pools(view.server)
        for session in pool.sessions
        if _in_transaction(session)
    ]
    sessions.sort(key=_active_at)
    return [_transaction(session, view) for session in sessions] + sqlite_tables.transactions(view)


def _active_at(session: "Session") -> float:
    return session.active_at


def _in_transaction(session: "Session") -> bool:
    backend = session.backend
    if backend is None or is_console(session.pool):
        return False
    return session.state == OPEN or bool(backend.fifo.exchanges)


def _transaction(session: "Session", view: View) -> Row:
    now = view.server.now
    backend = session.backend
    assert backend is not None
    sleeping = sleeps(session)
    # Outside of a transaction block, it began with the statement.
    begun_at = session.begun_at if session.state != NONE else session.active_at
    said = endings.about(session)
    return (
        session.id,
        session.pool.settings.database,
        session.user,
        session.address,
        session.told.get("application_name", ""),
        _transaction_state(sleeping, backend.fifo.status),
        milliseconds(now - begun_at),
        milliseconds(now - session.active_at) if sleeping else 0,
        backend.port.pid,
        str(said["statement"]) if view.texts else None,
        tags_text(said) if view.texts else None,
        release.why_held(session) if view.texts else None,
        pressure.found(session).blocks,
        pressure.found(session).xmin_age,
        view.server.process(session) if view.texts else None,
    )


def _transaction_state(sleeping: bool, status: int) -> str:
    """As pg_stat_activity says it."""
    if not sleeping:
        return "active"
    return "idle in transaction (aborted)" if status == IN_FAILED else "idle in transaction"


def _reaped(view: View) -> list[Row]:
    rows = list(view.reaped.rows)
    return rows if view.texts else [(*row[:-2], None, None) for row in rows]


ROWS: Final[dict[str, Callable[[View], list[Row]]]] = {
    "CLIENTS": _clients,
    "SERVERS": _servers,
    "SOCKETS": _sockets,
    "TRANSACTIONS": _transactions,
    "REAPED": _reaped,
}
