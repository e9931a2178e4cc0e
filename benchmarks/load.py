"""The clients of a benchmark, in a process of their own: `load.py ORDER`, an Order as JSON.

They speak the wire protocol with messages and answers that are made once, so that a statement costs
them little next to what is measured; how much of a core it was is told with the rest. An answer is
right if it is the one that PostgreSQL gives, byte for byte. What goes wrong is counted: errors by
SQLSTATE, lost connections, refused ones. A client that has lost its connection makes another one,
if it was asleep when it wakes, as an application would find out.

What counts is what happens in the `seconds` after `warm_up`. Transactions that are unfinished at
their end are waited for no longer: they count among the latencies as what they have lasted so far.
The timeline counts from the start.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, cast

import uvloop
from statements import (
    BEGIN,
    COMMIT,
    HOST,
    IDLE,
    ROLLBACK,
    SELECT,
    SELECT_ALONE,
    STARTUP,
    TERMINATE,
    UNASKED,
    Statement,
    marked,
    ready,
    split,
    sqlstate,
)

RETRY: Final = 0.1  # seconds from a refused connection to the next attempt
GRACE: Final = 5.0  # seconds that transactions may take to end, after all is measured
TICK: Final = 0.25  # seconds, of the timeline
WRONG: Final = "a wrong answer"  # always counts


@dataclass(frozen=True)
class Order:
    """What to do. `transaction`: the active clients send BEGIN, SELECT 1, COMMIT, each when the one
    before is answered, else SELECT 1 alone. Sleepers begin, read the table PAGE, sleep, read it
    again, and commit.
    """

    port: int
    active: int
    seconds: float  # that count
    warm_up: float  # seconds before
    transaction: bool = True
    sleepers: int = 0
    sleep: float = 0.0  # seconds
    alone: float = 0.0  # seconds from the start to the first BEGIN of the sleepers


Steps = Iterator[Statement | float]  # a number: seconds of sleep
Script = Callable[[], Steps]


def short(order: Order) -> Script:
    """What an active client does."""
    steps = (BEGIN, SELECT, COMMIT) if order.transaction else (SELECT_ALONE,)
    return lambda: iter(steps)


def sleepy(order: Order, number: int, came: float) -> Script:
    """What a sleeper does, from the moment `came` on."""
    rounds = itertools.count(1)

    def steps() -> Steps:
        token = f"sleeper {number}, transaction {next(rounds)}"
        if (wait := came - time.perf_counter()) > 0:
            yield wait
        yield from (BEGIN, marked(f"{token}, before"), float(order.sleep))
        yield from (marked(f"{token}, after"), COMMIT)

    return steps


@dataclass
class Tally:
    """What has become of the transactions of some clients. It counts while `counting`, the timeline
    always.
    """

    started: float
    committed: int = 0
    answered: int = 0  # statements, as they should be
    unanswered: int = 0  # that somebody waits for at the end
    timeline: Counter[int] = field(default_factory=Counter)  # committed, by ticks since the start
    latencies: list[float] = field(default_factory=list)  # seconds, also of those unfinished
    unfinished: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # by SQLSTATE, on a connection that lives
    disconnects: Counter[str] = field(default_factory=Counter)  # by the SQLSTATE that was told
    refused: Counter[str] = field(default_factory=Counter)  # logins, by reason
    counting: bool = False

    def commit(self, began: float) -> None:
        now = time.perf_counter()
        self.timeline[int((now - self.started) / TICK)] += 1
        if self.counting:
            self.committed += 1
            self.latencies.append(now - began)

    def answer(self) -> None:
        if self.counting:
            self.answered += 1

    def count(self, what: Counter[str], reason: str) -> None:
        if self.counting or reason == WRONG:
            what[reason] += 1

    def told(self, seconds: float) -> dict[str, Any]:
        """For JSON, with latencies in milliseconds, and a timeline of so many seconds."""
        latencies = sorted(self.latencies)
        return {
            "committed": self.committed,
            "unfinished": self.unfinished,
            "answered": self.answered,
            "unanswered": self.unanswered,
            "timeline": [self.timeline[tick] for tick in range(int(seconds / TICK))],
            "p50_ms": percentile(latencies, 0.50),
            "p99_ms": percentile(latencies, 0.99),
            "max_ms": percentile(latencies, 1.0),
            "errors": dict(self.errors),
            "disconnects": dict(self.disconnects),
            "refused": dict(self.refused),
        }


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Of seconds, in milliseconds; None of nothing."""
    if not ordered:
        return None
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e3


class Load:
    """All clients of this process."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.started = time.perf_counter()
        self.active = Tally(self.started)
        self.sleepers = Tally(self.started)
        self.over = False
        self.ended = asyncio.Event()
        self.clients = {Client(self, self.active, short(order)) for _ in range(order.active)}
        came = self.started + order.alone
        for number in range(order.sleepers):
            self.clients.add(Client(self, self.sleepers, sleepy(order, number, came)))

    async def run(self) -> dict[str, Any]:
        """Let them work; what there is to tell."""
        for client in self.clients:
            client.begin()
        await asyncio.sleep(self.order.warm_up)
        self.active.counting = self.sleepers.counting = True
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(self.order.seconds)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        for client in self.clients:
            client.count_unfinished()
        self.active.counting = self.sleepers.counting = False
        measured = time.perf_counter() - self.started
        await self._end()
        return {
            "seconds": seconds,  # that counted
            "lasted": time.perf_counter() - self.started,  # with warm-up and end
            "own_cpu": cpu / seconds,  # cores
            "tick": TICK,  # seconds, of the timelines
            "active": self.active.told(measured),
            "sleepers": self.sleepers.told(measured),
        }

    async def _end(self) -> None:
        """Let transactions end, so that no pooler has to deal with half of one."""
        self.over = True
        for client in list(self.clients):
            client.wake_at_once()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), GRACE)

    def left(self, client: "Client") -> None:
        self.clients.discard(client)
        if not self.clients:
            self.ended.set()


class Client(asyncio.Protocol):
    """One client: it does its script from top to bottom, again and again, until the load is over.

    A failed statement ends its round of the script: with a ROLLBACK, if the server says that there
    still is a transaction.
    """

    def __init__(self, load: Load, tally: Tally, script: Script) -> None:
        self._load = load
        self._tally = tally
        self._script = script
        self._steps: Steps = iter(())
        self._failed = False
        self._began = 0.0
        self._statement: Statement | None = None  # whose answer is awaited
        self._received = b""
        self._logged_in = False
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    # The script.

    def begin(self) -> None:
        """Do the script from its top; connect first if need be."""
        if self._load.over:
            self._leave()
            return
        self._began = time.perf_counter()
        self._steps = self._script()
        self._failed = False
        if self._logged_in:
            self._go_on()
        else:
            self._connect()

    def count_unfinished(self) -> None:
        """What is going on now counts as what it has lasted so far."""
        self._tally.unfinished += 1
        self._tally.unanswered += self._statement is not None
        self._tally.latencies.append(time.perf_counter() - self._began)

    def wake_at_once(self) -> None:
        if self._alarm is not None:
            self._wake()
        elif not self._logged_in:
            self._leave()

    def _go_on(self) -> None:
        step = next(self._steps, None)
        if isinstance(step, float) and self._load.over:
            step = next(self._steps, None)
        if isinstance(step, Statement):
            assert self._transport is not None
            self._statement = step
            self._transport.write(step.query)
        elif step is not None:
            self._alarm = asyncio.get_running_loop().call_later(step, self._wake)
        else:
            if not self._failed:
                self._tally.commit(self._began)
            self.begin()

    def _wake(self) -> None:
        assert self._alarm is not None
        self._alarm.cancel()
        self._alarm = None
        if self._logged_in:
            self._go_on()
        else:
            self.begin()  # the connection went while it slept: this transaction is gone

    def _leave(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.write(TERMINATE)
            self._transport.close()
        self._load.left(self)

    # The connection.

    def _connect(self) -> None:
        if self._load.over:
            self._leave()
            return
        self._connecting = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        while True:
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: self, HOST, self._load.order.port
                )
                return
            except OSError as error:
                self._tally.count(self._tally.refused, error.strerror or "unknown")
                await asyncio.sleep(RETRY)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._received = b""
        self._transport.write(STARTUP)

    def data_received(self, data: bytes) -> None:
        if self._statement is not None and data == self._statement.answer and not self._received:
            self._statement = None
            self._tally.answer()
            self._go_on()
            return
        self._received += data
        messages = split(self._received)
        if messages and messages[-1][:1] == b"Z":
            self._received = b""
            self._judge(messages)

    def _judge(self, messages: Sequence[bytes]) -> None:
        """An answer that is not what it should be at first sight, or that to the login."""
        statement, self._statement = self._statement, None
        if not self._logged_in:
            self._logged_in = True
        elif statement is None:
            self._tally.count(self._tally.errors, "an answer to nothing")
            return
        elif b"".join(each for each in messages if each[:1] not in UNASKED) != statement.answer:
            self._tally.count(self._tally.errors, sqlstate(messages) or WRONG)
            self._failed = True
            in_transaction = messages[-1] != ready(IDLE)
            self._steps = iter((ROLLBACK,) if in_transaction else ())
        else:
            self._tally.answer()
        self._go_on()

    def connection_lost(self, _error: Exception | None) -> None:
        said = sqlstate(split(self._received)) or "without a word"
        was_logged_in, self._logged_in = self._logged_in, False
        self._transport = None
        if self not in self._load.clients:
            return
        if not was_logged_in:
            self._tally.count(self._tally.refused, said)
            asyncio.get_running_loop().call_later(RETRY, self._connect)
            return
        self._tally.count(self._tally.disconnects, said)
        self._statement = None
        if self._alarm is None:
            self.begin()


def fail(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> NoReturn:
    """A mistake in these clients must not look like a slow pooler."""
    error = context.get("exception")
    traceback.print_exception(error) if error else print(context["message"], file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


async def main() -> None:
    asyncio.get_running_loop().set_exception_handler(fail)
    told = await Load(Order(**json.loads(sys.argv[1]))).run()
    print(json.dumps(told))


if __name__ == "__main__":
    uvloop.run(main())
