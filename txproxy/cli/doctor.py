"""`txproxy doctor`: what may be wrong with an SQLite file, a Django site, a proxy, in words.

Exit codes: 0 no problems, 1 problems, 2 wrong usage.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from txproxy.doctor.finding import Finding, Section, count
from txproxy.doctor.sqlite import examine

_ABOUT: Final = 14  # letters of the widest word that says what a finding is about


def doctor(sections: Iterable[Section]) -> int:
    """Print findings as they come; returns the exit code: 1 if there is a problem among them."""
    levels: list[str] = []
    for section in sections:
        for line in words(section):
            print(line, flush=True)
        levels += [finding.level for finding in section.findings]
    problems, warnings = levels.count("problem"), levels.count("warning")
    print(f"\n{count(problems, 'problem')}, {count(warnings, 'warning')}")
    return 1 if problems else 0


def words(section: Section) -> Iterator[str]:
    """A section as it is printed."""
    yield section.title
    for finding in section.findings:
        yield from _finding(finding)


def _finding(finding: Finding) -> Iterator[str]:
    yield f"  {finding.level:<9}{finding.about:<{_ABOUT}}{finding.found}"
    indent = " " * (11 + _ABOUT)
    yield from (f"{indent}{line}" for line in finding.details)
    if finding.advice:
        yield f"{indent}→ {finding.advice}"
