""" "Cannot operate on a closed database": how it comes about with Django's own SQLite backend, and
what the engine does instead.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import close_old_connections, transaction
from django.db.utils import ProgrammingError

from tests.django.site import OURS, STOCK, Note, ask

CLOSED = "Cannot operate on a closed database"


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, name="the other one")
    thread.start()
    thread.join()


# close_old_connections() inside atomic: of a signal's receiver, of a task that runs at once.


def save_in_atomic_with_cleaning(alias: str) -> None:
    with transaction.atomic(using=alias):
        Note.objects.using(alias).create(text="before")
        close_old_connections()
        Note.objects.using(alias).create(text="behind")


def test_stock_closes_under_its_transaction(stock: Any) -> None:
    with pytest.raises(ProgrammingError):
        save_in_atomic_with_cleaning(STOCK)
    assert not Note.objects.using(STOCK).exists()


def read_in_atomic_with_cleaning(made: Any) -> list[Any]:
    with transaction.atomic(using=made.alias):
        cursor = made.cursor()
        cursor.execute("SELECT 1 UNION SELECT 2")
        first = cursor.fetchone()
        close_old_connections()
        return [first, *cursor.fetchall()]


def test_a_cursor_of_stock_says_that_it_is_closed(stock: Any) -> None:
    with pytest.raises(ProgrammingError, match=CLOSED):
        read_in_atomic_with_cleaning(stock)


def test_a_cursor_of_the_engine_reads_on(ours: Any) -> None:
    assert read_in_atomic_with_cleaning(ours) == [(1,), (2,)]


def test_the_engine_does_not_close_under_its_transaction(ours: Any) -> None:
    save_in_atomic_with_cleaning(OURS)
    texts = Note.objects.using(OURS).order_by("-id").values_list("text", flat=True)
    assert list(texts[:2]) == ["behind", "before"]


def test_behind_the_block_it_cleans_as_before(ours: Any) -> None:
    ours.close_at = 0.0
    with transaction.atomic(using=OURS):
        ask(ours, "SELECT 1")
        ours.close_at = 0.0
        close_old_connections()
        assert ours.connection is not None
    close_old_connections()
    assert ours.connection is None


# A connection that was closed behind Django's back, where connections are kept (CONN_MAX_AGE).


def is_healed_by_the_next_request(made: Any) -> bool:
    ask(made, "SELECT 1")
    made.connection.close()
    for _ in range(3):
        close_old_connections()  # as at the beginning and the end of each request
        try:
            ask(made, "SELECT 1")
        except ProgrammingError as error:
            assert CLOSED in str(error)  # noqa: PT017 - it need not be raised
        else:
            return True
    return False


def test_stock_stays_closed_for_good(stock: Any) -> None:
    assert not is_healed_by_the_next_request(stock)


def test_the_engine_is_healed(ours: Any) -> None:
    assert is_healed_by_the_next_request(ours)


def test_the_engine_opens_it_again_at_once(ours: Any) -> None:
    ask(ours, "SELECT 1")
    ours.connection.close()
    assert ask(ours, "SELECT 1") == [(1,)]


def write_while(closed: Callable[[], object]) -> None:
    with transaction.atomic(using=OURS):
        Note.objects.using(OURS).create(text="lost")
        closed()
        Note.objects.using(OURS).create(text="never")


def test_the_engine_opens_nothing_inside_a_block(ours: Any) -> None:
    ask(ours, "SELECT 1")
    with pytest.raises(ProgrammingError, match=f'{CLOSED}.*"MainThread"'):
        write_while(ours.connection.close)
    assert not Note.objects.using(OURS).filter(text__in=["lost", "never"]).exists()


def test_it_is_usable_as_long_as_it_is(ours: Any) -> None:
    ask(ours, "SELECT 1")
    assert ours.is_usable()
    ours.connection.close()
    assert not ours.is_usable()


# A wrapper that threads share, closed by one of them.


def read_while_another_thread_closes(made: Any) -> None:
    with transaction.atomic(using=made.alias):
        cursor = made.cursor()
        cursor.execute("SELECT 1 UNION SELECT 2")
        in_a_thread(made.close)
        cursor.fetchall()


def test_stock_does_not_say_who_has_closed_it(stock: Any) -> None:
    stock.inc_thread_sharing()
    with pytest.raises(ProgrammingError, match=CLOSED) as caught:
        read_while_another_thread_closes(stock)
    assert "the other one" not in str(caught.value)


def test_the_engine_says_it_of_a_cursor(ours: Any) -> None:
    ours.inc_thread_sharing()
    with pytest.raises(ProgrammingError, match=f'{CLOSED}.*"the other one"'):
        read_while_another_thread_closes(ours)


def test_the_engine_says_it_of_the_block(ours: Any) -> None:
    ours.inc_thread_sharing()
    ask(ours, "SELECT 1")
    with pytest.raises(ProgrammingError, match=f'{CLOSED}.*"the other one"'):
        write_while(lambda: in_a_thread(ours.close))
    assert not Note.objects.using(OURS).filter(text__in=["lost", "never"]).exists()


def test_outside_of_a_block_the_engine_opens_it_again(ours: Any) -> None:
    ours.inc_thread_sharing()
    ask(ours, "SELECT 1")
    in_a_thread(ours.close)
    assert ask(ours, "SELECT 1") == [(1,)]
