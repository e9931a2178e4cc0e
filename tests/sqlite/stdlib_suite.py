"""Python's own tests of `sqlite3`, run with txproxy.sqlite in its place.

    python -m tests.sqlite.stdlib_suite [--reads local|server] [-v] [NAME…]

They come from the interpreter's own Lib/test. A database in memory becomes a file of the endpoint;
NAME chooses tests by a part of their id. Which do not apply, and why: stdlib_exceptions.py.
"""

import argparse
import importlib
import importlib.util
import itertools
import os
import sqlite3
import sqlite3.dump
import sys
import tempfile
import types
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.sqlite.endpoint import Endpoint
from tests.sqlite.stdlib_exceptions import why_not
from txproxy import sqlite
from txproxy.sqlite.place import name_of

PORT: Final = 5432
MODULES: Final = (
    "test_backup",
    "test_dbapi",
    "test_dump",
    "test_factory",
    "test_hooks",
    "test_regression",
    "test_transactions",
    "test_types",
    "test_userfunctions",
)


def is_there() -> bool:
    """Whether this interpreter has its tests."""
    try:
        return importlib.util.find_spec("test.test_sqlite3") is not None
    except ModuleNotFoundError:
        return False


class Substitute(types.ModuleType):
    """`sqlite3`, with txproxy's connections; each database in memory is a new file."""

    def __init__(self, endpoint: Endpoint, reads: str) -> None:
        super().__init__("sqlite3")
        self.__dict__.update({k: v for k, v in vars(sqlite3).items() if not k.startswith("__")})
        self.__path__ = sqlite3.__path__
        numbers = itertools.count(1)
        where: dict[str, Any] = {"host": str(endpoint.directory), "port": PORT, "reads": reads}

        stands_for: dict[str, str] = {}

        class Connection(sqlite.Connection):
            """A file that a test removes and makes anew is each time another one of ours."""

            def __init__(self, database: Any, *arguments: Any, **keywords: Any) -> None:
                name = ":memory:"
                if database != name:
                    name = name_of(database, is_uri=keywords.pop("uri", False))
                fresh = name != ":memory:" and "/" not in name and not Path(name).exists()
                if name == ":memory:" or fresh:
                    stands_for[name] = f"file{next(numbers)}.db"
                    Path(stands_for[name]).touch()  # an empty file is a database
                    if fresh:
                        Path(name).touch()
                file = stands_for.get(name, name)
                super().__init__(file, *arguments, **{**where, **keywords})

        def connect(database: Any, *arguments: Any, **keywords: Any) -> Any:
            factory = keywords.pop("factory", arguments[4] if len(arguments) > 4 else Connection)
            return factory(database, *arguments, **keywords)

        self.Connection = Connection
        self.Cursor = sqlite.Cursor
        self.connect = connect

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)


def tests_in(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_in(test)
        else:
            yield test


def run(directory: Path, reads: str, wanted: list[str], *, verbose: bool) -> bool:
    """Run them; whether all went as it is to be."""
    excepted = 0
    with Endpoint(directory, allow_create=True, idle_writer_timeout=0) as endpoint:
        os.chdir(directory)
        sys.modules["sqlite3"] = Substitute(endpoint, reads)
        loader = unittest.defaultTestLoader
        suite = unittest.TestSuite()
        for name in MODULES:
            module = importlib.import_module(f"test.test_sqlite3.{name}")
            for test in tests_in(loader.loadTestsFromModule(module)):
                short = test.id().removeprefix("test.test_sqlite3.")
                if wanted:
                    if any(part in short for part in wanted):
                        suite.addTest(test)
                elif why_not(short, reads):
                    excepted += 1
                else:
                    suite.addTest(test)
        result = unittest.TextTestRunner(verbosity=2 if verbose else 1).run(suite)
        unexpected = [*result.failures, *result.errors]
    print(f"{result.testsRun} run, {len(unexpected)} failed, {excepted} do not apply")
    return not unexpected


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reads", choices=("local", "server"), default="local")
    parser.add_argument("-v", action="store_true", dest="verbose")
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        there = Path(directory).resolve()
        ok = run(there, arguments.reads, arguments.names, verbose=arguments.verbose)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
