"""sd_notify: what arrives on a real socket."""

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from txproxy.net import systemd
from txproxy.net.systemd import Watchdog


class Manager:
    """systemd's end of the socket."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """The datagrams that are there, each as its lines."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(65536).decode().split("\n"))
        return found


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@txproxy-{uuid.uuid4()}"
    made = Manager(name)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    yield made
    made.socket.close()


@pytest.fixture(autouse=True)
def no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


def test_a_life(manager: Manager) -> None:
    systemd.ready("listening on here")
    assert manager.heard() == [["READY=1", "STATUS=listening on here"]]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    systemd.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    [[reloading, when, status]] = manager.heard()
    assert (reloading, status) == ("RELOADING=1", "STATUS=reloading")
    name, _, stamp = when.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(stamp) <= after
    systemd.ready()
    assert manager.heard() == [["READY=1", "STATUS=ready"]]
    systemd.stopping("draining")
    assert manager.heard() == [["STOPPING=1", "STATUS=draining"]]


def test_a_status_is_one_line(manager: Manager) -> None:
    """Or a newline in it could say something else."""
    systemd.ready("a\nSTOPPING=1\r\nb \udcff")
    assert manager.heard() == [["READY=1", r"STATUS=a STOPPING=1 b \udcff"]]


# The watchdog.


def test_alive_twice_as_often_as_asked(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    watchdog = Watchdog()
    heard = []
    for tick in range(0, 620, 2):  # tenths of a second
        watchdog.alive(1000 + tick / 10)
        heard += [(tick / 10, each) for each in manager.heard()]
    assert heard == [(at, ["WATCHDOG=1"]) for at in (0.0, 15.0, 30.0, 45.0, 60.0)]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    watchdog = Watchdog()
    for now in range(100):
        watchdog.alive(float(now))
    assert manager.heard() == []


# What is not there.


@pytest.mark.parametrize("name", [None, "", "relative", "vsock:2:1234"])
def test_no_systemd(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture, name: str | None
) -> None:
    def none(*_: object) -> socket.socket:
        raise AssertionError("nobody asked for a socket")

    monkeypatch.setattr(socket, "socket", none)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    if name is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    systemd.ready()
    systemd.reloading()
    Watchdog().alive(1.0)
    systemd.stopping()
    assert not warnings.records


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, also after a test that has set up the log."""
    logger = logging.getLogger("txproxy")
    before = logger.propagate
    logger.propagate = True
    yield caplog
    logger.propagate = before


def test_a_socket_that_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.ready()
    [record] = warnings.records
    assert record.getMessage() == "cannot notify systemd"
    fields = record.__dict__["fields"]
    assert fields == {"said": "READY=1", "why": "No such file or directory"}


def test_a_queue_that_is_full_stops_nobody(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    """A watchdog's message is not waited for: the data path would wait too."""
    monkeypatch.setenv("WATCHDOG_USEC", "2")
    watchdog = Watchdog()
    now = 0.0
    while not warnings.records:
        now += 1.0
        watchdog.alive(now)
    assert warnings.records[0].__dict__["fields"]["said"] == "WATCHDOG=1"
    manager.heard()
    watchdog.alive(now + 1.0)
    assert manager.heard() == [["WATCHDOG=1"]]
