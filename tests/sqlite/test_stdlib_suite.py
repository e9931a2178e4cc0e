"""Python's own tests of `sqlite3`, with txproxy.sqlite in its place."""

import subprocess
import sys

import pytest

from tests.sqlite.stdlib_suite import is_there


@pytest.mark.skipif(not is_there(), reason="this Python comes without its own tests")
@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the list of tests that do not apply is of Python 3.11"
)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("reads", ["local", "server"])
def test_pythons_own_tests_pass(reads: str) -> None:
    command = [sys.executable, "-m", "tests.sqlite.stdlib_suite", "--reads", reads]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
