"""When a checkpoint is due, on a WAL of the test's own: nobody else has this file."""

from pathlib import Path

import apsw

from txproxy.backends.sqlite.checkpoints import LARGE, PAGES, Checkpoints
from txproxy.backends.sqlite.opening import Settings


def connect(path: Path, checkpoints: Checkpoints | None = None) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF")
    connection.wal_autocheckpoint(0)
    if checkpoints is not None:
        connection.set_wal_hook(checkpoints.committed)
    return connection


def test_due_at_a_thousand_pages(tmp_path: Path) -> None:
    found = Checkpoints(Settings())
    connection = connect(tmp_path / "a.db", found)
    connection.execute("CREATE TABLE t (x)")
    assert (found.is_due, found.is_due_when_idle) == (False, True)
    connection.execute("INSERT INTO t VALUES (zeroblob(?))", (PAGES * 4096,))
    due: list[bool] = [found.is_due]
    found.run(connection)
    due.append(found.is_due)
    assert due == [True, False]
    assert (found.left, found.count) == (0, 1)
    connection.execute("INSERT INTO t VALUES (1)")
    assert 0 < found.pages < 10
    connection.close()


def test_a_reader_is_in_the_way(tmp_path: Path) -> None:
    found = Checkpoints(Settings())
    connection = connect(tmp_path / "a.db", found)
    connection.execute("CREATE TABLE t (x)")
    reader = connect(tmp_path / "a.db")
    reader.execute("BEGIN; SELECT * FROM t").fetchall()
    connection.execute("INSERT INTO t VALUES (zeroblob(?))", (LARGE * 4096,))
    found.run(connection)
    assert found.left > LARGE
    assert not found.is_due  # before as much has come again
    found.run(connection, nobody_reads=True)  # but somebody does, whom we do not know
    assert found.file_pages > LARGE
    reader.execute("COMMIT")
    found.run(connection, nobody_reads=True)
    assert (found.left, found.pages, found.file_pages) == (0, 0, 0)
    assert (tmp_path / "a.db-wal").stat().st_size == 0
    connection.close()
    reader.close()


def test_somebody_elses() -> None:
    found = Checkpoints(Settings(checkpoint="external"))
    connection = apsw.Connection(":memory:")
    found.committed(connection, "main", 10 * PAGES)
    assert not found.is_due
    assert not found.is_due_when_idle
    assert found.pages == 10 * PAGES
    connection.close()
