"""Asks servers about transactions whose clients sleep: see core/release.py.

One connection for each pool that has such, of its own: inside the client's transaction a question
would destroy what it has there. It is opened when it is needed and closed a minute later.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from txproxy.backends import asking, catalog
from txproxy.config import PoolSettings
from txproxy.core import endings, release
from txproxy.core.pool import Pool
from txproxy.core.pressure import Harm
from txproxy.core.release import Candidate
from txproxy.core.session import Session
from txproxy.core.transaction import OPEN

if TYPE_CHECKING:
    from txproxy.net.server import Server

_NAME: Final = "txproxy monitor"
_SLEEPS: Final = 1.0  # seconds in a transaction before the server is asked whom that harms
_IDLE: Final = 60.0  # seconds that a connection stays without being asked
_FRESH: Final = 10.0  # seconds that defaults of sessions are taken for the truth
_PATIENCE: Final = 15.0  # seconds for an answer
_PREPARES: Final = 20  # more than there are questions
_PAUSE: Final = 10.0  # seconds until a server that could not be asked is asked again

# What a session of this role finds in this database, unless it says otherwise.
_DEFAULT: Final = """
SELECT COALESCE((
    SELECT pg_catalog.split_part(said, '=', 2)
    FROM pg_catalog.pg_db_role_setting AS own, pg_catalog.unnest(own.setconfig) AS said
    WHERE pg_catalog.starts_with(said, $1 || '=')
    AND (own.setrole = 0 OR own.setrole = (
        SELECT oid FROM pg_catalog.pg_roles WHERE rolname::text = $2))
    AND (own.setdatabase = 0 OR own.setdatabase = (
        SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
    ORDER BY own.setrole = 0, own.setdatabase = 0 LIMIT 1
), pg_catalog.current_setting($1))
"""

# Only of those that wait: each look at who blocks whom stops the lock manager for a moment.
_HARM: Final = """
WITH blocking AS (
    SELECT blocker
    FROM (SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE NOT granted LIMIT 100) AS waiting,
        pg_catalog.unnest(pg_catalog.pg_blocking_pids(waiting.pid)) AS blocker
)
SELECT pid,
    (SELECT pg_catalog.count(*) FROM blocking WHERE blocker = pid) AS blocks,
    COALESCE(GREATEST(pg_catalog.age(backend_xid), pg_catalog.age(backend_xmin)), 0) AS xmin_age
FROM pg_catalog.pg_stat_activity
WHERE pid = ANY ($1::int[])
"""


def _sleepers(pool: Pool, now: float) -> list[Candidate]:
    """Those whose clients have slept in transactions for a while, where that matters."""
    return [
        Candidate(session, backend)
        for backend in pool.backends
        if (session := backend.session) is not None
        and session.state == OPEN
        and now - session.active_at >= _SLEEPS
        and (session.settings.idle_transaction_soft_timeout or _may_release(session))
        and endings.sleeps(session)
    ]


def _may_release(session: Session) -> bool:
    return session.settings.early_release != "off"


class Monitor:
    """The connections, by pool."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._askers: dict[Pool, _Asker] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, pool: Pool, candidates: list[Candidate]) -> None:
        """Ask about these; `release.answered()` is called when that is done."""
        self._spawn(self._ask(pool, candidates))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, pool: Pool, candidates: list[Candidate]) -> None:
        asker = self._asker(pool)
        try:
            async with asyncio.timeout(_PATIENCE):
                took = await asker.ask(candidates, self._server.clock)
        except Exception as error:
            self._failed(pool, asker, error)
            return
        try:
            release.answered(pool, candidates, took)
        except Exception as bug:
            self._server.log_bug("monitor", bug)

    async def _ask_for_harm(self, pool: Pool, sleepers: list[Candidate]) -> None:
        asker = self._asker(pool)
        try:
            async with asyncio.timeout(_PATIENCE):
                await asker.ask_for_harm(sleepers, self._server.clock)
        except Exception as error:
            self._failed(pool, asker, error)
        else:
            pool.watch.asking = False

    def _asker(self, pool: Pool) -> "_Asker":
        asker = self._askers.get(pool)
        if asker is None:
            asker = self._askers[pool] = _Asker(pool, self._settings(pool))
            self._server.event("monitoring", {"pool": pool.name})
        return asker

    def _settings(self, pool: Pool) -> PoolSettings:
        """How the connection logs in: as the pool's backends, or where the proxy does not have
        their password, as auth_user.
        """
        own = pool.settings
        if own.password is None or own.password.kind != "plain":
            asks = self._server.config.auth_settings(own.database)
            if asks is not None:
                return replace(asks.server, dbname=own.dbname)
        return own

    def _failed(self, pool: Pool, asker: "_Asker", error: Exception) -> None:
        why = str(error) or type(error).__name__
        release.not_answered(pool, f"the server could not be asked: {why}", _PAUSE)
        self._forget(pool, asker)
        self._server.event("monitoring failed", {"pool": pool.name, "why": why})

    def _forget(self, pool: Pool, asker: "_Asker") -> None:
        if self._askers.get(pool) is asker:
            del self._askers[pool]
        if asker.connection is not None:
            self._spawn(asking.take_leave(asker.connection))
            asker.connection = None

    def look(self) -> None:
        """Each second: ask whom the sleepers harm; close what has not been needed lately, and what
        belongs to a pool that is no more.
        """
        now = self._server.clock()
        for pool in list(self._server.pools.values()):
            if pool.watch.asking or now < pool.watch.next_at:
                continue
            sleepers = _sleepers(pool, self._server.now)
            if sleepers:
                pool.watch.asking = True
                self._spawn(self._ask_for_harm(pool, sleepers))
        pools = set(self._server.pools.values())
        for pool, asker in list(self._askers.items()):
            idle = not pool.watch.asking and now - asker.used_at > _IDLE
            if idle or pool not in pools or asker.settings != self._settings(pool):
                self._forget(pool, asker)

    def leave(self, leads_there: Callable[[PoolSettings], bool]) -> list[PoolSettings]:
        """Close the connections that lead there; returns where each led."""
        leaving = [each for each in self._askers.items() if leads_there(each[1].settings)]
        for pool, asker in leaving:
            self._forget(pool, asker)
        return [asker.settings for _, asker in leaving]

    async def close(self) -> None:
        """End at once what is being asked, and all connections."""
        for task in list(self._tasks):
            task.cancel()
        for asker in self._askers.values():
            if asker.connection is not None:
                asker.connection.terminate()
        self._askers.clear()


class _Asker:
    """The connection for one pool, and what has been learned by it."""

    def __init__(self, pool: Pool, settings: PoolSettings) -> None:
        self.pool = pool
        self.settings = settings
        self.connection: Any = None
        self.used_at = 0.0
        self._learned_at = -_FRESH
        self._knowledge: dict[tuple[str, ...], catalog.Knowledge] = {}

    async def ask(self, candidates: list[Candidate], clock: Callable[[], float]) -> float:
        """Give each that may not be released its `why`; the seconds that the server has looked at
        its locks for that, which holds others up.

        Raises whatever asyncpg raises.
        """
        await self._connect(clock)
        if clock() - self._learned_at > _FRESH:
            await self._learn()
            self._learned_at = clock()
        took = 0.0
        by_allowed: dict[tuple[str, ...], list[Candidate]] = {}
        for each in candidates:
            allowed = each.session.settings.early_release_functions
            by_allowed.setdefault(allowed, []).append(each)
        for allowed, alike in by_allowed.items():
            knowledge = self._knowledge.setdefault(allowed, catalog.Knowledge(allowed))
            said = {
                each.pid: catalog.Candidate(each.texts, each.session.strings_conform)
                for each in alike
            }
            found = await knowledge.judge(self.connection, said)
            for each in alike:
                each.why = found[each.pid]
            took += knowledge.took
        return took

    async def _connect(self, clock: Callable[[], float]) -> None:
        self.used_at = clock()
        if self.connection is None:
            self.connection = await asking.connect(self.settings, _NAME, prepares=_PREPARES)

    async def ask_for_harm(self, sleepers: list[Candidate], clock: Callable[[], float]) -> None:
        """Tell each backend whom its transaction harms. Raises whatever asyncpg raises."""
        await self._connect(clock)
        pids = [each.pid for each in sleepers]
        found = {row["pid"]: row for row in await self.connection.fetch(_HARM, pids)}
        for each in sleepers:
            row = found.get(each.pid)
            if row is not None:
                each.backend.harm = Harm(each.active_at, row["blocks"], row["xmin_age"])

    async def _learn(self) -> None:
        watch = self.pool.watch
        user = self.pool.settings.server_user
        unknown = bool(self.pool.settings.connect_query)  # it may set them, too
        watch.isolation = "" if unknown else await self._default("isolation", user)
        watch.read_only = "" if unknown else await self._default("read_only", user)

    async def _default(self, what: str, user: str) -> str:
        value: str = await self.connection.fetchval(_DEFAULT, f"default_transaction_{what}", user)
        return value
