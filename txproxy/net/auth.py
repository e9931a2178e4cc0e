"""Who has which password: [users] says so, or the server, asked by auth_query.

The server is asked on connections of our own, on which nothing of a client's is ever run or set:
neither its start-up settings nor a search_path reach the query (PgBouncer's CVE-2025-12819). What
a client can cause is bounded: asks for the same user at the same time are one, and a server has a
handful of these connections, whatever database names clients come with.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from txproxy.backends import asking
from txproxy.config import AuthSettings, Config, PoolSettings
from txproxy.core.handshake import Credentials
from txproxy.errors import LoginError
from txproxy.net.log import LOGGER

if TYPE_CHECKING:
    from txproxy.net.server import Server

_MOST: Final = 4  # connections to one server
_IDLE: Final = 60.0  # seconds that one of them stays without being asked

# Not every auth_query looks at it (CVE-2025-2291); everybody may read it.
_EXPIRED: Final = (
    "SELECT rolvaliduntil <= pg_catalog.now() FROM pg_catalog.pg_roles WHERE rolname = $1"
)


class Authenticator:
    """Knows what each client has to prove."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._asking: dict[tuple[str, str], asyncio.Task[Credentials | None]] = {}
        self._askers: dict[tuple[tuple[str, ...], int], _Asker] = {}

    def configured(self, user: str) -> Credentials | None:
        """What [users] says; None if nothing."""
        own = self._server.config.users.get(user)
        return Credentials.of(user, own.password.text) if own and own.password else None

    async def secret(self, database: str, user: str) -> Credentials | None:
        """What a client of this database has to know; None: there is no such user, or it has no
        password, or one that has expired.

        Raises LoginError if the server cannot be asked.
        """
        known = self.configured(user)
        if known is not None:
            return known
        settings = self._server.config.auth_settings(database)
        if settings is None or not _is_text(user):
            return None
        key = (database, user)
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask(settings, database, user))
            self._asking[key] = asking
            asking.add_done_callback(lambda task: self._answered(key, task))
        # One client that leaves does not end it for the others.
        return await asyncio.shield(asking)

    def _answered(self, key: tuple[str, str], task: asyncio.Task[Credentials | None]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def _ask(self, settings: AuthSettings, database: str, user: str) -> Credentials | None:
        where = settings.server
        asker = self._askers.setdefault((where.hosts, where.port), _Asker())
        try:
            async with asyncio.timeout(where.server_connect_timeout or asking.PATIENCE):
                answer = await asker.ask(settings, user)
        except asyncpg.InvalidCatalogNameError as error:
            # Before it has logged in, a client does not learn which databases there are.
            answer = _Answer(None, str(error))
        except Exception as error:
            why = str(error) or type(error).__name__
            fields = {"database": database, "user": user, "why": why}
            LOGGER.warning("auth_query failed", extra={"fields": fields})
            raise LoginError("authentication is not possible now", sqlstate="08006") from error
        if answer.password is None:
            fields = {"database": database, "user": user, "why": answer.why}
            LOGGER.info("no password", extra={"fields": fields})
            return None
        return Credentials.of(user, answer.password)

    def reload(self, _config: Config) -> None:
        """The configuration has changed: what is connected by the old one is used no more."""
        for asker in self._askers.values():
            asker.close_idle()
        self._askers.clear()

    def leave(self, leads_there: Callable[[PoolSettings], bool]) -> list[PoolSettings]:
        """Close the connections that are not in use and lead there; returns where each led."""
        return [left for asker in self._askers.values() for left in asker.leave(leads_there)]

    async def close(self) -> None:
        """End at once what is being asked, and all connections."""
        for task in self._asking.values():
            task.cancel()
        askers = list(self._askers.values())
        for asker in askers:
            asker.close_idle()
        await asyncio.gather(*(asker.closed() for asker in askers))


def _is_text(user: str) -> bool:
    """Whether the name, which clients send as any bytes, can be a parameter of a query."""
    try:
        user.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Answer(NamedTuple):
    password: str | None
    why: str  # there is none


class _Asker:
    """The connections to one server. The last used comes first; `server` says what each is for."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_MOST)
        self._busy = 0
        self._idle: list[tuple[PoolSettings, float, Any]] = []
        self._closing: set[asyncio.Task[None]] = set()

    async def ask(self, settings: AuthSettings, user: str) -> _Answer:
        """What the server says of this user. Raises whatever asyncpg raises."""
        async with self._room:
            self._busy += 1
            try:
                return await self._ask(settings, user)
            finally:
                self._busy -= 1

    async def _ask(self, settings: AuthSettings, user: str) -> _Answer:
        kept = self._take(settings.server)
        if kept is not None:
            with contextlib.suppress(Exception):
                # The server may have closed it, and nobody has noticed yet.
                return await self._ask_on(kept, settings, user)
        while self._idle and len(self._idle) + self._busy > _MOST:
            self._close(self._idle.pop(0)[2])
        connection = await asking.connect(settings.server, "txproxy auth_query")
        return await self._ask_on(connection, settings, user)

    async def _ask_on(self, connection: Any, settings: AuthSettings, user: str) -> _Answer:
        try:
            row = await connection.fetchrow(settings.query, user)
            expired = await connection.fetchval(_EXPIRED, user)
        except BaseException:
            self._close(connection)  # which cancels what it still does
            raise
        self._keep(settings.server, connection)
        if row is not None and len(row) != 2:
            raise LoginError("auth_query must give a name and a password")
        if row is None or row[0] != user:
            return _Answer(None, "auth_query does not know this user")
        if expired:
            return _Answer(None, "its password has expired")
        return _Answer(row[1], "" if row[1] else "it has none")

    def _take(self, server: PoolSettings) -> Any:
        for index, (known, _, connection) in reversed(list(enumerate(self._idle))):
            if known == server:
                del self._idle[index]
                return connection
        return None

    def _keep(self, server: PoolSettings, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        self._idle.append((server, loop.time(), connection))
        loop.call_later(_IDLE, self._expire)

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._idle and self._idle[0][1] + _IDLE <= now:
            self._close(self._idle.pop(0)[2])

    def _close(self, connection: Any) -> None:
        task = asyncio.get_running_loop().create_task(asking.take_leave(connection))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def close_idle(self) -> None:
        """Close what nobody uses at this moment."""
        while self._idle:
            self._close(self._idle.pop()[2])

    def leave(self, leads_there: Callable[[PoolSettings], bool]) -> list[PoolSettings]:
        """Close what nobody uses at this moment and leads there; returns where each led."""
        leaving = [kept for kept in self._idle if leads_there(kept[0])]
        for kept in leaving:
            self._idle.remove(kept)
            self._close(kept[2])
        return [kept[0] for kept in leaving]

    async def closed(self) -> None:
        """Wait until all is closed that was to be."""
        await asyncio.gather(*self._closing)
