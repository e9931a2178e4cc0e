"""Scenarios as stories: what a client and a server say, and what each of them then hears.

`World` is everything outside of one pool: the clock, the log, the makers of connections.
`FakeClient` and `FakeBackend` are the two ends; both write down what they are sent. What was sent
is compared as short texts, a message each, its type byte first: "Q SELECT 1", "C SELECT 1", "Z I".
"""

from dataclasses import fields, replace
from typing import Final

from txproxy.config import PoolSettings, SessionSettings, TcpSettings, TlsSettings
from txproxy.core import endings, release
from txproxy.core.answers import Ours
from txproxy.core.backend import Backend
from txproxy.core.claims import Claim
from txproxy.core.limits import Group
from txproxy.core.listener import Listener
from txproxy.core.pool import Pool
from txproxy.core.ports import Endpoint
from txproxy.core.release import Candidate
from txproxy.core.session import Session
from txproxy.core.settings import share
from txproxy.core.transaction import STATES
from txproxy.wire import encode
from txproxy.wire.encode import message
from txproxy.wire.messages import error_fields, int32

TICK: Final = 0.05

PARAMS: Final = {
    "application_name": "",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "server_version": "18.0",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
}
"""What a fresh backend reports."""

POOL_SETTINGS: Final = PoolSettings(
    database="app",
    user="ann",
    hosts=("/nowhere",),
    port=5432,
    dbname="app",
    server_user="ann",
    password=None,
    load_balance_hosts="round-robin",
    pool_size=2,
    min_pool_size=0,
    reserve_pool_size=0,
    reserve_pool_timeout=0.0,
    max_db_connections=0,
    max_user_connections=0,
    server_lifetime=0.0,
    server_idle_timeout=0.0,
    server_check_delay=0.0,
    server_connect_timeout=0.0,
    server_login_retry=0.0,
    connect_query="",
    parameters=(),
    tls=TlsSettings("disable", "", "", "", "", ""),
    tcp=TcpSettings(keepalive=True, keepidle=0, keepintvl=0, keepcnt=0, user_timeout=0.0),
)
SESSION_SETTINGS: Final = SessionSettings(
    database="app",
    user="ann",
    pool_mode="transaction",
    idle_transaction_timeout=10.0,
    idle_transaction_soft_timeout=0.0,
    max_xmin_age=0,
    idle_transaction_timeout_max=60.0,
    idle_transaction_action="rollback",
    idle_transaction_sqlstate="25P03",
    early_release="auto",
    early_release_after=0.1,
    early_release_min=0.01,
    early_release_functions=(),
    query_timeout=0.0,
    transaction_timeout=0.0,
    query_wait_timeout=0.0,
    client_idle_timeout=0.0,
    pin_timeout=0.0,
    deferred_begin=False,
)
"""Without deferred BEGIN, so that a BEGIN in a story is a statement like any other; test_begin.py
has it on."""

# What clients say.

SYNC: Final = message(b"S", b"")
FLUSH: Final = message(b"H", b"")
TERMINATE: Final = message(b"X", b"")
COPY_DONE: Final = message(b"c", b"")
FUNCTION_CALL: Final = message(b"F", b"\0\0\0\1" + b"\0" * 6)


def query(sql: str) -> bytes:
    """Query."""
    return message(b"Q", sql.encode() + b"\0")


def parse(sql: str, name: str = "") -> bytes:
    """Parse."""
    return message(b"P", f"{name}\0{sql}\0".encode() + b"\0\0")


def bind(statement: str = "", portal: str = "") -> bytes:
    """Bind, of no parameters."""
    return message(b"B", f"{portal}\0{statement}\0".encode() + b"\0" * 6)


def describe(name: str = "", what: str = "S") -> bytes:
    """Describe of a statement; of a portal if `what` is P."""
    return message(b"D", f"{what}{name}\0".encode())


def execute(portal: str = "") -> bytes:
    """Execute."""
    return message(b"E", f"{portal}\0".encode() + b"\0" * 4)


def close(name: str = "", what: str = "S") -> bytes:
    """Close of a statement; of a portal if `what` is P."""
    return message(b"C", f"{what}{name}\0".encode())


def unit(sql: str, name: str = "") -> bytes:
    """Parse, Bind, Execute and Sync of one statement, as most drivers send it."""
    return parse(sql, name) + bind(name) + execute() + SYNC


def copy_data(data: str) -> bytes:
    """CopyData."""
    return message(b"d", data.encode())


def copy_fail(why: str = "changed my mind") -> bytes:
    """CopyFail."""
    return message(b"f", why.encode() + b"\0")


# What servers say.

PARSED: Final = message(b"1", b"")
BOUND: Final = message(b"2", b"")
CLOSED: Final = message(b"3", b"")
NO_DATA: Final = message(b"n", b"")
NO_PARAMETERS: Final = message(b"t", b"\0\0")
EMPTY: Final = message(b"I", b"")
SUSPENDED: Final = message(b"s", b"")
COPY_IN: Final = message(b"G", b"\0\0\1\0\0")
COPY_OUT: Final = message(b"H", b"\0\0\1\0\0")
COLUMNS: Final = encode.row_description("x")


def done(tag: str) -> bytes:
    """CommandComplete."""
    return message(b"C", tag.encode() + b"\0")


def ready(status: str = "I") -> bytes:
    """ReadyForQuery."""
    return message(b"Z", status.encode())


def row(value: str) -> bytes:
    """DataRow of one column."""
    return encode.data_row(value)


def error(sqlstate: str, severity: str = "ERROR", text: str = "no") -> bytes:
    """ErrorResponse."""
    return encode.error(severity, sqlstate, text)


def notice(text: str) -> bytes:
    """NoticeResponse."""
    return message(b"N", b"SNOTICE\0VNOTICE\0C00000\0M" + text.encode() + b"\0\0")


def parameter(name: str, value: str) -> bytes:
    """ParameterStatus."""
    return encode.parameter_status(name, value)


def notification(channel: str, payload: str = "", pid: int = 1) -> bytes:
    """NotificationResponse."""
    return message(b"A", pid.to_bytes(4, "big") + f"{channel}\0{payload}\0".encode())


def selected(value: str, status: str = "I") -> bytes:
    """The whole answer to a SELECT of one row by Query."""
    return COLUMNS + row(value) + done("SELECT 1") + ready(status)


def kept(*found: tuple[str, str, str | None]) -> bytes:
    """The whole answer to the proxy's question what a session keeps: what, name, value."""
    rows = [kept_row(each) for each in found]
    return COLUMNS + b"".join(rows) + done(f"SELECT {len(rows)}") + ready()


def kept_row(found: tuple[str, str, str | None]) -> bytes:
    """A row of that answer."""
    values = [None if each is None else each.encode() for each in found]
    body = b"".join(
        b"\xff\xff\xff\xff" if each is None else len(each).to_bytes(4, "big") + each
        for each in values
    )
    return message(b"D", len(values).to_bytes(2, "big") + body)


# Bytes as short texts.


def split(data: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
    """The whole messages in `data` by type and body, and what is left."""
    found: list[tuple[str, bytes]] = []
    i = 0
    while len(data) - i >= 5:
        end = i + 1 + int32(data, i + 1)
        if end > len(data):
            break
        found.append((chr(data[i]), data[i + 5 : end]))
        i = end
    return found, data[i:]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def from_client(kind: str, body: bytes) -> str:
    """A message of a client's, as a text."""
    parts = [_text(part) for part in body.split(b"\0")]
    if kind in "QEf":
        return f"{kind} {parts[0]}".rstrip()
    if kind == "d":
        return f"d {_text(body)}"
    if kind == "P":
        return f"P {parts[0]}:{parts[1]}"
    if kind == "B":
        return f"B {parts[0]}:{parts[1]}"
    if kind in "DC":
        return f"{kind} {parts[0][:1]}:{parts[0][1:]}"
    return kind


def from_server(kind: str, body: bytes) -> str:
    """A message of a server's, as a text."""
    parts = [_text(part) for part in body.split(b"\0")]
    if kind in "CZ":
        return f"{kind} {parts[0]}"
    if kind == "S":
        return f"S {parts[0]}={parts[1]}"
    if kind in "EN":
        fields = error_fields(body)
        return f"E {fields['S']} {fields['C']}" if kind == "E" else f"N {fields['M']}"
    if kind == "A":
        return f"A {' '.join(part for part in map(_text, body[4:].split(bytes(1))) if part)}"
    if kind == "D":
        return f"D {_text(body[6:])}"
    return kind


# The two ends, and the world around them.


class FakeClient:
    """A client's socket (ClientPort) and the client at its other end."""

    def __init__(self, world: "World", wanted: dict[str, str], ours: Ours) -> None:
        self.writes: list[bytes] = []
        self.params: dict[str, str] | None = None  # what it was told at its login
        self.finished = False
        self._paused = False
        self.error: dict[str, str] = {}  # the fields of the last ErrorResponse in got()
        self.endpoint = Endpoint("10.0.0.1", 5000)
        self.session = Session(
            self, world.pool, world.settings, share(wanted), ours, "10.0.0.1:5000"
        )

    # ClientPort

    def write(self, data: bytes) -> None:
        assert not self.finished
        self.writes.append(data)

    def admitted(self, params: dict[str, str]) -> None:
        self.params = params
        self.session.pid = 9000 + len(self.session.pool.sessions)

    def finish(self) -> None:
        self.finished = True

    def update_reading(self) -> None:
        self._paused = self.session.wants_pause

    # The client

    def sends(self, *messages: bytes) -> None:
        """All of it in one chunk."""
        self.session.client_sent(b"".join(messages))

    def leaves(self) -> None:
        """Its connection breaks."""
        self.session.gone(cancel=True)
        self.finished = True

    def got(self) -> list[str]:
        """What it was sent since the last call."""
        found, rest = split(b"".join(self.writes))
        self.writes = [rest] if rest else []
        for kind, body in found:
            if kind == "E":
                self.error = error_fields(body)
        return [from_server(kind, body) for kind, body in found]

    def is_paused(self) -> bool:
        """Whether the proxy does not read from it."""
        return self._paused

    @property
    def state(self) -> str:
        """The client's transaction, by name."""
        return STATES[self.session.state]


class FakeBackend:
    """A server's socket (BackendPort) and the server at its other end."""

    def __init__(self, world: "World", params: dict[str, str]) -> None:
        self.writes: list[bytes] = []
        self.finished = False
        self._paused = False
        self.cancels = 0  # CancelRequests that were sent
        self.stale = False
        self.endpoint = Endpoint("unix", 5432)
        self.pid = 4711
        self.backend = Backend(world.pool, self, params)

    # BackendPort

    def write(self, data: bytes) -> None:
        assert not self.finished
        self.writes.append(data)

    def finish(self) -> None:
        self.finished = True

    def cancel(self) -> None:
        self.cancels += 1

    def is_stale(self) -> bool:
        return self.stale

    def update_reading(self) -> None:
        self._paused = self.backend.wants_pause

    # The server

    def says(self, *messages: bytes) -> None:
        """All of it in one chunk."""
        self.backend.server_sent(b"".join(messages))

    def dies(self) -> None:
        """Its connection breaks."""
        self.finished = True
        self.backend.lost()

    def reads_cancel(self) -> None:
        """The CancelRequest has come through."""
        self.backend.cancel_done()

    def got(self) -> list[str]:
        """What it was sent since the last call."""
        found, rest = split(b"".join(self.writes))
        self.writes = [rest] if rest else []
        return [from_client(kind, body) for kind, body in found]

    def is_paused(self) -> bool:
        """Whether the proxy does not read from it."""
        return self._paused

    def is_idle(self) -> bool:
        """Whether the pool may lend it to anybody."""
        return self.backend in self.backend.pool.idle


class World:
    """What is outside of one pool (PoolPort), and the janitor."""

    def __init__(self, **settings: object) -> None:
        self.now = 1000.0
        self.cancel_timeout = 10.0
        self.rollback_timeout = 5.0
        self.cancel_on_disconnect = True
        self.log_statement_literals = False
        self.params = dict(PARAMS)
        self.wanted_connections = 0
        self.wants_listening = False
        self.asked_about: list[Candidate] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        of_session = {field.name for field in fields(SessionSettings)} & settings.keys()
        self.settings = replace(
            SESSION_SETTINGS,
            **{name: settings.pop(name) for name in of_session},  # type: ignore[arg-type]
        )
        self.database = Group("app")
        self.user = Group("ann")
        self.pool = Pool(
            replace(POOL_SETTINGS, **settings),  # type: ignore[arg-type]
            self,
            self.database,
            self.user,
        )

    # PoolPort

    def clock(self) -> float:
        return self.now

    def connect(self, pool: Pool) -> None:
        assert pool is self.pool
        self.wanted_connections += 1

    def connect_listening(self, listener: Listener) -> None:
        assert listener is self.pool.listener
        assert not self.wants_listening
        self.wants_listening = True

    def ask_about(self, pool: Pool, candidates: list[Candidate]) -> None:
        assert pool is self.pool
        assert not self.asked_about
        self.asked_about = candidates

    def answers(self, why: str = "", took: float = 0.0) -> None:
        """The server was asked about all of them, and this is why not; "" for none."""
        asked, self.asked_about = self.asked_about, []
        for candidate in asked:
            candidate.why = why
        release.answered(self.pool, asked, took)

    def claimed(self, pool: Pool, names: tuple[str, ...], claim: Claim) -> None:
        """Its own database is the only one."""
        if pool.settings.dbname in names:
            pool.claimed(claim)

    def defaults_changed(self, pool: Pool) -> None:
        pool.defaults_changed()

    def left_open(self, session: Session, how: str, fields: dict[str, object]) -> None:
        self.event(how, fields)

    def event(self, name: str, fields: dict[str, object]) -> None:
        self.events.append((name, fields))

    def bug(self, session: Session, error: Exception) -> None:
        raise error

    # Who comes in.

    def new_client(self, **wanted: str) -> FakeClient:
        """A client that has said who it is, and not yet logged in."""
        settings = self.settings
        ours = Ours(
            settings.idle_transaction_timeout,
            settings.idle_transaction_timeout_max,
            settings.idle_transaction_action,
        )
        return FakeClient(self, wanted, ours)

    def client(self, **wanted: str) -> FakeClient:
        """A client that has logged in, with these settings in its start-up packet."""
        client = self.new_client(**wanted)
        client.session.login()
        while client.params is None:
            lent = client.session.backend
            if lent is None:
                self.connects()
            else:
                assert isinstance(lent.port, FakeBackend)
                assert lent.port.got()
                lent.port.says(
                    done("SELECT 1"),
                    *(
                        parameter(name, wanted.get(name.lower(), self.params[name]))
                        for name in self.params
                    ),
                    ready(),
                )
        assert client.got() == []
        return client

    def connects(self) -> FakeBackend:
        """The connection that the pool has asked for longest is made."""
        assert self.wanted_connections
        self.wanted_connections -= 1
        backend = FakeBackend(self, dict(self.params))
        self.pool.connected(backend.backend)
        return backend

    def connects_listening(self) -> FakeBackend:
        """The connection is made that the pool's listener has asked for."""
        assert self.wants_listening
        self.wants_listening = False
        backend = FakeBackend(self, dict(self.params))
        self.pool.listener.connected(backend.backend, self.pool.epoch)
        return backend

    def refuses_listening(self) -> None:
        """It cannot be made."""
        assert self.wants_listening
        self.wants_listening = False
        fields = {"C": "08001", "M": "nobody's there"}
        self.pool.listener.connect_failed(fields, self.pool.epoch)

    def refuses_connection(self) -> None:
        """The connection that the pool has asked for cannot be made."""
        assert self.wanted_connections
        self.wanted_connections -= 1
        self.pool.connect_failed({"C": "08001", "M": "nobody listens there"})

    # Time.

    def looks(self) -> None:
        """One pass of the janitor, as in net/server.py."""
        pool = self.pool
        for backend in list(pool.backends):
            if self.now > backend.deadline:
                backend.close("it did not get clean in time")
            elif backend.session is not None:
                endings.look(backend.session, self.now)
        limit = self.settings.query_wait_timeout
        while limit and pool.waiters and self.now - pool.waiters.since > limit:
            endings.wait_is_over(pool.waiters.longest())
        pool.look(self.now)
        pool.listener.look(self.now)
        for session in list(pool.sessions):
            if session.pin or self.settings.client_idle_timeout:
                endings.look_if_idle(session, self.now)

    def passes(self, seconds: float) -> None:
        """Time passes, and the janitor looks once: who is overdue is marked."""
        self.now += seconds
        self.looks()

    def sleeps(self, seconds: float) -> None:
        """Time passes, and the janitor looks twice: who is overdue is dealt with."""
        self.passes(seconds)
        self.passes(TICK)

    def said(self, name: str) -> list[dict[str, object]]:
        """The log lines of this name."""
        return [fields for event, fields in self.events if event == name]


def scene(**settings: object) -> tuple[World, FakeClient, FakeBackend]:
    """A world with one client and one backend, which is idle."""
    world = World(**settings)
    client = world.client()
    (backend,) = world.pool.backends
    port = backend.port
    assert isinstance(port, FakeBackend)
    assert port.is_idle()
    return world, client, port


def begin(client: FakeClient, backend: FakeBackend) -> None:
    """The client opens a transaction on the backend."""
    client.sends(query("BEGIN"))
    assert backend.got()[-1] == "Q BEGIN"
    backend.says(done("BEGIN"), ready("T"))
    assert client.got()[-2:] == ["C BEGIN", "Z T"]
    assert client.state == "OPEN"


def fail(client: FakeClient, backend: FakeBackend) -> None:
    """The client's transaction fails on the backend, which it keeps: it has a savepoint."""
    client.sends(query("SAVEPOINT s"))
    backend.says(done("SAVEPOINT"), ready("T"))
    client.sends(query("SELECT 1/0"))
    backend.says(error("22012"), ready("E"))
    assert client.got() == ["C SAVEPOINT", "Z T", "E ERROR 22012", "Z E"]
    assert backend.got() == ["Q SAVEPOINT s", "Q SELECT 1/0"]


def reap(world: World, client: FakeClient, backend: FakeBackend) -> None:
    """The client oversleeps; its transaction is rolled back."""
    world.sleeps(11)
    assert client.state == "REAPED"
    assert client.got() == []
    assert backend.got() == ["Q ROLLBACK"]
    backend.says(done("ROLLBACK"), ready())
    assert client.got() == []
