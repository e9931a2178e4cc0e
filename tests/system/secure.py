"""Certificates, servers with TLS, and clients that speak it by hand.

The certificates are in certs/, made by certs/make.sh. `authority` has signed those of `server`
(localhost, 127.0.0.1), `elsewhere` (another host), and of the clients `app` and `other`; `stranger`
has signed `fake`, which says that it is app.
"""

import contextlib
import hashlib
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
from tests.system.wire import Message, Wire
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.wire.scram import ScramClient

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


class InPieces:
    """TLS on a connection, with what is sent cut into pieces of this size."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, size: int) -> None:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._plain = plain
        self._size = size
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def handshake(self) -> None:
        """All but the sending of its last part, which goes out with the first data as with libpq.

        Raises ssl.SSLError.
        """
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self._flush()
                self._more()

    def send(self, data: bytes) -> None:
        """Send."""
        self._tls.write(data)
        self._flush()

    def receive(self) -> bytes:
        """Some of the next bytes."""
        while True:
            try:
                return self._tls.read(1 << 16)
            except ssl.SSLWantReadError:
                self._more()

    def _more(self) -> None:
        data = self._plain.recv(1 << 16)
        if not data:
            raise ConnectionError("closed too early")
        self._incoming.write(data)

    def _flush(self) -> None:
        data = self._outgoing.read()
        for i in range(0, len(data), self._size):
            self._plain.sendall(data[i : i + self._size])


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


# Logins by hand.


def password_message(body: bytes) -> bytes:
    """What a client answers to AuthenticationXxx."""
    return wire.message(b"p", body)


def sasl_initial(first: bytes, mechanism: bytes = b"SCRAM-SHA-256") -> bytes:
    """SASLInitialResponse."""
    return password_message(mechanism + b"\0" + struct.pack("!i", len(first)) + first)


def log_in_by_scram(
    client: Wire, parameters: dict[str, str], password: str, protocol: int = wire.PROTOCOL_3_0
) -> list[Message]:
    """What comes back, to ReadyForQuery or an error."""
    exchange = ScramClient(password, None, None)
    client.send(wire.startup(parameters, protocol))
    heard = client.until("RE")
    if heard[-1].kind == "E":
        return heard
    client.send(sasl_initial(exchange.first()))
    heard += client.until("RE")
    if heard[-1].kind == "E":
        return heard
    client.send(password_message(exchange.final(heard[-1].body[4:])))
    heard += client.until("RE")
    if heard[-1].kind == "E":
        return heard
    exchange.verify(heard[-1].body[4:])
    return [*heard, *client.until("ZE")]


def secret_file(directory: Path, secret: str) -> dict[str, str]:
    """The setting that names a file with this password, which others cannot read."""
    path = directory / f"password-{hashlib.sha256(secret.encode()).hexdigest()[:8]}"
    path.touch(0o600)
    path.write_text(secret, encoding="utf-8")
    return {"password_file": str(path)}


def stored(server: EmbeddedPostgres, user: str) -> str:
    """What the server has in pg_authid for a user's password."""
    with direct(server, "postgres") as connection:
        found = connection.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [user]
        ).fetchone()
    assert found is not None
    secret: str = found[0]
    return secret
