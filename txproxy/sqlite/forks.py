"""How often this process is a fork of one that had connections: each has to leave them alone."""

import os

count = 0


def _forked() -> None:
    global count  # noqa: PLW0603
    count += 1


os.register_at_fork(after_in_child=_forked)
