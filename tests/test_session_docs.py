"""docs/session-state.md: each row of its tables names tests, and these exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "session-state.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/\w+(?:/\w+)*\.py)::(test_\w+)`")


def rows() -> Iterator[list[str]]:
    """The cells of each row, heads and rules apart."""
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[-1].strip(" |") != "shown by":
            yield [cell.strip(" |") for cell in cells]


def test_there_are_rows() -> None:
    assert len(list(rows())) > 20


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row[0][:40])
def test_each_row_is_shown_by_a_test(row: list[str]) -> None:
    assert len(row) == 4
    said, sees, costs, shown = row
    assert said
    assert sees
    assert costs
    assert TEST.findall(shown)
    assert not TEST.sub("", shown).strip(" ,")


@pytest.mark.parametrize(("path", "name"), sorted(set(TEST.findall(TEXT))))
def test_each_test_exists(path: str, name: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE)


def test_each_name_in_it_is_a_test() -> None:
    named = re.findall(r"tests/[\w/]+\.py::\w+", TEXT)
    assert named == ["::".join(found) for found in TEST.findall(TEXT)]
