"""Counters of a pool: plain integers, read by whoever reports them."""


class Stats:
    """What has happened since the start. Times in seconds."""

    def __init__(self) -> None:
        self.queries = 0  # Query and Execute messages passed on
        self.clients = 0
        self.backends_opened = 0
        self.backends_closed = 0
        self.waited = 0  # requests that found no idle backend
        self.reaped = 0  # idle transactions rolled back, their clients alive
        self.disconnected = 0  # idle transactions rolled back, their clients thrown out
        self.would_reap = 0
        self.cancelled = 0
        self.query_timeouts = 0
        self.query_wait_timeouts = 0
        self.transaction_timeouts = 0
        self.client_idle_timeouts = 0
        self.vanished = 0  # clients that left in a transaction or a statement
        self.backends_lost = 0  # backends that went while a session held them

    def as_dict(self) -> dict[str, int]:
        """All counters by name."""
        return {
            "queries": self.queries,
            "clients": self.clients,
            "backends_opened": self.backends_opened,
            "backends_closed": self.backends_closed,
            "waited": self.waited,
            "reaped": self.reaped,
            "disconnected": self.disconnected,
            "would_reap": self.would_reap,
            "cancelled": self.cancelled,
            "query_timeouts": self.query_timeouts,
            "query_wait_timeouts": self.query_wait_timeouts,
            "transaction_timeouts": self.transaction_timeouts,
            "client_idle_timeouts": self.client_idle_timeouts,
            "vanished": self.vanished,
            "backends_lost": self.backends_lost,
        }
