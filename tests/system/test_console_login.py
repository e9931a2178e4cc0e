"""The console's door: who is let in, and what the others learn."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.system.proxy import (
    DATABASE,
    PATIENCE,
    USER,
    Proxy,
    backends,
    direct,
    wait_until,
)
from tests.system.secure import (
    secret_file,
)
from tests.system.test_login import by_psycopg3
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.wire.scram import Verifier

PASSWORD: Final = "pencil, se\u00f1or"
WRONG: Final = "pen"
LOGIN: Final = {"user": USER, "database": DATABASE}


@pytest.fixture(scope="module")
def with_console(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("passwords")
    users = {
        name: secret_file(directory, str(Verifier.of(PASSWORD)))
        for name in ("boss", "watcher", USER)
    }
    settings = {
        "auth_type": "scram-sha-256",
        "admin_users": ["boss", "absent"],
        "stats_users": ["watcher"],
        "auth_user": "postgres",
    }
    with Proxy(postgres, proxy=settings, users=users, check=False) as proxy:
        yield proxy


CONSOLES: Final = ("txproxy", "pgbouncer")


@pytest.mark.parametrize("database", CONSOLES)
@pytest.mark.parametrize("user", ["boss", "watcher"])
def test_who_may_use_the_console(with_console: Proxy, database: str, user: str) -> None:
    arguments: dict[str, Any] = {
        "dbname": database,
        "user": user,
        "password": PASSWORD,
        "autocommit": True,
    }
    with with_console.connect(**arguments) as client:
        assert client.execute("SHOW VERSION").fetchone() is not None
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        with_console.connect(**{**arguments, "password": WRONG})


@pytest.mark.parametrize("database", CONSOLES)
def test_who_may_not_use_the_console(with_console: Proxy, database: str) -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        with_console.connect(dbname=database, password=PASSWORD)
    assert "not allowed to use the console" in str(caught.value)
    # whoever does not know a password does not learn who may
    for user in ("boss", USER, "unknown", "absent", *CONSOLES):
        with pytest.raises(psycopg.OperationalError) as caught:
            with_console.connect(dbname=database, user=user, password=WRONG)
        assert f'password authentication failed for user "{user}"' in str(caught.value)


def test_no_server_says_who_may_use_the_console(
    postgres: EmbeddedPostgres, with_console: Proxy
) -> None:
    """One who is listed, but whose password only a server would know."""
    with direct(postgres) as admin:
        admin.execute(f"CREATE ROLE absent LOGIN PASSWORD '{PASSWORD}'")
        try:
            by_psycopg3(with_console, user="absent", password=PASSWORD)
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                with_console.connect(dbname="txproxy", user="absent", password=PASSWORD)
        finally:
            wait_until(lambda: backends(postgres), lambda _: True)
            admin.execute("DROP ROLE absent")


@pytest.mark.parametrize("user", CONSOLES)
@pytest.mark.parametrize("database", CONSOLES)
def test_the_operator_needs_no_password(with_console: Proxy, database: str, user: str) -> None:
    with with_console.connect(
        dbname=database, user=user, host=with_console.socket_dir, autocommit=True
    ) as client:
        assert client.execute("SHOW VERSION").fetchone() is not None
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        with_console.connect(dbname=database, user=user)
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        with_console.connect(dbname=DATABASE, user=user, host=with_console.socket_dir)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_operating_system_user_is_not_the_operator(postgres: EmbeddedPostgres) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("psql is not installed")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        settings = {"listen": [f"unix:{directory}"], "unix_socket_mode": "0777"}
        words = [psql, "-X", "-w", "-At", "-c", "SHOW VERSION"]
        with Proxy(postgres, proxy=settings, check=False):
            for somebody, good in ((None, True), ("nobody", False)):
                done = subprocess.run(
                    [*words, f"host={directory} port=6432 user=txproxy dbname=txproxy"],
                    capture_output=True,
                    text=True,
                    check=False,
                    user=somebody,
                    cwd="/",
                    timeout=PATIENCE,
                )
                assert (done.returncode == 0) == good
                assert ("not allowed to use the console" in done.stderr) != good


def test_the_console_takes_no_settings(with_console: Proxy) -> None:
    arguments: dict[str, Any] = {
        "dbname": "txproxy",
        "user": "boss",
        "password": PASSWORD,
        "autocommit": True,
    }
    options = "-c search_path=x -c txproxy.idle_transaction_timeout=1s"
    with with_console.connect(**arguments, options=options, application_name="psql") as client:
        assert client.execute("SHOW VERSION").fetchone() is not None
