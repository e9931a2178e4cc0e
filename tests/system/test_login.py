"""Who gets in, how, and what the others learn: every way to authenticate, with real drivers."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import pytest

from tests.system import wire
from tests.system.proxy import (
    DATABASE,
    OTHER_USER,
    PATIENCE,
    USER,
    Proxy,
    Table,
    ask,
    direct,
    in_threads,
    prepare,
    token,
    wait_until,
)
from tests.system.secure import (
    Certificates,
    log_in_by_scram,
    password_message,
    sasl_initial,
    secret_file,
)
from tests.system.wire import Message, Wire
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.wire.scram import ScramClient, Verifier, md5_hash

PASSWORD: Final = "pencil, se\u00f1or"
WRONG: Final = "pen"
LOGIN: Final = {"user": USER, "database": DATABASE}

Connect = Callable[..., None]


# Drivers: each logs in, asks something, and leaves.


def by_psycopg3(proxy: Proxy, **arguments: Any) -> None:
    with proxy.connect(**arguments) as client:
        ask(client)
        client.rollback()


def by_psycopg2(proxy: Proxy, **arguments: Any) -> None:
    client = psycopg2.connect(**proxy.kwargs(**arguments))
    with contextlib.closing(client), client.cursor() as cursor:
        ask(cursor)
        client.rollback()


def by_asyncpg(proxy: Proxy, **arguments: Any) -> None:
    given = {"ssl": "disable", **arguments}
    mode = given.pop("sslmode", "")
    if mode:
        context = Certificates(Path(given["sslcert"]).parent).client("app")
        given = {key: value for key, value in given.items() if not key.startswith("ssl")}
        given["ssl"] = context

    async def run() -> None:
        client = await asyncpg.connect(**proxy.asyncpg(**given))
        try:
            expected = token()
            assert await client.fetchval("SELECT $1::text", expected) == expected
        finally:
            await client.close()

    asyncio.run(run())


def by_psql(proxy: Proxy, **arguments: Any) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("psql is not installed")
    done = subprocess.run(
        [psql, "-X", "-At", "-w", "-c", "SELECT 40 + 2", proxy.dsn(**arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    if done.returncode:
        raise psycopg.OperationalError(done.stderr)
    assert done.stdout == "42\n"


DRIVERS: Final[Mapping[str, Connect]] = {
    "psycopg3": by_psycopg3,
    "psycopg2": by_psycopg2,
    "asyncpg": by_asyncpg,
    "psql": by_psql,
}

REFUSALS: Final = (psycopg.OperationalError, psycopg2.OperationalError, asyncpg.PostgresError)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Connect:
    return DRIVERS[request.param]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# Passwords that the configuration knows, in front of a server that trusts us.

SECRETS: Final = {
    "plain": PASSWORD,
    "md5": md5_hash(PASSWORD, USER),
    "scram": str(Verifier.of(PASSWORD)),
}


@pytest.fixture(
    scope="module",
    params=[("md5", "plain"), ("md5", "md5"), ("md5", "scram"), ("scram", "plain"), ("scram",) * 2],
    ids="-".join,
)
def known(
    request: pytest.FixtureRequest,
    postgres: EmbeddedPostgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """A proxy that asks for a password which is stored in one of three ways."""
    method, secret = request.param
    directory = tmp_path_factory.mktemp("passwords")
    users: dict[str, Table] = {
        USER: secret_file(directory, SECRETS[secret]),
        OTHER_USER: secret_file(directory, str(Verifier.of("another"))),
        "nothing": {"pool_size": 1},
    }
    settings = {"auth_type": "scram-sha-256" if method == "scram" else "md5"}
    with Proxy(postgres, proxy=settings, users=users, check=False) as proxy:
        yield proxy


def test_the_right_password(known: Proxy, driver: Connect) -> None:
    known.mark()
    driver(known, password=PASSWORD)
    assert not known.events("login refused")


def test_a_wrong_password(known: Proxy, driver: Connect) -> None:
    known.mark()
    with pytest.raises(REFUSALS, match=f'password authentication failed for user "{USER}"'):
        driver(known, password=WRONG)
    refused = known.wait_for("login refused")
    assert refused["sqlstate"] == "28P01"
    assert refused["why"].endswith(": wrong password")


def test_no_password(known: Proxy) -> None:
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        known.connect()


@pytest.mark.parametrize("user", ["nobody at all", "nothing", "", "\u00fcber", "x" * 1000])
def test_users_that_have_none(known: Proxy, user: str) -> None:
    known.mark()
    with pytest.raises(psycopg.OperationalError) as caught:
        known.connect(user=user, password=PASSWORD)
    if user:
        assert f'password authentication failed for user "{user}"' in str(caught.value)
        assert "no password is known for it" in known.wait_for("login refused")["why"]


def test_no_secret_is_logged(known: Proxy) -> None:
    with pytest.raises(psycopg.OperationalError):
        known.connect(password=WRONG)
    by_psycopg3(known, password=PASSWORD)
    logged = known.log()
    verifier = Verifier.of(PASSWORD)
    for secret in (PASSWORD, WRONG, *SECRETS.values(), verifier.stored_key.hex()):
        assert secret not in logged.replace(f'"{USER}"', "")
    assert "SCRAM-SHA-256$" not in logged


def test_from_outside_all_who_may_not_in_are_alike(known: Proxy) -> None:
    """Wrong password, unknown user, user without a password, unknown database: the same steps, the
    same words.
    """
    seen = []
    for user, database in (
        (USER, DATABASE),
        (USER, "nowhere"),
        ("unknown", DATABASE),
        ("unknown", "nowhere"),
        ("nothing", DATABASE),
        ("nothing", "txproxy"),
        (USER, "txproxy"),
    ):
        with Wire((known.host, known.port)) as client:
            heard = attempt(client, user, database, WRONG)
        assert heard[-1].fields.pop("M").endswith(f'"{user}"')
        said = {**heard[-1].fields, "M": ""}
        seen.append((wire.kinds(heard), [each.body[:4] for each in heard[:-1]], said))
    # a user whose SCRAM verifier is known is asked for SCRAM by md5 too: that much is to be seen
    by_method = {tuple(map(tuple, steps)) for _, steps, _ in seen}
    assert len(by_method) == (2 if is_md5_with_verifier(known) else 1)
    assert all(said == seen[0][2] for _, _, said in seen)


def is_md5_with_verifier(proxy: Proxy) -> bool:
    path = str(proxy._users[USER]["password_file"])
    stores_verifier = Path(path).read_text(encoding="utf-8").startswith("SCRAM")
    return proxy._proxy["auth_type"] == "md5" and stores_verifier


def attempt(client: Wire, user: str, database: str, password: str) -> list[Message]:
    """A login with this password, by whatever we are asked for."""
    client.send(wire.startup({"user": user, "database": database}))
    heard = client.until("RE")
    method = struct.unpack_from("!i", heard[0].body)[0]
    if method == 5:
        client.send(password_message(b"md5" + b"0" * 32 + b"\0"))
        return [*heard, *client.until("E")]
    exchange = ScramClient(password, None, None)
    client.send(sasl_initial(exchange.first()))
    heard += client.until("RE")
    client.send(password_message(exchange.final(heard[-1].body[4:])))
    return [*heard, *client.until("E")]


def test_what_is_shown_of_unknown_users_does_not_change(known: Proxy) -> None:
    """Neither does it for known ones: a salt that is new each time would give unknown ones away."""
    if known._proxy["auth_type"] == "md5":
        return
    for user in (USER, "unknown"):
        challenges = set()
        for _ in range(3):
            with Wire((known.host, known.port)) as client:
                client.send(wire.startup({"user": user, "database": DATABASE}))
                client.until("R")
                client.send(sasl_initial(ScramClient(WRONG, None, None).first()))
                challenges.add(client.read().body.partition(b",")[2])
        assert len(challenges) == 1
        [shown] = challenges
        assert shown.endswith(b",i=4096")


def test_an_unknown_database_is_told_to_those_who_are_in(known: Proxy) -> None:
    with pytest.raises(psycopg.OperationalError, match='database "nowhere" does not exist'):
        known.connect(dbname="nowhere", password=PASSWORD)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        known.connect(dbname="nowhere", password=WRONG)


def test_a_flood_of_failures_does_no_harm(known: Proxy) -> None:
    """Those who are in work on, and nothing of the others stays."""
    with known.connect(password=PASSWORD, autocommit=True) as client:

        def fail(index: int) -> None:
            for _ in range(20):
                user = (USER, "unknown", f"unknown {index}")[index % 3]
                with Wire((known.host, known.port)) as attacker:
                    attempt(attacker, user, DATABASE, WRONG)

        def work(index: int) -> None:
            if index:
                fail(index)
            else:
                for _ in range(200):
                    ask(client)

        in_threads(work, 7)
        ask(client)


def test_parameters_come_in_with_a_password(known: Proxy) -> None:
    options = "-c search_path=pg_catalog -c txproxy.idle_transaction_timeout=5s"
    with known.connect(password=PASSWORD, options=options, application_name="x") as client:
        assert client.execute("SHOW search_path").fetchone() == ("pg_catalog",)
        assert client.execute("SHOW application_name").fetchone() == ("x",)
        client.rollback()
    with pytest.raises(psycopg.OperationalError, match="no_such_thing"):
        known.connect(password=PASSWORD, options="-c txproxy.no_such_thing=1")


def test_a_hash_that_does_not_fit_the_method(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    users = {
        USER: secret_file(tmp_path, SECRETS["md5"]),
        OTHER_USER: secret_file(tmp_path, str(Verifier.of("another"))),
    }
    settings = {"auth_type": "scram-sha-256"}
    with Proxy(postgres, proxy=settings, users=users, check=False) as proxy:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            proxy.connect(password=PASSWORD)
        assert "md5 hash" in proxy.wait_for("login refused")["why"]


def test_a_password_that_is_changed(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    setting = secret_file(tmp_path, SECRETS["scram"])
    settings = {"auth_type": "scram-sha-256"}
    with (
        Proxy(postgres, proxy=settings, users={USER: setting}, check=False) as proxy,
        proxy.connect(password=PASSWORD, autocommit=True) as before,
    ):
        Path(setting["password_file"]).write_text(str(Verifier.of("new")), encoding="utf-8")
        os.kill(proxy.pid, signal.SIGHUP)
        proxy.wait_for("reloaded")
        by_psycopg3(proxy, password="new")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            proxy.connect(password=PASSWORD)
        ask(before)


# Without a password.


def test_trust(postgres: EmbeddedPostgres, driver: Connect) -> None:
    with Proxy(postgres) as proxy:
        driver(proxy)
        driver(proxy, password="whatever")
        driver(proxy, host=proxy.socket_dir)
        event = proxy.wait_for("client connected", 3)
        assert (event["database"], event["user"], event["tls"]) == (DATABASE, USER, "")
        assert event["client"].startswith("unix pid=")
        assert proxy.wait_for("client disconnected", 3)["user"] == USER


def test_connections_need_not_be_logged(postgres: EmbeddedPostgres) -> None:
    settings = {"log_connections": False, "log_disconnections": False}
    with Proxy(postgres, proxy=settings) as proxy:
        by_psycopg3(proxy)
        wait_until(lambda: proxy.events("totals"), lambda _: True)
        assert not proxy.events("client connected")
        assert not proxy.events("client disconnected")


def test_certificates(
    postgres: EmbeddedPostgres, certificates: Certificates, driver: Connect
) -> None:
    settings = {
        "auth_type": "cert",
        "client_tls_sslmode": "verify-full",
        "client_tls_cert_file": certificates.file("server.crt"),
        "client_tls_key_file": certificates.file("server.key"),
        "client_tls_ca_file": certificates.file("authority.crt"),
    }

    def arguments(name: str) -> dict[str, str]:
        return {
            "host": "localhost",
            "sslmode": "verify-full",
            "sslrootcert": certificates.file("authority.crt"),
            "sslcert": certificates.file(f"{name}.crt"),
            "sslkey": certificates.file(f"{name}.key"),
        }

    with Proxy(postgres, proxy=settings, check=False) as proxy:
        driver(proxy, **arguments("app"))
        with pytest.raises(REFUSALS, match='cert authentication failed for user "other"'):
            driver(proxy, user=OTHER_USER, **arguments("app"))
        if driver is by_psycopg3:
            by_psycopg3(proxy, user=OTHER_USER, **arguments("other"))
            with pytest.raises(REFUSALS):
                by_psycopg3(proxy, **arguments("fake"))
            # where there is no TLS, there is no certificate
            with pytest.raises(REFUSALS, match="cert authentication failed"):
                by_psycopg3(proxy, host=proxy.socket_dir)
            with pytest.raises(REFUSALS, match="SSL required"):
                by_psycopg3(proxy, sslmode="disable")


@pytest.fixture(scope="module")
def myself(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The operating-system user that runs the tests, who exists on the server meanwhile."""
    name = pwd.getpwuid(os.getuid()).pw_name
    prepare(postgres)
    with direct(postgres) as admin:
        admin.execute(f'CREATE ROLE "{name}" LOGIN')
        yield name
        admin.execute(f'DROP ROLE "{name}"')


def test_peer(postgres: EmbeddedPostgres, myself: str, tmp_path: Path, driver: Connect) -> None:
    with Proxy(
        postgres, proxy={"auth_type": "peer", "listen": [f"unix:{tmp_path}"]}, check=False
    ) as proxy:
        # without a TCP address the socket has the default port
        here = {"host": str(tmp_path), "port": 6432}
        driver(proxy, user=myself, **here)
        with pytest.raises(REFUSALS, match=f'peer authentication failed for user "{USER}"'):
            driver(proxy, **here)


# What clients say that is no answer to what they are asked.


@pytest.fixture(scope="module")
def scram(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("passwords")
    users = {USER: secret_file(directory, SECRETS["scram"])}
    settings = {"auth_type": "scram-sha-256", "admin_users": [USER]}
    with Proxy(postgres, proxy=settings, users=users, check=False) as proxy:
        yield proxy


@contextlib.contextmanager
def challenged(proxy: Proxy) -> Iterator[Wire]:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.startup(LOGIN))
        assert client.until("RE")[-1].body == b"\0\0\0\nSCRAM-SHA-256\0\0"
        yield client


FIRST: Final = b"n,,n=,r=abcdefghijklmnop"


@pytest.mark.parametrize(
    "sent",
    [
        wire.query("SELECT 1"),
        wire.SYNC,
        wire.TERMINATE,
        wire.startup(LOGIN),
        wire.packet(wire.SSL_REQUEST),
        password_message(b""),
        password_message(b"x" * 2045),
        b"p" + struct.pack("!i", 4),
        b"p" + struct.pack("!i", 3),
        b"p" + struct.pack("!i", 0),
        b"p" + struct.pack("!i", -1),
        b"p" + struct.pack("!i", 0x7FFFFFFF),
        b"p" + struct.pack("!i", 2049) + b"x" * 2045,
        password_message(b"secret\0"),
        sasl_initial(FIRST, b"SCRAM-SHA-256-PLUS"),
        sasl_initial(FIRST, b"PLAIN"),
        sasl_initial(b""),
        password_message(b"SCRAM-SHA-256\0\xff\xff\xff\xff"),
        password_message(b"SCRAM-SHA-256\0\0\0\4\0" + FIRST),
        sasl_initial(b"p=tls-unique,,n=,r=abc"),
        sasl_initial(b"n,a=postgres,n=,r=abc"),
        sasl_initial(b"n,,m=x,n=,r=abc"),
        sasl_initial(b"n,,n=,r="),
        sasl_initial(b"n,,n=,r=" + b"x" * 2000),
        sasl_initial(b"n,,n=,r=a\0b"),
        sasl_initial(b"n,,n=,r=\xff\xfe"),
        sasl_initial(b"," * 2000),
        sasl_initial(b"n,,n=,r=abc\0"),
    ],
    ids=lambda sent: repr(sent[:40]),
)
def test_what_is_no_proof(scram: Proxy, sent: bytes) -> None:
    scram.mark()
    with challenged(scram) as client:
        client.send(sent)
        with contextlib.suppress(OSError):
            client.send(b"x" * 3000)
        [said] = client.rest()
        assert said.severity == "FATAL"
        assert said.sqlstate in {"08P01", "0A000"}
    assert not scram.events("bug")
    assert not scram.events("client connected")


@pytest.mark.parametrize(
    "final",
    [
        b"",
        b"c=biws",
        b"c=biws,r=%b",
        b"c=biws,r=%b,p=",
        b"c=biws,r=%b,p=AAAA",
        b"c=biws,r=%b,p=" + b"A" * 1500,
        b"c=biws,r=%bx,p=" + b"A" * 43 + b"=",
        b"c=eSws,r=%b,p=" + b"A" * 43 + b"=",
        b"r=%b,c=biws,p=" + b"A" * 43 + b"=",
        b"c=biws,r=%b,p=" + b"*" * 44,
        b"\0" * 100,
    ],
)
def test_what_is_no_final_message(scram: Proxy, final: bytes) -> None:
    with challenged(scram) as client:
        client.send(sasl_initial(FIRST))
        challenge = client.until("RE")[-1]
        assert challenge.kind == "R"
        nonce = challenge.body[4:].partition(b",")[0][2:]
        client.send(password_message(final.replace(b"%b", nonce)))
        said = client.rest()[-1]
        assert (said.severity, said.sqlstate) == ("FATAL", "08P01")
    assert not scram.events("bug")


def test_a_proof_that_is_used_again(scram: Proxy) -> None:
    exchange = ScramClient(PASSWORD, None, None)
    with challenged(scram) as client:
        client.send(sasl_initial(exchange.first()))
        final = exchange.final(client.until("R")[-1].body[4:])
        client.send(password_message(final))
        assert client.until("ZE")[-1].kind == "Z"
    with challenged(scram) as client:
        client.send(sasl_initial(exchange.first()))
        client.until("R")
        client.send(password_message(final))
        assert client.rest()[-1].severity == "FATAL"


def test_a_password_comes_in_pieces(scram: Proxy) -> None:
    exchange = ScramClient(PASSWORD, None, None)
    with challenged(scram) as client:
        client.send(*(bytes((byte,)) for byte in sasl_initial(exchange.first())))
        final = password_message(exchange.final(client.until("R")[-1].body[4:]))
        # and the first statement comes with its last piece
        expected = token()
        pieces = [bytes((byte,)) for byte in final]
        client.send(*pieces[:-1], pieces[-1] + wire.query(f"SELECT '{expected}'"))
        client.until("Z")
        assert wire.rows(client.until("Z")) == [[expected]]


def test_the_server_has_proven_itself_too(scram: Proxy) -> None:
    with Wire((scram.host, scram.port)) as client:
        heard = log_in_by_scram(client, LOGIN, PASSWORD)
    assert heard[-1].kind == "Z"
    assert [each.body[:4] for each in heard if each.kind == "R"] == [
        b"\0\0\0\n",
        b"\0\0\0\x0b",
        b"\0\0\0\x0c",
        b"\0\0\0\0",
    ]


def test_a_login_that_does_not_go_on(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    users = {USER: secret_file(tmp_path, SECRETS["scram"])}
    settings = {"auth_type": "scram-sha-256", "client_login_timeout": "3s"}
    with Proxy(postgres, proxy=settings, users=users, check=False) as proxy:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(challenged(proxy)) for _ in range(20)]
            for number, client in enumerate(clients):
                if number % 2:
                    client.send(sasl_initial(FIRST)[:number])
            for client in clients:
                assert client.rest() == []
        by_psycopg3(proxy, password=PASSWORD)


def test_clients_that_leave_in_the_middle(scram: Proxy) -> None:
    for number in range(40):
        with challenged(scram) as client:
            client.send(sasl_initial(FIRST)[: number * 2])
            if number % 2:
                client.reset()
    by_psycopg3(scram, password=PASSWORD)


# Limits hold for those who are known.


def test_limits_are_told_to_those_who_are_in(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    limited: Table = {**secret_file(tmp_path, SECRETS["scram"]), "max_user_client_connections": 1}
    settings = {"auth_type": "scram-sha-256"}
    with (
        Proxy(postgres, proxy=settings, users={USER: limited}, check=False) as proxy,
        proxy.connect(password=PASSWORD),
    ):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            proxy.connect(password=WRONG)
        with pytest.raises(psycopg.OperationalError, match="max_user_client_connections"):
            proxy.connect(password=PASSWORD)
