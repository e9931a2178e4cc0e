"""One process that writes to an SQLite file, as a web worker does: for the demo.

    python -m txproxy.cli.demo_writer NUMBER FILE [SOCKET-DIRECTORY PORT]

With a socket it is a client of the proxy, else it opens the file itself; all else is the same. It
writes until it gets a SIGTERM, and says now and then, and at its end, how it fares: a line of JSON.
"""

import json
import signal
import sqlite3
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from txproxy import sqlite as through_the_proxy

TABLE: Final = "CREATE TABLE notes (writer int, number int, PRIMARY KEY (writer, number))"
WORK_TAKES: Final = 0.005  # seconds: what the application does in its transaction
PAUSE: Final = 0.002  # seconds between two
SAYS_EVERY: Final = 0.2  # seconds


@dataclass
class Fares:
    """How a writer fares: transactions that were committed, that were told that the file is locked,
    and the seconds that the slowest took.
    """

    committed: int = 0
    locked: int = 0
    slowest: float = 0.0


Connection = sqlite3.Connection | through_the_proxy.Connection


def connected(path: str, place: list[str]) -> Connection:
    """To the file, or to the proxy at this socket's directory and port."""
    if not place:
        return sqlite3.connect(path, isolation_level=None)
    directory, port = place
    return through_the_proxy.Connection(path, isolation_level=None, host=directory, port=int(port))


def transaction(connection: Connection, writer: int, fares: Fares) -> None:
    """A short one."""
    began = time.monotonic()
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO notes VALUES (?, ?)", (writer, fares.committed + 1))
        time.sleep(WORK_TAKES)
        connection.execute("COMMIT")
        fares.committed += 1
    except sqlite3.OperationalError:
        fares.locked += 1
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    fares.slowest = max(fares.slowest, time.monotonic() - began)


def main(writer: int, path: str, place: list[str]) -> None:
    """Write until told to stop."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, _: stopped.append(signum))
    connection = connected(path, place)
    fares = Fares()
    said_at = 0.0
    while not stopped:
        transaction(connection, writer, fares)
        if time.monotonic() > said_at + SAYS_EVERY:
            said_at = time.monotonic()
            print(json.dumps(asdict(fares)), flush=True)
        time.sleep(PAUSE)
    connection.close()
    print(json.dumps(asdict(fares)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
