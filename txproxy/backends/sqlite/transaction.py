"""What a statement means to its session's transaction.

    none ──BEGIN──▶ begun ──read──▶ reading ──write──▶ waiting ──token──▶ writing ──COMMIT──▶ none
      │               └─────────────write────────────────▲  │
      └──BEGIN IMMEDIATE─────────────────────────────────┘  └─ time is up: back to begun

BEGIN takes no token and runs nothing. Reads come from one snapshot, on a connection that reads
only. The first write drops the snapshot, waits for the token, and then has the writer to itself.
From anywhere a transaction may fail: we have ended it (it slept, its snapshot was stale), or a
statement of its own has; it stays failed until its client ends it.

TABLE says what is to be done, for each state and class of statement. Nothing here does it.
"""

from typing import Final

# States.
NONE: Final = 0
BEGUN: Final = 1
READING: Final = 2
WAITING: Final = 3
WRITING: Final = 4
FAILED: Final = 5
STATES: Final = ("none", "begun", "reading", "waiting", "writing", "failed")

# Classes of statements.
READ: Final = 0
WRITE: Final = 1
ALONE: Final = 2
BEGIN: Final = 3
BEGIN_NOW: Final = 4
COMMIT: Final = 5
ROLLBACK: Final = 6
SAVEPOINT: Final = 7
RELEASE: Final = 8
ROLLBACK_TO: Final = 9
CLASSES: Final = (
    "read",
    "write",
    "alone",
    "begin",
    "begin now",
    "commit",
    "rollback",
    "savepoint",
    "release",
    "rollback to",
)

# What to do.
LEND: Final = 0  # run it on a reader, by itself
UNIT: Final = 1  # queue it, to be committed together with others' or by itself
BEGIN_HERE: Final = 2  # note that it has begun
SNAPSHOT: Final = 3  # lease a reader, begin there, and read
ASK: Final = 4  # drop the snapshot if there is one, and queue for the token
PASS: Final = 5  # to the writer, which is this session's
END_HERE: Final = 6  # nothing was written: drop the snapshot, forget
ON_STACK: Final = 7  # keep the savepoints, which nothing has been run for
NO_TRANSACTION: Final = 8  # refuse, in SQLite's words
NESTED: Final = 9  # refuse, in SQLite's words
ABORTED: Final = 10  # refuse: it has failed
FORGET: Final = 11  # a failed one is over
ABORTED_OVER: Final = 12  # both: COMMIT of a failed one must not look as if it were one

_NONE: Final = {
    READ: LEND,
    WRITE: UNIT,
    ALONE: UNIT,
    BEGIN: BEGIN_HERE,
    BEGIN_NOW: ASK,
    COMMIT: NO_TRANSACTION,
    ROLLBACK: NO_TRANSACTION,
    SAVEPOINT: BEGIN_HERE,
    RELEASE: ON_STACK,
    ROLLBACK_TO: ON_STACK,
}
_BEGUN: Final = {
    READ: SNAPSHOT,
    WRITE: ASK,
    ALONE: ASK,
    BEGIN: NESTED,
    BEGIN_NOW: NESTED,
    COMMIT: END_HERE,
    ROLLBACK: END_HERE,
    SAVEPOINT: ON_STACK,
    RELEASE: ON_STACK,
    ROLLBACK_TO: ON_STACK,
}
TABLE: Final[dict[int, dict[int, int]]] = {
    NONE: _NONE,
    BEGUN: _BEGUN,
    READING: _BEGUN,  # SNAPSHOT: the one that it has
    WRITING: dict.fromkeys(range(len(CLASSES)), PASS),
    FAILED: {
        **dict.fromkeys(range(len(CLASSES)), ABORTED),
        COMMIT: ABORTED_OVER,
        ROLLBACK: FORGET,
    },
}


class Transaction:
    """One session's. `since` and `used` are times of the caller's clock, in seconds."""

    def __init__(self) -> None:
        self.state = NONE
        self.savepoints: list[str] = []  # open ones, the outermost first
        self.by_savepoint = False  # whether it began with one: releasing that one commits
        self.since = 0.0
        self.why = ""  # of a failed one, until its client has been told

    def __repr__(self) -> str:
        return f"<Transaction {STATES[self.state]} {' '.join(self.savepoints)}>".replace(" >", ">")

    def decide(self, kind: int) -> int:
        """What to do with a statement of this class. KeyError: none may come, it is waiting."""
        return TABLE[self.state][kind]

    def begin(self, state: int, now: float, savepoint: str = "") -> None:
        """It has begun; with `savepoint` by that."""
        self.state = state
        self.since = now
        self.by_savepoint = bool(savepoint)
        self.savepoints = [savepoint] if savepoint else []

    def end(self) -> None:
        """It is over."""
        self.state = NONE
        self.savepoints = []
        self.by_savepoint = False
        self.why = ""

    def fail(self, why: str) -> None:
        """It is over, but for its client."""
        self.state = FAILED
        self.why = why

    def push(self, name: str) -> None:
        """SAVEPOINT."""
        self.savepoints.append(name)

    def release(self, name: str) -> bool:
        """RELEASE: whether that commits. KeyError: no such savepoint."""
        del self.savepoints[self._find(name) :]
        return self.by_savepoint and not self.savepoints

    def roll_back_to(self, name: str) -> None:
        """ROLLBACK TO, which keeps the savepoint. KeyError: no such savepoint."""
        del self.savepoints[self._find(name) + 1 :]

    def _find(self, name: str) -> int:
        """The innermost of that name; SQLite's names know no case."""
        for i in range(len(self.savepoints) - 1, -1, -1):
            if self.savepoints[i].lower() == name.lower():
                return i
        raise KeyError(name)
