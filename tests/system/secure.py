"""Certificates, servers with TLS, and clients that speak it by hand.

The certificates are in certs/, made by certs/make.sh. `authority` has signed those of `server`
(localhost, 127.0.0.1), `elsewhere` (another host), and of the clients `app` and `other`; `stranger`
has signed `fake`, which says that it is app.
"""

import contextlib
import os
import select
import shutil
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.system import wire
from tests.system.proxy import direct
from tests.system.wire import Wire
from txproxy.cli.embedded import EmbeddedPostgres

_CERTIFICATES: Final = Path(__file__).parent / "certs"
SSL_REQUEST: Final = wire.packet(wire.SSL_REQUEST)


class Certificates:
    """A copy of certs/, whose keys nobody else can read: libpq insists."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for path in _CERTIFICATES.glob("*.[ck][re][ty]"):
            shutil.copyfile(path, directory / path.name)
            (directory / path.name).chmod(0o600)

    def file(self, name: str) -> str:
        """The path of `server.crt`, `app.key`, …"""
        path = self.directory / name
        assert path.exists(), path
        return str(path)

    def server(self, name: str = "server") -> ssl.SSLContext:
        """What a server of the tests' own offers."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file(f"{name}.crt"), self.file(f"{name}.key"))
        context.set_alpn_protocols(["postgresql"])
        return context

    def client(self, name: str = "", alpn: str = "postgresql") -> ssl.SSLContext:
        """What a client of the tests' own speaks, with the certificate of this name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.file("authority.crt"))
        if alpn:
            context.set_alpn_protocols([alpn])
        if name:
            context.load_cert_chain(self.file(f"{name}.crt"), self.file(f"{name}.key"))
        return context


@contextlib.contextmanager
def tls_wire(
    address: tuple[str, int], context: ssl.SSLContext, *, direct_tls: bool = False
) -> Iterator[Wire]:
    """A connection whose bytes the test writes itself, inside TLS."""
    with socket.create_connection(address, wire.PATIENCE) as plain:
        if not direct_tls:
            plain.sendall(SSL_REQUEST)
            assert plain.recv(2) == b"S"
        with context.wrap_socket(plain, server_hostname="localhost") as inside:
            yield Wire.of(inside)


def with_tls(server: EmbeddedPostgres, certificates: Certificates) -> None:
    """Restart a server so that it offers TLS, and knows the clients' certificates."""
    with direct(server, "postgres") as connection:
        (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
        connection.execute("ALTER SYSTEM SET ssl = on")
        connection.execute("ALTER SYSTEM SET ssl_ca_file = 'authority.crt'")
    owner = Path(data).stat()
    for name in ("server.crt", "server.key", "authority.crt"):
        shutil.copyfile(certificates.file(name), Path(data, name))
        Path(data, name).chmod(0o600)
        os.chown(Path(data, name), owner.st_uid, owner.st_gid)
    server.restart()


@contextlib.contextmanager
def pg_hba(server: EmbeddedPostgres, *lines: str) -> Iterator[None]:
    """Who may log in to the server, while the block lasts; besides the superuser."""
    with direct(server, "postgres") as connection:
        (path,) = connection.execute("SHOW hba_file").fetchone() or ("",)
    before = Path(path).read_text(encoding="utf-8")
    always = ["local all all trust", "host all postgres all trust"]
    try:
        Path(path).write_text("\n".join([*always, *lines, ""]), encoding="utf-8")
        _reload(server)
        yield
    finally:
        Path(path).write_text(before, encoding="utf-8")
        _reload(server)


def _reload(server: EmbeddedPostgres) -> None:
    """Have the server read its configuration, and wait until a new connection has seen that."""
    with direct(server, "postgres") as connection:
        (before,) = connection.execute("SELECT pg_conf_load_time()").fetchone() or ("",)
        connection.execute("SELECT pg_reload_conf()")
    while True:
        with direct(server, "postgres") as connection:
            (now,) = connection.execute("SELECT pg_conf_load_time()").fetchone() or ("",)
            if now != before:
                return


class Terminator:
    """TLS in front of a server that has none. `answer` is what an SSLRequest gets; behind an answer
    that is not S everything is passed on as it is.

    packets   the code of the first packet of each connection behind SSLRequest, and whether it came
              inside TLS; `lengths` its length
    """

    def __init__(
        self, server: EmbeddedPostgres, context: ssl.SSLContext, answer: bytes = b"S"
    ) -> None:
        self.packets: list[tuple[int, bool]] = []
        self.lengths: list[int] = []
        self._server = server
        self._context = context
        self._answer = answer

    def __call__(self, peer: Wire) -> None:
        """One connection: what a FakeServer does."""
        near = peer.socket
        length, code = struct.unpack("!ii", near.recv(8, socket.MSG_WAITALL | socket.MSG_PEEK))
        secure = False
        if code == wire.SSL_REQUEST:
            near.recv(length)
            near.sendall(self._answer)
            if self._answer == b"S":
                near = self._context.wrap_socket(near, server_side=True)
                secure = True
        with near:
            head = _exactly(near, 8)
            length, code = struct.unpack("!ii", head)
            self.packets.append((code, secure))
            self.lengths.append(length)
            with socket.create_connection((self._server.host, self._server.port)) as far:
                far.sendall(head)
                _pass_on(near, far)


def _exactly(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = source.recv(size - len(found))
        if not data:
            raise ConnectionError("closed too early")
        found += data
    return found


def _pass_on(near: socket.socket, far: socket.socket) -> None:
    """Both ways, until one side has closed. In one thread: a TLS socket does not stand two."""
    with contextlib.suppress(OSError):
        while True:
            held = isinstance(near, ssl.SSLSocket) and near.pending()
            for source in [near] if held else select.select([near, far], [], [])[0]:
                data = source.recv(1 << 16)
                if not data:
                    return
                (far if source is near else near).sendall(data)
