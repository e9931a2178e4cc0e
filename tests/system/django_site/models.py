"""Accounts, and the entries that changed them."""

from django.db import models


class Account(models.Model):  # type: ignore[misc]  # Django has no types
    name = models.CharField(max_length=100, unique=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "django_site"


class Entry(models.Model):  # type: ignore[misc]
    account = models.ForeignKey(Account, on_delete=models.CASCADE)
    amount = models.IntegerField(default=0)
    note = models.TextField(default="")
    data = models.JSONField(default=dict)
    made_at = models.DateTimeField(null=True)

    class Meta:
        app_label = "django_site"
        indexes = (models.Index(fields=["note"], name="entry_note"),)
