"""What a session keeps on its backend: settings that are followed by asking, and pins.

Nothing is simulated. A statement that may change settings, or make other state, is only noted
(`note()`). When the session is about to let its backend go, outside a transaction, a Query of our
own asks the server what holds now: which settings the session has set (so that rollbacks,
savepoints, SET LOCAL, RESET and functions need no understanding), and, if the session is pinned,
whether the state that pins it is still there. `answered()` draws the consequences.

What cannot be seen pins for good: see `Kept.hidden`. A question that fails, or an answer that is
not understood, pins too: rather keep a backend than leak.

Source: PostgreSQL 18, chapter 53 "System Views", and guc.c.
"""

import re
from typing import TYPE_CHECKING, Final

from txproxy.config import CONSOLE_DATABASES
from txproxy.core.settings import FOLLOWED, is_name, share, size
from txproxy.core.settings import WHO as _WHO
from txproxy.wire import sql
from txproxy.wire.codes import HELD_LIMIT
from txproxy.wire.messages import int32, text

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.session import Session

ASKING: Final = "what the session keeps"
"""The purpose of the exchange that asks."""

SETTINGS: Final = "settings"
_TEMPORARY: Final = "temporary table"
_ADVISORY: Final = "advisory lock"
_HOLD: Final = "WITH HOLD"
_PREPARE: Final = "PREPARE"
_LISTEN: Final = "LISTEN"

_EQUAL: Final = "OPERATOR(pg_catalog.=)"
_PARTS: Final = {
    # DISCARD TEMP drops what depends on the schema: tables, functions, types.
    _TEMPORARY: "FROM pg_catalog.pg_depend WHERE refclassid"
    f" {_EQUAL} 'pg_catalog.pg_namespace'::pg_catalog.regclass"
    f" AND refobjid {_EQUAL} pg_catalog.pg_my_temp_schema()",
    _ADVISORY: f"FROM pg_catalog.pg_locks WHERE locktype {_EQUAL} 'advisory'"
    f" AND pid {_EQUAL} pg_catalog.pg_backend_pid()",
    _HOLD: "FROM pg_catalog.pg_cursors WHERE is_holdable",
    # Only what the listening connection cannot tell the session: see listening.py.
    _LISTEN: "FROM pg_catalog.pg_listening_channels()",
    _PREPARE: "FROM pg_catalog.pg_prepared_statements WHERE from_sql",
}
"""Where the state is seen that pins for each of these reasons."""

_SHOWN: Final = (
    "SELECT context,pg_catalog.lower(name),pg_catalog.current_setting(name)"
    " FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session' AND "
)
_UNSHOWN: Final = "SELECT 'custom',n,pg_catalog.current_setting(n,true) FROM "

_ANYTHING: Final = frozenset(("cannot judge", "DO", "CALL", "unknown statement", "FunctionCall"))
"""Reasons behind which anything may be."""

_LOOKED_AT: Final = frozenset((*_PARTS, *_ANYTHING, SETTINGS))

REASONS: Final = (
    *sorted(_LOOKED_AT),
    "LOAD",
    "prepared statement",
    "session mode",
    "client_encoding",
    "console",
)
"""All of them, for metrics; those that are not looked at last to the session's end."""

SESSION_MODE: Final = "session mode"

# The transaction's own, or nothing that could be asked for.
_NOT_CARRIED: Final = frozenset(
    ("transaction_isolation", "transaction_read_only", "transaction_deferrable", "seed")
)
_NAMES_LIMIT: Final = 50  # names that are asked for at once
_NAME_LIMIT: Final = 63  # characters
_HIDDEN_MARK: Final = "txproxy.hidden"
_SETS: Final = re.compile(rb"\bset\b")
_SETS_HIDDEN: Final = re.compile(
    rb'set(?:_config|(?<![\w$\x80-\xff]set)\s+(?:session\s+)?"?[\w$\x80-\xff]+"?\s*\.)'
)
_OVERLAP: Final = 128  # bytes of a piece that are looked at again with the next
_RESETS_ALL: Final = re.compile(rb"(?:^|;)\s*reset all[;\s]*$")

_NOT_HIDDEN: Final = 0
_HIDDEN: Final = 1
_MARKED: Final = 2


class Kept:
    """What one session may have on its backend; a session that never sets anything has none.

    names     settings that may have changed since the server was last asked, or since the session
              was pinned; `everything`: any of them
    hidden    settings may have been set whose names we do not know and the server does not show
              (custom ones, by set_config() with a computed name): only a RESET ALL removes them.
              `_MARKED`: a setting of ours is among them, which goes when they go
    reasons   why the session is pinned, in order; `fresh`: those since the question was sent
    wide      a look at anything is due
    due       something has happened since the last question
    asking    the question is on its way; `asked`, `asked_everything`: what it asks for
    rows      the answer's; `size`: their bytes; `garbled`: it was not understood
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.everything = False
        self.hidden = _NOT_HIDDEN
        self.reasons: dict[str, None] = {}
        self.fresh: set[str] = set()
        self.wide = False
        self.due = False
        self.asking = False
        self.asked: set[str] = set()
        self.asked_everything = False
        self.rows: list[tuple[str, str, str]] = []
        self.size = 0
        self.garbled = False

    @property
    def lasts(self) -> bool:
        """Whether the session is pinned to its end, so that nothing need be asked."""
        return not self.reasons.keys() <= _LOOKED_AT

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to remember."""
        return not (self.names or self.everything or self.reasons or self.due or self.asking)

    def note_names(self, names: tuple[str, ...]) -> None:
        """Settings that may have changed; more than can be remembered are any, and hidden."""
        for name in names:
            if name == "*":
                self.everything = True
            elif name in self.names or name in _NOT_CARRIED:
                pass
            elif len(self.names) < _NAMES_LIMIT and len(name) <= _NAME_LIMIT and is_name(name):
                self.names.add(name)
            else:
                self.everything = True
                self.hidden = _HIDDEN


# What is noted.


def note(session: "Session", judged: sql.Judgement, said: bytes) -> None:
    """A statement was sent that may change settings, pin the session, or end what pins it."""
    if session.pool.settings.database in CONSOLE_DATABASES:
        if judged.pin:
            pin(session, "console")
        return
    if judged.settings and not _is_reported(session, judged.settings):
        _note_settings(session, judged, said)
    if judged.pin:
        for reason in judged.pin.split(", "):
            pin(session, reason)
    kept = session.kept
    if judged.looks and kept is not None and kept.reasons:
        kept.due = True


def _is_reported(session: "Session", names: tuple[str, ...]) -> bool:
    """Whether the server will say by itself what becomes of these."""
    base = session.pool.base
    return all(name in FOLLOWED and name in base for name in names)


def _note_settings(session: "Session", judged: sql.Judgement, said: bytes) -> None:
    kept = session.kept
    if kept is None:
        kept = session.kept = Kept()
    kept.note_names(judged.settings)
    if "*" in judged.settings and (_is_wide(judged.pin) or _may_hide(judged, said.lower())):
        kept.hidden = _HIDDEN
    if kept.hidden == _HIDDEN:
        pin(session, SETTINGS)
    if not kept.reasons or SETTINGS in kept.reasons or "*" in judged.settings:
        kept.due = True


def _may_hide(judged: sql.Judgement, low: bytes) -> bool:
    """Whether what changes any setting may be more than RESET ALL, DISCARD ALL, or an UPDATE of
    pg_settings, which has no custom ones.
    """
    if _RESETS_ALL.search(low) and not judged.ends:
        return False  # it fails as a whole, or removes whatever went before
    return b"set_config" in low or (b"pg_settings" not in low and _SETS.search(low) is not None)


def scan(session: "Session", piece: bytes) -> None:
    """More of a text that comes in pieces and is not judged: it may set what cannot be seen."""
    low = (session.scanned + piece).lower()
    session.scanned = low[-_OVERLAP:]
    if b"set" in low and _SETS_HIDDEN.search(low):
        pin(session, SETTINGS)
        kept = session.kept
        assert kept is not None
        kept.hidden = _HIDDEN


def _is_wide(reasons: str) -> bool:
    return any(reason in _ANYTHING for reason in reasons.split(", "))


def pin(session: "Session", reason: str) -> None:
    """Keep the backend: until it is seen that the state is gone, or to the session's end."""
    kept = session.kept
    if kept is None:
        kept = session.kept = Kept()
    if reason in _ANYTHING:
        kept.wide = kept.everything = True
    kept.due = True
    kept.fresh.add(reason)
    if reason not in kept.reasons:
        if not kept.reasons:
            session.stats.pins_set += 1
        kept.reasons[reason] = None
        _say(session, kept)


def _say(session: "Session", kept: Kept) -> None:
    session.pin = ", ".join(kept.reasons)
    if session.backend is not None:
        session.backend.dirty = session.pin


def chained(session: "Session") -> None:
    """A transaction has ended and another begun behind one ReadyForQuery (AND CHAIN). What the
    first has set stays when the second is rolled back, and only the server knows what that was.
    """
    session.settled = session.wanted
    session.said.begin = b""
    kept = session.kept
    if kept is None:
        kept = session.kept = Kept()
    kept.everything = kept.due = True


# The question.


def is_due(session: "Session") -> bool:
    """Whether the server must be asked before the backend may be another's."""
    kept = session.kept
    return kept is not None and kept.due and not kept.lasts


def ask(session: "Session", backend: "Backend") -> None:
    """Ask the server. Its answer ends with `answered()`; what the client says meanwhile goes behind
    the question.
    """
    kept = session.kept
    assert kept is not None
    names = kept.names
    if kept.everything:
        names = names | {name for name in session.wanted.by_name if name not in FOLLOWED}
    parts = set(_PARTS) if kept.wide else kept.reasons.keys() & _PARTS.keys()
    kept.asked = names
    kept.asked_everything = kept.everything
    question = _question(sorted(names), kept.everything, sorted(parts), kept.hidden)
    kept.names = set()
    kept.everything = kept.wide = kept.due = False
    kept.fresh = set()
    kept.hidden = _MARKED if kept.hidden else _NOT_HIDDEN
    kept.rows = []
    kept.size = 0
    kept.garbled = False
    kept.asking = True
    backend.port.write(backend.ours(question, ASKING))


def _question(names: list[str], everything: bool, parts: list[str], hidden: int) -> bytes:
    """One string for all that is to be known: rows of what, name, value.

    Names are such that they can be put into SQL as they are. pg_settings shows neither who the
    session is nor custom settings; of those the server tells the value that they have, though it
    may be the default.
    """
    shown = [name for name in names if "." not in name and name not in _WHO]
    others = [name for name in names if "." in name or name in _WHO]
    selects = []
    if shown or everything:
        which = f"NOT name {_EQUAL} ANY ({_array(sorted(_NOT_CARRIED))})"
        if not everything:
            which = f"pg_catalog.lower(name) {_EQUAL} ANY ({_array(shown)})"
        selects.append(_SHOWN + which)
    if others:
        selects.append(_UNSHOWN + f"pg_catalog.unnest({_array(others)}) AS t(n)")
    if hidden == _MARKED:
        value = f"pg_catalog.current_setting('{_HIDDEN_MARK}',true)"
        selects.append(f"SELECT 'hidden','',{value}")
    elif hidden == _HIDDEN:
        selects.append(f"SELECT 'hidden','',pg_catalog.set_config('{_HIDDEN_MARK}','on',false)")
    selects += [f"SELECT '{part}','','' WHERE EXISTS (SELECT {_PARTS[part]})" for part in parts]
    return " UNION ALL ".join(selects).encode()


def _array(names: list[str]) -> str:
    return "'{" + ",".join(names) + "}'::pg_catalog.text[]"


# The answer.


def hear(session: "Session", body: bytes) -> None:
    """A DataRow of the answer."""
    kept = session.kept
    if kept is None:
        return
    kept.size += len(body)
    values = _values(body)
    if len(values) != 3 or kept.size > HELD_LIMIT:
        kept.garbled = True
    elif values[2] is not None:
        kept.rows.append((values[0] or "", values[1] or "", values[2]))


def _values(body: bytes) -> list[str | None]:
    """The columns of a DataRow; none if it is not whole."""
    found: list[str | None] = []
    i = 2
    while i + 4 <= len(body):
        length = int32(body, i)
        i += 4
        if length == 0xFFFFFFFF:
            found.append(None)
        elif i + length > len(body):
            return []
        else:
            found.append(text(body[i : i + length]))
            i += length
    return found if i == len(body) else []


def answered(session: "Session", backend: "Backend") -> None:
    """The answer is complete, or an error: what it says holds now, whatever was noted since."""
    kept = session.kept
    if kept is None or not kept.asking:
        return
    kept.asking = False
    failed = kept.garbled or bool(backend.ours_failed)
    backend.ours_failed = {}
    if failed or not _take_settings(session, kept, backend):
        kept.names |= kept.asked
        kept.everything = kept.wide = True
        kept.hidden = _HIDDEN if kept.hidden else _NOT_HIDDEN
        pins = {*kept.reasons, SETTINGS}
    else:
        pins = _pins(session, kept)
    kept.rows = []
    _pin_for_these(session, kept, pins | kept.fresh)
    if kept.reasons:
        kept.names |= kept.asked
        kept.everything = kept.everything or kept.asked_everything
    elif kept.names or kept.everything:
        kept.due = True  # set meanwhile, when the pin was there still
    if kept.is_over:
        session.kept = None


def _take_settings(session: "Session", kept: Kept, backend: "Backend") -> bool:
    """Make what the server said the session's settings. False: they are too large to be carried."""
    found = {
        name: value
        for what, name, value in kept.rows
        # Custom settings that were reset are empty; when any are asked for, that is nobody's wish.
        if name and (value or what != "custom" or not kept.asked_everything)
    }
    base = session.pool.base
    server_user = base.get("session_authorization", session.pool.settings.server_user)
    if found.get("role") == "none":
        del found["role"]
    if found.get("session_authorization") == server_user:
        del found["session_authorization"]
    wanted = {} if kept.asked_everything else dict(session.wanted.by_name)
    for name in kept.asked:
        wanted.pop(name, None)
    wanted.update(found)
    settings = share(wanted)
    if size(settings.items) > HELD_LIMIT:
        return False
    session.wanted = session.settled = backend.applied = settings
    return True


def _pins(session: "Session", kept: Kept) -> set[str]:
    """What pins the session, by the answer."""
    start = session.start.by_name
    found: set[str] = set()
    for what, name, value in kept.rows:
        if what in _PARTS:
            found.add(what)
        elif what == "hidden" and value and kept.hidden != _NOT_HIDDEN:
            found.add(SETTINGS)
        elif what == "superuser" and start.get(name) != value:
            # The user that logged in may not be allowed to set it again.
            found.add(SETTINGS)
    return found


def _pin_for_these(session: "Session", kept: Kept, pins: set[str]) -> None:
    if SETTINGS not in pins:
        kept.hidden = _NOT_HIDDEN
    if kept.reasons.keys() == pins:
        return
    kept.reasons = {reason: None for reason in [*kept.reasons, *sorted(pins)] if reason in pins}
    if not pins:
        session.stats.pins_released += 1
    elif not session.pin:
        session.stats.pins_set += 1
    _say(session, kept)
