"""The demo's clients: they talk to the database as Django does, and some of them fall asleep.

Each counts in the `Ledger` what it has seen, so that it can be compared with what the proxy's log,
the server's list of processes and the tables say.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, LiteralString

import psycopg

BUSY_CLIENTS: Final = 24
SLEEPERS: Final = 6
CLIENTS: Final = BUSY_CLIENTS + SLEEPERS
PATIENCE: Final = 60.0  # seconds until something that must come is given up
REAPED: Final = "25P03"

# Each client has an account of its number, and notes its transfers under it, counted from 1.
SCHEMA: Final = """
CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL);
CREATE TABLE transfers (client int, number int, PRIMARY KEY (client, number));
"""


@dataclass
class Ledger:
    """What the clients have seen."""

    statements: int = 0
    answers: int = 0  # to questions that only the one who asked could have asked
    mixed_up: int = 0  # answers that were somebody else's
    transfers: Counter[int] = field(default_factory=Counter)  # acknowledged, by client
    asleep: int = 0
    slept: int = 0  # transactions in which a client slept until it was rolled back
    told: int = 0  # of these, how many then had REAPED for an answer
    went_on: int = 0  # and how many were followed by a good answer on the same connection
    problems: list[str] = field(default_factory=list)


class Client:
    """One client. It talks to the database as Django's psycopg backend does."""

    def __init__(self, number: int, connection: psycopg.AsyncConnection, crowd: "Crowd") -> None:
        self.number = number  # of its account too
        self.name = _name(number)
        self.zone = "UTC" if number % 3 else "Europe/Berlin"
        self._connection = connection
        self._crowd = crowd
        self._ledger = crowd.ledger
        self._questions = 0

    async def execute(self, sql: LiteralString, *values: object) -> psycopg.AsyncCursor:
        """Run one statement, in autocommit or in the transaction that `atomic` has begun."""
        cursor = await self._connection.execute(sql, values)
        self._ledger.statements += 1
        return cursor

    @contextlib.asynccontextmanager
    async def atomic(self) -> AsyncIterator[None]:
        """What django.db.transaction.atomic() does."""
        await self._connection.set_autocommit(False)
        try:
            yield
            await self._connection.commit()
        except BaseException:
            await self._connection.rollback()
            raise
        finally:
            await self._connection.set_autocommit(True)

    async def ask(self) -> None:
        """One statement whose answer can be nobody else's."""
        self._questions += 1
        expected = (self.zone, f"{self.name}, question {self._questions}")
        cursor = await self.execute("SELECT current_setting('TimeZone'), %s::text", expected[1])
        self._ledger.answers += 1
        self._ledger.mixed_up += await cursor.fetchone() != expected

    async def transfer(self, number: int) -> None:
        """One unit of money to a neighbour. Rows are locked in their order, so never a deadlock."""
        target = self.number % BUSY_CLIENTS + 1
        async with self.atomic():
            for account in sorted((self.number, target)):
                await self._pay(account, 1 if account == target else -1)
            await self._note_transfer(number)
        self._ledger.transfers[self.number] += 1

    async def forget_to_commit(self, number: int) -> None:
        """Begin a transaction, sleep until it is rolled back, and speak again: a SELECT in half of
        the clients, a COMMIT in the others, which have written.
        """
        writes = self.number % 2 == 0
        sqlstate = None
        try:
            async with self.atomic():
                if writes:
                    await self._pay(self.number, -1)
                    await self._note_transfer(number)
                else:
                    await self.execute("SELECT sum(balance) FROM accounts")
                await self._sleep(number)
                if not writes:
                    await self.execute("SELECT 'the next statement'")
        except psycopg.Error as error:
            sqlstate = error.sqlstate
        self._ledger.slept += 1
        self._ledger.told += sqlstate == REAPED
        await self.ask()
        self._ledger.went_on += 1

    async def _pay(self, account: int, change: int) -> None:
        sql: LiteralString = "UPDATE accounts SET balance = balance + %s WHERE id = %s"
        await self.execute(sql, change, account)

    async def _note_transfer(self, number: int) -> None:
        await self.execute("INSERT INTO transfers VALUES (%s, %s)", self.number, number)

    async def _sleep(self, number: int) -> None:
        """Until the proxy's log has told of this client `number` times, and a little longer."""
        crowd = self._crowd
        self._ledger.asleep += 1
        deadline = time.monotonic() + PATIENCE
        while crowd.reaped(self.name) < number and time.monotonic() < deadline:
            await crowd.pause(0.1)
            if crowd.stop.is_set():
                break
        await crowd.pause(0.5)
        self._ledger.asleep -= 1


def _name(number: int) -> str:
    if number <= BUSY_CLIENTS:
        return f"busy client {number}"
    return f"sleeper {number - BUSY_CLIENTS}"


@contextlib.asynccontextmanager
async def _client(number: int, crowd: "Crowd") -> AsyncIterator[Client]:
    """A client that is connected as Django connects. Its errors go into the ledger."""
    try:
        async with await psycopg.AsyncConnection.connect(
            crowd.address,
            application_name=_name(number),
            client_encoding="UTF8",
            autocommit=True,
            prepare_threshold=None,
            # what Django's option server_side_binding chooses between
            cursor_factory=psycopg.AsyncCursor if number % 4 == 0 else psycopg.AsyncClientCursor,
        ) as connection:
            client = Client(number, connection, crowd)
            await client.execute("SELECT set_config('TimeZone', %s, false)", client.zone)
            yield client
    except psycopg.Error as error:
        crowd.ledger.problems.append(f"{_name(number)}: {error.sqlstate} {str(error).strip()}")


async def _be_busy(number: int, crowd: "Crowd") -> None:
    async with _client(number, crowd) as client:
        rounds = 0
        while not crowd.stop.is_set():
            rounds += 1
            await client.ask()
            await client.transfer(rounds)
            await crowd.pause(0.02)


async def _be_sleepy(number: int, crowd: "Crowd") -> None:
    async with _client(number, crowd) as client:
        rounds = 0
        while not crowd.stop.is_set() and rounds != crowd.rounds:
            # so that they do not sleep all at once
            await crowd.pause(0.4 * (number - BUSY_CLIENTS))
            rounds += 1
            await client.forget_to_commit(rounds)


class Crowd:
    """The clients at work. They connect to `address`; `reaped` says how often the proxy has rolled
    back a client of this name; each sleeper sleeps `rounds` times (None: until the end).
    """

    def __init__(self, address: str, reaped: Callable[[str], int], rounds: int | None) -> None:
        self.address = address
        self.reaped = reaped
        self.rounds = rounds
        self.ledger = Ledger()
        self.stop = asyncio.Event()
        self._busy: Sequence[asyncio.Task[None]] = ()
        self._sleepers: Sequence[asyncio.Task[None]] = ()

    def start_busy(self) -> None:
        """Let those begin that do not sleep."""
        numbers = range(1, BUSY_CLIENTS + 1)
        self._busy = [asyncio.create_task(_be_busy(number, self)) for number in numbers]

    def start_sleepers(self) -> None:
        """Let the others begin."""
        numbers = range(BUSY_CLIENTS + 1, CLIENTS + 1)
        self._sleepers = [asyncio.create_task(_be_sleepy(number, self)) for number in numbers]

    @property
    def connected(self) -> int:
        """How many clients are at work."""
        return sum(not client.done() for client in (*self._busy, *self._sleepers))

    @property
    def sleepers_are_done(self) -> bool:
        """Whether all have slept as often as they should, or failed."""
        return all(sleeper.done() for sleeper in self._sleepers)

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond `stop`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)

    async def end(self) -> None:
        """Let the clients finish what they are doing; raises what a client raised."""
        self.stop.set()
        clients = [*self._busy, *self._sleepers]
        if clients:
            await asyncio.wait(clients, timeout=PATIENCE)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients)
