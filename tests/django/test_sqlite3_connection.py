"""Connections of the engine: how they begin, how they are lost, what they are then."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.db.models.functions import ExtractYear, Now
from django.db.utils import IntegrityError, OperationalError

from tests.django.conftest import ENGINE
from tests.django.site import OURS, Note, ask, drop, use, wrapper
from tests.system.files import NOTES, Files
from txproxy.django.sqlite3 import base


def lose(files: Files) -> None:
    """The SQLite process dies, and another one is there."""
    pid = files.process()
    files.proxy.mark()
    os.kill(pid, signal.SIGKILL)
    assert files.process() != pid


def test_a_lost_connection_is_opened_again(ours: Any, files: Files) -> None:
    ask(ours, "SELECT 1")
    lose(files)
    Note.objects.using(OURS).create(text="after")
    assert Note.objects.using(OURS).filter(text="after").exists()


def test_foreign_keys_are_checked_on_the_new_one_too(ours: Any, files: Files) -> None:
    for _ in range(2):
        assert ask(ours, "PRAGMA foreign_keys") == [(1,)]
        with pytest.raises(IntegrityError):
            ask(ours, "INSERT INTO child (parent_id) VALUES (404)")
        lose(files)


def test_so_are_the_pragmas_of_the_settings(files: Files) -> None:
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    options = {"init_command": "PRAGMA recursive_triggers = ON; SELECT 1"}
    made = wrapper(OURS, ENGINE, NOTES, **where, OPTIONS=options)
    for _ in range(2):
        assert ask(made, "PRAGMA recursive_triggers") == [(1,)]
        lose(files)
    made.close()


def test_a_transaction_is_not_begun_again(ours: Any, files: Files) -> None:
    def write() -> None:
        with transaction.atomic(using=OURS):
            Note.objects.using(OURS).create(text="lost with it")
            lose(files)
            Note.objects.using(OURS).create(text="never")

    with pytest.raises(OperationalError):
        write()
    assert not Note.objects.using(OURS).filter(text__in=["lost with it", "never"]).exists()


def test_is_usable_asks(ours: Any, files: Files) -> None:
    ask(ours, "SELECT 1")
    assert ours.is_usable()
    with transaction.atomic(using=OURS):
        Note.objects.using(OURS).create(text="lost with it")
        lose(files)
        assert not ours.is_usable()
        transaction.set_rollback(True, using=OURS)
    assert ours.is_usable()


def test_nobody_listens(tmp_path: Path) -> None:
    made = wrapper(OURS, ENGINE, NOTES, HOST=str(tmp_path), PORT="6000")
    with pytest.raises(OperationalError, match=rf"{tmp_path}/\.s\.PGSQL\.6000.*start txproxy"):
        made.cursor()


def test_there_is_no_such_file(files: Files) -> None:
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    made = wrapper(OURS, ENGINE, "nothing.db", **where)
    with pytest.raises(OperationalError, match=r"unable to open database file.*nothing\.db"):
        made.cursor()


def test_a_file_by_its_path(files: Files) -> None:
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    made = wrapper(OURS, ENGINE, files.notes, **where)
    assert ask(made, "SELECT count(*) FROM parent") == [(0,)]
    made.close()


def test_another_django_is_refused(
    ours: Any, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base._SAID, "txproxy.django", "4.2")
    with pytest.raises(OperationalError, match=r"Django 4\.2.*runs with Django.*pip install"):
        ours.cursor()


def test_djangos_functions_are_on_both_sides(ours: Any) -> None:
    Note.objects.using(OURS).all().delete()
    for mode in (False, True):
        with transaction.atomic(using=OURS):
            if mode:
                Note.objects.using(OURS).create(text="2026-11-22 10:00:00")
            regex = Note.objects.using(OURS).filter(text__iregex="^20[0-9]{2}-1")
            assert regex.count() == mode
            years = Note.objects.using(OURS).annotate(year=ExtractYear(Now()))
            assert all(note.year > 2000 for note in years)
            assert ask(ours, "SELECT stddev_pop(x) FROM (SELECT 1 AS x UNION SELECT 3)") == [(1,)]
            assert ask(ours, "SELECT stddev_pop(id) FROM parent") == [(None,)]


def test_djangos_functions_take_little_of_django() -> None:
    """The SQLite process imports them for the first such client, while others want to be served."""
    loaded = "import sys, txproxy.django.functions; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", loaded], text=True).split()
    assert "django.db.backends.sqlite3._functions" in modules
    assert not {"django.db.models", "django.http"}.intersection(modules)


def test_transaction_mode(files: Files, other: Any) -> None:
    where = {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}
    options = {"transaction_mode": "IMMEDIATE", "timeout": 0.05}
    made = use(wrapper(OURS, ENGINE, NOTES, **where, OPTIONS=options))
    try:
        with transaction.atomic(using=OURS):
            ask(other, "PRAGMA busy_timeout = 50")
            with pytest.raises(OperationalError, match="locked"):
                ask(other, "BEGIN IMMEDIATE")
        made.settings_dict["OPTIONS"]["transaction_mode"] = "SOMETIMES"
        made.close()
        with pytest.raises(ImproperlyConfigured):
            made.cursor()
    finally:
        drop(OURS)


def test_in_memory_it_is_djangos_own() -> None:
    made = use(wrapper(OURS, ENGINE, ":memory:", OPTIONS={"select_for_update": True}))
    try:
        ask(made, "CREATE TABLE t (a)")
        assert type(made.connection).__module__ == "sqlite3"
        assert made.is_usable()
        assert not made.features.has_select_for_update
        made.close()
        assert ask(made, "SELECT * FROM t") == []
        assert connections[OURS] is made
    finally:
        made.connection.close()
        made.connection = None
        drop(OURS)
