"""Statements that are stopped: an interrupt may come before SQLite has begun with them."""

import asyncio
import sqlite3
from pathlib import Path
from time import monotonic

import pytest

from tests.sqlite.endpoint import eventually
from txproxy.backends.sqlite import calls
from txproxy.backends.sqlite.calls import Answers, Call, Job, Portal
from txproxy.backends.sqlite.file import File
from txproxy.backends.sqlite.opening import Settings

ENDLESS = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s) SELECT sum(i) FROM s"
PATIENCE = 20.0


class Owner:
    """Whose job it is."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    def finished(self, _job: Job) -> None:
        self.over.set()

    def deliver(self, _call: Call) -> bool:
        return True


@pytest.fixture
def path(tmp_path: Path) -> str:
    found = str(tmp_path / "app.sqlite3")
    sqlite3.connect(found).close()
    return found


def job_of(file: File, owner: Owner, kind: int) -> Job:
    """The endless statement, given to a thread."""
    portal = Portal(file.inspect(ENDLESS.encode()), (), (), lambda _row: b"")
    job = Job(owner, kind, [Call(portal)], Answers())
    if kind == calls.READING:
        file.read(job)
    else:
        file.ask(job)
    return job


async def until_it_runs(file: File, job: Job) -> None:
    def runs() -> bool:
        return any(thread.running is job for thread in file._threads)

    await asyncio.to_thread(eventually, runs)


@pytest.mark.parametrize("kind", [calls.READING, calls.HOLDING])
async def test_an_interrupt_that_came_too_early_is_made_up_for(path: str, kind: int) -> None:
    file = File(asyncio.get_running_loop(), path, Settings())
    owner = Owner()
    try:
        job = job_of(file, owner, kind)
        await until_it_runs(file, job)
        job.cancelled = True  # and its interrupt was lost
        async with asyncio.timeout(PATIENCE):
            while not owner.over.is_set():
                file.tick(monotonic())
                await asyncio.sleep(0.01)
        failure = job.calls[0].failure
        assert failure is not None
        assert failure.code == 9  # SQLITE_INTERRUPT
    finally:
        await asyncio.to_thread(file.close)


@pytest.mark.parametrize("kind", [calls.READING, calls.HOLDING])
async def test_closing_stops_what_begins_meanwhile(path: str, kind: int) -> None:
    """What is closed is not to wait for a statement that was only on its way."""
    file = File(asyncio.get_running_loop(), path, Settings())
    job_of(file, Owner(), kind)
    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(file.close)
