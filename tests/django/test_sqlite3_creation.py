"""Test databases of Django's, which the endpoint makes, copies and removes."""

from pathlib import Path
from typing import Any

import pytest
from django.db.utils import OperationalError

from tests.django.conftest import ENGINE
from tests.django.site import OURS, TABLES, ask, use, wrapper
from tests.system.files import NOTES, Files
from txproxy.django.sqlite3 import endpoint


@pytest.fixture
def made(files: Files) -> Any:
    """A wrapper whose tests have a file."""
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    return use(wrapper(OURS, ENGINE, NOTES, **where, TEST={"NAME": "test_site.db"}))


def point_to(made: Any, name: str) -> None:
    """As Django does between its steps."""
    made.close()
    made.settings_dict["NAME"] = name


def test_from_creation_to_destruction(made: Any, files: Files) -> None:
    creation = made.creation
    name = creation._create_test_db(verbosity=0, autoclobber=True)
    assert name == "test_site.db"
    point_to(made, name)
    for table in TABLES:
        ask(made, table)
    ask(made, "INSERT INTO notes_note (text) VALUES ('copied')")
    for worker in ("1", "2"):
        creation._clone_test_db(worker, verbosity=0)
    creation.setup_worker_connection("2")
    assert ask(made, "SELECT text FROM notes_note") == [("copied",)]
    ask(made, "INSERT INTO notes_note (text) VALUES ('of the second worker')")
    for name in ("test_site_2.db", "test_site_1.db", "test_site.db"):
        point_to(made, name)
        assert (files.data / name).exists()
        creation._destroy_test_db(name, verbosity=0)
    assert not list(files.data.glob("test_site*"))


def test_an_old_one_is_replaced_or_kept(made: Any) -> None:
    creation = made.creation
    for keepdb in (False, True):
        name = creation._create_test_db(verbosity=0, autoclobber=True)
        point_to(made, name)
        ask(made, TABLES[0])
        made.close()
        kept = creation._create_test_db(verbosity=0, autoclobber=True, keepdb=keepdb)
        assert len(ask(made, "SELECT name FROM sqlite_master WHERE name LIKE 'notes%'")) == keepdb
        made.close()
    creation._destroy_test_db(kept, verbosity=0)


def test_a_file_that_is_used_is_not_removed(made: Any, files: Files) -> None:
    endpoint.command(made.settings_dict, 'CREATE DATABASE "used.db"')
    refused = pytest.raises(OperationalError, match="accessed by other users")
    with files.connect("used.db"), refused:
        endpoint.command(made.settings_dict, 'DROP DATABASE "used.db"')
    endpoint.command(made.settings_dict, 'DROP DATABASE "used.db"')
    with pytest.raises(OperationalError, match="does not exist"):
        endpoint.command(made.settings_dict, 'DROP DATABASE "used.db"')
    endpoint.command(made.settings_dict, 'DROP DATABASE IF EXISTS "used.db"')


@pytest.mark.parametrize("name", ["../notes.db", ".hidden", "a.db-wal", "/etc/passwd", "a/b.db"])
def test_nothing_outside_of_the_directory(made: Any, name: str) -> None:
    for statement in ("CREATE", "DROP"):
        with pytest.raises(OperationalError, match="no name of a file directly inside"):
            endpoint.command(made.settings_dict, f'{statement} DATABASE "{name}"')


@pytest.mark.parametrize("sql", ["SELECT 1", "CREATE DATABASE", "DROP DATABASE a; DROP DATABASE b"])
def test_nothing_else(made: Any, sql: str) -> None:
    with pytest.raises(OperationalError, match="only CREATE DATABASE"):
        endpoint.command(made.settings_dict, sql)


def test_a_file_with_a_name_of_its_own_stays(postgres: Any, tmp_path: Path) -> None:
    files = Files(postgres, tmp_path, others={"allow_create": True, "directory": str(tmp_path)})
    with files.proxy:
        files.process()
        where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
        with pytest.raises(OperationalError, match="is configured by itself"):
            endpoint.command(where, 'DROP DATABASE "notes.db"')
    assert files.notes.exists()


def test_only_where_it_is_allowed(postgres: Any, tmp_path: Path) -> None:
    files = Files(postgres, tmp_path)
    with files.proxy:
        where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
        with pytest.raises(OperationalError, match="allow_create = true"):
            endpoint.command(where, 'CREATE DATABASE "new.db"')


def test_without_a_name_tests_are_in_memory(files: Files) -> None:
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    made = wrapper(OURS, ENGINE, NOTES, **where)
    assert made.creation.is_in_memory_db(made.creation._get_test_db_name())
