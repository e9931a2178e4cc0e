"""On to a server: with what a client has proven, over which hosts, and what is said first."""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.system import wire
from tests.system.proxy import (
    DATABASE,
    USER,
    Proxy,
    Table,
    ask,
    backends,
    direct,
    prepare,
    wait_until,
)
from tests.system.secure import (
    log_in_by_scram,
    pg_hba,
    secret_file,
    stored,
)
from tests.system.test_faults import FakeServer, read_startup
from tests.system.test_login import DRIVERS
from tests.system.wire import Closed, Message, Wire
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.wire.scram import Verifier

PASSWORD: Final = "pencil, se\u00f1or"
WRONG: Final = "pen"
LOGIN: Final = {"user": USER, "database": DATABASE}


# Servers that ask for a password themselves.

USERS: Final = {"scram": "scram-sha-256", "hashed": "md5", "clear": "password"}


@pytest.fixture(scope="module", params=["new", "old"])
def guarded(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server of our own that lets nobody in without a password."""
    old = request.param == "old"
    bin_dir = request.getfixturevalue("debian_bin_dir") if old else None
    settings = {"listen_addresses": "127.0.0.1, 127.0.0.2"}
    with EmbeddedPostgres(bin_dir=bin_dir, settings=settings) as server:
        prepare(server)
        with direct(server) as admin:
            for user, method in USERS.items():
                stored_as = "md5" if method == "md5" else "scram-sha-256"
                admin.execute(f"SET password_encryption = '{stored_as}'")
                admin.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
        lines = [f"host all {user} all {method}" for user, method in USERS.items()]
        with pg_hba(server, *lines):
            yield server


def in_front_of(
    server: EmbeddedPostgres,
    directory: Path,
    secrets: Mapping[str, str],
    *,
    method: str = "scram-sha-256",
    **database: Any,
) -> Proxy:
    """A proxy that knows these passwords."""
    return Proxy(
        server,
        proxy={"auth_type": method},
        databases={DATABASE: database},
        users={user: secret_file(directory, secret) for user, secret in secrets.items()},
        check=False,
    )


def whoami(proxy: Proxy, user: str, **arguments: Any) -> str:
    with proxy.connect(user=user, **arguments) as client:
        row = client.execute("SELECT session_user::text").fetchone()
        client.rollback()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("method", ["md5", "scram-sha-256"])
@pytest.mark.parametrize("user", USERS)
def test_a_plain_password_opens_every_server(
    guarded: EmbeddedPostgres, tmp_path: Path, user: str, method: str
) -> None:
    with in_front_of(guarded, tmp_path, {user: PASSWORD}, method=method) as proxy:
        assert whoami(proxy, user, password=PASSWORD) == user


def test_the_servers_own_verifier_is_enough(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    """Nobody has told the proxy the password: the first client's proof has the keys in it."""
    verifier = stored(guarded, "scram")
    assert verifier.startswith("SCRAM-SHA-256$")
    with in_front_of(guarded, tmp_path, {"scram": verifier}, pool_size=3) as proxy:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            proxy.connect(user="scram", password=WRONG)
        assert not backends(guarded)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                arguments = {"user": "scram", "password": PASSWORD}
                client = stack.enter_context(proxy.connect(**arguments))
                ask(client)
            assert len(backends(guarded)) == 3
        for driver in DRIVERS.values():
            driver(proxy, user="scram", password=PASSWORD)
        # new connections are made long after the client that gave the keys has left
        with direct(guarded) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'scram'"
            )
        assert not wait_until(lambda: backends(guarded), lambda found: not found)
        assert whoami(proxy, "scram", password=PASSWORD) == "scram"
        logged = proxy.log()
        assert PASSWORD not in logged
        assert verifier.rpartition("$")[2] not in logged


def test_the_stored_hash_opens_an_md5_server(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    with in_front_of(guarded, tmp_path, {"hashed": stored(guarded, "hashed")}, method="md5") as one:
        assert whoami(one, "hashed", password=PASSWORD) == "hashed"


def test_another_verifier_does_not_open_the_server(
    guarded: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The same password, another salt: the client is let in, and told what is wrong."""
    with (
        in_front_of(guarded, tmp_path, {"scram": str(Verifier.of(PASSWORD))}) as proxy,
        pytest.raises(psycopg.OperationalError, match="is not the proxy's"),
    ):
        proxy.connect(user="scram", password=PASSWORD)


def test_a_password_that_is_wrong_for_the_server(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    with in_front_of(guarded, tmp_path, {"scram": "another"}) as proxy:
        with pytest.raises(psycopg.OperationalError) as caught:
            proxy.connect(user="scram", password="another")
        assert 'password authentication failed for user "scram"' in str(caught.value)
        assert "another" not in proxy.log()


@pytest.mark.parametrize("client", ["scram", "stranger"])
def test_a_database_with_a_user_of_its_own(
    guarded: EmbeddedPostgres, tmp_path: Path, client: str
) -> None:
    """Whoever the client is, the server sees that one; by its own password, not the client's."""
    own = {"user": "clear", **secret_file(tmp_path, PASSWORD)}
    with in_front_of(guarded, tmp_path, {client: "client's own"}, **own) as proxy:
        assert whoami(proxy, client, password="client's own") == "clear"


def test_nobodys_password_is_used_for_somebody_else(
    guarded: EmbeddedPostgres, tmp_path: Path
) -> None:
    verifier = stored(guarded, "scram")
    with (
        in_front_of(guarded, tmp_path, {"scram": verifier}, user="clear") as proxy,
        pytest.raises(psycopg.OperationalError, match='user "clear"'),
    ):
        proxy.connect(user="scram", password=PASSWORD)


def test_a_password_of_the_database(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    """It goes before what the client has proven."""
    own = {"user": "scram", **secret_file(tmp_path, PASSWORD)}
    with in_front_of(guarded, tmp_path, {"scram": "client's own"}, **own) as proxy:
        assert whoami(proxy, "scram", password="client's own") == "scram"


def test_trusted_clients_and_a_server_that_asks(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    with in_front_of(guarded, tmp_path, {"scram": PASSWORD}, method="trust") as proxy:
        assert whoami(proxy, "scram") == "scram"
        with pytest.raises(psycopg.OperationalError, match="hashed"):
            proxy.connect(user="hashed")


# Where connections go, and how they begin.


def test_hosts_in_turn(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    hosts = ["127.0.0.1", "127.0.0.2"]
    for balance, expected in (("round-robin", {"127.0.0.1", "127.0.0.2"}), ("disable", {hosts[0]})):
        with in_front_of(
            guarded,
            tmp_path,
            {"scram": PASSWORD},
            host=hosts,
            load_balance_hosts=balance,
            pool_size=4,
        ) as proxy:
            with contextlib.ExitStack() as stack:
                seen = []
                for _ in range(4):
                    client = stack.enter_context(proxy.connect(user="scram", password=PASSWORD))
                    row = client.execute("SELECT host(inet_server_addr())").fetchone()
                    assert row is not None
                    seen.append(row[0])
            assert set(seen) == expected
            assert len(expected) == 1 or seen.count("127.0.0.1") == 2


@pytest.mark.parametrize("balance", ["round-robin", "disable"])
def test_a_host_that_is_down(guarded: EmbeddedPostgres, tmp_path: Path, balance: str) -> None:
    for hosts in (["127.0.0.3", "127.0.0.1"], ["127.0.0.1", "127.0.0.3"]):
        with (
            in_front_of(
                guarded,
                tmp_path,
                {"scram": PASSWORD},
                host=hosts,
                load_balance_hosts=balance,
                pool_size=4,
            ) as proxy,
            contextlib.ExitStack() as stack,
        ):
            for _ in range(4):
                ask(stack.enter_context(proxy.connect(user="scram", password=PASSWORD)))


def test_all_hosts_are_down(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    hosts = ["127.0.0.3", "127.0.0.4"]
    with in_front_of(
        guarded, tmp_path, {"scram": PASSWORD}, host=hosts, load_balance_hosts="disable"
    ) as proxy:
        with pytest.raises(psycopg.OperationalError) as caught:
            proxy.connect(user="scram", password=PASSWORD)
        assert f"could not connect to 127.0.0.4:{guarded.port}" in str(caught.value)
        assert PASSWORD not in proxy.log()


def test_a_host_that_says_nothing_takes_its_share_of_the_time(
    postgres: EmbeddedPostgres,
) -> None:
    """The next one still gets its turn."""
    hosts: Table = {"host": ["127.0.0.2", "127.0.0.1"], "load_balance_hosts": "disable"}
    settings = {"server_connect_timeout": "2s"}
    with (
        socket.create_server(("127.0.0.2", postgres.port)),
        Proxy(postgres, proxy=settings, databases={DATABASE: hosts}, check=False) as proxy,
        proxy.connect() as client,
    ):
        ask(client)
        client.rollback()


def test_a_query_at_the_beginning(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    query = "SELECT set_config('search_path', 'pg_catalog', false); SET TimeZone = 'Asia/Tokyo'"
    with (
        in_front_of(guarded, tmp_path, {"scram": PASSWORD}, connect_query=query) as proxy,
        proxy.connect(user="scram", password=PASSWORD) as client,
    ):
        assert client.info.parameter_status("TimeZone") == "Asia/Tokyo"
        assert client.execute("SHOW TimeZone").fetchone() == ("Asia/Tokyo",)
        assert client.execute("SHOW search_path").fetchone() == ("pg_catalog",)
        client.rollback()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT no_such_column", 'connect_query failed: column "no_such_column" does not exist'),
        ("SELECT 1/0; SELECT 1", "connect_query failed: division by zero"),
        ("BEGIN", "leaves a transaction open"),
        ("COPY pg_temp.x FROM STDIN", "connect_query failed"),
        ("CREATE TEMP TABLE t (); COPY t FROM STDIN", "must not COPY"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "terminating connection"),
    ],
)
def test_a_query_at_the_beginning_that_is_wrong(
    guarded: EmbeddedPostgres, tmp_path: Path, query: str, expected: str
) -> None:
    with in_front_of(guarded, tmp_path, {"scram": PASSWORD}, connect_query=query) as proxy:
        with pytest.raises(psycopg.OperationalError, match=expected):
            proxy.connect(user="scram", password=PASSWORD)
        assert not wait_until(lambda: backends(guarded), lambda found: not found)


def test_parameters_of_the_database(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    own = {"client_encoding": "LATIN1", "datestyle": "German, DMY", "timezone": "Asia/Tokyo"}
    with (
        in_front_of(guarded, tmp_path, {"scram": PASSWORD}, **own) as proxy,
        Wire((proxy.host, proxy.port)) as client,
    ):
        heard = log_in_by_scram(client, {"user": "scram", "database": DATABASE}, PASSWORD)
        told = dict(each.body.decode().split("\0")[:2] for each in heard if each.kind == "S")
        assert told["client_encoding"] == "LATIN1"
        assert told["DateStyle"] == "German, DMY"
        assert told["TimeZone"] == "Asia/Tokyo"
        assert client.value("SHOW DateStyle") == "German, DMY"


# Servers that do not log us in as they should.


def server_that(behave: Callable[[Wire], None]) -> FakeServer:
    def conversation(peer: Wire) -> None:
        read_startup(peer)
        behave(peer)

    return FakeServer(conversation)


def outcome(postgres: EmbeddedPostgres, fake: FakeServer, directory: Path) -> Message:
    """The FATAL that a client gets."""
    users = {USER: secret_file(directory, PASSWORD)}
    databases = {DATABASE: {"port": fake.port}}
    settings = {"auth_type": "trust", "server_tls_sslmode": "disable"}
    with Proxy(postgres, proxy=settings, databases=databases, users=users, check=False) as proxy:
        with Wire((proxy.host, proxy.port)) as client:
            client.send(wire.startup(LOGIN))
            [said] = client.rest()
        assert not proxy.events("bug")
        assert PASSWORD not in proxy.log()
    assert said.severity == "FATAL"
    return said


@pytest.mark.parametrize(
    ("fields", "sqlstate"),
    [
        (b"SFATAL\0Mno code\0\0", "08006"),
        (b"SFATAL\0C\0Mno code\0\0", "08006"),
        (b"SFATAL\0C123\0Mno code\0\0", "08006"),
        (b"\0", "08006"),
        (b"", "08006"),
        (b"SFATAL\0VFATAL\0C53300\0Mfull\0\0", "53300"),
    ],
)
def test_an_error_that_lacks_what_an_error_has(
    postgres: EmbeddedPostgres, tmp_path: Path, fields: bytes, sqlstate: str
) -> None:
    """CVE-2026-6666: an error without SQLSTATE."""
    with server_that(lambda peer: peer.send(wire.message(b"E", fields))) as fake:
        assert outcome(postgres, fake, tmp_path).sqlstate == sqlstate


def sasl(code: int, body: bytes) -> bytes:
    return wire.message(b"R", struct.pack("!i", code) + body)


@pytest.mark.parametrize(
    "challenge",
    [
        b"r=%b,s=QUJD,i=1000000000",
        b"r=%b,s=QUJD,i=99999999999999999999",
        b"r=%b,s=QUJD,i=0",
        b"r=%b,s=QUJD,i=-1",
        b"r=%b,s=,i=4096",
        b"r=%b,s=" + b"QUJD" * 100_000 + b",i=4096",
        b"r=%b" + b"x" * 500_000 + b",s=QUJD,i=4096",
        b"r=other,s=QUJD,i=4096",
        b"r=%b,i=4096",
        b"",
        b"\0" * 1000,
        b"r=%b,s=QUJD,i=4096,x=" + b"," * 100_000,
    ],
    ids=lambda challenge: repr(challenge[:30]),
)
def test_a_server_with_absurd_challenges(
    postgres: EmbeddedPostgres, tmp_path: Path, challenge: bytes
) -> None:
    """CVE-2026-6664, CVE-2026-6665."""

    def behave(peer: Wire) -> None:
        peer.send(sasl(10, b"SCRAM-SHA-256\0\0"))
        first = peer.read().body
        nonce = first.rpartition(b"r=")[2] + b"server"
        peer.send(sasl(11, challenge.replace(b"%b", nonce)))
        with pytest.raises(Closed):
            peer.read()

    with server_that(behave) as fake:
        assert outcome(postgres, fake, tmp_path).sqlstate in {"08P01", "28000", "28P01"}


def test_a_server_that_does_not_know_the_password(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """An impostor: it cannot sign, and gets nothing of the client's."""
    asked = []

    def behave(peer: Wire) -> None:
        peer.send(sasl(10, b"SCRAM-SHA-256\0\0"))
        nonce = peer.read().body.rpartition(b"r=")[2] + b"server"
        peer.send(sasl(11, b"r=" + nonce + b",s=QUJD,i=4096"))
        peer.read()
        ready = sasl(0, b"") + wire.message(b"Z", b"I")
        peer.send(sasl(12, b"v=" + b"A" * 43 + b"=") + ready)
        with contextlib.suppress(Closed):
            asked.append(peer.read())

    with server_that(behave) as fake:
        assert "signature" in outcome(postgres, fake, tmp_path).fields["M"]
    assert asked == []


@pytest.mark.parametrize("ready", [sasl(0, b""), sasl(12, b"v=QUJD"), wire.message(b"Z", b"I")])
def test_a_server_that_skips_its_proof(
    postgres: EmbeddedPostgres, tmp_path: Path, ready: bytes
) -> None:
    def behave(peer: Wire) -> None:
        peer.send(sasl(10, b"SCRAM-SHA-256\0\0"))
        peer.read()
        peer.send(ready + wire.message(b"Z", b"I"))
        with contextlib.suppress(Closed):
            peer.read()

    with server_that(behave) as fake:
        assert outcome(postgres, fake, tmp_path).sqlstate in {"08P01", "28000"}
