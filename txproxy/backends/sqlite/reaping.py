"""When a transaction that sleeps is ended."""

from txproxy.backends.sqlite.opening import Settings
from txproxy.backends.sqlite.transaction import READING, WRITING


def verdict(settings: Settings, state: int, idle: float, waiting: int) -> str:
    """Why to end it, in words for its client; empty: let it sleep on.

    `idle` is seconds since its last statement, `waiting` how many want the token.
    """
    if state == WRITING and waiting and 0 < settings.idle_writer_timeout < idle:
        return (
            "the transaction was rolled back: it kept the write lock without a statement"
            f" for {idle:.1f} s while others waited (idle_writer_timeout)"
        )
    if state in {READING, WRITING} and 0 < settings.idle_transaction_timeout < idle:
        return (
            f"the transaction was rolled back: it slept for {idle:.1f} s (idle_transaction_timeout)"
        )
    return ""
