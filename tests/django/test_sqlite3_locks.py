"""select_for_update() takes the token: nobody else writes until the transaction ends."""

import threading
from typing import Any

import pytest
from django.db import transaction
from django.db.utils import NotSupportedError, OperationalError

from tests.django.conftest import ENGINE
from tests.django.site import OURS, STOCK, Note, ask, drop, use, wrapper
from tests.system.files import NOTES, Files


@pytest.fixture
def note(ours: Any) -> Any:
    return Note.objects.using(OURS).create(text="0")


def add_one(alias: str, pk: int) -> None:
    with transaction.atomic(using=alias):
        note = Note.objects.using(alias).select_for_update().get(pk=pk)
        note.text = str(int(note.text) + 1)
        note.save()


def where(files: Files) -> dict[str, str]:
    return {"HOST": files.proxy.socket_dir, "PORT": str(files.proxy.port)}


def test_nobody_adds_to_what_is_past(files: Files, note: Any) -> None:
    failed: list[Exception] = []

    def work() -> None:
        use(wrapper(OURS, ENGINE, NOTES, **where(files)))
        try:
            for _ in range(10):
                add_one(OURS, note.pk)
        except Exception as error:  # noqa: BLE001 - of another thread
            failed.append(error)
        finally:
            drop(OURS)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    note.refresh_from_db()
    assert note.text == "40"


def test_nobody_else_writes_meanwhile(ours: Any, other: Any, note: Any) -> None:
    ask(other, "PRAGMA busy_timeout = 50")
    with transaction.atomic(using=OURS):
        assert Note.objects.using(OURS).select_for_update().get(pk=note.pk).text == "0"
        with pytest.raises(OperationalError, match="database is locked"):
            ask(other, "UPDATE notes_note SET text = 'mine'")
    ask(other, "UPDATE notes_note SET text = 'mine'")


def test_nowait_does_not_wait(ours: Any, other: Any, note: Any) -> None:
    ask(other, "BEGIN IMMEDIATE")
    with transaction.atomic(using=OURS):
        with pytest.raises(OperationalError, match="database is locked"):
            Note.objects.using(OURS).select_for_update(nowait=True).get(pk=note.pk)
        assert ask(ours, "PRAGMA busy_timeout") == [(5000,)]
    ask(other, "ROLLBACK")


def test_nowait_does_not_wait_after_reading(files: Files, other: Any) -> None:
    use(wrapper(OURS, ENGINE, NOTES, **where(files), OPTIONS={"timeout": 1000}))
    try:
        ask(other, "BEGIN IMMEDIATE")
        with transaction.atomic(using=OURS):
            Note.objects.using(OURS).count()
            with pytest.raises(OperationalError, match="database is locked"):
                Note.objects.using(OURS).select_for_update(nowait=True).first()
            Note.objects.using(OURS).count()
        ask(other, "ROLLBACK")
    finally:
        drop(OURS)


def test_rows_are_not_skipped(ours: Any) -> None:
    with transaction.atomic(using=OURS), pytest.raises(NotSupportedError):
        Note.objects.using(OURS).select_for_update(skip_locked=True).first()


def test_it_needs_a_transaction(ours: Any) -> None:
    with pytest.raises(transaction.TransactionManagementError):
        Note.objects.using(OURS).select_for_update().first()


def test_the_option_makes_it_what_it_is_with_stock(files: Files, other: Any, stock: Any) -> None:
    made = use(wrapper(OURS, ENGINE, NOTES, **where(files), OPTIONS={"select_for_update": False}))
    try:
        ask(other, "BEGIN IMMEDIATE")
        for alias in (OURS, STOCK):
            notes = Note.objects.using(alias).select_for_update(skip_locked=True)
            list(notes)
        ask(other, "ROLLBACK")
    finally:
        drop(made.alias)
