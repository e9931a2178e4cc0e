"""Values of hundreds of megabytes pass through; the proxy's memory does not grow with them.

TXPROXY_TEST_LARGE says how many megabytes: 1000 is about the most that PostgreSQL takes in a value.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, ask, direct, token
from tests.system.wire import Wire
from txproxy.cli.embedded import EmbeddedPostgres

SIZE: Final = int(os.environ.get("TXPROXY_TEST_LARGE", "128")) * 1_000_000
PIECE: Final = 1_000_000
ROWS: Final = SIZE // PIECE
PATIENCE: Final = 300.0  # seconds that a server may take for so much, on a machine that is busy
BOUND: Final = 40 << 20  # bytes by which the proxy may grow, whatever the size


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    # what is short may have to wait for what is long
    with Proxy(postgres, proxy={"query_wait_timeout": "5min"}) as proxy:
        with direct(postgres) as admin:
            admin.execute("DROP TABLE IF EXISTS large")
            admin.execute("CREATE UNLOGGED TABLE large (data bytea)")
            admin.execute("ALTER TABLE large ALTER data SET STORAGE EXTERNAL")
            admin.execute("GRANT ALL ON large TO PUBLIC")
        yield proxy
        with direct(postgres) as admin:
            admin.execute("DROP TABLE large")


def memory(proxy: Proxy, what: str) -> int:
    """In bytes; VmRSS: what is resident now, VmHWM: the most that ever was."""
    status = Path(f"/proc/{proxy.pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) << 10


@pytest.fixture
def bounded(proxy: Proxy) -> Iterator[None]:
    """The proxy's memory stays within bounds, and somebody else is served all the while."""
    done = threading.Event()

    def work() -> int:
        count = 0
        with proxy.connect(autocommit=True) as other:
            while not done.is_set() or not count:
                ask(other)
                count += 1
        return count

    proxy.assert_clean()
    with direct(proxy.server) as admin:
        admin.execute("TRUNCATE large")
    Path(f"/proc/{proxy.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = memory(proxy, "VmRSS")
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(work)
        yield
        done.set()
        assert working.result() > 0
    assert memory(proxy, "VmHWM") - before < BOUND
    proxy.assert_clean()


pytestmark = [pytest.mark.usefixtures("bounded"), pytest.mark.timeout(600)]


def client_of(proxy: Proxy) -> Wire:
    client = Wire.log_in((proxy.host, proxy.port), user=USER, database=DATABASE)
    client.socket.settimeout(PATIENCE)
    return client


class Received:
    """What a client reads, without ever holding it: size and checksum of the messages' bodies."""

    def __init__(self, client: Wire) -> None:
        self._client = client
        self.size = 0
        self.md5 = hashlib.md5()
        self.count = 0

    def until_ready(self, kind: bytes) -> None:
        """Read up to ReadyForQuery; bodies of this type are summed up."""
        while True:
            head = self._exactly(5)
            left = int.from_bytes(head[1:], "big") - 4
            assert head[:1] != b"E", self._exactly(left)
            self.count += head[:1] == kind
            while left:
                data = self._client.receive(min(left, 1 << 20))
                assert data
                left -= len(data)
                if head[:1] == kind:
                    self.size += len(data)
                    self.md5.update(data)
            if head[:1] == b"Z":
                return

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = self._client.receive(size - len(found))
            assert data
            found += data
        return found


def md5_of(*parts: bytes, times: int = 1) -> str:
    found = hashlib.md5()
    for part in parts:
        found.update(part)
    for _ in range(times - 1):
        found.update(parts[-1])
    return found.hexdigest()


X: Final = b"x" * PIECE


@pytest.mark.parametrize("shape", [wire.query, wire.unit], ids=["simple", "extended"])
def test_a_value_that_is_read(proxy: Proxy, shape: Any) -> None:
    with client_of(proxy) as client:
        client.send(shape(f"SELECT repeat('x', {SIZE})"))
        received = Received(client)
        received.until_ready(b"D")
        assert received.size == SIZE + 6
        head = b"\0\1" + SIZE.to_bytes(4, "big")
        assert received.md5.hexdigest() == md5_of(head, X, times=ROWS)
        assert client.value("SELECT 'after'") == "after"


def test_rows_that_are_copied_out(proxy: Proxy) -> None:
    with client_of(proxy) as client:
        row = f"SELECT repeat('x', {PIECE}) FROM generate_series(1, {ROWS})"
        client.send(wire.query(f"COPY ({row}) TO STDOUT"))
        received = Received(client)
        received.until_ready(b"d")
        assert received.count == ROWS
        assert received.md5.hexdigest() == md5_of(X + b"\n", times=ROWS)
        assert client.value("SELECT 'after'") == "after"


def test_rows_that_are_copied_in(proxy: Proxy) -> None:
    """Rows of a megabyte, in messages of all sizes, and one message as large as all of them."""
    text = b"\\\\x" + b"78" * (PIECE // 2) + b"\n"
    with client_of(proxy) as client:
        client.send(wire.query("COPY large FROM STDIN"))
        client.until("G")
        stream = text * 4
        sizes = (1000, 65_531, 65_536, 100_000, len(stream))
        for size in sizes:
            for i in range(0, len(stream), size):
                client.send(wire.copy_data(stream[i : i + size]))
        for _ in range(ROWS // 4):
            client.send(wire.copy_data(stream))
        head = b"d" + (ROWS * len(text) + 4).to_bytes(4, "big")
        client.send(head)
        for _ in range(ROWS):
            client.send(text)
        assert not wire.errors(client.ask(wire.COPY_DONE))
        count, wrong = ROWS + 4 * (ROWS // 4) + 4 * len(sizes), token()
        answer = client.ask(
            wire.query(
                f"SELECT count(*), count(*) FILTER (WHERE md5(data) <> md5(repeat('x',"
                f" {PIECE // 2})::bytea)), '{wrong}' FROM large"
            )
        )
        assert wire.rows(answer) == [[str(count), "0", wrong]]


def test_a_parameter(proxy: Proxy) -> None:
    """Binary, in a Bind of one message."""
    size = min(SIZE, 900_000_000) // PIECE * PIECE
    # unnamed both, one format for all: binary, one value
    body = b"\0\0" + b"\0\1\0\1\0\1" + size.to_bytes(4, "big")
    with client_of(proxy) as client:
        client.ask(wire.query("BEGIN"))
        client.send(wire.parse("INSERT INTO large VALUES ($1)"))
        client.send(b"B" + (4 + len(body) + size + 2).to_bytes(4, "big") + body)
        for _ in range(size // PIECE):
            client.send(X)
        client.send(b"\0\0" + wire.execute())
        answer = client.ask(wire.SYNC)
        assert not wire.errors(answer), answer
        client.ask(wire.query("COMMIT"))
    expected = md5_of(X, times=size // PIECE)
    with direct(proxy.server) as admin:
        assert admin.execute("SELECT md5(data) FROM large").fetchall() == [(expected,)]


def test_a_literal(proxy: Proxy) -> None:
    """A Query of one message; too long to be read by the proxy, so it holds its backend."""
    size = min(SIZE, 250_000_000) // PIECE * PIECE
    before, after = b"INSERT INTO large VALUES ('", b"'::text::bytea) RETURNING length(data)\0"
    with client_of(proxy) as client:
        client.send(b"Q" + (4 + len(before) + size + len(after)).to_bytes(4, "big") + before)
        for _ in range(size // PIECE):
            client.send(X)
        answer = client.ask(after)
        assert wire.rows(answer) == [[str(size)]]
        expected = md5_of(X, times=size // PIECE)
        assert client.value("SELECT md5(data) FROM large") == expected


def test_with_a_driver(proxy: Proxy) -> None:
    """psycopg, both ways, in a transaction."""
    data = os.urandom(PIECE) * min(ROWS, 50)
    with proxy.connect() as client:
        found = client.execute("SELECT %b::bytea", [data], binary=True).fetchone()
        assert found is not None
        assert hashlib.md5(found[0]).digest() == hashlib.md5(data).digest()
        with client.cursor() as cursor:
            with cursor.copy("COPY large FROM STDIN (FORMAT binary)") as copy:
                for _ in range(10):
                    copy.write_row([data[:PIECE]])
            with cursor.copy("COPY large TO STDOUT (FORMAT binary)") as copy:
                copy.set_types(["bytea"])
                for (row,) in copy.rows():
                    assert row == data[:PIECE]
        client.rollback()


def test_clients_that_do_not_read(proxy: Proxy) -> None:
    """Their servers wait; the proxy keeps little for them, and the pool's other backend works."""
    sql = f"SELECT repeat('x', {PIECE}) FROM generate_series(1, {ROWS})"
    with client_of(proxy) as lazy:
        lazy.send(wire.query(sql))
        assert lazy.read().kind == "T"
        with proxy.connect(autocommit=True) as other:
            for _ in range(300):
                ask(other)
        received = Received(lazy)
        received.until_ready(b"D")
        assert received.count == ROWS


def fill(client: Wire) -> None:
    """Send until the other side takes no more."""
    client.socket.settimeout(1)
    for _ in range(ROWS):
        client.send(wire.query(f"INSERT INTO large VALUES ('{'x' * PIECE}')"))


def fill_with_one(client: Wire) -> None:
    """The same, with a statement of which no socket holds the whole."""
    client.socket.settimeout(1)
    before, after = b"INSERT INTO large VALUES ('", b"')\0"
    client.send(b"Q" + (4 + len(before) + SIZE + len(after)).to_bytes(4, "big") + before)
    for _ in range(ROWS):
        client.send(X)


def test_a_server_that_does_not_read(proxy: Proxy) -> None:
    """A client that sends and sends is not read any more."""
    with direct(proxy.server) as admin, admin.transaction():
        admin.execute("LOCK TABLE large")
        with client_of(proxy) as client, pytest.raises(TimeoutError):
            fill(client)
    with proxy.connect(autocommit=True) as other:
        ask(other)


def test_a_client_that_is_queued(proxy: Proxy) -> None:
    """What it sends waits in its socket, but for a little; it leaves, and none of it is done."""
    with proxy.connect() as one, proxy.connect() as two:
        for each in (one, two):
            each.execute("SELECT 1")
        with client_of(proxy) as client, pytest.raises(TimeoutError):
            fill_with_one(client)
        for each in (one, two):
            each.rollback()
    with client_of(proxy) as client:
        assert client.value("SELECT count(*) FROM large") == "0"
