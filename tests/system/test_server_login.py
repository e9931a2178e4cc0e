"""Logins to real servers that ask for a password, message by message over a plain socket.

And PostgreSQL's word on what the proxy computes: its verifiers are those of the server.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.system.proxy import PATIENCE
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.core.handshake import (
    Credentials,
    ServerRefusal,
    Welcome,
    client_login,
    server_login,
)
from txproxy.errors import LoginError
from txproxy.wire.scram import ScramClient, Verifier, md5_hash

METHODS: Final = {"scram": "scram-sha-256", "hashed": "md5", "clear": "password"}
"""The users, and how the server asks each of them."""

PASSWORD: Final = "pencil with a p\u00e9rfectly normal name"

# What SASLprep maps, normalizes, or takes as it is because something in it is prohibited.
PASSWORDS: Final = (
    "pencil",
    "I\u00adX",
    "\u2168",
    "\u00aa",
    "e\u0301",
    "a\u00a0b",
    "a\u200bb",
    "\u00ad",
    "\x07e\u0301",
    "\u0340",
    "\u1d2c",
    "\u06271\u0628",
    "\u06271",
    "\u0627\u2168\u0627",
    "\ue000e\u0301",
    "\U0001f600e\u0301",
)


@pytest.fixture(scope="module", params=["new", "old"])
def guarded(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server of our own, which trusts nobody but postgres."""
    old = request.param == "old"
    bin_dir = request.getfixturevalue("debian_bin_dir") if old else None
    with EmbeddedPostgres(bin_dir=bin_dir) as server:
        with ask(server) as connection:
            for user, method in METHODS.items():
                encryption = "md5" if method == "md5" else "scram-sha-256"
                connection.execute(f"SET password_encryption = '{encryption}'")
                connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
            (hba,) = connection.execute("SHOW hba_file").fetchone() or ("",)
        lines = [f"host all {user} all {method}\n" for user, method in METHODS.items()]
        Path(hba).write_text("".join(lines) + "local all all trust\nhost all postgres all trust\n")
        server.restart()
        yield server


def ask(server: EmbeddedPostgres) -> psycopg.Connection[tuple[str]]:
    """The superuser's connection, by which the server is asked what it stores."""
    return psycopg.connect(
        host=server.host, port=server.port, user="postgres", dbname="postgres", autocommit=True
    )


def stored(server: EmbeddedPostgres, user: str) -> str:
    """What the server stores of a user's password."""
    with ask(server) as connection:
        found = connection.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [user]
        ).fetchone()
    assert found is not None
    return found[0]


async def log_in(
    server: EmbeddedPostgres,
    credentials: Credentials,
    *,
    minor: int = 0,
    parameters: tuple[tuple[str, str], ...] = (),
) -> Welcome:
    """One login, and the end of its connection."""
    login = server_login(credentials, "postgres", parameters, minor)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        async with asyncio.timeout(PATIENCE):
            out = next(login)
            while True:
                writer.write(out)
                kind, *length = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(length, "big") - 4)
                try:
                    out = login.send((kind, body))
                except StopIteration as done:
                    welcome: Welcome = done.value
                    return welcome
    finally:
        writer.close()
        await writer.wait_closed()


def assert_lets_in(server: EmbeddedPostgres, user: str, password: str) -> None:
    """A driver comes in by this password."""
    with psycopg.connect(
        host=server.host, port=server.port, user=user, dbname="postgres", password=password
    ) as connection:
        assert connection.execute("SELECT session_user::text").fetchone() == (user,)


@pytest.mark.parametrize("user", METHODS)
async def test_a_password_opens_every_server(guarded: EmbeddedPostgres, user: str) -> None:
    welcome = await log_in(guarded, Credentials.of(user, PASSWORD))
    assert welcome.pid > 0
    assert welcome.params["session_authorization"] == user


async def test_a_server_that_trusts_us_does_not_mind_a_password(guarded: EmbeddedPostgres) -> None:
    for secret in (None, PASSWORD, stored(guarded, "hashed")):
        assert (await log_in(guarded, Credentials.of("postgres", secret))).pid > 0


async def test_the_stored_hash_opens_an_md5_server(guarded: EmbeddedPostgres) -> None:
    secret = stored(guarded, "hashed")
    assert secret == md5_hash(PASSWORD, "hashed")
    assert (await log_in(guarded, Credentials.of("hashed", secret))).pid > 0


async def test_the_stored_verifier_opens_the_server_once_a_client_has_logged_in_by_it(
    guarded: EmbeddedPostgres,
) -> None:
    known = Credentials.of("scram", stored(guarded, "scram"))
    with pytest.raises(LoginError, match="no password that would do") as caught:
        await log_in(guarded, known)
    assert "same salt and iterations" in caught.value.hint
    login = client_login("scram-sha-256", "scram", known)
    client = ScramClient(PASSWORD, None, None)
    next(login)
    first = client.first()
    challenge = login.send(b"SCRAM-SHA-256\0" + len(first).to_bytes(4, "big") + first)
    with pytest.raises(StopIteration) as done:
        login.send(client.final(challenge[9:]))
    keys = done.value.value.keys
    assert (await log_in(guarded, known.with_keys(keys))).pid > 0


@pytest.mark.parametrize("user", METHODS)
async def test_a_wrong_password_is_the_servers_own_error(
    guarded: EmbeddedPostgres, user: str
) -> None:
    with pytest.raises(ServerRefusal) as caught:
        await log_in(guarded, Credentials.of(user, "guess"))
    assert caught.value.sqlstate == "28P01"
    assert caught.value.fields["V"] == "FATAL"
    assert caught.value.message == f'password authentication failed for user "{user}"'


@pytest.mark.parametrize("user", METHODS)
async def test_without_a_password_nothing_is_tried(guarded: EmbeddedPostgres, user: str) -> None:
    with pytest.raises(LoginError) as caught:
        await log_in(guarded, Credentials(user))
    assert f'{METHODS[user]} authentication of user "{user}"' in caught.value.message
    assert f"[users.{user}] password" in caught.value.hint


@pytest.mark.parametrize("minor", [0, 2])
async def test_the_newest_protocol_that_both_speak(guarded: EmbeddedPostgres, minor: int) -> None:
    welcome = await log_in(guarded, Credentials.of("scram", PASSWORD), minor=minor)
    if minor == 2 and int(guarded.version.partition(".")[0]) >= 18:
        assert (welcome.minor, len(welcome.secret)) == (2, 32)
    else:
        assert (welcome.minor, len(welcome.secret)) == (0, 4)


async def test_parameters_are_those_of_the_session(guarded: EmbeddedPostgres) -> None:
    asked = (("client_encoding", "LATIN1"), ("timezone", "Asia/Tokyo"))
    welcome = await log_in(guarded, Credentials.of("scram", PASSWORD), parameters=asked)
    assert welcome.params["client_encoding"] == "LATIN1"
    assert welcome.params["TimeZone"] == "Asia/Tokyo"


async def test_a_refused_parameter_is_the_servers_own_error(guarded: EmbeddedPostgres) -> None:
    with pytest.raises(ServerRefusal) as caught:
        await log_in(
            guarded, Credentials.of("scram", PASSWORD), parameters=(("timezone", "nowhere"),)
        )
    assert caught.value.sqlstate == "22023"


@pytest.mark.parametrize("password", PASSWORDS, ids=ascii)
async def test_verifiers_are_those_that_the_server_makes(
    guarded: EmbeddedPostgres, password: str
) -> None:
    """Both ways: the server's is ours, and by ours the server lets its owner in."""
    with ask(guarded) as connection:
        connection.execute(psycopg.sql.SQL("CREATE ROLE made PASSWORD {}").format(password))
        try:
            theirs = Verifier.parse(stored(guarded, "made"))
            assert theirs is not None
            assert Verifier.of(password, theirs.salt, theirs.iterations) == theirs
            ours = Verifier.of(password)
            connection.execute(f"ALTER ROLE scram PASSWORD '{ours}'")
            assert stored(guarded, "scram") == str(ours)
            assert_lets_in(guarded, "scram", password)
            assert (await log_in(guarded, Credentials.of("scram", password))).pid > 0
        finally:
            connection.execute("DROP ROLE made")
            connection.execute(
                psycopg.sql.SQL("ALTER ROLE scram PASSWORD {}").format(
                    psycopg.sql.Literal(PASSWORD)
                )
            )
