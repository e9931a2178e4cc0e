"""Connections by which the proxy asks servers something: nothing of a client's is run on them."""

from typing import Any, Final

import asyncpg

from txproxy.backends.reach import ways
from txproxy.config import PoolSettings
from txproxy.errors import LoginError

PATIENCE: Final = 15.0
"""Seconds for an answer, where server_connect_timeout has no limit."""

_CLOSING: Final = 2.0  # seconds to take leave


async def take_leave(connection: Any) -> None:
    """Close it, politely if that is possible."""
    try:
        await connection.close(timeout=_CLOSING)
    except Exception:
        connection.terminate()


async def connect(server: PoolSettings, name: str, *, prepares: int = 0) -> Any:
    """A connection of asyncpg's, with this application_name. It keeps so many statements prepared:
    none where another pooler may be behind it. Raises what the last host or the last way to it has
    raised.
    """
    secret = server.password
    # Not None: asyncpg would look into the environment and ~/.pgpass.
    password = secret.text if secret is not None and secret.kind == "plain" else ""
    share = (server.server_connect_timeout or PATIENCE) / len(server.hosts)
    failure: Exception = LoginError("no host")
    for host in server.hosts:
        for way in ways(host, server.port, server.tls):
            try:
                return await asyncpg.connect(
                    host=host,
                    port=server.port,
                    user=server.server_user,
                    password=password,
                    database=server.dbname,
                    ssl=way.context or False,
                    direct_tls=False,
                    timeout=share,
                    statement_cache_size=prepares,
                    server_settings={"search_path": "pg_catalog", "application_name": name},
                )
            except Exception as error:
                failure = error
    raise failure
