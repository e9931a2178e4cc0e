"""What goes to the threads that run statements, and comes back: jobs of calls of portals."""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from txproxy.backends.sqlite.errors import Fields
from txproxy.backends.sqlite.pragmas import DEFAULTS, SessionPragmas
from txproxy.backends.sqlite.replies import Row, RowEncoder
from txproxy.backends.sqlite.requests import Parameter
from txproxy.backends.sqlite.statements import Kind, Statement

# Kinds of jobs.
READING: Final = 0  # on a reader
UNIT: Final = 1  # each call by itself, committed with what others want
ALONE: Final = 2  # each call by itself, in SQLite's autocommit
HOLDING: Final = 3  # takes the token, and keeps it while its transaction lasts
HELD: Final = 4  # the holder's

# How a call has ended.
DONE: Final = 0
SUSPENDED: Final = 1  # it has as many rows as its Execute asks for
MORE: Final = 2  # its reply is long enough for now


class Answers:
    """What SQLite's last_insert_rowid(), changes() and total_changes() say to one session."""

    def __init__(self) -> None:
        self.last_insert_rowid = 0
        self.changes = 0
        self.total_changes = 0


class Prepared:
    """What Parse has said; `statement` is looked at when it is needed first, and when the schema
    is not of this `generation` any more.
    """

    statement: Statement | None = None
    generation = 0

    def __init__(self, sql: bytes, oids: tuple[int, ...]) -> None:
        self.sql = sql
        self.oids = oids


# Made for each statement that is run: what is seldom otherwise is a default of the class.


class Portal:
    """A statement with its parameters; an open cursor between Executes. `formats`: of results."""

    rows: Iterator[Row] | None = None  # of an open one
    reader: "Reads | None" = None  # that has it open, outside transactions
    is_done = False
    is_lost = False  # closed before its end, not by its client

    def __init__(
        self,
        statement: Statement,
        parameters: tuple[Parameter, ...],
        formats: tuple[int, ...],
        encode: RowEncoder | None,
    ) -> None:
        self.statement = statement
        self.parameters = parameters
        self.formats = formats
        self.encode = encode

    def close(self) -> None:
        """Its cursor, in the thread that it belongs to."""
        if self.rows is not None:
            self.rows = None
            self.is_lost = True

    def __repr__(self) -> str:
        return f"<Portal {self.statement.text[:40]!r}>"


class Call:
    """One Execute of a portal: `limit` rows at most, 0 for all."""

    failure: Fields | None = None
    outcome = DONE
    is_void = False  # getting the token is all that it wants
    delivered = 0  # rows, when it was paused

    def __init__(self, portal: Portal, limit: int = 0) -> None:
        self.portal = portal
        self.limit = limit
        self.reply: list[bytes] = []


class Waits(Protocol):
    """Whoever waits for a job."""

    def finished(self, job: "Job") -> None:
        """Called in the loop's thread, once for each time the job was given to a thread."""

    def deliver(self, call: "Call") -> bool:
        """Rows of a call that has more; whether to go on with it now."""


class Reads(Protocol):
    """What a writer needs of the reader that had a transaction's snapshot."""

    def is_fresh(self) -> bool:
        """Whether nothing was committed since its snapshot began. From any thread."""


class Job:
    """Calls to be run one after the other, until one fails.

    `deadline` is a time.monotonic() by which it wants to be run; 0: it has time.
    """

    pragmas: SessionPragmas = DEFAULTS
    position = 0  # of the call that is run
    changes = 0  # what it has added to its session's total_changes
    since = 0.0
    deadline = 0.0
    cancelled = False
    begins = False  # a snapshot, before its first call
    snapshot: Reads | None = None  # which the token must not come too late for
    savepoints: Sequence[str] = ()  # to be made as soon as it has the token
    in_transaction = False  # afterwards
    is_taken = False  # from the queue
    started = False  # it holds the token, or did

    def __init__(self, owner: Waits, kind: int, calls: list[Call], answers: Answers) -> None:
        self.owner = owner
        self.kind = kind
        self.calls = calls
        self.answers = answers

    def __repr__(self) -> str:
        return f"<Job {self.kind} {self.position}/{len(self.calls)}>"

    @property
    def is_at_end(self) -> bool:
        """Whether no call follows the one that was run last."""
        return self.position + 1 == len(self.calls)

    @property
    def changes_schema(self) -> bool:
        """Whether a call of it does, if all goes well."""
        return any(call.portal.statement.kind is Kind.DDL for call in self.calls)

    @property
    def failed(self) -> bool:
        """Whether the call that was run last has failed, and with it those that follow."""
        return self.calls[self.position].failure is not None

    def fail(self, fields: Fields) -> None:
        """Without having been run, or whatever has become of it."""
        call = self.calls[self.position]
        call.reply = []
        call.failure = fields

    def restart(self) -> None:
        """As if it had not been run."""
        self.answers.total_changes -= self.changes
        self.changes = 0
        self.position = 0
        for call in self.calls:
            call.reply = []
            call.failure = None
            call.outcome = DONE
            call.delivered = 0
            call.portal.rows = None
