"""What /proc and the wal-index say, read."""

import os
import struct
import sys
from pathlib import Path
from typing import Final

from tests.doctor.facts import a_holder
from txproxy.doctor.files import Mount, file_facts, mount_of
from txproxy.doctor.holders import Lock, WalIndex, holders, read_index, read_locks

LOCKS: Final = """\
1: POSIX  ADVISORY  WRITE 41 fe:00:2459949 120 120
1: -> POSIX  ADVISORY  WRITE 42 fe:00:2459949 120 120
2: POSIX  ADVISORY  READ 41 fe:00:2459946 1073741826 1073742335
3: FLOCK  ADVISORY  WRITE 41 00:17:552 0 EOF
4: POSIX  ADVISORY  WRITE 43 00:17:552 0 EOF
5: OFDLCK ADVISORY  READ -1 00:17:553 0 EOF
"""
MOUNTS: Final = """\
25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 25 0:40 / /srv rw,relatime - nfs4 server:/srv rw,vers=4.2
31 30 8:2 / /srv/with\\040space ro,relatime - xfs /dev/sdb1 rw
32 25 8:3 / /srvs rw - btrfs /dev/sdc1 rw
33 30 8:4 / /srv rw,relatime master:1 propagate_from:2 - zfs pool ro
"""


def test_locks() -> None:
    assert read_locks(LOCKS.splitlines()) == {
        41: [
            (2459949, Lock("", True, 120, 120)),
            (2459946, Lock("", False, 1073741826, 1073742335)),
        ],
        43: [(552, Lock("", True, 0, 1 << 63))],
    }


def test_who_writes_and_who_reads() -> None:
    def holder(*locks: Lock) -> tuple[bool, tuple[int, ...]]:
        found = a_holder(locks=locks)
        return found.writes, found.reads_at

    assert holder() == (False, ())
    assert holder(Lock("-shm", True, 120, 120)) == (True, ())
    assert holder(Lock("", True, 0x40000001, 0x40000001)) == (True, ())
    assert holder(Lock("", False, 0x40000002, 0x400001FF)) == (False, ())
    assert holder(Lock("-shm", False, 123, 123), Lock("-shm", False, 126, 126)) == (False, (0, 3))
    assert holder(Lock("-shm", True, 124, 127)) == (False, ())  # a checkpoint's


def test_mounts() -> None:
    lines = MOUNTS.splitlines()
    assert mount_of("/home/x", lines) == Mount("ext4", "/", False)
    assert mount_of("/srv/x", lines[:2]) == Mount("nfs4", "/srv", False)
    assert mount_of("/srv/with space/x", lines) == Mount("xfs", "/srv/with space", True)
    assert mount_of("/srvs/x", lines) == Mount("btrfs", "/srvs", False)
    assert mount_of("/srv/x", lines) == Mount("zfs", "/srv", True)  # mounted over the other one
    assert mount_of("/x", []) is None
    assert mount_of("/x", ["what is not known"]) is None


def index(frames: int = 7) -> bytes:
    header = struct.pack("=IIIBBHIII", 3007000, 0, 1, 1, 0, 4096, frames, 3, 0).ljust(48, b"\0")
    return header * 2 + struct.pack("=6I", 4, 0, 5, 7, 0xFFFFFFFF, 0xFFFFFFFF).ljust(40, b"\0")


def test_the_wal_index() -> None:
    assert read_index(index()) == WalIndex(7, 4, (0, 5, 7, 0xFFFFFFFF, 0xFFFFFFFF))


def test_a_wal_index_that_says_nothing() -> None:
    assert read_index(b"") is None
    assert read_index(bytes(136)) is None  # nobody has used it yet
    assert read_index(index(7)[:48] + index(8)[48:]) is None  # it is being written


def test_this_process_is_not_among_the_holders(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w"):
        said = path.stat()
        assert holders(str(path), {(said.st_dev, said.st_ino): ""}) is not None
        found = holders(str(path), {(said.st_dev, said.st_ino): ""})
        assert found is not None
        assert found.processes == ()


def test_accounts_of_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert [(each.uid, each.why) for each in file_facts(str(path)).accounts] == [
        (os.geteuid(), "its owner")
    ]
    assert sys.platform != "linux" or file_facts(str(path)).mount is not None
