"""One client: what becomes of each of its messages.

`client_sent()` is the way of a chunk from the client: each message gets its verdict (requests.py),
and what is forwarded goes to the backend in one write, as the same bytes object where nothing had
to be changed.

A session holds a backend for one unit, for an open transaction, or while it has session state that
we cannot carry elsewhere (`pin`).
"""

from typing import TYPE_CHECKING, Final

from txproxy.config import SessionSettings
from txproxy.core import begin, endings, requests, state, transaction
from txproxy.core.answers import Answers, Ours
from txproxy.core.backend import REPLAYING, RESTORING
from txproxy.core.exchange import Fifo
from txproxy.core.ports import ClientPort, next_id
from txproxy.core.requests import FORWARD, HEAD, HOLD, REPLACE, SKIP, STOP, WAIT
from txproxy.core.said import Said
from txproxy.core.settings import (
    FOLLOWED,
    Settings,
    changes_who,
    difference,
    encoding_first,
    judgeable,
    restoring,
)
from txproxy.core.statements import Names, Statement
from txproxy.core.transaction import BEGUN, NONE, OPEN
from txproxy.wire import encode
from txproxy.wire.codes import (
    COPY_DATA,
    HELD_LIMIT,
    IDLE,
    IN_FAILED,
    client_least,
    client_limits,
)
from txproxy.wire.messages import int32
from txproxy.wire.scan import Tail

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.claims import Claim
    from txproxy.core.listening import Listening
    from txproxy.core.pool import Pool

_LEAST: Final = client_least()
_LIMITS: Final = client_limits()


class Session:
    """A client that is logged in, or waits for a backend to be so.

    settings  what the configuration says for it
    answers   the client's transaction (`answers.state`), the status it was last told, and what we
              answer in the server's place
    backend   the one it holds; None: none
    blocked   its bytes are held in `inbox`: it waits for a backend (`queued`), or for one to answer
    pin       why it keeps its backend, for people; "" if it does not
    kept      what it may have on its backend: see state.py; None: nothing
    replaying the backend is being given its settings, which may fail
    epoch     the pool's when a backend last took its settings: of another's we know nothing
    wanted    its settings now; `settled`: as of the last moment without a transaction
    listening   what it has to do with LISTEN, if anything: see listening.py
    pid       the process id that its client was told; 0: none yet
    told      the parameters that its client was last told, by the server's spelling
    begin     the BEGIN that no backend has heard of yet: see begin.py
    said      what was said behind it since: see said.py
    names     what its names of prepared statements mean: see statements.py
    resumes   there may be a savepoint or a portal with a name in its transaction: that stays on its
              backend when it fails
    own_terms what it prepares now may mean something else to others: its settings are not certain
    """

    __slots__ = (
        "_inbox",
        "_inbox_size",
        "active_at",
        "address",
        "answers",
        "backend",
        "begin",
        "begin_closes",
        "begun_at",
        "blocked",
        "checks",
        "client",
        "client_full",
        "connected_at",
        "defaults_due",
        "ended",
        "epoch",
        "flushed_at",
        "id",
        "kept",
        "listening",
        "logging_in",
        "marked_at",
        "names",
        "ours",
        "outgoing",
        "outside",
        "own_terms",
        "pid",
        "pin",
        "pool",
        "problem",
        "queued",
        "queued_at",
        "released_at",
        "replacement",
        "replaying",
        "restore_due",
        "resumes",
        "said",
        "scanned",
        "session_mode",
        "settings",
        "settled",
        "skip_to",
        "slept_at",
        "stale",
        "start",
        "statement",
        "statement_end",
        "stats",
        "stream",
        "stream_forward",
        "strings_conform",
        "tail",
        "told",
        "transaction_expired",
        "unnamed",
        "user",
        "waited_from",
        "wanted",
    )

    def __init__(
        self,
        client: ClientPort,
        pool: "Pool",
        settings: SessionSettings,
        wanted: Settings,
        ours: Ours,
        address: str,
    ) -> None:
        self.id = next_id()
        self.client = client
        self.pool = pool
        self.settings = settings
        self.user = settings.user
        self.outside = pool.outside
        self.stats = pool.stats
        self.session_mode = settings.pool_mode == "session"
        self.address = address
        self.connected_at = 0.0  # seconds since 1970
        self.ours = ours
        self.names = Names()
        self.answers = Answers(ours, self.names)
        self.backend: Backend | None = None
        self.wanted = self.settled = self.start = wanted
        self.defaults_due: Claim | None = None  # what new sessions begin with is being changed
        self.restore_due = False  # it may have reset what it asked for at the start
        self.told: dict[str, str] = {}
        self.pin = ""
        self.pid = 0
        self.listening: Listening | None = None
        self.kept: state.Kept | None = None
        self.replaying = False
        # When its transaction was released early, until it waits again; when it had slept then.
        self.released_at = self.slept_at = 0.0
        self.epoch = pool.epoch
        self.logging_in = False
        self.ended = False
        self.client_full = False  # what was written to the client has not been taken by its socket
        self.queued = False
        self.queued_at = 0.0
        self.waited_from = 0.0  # the same by the exact clock
        self.blocked = False
        self._inbox: list[bytes] = []
        self._inbox_size = 0
        self.tail = Tail()
        self.stream = 0  # bytes still to come of a message that is passed on, or dropped, in pieces
        self.stream_forward = False
        self.scanned = b""  # of a text that cannot be judged and has not come completely: its end
        self.outgoing: list[bytes] = []  # what goes to the backend ahead of the client's bytes
        self.replacement = b""
        self.skip_to = 0  # with the verdicts SKIP and HEAD: where to go on
        self.problem = ""
        self.unnamed = False  # the unnamed statement was parsed in the unit that is open now
        self.own_terms = False
        self.resumes = False
        self.checks = False  # it waits for the answer to a Describe of ours
        self.stale: Statement | None = None  # what that found to be other than it was
        self.said = Said()
        self.begin = b""
        self.begin_closes = False  # whether there is no portal of it left, as behind a Query
        self.strings_conform = True  # as the server reports at login, and later
        self.active_at = pool.outside.now  # when the client or its backend last went on
        self.begun_at = 0.0
        self.marked_at = -1.0  # `active_at` when it was last found to be overdue
        self.flushed_at = -1.0  # `active_at` when we last sent a Flush
        self.transaction_expired = False
        self.statement = b""
        self.statement_end = b""
        if not judgeable(wanted.by_name.get("client_encoding", "")):
            self.pin_for("client_encoding")

    def __repr__(self) -> str:
        state = transaction.STATES[self.answers.state]
        lease = "queued" if self.queued else "leased" if self.backend else "none"
        return f"<Session {self.pool.name} {state} {lease}{' pinned' if self.pin else ''}>"

    @property
    def wants_pause(self) -> bool:
        """Whether reading from the client should stop: what it sent, or was sent, is not taken."""
        backend = self.backend
        backend_full = backend is not None and backend.full
        return self.client_full or backend_full or self._inbox_size > HELD_LIMIT

    def client_is_full(self, full: bool) -> None:
        """The client's socket takes no more for now, or takes again: so must its backend."""
        self.client_full = full
        self.client.update_reading()
        backend = self.backend
        if backend is not None:
            backend.wants_pause = full
            backend.port.update_reading()

    @property
    def state(self) -> int:
        """The client's transaction: see transaction.py."""
        return self.answers.state

    # The way of a chunk.

    def client_sent(self, data: bytes) -> None:
        """Bytes from the client."""
        self.stats.received += len(data)
        if self.blocked:
            if not self.ended:
                self._hold(data)
        else:
            self._process(data)

    def _hold(self, data: bytes) -> None:
        self._inbox.append(data)
        self._inbox_size += len(data)
        if self._inbox_size > HELD_LIMIT:
            self.client.update_reading()

    def may_go_on(self, fifo: Fifo) -> bool:
        """Whether what is held can be sent though not all is answered."""
        return fifo.copying or (self.checks and fifo.waits_for_client)

    def hold_again(self, data: bytes) -> None:
        """These bytes, handled before, come again once the backend is idle."""
        self.blocked = True
        self._hold(data)

    def resume(self) -> None:
        """What the session waited for has come: go on with what was held."""
        if self.listening is not None and self.listening.flushing:
            return
        self.go_on(self.take_inbox())

    def take_inbox(self) -> bytes:
        """What was held; from now on nothing is."""
        self.blocked = False
        data = b"".join(self._inbox)
        if data:
            self._inbox = []
            self._inbox_size = 0
            self.client.update_reading()
        return data

    def go_on(self, data: bytes) -> None:
        """Handle bytes that were held."""
        if data:
            self._process(data)

    def drop_first(self, data: bytes) -> None:
        """Go on behind the first message in `data`, which has been answered."""
        end = 1 + int32(data, 1)
        self.stream = max(0, end - len(data))
        self.stream_forward = False
        if end < len(data):
            self.go_on(data[end:])

    def _pass_on(self, data: bytes) -> int:
        """The rest of a message that comes in pieces, or more of it: where it ends in `data`."""
        end = min(self.stream, len(data))
        self.stream -= end
        if self.scanned:
            state.scan(self, data[:end])
            if not self.stream:
                self.scanned = b""
        return end

    def _process(self, data: bytes) -> None:
        if self.tail.size:
            data = self.tail.join(data)
        n = len(data)
        i = start = 0
        pieces: list[bytes] = []
        if self.stream:
            i = self._pass_on(data)
            if not self.stream_forward:
                start = i
        verdict = FORWARD
        answers = self.answers
        answering = answers.active
        while n - i >= 5:
            kind = data[i]
            length = (data[i + 1] << 24) | (data[i + 2] << 16) | (data[i + 3] << 8) | data[i + 4]
            end = i + 1 + length
            if length < _LEAST[kind] or length > _LIMITS[kind]:
                self.problem = f"invalid message: type 0x{kind:02X}, length {length}"
                verdict = STOP
            elif end > n and kind != COPY_DATA and n - i <= HELD_LIMIT:
                break
            elif answering:
                verdict = requests.answer(self, kind, data, i, end)
            else:
                verdict = requests.verdict(self, kind, data, i, end)
            if verdict != FORWARD:
                answering = answers.active
                if start < i:
                    pieces.append(data[start:i])
                start = min(end, n)
                if verdict == REPLACE or verdict == HEAD or verdict == WAIT:
                    pieces.append(self.replacement)
                if verdict == HEAD:
                    start = self.skip_to
                elif verdict == SKIP:
                    end = start = self.skip_to
                elif verdict >= HOLD:
                    break
            if end > n:
                self.stream = end - n
                self.stream_forward = verdict <= HEAD
                end = n
            i = end
        if verdict == STOP:
            self._flush(data, i, i, pieces)
            self._stop()
            return
        if verdict >= HOLD:
            self.blocked = True
            self._hold(data[i:])
            self._flush(data, i, i, pieces)
            return
        if i < n:
            self.tail.keep(data[i:], HELD_LIMIT + 1)
        self._flush(data, start, i, pieces)
        backend = self.backend
        if backend is not None and not backend.fifo.exchanges and not backend.settling:
            self.backend_idle()

    def _stop(self) -> None:
        if self.problem:
            self.fatal(encode.error("FATAL", "08P01", self.problem))
        else:
            self.gone(cancel=False)
            self.client.finish()

    def _flush(self, data: bytes, start: int, end: int, pieces: list[bytes]) -> None:
        """Write what goes to the backend: the pieces, then data[start:end]."""
        backend = self.backend
        if backend is None:
            return
        if self.outgoing:
            pieces = self.outgoing + pieces
            self.outgoing = []
        if pieces:
            pieces.append(data[start:end])
            data = b"".join(pieces)
        elif start == end:
            return
        elif end - start < len(data):  # a compiled slice of all of it would be a copy
            data = data[start:end]
        now = self.outside.now
        if now != self.active_at:
            if self.answers.state == OPEN and self.answers.status != IDLE:
                self.stats.idle_in_transaction.observe(now - self.active_at)
            self.active_at = now
        backend.port.write(data)

    # Who gets a backend.

    def has_backend(self) -> bool:
        """Whether a backend is there to be sent to; else the session is queued, or waits."""
        backend = self.backend
        if backend is None:
            backend = self.pool.request(self)
            if backend is None:
                self._queue()
                return False
            self._attach(backend)
            if self.replaying:
                return False
        elif backend.settling or (backend.cancels and not backend.fifo.exchanges):
            return False
        if self.begin:
            backend.prepared.unnamed = b""
            self.outgoing.append(begin.ahead(self, backend.fifo))
        return True

    def _queue(self) -> None:
        self.queued = True
        self.queued_at = self.outside.now
        self.waited_from = self.outside.clock()

    def lent(self, backend: "Backend") -> None:
        """The pool's turn has come to this session."""
        if self.queued:
            self.queued = False
            self.stats.waiting.observe(self.outside.clock() - self.waited_from)
        self._attach(backend)
        if self.logging_in:
            self._flush(b"", 0, 0, [])
            if not backend.fifo.exchanges:
                self.backend_idle()
            return
        if self.replaying:
            self._flush(b"", 0, 0, [])
            return
        self.resume()
        if self.backend is backend and not backend.fifo.exchanges and not backend.settling:
            self.backend_idle()

    def _attach(self, backend: "Backend") -> None:
        """Take the backend; what must go ahead of the client's bytes is put into `outgoing`."""
        self.backend = backend
        self.resumes = False
        backend.session = self
        if self.pin:
            backend.dirty = self.pin
        ahead = self.outgoing
        if backend.applied is not self.wanted:
            self._replay(backend)
        if not ahead and self.told is not backend.params and not self.logging_in:
            news = backend.news()
            if news:
                self.client.write(news)
        if self.session_mode and not self.pin and not self.logging_in:
            self.pin_for("session mode")
        if self.client_full:
            backend.wants_pause = True
            backend.port.update_reading()

    def _replay(self, backend: "Backend") -> None:
        """Give the backend the session's settings.

        They are the server's own words, and go ahead of the client's in the same write. But who the
        session is, and anything to a server that we have not met, may be refused: then the client's
        statement must not run, and waits for the answer.
        """
        change = difference(backend.applied, self.wanted)
        first = b"" if change.isascii() else encoding_first(backend.applied, self.wanted)
        may_fail = changes_who(self.wanted) or self.epoch != self.pool.base_of
        purpose = "settings"
        if change and may_fail and not self.logging_in:
            self.replaying = True
            purpose = REPLAYING
        else:
            backend.applied = self.wanted
        for sql in (first, change):
            if sql:
                self.outgoing.append(backend.ours(sql, purpose))

    def _replayed(self, backend: "Backend") -> None:
        """The backend has taken the session's settings, or the client gets the server's error."""
        self.replaying = False
        failed = backend.ours_failed
        if failed:
            backend.ours_failed = {}
            backend.dirty = backend.dirty or "settings that were refused"
            self._release(backend)
            self.refuse_backend(failed)
            return
        backend.applied = self.wanted
        self.epoch = self.pool.base_of
        self._attach(backend)
        self.resume()

    def pin_for(self, reason: str) -> None:
        """Keep the backend: until the state is gone, if it can be looked at, or to the end."""
        state.pin(self, reason)

    def backend_free(self) -> None:
        """What had to be over before anything is sent to the backend is over."""
        if self.blocked:
            self.resume()
        backend = self.backend
        if self.kept is None or backend is None or backend.settling:
            return
        if not backend.fifo.exchanges:
            self.backend_idle()

    def backend_idle(self) -> None:
        """Everything that was sent has been answered."""
        backend = self.backend
        assert backend is not None
        if self.logging_in:
            self._login_answered(backend)
        elif self.replaying:
            self._replayed(backend)
            return
        elif self.stream and self.stream_forward:
            return  # the rest of a message that has begun belongs to this backend
        elif self.listening is not None and self.listening.waits:
            return
        elif self.restore_due and backend.fifo.status != IN_FAILED:
            self.restore_due = False
            backend.port.write(backend.ours(restoring(self.start), RESTORING))
            return
        elif self.transaction_expired and self.answers.state == OPEN:
            self.reap("transaction_timeout")
        elif self.answers.status == IN_FAILED and self.answers.state == OPEN:
            endings.end_failed(self, backend)
        elif self.answers.state != OPEN:
            if self.kept is not None and state.is_due(self):
                if not (backend.cancels or backend.fifo.in_transaction):
                    state.ask(self, backend)
                return
            if not self.pin:
                self._release(backend)
        if self.blocked and not self.queued and not self.logging_in and self._may_go_on():
            self.resume()

    def _may_go_on(self) -> bool:
        if self.listening is not None and self in self.pool.listener.waiters:
            return False
        backend = self.backend
        return backend is None or not (backend.settling or backend.cancels)

    def _release(self, backend: "Backend") -> None:
        self.backend = None
        self.unnamed = False
        self.own_terms = False
        backend.session = None
        if backend.full:
            self.client.update_reading()
        if backend.is_clean():
            self.pool.take_back(backend)
        else:
            backend.settle()

    # What the server said.

    def ready(self, status: int) -> None:
        """ReadyForQuery for a unit of this session's was passed on."""
        answers = self.answers
        answers.status = status
        self.active_at = self.outside.now
        if status != IDLE:
            if answers.state == NONE:
                self.begun_at = self.active_at
            answers.state = transaction.after(answers.state, transaction.READY_OPEN)
            return
        self.stats.xacts += 1
        self.said.begin = b""
        if answers.state != NONE:
            if answers.state == OPEN:
                self.stats.transactions.observe(self.active_at - self.begun_at)
            answers.state = transaction.after(answers.state, transaction.READY_IDLE)
        self.settled = self.wanted
        self.transaction_expired = False
        if self.defaults_due is not None and not self.defaults_due.holds:
            self.defaults_due = None
            self.outside.defaults_changed(self.pool)
        if self.backend is not None and self.backend.fifo.begins:
            answers.state = BEGUN

    def begin_failed(self) -> None:
        """ReadyForQuery came for a unit whose deferred BEGIN the server refused."""
        answers = self.answers
        answers.state = transaction.after(BEGUN, transaction.LOSE)
        answers.status = IN_FAILED
        answers.complete = not self.pin
        self.active_at = self.outside.now
        if self.listening is not None:
            self.listening.undo()

    def follow(self, name: str, value: str) -> None:
        """The server reported a setting while this session's unit ran."""
        lower = name.lower()
        if lower not in FOLLOWED:
            return
        self.wanted = self.wanted.changed(lower, value)
        if self.backend is not None:
            self.backend.applied = self.wanted
        if lower == "standard_conforming_strings":
            self.strings_conform = value != "off"
        elif lower == "client_encoding" and not judgeable(value):
            self.pin_for("client_encoding")

    def restored(self, status: int) -> None:
        """What a RESET had taken from the start-up packet's settings was given back."""
        if status == IDLE:
            self.settled = self.wanted

    def undo_settings(self) -> None:
        """The transaction that changed them is gone: tell the client what holds again."""
        if self.wanted is self.settled:
            return
        told = dict(self.told)
        for name, value in self.told.items():
            lower = name.lower()
            if lower in self.wanted.by_name:
                holds = self.settled.by_name.get(lower, self.pool.base.get(lower, value))
                if holds != value:
                    told[name] = holds
                    self.answers.news += encode.parameter_status(name, holds)
        self.told = told
        self.wanted = self.settled
        self.strings_conform = told.get("standard_conforming_strings", "on") != "off"

    def reconfigure(self, settings: SessionSettings) -> None:
        """The configuration says otherwise now. The pool mode stays what it was at login."""
        self.settings = settings
        self.ours.reconfigure(
            settings.idle_transaction_timeout,
            settings.idle_transaction_timeout_max,
            settings.idle_transaction_action,
        )

    # Beginning and end: see endings.py.

    def login(self) -> None:
        """Find out whether a backend takes these settings, and what it then reports."""
        self.logging_in = True
        self.blocked = True
        self.pool.sessions.add(self)
        self.pool.stats.clients += 1
        params = self.pool.known(self.wanted)
        if params is not None:
            self._admit(params)
            return
        backend = self.pool.request(self)
        if backend is None:
            self._queue()
        else:
            self.lent(backend)

    def _login_answered(self, backend: "Backend") -> None:
        if backend.ours_failed:
            self.fatal(encode.error_of("FATAL", backend.ours_failed))
            return
        self.pool.accept(self.wanted, backend.params)
        if not self.pin:
            self._release(backend)
        self._admit(backend.params)

    def _admit(self, params: dict[str, str]) -> None:
        self.logging_in = False
        self.told = params
        self.strings_conform = params.get("standard_conforming_strings", "on") != "off"
        self.epoch = self.pool.base_of
        if not judgeable(params.get("client_encoding", "")):
            self.pin_for("client_encoding")
        self.client.admitted(params)
        self.resume()

    def fatal(self, error: bytes) -> None:
        """Send a FATAL, close the client, and let go of what the session holds."""
        if not self.ended:
            self.client.write(error)
            self.gone(cancel=True)
            self.client.finish()

    def gone(self, cancel: bool) -> None:
        """The client has left; a statement of its that runs is cancelled if `cancel`."""
        if self.ended:
            return
        self.ended = True
        self.pool.sessions.discard(self)
        if self.queued:
            self.pool.forget(self)
        if self.listening is not None:
            self.pool.listener.forget(self)
        self.queued = False
        self.blocked = True
        backend = self.backend
        if backend is not None:
            endings.leave(self, backend, cancel)

    def reap(self, why: str) -> None:
        """Roll the transaction back and let the client live."""
        endings.reap(self, why)

    def backend_lost(self, backend: "Backend") -> None:
        """The backend's connection has gone while this session held it."""
        endings.backend_lost(self, backend)

    def refuse_backend(self, fields: dict[str, str]) -> None:
        """No backend can be had: `fields` of the ERROR that says why."""
        endings.refuse(self, encode.error_of("FATAL" if self.logging_in else "ERROR", fields))
