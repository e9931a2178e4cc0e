"""Tags as a comment behind a statement, as sqlcommenter has them: /*controller='…',route='…'*/.

Values come from routes, and headers: percent-encoded with nothing left that means something to SQL,
whatever they hold. The same tags make the same text, so that prepared statements stay what they
are.

Source: https://google.github.io/sqlcommenter/spec/
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from txproxy.wire.sql import tags

_LIMITS: Final = {"controller": 70, "route": 90}
"""Letters of an encoded value. All that there can be, traceparent too, is no longer than the end of
a statement that the proxy keeps of a long one: 256 bytes.
"""

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TAIL: Final = 1024  # letters of a statement in which tags of others are looked for


def encode(said: Mapping[str, str]) -> str:
    """The comment; "" if there are no tags. Names must be plain words."""
    pairs = ",".join(f"{name}='{_encoded(name, said[name])}'" for name in sorted(said))
    return f"/*{pairs}*/" if pairs else ""


def _encoded(name: str, value: str) -> str:
    """A value that is too long is cut: a path to code in front, its end says more."""
    limit = _LIMITS.get(name, _LIMITS["route"])
    # Alone a hyphen is harmless, but two begin a comment where somebody reads this as SQL again.
    letters = [quote(letter, safe="", errors="replace").replace("-", "%2D") for letter in value]
    while sum(map(len, letters)) > limit:
        letters = letters[1:] if name == "controller" else letters[:-1]
    return "".join(letters)


def with_traceparent(comment: str, header: str | None) -> str:
    """With the W3C's traceparent, if it is one, letter by letter: it goes in as it came."""
    if not header or _TRACEPARENT.fullmatch(header) is None:
        return comment
    said = f"traceparent='{header}'*/"
    return f"{comment[:-2]},{said}" if comment else f"/*{said}"


def append(sql: Any, comment: str, *, interpolated: bool) -> Any:
    """The statement with the comment; as it was if it is empty, or tagged by somebody else.

    `interpolated`: the driver takes % for placeholders, as it does where there are parameters.
    `sql` is text, or something composed by psycopg.
    """
    if interpolated:
        comment = comment.replace("%", "%%")
    if not isinstance(sql, str):
        return _append_composed(sql, comment)
    if not comment or not sql or sql.isspace() or _is_tagged(sql):
        return sql
    # A line comment goes on to the end of its line.
    return f"{sql}\n{comment}" if "--" in sql else f"{sql} {comment}"


def _append_composed(sql: Any, comment: str) -> Any:
    from django.db.backends.postgresql.psycopg_any import sql as composing  # noqa: PLC0415

    if not comment or not isinstance(sql, composing.Composable):
        return sql
    return sql + composing.SQL(f"\n{comment}")


def _is_tagged(sql: str) -> bool:
    end = sql[-_TAIL:].rstrip("; \t\r\n\f\v")
    return end.endswith("*/") and bool(tags(end.encode("utf-8", "replace")))
