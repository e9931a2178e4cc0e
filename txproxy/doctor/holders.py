"""Who has an SQLite file open, and what they hold of it, as /proc and the wal-index tell.

Which bytes SQLite locks: https://sqlite.org/src/file/src/os.h (PENDING_BYTE and the next) for the
database file, https://sqlite.org/walformat.html#wal_locks for the -shm file.
"""

import contextlib
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from txproxy.net.process import described

_PROC: Final = Path("/proc")
_DELETED: Final = " (deleted)"

RESERVED: Final = 0x40000001  # of the database file: somebody writes, or is about to
WRITE: Final = 120  # of the -shm file: somebody writes
CHECKPOINT: Final = 121
READ: Final = 123  # and the four behind it: somebody reads
READERS: Final = 5

_INDEX: Final = 136  # bytes of a wal-index that are read
_MX_FRAME: Final = 16
_BACKFILL: Final = 96


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock of a process's, on bytes of the file with this suffix ("", "-shm", ...)."""

    suffix: str
    writes: bool
    first: int
    last: int

    def covers(self, byte: int) -> bool:
        """Whether the byte is among them."""
        return self.first <= byte <= self.last


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has the file, or what is beside it, open."""

    pid: int
    words: str  # pid, since when, program
    uid: int
    gids: frozenset[int]
    opened: tuple[str, ...]  # a suffix for each descriptor
    gone: tuple[str, ...]  # suffixes of files of that name that have been deleted or replaced
    locks: tuple[Lock, ...]
    descriptors: int  # all that it has open
    limit: int | None  # of descriptors; None: unlimited or not known

    @property
    def writes(self) -> bool:
        """Whether it is writing, or about to."""
        return any(
            lock.writes and lock.covers(WRITE if lock.suffix == "-shm" else RESERVED)
            for lock in self.locks
            if lock.suffix in {"", "-shm"}
        )

    @property
    def reads_at(self) -> tuple[int, ...]:
        """Which of the wal-index's marks it reads at."""
        marks = range(READERS)
        shared = [lock for lock in self.locks if lock.suffix == "-shm" and not lock.writes]
        return tuple(i for i in marks if any(lock.covers(READ + i) for lock in shared))


@dataclass(frozen=True, slots=True)
class Holders:
    """Those that can be seen, and how many processes could not be looked into."""

    processes: tuple[Holder, ...]
    unseen: int


@dataclass(frozen=True, slots=True)
class WalIndex:
    """Of the WAL: its frames, those that are in the database file too, and the readers' marks."""

    frames: int
    checkpointed: int
    marks: tuple[int, ...]


# The wal-index.


def wal_index(shm: str) -> WalIndex | None:
    """What a -shm file says. As with the database file: SQLite must not have it open here."""
    with contextlib.suppress(OSError), Path(shm).open("rb") as file:
        return read_index(file.read(_INDEX))
    return None


def read_index(said: bytes) -> WalIndex | None:
    """https://sqlite.org/walformat.html#the_wal_index_file_format, in the machine's byte order."""
    if len(said) < _INDEX or not any(said[:48]) or said[:48] != said[48:96]:
        return None
    (frames,) = struct.unpack_from("=I", said, _MX_FRAME)
    checkpointed, *marks = struct.unpack_from("=6I", said, _BACKFILL)
    return WalIndex(frames, checkpointed, tuple(marks))


# Processes.


def holders(real: str, inodes: Mapping[tuple[int, int], str]) -> Holders | None:
    """Who has the file at this path open, other than this process. `inodes`: its device and inode,
    and those of what is beside it, with their suffixes. None: there is no /proc.
    """
    try:
        pids = sorted(int(path.name) for path in _PROC.iterdir() if path.name.isdecimal())
    except OSError:
        return None
    locks = _locks()
    found, unseen = [], 0
    for pid in pids:
        if pid == os.getpid():
            continue
        try:
            holder = _holder(pid, real, inodes, locks)
        except PermissionError:
            unseen += not _is_dead(pid)
        except OSError:  # it has ended
            pass
        else:
            if holder is not None:
                found.append(holder)
    return Holders(tuple(found), unseen)


def _is_dead(pid: int) -> bool:
    """A process that has ended holds nothing, and lets nobody see that."""
    try:
        state = _PROC.joinpath(str(pid), "stat").read_text("utf-8", "replace").rpartition(")")[2]
    except OSError:
        return True
    return state.split()[:1] in ([], ["Z"], ["X"])


def _holder(
    pid: int,
    real: str,
    inodes: Mapping[tuple[int, int], str],
    locks: Mapping[int, list[tuple[int, Lock]]],
) -> Holder | None:
    opened, gone, descriptors = [], [], 0
    names = {os.path.basename(real) + s: s for s in ("", "-wal", "-shm", "-journal")}  # noqa: PTH119
    with os.scandir(_PROC / str(pid) / "fd") as entries:
        for entry in entries:
            descriptors += 1
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                link = os.readlink(entry)  # noqa: PTH115 a Path for each of thousands
                bare = link.removesuffix(_DELETED)
                suffix = names.get(bare.rpartition("/")[2])
                if suffix is None:
                    continue
                said = entry.stat()
                held = inodes.get((said.st_dev, said.st_ino))
                if held is not None:
                    opened.append(held)
                elif bare == real + suffix and said.st_nlink == 0 and suffix != "-journal":
                    gone.append(suffix)
    if not opened and not gone:
        return None
    uid, gids = _credentials(pid)
    by_inode = {inode: suffix for (_, inode), suffix in inodes.items()}
    return Holder(
        pid=pid,
        words=described(pid) or str(pid),
        uid=uid,
        gids=gids,
        opened=tuple(sorted(opened)),
        gone=tuple(sorted(set(gone))),
        # A device is not compared: some file systems show stat another one than the locks.
        locks=tuple(
            Lock(by_inode[inode], lock.writes, lock.first, lock.last)
            for inode, lock in locks.get(pid, ())
            if inode in by_inode
        ),
        descriptors=descriptors,
        limit=_limit(pid),
    )


def _credentials(pid: int) -> tuple[int, frozenset[int]]:
    """The effective user of a process, and its groups."""
    fields = dict(
        line.split(":", 1)
        for line in _PROC.joinpath(str(pid), "status").read_text("utf-8", "replace").splitlines()
        if ":" in line
    )
    gids = (fields["Gid"].split()[1], *fields.get("Groups", "").split())
    return int(fields["Uid"].split()[1]), frozenset(map(int, gids))


def _limit(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        said = _PROC.joinpath(str(pid), "limits").read_text()
        found = re.search(r"^Max open files +(\d+)", said, re.MULTILINE)
        return int(found[1]) if found else None
    return None


def _locks() -> dict[int, list[tuple[int, Lock]]]:
    with contextlib.suppress(OSError):
        return read_locks(_PROC.joinpath("locks").read_text().splitlines())
    return {}


def read_locks(lines: Iterable[str]) -> dict[int, list[tuple[int, Lock]]]:
    """By process, the inodes and the locks on them; of those, only ones that are held. proc(5)."""
    found: dict[int, list[tuple[int, Lock]]] = {}
    for pid, inode, lock in _each_lock(lines):
        found.setdefault(pid, []).append((inode, lock))
    return found


def _each_lock(lines: Iterable[str]) -> Iterator[tuple[int, int, Lock]]:
    for line in lines:
        words = line.split()
        # "->" stands before one that is waited for; leases and flocks are not SQLite's
        if len(words) != 8 or words[1] != "POSIX":
            continue
        last = 1 << 63 if words[7] == "EOF" else int(words[7])
        lock = Lock("", words[3] == "WRITE", int(words[6]), last)
        yield int(words[4]), int(words[5].rpartition(":")[2]), lock
