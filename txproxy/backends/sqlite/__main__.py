"""`python -m txproxy.backends.sqlite FD`: the SQLite process, FD its end of the control channel."""

import asyncio
import gc
import signal
import socket
import sys

import uvloop

from txproxy.backends.sqlite.process import Process

_SWITCH: float = 0.001  # seconds a thread keeps the interpreter while another one wants it
_GARBAGE: int = 20_000  # objects more before they are looked through: statements leave no cycles


async def _serve(fd: int) -> None:
    await Process(asyncio.get_running_loop(), socket.socket(fileno=fd)).serve()


if __name__ == "__main__":
    # Who stops a group of processes stops the proxy, which says when this one is to end.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH)
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    uvloop.run(_serve(int(sys.argv[1])))
