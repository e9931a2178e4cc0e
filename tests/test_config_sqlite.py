"""SQLite files: what may be configured, and which file a client means by a name."""

import importlib.util
import os
from pathlib import Path

import pytest

from tests.configurations import ANY, UNIX, read, sqlite, wrong
from txproxy.config import ANY_FILE, SqliteFile, load
from txproxy.config.sqlite import BESIDE, find
from txproxy.errors import ConfigError

NOTES = '[sqlite.notes]\npath = "/srv/notes.db"\n'


# What cannot be.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[sqlite.a]", "1: sqlite.a: needs a path"),
        ('[sqlite."*"]', '1: sqlite."*": needs a directory'),
        (
            '[sqlite.a]\npath = "/a"\ndirectory = "/"',
            "3: sqlite.a.directory: does not belong here: path does",
        ),
        (
            '[sqlite."*"]\npath = "/a"\ndirectory = "/"',
            '2: sqlite."*".path: does not belong here: directory does',
        ),
        (
            '[sqlite.a]\npath = "a.db"',
            '2: sqlite.a.path: must be a path from the root, such as "/srv/app/app.sqlite3"',
        ),
        ('[sqlite."/a"]\npath = "/a"', '1: sqlite."/a": is no name: clients could mean a path by'),
        ('[sqlite.txproxy]\npath = "/a"', "1: sqlite.txproxy: is the console's name"),
        (
            '[sqlite.a]\npath = "/a"\n[databases.a]',
            "1: sqlite.a: is in [databases.a] too; only one of them",
        ),
        (
            '[sqlite."*"]\ndirectory = "/"\n[databases."*"]',
            '1: sqlite."*": is in [databases."*"] too; only one of them',
        ),
        (
            '[sqlite.a]\npath = "/x"\n[sqlite.b]\npath = "//x/"',
            "2: sqlite.a.path: is that of [sqlite.b] too",
        ),
        (
            '[sqlite.a]\npath = "/a"\njournal_mode = "delete"\ncommit_train = true',
            '4: sqlite.a.commit_train: needs journal_mode "wal"',
        ),
        ('[sqlite.a]\npath = "/a"\npeer_uids = []', "3: sqlite.a.peer_uids: must be a list of"),
        ("[sqlite.a]\npeer_uids = [-1]", "2: sqlite.a.peer_uids: must be a list of"),
        ('[sqlite.a]\nfunctions = ["a"]', "2: sqlite.a.functions: must be a list such as"),
        ('[sqlite.a]\nextensions = ["x.so"]', "2: sqlite.a.extensions: must be a path"),
    ],
)
def test_what_cannot_be(text: str, problem: str) -> None:
    assert wrong(f"{text}\n{UNIX}").startswith(problem)


def test_a_file_needs_a_unix_socket() -> None:
    assert wrong(NOTES) == (
        "1: sqlite.notes: is reached on unix sockets only: let [proxy] listen on one, such as"
        ' "unix:/run/txproxy"'
    )


def test_a_file_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    said = "1: sqlite.notes: needs a package: pip install 'txproxy[sqlite]'"
    assert wrong(NOTES + UNIX) == said
    assert read(ANY).sqlite == {}


def test_files_alone_are_a_configuration() -> None:
    """Nobody needs a password for them, so that nobody has one is no error."""
    config = sqlite('auth_type = "scram-sha-256"\n' + NOTES)
    assert config.sqlite == {"notes": SqliteFile(name="notes", path="/srv/notes.db")}
    assert wrong(UNIX).endswith('no database is configured; for all of a server: [databases."*"]')


def test_a_reload_that_cannot_be_is_refused() -> None:
    """A unix socket takes a restart: without one, there are no files."""
    with pytest.raises(ConfigError, match="unix sockets only"):
        read(ANY).reloaded(sqlite(NOTES))


def test_the_shipped_example(tmp_path: Path) -> None:
    """What proxy.toml has in comments is valid once it stands there."""
    shipped = Path(__file__).parent.parent / "proxy.toml"
    text = shipped.read_text().replace(
        'listen = ["127.0.0.1:6432"]', 'listen = ["unix:/run/txproxy"]'
    )
    begin = text.index("# [sqlite.notes]")
    example = text[begin:].partition("\n\n")[0]
    plain = "\n".join(line.removeprefix("# ") for line in example.splitlines())
    path = tmp_path / "proxy.toml"
    path.write_text(text.replace(example, plain))
    assert [*load(str(path)).sqlite] == ["notes"]


# What holds for a file.


def test_what_is_left_out_is_as_in_the_proxy() -> None:
    config = sqlite("idle_transaction_timeout = 7\nquery_timeout = 8\n" + NOTES)
    holds = config.file_settings(config.sqlite["notes"])
    assert (holds["idle_transaction_timeout"], holds["query_timeout"]) == (7, 8)
    config = sqlite("query_timeout = 8\n" + NOTES + "query_timeout = 9\n")
    assert config.file_settings(config.sqlite["notes"])["query_timeout"] == 9


def test_the_defaults() -> None:
    config = sqlite(NOTES)
    assert config.file_settings(config.sqlite["notes"]) == {
        "journal_mode": "wal",
        "busy_timeout": 5.0,
        "idle_writer_timeout": 2.0,
        "idle_transaction_timeout": 30.0,
        "query_timeout": 0.0,
        "commit_train": False,
        "checkpoint": "auto",
        "begin": "deferred",
        "functions": (),
        "extensions": (),
        "allow_create": False,
    }


def test_root_and_who_runs_the_proxy_may_use_it() -> None:
    file = SqliteFile(name="notes", path="/srv/notes.db")
    assert file.lets_in(0)
    assert file.lets_in(os.getuid())
    assert not file.lets_in(os.getuid() + 1)
    assert not file.lets_in(None)


def test_others_may_if_they_are_listed() -> None:
    file = SqliteFile(name="notes", path="/srv/notes.db", peer_uids=(33,))
    assert file.lets_in(33)
    assert not file.lets_in(0)
    assert not file.lets_in(None)


# Names.


class Files:
    """`notes` is a file beside the directory `data`, which has the file a.db."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.data.mkdir()
        self.notes = root / "notes.db"
        for path in (self.notes, self.data / "a.db"):
            path.touch()
        self.files = {
            "notes": SqliteFile(name="notes", path=str(self.notes)),
            ANY_FILE: SqliteFile(name=ANY_FILE, directory=str(self.data)),
        }

    def find(self, name: str) -> tuple[str, Path] | None:
        found = find(self.files, name)
        return found and (found[0].name, found[1])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path.resolve())


def test_names_and_paths(files: Files) -> None:
    assert files.find("notes") == ("notes", files.notes)
    assert files.find(str(files.notes)) == ("notes", files.notes)
    assert files.find("a.db") == (ANY_FILE, files.data / "a.db")
    assert files.find(f"{files.data}/../data//a.db") == (ANY_FILE, files.data / "a.db")


def test_a_file_need_not_exist(files: Files) -> None:
    assert files.find("new.db") == (ANY_FILE, files.data / "new.db")
    files.notes.unlink()
    assert files.find("notes") == ("notes", files.notes)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "*",
        ".",
        "..",
        ".hidden",
        "../notes.db",
        "sub/b.db",
        "./a.db",
        "a.db?mode=ro",
        "a\nb",
        "a\x7f",
        "a\\b",
        "/",
        "/etc/passwd",
        *("a.db" + end for end in BESIDE),
    ],
)
def test_names_that_are_no_files(files: Files, name: str) -> None:
    assert files.find(name) is None


def test_a_uri_is_a_name_with_a_colon(files: Files) -> None:
    assert files.find("file:a.db") == (ANY_FILE, files.data / "file:a.db")


def test_without_a_directory_there_are_only_names(files: Files) -> None:
    del files.files[ANY_FILE]
    assert files.find("a.db") is None
    assert files.find(str(files.data / "a.db")) is None
    assert files.find("notes") == ("notes", files.notes)


def test_what_is_in_a_directory_below_is_not_directly_inside(files: Files) -> None:
    (files.data / "sub").mkdir()
    (files.data / "sub" / "b.db").touch()
    assert files.find("sub/b.db") is None
    assert files.find(f"{files.data}/sub/b.db") is None
    assert files.find("sub") is None


def test_links_do_not_lead_out_of_the_directory(files: Files) -> None:
    (files.data / "out.db").symlink_to(files.root / "other.db")
    (files.data / "in.db").symlink_to("a.db")
    (files.data / "wal.db").symlink_to("a.db-wal")
    (files.data / "loop.db").symlink_to("loop.db")
    assert files.find("out.db") is None
    assert files.find("wal.db") is None
    assert files.find("loop.db") is None
    assert files.find("in.db") == (ANY_FILE, files.data / "a.db")


def test_a_link_to_a_named_file_is_that_file(files: Files) -> None:
    """With its own settings: a file has one queue, however it is called."""
    (files.data / "b.db").symlink_to(files.notes)
    assert files.find("b.db") == ("notes", files.notes)


def test_the_directory_itself_may_be_a_link(files: Files) -> None:
    link = files.root / "link"
    link.symlink_to(files.data)
    files.files[ANY_FILE] = SqliteFile(name=ANY_FILE, directory=str(link))
    assert files.find("a.db") == (ANY_FILE, files.data / "a.db")
    assert files.find(f"{files.data}/a.db") == (ANY_FILE, files.data / "a.db")


def test_what_is_no_plain_file(files: Files) -> None:
    os.mkfifo(files.data / "fifo")
    (files.data / "directory").mkdir()
    assert files.find("fifo") is None
    assert files.find("directory") is None
