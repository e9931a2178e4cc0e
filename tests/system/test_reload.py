"""SIGHUP: what a changed file changes at once, what it cannot change, and that nothing is lost."""

import contextlib
import functools
import shutil
import signal
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.system.proxy import (
    DATABASE,
    OTHER_USER,
    USER,
    ask,
    assert_clean,
    direct,
    in_threads,
    pids,
    token,
    wait_until,
)
from tests.system.running import SERIES, Running, backend_pid, line_of
from txproxy.cli.embedded import EmbeddedPostgres

CERTS: Final = Path(__file__).parent / "certs"
RELOADS: Final = 30


@pytest.fixture
def running(postgres: EmbeddedPostgres) -> Iterator[Running]:
    """A proxy of its own for each test: they change it."""
    with Running(postgres) as running:
        yield running


@pytest.fixture(scope="module")
def module_unchanged(postgres: EmbeddedPostgres) -> Iterator[Running]:
    with Running(postgres) as running:
        yield running


@pytest.fixture
def unchanged(module_unchanged: Running) -> Iterator[Running]:
    """One proxy for all tests that do not change it, whatever they do to the file."""
    yield module_unchanged
    module_unchanged.change()


def refusal(running: Running, *args: str, **more: Any) -> str:
    """Why a client is not let in."""
    with pytest.raises(psycopg.OperationalError) as caught, running.connect(*args, **more):
        pass
    return str(caught.value)


# What changes at once.


def test_a_file_that_is_the_same(running: Running) -> None:
    with running.connect(autocommit=True) as client:
        before = backend_pid(client)
        running.reload()
        assert backend_pid(client) == before
    assert running.events("needs a restart") == []
    assert running.events("not reloaded") == []


def test_idle_transaction_timeout(running: Running) -> None:
    """Also for who sleeps already."""
    with running.connect() as client:
        ask(client)
        running.change(proxy={"idle_transaction_timeout": "100ms"})
        running.wait_for("reaped", database=DATABASE, user=USER)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            ask(client)


def test_what_a_client_has_set_for_itself_stays(running: Running) -> None:
    settings = {"idle_transaction_timeout_max": "5min"}
    running.change(proxy=settings)
    with running.connect(autocommit=True) as client:
        client.execute("SET txproxy.idle_transaction_timeout = '3min'")
        running.change(proxy={"idle_transaction_timeout": "100ms"})
        shown = client.execute("SHOW txproxy.idle_transaction_timeout").fetchone()
        running.change(users={USER: {"idle_transaction_timeout_max": "1min"}})
        limited = client.execute("SHOW txproxy.idle_transaction_timeout").fetchone()
    assert shown == ("180000ms",)
    assert limited == ("100ms",)


def test_query_timeout(running: Running) -> None:
    """Also of a statement that runs."""
    with running.connect(autocommit=True) as client:
        failed: list[psycopg.Error] = []

        def sleep() -> None:
            try:
                client.execute("SELECT pg_sleep(300)")
            except psycopg.Error as error:
                failed.append(error)

        sleeping = threading.Thread(target=sleep)
        sleeping.start()
        running.scrape_until("clients", 1, **SERIES, state="active")
        running.change(databases={DATABASE: {"query_timeout": "1s"}})
        sleeping.join()
        [error] = failed
        assert isinstance(error, psycopg.errors.QueryCanceled)
        ask(client)


def test_query_wait_timeout(running: Running) -> None:
    running.change(proxy={"default_pool_size": 1})
    with running.connect() as holder, running.connect(autocommit=True) as other:
        ask(holder)
        running.change(users={USER: {"query_wait_timeout": "100ms"}})
        with pytest.raises(psycopg.errors.TooManyConnections):
            ask(other)
        holder.rollback()
        ask(other)


def test_a_pool_that_grows(running: Running) -> None:
    """Who waits is served."""
    with running.connect() as one, running.connect() as two, running.connect() as third:
        ask(one)
        ask(two)
        waiting = threading.Thread(target=ask, args=(third,))
        waiting.start()
        running.scrape_until("clients", 1, **SERIES, state="waiting")
        running.change(databases={DATABASE: {"pool_size": 3}})
        waiting.join()
        assert running.scrape().value("pool_size", **SERIES) == 3
        assert len(pids(running.server)) == 3
        for each in (one, two, third):
            each.rollback()


def test_a_pool_that_shrinks(running: Running) -> None:
    """As transactions end; nobody is interrupted."""
    with running.connect() as one, running.connect() as two:
        ask(one)
        ask(two)
        running.change(databases={DATABASE: {"pool_size": 1}})
        ask(one)
        ask(two)
        one.rollback()
        two.rollback()
        assert len(wait_until(lambda: pids(running.server), lambda found: len(found) == 1)) == 1
        ask(one)
        one.rollback()
        ask(two)
        two.rollback()
    assert len(pids(running.server)) == 1


def test_max_client_conn(running: Running) -> None:
    with running.connect(autocommit=True) as one, running.connect(autocommit=True) as two:
        running.change(proxy={"max_client_conn": 1})
        assert "too many clients" in refusal(running)
        ask(one)
        ask(two)
        running.change(proxy={"max_client_conn": 3})
        with running.connect(autocommit=True) as third:
            ask(third)


def test_log_level(running: Running) -> None:
    running.change(proxy={"log_level": "info"})
    running.mark()
    assert "does not exist" in refusal(running, "nowhere")
    running.wait_for("login refused")
    with running.connect(autocommit=True) as client:
        ask(client)
    assert running.scrape().value("backends_opened_total", **SERIES) == 1
    assert running.events("backend connected") == []
    running.change(
        proxy={"log_level": "debug"}, databases={DATABASE: {"connect_query": "SELECT 1"}}
    )
    with running.connect(autocommit=True) as client:
        ask(client)
    running.wait_for("backend connected")


# Who may come in.


def test_passwords(postgres: EmbeddedPostgres) -> None:
    """Who is in stays in."""
    settings = {"auth_type": "scram-sha-256"}
    users = {USER: {"password": "first"}}
    with Running(postgres, proxy=settings, users=users, check=False) as running:
        with running.connect(password="first", autocommit=True) as client:
            assert "password authentication failed" in refusal(running, password="second")
            running.change(users={USER: {"password": "second"}})
            assert "password authentication failed" in refusal(running, password="first")
            with running.connect(password="second", autocommit=True) as other:
                ask(other)
            ask(client)
        running.change(users={USER: {"password": "third"}, OTHER_USER: {"password": "fourth"}})
        with running.connect(user=OTHER_USER, password="fourth", autocommit=True) as other:
            ask(other)
        running.change(users={OTHER_USER: None})
        assert "password authentication failed" in refusal(
            running, user=OTHER_USER, password="fourth"
        )
        assert not [word for word in ("second", "third", "fourth") if word in running.log()]
        assert_clean(postgres)


def test_a_password_file(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """The file is read again, though its name is the same."""
    path = tmp_path / "password"
    path.write_text("first")
    path.chmod(0o600)
    settings = {"auth_type": "scram-sha-256"}
    users = {USER: {"password_file": str(path)}}
    with Running(postgres, proxy=settings, users=users, check=False) as running:
        with running.connect(password="first", autocommit=True) as client:
            ask(client)
        path.write_text("second")
        with running.connect(password="first", autocommit=True) as client:
            ask(client)
        running.reload()
        assert "password authentication failed" in refusal(running, password="first")
        with running.connect(password="second", autocommit=True) as client:
            ask(client)


def test_certificates(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """Files are read again, though their names are the same. Who is in stays in."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def use(name: str) -> None:
        shutil.copy(CERTS / f"{name}.crt", certificate)
        shutil.copy(CERTS / f"{name}.key", key)
        key.chmod(0o600)

    use("server")
    settings = {
        "client_tls_sslmode": "require",
        "client_tls_cert_file": str(certificate),
        "client_tls_key_file": str(key),
    }
    with (
        Running(postgres, proxy=settings) as running,
        running.connect(sslmode="require", autocommit=True) as client,
    ):
        assert shown_certificate(running) == "server"
        use("elsewhere")
        assert shown_certificate(running) == "server"
        running.reload()
        assert shown_certificate(running) == "elsewhere"
        ask(client)
        certificate.write_text("nonsense")
        why = running.reload("not reloaded")["why"]
        assert "client_tls_cert_file" in why
        assert shown_certificate(running) == "elsewhere"
        with running.connect(sslmode="require", autocommit=True) as another:
            ask(another)


def shown_certificate(running: Running) -> str:
    """Which of the tests' certificates the proxy has."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((running.host, running.port)) as plain:
        plain.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain) as wrapped:
            seen = wrapped.getpeercert(binary_form=True)
    assert seen
    [name] = [
        path.stem
        for path in CERTS.glob("*.crt")
        if ssl.PEM_cert_to_DER_cert(path.read_text()) == seen
    ]
    return name


# Databases.


def test_a_database_is_added(running: Running) -> None:
    assert "does not exist" in refusal(running, "new")
    running.change(databases={"new": {}})
    with running.connect("new", autocommit=True) as client:
        ask(client)
    found = running.scrape()
    assert found.value("client_logins_total", database="new", user=USER) == 1


def test_a_database_is_removed(postgres: EmbeddedPostgres) -> None:
    """Its clients finish what they have begun."""
    with Running(postgres, databases={DATABASE: {}, "old": {}}, check=False) as running:
        with (
            running.connect("old") as busy,
            running.connect("old", autocommit=True) as idle,
            running.connect(autocommit=True) as other,
        ):
            ask(busy)
            ask(idle)
            before = running.scrape()
            running.change(databases={"old": None})
            assert "does not exist" in refusal(running, "old")
            running.wait_for("client disconnected", database="old")
            with pytest.raises(psycopg.OperationalError, match="removed"):
                ask(idle)
            ask(busy)
            busy.commit()
            running.wait_for("client disconnected", count=2, database="old")
            with pytest.raises(psycopg.OperationalError, match="removed"):
                ask(busy)
            ask(other)
        left = wait_until(lambda: pids(postgres), lambda found: len(found) == 1)
        assert len(left) == 1
        after = running.scrape()
        labels = {"database": "old", "user": USER}
        for name in ("client_logins_total", "queries_total", "transactions_total"):
            assert after.value(name, **labels) >= before.value(name, **labels) > 0
        running.change(databases={"old": {}})
        with running.connect("old", autocommit=True) as again:
            ask(again)
        assert_clean(postgres)


def test_counters_of_a_database_that_goes(postgres: EmbeddedPostgres) -> None:
    """They do not go backwards, not even while its last client is still there."""
    labels = {"database": "old", "user": USER}
    with Running(postgres, databases={DATABASE: {}, "old": {}}, check=False) as running:
        with running.connect("old") as busy:
            ask(busy)
            running.change(databases={"old": None})
            assert running.scrape().value("client_logins_total", **labels) == 1
            running.change(databases={"old": {}})
            assert running.scrape().value("client_logins_total", **labels) == 1
            with running.connect("old", autocommit=True) as again:
                ask(again)
            assert running.scrape().value("client_logins_total", **labels) == 2
            busy.rollback()
        assert_clean(postgres)


def test_a_database_leads_elsewhere(running: Running) -> None:
    """Transactions end where they began."""

    def where(client: psycopg.Connection[Any]) -> str:
        [name] = client.execute("SELECT current_database()").fetchone() or [""]
        return str(name)

    with running.connect() as busy, running.connect(autocommit=True) as idle:
        assert (where(busy), where(idle)) == (DATABASE, DATABASE)
        running.change(databases={DATABASE: {"dbname": "template1"}})
        assert where(busy) == DATABASE
        assert where(idle) == "template1"
        busy.rollback()
        assert where(busy) == "template1"
        busy.rollback()
        running.change(databases={DATABASE: {"dbname": DATABASE}})
        assert (where(busy), where(idle)) == (DATABASE, DATABASE)


# What needs a restart.


def test_what_needs_a_restart_is_said_and_left(running: Running) -> None:
    text = running.config.read_text()
    text = text.replace(f"127.0.0.1:{running.port}", "127.0.0.1:1")
    text = text.replace('[metrics]\nlisten = "127.0.0.1:0"', '[metrics]\nlisten = "127.0.0.1:2"')
    text = text.replace("[proxy]", '[proxy]\nunix_socket_mode = "0777"\nmax_client_conn = 7')
    running.config.write_text(text)
    running.reload()
    said = running.wait_for("needs a restart")
    assert set(said["settings"].split(", ")) == {"listen", "metrics.listen", "unix_socket_mode"}
    with running.connect(autocommit=True) as client:
        ask(client)
    # the rest of the file counts
    assert running.scrape().value("max_client_connections") == 7
    mode = Path(running.socket_dir, f".s.PGSQL.{running.port}").stat().st_mode
    assert mode & 0o777 == 0o700


def test_an_open_door_is_not_opened(running: Running) -> None:
    """Right where the file says that it listens, and wrong where it does."""
    text = running.config.read_text().replace('"127.0.0.1:', '"0.0.0.0:')
    running.config.write_text(text)
    assert "auth_type" in running.reload("not reloaded")["why"]
    with running.connect(autocommit=True) as client:
        ask(client)


# What is wrong.


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("pool_mod", 'pool_mod = "session"'),
        ("default_pool_size", 'default_pool_size = "many"'),
        ("query_timeout", 'query_timeout = "5 parsecs"'),
        ("listen", "listen = 5"),
    ],
)
def test_a_wrong_file_changes_nothing(unchanged: Running, key: str, line: str) -> None:
    lines = unchanged.config.read_text().splitlines()
    kept = [each for each in lines if not each.startswith((f"{key} ", "max_client_conn "))]
    unchanged.config.write_text("\n".join([kept[0], "max_client_conn = 7", line, *kept[1:], ""]))
    why = unchanged.reload("not reloaded")["why"]
    assert why.startswith(f"{unchanged.config}:{line_of(unchanged.config, key)}: proxy.{key}: ")
    assert_as_before(unchanged)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[proxy",
        "[proxy]\nlisten = = 1\n",
        "[proxy]\n",
        "\0\0\0",
        "[proxy]\ninclude = '/etc/passwd'\n[databases.app]\n",
    ],
)
def test_a_broken_file_changes_nothing(unchanged: Running, text: str) -> None:
    unchanged.config.write_text(text)
    assert str(unchanged.config) in unchanged.reload("not reloaded")["why"]
    assert_as_before(unchanged)


def test_a_file_that_is_gone_changes_nothing(unchanged: Running) -> None:
    unchanged.config.unlink()
    assert str(unchanged.config) in unchanged.reload("not reloaded")["why"]
    assert_as_before(unchanged)


def assert_as_before(running: Running) -> None:
    assert running.scrape().value("max_client_connections") == 10000
    with running.connect(autocommit=True) as client:
        ask(client)
        shown = client.execute("SHOW txproxy.idle_transaction_timeout").fetchone()
    assert shown == ("60000ms",)


# Under load.


@contextlib.contextmanager
def table(server: EmbeddedPostgres) -> Iterator[str]:
    with direct(server, user=USER) as connection:
        connection.execute("CREATE TABLE tokens (token text NOT NULL)")
        try:
            yield "tokens"
        finally:
            connection.execute("DROP TABLE tokens")


def test_nothing_is_lost_under_load(server: EmbeddedPostgres) -> None:
    """Transactions, statements and logins go on while the file changes again and again: pools that
    grow and shrink, timeouts, passwords, connections that are all replaced, broken files.
    """
    written: list[str] = []
    over = threading.Event()

    def work(running: Running, index: int) -> None:
        while not over.is_set():
            with running.connect(autocommit=index % 2 == 0) as connection:
                for _ in range(20):
                    ask(connection)
                    mine = token()
                    connection.execute("INSERT INTO tokens VALUES (%s)", [mine])
                    connection.commit()
                    written.append(mine)

    def reload(running: Running) -> None:
        try:
            for number in range(RELOADS):
                enough = len(written) + 10
                wait_until(lambda: len(written), enough.__le__)
                running.change(
                    proxy={
                        "query_timeout": f"{30 + number}s",
                        "reserve_pool_size": number % 2,
                        "server_lifetime": f"{1 + number % 3}h",
                    },
                    databases={
                        DATABASE: {
                            "pool_size": 1 + number % 4,
                            "connect_query": f"SELECT {number // 5}",
                        },
                        "other": {} if number % 2 else None,
                    },
                    users={OTHER_USER: {"password": f"number {number}"}},
                )
                if number % 10 == 5:
                    running.config.write_text("[proxy]\nnonsense = 1\n")
                    running.reload("not reloaded")
        finally:
            over.set()

    with Running(server) as running, table(server):
        reloading = threading.Thread(target=reload, args=(running,))
        reloading.start()
        try:
            in_threads(functools.partial(work, running), 6)
        finally:
            over.set()
            reloading.join()
        assert len(running.events("reloaded")) == RELOADS
        with direct(server) as connection:
            stored = Counter(each for (each,) in connection.execute("SELECT token FROM tokens"))
        assert stored == Counter(written)
        assert len(written) > 10 * RELOADS


def test_a_storm_of_signals(running: Running) -> None:
    with running.connect() as client:
        for _ in range(50):
            running.signal(signal.SIGHUP)
            ask(client)
            client.rollback()
        running.wait_for("reloaded")


def test_a_reload_while_it_ends(postgres: EmbeddedPostgres) -> None:
    with Running(postgres) as running, running.connect() as client:
        ask(client)
        running.signal(signal.SIGTERM)
        running.wait_for("draining")
        running.change(proxy={"default_pool_size": 5})
        ask(client)
        client.rollback()
        running.stop()
