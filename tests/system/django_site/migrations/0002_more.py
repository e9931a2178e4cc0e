"""What was added later: data among it, in the same transaction."""

from typing import Any

from django.db import migrations, models


def add_accounts(apps: Any, schema_editor: Any) -> None:
    account = apps.get_model("django_site", "Account")
    account.objects.bulk_create(account(name=f"migrated {number}") for number in range(10))


def remove_accounts(apps: Any, schema_editor: Any) -> None:
    apps.get_model("django_site", "Account").objects.all().delete()


class Migration(migrations.Migration):  # type: ignore[misc]
    dependencies = (("django_site", "0001_initial"),)
    operations = (
        migrations.AddField("Entry", "note", models.TextField(default="")),
        migrations.AddField("Entry", "data", models.JSONField(default=dict)),
        migrations.AddField("Entry", "made_at", models.DateTimeField(null=True)),
        migrations.RunPython(add_accounts, remove_accounts),
        migrations.AlterField("Account", "name", models.CharField(max_length=100, unique=True)),
    )
