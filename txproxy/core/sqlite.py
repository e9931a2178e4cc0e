"""The SQLite endpoint as it is seen from the proxy, and its rows in the console's tables.

Clients of SQLite files speak with another process (see net/sqlite.py). What is known here is whom
it was given, and what it said of them and of the files in its last report, which is a second old
at most.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from txproxy.core.rows import Column, columns
from txproxy.core.stats import Stats
from txproxy.core.view import Row, View, milliseconds, moment, split_seconds

if TYPE_CHECKING:
    from txproxy.config import Config

COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "SQLITE": columns(
        "database:text path:text journal_mode:text clients in_transaction queue longest_wait_ms"
        " wait_max_ms readers oldest_reader_ms wal_bytes checkpoints checkpoint_age_ms statements"
        " writes commits batches batch_max busy_foreign reaped rolled_back moved"
    )
}

COUNTERS: Final = (
    "statements",
    "writes",
    "commits",
    "batches",
    "checkpoints",
    "busy_foreign",
    "reaped",
    "rolled_back",
)
"""What a FileReport counts from the start of the process on."""


@dataclass(frozen=True)
class FileReport:
    """What the process says of one file. Times are seconds, -1 for never.

    longest_wait, longest_wait_now   for the turn to write: of all who waited, of those who wait
    oldest_reader    how long a snapshot of ours has been held
    last_checkpoint  how long ago it was
    busy_foreign     how often a process that is none of ours held the file's lock
    moved            the file was replaced by another: writes are refused
    """

    path: str = ""
    journal_mode: str = ""
    queue: int = 0
    longest_wait: float = 0.0
    longest_wait_now: float = 0.0
    wal_bytes: int = 0
    oldest_reader: float = 0.0
    readers: int = 0
    last_checkpoint: float = -1.0
    checkpoints: int = 0
    commits: int = 0
    batches: int = 0
    batch_max: int = 0
    writes: int = 0
    statements: int = 0
    busy_foreign: int = 0
    moved: bool = False
    reaped: int = 0
    rolled_back: int = 0


@dataclass(frozen=True)
class SessionReport:
    """What it says of one client: `state` as pg_stat_activity has it, or "waiting" for the turn to
    write; `tx` none, begun, reading, writing or failed. Times are seconds.
    """

    id: int = 0
    database: str = ""
    state: str = "idle"
    tx: str = "none"
    tx_age: float = 0.0
    idle: float = 0.0
    wait: float = 0.0
    statement: str = ""
    statements: int = 0
    reaped: int = 0


@dataclass
class FileClient:
    """A client that the process was given. `database` as in the configuration, or the file's name;
    `peer_pid` its process (0: not known), `connected_at` seconds since 1970, `pid` of its cancel
    key.
    """

    id: int
    database: str
    path: str
    user: str
    application_name: str
    address: str
    peer_pid: int
    connected_at: float
    pid: int = 0


R = TypeVar("R", FileReport, SessionReport)


def read(kind: type[R], said: Mapping[str, Any]) -> R:
    """A report of what was said; what was not, or is null, is as if nothing had happened."""
    names = {each.name for each in fields(kind)}
    return kind(**{name: said[name] for name in names & said.keys() if said[name] is not None})


class Endpoint:
    """All that is known of it.

    clients    by id, since each was handed over until the process says that it has left
    files      by path; those that the process has open
    sessions   by id
    names      of the files that clients were given, by path
    disabled   names that take no new clients
    running    whether the process is there
    starts     how often it was started
    """

    def __init__(self) -> None:
        self.clients: dict[int, FileClient] = {}
        self.files: dict[str, FileReport] = {}
        self.sessions: dict[int, SessionReport] = {}
        self.names: dict[str, str] = {}
        self.disabled: set[str] = set()
        self.running = False
        self.starts = 0
        self._totals: dict[str, Counter[str]] = {}
        self._counted: dict[str, FileReport] = {}

    def admitted(self, client: FileClient) -> None:
        """A client was given to the process."""
        self.clients[client.id] = client
        self.names[client.path] = client.database

    def reported(self, files: Iterable[FileReport], sessions: Iterable[SessionReport]) -> None:
        """A report came."""
        self.files = {each.path: each for each in files}
        self.sessions = {each.id: each for each in sessions}
        for path, report in self.files.items():
            self._count(self.name(report), report, self._counted.get(path) or FileReport())
            self._counted[path] = report

    def _count(self, database: str, report: FileReport, before: FileReport) -> None:
        """Counters begin anew with the file or the process; their totals do not."""
        totals = self._totals.setdefault(database, Counter())
        for name in COUNTERS:
            value: int = getattr(report, name)
            last: int = getattr(before, name)
            totals[name] += value - last if value >= last else value

    def left(self, number: int) -> FileClient | None:
        """A client is no longer there."""
        self.sessions.pop(number, None)
        return self.clients.pop(number, None)

    def lost(self) -> list[FileClient]:
        """The process has ended, and all connections with it: returns whose."""
        gone = list(self.clients.values())
        self.clients.clear()
        self.files.clear()
        self.sessions.clear()
        self._counted.clear()
        self.running = False
        return gone

    def name(self, report: FileReport) -> str:
        """What clients call a file."""
        return self.names.get(report.path, report.path)

    def session(self, client: FileClient) -> SessionReport:
        """What is known of a client; one that has just come is idle."""
        return self.sessions.get(client.id) or SessionReport(id=client.id)

    def totals(self) -> dict[str, Counter[str]]:
        """COUNTERS since the proxy's start, by database."""
        return self._totals

    def stats_of(self, database: str) -> Stats:
        """The same as far as SHOW STATS has a word for it."""
        stats = Stats()
        totals = self._totals.get(database)
        if totals is not None:
            stats.queries = totals["statements"]
            stats.xacts = totals["commits"] + totals["rolled_back"]
        return stats

    def databases(self, config: "Config") -> list[str]:
        """The databases: those that are configured and those in use."""
        used = {client.database for client in self.clients.values()}
        return sorted((used | set(config.sqlite)) - {"*"})


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
        disabled = int(name in endpoint.disabled)
        rows.append((name, None, None, path, *(None,) * 7, 0, 0, 0, len(mine), 0, disabled))
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


ROWS: Final = {"SQLITE": _files}
