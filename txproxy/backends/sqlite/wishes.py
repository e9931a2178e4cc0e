"""What a session has asked for: its PRAGMAs, how long it waits, how it begins transactions."""

from collections.abc import Mapping
from typing import Final

import apsw

from txproxy.backends.sqlite import transaction
from txproxy.backends.sqlite.errors import SqliteError
from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.pragmas import DEFAULTS, SessionPragmas, Verdict, classify
from txproxy.backends.sqlite.pragmas import Kind as PragmaKind
from txproxy.backends.sqlite.statements import Begins, Kind, Statement
from txproxy.backends.sqlite.transaction import FAILED, NONE, WRITING

_CLASSES: Final = {
    Kind.READ: transaction.READ,
    Kind.WRITE: transaction.WRITE,
    Kind.DDL: transaction.ALONE,
    Kind.VACUUM: transaction.ALONE,
    Kind.BEGIN: transaction.BEGIN,
    Kind.COMMIT: transaction.COMMIT,
    Kind.ROLLBACK: transaction.ROLLBACK,
    Kind.SAVEPOINT: transaction.SAVEPOINT,
    Kind.RELEASE: transaction.RELEASE,
    Kind.ROLLBACK_TO: transaction.ROLLBACK_TO,
}


class Wishes:
    """One session's; `busy_timeout` is in seconds."""

    def __init__(self, settings: Settings, parameters: dict[str, str]) -> None:
        self.pragmas = _asked_for(parameters)
        self.busy_timeout = settings.busy_timeout
        self.has_timeout = settings.busy_timeout > 0
        if parameters.get("busy_timeout"):
            self.set_busy_timeout(parameters["busy_timeout"])
        self._begins_now = parameters.get("begin", settings.begin) == "immediate"

    def set_busy_timeout(self, milliseconds: str) -> None:
        """How long to wait in the queue; no number is 0, which is not at all, as in SQLite."""
        self.busy_timeout = int(milliseconds) / 1000 if milliseconds.isdecimal() else 0.0
        self.has_timeout = True

    def ended(self) -> None:
        """A transaction is over, or a statement that was one by itself."""
        if self.pragmas.defer_foreign_keys:
            self.pragmas = self.pragmas.ended()

    def classify(self, statement: Statement, state: int) -> int | None:
        """The statement's class in the transaction table; None: it is answered without SQLite.

        SqliteError: the session wants to write nothing. A setting is taken to heart.
        """
        kind = statement.kind
        if kind is Kind.WRITE and not self.pragmas.query_only:
            return transaction.WRITE
        if kind is Kind.BEGIN:
            is_now = self._begins_now or statement.begins is not Begins.DEFERRED
            return transaction.BEGIN_NOW if is_now else transaction.BEGIN
        if self.pragmas.query_only and kind in {Kind.WRITE, Kind.DDL, Kind.VACUUM}:
            raise SqliteError("attempt to write a readonly database", apsw.SQLITE_READONLY)
        return self._pragma(statement.pragma, state) if statement.pragma else _CLASSES[kind]

    def _pragma(self, pragma: Verdict, state: int) -> int | None:
        if pragma.kind is PragmaKind.READ:
            return transaction.READ
        if pragma.kind is PragmaKind.WRITE:
            return transaction.ALONE
        return self._set(pragma, state) if pragma.kind is PragmaKind.SESSION else None

    def _set(self, pragma: Verdict, state: int) -> int | None:
        """Inside a transaction that writes, the connection is told at once; but foreign_keys is
        ignored there, and query_only is ours.
        """
        if state == FAILED:
            return transaction.READ
        if pragma.value is None or (pragma.name == "foreign_keys" and state != NONE):
            return None
        self.pragmas = self.pragmas.set(pragma.name, pragma.value)
        is_here = pragma.name == "query_only" or state != WRITING
        return None if is_here else transaction.READ


def _asked_for(parameters: Mapping[str, str]) -> SessionPragmas:
    """A session's PRAGMAs as its start-up packet has them: so they outlive a lost connection."""
    found = DEFAULTS
    for name, value in parameters.items():
        if classify(name, value) is PragmaKind.SESSION:
            found = found.set(name.lower(), value)
    return found
