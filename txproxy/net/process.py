"""Which process of this machine a client is: told to people only, when its transaction was left
open or is shown.

On a unix socket the system says who has connected. On loopback the tables of sockets have to be
read, and the descriptors of all processes: that takes milliseconds, so it is done in a thread, once
for a connection, and for all who wait at the same time together. What the system does not allow to
be seen (another user's descriptors) is not said.

Of the command line only the program is told, and the script or `-m` name that Python runs: behind
these are passwords.

Source: proc(5), and "Command line and environment" in Python's documentation.
"""

import asyncio
import contextlib
import ipaddress
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from txproxy.core.ports import Endpoint
from txproxy.core.view import moment

if TYPE_CHECKING:
    from txproxy.net.client import Client

_PROC: Final = Path("/proc")
_LOOKING_TAKES: Final = 1.0  # seconds of the processor at most
_COMMAND_LIMIT: Final = 4096  # bytes that are read of a command line
_WORD_LIMIT: Final = 200  # letters of a word that is shown
_CLOCKS: Final = 2.0  # seconds that the clocks of process and connection may differ

_PYTHON: Final = re.compile(r"(?:.*/)?(?:python|pypy)[0-9.]*[a-z]?")
_FLAGS: Final = re.compile(r"-([bBdEhiIOPqRsSuvVx?]*)([cmWX]?)(.*)", re.DOTALL)
_TAKES_A_WORD: Final = "--check-hash-based-pycs"

Ends = tuple[str, int, str, int]
"""A connection as its client sees it: address and port of its own, and of the other end."""


class Processes:
    """Whose clients' connections are. What was found is kept in `Client.process`."""

    def __init__(self) -> None:
        self._waiting: dict[Client, list[Callable[[str], None]]] = {}
        self._asked: dict[Ends, Client] = {}
        self._task: asyncio.Task[None] | None = None

    def known(self, client: "Client") -> str:
        """What can be said at once; else the next who asks will be told."""
        self.tell(client, _nothing)
        return client.process or ""

    def tell(self, client: "Client", then: Callable[[str], None]) -> None:
        """Call `then` with the process in words, "" if it cannot be said: at once, or a little
        later.
        """
        if client.process is None and client not in self._waiting:
            self._begin(client)
        if client.process is not None:
            then(client.process)
        else:
            self._waiting[client].append(then)

    def close(self) -> None:
        """Nothing more is found: who waits is told so."""
        if self._task is not None:
            self._task.cancel()
        for client in list(self._waiting):
            self._found(client, "")

    def _begin(self, client: "Client") -> None:
        if client.is_unix:
            client.process = described(client.peer_pid(), _connected_at(client))
            return
        endpoint = client.endpoint
        if _is_local(endpoint):
            self._waiting[client] = []
            self._asked[_ends(endpoint)] = client
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._look())
        else:
            client.process = ""

    async def _look(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                found = await asyncio.to_thread(_described_owners, asked)
                for ends, client in asked.items():
                    self._found(client, found.get(ends, ""))
        finally:
            self._task = None

    def _found(self, client: "Client", process: str) -> None:
        client.process = process
        for then in self._waiting.pop(client, ()):
            then(process)


def _nothing(_process: str) -> None:
    """Whoever asks will ask again."""


def _connected_at(client: "Client") -> float:
    return client.session.connected_at if client.session is not None else 0.0


def _is_local(endpoint: Endpoint) -> bool:
    try:
        return ipaddress.ip_address(endpoint.addr).is_loopback
    except ValueError:
        return False


def _ends(endpoint: Endpoint) -> Ends:
    return endpoint.addr, endpoint.port, endpoint.local_addr, endpoint.local_port


def _described_owners(asked: Iterable[Ends]) -> dict[Ends, str]:
    return {ends: described(pid) for ends, pid in owners(asked).items()}


# A process.


def described(pid: int, before: float = 0.0) -> str:
    """A process in words: `4711 since 2026-11-21 21:31:00 UTC: /usr/bin/python3 manage.py`; "" if
    nothing can be said. It must have begun before the connection did at `before`, seconds since
    1970: else it has the number of one that is gone. 0: it surely has the connection.
    """
    if pid <= 0:
        return ""
    try:
        command = _PROC.joinpath(str(pid), "cmdline").open("rb")
        with command:
            words = command.read(_COMMAND_LIMIT)
        began = _began_at(pid)
    except (OSError, ValueError, IndexError):
        return ""
    if before and began > before + _CLOCKS:
        return ""
    said = " ".join(shown_command(words))
    return f"{pid} since {moment(began)}" + (f": {said}" if said else "")


def _began_at(pid: int) -> float:
    """Seconds since 1970."""
    stat = _PROC.joinpath(str(pid), "stat").read_text("utf-8", "replace")
    # Its second field is a name in parentheses, with anything in it.
    ticks = int(stat.rpartition(")")[2].split()[19])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def shown_command(cmdline: bytes) -> list[str]:
    """The words of a command line that may be shown; in /proc each ends with a NUL.

    A program that has written a title of its own over its command line may have arguments in it:
    its first word is all that is shown.
    """
    words = cmdline.decode("utf-8", "replace").split("\0")
    program = words[0].split()[:1]
    said = [*program, *_script(words[1:])] if program and _PYTHON.fullmatch(program[0]) else program
    return [_printable(word) for word in said]


def _script(words: list[str]) -> list[str]:
    """What Python was told to run: a file, or a module behind -m, or -c without its code."""
    rest = iter(words)
    for word in rest:
        if word == _TAKES_A_WORD:
            next(rest, "")
        elif not word.startswith("-") or word == "-":
            return [word] if word else []
        elif not word.startswith("--"):
            flags = _FLAGS.fullmatch(word)
            if flags is None or (flags[3] and not flags[2]):
                return []
            if flags[2] == "c":
                return ["-c"]
            if flags[2] == "m":
                return ["-m", flags[3] or next(rest, "")]
            if flags[2] and not flags[3]:
                next(rest, "")
    return []


def _printable(word: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in word[:_WORD_LIMIT])


# Who has a connection.


def owners(asked: Iterable[Ends]) -> dict[Ends, int]:
    """The process of each of these connections, as far as it can be seen."""
    try:
        inodes = _inodes(asked)
        return {inodes[inode]: pid for inode, pid in _holders(inodes).items()}
    except OSError:  # there is no /proc
        return {}


def _inodes(asked: Iterable[Ends]) -> dict[str, Ends]:
    """The connections by the names of their sockets in /proc/PID/fd."""
    wanted: dict[str, Ends] = {}
    for ends in asked:
        for near, far in zip(_spelled(*ends[:2]), _spelled(*ends[2:]), strict=True):
            wanted[f"{near} {far}"] = ends
    found: dict[str, Ends] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), _PROC.joinpath("net", table).open() as lines:
            for line in lines:
                words = line.split()
                key = " ".join(words[1:3])
                if key in wanted:
                    found[f"socket:[{words[9]}]"] = wanted[key]
    return found


def _spelled(address: str, port: int) -> list[str]:
    """An address as in /proc/net/tcp and tcp6; one of IPv4 may stand in either."""
    packed = ipaddress.ip_address(address).packed
    forms = [packed, bytes(10) + b"\xff\xff" + packed] if len(packed) == 4 else [packed]
    return [f"{_words(form)}:{port:04X}" for form in forms]


def _words(packed: bytes) -> str:
    """Four bytes at a time, as the numbers that this machine takes them for."""
    return "".join(
        f"{int.from_bytes(packed[i : i + 4], sys.byteorder):08X}" for i in range(0, len(packed), 4)
    )


def _holders(inodes: Mapping[str, object]) -> dict[str, int]:
    """Who has these sockets open; of several, the one that was started first has them all."""
    found: dict[str, int] = {}
    # What others use of a busy machine is no reason to find nobody.
    deadline = time.thread_time() + _LOOKING_TAKES
    names = [each.name for each in _PROC.iterdir()]
    for pid in sorted(int(name) for name in names if name.isdecimal()):
        if len(found) == len(inodes) or time.thread_time() > deadline:
            break
        # It may end meanwhile, or be another user's.
        with contextlib.suppress(OSError), os.scandir(_PROC / str(pid) / "fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    held = os.readlink(descriptor)  # noqa: PTH115 a Path for each of thousands
                    if held in inodes:
                        found.setdefault(held, pid)
    return found
