"""SQLite files and their clients in the console's tables: see docs/console.md."""

from collections.abc import Callable
from typing import Final

from txproxy.core.rows import Column, columns
from txproxy.core.sqlite import Endpoint, FileClient, FileReport, SessionReport
from txproxy.core.view import Row, View, milliseconds, moment, split_seconds

COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "SQLITE": columns(
        "database:text path:text journal_mode:text clients in_transaction queue longest_wait_ms"
        " wait_max_ms readers oldest_reader_ms wal_bytes checkpoints checkpoint_age_ms statements"
        " writes commits batches batch_max busy_foreign reaped rolled_back moved"
    )
}

# Rows of tables that others share.


def clients(view: View) -> list[Row]:
    """SHOW CLIENTS."""
    endpoint = view.server.sqlite
    return [_client(each, endpoint.session(each), view) for each in endpoint.clients.values()]


def _client(client: FileClient, session: SessionReport, view: View) -> Row:
    wait, wait_us = split_seconds(session.wait)
    sleeps = session.state == "idle in transaction"
    return (
        "C",
        client.user,
        client.database,
        "none",
        _state(session),
        "unix",
        0,
        "",
        0,
        moment(client.connected_at),
        moment(view.time - session.idle),
        wait,
        wait_us,
        0,
        f"C{client.id}",
        "",
        client.peer_pid,
        "",
        client.application_name,
        0,
        client.id,
        session.tx,
        milliseconds(session.idle) if sleeps else None,
        "",
    )


def _state(session: SessionReport) -> str:
    """PgBouncer's word: who is in a transaction is active."""
    if session.state == "waiting":
        return "waiting"
    return "idle" if session.state == "idle" and session.tx == "none" else "active"


def pools(view: View) -> list[Row]:
    """SHOW POOLS: a row for each file and user, who share its one writer."""
    endpoint = view.server.sqlite
    found: dict[tuple[str, str], list[SessionReport]] = {}
    for client in endpoint.clients.values():
        found.setdefault((client.database, client.user), []).append(endpoint.session(client))
    return [_pool(*names, sessions) for names, sessions in sorted(found.items())]


def _pool(database: str, user: str, sessions: list[SessionReport]) -> Row:
    waiting = [each.wait for each in sessions if each.state == "waiting"]
    return (
        database,
        user,
        len(sessions) - len(waiting),
        len(waiting),
        *(0,) * 9,
        *split_seconds(max(waiting, default=0.0)),
        "transaction",
        None,
    )


def databases(view: View) -> list[Row]:
    """SHOW DATABASES."""
    endpoint, config = view.server.sqlite, view.server.config
    rows: list[Row] = []
    for name in endpoint.databases(config):
        mine = [each for each in endpoint.clients.values() if each.database == name]
        path = config.sqlite[name].path if name in config.sqlite else mine[0].path
        limit = config.max_db_client_connections
        disabled = int(name in endpoint.disabled)
        rows.append((name, None, None, path, *(None,) * 7, 0, 0, limit, len(mine), 0, disabled))
    return rows


def transactions(view: View) -> list[Row]:
    """SHOW TRANSACTIONS, the longest idle first."""
    endpoint = view.server.sqlite
    found = [(endpoint.session(client), client) for client in endpoint.clients.values()]
    busy = [each for each in found if each[0].tx != "none" or each[0].state != "idle"]
    busy.sort(key=_idle, reverse=True)
    return [_transaction(client, session, view) for session, client in busy]


def _idle(each: tuple[SessionReport, FileClient]) -> float:
    session = each[0]
    return session.idle if session.state == "idle in transaction" else -1.0


def _transaction(client: FileClient, session: SessionReport, view: View) -> Row:
    sleeps = session.state == "idle in transaction"
    return (
        client.id,
        client.database,
        client.user,
        client.address,
        client.application_name,
        f"{session.state} (aborted)" if session.tx == "failed" and sleeps else session.state,
        milliseconds(session.tx_age),
        milliseconds(session.idle) if sleeps else 0,
        client.peer_pid,
        session.statement if view.texts else None,
        "" if view.texts else None,
        (session.tx if session.tx in {"reading", "writing"} else "") if view.texts else None,
        0,
        0,
        view.server.process(client) if view.texts else None,
    )


# SHOW SQLITE.


def _files(view: View) -> list[Row]:
    endpoint = view.server.sqlite
    return [
        _file(report, endpoint) for report in sorted(endpoint.files.values(), key=endpoint.name)
    ]


def _file(report: FileReport, endpoint: Endpoint) -> Row:
    sessions = [
        endpoint.session(each) for each in endpoint.clients.values() if each.path == report.path
    ]
    return (
        endpoint.name(report),
        report.path,
        report.journal_mode,
        len(sessions),
        sum(each.tx != "none" for each in sessions),
        report.queue,
        milliseconds(report.longest_wait_now),
        milliseconds(report.longest_wait),
        report.readers,
        milliseconds(report.oldest_reader),
        report.wal_bytes,
        report.checkpoints,
        milliseconds(report.last_checkpoint) if report.last_checkpoint >= 0 else None,
        report.statements,
        report.writes,
        report.commits,
        report.batches,
        report.batch_max,
        report.busy_foreign,
        report.reaped,
        report.rolled_back,
        int(report.moved),
    )


ROWS: Final[dict[str, Callable[[View], list[Row]]]] = {"SQLITE": _files}
