"""The tables as they were first."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    initial = True
    operations = (
        migrations.CreateModel(
            "Account",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=100)),
                ("balance", models.IntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            "Entry",
            [
                ("id", models.BigAutoField(primary_key=True)),
                (
                    "account",
                    models.ForeignKey(
                        "django_site.account", on_delete=django.db.models.deletion.CASCADE
                    ),
                ),
                ("amount", models.IntegerField(default=0)),
            ],
        ),
    )
