"""The HTTP endpoint on real sockets: what it answers, and whom it does not wait for."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.core.scenario import World
from tests.net.proxy import FakeServer, as_server, named
from txproxy.config import TcpAddress
from txproxy.errors import ConnectError
from txproxy.net import metrics
from txproxy.net.metrics import Metrics, unhealthy, unready

LOOPBACK = TcpAddress("127.0.0.1", 0)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Endpoint:
    """A running endpoint, and a client of it."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.metrics = Metrics(as_server(server))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.metrics.addresses[0].rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def say(self, *chunks: bytes) -> bytes:
        """All that is answered until the endpoint closes."""
        reader, writer = await self.connect()
        try:
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def ask(self, path: str, method: str = "GET", headers: str = "Host: x\r\n") -> Answer:
        return parsed(await self.say(f"{method} {path} HTTP/1.1\r\n{headers}\r\n".encode()))


def parsed(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    version, status, _ = line.split(" ", 2)
    assert version == "HTTP/1.1"
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in rest)}
    assert len(headers) == len(rest)
    return Answer(int(status), headers, body)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint(FakeServer(World()))
    await made.metrics.start([LOOPBACK])
    yield made
    made.metrics.close()
    await until(lambda: not made.metrics.connections)


async def until(true: Callable[[], bool]) -> None:
    """The endpoint's own end of a connection is closed a turn or two after ours."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 — what it waits for sets no event
            await asyncio.sleep(0.01)


# Answers.


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/healthz", "text/plain; charset=utf-8"),
        ("/readyz", "text/plain; charset=utf-8"),
        ("/", "text/html; charset=utf-8"),
        ("/metrics?name=x&y", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
async def test_paths(endpoint: Endpoint, path: str, kind: str) -> None:
    answer = await endpoint.ask(path)
    assert answer.status == 200
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["connection"] == "close"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.body
    head = await endpoint.ask(path, "HEAD")
    assert head.status == 200
    assert head.body == b""
    # the process's own numbers may have changed their length
    assert head.headers.keys() == answer.headers.keys()
    if kind.startswith("text/plain; charset"):
        assert head.headers == answer.headers


async def test_metrics_are_metrics(endpoint: Endpoint) -> None:
    text = (await endpoint.ask("/metrics")).body.decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"txproxy_queries", "txproxy_wait_seconds", "txproxy_clients"} <= names
    assert {"process_open_fds", "process_max_fds", "process_cpu_seconds"} <= names


async def test_health_is_one_word(endpoint: Endpoint) -> None:
    assert (await endpoint.ask("/healthz")).body == b"ok\n"
    endpoint.server.time += 5.1
    answer = await endpoint.ask("/healthz")
    assert answer.status == 503
    assert answer.body == b"the janitor has not passed for 5 s\n"


async def test_readiness_says_why_not(endpoint: Endpoint) -> None:
    endpoint.server.draining = True
    answer = await endpoint.ask("/readyz")
    assert (answer.status, answer.body) == (503, b"draining\n")
    assert (await endpoint.ask("/healthz")).status == 200


@pytest.mark.parametrize("path", ["/metricsx", "/metrics/", "//", "/favicon.ico", "/../etc/passwd"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_what_is_not_there(endpoint: Endpoint, path: str, method: str) -> None:
    answer = await endpoint.ask(path, method)
    assert answer.status == 404
    assert answer.body == (b"" if method == "HEAD" else b"404 Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "CONNECT"])
async def test_methods(endpoint: Endpoint, method: str) -> None:
    answer = await endpoint.ask("/metrics", method, "Content-Length: 5\r\n")
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics HTTP/0.9\r\n\r\n",
        b"GET /metrics HTTP/2.0\r\n\r\n",
        b"GET  /metrics HTTP/1.1\r\n\r\n",
        b"GET metrics HTTP/1.1\r\n\r\n",
        b"GET http://x/metrics HTTP/1.1\r\n\r\n",
        b"GET /met rics HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b" GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\nY: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 8200 + b"\r\n\r\n",
        b"GET /" + b"x" * 9000,
        b"\0" * 8193,
    ],
)
async def test_what_is_no_request(endpoint: Endpoint, raw: bytes) -> None:
    answer = parsed(await endpoint.say(raw))
    assert (answer.status, answer.body) == (400, b"400 Bad Request\n")
    assert endpoint.server.bugs == []
    assert (await endpoint.ask("/healthz")).status == 200


async def test_the_longest_request(endpoint: Endpoint) -> None:
    head = b"GET /healthz HTTP/1.0\r\nX: "
    request = head + b"x" * (8192 - len(head)) + b"\r\n\r\n"
    assert parsed(await endpoint.say(request)).status == 200


async def test_a_request_in_pieces(endpoint: Endpoint) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"
    for at in range(1, len(request)):
        assert parsed(await endpoint.say(request[:at], request[at:])).body == b"ok\n"
    assert parsed(await endpoint.say(*(bytes([byte]) for byte in request))).body == b"ok\n"


async def test_one_request_a_connection(endpoint: Endpoint) -> None:
    request = b"GET /healthz HTTP/1.1\r\n\r\n"
    assert (await endpoint.say(request + request)).count(b"HTTP/1.1") == 1


async def test_who_has_said_all_still_listens(endpoint: Endpoint) -> None:
    reader, writer = await endpoint.connect()
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    writer.write_eof()
    assert parsed(await reader.read()).status == 200
    writer.close()


async def test_many_at_once(endpoint: Endpoint) -> None:
    for number in range(20):
        endpoint.server.add(named(f"db{number}"))
    answers = await asyncio.gather(*(endpoint.ask("/metrics") for _ in range(5)))
    for answer in answers:
        families = text_string_to_metric_families(answer.body.decode())
        [queries] = [each for each in families if each.name == "txproxy_queries"]
        assert len(queries.samples) == 21


async def test_a_bug_is_logged_and_told(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("secret")

    def fail() -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(endpoint.server, "all_stats", fail)
        answer = await endpoint.ask("/metrics")
        assert (answer.status, answer.body) == (500, b"500 Internal Server Error\n")
    assert endpoint.server.bugs == [error]
    assert (await endpoint.ask("/metrics")).status == 200


# Whom it does not wait for.


async def test_who_is_slow_to_ask(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not keep the connection."""
    monkeypatch.setattr(metrics, "_REQUEST_TAKES", 0.2)
    reader, writer = await endpoint.connect()
    writer.write(b"GET / HTTP/1.1\r\n")
    reading = asyncio.create_task(reader.read())
    while not reading.done():
        writer.write(b"X: y\r\n")
        await asyncio.wait([reading], timeout=0.05)
    with contextlib.suppress(ConnectionError):
        assert reading.result() == b""
    writer.close()


async def test_who_does_not_read(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_ANSWER_TAKES", 0.2)
    monkeypatch.setattr(metrics, "page", lambda _server: "x" * 50_000_000)
    reader, writer = await endpoint.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await until(lambda: len(endpoint.metrics.connections) == 1)
    await until(lambda: not endpoint.metrics.connections)
    writer.close()
    assert not reader.at_eof()


async def test_who_leaves_before_the_answer(endpoint: Endpoint) -> None:
    for number in range(50):
        endpoint.server.add(named(f"db{number}"))
    for _ in range(5):
        _, writer = await endpoint.connect()
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        await until(lambda: bool(endpoint.metrics.connections))
        writer.transport.abort()
    await until(lambda: not endpoint.metrics.connections)
    assert endpoint.server.bugs == []
    assert (await endpoint.ask("/metrics")).status == 200


async def test_no_more_than_64(endpoint: Endpoint) -> None:
    silent = [await endpoint.connect() for _ in range(64)]
    await until(lambda: len(endpoint.metrics.connections) == 64)
    with contextlib.suppress(ConnectionError):
        assert await endpoint.say(b"GET /healthz HTTP/1.1\r\n\r\n") == b""
    assert len(endpoint.metrics.connections) == 64
    silent.pop()[1].close()
    await until(lambda: len(endpoint.metrics.connections) == 63)
    assert (await endpoint.ask("/healthz")).status == 200
    for _, writer in silent:
        writer.close()


async def test_the_end_ends_connections(endpoint: Endpoint) -> None:
    reader, writer = await endpoint.connect()
    await until(lambda: len(endpoint.metrics.connections) == 1)
    host, _, port = endpoint.metrics.addresses[0].rpartition(":")
    endpoint.metrics.close()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    assert endpoint.metrics.addresses == []
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(host, int(port))


# Where it listens.


async def test_addresses() -> None:
    made = Metrics(as_server(FakeServer()))
    await made.start([LOOPBACK, TcpAddress("::1", 0)])
    first, second = made.addresses
    assert first.startswith("127.0.0.1:")
    assert second.startswith("[::1]:")
    made.close()


async def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = Metrics(as_server(FakeServer()))
        with pytest.raises(ConnectError) as caught:
            await made.start([TcpAddress("127.0.0.1", port)])
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port} (metrics): Address already in use"
    )
    made.close()


# Alive and ready.


def test_healthy_while_the_janitor_passes() -> None:
    fake = FakeServer()
    assert unhealthy(as_server(fake)) == ""
    fake.time += 5.0
    assert unhealthy(as_server(fake)) == ""
    fake.time += 60.0
    assert unhealthy(as_server(fake)) == "the janitor has not passed for 65 s"
    fake.passed_at = fake.time
    assert unhealthy(as_server(fake)) == ""


def failing(name: str) -> World:
    """A pool whose server is down."""
    world = named(name)
    world.new_client().session.login()
    world.refuses_connection()
    assert world.pool.failing
    return world


def test_ready() -> None:
    assert unready(as_server(FakeServer())) == ""
    assert unready(as_server(FakeServer(World()))) == ""


def test_not_ready_before_it_listens_and_at_the_end() -> None:
    fake = FakeServer()
    fake.addresses = []
    assert unready(as_server(fake)) == "not listening"
    fake.draining = True
    assert unready(as_server(fake)) == "draining"


def test_not_ready_while_everything_is_paused() -> None:
    """One database that is paused does not count."""
    world = World()
    world.pool.database.pause()
    fake = FakeServer(world)
    assert unready(as_server(fake)) == ""
    fake.admin.paused = "PAUSE"
    assert unready(as_server(fake)) == "paused"


def test_not_ready_while_no_server_answers() -> None:
    down, other, console = failing("down"), failing("other"), named("txproxy")
    fake = FakeServer(down, other, console)
    assert unready(as_server(fake)) == "no server can be reached"
    fake.add(named("unused"))
    assert unready(as_server(fake)) == ""


def test_ready_while_a_server_only_takes_no_more_connections() -> None:
    world = named("full")
    client = world.client()
    waiting = world.client()
    client.sends(b"Q\0\0\0\x0dSELECT 1\0")
    waiting.sends(b"Q\0\0\0\x0dSELECT 1\0")
    world.refuses_connection()
    assert world.pool.failing
    assert unready(as_server(FakeServer(world))) == ""
