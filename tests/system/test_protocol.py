"""Versions of the protocol, with clients and with servers, and what depends on them."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from typing import Final

import psycopg
import pytest

from tests.system import wire
from tests.system.proxy import DATABASE, USER, Proxy, ask, backends, prepare, token, wait_until
from tests.system.secure import Certificates, Terminator, tls_wire
from tests.system.test_faults import FakeServer
from tests.system.wire import Message, Wire
from txproxy.cli.embedded import EmbeddedPostgres

LOGIN: Final = {"user": USER, "database": DATABASE}
V3_2: Final = wire.PROTOCOL_3_0 + 2
SLEEP: Final = "SELECT pg_sleep(1000)"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres, certificates: Certificates) -> Iterator[Proxy]:
    settings = {
        "client_tls_sslmode": "allow",
        "client_tls_cert_file": certificates.file("server.crt"),
        "client_tls_key_file": certificates.file("server.key"),
    }
    with Proxy(postgres, proxy=settings) as proxy:
        yield proxy


@pytest.fixture(params=["plain", "TLS"])
def client(
    request: pytest.FixtureRequest, proxy: Proxy, certificates: Certificates
) -> Iterator[Wire]:
    """A client that has said nothing yet."""
    address = (proxy.host, proxy.port)
    if request.param == "TLS":
        with tls_wire(address, certificates.client()) as inside:
            yield inside
    else:
        with Wire(address) as outside:
            yield outside


def log_in(client: Wire, minor: int, **options: str) -> list[Message]:
    """All that comes back; the client's key is set."""
    client.send(wire.startup({**LOGIN, **options}, wire.PROTOCOL_3_0 + minor))
    heard = client.until("Z")
    [key] = [each.body for each in heard if each.kind == "K"]
    client.key = (struct.unpack_from("!i", key)[0], key[4:])
    return heard


# Clients.


@pytest.mark.parametrize("options", [{}, {"_pq_.command": "x", "_pq_.other": "y"}])
@pytest.mark.parametrize(
    ("minor", "spoken", "length"), [(0, 0, 4), (1, 1, 4), (2, 2, 32), (3, 2, 32), (9999, 2, 32)]
)
def test_versions_are_negotiated_as_postgresql_18_does(
    postgres: EmbeddedPostgres,
    client: Wire,
    minor: int,
    spoken: int,
    length: int,
    options: dict[str, str],
) -> None:
    heard = log_in(client, minor, **options)
    said = [each.body for each in heard if each.kind == "v"]
    expected = struct.pack("!ii", wire.PROTOCOL_3_0 + spoken, len(options)) + b"".join(
        name.encode() + b"\0" for name in options
    )
    assert said == ([expected] if options or minor > 2 else [])
    assert wire.kinds(heard)[: len(said) + 1] == "v" * len(said) + "R"
    assert len(client.key[1]) == length
    expected_token = token()
    assert client.value(f"SELECT '{expected_token}'") == expected_token
    if postgres.version >= "18":
        prepare(postgres)
        with Wire((postgres.host, postgres.port)) as direct:
            theirs = log_in(direct, minor, **options)
            assert [each.body for each in theirs if each.kind == "v"] == said
            assert len(direct.key[1]) == length


def test_libpq_speaks_the_newest(proxy: Proxy) -> None:
    if psycopg.pq.version() < 180000:
        pytest.skip("this libpq does not know protocol 3.2")
    with proxy.connect(max_protocol_version="latest", autocommit=True) as client:
        ask(client)

        def cancel_it() -> None:
            wait_until(lambda: asleep(proxy), lambda found: found)
            client.cancel_safe()

        thread = threading.Thread(target=cancel_it)
        thread.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            client.execute(SLEEP)
        thread.join()
        ask(client)


def test_a_second_start_up_packet(proxy: Proxy, client: Wire) -> None:
    """Once a client is in, nothing makes it somebody else."""
    log_in(client, 0)
    client.send(wire.startup({"user": "postgres", "database": DATABASE}))
    assert client.rest()[-1].sqlstate == "08P01"
    assert not proxy.events("client connected", user="postgres")


@pytest.mark.parametrize(
    "options", ["-c=", "-c =x", "-c", "-c=x -c y", "--", "--=", "--=x", "-c;=1", "-c x", "-c a b=c"]
)
def test_options_without_a_name(proxy: Proxy, options: str) -> None:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.startup({**LOGIN, "options": options}))
        [said] = client.rest()
        assert (said.severity, said.sqlstate) == ("FATAL", "42601")


# Cancel keys.


def asleep(proxy: Proxy) -> bool:
    return any("pg_sleep" in each.query for each in backends(proxy.server))


@contextlib.contextmanager
def sleeping(proxy: Proxy, client: Wire, minor: int) -> Iterator[None]:
    log_in(client, minor)
    client.send(wire.query(SLEEP))
    assert wait_until(lambda: asleep(proxy), lambda found: found)
    yield
    assert wire.errors(client.until("Z"))[0].sqlstate == "57014"
    assert client.value("SELECT 1") == "1"


@pytest.mark.parametrize("minor", [0, 2])
def test_a_key_cancels(proxy: Proxy, client: Wire, certificates: Certificates, minor: int) -> None:
    address = (proxy.host, proxy.port)
    with sleeping(proxy, client, minor):
        wire.cancel(address, client.key)
    with sleeping_again(proxy, client), tls_wire(address, certificates.client()) as other:
        other.send(request(client.key))
        assert other.rest() == []


@contextlib.contextmanager
def sleeping_again(proxy: Proxy, client: Wire) -> Iterator[None]:
    client.send(wire.query(SLEEP))
    assert wait_until(lambda: asleep(proxy), lambda found: found)
    yield
    assert wire.errors(client.until("Z"))[0].sqlstate == "57014"


def request(key: tuple[int, bytes]) -> bytes:
    return wire.packet(wire.CANCEL_REQUEST, struct.pack("!i", key[0]) + key[1])


def test_keys_that_are_almost_right(proxy: Proxy, client: Wire) -> None:
    address = (proxy.host, proxy.port)
    with sleeping(proxy, client, 2):
        pid, secret = client.key
        for wrong in (
            (pid, secret[:4]),
            (pid, secret[:31]),
            (pid, secret + b"\0"),
            (pid, bytes(32)),
            (pid, secret[:31] + bytes((secret[31] ^ 1,))),
            (pid + 1, secret),
            (-pid, secret),
            (0, secret),
        ):
            wire.cancel(address, wrong)
        # the statement runs on until the right one comes
        with proxy.connect() as other:
            ask(other)
            other.rollback()
        assert asleep(proxy)
        wire.cancel(address, client.key)


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\0\0\1", b"\0\0\0\1\0\0\0", b"\0" * 300])
def test_cancel_requests_that_are_malformed(proxy: Proxy, body: bytes) -> None:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.packet(wire.CANCEL_REQUEST, body))
        assert client.rest() == []
    with proxy.connect() as other:
        ask(other)
        other.rollback()


def test_nothing_goes_on_behind_a_cancel_request(proxy: Proxy) -> None:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(request((1, b"1234")) + wire.startup(LOGIN))
        assert client.rest() == []


# Servers.


class Picky:
    """A server that refuses new versions as old ones did; the others it passes on."""

    def __init__(self, postgres: EmbeddedPostgres, sqlstate: str) -> None:
        self.asked: list[int] = []
        self._passes_on = Terminator(postgres, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self._sqlstate = sqlstate

    def __call__(self, peer: Wire) -> None:
        head = b""
        while len(head) < 8:
            head = peer.socket.recv(8, socket.MSG_PEEK)
        (version,) = struct.unpack_from("!i", head, 4)
        self.asked.append(version)
        if version == V3_2:
            text = b"unsupported frontend protocol 3.2: server supports 1.0 to 3.0"
            fields = b"SFATAL\0C" + self._sqlstate.encode() + b"\0M" + text + b"\0\0"
            peer.send(wire.message(b"E", fields))
        else:
            self._passes_on(peer)


@pytest.mark.parametrize("sqlstate", ["0A000", "08P01"])
def test_a_server_that_refuses_the_newest_is_asked_for_3_0(
    postgres: EmbeddedPostgres, sqlstate: str
) -> None:
    picky = Picky(postgres, sqlstate)
    with FakeServer(picky) as fake:
        databases = {DATABASE: {"port": fake.port, "pool_size": 3}}
        settings = {"server_tls_sslmode": "disable"}
        with (
            Proxy(postgres, proxy=settings, databases=databases, check=False) as proxy,
            contextlib.ExitStack() as stack,
        ):
            for _ in range(3):
                ask(stack.enter_context(proxy.connect()))
            # it is asked once for each
            assert picky.asked == [V3_2, *[wire.PROTOCOL_3_0] * 3]
            with Wire((proxy.host, proxy.port)) as client:
                # whatever the server speaks, clients get what they ask for
                log_in(client, 2)
                assert len(client.key[1]) == 32


def test_other_refusals_are_not_tried_again(postgres: EmbeddedPostgres) -> None:
    picky = Picky(postgres, "28000")
    with FakeServer(picky) as fake:
        databases = {DATABASE: {"port": fake.port}}
        settings = {"server_tls_sslmode": "disable"}
        with Proxy(postgres, proxy=settings, databases=databases, check=False) as proxy:
            with pytest.raises(psycopg.OperationalError, match="unsupported frontend protocol"):
                proxy.connect()
            assert set(picky.asked) == {V3_2}


def test_requests_reach_servers_of_both_kinds(server: EmbeddedPostgres) -> None:
    """One that speaks 3.2, and one that does not."""
    with (
        Proxy(server) as proxy,
        Wire((proxy.host, proxy.port)) as client,
        sleeping(proxy, client, 2),
    ):
        wire.cancel((proxy.host, proxy.port), client.key)
