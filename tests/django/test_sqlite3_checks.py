"""What `manage.py check --database` says, and what `manage.py dbshell` runs."""

import socket
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.db.backends.base.validation import BaseDatabaseValidation

from tests.django.conftest import ENGINE
from tests.django.site import OURS, wrapper
from tests.system.files import NOTES, Files


def found(made: Any) -> dict[str, str]:
    return {issue.id: issue.msg for issue in made.validation.check()}


def test_all_is_well(ours: Any) -> None:
    said = found(ours)
    assert set(said) <= {"txproxy.I001"}, said  # this Python's SQLite may be another one


def test_what_is_ignored_and_who_reads(files: Files) -> None:
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    made = wrapper(OURS, ENGINE, NOTES, **where, USER="me", PASSWORD="secret")
    assert "USER and PASSWORD" in found(made)["txproxy.W001"]


def test_nobody_listens(tmp_path: Path) -> None:
    made = wrapper(OURS, ENGINE, NOTES, HOST=str(tmp_path))
    assert f"nobody listens on {tmp_path}/.s.PGSQL.6432" in found(made)["txproxy.E001"]


def test_the_socket_is_not_for_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(_: socket.socket, __: str) -> None:
        raise PermissionError(13, "Permission denied")  # not so for root, who may run this

    monkeypatch.setattr(socket.socket, "connect", connect)
    made = wrapper(OURS, ENGINE, NOTES, HOST=str(tmp_path))
    said = found(made)["txproxy.E001"]
    assert f"may not connect to {tmp_path}/.s.PGSQL.6432" in said
    assert "unix_socket_mode" in said


def test_what_django_says_of_any_database(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = checks.Warning("of any", id="any.W001")
    monkeypatch.setattr(BaseDatabaseValidation, "check", lambda _, **__: [said])
    assert "any.W001" in found(ours)
    assert "any.W001" in found(wrapper(OURS, ENGINE, ":memory:"))


def test_in_memory_there_is_nothing_to_say() -> None:
    assert found(wrapper(OURS, ENGINE, ":memory:")) == {}


def test_the_shell_opens_the_file_and_only_reads(ours: Any, files: Files) -> None:
    command, environment = ours.client.settings_to_cmd_args_env(ours.settings_dict, ["-box"])
    assert command == ["sqlite3", "-readonly", str(files.notes), "-box"]
    assert environment is None
