"""What the site's process can be told to do. Each scenario begins with no accounts."""

import datetime as dt
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier
from typing import Any, Final

from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.models import Count, F, Sum
from django.test import RequestFactory

from tests.system.django_site.models import Account, Entry

THREADS: Final = 8  # the pools have two backends


def token() -> str:
    return str(uuid.uuid4())


def sleep() -> None:
    """Until the parent says that we have slept enough."""
    print(json.dumps({"sleep": True}), flush=True)
    sys.stdin.readline()


def clear() -> None:
    Entry.objects.all().delete()
    Account.objects.all().delete()


def names() -> list[str]:
    return list(Account.objects.order_by("name").values_list("name", flat=True))


def ask(alias: str = "default") -> None:
    expected = token()
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT '{expected}'")
        assert cursor.fetchone() == (expected,)


def in_threads(work: Callable[[int], None], number: int = THREADS) -> None:
    """Each thread has connections of its own, which are closed at its end."""

    def run(index: int) -> None:
        try:
            work(index)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(number) as executor:
        for done in [executor.submit(run, index) for index in range(number)]:
            done.result()


def sqlstate(error: DatabaseError) -> str:
    """The SQLSTATE that the driver has for it."""
    cause: Any = error.__cause__
    return str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None))


@contextmanager
def raises(expected: str) -> Iterator[None]:
    """Django's DatabaseError with this SQLSTATE."""
    try:
        yield
    except DatabaseError as error:
        if sqlstate(error) != expected:
            raise
    else:
        raise AssertionError(f"no {expected}")


def get(path: str, **headers: str) -> str:
    """A request as a WSGI server makes it: with the signals that end connections."""
    environ = RequestFactory().get(path, headers=headers).environ
    statuses: list[str] = []
    response = WSGIHandler()(environ, lambda status, _headers: statuses.append(status))
    body = b"".join(response).decode()
    response.close()
    assert statuses[0].startswith("200"), (statuses, body)
    return body


# Migrations.


def migrate() -> None:
    call_command("migrate", verbosity=0)
    assert Account.objects.filter(name__startswith="migrated").count() == 10


def migrate_back() -> None:
    call_command("migrate", "django_site", "zero", verbosity=0)
    assert "django_site_account" not in connection.introspection.table_names()


# Transactions.


def atomic() -> None:
    clear()
    with transaction.atomic():
        Account.objects.create(name="kept")
        ask()
    try:
        with transaction.atomic():
            Account.objects.create(name="lost")
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    with transaction.atomic():
        try:
            with transaction.atomic():
                Account.objects.create(name="lost")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        try:
            with transaction.atomic():
                Account.objects.create(name="kept")
        except IntegrityError:
            pass
        with transaction.atomic():
            Account.objects.create(name="kept too")
            with transaction.atomic():
                ask()
    done: list[str] = []
    with transaction.atomic():
        transaction.on_commit(lambda: done.append("done"))
        savepoint = transaction.savepoint()
        Account.objects.create(name="lost")
        transaction.savepoint_rollback(savepoint)
        with transaction.atomic(durable=False, savepoint=False):
            assert Account.objects.select_for_update().count() == 2
    assert done == ["done"]
    try:
        Account.objects.create(name="kept")
    except IntegrityError:
        ask()
    assert names() == ["kept", "kept too"]


def threads() -> None:
    """Transfers between accounts: the total stays, and each transfer that returned is there."""
    clear()
    accounts = [Account.objects.create(name=f"{n}", balance=1000) for n in range(4)]

    def work(index: int) -> None:
        for number in range(10):
            pair = (accounts[index % 4].pk, accounts[(index + number % 3 + 1) % 4].pk)
            with transaction.atomic():
                list(Account.objects.select_for_update().filter(pk__in=pair).order_by("pk"))
                for account, amount in zip(pair, (-1, 1), strict=True):
                    Account.objects.filter(pk=account).update(balance=F("balance") + amount)
                    Entry.objects.create(account_id=account, amount=amount, note=token())
                ask()
            ask()

    in_threads(work)
    total = Account.objects.aggregate(Sum("balance"))
    assert total == {"balance__sum": 4000}
    assert Entry.objects.count() == THREADS * 20
    for account in Account.objects.annotate(sum=Sum("entry__amount"), count=Count("entry")):
        assert account.balance == 1000 + account.sum


# Requests.


def atomic_requests() -> None:
    clear()

    def work(index: int) -> None:
        for number in range(10):
            name = f"{index} {number}"
            assert get(f"/note?name={name}") == name
            with suppress(ZeroDivisionError):
                get(f"/note?fail=1&name=lost {name}")
            assert get(f"/echo?name={name}").startswith(name)

    in_threads(work)
    assert len(names()) == THREADS * 10
    assert not [name for name in names() if name.startswith("lost")]


def persistent_connections() -> None:
    """The same one for all requests of a thread, and many more of them than backends."""

    def work(_index: int) -> None:
        answers = [token() for _ in range(20)]
        found = [get(f"/echo?name={answer}").split() for answer in answers]
        assert [name for name, _ in found] == answers
        assert len({number for _, number in found}) == 1

    in_threads(work, THREADS * 2)


def time_zones() -> None:
    """Connections in two time zones, which Django sets when it connects, on the same backends."""
    clear()
    moment = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    account = Account.objects.create(name="a")
    Entry.objects.create(account=account, made_at=moment)

    def work(index: int) -> None:
        alias = ("default", "tokyo")[index % 2]
        expected = ("2026-01-01 12:00:00+00", "2026-01-01 21:00:00+09")[index % 2]
        for _ in range(10):
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT made_at::text FROM django_site_entry")
                assert cursor.fetchone() == (expected,)
            assert Entry.objects.using(alias).get().made_at == moment

    in_threads(work)


# Much at once.


def iterators() -> None:
    clear()
    account = Account.objects.create(name="a")
    Entry.objects.bulk_create(Entry(account=account, amount=number) for number in range(5000))
    amounts = Entry.objects.order_by("amount").values_list("amount", flat=True)

    def work(_index: int) -> None:
        with transaction.atomic():
            assert list(amounts.iterator(chunk_size=500)) == list(range(5000))
            ask()
        found = amounts.using("no_cursors").iterator(chunk_size=500)
        assert list(found) == list(range(5000))

    in_threads(work)
    # outside a transaction its cursor is WITH HOLD: that keeps the backend
    found = amounts.iterator(chunk_size=500)
    first = [next(found) for _ in range(600)]
    in_threads(lambda _index: ask())
    assert first + list(found) == list(range(5000))


def settings_of_each_thread() -> None:
    """As middleware for tenants does it, and row-level security."""

    def said(sql: str) -> str:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            [found] = cursor.fetchone()
            return str(found)

    def work(index: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET my.tenant = %s", [str(index)])
            cursor.execute("SET work_mem = %s", [f"{64 + index}kB"])
        for _ in range(10):
            assert said("SHOW my.tenant") == str(index)
            assert said("SHOW work_mem") == f"{64 + index}kB"
            with suppress(ZeroDivisionError), transaction.atomic():
                said("SELECT set_config('my.tenant', 'another', false)")
                with suppress(DatabaseError), transaction.atomic():
                    said("SELECT set_config('work_mem', '1MB', false)")
                    said("SELECT 1/0")
                assert said("SHOW work_mem") == f"{64 + index}kB"
                raise ZeroDivisionError
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL my.tenant = 'local'")
                cursor.execute("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT %s AS a", [index])
                assert said("SELECT a FROM mine") == str(index)
            ask()

    in_threads(work)


def bulk() -> None:
    """Statements of far more than 64 kB, on both sides of it, and their results."""
    clear()
    account = Account.objects.create(name="a")

    def work(index: int) -> None:
        notes = [f"{index} {token()} {'ü' * 200}" for _ in range(500)]
        entries = [Entry(account=account, note=note, data={"a": [note]}) for note in notes]
        made = Entry.objects.bulk_create(entries)
        for entry in made:
            entry.amount = index
        Entry.objects.bulk_update(made, ["amount"], batch_size=250)
        found = Entry.objects.in_bulk([entry.pk for entry in made])
        assert sorted(entry.note for entry in found.values()) == sorted(notes)
        assert all(entry.data == {"a": [entry.note]} for entry in found.values())
        large = token() * 20_000
        entry = Entry.objects.create(account=account, note=large[:2000], data={"large": large})
        entry.refresh_from_db()
        assert entry.data == {"large": large}

    in_threads(work, 4)
    assert Entry.objects.count() == 4 * 501


# Prepared statements.


def server_side_binding() -> None:
    """Every statement is prepared; far more connections than backends; and in two time zones."""
    clear()
    moment = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)

    def work(index: int) -> None:
        alias = ("bound", "bound_tokyo")[index % 2]
        for number in range(8):
            with transaction.atomic(alias):
                account = Account.objects.using(alias).create(name=f"{index} {number}")
                Entry.objects.using(alias).create(account=account, note=token(), made_at=moment)
            with suppress(IntegrityError), transaction.atomic(alias):
                Account.objects.using(alias).create(name=f"{index} {number}")
            changed = Account.objects.using(alias).filter(name=account.name)
            assert changed.update(balance=F("balance") + number) == 1
            account.refresh_from_db(using=alias)
            assert account.balance == number
            entries = Entry.objects.using(alias).filter(account=account, made_at__hour=12)
            assert [entry.made_at for entry in entries] == [moment]
            ask(alias)

    in_threads(work, THREADS * 2)
    assert Account.objects.using("bound").count() == THREADS * 2 * 8


# Sleepers.


def sleep_in_atomic() -> None:
    """The next statement raises, once, and the connection goes on."""
    clear()
    ask("quick")
    used = connections["quick"].connection
    with raises("25P03"), transaction.atomic("quick"):
        Account.objects.using("quick").create(name="lost")
        sleep()
        Account.objects.using("quick").create(name="lost too")
    with transaction.atomic("quick"):
        Account.objects.using("quick").create(name="kept")
    ask("quick")
    assert connections["quick"].connection is used
    assert names() == ["kept"]


def sleep_before_commit() -> None:
    """Never the pretence that the work was committed."""
    clear()
    ask("quick")
    used = connections["quick"].connection
    done: list[str] = []
    with raises("25P03"), transaction.atomic("quick"):
        Account.objects.using("quick").create(name="lost")
        transaction.on_commit(lambda: done.append("no"), using="quick")
        sleep()
    with transaction.atomic("quick"):
        Account.objects.using("quick").create(name="kept")
    assert connections["quick"].connection is used
    assert names() == ["kept"]
    assert done == []


def sleep_in_savepoint() -> None:
    clear()
    with raises("25P03"), transaction.atomic("quick"):
        Account.objects.using("quick").create(name="lost")
        with transaction.atomic("quick"):
            Account.objects.using("quick").create(name="lost too")
            sleep()
    # ROLLBACK TO is what Django cannot do then; it marks the whole transaction for rollback
    with suppress(ZeroDivisionError, DatabaseError), transaction.atomic("quick"):
        Account.objects.using("quick").create(name="lost")
        with transaction.atomic("quick"):
            sleep()
            raise ZeroDivisionError
    with transaction.atomic("quick"):
        Account.objects.using("quick").create(name="kept")
    assert names() == ["kept"]


def sleep_and_roll_back() -> None:
    clear()
    ask("quick")
    used = connections["quick"].connection
    with suppress(ZeroDivisionError), transaction.atomic("quick"):
        Account.objects.using("quick").create(name="lost")
        sleep()
        raise ZeroDivisionError
    with transaction.atomic("quick"):
        Account.objects.using("quick").create(name="kept")
    assert connections["quick"].connection is used
    assert names() == ["kept"]


def sleep_after_an_error() -> None:
    """The transaction has failed, and Django ends it when it gets round to it."""
    clear()
    Account.objects.create(name="taken")
    used = connection.connection
    with raises("23505"), transaction.atomic():
        Account.objects.create(name="lost")
        try:
            Account.objects.create(name="taken")
        except IntegrityError:
            sleep()
            raise
    # and if somebody swallows the error, the next statement is refused
    with raises("25P02"), transaction.atomic(), connection.cursor() as cursor:
        Account.objects.create(name="lost")
        with suppress(DatabaseError):
            cursor.execute("SELECT 1/0")
        sleep()
        cursor.execute("SELECT 1")
    # or there is none, and COMMIT is what rolls it back
    with transaction.atomic(), connection.cursor() as cursor:
        Account.objects.create(name="lost")
        with suppress(DatabaseError):
            cursor.execute("SELECT 1/0")
        sleep()
    with transaction.atomic():
        Account.objects.create(name="kept")
    assert connection.connection is used
    assert names() == ["kept", "taken"]


def sleep_after_an_error_in_savepoint() -> None:
    """The inner block is undone, the outer one goes on."""
    clear()
    Account.objects.create(name="taken")
    with transaction.atomic():
        Account.objects.create(name="kept")
        with raises("23505"), transaction.atomic():
            Account.objects.create(name="lost")
            try:
                Account.objects.create(name="taken")
            except IntegrityError:
                sleep()
                raise
        sleep()
        Account.objects.create(name="kept too")
    assert names() == ["kept", "kept too", "taken"]


def reads_left_open() -> None:
    """A middleware reads and never ends the transaction; the worker's next request comes later."""
    clear()
    leave = {"Leave-Open": "open_ended"}
    get("/echo?name=a", **leave)
    sleep()
    with raises("25P03"):
        get("/echo?name=b", **leave)
    name = token()
    for _ in range(3):
        assert get(f"/echo?name={name}&using=open_ended", **leave).startswith(name)
    assert get("/write?name=kept&using=open_ended") == "written"
    get("/echo?name=a", **leave)
    sleep()
    with raises("25P03"):
        get("/write?name=lost&using=open_ended")
    assert get("/write?name=kept too&using=open_ended") == "written"
    assert names() == ["kept", "kept too"]


def reads_left_open_and_checked() -> None:
    """With CONN_HEALTH_CHECKS nobody sees an error: Django finds out, and connects anew."""
    leave = {"Leave-Open": "healthy"}
    for number in range(2):
        get("/echo?name=a", **leave)
        sleep()
        name = token()
        assert get(f"/echo?name={name}&using=healthy", **leave).startswith(name), number
    connections["healthy"].rollback()


def reads_left_open_by_many() -> None:
    """More workers than backends, all of which leave a transaction open: all get on."""

    def work(_index: int) -> None:
        for _ in range(2):
            name = token()
            try:
                answer = get(f"/echo?name={name}&using=open_ended", **{"Leave-Open": "open_ended"})
            except DatabaseError as error:
                if sqlstate(error) != "25P03":
                    raise
            else:
                assert answer.startswith(name)

    in_threads(work)


def readers_that_wait() -> None:
    """More of them than backends are in a transaction at the same time, and have read."""
    clear()
    Account.objects.create(name="kept")
    all_have_read = Barrier(THREADS)

    def work(index: int) -> None:
        committed: list[int] = []
        with transaction.atomic(durable=True):
            transaction.on_commit(lambda: committed.append(index))
            assert Account.objects.filter(name="kept").count() == 1
            all_have_read.wait(20)
            assert "kept" in {each.name for each in Account.objects.iterator()}
            with suppress(IntegrityError), transaction.atomic():
                Account.objects.create(name="kept")
            with transaction.atomic():
                Account.objects.create(name=str(index))
            Account.objects.select_for_update().get(name="kept")
        assert committed == [index]

    in_threads(work)
    assert names() == sorted(["kept", *map(str, range(THREADS))])
