"""Early release: a transaction that has only read holds nothing while its client sleeps.

Its backend commits and goes back to the pool; the client's transaction is BEGUN again, as behind a
deferred BEGIN (begin.py), and goes on with another backend when its client speaks. Under READ
COMMITTED each statement has a snapshot of its own: nothing that the client can see is lost, if the
transaction has left nothing behind. Whether it has, is asked in steps, the cheap ones first, and
only of those that sleep:

    what we know        the whole BEGIN, READ COMMITTED, status T, no pin, no portal (`obstacle`)
    what was said       plain reads, of functions that keep nothing (said.py, eligible.py)
    what the server     that it holds no transaction id, no snapshot, and no lock but those of
    says                readers, asked on a connection of its own (net/monitor.py)

Never asked inside the client's transaction: a Query there would destroy its unnamed statement, and
an error would end it. If the client speaks meanwhile, nothing happens. Who is refused is not asked
about again until its client has spoken.
"""

import re
from typing import TYPE_CHECKING, Final

from txproxy.core import endings, transaction
from txproxy.core.exchange import Exchange
from txproxy.core.offenders import RELEASED
from txproxy.core.said import Said
from txproxy.core.transaction import OPEN
from txproxy.wire import encode, lexer
from txproxy.wire.codes import CLOSE, IN_TRANSACTION, SYNC

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.pool import Pool
    from txproxy.core.session import Session

_CANDIDATES_LIMIT: Final = 100  # that are asked about at once
_RESTS: Final = 20.0  # times as long as the last question took, before the next
_ISOLATION: Final = re.compile(rb"isolation level (read committed)?")
_MODE: Final = re.compile(rb"\bread (only|write)\b")

AGAIN: Final = b"BEGIN ISOLATION LEVEL READ COMMITTED, READ "
"""A transaction is begun again in the same terms, whatever the defaults are by then."""

NO_BEGIN: Final = "its BEGIN came with something else (or deferred_begin is off)"


class Watch:
    """What a pool knows of its server for this.

    isolation, read_only   what a session's transactions are by default
    next_at     when the server may be asked again, by the exact clock
    trouble     why it could not be asked
    """

    def __init__(self) -> None:
        self.isolation = ""
        self.read_only = ""
        self.asking = False
        self.next_at = 0.0
        self.trouble = ""


class Candidate:
    """A session as it was when the server was asked about it."""

    __slots__ = ("active_at", "backend", "pid", "session", "why")

    def __init__(self, session: "Session", backend: "Backend") -> None:
        self.session = session
        self.backend = backend
        self.active_at = session.active_at
        self.pid = backend.port.pid
        self.why = ""

    @property
    def texts(self) -> list[bytes]:
        """What it has said, each text once."""
        return list(dict.fromkeys(self.session.said.texts))


def look(pool: "Pool", now: float) -> None:
    """The janitor's look at a pool: ask the server about those that may be released.

    `now` is rather early than late, next to `active_at`: who is active must not seem to sleep.
    """
    watch = pool.watch
    if watch.asking:
        return
    found = [
        Candidate(session, backend)
        for backend in pool.backends
        if (session := backend.session) is not None and _may_be(session, now)
    ]
    if found and pool.outside.clock() >= watch.next_at:
        found.sort(key=_active_at)
        watch.asking = True
        pool.outside.ask_about(pool, found[:_CANDIDATES_LIMIT])


def _active_at(candidate: Candidate) -> float:
    return candidate.active_at


def _may_be(session: "Session", now: float) -> bool:
    """Whether it is worth a question."""
    said = session.said
    if not said.begin or session.answers.state != OPEN or said.looked_at == session.active_at:
        return False
    settings = session.settings
    idle = now - session.active_at
    waits = settings.early_release_min if session.pool.waiters else settings.early_release_after
    if idle < waits or idle <= 0 or not endings.sleeps(session):
        return False
    why = obstacle(session)
    if why:
        refuse(session, why)
    elif said.portal:
        _close_portal(session, said)
        return False
    return not why


def _close_portal(session: "Session", said: Said) -> None:
    """The unnamed portal has been run to its end, and nobody needs it: without it the server has no
    snapshot of this transaction. A Close leaves the rest of it as it is. Looked at again then.
    """
    backend = session.backend
    assert backend is not None
    said.portal = False
    unit = Exchange(CLOSE, False)
    unit.owed.append(SYNC)
    unit.open = False
    unit.purpose = "Close of a portal"
    backend.fifo.exchanges.append(unit)
    backend.port.write(encode.CLOSE_UNNAMED_PORTAL + encode.SYNC)


def obstacle(session: "Session") -> str:
    """Why it cannot be released, by what is known here; "" if nothing is in the way."""
    if session.settings.early_release == "off":
        return "early_release is off"
    if not session.said.begin:
        return NO_BEGIN
    if session.pin or session.kept is not None:
        return f"it keeps its backend: {session.pin or 'settings'}"
    if session.listening is not None:
        return "it listens"
    if session.answers.status != IN_TRANSACTION:
        return "the transaction has failed"
    if session.stream or (session.backend is not None and session.backend.fifo.exchanges):
        return "a unit of it is open"
    if len(session.pool.settings.hosts) > 1:
        return "its pool has several servers"
    return session.said.why


def terms(session: "Session") -> bytes:
    """READ COMMITTED as `AGAIN`, with what it may write; b"" if it is another isolation level, or
    not known.
    """
    watch = session.pool.watch
    begin = _words(session.said.begin, session.strings_conform)
    if not begin:
        return b""
    wanted = session.wanted.by_name
    level = _ISOLATION.findall(begin)
    if b"isolation" not in begin:
        if wanted.get("default_transaction_isolation", watch.isolation) != "read committed":
            return b""
    elif level != [b"read committed"]:
        return b""
    modes = _MODE.findall(begin)
    if len(modes) > 1:
        return b""
    if modes:
        return AGAIN + (b"ONLY" if modes[0] == b"only" else b"WRITE")
    read_only = wanted.get("default_transaction_read_only", watch.read_only)
    if read_only not in ("on", "off"):
        return b""
    return AGAIN + (b"ONLY" if read_only == "on" else b"WRITE")


def _words(begin: bytes, conforming: bool) -> bytes:
    """Those of a BEGIN: what stands in its comments counts for nothing. b"": it cannot be read."""
    statements = lexer.split(begin, conforming)
    return statements[0].words if statements is not None and len(statements) == 1 else b""


def refuse(session: "Session", why: str) -> None:
    """It is not released, and not asked about again until its client has spoken."""
    said = session.said
    said.looked_at = session.active_at
    if not said.found:
        session.stats.releases_refused += 1
    said.found = why


def not_answered(pool: "Pool", why: str, pause: float) -> None:
    """The server could not be asked; it is again after so many seconds."""
    watch = pool.watch
    watch.asking = False
    watch.trouble = why
    watch.next_at = pool.outside.clock() + pause


def answered(pool: "Pool", candidates: list[Candidate], took: float) -> None:
    """The server was asked: `why` of each says why not, or nothing. It took so many seconds."""
    watch = pool.watch
    watch.asking = False
    watch.trouble = ""
    watch.next_at = pool.outside.clock() + _RESTS * took
    for candidate in candidates:
        session = candidate.session
        if session.backend is not candidate.backend or session.active_at != candidate.active_at:
            continue
        if not endings.sleeps(session) or session.answers.state != OPEN:
            continue
        why = candidate.why or obstacle(session)
        if not why and not terms(session):
            why = "it is not READ COMMITTED"
        if why:
            refuse(session, why)
        elif session.settings.early_release == "report":
            _report(session)
        else:
            _release(session, candidate.backend)


def _report(session: "Session") -> None:
    said = session.said
    if said.looked_at < 0:
        session.stats.would_release += 1
    said.looked_at = session.active_at


def _release(session: "Session", backend: "Backend") -> None:
    """OPEN becomes BEGUN; the backend commits what has only read, and is anybody's."""
    answers = session.answers
    session.stats.released += 1
    said = {"why": "early_release", **endings.times(session), **endings.about(session)}
    session.pool.outside.left_open(session, RELEASED, said)
    session.begin = terms(session)
    session.begin_closes = True
    session.released_at = session.outside.now
    session.said.begin = b""
    session.unnamed = False
    session.own_terms = False
    answers.state = transaction.after(OPEN, transaction.RELEASE)
    session.backend = None
    backend.session = None
    backend.ending = b"COMMIT"
    backend.abandon(cancel=False)


def why_held(session: "Session") -> str:
    """For people: why a transaction that is idle holds its backend."""
    if session.answers.state != OPEN or not endings.sleeps(session):
        return ""
    why = obstacle(session)
    said = session.said
    if not why and said.looked_at == session.active_at:
        why = said.found
    return why or session.pool.watch.trouble or "nothing: it may be released"
