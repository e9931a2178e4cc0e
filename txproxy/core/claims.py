"""Databases that a statement needs for itself.

DROP DATABASE, ALTER DATABASE … RENAME and CREATE DATABASE … TEMPLATE fail while anybody else is
connected to that database. Its clients may have left long ago, or be idle: our backends are still
there. So they are closed first, those that come back while the statement runs as well; the server
waits up to 5 seconds for them. What a client's transaction or state holds stays, as it would
without us.

Source: PostgreSQL 18, CountOtherDBBackends() in procarray.c and its callers in dbcommands.c.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from txproxy.core.backend import Backend
    from txproxy.core.exchange import Exchange
    from txproxy.core.session import Session
    from txproxy.wire.sql import Judgement


def note(session: "Session", judged: "Judgement", exchange: "Exchange") -> None:
    """A statement is about to be sent that claims databases, or changes what sessions begin with:
    then those that begin once it is committed must see it.
    """
    backend = session.backend
    if backend is None:
        return
    claim = Claim(backend, exchange)
    if judged.databases:
        session.outside.claimed(session.pool, judged.databases, claim)
    if judged.defaults:
        session.defaults_due = claim


class Claim:
    """A statement of this kind that is about to be sent to `backend`, as part of `exchange`."""

    __slots__ = ("_backend", "_exchange")

    def __init__(self, backend: "Backend", exchange: "Exchange") -> None:
        self._backend = backend
        self._exchange = exchange

    @property
    def holds(self) -> bool:
        """Whether it has not been answered yet."""
        return not self._backend.closed and self._exchange in self._backend.fifo.exchanges
