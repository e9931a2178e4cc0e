"""SQL of Django's SQLite, and select_for_update()."""

from typing import Any, Final

from django.db.backends.sqlite3.operations import DatabaseOperations as Stock

FOR_UPDATE: Final = "/* FOR "
"""Begins the comment by which a cursor knows select_for_update()."""


class DatabaseOperations(Stock):  # type: ignore[misc]  # Django has no types
    """Those of Django's SQLite."""

    def for_update_sql(self, *arguments: Any, **keywords: Any) -> str:
        """A comment: SQLite has no such clause, and the token is for the whole file."""
        clause = super().for_update_sql(*arguments, **keywords)
        return f"{FOR_UPDATE}{clause.removeprefix('FOR ').replace('*/', '')} */"
