"""`txproxy serve`: run until told to stop."""

import asyncio
import contextlib
import resource
import signal
import sys

import uvloop

from txproxy.config import Config
from txproxy.errors import ConfigError, ConnectError
from txproxy.net import log, systemd
from txproxy.net.log import LOGGER
from txproxy.net.server import Server


def serve(config: Config) -> int:
    """Run the proxy. SIGTERM or SIGINT drains it, a second one ends it at once; SIGHUP reloads.

    Returns the exit code: 0 after an orderly end, 1 if an address is not to be had. Raises
    ConfigError for what only shows when it is used: certificates.
    """
    log.set_up(config.log_format, config.log_level)
    for note in config.notes:
        LOGGER.warning("configuration", extra={"fields": {"note": note}})
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
    enough = asyncio.Event()

    def on_signal() -> None:
        if server.stopping.is_set():
            enough.set()
        else:
            server.stop("servers")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log.unhandled)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    loop.add_signal_handler(signal.SIGHUP, _reload, server)
    await server.start()
    fields = {"listen": ", ".join(server.addresses)}
    if server.metrics.addresses:
        fields["metrics"] = ", ".join(server.metrics.addresses)
    LOGGER.info("ready", extra={"fields": fields})
    systemd.ready()
    await server.stopping.wait()
    systemd.stopping()
    LOGGER.info("draining", extra={"fields": {"clients": server.client_count}})
    if server.stop_mode != "now":
        await _drain(server, enough)
    await server.close()
    server.log_totals()
    LOGGER.info("stopped")
    return 0


def _reload(server: Server) -> None:
    systemd.reloading()
    # What is wrong with the file has been logged: the proxy goes on as it was.
    with contextlib.suppress(ConfigError):
        server.reload_file()
    systemd.ready()


async def _drain(server: Server, enough: asyncio.Event) -> None:
    """Until nobody is left, the time is over, or a second signal comes."""
    wait_for_clients = server.stop_mode == "clients"
    timeout = 0.0 if wait_for_clients else server.config.shutdown_timeout
    loop = asyncio.get_running_loop()
    drain = loop.create_task(server.drain(timeout, wait_for_clients=wait_for_clients))
    second = loop.create_task(enough.wait())
    await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
    drain.cancel()
    second.cancel()
