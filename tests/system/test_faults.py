"""Servers that die, at every byte of a conversation, and servers that were never well.

The client is told the truth under severity ERROR and its session lives, wherever the protocol
allows it; its next statement finds another backend.
"""

import asyncio
import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Literal, Self

import asyncpg
import psycopg
import psycopg2
import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, ask, direct, pids, token, wait_until
from tests.system.wire import Closed, Message, Wire
from txproxy.cli.embedded import EmbeddedPostgres

OUTCOME_UNKNOWN: Final = "08007"
LOST: Final = frozenset(("08006", "57P01", "57P02", "57P03"))


def client_of(proxy: Proxy, **parameters: str) -> Wire:
    return Wire.log_in((proxy.host, proxy.port), user=USER, database=DATABASE, **parameters)


def recovers(client: Wire) -> None:
    """The session lives: after the end of its transaction it is served, with its own answers.

    A connection that was cut behind its last byte may be given out once more before its end is
    noticed, and is then the next statement's error.
    """
    for _ in range(3):
        expected = token()
        answer = client.ask(wire.query("ROLLBACK") + wire.query(f"SELECT '{expected}'"), 2)
        assert answer[-1].status == "I"
        if not wire.errors(answer):
            assert wire.rows(answer) == [[expected]]
            return
        assert wire.errors(answer)[0].sqlstate in LOST
    raise AssertionError("no backend that lives is found")


# A relay between the proxy and its server.


class Relay:
    """Passes bytes on to a port, and cuts the connection behind the so many-th byte.

    `cut()` arms it, for the bytes from then on in one direction: "up" to the server, "down" from
    it. The connection that passes the last of them is closed on both sides.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.passed = {"up": bytearray(), "down": bytearray()}
        self._target = port
        self._limit: dict[str, int] = {}
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(wire.PATIENCE)

    def drop(self) -> None:
        """Cut all connections now."""
        with self._lock:
            for each in self._sockets:
                _shut(each)

    def cut(self, direction: Literal["up", "down"], after: int) -> None:
        """Cut the connection that passes `after` bytes in this direction from now on."""
        with self._lock:
            self._watch()
            self._limit = {direction: after}

    def watch(self) -> None:
        """Begin to record what passes anew."""
        with self._lock:
            self._watch()

    def _watch(self) -> None:
        self.passed = {"up": bytearray(), "down": bytearray()}
        self._limit = {}

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            thread = threading.Thread(target=self._pass_on, args=(near, far), daemon=True)
            with self._lock:
                self._sockets |= {near, far}
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        ways = {near: ("up", far), far: ("down", near)}
        with near, far, contextlib.suppress(OSError):
            for each in ways:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            going = True
            while going:
                for source in select.select(list(ways), [], [])[0]:
                    direction, sink = ways[source]
                    data = source.recv(1 << 16)
                    passed, going = self._count(direction, data)
                    sink.sendall(passed)
                    if not going:
                        break
            with self._lock:
                self._sockets -= {near, far}
                _shut(near)
                _shut(far)

    def _count(self, direction: str, data: bytes) -> tuple[bytes, bool]:
        """What of the data passes, and whether the connection then goes on."""
        with self._lock:
            seen = self.passed[direction]
            limit = self._limit.get(direction)
            going = bool(data)
            if limit is not None and len(seen) + len(data) >= limit:
                data = data[: limit - len(seen)]
                self._limit = {}
                going = False
            seen += data
            return data, going


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


def boundaries(data: bytes) -> list[int]:
    """The offsets at which messages begin, and the end."""
    found = [0]
    while found[-1] < len(data):
        (length,) = struct.unpack_from("!i", data, found[-1] + 1)
        found.append(found[-1] + 1 + length)
    return found


def cuts(data: bytes) -> list[int]:
    """At every boundary of a message, behind its type, behind its length, before its last byte."""
    found = set(boundaries(data))
    for start, end in zip(boundaries(data), boundaries(data)[1:], strict=False):
        found |= {start + 1, start + 5, end - 1} & set(range(start, end))
    return sorted(found)


@pytest.fixture(scope="module")
def table(postgres: EmbeddedPostgres) -> Iterator[str]:
    with direct(postgres) as admin:
        admin.execute("DROP TABLE IF EXISTS faults")
        admin.execute("CREATE TABLE faults (id text)")
        admin.execute("GRANT ALL ON faults TO PUBLIC")
        yield "faults"
        admin.execute("DROP TABLE faults")


@pytest.fixture(scope="module")
def relay(postgres: EmbeddedPostgres) -> Iterator[Relay]:
    with Relay(postgres.port) as relay:
        yield relay


@pytest.fixture(scope="module")
def relayed(postgres: EmbeddedPostgres, relay: Relay) -> Iterator[Proxy]:
    """A proxy with one backend, behind the relay."""
    databases = {DATABASE: {"port": relay.port, "pool_size": 1}}
    with Proxy(postgres, databases=databases) as proxy:
        yield proxy


def copied(key: str) -> bytes:
    return wire.copy_data(f"{key}\n".encode()) + wire.COPY_DONE


Script = Callable[[str], list[tuple[bytes, str]]]
"""For a key: what is sent, and the types of the replies to be read to their end, one by one."""

SCRIPTS: Final[dict[str, Script]] = {
    "simple": lambda key: [
        (wire.query("BEGIN"), "Z"),
        (wire.query(f"INSERT INTO faults VALUES ('{key}')"), "Z"),
        (wire.query("SELECT 1"), "Z"),
        (wire.query("COMMIT"), "Z"),
    ],
    "extended": lambda key: [
        (wire.unit("BEGIN"), "Z"),
        (wire.unit("INSERT INTO faults VALUES ($1)", key), "Z"),
        (wire.unit("COMMIT"), "Z"),
    ],
    "flushed": lambda key: [
        (wire.unit("BEGIN"), "Z"),
        (wire.parse("INSERT INTO faults VALUES ($1)") + wire.describe("", b"S") + wire.FLUSH, "n"),
        (wire.bind(key) + wire.execute() + wire.SYNC, "Z"),
        (wire.unit("COMMIT"), "Z"),
    ],
    "pipeline": lambda key: [
        (
            wire.unit("BEGIN")
            + wire.unit("INSERT INTO faults VALUES ($1)", key)
            + wire.unit("COMMIT"),
            "ZZZ",
        ),
    ],
    "one string": lambda key: [
        (wire.query(f"BEGIN; INSERT INTO faults VALUES ('{key}'); COMMIT"), "Z"),
    ],
    "copy in": lambda key: [
        (wire.query("BEGIN"), "Z"),
        (wire.query("COPY faults FROM STDIN"), "G"),
        (copied(key), "Z"),
        (wire.query("COMMIT"), "Z"),
    ],
    "failed": lambda key: [
        (wire.query("BEGIN"), "Z"),
        (wire.query(f"INSERT INTO faults VALUES ('{key}')"), "Z"),
        (wire.query("SELECT 1/0"), "Z"),
        (wire.query("SELECT 1"), "Z"),
        (wire.query("COMMIT"), "Z"),
    ],
}


def play(client: Wire, script: Sequence[tuple[bytes, str]]) -> tuple[list[Message], bool]:
    """All replies, and whether the session has lived to the end of the script.

    Where an ERROR comes in place of what would be read for, the script goes on with its next step
    whose reply ends in ReadyForQuery.
    """
    heard: list[Message] = []
    skipping = False
    try:
        for sent, until in script:
            if skipping:
                # a driver that got an error inside a unit sends the Sync that ends it, and no more
                heard += client.ask(wire.SYNC) if sent.endswith(wire.SYNC) else []
                skipping = False
                continue
            client.send(sent)
            for kind in until:
                heard += client.until(kind if kind == "Z" else kind + "ZE")
                if kind != "Z" and heard[-1].kind == "E":
                    # COPY in the simple protocol ends in ReadyForQuery, a unit only after its Sync
                    skipping = True
                    if sent.startswith(b"Q"):
                        heard += client.until("Z")
    except Closed as end:
        return [*heard, *end.args[0]], False
    return heard, True


def count(server: EmbeddedPostgres, key: str) -> int:
    """How often the row is there; waits for whoever is still at work on it."""
    with direct(server) as admin, admin.transaction():
        admin.execute("LOCK TABLE faults")
        found = admin.execute("SELECT count(*) FROM faults WHERE id = %s", [key]).fetchone()
        assert found is not None
        return int(found[0])


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("name", list(SCRIPTS))
def test_a_transaction_is_cut(
    relayed: Proxy, relay: Relay, table: str, name: str, direction: Literal["up", "down"]
) -> None:
    script = SCRIPTS[name]
    with client_of(relayed) as client:
        client.value("SELECT 1")
        relay.watch()
        _, lived = play(client, script(token()))
        assert lived
    whole = bytes(relay.passed[direction])
    for cut in cuts(whole):
        key = token()
        with client_of(relayed) as client:
            recovers(client)
            relay.cut(direction, cut)
            heard, lived = play(client, script(key))
            # of a message less than its head, type and length, is not passed on
            nothing_cut = any(0 <= cut - start < 5 for start in boundaries(whole))
            if lived:
                check(relayed, key, heard, commits=name != "failed")
                recovers(client)
            else:
                assert direction == "down", (cut, heard)
                assert not nothing_cut, (cut, heard)
                assert not wire.errors(heard) or name == "failed", heard
                assert count(relayed.server, key) <= (name != "failed")


def check(proxy: Proxy, key: str, heard: list[Message], *, commits: bool) -> None:
    """What the client was told is true."""
    found = count(proxy.server, key)
    states = {each.sqlstate for each in wire.errors(heard)} - {"25P02", "22012"}
    committed = any(each.kind == "C" and each.body == b"COMMIT\0" for each in heard)
    assert states <= {"08006", OUTCOME_UNKNOWN}, heard
    assert all(each.severity == "ERROR" for each in wire.errors(heard)), heard
    if committed:
        assert found == 1
    elif OUTCOME_UNKNOWN in states:
        assert found <= commits
    else:
        assert found == 0, heard
        assert states or not commits, heard


def test_a_statement_is_cut_at_every_byte(relayed: Proxy, relay: Relay) -> None:
    sent = wire.unit("SELECT $1::text", "value")
    with client_of(relayed) as client:
        recovers(client)
        relay.watch()
        whole = client.ask(sent)
        size = len(relay.passed["down"])
    for cut in range(size):
        with client_of(relayed) as client:
            recovers(client)
            relay.cut("down", cut)
            heard, lived = play(client, [(sent, "Z")])
            if lived:
                assert wire.kinds(heard).endswith("EZ"), (cut, heard)
                assert wire.errors(heard)[0].sqlstate in LOST
                recovers(client)
            else:
                assert heard == whole[: len(heard)]


def test_a_session_with_state_of_its_own_goes_with_its_backend(
    relayed: Proxy, relay: Relay
) -> None:
    with client_of(relayed) as client:
        client.ask(wire.query("CREATE TEMP TABLE mine (n int)"))
        relay.cut("down", 0)
        client.send(wire.query("SELECT 1"))
        [said] = client.rest()
        assert (said.severity, said.sqlstate) == ("FATAL", "08006")
    with client_of(relayed) as client:
        recovers(client)


def test_every_backend_is_cut_at_once(postgres: EmbeddedPostgres) -> None:
    """Again and again, while many clients work: each goes on with its own answers."""
    rounds = 60
    with (
        Relay(postgres.port) as relay,
        Proxy(postgres, databases={DATABASE: {"port": relay.port, "pool_size": 4}}) as proxy,
    ):
        with client_of(proxy):
            pass  # whoever comes first waits for a server, and must not be cut
        done = threading.Event()

        def work(_: int) -> int:
            lost = 0
            with client_of(proxy) as client:
                for _ in range(rounds):
                    expected = token()
                    answer = client.ask(wire.query(f"SELECT '{expected}' FROM pg_sleep(0.01)"))
                    if wire.errors(answer):
                        assert wire.errors(answer)[0].sqlstate in LOST | {"08001"}
                        lost += 1
                    else:
                        assert wire.rows(answer) == [[expected]]
            return lost

        with ThreadPoolExecutor(13) as threads:

            def cutting() -> None:
                while not done.wait(0.05):
                    relay.drop()

            cutter = threads.submit(cutting)
            try:
                lost = list(threads.map(work, range(12)))
            finally:
                done.set()
            cutter.result()
        assert 0 < sum(lost) < 12 * rounds


# pg_terminate_backend().


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(postgres, databases={DATABASE: {"pool_size": 1}}) as proxy:
        yield proxy


def terminate(server: EmbeddedPostgres) -> None:
    """End the proxy's backends and wait until they are gone."""
    gone = pids(server)
    with direct(server) as admin:
        for pid in gone:
            admin.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])


def is_asleep(server: EmbeddedPostgres) -> bool:
    with direct(server) as admin:
        found = admin.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        return found.rowcount > 0


def test_an_idle_backend_is_terminated(proxy: Proxy) -> None:
    with client_of(proxy) as client:
        for _ in range(5):
            recovers(client)
            terminate(proxy.server)
        recovers(client)


@pytest.mark.parametrize("sent", [wire.query("SELECT 1"), wire.unit("SELECT 1")])
def test_a_backend_idle_in_transaction_is_terminated(proxy: Proxy, sent: bytes) -> None:
    with client_of(proxy) as client:
        client.ask(wire.query("BEGIN"))
        client.value("SELECT 1")
        terminate(proxy.server)
        answer = client.ask(sent)
        assert wire.kinds(answer) == "EZ"
        assert answer[0].severity == "ERROR"
        assert answer[0].sqlstate in LOST
        assert answer[1].status == "E"
        again = client.ask(sent)
        assert again[0].sqlstate == "25P02"
        ended = client.ask(wire.query("COMMIT"))
        assert [(each.kind, each.body) for each in ended] == [("C", b"ROLLBACK\0"), ("Z", b"I")]
        recovers(client)


@pytest.mark.parametrize("begin", [False, True], ids=["alone", "in a transaction"])
@pytest.mark.parametrize("shape", [wire.query, wire.unit], ids=["simple", "extended"])
def test_a_running_backend_is_terminated(
    proxy: Proxy, shape: Callable[[str], bytes], begin: bool
) -> None:
    with client_of(proxy) as client:
        if begin:
            client.ask(wire.query("BEGIN"))
        client.send(shape("SELECT pg_sleep(1000)"))
        wait_until(lambda: is_asleep(proxy.server), lambda found: found)
        terminate(proxy.server)
        answer = client.until("Z")
        assert [(each.severity, each.sqlstate) for each in wire.errors(answer)] == [
            ("ERROR", "57P01")
        ]
        assert answer[-1].status == ("E" if begin else "I")
        recovers(client)


def test_a_waiting_client_gets_another_backend(proxy: Proxy) -> None:
    with client_of(proxy) as holder, client_of(proxy) as waiting:
        holder.ask(wire.query("BEGIN; SELECT 1"))
        expected = token()
        waiting.send(wire.query(f"SELECT '{expected}'"))
        terminate(proxy.server)
        assert wire.rows(waiting.until("Z")) == [[expected]]
        assert wire.errors(holder.ask(wire.query("SELECT 1")))
        recovers(holder)


def test_drivers_see_an_error_and_go_on(proxy: Proxy) -> None:
    with proxy.connect() as new, contextlib.closing(psycopg2.connect(**proxy.kwargs())) as old:
        cursor = old.cursor()
        for rollback, errors in ((new.rollback, psycopg.Error), (old.rollback, psycopg2.Error)):
            execute: Callable[[str], Any] = (
                new.execute if errors is psycopg.Error else cursor.execute
            )
            execute("SELECT 1")
            terminate(proxy.server)
            with pytest.raises(errors) as caught:
                execute("SELECT 1")
            assert getattr(caught.value, "sqlstate", getattr(caught.value, "pgcode", "")) in LOST
            rollback()
            ask(new if errors is psycopg.Error else cursor)
            rollback()


async def test_asyncpg_sees_an_error_and_goes_on(proxy: Proxy) -> None:
    connection = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT 1")
        await asyncio.to_thread(terminate, proxy.server)
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.execute("SELECT 1")
        assert caught.value.sqlstate in LOST
        await transaction.rollback()
        expected = token()
        assert await connection.fetchval(f"SELECT '{expected}'") == expected
    finally:
        await connection.close()


# Restarts.


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedPostgres]:
    """A server that may be killed."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture(scope="module")
def restarting(own: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(own, databases={DATABASE: {"pool_size": 4}}) as proxy:
        with direct(own) as admin:
            admin.execute("CREATE TABLE faults (id text)")
            admin.execute("GRANT ALL ON faults TO PUBLIC")
        yield proxy


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_a_restart_under_load(
    restarting: Proxy, own: EmbeddedPostgres, how: Literal["fast", "immediate", "kill"]
) -> None:
    """Clients that stay get errors and then answers; each acknowledged row is there."""
    stop = threading.Event()
    up_again = threading.Event()

    def work(number: int) -> tuple[list[str], bool]:
        acknowledged = []
        served_again = False
        with client_of(restarting) as client:
            while not (stop.is_set() and served_again):
                key = token()
                insert = wire.query(f"INSERT INTO faults VALUES ('{key}')")
                if number % 2:
                    sent, units = wire.query("BEGIN") + insert + wire.query("COMMIT"), 3
                else:
                    sent, units = insert, 1
                was_up = up_again.is_set()
                answer = client.ask(sent, units)
                if wire.errors(answer):
                    states = {each.sqlstate for each in wire.errors(answer)}
                    assert states <= LOST | {"08001", "25P02", OUTCOME_UNKNOWN}, answer
                    if answer[-1].status != "I":
                        answer = client.ask(wire.query("ROLLBACK"))
                    assert answer[-1].status == "I"
                else:
                    assert any(b"INSERT" in each.body for each in answer if each.kind == "C")
                    acknowledged.append(key)
                    served_again = served_again or was_up
        return acknowledged, served_again

    with ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(work, number) for number in range(8)]
        try:
            wait_until(lambda: len(pids(own)), lambda found: found == 4)
            if how == "kill":
                own.kill()
                own.start()
            else:
                own.restart(how)
            up_again.set()
        finally:
            stop.set()
        results = [client.result() for client in clients]
    with direct(own) as admin:
        there = [row[0] for row in admin.execute("SELECT id FROM faults")]
    assert len(there) == len(set(there))
    assert set(there) >= {key for acknowledged, _ in results for key in acknowledged}


def test_a_server_that_is_down_and_comes_back(own: EmbeddedPostgres, restarting: Proxy) -> None:
    with client_of(restarting) as client, client_of(restarting) as in_transaction:
        in_transaction.ask(wire.query("BEGIN; SELECT 1"))
        own.stop("fast")
        try:
            lost = in_transaction.ask(wire.query("SELECT 1"))
            assert lost[0].sqlstate in LOST
            assert lost[-1].status == "E"
            for sent in (wire.query("SELECT 1"), wire.unit("SELECT 1")):
                # an idle backend's end may not have been noticed at the first
                answer = wait_until(
                    lambda sent=sent: client.ask(sent),  # type: ignore[misc]
                    lambda answer: answer[0].kind == "E" and answer[0].sqlstate == "08001",
                )
                assert wire.kinds(answer) == "EZ"
                assert (answer[0].severity, answer[0].sqlstate) == ("ERROR", "08001")
                assert answer[-1].status == "I"
            begun = client.ask(wire.query("BEGIN"))
            if wire.errors(begun):
                assert begun[-1].status == "I"
                assert begun[0].sqlstate == "08001"
            assert client.ask(wire.query("ROLLBACK"))[-1].status == "I"
            with pytest.raises(psycopg.OperationalError, match="could not connect"):
                restarting.connect(options="-c work_mem=1234")
        finally:
            own.start()
        for each in (client, in_transaction):
            recovers(each)
        with restarting.connect(options="-c work_mem=2345") as new:
            ask(new)


# Servers that were never well.


class FakeServer:
    """Accepts, and does to each connection what the test says, in a thread."""

    def __init__(self, behave: Callable[[Wire], None]) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[Wire] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._threads.append(threading.Thread(target=self._accept, daemon=True))
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            _shut(each.socket)
        for thread in self._threads:
            thread.join(wire.PATIENCE)
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            peer = Wire.of(accepted)
            self._open.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: Wire) -> None:
        with contextlib.suppress(OSError, Closed):
            self._behave(peer)
        _shut(peer.socket)


def read_startup(peer: Wire) -> None:
    (length,) = struct.unpack("!i", peer.socket.recv(4, socket.MSG_WAITALL))
    peer.socket.recv(length - 4, socket.MSG_WAITALL)


WELCOME: Final = (
    wire.message(b"R", b"\0\0\0\0")
    + wire.message(b"S", b"client_encoding\0UTF8\0")
    + wire.message(b"K", b"\0\0\0\1\0\0\0\2")
    + wire.message(b"Z", b"I")
)


@contextlib.contextmanager
def in_front_of(
    postgres: EmbeddedPostgres, behave: Callable[[Wire], None], **settings: Any
) -> Iterator[Proxy]:
    """A proxy whose database `fake` leads to a server that behaves so."""
    with FakeServer(behave) as fake:
        databases = {DATABASE: {}, "fake": {"port": fake.port, "pool_size": 1, **settings}}
        # a server that behaves so is not asked for TLS first
        proxy_settings = {"server_connect_timeout": "2s", "server_tls_sslmode": "disable"}
        with Proxy(postgres, databases=databases, proxy=proxy_settings) as proxy:
            yield proxy


def refused(proxy: Proxy) -> Message:
    """A client of `fake` is refused: the FATAL. Those of another database do not notice."""
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.startup({"user": USER, "database": "fake"}))
        [said] = client.rest()
        assert said.severity == "FATAL"
    with client_of(proxy) as other:
        recovers(other)
    return said


def test_a_server_that_accepts_and_never_answers(postgres: EmbeddedPostgres) -> None:
    def behave(peer: Wire) -> None:
        peer.rest()

    with in_front_of(postgres, behave) as proxy:
        for _ in range(2):
            said = refused(proxy)
            assert said.sqlstate == "08001"
            assert "2 s" in said.fields["M"]


def test_a_server_that_closes_at_once(postgres: EmbeddedPostgres) -> None:
    with in_front_of(postgres, lambda _: None) as proxy:
        assert refused(proxy).sqlstate == "08001"


@pytest.mark.parametrize(
    ("method", "word"), [(3, "password"), (5, "md5"), (10, "scram-sha-256"), (99, "99")]
)
def test_a_server_that_wants_a_password(postgres: EmbeddedPostgres, method: int, word: str) -> None:
    def behave(peer: Wire) -> None:
        read_startup(peer)
        peer.send(wire.message(b"R", struct.pack("!i", method) + b"SCRAM-SHA-256\0\0"))
        peer.rest()

    with in_front_of(postgres, behave) as proxy:
        said = refused(proxy)
        assert said.sqlstate.startswith("28")
        assert word in said.fields["M"]


def test_a_server_that_refuses(postgres: EmbeddedPostgres) -> None:
    """Its own words reach the client."""
    own = b"SFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0\0"

    def behave(peer: Wire) -> None:
        read_startup(peer)
        peer.send(wire.message(b"E", own))

    with in_front_of(postgres, behave) as proxy:
        said = refused(proxy)
        assert (said.sqlstate, said.fields["M"]) == ("53300", "sorry, too many clients already")


GARBAGE: Final = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "short length": b"R\0\0\0\3",
    "negative length": b"R\xff\xff\xff\xff",
    "huge length": b"R\x7f\xff\xff\xff",
    "zeros": b"\0" * 100,
    "a message of another time": wire.message(b"D", b"\0\0") + wire.message(b"Z", b"I"),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_in_place_of_a_welcome(postgres: EmbeddedPostgres, garbage: bytes) -> None:
    def behave(peer: Wire) -> None:
        read_startup(peer)
        peer.send(garbage)
        peer.rest()

    with in_front_of(postgres, behave) as proxy:
        said = refused(proxy)
        assert said.sqlstate in {"08001", "08P01"}, said


ANSWERS: Final = {
    **GARBAGE,
    "nothing owed": wire.message(b"Z", b"I") * 2,
    "a parse complete": wire.message(b"1"),
    "an empty ready": wire.message(b"Z"),
    "an unknown status": wire.message(b"Z", b"?"),
    "an empty error": wire.message(b"E") + wire.message(b"Z", b"I"),
    "an odd parameter": wire.message(b"S", b"name") + wire.message(b"Z", b"I") * 2,
    "copy both": wire.message(b"W", b"\0\0\0") + wire.message(b"Z", b"I") * 2,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_garbage_in_place_of_an_answer(postgres: EmbeddedPostgres, answer: bytes) -> None:
    """Whatever the client then hears, it ends, and a client of another server does not notice."""

    def behave(peer: Wire) -> None:
        read_startup(peer)
        peer.send(WELCOME)
        while peer.read().kind != "X":
            peer.send(answer)

    with in_front_of(postgres, behave, query_timeout="500ms") as proxy:
        with Wire.log_in((proxy.host, proxy.port), user=USER, database="fake") as client:
            client.send(wire.query("SELECT 1"))
            with contextlib.suppress(Closed, UnicodeDecodeError, ValueError, TimeoutError):
                client.socket.settimeout(0.7)
                client.until("Z")
        with client_of(proxy) as other:
            recovers(other)


def test_garbage_while_nobody_asks(postgres: EmbeddedPostgres) -> None:
    """The backend is closed; the next client gets another."""
    speak = threading.Event()
    spoken = threading.Semaphore(0)

    def behave(peer: Wire) -> None:
        read_startup(peer)
        is_first = not speak.is_set()
        peer.send(WELCOME)
        if is_first:
            speak.wait(wire.PATIENCE)
            peer.send(wire.message(b"Z", b"I"))
            assert peer.rest()[-1].kind == "X"
            spoken.release()
        elif peer.read().kind == "Q":
            peer.send(wire.message(b"C", b"SELECT 0\0") + wire.message(b"Z", b"I"))
            peer.rest()

    with (
        in_front_of(postgres, behave) as proxy,
        Wire.log_in((proxy.host, proxy.port), user=USER, database="fake") as client,
    ):
        speak.set()
        assert spoken.acquire(timeout=wire.PATIENCE)
        assert wire.kinds(client.ask(wire.query("SELECT"))) == "CZ"


# Timeouts, with real drivers.


@contextlib.contextmanager
def with_timeouts(postgres: EmbeddedPostgres, **settings: str | int) -> Iterator[Proxy]:
    with Proxy(postgres, databases={DATABASE: {"pool_size": 1, **settings}}) as proxy:
        yield proxy


def test_query_timeout(postgres: EmbeddedPostgres) -> None:
    with with_timeouts(postgres, query_timeout="1s") as proxy:
        with proxy.connect(autocommit=True) as client:
            with pytest.raises(psycopg.errors.QueryCanceled):
                client.execute("SELECT pg_sleep(1000)")
            ask(client)
            client.execute("BEGIN")
            with pytest.raises(psycopg.errors.QueryCanceled):
                client.execute("SELECT pg_sleep(%s)", [1000])
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                client.execute("SELECT 1")
            client.execute("ROLLBACK")
            ask(client)
        with contextlib.closing(psycopg2.connect(**proxy.kwargs())) as old:
            cursor = old.cursor()
            with pytest.raises(psycopg2.errors.QueryCanceled):
                cursor.execute("SELECT pg_sleep(1000)")
            old.rollback()
            ask(cursor)


async def test_query_timeout_with_asyncpg(postgres: EmbeddedPostgres) -> None:
    with with_timeouts(postgres, query_timeout="1s") as proxy:
        connection = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
        for sql in ("SELECT pg_sleep(1000)", "SELECT pg_sleep($1)"):
            with pytest.raises(asyncpg.QueryCanceledError):
                await connection.fetch(sql, *([1000] if "$" in sql else []))
            expected = token()
            assert await connection.fetchval(f"SELECT '{expected}'") == expected
        await connection.close()


def test_transaction_timeout(postgres: EmbeddedPostgres) -> None:
    with with_timeouts(postgres, transaction_timeout="2s") as proxy, proxy.connect() as client:
        # while a statement runs
        client.execute("SELECT 1")
        with pytest.raises(psycopg.Error) as caught:
            client.execute("SELECT pg_sleep(1000)")
        assert caught.value.sqlstate in {"25P04", "57014"}
        with pytest.raises(psycopg.Error) as caught:
            client.execute("SELECT 1")
        assert caught.value.sqlstate in {"25P02", "25P04"}
        client.rollback()
        ask(client)
        # while the client sleeps
        proxy.wait_for("reaped", 2)
        with pytest.raises(psycopg.Error) as caught:
            client.execute("SELECT 1")
        assert caught.value.sqlstate == "25P04"
        client.rollback()
        ask(client)
        client.rollback()


def test_client_idle_timeout(postgres: EmbeddedPostgres) -> None:
    with with_timeouts(postgres, client_idle_timeout="2s") as proxy:
        with client_of(proxy) as silent:
            silent.value("SELECT 1")
            [said] = silent.rest()
            assert (said.severity, said.sqlstate) == ("FATAL", "57P05")
        with proxy.connect() as client:
            # in a transaction it does not count
            client.execute("SELECT 1")
            with client_of(proxy) as other:
                assert other.rest()[-1].sqlstate == "57P05"
            ask(client)
            client.commit()
            proxy.wait_for("client_idle_timeout", 3)
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 1")


def test_query_wait_timeout(postgres: EmbeddedPostgres) -> None:
    with (
        with_timeouts(postgres, query_wait_timeout="2s") as proxy,
        proxy.connect() as holder,
        proxy.connect(autocommit=True) as client,
    ):
        holder.execute("SELECT 1")
        for arguments in ([], [[1]]):
            with pytest.raises(psycopg.errors.TooManyConnections):
                client.execute("SELECT %s" if arguments else "SELECT 1", *arguments)
        with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
            proxy.connect(options="-c work_mem=3456")
        holder.commit()
        ask(client)


def test_query_wait_timeout_with_psycopg2(postgres: EmbeddedPostgres) -> None:
    """When its BEGIN fails, psycopg 2 holds that there is no transaction, and sends no ROLLBACK."""
    with (
        with_timeouts(postgres, query_wait_timeout="2s") as proxy,
        proxy.connect() as holder,
        contextlib.closing(psycopg2.connect(**proxy.kwargs())) as old,
    ):
        cursor = old.cursor()
        holder.execute("SELECT 1")
        with pytest.raises(psycopg2.errors.TooManyConnections):
            cursor.execute("SELECT 1")
        old.rollback()
        holder.commit()
        ask(cursor)
        old.rollback()


async def test_query_wait_timeout_with_asyncpg(postgres: EmbeddedPostgres) -> None:
    with (
        with_timeouts(postgres, query_wait_timeout="2s") as proxy,
        proxy.connect() as holder,
    ):
        connection = await asyncpg.connect(**proxy.asyncpg(statement_cache_size=0))
        holder.execute("SELECT 1")
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await connection.fetch("SELECT $1::int", 1)
        with pytest.raises(asyncpg.TooManyConnectionsError):
            async with connection.transaction():
                await connection.execute("CREATE TABLE never (n int)")
        holder.commit()
        await connection.reset()  # as asyncpg's pool does when it takes a connection back
        assert await connection.fetchval("SELECT to_regclass('never')") is None
        await connection.close()


def test_a_rollback_that_does_not_come_back(postgres: EmbeddedPostgres) -> None:
    """The server is gone in all but name: no packet, no end. The backend is closed in time."""
    stalled = threading.Event()

    def behave(peer: Wire) -> None:
        read_startup(peer)
        peer.send(WELCOME)
        while (said := peer.read()).kind == "Q":
            if b"ROLLBACK" in said.body:
                stalled.set()
                continue
            status = b"I" if b"'free'" in said.body else b"T"
            peer.send(wire.message(b"C", b"SELECT 0\0") + wire.message(b"Z", status))

    with FakeServer(behave) as fake:
        databases = {"fake": {"port": fake.port, "pool_size": 1}}
        settings = {
            "rollback_timeout": "300ms",
            "idle_transaction_timeout": "100ms",
            "server_tls_sslmode": "disable",
        }
        with Proxy(postgres, databases=databases, proxy=settings) as proxy:
            address = (proxy.host, proxy.port)
            with Wire.log_in(address, user=USER, database="fake") as client:
                client.ask(wire.query("BEGIN; SELECT 1"))
                assert stalled.wait(wire.PATIENCE)
                with Wire.log_in(address, user=USER, database="fake") as other:
                    assert wire.kinds(other.ask(wire.query("SELECT 'free'"))) == "CZ"
                assert client.ask(wire.query("SELECT 1"))[0].sqlstate == "25P03"
