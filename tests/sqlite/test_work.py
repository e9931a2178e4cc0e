"""Units whose statements one thread runs, and whose commit another: what may come in between."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.sqlite.endpoint import PATIENCE, eventually
from txproxy.backends.sqlite import calls, statements
from txproxy.backends.sqlite.calls import Answers, Call, Job, Portal
from txproxy.backends.sqlite.opening import Settings, inspector
from txproxy.backends.sqlite.tokens import Tokens
from txproxy.backends.sqlite.work import Work
from txproxy.backends.sqlite.writer import Writer

OWNER: Any = object()


class Bench:
    """A file, the work on it, and the jobs that came back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        connection = apsw.Connection(str(path))
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        connection.close()
        self.delivered: list[Job] = []
        self.tokens = Tokens()
        self.work = Work(str(path), Settings(), self.tokens, self.delivered.extend, None)
        self._inspector = inspector(str(path), Settings())

    def unit(self, sql: str, *parameters: int) -> Job:
        statement = statements.inspect(self._inspector, sql)
        job = Job(OWNER, calls.UNIT, [Call(Portal(statement, parameters, (), None))], Answers())
        self.tokens.ask(job)
        return job

    def rows(self) -> list[Any]:
        return self._inspector.execute("SELECT b FROM t ORDER BY a").fetchall()

    def close(self) -> None:
        self.work.disconnect()
        self._inspector.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "a.db")
    yield bench
    bench.close()


INSERT = "INSERT INTO t (b) VALUES (?)"


def test_they_are_committed_together(bench: Bench) -> None:
    jobs = [bench.unit(INSERT, i) for i in range(3)]
    batch = bench.tokens.next()
    assert bench.work.is_short(batch)
    assert bench.work.start(batch)
    assert (bench.delivered, bench.rows()) == ([], [])
    bench.work.finish(batch)
    assert bench.delivered == jobs
    assert bench.rows() == [(0,), (1,), (2,)]


def reopen(bench: Bench) -> None:
    bench.work.disconnect()


def reopen_and_use(bench: Bench) -> None:
    bench.work.disconnect()
    bench.work.connect()


@pytest.mark.parametrize("between", [reopen, reopen_and_use])
def test_the_file_is_opened_anew(bench: Bench, between: Callable[[Bench], None]) -> None:
    """Nobody was told anything: it is done again, once."""
    jobs = [bench.unit(INSERT, i) for i in range(3)]
    batch = bench.tokens.next()
    assert bench.work.start(batch)
    between(bench)
    bench.work.finish(batch)
    if not bench.delivered:
        again = bench.tokens.next()
        assert again == batch
        assert bench.work.start(again)
        bench.work.finish(again)
    assert bench.delivered == jobs
    assert not any(job.failed for job in jobs)
    assert bench.rows() == [(0,), (1,), (2,)]


def test_one_that_takes_the_transaction_along(bench: Bench) -> None:
    jobs = [
        bench.unit("INSERT INTO t (a, b) VALUES (1, ?)", 1),
        bench.unit("INSERT OR ROLLBACK INTO t (a, b) VALUES (1, ?)", 2),
        bench.unit(INSERT, 3),
    ]
    batch = bench.tokens.next()
    assert bench.work.start(batch)
    bench.work.finish(batch)
    assert bench.delivered == jobs
    assert [job.failed for job in jobs] == [False, True, False]
    assert bench.rows() == [(1,), (3,)]
    assert [job.answers.total_changes for job in jobs] == [1, 0, 1]


def test_what_is_not_short(bench: Bench) -> None:
    assert not bench.work.is_short([bench.unit("INSERT INTO t (b) SELECT b FROM t")])
    many = bench.unit(INSERT, 1)
    many.calls *= 100
    assert not bench.work.is_short([many])
    bench.work.disconnect()
    assert not bench.work.is_short([bench.unit(INSERT, 1)])


def test_nobody_is_forgotten_while_the_thread_is_about_to_sleep(bench: Bench) -> None:
    """It has looked at the queue, and not let go of the work yet."""
    tokens = Tokens()
    done: list[Job] = []
    path = str(bench.path)
    writer = Writer(path, Settings(), tokens, done.extend, lambda call: call(), None)
    bench.tokens = tokens
    with writer._using:
        job = bench.unit(INSERT, 1)
        writer.go_on()
    eventually(lambda: done == [job])
    writer.close()
    assert writer.join(PATIENCE)
    assert bench.rows() == [(1,)]
