"""Facts as the doctor gathers them, of a file with which all is well."""

import stat
import struct
from dataclasses import replace
from typing import Any, Final

from txproxy.doctor.files import Account, FileFacts, Mount, Stat
from txproxy.doctor.holders import Holder, Holders, Lock, WalIndex
from txproxy.doctor.inside import InsideFacts

WEB: Final = 1000
OTHER: Final = 1001
SHARED: Final = 50  # a group
GIGABYTE: Final = 1_000_000_000


def a_file(mode: int = 0o640, uid: int = WEB, gid: int = WEB, size: int = 8192) -> Stat:
    return Stat(uid, gid, stat.S_IFREG | mode, size, 1, 2, 1, (0, 0))


def a_directory(mode: int = 0o750, uid: int = WEB, gid: int = WEB) -> Stat:
    return Stat(uid, gid, stat.S_IFDIR | mode, 4096, 1, 1, 2, (0, 0))


def an_account(uid: int = WEB, why: str = "its owner", *gids: int) -> Account:
    return Account(uid, {WEB: "web", OTHER: "other"}[uid], frozenset((uid, *gids)), why)


def a_holder(pid: int = 4711, **others: Any) -> Holder:
    holder = Holder(
        pid=pid,
        words=f"{pid} since 2026-11-21 07:00:03 UTC: /srv/shop/bin/python /srv/shop/bin/gunicorn",
        uid=WEB,
        gids=frozenset((WEB,)),
        opened=("", "-shm", "-wal"),
        gone=(),
        locks=(),
        descriptors=20,
        limit=1024,
    )
    return replace(holder, **others)


def reading(mark: int) -> Lock:
    return Lock("-shm", writes=False, first=123 + mark, last=123 + mark)


def an_index(frames: int = 20_000, checkpointed: int = 0, *marks: int) -> WalIndex:
    return WalIndex(frames, checkpointed, (0, *marks, *[0xFFFFFFFF] * (4 - len(marks))))


def outside(**others: Any) -> FileFacts:
    found = FileFacts(
        path="/srv/shop/shop.sqlite3",
        real="/srv/shop/shop.sqlite3",
        file=a_file(),
        directory=a_directory(),
        beside=(),
        header=b"SQLite format 3\0" + struct.pack(">HBB", 4096, 2, 2) + bytes(80),
        unreadable="",
        mount=Mount("ext4", "/", read_only=False),
        free=50 * GIGABYTE,
        holders=Holders((), 0),
        index=None,
        accounts=(an_account(),),
    )
    return replace(found, **others)


def within(**others: Any) -> InsideFacts:
    found = InsideFacts(
        version="3.53.2",
        tables=12,
        journal_mode="wal",
        page_size=4096,
        pages=12_000,
        integrity=(),
        foreign_keys=(),
    )
    return replace(found, **others)
