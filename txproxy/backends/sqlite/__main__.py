"""`python -m txproxy.backends.sqlite FD`: the SQLite process, FD its end of the control channel."""

import asyncio
import socket
import sys

import uvloop

from txproxy.backends.sqlite.process import Process

_SWITCH: float = 0.001  # seconds a thread keeps the interpreter while another one wants it


async def _serve(fd: int) -> None:
    await Process(asyncio.get_running_loop(), socket.socket(fileno=fd)).serve()


if __name__ == "__main__":
    sys.setswitchinterval(_SWITCH)
    uvloop.run(_serve(int(sys.argv[1])))
