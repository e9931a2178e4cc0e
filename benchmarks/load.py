"""The clients of a benchmark, in a process of their own: `load.py ORDER`, an Order as JSON.

They speak the wire protocol with messages and answers that are made once, so that a statement costs
them little next to what is measured; how much of a core it was is told with the rest. An answer is
right if it is the one that PostgreSQL gives, byte for byte. What goes wrong is counted: errors by
SQLSTATE, lost connections, refused ones. A client that has lost its connection makes another one,
if it was asleep when it wakes, as an application would find out.

What counts is what happens in the `seconds` after `warm_up`. Transactions that are unfinished at
their end are waited for no longer: they count among the latencies as what they have lasted so far.
"""

import asyncio
import contextlib
import json
import os
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, cast

import uvloop

HOST: Final = "127.0.0.1"
USER: Final = "postgres"  # also the name of the database
RETRY: Final = 0.1  # seconds from a refused connection to the next attempt
GRACE: Final = 5.0  # seconds that transactions may take to end, after all is measured

IDLE: Final = b"I"
IN_TRANSACTION: Final = b"T"
UNASKED: Final = b"ANS"  # notifications, notices, parameters: may stand between other messages


@dataclass(frozen=True)
class Order:
    """What to do. `transaction`: the active clients send BEGIN, SELECT 1, COMMIT, each when the one
    before is answered, else SELECT 1 alone. Sleepers do the former, and sleep before the COMMIT.
    """

    port: int
    active: int
    seconds: float  # that count
    warm_up: float  # seconds before
    transaction: bool = True
    sleepers: int = 0
    sleep: float = 0.0  # seconds


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def query(statement: str) -> bytes:
    return message(b"Q", statement.encode() + b"\0")


def startup() -> bytes:
    body = struct.pack("!I", 0x30000) + f"user\0{USER}\0database\0{USER}\0\0".encode()
    return struct.pack("!I", len(body) + 4) + body


def ready(status: bytes) -> bytes:
    return message(b"Z", status)


def done(tag: str) -> bytes:
    return message(b"C", tag.encode() + b"\0")


STARTUP: Final = startup()
TERMINATE: Final = message(b"X", b"")
INT4_COLUMN: Final = b"?column?\0" + struct.pack("!IHIhih", 0, 0, 23, 4, -1, 0)
ONE: Final = (
    message(b"T", struct.pack("!H", 1) + INT4_COLUMN)
    + message(b"D", struct.pack("!HI", 1, 1) + b"1")
    + done("SELECT 1")
)


@dataclass(frozen=True)
class Statement:
    """What is sent, and what comes back if all is well."""

    query: bytes
    answer: bytes


BEGIN: Final = Statement(query("BEGIN"), done("BEGIN") + ready(IN_TRANSACTION))
SELECT: Final = Statement(query("SELECT 1"), ONE + ready(IN_TRANSACTION))
COMMIT: Final = Statement(query("COMMIT"), done("COMMIT") + ready(IDLE))
ROLLBACK: Final = Statement(query("ROLLBACK"), done("ROLLBACK") + ready(IDLE))
SELECT_ALONE: Final = Statement(query("SELECT 1"), ONE + ready(IDLE))

Script = Sequence[Statement | float]  # a number: seconds of sleep


@dataclass
class Tally:
    """What has become of the transactions of some clients. It counts while `counting`."""

    committed: int = 0
    latencies: list[float] = field(default_factory=list)  # seconds, also of those unfinished
    unfinished: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # by SQLSTATE, on a connection that lives
    disconnects: Counter[str] = field(default_factory=Counter)  # by the SQLSTATE that was told
    refused: Counter[str] = field(default_factory=Counter)  # logins, by reason
    counting: bool = False

    def commit(self, seconds: float) -> None:
        if self.counting:
            self.committed += 1
            self.latencies.append(seconds)

    def count(self, what: Counter[str], reason: str) -> None:
        if self.counting:
            what[reason] += 1

    def told(self) -> dict[str, Any]:
        """For JSON, with latencies in milliseconds."""
        latencies = sorted(self.latencies)
        return {
            "committed": self.committed,
            "unfinished": self.unfinished,
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
        self.active = Tally()
        self.sleepers = Tally()
        self.over = False
        self.ended = asyncio.Event()
        short: Script = (BEGIN, SELECT, COMMIT) if order.transaction else (SELECT_ALONE,)
        sleepy: Script = (BEGIN, SELECT, float(order.sleep), COMMIT)
        self.clients = {Client(self, self.active, short) for _ in range(order.active)}
        self.clients |= {Client(self, self.sleepers, sleepy) for _ in range(order.sleepers)}

    async def run(self) -> dict[str, Any]:
        """Let them work; what there is to tell."""
        started = time.perf_counter()
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
        await self._end()
        return {
            "seconds": seconds,  # that counted
            "lasted": time.perf_counter() - started,  # with warm-up and end
            "own_cpu": cpu / seconds,  # cores
            "active": self.active.told(),
            "sleepers": self.sleepers.told(),
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
        self._steps: Iterator[Statement | float] = iter(())
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
        self._steps = iter(self._script)
        self._failed = False
        if self._logged_in:
            self._go_on()
        else:
            self._connect()

    def count_unfinished(self) -> None:
        """What is going on now counts as what it has lasted so far."""
        self._tally.unfinished += 1
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
                self._tally.commit(time.perf_counter() - self._began)
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
            self._tally.count(self._tally.errors, sqlstate(messages) or "a wrong answer")
            self._failed = True
            in_transaction = messages[-1] != ready(IDLE)
            self._steps = iter((ROLLBACK,) if in_transaction else ())
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


def split(received: bytes) -> list[bytes]:
    """The messages that are there as a whole."""
    messages, at = [], 0
    while len(received) >= at + 5:
        end = at + 1 + int.from_bytes(received[at + 1 : at + 5], "big")
        if end > len(received):
            break
        messages.append(received[at:end])
        at = end
    return messages


def sqlstate(messages: Sequence[bytes]) -> str:
    """That of the last ErrorResponse, "" if there is none."""
    errors = [each[5:].split(b"\0") for each in messages if each[:1] == b"E"]
    return (
        next((each[1:].decode() for each in errors[-1] if each[:1] == b"C"), "") if errors else ""
    )


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
