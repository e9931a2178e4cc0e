"""What Django may expect: as of its own SQLite, and what the endpoint adds."""

from typing import Any

from django.db.backends.sqlite3.features import DatabaseFeatures as Stock


class DatabaseFeatures(Stock):  # type: ignore[misc]  # Django has no types
    """Those of Django's SQLite; in memory nothing else."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        is_ours = not connection.is_in_memory_db()
        self.test_db_allows_multiple_connections = is_ours
        locks = is_ours and connection.takes_token
        self.has_select_for_update = locks
        self.has_select_for_update_nowait = locks
        # Whoever has the token has locked every row, of every table: more than was asked for.
        self.has_select_for_update_of = locks
        self.has_select_for_no_key_update = locks
