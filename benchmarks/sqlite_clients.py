"""Clients that write to one SQLite file, directly or through the endpoint, and what they were told.

    python sqlite_clients.py ORDER

ORDER is a JSON object, see Order; what is printed is one as well. Each process is a fork that
imports and connects nothing before; no server runs here. Direct clients are Python's sqlite3, those
of the endpoint txproxy.sqlite; both are used alike. When all have gone, the file is read by this
process, which has not opened it until then: each row that was acknowledged must be there once.
"""

import json
import multiprocessing
import resource
import signal
import sqlite3
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Final

import txproxy.sqlite

PAGES: Final = 1000  # rows that transactions read one of
TABLES: Final = """
CREATE TABLE entry (id INTEGER PRIMARY KEY, client INTEGER, number INTEGER, body TEXT);
CREATE TABLE page (id INTEGER PRIMARY KEY, body TEXT);
"""
INSERT: Final = "INSERT INTO entry (client, number, body) VALUES (?, ?, ?)"
SELECT: Final = "SELECT body FROM page WHERE id = ?"
BODY: Final = "x" * 120  # with its three numbers a row of about 130 bytes
TIMEOUT: Final = 5.0  # seconds, of both: sqlite3's default
NAME: Final = "bench"  # of the file, at the endpoint
TICK: Final = 0.1  # seconds of the timeline
LEAD: Final = 0.3  # seconds from the last that is ready to the first statement


@dataclass(frozen=True)
class Order:
    """What the clients do, and for how long. `socket` is the endpoint's directory, "": direct."""

    path: str
    socket: str
    port: int
    begin: str  # of transactions: BEGIN, SELECT, INSERT, COMMIT; "": an INSERT by itself
    processes: int
    threads: int  # in each process, every one with a connection of its own
    seconds: float
    warm_up: float


@dataclass
class Client:
    """One connection, and what became of its rows: number 1 and up, in the order of asking."""

    refusals: ClassVar[type[Exception]] = sqlite3.Error

    order: Order
    number: int
    ends: "array[float]" = field(default_factory=lambda: array("d"))  # of those acknowledged
    took: "array[float]" = field(default_factory=lambda: array("d"))  # seconds, of all
    asked: int = 0
    failed: dict[int, str] = field(default_factory=dict)  # by number, the error's name

    def connect(self) -> None:
        """Before the start: what connecting costs is not measured."""
        order = self.order
        if order.socket:
            self.connection: Any = txproxy.sqlite.connect(
                NAME,
                TIMEOUT,
                host=order.socket,
                port=order.port,
                isolation_level=None,
                check_same_thread=False,
            )
        else:
            self.connection = sqlite3.connect(
                order.path, TIMEOUT, isolation_level=None, check_same_thread=False
            )
            self.connection.execute("PRAGMA synchronous = FULL")

    def run(self, start: float) -> None:
        """Write from the start until the time is over; what is under way then is finished."""
        connection = self.connection
        one: Callable[[], None] = self._transaction if self.order.begin else self._insert
        stop = start + self.order.warm_up + self.order.seconds
        time.sleep(max(0.0, start - time.monotonic()))
        began = time.monotonic()
        while began < stop:
            self.asked += 1
            try:
                one()
            except self.refusals as error:
                self.failed[self.asked] = name_of(error)
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                ended = time.monotonic()
            else:
                ended = time.monotonic()
                self.ends.append(ended)
            self.took.append(ended - began)
            began = ended

    def _insert(self) -> None:
        self.connection.execute(INSERT, (self.number, self.asked, BODY))

    def _transaction(self) -> None:
        execute = self.connection.execute
        execute(self.order.begin)
        execute(SELECT, (self.asked % PAGES,)).fetchone()
        execute(INSERT, (self.number, self.asked, BODY))
        execute("COMMIT")


def name_of(error: BaseException) -> str:
    """SQLite's name for it, or Python's. Django's errors have SQLite's as their cause."""
    said = getattr(error.__cause__ or error, "sqlite_errorname", "")
    return said or type(error).__name__


# Processes.


def in_processes(number: int, work: Callable[[int, Connection], None]) -> tuple[float, list[Any]]:
    """Forks, counted from 0: the moment at which all began, and what each has told.

    `work` sends None when it is ready, receives that moment, and sends what it has to tell.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that daemons end as well
    forks = multiprocessing.get_context("fork")
    pipes, children = [], []
    for which in range(number):
        ours, theirs = forks.Pipe()
        child = forks.Process(target=work, args=(which, theirs), daemon=True)
        child.start()
        theirs.close()  # so that a child that dies is noticed
        pipes.append(ours)
        children.append(child)
    for pipe in pipes:
        pipe.recv()
    start = time.monotonic() + LEAD
    for pipe in pipes:
        pipe.send(start)
    told = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
    return start, told


def work(order: Order, kind: type[Client], which: int, pipe: Connection) -> None:
    """One process: its clients."""
    clients = [kind(order, which * order.threads + each) for each in range(order.threads)]
    for client in clients:
        client.connect()
    pipe.send(None)
    start = pipe.recv()
    threads = [threading.Thread(target=each.run, args=(start,)) for each in clients[1:]]
    for thread in threads:
        thread.start()
    clients[0].run(start)
    for thread in threads:
        thread.join()
    for client in clients:
        client.connection.close()
        del client.connection
    pipe.send(clients)


def run(order: Order, kind: type[Client] = Client) -> dict[str, Any]:
    """Let them work; what they tell."""
    start, found = in_processes(order.processes, partial(work, order, kind))
    clients = [client for each in found for client in each]
    return told(order, clients, start + order.warm_up)


# What is told.


def told(order: Order, clients: Sequence[Client], begin: float) -> dict[str, Any]:
    """Of the time that counts: what ended in it, latencies in ms. `asked` is with the warm-up."""
    timelines = [timeline(client, begin) for client in clients]
    by_client = [sum(each) for each in timelines]
    took = sorted(took for client in clients for took in counted(client, begin))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "rows": sum(by_client),
        "by_client": by_client,
        "timelines": timelines if order.threads == 1 else [],
        "p50_ms": at(took, 0.5),
        "p99_ms": at(took, 0.99),
        "p999_ms": at(took, 0.999),
        "max_ms": at(took, 1.0),
        "asked": sum(client.asked for client in clients),
        "errors": Counter(name for client in clients for name in client.failed.values()),
        "cpu": used.ru_utime + used.ru_stime,
        "check": check(order.path, clients),
    }


def timeline(client: Client, begin: float) -> list[int]:
    """Rows by ticks of the time that counts."""
    ticks = [0] * round(client.order.seconds / TICK)
    for end in client.ends:
        tick = int((end - begin) // TICK)
        if 0 <= tick < len(ticks):
            ticks[tick] += 1
    return ticks


def counted(client: Client, begin: float) -> Iterator[float]:
    """How long each took, refused or not, that was under way in the time that counts."""
    now = begin - client.order.warm_up
    for took in client.took:
        now += took
        if now >= begin:
            yield took


def at(ordered: Sequence[float], share: float) -> float:
    """The milliseconds that this share took at most."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


def check(path: str, clients: Sequence[Client]) -> dict[str, Any]:
    """What the file says of what its clients were told."""
    connection = sqlite3.connect(path)
    found = Counter(connection.execute("SELECT client, number FROM entry"))
    [integrity] = connection.execute("PRAGMA integrity_check(1)").fetchone()
    connection.close()
    acknowledged = {
        (client.number, number)
        for client in clients
        for number in range(1, client.asked + 1)
        if number not in client.failed
    }
    return {
        "acknowledged": len(acknowledged),
        "missing": sum(1 for row in acknowledged if row not in found),
        "twice": sum(1 for count in found.values() if count > 1),
        "refused but there": len(found.keys() - acknowledged),
        "integrity": integrity,
    }


if __name__ == "__main__":
    print(json.dumps(run(Order(**json.loads(sys.argv[1])))))
