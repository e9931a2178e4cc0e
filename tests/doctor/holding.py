"""Processes that have an SQLite file open. Never this one: closing a file here would drop their
locks, were they ours.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_READY: Final = "\nprint('ready', flush=True)\nsys.stdin.readline()\n"


@contextmanager
def holding(path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has run `script` on the connections `one` and `two`, and stays. A line that it
    is sent lets it run the rest of the script, behind `---`.
    """
    before, _, rest = script.partition("---\n")
    opened = "import sqlite3, sys\none, two = (\n    sqlite3.connect(sys.argv[1],"
    opened += " isolation_level=None) for _ in range(2)\n)\n"
    program = f"{opened}{before}{_READY}{rest}print('done', flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> str:
    """Let it run the rest; what it says behind that."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()
