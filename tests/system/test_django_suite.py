"""Django's own tests come out through the proxy as they do directly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.django_suite.source import SourceError, fetch

ROOT: Final = Path(__file__).parents[2]

FEW: Final = ("basic", "bulk_create", "get_or_create", "transactions", "transaction_hooks")


@pytest.fixture(scope="module", autouse=True)
def source() -> Path:
    """Django's tests are in its source distribution only."""
    try:
        return fetch()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("engine", "driver", "labels"),
    [
        ("postgresql", "psycopg", ()),  # the script's own choice of labels
        ("postgresql", "psycopg-binding", FEW),
        ("postgresql", "psycopg2", FEW),
        ("sqlite", "psycopg", (*FEW, "backends", "select_for_update")),
    ],
)
def test_nothing_is_worse_through_the_proxy(
    engine: str, driver: str, labels: tuple[str, ...], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.django_suite", *labels),
            *("--engine", engine, "--driver", driver, "--timeout", "240", "--json", report),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["worse"] == found["bugs"] == []
    for run in found["runs"]:
        assert run["finished"]
        assert run["counts"]["ok"] > 100
