"""Bytes that are no protocol, from clients that are broken, lost or hostile.

Whoever sends them is told what is wrong and closed. Nobody else notices, and nothing of it stays.
"""

import contextlib
import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, backends, token, wait_until
from tests.system.wire import Message, Wire
from txproxy.cli.embedded import EmbeddedPostgres

TLS_CLIENT_HELLO: Final = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))
HTTP: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOGIN: Final = {"user": USER, "database": DATABASE}
GROWTH: Final = 20 << 20  # bytes that thousands of connections may leave behind at most


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(postgres) as proxy:
        yield proxy
        proxy.assert_clean()


def client_of(proxy: Proxy) -> Wire:
    return Wire.log_in((proxy.host, proxy.port), **LOGIN)


@pytest.fixture
def witness(proxy: Proxy) -> Iterator[None]:
    """A client that works all the while, and has its own answers."""
    proxy.mark()
    done = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with client_of(proxy) as client:
                while not done.wait(0.002):
                    expected = token()
                    assert client.value(f"SELECT '{expected}'") == expected
        except BaseException as error:  # noqa: BLE001 raised again below
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    done.set()
    thread.join()
    if failures:
        raise failures[0]
    assert not proxy.events("bug"), proxy.events("bug")[0]["traceback"]


def heard(proxy: Proxy, *pieces: bytes) -> list[Message]:
    """What comes back, to the end, which must come."""
    with Wire((proxy.host, proxy.port)) as client:
        # what comes behind an error may meet a socket that is closed
        with contextlib.suppress(ConnectionError):
            client.send(*pieces)
        return client.rest()


def refused(proxy: Proxy, *pieces: bytes) -> str:
    """The SQLSTATE of the FATAL that is all that comes back."""
    [said] = heard(proxy, *pieces)
    assert said.severity == "FATAL"
    assert said.fields["M"]
    return said.sqlstate


# Before login.


@pytest.mark.parametrize(
    "sent",
    [
        HTTP,
        TLS_CLIENT_HELLO,
        b"\0" * 64,
        b"\xff" * 64,
        struct.pack("!i", -1) + b"x" * 50,
        struct.pack("!i", 7) + b"xxx",
        struct.pack("!i", 0x7FFFFFFF) + b"x" * 50,
        struct.pack("!i", 10_001) + b"x" * 9_997,
        wire.packet(wire.PROTOCOL_3_0, b"user"),
        wire.packet(wire.PROTOCOL_3_0, b"user\0app"),
        wire.packet(wire.PROTOCOL_3_0, b"user\0app\0"),
        wire.packet(wire.PROTOCOL_3_0, b"user\0app\0database\0\0"),
        wire.packet(wire.PROTOCOL_3_0, b"\0user\0app\0\0"),
    ],
    ids=lambda sent: repr(sent[:12]),
)
@pytest.mark.usefixtures("witness")
def test_what_is_no_startup_packet(proxy: Proxy, sent: bytes) -> None:
    assert refused(proxy, sent) == "08P01"
    assert refused(proxy, *(sent[i : i + 1] for i in range(len(sent[:30]))), sent[30:]) == "08P01"


def test_a_startup_packet_of_10000_bytes_is_taken(proxy: Proxy) -> None:
    size = 10_000 - len(wire.startup({**LOGIN, "application_name": ""}))
    with Wire.log_in((proxy.host, proxy.port), **LOGIN, application_name="x" * size) as client:
        assert client.value("SHOW application_name") == "x" * 63
    assert refused(proxy, wire.startup({**LOGIN, "application_name": "x" * (size + 1)})) == "08P01"


@pytest.mark.parametrize("major", [0, 1, 2, 4, 1000])
def test_other_protocols(proxy: Proxy, major: int) -> None:
    [said] = heard(proxy, wire.packet(major << 16, b"user\0app\0\0"))
    assert (said.severity, said.sqlstate) == ("FATAL", "0A000")
    assert f"{major}.0" in said.fields["M"]


@pytest.mark.parametrize("minor", [0, 1, 2, 9999])
@pytest.mark.parametrize("options", [{}, {"_pq_.command": "x", "_pq_.other": "y"}])
def test_newer_minor_versions_are_negotiated(
    proxy: Proxy, minor: int, options: dict[str, str]
) -> None:
    """As PostgreSQL 18: it speaks 3.2, and says so only to who asks for more than it has."""
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.startup({**LOGIN, **options}, wire.PROTOCOL_3_0 + minor))
        answer = client.until("Z")
        assert not wire.errors(answer)
        if minor > 2 or options:
            assert answer[0].kind == "v"
            spoken = wire.PROTOCOL_3_0 + min(minor, 2)
            assert struct.unpack("!ii", answer[0].body[:8]) == (spoken, len(options))
            assert answer[0].body[8:] == b"".join(name.encode() + b"\0" for name in options)
        else:
            assert "v" not in wire.kinds(answer)
        expected = token()
        assert client.value(f"SELECT '{expected}'") == expected


@pytest.mark.parametrize(
    ("parameters", "sqlstate"),
    [
        ({"database": DATABASE}, "28000"),
        ({"user": "", "database": DATABASE}, "28000"),
        ({**LOGIN, "replication": "true"}, "0A000"),
        ({**LOGIN, "replication": "database"}, "0A000"),
        ({**LOGIN, "options": "--no-such-thing=1"}, "42704"),
        ({**LOGIN, "options": "-c no_such_setting=1"}, "42704"),
        ({**LOGIN, "options": "-x"}, "42601"),
        ({**LOGIN, "no_such_setting": "1"}, "42704"),
        ({**LOGIN, "a;b": "1"}, "42704"),
        ({**LOGIN, "a'b": "1"}, "42704"),
        ({**LOGIN, "work_mem": "a lot"}, "22023"),
        ({**LOGIN, "work_mem": "'; DROP TABLE x; --"}, "22023"),
        ({**LOGIN, "client_encoding": "klingon"}, "22023"),
        ({**LOGIN, "txproxy.no_such_setting": "1"}, "42704"),
        ({**LOGIN, "txproxy.idle_transaction_timeout": "soon"}, "22023"),
        ({"user": USER, "database": "nowhere"}, "3D000"),
        ({"user": USER}, ""),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.usefixtures("witness")
def test_a_login_that_is_refused(proxy: Proxy, parameters: dict[str, str], sqlstate: str) -> None:
    if sqlstate:
        assert refused(proxy, wire.startup(parameters)) == sqlstate
    else:
        # the database's name is the user's, if none is given
        with Wire((proxy.host, proxy.port)) as client:
            client.send(wire.startup(parameters))
            assert client.until("Z")[-1].status == "I"


def test_a_user_that_the_server_does_not_know(proxy: Proxy) -> None:
    [said] = heard(proxy, wire.startup({"user": "nobody at all", "database": DATABASE}))
    assert (said.severity, said.sqlstate) == ("FATAL", "28000")
    assert "nobody at all" in said.fields["M"]


@pytest.mark.parametrize("code", [wire.SSL_REQUEST, wire.GSS_REQUEST])
def test_encryption_is_declined(proxy: Proxy, code: int) -> None:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.packet(code))
        assert client.socket.recv(10) == b"N"
        client.send(wire.startup(LOGIN))
        assert client.until("Z")[-1].status == "I"


def test_encryption_is_asked_for_again_and_again(proxy: Proxy) -> None:
    with Wire((proxy.host, proxy.port)) as client:
        for code in (wire.GSS_REQUEST, wire.SSL_REQUEST):
            client.send(wire.packet(code))
            assert client.socket.recv(10) == b"N"
        client.send(wire.packet(wire.SSL_REQUEST))
        assert client.socket.recv(10) == b""


def test_bytes_behind_an_encryption_request(proxy: Proxy) -> None:
    """They may be somebody else's, and must not be taken for what comes through the tunnel."""
    for rest in (wire.startup(LOGIN), b"x", TLS_CLIENT_HELLO):
        with Wire((proxy.host, proxy.port)) as client:
            client.send(wire.packet(wire.SSL_REQUEST) + rest)
            found = b""
            with contextlib.suppress(ConnectionError):
                while data := client.socket.recv(100):
                    found += data
            # nobody is logged in
            assert b"Z\0\0\0\5" not in found
            assert found in {b"", b"N"} or found.startswith(b"E")


@pytest.mark.parametrize("size", [0, 3, 4, 7, 8, 9, 100, 5000])
def test_cancel_requests_of_any_size(proxy: Proxy, size: int) -> None:
    assert heard(proxy, wire.packet(wire.CANCEL_REQUEST, b"\1" * size)) == []


def test_messages_right_behind_the_startup_packet(proxy: Proxy) -> None:
    """A client need not wait: what it sends is answered after its login."""
    expected = token()
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.startup(LOGIN) + wire.query(f"SELECT '{expected}'"))
        client.until("Z")
        assert wire.rows(client.until("Z")) == [[expected]]


# After login.

VIOLATIONS: Final[dict[str, bytes]] = {
    "http": HTTP,
    "tls": TLS_CLIENT_HELLO,
    "zeros": b"\0" * 50,
    "ones": b"\xff" * 50,
    "length 0": b"Q\0\0\0\0",
    "length 3": b"Q\0\0\0\3",
    "negative length": b"Q\xff\xff\xff\xff" + b"x" * 50,
    "huge length": b"Q\x7f\xff\xff\xff" + b"x" * 50,
    "a sync of 20000": wire.message(b"S", b"x" * 20_000),
    "an unknown type": wire.message(b"z", b"x"),
    "a server's message": wire.message(b"Z", b"I"),
    "a password": wire.message(b"p", b"secret\0"),
    "a startup packet": wire.startup(LOGIN),
    "an encryption request": wire.packet(wire.SSL_REQUEST),
}


@pytest.mark.parametrize("sent", VIOLATIONS.values(), ids=VIOLATIONS.keys())
@pytest.mark.parametrize("where", ["alone", "in a transaction", "behind a query", "in a unit"])
@pytest.mark.usefixtures("witness")
def test_what_is_no_message(proxy: Proxy, where: str, sent: bytes) -> None:
    with client_of(proxy) as client:
        if where == "in a transaction":
            client.ask(wire.query("BEGIN") + wire.query("CREATE TABLE bad (n int)"), 2)
        elif where == "behind a query":
            sent = wire.query("SELECT pg_sleep(0.01)") + sent
        elif where == "in a unit":
            sent = wire.parse("SELECT 1") + wire.bind() + sent
        with contextlib.suppress(ConnectionError):
            client.send(sent)
        last = client.rest()[-1]
        assert last.kind == "E", last
        assert (last.severity, last.sqlstate) == ("FATAL", "08P01")


MALFORMED: Final[dict[str, bytes]] = {
    "query without NUL": wire.message(b"Q", b"SELECT 1"),
    "query of nothing": wire.message(b"Q"),
    "query with two ends": wire.message(b"Q", b"SELECT 1\0SELECT 2\0"),
    "parse without NUL": wire.message(b"P", b"abc") + wire.SYNC,
    "parse of nothing": wire.message(b"P") + wire.SYNC,
    "parse with one NUL": wire.message(b"P", b"abc\0") + wire.SYNC,
    "parse without types": wire.message(b"P", b"\0SELECT 1\0") + wire.SYNC,
    "parse with too many types": wire.message(b"P", b"\0SELECT 1\0\x7f\xff") + wire.SYNC,
    "bind without NUL": wire.message(b"B", b"abc") + wire.SYNC,
    "bind of nothing": wire.message(b"B") + wire.SYNC,
    "bind with too many values": wire.parse("SELECT 1")
    + wire.message(b"B", b"\0\0\0\0\x7f\xff")
    + wire.SYNC,
    "describe of nothing": wire.message(b"D") + wire.SYNC,
    "describe of neither": wire.message(b"D", b"X\0") + wire.SYNC,
    "describe without NUL": wire.message(b"D", b"Sabc") + wire.SYNC,
    "execute of nothing": wire.message(b"E") + wire.SYNC,
    "execute without rows": wire.message(b"E", b"\0") + wire.SYNC,
    "close of nothing": wire.message(b"C") + wire.SYNC,
    "close without NUL": wire.message(b"C", b"Sabc") + wire.SYNC,
    "sync with a body": wire.message(b"S", b"body"),
    "function call of nothing": wire.message(b"F"),
    "not in the encoding": wire.message(b"Q", b"SELECT '\xff\xfe'\0"),
    "parse not in the encoding": wire.message(b"P", b"\0SELECT '\xff'\0\0\0") + wire.SYNC,
    "copy data of no copy": wire.copy_data(b"x") + wire.COPY_DONE + wire.SYNC,
    "copy fail without NUL": wire.message(b"f", b"abc") + wire.SYNC,
    "flush with a body": wire.message(b"H", b"body") + wire.SYNC,
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("where", ["alone", "in a transaction", "reaped", "queued", "no backend"])
@pytest.mark.usefixtures("witness")
def test_messages_that_are_malformed_inside(
    postgres: EmbeddedPostgres, proxy: Proxy, where: str, sent: bytes
) -> None:
    """As the server answers: an error, and the session lives; or it is closed. In no case is the
    proxy's own state wrong, and the next client finds a clean backend.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(client_of(proxy))
        if where in {"in a transaction", "reaped"}:
            client.ask(wire.query("SET txproxy.idle_transaction_timeout = '50ms'"))
            client.ask(wire.query("BEGIN"))
        if where == "reaped":
            client.value("SELECT 1")
            proxy.wait_for("reaped")
        if where == "queued":
            holders = [stack.enter_context(client_of(proxy)) for _ in range(2)]
            for each in holders:
                each.send(wire.query("SELECT pg_sleep(0.03)"))
        if where == "no backend":
            holders = [stack.enter_context(client_of(proxy)) for _ in range(2)]
            for each in holders:
                each.ask(wire.query("BEGIN"))
            client.send(sent)
            wire.cancel((proxy.host, proxy.port), client.key)
            for each in holders:
                each.close()
        else:
            client.send(sent)
        said = until_ready_or_end(client)
        if said[-1].kind == "E":
            assert said[-1].severity == "FATAL"
            assert "internal error" not in said[-1].fields["M"]
        else:
            expected = token()
            answers = client.ask(wire.query("ROLLBACK") + wire.query(f"SELECT '{expected}'"), 2)
            assert wire.rows(answers) == [[expected]]


def until_ready_or_end(client: Wire) -> list[Message]:
    try:
        return client.until("Z")
    except wire.Closed as end:
        found: list[Message] = end.args[0]
        return found


def test_a_query_during_copy_in(proxy: Proxy) -> None:
    """The server would end the connection over it, so it never gets there."""
    for copy, until in (
        (wire.query("COPY bad FROM STDIN"), "G"),
        (wire.parse("COPY bad FROM STDIN") + wire.bind() + wire.execute() + wire.FLUSH, "G"),
    ):
        for sent in (wire.query("SELECT 1"), wire.parse("SELECT 1"), wire.execute()):
            with client_of(proxy) as client:
                client.ask(wire.query("BEGIN"))
                client.ask(wire.query("CREATE TABLE bad (t text)"))
                client.send(copy)
                client.until(until)
                client.send(wire.copy_data(b"row\n") + sent)
                [said] = client.rest()
                assert (said.severity, said.sqlstate) == ("FATAL", "08P01")
    with client_of(proxy) as client:
        assert client.value("SELECT to_regclass('bad') IS NULL") == "t"


@pytest.mark.usefixtures("witness")
def test_random_bytes(proxy: Proxy) -> None:
    """Random types, lengths and bodies, a correct beginning of a conversation cut and mixed."""
    good = [
        wire.query("BEGIN"),
        wire.query("SELECT 1"),
        wire.parse("SELECT $1::text"),
        wire.bind("x"),
        wire.describe(),
        wire.execute(),
        wire.SYNC,
        wire.FLUSH,
        wire.close(),
        wire.query("COPY (SELECT 1) TO STDOUT"),
        wire.query("COPY pg_temp.nothing FROM STDIN"),
        wire.COPY_DONE,
        wire.copy_data(b"x\n"),
        wire.copy_fail(),
        wire.query("ROLLBACK"),
    ]
    generator = random.Random(1)  # always the same
    for _ in range(300):
        data = b"".join(generator.choices(good, k=generator.randint(1, 12)))
        for _ in range(generator.randint(0, 3)):
            place = generator.randrange(len(data))
            data = data[:place] + generator.randbytes(generator.randint(1, 3)) + data[place + 1 :]
        with client_of(proxy) as client, contextlib.suppress(ConnectionError, TimeoutError):
            client.send(data)
            if generator.random() < 0.3:
                client.socket.settimeout(0.02)  # some of it is answered by nothing
                client.socket.recv(100)


# Nothing of it stays.


def memory(proxy: Proxy) -> int:
    """The proxy's resident memory, in bytes."""
    status = Path(f"/proc/{proxy.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


@pytest.mark.parametrize(
    "attack",
    [
        lambda proxy: heard(proxy, HTTP),
        lambda proxy: heard(proxy, wire.startup({**LOGIN, "work_mem": token()})),
        lambda proxy: heard(proxy, wire.startup({"user": token(), "database": token()})),
        lambda proxy: heard(proxy, wire.startup(LOGIN), wire.unit("SELECT"), b"\xff" * 6),
    ],
    ids=["http", "refused setting", "other database", "a violation"],
)
@pytest.mark.usefixtures("witness")
def test_memory_does_not_grow(proxy: Proxy, attack: Callable[[Proxy], object]) -> None:
    def some(count: int) -> None:
        for _ in range(count):
            attack(proxy)

    some(300)  # what is allocated once
    before = memory(proxy)
    some(1500)
    assert memory(proxy) - before < GROWTH


def test_half_messages_do_not_stay(proxy: Proxy) -> None:
    half = wire.query("SELECT '" + "x" * 60_000 + "'")[:-5]

    def some(count: int) -> None:
        for _ in range(count):
            with client_of(proxy) as client:
                client.send(half)

    some(200)
    before = memory(proxy)
    some(1000)
    assert memory(proxy) - before < GROWTH


def test_many_half_messages_at_once_are_bounded(proxy: Proxy) -> None:
    """64 kB for each client, whatever length is announced, and nothing more."""
    count = 200
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(proxy)) for _ in range(count)]
        before = memory(proxy)
        for client in clients:
            client.send(b"P\x3f\xff\xff\xff" + b"x" * 50_000)
        with client_of(proxy) as other:
            for _ in range(100):
                other.value("SELECT 1")
        assert memory(proxy) - before < count * (100 << 10) + GROWTH


# Clients that say nothing, and too many of them.


def test_clients_that_connect_and_say_nothing(postgres: EmbeddedPostgres) -> None:
    with Proxy(postgres, proxy={"client_login_timeout": "3s"}) as proxy:
        silent = [Wire((proxy.host, proxy.port)) for _ in range(50)]
        try:
            for number, each in enumerate(silent):
                each.send(wire.startup(LOGIN)[: number % 20])
            with client_of(proxy) as client:
                for each in silent:
                    assert wire.kinds(each.rest()) in {"", "E"}
                # who has logged in may be silent
                expected = token()
                assert client.value(f"SELECT '{expected}'") == expected
        finally:
            for each in silent:
                each.close()


def test_a_client_that_asks_for_encryption_and_says_no_more(postgres: EmbeddedPostgres) -> None:
    with (
        Proxy(postgres, proxy={"client_login_timeout": "3s"}) as proxy,
        Wire((proxy.host, proxy.port)) as client,
    ):
        client.send(wire.packet(wire.SSL_REQUEST))
        assert client.socket.recv(10) == b"N"
        assert wire.kinds(client.rest()) in {"", "E"}


def test_too_many_clients(postgres: EmbeddedPostgres) -> None:
    with Proxy(postgres, proxy={"max_client_conn": 10}, check=False) as proxy:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(client_of(proxy)) for _ in range(10)]
            [said] = heard(proxy, wire.startup(LOGIN))
            assert (said.severity, said.sqlstate) == ("FATAL", "53300")
            # those that are in can still be cancelled, and work
            clients[0].send(wire.query("SELECT pg_sleep(1000)"))
            wait_until(lambda: sleeping(proxy.server), lambda found: found)
            wire.cancel((proxy.host, proxy.port), clients[0].key)
            assert wire.errors(clients[0].until("Z"))[0].sqlstate == "57014"
            for client in clients:
                expected = token()
                assert client.value(f"SELECT '{expected}'") == expected
            clients[5].close()
            wait_until(lambda: enters(proxy), lambda entered: entered)
            assert enters(proxy)
        # a crowd that never logs in takes all places, and gives them back
        crowd = [Wire((proxy.host, proxy.port)) for _ in range(30)]
        for each in crowd:
            each.close()
        assert wait_until(lambda: enters(proxy), lambda entered: entered)


def sleeping(server: EmbeddedPostgres) -> bool:
    return any("pg_sleep" in each.query and each.state == "active" for each in backends(server))


def enters(proxy: Proxy) -> bool:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.startup(LOGIN))
        return client.until("ZE")[-1].kind == "Z"
