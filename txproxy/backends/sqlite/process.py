"""The SQLite process: clients that the proxy hands over, the files that they speak of."""

import asyncio
import base64
import os
import socket
from collections.abc import Callable
from typing import Final

from txproxy.backends.sqlite.channel import Channel, Line
from txproxy.backends.sqlite.session import Session


class Process:
    """All of it, from "ready" to the end of the channel."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: socket.socket) -> None:
        self.loop = loop
        self.channel = Channel(loop, channel, self._take, self._lost)
        self.sessions: dict[int, Session] = {}
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the channel ends."""
        self.channel.tell({"is": "ready"})
        await self._ended.wait()

    def _take(self, line: Line) -> None:
        _DO[line["do"]](self, line)

    def _lost(self) -> None:
        self._ended.set()

    def _client(self, line: Line) -> None:
        session = Session(self, line)
        sock = self.channel.next_socket()
        task = self.loop.create_task(self._adopt(session, sock, base64.b64decode(line["rest"])))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _adopt(self, session: Session, sock: socket.socket, rest: bytes) -> None:
        self.sessions[session.number] = session
        await self.loop.connect_accepted_socket(lambda: session, sock)
        if rest:
            session.data_received(rest)

    def closed(self, session: Session) -> None:
        """A client is gone."""
        del self.sessions[session.number]
        self.channel.tell({"is": "closed", "id": session.number})


_DO: Final[dict[str, Callable[[Process, Line], None]]] = {
    "client": Process._client,
}
