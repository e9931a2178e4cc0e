"""`txproxy doctor --audit`: real programs, and what was seen of their connections."""

import sqlite3
import sys
from pathlib import Path

import pytest

from txproxy.doctor.audit import Seen, audit, judge, read
from txproxy.doctor.finding import Finding
from txproxy.errors import TxproxyError

HEAD = """\
import gc, os, sqlite3, sys, threading
path = sys.argv[1]
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "notes.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    return path


def watched(program: str, database: Path) -> list[Finding]:
    """What is said about a program, whose first line is number 3."""
    script = database.parent / "site.py"
    script.write_text(HEAD + program)
    return list(audit([sys.executable, str(script), str(database)]).findings)


def only(program: str, database: Path, about: str) -> Finding:
    [found] = [each for each in watched(program, database) if each.about == about]
    return found


def line(number: int, function: str, database: Path) -> str:
    return f'File "{database.parent}/site.py", line {number}, in {function}'


def test_a_program_with_which_all_is_well(database: Path) -> None:
    program = """\
def work():
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("INSERT INTO notes VALUES (1)")
    connection.close()
work()
work()
"""
    opened, closed = watched(program, database)
    assert (opened.level, opened.found) == ("ok", "2 connections in 1 Python process")
    assert opened.details == (f"    2  {line(4, 'work', database)}: {database}",)
    assert (closed.level, closed.details) == ("ok", (f"    2  {line(7, 'work', database)}",))


USED_CLOSED = [
    "connection.execute('SELECT 1')",
    "connection.cursor()",
    "connection.commit()",
    "connection.__enter__()",
    "connection.create_function('f', 0, int)",
    "cursor.execute('SELECT 1')",
    "cursor.fetchall()",
    "list(cursor)",
]


@pytest.mark.parametrize("use", USED_CLOSED)
def test_used_when_it_is_closed(use: str, database: Path) -> None:
    program = f"""\
def tidy():
    connection.close()
connection = sqlite3.connect(path)
cursor = connection.execute("SELECT * FROM notes")
tidy()
try:
    {use}
except sqlite3.ProgrammingError:
    pass
"""
    found = only(program, database, "used closed")
    assert found.level == "problem"
    assert found.found == f"{database}: Cannot operate on a closed database."
    assert line(4, "tidy", database) in found.advice
    details = [
        "used here:",
        f"  {line(9, '<module>', database)}",
        "after it was closed here:",
        f"  {line(4, 'tidy', database)}",
        f"  {line(7, '<module>', database)}",
        "and it was opened here:",
        f"  {line(5, '<module>', database)}",
    ]
    assert list(found.details) == details


def test_closed_by_another_thread(database: Path) -> None:
    program = """\
connection = sqlite3.connect(path, check_same_thread=False)
thread = threading.Thread(target=connection.close)
thread.start()
thread.join()
for _ in range(3):
    try:
        connection.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        pass
"""
    found = only(program, database, "used closed")
    assert found.found.startswith("3 times, ")
    assert "after it was closed here, in another thread:" in found.details


def test_a_thread_that_may_not_close_it(database: Path) -> None:
    program = """\
connection = sqlite3.connect(path)
def close():
    try:
        connection.close()
    except sqlite3.ProgrammingError:
        print("not here")
thread = threading.Thread(target=close)
thread.start()
thread.join()
connection.execute("SELECT 1")
connection.close()
"""
    closed = only(program, database, "closed")
    assert closed.details == (f"    1  {line(13, '<module>', database)}",)


def test_a_program_that_closes_what_it_has_not_opened(database: Path) -> None:
    """As daemons do: nothing is written to what gets the number of a file of ours."""
    program = """\
os.closerange(3, 1000)
for _ in range(20):
    sqlite3.connect(path).execute("SELECT count(*) FROM notes").fetchone()
connection = sqlite3.connect(path)
connection.execute("PRAGMA integrity_check")
connection.close()
"""
    found = watched(program, database)
    assert found[0].found == "21 connections in 1 Python process"
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_a_transaction_that_is_left_open(database: Path) -> None:
    program = """\
connection = sqlite3.connect(path)
other = sqlite3.connect(path)
connection.execute("INSERT INTO notes VALUES (1)")
"""
    problem, well = [each for each in watched(program, database) if each.about == "left open"]
    assert (problem.level, problem.details) == (
        "problem",
        (f"    1  {line(5, '<module>', database)}",),
    )
    assert (well.level, well.details) == ("ok", (f"    1  {line(4, '<module>', database)}",))


def test_a_process_that_is_killed_has_told_it(database: Path) -> None:
    program = """\
connection = sqlite3.connect(path)
connection.execute("INSERT INTO notes VALUES (1)")
os.kill(os.getpid(), 9)
"""
    found = {each.about: each for each in watched(program, database)}
    assert found["the program"].found == "it ended by signal 9"
    assert found["left open"].details == (f"    1  {line(4, '<module>', database)}",)


def test_work_that_is_lost_by_closing(database: Path) -> None:
    program = """\
connection = sqlite3.connect(path)
connection.execute("INSERT INTO notes VALUES (1)")
connection.close()
"""
    found = only(program, database, "rolled back")
    assert (found.level, found.details) == (
        "warning",
        (f"    1  {line(5, '<module>', database)}",),
    )


def test_never_closed(database: Path) -> None:
    program = """\
def forget():
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO notes VALUES (1)")
forget()
"""
    found = only(program, database, "never closed")
    assert (found.level, found.details) == ("warning", (f"    1  {line(4, 'forget', database)}",))


def test_carried_over_a_fork(database: Path) -> None:
    program = """\
connection = sqlite3.connect(path)
if os.fork() == 0:
    connection.execute("SELECT 1")
    os._exit(0)
os.wait()
connection.close()
"""
    found = watched(program, database)
    assert found[0].found == "1 connection in 2 Python processes"
    [forked] = [each for each in found if each.about == "forked"]
    assert (forked.level, forked.details) == (
        "problem",
        (f"    1  {line(5, '<module>', database)}",),
    )


def test_what_cannot_be_opened(database: Path) -> None:
    program = """\
try:
    sqlite3.connect("/none/notes")
except sqlite3.OperationalError as error:
    assert str(error) == "unable to open database file"
"""
    found = only(program, database, "not opened")
    where = line(4, "<module>", database)
    assert found.details == (f"    1  {where}: /none/notes: unable to open database file",)


def test_classes_of_the_programs_own(database: Path) -> None:
    """They stay what they are, in each way of asking for them."""
    program = """\
class Own(sqlite3.Connection):
    closed = 0
    def close(self):
        self.closed += 1
        super().close()
class OwnCursor(sqlite3.Cursor):
    def execute(self, *arguments):
        return super().execute(*arguments)
for connection in (
    sqlite3.connect(path, 5.0, 0, None, True, Own),
    sqlite3.connect(path, factory=Own),
):
    assert isinstance(connection, Own)
    assert type(connection).__name__ == "Own"
    cursor = connection.cursor(OwnCursor)
    assert isinstance(cursor, OwnCursor)
    assert cursor.execute("SELECT 1").fetchone() == (1,)
    assert isinstance(connection.cursor(factory=lambda c: OwnCursor(c)), OwnCursor)
    connection.close()
    assert connection.closed == 1
"""
    assert [(each.about, each.level) for each in watched(program, database)] == [
        ("opened", "ok"),
        ("closed", "ok"),
    ]


def test_what_is_opened_past_it(database: Path) -> None:
    found = only("connection = sqlite3.Connection(path)\n", database, "not watched")
    assert (found.level, found.details) == (
        "warning",
        (f"    1  {line(3, '<module>', database)}",),
    )


def test_the_programs_own_sitecustomize_still_runs(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    own.joinpath("sitecustomize.py").write_text("import sqlite3\nsqlite3.own = True\n")
    monkeypatch.setenv("PYTHONPATH", str(own))
    found = watched("assert sqlite3.own\nsqlite3.connect(path).close()\n", database)
    assert [each.about for each in found] == ["opened", "closed"]


def test_programs_that_it_starts_are_watched_too(database: Path) -> None:
    program = """\
import subprocess
code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).close()"
subprocess.run([sys.executable, "-c", code, path], check=True)
"""
    assert watched(program, database)[0].found == "1 connection in 2 Python processes"


def test_its_exit_code(database: Path) -> None:
    found = only("sys.exit(3)\n", database, "the program")
    assert (found.level, found.found) == ("warning", "it ended with exit code 3")


@pytest.mark.parametrize("command", [["true"], [sys.executable, "-I", "-c", "0"]])
def test_what_cannot_be_watched(command: list[str]) -> None:
    [found] = audit(command).findings
    assert found.level == "problem"
    assert found.found.startswith("nothing was seen")


def test_what_cannot_be_run() -> None:
    with pytest.raises(TxproxyError, match="none/program: No such file"):
        audit(["/none/program"])


def test_a_line_that_was_cut_short() -> None:
    seen = read(['{"event": "process", "pid": 1}\n', '{"event": "full", "pid": 1}\n', '{"event"'])
    assert (seen.processes, seen.full) == (1, True)


def test_a_python_that_is_too_old() -> None:
    seen = read(['{"event": "old", "pid": 1, "version": "3.9.18"}\n'])
    [found] = judge(seen, 0)
    assert (found.level, found.found.split(" does")[0]) == ("problem", "Python 3.9.18")


def test_a_process_that_did_too_much() -> None:
    found = list(judge(Seen(processes=1, full=True), 0))
    assert [each.level for each in found] == ["ok", "warning"]
