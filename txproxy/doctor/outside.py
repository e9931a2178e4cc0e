"""Findings about an SQLite file from outside: who uses it, who may, and where it is."""

import re
import stat
from collections.abc import Iterator
from typing import Final

from txproxy.doctor.files import Account, FileFacts, Stat, group
from txproxy.doctor.finding import (
    MEGABYTE,
    Finding,
    count,
    ok,
    printable,
    problem,
    size,
    some,
    warning,
)
from txproxy.doctor.holders import Holder, WalIndex

_LARGE_WAL: Final = 64 * MEGABYTE
_LITTLE_SPACE: Final = 100 * MEGABYTE
_NO_SPACE: Final = 10 * MEGABYTE
_MANY_DESCRIPTORS: Final = 0.8  # of those allowed
_ALL_DESCRIPTORS: Final = 0.95

_NETWORK: Final = re.compile(
    "9p|afs|beegfs|ceph|cifs|davfs|drvfs|fuse[.](glusterfs|rclone|s3fs|sshfs)|glusterfs|gpfs|lustre"
    "|ncpfs|nfs4?|ocfs2|orangefs|prl_fs|smb3|smbfs|vboxsf|virtiofs|vmhgfs"
)
_LOCAL: Final = re.compile(
    "apfs|bcachefs|btrfs|ext[234]|f2fs|fuseblk|jfs|overlay|reiserfs|ufs|xfs|zfs"
)
_PASSING: Final = re.compile("ramfs|tmpfs")

_ENDPOINT: Final = "-m txproxy.backends.sqlite"

Findings = Iterator[Finding]


def from_outside(facts: FileFacts) -> Findings:
    """What is to be said of a file that is there."""
    for check in _CHECKS:
        yield from check(facts)


def _names(facts: FileFacts) -> Findings:
    if facts.file is not None and facts.file.links > 1:
        yield problem(
            "names",
            f"it has {facts.file.links} names (hard links)",
            "Keep one: who opens it by another name looks for another -wal and -journal, and"
            " corrupts it.",
        )


def processes(facts: FileFacts) -> tuple[Holder, ...]:
    """Those that are seen to have it open."""
    return facts.holders.processes if facts.holders is not None else ()


def _in_use(facts: FileFacts) -> Findings:
    if facts.holders is None:
        yield warning(
            "open in", "not known: there is no /proc here", "Ask `lsof` or `fuser` instead."
        )
        return
    said = [_use(each, facts.index) for each in facts.holders.processes if each.opened]
    found = count(len(said), "process", "processes") if said else "no process that can be seen"
    if facts.holders.unseen:
        others = count(facts.holders.unseen, "process", "processes")
        found += f"; {others} could not be looked into, which takes root (and SYS_PTRACE)"
    yield ok("open in", found, *some(said))


def _past_the_endpoint(facts: FileFacts) -> Findings:
    """Whoever writes beside txproxy's own process waits in no queue."""
    endpoints = [each for each in processes(facts) if _ENDPOINT in each.words]
    for holder in processes(facts):
        if endpoints and holder.writes and holder not in endpoints:
            yield warning(
                "past txproxy",
                f"process {holder.pid} writes to it, beside process {endpoints[0].pid} of txproxy",
                "Let it connect to txproxy, so that it waits in the queue like all others.",
                holder.words,
            )


def _use(holder: Holder, index: WalIndex | None) -> str:
    times = holder.opened.count("")
    said = [f"{times} times" if times > 1 else "", "is writing" if holder.writes else ""]
    if index is not None and holder.reads_at:
        said.append("is reading")
    detail = ", ".join(part for part in said if part)
    return f"{holder.words}{f' ({detail})' if detail else ''}"


def _replaced(facts: FileFacts) -> Findings:
    for holder in processes(facts):
        if not holder.gone:
            continue
        names = " and ".join(f"the {s.removeprefix('-') or 'database'} file" for s in holder.gone)
        yield problem(
            "replaced",
            f"process {holder.pid} has {names} open as it was before somebody deleted or"
            " replaced it: what it writes there is lost, or corrupts the new one",
            "End that process, then run this again; replace a file only while nobody has it open.",
            holder.words,
        )


def _descriptors(facts: FileFacts) -> Findings:
    known = [(each, each.limit) for each in processes(facts) if each.limit]
    for holder, limit in known:
        if holder.descriptors < _MANY_DESCRIPTORS * limit:
            continue
        full = holder.descriptors >= _ALL_DESCRIPTORS * limit
        yield (problem if full else warning)(
            "descriptors",
            f"process {holder.pid} has {holder.descriptors} of {limit} file descriptors open,"
            f" {len(holder.opened)} of them this file's",
            "Find what is opened and not closed (`txproxy doctor --audit`), or raise `ulimit -n`.",
            holder.words,
        )
    calm = [(h, limit) for h, limit in known if h.descriptors < _MANY_DESCRIPTORS * limit]
    if calm and len(calm) == len(known):
        most, limit = max(calm, key=lambda each: each[0].descriptors / each[1])
        yield ok(
            "descriptors", f"at most {most.descriptors} of {limit} are open, in process {most.pid}"
        )


def _permissions(facts: FileFacts) -> Findings:
    """Mode bits and owners; not ACLs, nor what a security module forbids."""
    file, directory = facts.file, facts.directory
    if file is None or directory is None:
        return
    said = list(_each_permission(facts, file, directory))
    if file.mode & stat.S_IWOTH:
        said.append(
            warning(
                "permissions",
                f"everybody may write to it ({stat.filemode(file.mode)})",
                "chmod o-w, and give those who need it a group.",
            )
        )
    names = ", ".join(f"{each.name} ({each.why})" for each in facts.accounts)
    yield from said or [ok("permissions", f"enough for {names}")]


def _each_permission(facts: FileFacts, file: Stat, directory: Stat) -> Findings:
    for account in facts.accounts:
        who = f"{account.name} ({account.why})"
        if not _may(account, file, read=True, write=True):
            yield _permission(
                account,
                f"{who} may not read and write it: {_owned(file)}",
                "Give that user, or a group of its, read and write permission.",
            )
        if not _may(account, directory, write=True, search=True):
            yield _permission(
                account,
                f"{who} may not make files in its directory: {_owned(directory)}",
                "Let that user write in the directory: SQLite makes -wal, -shm and -journal there.",
            )
        for suffix, said in facts.beside:
            if not _may(account, said, read=True, write=True):
                yield _permission(
                    account,
                    f"{who} may not read and write the {suffix} file: {_owned(said)}",
                    "Give that file the database's owner and mode, and find who runs as another"
                    " user.",
                )


def _permission(account: Account, found: str, advice: str) -> Finding:
    # Who looks at it without being one of those who use it may lack what those have.
    return (warning if account.why == "who runs this" else problem)("permissions", found, advice)


def _owned(said: Stat) -> str:
    return f"{stat.filemode(said.mode)}, user {said.uid}, group {group(said.gid)}"


def _may(
    account: Account, said: Stat, *, read: bool = False, write: bool = False, search: bool = False
) -> bool:
    if account.uid == 0:
        return True
    shift = 6 if account.uid == said.uid else 3 if said.gid in account.gids else 0
    wanted = 4 * read | 2 * write | 1 * search
    return (said.mode >> shift) & wanted == wanted


def _wal(facts: FileFacts) -> Findings:
    wal, index = facts.suffixed("-wal"), facts.index
    if wal is None:
        return
    found = f"{size(wal.size)}"
    if index is not None and wal.size:
        frames = count(index.frames, "frame")
        found += f", {frames}, {index.checkpointed} of them copied to the database file"
    readers = [_reader(each, index) for each in processes(facts) if each.reads_at] if index else []
    if wal.size < _LARGE_WAL:
        yield ok("WAL", found, *readers)
        return
    if index is not None and index.frames == index.checkpointed and not readers:
        advice = (
            "Run PRAGMA wal_checkpoint(TRUNCATE) once, and set PRAGMA journal_size_limit in the"
            " programs: all of it has been copied, and the file keeps its largest size."
        )
    elif readers:
        advice = (
            "End the reading transactions above, whose age cannot be seen from outside: while one"
            " is open the WAL can only grow."
        )
    else:
        advice = (
            "Run PRAGMA wal_checkpoint(TRUNCATE), and look for transactions that stay open, reading"
            " ones too."
        )
    yield warning("WAL", found, advice, *readers)


def _reader(holder: Holder, index: WalIndex | None) -> str:
    marks = [index.marks[i] for i in holder.reads_at] if index is not None else []
    oldest = min(marks, default=0)
    behind = index.frames - oldest if index is not None else 0
    if 0 in holder.reads_at:  # the mark of those that need nothing of the WAL
        return f"reads the database file alone: {holder.words}"
    return f"reads at frame {oldest}, {behind} behind: {holder.words}"


def _file_system(facts: FileFacts) -> Findings:
    mount = facts.mount
    if mount is None:
        return
    said = f"{mount.kind}, mounted on {printable(mount.point)}"
    if mount.read_only:
        yield problem("file system", f"{said}, read-only", "Mount it for writing.")
    if _NETWORK.fullmatch(mount.kind):
        yield (problem if facts.is_wal else warning)(
            "file system",
            f"{said}: other machines share it, but not SQLite's locks and shared memory",
            "Move the file to a local disk; a program elsewhere needs a server, not this file.",
        )
    elif _PASSING.fullmatch(mount.kind):
        yield warning(
            "file system", f"{said}: it is gone with the next boot", "Move the file to a disk."
        )
    elif not _LOCAL.fullmatch(mount.kind):
        yield warning(
            "file system",
            f"{said}: not known to be local",
            "Make sure that it is this machine's own, with POSIX locks and shared mmap.",
        )
    elif not mount.read_only:
        yield ok("file system", said)


def _space(facts: FileFacts) -> Findings:
    if facts.free is None:
        return
    found = f"{size(facts.free)} are free"
    if facts.free < _NO_SPACE:
        yield problem("disk space", found, "Make room: writing fails with SQLITE_FULL.")
    elif facts.free < _LITTLE_SPACE:
        yield warning("disk space", found, "Make room: the WAL grows, and VACUUM needs a copy.")
    else:
        yield ok("disk space", found)


_CHECKS: Final = (
    *(_names, _in_use, _past_the_endpoint, _replaced, _descriptors),
    *(_permissions, _wal, _file_system, _space),
)
