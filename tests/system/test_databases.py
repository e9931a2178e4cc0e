"""Databases that are made, renamed and dropped through the proxy, and what new sessions begin with.

The server does these only when nobody else is connected to the database. Clients that are idle hold
no backend, so they are not in the way: a direct connection would be.
"""

import contextlib
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import asyncpg
import psycopg
import pytest
from psycopg import sql

from tests.system.proxy import USER, Proxy, Table, ask, direct, wait_until
from txproxy.cli.embedded import EmbeddedPostgres

ROOT: Final = Path(__file__).parents[2]
ADMIN: Final = "postgres"  # the database from which it is done


@pytest.fixture(scope="module")
def proxy_settings() -> Mapping[str, Any]:
    return {"databases": {"*": {"dbname": None}, "app": {}}}


class Names:
    """Makes databases of the user app, with a table; drops those that are left at the end."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._made: set[str] = set()

    def new(self) -> str:
        """A name for a database that there is not."""
        name = f'txproxy "{uuid.uuid4().hex[:8]}" Ü'
        self._made.add(name)
        return name

    def make(self) -> str:
        name = self.new()
        with direct(self._server, ADMIN) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(*map(sql.Identifier, (name, USER)))
            )
        with direct(self._server, name, USER) as connection:
            connection.execute("CREATE TABLE mark AS SELECT 'here' AS name")
        return name

    def drop(self) -> None:
        with direct(self._server, ADMIN) as connection:
            for name in self._made:
                connection.execute(
                    sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
                )


@pytest.fixture
def names(server: EmbeddedPostgres) -> Iterator[Names]:
    found = Names(server)
    yield found
    found.drop()


@pytest.fixture
def admin(proxy: Proxy) -> Iterator[psycopg.Connection[Any]]:
    """A client of another database, by the simple protocol."""
    cursor_factory = psycopg.ClientCursor
    with proxy.connect(ADMIN, autocommit=True, cursor_factory=cursor_factory) as connection:
        yield connection


def say(connection: psycopg.Connection[Any], template: str, *names: str) -> None:
    """Execute it, with these names quoted."""
    connection.execute(sql.SQL(template).format(*map(sql.Identifier, names)))


@contextlib.contextmanager
def idlers(proxy: Proxy, name: str) -> Iterator[list[psycopg.Connection[Any]]]:
    """Three clients that have used both backends of the pool, and are idle."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect(name)) for _ in range(3)]
        for client in clients[:2]:
            ask(client)
        assert connections(proxy, name) == 2
        for client in clients[:2]:
            client.commit()
        yield clients


def connections(proxy: Proxy, name: str) -> int:
    """How many the server has there."""
    with direct(proxy.server, ADMIN) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [name]
        ).fetchone()
    assert row is not None
    return int(row[0])


def mark(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT name FROM mark").fetchone()
    connection.rollback()
    assert row is not None
    return str(row[0])


# Idle clients are not in the way.


def test_a_template_whose_clients_are_idle(
    proxy: Proxy, names: Names, admin: psycopg.Connection[Any]
) -> None:
    source, copy = names.make(), names.new()
    with idlers(proxy, source) as clients:
        say(admin, "CREATE DATABASE {} TEMPLATE {}", copy, source)
        for client in clients:
            assert mark(client) == "here"
    with proxy.connect(copy) as client:
        assert mark(client) == "here"


def test_rename(proxy: Proxy, names: Names, admin: psycopg.Connection[Any]) -> None:
    old, new = names.make(), names.new()
    with idlers(proxy, old) as clients:
        say(admin, "ALTER DATABASE {} RENAME TO {}", old, new)
        for client in clients:
            with pytest.raises(psycopg.errors.InvalidCatalogName):
                client.execute("SELECT 1")
        with proxy.connect(new) as client:
            assert mark(client) == "here"
        say(admin, "ALTER DATABASE {} RENAME TO {}", new, old)
        for client in clients:
            client.rollback()
            assert mark(client) == "here"


def test_drop(proxy: Proxy, names: Names, admin: psycopg.Connection[Any]) -> None:
    name = names.make()
    with idlers(proxy, name) as clients:
        say(admin, "DROP DATABASE {}", name)
        for client in clients:
            with pytest.raises(psycopg.errors.InvalidCatalogName):
                client.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            proxy.connect(name)
    assert proxy.wait_for("left database", database=name)["connections"] == 2


def test_one_that_has_the_same_name_again(
    proxy: Proxy, names: Names, admin: psycopg.Connection[Any]
) -> None:
    name = names.make()
    with idlers(proxy, name) as clients:
        say(admin, "DROP DATABASE {}", name)
        say(admin, "CREATE DATABASE {}", name)
        for client in clients:
            with pytest.raises(psycopg.errors.UndefinedTable):
                client.execute("SELECT name FROM mark")
            client.rollback()


def test_with_force(proxy: Proxy, names: Names, admin: psycopg.Connection[Any]) -> None:
    """The server ends whoever is there, idle or not."""
    name = names.make()
    with idlers(proxy, name) as clients:
        ask(clients[0])
        say(admin, "DROP DATABASE {} WITH (FORCE)", name)
        with pytest.raises(psycopg.errors.AdminShutdown):
            clients[0].execute("SELECT 1")
        with pytest.raises(psycopg.errors.InvalidCatalogName):
            clients[1].execute("SELECT 1")


def test_whoever_is_in_a_transaction_is_in_the_way(
    proxy: Proxy, names: Names, admin: psycopg.Connection[Any]
) -> None:
    """As directly: the server waits for 5 seconds, and says so."""
    name = names.make()
    with idlers(proxy, name) as clients:
        ask(clients[0])
        with pytest.raises(psycopg.errors.ObjectInUse, match="accessed by other users"):
            say(admin, "DROP DATABASE {}", name)
        clients[0].commit()
        assert mark(clients[0]) == "here"
        say(admin, "DROP DATABASE {}", name)


def test_whoever_leaves_is_not(proxy: Proxy, names: Names, admin: psycopg.Connection[Any]) -> None:
    """Its backend is rolled back and reset first; whoever connects directly sees no difference."""
    for _ in range(10):
        name = names.make()
        client = proxy.connect(name)
        client.execute("CREATE TEMPORARY TABLE mine ()")
        client.close()
        say(admin, "DROP DATABASE {}", name)


@pytest.mark.parametrize("how", ["UNLISTEN", "leaves"])
def test_whoever_has_listened_is_not(
    proxy: Proxy, names: Names, admin: psycopg.Connection[Any], how: str
) -> None:
    name = names.make()
    with proxy.connect(name, autocommit=True) as client:
        client.execute("LISTEN news")
        if how == "UNLISTEN":
            client.execute("UNLISTEN news")
        else:
            client.close()
        say(admin, "DROP DATABASE {}", name)


async def test_the_extended_protocol(proxy: Proxy, names: Names) -> None:
    """asyncpg says Parse in one unit, Bind and Execute in the next."""
    name = names.make()
    with idlers(proxy, name):
        connection = await asyncpg.connect(**proxy.asyncpg(ADMIN))
        try:
            quoted = name.replace('"', '""')
            await connection.fetch(f'DROP DATABASE "{quoted}"')
        finally:
            await connection.close()


@pytest.mark.parametrize(
    "settings", [{}, {"min_pool_size": 2, "user": USER}], ids=["another name", "min_pool_size"]
)
def test_a_pool_with_settings(server: EmbeddedPostgres, names: Names, settings: Table) -> None:
    name = names.make()
    databases: Mapping[str, Table] = {
        "another name": {"dbname": name, **settings},
        "*": {"dbname": None},
    }
    with Proxy(server, databases=databases, check=False) as proxy:
        with proxy.connect("another name") as client:
            assert mark(client) == "here"
        number = 2 if settings else 1
        assert wait_until(lambda: connections(proxy, name), lambda seen: seen == number) == number
        with proxy.connect(ADMIN, autocommit=True) as admin:
            say(admin, "DROP DATABASE {}", name)


# What sessions begin with.

DEFAULTS: Final = [
    ("ALTER ROLE app SET {} = {}", "ALTER ROLE app RESET {}"),
    ("ALTER DATABASE app SET {} TO {}", "ALTER DATABASE app RESET ALL"),
]


def begins_with(proxy: Proxy, setting: str) -> str:
    with proxy.connect() as client:
        row = client.execute(f"SHOW {setting}").fetchone()
        client.rollback()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(("change", "undo"), DEFAULTS)
@pytest.mark.parametrize(
    ("setting", "value"), [("TimeZone", "Asia/Tokyo"), ("lock_timeout", "12345ms")]
)
def test_new_sessions_begin_with_new_defaults(
    proxy: Proxy,
    admin: psycopg.Connection[Any],
    change: str,
    undo: str,
    setting: str,
    value: str,
) -> None:
    before = begins_with(proxy, setting)
    assert before != value
    admin.execute(change.format(setting, f"'{value}'"))
    try:
        assert begins_with(proxy, setting) == value
    finally:
        admin.execute(undo.format(setting))
    assert begins_with(proxy, setting) == before


def test_they_are_told_at_the_login(proxy: Proxy, admin: psycopg.Connection[Any]) -> None:
    begins_with(proxy, "TimeZone")
    admin.execute("ALTER ROLE app SET TimeZone = 'Asia/Tokyo'")
    try:
        with proxy.connect() as client:
            assert client.info.parameter_status("TimeZone") == "Asia/Tokyo"
    finally:
        admin.execute("ALTER ROLE app RESET ALL")
    with proxy.connect() as client:
        assert client.info.parameter_status("TimeZone") != "Asia/Tokyo"


def test_a_transaction_that_is_rolled_back_changes_none(
    proxy: Proxy, admin: psycopg.Connection[Any]
) -> None:
    before = begins_with(proxy, "lock_timeout")
    with admin.transaction(force_rollback=True):
        admin.execute("ALTER ROLE app SET lock_timeout = '12345ms'")
        assert begins_with(proxy, "lock_timeout") == before
    assert begins_with(proxy, "lock_timeout") == before


# Django makes its test databases this way.


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_the_tests_of_a_django_site(proxy: Proxy, driver: str) -> None:
    where = proxy.kwargs()
    command = ["tests.system.django_site.manage", driver, where["host"], str(where["port"])]
    for options in (["--keepdb"], ["--noinput"]):
        done = subprocess.run(
            [
                *(sys.executable, "-m", *command),
                *("test", "--parallel", "2", *options, "tests.system.django_site.tests"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith("PG")},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"^OK$", done.stderr, re.MULTILINE)
    with direct(proxy.server, ADMIN) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test_%'")
        assert left.fetchall() == []
