"""Endpoints that several tests share."""

import itertools
from collections.abc import Iterator

import pytest

from tests.sqlite.endpoint import Endpoint

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One process for a module's tests, which bring their own files."""
    with Endpoint(tmp_path_factory.mktemp("sqlite")) as endpoint:
        yield endpoint


@pytest.fixture
def database(shared: Endpoint) -> str:
    """The name of a file of this test's own, with the table t (a INTEGER PRIMARY KEY, b)."""
    name = f"{next(_numbers)}.db"
    shared.create(name, "CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    return name
