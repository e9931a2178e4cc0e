"""docs/console.md names every command, table and column that there is, and no others."""

import re
from pathlib import Path

import pytest

from txproxy.core.console import COMMANDS, STATS
from txproxy.core.tables import COLUMNS

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "console.md").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    """What is said of each table, by its name."""
    parts = re.split(r"^### ", TEXT.split("\n## What PgBouncer has")[0], flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for part in parts:
        heading, _, said = part.partition("\n")
        for name in re.findall(r"SHOW (\w+)", heading):
            found[name] = said
    return found


def test_every_table_is_described() -> None:
    assert set(sections()) == set(COLUMNS)


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_is_described(name: str) -> None:
    said = sections()[name]
    if name == "SOCKETS":
        said += sections()["SERVERS"]
    named = set(re.findall(r"`(\w+)`", said))
    assert {column.name for column in COLUMNS[name]} <= named


def test_columns_are_described_in_their_order() -> None:
    for name in (
        "POOLS",
        "CLIENTS",
        "SERVERS",
        "TRANSACTIONS",
        "REAPED",
        "OFFENDERS",
        "DATABASES",
        "USERS",
    ):
        rows = re.findall(r"^\| (`.*?) \|", sections()[name], flags=re.MULTILINE)
        named = [column for row in rows for column in re.findall(r"`(\w+)`", row)]
        assert named == [column.name for column in COLUMNS[name]]


def test_every_command_is_described() -> None:
    said = TEXT.split("## Commands\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `([A-Z_]+)", said, flags=re.MULTILINE))
    assert named == {command.name for command in COMMANDS.values() if command.needs > STATS}
