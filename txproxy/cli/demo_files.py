"""The demo's SQLite files: the same writers, on one through the proxy, on one by themselves."""

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from txproxy.cli.demo_clients import PATIENCE
from txproxy.cli.demo_writer import TABLE, Fares
from txproxy.cli.embedded import dying_with_us

WRITERS: Final = 4
_GOOD_ENDS: Final = (0, -signal.SIGTERM)  # the latter before it could begin

PORT: Final = 6432
"""In the unix socket's name."""

CONFIGURATION: Final = """\
[sqlite.shared]
path = "{directory}/shared.sqlite3"
"""


def make(directory: Path) -> None:
    """The two files, in WAL mode."""
    for name in ("plain", "shared"):
        with contextlib.closing(sqlite3.connect(directory / f"{name}.sqlite3")) as file:
            file.execute("PRAGMA journal_mode = wal")
            file.execute(TABLE)


@dataclass
class Writers:
    """Some processes that write to one file; `fares` is what each has said last."""

    path: Path
    fares: list[Fares] = field(default_factory=lambda: [Fares() for _ in range(WRITERS)])
    problems: list[str] = field(default_factory=list)

    @property
    def committed(self) -> int:
        """Transactions, all together."""
        return sum(each.committed for each in self.fares)

    @property
    def locked(self) -> int:
        """Those that were told that the file is locked."""
        return sum(each.locked for each in self.fares)

    @property
    def shares(self) -> str:
        """What the writers have got of it."""
        each = [fares.committed for fares in self.fares]
        slowest = max(fares.slowest for fares in self.fares)
        locked = f", {self.locked} told it is locked" if self.locked else ""
        return f"{min(each)} to {max(each)} each, the slowest took {slowest:.2f} s{locked}"

    def stored(self) -> int:
        """The rows in the file."""
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as file:
            return int(file.execute("SELECT count(*) FROM notes").fetchone()[0])


@dataclass
class Files:
    """Both files' writers."""

    plain: Writers
    shared: Writers

    @property
    def problems(self) -> Sequence[str]:
        """What writers have said before they died."""
        return [*self.plain.problems, *self.shared.problems]

    def checks(self) -> Iterator[tuple[bool, str]]:
        """What --once promises of them, once they have ended."""
        shared, plain = self.shared, self.plain
        yield (
            all(each.committed for each in shared.fares) and not shared.locked,
            f"{WRITERS} processes wrote to an SQLite file through the proxy: {shared.shares}",
        )
        yield (
            all(each.committed for each in plain.fares),
            f"{WRITERS} others wrote to one by themselves: {plain.shares}",
        )
        stored = shared.stored()
        yield (
            stored == shared.committed,
            f"{stored} rows are stored in the first, {shared.committed} were acknowledged",
        )


@contextlib.asynccontextmanager
async def writing(directory: Path) -> AsyncIterator[Files]:
    """The writers at work; they have ended when the block has."""
    files = Files(Writers(directory / "plain.sqlite3"), Writers(directory / "shared.sqlite3"))
    place = [str(directory), str(PORT)]
    processes = []
    listening = []
    try:
        for number in range(WRITERS):
            for writers, arguments in ((files.plain, []), (files.shared, place)):
                process = await _writer(number, writers.path, arguments)
                processes.append(process)
                listening.append(asyncio.create_task(_listen(process, writers, number)))
        yield files
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*listening)


async def _writer(number: int, path: Path, place: list[str]) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "txproxy.cli.demo_writer", str(number), str(path), *place]
    return await asyncio.create_subprocess_exec(
        *dying_with_us(),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def _listen(process: asyncio.subprocess.Process, writers: Writers, number: int) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async for line in process.stdout:
            writers.fares[number] = Fares(**json.loads(line))
        said = (await process.stderr.read()).decode(errors="replace").strip()
        if await asyncio.wait_for(process.wait(), PATIENCE) not in _GOOD_ENDS:
            last = said.splitlines()[-1] if said else "without a word"
            writers.problems.append(f"writer {number} of {writers.path.name}: {last}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
