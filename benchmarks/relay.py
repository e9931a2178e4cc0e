"""A longer way to a server: `relay.py PORT SERVER_PORT SECONDS`, a process of its own.

What comes to 127.0.0.1:PORT is handed on to SERVER_PORT SECONDS later, and the answers likewise:
both together are what a round trip becomes longer by. Nothing waits but for its time: chunks that
came after each other leave after each other, as on a long line. At SIGTERM it prints how much later
than that they were handed on, as JSON, in microseconds.

asyncio would be shorter, but epoll waits whole milliseconds; select waits microseconds.
"""

import contextlib
import ctypes
import json
import select
import signal
import socket
import sys
import time
from collections import Counter, deque
from typing import Final

HOST: Final = "127.0.0.1"
CHUNK: Final = 65536
PR_SET_TIMERSLACK: Final = 29


class Relay:
    """Connections in pairs, and what is on its way between them."""

    def __init__(self, listener: socket.socket, server_port: int, delay: float) -> None:
        self.listener = listener
        self.server_port = server_port
        self.delay = delay
        self.peers: dict[socket.socket, socket.socket] = {}
        self.held: deque[tuple[float, socket.socket, bytes]] = deque()  # due when, where to
        self.late: Counter[int] = Counter()  # chunks by microseconds

    def run(self) -> None:
        """Until a signal raises something."""
        while True:
            pause = max(self.held[0][0] - time.perf_counter(), 0.0) if self.held else None
            readable, _, _ = select.select([self.listener, *self.peers], [], [], pause)
            for sock in readable:
                if sock is self.listener:
                    self._accept()
                else:
                    self._take(sock)
            self._hand_on()

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        server = socket.create_connection((HOST, self.server_port))
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers |= {client: server, server: client}

    def _take(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(CHUNK)
        except ConnectionError:
            data = b""
        to = self.peers[sock] if data else self.peers.pop(sock)
        self.held.append((time.perf_counter() + self.delay, to, data))

    def _hand_on(self) -> None:
        while self.held and (late := time.perf_counter() - self.held[0][0]) >= 0.0:
            _, sock, data = self.held.popleft()
            if data:
                self.late[int(late * 1e6)] += 1
                with contextlib.suppress(OSError):
                    sock.sendall(data)
            else:
                # the other direction, if it is still open, sees its end as well
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                if sock not in self.peers:
                    sock.close()

    def told(self) -> dict[str, float]:
        """How late it was."""
        return {
            "chunks": self.late.total(),
            "p50_us": percentile(self.late, 0.50),
            "p99_us": percentile(self.late, 0.99),
        }


def percentile(counts: Counter[int], share: float) -> int:
    left = counts.total() * share
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return 0


def main() -> None:
    port, server_port, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # The kernel may wake whoever waits 50 µs late unless told otherwise.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with socket.create_server((HOST, port), backlog=128) as listener:
        relay = Relay(listener, server_port, delay)
        try:
            relay.run()
        finally:
            print(json.dumps(relay.told()))


if __name__ == "__main__":
    main()
