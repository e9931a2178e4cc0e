"""CREATE DATABASE and DROP DATABASE: files beside the one that a session has.

For test databases, with `allow_create` only. A name is a file's, directly inside the directory.
"""

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final, NamedTuple

from txproxy.backends.sqlite.backup import copy
from txproxy.backends.sqlite.owner import SUFFIX, Owner
from txproxy.errors import TxproxyError

_NAME: Final = r"""("(?:[^"]|"")+"|'(?:[^']|'')+'|[^\s"';]+)"""
_CREATE: Final = re.compile(
    rf"\s*CREATE\s+DATABASE\s+{_NAME}(?:\s+(?:WITH\s+)?TEMPLATE\s*=?\s*{_NAME})?\s*;?\s*",
    re.IGNORECASE,
)
_DROP: Final = re.compile(rf"\s*DROP\s+DATABASE\s+(IF\s+EXISTS\s+)?{_NAME}\s*;?\s*", re.IGNORECASE)
_COMPANIONS: Final = ("-wal", "-shm", "-journal", SUFFIX)
_MODE: Final = 0o644
_LONGEST: Final = 200  # of a name, in bytes: its companions' are longer


class Create(NamedTuple):
    """CREATE DATABASE name [TEMPLATE template]."""

    name: str
    template: str | None


class Drop(NamedTuple):
    """DROP DATABASE [IF EXISTS] name."""

    name: str
    may_be_missing: bool


def command(sql: str) -> Create | Drop | None:
    """What a Query orders; None: it is SQLite's to read."""
    if found := _CREATE.fullmatch(sql):
        return Create(_unquoted(found[1]), _unquoted(found[2]) if found[2] else None)
    if found := _DROP.fullmatch(sql):
        return Drop(_unquoted(found[2]), found[1] is not None)
    return None


def _unquoted(name: str) -> str:
    quote = name[0]
    return name[1:-1].replace(quote * 2, quote) if quote in {'"', "'"} else name


def beside(path: str, name: str) -> str:
    """Where the file of that name is. TxproxyError (42602): it is no name of a file there."""
    is_file = name not in {".", ".."} and "/" not in name and "\0" not in name
    if not is_file or len(name.encode()) > _LONGEST or name.endswith(_COMPANIONS):
        raise TxproxyError(f'"{name}" cannot be the name of a database', sqlstate="42602")
    return str(Path(path).parent / name)


def create(path: str, template: str | None, like: str | None) -> None:
    """Make the file, empty or a copy, with the mode of `like`, or SQLite's own.

    TxproxyError: it is there, or the template is not; OSError, apsw.Error: the file system's, or
    SQLite's, refusal.
    """
    if template is not None and not Path(template).is_file():
        raise TxproxyError(f'the file "{template}" does not exist', sqlstate="3D000")
    mode = stat.S_IMODE(Path(like).stat().st_mode) if like else _MODE
    name = f"{path}{SUFFIX}-{secrets.token_hex(8)}"
    os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        if template is not None:
            copy(template, name)
        os.link(name, path, follow_symlinks=False)  # which replaces nothing
    except FileExistsError:
        raise TxproxyError(f'database "{path}" already exists', sqlstate="42P04") from None
    finally:
        Path(name).unlink()


def drop(path: str, *, may_be_missing: bool) -> None:
    """Remove the file and what SQLite has put beside it. TxproxyError: it is not there, or another
    process has it; OSError: the file system's refusal.
    """
    if not Path(path).is_file() or Path(path).is_symlink():
        if may_be_missing:
            return
        raise TxproxyError(f'database "{path}" does not exist', sqlstate="3D000")
    try:
        owner = Owner(path)
    except BlockingIOError:
        raise in_use(path) from None
    try:
        for suffix in ("", *_COMPANIONS):
            Path(path + suffix).unlink(missing_ok=True)
    finally:
        owner.release()


def in_use(path: str) -> TxproxyError:
    """For a file that somebody has."""
    return TxproxyError(f'database "{path}" is being accessed by other users', sqlstate="55006")
