"""The client's transaction: a table of states.

A client's transaction and a backend's are two things. The client may be in one that no backend
carries any more, because it was rolled back while the client slept; this is the client's side.

NONE    no transaction
BEGUN   BEGIN was answered here and no backend has heard of it, or is to hear of it again; or a unit
        that begins a transaction is on its way, or waits for a backend
OPEN    a backend carries it: its last ReadyForQuery said T or E
REAPED  rolled back while the client slept; the client has not been told
FAILED  no backend carries it, and the client has been told an ERROR; its commands are refused until
        it ends the transaction

`TABLE` is the whole truth; a pair that it does not hold is a bug, and raises. `render()` prints it
for docs/architecture.md.
"""

from typing import Final

NONE: Final = 0
BEGUN: Final = 1
OPEN: Final = 2
REAPED: Final = 3
FAILED: Final = 4

BEGIN: Final = 0
READY_IDLE: Final = 1
READY_OPEN: Final = 2
REAP: Final = 3
LOSE: Final = 4
TELL: Final = 5
END: Final = 6
CHAIN: Final = 7
RELEASE: Final = 8
FAIL: Final = 9

STATES: Final = ("NONE", "BEGUN", "OPEN", "REAPED", "FAILED")
EVENTS: Final = {
    "BEGIN": "the client sends a unit that begins a transaction",
    "READY_IDLE": "the server's ReadyForQuery says I",
    "READY_OPEN": "the server's ReadyForQuery says T or E",
    "REAP": "we roll the transaction back while its client sleeps",
    "LOSE": "no backend in time, a cancel in the queue, the backend is lost, or refuses the BEGIN",
    "TELL": "the client is told: an ERROR in place of an answer",
    "END": "the client ends it: ROLLBACK, or a COMMIT that gets its ERROR",
    "CHAIN": "the client ends it with AND CHAIN",
    "RELEASE": "it has only read: its backend is let go of while the client sleeps",
    "FAIL": "it has failed, and can only be ended: we roll it back before its client does",
}

TABLE: Final = {
    ("NONE", "BEGIN"): "BEGUN",
    ("NONE", "READY_IDLE"): "NONE",
    ("NONE", "READY_OPEN"): "OPEN",
    ("NONE", "LOSE"): "NONE",
    ("BEGUN", "BEGIN"): "BEGUN",
    ("BEGUN", "READY_IDLE"): "NONE",
    ("BEGUN", "READY_OPEN"): "OPEN",
    ("BEGUN", "LOSE"): "FAILED",
    ("BEGUN", "END"): "NONE",
    ("BEGUN", "CHAIN"): "BEGUN",
    ("OPEN", "BEGIN"): "OPEN",
    ("OPEN", "READY_IDLE"): "NONE",
    ("OPEN", "READY_OPEN"): "OPEN",
    ("OPEN", "REAP"): "REAPED",
    ("OPEN", "RELEASE"): "BEGUN",
    ("OPEN", "LOSE"): "FAILED",
    ("OPEN", "FAIL"): "FAILED",
    ("REAPED", "TELL"): "FAILED",
    ("REAPED", "END"): "NONE",
    ("FAILED", "TELL"): "FAILED",
    ("FAILED", "END"): "NONE",
    ("FAILED", "CHAIN"): "BEGUN",
}

_ILLEGAL: Final = -1


def _flatten() -> list[int]:
    events = list(EVENTS)
    flat = [_ILLEGAL] * (len(STATES) * len(events))
    for (state, event), after in TABLE.items():
        flat[STATES.index(state) * len(events) + events.index(event)] = STATES.index(after)
    return flat


_WIDTH: Final = len(EVENTS)
_FLAT: Final = _flatten()


def after(state: int, event: int) -> int:
    """The state that follows. Raises ValueError for a pair that the table does not hold."""
    following = _FLAT[state * _WIDTH + event]
    if following < 0:
        raise ValueError(f"{list(EVENTS)[event]} in {STATES[state]}")
    return following


def render() -> str:
    """The table as Markdown: a row a state, a column an event; an empty cell cannot happen."""
    head = "| | " + " | ".join(EVENTS) + " |"
    lines = [head, "|---" * (len(EVENTS) + 1) + "|"]
    for state in STATES:
        cells = [TABLE.get((state, event), "") for event in EVENTS]
        lines.append(f"| **{state}** | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"- **{event}**: {meaning}." for event, meaning in EVENTS.items()]
    return "\n".join(lines) + "\n"
