"""Findings about an SQLite file, from the facts alone."""

import stat
from collections.abc import Iterator
from typing import Final

from txproxy.doctor.files import FileFacts, file_facts, header
from txproxy.doctor.finding import (
    MEGABYTE,
    Finding,
    Section,
    count,
    ok,
    printable,
    problem,
    size,
    some,
    warning,
)
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
from txproxy.doctor.outside import from_outside, processes

_MAGIC: Final = b"SQLite format 3\0"
_UNUSED: Final = 0.5  # of the pages, from which VACUUM is worth it
_WORTH_IT: Final = 100 * MEGABYTE

_RESTORE: Final = "Stop what writes, keep a copy, and restore a backup, or save rows by `.recover`."

Findings = Iterator[Finding]


def examine(path: str) -> Section:
    """Look at a file and judge it. This process must not have it open in any way."""
    outside = file_facts(path)
    readable = outside.file is not None and stat.S_ISREG(outside.file.mode)
    return Section(
        printable(path), tuple(judge(outside, inside_facts(outside) if readable else None))
    )


def is_database(path: str) -> bool:
    """Whether it is a file that begins as SQLite's do. It must not be open here."""
    return (header(path)[0] or b"").startswith(_MAGIC)


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
        yield from _journal_mode(inside)
    yield from from_outside(outside)
    if inside is not None:
        yield from _unused(inside)


def _missing(facts: FileFacts) -> Finding:
    if facts.directory is None:
        found = "neither the file nor its directory is there, or may be looked at"
    else:
        found = "there is no such file, or it may not be looked at"
    return problem(
        "opened", found, "Check the path; a relative one depends on the working directory."
    )


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
        writers = [each.words for each in processes(outside) if each.writes]
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
                else (f"integrity_check finds {_number(said)}", _RESTORE, *some(said))
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
            *some(facts.foreign_keys),
        )


def _not_checked(about: str, failure: Failure) -> Finding:
    return warning(
        about,
        f"it could not be checked: {failure.words}",
        "Run the check in a program that has what the message names, if it names something.",
    )


def _number(said: tuple[str, ...]) -> str:
    return f"{'at least ' if len(said) == MOST else ''}{count(len(said), 'fault')}"


def _journal_mode(inside: InsideFacts) -> Findings:
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
