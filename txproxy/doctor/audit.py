"""Watches the sqlite3 connections of a program: who opens, closes and uses them.

The program runs with `injected` as its sitecustomize, which writes events; behind its end they are
put together here.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from txproxy.doctor.finding import Finding, Section, count, ok, printable, problem, warning
from txproxy.doctor.frames import Frame, place
from txproxy.errors import TxproxyError

_PLACES: Final = 20  # lines of a list that are shown
_FRAMES: Final = 12  # of a stack, and the site's own behind these

Stack = tuple[Frame, ...]
"""The innermost frame first."""


@dataclass(slots=True)
class Connection:
    """The life of a connection, as far as it was seen."""

    database: str
    opened: Stack
    thread: str
    watched: bool  # false: only that it was opened is known
    closed: Stack | None = None
    closed_thread: str = ""
    collected: bool = False  # closed by the garbage collector
    lost: bool = False  # closed in a transaction, which is rolled back then
    begun: Stack | None = None  # the transaction that it is in
    used_closed: list[Stack] = field(default_factory=list)
    carried: Stack | None = None  # used in another process than its own


@dataclass(slots=True)
class Seen:
    """All that was seen."""

    processes: int = 0
    connections: dict[str, Connection] = field(default_factory=dict)
    failed: list[tuple[str, str, Stack]] = field(default_factory=list)  # database, error
    full: bool = False  # a process had more to say
    old: str = ""  # the version of a Python that has no such audit events


# Running it.


def audit(command: Sequence[str]) -> Section:
    """Run a program to its end, with our terminal, and say what it did with its connections.

    Raises TxproxyError: it cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="txproxy-doctor-") as directory:
        source = Path(__file__).with_name("injected.py").read_bytes()
        Path(directory, "sitecustomize.py").write_bytes(source)
        events = Path(directory, "events")
        events.touch(0o600)
        code = _run(command, directory, events)
        with events.open(encoding="ascii") as lines:
            seen = read(lines)
    return Section(printable(" ".join(command)), tuple(judge(seen, code)))


def _run(command: Sequence[str], directory: str, events: Path) -> int:
    path = os.pathsep.join(part for part in (directory, os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": path, "TXPROXY_AUDIT": str(events)}
    sys.stdout.flush()
    # Ctrl-C ends the program, whose terminal this is; what it has done is told then.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(command, check=False, env=environment).returncode
    except OSError as error:
        raise TxproxyError(f"{command[0]}: {error.strerror}") from error
    finally:
        signal.signal(signal.SIGINT, before)


# Reading what was written.


def read(lines: Iterable[str]) -> Seen:
    """Put events together. A line that was cut short by the end of its process is left out."""
    seen = Seen()
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        _take(seen, said)
    return seen


def _take(seen: Seen, said: dict[str, Any]) -> None:
    event = said["event"]
    stack = tuple(Frame(*frame) for frame in said.get("stack", ()))
    if event == "process":
        seen.processes += 1
    elif event == "old":
        seen.old = said["version"]
    elif event == "full":
        seen.full = True
    elif event == "failed":
        seen.failed.append((said["database"], said["error"], stack))
    elif event == "opened":
        connection = Connection(said["database"], stack, said["thread"], said["watched"])
        seen.connections[said["connection"]] = connection
    elif (known := seen.connections.get(said.get("connection", ""))) is not None:
        _follow(known, event, said, stack)


def _follow(connection: Connection, event: str, said: dict[str, Any], stack: Stack) -> None:
    if event in {"closed", "collected"}:
        connection.closed, connection.closed_thread = stack, said["thread"]
        connection.collected = event == "collected"
        connection.lost = said["in_transaction"]
    elif event == "used closed":
        connection.used_closed.append(stack)
    elif event == "carried":
        connection.carried = stack
    elif event == "begun":
        connection.begun = stack
    elif event == "ended":
        connection.begun = None


# Judging.


def judge(seen: Seen, code: int) -> Iterator[Finding]:
    """What is to be said about a program that has ended with this code (below 0: by a signal)."""
    if code:
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        yield warning("the program", f"it ended {how}", "See what it has printed.")
    if seen.old:
        yield problem(
            "the program",
            f"Python {printable(seen.old)} does not tell who opens connections",
            "Run the program by Python 3.10 or newer.",
        )
    if not seen.processes and not seen.old:
        yield problem(
            "the program",
            "nothing was seen: it runs no Python, or one that takes no PYTHONPATH (-I, -E, -S)",
            "Run the Python program itself, without these options.",
        )
    if not seen.processes:
        return
    connections = list(seen.connections.values())
    yield _opened(connections, seen.processes)
    yield from _failures(seen.failed)
    yield from _closings(connections)
    yield from _used_closed(connections)
    yield from _carried(connections)
    yield from _left_open(connections)
    yield from _unwatched(connections)
    if seen.full:
        yield warning(
            "the program",
            "a process did so much that not all of it was written down",
            "Let it do less, and run this again.",
        )


def _opened(connections: Sequence[Connection], processes: int) -> Finding:
    places = [f"{_at(each.opened)}: {_named(each.database)}" for each in connections]
    where = f"in {count(processes, 'Python process', 'Python processes')}"
    return ok("opened", f"{count(len(connections), 'connection')} {where}", *_ranked(places))


def _failures(failed: Iterable[tuple[str, str, Stack]]) -> Iterator[Finding]:
    said = [f"{_at(stack)}: {_named(name)}: {printable(error)}" for name, error, stack in failed]
    if said:
        yield problem(
            "not opened",
            count(len(said), "attempt"),
            "Run `txproxy doctor` on the file.",
            *_ranked(said),
        )


def _closings(connections: Sequence[Connection]) -> Iterator[Finding]:
    closed = [each for each in connections if each.closed is not None]
    if by_hand := [_at(each.closed) for each in closed if not each.collected]:
        yield ok("closed", count(len(by_hand), "connection"), *_ranked(by_hand))
    if collected := [_at(each.opened) for each in closed if each.collected]:
        yield warning(
            "never closed",
            f"{count(len(collected), 'connection')} left to the garbage collector, opened here:",
            "Close it, by contextlib.closing() for one: `with connection` ends a transaction only.",
            *_ranked(collected),
        )
    if lost := [_at(each.closed) for each in closed if each.lost]:
        yield warning(
            "rolled back",
            f"{count(len(lost), 'connection')} closed in a transaction, whose work is gone:",
            "Commit or roll back before closing.",
            *_ranked(lost),
        )


def _used_closed(connections: Iterable[Connection]) -> Iterator[Finding]:
    cases: dict[tuple[str, str], list[tuple[Connection, Stack]]] = {}
    for each in connections:
        for stack in each.used_closed:
            cases.setdefault((_at(stack), _at(each.closed)), []).append((each, stack))
    for (_, closed), found in cases.items():
        connection, stack = found[0]
        times = "" if len(found) == 1 else f"{len(found)} times, "
        where = "" if connection.thread == connection.closed_thread else ", in another thread"
        yield problem(
            "used closed",
            f"{times}{_named(connection.database)}: Cannot operate on a closed database.",
            f"Let nobody close it before its last user is done: {closed} does{where}.",
            "used here:",
            *_shown(stack),
            f"after it was closed here{where}:",
            *_shown(connection.closed or ()),
            "and it was opened here:",
            *_shown(connection.opened),
        )


def _carried(connections: Iterable[Connection]) -> Iterator[Finding]:
    if said := [_at(each.carried) for each in connections if each.carried is not None]:
        yield problem(
            "forked",
            f"{count(len(said), 'connection')} used in another process than opened it:",
            "Open it anew behind fork(): two processes on one connection corrupt the file.",
            *_ranked(said),
        )


def _left_open(connections: Sequence[Connection]) -> Iterator[Finding]:
    left = [each for each in connections if each.closed is None and each.watched]
    if said := [_at(each.begun) for each in left if each.begun is not None]:
        yield problem(
            "left open",
            f"{count(len(said), 'connection')} in a transaction at the end of the process, begun"
            " here:",
            "Commit: what was written is gone, and while it was open nobody else could write.",
            *_ranked(said),
        )
    if said := [_at(each.opened) for each in left if each.begun is None]:
        yield ok("left open", f"{count(len(said), 'connection')} at the end", *_ranked(said))


def _unwatched(connections: Iterable[Connection]) -> Iterator[Finding]:
    if said := [_at(each.opened) for each in connections if not each.watched]:
        yield warning(
            "not watched",
            f"{count(len(said), 'connection')} not made by sqlite3.connect, or by a factory that is"
            " no class: who closed it is not known",
            "Open it by sqlite3.connect() to have it watched.",
            *_ranked(said),
        )


# Words.


def _at(stack: Stack | None) -> str:
    """The line of a stack that is to be named."""
    return str(place(stack or ()) or "a place that is not known")


def _named(database: str) -> str:
    return printable(database) or "a database in memory"


def _ranked(said: Iterable[str]) -> list[str]:
    """Equal ones once, the most frequent first."""
    ranked = Counter(said).most_common()
    lines = [f"{number:>5}  {each}" for each, number in ranked[:_PLACES]]
    return [
        *lines,
        *([f"       and {len(ranked) - _PLACES} more"] if len(ranked) > _PLACES else []),
    ]


def _shown(stack: Stack) -> list[str]:
    kept = [frame for i, frame in enumerate(stack) if i < _FRAMES or frame.is_own]
    rest = len(stack) - len(kept)
    return [*(f"  {frame}" for frame in kept), *([f"  and {rest} more"] if rest else [])]
