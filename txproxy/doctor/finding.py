"""What the doctor says: what was found, whether that is well, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["ok", "warning", "problem"]

MEGABYTE: Final = 1_000_000
_SHOWN: Final = 10  # lines of a list
_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` is one sentence; `details` are lines for a person."""

    level: Level
    about: str
    found: str
    advice: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """The findings about one thing, whose name is the title."""

    title: str
    findings: tuple[Finding, ...]


def ok(about: str, found: str, *details: str) -> Finding:
    """It is as it should be."""
    return Finding("ok", about, found, "", details)


def warning(about: str, found: str, advice: str, *details: str) -> Finding:
    """It works, and may not under load, or tomorrow."""
    return Finding("warning", about, found, advice, details)


def problem(about: str, found: str, advice: str, *details: str) -> Finding:
    """It does not work, or loses something."""
    return Finding("problem", about, found, advice, details)


def size(number: int) -> str:
    """Bytes in words: `512 bytes`, `1.5 MB`."""
    amount = float(number)
    for unit in _UNITS[:-1]:
        if amount < 1000:
            return f"{amount:.{1 if amount % 1 else 0}f} {unit}"
        amount /= 1000
    return f"{amount:.1f} {_UNITS[-1]}"


def count(number: int, one: str, many: str = "") -> str:
    """`1 process`, `2 processes`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Without what would do something to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def some(said: Iterable[str]) -> list[str]:
    """The first of many lines, and how many more there are."""
    every = [printable(each) for each in said]
    rest = len(every) - _SHOWN
    return [*every[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
