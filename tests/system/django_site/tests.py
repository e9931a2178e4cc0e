"""The site's own tests, for `manage.py test`: a class for each process."""

from django.db import connection, transaction
from django.db.models import F, Sum
from django.test import TestCase, TransactionTestCase

from tests.system.django_site.models import Account, Entry


class Rollback(TestCase):  # type: ignore[misc]  # Django has no types
    """Each in a transaction that is rolled back."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.account = Account.objects.create(name="one", balance=1)

    def test_one(self) -> None:
        Account.objects.update(balance=F("balance") + 1)
        self.account.refresh_from_db()
        assert self.account.balance == 2

    def test_another(self) -> None:
        self.account.refresh_from_db()
        assert self.account.balance == 1


class Flush(TransactionTestCase):  # type: ignore[misc]
    """Each on tables that are emptied afterwards."""

    available_apps = ("tests.system.django_site",)

    def test_one(self) -> None:
        with transaction.atomic():
            account = Account.objects.select_for_update().create(name="one")
            Entry.objects.bulk_create(Entry(account=account, amount=i) for i in range(3000))
        amounts = [entry.amount for entry in Entry.objects.order_by("id").iterator()]
        assert amounts == list(range(3000))

    def test_another(self) -> None:
        assert not Account.objects.filter(name="one").exists()
        Entry.objects.create(account=Account.objects.create(name="one"), amount=2)
        assert Entry.objects.aggregate(total=Sum("amount")) == {"total": 2}


class Names(TransactionTestCase):  # type: ignore[misc]
    """A third one, so that a process has two."""

    def test_its_database(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_database()")
            assert cursor.fetchone() == (connection.settings_dict["NAME"],)
