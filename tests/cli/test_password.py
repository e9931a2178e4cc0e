"""`txproxy password`: from a pipe, and at a terminal."""

import io
import os
import pty
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from txproxy.cli.password import password
from txproxy.errors import TxproxyError
from txproxy.wire.scram import Verifier

COMMAND = (sys.executable, "-m", "txproxy", "password", "ann")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Lets the command read this."""

    def fill(data: bytes) -> None:
        stdin = SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stdin)

    return fill


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        (b"pencil\n", "pencil"),
        (b"pencil", "pencil"),
        (b"pencil\r\n", "pencil"),
        (b"pencil\nand more\n", "pencil"),
        (b" two words \n", " two words "),
        ("p\u00e4ss\n".encode(), "p\u00e4ss"),
        (b"p\xe4ss\n", "p\udce4ss"),
    ],
)
def test_one_line_is_read_and_its_verifier_printed(
    pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str], line: bytes, secret: str
) -> None:
    pipe(line)
    assert password("ann") == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    verifier = Verifier.parse(printed.rstrip("\n"))
    assert verifier is not None
    assert verifier == Verifier.of(secret, verifier.salt, 4096)


@pytest.mark.parametrize("user", ["ann", "a-b_1", "an na", 'q"uote', "J\u00fcrgen", "a.b", "'"])
def test_it_says_where_the_line_goes(
    pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str], user: str
) -> None:
    pipe(b"pencil\n")
    password(user)
    printed, said = capsys.readouterr()
    assert "pencil" not in said
    assert printed.strip() not in said
    toml = re.search(r"^    (\[users\..*\]\n)    (password = .*\n)", said, re.MULTILINE)
    assert toml is not None
    assert tomllib.loads(toml[1] + toml[2]) == {"users": {user: {"password": "SCRAM-SHA-256$…"}}}
    role = user.replace('"', '""')
    assert f"ALTER ROLE \"{role}\" PASSWORD 'SCRAM-SHA-256$…'" in said


@pytest.mark.parametrize("line", [b"", b"\n", b"\r\n"])
def test_no_password_is_an_error(
    pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    pipe(line)
    with pytest.raises(TxproxyError, match="no password was given"):
        password("ann")
    assert capsys.readouterr().out == ""


class Terminal:
    """The command at a terminal of its own."""

    def __init__(self) -> None:
        self.screen, typed = pty.openpty()
        self.process = subprocess.Popen(
            COMMAND,
            stdin=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(typed)
        self.said = b""

    def answer(self, prompt: bytes, keys: bytes) -> None:
        """Type this as soon as it is asked for; what was typed before is thrown away."""
        assert self.process.stderr is not None
        while not self.said.endswith(prompt):
            byte = self.process.stderr.read(1)
            assert byte, self.said
            self.said += byte
        os.write(self.screen, keys)

    def end(self) -> tuple[int, bytes]:
        """The exit code, and what went to stdout."""
        printed, said = self.process.communicate()
        self.said += said
        return self.process.returncode, printed

    def shown(self) -> bytes:
        """What the terminal itself has shown: the echo, if there was one."""
        os.set_blocking(self.screen, False)
        try:
            return os.read(self.screen, 1000)
        except OSError:  # nothing, or nobody at the other end any more
            return b""


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.process.kill()
    terminal.process.communicate()
    os.close(terminal.screen)


def test_at_a_terminal_it_asks_twice_and_shows_nothing(terminal: Terminal) -> None:
    terminal.answer(b"Password: ", b"pencil\n")
    terminal.answer(b"Again: ", b"pencil\n")
    code, printed = terminal.end()
    assert code == 0
    verifier = Verifier.parse(printed.decode().rstrip("\n"))
    assert verifier is not None
    assert verifier == Verifier.of("pencil", verifier.salt)
    assert b"pencil" not in terminal.said + terminal.shown()
    assert b"[users.ann]" in terminal.said


def test_two_that_differ_are_an_error(terminal: Terminal) -> None:
    terminal.answer(b"Password: ", b"pencil\n")
    terminal.answer(b"Again: ", b"pencli\n")
    code, printed = terminal.end()
    assert (code, printed) == (1, b"")
    assert terminal.said.endswith(b"txproxy: the two passwords are not the same\n")
    assert b"penc" not in terminal.said


@pytest.mark.parametrize("key", [b"\x04", b"\n"], ids=["ctrl-d", "enter"])
def test_nothing_typed_is_no_password(terminal: Terminal, key: bytes) -> None:
    terminal.answer(b"Password: ", key)
    if key == b"\n":
        terminal.answer(b"Again: ", key)
    code, printed = terminal.end()
    assert (code, printed) == (1, b"")
    assert terminal.said.endswith(b"txproxy: no password was given\n")
