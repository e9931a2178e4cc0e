"""The runner that Django's tests/runtests.py uses: it writes down what becomes of each test.

A line of JSON for each event, by the process in which the test runs, at once: so it is known where
a run that hangs does so, and no exception needs to be pickled. The file is named by a variable that
`__main__.py` sets. {"planned": [ids]} comes first; then {"begun": id}, and {"test": id, "outcome":
word, "why": traceback}.
"""

import faulthandler
import json
import os
import signal
import unittest
from typing import Any, Final

from django.contrib.postgres.operations import CreateExtension
from django.test import runner
from django.test.runner import DiscoverRunner, ParallelTestSuite, RemoteTestResult, RemoteTestRunner
from django.test.utils import iter_test_cases

from tests.django_suite.crowd import Crowd

_PATH: Final = os.environ["TXPROXY_SUITE_RESULTS"]
_CROWD: Final = int(os.environ["TXPROXY_SUITE_CROWD"])

# Where does it hang? Workers inherit it.
faulthandler.register(signal.SIGUSR1)


_create: Final = CreateExtension.database_forwards


def _create_if_it_can_be(extension: Any, *arguments: Any) -> None:
    """The embedded server has none of these, nor do tests need them: one is created to see whether
    its name is quoted, and what they use of the other has been in the server itself for long.
    """
    if extension.name not in {"uuid-ossp", "pgcrypto"}:
        _create(extension, *arguments)


CreateExtension.database_forwards = _create_if_it_can_be


def _write(**event: object) -> None:
    # one write at the end of the file: processes do not get into each other's lines
    line = json.dumps(event).encode() + b"\n"
    file = os.open(_PATH, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line)
    finally:
        os.close(file)


class _Recording(unittest.TestResult):
    """Writes down what it is told."""

    def startTest(self, test: Any) -> None:  # noqa: N802
        _write(begun=test.id())
        super().startTest(test)

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        _write(test=test.id(), outcome="ok")
        super().addSuccess(test)

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        _write(test=test.id(), outcome="skipped", why=reason)
        super().addSkip(test, reason)

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        _write(test=test.id(), outcome="error", why=_told(err, test))
        super().addError(test, self.passed_on(err, test))

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        _write(test=test.id(), outcome="failure", why=_told(err, test))
        super().addFailure(test, self.passed_on(err, test))

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        _write(test=test.id(), outcome="expected failure", why=_told(err, test))
        super().addExpectedFailure(test, self.passed_on(err, test))

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        _write(test=test.id(), outcome="unexpected success")
        super().addUnexpectedSuccess(test)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        if err is not None:
            # as the failure of the whole: what a subtest is named by can often not be pickled
            self.addFailure(test, err)

    def passed_on(self, err: Any, test: Any) -> Any:
        """The error as it goes on to Django."""
        return err


def _told(err: Any, test: Any) -> str:
    told: str = unittest.TestResult()._exc_info_to_string(err, test)  # type: ignore[attr-defined]
    return told


class _Result(_Recording, unittest.TextTestResult):
    """Of a run in one process."""


class _RemoteResult(_Recording, RemoteTestResult):  # type: ignore[misc]  # Django has no types
    """Of a worker."""

    def passed_on(self, err: Any, test: Any) -> Any:
        # a text can always be pickled
        return (AssertionError, AssertionError(_told(err, test)), None)


class _RemoteRunner(RemoteTestRunner):  # type: ignore[misc]
    resultclass = _RemoteResult


def _init_worker(*arguments: Any) -> None:
    runner._init_worker(*arguments)
    _crowd().start()


def _crowd() -> Crowd:
    return Crowd(_CROWD, lambda why: _write(test="(the crowd)", outcome="error", why=why))


class _Suite(ParallelTestSuite):  # type: ignore[misc]
    runner_class = _RemoteRunner
    init_worker = _init_worker


class Runner(DiscoverRunner):  # type: ignore[misc]
    """Django's own, but for what it writes down."""

    parallel_test_suite = _Suite

    def get_resultclass(self) -> type[unittest.TestResult] | None:
        return _Result if self.parallel <= 1 else None

    def run_suite(self, suite: Any, **options: Any) -> Any:
        _write(planned=[test.id() for test in iter_test_cases(suite)])
        if self.parallel > 1:
            return super().run_suite(suite, **options)
        crowd = _crowd()
        crowd.start()
        try:
            return super().run_suite(suite, **options)
        finally:
            crowd.stop()
