"""The janitor: one pass over everything every 50 ms, in place of a timer for each client.

While somebody waits for a backend of a pool, it looks at that pool's sleepers much more often: it
is for milliseconds then that they may keep their backends.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from txproxy.core import endings, release
from txproxy.core.backend import Backend
from txproxy.core.pool import Pool
from txproxy.errors import LoginError
from txproxy.net.systemd import Watchdog

if TYPE_CHECKING:
    from txproxy.net.server import Server

TICK: Final = 0.05
"""Seconds between two passes."""

_PRESSED: Final = 0.01  # the same while somebody waits for a backend
_RELEASE: Final = 0.0025  # seconds between two looks at the sleepers of pools that are waited for

_TOO_SLOW: Final = LoginError("client_login_timeout", sqlstate="57P03")
_ALL_EVERY: Final = 1.0  # seconds between two looks at every client


class Janitor:
    """`server.now` is its clock: seconds, standing still while the proxy is stalled, so that a
    stall makes nobody look idle. `passed_at` is when the last pass ended, by the exact clock.
    """

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._passed_to = server.now
        self._coarse_to = server.now  # the end of the last long tick
        self._look_at_all_at = 0.0
        self._period_at = server.now + server.config.stats_period
        self._watchdog = Watchdog()
        self.passed_at = server.clock()

    async def run(self) -> None:
        """Until cancelled."""
        server = self._server
        last = server.clock()
        while True:
            pressed = [pool for pool in server.pools.values() if pool.waiters]
            tick = _RELEASE if pressed else TICK
            await asyncio.sleep(tick)
            time = server.clock()
            # A pass that comes late moves every deadline: the clock goes on by two ticks at most.
            elapsed = min(time - last, 2 * max(tick, _PRESSED))
            last = time
            server.now += elapsed
            since = server.now - self._passed_to
            if not pressed:
                self._coarse_to = server.now
            try:
                if not pressed or since >= _PRESSED:
                    self._passed_to = server.now
                    self._pass(server.now, since)
                    pressed = [*server.pools.values(), *server.orphans]
                # `active_at` may be of up to a tick before what it stands for, and of a long one
                # for a while after ticks have become short.
                if tick == TICK or server.now - self._coarse_to >= _PRESSED:
                    self._look_at_sleepers(pressed, server.now - elapsed)
            except Exception as bug:
                server.log_bug("janitor", bug)
            self.passed_at = server.clock()
            self._watchdog.alive(self.passed_at)

    def _pass(self, now: float, elapsed: float) -> None:
        """A look at everything; the last was `elapsed` seconds ago."""
        server = self._server
        for pool in [*server.pools.values(), *server.orphans]:
            try:
                self._look_at_pool(pool, now, elapsed)
            except Exception as bug:
                server.log_bug(repr(pool), bug)
            if pool.unused:
                server.forget_pool(pool)
        server.close_orphans()
        if now >= self._look_at_all_at:
            self._look_at_all_at = now + _ALL_EVERY
            self._look_at_all(now)
        if now >= self._period_at:
            self._period_at = now + server.config.stats_period
            server.period_is_over()

    def _look_at_sleepers(self, pools: Sequence[Pool], now: float) -> None:
        for pool in pools:
            try:
                release.look(pool, now)
            except Exception as bug:
                self._server.log_bug(repr(pool), bug)

    def _look_at_pool(self, pool: Pool, now: float, elapsed: float) -> None:
        leased = running = 0
        for backend in list(pool.backends):
            if backend.session is not None:
                leased += 1
                if backend.fifo.exchanges:
                    running += 1
            self._look_at(backend, now)
        stats = pool.stats
        stats.xact_time += leased * elapsed
        stats.query_time += running * elapsed
        stats.wait_time += len(pool.waiters) * elapsed
        if pool.waiters:
            self._look_at_waiters(pool, now)
        if pool.waiters or not self._server.draining:
            pool.look(now)
        pool.listener.look(now)

    def _look_at(self, backend: Backend, now: float) -> None:
        session = backend.session
        try:
            if now > backend.deadline:
                backend.close("it did not get clean in time")
            elif session is not None:
                endings.look(session, now)
                if session.marked_at == session.active_at:
                    # At the next pass the log is to know which process it is.
                    self._server.process(session)
        except Exception as bug:
            self._server.contain(backend, bug)

    def _look_at_waiters(self, pool: Pool, now: float) -> None:
        expired = [
            session
            for session in pool.waiters
            if 0 < session.settings.query_wait_timeout < now - session.queued_at
        ]
        for session in expired:
            pool.forget(session)
            try:
                endings.wait_is_over(session)
            except Exception as bug:
                self._server.bug(session, bug)

    def _look_at_all(self, now: float) -> None:
        """What may take a second longer: clients that are silent, or never say who they are."""
        server = self._server
        server.monitor.look()
        limit = server.config.client_login_timeout
        for client in list(server.clients):
            session = client.session
            if session is None:
                late = limit and now - client.began > limit
                if late and not client.transport.is_closing():
                    server.log_refusal(client.address, _TOO_SLOW)
                    client.close()
            elif session.pin or session.settings.client_idle_timeout:
                endings.look_if_idle(session, now)
