"""Test databases: made, copied and removed by the endpoint, which has them open."""

import sys
from pathlib import Path

from django.db.backends.sqlite3.creation import DatabaseCreation as Stock

from txproxy.django.sqlite3 import endpoint


class DatabaseCreation(Stock):  # type: ignore[misc]  # Django has no types
    """Without a TEST NAME Django tests in memory, and nothing of this is used."""

    def _create_test_db(self, verbosity: int, autoclobber: bool, keepdb: bool = False) -> str:
        name: str = self._get_test_db_name()
        if self.is_in_memory_db(name):
            created: str = super()._create_test_db(verbosity, autoclobber, keepdb)
            return created
        if self._ask(f"CREATE DATABASE {_quoted(name)}") == endpoint.EXISTS and not keepdb:
            shown = self._get_database_display_str(verbosity, name)
            if verbosity >= 1:
                self.log(f"Destroying old test database for alias {shown}...")
            if not autoclobber:
                answer = input(
                    "Type 'yes' if you would like to try deleting the test database"
                    f" '{name}', or 'no' to cancel: "
                )
                if answer != "yes":
                    self.log("Tests cancelled.")
                    sys.exit(1)
            self._ask(f"DROP DATABASE IF EXISTS {_quoted(name)}")
            self._ask(f"CREATE DATABASE {_quoted(name)}")
        return name

    def _clone_test_db(self, suffix: str, verbosity: int, keepdb: bool = False) -> None:
        source = self.connection.settings_dict["NAME"]
        if self.is_in_memory_db(source):
            super()._clone_test_db(suffix, verbosity, keepdb)
            return
        target = self.get_test_db_clone_settings(suffix)["NAME"]
        clone = f"CREATE DATABASE {_quoted(target)} TEMPLATE {_quoted(source)}"
        if self._ask(clone) == endpoint.EXISTS and not keepdb:
            if verbosity >= 1:
                shown = self._get_database_display_str(verbosity, target)
                self.log(f"Destroying old test database for alias {shown}...")
            self._ask(f"DROP DATABASE IF EXISTS {_quoted(target)}")
            self._ask(clone)

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:  # noqa: ARG002
        if not self.is_in_memory_db(test_database_name):
            self._ask(f"DROP DATABASE {_quoted(test_database_name)}")

    def setup_worker_connection(self, _worker_id: int) -> None:
        """Of a process of parallel tests: its clone is there, however the process was started."""
        if self.is_in_memory_db(self.connection.settings_dict["NAME"]):
            super().setup_worker_connection(_worker_id)
            return
        self.connection.settings_dict.update(self.get_test_db_clone_settings(_worker_id))
        self.connection.close()

    def _ask(self, sql: str) -> str:
        return endpoint.command(self.connection.settings_dict, sql)


def _quoted(name: str | Path) -> str:
    return '"' + str(name).replace('"', '""') + '"'
