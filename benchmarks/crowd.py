"""Many clients that do next to nothing, in a process of their own: `crowd.py PORT`.

Each line of its input is an order, answered by a line of output, the seconds that it took:

    connect N     N more clients log in
    transact      each client does BEGIN, SELECT 1, COMMIT
    leave N       N of them say goodbye
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Iterable
from typing import Final

import uvloop
from statements import BEGIN, COMMIT, HOST, IDLE, SELECT, STARTUP, TERMINATE, ready

AT_ONCE: Final = 100  # clients that are busy at a time

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Crowd:
    """All clients of this process."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections: list[Connection] = []

    async def connect(self, number: int) -> None:
        await gather(self._log_in() for _ in range(number))

    async def transact(self) -> None:
        await gather(transact(connection) for connection in self.connections)

    async def leave(self, number: int) -> None:
        leaving, self.connections = self.connections[:number], self.connections[number:]
        await gather(leave(connection) for connection in leaving)

    async def _log_in(self) -> None:
        connection = reader, writer = await asyncio.open_connection(HOST, self.port)
        writer.write(STARTUP)
        await reader.readuntil(ready(IDLE))
        self.connections.append(connection)


async def transact(connection: Connection) -> None:
    reader, writer = connection
    for statement in (BEGIN, SELECT, COMMIT):
        writer.write(statement.query)
        answer = await reader.readexactly(len(statement.answer))
        if answer != statement.answer:
            raise RuntimeError(f"{statement.query!r} is answered by {answer!r}")


async def leave(connection: Connection) -> None:
    _, writer = connection
    writer.write(TERMINATE)
    writer.close()
    await writer.wait_closed()


async def gather(tasks: Iterable[Awaitable[None]]) -> None:
    """Do them all, not all at once."""
    waiting = iter(tasks)

    async def one_by_one() -> None:
        for task in waiting:
            await task

    await asyncio.gather(*(one_by_one() for _ in range(AT_ONCE)))


async def main() -> None:
    crowd = Crowd(int(sys.argv[1]))
    loop = asyncio.get_running_loop()
    while order := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        began = time.perf_counter()
        match order:
            case ["connect", number]:
                await crowd.connect(int(number))
            case ["transact"]:
                await crowd.transact()
            case ["leave", number]:
                await crowd.leave(int(number))
            case _:
                raise ValueError(f"no such order: {order}")
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    uvloop.run(main())
