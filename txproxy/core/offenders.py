"""Whose code leaves transactions open: SHOW OFFENDERS.

Each transaction that was reaped, released early or would have been reaped is counted by what
identifies its code. The worst are kept, by the time that they held. One that is new takes the place
of the least, and takes over its weight: so what is worse than a hundredth of all is never missing,
however many others come once and never again, and the times that are shown are true nonetheless.

Source: Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data
Streams", 2005 (Space-Saving).
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from txproxy.core.rows import Column, columns
from txproxy.core.view import Row, View, milliseconds, moment

OFFENDERS_LIMIT: Final = 100

REAPED: Final = "reaped"
WOULD_REAP: Final = "would reap"
RELEASED: Final = "released"
"""What became of a transaction that was left open: also the event's name in the log."""

CODE_TAGS: Final = (
    "application",
    "namespaced_controller",
    "controller",
    "action",
    "route",
    "job",
    "task",
    "source_location",
)
"""Tags of sqlcommenter, and of those who write its comments, that say which code it was. Others are
another one for each request (traceparent), or say nothing of it.
"""

_LONGEST: Final = 256  # letters of each value; clients choose them
_DIGITS: Final = re.compile(r"[0-9]+")

_Key = tuple[str, ...]


class Offender:
    """One piece of code. Times in seconds; `last_seen` since 1970. What is not counted is that of
    the last time.
    """

    __slots__ = (
        "application_name",
        "carried",
        "database",
        "held",
        "last_seen",
        "longest",
        "process",
        "reaped",
        "released",
        "statement",
        "tags",
        "user",
        "would_reap",
    )

    def __init__(self, key: _Key, carried: float) -> None:
        self.database, self.user, self.tags = key[:3]
        self.application_name = ""
        self.reaped = 0
        self.would_reap = 0
        self.released = 0
        self.held = 0.0  # idle in transactions, together
        self.longest = 0.0
        self.last_seen = 0.0
        self.statement = ""
        self.process = ""
        self.carried = carried  # the weight of the one whose place it has taken

    def count(self, how: str, seconds: float) -> None:
        """One more, idle for so long."""
        if how == REAPED:
            self.reaped += 1
        elif how == WOULD_REAP:
            self.would_reap += 1
        else:
            self.released += 1
        self.held += seconds
        self.longest = max(self.longest, seconds)

    def is_process(self, process: str) -> None:
        """Which process it was the last time, if that is found only later."""
        self.process = process or self.process

    @property
    def times(self) -> int:
        """How often it has left a transaction open."""
        return self.reaped + self.would_reap + self.released

    @property
    def weight(self) -> float:
        """What it must have held at most, since the start."""
        return self.held + self.carried


class Worst:
    """The worst since the start, by keys that say what is told apart."""

    def __init__(self) -> None:
        self._known: dict[_Key, Offender] = {}

    def count(self, key: _Key, how: str, seconds: float) -> Offender:
        """One more of this key, whose first parts are database, user and tags."""
        found = self._known.get(key)
        if found is None:
            carried = self._forget_least() if len(self._known) >= OFFENDERS_LIMIT else 0.0
            found = self._known[key] = Offender(key, carried)
        found.count(how, seconds)
        return found

    def _forget_least(self) -> float:
        least = min(self._known.items(), key=_weight_of)
        del self._known[least[0]]
        return least[1].weight

    def worst_first(self) -> list[Offender]:
        """All that are known, who held the longest first."""
        return sorted(self._known.values(), key=_held, reverse=True)


class Offenders:
    """`code` are those of SHOW OFFENDERS. `tagged` is for metrics: by database, user and tags only,
    which nobody makes up for each connection. A table of its own, for sums of the other's rows
    would become less when one of them is forgotten.
    """

    def __init__(self) -> None:
        self.code = Worst()
        self.tagged = Worst()

    def count(self, time: float, how: str, fields: Mapping[str, object]) -> Offender:
        """A transaction was left open: what the log is told of it (endings.about) at `time`,
        seconds since 1970. `how` is REAPED, WOULD_REAP or RELEASED. Returns whose it was.
        """
        idle = fields["idle_s"]
        seconds = float(idle) if isinstance(idle, int | float) else 0.0
        tags = _code(fields)
        owner = (_value(fields, "database"), _value(fields, "user"), tags)
        self.tagged.count(owner, how, seconds)
        # Numbers are those of savepoints, cursors and processes.
        name = _DIGITS.sub("?", _value(fields, "application_name"))
        statement = "" if tags else _DIGITS.sub("?", _value(fields, "statement"))
        found = self.code.count((*owner, name, statement), how, seconds)
        found.last_seen = time
        found.application_name = _value(fields, "application_name")
        found.statement = _value(fields, "statement")
        found.process = _value(fields, "process")
        return found


def _weight_of(item: tuple[_Key, Offender]) -> float:
    return item[1].weight


def _held(offender: Offender) -> float:
    return offender.held


def _value(fields: Mapping[str, object], name: str) -> str:
    return str(fields.get(name, ""))[:_LONGEST]


def _code(fields: Mapping[str, object]) -> str:
    """The tags that say which code it was: key='value',key='value'; "" if there are none."""
    tags = fields.get("tags")
    if not isinstance(tags, dict):
        return ""
    said = [f"{key}='{tags[key]}'" for key in CODE_TAGS if tags.get(key)]
    return ",".join(said)[:_LONGEST]


# In the console.

COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "OFFENDERS": columns(
        "database:text user:text application_name:text tags:text statement:text times reaped"
        " would_reap released idle_ms longest_ms last_seen:text process:text"
    ),
}


def _offenders(view: View) -> list[Row]:
    return [_row(offender, view.texts) for offender in view.server.offenders.code.worst_first()]


def _row(offender: Offender, texts: bool) -> Row:
    return (
        offender.database,
        offender.user,
        offender.application_name,
        offender.tags if texts else None,
        offender.statement if texts else None,
        offender.times,
        offender.reaped,
        offender.would_reap,
        offender.released,
        milliseconds(offender.held),
        milliseconds(offender.longest),
        moment(offender.last_seen),
        offender.process if texts else None,
    )


ROWS: Final[dict[str, Callable[[View], list[Row]]]] = {"OFFENDERS": _offenders}
