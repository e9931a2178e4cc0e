"""Findings about an SQLite file, from the facts alone."""

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from txproxy.doctor.files import Account, FileFacts, Stat, file_facts, group
from txproxy.doctor.finding import (
    MEGABYTE,
    Finding,
    Section,
    count,
    ok,
    printable,
    problem,
    size,
    warning,
)
from txproxy.doctor.holders import Holder, WalIndex
from txproxy.doctor.inside import (
    BUSY,
    CANTOPEN,
    CORRUPT,
    LOCKED_FOR,
    MOST,
    NOT_A_DATABASE,
    READONLY_ROLLBACK,
    Failure,
    InsideFacts,
    inside_facts,
)

_MAGIC: Final = b"SQLite format 3\0"
_SHOWN: Final = 10  # complaints, processes
_LARGE_WAL: Final = 64 * MEGABYTE
_LITTLE_SPACE: Final = 100 * MEGABYTE
_NO_SPACE: Final = 10 * MEGABYTE
_MANY_DESCRIPTORS: Final = 0.8  # of those allowed
_ALL_DESCRIPTORS: Final = 0.95
_UNUSED: Final = 0.5  # of the pages, from which VACUUM is worth it
_WORTH_IT: Final = 100 * MEGABYTE

_NETWORK: Final = frozenset(
    "9p afs beegfs ceph cifs davfs drvfs fuse.glusterfs fuse.rclone fuse.s3fs fuse.sshfs glusterfs"
    " gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs prl_fs smb3 smbfs vboxsf virtiofs vmhgfs".split()
)
_LOCAL: Final = frozenset(
    "apfs bcachefs btrfs ext2 ext3 ext4 f2fs fuseblk jfs overlay reiserfs ufs xfs zfs".split()
)
_PASSING: Final = frozenset(("ramfs", "tmpfs"))

_RESTORE: Final = "Stop what writes, keep a copy, and restore a backup, or save rows by `.recover`."

Findings = Iterator[Finding]


def examine(path: str) -> Section:
    """Look at a file and judge it. This process must not have it open in any way."""
    outside = file_facts(path)
    readable = outside.file is not None and stat.S_ISREG(outside.file.mode)
    return Section(printable(path), tuple(judge(outside, inside_facts(outside) if readable else None)))


def judge(outside: FileFacts, inside: InsideFacts | None) -> Findings:
    """What is to be said about a file. `inside` is None if there is no file to read."""
    if outside.file is None:
        yield _missing(outside)
        return
    if not stat.S_ISREG(outside.file.mode):
        yield problem("opened", "it is not a regular file", "Name the database file itself.")
        return
    if inside is not None:
        yield _opened(outside, inside)
        yield from _contents(inside)
        yield from _journal_mode(outside, inside)
    for check in (_names, _in_use, _replaced, _descriptors, _permissions, _wal, _file_system):
        yield from check(outside)
    yield from _space(outside)
    if inside is not None:
        yield from _unused(inside)


def _missing(facts: FileFacts) -> Finding:
    if facts.directory is None:
        found = "neither the file nor its directory is there, or may be looked at"
    else:
        found = "there is no such file, or it may not be looked at"
    return problem("opened", found, "Check the path; a relative one depends on the working directory.")


# From inside.


def _opened(outside: FileFacts, inside: InsideFacts) -> Finding:
    if inside.failure is not None:
        return _not_opened(outside, inside.failure)
    if outside.file is not None and outside.file.size == 0 and not inside.tables:
        return warning(
            "opened",
            "it is empty: no tables, not even a header",
            "Check the path: SQLite makes an empty file of a name that it does not find.",
        )
    tables = count(inside.tables, "table")
    what = f"{tables}, {size(inside.pages * inside.page_size)} in pages of {inside.page_size} bytes"
    return ok("opened", f"SQLite {inside.version} reads it: {what}")


def _not_opened(outside: FileFacts, failure: Failure) -> Finding:
    if outside.unreadable:
        return problem(
            "opened",
            f"it cannot be read: {outside.unreadable}",
            "Run this as a user who may read it, or mend its permissions.",
        )
    if failure.kind == BUSY:
        writers = [each.words for each in _processes(outside) if each.writes]
        return problem(
            "opened",
            f"it was locked for {LOCKED_FOR:.0f} s: {failure.words}",
            "End the transaction that holds the lock; `txproxy why PID` says where a process is.",
            *[f"writing: {words}" for words in writers],
        )
    if failure.code == READONLY_ROLLBACK:
        return problem(
            "opened",
            "a writer has died in a transaction: its -journal has yet to be rolled back",
            "Let a process that may write open the file once, with its -journal beside it.",
        )
    if failure.kind == NOT_A_DATABASE or not (outside.header or _MAGIC).startswith(_MAGIC):
        return problem(
            "opened",
            f"it is not an SQLite database, or an encrypted one: {failure.words}",
            "Check the path; if something has written over the file, restore a backup.",
        )
    if failure.kind == CORRUPT:
        return problem("opened", f"it is corrupt: {failure.words}", _RESTORE)
    if failure.kind == CANTOPEN and outside.is_wal:
        return problem(
            "opened",
            f"SQLite cannot use its -wal and -shm: {failure.words}",
            "Let whoever reads it write in the directory, or read and write its -wal and -shm.",
        )
    return problem("opened", f"SQLite says: {failure.words}", "See what the message names.")


def _contents(facts: InsideFacts) -> Findings:
    if facts.integrity == ():
        yield ok("integrity", "integrity_check finds nothing")
    elif isinstance(facts.integrity, Failure) and facts.integrity.kind != CORRUPT:
        yield _not_checked("integrity", facts.integrity)
    elif facts.integrity is not None:
        said = facts.integrity
        yield problem(
            "integrity",
            *(
                (f"integrity_check fails: {said.words}", _RESTORE)
                if isinstance(said, Failure)
                else (f"integrity_check finds {_number(said)}", _RESTORE, *_some(said))
            ),
        )
    if facts.foreign_keys == ():
        yield ok("foreign keys", "foreign_key_check finds nothing")
    elif isinstance(facts.foreign_keys, Failure):
        yield _not_checked("foreign keys", facts.foreign_keys)
    elif facts.foreign_keys is not None:
        yield problem(
            "foreign keys",
            f"foreign_key_check finds {_number(facts.foreign_keys)}",
            "Add the missing rows or remove those that refer to them, and write with"
            " PRAGMA foreign_keys=ON.",
            *_some(facts.foreign_keys),
        )


def _not_checked(about: str, failure: Failure) -> Finding:
    return warning(
        about,
        f"it could not be checked: {failure.words}",
        "Run the check in a program that has what the message names, if it names something.",
    )


def _number(said: tuple[str, ...]) -> str:
    return f"{'at least ' if len(said) == MOST else ''}{count(len(said), 'fault')}"


def _some(said: Iterable[str]) -> list[str]:
    every = [printable(each) for each in said]
    rest = len(every) - _SHOWN
    return [*every[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]


def _journal_mode(outside: FileFacts, inside: InsideFacts) -> Findings:
    if inside.failure is not None:
        return
    if inside.journal_mode == "wal":
        yield ok("journal mode", "wal: readers and the writer do not wait for each other")
        return
    yield warning(
        "journal mode",
        f"{inside.journal_mode}: a writer waits for all readers, and they for it",
        "Run PRAGMA journal_mode=WAL once, on a local file system: it is kept in the file.",
    )


def _unused(facts: InsideFacts) -> Findings:
    unused = facts.free_pages * facts.page_size
    if unused >= _WORTH_IT and facts.free_pages >= _UNUSED * facts.pages:
        yield warning(
            "unused pages",
            f"{size(unused)} of {size(facts.pages * facts.page_size)} are unused",
            "Run VACUUM when nobody writes; it needs as much space again while it runs.",
        )


# From outside.


def _names(facts: FileFacts) -> Findings:
    if facts.file is not None and facts.file.links > 1:
        yield problem(
            "names",
            f"it has {facts.file.links} names (hard links)",
            "Keep one: who opens it by another name looks for another -wal and -journal, and"
            " corrupts it.",
        )


def _processes(facts: FileFacts) -> tuple[Holder, ...]:
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
    yield ok("open in", found, *_some(said))


def _use(holder: Holder, index: WalIndex | None) -> str:
    times = holder.opened.count("")
    said = [f"{times} times" if times > 1 else "", "is writing" if holder.writes else ""]
    if index is not None and holder.reads_at:
        said.append("is reading")
    detail = ", ".join(part for part in said if part)
    return f"{holder.words}{f' ({detail})' if detail else ''}"


def _replaced(facts: FileFacts) -> Findings:
    for holder in _processes(facts):
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
    known = [(each, each.limit) for each in _processes(facts) if each.limit]
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
    readers = [_reader(each, index) for each in _processes(facts) if each.reads_at] if index else []
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
            "End the reading transactions below: while one is open the WAL can only grow; for how"
            " long they have been open cannot be seen from outside."
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
    if mount.kind in _NETWORK:
        yield (problem if facts.is_wal else warning)(
            "file system",
            f"{said}: another machine's, where SQLite's locks and a WAL's shared memory do not hold",
            "Move the file to a local disk; a program elsewhere needs a server, not this file.",
        )
    elif mount.kind in _PASSING:
        yield warning(
            "file system", f"{said}: it is gone with the next boot", "Move the file to a disk."
        )
    elif mount.kind not in _LOCAL:
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


