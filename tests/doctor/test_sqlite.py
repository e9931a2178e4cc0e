"""`txproxy doctor FILE`, on real files, and with real processes that have them open."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.doctor.holding import go_on, holding
from tests.sqlite.endpoint import Endpoint
from txproxy.doctor import inside
from txproxy.doctor.finding import Finding
from txproxy.doctor.sqlite import examine

SCHEMA: Final = """
CREATE TABLE owners (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE notes (id INTEGER PRIMARY KEY, owner INTEGER REFERENCES owners, text TEXT);
INSERT INTO owners VALUES (1, 'ann');
"""


def make(path: Path, mode: str = "wal", rows: int = 200) -> Path:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.executescript(SCHEMA)
    connection.executemany(
        "INSERT INTO notes VALUES (?, 1, ?)", [(i, "x" * 200) for i in range(rows)]
    )
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "notes.sqlite3")


@pytest.fixture
def rollback(tmp_path: Path) -> Path:
    """A file with a rollback journal."""
    return make(tmp_path / "notes.sqlite3", "delete")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "LOCKED_FOR", 0.05)


def findings(path: Path) -> dict[str, Finding]:
    """By what they are about; of several, the worst."""
    found: dict[str, Finding] = {}
    order = ("ok", "warning", "problem")
    for each in examine(str(path)).findings:
        had = found.get(each.about)
        if had is None or order.index(had.level) < order.index(each.level):
            found[each.about] = each
    return found


def levels(path: Path) -> dict[str, str]:
    """What is not as it should be, but for where the tests' files are."""
    return {
        about: each.level
        for about, each in findings(path).items()
        if each.level != "ok" and about not in {"file system", "disk space"}
    }


def contents(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in directory.iterdir()}


# At rest


def test_a_file_that_is_well_is_left_as_it_is(path: Path) -> None:
    before = contents(path.parent)
    found = findings(path)
    assert levels(path) == {}
    assert contents(path.parent) == before
    assert list(before) == [path.name]  # and nothing beside it, which another user may not write
    assert found["opened"].found.startswith(f"SQLite {sqlite3.sqlite_version} reads it: 2 tables, ")
    assert found["journal mode"].found.startswith("wal: ")
    assert found["open in"].found.startswith("no process that can be seen")


@pytest.mark.parametrize("name", ["a b?mode=rw#%41.sqlite3", "ä\udcff.sqlite3"])
def test_any_name_will_do(path: Path, name: str) -> None:
    other = path.rename(path.parent / name)
    assert levels(other) == {}
    assert list(other.parent.iterdir()) == [other]


def test_a_rollback_journal(rollback: Path) -> None:
    assert levels(rollback) == {"journal mode": "warning"}
    found = findings(rollback)["journal mode"]
    assert found.found.startswith("delete: ")
    assert "PRAGMA journal_mode=WAL" in found.advice


def test_what_is_no_file(path: Path) -> None:
    assert levels(path.parent / "none") == {"opened": "problem"}
    assert "no such file" in findings(path.parent / "none")["opened"].found
    assert "nor its directory" not in findings(path.parent / "none")["opened"].found
    assert "nor its directory" in findings(path.parent / "no" / "none")["opened"].found
    assert "not a regular file" in findings(path.parent)["opened"].found
    os.mkfifo(path.parent / "fifo")
    assert "not a regular file" in findings(path.parent / "fifo")["opened"].found


def test_a_name_that_nobody_knew(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert levels(path)["opened"] == "warning"
    assert "SQLite makes an empty file" in findings(path)["opened"].advice


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("words, " * 1000)
    assert levels(path) == {"opened": "problem"}
    assert findings(path)["opened"].found.startswith("it is not an SQLite database, or an encrypt")
    assert path.read_text() == "words, " * 1000


def test_a_page_that_was_overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 4096)
    assert levels(path)["integrity"] == "problem"
    found = findings(path)["integrity"]
    assert "restore a backup" in found.advice
    assert found.details or "malformed" in found.found


def test_a_schema_that_was_overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)
    found = findings(path)["opened"]
    assert (found.level, found.found.startswith("it is corrupt: ")) == ("problem", True)


def test_rows_without_their_parents(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executemany("INSERT INTO notes VALUES (?, 9, '')", [(i,) for i in range(1000, 1012)])
    connection.commit()
    connection.close()
    assert levels(path) == {"foreign keys": "problem"}
    found = findings(path)["foreign keys"]
    assert found.found == "foreign_key_check finds 12 faults"
    assert found.details[0] == "notes row 1000 refers to what is not in owners"
    assert found.details[-1] == "and 2 more"


def test_a_schema_that_needs_what_the_program_has(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.create_function("fold", 1, str.casefold, deterministic=True)
    connection.execute("CREATE INDEX folded ON notes (fold(text))")
    connection.close()
    found = findings(path)["integrity"]
    assert found.level == "warning"
    assert found.found.startswith("it could not be checked: ")
    assert "fold" in found.found


def test_two_names(path: Path) -> None:
    os.link(path, path.parent / "other")
    assert levels(path) == {"names": "problem"}
    assert "2 names" in findings(path)["names"].found


def test_a_symbolic_link_is_followed(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to(path.name)
    assert levels(link) == {}


# What a process that has died has left


def left_by(path: Path, script: str) -> None:
    with holding(path, script) as process:
        process.kill()
        process.wait()


def test_a_wal_that_was_left_is_read_and_left(path: Path) -> None:
    left_by(path, "one.execute('DELETE FROM owners')")
    before = contents(path.parent)
    assert before[f"{path.name}-wal"]
    found = findings(path)
    assert found["foreign keys"].level == "problem"  # as it says in the WAL
    after = contents(path.parent)
    for name in (path.name, f"{path.name}-wal"):
        assert after[name] == before[name]


def test_a_journal_that_was_left(rollback: Path) -> None:
    script = "one.execute('PRAGMA cache_size=1')\none.execute('BEGIN')\n"
    left_by(rollback, f"{script}one.execute('UPDATE notes SET text = text || 1')")
    before = contents(rollback.parent)
    assert before[f"{rollback.name}-journal"]
    found = findings(rollback)["opened"]
    assert (found.level, "has yet to be rolled back" in found.found) == ("problem", True)
    assert contents(rollback.parent) == before


# In use


def test_who_has_it_open(path: Path) -> None:
    script = """
one.execute("BEGIN")
one.execute("SELECT count(*) FROM notes").fetchone()
two.execute("UPDATE notes SET text = ''")
two.execute("BEGIN IMMEDIATE")
---
two.execute("INSERT INTO notes VALUES (1000, 1, 'behind the doctor')")
two.execute("COMMIT")
"""
    with holding(path, script) as process:
        found = findings(path)
        assert found["open in"].found.startswith("1 process")
        [words] = found["open in"].details
        assert words.startswith(f"{process.pid} since ")
        assert words.endswith("(2 times, is writing, is reading)")
        assert found["WAL"].details[0].startswith("reads the database file alone: ")
        assert "frames, 0 of them copied" in found["WAL"].found
        assert found["descriptors"].found.endswith(f", in process {process.pid}")
        # it still has its locks, and goes on
        [words] = findings(path)["open in"].details
        assert words.endswith("(2 times, is writing, is reading)")
        assert go_on(process) == "done\n"
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT text FROM notes WHERE id = 1000").fetchall() == [
        ("behind the doctor",)
    ]
    connection.close()


def test_a_reader_that_is_behind(path: Path) -> None:
    script = """
two.execute("UPDATE notes SET text = '1' WHERE id = 1")
one.execute("BEGIN")
one.execute("SELECT count(*) FROM notes").fetchone()
two.execute("UPDATE notes SET text = '2' WHERE id = 1")
"""
    with holding(path, script) as process:
        [words] = findings(path)["WAL"].details
        assert words.startswith(f"reads at frame 1, 1 behind: {process.pid} since ")


def test_who_has_locked_it(rollback: Path) -> None:
    with holding(rollback, "one.execute('BEGIN EXCLUSIVE')") as process:
        found = findings(rollback)["opened"]
        assert found.level == "problem"
        assert "was locked" in found.found
        assert [words.startswith(f"writing: {process.pid} since ") for words in found.details] == [
            True
        ]


def test_the_endpoint_and_who_writes_past_it(tmp_path: Path) -> None:
    with Endpoint(tmp_path) as endpoint:
        path = endpoint.create("notes", "CREATE TABLE notes (text)")
        with psycopg.connect(endpoint.conninfo("notes"), autocommit=True) as client:
            client.execute("INSERT INTO notes VALUES ('one')")
            [words] = findings(path)["open in"].details
            assert words.startswith(f"{endpoint.process.pid} since ")
            assert "past txproxy" not in findings(path)
            with holding(path, "one.execute('BEGIN IMMEDIATE')") as process:
                assert findings(path)["past txproxy"].found == (
                    f"process {process.pid} writes to it, beside process {endpoint.process.pid}"
                    " of txproxy"
                )
            client.execute("INSERT INTO notes VALUES ('two')")
        assert (
            endpoint.outside("notes", "print(*c.execute('SELECT count(*) FROM notes'))") == "(2,)"
        )


READ: Final = "one.execute('DELETE FROM owners')"


def without_wal(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def with_another_wal(path: Path) -> None:
    wal = path.with_name(f"{path.name}-wal")
    shutil.copy(wal, wal.with_suffix(".copy"))
    wal.with_suffix(".copy").rename(wal)


def with_another_file(path: Path) -> None:
    make(path.with_suffix(".new")).rename(path)


@pytest.mark.parametrize(
    ("replace", "names"),
    [
        (without_wal, "the wal file"),
        (with_another_wal, "the wal file"),
        (with_another_file, "the database file"),
    ],
)
def test_a_file_that_was_replaced_in_use(
    replace: Callable[[Path], None], names: str, path: Path
) -> None:
    with holding(path, READ) as process:
        replace(path)
        found = findings(path)["replaced"]
        assert found.level == "problem"
        assert found.found.startswith(f"process {process.pid} has {names} open as it was before ")


# What changes while it is looked at


def test_a_file_that_is_used_meanwhile_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read as one that does not change, it was found to have changed."""
    ways: list[str] = []
    really = inside._read

    def read(real: str, options: str) -> inside.InsideFacts:
        ways.append(options)
        found = really(real, options)
        os.utime(real)
        return found

    monkeypatch.setattr(inside, "_read", read)
    assert levels(path) == {}
    assert ways == ["mode=ro&immutable=1", "mode=ro"]


@pytest.fixture(autouse=True)
def nothing_open() -> Iterator[None]:
    """This process has no file of a test's open when it ends."""
    yield
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [link for link in links if "notes.sqlite3" in str(link.readlink())]
