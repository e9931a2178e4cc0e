"""What a disk may hold after the power has failed: whatever was synced, and some of the rest.

`power_loss` writes a trace of what SQLite did to its files. Here the trace is played again up to
any point, and the power fails there. Of what was not synced, each sector of 512 bytes is written
or not, in any order; a file that was made or deleted without a sync of the directory is there or
not; what a failed sync should have written is lost for good, whatever is synced later, though it
can still be read before the power fails. One run gives as many power failures as one likes.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

_HEAD: Final = Struct("!cHQI")
_SECTOR: Final = 512

OPEN, WRITE, TRUNCATE, DELETE, DELETE_FOR_SURE = b"o", b"w", b"t", b"d", b"D"
SYNC_BEGINS, SYNC_ENDS, DATA_SYNC_ENDS, SYNC_FAILS = b"s", b"S", b"Y", b"F"


class Event(NamedTuple):
    """One thing that was done to a file; `offset` is also a new size, or a sync's number."""

    kind: bytes
    name: str
    offset: int = 0
    data: bytes = b""

    def encode(self) -> bytes:
        """As it stands in the trace."""
        name = self.name.encode()
        return _HEAD.pack(self.kind, len(name), self.offset, len(self.data)) + name + self.data


def events(trace: bytes) -> Iterator[tuple[int, Event]]:
    """The events of a trace, each with where it ends; one that was cut off at the end is none."""
    at = 0
    while at + _HEAD.size <= len(trace):
        kind, name_size, offset, size = _HEAD.unpack_from(trace, at)
        start = at + _HEAD.size
        at = start + name_size + size
        if at > len(trace):
            return
        name = trace[start : start + name_size].decode()
        yield at, Event(kind, name, offset, trace[start + name_size : at])


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)
    syncs: dict[int, int] = field(default_factory=dict)  # how much of `pending` each one covers


class Disk:
    """Files by name. A name's history since the directory was synced: files, None for deleted."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._names: dict[str, list[_File | None]] = {
            name: [_File(bytearray(content))] for name, content in files.items()
        }

    def play(self, event: Event) -> None:
        """What was done next."""
        history = self._names.setdefault(event.name, [None])
        if event.kind == OPEN:
            if history[-1] is None:
                history.append(_File())
        elif event.kind == DELETE:
            history.append(None)
        elif event.kind == DELETE_FOR_SURE:
            history.append(None)
            self._sync_directory()
        else:
            file = history[-1]
            assert file is not None, event
            self._change(file, event)

    def _change(self, file: _File, event: Event) -> None:
        if event.kind == SYNC_BEGINS:
            file.syncs[event.offset] = len(file.pending)
        elif event.kind in {SYNC_ENDS, DATA_SYNC_ENDS, SYNC_FAILS}:
            covered = file.syncs.pop(event.offset)
            for done in file.pending[:covered]:
                if event.kind != SYNC_FAILS:
                    _apply(file.durable, done)
            del file.pending[:covered]
            file.syncs = {sync: max(0, at - covered) for sync, at in file.syncs.items()}
            if event.kind == SYNC_ENDS:
                # SQLite's own VFS does so with the first sync of a new journal or WAL.
                self._sync_directory()
        else:
            file.pending.append(event)

    def _sync_directory(self) -> None:
        for history in self._names.values():
            del history[:-1]

    def fail(self, chance: random.Random) -> dict[str, bytes]:
        """The power fails: what is found afterwards. The disk here goes on as if nothing was."""
        found: dict[str, bytes] = {}
        for name, history in self._names.items():
            file = chance.choice(history)
            if file is not None:
                found[name] = _survive(file, chance)
        return found


def _survive(file: _File, chance: random.Random) -> bytes:
    content = bytearray(file.durable)
    luck = chance.choice((0.0, 0.5, 1.0, chance.random()))
    for event in file.pending:
        for part in _sectors(event):
            if chance.random() < luck:
                _apply(content, part)
    return bytes(content)


def _sectors(event: Event) -> Iterator[Event]:
    if event.kind != WRITE:
        yield event
        return
    at, end = event.offset, event.offset + len(event.data)
    while at < end:
        stop = min(end, (at // _SECTOR + 1) * _SECTOR)
        start = at - event.offset
        yield Event(WRITE, event.name, at, event.data[start : stop - event.offset])
        at = stop


def _apply(content: bytearray, event: Event) -> None:
    if event.kind == TRUNCATE:
        del content[event.offset :]
        content.extend(bytes(event.offset - len(content)))
        return
    content.extend(bytes(max(0, event.offset - len(content))))
    content[event.offset : event.offset + len(event.data)] = event.data


def put(directory: Path, files: dict[str, bytes]) -> None:
    """The files that were found, in an empty directory of their own."""
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
