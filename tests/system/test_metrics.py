"""Metrics of a real proxy: under load, over pools that come and go, and under attack."""

import contextlib
import itertools
import signal
import socket
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.system.proxy import DATABASE, USER, ask, in_threads, wait_until
from tests.system.running import SERIES, Running, Scrape
from txproxy.cli.embedded import EmbeddedPostgres

ROUNDS = 40


@pytest.fixture(scope="module")
def module_running(server: EmbeddedPostgres) -> Iterator[Running]:
    with Running(server, proxy={"admin_users": [USER]}) as running:
        yield running


@pytest.fixture
def running(module_running: Running) -> Iterator[Running]:
    """The module's proxy; after the test its backends are clean."""
    module_running.mark()
    yield module_running
    module_running.assert_clean()


def since(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after.value(name, **labels) - before.value(name, **labels)


def assert_not_less(before: Scrape, after: Scrape) -> None:
    earlier, later = before.totals(), after.totals()
    less = {name: (was, later.get(name)) for name, was in earlier.items() if later[name] < was}
    assert not less


# Numbers.


def test_under_load(running: Running) -> None:
    """Scrapes while statements run: each is whole, and nothing goes backwards."""
    before = running.scrape()
    running_still = threading.Event()
    running_still.set()
    scrapes = [before]

    def scrape() -> None:
        while running_still.is_set():
            scrapes.append(running.scrape())

    def work(_: int) -> None:
        with running.connect() as connection:
            for _ in range(ROUNDS):
                ask(connection)
                connection.commit()

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        in_threads(work, 6)
    finally:
        running_still.clear()
        scraper.join()
    after = running.scrape_until("clients", 0, **SERIES, state="active")
    assert len(scrapes) > 3
    for earlier, later in itertools.pairwise([*scrapes, after]):
        assert_not_less(earlier, later)
    assert since(before, after, "client_logins_total", **SERIES) == 6
    assert since(before, after, "transactions_total", **SERIES) >= 6 * ROUNDS
    assert since(before, after, "queries_total", **SERIES) >= 6 * ROUNDS
    assert since(before, after, "client_received_bytes_total", **SERIES) > 6 * ROUNDS * 36
    assert since(before, after, "client_sent_bytes_total", **SERIES) > 6 * ROUNDS * 36
    assert since(before, after, "transaction_seconds_count", **SERIES) >= 6 * ROUNDS
    # six clients, two backends
    assert since(before, after, "waits_total", **SERIES) > 0
    assert since(before, after, "wait_seconds_count", **SERIES) > 0


def test_histograms_add_up(running: Running) -> None:
    with running.connect(autocommit=True) as connection:
        ask(connection)
    families = running.scrape().families
    for name in ("wait", "transaction", "idle_in_transaction"):
        samples = [
            sample
            for sample in families[f"txproxy_{name}_seconds"].samples
            if sample.labels.get("database") == DATABASE
        ]
        buckets = [sample.value for sample in samples if sample.name.endswith("_bucket")]
        [count] = [sample.value for sample in samples if sample.name.endswith("_count")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == count


def test_who_waits_and_who_sleeps(running: Running) -> None:
    before = running.scrape()
    with running.connect() as one, running.connect() as two, running.connect() as third:
        for sleeper in (one, two):
            ask(sleeper)
        waiting = threading.Thread(target=ask, args=(third,))
        waiting.start()
        try:
            seen = running.scrape_until("clients", 1, **SERIES, state="waiting")
            assert seen.value("clients", **SERIES, state="idle_in_transaction") == 2
            assert seen.value("clients", **SERIES, state="active") == 0
            assert seen.value("backends", **SERIES, state="active") == 2
            assert seen.value("backends", **SERIES, state="idle") == 0
            assert seen.value("pool_size", **SERIES) == 2
            wait_until(
                running.scrape,
                lambda each: (
                    each.value("oldest_wait_seconds", **SERIES)
                    and each.value("oldest_idle_in_transaction_seconds", **SERIES)
                ),
            )
            status, page = running.http("/")
            assert status == 200
            assert page.count(f"<tr><td>{DATABASE}</td><td>{USER}</td>") == 3
        finally:
            one.rollback()
            waiting.join()
        two.rollback()
        third.rollback()
        seen = running.scrape_until("backends", 2, **SERIES, state="idle")
        assert seen.value("oldest_wait_seconds", **SERIES) == 0
        assert seen.value("clients", **SERIES, state="idle") == 3
        assert since(before, seen, "wait_seconds_count", **SERIES) == 1
        assert since(before, seen, "idle_in_transaction_seconds_count", **SERIES) >= 2


def test_nobody_can_be_recognised(running: Running) -> None:
    """Neither in the metrics nor on the page, whose readers have not said who they are."""
    with running.connect(application_name="my-program") as client:
        client.execute("SELECT 'my-secret', 4711")
        assert client.pgconn.socket >= 0
        with socket.socket(fileno=socket.dup(client.pgconn.socket)) as own:
            port = own.getsockname()[1]
        metrics, page = running.http("/metrics")[1], running.http("/")[1]
        client.rollback()
    for text in (metrics, page):
        for secret in ("my-secret", "4711", "SELECT", f":{port}"):
            assert secret not in text
    assert "my-program" not in metrics
    assert "my-program" in page


def test_counters_outlive_pools(server: EmbeddedPostgres) -> None:
    """A pool that nobody uses is forgotten; what it has counted is not."""
    settings = {"server_idle_timeout": "100ms"}
    with Running(server, proxy=settings, databases={DATABASE: {}, "twin": {}}) as running:
        scrapes = [running.scrape()]
        for database in (DATABASE, "twin", DATABASE):
            with running.connect(database, autocommit=True) as connection:
                for _ in range(5):
                    ask(connection)
                scrapes.append(running.scrape())
            gone = wait_until(
                running.scrape, lambda seen: not seen.families["txproxy_pool_size"].samples
            )
            assert not gone.families["txproxy_pool_size"].samples
            scrapes.append(gone)
        for earlier, later in itertools.pairwise(scrapes):
            assert_not_less(earlier, later)
        for database, logins in ((DATABASE, 2), ("twin", 1)):
            labels = {"database": database, "user": USER}
            assert scrapes[-1].value("client_logins_total", **labels) == logins
            assert scrapes[-1].value("queries_total", **labels) >= 5 * logins
            assert scrapes[-1].value("backends_opened_total", **labels) >= logins


# Alive and ready.


def test_alive_and_ready(running: Running) -> None:
    assert running.http("/healthz") == (200, "ok\n")
    assert running.http("/readyz") == (200, "ok\n")


def test_not_ready_while_paused(running: Running) -> None:
    with (
        running.connect(autocommit=True) as client,
        running.connect("txproxy", autocommit=True) as console,
    ):
        ask(client)
        console.execute("PAUSE")
        try:
            assert running.http("/readyz") == (503, "paused\n")
            assert running.scrape().value("paused", **SERIES) == 1
            assert running.http("/healthz") == (200, "ok\n")
        finally:
            console.execute("RESUME")
        assert running.http("/readyz") == (200, "ok\n")


def test_not_ready_while_draining(server: EmbeddedPostgres) -> None:
    with Running(server) as running:
        with running.connect() as client:
            ask(client)
            running.signal(signal.SIGTERM)
            running.wait_for("draining")
            assert wait_until(lambda: running.http("/readyz"), lambda seen: seen[0] == 503) == (
                503,
                "draining\n",
            )
            assert running.http("/healthz") == (200, "ok\n")
            assert running.scrape().value("clients", **SERIES, state="idle_in_transaction") == 1
            client.rollback()
        running.stop(signal.SIGTERM)


def test_not_ready_while_the_server_is_down() -> None:
    with (
        EmbeddedPostgres() as server,
        Running(server, check=False) as running,
        running.connect(autocommit=True) as client,
    ):
        ask(client)
        server.stop()
        with contextlib.suppress(psycopg.OperationalError):
            ask(client)
        seen = wait_until(lambda: running.http("/readyz"), lambda seen: seen[0] == 503)
        assert seen == (503, "no server can be reached\n")
        assert running.http("/healthz") == (200, "ok\n")


# Attacks.


def test_clients_are_served_while_the_endpoint_is_attacked(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            attacker = stack.enter_context(socket.create_connection(running.metrics))
            with contextlib.suppress(ConnectionError):
                attacker.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        for junk in (b"\0" * 100_000, b"\r\n\r\n" * 1000, b"GET / HTTP/9\r\n\r\n"):
            with contextlib.suppress(ConnectionError):
                stack.enter_context(socket.create_connection(running.metrics)).sendall(junk)
        with running.connect(autocommit=True) as client:
            for _ in range(ROUNDS):
                ask(client)
    answered = wait_until(lambda: _answers(running), lambda seen: seen)
    assert answered


def _answers(running: Running) -> bool:
    try:
        return running.http("/healthz") == (200, "ok\n")
    except OSError:
        return False
