"""The page that the metrics endpoint shows a person: who waits, and whose transactions sleep.

Neither statements nor addresses: whoever reads it has not said who they are. The console has more.
"""

from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING, Final

from txproxy import __version__
from txproxy.core.endings import sleeps
from txproxy.core.pool import Pool
from txproxy.core.session import Session
from txproxy.core.sqlite import FileReport
from txproxy.net.collector import Census, census, pools

if TYPE_CHECKING:
    from txproxy.net.server import Server

_MOST_POOLS: Final = 100
_MOST_TRANSACTIONS: Final = 20

_HEAD: Final = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>txproxy</title>
<style>
body { font-family: system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }
table { border-collapse: collapse }
th, td { border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
</style>
"""

_FOOT: Final = """
<p><a href="/metrics">/metrics</a> <a href="/healthz">/healthz</a> <a href="/readyz">/readyz</a></p>
</html>
"""

_POOLS: Final = (
    "database",
    "user",
    "clients active",
    "idle in transaction",
    "waiting",
    "idle",
    "backends",
    "of",
    "longest wait, s",
    "state",
)
_FILES: Final = (
    "database",
    "waiting to write",
    "longest wait, s",
    "readers",
    "oldest, s",
    "WAL, bytes",
    "commits",
    "in batches",
    "state",
)
_TRANSACTIONS: Final = ("database", "user", "client", "application_name", "idle, s", "since, s")


def page(server: "Server") -> str:
    """HTML, by itself: no scripts, and nothing from elsewhere."""
    found = sorted(
        ((census(pool, server.now), pool) for pool in pools(server)),
        key=lambda each: (-each[0].longest_wait, -each[0].longest_sleep, each[1].name),
    )
    sleepers = sorted(_sleepers(server), key=lambda session: session.active_at)
    state = "draining" if server.draining else f"listening on {', '.join(server.addresses)}"
    return "\n".join(
        (
            _HEAD,
            f"<h1>txproxy {escape(__version__)}</h1>",
            f"<p>{escape(state)}; {server.client_count} client connections</p>",
            "<h2>Pools</h2>",
            *_table(_POOLS, (_pool(counts, pool) for counts, pool in found[:_MOST_POOLS])),
            _more(len(found) - _MOST_POOLS),
            *_files(server),
            "<h2>Asleep in a transaction</h2>",
            *_table(
                _TRANSACTIONS,
                (_transaction(session, server.now) for session in sleepers[:_MOST_TRANSACTIONS]),
            ),
            _more(len(sleepers) - _MOST_TRANSACTIONS),
            _FOOT,
        )
    )


def _files(server: "Server") -> Iterator[str]:
    if server.sqlite.files:
        yield "<h2>SQLite files</h2>"
        names = server.sqlite.names
        files = sorted(server.sqlite.files.items())
        yield from _table(_FILES, (_file(names.get(path, path), report) for path, report in files))


def _file(database: str, report: FileReport) -> Iterable[object]:
    return (
        database,
        report.queue,
        round(report.longest_wait_now, 1),
        report.readers,
        round(report.oldest_reader, 1),
        report.wal_bytes,
        report.commits,
        report.batches,
        "replaced by another file" if report.moved else "",
    )


def _sleepers(server: "Server") -> Iterator[Session]:
    for pool in pools(server):
        for backend in pool.backends:
            if backend.session is not None and sleeps(backend.session):
                yield backend.session


def _pool(counts: Census, pool: Pool) -> Iterable[object]:
    return (
        pool.settings.database,
        pool.settings.user,
        counts.active,
        counts.idle_in_transaction,
        counts.waiting,
        counts.idle,
        len(pool.backends) + pool.connecting,
        pool.settings.pool_size,
        round(counts.longest_wait, 1),
        "paused" if pool.paused else "no server" if pool.failing else "",
    )


def _transaction(session: Session, now: float) -> Iterable[object]:
    return (
        session.settings.database,
        session.user,
        session.id,
        session.told.get("application_name", ""),
        round(now - session.active_at, 1),
        round(now - session.begun_at, 1),
    )


def _table(names: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    yield "<table>"
    yield "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(map(_cell, row)) + "</tr>"
    yield "</table>"


def _cell(value: object) -> str:
    if isinstance(value, (int, float)):
        return f'<td class="number">{value}</td>'
    return f"<td>{escape(str(value))}</td>"


def _more(number: int) -> str:
    return f"<p>and {number} more</p>" if number > 0 else ""
