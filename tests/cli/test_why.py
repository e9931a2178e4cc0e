"""`txproxy why`: processes that are really asleep, as py-spy sees them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from txproxy.cli import main
from txproxy.cli.why import _refusal, why
from txproxy.doctor.frames import Frame
from txproxy.errors import TxproxyError

SITE: Final = """
import ctypes
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

# So that a sibling may look into it where Yama is in force: PR_SET_PTRACER, PR_SET_PTRACER_ANY.
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
executor = ThreadPoolExecutor(1)
executor.submit(int).result()


def pay():
    sys.stdout.write("asleep\\n")
    sys.stdout.flush()
    threading.Event().wait(600)  # line 16


class Basket:
    def check_out(self):
        pay()  # line 21


Basket().check_out()
"""
PERMISSION_DENIED: Final = (
    "Permission Denied: Try running again with elevated permissions by going "
    "'sudo env \"PATH=$PATH\" !!'\n"
)


@contextmanager
def running(*command: str) -> Iterator[int]:
    """A process that has said a line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[int]:
    """A process in code of its own, with another thread that is not, and a password."""
    script = tmp_path / "site.py"
    script.write_text(SITE)
    with running(sys.executable, str(script), "--password=hunter2") as pid:
        yield pid


def refused(pid: int) -> TxproxyError:
    with pytest.raises(TxproxyError) as caught:
        why(pid)
    return caught.value


def test_the_line_comes_first_then_the_stack(
    site: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why(site) == 0
    process, _, rest = capsys.readouterr().out.partition("\n")
    script = tmp_path / "site.py"
    assert process.startswith(f"{site} since ")
    assert process.endswith(f": {sys.executable} {script}")
    first, stack = rest.split("its stack, the innermost first:\n")
    assert first == f'\nMainThread is at\n  File "{script}", line 16, in pay\n'
    stack, _, others = stack.partition("\n\n")
    lines = stack.splitlines()
    places = [line.rpartition(", in ") for line in lines if str(script) in line]
    # with the class, where py-spy knows it
    assert [(place, name.rpartition(".")[2]) for place, _, name in places] == [
        (f'  File "{script}", line 16', "pay"),
        (f'  File "{script}", line 21', "check_out"),
        (f'  File "{script}", line 24', "<module>"),
    ]
    assert lines[0].endswith((" in wait", " in Condition.wait"))
    assert "threading.py" in lines[0]
    assert others == "1 thread is in libraries only\n"


def test_it_is_a_command(site: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", str(site)]) == 0
    assert "line 16, in pay" in capsys.readouterr().out


def test_no_such_process() -> None:
    with running("echo", "it ends") as pid:
        pass
    assert refused(pid).message == f"there is no process {pid}"


def test_a_process_that_is_not_python() -> None:
    with running("sh", "-c", "echo; sleep 600 & wait") as pid:
        assert refused(pid).message.startswith(f"process {pid} does not run Python")


@pytest.mark.parametrize("argument", ["0", "-1", "x", "1 2", ""])
def test_what_is_no_process_id(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["why", "--", argument])
    assert caught.value.code == 2
    assert "PID" in capsys.readouterr().err


def test_without_py_spy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    error = refused(os.getpid())
    assert error.message == "py-spy is not installed"
    assert "txproxy[stacks]" in error.hint


def test_without_permission() -> None:
    """As py-spy says it."""
    error = _refusal(os.getpid(), PERMISSION_DENIED)
    assert error.message == f"not allowed to look into process {os.getpid()}"
    assert "root" in error.hint


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_without_permission_in_fact() -> None:
    """py-spy, run as nobody, does say so."""
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    assert found is not None
    with (
        Path(found).open("rb") as binary,
        subprocess.Popen(  # it need not be where nobody can reach
            ["/proc/self/fd/0", "dump", "--pid", str(os.getpid())],
            stdin=binary,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user="nobody",
        ) as process,
    ):
        _, said = process.communicate(timeout=60)
    assert _refusal(os.getpid(), said).message.startswith("not allowed")


def test_what_else_py_spy_may_say() -> None:
    error = _refusal(os.getpid(), "Error: something\x1b[31m\nStack backtrace:\n   0: rust")
    assert error.message == "py-spy: something?[31m"
    assert _refusal(os.getpid(), "").message == "py-spy: it failed"


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("/srv/shop/views.py", True),
        ("/srv/shop/lib/python.py", True),
        ("shop/views.py", True),
        ("<string>", True),
        ("/srv/venv/lib/python3.11/site-packages/django/db/utils.py", False),
        ("/usr/lib/python3/dist-packages/psycopg2/__init__.py", False),
        ("/usr/lib/python3.11/threading.py", False),
        ("/usr/lib64/python3.11/selectors.py", False),
        ("/srv/venv/bin/gunicorn", False),
        ("<frozen runpy>", False),
    ],
)
def test_whose_code_it_is(file: str, own: bool) -> None:
    assert Frame("f", file, 1).is_own == own
