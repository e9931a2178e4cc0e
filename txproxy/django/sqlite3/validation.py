"""`manage.py check --database default`: what is misconfigured, and what to do about it."""

from contextlib import closing
from sqlite3 import OperationalError, sqlite_version
from typing import Any

from django.core import checks
from django.db.backends.base.validation import BaseDatabaseValidation as Base

from txproxy.django.sqlite3 import endpoint


class DatabaseValidation(Base):  # type: ignore[misc]  # Django has no types
    """It connects: Django calls it only if it may."""

    def check(self, **others: Any) -> list[Any]:
        issues: list[Any] = super().check(**others)
        if self.connection.is_in_memory_db():
            return issues
        issues += self._ignored()
        parameters = self.connection.get_connection_params()
        try:
            connection = self.connection.get_new_connection(parameters)
        except OperationalError as error:
            where = endpoint.address(self.connection.settings_dict)
            hint = f"HOST and PORT make {where}; NAME is what the proxy's [sqlite.NAME] says."
            return [*issues, self._issue(checks.Error, str(error), hint, "txproxy.E001")]
        with closing(connection):
            return [*issues, *self._connected(connection)]

    def _ignored(self) -> list[Any]:
        names = [name for name in ("USER", "PASSWORD") if self.connection.settings_dict[name]]
        if not names:
            return []
        message = f"{' and '.join(names)} mean nothing to the SQLite endpoint"
        hint = "Who may use it is decided by the operating-system user: peer_uids."
        return [self._issue(checks.Warning, message, hint, "txproxy.W001")]

    def _connected(self, connection: Any) -> list[Any]:
        issues = []
        wanted = self.connection.settings_dict["OPTIONS"].get("reads")
        if connection.reading.objection and wanted != "server":
            hint = "OPTIONS = {'reads': 'server'} says that it is meant."
            message = f"the server makes all reads: {connection.reading.objection}"
            issues.append(self._issue(checks.Warning, message, hint, "txproxy.W002"))
        server = connection.reading.said.get("txproxy.sqlite_version", sqlite_version)
        if server.split(".")[:2] != sqlite_version.split(".")[:2]:
            message = f"this Python has SQLite {sqlite_version}, the server {server}"
            hint = "Some functions may answer differently to reads and in transactions that write."
            issues.append(self._issue(checks.Info, message, hint, "txproxy.I001"))
        return issues

    def _issue(self, kind: type, message: str, hint: str, number: str) -> Any:
        alias = self.connection.alias
        return kind(f'database "{alias}": {message}', hint=hint, obj=alias, id=number)
