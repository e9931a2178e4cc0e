"""What follows from facts about a file."""

from collections.abc import Iterable

import pytest

from tests.doctor.facts import (
    GIGABYTE,
    OTHER,
    SHARED,
    WEB,
    a_directory,
    a_file,
    a_holder,
    an_account,
    an_index,
    outside,
    reading,
    within,
)
from txproxy.doctor.files import FileFacts, Mount
from txproxy.doctor.finding import Finding
from txproxy.doctor.holders import Holder, Holders, Lock, WalIndex
from txproxy.doctor.inside import Failure, InsideFacts
from txproxy.doctor.sqlite import judge


def not_well(facts: FileFacts, inside: InsideFacts | None = None) -> list[Finding]:
    """What is not as it should be."""
    return [each for each in judge(facts, inside or within()) if each.level != "ok"]


def one(facts: FileFacts, about: str, level: str) -> Finding:
    [finding] = not_well(facts)
    assert (finding.about, finding.level) == (about, level)
    assert finding.advice.endswith(".")
    return finding


def said(facts: FileFacts, about: str) -> list[str]:
    return [each.found for each in judge(facts, within()) if each.about == about]


def test_nothing_is_wrong() -> None:
    assert not_well(outside()) == []


# Permissions


def test_the_permissions_that_are_needed() -> None:
    assert said(outside(), "permissions") == ["enough for web (its owner)"]
    shared = outside(
        file=a_file(0o660, gid=SHARED),
        directory=a_directory(0o770, gid=SHARED),
        accounts=(an_account(), an_account(OTHER, "process 7", SHARED)),
    )
    assert said(shared, "permissions") == ["enough for web (its owner), other (process 7)"]


def test_a_directory_that_cannot_be_written() -> None:
    finding = one(outside(directory=a_directory(0o755, uid=0)), "permissions", "problem")
    assert finding.found.startswith("web (its owner) may not make files in its directory: drwxr-x")
    one(outside(directory=a_directory(0o660)), "permissions", "problem")  # nor entered


def test_a_file_that_cannot_be_written() -> None:
    facts = outside(
        file=a_file(0o640, gid=SHARED),
        directory=a_directory(0o770, gid=SHARED),
        accounts=(an_account(), an_account(OTHER, "process 7", SHARED)),
    )
    assert (
        "other (process 7) may not read and write it" in one(facts, "permissions", "problem").found
    )


def test_who_looks_at_it_need_not_use_it() -> None:
    accounts = (an_account(), an_account(OTHER, "who runs this"))
    assert {each.level for each in not_well(outside(accounts=accounts))} == {"warning"}


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_what_is_beside_it_belongs_to_somebody_else(suffix: str) -> None:
    facts = outside(beside=((suffix, a_file(0o644, uid=0, gid=0)),))
    finding = one(facts, "permissions", "problem")
    assert finding.found.startswith(
        f"web (its owner) may not read and write the {suffix} file: -rw-"
    )
    root = (an_account(), an_account(WEB, "process 1"))
    assert not_well(outside(accounts=root, beside=((suffix, a_file()),))) == []


def test_a_mode_is_that_of_the_nearest_class() -> None:
    """The owner has the owner's bits, whatever all others have."""
    one(outside(file=a_file(0o060)), "permissions", "problem")


def test_everybody_may_write() -> None:
    finding = one(outside(file=a_file(0o646)), "permissions", "warning")
    assert finding.found == "everybody may write to it (-rw-r--rw-)"


# Who has it open


def test_processes_are_listed() -> None:
    facts = outside(holders=Holders(tuple(a_holder(pid) for pid in range(1, 15)), 3))
    [finding] = [each for each in judge(facts, within()) if each.about == "open in"]
    assert finding.found == (
        "14 processes; 3 processes could not be looked into, which takes root (and SYS_PTRACE)"
    )
    assert len(finding.details) == 11
    assert finding.details[-1] == "and 4 more"


def test_where_there_is_no_proc() -> None:
    one(outside(holders=None), "open in", "warning")


def test_who_writes_past_the_endpoint() -> None:
    writing = (Lock("-shm", writes=True, first=120, last=120),)
    words = "1 since 2026-11-21 07:00:03 UTC: /usr/bin/python3 -m txproxy.backends.sqlite"
    endpoint, other = a_holder(1, words=words), a_holder(2, locks=writing)
    found = one(outside(holders=Holders((endpoint, other), 0)), "past txproxy", "warning")
    assert found.found.startswith("process 2 writes to it, beside process 1 of txproxy")
    itself = a_holder(1, words=words, locks=writing)
    assert not_well(outside(holders=Holders((itself, a_holder(2)), 0))) == []
    assert not_well(outside(holders=Holders((other,), 0))) == []


@pytest.mark.parametrize(
    ("descriptors", "level"), [(818, "ok"), (820, "warning"), (973, "problem")]
)
def test_descriptors(descriptors: int, level: str) -> None:
    holders = Holders((a_holder(descriptors=descriptors), a_holder(7)), 0)
    findings = judge(outside(holders=holders), within())
    assert [each.level for each in findings if each.about == "descriptors"] == [level]


def test_a_process_without_a_limit() -> None:
    holders = Holders((a_holder(descriptors=10**6, limit=None),), 0)
    assert said(outside(holders=holders), "descriptors") == []


# The WAL


def large(index: WalIndex | None, *holders: Holder) -> FileFacts:
    return outside(
        beside=(("-wal", a_file(size=GIGABYTE)),), index=index, holders=Holders(holders, 0)
    )


def test_a_wal_that_a_reader_keeps() -> None:
    facts = large(an_index(20_000, 5, 5), a_holder(locks=(reading(1),)))
    finding = one(facts, "WAL", "warning")
    assert finding.found == "1 GB, 20000 frames, 5 of them copied to the database file"
    assert finding.advice.startswith("End the reading transactions")
    assert finding.details[0].startswith("reads at frame 5, 19995 behind: 4711 since ")


def test_a_wal_that_has_only_been_large() -> None:
    assert "journal_size_limit" in one(large(an_index(20_000, 20_000)), "WAL", "warning").advice


def test_a_wal_that_nobody_keeps() -> None:
    assert "TRUNCATE" in one(large(an_index(20_000, 7)), "WAL", "warning").advice
    assert "TRUNCATE" in one(large(None), "WAL", "warning").advice


# Where it is


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("nfs4", ["problem"]),
        ("cifs", ["problem"]),
        ("fuse.sshfs", ["problem"]),
        ("tmpfs", ["warning"]),
        ("fuse.anything", ["warning"]),
        ("ext4", []),
        ("overlay", []),
    ],
)
def test_file_systems(kind: str, levels: list[str]) -> None:
    facts = outside(mount=Mount(kind, "/srv", read_only=False))
    assert [each.level for each in not_well(facts)] == levels


def test_a_network_without_a_wal() -> None:
    one(
        outside(mount=Mount("nfs", "/srv", read_only=False), header=bytes(100)),
        "file system",
        "warning",
    )


def test_mounted_for_reading_only() -> None:
    one(outside(mount=Mount("ext4", "/srv", read_only=True)), "file system", "problem")


def test_where_mounts_are_not_known() -> None:
    assert said(outside(mount=None, free=None), "file system") == []


@pytest.mark.parametrize(("free", "levels"), [(0, ["problem"]), (50_000_000, ["warning"])])
def test_disk_space(free: int, levels: list[str]) -> None:
    assert [each.level for each in not_well(outside(free=free))] == levels


# From inside


def abouts(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(each.about, each.level) for each in findings]


def test_unused_pages() -> None:
    little = within(pages=100, free_pages=90)
    assert not_well(outside(), little) == []
    much = within(pages=100_000, free_pages=60_000)
    assert abouts(not_well(outside(), much)) == [("unused pages", "warning")]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(5, "database is locked"), "it was locked"),
        (Failure(776, "attempt to write a readonly database"), "a writer has died"),
        (Failure(26, "file is not a database"), "it is not an SQLite database"),
        (Failure(11, "database disk image is malformed"), "it is corrupt"),
        (Failure(14, "unable to open database file"), "SQLite cannot use its -wal and -shm"),
        (Failure(266, "disk I/O error"), "SQLite says: disk I/O error"),
    ],
)
def test_what_cannot_be_opened(failure: Failure, words: str) -> None:
    [finding] = not_well(outside(), InsideFacts("3.53.2", failure))
    assert (finding.about, finding.level) == ("opened", "problem")
    assert finding.found.startswith(words)


def test_what_may_not_be_read() -> None:
    facts = outside(header=None, unreadable="Permission denied")
    [finding] = not_well(facts, InsideFacts("3.53.2", Failure(14, "unable to open database file")))
    assert finding.found == "it cannot be read: Permission denied"


def test_a_check_that_fails_itself() -> None:
    corrupt = within(integrity=Failure(11, "database disk image is malformed"))
    assert abouts(not_well(outside(), corrupt)) == [("integrity", "problem")]
    other = within(foreign_keys=Failure(1, "foreign key mismatch"))
    assert abouts(not_well(outside(), other)) == [("foreign keys", "warning")]
