"""Which file it is, and whether this process may read it itself.

It may if the server holds that very file (device and inode are the same here), if the journal is a
WAL, which readers share with the writer through memory, and if the file system is one of this
machine's own. Else the server reads.

Source: https://www.sqlite.org/wal.html#overview, item 2 of the disadvantages
"""

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

_LOCAL: Final = frozenset(
    (
        "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "overlay",
        "ramfs", "reiserfs", "tmpfs", "xfs", "zfs",
    )
)  # fmt: skip
_MOUNTS: Final = Path("/proc/self/mounts")


def objection(said: Mapping[str, str]) -> str:
    """Why the file cannot be read here; "" if it can. `said`: the server's parameters."""
    path = said.get("txproxy.file", "")
    if not path:
        return "the server does not say which file it is"
    mode = said.get("txproxy.journal_mode", "")
    if mode != "wal":
        return f"its journal mode is {mode or 'unknown'}, not wal"
    try:
        found = os.stat(path)  # noqa: PTH116  # device and inode, nothing else
        readable = os.access(path, os.R_OK)
    except OSError as error:
        return f"{path} is not to be seen here: {error.strerror}"
    if said.get("txproxy.file_id") != f"{found.st_dev}:{found.st_ino}":
        return f"{path} is another file here than on the server"
    if not readable:
        return f"{path} may not be read by this process"
    kind = file_system(path, _mounts())
    if kind not in _LOCAL:
        return f"its file system, {kind or 'unknown'}, is not known as local"
    return ""


def file_system(path: str, mounts: str) -> str:
    """The type of the file system that `path` is on; `mounts` as in /proc/mounts, "" if unknown."""
    longest, found = -1, ""
    for line in mounts.splitlines():
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        point = (
            parts[1].encode().decode("unicode_escape").encode("latin-1").decode(errors="replace")
        )
        inside = point == "/" or path == point or path.startswith(point + "/")
        if inside and len(point) >= longest:  # the last one mounted is the one that is seen
            longest, found = len(point), parts[2]
    return found


def _mounts() -> str:
    try:
        return _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def name_of(database: Any, *, is_uri: bool) -> str:
    """What the server knows it by. sqlite3.NotSupportedError: it is none that it could have."""
    name = os.fsdecode(database)
    if is_uri and name.startswith("file:"):
        name, _, query = name.removeprefix("file:").partition("?")
        if query and query not in {"mode=rw", "mode=rwc"}:
            raise sqlite3.NotSupportedError(f"how the file is opened is the endpoint's: ?{query}")
        name = unquote(name)
    if name in {"", ":memory:"}:
        raise sqlite3.NotSupportedError(
            "a database in memory belongs to its process: open it with sqlite3.connect"
        )
    return name
