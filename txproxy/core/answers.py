"""What we answer in the server's place, message by message.

Three occasions: the client's transaction was rolled back while it slept (REAPED), it has failed and
the client has not ended it (FAILED, see aborted.py), and settings of our own (`SET txproxy.…`).
`Answers` keeps what such a unit needs between two messages: the statements and portals that only we
know, and whether the rest of the unit is discarded.

Source: PostgreSQL 18, section 54.2.3 "Extended Query", and exec_*_message() in postgres.c.
"""

from typing import Final

from txproxy.core import aborted, transaction
from txproxy.core.aborted import PORTALS_LIMIT, REFUSED
from txproxy.core.ports import ClientPort
from txproxy.core.statements import Names, Statement
from txproxy.core.transaction import FAILED, NONE, REAPED
from txproxy.wire import encode, sql
from txproxy.wire.codes import (
    BIND,
    CLOSE,
    DESCRIBE,
    EXECUTE,
    FUNCTION_CALL,
    IDLE,
    IN_FAILED,
    IN_TRANSACTION,
    PARSE,
    QUERY,
    SYNC,
)
from txproxy.wire.messages import strings
from txproxy.wire.sql import Judgement

_ENDINGS: Final = frozenset((sql.ROLLBACK, sql.COMMIT, sql.PREPARE_TRANSACTION))
_CHAINS: Final = frozenset((sql.ROLLBACK_CHAIN, sql.COMMIT_CHAIN))
_OURS: Final = frozenset((sql.OURS_SET, sql.OURS_SHOW))

_ROLLBACK: Final = encode.command_complete(b"ROLLBACK")


class Refusal(Exception):
    """A setting of ours cannot be changed so. The argument is the ErrorResponse."""


class Answers:
    """One session's unit that we answer. `state` and `status` are read back by the session.

    state       the client's transaction: see transaction.py
    status      the transaction status that the client was last told
    discarding  an error was sent: everything up to Sync is dropped
    news        what the client must be told before anything else (ParameterStatus)
    lost        the ERROR that tells of the transaction's end, while it has not been told
    complete    of a FAILED transaction: all names of statements and portals in it are known here,
                and it had no savepoint
    """

    def __init__(self, ours: "Ours", names: Names) -> None:
        self.state = NONE
        self.status = IDLE
        self.discarding = False
        self.has_ours = False  # a named statement about a setting of ours was parsed
        self.unit = False  # an extended unit was begun here: its Sync is answered here
        self.news = b""
        self.lost = b""
        self.complete = False
        self._ours = ours
        self._names = names
        self._unnamed: Judgement | None = None
        self._portals: dict[bytes, Judgement] = {}

    @property
    def active(self) -> bool:
        """Whether the client's next message is answered here."""
        return self.state >= REAPED or self.discarding or self.lost != b""

    def answer(self, kind: int, body: bytes) -> bytes:
        """The answer to one message of the client's; b"" if there is none."""
        if kind == SYNC:
            said = self._sync()
        elif self.discarding:
            said = b""
        elif self.lost and self.state < REAPED:
            said = self._tell()
            self.discarding = True
        elif kind == QUERY:
            said = self._query(body[:-1])
        elif kind == FUNCTION_CALL:
            said = self._refuse() + encode.ready(self.status)
        else:
            said = self._extended(kind, body)
        if said and self.news:
            said = self.news + said
            self.news = b""
        return said

    def _sync(self) -> bytes:
        said = b""
        if self.lost and self.state < REAPED and not self.discarding:
            said = self._tell()
        self.discarding = False
        self.unit = False
        if self.state != FAILED:
            self._portals.clear()
        self._unnamed = None
        return said + encode.ready(self.status)

    def _tell(self) -> bytes:
        said = self.lost
        self.lost = b""
        return said

    def _move(self, event: int, status: int) -> None:
        self.state = transaction.after(self.state, event)
        self.status = status
        if self.state < REAPED:
            self.lost = b""
            self.complete = False
            self._portals.clear()

    def _refuse(self) -> bytes:
        """The ERROR that belongs to the state; from now on it has been told."""
        if self.state != REAPED:
            return REFUSED
        said = self._tell()
        self._move(transaction.TELL, IN_FAILED)
        return said

    def fail(self) -> None:
        """The transaction has failed, as the client was told, and is let go of."""
        self._move(transaction.FAIL, IN_FAILED)
        self.complete = True

    def end_here(self, client: ClientPort, kind: int) -> None:
        """A string that begins with the end of the failed transaction: that part is answered."""
        self._forget_unnamed()
        client.write(self._end(kind))

    def tell_now(self, in_unit: bool) -> bytes:
        """The ERROR for a COPY that we ended; in an extended unit all up to Sync is dropped."""
        if self.state >= REAPED:
            said = self._refuse()
        else:
            said = self._tell()
        self.discarding = in_unit
        self.unit = in_unit
        return self.news + (said if in_unit else said + encode.ready(self.status))

    def _end(self, kind: int) -> bytes:
        """COMMIT, ROLLBACK and their kin as a statement by itself, or at the head of several."""
        if kind in _CHAINS:
            if self.state == REAPED:
                return self._refuse()
            self._move(transaction.CHAIN, IN_TRANSACTION)
            return _ROLLBACK
        if self.state == REAPED and self.status == IN_TRANSACTION and kind != sql.ROLLBACK:
            said = self._tell()
        else:
            said = _ROLLBACK
        self._move(transaction.END, IDLE)
        return said

    def _to_savepoint(self, judged: Judgement) -> bytes:
        return aborted.no_savepoint(judged.name) if self.complete else self._refuse()

    def _forget_unnamed(self) -> None:
        self._unnamed = None
        self._names.unnamed = b""

    def _query(self, said: bytes) -> bytes:
        self._forget_unnamed()
        judged = sql.judge(said)
        kind = judged.kind
        if kind in _ENDINGS or kind in _CHAINS:
            answer = self._end(kind)
        elif judged.first == sql.ROLLBACK_TO:
            answer = self._to_savepoint(aborted.to_savepoint(said))
        elif kind == sql.EMPTY:
            answer = encode.EMPTY_QUERY
        elif self._answerable(judged):
            answer = self._our_setting(judged, describe=True)
        else:
            answer = self._refuse()
        return answer + encode.ready(self.status)

    def _extended(self, kind: int, body: bytes) -> bytes:
        self.unit = True
        if kind == EXECUTE:
            said = self._execute(body)
        elif self.state == FAILED:
            said = aborted.answer(self._names, self._portals, kind, body, self.complete)
        elif kind == PARSE:
            said = self._parse(body)
        elif kind == BIND:
            said = self._bind(body)
        elif kind == DESCRIBE:
            said = self._describe(body)
        elif kind == CLOSE:
            said = aborted.close(self._names, self._portals, body)
        else:
            return b""
        self.discarding = said[:1] == b"E"
        return said

    def _answerable(self, judged: Judgement | None) -> bool:
        if judged is None:
            return False
        if self.state < REAPED:
            return judged.kind in _OURS and self.status != IN_FAILED
        return judged.kind in _ENDINGS or judged.kind in _CHAINS or judged.kind == sql.EMPTY

    def is_ours(self, name: bytes) -> bool:
        """Whether this names a statement about a setting of ours."""
        judged = self._judged(name)
        return judged is not None and judged.kind in _OURS

    def _judged(self, name: bytes) -> Judgement | None:
        if not name:
            return self._unnamed
        statement = self._names.by_name.get(name)
        return None if statement is None else statement.judged

    def _unknown_statement(self, name: bytes) -> bytes:
        """One that is not ours, in a unit that is."""
        if self.state >= REAPED or self.status == IN_FAILED:
            return self._refuse()
        return aborted.unknown_statement(name)

    def _unknown_portal(self, name: bytes) -> bytes:
        known = self.complete or self.state < REAPED
        return aborted.unknown_portal(name) if known else self._refuse()

    def _parse(self, body: bytes) -> bytes:
        parts = strings(body, 0, len(body))
        judged = sql.judge(parts[1]) if len(parts) > 1 else None
        if not self._answerable(judged) or self._names.full:
            return self._refuse()
        assert judged is not None
        if parts[0]:
            self._names.put(parts[0], Statement(body[len(parts[0]) + 1 :], judged))
        else:
            self._unnamed = judged
            self._names.unnamed = b""
        self.has_ours = self.has_ours or (judged.kind in _OURS and parts[0] != b"")
        return encode.PARSE_COMPLETE

    def _bind(self, body: bytes) -> bytes:
        parts = body.split(b"\0", 2)
        name = parts[1] if len(parts) > 2 else b""
        judged = self._judged(name)
        if not self._answerable(judged) or len(self._portals) >= PORTALS_LIMIT:
            return self._unknown_statement(name)
        assert judged is not None
        self._portals[parts[0]] = judged
        return encode.BIND_COMPLETE

    def _describe(self, body: bytes) -> bytes:
        of_statement = body[:1] == b"S"
        name = body[1:-1]
        judged = self._judged(name) if of_statement else self._portals.get(name)
        if not self._answerable(judged):
            return self._unknown_statement(name) if of_statement else self._unknown_portal(name)
        assert judged is not None
        row = (
            encode.row_description(judged.setting)
            if judged.kind == sql.OURS_SHOW
            else encode.NO_DATA
        )
        return encode.NO_PARAMETERS + row if of_statement else row

    def _execute(self, body: bytes) -> bytes:
        name = body.split(b"\0", 1)[0]
        judged = self._portals.get(name)
        if judged is None or (judged.kind in _OURS) != (self.state < REAPED):
            return self._unknown_portal(name)
        if judged.kind == sql.ROLLBACK_TO:
            return self._to_savepoint(judged)
        if judged.kind == sql.EMPTY:
            return encode.EMPTY_QUERY
        if judged.kind in _OURS:
            return self._our_setting(judged, describe=False)
        return self._end(judged.kind)

    def _our_setting(self, judged: Judgement, describe: bool) -> bytes:
        try:
            if judged.kind == sql.OURS_SET:
                self._ours.change(judged.setting, judged.value)
                return encode.command_complete(b"SET")
            row = encode.data_row(self._ours.show(judged.setting))
        except Refusal as refusal:
            answer: bytes = refusal.args[0]
            return answer
        head = encode.row_description(judged.setting) if describe else b""
        return head + row + encode.command_complete(b"SHOW")


class Ours:
    """The session's own settings, those that begin with `txproxy.`.

    idle_transaction_timeout can be shortened at will, lengthened up to what the configuration
    allows, idle_transaction_action be changed to a stricter one.
    """

    def __init__(self, timeout: float, longest: float, action: str) -> None:
        self._default_timeout = timeout
        self._default_action = action
        self._longest = longest
        self.timeout = timeout
        self.action = action

    def reconfigure(self, timeout: float, longest: float, action: str) -> None:
        """Other defaults: what the client has set stays, where it is still allowed."""
        set_timeout = self.timeout if self.timeout != self._default_timeout else timeout
        set_action = self.action if self.action != self._default_action else action
        self._default_timeout = timeout
        self._default_action = action
        self._longest = longest
        self.timeout = set_timeout if self._is_allowed(set_timeout) else timeout
        self.action = action if set_action == "report" else set_action

    def _is_allowed(self, seconds: float) -> bool:
        allowed = max(self._default_timeout, self._longest)
        return not self._default_timeout or 0 < seconds <= allowed

    def change(self, name: str, value: str | None) -> None:
        """SET or RESET (value None). Raises Refusal, whose argument is the ErrorResponse."""
        if name == "txproxy.idle_transaction_timeout":
            self.timeout = self._default_timeout if value is None else self._checked_timeout(value)
        elif name == "txproxy.idle_transaction_action":
            self.action = self._default_action if value is None else self._checked_action(value)
        else:
            raise Refusal(_unknown(name))

    def show(self, name: str) -> str:
        """The value, as SHOW gives it. Raises Refusal."""
        if name == "txproxy.idle_transaction_timeout":
            return f"{round(self.timeout * 1000)}ms" if self.timeout else "0"
        if name == "txproxy.idle_transaction_action":
            return self.action
        raise Refusal(_unknown(name))

    def _checked_timeout(self, value: str) -> float:
        seconds = parse_duration(value)
        if seconds < 0:
            raise Refusal(
                _invalid(
                    f'invalid value for parameter "txproxy.idle_transaction_timeout": "{value}"'
                )
            )
        if not self._is_allowed(seconds):
            allowed = max(self._default_timeout, self._longest)
            raise Refusal(
                encode.error(
                    "ERROR",
                    "42501",
                    f"txproxy.idle_transaction_timeout cannot be longer than {allowed:g}s here",
                    hint="idle_transaction_timeout_max in the proxy's configuration allows more.",
                )
            )
        return seconds

    def _checked_action(self, value: str) -> str:
        if value not in ("rollback", "disconnect", "report"):
            raise Refusal(
                _invalid(
                    f'invalid value for parameter "txproxy.idle_transaction_action": "{value}"'
                )
            )
        if value == "report" and self._default_action != "report":
            raise Refusal(
                encode.error("ERROR", "42501", "txproxy.idle_transaction_action cannot be relaxed")
            )
        return value


_UNITS: Final = (("ms", 0.001), ("min", 60.0), ("s", 1.0), ("h", 3600.0), ("", 1.0))


def parse_duration(value: str) -> float:
    """Seconds in "500ms", "30s", "5min", "1h" or a plain number of seconds; -1.0 if it is none."""
    value = value.strip().lower()
    for unit, factor in _UNITS:
        number = value[: len(value) - len(unit)].strip()
        if value.endswith(unit) and number.replace(".", "", 1).isdecimal():
            return float(number) * factor
    return -1.0


def _unknown(name: str) -> bytes:
    return encode.error(
        "ERROR",
        "42704",
        f'unrecognized configuration parameter "{name}"',
        hint="txproxy.idle_transaction_timeout and txproxy.idle_transaction_action can be set.",
    )


def _invalid(text: str) -> bytes:
    return encode.error("ERROR", "22023", text)
