"""The SQLite endpoint as it is seen from the proxy.

Clients of SQLite files speak with another process (see net/sqlite.py). What is known here is whom
it was given, and what it said of them and of the files in its last report, which is a second old
at most.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from txproxy.core.stats import Stats

if TYPE_CHECKING:
    from txproxy.config import Config

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


_NOTHING: Final = SessionReport()


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
    found: R = kind(**{name: said[name] for name in names & said.keys() if said[name] is not None})
    return found


class Endpoint:
    """All that is known of it.

    clients    by id, since each was handed over until the process says that it has left
    files      by path; those that the process has open
    sessions   by id
    names      of the files that clients were given, by path
    disabled   names that take no new clients
    running    whether the process is there
    starts     how often it was started
    newly_reaped   in the last report: clients, and what was said of them before and in it
    """

    def __init__(self) -> None:
        self.clients: dict[int, FileClient] = {}
        self.files: dict[str, FileReport] = {}
        self.sessions: dict[int, SessionReport] = {}
        self.names: dict[str, str] = {}
        self.disabled: set[str] = set()
        self.running = False
        self.starts = 0
        self.newly_reaped: list[tuple[FileClient, SessionReport, SessionReport]] = []
        self._totals: dict[str, Counter[str]] = {}
        self._counted: dict[str, FileReport] = {}

    def admitted(self, client: FileClient) -> None:
        """A client was given to the process."""
        self.clients[client.id] = client
        self.names[client.path] = client.database

    def reported(self, files: Iterable[FileReport], sessions: Iterable[SessionReport]) -> None:
        """A report came."""
        before = self.sessions
        self.files = {each.path: each for each in files}
        self.sessions = {each.id: each for each in sessions}
        for path, report in self.files.items():
            self._count(self.name(report), report, self._counted.get(path) or FileReport())
            self._counted[path] = report
        self.newly_reaped = [
            (self.clients[number], before.get(number, _NOTHING), session)
            for number, session in self.sessions.items()
            if number in self.clients and session.reaped > before.get(number, _NOTHING).reaped
        ]

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

    def clients_of(self, database: str) -> int:
        """How many clients this database has."""
        return sum(client.database == database for client in self.clients.values())

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


def about_reaped(
    client: FileClient, before: SessionReport, now: SessionReport, limit: float
) -> dict[str, object]:
    """A transaction that was ended while its client slept, for the log. What it was is known from
    the reports before and after, so the times may be a second off.

    `limit` is idle_transaction_timeout, in seconds: who was ended sooner kept others waiting.
    """
    idle = max(before.idle, now.idle)
    is_late = 0 < limit <= idle
    return {
        "why": "idle_transaction_timeout" if is_late else "idle_writer_timeout",
        "idle_s": idle,
        "transaction_s": max(before.tx_age, idle),
        "database": client.database,
        "user": client.user,
        "client": client.address,
        "application_name": client.application_name,
        "statement": before.statement or now.statement,
    }
