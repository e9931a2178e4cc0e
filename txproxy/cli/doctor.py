"""`txproxy doctor`: what may be wrong with an SQLite file, a Django site, a proxy, in words.

Exit codes: 0 no problems, 1 problems, 2 wrong usage.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from typing import Final

from txproxy import config
from txproxy.doctor.finding import Finding, Section, count

_ABOUT: Final = 20  # letters, with the space behind them, of what findings are about


def sections(arguments: argparse.Namespace) -> Iterable[Section]:
    """What is to be said of what the arguments name, one thing after the other."""
    what: list[str] = arguments.what
    if arguments.audit:
        from txproxy.doctor.audit import audit

        if not what:
            arguments.wrong_usage("--audit: which command?")
        return [audit(what)]
    if arguments.django is not None:
        from txproxy.doctor.django import examine_site

        settings = arguments.django or os.environ.get("DJANGO_SETTINGS_MODULE", "")
        if not settings:
            arguments.wrong_usage("--django: which settings? DJANGO_SETTINGS_MODULE is not set")
        if what:
            arguments.wrong_usage("--django: its files are those of its settings")
        return examine_site(settings)
    if len(what) > 1:
        arguments.wrong_usage("one file at a time; a command stands behind --audit --")
    return _file(what[0] if what else "proxy.toml")


def _file(path: str) -> Iterable[Section]:
    if path.endswith((".toml", ".ini")):
        from txproxy.doctor.servers import examine_configuration

        return examine_configuration(config.load(path))
    from txproxy.doctor.sqlite import examine

    return [examine(path)]


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
