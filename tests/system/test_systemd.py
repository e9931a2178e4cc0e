"""`txproxy serve` under systemd: what it says on the socket, and the unit that is shipped."""

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.proxy import PATIENCE, Proxy, ask, in_threads
from tests.system.running import Running
from txproxy.cli.embedded import EmbeddedPostgres

UNIT = Path(__file__).parents[2] / "packaging" / "txproxy.service"
SET_MDWE, REFUSE_EXEC_GAIN = 65, 1  # prctl(2)


class Manager:
    """systemd's end of the socket that NOTIFY_SOCKET names."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE)

    def hears(self) -> dict[str, str]:
        """The next datagram, by name; that it is alive is left out."""
        while True:
            lines = self._socket.recv(65536).decode().split("\n")
            if lines != ["WATCHDOG=1"]:
                return dict(line.split("=", 1) for line in lines)

    def hears_that_it_is_alive(self) -> None:
        while self._socket.recv(65536) != b"WATCHDOG=1":
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    made = Manager(path)
    yield made
    made.close()


def test_a_life(manager: Manager, postgres: EmbeddedPostgres) -> None:
    with Running(postgres) as running:
        assert manager.hears()["READY"] == "1"
        # READY is said once it listens
        with running.connect(autocommit=True) as client:
            ask(client)
        for _ in range(2):
            running.change(proxy={"default_pool_size": 3})
            reloading = manager.hears()
            assert reloading["RELOADING"] == "1"
            assert int(reloading["MONOTONIC_USEC"]) > 0
            assert manager.hears()["READY"] == "1"
        running.stop(signal.SIGTERM)
        assert manager.hears()["STOPPING"] == "1"


def test_a_reload_that_fails_is_over_too(manager: Manager, postgres: EmbeddedPostgres) -> None:
    """Else systemd would wait for its end, and take the service for broken."""
    with Running(postgres) as running:
        assert manager.hears()["READY"] == "1"
        running.config.write_text("[proxy]\nnonsense = 1\n")
        running.reload("not reloaded")
        assert manager.hears()["RELOADING"] == "1"
        assert manager.hears()["READY"] == "1"


def test_it_says_that_it_stops_before_it_waits(
    manager: Manager, postgres: EmbeddedPostgres
) -> None:
    with Running(postgres, proxy={"shutdown_timeout": "5min"}) as running:
        assert manager.hears()["READY"] == "1"
        with running.connect() as client:
            ask(client)
            running.signal(signal.SIGTERM)
            assert manager.hears()["STOPPING"] == "1"
            client.rollback()
        running.stop()


def test_the_watchdog(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    with Proxy(postgres):
        for _ in range(3):
            manager.hears_that_it_is_alive()


def test_nobody_else_s_watchdog(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with Running(postgres) as running:
        running.stop(signal.SIGTERM)
    assert manager.hears()["READY"] == "1"
    assert manager.hears()["STOPPING"] == "1"
    manager._socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager._socket.recv(1)


def test_a_socket_that_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres
) -> None:
    """It is logged, and clients are served."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with Proxy(postgres) as proxy:
        proxy.wait_for("cannot notify systemd", why="No such file or directory")
        with proxy.connect(autocommit=True) as client:
            ask(client)


# The unit.


def settings() -> dict[str, list[str]]:
    """Each setting's values, in their order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    # the only thing that is not on every machine
    text = UNIT.read_text().replace("/srv/txproxy/bin/txproxy", sys.executable)
    copy = tmp_path / "txproxy.service"
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    words = [
        line
        for line in done.stderr.splitlines()
        # before 253, where the line above it counts
        if str(copy) in line and not line.endswith("ignoring: notify-reload")
    ]
    assert words == []
    assert done.returncode == 0


def test_the_unit_fits_the_proxy() -> None:
    found = settings()
    assert found["Type"] == ["notify", "notify-reload"]
    assert float(found["TimeoutStopSec"][0]) > 30.0
    assert found["RestartPreventExitStatus"] == ["2"]
    assert found["RuntimeDirectory"] == ["txproxy"]


def _refuse_executable_memory() -> None:
    """What MemoryDenyWriteExecute= does, for this process and those it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _starts_with(prepare: Callable[[], None]) -> bool:
    try:
        subprocess.run(["true"], preexec_fn=prepare, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def test_it_needs_no_memory_that_is_written_and_executed(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not _starts_with(_refuse_executable_memory):
        pytest.skip("this kernel has no PR_SET_MDWE")
    popen = subprocess.Popen
    started: list[int] = []

    def hardened(*args: object, **kwargs: object) -> object:
        process = popen(*args, preexec_fn=_refuse_executable_memory, **kwargs)  # type: ignore[call-overload]
        started.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", hardened)
    with Running(postgres) as running:
        monkeypatch.undo()
        assert started == [running.pid]

        def work(_: int) -> None:
            with running.connect() as client:
                for _ in range(10):
                    ask(client)
                    client.commit()

        in_threads(work, 4)
        running.scrape()
        assert running.http("/")[0] == 200
