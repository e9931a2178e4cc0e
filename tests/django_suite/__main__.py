"""`python -m tests.django_suite`: Django's own tests, directly and then through the proxy.

Both with the same settings, on a new PostgreSQL each, or on new SQLite files; then what differs.

Exit codes: 0: nothing is worse through the proxy; 1: something is, or the proxy has met a bug; 2:
the tests could not be run.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.django_suite.known import SQLITE as KNOWN
from tests.django_suite.runs import (
    DRIVERS,
    ENGINES,
    Plan,
    Run,
    SuiteError,
    run_directly,
    run_proxied,
)
from tests.django_suite.source import CACHE, SourceError, fetch

# What has to do with the database and not only with the ORM's Python, in a few minutes.
_LABELS: Final = (
    "backends",
    "basic",
    "bulk_create",
    "db_functions",
    "db_utils",
    "delete",
    "get_or_create",
    "introspection",
    "raw_query",
    "select_for_update",
    "servers",
    "sessions_tests",
    "transaction_hooks",
    "transactions",
)
LABELS: Final = {
    "postgresql": (*_LABELS, "postgres_tests"),
    "sqlite": (*_LABELS, "constraints", "expressions", "lookup", "migrations", "schema"),
}

_NAMED: Final = re.compile(r"(?!DETAIL|HINT|CONTEXT|LINE)[\w.]+: ")
_GOOD: Final = frozenset(("ok", "expected failure"))


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    plan = Plan(
        labels=() if asked.all else tuple(asked.labels) or LABELS[asked.engine],
        engine=asked.engine,
        driver=asked.driver,
        parallel=asked.parallel,
        crowd=asked.crowd,
        timeout=asked.timeout,
        options=asked.options,
    )
    try:
        tests = fetch()
        direct = run_directly(plan, tests)
        _say(direct)
        proxied = run_proxied(plan, tests, asked.pool_size)
        _say(proxied)
    except (SourceError, SuiteError) as error:
        print(f"django-suite: {error}", file=sys.stderr)
        return 2
    worse, others = _compare(direct, proxied)
    known = KNOWN if asked.engine == "sqlite" else {}
    for each in [each for each in worse if each["test"] in known]:
        worse.remove(each)
        others.append({**each, "why": known[each["test"]]})
    _tell("Worse through the proxy", worse)
    _tell("Otherwise different", others)
    for bug in proxied.bugs:
        print(f"\nthe proxy has met a bug: {bug}")
    if asked.json:
        asked.json.write_text(
            json.dumps(
                {
                    **plan.as_dict(),
                    "runs": [_summary(each) for each in (direct, proxied)],
                    "worse": worse,
                    "others": others,
                    "bugs": proxied.bugs,
                },
                indent=1,
            )
        )
    return 1 if worse or proxied.bugs else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.django_suite",
        description="Run Django's own tests directly and through the proxy, and compare.",
        epilog=f"Django's source distribution and the logs of the last runs are in {CACHE.name}/.",
    )
    add = parser.add_argument
    add("labels", nargs="*", help="as for Django's runtests.py; none: a few minutes' worth")
    add("--all", action="store_true", help="every test that Django has")
    add("--engine", choices=ENGINES, default=ENGINES[0], help="default: %(default)s")
    add("--driver", choices=DRIVERS, default=DRIVERS[0], help="default: %(default)s")
    add("--parallel", type=int, default=2, metavar="N", help="processes; default: %(default)s")
    add("--pool-size", type=int, default=10, metavar="N", help="of the proxy; default: %(default)s")
    add(
        "--crowd",
        type=int,
        default=2,
        metavar="N",
        help="other clients of each process's database, so that statements of one connection reach"
        " different backends; default: %(default)s",
    )
    add(
        "--timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="of each run; default: %(default)g",
    )
    add(
        "--options",
        default="{}",
        metavar="JSON",
        help="OPTIONS of txproxy.django.sqlite3, with --engine sqlite",
    )
    add("--json", type=Path, metavar="FILE", help="write the results there as well")
    return parser


def _say(run: Run) -> None:
    counts = ", ".join(f"{number} {word}" for word, number in sorted(_counts(run).items()))
    print(f"{run.name}: {len(run.outcomes)} tests in {run.seconds:.0f} s: {counts}", flush=True)
    if not run.finished:
        print(f"  it did not finish; see {run.log}", flush=True)


def _counts(run: Run) -> Counter[str]:
    return Counter(outcome for outcome, _ in run.outcomes.values())


def _summary(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "seconds": round(run.seconds, 1),
        "finished": run.finished,
        "counts": dict(_counts(run)),
    }


def _compare(direct: Run, proxied: Run) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The tests that come out worse through the proxy, and those with another difference."""
    worse: list[dict[str, str]] = []
    others: list[dict[str, str]] = []
    for test in sorted({*direct.outcomes, *proxied.outcomes}):
        one, _ = direct.outcomes.get(test, ("not there", ""))
        other, why = proxied.outcomes.get(test, ("not there", ""))
        if one != other:
            found = {"test": test, "directly": one, "proxied": other, "why": why}
            is_worse = one in _GOOD or (one in {"skipped", "not there"} and other not in _GOOD)
            (worse if is_worse else others).append(found)
    return worse, others


def _tell(title: str, different: Sequence[dict[str, str]]) -> None:
    print(f"\n{title}: {len(different) or 'none'}")
    for each in different:
        print(f"  {each['test']}: {each['directly']} -> {each['proxied']}")
        if each["why"]:
            print(f"      {_gist(each['why'])}")


def _gist(why: str) -> str:
    """The last line of a traceback that names an exception, without what libpq says below."""
    said = [line for line in why.strip().splitlines() if _NAMED.match(line)]
    return (said or [why.strip()])[-1][:200]


if __name__ == "__main__":
    sys.exit(main())
