"""What a file's writer counts."""


class Counters:
    """Since the file was opened; written by the writer's thread."""

    def __init__(self) -> None:
        self.commits = 0
        self.batches = 0
        self.batch_max = 0
        self.writes = 0
        self.busy_foreign = 0
        self.longest_wait = 0.0  # seconds in the queue
