"""TLS begins on a connection that is there, on the proxy's event loop and on Python's own."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from tests.system.secure import Certificates, InPieces
from txproxy.config import TlsSettings
from txproxy.errors import ConfigError
from txproxy.net import tls

LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
PATIENCE: Final = 30.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def settings(certificates: Certificates, mode: str = "require", **more: str) -> TlsSettings:
    usual = {
        "key_file": certificates.file("server.key"),
        "cert_file": certificates.file("server.crt"),
        "ca_file": certificates.file("authority.crt"),
        "protocols": "secure",
        "ciphers": "default",
    }
    return TlsSettings(sslmode=mode, **{**usual, **more})


def context_of(certificates: Certificates) -> ssl.SSLContext:
    found = tls.client_context(settings(certificates))
    assert found is not None
    return found


class Echo(asyncio.Protocol):
    """One accepted connection: TLS begins at its first bytes; then what comes is sent back."""

    def __init__(self, context: ssl.SSLContext, timeout: float) -> None:
        self._context = context
        self._timeout = timeout
        self._early = b""
        self._inside: asyncio.Transport | None = None
        self.transport: asyncio.Transport | None = None
        self.accepting: asyncio.Task[None] | None = None
        self.begun = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        if self.accepting is None:
            self.transport.pause_reading()
            self.accepting = asyncio.get_running_loop().create_task(self._accept(data))
            self.begun.set()
        elif self._inside is not None:
            self._inside.write(data)
        else:
            self._early += data

    async def _accept(self, already: bytes) -> None:
        assert self.transport is not None
        self._inside = await tls.accept(self.transport, self, self._context, already, self._timeout)
        self._inside.write(self._early)


def serve(
    loop: str, context: ssl.SSLContext, talk: Callable[[int], Any], timeout: float = PATIENCE
) -> BaseException | None:
    """Run `talk` in a thread, with the port of an Echo; returns what tls.accept() has raised."""

    async def run() -> BaseException | None:
        echo = Echo(context, timeout)
        listener = await asyncio.get_running_loop().create_server(lambda: echo, "127.0.0.1", 0)
        async with listener:
            await asyncio.to_thread(talk, listener.sockets[0].getsockname()[1])
            assert echo.accepting is not None
            await asyncio.wait([echo.accepting], timeout=PATIENCE)
            return echo.accepting.exception()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(run())


@pytest.mark.parametrize("size", [1, 3, 50, 1 << 16])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_begins_without_asking(
    certificates: Certificates, loop: str, size: int
) -> None:
    def talk(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
            client = InPieces(plain, certificates.client(), size)
            client.handshake()
            client.send(b"hello")
            assert client.receive() == b"hello"
            client.send(b"again")
            assert client.receive() == b"again"

    assert serve(loop, context_of(certificates), talk) is None


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\x16 is no handshake at all", ssl.SSLError),
        (b"\x16\x03\x01\x02\x00\x01", ConnectionResetError),
    ],
)
def test_what_is_no_handshake(
    certificates: Certificates, loop: str, sent: bytes, expected: type[OSError]
) -> None:
    def talk(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
            plain.sendall(sent)
            plain.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while plain.recv(1000):
                    pass

    assert type(serve(loop, context_of(certificates), talk)) is expected


@pytest.mark.parametrize("loop", LOOPS)
def test_a_handshake_that_takes_too_long(certificates: Certificates, loop: str) -> None:
    def talk(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
            plain.sendall(b"\x16\x03\x01\x02\x00")
            assert plain.recv(1000) == b""

    error = serve(loop, context_of(certificates), talk, timeout=0.1)
    assert isinstance(error, ConnectionAbortedError)


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_that_we_close_during_the_handshake(
    certificates: Certificates, loop: str, turns: int
) -> None:
    """After so many turns of the loop."""

    async def run() -> None:
        echo = Echo(context_of(certificates), PATIENCE)
        listener = await asyncio.get_running_loop().create_server(lambda: echo, "127.0.0.1", 0)
        async with listener, asyncio.timeout(PATIENCE):
            port = listener.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x16\x03\x01\x02\x00")
            await echo.begun.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            assert echo.transport is not None
            assert echo.accepting is not None
            echo.transport.close()
            with pytest.raises(ConnectionResetError):
                await echo.accepting
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


# What the configuration says.


def test_without_tls_there_is_no_context(certificates: Certificates) -> None:
    assert tls.client_context(settings(certificates, "disable")) is None


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("allow", ssl.CERT_NONE),
        ("prefer", ssl.CERT_NONE),
        ("require", ssl.CERT_NONE),
        ("verify-ca", ssl.CERT_REQUIRED),
        ("verify-full", ssl.CERT_REQUIRED),
    ],
)
def test_which_modes_ask_for_a_certificate(
    certificates: Certificates, mode: str, expected: ssl.VerifyMode
) -> None:
    context = tls.client_context(settings(certificates, mode))
    assert context is not None
    assert context.verify_mode == expected


def test_sessions_are_not_taken_up_again(certificates: Certificates) -> None:
    context = context_of(certificates)
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_TICKET


def test_a_file_that_is_not_there(certificates: Certificates, tmp_path: Path) -> None:
    for name in ("key_file", "cert_file", "ca_file"):
        missing = str(tmp_path / name)
        with pytest.raises(ConfigError) as caught:
            tls.client_context(settings(certificates, **{name: missing}))
        assert caught.value.key == f"client_tls_{name}"
        assert f"{missing}: No such file" in str(caught.value)
