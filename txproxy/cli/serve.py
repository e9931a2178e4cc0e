"""`txproxy serve`: run until told to stop."""

import asyncio
import resource
import signal
import sys

import uvloop

from txproxy.config import Config
from txproxy.errors import ConnectError
from txproxy.net import log
from txproxy.net.log import LOGGER
from txproxy.net.server import Server


def serve(config: Config) -> int:
    """Run the proxy. SIGTERM or SIGINT drains it, a second one ends it at once.

    Returns the exit code: 0 after an orderly end, 1 if an address is not to be had.
    """
    log.set_up(config.log_format, config.log_level)
    _raise_file_limit()
    try:
        return uvloop.run(_serve(config))
    except ConnectError as error:
        print(f"txproxy: {error}", file=sys.stderr)
        return 1


def _raise_file_limit() -> None:
    """Each client is a descriptor: take as many as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(config: Config) -> int:
    server = Server(config)
    stop = asyncio.Event()
    enough = asyncio.Event()

    def on_signal() -> None:
        (enough if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    loop.add_signal_handler(signal.SIGHUP, lambda: LOGGER.warning("reload: not yet; restart"))
    await server.start()
    LOGGER.info("ready", extra={"fields": {"listen": ", ".join(server.addresses)}})
    await stop.wait()
    LOGGER.info("draining", extra={"fields": {"clients": len(server.clients)}})
    drain = loop.create_task(server.drain(config.shutdown_timeout))
    second = loop.create_task(enough.wait())
    await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
    drain.cancel()
    second.cancel()
    await server.close()
    server.log_totals()
    LOGGER.info("stopped")
    return 0
