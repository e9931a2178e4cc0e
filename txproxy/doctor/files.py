"""Facts about an SQLite file as seen from outside: what stat, the mounts and its header say."""

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from txproxy.doctor.holders import Holders, WalIndex, holders, wal_index

HEADER: Final = 100
"""Bytes of a database file's header. https://sqlite.org/fileformat2.html#the_database_header"""

BESIDE: Final = ("-wal", "-shm", "-journal")
_MOUNTS: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Stat:
    """What stat says of a file or directory."""

    uid: int
    gid: int
    mode: int  # with the bits of its type
    size: int
    dev: int
    ino: int
    links: int
    changed: tuple[int, int]  # contents and status, in nanoseconds


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who has to do with the file, and why: `its owner`, `process 4711`."""

    uid: int
    name: str
    gids: frozenset[int]
    why: str


@dataclass(frozen=True, slots=True)
class Mount:
    """The file system that a path is on, as /proc/self/mountinfo tells."""

    kind: str
    point: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class FileFacts:
    """An SQLite file from outside. What is not there, or cannot be known, is None."""

    path: str  # as it was asked for
    real: str  # without symbolic links
    file: Stat | None
    directory: Stat | None
    beside: tuple[tuple[str, Stat], ...]  # by "-wal", "-shm", "-journal"
    header: bytes | None
    unreadable: str  # why there is no header; "" if there is one
    mount: Mount | None
    free: int | None  # bytes on its file system
    holders: Holders | None  # None: there is no /proc
    index: WalIndex | None
    accounts: tuple[Account, ...]

    def suffixed(self, suffix: str) -> Stat | None:
        """What is beside the file."""
        return dict(self.beside).get(suffix)

    @property
    def is_wal(self) -> bool:
        """Whether its header says so."""
        return self.header is not None and self.header[18:20] == b"\2\2"


def file_facts(path: str) -> FileFacts:
    """Look at a file. The calling process must not have it open through SQLite: it is opened here,
    for its header, and closing it would drop SQLite's locks.
    """
    real = os.path.realpath(path)
    file = stat_of(real)
    said, unreadable = header(real) if file is not None else (None, "")
    held = holders(real, _inodes(real)) if file is not None else None
    return FileFacts(
        path=path,
        real=real,
        file=file,
        directory=stat_of(os.path.dirname(real)),  # noqa: PTH120 realpath gives a str
        beside=beside(real),
        header=said,
        unreadable=unreadable,
        mount=_mount(real),
        free=_free(real),
        holders=held,
        index=wal_index(real + "-shm"),
        accounts=tuple(_accounts(file, held)),
    )


def stat_of(path: str) -> Stat | None:
    """None: there is none, or it may not be looked at."""
    try:
        said = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return Stat(
        uid=said.st_uid,
        gid=said.st_gid,
        mode=said.st_mode,
        size=said.st_size,
        dev=said.st_dev,
        ino=said.st_ino,
        links=said.st_nlink,
        changed=(said.st_mtime_ns, said.st_ctime_ns),
    )


def beside(real: str) -> tuple[tuple[str, Stat], ...]:
    """What SQLite keeps beside a database file."""
    found = ((suffix, stat_of(real + suffix)) for suffix in BESIDE)
    return tuple((suffix, said) for suffix, said in found if said is not None)


def _inodes(real: str) -> dict[tuple[int, int], str]:
    """The file's and its companions' inodes, with their suffixes."""
    found = ((suffix, stat_of(real + suffix)) for suffix in ("", *BESIDE))
    return {(said.dev, said.ino): suffix for suffix, said in found if said is not None}


def header(real: str) -> tuple[bytes | None, str]:
    """The first bytes of a regular file, else why there are none."""
    try:
        if not stat.S_ISREG(os.stat(real).st_mode):  # noqa: PTH116 a fifo would not open
            return None, "it is not a regular file"
        with Path(real).open("rb") as file:
            return file.read(HEADER), ""
    except OSError as error:
        return None, os.strerror(error.errno or errno.EIO)


def _mount(real: str) -> Mount | None:
    with contextlib.suppress(OSError):
        return mount_of(real, _MOUNTS.read_text("utf-8", "surrogateescape").splitlines())
    return None


def mount_of(path: str, mountinfo: Iterable[str]) -> Mount | None:
    """The mount that a path is on: the longest that it is below, of these the last. proc(5)."""
    best: Mount | None = None
    for line in mountinfo:
        front, _, back = line.partition(" - ")
        words, rest = front.split(" "), back.split(" ")
        if len(words) < 6 or not rest[0]:
            continue
        point = _unescaped(words[4])
        below = path == point or path.startswith(point.rstrip("/") + "/")
        if below and (best is None or len(point) >= len(best.point)):
            options = {*words[5].split(","), *rest[-1].split(",")}
            best = Mount(rest[0], point, "ro" in options)
    return best


def _unescaped(text: str) -> str:
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def _free(real: str) -> int | None:
    with contextlib.suppress(OSError):
        said = os.statvfs(os.path.dirname(real))  # noqa: PTH120
        return said.f_bavail * said.f_frsize
    return None


def _accounts(file: Stat | None, held: Holders | None) -> Iterable[Account]:
    """Who must be able to use it: its owner, who has it open, and who asks, unless that is root."""
    told: set[int] = set()
    if file is not None:
        told.add(file.uid)
        yield Account(file.uid, _user(file.uid), _groups(file.uid, file.gid), "its owner")
    for holder in held.processes if held is not None else ():
        if holder.uid not in told:
            told.add(holder.uid)
            why = f"process {holder.pid}"
            yield Account(holder.uid, _user(holder.uid), holder.gids, why)
    if os.geteuid() not in {0, *told}:
        gids = frozenset((os.getegid(), *os.getgroups()))
        yield Account(os.geteuid(), _user(os.geteuid()), gids, "who runs this")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups(uid: int, gid: int) -> frozenset[int]:
    try:
        entry = pwd.getpwuid(uid)
        return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    except (KeyError, OSError):
        return frozenset((gid,))


def group(gid: int) -> str:
    """A group's name, or its number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
