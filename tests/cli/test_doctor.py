"""`txproxy doctor` as a command, and the examples in its documentation."""

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from tests.doctor import facts
from tests.doctor.holding import holding
from tests.test_docs import ROOT, blocks
from txproxy.cli import main
from txproxy.cli.doctor import doctor, words
from txproxy.doctor.finding import Section, ok, problem, size, warning
from txproxy.doctor.holders import Holders
from txproxy.doctor.sqlite import judge

PAGE: Final = ROOT / "docs" / "doctor.md"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "notes.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text)")
    connection.close()
    return path


def test_a_file(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(database)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(database)
    assert said[1].startswith("  ok       opened              SQLite ")
    assert said[-1].startswith("0 problems, ")


def test_a_problem_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().out.endswith("\n1 problem, 0 warnings\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--audit"],
        ["--audit", "--"],
        ["--django"],
        ["one", "two"],
        ["one", "--django", "two"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: txproxy")


def test_a_configuration_that_is_wrong_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.toml: No such file or directory\n"


def test_proxy_toml_is_what_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("proxy.toml").write_text('[databases.app]\nhost = "127.0.0.1"\nport = 1\nuser = "app"\n')
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("server 127.0.0.1 port 1\n  warning  server")


def test_the_settings_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "none.settings")
    assert main(["doctor", "--django"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("txproxy: none.settings cannot be used: ModuleNotFoundError: ")


def test_django_is_not_imported_for_anything_else(database: Path) -> None:
    code = "import sys; from txproxy.cli import main; main(sys.argv[1:])\n"
    code += "assert 'django' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", str(database)], check=False, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database.chmod(0)
    assert main(["doctor", str(database)]) == 1
    assert "it cannot be read: Permission denied" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_read_it_is_told(database: Path) -> None:
    """Somebody else, whom the directories above let through, unlike the tests' own."""
    code = """
import os, shutil, sys, tempfile
from txproxy.doctor.sqlite import examine
with tempfile.TemporaryDirectory() as directory:
    os.chmod(directory, 0o755)
    path = shutil.copy(sys.argv[1], directory)
    os.chmod(path, 0o600)
    if os.fork() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for each in examine(path).findings:
            print(each.level, each.about, each.found, sep="|", flush=True)
        os._exit(0)
    os.wait()
"""
    command = [sys.executable, "-c", code, str(database)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said = [line.split("|") for line in done.stdout.splitlines()]
    assert ["problem", "opened", "it cannot be read: Permission denied"] in said
    permissions = [found for _, about, found in said if about == "permissions"]
    assert permissions[0].startswith("nobody (who runs this) may not read and write it: -rw-------")
    [unseen] = [found for _, about, found in said if about == "open in"]
    assert "could not be looked into, which takes root" in unseen


# Words


def test_the_words_of_findings(capsys: pytest.CaptureFixture[str]) -> None:
    findings = (
        ok("one", "is well", "line"),
        warning("two", "may be", "Do this."),
        problem("three", "is not", "Do that."),
        problem("four", "is not", "Do that."),
    )
    assert doctor([Section("what it is about", findings)]) == 1
    assert capsys.readouterr().out == dedent("""\
        what it is about
          ok       one                 is well
                                       line
          warning  two                 may be
                                       → Do this.
          problem  three               is not
                                       → Do that.
          problem  four                is not
                                       → Do that.

        2 problems, 1 warning
        """)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (8192, "8.2 kB"),
        (49_152_000, "49.2 MB"),
        (5 * 10**10, "50 GB"),
        (3 * 10**15, "3000.0 TB"),
    ],
)
def test_sizes(number: int, said: str) -> None:
    assert size(number) == said


# The documentation


def test_the_example_of_a_file() -> None:
    known = facts.outside(
        beside=(
            ("-wal", facts.a_file(size=1_200_000_000)),
            ("-shm", facts.a_file(0o644, uid=0, gid=0, size=32_768)),
        ),
        holders=Holders((facts.a_holder(4711, locks=(facts.reading(1),)), facts.a_holder(4712)), 0),
        index=facts.an_index(290_697, 1_210, 1_210),
    )
    said = "\n".join(words(Section(known.path, tuple(judge(known, facts.within())))))
    assert f"$ txproxy doctor {known.path}\n{said}\n\n1 problem, 1 warning\n" in blocks(
        PAGE, "text"
    )


def test_the_example_of_an_audit(
    database: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [program] = [text for text in blocks(PAGE, "python") if "notes.sqlite3" in text]
    [example] = [text for text in blocks(PAGE, "text") if "--audit" in text]
    monkeypatch.chdir(database.parent)
    Path("notes.py").write_text(program)
    assert main(["doctor", "--audit", "--", sys.executable, "notes.py"]) == 1
    said = capfd.readouterr().out.replace(str(database.parent), "/srv/notes")
    said = said.replace(sys.executable, "python")
    said = re.sub(r'"/[^"]*/threading\.py", line \d+, in .*', '"…/threading.py", …', said)
    assert f"$ txproxy doctor --audit -- python notes.py\n{said}" == example


def test_an_audit_that_is_interrupted(database: Path) -> None:
    """Ctrl-C is for the program; what it has done is told."""
    program = (
        "import sqlite3, time; sqlite3.connect('x'); print('ready', flush=True); time.sleep(60)"
    )
    command = ["doctor", "--audit", "--", sys.executable, "-c", program]
    with subprocess.Popen(
        [sys.executable, "-m", "txproxy", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=database.parent,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, 2)
        said = process.stdout.read()
    assert "1 connection in 1 Python process" in said
    assert process.returncode == 0


def test_a_file_in_use_is_left_in_use(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holding(database, "one.execute('BEGIN IMMEDIATE')") as process:
        assert main(["doctor", str(database)]) == 0
        assert f"{process.pid} since " in capsys.readouterr().out
        other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('BEGIN IMMEDIATE')"
        refused = subprocess.run(
            [sys.executable, "-c", other, str(database)], check=False, capture_output=True
        )
        assert b"database is locked" in refused.stderr
