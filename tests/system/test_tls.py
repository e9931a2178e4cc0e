"""TLS on both sides: with clients as libpq and asyncpg speak it, and with servers.

What is said before the handshake is never taken for something that was said inside.
"""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import pytest

from tests.system import wire
from tests.system.proxy import (
    DATABASE,
    PATIENCE,
    USER,
    Proxy,
    ask,
    backends,
    token,
    wait_until,
)
from tests.system.secure import (
    SSL_REQUEST,
    Certificates,
    InPieces,
    Terminator,
    pg_hba,
    tls_wire,
    with_tls,
)
from tests.system.test_faults import FakeServer
from tests.system.wire import Closed, Wire
from txproxy.cli.embedded import EmbeddedPostgres

LOGIN: Final = {"user": USER, "database": DATABASE}
TLS: Final = "TLS"
PLAIN: Final = "plain"
REFUSED: Final = "refused"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def client_tls(certificates: Certificates, mode: str, **settings: str) -> dict[str, str]:
    """The settings of [proxy] for a proxy that offers TLS."""
    return {
        "client_tls_sslmode": mode,
        "client_tls_cert_file": certificates.file("server.crt"),
        "client_tls_key_file": certificates.file("server.key"),
        "client_tls_ca_file": certificates.file("authority.crt"),
        **settings,
    }


@pytest.fixture(scope="module")
def proxy_settings(certificates: Certificates) -> Mapping[str, Any]:
    return {"proxy": client_tls(certificates, "allow")}


@pytest.fixture(scope="module")
def module_proxy(postgres: EmbeddedPostgres, proxy_settings: Mapping[str, Any]) -> Iterator[Proxy]:
    with Proxy(postgres, **proxy_settings) as proxy:
        yield proxy


def ssl_arguments(certificates: Certificates, mode: str, **more: str) -> dict[str, Any]:
    """What libpq is told: our authority, and no certificate of its own unless `more` names one."""
    named = {
        "sslrootcert": certificates.file("authority.crt"),
        "sslcert": "/nowhere",
        "sslkey": "/nowhere",
    }
    given = named if mode.startswith("verify") else {**named, "sslrootcert": "/nowhere"}
    return {"host": "localhost", "sslmode": mode, **given, **more}


def of_app(certificates: Certificates, name: str = "app") -> dict[str, str]:
    return {
        "sslcert": certificates.file(f"{name}.crt"),
        "sslkey": certificates.file(f"{name}.key"),
    }


def outcome(proxy: Proxy, **arguments: Any) -> str:
    try:
        with proxy.connect(**arguments) as client:
            ask(client)
            return TLS if client.pgconn.ssl_in_use else PLAIN
    except psycopg.OperationalError:
        return REFUSED


# Clients: who gets TLS, and who gets in.

OUTCOMES: Final = {
    "disable": {"disable": PLAIN, "allow": PLAIN, "prefer": PLAIN, "require": REFUSED},
    "allow": {"disable": PLAIN, "allow": PLAIN, "prefer": TLS, "require": TLS},
    "prefer": {"disable": PLAIN, "allow": PLAIN, "prefer": TLS, "require": TLS},
    "require": {"disable": REFUSED, "allow": TLS, "prefer": TLS, "require": TLS},
    "verify-ca": dict.fromkeys(("disable", "allow", "prefer", "require"), REFUSED),
    "verify-full": dict.fromkeys(("disable", "allow", "prefer", "require"), REFUSED),
}


@pytest.mark.parametrize("ours", OUTCOMES)
def test_each_mode_against_each_of_libpqs(
    postgres: EmbeddedPostgres, certificates: Certificates, ours: str
) -> None:
    settings = {} if ours == "disable" else client_tls(certificates, ours)
    with Proxy(postgres, proxy=settings, check=False) as proxy:
        for theirs, expected in OUTCOMES[ours].items():
            arguments = ssl_arguments(certificates, theirs)
            assert outcome(proxy, **arguments) == expected, theirs
            if ours.startswith("verify") and theirs != "disable":
                named = {**arguments, **of_app(certificates)}
                assert outcome(proxy, **named) == TLS, theirs
                fake = {**arguments, **of_app(certificates, "fake")}
                assert outcome(proxy, **fake) == REFUSED, theirs
        # over the unix socket there is no TLS, and none is missed
        over_unix = {**ssl_arguments(certificates, "prefer"), "host": proxy.socket_dir}
        assert outcome(proxy, **over_unix) == PLAIN
        if ours in {"require", "verify-ca", "verify-full"}:
            with Wire((proxy.host, proxy.port)) as client:
                client.send(wire.startup(LOGIN))
                [said] = client.rest()
            assert (said.severity, said.sqlstate) == ("FATAL", "28000")
            assert said.fields["M"] == "SSL required"


def test_clients_that_verify_us(proxy: Proxy, certificates: Certificates) -> None:
    for mode in ("verify-ca", "verify-full"):
        assert outcome(proxy, **ssl_arguments(certificates, mode)) == TLS
    strangers = {"sslrootcert": certificates.file("stranger.crt")}
    for mode in ("verify-ca", "verify-full"):
        assert outcome(proxy, **ssl_arguments(certificates, mode, **strangers)) == REFUSED
    refused = proxy.wait_for("login refused")
    assert "TLS handshake failed" in refused["why"]


def test_a_certificate_of_another_host(
    postgres: EmbeddedPostgres, certificates: Certificates
) -> None:
    settings = client_tls(
        certificates,
        "allow",
        client_tls_cert_file=certificates.file("elsewhere.crt"),
        client_tls_key_file=certificates.file("elsewhere.key"),
    )
    with Proxy(postgres, proxy=settings) as proxy:
        assert outcome(proxy, **ssl_arguments(certificates, "verify-ca")) == TLS
        assert outcome(proxy, **ssl_arguments(certificates, "verify-full")) == REFUSED


# Drivers.


@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
def test_psycopg3(proxy: Proxy, certificates: Certificates, negotiation: str) -> None:
    arguments = ssl_arguments(certificates, "verify-full", sslnegotiation=negotiation)
    with proxy.connect(**arguments) as client:
        assert client.pgconn.ssl_in_use
        for _ in range(10):
            ask(client)
        client.commit()
        event = proxy.wait_for("client connected")
        assert event["tls"].startswith("TLSv1.3/")


@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
def test_psycopg2(proxy: Proxy, certificates: Certificates, negotiation: str) -> None:
    arguments = ssl_arguments(certificates, "verify-full", sslnegotiation=negotiation)
    client = psycopg2.connect(**proxy.kwargs(**arguments))
    with contextlib.closing(client), client.cursor() as cursor:
        assert client.info.ssl_in_use
        ask(cursor)
        client.rollback()


@pytest.mark.parametrize("direct_tls", [False, True])
async def test_asyncpg(proxy: Proxy, certificates: Certificates, direct_tls: bool) -> None:
    context = certificates.client()
    arguments = proxy.asyncpg(host="localhost", ssl=context, direct_tls=direct_tls)
    client = await asyncpg.connect(**arguments)
    try:
        for _ in range(10):
            expected = token()
            assert await client.fetchval("SELECT $1::text", expected) == expected
        assert client._transport.get_extra_info("ssl_object").version() == "TLSv1.3"
    finally:
        await client.close()


def test_psql(proxy: Proxy, certificates: Certificates) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("psql is not installed")
    dsn = proxy.dsn(**ssl_arguments(certificates, "verify-full"))
    done = subprocess.run(
        [psql, "-X", "-At", "-c", r"\conninfo", "-c", "SELECT 40 + 2", dsn],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert "SSL connection (protocol: TLSv1.3" in done.stdout
    assert done.stdout.splitlines()[-1] == "42"


def test_much_data_both_ways(proxy: Proxy, certificates: Certificates) -> None:
    size = 30 << 20
    with proxy.connect(**ssl_arguments(certificates, "require")) as client:
        row = client.execute("SELECT repeat('x', %s)", [size]).fetchone()
        assert row is not None
        assert len(row[0]) == size
        client.execute("CREATE TEMP TABLE much (line text)")
        with client.cursor().copy("COPY much FROM STDIN") as copy:
            for _ in range(size >> 10):
                copy.write("y" * 1023 + "\n")
        count = client.execute("SELECT sum(length(line)) FROM much").fetchone()
        assert count == ((size >> 10) * 1023,)
        client.rollback()


def test_a_client_that_does_not_read(proxy: Proxy, certificates: Certificates) -> None:
    """What it does not take stays with the server, and then it takes it."""
    with tls_wire((proxy.host, proxy.port), certificates.client()) as client:
        client.send(wire.startup(LOGIN))
        client.until("Z")
        client.send(wire.query("SELECT repeat('x', 1000) FROM generate_series(1, 50000)"))
        wait_until(
            lambda: backends(proxy.server),
            lambda found: any("generate_series" in each.query for each in found),
        )
        with proxy.connect() as other:
            ask(other)
        answer = client.until("Z")
        assert wire.kinds(answer).count("D") == 50_000


def test_a_running_statement_is_cancelled(proxy: Proxy, certificates: Certificates) -> None:
    with proxy.connect(autocommit=True, **ssl_arguments(certificates, "verify-full")) as client:

        def cancel_it() -> None:
            wait_until(
                lambda: backends(proxy.server),
                lambda found: any("pg_sleep" in each.query for each in found),
            )
            # libpq 17 and later: the request goes over TLS too
            client.cancel_safe()

        with pytest.raises(psycopg.errors.QueryCanceled), in_thread(cancel_it):
            client.execute("SELECT pg_sleep(1000)")
        ask(client)


@contextlib.contextmanager
def in_thread(work: Any) -> Iterator[None]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(work)
        yield
        done.result()


# The moment of the handshake.


def test_bytes_behind_the_request_are_not_read_as_if_they_came_inside(
    proxy: Proxy, certificates: Certificates
) -> None:
    """CVE-2021-23214: somebody in between has put them there."""
    address = (proxy.host, proxy.port)
    injected = wire.startup({**LOGIN, "application_name": "injected"})
    with Wire(address) as client:
        client.send(SSL_REQUEST + injected)
        assert client.socket.recv(100) == b""
    with Wire(address) as client:
        client.send(SSL_REQUEST)
        assert client.socket.recv(1) == b"S"
        client.send(injected)
        # no more than an alert of TLS
        assert b"injected" not in client.socket.recv(1000)
        with pytest.raises(ssl.SSLError):
            certificates.client().wrap_socket(client.socket, server_hostname="localhost")
    with Wire(address) as client:
        client.send(SSL_REQUEST[:5])
        client.send(SSL_REQUEST[5:] + b"x")
        assert client.socket.recv(100) == b""
    assert not proxy.events("client connected")


def test_the_request_comes_in_pieces(proxy: Proxy, certificates: Certificates) -> None:
    with socket.create_connection((proxy.host, proxy.port), PATIENCE) as plain:
        for byte in SSL_REQUEST:
            plain.sendall(bytes((byte,)))
        assert plain.recv(2) == b"S"
        with certificates.client().wrap_socket(plain, server_hostname="localhost") as inside:
            assert works(inside)


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("direct_tls", [False, True])
def test_the_handshake_comes_in_pieces(
    proxy: Proxy, certificates: Certificates, size: int, direct_tls: bool
) -> None:
    with socket.create_connection((proxy.host, proxy.port), PATIENCE) as plain:
        if not direct_tls:
            plain.sendall(SSL_REQUEST)
            assert plain.recv(2) == b"S"
        client = InPieces(plain, certificates.client(), size)
        client.handshake()
        client.send(wire.startup(LOGIN))
        said = b""
        while not said.endswith(b"Z\0\0\0\5I"):
            said += client.receive()


def works(inside: socket.socket) -> bool:
    client = Wire.of(inside)
    client.send(wire.startup(LOGIN))
    client.until("Z")
    expected = token()
    return client.value(f"SELECT '{expected}'") == expected


def test_encryption_is_asked_for_inside_encryption(
    proxy: Proxy, certificates: Certificates
) -> None:
    for code in (wire.SSL_REQUEST, wire.GSS_REQUEST):
        with tls_wire((proxy.host, proxy.port), certificates.client()) as client:
            client.send(wire.packet(code))
            assert client.socket.recv(10) == b""


def test_kerberos_first_then_tls(proxy: Proxy, certificates: Certificates) -> None:
    with socket.create_connection((proxy.host, proxy.port), PATIENCE) as plain:
        plain.sendall(wire.packet(wire.GSS_REQUEST))
        assert plain.recv(2) == b"N"
        plain.sendall(SSL_REQUEST)
        assert plain.recv(2) == b"S"
        with certificates.client().wrap_socket(plain, server_hostname="localhost") as inside:
            assert works(inside)


def test_asked_for_and_not_used(proxy: Proxy) -> None:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(SSL_REQUEST)
        assert client.socket.recv(1) == b"S"
    refused = proxy.wait_for("login refused")
    assert "TLS handshake failed" in refused["why"]


def test_direct_tls_needs_its_name(proxy: Proxy, certificates: Certificates) -> None:
    """As PostgreSQL has it: else TLS that was meant for another service could be led to us."""
    address = (proxy.host, proxy.port)
    with tls_wire(address, certificates.client(), direct_tls=True) as client:
        client.send(wire.startup(LOGIN))
        assert client.until("ZE")[-1].kind == "Z"
    for alpn in ("", "http/1.1"):
        context = certificates.client(alpn=alpn)
        with (
            contextlib.suppress(ssl.SSLError),
            tls_wire(address, context, direct_tls=True) as client,
        ):
            with contextlib.suppress(OSError):
                client.send(wire.startup(LOGIN))
            [said] = client.rest()
            assert (said.severity, said.sqlstate) == ("FATAL", "08P01")
    assert len(proxy.events("client connected")) == 1


def test_a_handshake_that_does_not_end(
    postgres: EmbeddedPostgres, certificates: Certificates
) -> None:
    settings: dict[str, str | int] = {
        **client_tls(certificates, "require"),
        "client_login_timeout": "3s",
        "max_client_conn": 20,
    }
    with Proxy(postgres, proxy=settings) as proxy:
        address = (proxy.host, proxy.port)
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(Wire(address)) for _ in range(15)]
            for number, each in enumerate(silent):
                if number % 3:
                    each.send(SSL_REQUEST)
                    assert each.socket.recv(1) == b"S"
                if number % 3 != 1:
                    each.send(b"\x16\x03\x01\x02")
            for each in silent:
                assert each.socket.recv(100) == b""
        # their places are free
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(proxy.connect(**ssl_arguments(certificates, "require")))


def test_only_the_newest_version(postgres: EmbeddedPostgres, certificates: Certificates) -> None:
    settings = client_tls(certificates, "require", client_tls_protocols="tlsv1.3")
    with Proxy(postgres, proxy=settings) as proxy:
        require = ssl_arguments(certificates, "require")
        assert outcome(proxy, **require) == TLS
        assert outcome(proxy, ssl_max_protocol_version="TLSv1.2", **require) == REFUSED


def test_ciphers(postgres: EmbeddedPostgres, certificates: Certificates) -> None:
    cipher = "ECDHE-ECDSA-CHACHA20-POLY1305"
    settings = client_tls(
        certificates, "require", client_tls_protocols="tlsv1.2", client_tls_ciphers=cipher
    )
    with Proxy(postgres, proxy=settings) as proxy:
        assert outcome(proxy, **ssl_arguments(certificates, "require")) == TLS
        assert proxy.wait_for("client connected")["tls"] == f"TLSv1.2/{cipher}"


def test_a_new_certificate_is_used_after_a_reload(
    postgres: EmbeddedPostgres, certificates: Certificates, tmp_path: Path
) -> None:
    own = {"client_tls_cert_file": "cert", "client_tls_key_file": "key"}

    def use(name: str) -> None:
        shutil.copyfile(certificates.file(f"{name}.crt"), tmp_path / "cert")
        shutil.copyfile(certificates.file(f"{name}.key"), tmp_path / "key")

    use("elsewhere")
    settings = client_tls(
        certificates, "allow", **{key: str(tmp_path / name) for key, name in own.items()}
    )
    full = ssl_arguments(certificates, "verify-full")
    with (
        Proxy(postgres, proxy=settings) as proxy,
        proxy.connect(**ssl_arguments(certificates, "require")) as client,
    ):
        assert outcome(proxy, **full) == REFUSED
        use("server")
        os.kill(proxy.pid, signal.SIGHUP)
        proxy.wait_for("reloaded")
        assert outcome(proxy, **full) == TLS
        (tmp_path / "cert").write_text("no certificate")
        os.kill(proxy.pid, signal.SIGHUP)
        event = proxy.wait_for("not reloaded")
        assert "client_tls_cert_file" in event["why"]
        assert outcome(proxy, **full) == TLS
        ask(client)
        client.rollback()


# Servers.


@pytest.fixture(scope="module")
def secured(debian_bin_dir: Path, certificates: Certificates) -> Iterator[EmbeddedPostgres]:
    """A server of ours that offers TLS; the embedded one is built without."""
    settings = {"listen_addresses": "127.0.0.1, 127.0.0.2"}
    with EmbeddedPostgres(bin_dir=debian_bin_dir, settings=settings) as server:
        with_tls(server, certificates)
        yield server


def server_tls(certificates: Certificates, mode: str, **settings: str) -> dict[str, str]:
    """The settings of [proxy] for a proxy that asks servers for TLS."""
    return {
        "server_tls_sslmode": mode,
        "server_tls_ca_file": certificates.file("authority.crt"),
        **settings,
    }


def to_server(server: EmbeddedPostgres, host: str = "localhost", **settings: str) -> Proxy:
    return Proxy(server, proxy=settings, databases={DATABASE: {"host": host}}, check=False)


def seen(proxy: Proxy) -> str:
    """How the server sees the proxy's connection."""
    try:
        with proxy.connect() as client:
            row = client.execute(
                "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            ).fetchone()
            client.rollback()
    except psycopg.OperationalError as error:
        return str(error)
    assert row is not None
    return TLS if row[0] else PLAIN


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("disable", PLAIN),
        ("allow", PLAIN),
        ("prefer", TLS),
        ("require", TLS),
        ("verify-ca", TLS),
        ("verify-full", TLS),
    ],
)
def test_each_mode_with_a_server(
    secured: EmbeddedPostgres, certificates: Certificates, mode: str, expected: str
) -> None:
    with to_server(secured, **server_tls(certificates, mode)) as proxy:
        assert seen(proxy) == expected


@pytest.mark.parametrize(
    ("line", "mode", "expected"),
    [
        ("hostssl all all all trust", "disable", REFUSED),
        ("hostssl all all all trust", "allow", TLS),
        ("hostssl all all all trust", "prefer", TLS),
        ("hostnossl all all all trust", "allow", PLAIN),
        ("hostnossl all all all trust", "prefer", PLAIN),
        ("hostnossl all all all trust", "require", REFUSED),
    ],
)
def test_a_server_that_wants_one_or_the_other(
    secured: EmbeddedPostgres, certificates: Certificates, line: str, mode: str, expected: str
) -> None:
    with pg_hba(secured, line), to_server(secured, **server_tls(certificates, mode)) as proxy:
        found = seen(proxy)
        if expected == REFUSED:
            assert "no pg_hba.conf entry" in found
        else:
            assert found == expected


def test_a_server_of_another_name(secured: EmbeddedPostgres, certificates: Certificates) -> None:
    """Its certificate is for localhost and 127.0.0.1, not for 127.0.0.2."""
    for mode, expected in (("verify-ca", TLS), ("verify-full", REFUSED)):
        with to_server(secured, "127.0.0.2", **server_tls(certificates, mode)) as proxy:
            found = seen(proxy)
            if expected == REFUSED:
                assert "the certificate of 127.0.0.2" in found
                assert "IP address mismatch" in found
            else:
                assert found == TLS


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_a_server_that_nobody_vouches_for(
    secured: EmbeddedPostgres, certificates: Certificates, mode: str
) -> None:
    strangers = {"server_tls_ca_file": certificates.file("stranger.crt")}
    for settings in (strangers, {"server_tls_ca_file": ""}):
        with to_server(secured, **{**server_tls(certificates, mode), **settings}) as proxy:
            assert "the certificate of localhost" in seen(proxy)
            assert not backends(secured)


def test_our_own_certificate(secured: EmbeddedPostgres, certificates: Certificates) -> None:
    """A server that knows us by it: pg_hba's method cert."""
    for name, expected in (("app", TLS), ("other", REFUSED), ("fake", REFUSED)):
        own = {
            "server_tls_cert_file": certificates.file(f"{name}.crt"),
            "server_tls_key_file": certificates.file(f"{name}.key"),
        }
        settings = server_tls(certificates, "verify-full", **own)
        with (
            pg_hba(secured, "hostssl all all all cert"),
            to_server(secured, **settings) as proxy,
        ):
            assert (seen(proxy) == TLS) == (expected == TLS), name


# Servers of the tests' own.


@contextlib.contextmanager
def behind(terminator: Terminator, server: EmbeddedPostgres, **settings: str) -> Iterator[Proxy]:
    """A proxy whose server is behind this terminator."""
    with FakeServer(terminator) as fake:
        databases = {DATABASE: {"host": "localhost", "port": fake.port, "pool_size": 1}}
        with Proxy(server, proxy=settings, databases=databases, check=False) as proxy:
            yield proxy


def test_a_cancel_request_goes_over_tls_too(
    postgres: EmbeddedPostgres, certificates: Certificates
) -> None:
    terminator = Terminator(postgres, certificates.server())
    settings = server_tls(certificates, "verify-full")
    with behind(terminator, postgres, **settings) as proxy:
        with Wire.log_in((proxy.host, proxy.port), **LOGIN) as client:
            client.send(wire.query("SELECT pg_sleep(1000)"))
            wait_until(
                lambda: backends(postgres),
                lambda found: any("pg_sleep" in each.query for each in found),
            )
            wire.cancel((proxy.host, proxy.port), client.key)
            assert wire.errors(client.until("Z"))[0].sqlstate == "57014"
        codes = [code for code, _ in terminator.packets]
        assert wire.CANCEL_REQUEST in codes
        assert all(secure for _, secure in terminator.packets)
        new = int(postgres.version.partition(".")[0]) >= 18
        length = terminator.lengths[codes.index(wire.CANCEL_REQUEST)]
        assert length == (12 + 32 if new else 12 + 4)


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-full"])
@pytest.mark.parametrize("answer", [b"N", b"SX", b"E\0\0\0\x10SFATAL\0\0", b"X", b"NN"])
def test_other_answers_than_one_letter(
    postgres: EmbeddedPostgres, certificates: Certificates, mode: str, answer: bytes
) -> None:
    """What comes behind the S was not encrypted (CVE-2021-23222); nothing of it is believed."""
    terminator = Terminator(postgres, certificates.server(), answer)
    with behind(terminator, postgres, **server_tls(certificates, mode)) as proxy:
        if mode == "prefer":
            with proxy.connect() as client:
                ask(client)
                client.rollback()
            assert not any(secure for _, secure in terminator.packets)
        else:
            with pytest.raises(psycopg.OperationalError) as caught:
                proxy.connect()
            expected = "does not offer TLS" if answer == b"N" else "no proper answer"
            assert expected in str(caught.value)
            assert terminator.packets == []


@pytest.mark.parametrize("mode", ["prefer", "require"])
def test_a_handshake_that_fails(
    postgres: EmbeddedPostgres, certificates: Certificates, mode: str
) -> None:
    """With prefer it goes without TLS then, as libpq does."""
    old = certificates.server()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    terminator = Terminator(postgres, old)
    settings = server_tls(certificates, mode, server_tls_protocols="tlsv1.3")
    with behind(terminator, postgres, **settings) as proxy:
        if mode == "prefer":
            with proxy.connect() as client:
                ask(client)
                client.rollback()
            assert [secure for _, secure in terminator.packets] == [False]
            assert "TLS handshake" in proxy.wait_for("another way")["why"]
        else:
            with pytest.raises(psycopg.OperationalError, match="TLS handshake"):
                proxy.connect()


def test_much_data_from_a_server(postgres: EmbeddedPostgres, certificates: Certificates) -> None:
    terminator = Terminator(postgres, certificates.server())
    size = 10 << 20
    with (
        behind(terminator, postgres, **server_tls(certificates, "require")) as proxy,
        proxy.connect() as client,
    ):
        row = client.execute("SELECT repeat('x', %s), length(%s)", [size, "y" * size]).fetchone()
        assert row == ("x" * size, size)
        client.rollback()


def test_a_server_that_goes_away_during_the_handshake(
    postgres: EmbeddedPostgres, certificates: Certificates
) -> None:
    def behave(peer: Wire) -> None:
        if peer.socket.recv(8, socket.MSG_WAITALL) == SSL_REQUEST:
            peer.send(b"S")
            peer.socket.recv(100)
        raise Closed([])

    with FakeServer(behave) as fake:
        databases = {DATABASE: {"host": "localhost", "port": fake.port}}
        settings = server_tls(certificates, "require")
        with (
            Proxy(postgres, proxy=settings, databases=databases, check=False) as proxy,
            pytest.raises(psycopg.OperationalError, match="TLS handshake"),
        ):
            proxy.connect()
