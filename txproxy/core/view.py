"""What the console looks at: the proxy at one moment, and how moments and states are written."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from txproxy.config import ANY_DATABASE, CONSOLE_DATABASES, Config
from txproxy.core.rows import Value
from txproxy.core.totals import Averages

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.limits import Group
    from txproxy.core.offenders import Offenders
    from txproxy.core.pool import Pool
    from txproxy.core.session import Session
    from txproxy.core.sqlite import Endpoint, FileClient
    from txproxy.core.stats import Stats

Row = tuple[Value, ...]

REAPED_LIMIT: Final = 300


class ServerView(Protocol):
    """What the tables need to see of the proxy."""

    config: Config
    now: float
    pools: "dict[tuple[str, str], Pool]"
    orphans: "set[Pool]"
    databases: "dict[str, Group]"
    users: "dict[str, Group]"
    offenders: "Offenders"
    sqlite: "Endpoint"

    def stats_of(self, database: str) -> "Stats":
        """The counters of a database since the start."""

    def process(self, client: "Session | FileClient") -> str:
        """Which process it is, as far as it is known; "" if it is not."""


class Reaped:
    """The last transactions that were rolled back while their clients slept, newest last."""

    def __init__(self) -> None:
        self.rows: deque[Row] = deque(maxlen=REAPED_LIMIT)

    def remember(self, time: float, fields: Mapping[str, object]) -> None:
        """What the log was told of one (see endings.reap), at `time`: seconds since 1970."""
        self.rows.append(
            (
                moment(time),
                str(fields["why"]),
                str(fields["database"]),
                str(fields["user"]),
                str(fields["client"]),
                str(fields["application_name"]),
                milliseconds(fields["transaction_s"]),
                milliseconds(fields["idle_s"]),
                str(fields["statement"]),
                tags_text(fields),
            )
        )


@dataclass
class View:
    """The proxy at one moment. `time`: seconds since 1970. `resident`: bytes of memory. `logins`:
    clients that have not said who they are, or not proved it. `paused`: "", PAUSE or SUSPEND.
    `texts`: whether statements may be shown.
    """

    server: ServerView
    time: float
    resident: int
    logins: int
    paused: str
    version: str
    reaped: Reaped
    averages: Averages
    texts: bool


def database_names(server: ServerView) -> list[str]:
    """Databases that are configured, or in use by the name that stands for any."""
    return sorted((set(server.databases) | set(server.config.databases)) - {ANY_DATABASE})


def all_pools(server: ServerView) -> "list[Pool]":
    """The pools, those whose database is no longer configured included."""
    return [*server.pools.values(), *server.orphans]


def is_console(pool: "Pool") -> bool:
    """Whether its backends are the console's own: no connections to a server."""
    return pool.settings.database in CONSOLE_DATABASES


def servers(pool: "Pool") -> "Iterable[Backend]":
    """Its server connections: the console has none."""
    return () if is_console(pool) else pool.connections


def server_state(backend: "Backend", idle: "set[Backend]") -> str:
    """PgBouncer's word for it; `idle` are the pool's. Tested is what is not clean yet. Listening,
    which is ours, has no client.
    """
    if backend.listener is not None:
        return "listening"
    if backend.session is not None:
        return "active"
    if backend.cancels:
        return "being_canceled"
    return "idle" if backend in idle else "tested"


# Values.


def moment(time: float) -> str:
    """Seconds since 1970 as PgBouncer writes them; "" for 0."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if time else ""


def tags_text(fields: Mapping[str, object]) -> str:
    """The tags of sqlcommenter, if `fields` have any, as one text: key='value',key='value'."""
    tags = fields.get("tags")
    return (
        ",".join(f"{key}='{value}'" for key, value in tags.items())
        if isinstance(tags, dict)
        else ""
    )


def split_seconds(seconds: float) -> tuple[int, int]:
    """Whole seconds, and the microseconds beyond them."""
    microseconds = int(max(0.0, seconds) * 1_000_000)
    return microseconds // 1_000_000, microseconds % 1_000_000


def milliseconds(seconds: object) -> int:
    """Of seconds; 0 if it is no number."""
    return round(seconds * 1000) if isinstance(seconds, int | float) else 0
