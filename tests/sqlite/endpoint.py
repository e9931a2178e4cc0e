"""The SQLite process without the proxy: a socket, a thread that accepts and hands clients over.

    with Endpoint(tmp_path) as endpoint:
        endpoint.create("app.db", "CREATE TABLE t (a)")
        psycopg.connect(endpoint.conninfo("app.db"), autocommit=True)

`database` is a file directly inside the directory. The file is never opened in the test's process
by sqlite3 while the endpoint runs in another, unless the test means it: that is what clients do.
"""

import base64
import contextlib
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from txproxy.wire.codes import CANCEL_REQUEST, GSS_REQUEST, SSL_REQUEST
from txproxy.wire.messages import Startup

PATIENCE: Final = 20.0

PROCESS: Final = ("-m", "txproxy.backends.sqlite")

SETTINGS: Final[dict[str, Any]] = {
    "journal_mode": "wal",
    "busy_timeout": 5.0,
    "idle_writer_timeout": 2.0,
    "idle_transaction_timeout": 30.0,
    "query_timeout": 0,
    "commit_train": False,
    "checkpoint": "auto",
    "begin": "deferred",
    "functions": [],
    "extensions": [],
    "allow_create": False,
}

Line = dict[str, Any]
"""Of the control channel."""

_PORT: Final = 5432
_CRED: Final = struct.Struct("3i")


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """What `condition` returns as soon as it is true. AssertionError: not within PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, what or "it did not happen"
        time.sleep(0.002)


class Endpoint:
    """One SQLite process, its listener, and what it has told. `settings`: of every file.

    `runs` is what Python runs as the process, before the number of its descriptor.
    """

    def __init__(
        self, directory: Path, *, runs: tuple[str, ...] = PROCESS, **settings: Any
    ) -> None:
        self._runs = runs
        self.directory = directory
        self.settings = {**SETTINGS, **settings}
        self.lines: list[dict[str, Any]] = []  # all that the process has told but reports
        self.report: dict[str, Any] = {"files": [], "sessions": []}  # the last one
        self.reports = 0
        self.keys: dict[int, bytes] = {}  # a client's id, which is its pid, and its secret
        self._ids = itertools.count(1)
        self._sending = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._channel: socket.socket
        self.process: subprocess.Popen[bytes]

    @property
    def socket_path(self) -> str:
        """Where it listens."""
        return str(self.directory / f".s.PGSQL.{_PORT}")

    def conninfo(self, database: str, **more: str) -> str:
        """For psycopg: `more` are further words of the connection string."""
        words = {"host": str(self.directory), "port": str(_PORT), "dbname": database, **more}
        return " ".join(f"{name}='{value}'" for name, value in {"user": "u", **words}.items())

    def path(self, database: str) -> Path:
        """The file of that name."""
        return self.directory / database

    def create(self, database: str, *statements: str) -> Path:
        """Make a file, in a process of its own, in WAL mode unless the settings say otherwise."""
        script = (
            "import json, sqlite3, sys\n"
            "c = sqlite3.connect(sys.argv[1], 60, isolation_level=None)\n"
            "c.execute('PRAGMA journal_mode=' + sys.argv[2])\n"
            "for s in json.loads(sys.argv[3]): c.execute(s)\n"
            "c.close()\n"
        )
        path = self.path(database)
        mode = str(self.settings["journal_mode"])
        arguments = [str(path), mode, json.dumps(statements)]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True)
        return path

    def outside(self, database: str, script: str) -> str:
        """Run Python with stdlib sqlite3's connection `c` to the file, in another process."""
        beside = self.beside(database, script)
        said, _ = beside.communicate()
        assert beside.returncode == 0
        return said.decode().strip()

    def beside(self, database: str, script: str) -> subprocess.Popen[bytes]:
        """The same, but it goes on: with pipes for its input and output."""
        head = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], 60, isolation_level=None)\n"
        arguments = [sys.executable, "-c", head + script, str(self.path(database))]
        return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        self._listener.bind(self.socket_path)
        self._listener.listen(128)
        self._start()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def end_channel(self) -> None:
        """As the proxy's end does; the process is to end by itself."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """A new process instead of one that has been killed, or shall be left to itself."""
        self._channel.close()
        self._start()

    def _start(self) -> None:
        before = len(self.told("ready"))
        self._channel, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, *self._runs, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
        )
        theirs.close()
        threading.Thread(target=self._hear, args=(self._channel.dup(),), daemon=True).start()
        eventually(
            lambda: len(self.told("ready")) > before or self.process.poll() is not None,
            "the process did not get ready",
        )
        assert self.process.poll() is None, "the process has not come up"

    def __exit__(self, *_: object) -> None:
        # shutdown wakes the threads that wait on these; the channel's end ends the process.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.end_channel()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.kill()
            Path(self.socket_path).unlink(missing_ok=True)

    def tell(self, line: Line, *fds: int) -> None:
        """Send a line of the control channel."""
        self.tell_all([line], *fds)

    def tell_all(self, lines: list[Line], *fds: int) -> None:
        """Send lines at once."""
        with self._sending:
            said = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            socket.send_fds(self._channel, [said], fds)

    def queues(self, database: str, count: int) -> None:
        """Until so many stand in the file's queue."""
        eventually(lambda: self.file(database).get("queue") == count)

    def is_active(self, number: int) -> None:
        """Until a statement of that session is running."""
        eventually(lambda: self.session(number).get("state") == "active")

    def told(self, kind: str) -> list[dict[str, Any]]:
        """What the process has told of a kind: ready, closed, log, drained."""
        return [line for line in self.lines if line["is"] == kind]

    def events(self, event: str) -> list[dict[str, Any]]:
        """What it has logged under this name."""
        return [line for line in self.told("log") if line["event"] == event]

    def file(self, database: str) -> dict[str, Any]:
        """The file in a report of now; empty if it is not in there."""
        self._ask()
        found = [f for f in self.report["files"] if f["path"] == str(self.path(database))]
        return found[0] if found else {}

    def waits_for_others(self, database: str, times: int) -> None:
        """AssertionError: the file's writer does not meet another process' lock so often."""
        eventually(lambda: self.file(database).get("busy_foreign", 0) >= times)

    def session(self, number: int) -> dict[str, Any]:
        """The session in a report of now; empty if it is not in there."""
        self._ask()
        found = [s for s in self.report["sessions"] if s["id"] == number]
        return found[0] if found else {}

    def _ask(self) -> None:
        before = self.reports
        self.tell({"do": "report"})
        eventually(lambda: self.reports > before, "no report")

    def _hear(self, channel: socket.socket) -> None:
        with channel, channel.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                message = json.loads(line)
                if message["is"] == "report":
                    self.report = message
                    self.reports += 1
                else:
                    self.lines.append(message)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                self._greet(client)

    def _greet(self, client: socket.socket) -> None:
        while True:
            head = client.recv(8, socket.MSG_WAITALL)
            if len(head) < 8:
                return
            length, code = struct.unpack("!2i", head)
            body = client.recv(length - 8, socket.MSG_WAITALL) if length > 8 else b""
            if code not in {SSL_REQUEST, GSS_REQUEST}:
                break
            client.sendall(b"N")
        startup = Startup(code, body)
        if code == CANCEL_REQUEST:
            number, secret = startup.cancel_key()
            if self.keys.get(number) == secret:
                self.tell({"do": "cancel", "id": number})
            return
        self._hand_over(client, startup.parameters() or {})

    def give(self, client: socket.socket, database: str, *behind: Line, rest: bytes = b"") -> None:
        """Hand a client over that has said nothing, with lines that come right behind it. `rest`:
        what the proxy has already read of it.
        """
        self._hand_over(client, {"user": "u", "database": database}, behind, rest)

    def _hand_over(
        self,
        client: socket.socket,
        parameters: dict[str, str],
        behind: tuple[Line, ...] = (),
        rest: bytes = b"",
    ) -> None:
        number = next(self._ids)
        secret = self.keys[number] = os.urandom(4)
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CRED.size)
        pid, uid, _ = _CRED.unpack(peer)
        line = {
            "do": "client",
            "id": number,
            "pid": number,
            "secret": secret.hex(),
            "user": parameters.get("user", ""),
            "peer_pid": pid,
            "uid": uid,
            "database": parameters.get("database", ""),
            "path": str(self.path(parameters.get("database", ""))),
            "file": self.settings,
            "parameters": parameters,
            "rest": base64.b64encode(rest).decode(),
        }
        self.tell_all([line, *({"id": number, **each} for each in behind)], client.fileno())
