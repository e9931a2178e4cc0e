"""What is configured of SQLite files, and which file a client means by a name."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ANY_FILE: Final = "*"

BESIDE: Final = ("-wal", "-shm", "-journal", "-txproxy")
"""What the names of the files end in that SQLite and we keep beside a database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteFile:
    """One [sqlite.NAME]. Times are seconds; None: as it is in [proxy].

    `path` is that of the file; `directory`, of [sqlite."*"], has all others in it: one of the two
    is "".
    """

    name: str
    path: str = ""
    directory: str = ""
    allow_create: bool = False
    peer_uids: tuple[int, ...] | None = None
    journal_mode: str = "wal"
    begin: str = "deferred"
    busy_timeout: float = 5.0
    idle_writer_timeout: float = 2.0
    idle_transaction_timeout: float | None = None
    query_timeout: float | None = None
    commit_train: bool = False
    checkpoint: str = "auto"
    functions: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()

    def lets_in(self, uid: int | None) -> bool:
        """Whether a process of this operating-system user may use it; None: nobody knows whose."""
        allowed = (os.getuid(), 0) if self.peer_uids is None else self.peer_uids
        return uid in allowed


def find(files: Mapping[str, SqliteFile], name: str) -> tuple[SqliteFile, Path] | None:
    """What is configured for the file that a client means by a name, and the file's path without
    links; None if clients can have no such file. It need not exist.

    The name is a configured one, or that of a file directly inside the configured directory, or the
    path of one of these.
    """
    if name in files and name != ANY_FILE:
        return files[name], _real(files[name].path)
    others = files.get(ANY_FILE)
    written = Path(name)
    if not name.startswith("/"):
        if others is None or not _is_plain(name):
            return None
        written = Path(others.directory, name)
    path = _real(written)
    for file in files.values():
        if file.path and _real(file.path) == path:
            return file, path
    if others is not None and _is_plain(written.name) and _is_in(others.directory, path):
        return others, path
    return None


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _is_plain(name: str) -> bool:
    """Whether this can be a database's name in a directory: nothing hidden, nothing of SQLite's."""
    odd = not name.isprintable() or any(sign in name for sign in "/\\*?")
    return bool(name) and not odd and not name.startswith(".") and not name.endswith(BESIDE)


def _is_in(directory: str, path: Path) -> bool:
    """Whether it is a plain file directly inside, or could be one: it need not exist."""
    return path.parent == _real(directory) and _is_plain(path.name) and _may_be_file(path)


def _may_be_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True
    except OSError:
        return False
