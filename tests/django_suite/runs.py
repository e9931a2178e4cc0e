"""One run of Django's tests, against a new PostgreSQL: directly, or through the proxy."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.django_suite.source import CACHE
from tests.system.proxy import Proxy, Table, direct
from txproxy.cli.embedded import EmbeddedPostgres, dying_with_us

ENGINES: Final = ("postgresql", "sqlite")
"""sqlite: Django's own backend on a file, and txproxy.django.sqlite3 with the same proxy."""

DRIVERS: Final = ("psycopg", "psycopg-binding", "psycopg2")
"""psycopg-binding is psycopg 3 with OPTIONS = {"server_side_binding": True}."""

_ROOT: Final = Path(__file__).parents[2]
_LAST_WORDS: Final = 2.0  # seconds for the stacks of a run that hangs


class SuiteError(Exception):
    """The tests cannot be run."""


@dataclass(frozen=True)
class Plan:
    """What to run: labels of runtests.py (none: all), how, and for how many seconds at most."""

    labels: tuple[str, ...]
    engine: str
    driver: str
    parallel: int
    crowd: int
    timeout: float
    options: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Run:
    """What came of it.

    outcomes   by test: ok, skipped, failure, error, expected failure, unexpected success; hung: the
               time was over while it ran; not run; and what was said about it
    finished   whether the runner came to its end
    bugs       that the proxy itself has logged
    """

    name: str
    log: Path
    seconds: float = 0.0
    finished: bool = False
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    bugs: list[str] = field(default_factory=list)


def run_directly(plan: Plan, tests: Path) -> Run:
    """Run them on a server of their own, or on files. Raises SuiteError."""
    if plan.engine == "sqlite":
        with TemporaryDirectory(prefix="txproxy-suite-") as directory:
            return _run("direct", plan, tests, "", 0, directory)
    with _server() as server:
        return _run("direct", plan, tests, server.host, server.port)


def run_proxied(plan: Plan, tests: Path, pool_size: int) -> Run:
    """The same with a proxy between, all of whose databases lead to that server, or to files."""
    if plan.engine == "sqlite":
        with TemporaryDirectory(prefix="txproxy-suite-") as directory:
            return _run_on_files(plan, tests, directory)
    settings: Table = {"default_pool_size": pool_size, "log_level": "info"}
    with _server() as server:
        proxy = Proxy(server, proxy=settings, databases={"*": {"dbname": None}}, check=False)
        try:
            with proxy:
                run = _run("proxied", plan, tests, proxy.host, proxy.port)
        except AssertionError as error:
            run.bugs.append(str(error))
        run.log.with_suffix(".proxy.log").write_text(proxy.log())
        return run


def _run_on_files(plan: Plan, tests: Path, directory: str) -> Run:
    # Whole test cases are transactions, and what they do meanwhile is none of our business.
    never: Table = dict.fromkeys(("idle_writer_timeout", "idle_transaction_timeout"), 0)
    files: dict[str, Table] = {"*": {"directory": directory, "allow_create": True, **never}}
    settings: Table = {"log_level": "info"}
    with EmbeddedPostgres() as server:
        proxy = Proxy(server, proxy=settings, sqlite=files, check=False)
        try:
            with proxy:
                run = _run("proxied", plan, tests, proxy.socket_dir, proxy.port, directory)
        except AssertionError as error:
            run.bugs.append(str(error))
    run.log.with_suffix(".proxy.log").write_text(proxy.log())
    return run


@contextmanager
def _server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings={"max_connections": 200}) as server:
        with direct(server, "template1") as connection:
            # A model of Django's own tests names it, and the wheel's server is built without ICU.
            connection.execute('CREATE COLLATION IF NOT EXISTS pg_catalog."sv-x-icu" FROM "C"')
        yield server


def _run(name: str, plan: Plan, tests: Path, host: str, port: int, directory: str = "") -> Run:
    CACHE.mkdir(exist_ok=True)
    run = Run(name, CACHE / f"{name}-{'sqlite' if directory else plan.driver}.log")
    results = run.log.with_suffix(".jsonl")
    results.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        "TXPROXY_SUITE_DRIVER": plan.driver,
        "TXPROXY_SUITE_DIRECTORY": directory,
        "TXPROXY_SUITE_HOST": host,
        "TXPROXY_SUITE_OPTIONS": plan.options,
        "TXPROXY_SUITE_PORT": str(port),
        "TXPROXY_SUITE_RESULTS": str(results),
        "TXPROXY_SUITE_CROWD": "0" if directory else str(plan.crowd),
    }
    options = ["--settings=tests.django_suite.settings", f"--parallel={plan.parallel}", "--noinput"]
    began = time.monotonic()
    with run.log.open("wb") as log:
        process = subprocess.Popen(
            [*dying_with_us(), sys.executable, "runtests.py", *options, *plan.labels],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tests,
            env=environment,
            start_new_session=True,
        )
        try:
            process.wait(plan.timeout)
            run.finished = process.returncode in {0, 1}
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGUSR1)
            time.sleep(_LAST_WORDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    run.seconds = time.monotonic() - began
    if not results.exists():
        raise SuiteError(f"{name}: no test was run: {_end_of(run.log)}")
    _read(run, results)
    return run


def _read(run: Run, results: Path) -> None:
    for line in results.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if "planned" in event:
            run.outcomes |= dict.fromkeys(event["planned"], ("not run", ""))
        elif "begun" in event:
            run.outcomes[event["begun"]] = ("hung", "")
        elif run.outcomes.get(event["test"], ("", ""))[0] not in {"error", "failure"}:
            run.outcomes[event["test"]] = (event["outcome"], event.get("why", ""))


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-500:] or "it said nothing"
