"""CREATE DATABASE and DROP DATABASE."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.sqlite.endpoint import Endpoint
from tests.sqlite.raw import Raw
from txproxy.backends.sqlite import databases
from txproxy.backends.sqlite.databases import Create, Drop
from txproxy.errors import TxproxyError


@pytest.fixture(scope="module")
def creating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with Endpoint(tmp_path_factory.mktemp("creating"), allow_create=True) as endpoint:
        endpoint.create("a.db", "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)")
        yield endpoint


@pytest.mark.parametrize(
    ("sql", "command"),
    [
        ("CREATE DATABASE x", Create("x", None)),
        ('create database "x ""y"".db" ;', Create('x "y".db', None)),
        ("CREATE DATABASE 'x.db' TEMPLATE y", Create("x.db", "y")),
        ("DROP DATABASE x.db", Drop("x.db", may_be_missing=False)),
        ("drop  database if exists x;", Drop("x", may_be_missing=True)),
        ("DROP DATABASE x; SELECT 1", None),
        ("CREATE TABLE database (x)", None),
    ],
)
def test_what_is_meant(sql: str, command: Create | Drop | None) -> None:
    assert databases.command(sql) == command


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/a", "x" * 300, "a.db-wal", "a.db-txproxy"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(TxproxyError, match="cannot be the name"):
        databases.beside("/somewhere/a.db", name)


def test_made_used_and_removed(creating: Endpoint) -> None:
    with Raw(creating, "a.db") as client:
        assert client.query("CREATE DATABASE new").tags == ["CREATE DATABASE"]
        assert client.query("CREATE DATABASE new").errors[0]["C"] == "42P04"
        with Raw(creating, "new") as other:
            other.query("CREATE TABLE u (x); INSERT INTO u VALUES (2)")
            assert client.query("DROP DATABASE new").errors[0]["C"] == "55006"
            assert client.query('CREATE DATABASE "clone" TEMPLATE "new"').kinds == "CZ"
        with Raw(creating, "clone") as other:
            assert other.rows("SELECT x FROM u") == [(2,)]
        for name in ("new", "clone"):
            assert client.query(f"DROP DATABASE {name}").tags == ["DROP DATABASE"]
        assert client.query("DROP DATABASE new").errors[0]["C"] == "3D000"
        assert client.query("DROP DATABASE IF EXISTS new").kinds == "CZ"
        assert client.query("CREATE DATABASE x TEMPLATE new").errors[0]["C"] == "3D000"
        assert client.query("DROP DATABASE 'a.db'").errors[0]["C"] == "55006"
        assert client.rows("SELECT a FROM t") == [(1,)]
    left = {path.name for path in creating.directory.iterdir() if not path.is_socket()}
    assert left <= {"a.db", "a.db-wal", "a.db-shm", "a.db-txproxy"}
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(creating.conninfo("new"))


def test_not_without_leave(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        for sql in ("CREATE DATABASE x", f"DROP DATABASE {database}"):
            assert client.query(sql).errors[0]["C"] == "42501"
    assert not Path(shared.directory / "x").exists()
