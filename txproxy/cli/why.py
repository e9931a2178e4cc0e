"""`txproxy why PID`: which line of Python a client's process is at, as py-spy sees it from outside.

A process is stopped by py-spy for some milliseconds, and goes on. Nothing is written to it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from txproxy.doctor.finding import printable
from txproxy.doctor.frames import Frame
from txproxy.errors import TxproxyError
from txproxy.net.process import described

_TAKES: Final = 30.0  # seconds at most
_FRAMES: Final = 200  # of a thread, that are shown
_INSTALL: Final = "pip install 'txproxy[stacks]'"
_PERMISSION: Final = (
    "Run it as root; in a container the capability SYS_PTRACE is needed too. Without root the"
    " process must be the same user's, and kernel.yama.ptrace_scope 0."
)


class Thread(NamedTuple):
    """A thread's name, and its frames, the innermost first."""

    name: str
    frames: Sequence[Frame]

    @property
    def at(self) -> Frame | None:
        """The innermost of the site's own frames."""
        return next((frame for frame in self.frames if frame.is_own), None)


def why(pid: int) -> int:
    """Print where each thread of a process is. Raises TxproxyError if that cannot be seen."""
    process = described(pid)
    if not process and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
        raise TxproxyError(f"there is no process {pid}")
    threads = _read(_dump(pid))
    print(process or pid)
    for line in _report(threads):
        print(line)
    return 0


def _dump(pid: int) -> str:
    """What py-spy says of a process. Raises TxproxyError."""
    command = [_py_spy(), "dump", "--json", "--pid", str(pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, text=True, errors="replace", timeout=_TAKES
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TxproxyError(f"py-spy: {error}") from error
    if done.returncode:
        raise _refusal(pid, done.stderr)
    return done.stdout


def _py_spy() -> str:
    """Where it is: beside this Python, or on the PATH."""
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise TxproxyError("py-spy is not installed", hint=_INSTALL)
    return found


def _refusal(pid: int, said: str) -> TxproxyError:
    low = said.lower()
    if "permission denied" in low or "operation not permitted" in low:
        return TxproxyError(f"not allowed to look into process {pid}", hint=_PERMISSION)
    if not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
        return TxproxyError(f"process {pid} has ended")
    if "python version" in low or "libpython" in low:
        return TxproxyError(
            f"process {pid} does not run Python, or a version that py-spy cannot read"
        )
    first = next((line for line in said.splitlines() if line.strip()), "it failed")
    return TxproxyError(f"py-spy: {printable(first.removeprefix('Error: '))}")


def _read(text: str) -> list[Thread]:
    """Threads from what py-spy writes. Raises TxproxyError if it is something else."""
    try:
        return [_thread(each) for each in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise TxproxyError(f"py-spy has said what cannot be read: {error!r}") from error


def _thread(said: dict[str, Any]) -> Thread:
    frames = [
        Frame(str(each["name"]), str(each["filename"]), int(each["line"]))
        for each in said["frames"][:_FRAMES]
    ]
    return Thread(str(said["thread_name"] or said["thread_id"]), frames)


def _report(threads: Iterable[Thread]) -> Iterable[str]:
    """Those in the site's own code; of the others, which only wait for work, the number."""
    others = 0
    for thread in threads:
        at = thread.at
        if at is None:
            others += 1
            continue
        yield f"\n{printable(thread.name)} is at\n  {at}\nits stack, the innermost first:"
        yield from (f"  {frame}" for frame in thread.frames)
    if others:
        yield f"\n{others} {'thread is' if others == 1 else 'threads are'} in libraries only"
