"""`txproxy demo`, as a process of its own: what it says, and that it leaves nothing behind."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from txproxy.cli import main
from txproxy.cli.demo import DJANGO, POOL_SIZE, ROUNDS, Proxy, _checks
from txproxy.cli.demo_clients import BUSY_CLIENTS, SLEEPERS, Ledger

DEMO = [sys.executable, "-m", "txproxy", "demo"]


@pytest.fixture
def directory() -> Iterator[str]:
    """Where the demo makes its temporary directories; nothing may be left in it.

    It marks the demo's processes too: it is in their environment, or they run inside.
    """
    # not tmp_path, which root keeps for itself
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield directory
        assert list(Path(directory).iterdir()) == []
        assert processes(directory) == {}


def processes(directory: str) -> dict[int, str]:
    """The command lines of those that know this directory, by pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            marks = [(path / "environ").read_bytes(), bytes((path / "cwd").readlink())]
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if any(directory.encode() in mark for mark in marks):
            found[int(path.name)] = command
    return found


def start(directory: str, *, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        DEMO,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": directory},
    )


def read_until_rolled_back(demo: subprocess.Popen[str]) -> str:
    """What it printed, up to the first line that tells of a sleeper that has been told."""
    assert demo.stdout is not None
    said = ""
    for line in demo.stdout:
        said += line
        if re.search(r"told [1-9]", line):
            break
    return said


def test_once_shows_that_every_promise_is_kept(directory: str) -> None:
    done = subprocess.run(
        [*DEMO, "--once"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": directory},
    )
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert [line for line in lines[2:] if not line.startswith("ok ")] == []
    assert len(lines) == 15
    assert done.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_live_it_prints_a_line_a_second_until_it_is_stopped(
    directory: str, signum: signal.Signals
) -> None:
    with start(directory) as demo:
        said = read_until_rolled_back(demo)
        assert any("serve" in command for command in processes(directory).values())
        demo.send_signal(signum)
        rest, errors = demo.communicate()
    assert (demo.returncode, errors) == (0, "")
    assert "problems" not in said + rest
    port = re.search(r'"PORT": (\d+)', said)
    assert port is not None
    assert DJANGO.replace("6432", port[1]) in said
    assert f"backends {POOL_SIZE}, " in said


def test_on_a_terminal_it_draws_a_table(directory: str) -> None:
    ours, theirs = pty.openpty()
    with start(directory, stdout=theirs) as demo:
        os.close(theirs)
        drawn = b""
        while b"Ctrl-C ends it" not in drawn:
            drawn += os.read(ours, 4096)
        demo.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # its end is closed
            while more := os.read(ours, 4096):
                drawn += more
        _, errors = demo.communicate()
    os.close(ours)
    assert (demo.returncode, errors) == (0, "")
    assert b"\x1b[H" in drawn
    assert re.search(rb"backends +4 ", drawn)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the proxy in /proc")
def test_a_proxy_that_dies_ends_the_demo_with_an_error(directory: str) -> None:
    with start(directory) as demo:
        read_until_rolled_back(demo)
        found = [pid for pid, command in processes(directory).items() if " serve " in command]
        os.kill(found[0], signal.SIGKILL)
        _, errors = demo.communicate()
    assert demo.returncode == 1
    assert errors.startswith("txproxy: the proxy has ended: ")


def test_without_psycopg_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "txproxy.cli.demo")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert main(["demo", "--once"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("txproxy: the demo's clients need psycopg")
    assert said.endswith("hint: pip install 'txproxy[demo]'\n")


# What --once makes of what it has seen


def good_ledger() -> Ledger:
    slept = SLEEPERS * ROUNDS
    return Ledger(
        answers=1,
        transfers=Counter(range(1, BUSY_CLIENTS + 1)),
        slept=slept,
        told=slept,
        went_on=slept,
    )


PIDS = frozenset(range(POOL_SIZE))


def failed(ledger: Ledger, proxy: Proxy, seen: set[frozenset[int]]) -> list[str]:
    return [text for good, text in _checks(ledger, proxy, seen) if not good]


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    (tmp_path / "log").touch()
    proxy = Proxy(subprocess.Popen(["true"]), tmp_path / "log")
    proxy.stop()
    proxy.reaped["sleeper"] = SLEEPERS * ROUNDS
    return proxy


def test_nothing_fails_when_all_is_well(proxy: Proxy) -> None:
    assert failed(good_ledger(), proxy, {PIDS}) == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda ledger: ledger.transfers.pop(3), "clients were served"),
        (lambda ledger: setattr(ledger, "told", 1), "1 of 12 next statements"),
        (lambda ledger: setattr(ledger, "went_on", 11), "11 of 12 sleepers"),
        (lambda ledger: setattr(ledger, "mixed_up", 1), "1 of them to somebody else's"),
        (lambda ledger: ledger.problems.append("sleeper 1: 57P01"), "sleeper 1: 57P01"),
    ],
)
def test_what_a_client_has_seen_can_fail(
    proxy: Proxy, spoil: Callable[[Ledger], object], complaint: str
) -> None:
    ledger = good_ledger()
    spoil(ledger)
    [said] = failed(ledger, proxy, {PIDS})
    assert complaint in said


def test_a_backend_that_is_replaced_fails(proxy: Proxy) -> None:
    seen = {PIDS, frozenset([*range(1, POOL_SIZE), 99])}
    [said] = failed(good_ledger(), proxy, seen)
    assert said.startswith("no backend was lost")


def test_a_bug_in_the_proxys_log_fails(proxy: Proxy) -> None:
    proxy._read('{"event": "bug", "where": "janitor"}')
    [said] = failed(good_ledger(), proxy, {PIDS})
    assert '"janitor"' in said
