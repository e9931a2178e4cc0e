"""Python's values and SQLite's: parameters on their way out, columns on their way in.

Adapters and converters are `sqlite3`'s own, from its registry; what they make is sent and read in
the private format of txproxy/wire/values.py. Classes of errors and their texts are `sqlite3`'s.

Source: https://docs.python.org/3/library/sqlite3.html#how-to-adapt-custom-python-types-to-sqlite-values
"""

import re
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any, Final

from txproxy.sqlite.protocol import Column
from txproxy.wire import values

Converter = Callable[[bytes], Any]
Description = tuple[tuple[str, None, None, None, None, None, None], ...]
Converters = tuple[Converter | None, ...]

_BATCH_BYTES: Final = 1 << 17  # of one send of executemany
_BATCH_RUNS: Final = 1000  # their answers must fit into what both sides buffer
_END: Final = object()
_NULL: Final = b"\xff\xff\xff\xff"
_ADAPTERS: Final[Mapping[Any, object]] = sqlite3.adapters
_CONVERTERS: Final[Mapping[str, Converter]] = sqlite3.converters
_TYPE_IN_NAME: Final = re.compile(r"\[([^\]]*)\]")
_FIRST_WORD: Final = re.compile(r"[ (]")
_TEXT: Final = 0x73


def bound(names: Sequence[str | None], parameters: Any) -> bytes:
    """The parameters of one Bind, behind their count.

    sqlite3.ProgrammingError: too few, too many, or of the wrong kind; whatever an adapter raises.
    """
    if isinstance(parameters, tuple | list) or (
        not isinstance(parameters, dict) and _is_sequence(parameters)
    ):
        found = _by_position(names, parameters)
    elif hasattr(parameters, "__getitem__"):
        found = _by_name(names, parameters)
    else:
        raise sqlite3.ProgrammingError("parameters are of unsupported type")
    plain = _plain(len(_ADAPTERS))
    parts = []
    for index in range(len(names)):
        value = found[index]  # an adapter may shorten the list
        if type(value) not in plain:
            value = _adapted(index + 1, value)
        if value is None or value != value:  # NaN, which is NULL in SQLite  # noqa: PLR0124
            parts.append(_NULL)
        else:
            encoded = values.encode(value)
            parts.append(len(encoded).to_bytes(4, "big"))
            parts.append(encoded)
    return b"".join(parts)


@lru_cache(maxsize=2)
def _plain(_registered: int) -> frozenset[type]:
    """The types that need no adapter, with so many adapters in the registry: none is ever lost."""
    adapted = {kind for kind, protocol in _ADAPTERS if protocol is sqlite3.PrepareProtocol}
    return frozenset({int, float, str, bytes, type(None)} - adapted)


def _adapted(index: int, value: Any) -> values.Value | None:
    value = sqlite3.adapt(value, sqlite3.PrepareProtocol, value)
    if value is None or isinstance(value, int | float | str | bytes):
        return value
    try:
        return bytes(memoryview(value))
    except TypeError:
        raise sqlite3.ProgrammingError(
            f"Error binding parameter {index}: type '{type(value).__name__}' is not supported"
        ) from None


def _is_sequence(parameters: Any) -> bool:
    return hasattr(parameters, "__getitem__") and hasattr(parameters, "__len__")


def _by_position(names: Sequence[str | None], parameters: Sequence[Any]) -> Sequence[Any]:
    if len(parameters) != len(names):
        raise sqlite3.ProgrammingError(
            "Incorrect number of bindings supplied. The current statement uses "
            f"{len(names)}, and there are {len(parameters)} supplied."
        )
    if sys.version_info >= (3, 12):
        _warn_of_names(names)
    return parameters


def _warn_of_names(names: Sequence[str | None]) -> None:
    for index, name in enumerate(names):
        if name is not None and not name.isdecimal():
            warnings.warn(
                f"Binding {index + 1} (':{name}') is a named parameter, but you supplied a "
                "sequence which requires nominal (qmark) placeholders. Starting with Python 3.14 "
                "an sqlite3.ProgrammingError will be raised.",
                DeprecationWarning,
                stacklevel=2,
            )


def _by_name(names: Sequence[str | None], parameters: Any) -> list[Any]:
    found = []
    for index, name in enumerate(names):
        if name is None:
            raise sqlite3.ProgrammingError(
                f"Binding {index + 1} has no name, but you supplied a dictionary (which has only "
                "names)."
            )
        try:
            found.append(parameters[name])
        except LookupError:
            raise sqlite3.ProgrammingError(
                f"You did not supply a value for binding parameter :{name}."
            ) from None
    return found


def batches(names: Sequence[str | None], parameters: Iterable[Any]) -> Iterator[list[bytes]]:
    """The parameters of one Bind after the other, as many at a time as go out in one send.

    What came before an error of the iterator's, or of a value's, is handed out all the same.
    """
    batch: list[bytes] = []
    size = 0
    iterator = iter(parameters)
    while True:
        try:
            one = next(iterator, _END)
            found = None if one is _END else bound(names, one)
        except BaseException:
            if batch:
                yield batch
            raise
        if found is None:
            break
        batch.append(found)
        size += len(found)
        if size > _BATCH_BYTES or len(batch) == _BATCH_RUNS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def converters(columns: Sequence[Column], detect_types: int) -> Converters | None:
    """Which converter each column goes through; None: none does.

    A type in the column's name comes before the declared one, as in `sqlite3`.
    """
    if not detect_types:
        return None
    found: list[Converter | None] = []
    for column in columns:
        one = None
        if detect_types & sqlite3.PARSE_COLNAMES:
            named = _TYPE_IN_NAME.search(column.name)
            one = _CONVERTERS.get(named[1].upper()) if named else None
        if one is None and detect_types & sqlite3.PARSE_DECLTYPES:
            one = _CONVERTERS.get(_FIRST_WORD.split(column.declared, maxsplit=1)[0].upper())
        found.append(one)
    return tuple(found) if any(found) else None


def description_of(names: Iterable[str]) -> Description:
    """A cursor's description of columns with these names."""
    return tuple((name, None, None, None, None, None, None) for name in names)


def name_of(column: Column, detect_types: int) -> str:
    """A column's name in `description`: without the type that PARSE_COLNAMES found in it."""
    if not detect_types & sqlite3.PARSE_COLNAMES:
        return column.name
    name, bracket, _ = column.name.partition("[")
    return name.removesuffix(" ") if bracket else name


def row(
    body: bytes,
    columns: Sequence[Column],
    by_column: Converters | None,
    text_factory: Callable[[bytes], Any],
) -> tuple[Any, ...]:
    """A DataRow of the private format.

    sqlite3.OperationalError: text that is not UTF-8 where text_factory is str; whatever a
    converter or a text factory raises.
    """
    found: list[Any] = []
    start = 2
    for index in range(int.from_bytes(body[:2], "big")):
        size = int.from_bytes(body[start : start + 4], "big", signed=True)
        start += 4
        if size < 0:
            found.append(None)
            continue
        data = body[start : start + size]
        start += size
        converter = by_column[index] if by_column else None
        if converter is not None:
            raw = _as_bytes(data)
            found.append(converter(raw) if raw else None)  # SQLite has no pointer to nothing
        elif data[0] != _TEXT:
            found.append(values.decode(data))
        elif text_factory is str:
            found.append(_decoded(data, columns[index]))
        else:
            found.append(text_factory(data[1:]))
    return tuple(found)


def _decoded(data: bytes, column: Column) -> str:
    try:
        return data[1:].decode()
    except UnicodeDecodeError:
        text = data[1:].decode("utf-8", "replace")
        raise sqlite3.OperationalError(
            f"Could not decode to UTF-8 column '{column.name}' with text '{text}'"
        ) from None


def _as_bytes(data: bytes) -> bytes:
    """A value as sqlite3_column_blob has it: numbers are cast to text."""
    if data[0] == _TEXT or data[:1] == b"b":
        return data[1:]
    value = values.decode(data)
    if isinstance(value, int):
        return str(value).encode()
    with closing(sqlite3.connect(":memory:")) as asking:
        text: str = asking.execute("SELECT CAST(? AS TEXT)", (value,)).fetchone()[0]
    return text.encode()
