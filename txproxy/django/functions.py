"""Django's own SQL functions, on the endpoint's connections: REGEXP, the date functions, STDDEV….

A function for a file's setting `functions`. The SQLite process calls it, by itself, where a client
is Django's engine of the same version.
"""

from collections.abc import Callable
from typing import Any

from django.db.backends.sqlite3 import _functions


def register(connection: Any) -> None:
    """Add them to a connection of apsw's."""
    _functions.register(_Standard(connection))


class _Standard:
    """As much of `sqlite3.Connection` as registering takes, on a connection of apsw's."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.execute = connection.execute

    def create_function(
        self, name: str, narg: int, func: Callable[..., Any], *, deterministic: bool = False
    ) -> None:
        self._connection.create_scalar_function(name, func, narg, deterministic=deterministic)

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Any) -> None:
        self._connection.create_aggregate_function(
            name, lambda: ([], _step, lambda rows: _final(aggregate_class, rows)), n_arg
        )


def _step(rows: list[tuple[Any, ...]], *values: Any) -> None:
    rows.append(values)


def _final(aggregate_class: Any, rows: list[tuple[Any, ...]]) -> Any:
    """NULL of no rows, without asking the class, as in `sqlite3`."""
    if not rows:
        return None
    aggregate = aggregate_class()
    for values in rows:
        aggregate.step(*values)
    return aggregate.finalize()
