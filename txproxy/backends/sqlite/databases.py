"""CREATE DATABASE and DROP DATABASE: files of the directory in which clients may make them.

What these functions do takes time, and they raise TxproxyError and OSError.
"""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from txproxy.backends.sqlite.owner import Owner
from txproxy.config.sqlite import ANY_FILE, BESIDE, SqliteFile, find
from txproxy.errors import TxproxyError

_NAME: Final = r"""("(?:[^"]|"")+"|'(?:[^']|'')+'|[\w./-]+)"""
_CREATE: Final = re.compile(
    rf"\s*CREATE\s+DATABASE\s+{_NAME}(?:\s+(?:WITH\s+)?TEMPLATE\s*=?\s*{_NAME})?\s*;?\s*",
    re.IGNORECASE,
)
_DROP: Final = re.compile(rf"\s*DROP\s+DATABASE\s+(IF\s+EXISTS\s+)?{_NAME}\s*;?\s*", re.IGNORECASE)
_MODE: Final = 0o644  # as SQLite makes files
_PATIENCE: Final = 10_000  # milliseconds for a lock on a template, off WAL


class Create(NamedTuple):
    """CREATE DATABASE; `template` is "" for an empty file."""

    name: str
    template: str


class Drop(NamedTuple):
    """DROP DATABASE."""

    name: str
    if_exists: bool


def read(sql: str) -> Create | Drop:
    """The one statement of a text. TxproxyError: it is neither."""
    found = _CREATE.fullmatch(sql)
    if found:
        return Create(_unquoted(found[1]), _unquoted(found[2] or ""))
    found = _DROP.fullmatch(sql)
    if found:
        return Drop(_unquoted(found[2]), bool(found[1]))
    raise TxproxyError(
        "only CREATE DATABASE name [TEMPLATE other] and DROP DATABASE [IF EXISTS] name work here",
        sqlstate="0A000",
    )


def locate(directory: str, name: str) -> str:
    """The path of a file of that name, or path, directly inside. TxproxyError: none can be."""
    place = find({ANY_FILE: SqliteFile(name=ANY_FILE, directory=directory)}, name)
    if place is None:
        raise TxproxyError(
            f'"{name}" is no name of a file directly inside {directory}', sqlstate="42602"
        )
    return str(place[1])


def create(path: str) -> None:
    """An empty file, which is an SQLite database."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
    except FileExistsError:
        raise _exists(path) from None


def clone(path: str, template: str) -> None:
    """A copy of what is committed, made by SQLite: it may have the template open."""
    if Path(path).exists():
        raise _exists(path)
    if not Path(template).is_file():
        raise missing(template)
    unfinished = f"{path}-txproxy-{secrets.token_hex(8)}"
    create(unfinished)
    try:
        _copy(template, unfinished)
        os.link(unfinished, path)
    except FileExistsError:
        raise _exists(path) from None
    finally:
        os.unlink(unfinished)  # noqa: PTH108 - no Path: nothing here opens what SQLite has open


def _copy(template: str, path: str) -> None:
    copy = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    source = apsw.Connection(template, flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        for pragma in ("journal_mode", "synchronous"):
            copy.execute(f"PRAGMA {pragma} = OFF").fetchall()
        source.set_busy_timeout(_PATIENCE)
        source.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        with copy.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(-1)
    finally:
        source.close()
        copy.close()


def remove(path: str) -> None:
    """The file, and what SQLite and we keep beside it; nobody here has it open.

    BlockingIOError: another process owns it.
    """
    if not Path(path).is_file():
        raise missing(path)
    owner = Owner(path)
    try:
        for end in ("", *BESIDE):
            with suppress(FileNotFoundError):
                os.unlink(path + end)  # noqa: PTH108
    finally:
        owner.release()


def missing(path: str) -> TxproxyError:
    """There is no such file."""
    return TxproxyError(f'database "{Path(path).name}" does not exist', sqlstate="3D000")


def _exists(path: str) -> TxproxyError:
    return TxproxyError(f'database "{Path(path).name}" already exists', sqlstate="42P04")


def _unquoted(name: str) -> str:
    quote = name[:1]
    return name[1:-1].replace(quote * 2, quote) if quote and quote in "'\"" else name
