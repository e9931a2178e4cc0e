"""One proxy for a module's tests, with files that Django's engine uses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.django.site import OURS, STOCK, TABLES, drop, use, wrapper
from tests.system.files import NOTES, Files, make
from txproxy.cli.embedded import EmbeddedPostgres

ENGINE = "txproxy.django.sqlite3"


@pytest.fixture(scope="module")
def files(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    """The proxy, with `notes` and a directory in which clients may make files."""
    made = Files(postgres, tmp_path_factory.mktemp("files"), others={"allow_create": True})
    make(made.notes, *TABLES)
    with made.proxy:
        made.process()  # a client waits for it, but not for ever
        yield made


@pytest.fixture
def ours(files: Files) -> Iterator[Any]:
    """The alias `ours`: the file `notes` by way of the proxy."""
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    yield use(wrapper(OURS, ENGINE, NOTES, **where))
    drop(OURS)


@pytest.fixture
def other(files: Files) -> Iterator[Any]:
    """Another connection to the same file, which no alias leads to."""
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    made = wrapper("other", ENGINE, NOTES, **where)
    made.inc_thread_sharing()
    yield made
    made.close()


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[Any]:
    """The alias `stock`: Django's own backend, on a file of its own."""
    path = tmp_path / "stock.db"
    make(path, *TABLES)
    yield use(wrapper(STOCK, "django.db.backends.sqlite3", path))
    drop(STOCK)
