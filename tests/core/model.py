"""A small model of a PostgreSQL server: what it answers to each message, and what it refuses.

It knows just what the random scenarios say: SELECT '<token>', SELECT 1/0 '<token>', COPY <token>
FROM STDIN, BEGIN, COMMIT, ROLLBACK, LISTEN, UNLISTEN, NOTIFY (which nobody hears), SET and SHOW of
timezone (which it reports) and my.own (which it does not), a temporary table, DISCARD ALL, several
of them in one string, and what the proxy itself says. Every answer repeats the token of its
statement. A message that would make a real server close the connection raises.
"""

import re
from typing import Final

from tests.core.scenario import (
    BOUND,
    CLOSED,
    COLUMNS,
    COPY_IN,
    EMPTY,
    NO_DATA,
    NO_PARAMETERS,
    PARAMS,
    PARSED,
    done,
    error,
    kept_row,
    parameter,
    ready,
    row,
    split,
)

_SET: Final = re.compile(r"set (timezone|my\.own) = '(\w+)'")
_SET_CONFIG: Final = re.compile(r"set_config\('(timezone|my\.own)','(\w*)',false\)")
_ENDS: Final = frozenset(("commit", "rollback"))


class Failure(Exception):
    """A statement failed. The argument is its ErrorResponse."""


class ModelServer:
    """One server process: fed with bytes, it gives bytes."""

    def __init__(self) -> None:
        self.status = "I"
        self.skipping = False
        self.copying = ""  # the token of the COPY that reads
        self.copy_in_unit = False
        self.unsynced = False  # a unit is open
        self.timezone = PARAMS["TimeZone"]
        self.own: str | None = None  # the setting my.own
        self.temporary = False  # whether there is a temporary table
        self._reported = self.timezone
        self._before = self._state()  # what a rollback brings back
        self._unnamed: str | None = None
        self._portal: str | None = None
        self._rest = b""

    def _state(self) -> tuple[str, str | None, bool]:
        return self.timezone, self.own, self.temporary

    def _roll_back(self) -> None:
        self.timezone, self.own, self.temporary = self._before

    def clean(self, unread: bytes) -> bool:
        """Whether any client may have it: it holds nothing of anybody's, and owes nothing for
        what it has not read yet.
        """
        messages, rest = split(self._rest + unread)
        silent = all(kind in "dcfH" for kind, _ in messages)
        busy = self.status != "I" or self.skipping or self.copying or self.unsynced
        return silent and not rest and not busy

    def feed(self, data: bytes) -> bytes:
        """Messages, or parts of them, and the answers to those that are complete."""
        messages, self._rest = split(self._rest + data)
        return b"".join(self._answer(kind, body) for kind, body in messages)

    def _answer(self, kind: str, body: bytes) -> bytes:
        if self.copying:
            return self._copy(kind, body)
        if kind in "dcfH":
            return b""
        if kind == "S":
            return self._sync()
        if self.skipping:
            return b""
        if kind == "Q":
            return self._query(body[:-1].decode())
        self.unsynced = True
        try:
            return self._extended(kind, body)
        except Failure as failure:
            return self._fail(failure, in_unit=True)

    def _fail(self, failure: Failure, in_unit: bool) -> bytes:
        said: bytes = failure.args[0]
        if self.status == "T":
            self.status = "E"
        elif self.status == "I":
            self._roll_back()
        self.skipping = in_unit
        return said if in_unit else said + self._ready()

    def _ready(self) -> bytes:
        said = b""
        if self.status == "I":
            self._before = self._state()
        if self.timezone != self._reported:
            self._reported = self.timezone
            said = parameter("TimeZone", self.timezone)
        return said + ready(self.status)

    def _sync(self) -> bytes:
        self.skipping = self.unsynced = False
        self._portal = None
        return self._ready()

    def _copy(self, kind: str, body: bytes) -> bytes:
        """Only the end of a COPY is answered; data that says bad ends it with an error."""
        assert kind in "dcfHS", f"{kind} inside COPY FROM STDIN closes the connection"
        if kind in "HS" or (kind == "d" and b"bad" not in body):
            return b""
        token = self.copying
        self.copying = ""
        if kind == "c":
            return done(f"COPY {token}") + (b"" if self.copy_in_unit else self._ready())
        return self._fail(Failure(error("22P02", text=token)), self.copy_in_unit)

    def _query(self, text: str) -> bytes:
        self._unnamed = None
        self.unsynced = False  # what a unit had open ends with the Query
        said = b""
        statements = [part.strip() for part in text.split(";") if part.strip()]
        try:
            for statement in statements:
                said += self._run(statement, columns=True)
                if self.copying:
                    self.copy_in_unit = False
                    return said
        except Failure as failure:
            return said + self._fail(failure, in_unit=False)
        return (said or EMPTY) + self._ready()

    def _extended(self, kind: str, body: bytes) -> bytes:
        parts = body.split(b"\0")
        if kind == "P":
            text = parts[1].decode()
            self._unnamed = None
            self._refuse_if_failed(text)
            self._unnamed = text
            return PARSED
        if kind == "B":
            if parts[1] or self._unnamed is None:
                raise Failure(error("26000"))
            self._refuse_if_failed(self._unnamed)
            self._portal = self._unnamed
            return BOUND
        if kind == "D":
            if parts[0] != b"S" or self._unnamed is None:
                raise Failure(error("26000"))
            if self.status == "E" and _rows(self._unnamed):
                raise Failure(error("25P02"))
            return NO_PARAMETERS + (COLUMNS if _rows(self._unnamed) else NO_DATA)
        if kind == "C":
            return CLOSED
        assert kind == "E", kind
        if self._portal is None:
            raise Failure(error("34000"))
        self.copy_in_unit = True
        return self._run(self._portal, columns=False)

    def _refuse_if_failed(self, text: str) -> None:
        if self.status == "E" and text and text.lower() not in _ENDS:
            raise Failure(error("25P02"))

    def _run(self, statement: str, columns: bool) -> bytes:
        low = statement.lower()
        self._refuse_if_failed(low)
        token = statement.partition("'")[2].rstrip("'")
        head = COLUMNS if columns else b""
        if not low:
            return EMPTY
        if low == "begin":
            if self.status == "I":
                self._before = self._state()
                self.status = "T"
            return done("BEGIN")
        if low in _ENDS:
            if low == "rollback" or self.status == "E":
                self._roll_back()
                low = "rollback"
            self.status = "I"
            self._before = self._state()
            return done(low.upper())
        if low.startswith("select 1/0"):
            raise Failure(error("22012", text=token))
        if low.startswith("copy"):
            self.copying = statement.split()[1]
            return COPY_IN
        if low == "show timezone":
            return head + row(self.timezone) + done("SHOW")
        if low == "show my.own":
            return head + row(self.own or "") + done("SHOW my.own")
        if "temp table" in low or low == "drop table t":
            return self._table(low)
        if low.startswith("select ") and " from pg_catalog." in low:
            return head + self._kept(low) + done("SELECT 1")
        return self._set(low, head, token)

    def _table(self, low: str) -> bytes:
        creates = low.startswith("create")
        if creates == self.temporary:
            raise Failure(error("42P07" if creates else "42P01"))
        self.temporary = creates
        return done("TABLE")

    def _kept(self, low: str) -> bytes:
        """The answer to the proxy's question."""
        said = b""
        if " and not name " in low and self.timezone != PARAMS["TimeZone"]:
            said += kept_row(("user", "timezone", self.timezone))
        if "my.own" in low:
            said += kept_row(("custom", "my.own", self.own))
        if "pg_my_temp_schema" in low and self.temporary:
            said += kept_row(("temporary table", "", ""))
        return said

    def _set(self, low: str, head: bytes, token: str) -> bytes:
        found = _SET.findall(low) or _SET_CONFIG.findall(low)
        for name, value in found:
            if name == "timezone":
                self.timezone = value.upper()
            else:
                self.own = value.upper()
        if found:
            return done("SET")
        if low == "discard all" and self.status == "T":
            raise Failure(error("25001"))
        if low in {"reset timezone", "discard all"}:
            self.timezone = PARAMS["TimeZone"]
        if low in {'reset "my"."own"', "reset my.own", "discard all"}:
            self.own = "" if self.own is not None else None
        if low == "discard all":
            self.temporary = False
        if low.startswith(("reset ", "discard")):
            return done("RESET")
        word = low.partition(" ")[0]
        if word in {"listen", "unlisten", "notify"} or low.startswith("set client_encoding"):
            return done(word.upper())
        assert low.startswith(("select '", "reset role")), low
        return head + row(token) + done("SELECT 1")


def _rows(text: str) -> bool:
    return text.lower().startswith(("select", "show"))
