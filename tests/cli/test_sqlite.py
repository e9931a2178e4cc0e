"""`txproxy sqlite backup`: of a file that is written to, by the real proxy."""

import socket
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.files import Files, make
from txproxy.cli import main
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.wire import encode


@pytest.fixture(scope="module")
def files(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    found = Files(postgres, tmp_path_factory.mktemp("files"))
    with found.proxy:
        yield found


def backup(files: Files, name: str, destination: Path) -> int:
    config = str(files.proxy.write_configuration())
    return main(["sqlite", "backup", name, str(destination), config])


def content(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return copy.execute("SELECT a FROM t ORDER BY a").fetchall()


def test_a_copy_has_what_was_committed(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.db"
    with files.connect() as client, files.connect() as other:
        client.execute("DELETE FROM t")
        client.execute("INSERT INTO t VALUES ('committed')")
        other.execute("BEGIN")
        other.execute("INSERT INTO t VALUES ('open')")
        assert backup(files, "notes", copy) == 0
        other.execute("ROLLBACK")
    assert [path.name for path in tmp_path.iterdir()] == ["copy.db"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert content(copy) == [("committed",)]
    assert capsys.readouterr().out == f"{copy}: {copy.stat().st_size} bytes\n"


def test_a_large_file_while_it_is_written_to(files: Files, tmp_path: Path) -> None:
    """The copy is of one moment: rows that are written two at a time are both there, or neither."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        with files.connect("a.db") as client:
            while not stop.is_set():
                number += 1
                client.execute("BEGIN IMMEDIATE")
                for half in (b"1", b"2"):
                    client.execute(b"INSERT INTO t VALUES (%d.%s)" % (number, half))
                client.execute("COMMIT")

    with files.connect("a.db") as client:
        client.execute("CREATE TABLE large (x)")
        client.execute("INSERT INTO large VALUES (zeroblob(20000000))")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert backup(files, str(files.data / "a.db"), tmp_path / "copy.db") == 0
    finally:
        stop.set()
        writer.join()
    assert len(content(tmp_path / "copy.db")) % 2 == 0
    assert (tmp_path / "copy.db").stat().st_size > 20_000_000


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    assert found.out == ""
    return found.err


def test_what_is_there_is_not_written_over(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.db"
    copy.write_text("precious")
    assert backup(files, "notes", copy) == 1
    assert said(capsys) == f"txproxy: {copy} exists: it is not written over\n"
    assert copy.read_text() == "precious"


def test_nor_what_another_backup_is_writing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "copy.db.tmp"
    partial.write_text("half")
    assert backup(files, "notes", tmp_path / "copy.db") == 1
    assert said(capsys).startswith(f"txproxy: {partial} exists\nhint: ")
    assert partial.read_text() == "half"


def test_where_nothing_can_be_written(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert backup(files, "notes", Path("/nonexistent/copy.db")) == 1
    assert "cannot write /nonexistent/copy.db.tmp: No such file" in said(capsys)


def test_a_file_that_is_not_configured(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backup(files, "../notes.db", tmp_path / "copy.db") == 1
    assert said(capsys).startswith("txproxy: no SQLite file ../notes.db is configured in ")


def test_a_file_that_the_proxy_does_not_let_us_have(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.tables["gone"] = {"path": "/nonexistent/gone.db"}
    assert backup(files, "gone", tmp_path / "copy.db") == 1
    assert "gone: " in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_without_a_proxy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = unserved(tmp_path)
    assert main(["sqlite", "backup", "notes", str(tmp_path / "copy.db"), config]) == 1
    assert "cannot connect to" in (found := said(capsys))
    assert "Is the proxy running" in found


def test_a_proxy_that_dies_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = unserved(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / ".s.PGSQL.6432"))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(encode.message(b"d", b"SQLite format 3\0")[:-1])

        server = threading.Thread(target=serve)
        server.start()
        assert main(["sqlite", "backup", "notes", str(tmp_path / "copy.db"), config]) == 1
        server.join()
    assert "closed before the copy was complete" in said(capsys)
    assert not [path for path in tmp_path.iterdir() if "copy" in path.name]


def unserved(root: Path) -> str:
    """A configuration that nobody serves."""
    make(root / "notes.db", "CREATE TABLE t (a)")
    config = root / "proxy.toml"
    config.write_text(
        f'[proxy]\nlisten = ["unix:{root}"]\n[sqlite.notes]\npath = "{root}/notes.db"\n'
    )
    return str(config)
