"""What may not be in a transaction."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    atomic = False
    dependencies = (("django_site", "0002_more"),)
    operations = (AddIndexConcurrently("Entry", models.Index(fields=["note"], name="entry_note")),)
