"""Passwords that only the server knows: the proxy asks for them, on connections of its own."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import psycopg
import pytest

from tests.system import wire
from tests.system.proxy import (
    DATABASE,
    USER,
    Proxy,
    Table,
    backends,
    direct,
    prepare,
    wait_until,
)
from tests.system.secure import (
    Certificates,
    log_in_by_scram,
    password_message,
    pg_hba,
    sasl_initial,
    secret_file,
    stored,
    with_tls,
)
from tests.system.test_login import DRIVERS
from tests.system.wire import Message, Wire
from txproxy import config
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.net import auth
from txproxy.wire.scram import ScramClient, Verifier

PASSWORD: Final = "pencil, se\u00f1or"
WRONG: Final = "pen"
ASKER: Final = "asker"
SUPER_ASKER: Final = "super_asker"
ASKERS_PASSWORD: Final = "may I?"
APPLICATION: Final = "txproxy auth_query"
SHADOW: Final = "SELECT usename, passwd FROM pg_shadow WHERE usename = $1"
GET_AUTH: Final = "SELECT * FROM auth.get_auth($1)"

ROLES: Final = {
    "scram": "LOGIN PASSWORD '%s'",
    "timeless": "LOGIN PASSWORD '%s' VALID UNTIL 'infinity'",
    "fresh": "LOGIN PASSWORD '%s' VALID UNTIL '2100-01-01'",
    "expired": "LOGIN PASSWORD '%s' VALID UNTIL '2000-01-01'",
    "dead": "LOGIN PASSWORD '%s' VALID UNTIL '-infinity'",
    "bare": "LOGIN",
    "crowd": "NOLOGIN PASSWORD '%s'",
}


@contextlib.contextmanager
def guard(bin_dir: Path | None) -> Iterator[EmbeddedPostgres]:
    """A server of our own that lets nobody in without a password."""
    with EmbeddedPostgres(bin_dir=bin_dir) as server:
        prepare(server)
        with direct(server) as admin:
            for role, clauses in ROLES.items():
                admin.execute(f"CREATE ROLE {role} " + clauses.replace("%s", PASSWORD))
            admin.execute("SET password_encryption = 'md5'")
            admin.execute(f"CREATE ROLE hashed LOGIN PASSWORD '{PASSWORD}'")
            admin.execute("SET password_encryption = 'scram-sha-256'")
            for asker, clause in ((ASKER, ""), (SUPER_ASKER, "SUPERUSER")):
                admin.execute(f"CREATE ROLE {asker} {clause} LOGIN PASSWORD '{ASKERS_PASSWORD}'")
            # as PgBouncer's documentation has it
            admin.execute("CREATE SCHEMA auth")
            admin.execute("CREATE SEQUENCE auth.calls")
            admin.execute(f"GRANT USAGE ON SCHEMA auth TO {ASKER}")
            admin.execute(
                """CREATE FUNCTION auth.get_auth(name text, OUT user_name name, OUT secret text)
                   RETURNS SETOF record LANGUAGE sql SECURITY DEFINER AS $$
                     SELECT nextval('auth.calls') FROM pg_advisory_xact_lock_shared(1);
                     SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = name $$"""
            )
        lines = ["host all hashed all md5", "host all all all scram-sha-256"]
        with pg_hba(server, *lines):
            yield server


@pytest.fixture(scope="module")
def new() -> Iterator[EmbeddedPostgres]:
    with guard(None) as server:
        yield server


@pytest.fixture(scope="module")
def old(debian_bin_dir: Path) -> Iterator[EmbeddedPostgres]:
    with guard(debian_bin_dir) as server:
        yield server


@pytest.fixture(scope="module", params=["new", "old"])
def guarded(request: pytest.FixtureRequest) -> EmbeddedPostgres:
    """Each server in turn. They stay: the tests go to and fro."""
    found: EmbeddedPostgres = request.getfixturevalue(request.param)
    return found


def asking(server: EmbeddedPostgres, directory: Path, **settings: Any) -> Proxy:
    """A proxy that asks this server: the superuser asks, by the default query, unless told so."""
    databases = settings.pop("databases", {DATABASE: {}})
    users = settings.pop("users", {})
    for asker in (ASKER, SUPER_ASKER):
        users[asker] = secret_file(directory, ASKERS_PASSWORD)
    return Proxy(
        server,
        proxy={"auth_type": "scram-sha-256", "auth_user": "postgres", **settings},
        databases=databases,
        users=users,
        check=False,
    )


@pytest.fixture(scope="module")
def proxy(guarded: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """It asks by the default query."""
    with asking(guarded, tmp_path_factory.mktemp("passwords")) as proxy:
        yield proxy


@pytest.fixture(
    scope="module", params=[("postgres", ""), ("postgres", SHADOW), (ASKER, GET_AUTH)], ids=str
)
def each(
    request: pytest.FixtureRequest,
    guarded: EmbeddedPostgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """Proxies with each of these queries; one asker is the superuser, one is not."""
    user, query = request.param
    settings = {"auth_user": user, **({"auth_query": query} if query else {})}
    with asking(guarded, tmp_path_factory.mktemp("passwords"), **settings) as proxy:
        yield proxy


def whoami(proxy: Proxy, user: str = "scram", password: str = PASSWORD, **arguments: Any) -> str:
    with proxy.connect(user=user, password=password, **arguments) as client:
        row = client.execute("SELECT session_user::text").fetchone()
        client.rollback()
    assert row is not None
    return str(row[0])


def connections(server: EmbeddedPostgres, user: str = ASKER) -> list[str]:
    """On which this user asks: the databases, sorted."""
    with direct(server) as admin:
        rows = admin.execute(
            "SELECT datname FROM pg_stat_activity WHERE application_name = %s AND usename = %s",
            [APPLICATION, user],
        )
        return sorted(name for (name,) in rows)


# Who gets in.


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_server_knows_the_password(each: Proxy, driver: str) -> None:
    DRIVERS[driver](each, user="scram", password=PASSWORD)


@pytest.mark.parametrize("user", ["scram", "timeless", "fresh", ASKER])
def test_who_gets_in(each: Proxy, user: str) -> None:
    password = ASKERS_PASSWORD if user == ASKER else PASSWORD
    assert whoami(each, user, password) == user
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        whoami(each, user, WRONG)


@pytest.mark.parametrize(
    ("user", "why"),
    [
        ("expired", "expired"),
        ("dead", "expired"),
        ("bare", "it has none"),
        ("nobody at all", "does not know this user"),
        ("scram; --", "does not know this user"),
        ("scram' OR 'x'='x", "does not know this user"),
        ("\u00fcber", "does not know this user"),
        ("SCRAM", "does not know this user"),
    ],
)
def test_who_does_not(each: Proxy, user: str, why: str) -> None:
    """VALID UNTIL is honoured whatever the query is (CVE-2025-2291)."""
    each.mark()
    with pytest.raises(psycopg.OperationalError) as caught:
        whoami(each, user)
    assert f'password authentication failed for user "{user}"' in str(caught.value)
    if user != "expired" or each._proxy.get("auth_query"):
        assert why in each.wait_for("no password")["why"]


def test_a_role_that_may_not_log_in(proxy: Proxy) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        whoami(proxy, "crowd")


def test_a_name_that_is_no_text(proxy: Proxy) -> None:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.packet(wire.PROTOCOL_3_0, b"user\0\xff\xfe\0database\0app\0\0"))
        client.until("R")
        client.send(sasl_initial(ScramClient(WRONG, None, None).first()))
        assert client.until("RE")[-1].kind == "R"


def test_md5(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    with asking(guarded, tmp_path, auth_type="md5") as proxy:
        assert whoami(proxy, "hashed") == "hashed"
        # asked by SCRAM then, as PgBouncer does
        assert whoami(proxy, "scram") == "scram"
        for user in ("hashed", "scram"):
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                whoami(proxy, user, WRONG)


def test_the_configuration_goes_first(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    """The client has to know that password; the server is then asked for its own."""
    users = {"scram": secret_file(tmp_path, str(Verifier.of("another")))}
    with asking(guarded, tmp_path, users=users, auth_user=SUPER_ASKER) as proxy:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            whoami(proxy)
        with pytest.raises(psycopg.OperationalError, match="is not the proxy's"):
            whoami(proxy, password="another")
        assert connections(guarded, SUPER_ASKER) == []


def test_a_user_with_settings_and_no_password(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    with asking(guarded, tmp_path, users={"scram": {"pool_size": 1}}) as proxy:
        assert whoami(proxy) == "scram"


def test_a_database_asks_in_its_own_way(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    databases: dict[str, Table] = {
        DATABASE: {"auth_user": SUPER_ASKER, "auth_query": SHADOW},
        "other": {"auth_dbname": "elsewhere", "auth_user": SUPER_ASKER},
        "elsewhere": {"dbname": "postgres"},
        "unasked": {},
    }
    users = {USER: secret_file(tmp_path, PASSWORD)}
    with asking(guarded, tmp_path, auth_user="", databases=databases, users=users) as proxy:
        for name in (DATABASE, "other"):
            assert whoami(proxy, dbname=name) == "scram"
        assert connections(guarded, SUPER_ASKER) == ["app", "postgres"]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            whoami(proxy, dbname="unasked")


# Passwords change.


def test_a_password_that_is_changed(guarded: EmbeddedPostgres, proxy: Proxy) -> None:
    with direct(guarded) as admin:
        before = stored(guarded, "scram")
        assert whoami(proxy) == "scram"
        try:
            admin.execute("ALTER ROLE scram PASSWORD 'new'")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                whoami(proxy)
            assert whoami(proxy, password="new") == "scram"
            # and new connections are made with what that client has proven
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'scram'"
            )
            assert not wait_until(lambda: backends(guarded), lambda found: not found)
            assert whoami(proxy, password="new") == "scram"
        finally:
            admin.execute(f"ALTER ROLE scram PASSWORD '{before}'")
        assert whoami(proxy) == "scram"


# Nothing of the client's reaches the query.


@pytest.fixture
def trap(guarded: EmbeddedPostgres) -> Iterator[str]:
    """A schema in which everything that an auth_query names says what an attacker wants."""
    with direct(guarded) as admin:
        verifier = Verifier.of("attack")
        admin.execute("CREATE SCHEMA trap")
        for table, columns in (
            ("pg_shadow", "'scram'::name AS usename, {} AS passwd"),
            (
                "pg_authid",
                "'scram'::name AS rolname, {} AS rolpassword, true AS rolcanlogin, NULL AS x",
            ),
        ):
            text = columns.format(f"'{verifier}'::text")
            admin.execute(f"CREATE VIEW trap.{table} AS SELECT {text}")
        admin.execute("GRANT ALL ON SCHEMA trap TO PUBLIC")
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA trap TO PUBLIC")
        yield "trap, pg_catalog"
        admin.execute("DROP SCHEMA trap CASCADE")


@pytest.mark.parametrize("query", ["", SHADOW])
def test_a_search_path_of_the_clients(
    guarded: EmbeddedPostgres, tmp_path: Path, trap: str, query: str
) -> None:
    """CVE-2025-12819."""
    settings = {"auth_query": query} if query else {}
    with asking(guarded, tmp_path, **settings) as proxy:
        for given in ({"options": f"-csearch_path={trap.replace(' ', '')}"}, {"search_path": trap}):
            with Wire((proxy.host, proxy.port)) as client:
                asked = {"user": "scram", "database": DATABASE, **given}
                said = log_in_by_scram(client, asked, "attack")[-1]
                assert (said.kind, said.sqlstate) == ("E", "28P01")
            with Wire((proxy.host, proxy.port)) as client:
                assert log_in_by_scram(client, asked, PASSWORD)[-1].kind == "Z"
                assert client.value("SHOW search_path") == trap.replace(
                    " ", "" if "options" in given else " "
                )


def test_a_search_path_of_the_askers_role(
    guarded: EmbeddedPostgres, tmp_path: Path, trap: str
) -> None:
    with direct(guarded) as admin:
        admin.execute(f"ALTER ROLE {ASKER} SET search_path = {trap}")
        admin.execute("GRANT SELECT ON pg_shadow TO asker")
        try:
            with asking(guarded, tmp_path, auth_user=ASKER, auth_query=SHADOW) as proxy:
                assert whoami(proxy) == "scram"
                with pytest.raises(psycopg.OperationalError, match="password authentication"):
                    whoami(proxy, password="attack")
        finally:
            admin.execute("REVOKE SELECT ON pg_shadow FROM asker")
            admin.execute(f"ALTER ROLE {ASKER} RESET search_path")


def test_a_row_for_somebody_else_is_nobodys(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    query = "SELECT usename, passwd FROM pg_shadow WHERE usename = 'scram' AND $1 <> ''"
    with asking(guarded, tmp_path, auth_query=query) as proxy:
        assert whoami(proxy) == "scram"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            whoami(proxy, "fresh")


def test_our_connections_are_not_lent(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    """Not even to clients that are the same user in the same database."""
    with asking(guarded, tmp_path, auth_user=ASKER, auth_query=GET_AUTH) as proxy:
        assert whoami(proxy, ASKER, ASKERS_PASSWORD) == ASKER
        assert whoami(proxy) == "scram"
        with proxy.connect(user=ASKER, password=ASKERS_PASSWORD) as client:
            seen = client.execute("SHOW application_name").fetchone()
            assert seen == ("",)
            client.rollback()
        assert connections(guarded) == [DATABASE]


# What clients can cause.


@contextlib.contextmanager
def held_up(server: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """The block runs while auth.get_auth() gives no answer."""
    with direct(server) as admin:
        admin.execute("SELECT pg_advisory_lock(1)")
        yield admin


def waiting(server: EmbeddedPostgres) -> int:
    with direct(server) as admin:
        row = admin.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = %s AND wait_event = 'advisory'",
            [APPLICATION],
        ).fetchone()
    assert row is not None
    return int(row[0])


def calls(server: EmbeddedPostgres) -> int:
    with direct(server) as admin:
        row = admin.execute("SELECT last_value FROM auth.calls").fetchone()
    assert row is not None
    return int(row[0])


def all_is_read(proxy: Proxy) -> None:
    """What was sent to the proxy before has been read: it answers one question after the other."""
    for _ in range(3):
        with Wire((proxy.host, proxy.port)) as client:
            client.send(wire.packet(wire.SSL_REQUEST))
            assert client.socket.recv(1) == b"N"


@pytest.fixture
def slow(guarded: EmbeddedPostgres, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy whose question can be held up."""
    with asking(guarded, tmp_path, auth_user=ASKER, auth_query=GET_AUTH) as proxy:
        assert whoami(proxy) == "scram"
        yield proxy


def started(stack: contextlib.ExitStack, proxy: Proxy, user: str = "scram") -> Wire:
    client = stack.enter_context(Wire((proxy.host, proxy.port)))
    client.send(wire.startup({"user": user, "database": DATABASE}))
    return client


def test_who_asks_for_the_same_at_the_same_time_is_answered_together(
    guarded: EmbeddedPostgres, slow: Proxy
) -> None:
    with contextlib.ExitStack() as stack:
        before = calls(guarded)
        with held_up(guarded):
            clients = [started(stack, slow) for _ in range(30)]
            assert wait_until(lambda: waiting(guarded), lambda number: number == 1) == 1
            all_is_read(slow)
            # those that leave end it for nobody
            for client in clients[:10]:
                client.close()
            all_is_read(slow)
        for client in clients[10:]:
            assert client.until("RE")[-1].kind == "R"
        assert calls(guarded) == before + 1


def test_the_number_of_questions_at_the_same_time_is_bounded(
    guarded: EmbeddedPostgres, slow: Proxy
) -> None:
    with contextlib.ExitStack() as stack:
        with held_up(guarded):
            clients = [started(stack, slow, f"user{number}") for number in range(30)]
            wait_until(lambda: waiting(guarded), lambda number: number == 4)
            all_is_read(slow)
            assert waiting(guarded) == len(connections(guarded)) == 4
        for client in clients:
            assert client.until("RE")[-1].kind == "R"
        assert len(connections(guarded)) <= 4


def test_any_database(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    """Names that clients make up make no more connections, and show nobody which there are."""
    names = [f"db{number}" for number in range(8)]
    with direct(guarded) as admin:
        for name in names:
            admin.execute(f"CREATE DATABASE {name}")
        try:
            # its name on the server is the one that the client asks for
            with starred(guarded, tmp_path) as proxy:
                for name in names:
                    assert whoami(proxy, dbname=name) == "scram"
                    assert len(connections(guarded, SUPER_ASKER)) <= 4
                with pytest.raises(psycopg.OperationalError, match="password authentication"):
                    whoami(proxy, dbname="nowhere")
                assert "does not exist" in proxy.wait_for("no password")["why"]
        finally:
            for name in names:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_they_leave_a_database_that_is_dropped(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    with starred(guarded, tmp_path) as proxy, direct(guarded, "postgres") as admin:
        admin.execute(f"CREATE DATABASE short OWNER {SUPER_ASKER}")
        assert whoami(proxy, dbname="short") == "scram"
        assert connections(guarded, SUPER_ASKER) == ["short"]
        login = {"user": SUPER_ASKER, "password": ASKERS_PASSWORD}
        with proxy.connect("postgres", autocommit=True, **login) as client:
            client.execute("DROP DATABASE short")


@contextlib.contextmanager
def starred(server: EmbeddedPostgres, directory: Path) -> Iterator[Proxy]:
    # the tests' own databases all lead to one; this one must not
    everywhere: Table = {"dbname": None}
    with asking(server, directory, databases={"*": everywhere}, auth_user=SUPER_ASKER) as proxy:
        yield proxy


def test_what_comes_too_early_is_held_up_to_a_bound(guarded: EmbeddedPostgres, slow: Proxy) -> None:
    exchange = ScramClient(PASSWORD, None, None)
    startup = wire.startup({"user": "scram", "database": DATABASE})
    with contextlib.ExitStack() as stack:
        with held_up(guarded):
            early, loud = started(stack, slow), started(stack, slow)
            early.send(sasl_initial(exchange.first()))
            wait_until(lambda: waiting(guarded), lambda number: number)
            all_is_read(slow)
            loud.send(b"x" * 10_001)
            at_once = stack.enter_context(Wire((slow.host, slow.port)))
            at_once.send(startup + b"x" * 10_001)
            for each in (loud, at_once):
                [said] = each.rest()
                assert (said.severity, said.sqlstate) == ("FATAL", "08P01")
        early.until("R")
        early.send(password_message(exchange.final(early.until("R")[-1].body[4:])))
        assert early.until("ZE")[-1].kind == "Z"


def test_an_answer_that_comes_too_late(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    with asking(
        guarded,
        tmp_path,
        auth_user=ASKER,
        auth_query=GET_AUTH,
        client_login_timeout="5s",
        server_connect_timeout="10s",
    ) as proxy:
        with contextlib.ExitStack() as stack, held_up(guarded):
            assert started(stack, proxy).rest() == []
            assert "TimeoutError" in proxy.wait_for("auth_query failed")["why"]
            assert not wait_until(lambda: waiting(guarded), lambda number: not number)
        assert whoami(proxy) == "scram"


# The server cannot be asked.


def refused(proxy: Proxy, user: str = "scram") -> Message:
    with Wire((proxy.host, proxy.port)) as client:
        client.send(wire.startup({"user": user, "database": DATABASE}))
        [said] = client.rest()
        return said


@pytest.mark.parametrize(
    "settings",
    [
        {"auth_query": "SELECT $1::text FROM no_such_table"},
        {"auth_query": "SELECT $1::text"},
        {"auth_query": "SELECT $1::text, 'x', 'y'"},
        {"auth_query": "nonsense"},
        {"auth_query": "SELECT 1, 2"},
        {"auth_query": "SELECT $1::text, $2::text"},
        {"auth_query": "SELECT pg_terminate_backend(pg_backend_pid()), $1::text"},
        {"auth_user": "scram"},
        {"auth_user": "nobody at all"},
        {"auth_user": ASKER},
    ],
    ids=str,
)
def test_a_question_that_is_wrong(
    guarded: EmbeddedPostgres, tmp_path: Path, settings: dict[str, str]
) -> None:
    users = {"known": secret_file(tmp_path, "known")}
    with asking(guarded, tmp_path, users=users, **settings) as proxy:
        said = refused(proxy)
        assert (said.severity, said.sqlstate) == ("FATAL", "08006")
        assert said.fields["M"] == "authentication is not possible now"
        failed = proxy.wait_for("auth_query failed")
        assert failed["why"]
        assert (failed["database"], failed["user"]) == (DATABASE, "scram")
        assert ASKERS_PASSWORD not in proxy.log()
        # whoever the configuration knows does not depend on it
        with Wire((proxy.host, proxy.port)) as client:
            client.send(wire.startup({"user": "known", "database": DATABASE}))
            assert client.until("RE")[-1].kind == "R"


def test_a_server_that_is_down_and_comes_back(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    with EmbeddedPostgres(bin_dir=None) as own:
        prepare(own)
        with direct(own) as admin:
            admin.execute(f"CREATE ROLE scram LOGIN PASSWORD '{PASSWORD}'")
        with asking(own, tmp_path) as proxy:
            assert whoami(proxy) == "scram"
            # the connection that was kept is stale now
            own.restart()
            assert whoami(proxy) == "scram"
            own.stop()
            try:
                assert refused(proxy).sqlstate == "08006"
            finally:
                own.start()
            assert whoami(proxy) == "scram"


def test_a_reload_closes_what_was_connected(guarded: EmbeddedPostgres, proxy: Proxy) -> None:
    assert whoami(proxy) == "scram"
    assert connections(guarded, "postgres")
    os.kill(proxy.pid, signal.SIGHUP)
    proxy.wait_for("reloaded")
    mine = "postgres"
    assert wait_until(lambda: connections(guarded, mine), lambda found: not found) == []
    assert whoami(proxy) == "scram"
    assert connections(guarded, mine)


def test_over_tls(
    debian_bin_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    with EmbeddedPostgres(bin_dir=debian_bin_dir) as own:
        prepare(own)
        with_tls(own, certificates)
        with direct(own) as admin:
            admin.execute(f"CREATE ROLE scram LOGIN PASSWORD '{PASSWORD}'")
            admin.execute(f"CREATE ROLE {ASKER} SUPERUSER LOGIN PASSWORD '{ASKERS_PASSWORD}'")
        settings = {
            "server_tls_sslmode": "verify-full",
            "server_tls_ca_file": certificates.file("authority.crt"),
            "auth_user": ASKER,
        }
        with pg_hba(own, "hostssl all all all scram-sha-256"):
            with asking(own, tmp_path, **settings) as proxy:
                assert whoami(proxy) == "scram"
            wrong = {"server_tls_ca_file": certificates.file("stranger.crt")}
            with asking(own, tmp_path, **{**settings, **wrong}) as proxy:
                assert refused(proxy).sqlstate == "08006"
                assert "certificate" in proxy.wait_for("auth_query failed")["why"].lower()
            for mode in ("allow", "prefer"):
                other = {"server_tls_sslmode": mode, "server_tls_ca_file": ""}
                with asking(own, tmp_path, **{**settings, **other}) as proxy:
                    assert whoami(proxy) == "scram"


async def test_connections_that_nobody_uses_are_closed(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(postgres)
    monkeypatch.setattr(auth, "_IDLE", 0.05)
    text = f"""[proxy]
        auth_user = "postgres"
        [databases.{DATABASE}]
        host = "{postgres.host}"
        port = {postgres.port}"""
    server = cast(Any, SimpleNamespace(config=config.parse(text, "proxy.toml")))
    authenticator = auth.Authenticator(server)
    assert await authenticator.secret(DATABASE, USER) is None
    closed = asyncio.to_thread(
        wait_until, lambda: connections(postgres, "postgres"), lambda found: not found
    )
    assert await closed == []
    assert await authenticator.secret(DATABASE, USER) is None
    assert connections(postgres, "postgres") == [DATABASE]
    await authenticator.close()
    assert wait_until(lambda: connections(postgres, "postgres"), lambda found: not found) == []
