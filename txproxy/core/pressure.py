"""idle_transaction_soft_timeout: a transaction may sleep longer than that while it harms nobody.

Whom it harms: a client that waits for a backend of its pool, another session that waits for a lock
of its, or everybody, because vacuum cannot remove what it might see. The last two the server is
asked about every second, on a connection of our own (net/monitor.py).
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from txproxy.core.session import Session


class Harm:
    """What the server said of a transaction whose client had not spoken since `active_at`.

    blocks     sessions that waited for its locks
    xmin_age   transactions begun since its oldest snapshot, or since it got its own id
    """

    def __init__(self, active_at: float, blocks: int, xmin_age: int) -> None:
        self.active_at = active_at
        self.blocks = blocks
        self.xmin_age = xmin_age


NO_HARM: Final = Harm(-1.0, 0, 0)


def found(session: "Session") -> Harm:
    """What is known of the transaction in which this session sleeps."""
    backend = session.backend
    if backend is None or backend.harm.active_at != session.active_at:
        return NO_HARM
    return backend.harm


def harm(session: "Session") -> str:
    """What harm it does by sleeping in its transaction, for people; "" if none."""
    if session.pool.waiters:
        return "clients waited for a server connection"
    known = found(session)
    if known.blocks:
        return f"{known.blocks} waited for its locks"
    longest = session.settings.max_xmin_age
    if 0 < longest < known.xmin_age:
        return f"vacuum waited for it: xmin_age {known.xmin_age}"
    return ""
