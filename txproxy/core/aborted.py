"""What a server says of statements and portals in a transaction that has failed.

Only what ends the transaction can be bound there, so a portal is that statement. A name that is not
known is told from one that cannot be used, as drivers do.

Source: PostgreSQL 18, exec_parse_message(), exec_bind_message(), exec_describe_*_message() in
postgres.c; the same since 15.
"""

from typing import Final

from txproxy.core.statements import FULL, Names, Statement
from txproxy.wire import described, encode, sql
from txproxy.wire.codes import BIND, CLOSE, DESCRIBE, PARSE
from txproxy.wire.messages import text
from txproxy.wire.sql import Judgement

REFUSED: Final = encode.error(
    "ERROR",
    "25P02",
    "current transaction is aborted, commands ignored until end of transaction block",
)
PORTALS_LIMIT: Final = 100
_NAME_LIMIT: Final = 1000  # bytes of a portal's name

EXITS: Final = frozenset(
    (
        sql.COMMIT,
        sql.COMMIT_CHAIN,
        sql.PREPARE_TRANSACTION,
        sql.ROLLBACK,
        sql.ROLLBACK_CHAIN,
        sql.ROLLBACK_TO,
    )
)
"""What a server takes there; without savepoints a ROLLBACK TO then fails."""

_MANY: Final = encode.error(
    "ERROR", "42601", "cannot insert multiple commands into a prepared statement"
)


def answer(
    names: Names, portals: dict[bytes, Judgement], kind: int, body: bytes, complete: bool
) -> bytes:
    """The answer to a message; b"" if it is none of these. `complete`: see Answers."""
    if kind == PARSE:
        return _parse(names, body)
    if kind == BIND:
        return _bind(names, portals, body, complete)
    if kind == DESCRIBE:
        return _describe(names, portals, body, complete)
    return close(names, portals, body) if kind == CLOSE else b""


def _parse(names: Names, body: bytes) -> bytes:
    name, _, statement = body.partition(b"\0")
    if not name:
        names.unnamed = b""
    types = described.declared(statement)
    if types is None:
        return REFUSED
    judged = sql.judge(statement[: statement.find(b"\0")])
    if judged.kind == sql.MANY:
        return _MANY
    if judged.kind not in EXITS and judged.kind != sql.EMPTY:
        return REFUSED
    if 0 in types:
        said = f"could not determine data type of parameter ${types.index(0) + 1}"
        return encode.error("ERROR", "42P18", said)
    if not name:
        names.unnamed = encode.message(b"P", body)
    elif name in names.by_name:
        said = f'prepared statement "{text(name)}" already exists'
        return encode.error("ERROR", "42P05", said)
    elif names.full:
        return encode.error("ERROR", "53400", FULL)
    else:
        names.put(name, Statement(statement, judged))
    return encode.PARSE_COMPLETE


def _bind(names: Names, portals: dict[bytes, Judgement], body: bytes, complete: bool) -> bytes:
    portal, _, rest = body.partition(b"\0")
    name, _, rest = rest.partition(b"\0")
    statement = _statement(names, name)
    if not statement:
        return unknown_statement(name) if complete else REFUSED
    formats = int.from_bytes(rest[:2])
    at = 2 + 2 * formats
    if len(rest) < at + 2:
        return REFUSED  # not all of it is there
    count = int.from_bytes(rest[at : at + 2])
    if formats > 1 and formats != count:
        said = f"bind message has {formats} parameter formats but {count} parameters"
        return encode.error("ERROR", "08P01", said)
    required = described.parameter_count(statement)
    if required is not None and required != count:
        said = (
            f"bind message supplies {count} parameters,"
            f' but prepared statement "{text(name)}" requires {required}'
        )
        return encode.error("ERROR", "08P01", said)
    judged = _exit(statement)
    if judged is None or count:
        return REFUSED
    if len(portals) >= PORTALS_LIMIT or len(portal) > _NAME_LIMIT:
        return REFUSED
    if portal and portal in portals:
        return encode.error("ERROR", "42P03", f'cursor "{text(portal)}" already exists')
    portals[portal] = judged
    return encode.BIND_COMPLETE


def _describe(names: Names, portals: dict[bytes, Judgement], body: bytes, complete: bool) -> bytes:
    name = body[1:-1]
    if body[:1] == b"P":
        if name in portals:
            return encode.NO_DATA
        return unknown_portal(name) if complete else REFUSED
    if body[:1] != b"S":
        return _subtype("DESCRIBE", body)
    statement = _statement(names, name)
    if not statement:
        return unknown_statement(name) if complete else REFUSED
    types = described.parameter_types(statement)
    if types is None or described.may_return_rows(statement):
        return REFUSED
    return encode.parameter_description(types) + encode.NO_DATA


def close(names: Names, portals: dict[bytes, Judgement], body: bytes) -> bytes:
    """The answer to Close."""
    name = body[1:-1]
    if body[:1] == b"P":
        portals.pop(name, None)
    elif body[:1] != b"S":
        return _subtype("CLOSE", body)
    elif name:
        names.put(name, None)
    else:
        names.unnamed = b""
    return encode.CLOSE_COMPLETE


def to_savepoint(said: bytes) -> Judgement:
    """What a ROLLBACK TO at the beginning of a text means, with the name in it."""
    each = sql.judge_each(said)
    return each[0] if each else sql.judge(said)


def no_savepoint(name: bytes) -> bytes:
    """The answer to ROLLBACK TO it."""
    return encode.error("ERROR", "3B001", f'savepoint "{text(name)}" does not exist')


def unknown_statement(name: bytes) -> bytes:
    """The ERROR for a statement of this name."""
    if not name:
        return encode.error("ERROR", "26000", "unnamed prepared statement does not exist")
    return encode.error("ERROR", "26000", f'prepared statement "{text(name)}" does not exist')


def unknown_portal(name: bytes) -> bytes:
    """The same for a portal."""
    return encode.error("ERROR", "34000", f'portal "{text(name)}" does not exist')


def _subtype(message: str, body: bytes) -> bytes:
    return encode.error("ERROR", "08P01", f"invalid {message} message subtype {body[0]}")


def _statement(names: Names, name: bytes) -> bytes:
    """What is known by this name, as in its Parse; b"" for nothing."""
    if not name:
        return names.unnamed[6:] if names.unnamed else b""
    known = names.by_name.get(name)
    return b"" if known is None else known.body


def _exit(statement: bytes) -> Judgement | None:
    """What it means, if it can be bound."""
    end = statement.find(b"\0")
    said = statement[:end] if end >= 0 else b""
    judged = sql.judge(said)
    if judged.kind == sql.ROLLBACK_TO:
        return to_savepoint(said)
    return judged if judged.kind in EXITS else None
