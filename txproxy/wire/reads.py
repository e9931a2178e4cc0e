"""Whether a text only reads, as far as its words tell, and what of it the catalog has to decide.

Looked at when a client sleeps in its transaction, never on the way of its bytes. There is no
grammar here either: what could be a call is one until the catalog knows better, and what is not
understood is refused.

Source: PostgreSQL 13 to 18, src/backend/parser/gram.y, kwlist.h, parse_func.c.
"""

import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from txproxy.wire import lexer, names
from txproxy.wire.lexer import Statement

UNSURE: Final = "it cannot be read surely"


class Call(NamedTuple):
    """A name that may be a function's.

    schema     as it is written; None: whichever schema has it
    arguments  how many there are: 1 for none
    is_sure    it is a call if it means anything; else it may be a field or part of the syntax
    """

    schema: str | None
    name: str
    arguments: int
    is_sure: bool


@dataclass
class Reading:
    """What a text says.

    why         it can never be released; "" if the catalog has to decide
    calls       names that may be functions, with parentheses, or behind an expression: `(x).f`
    attributes  dotted names: `t.f` is f(t), of the whole row, if t has no column f
    """

    why: str = ""
    calls: list[Call] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)


def read(text: bytes, conforming: bool = True) -> Reading:
    """What `text` says, under a client encoding in which a backslash is always a backslash.

    `conforming` is standard_conforming_strings. Several statements, or none, are read as one.
    """
    found = Reading()
    statements = lexer.split(text, conforming)
    if statements is None:
        found.why = UNSURE
        return found
    for statement in statements:
        why = _read_one(statement, conforming, found)
        if why:
            return Reading(why)
    return found


# From words to tokens.

_WORD: Final = 1
_NAME: Final = 2
_STRING: Final = 3
_NUMBER: Final = 4
_OTHER: Final = 5

_TOKEN: Final = re.compile(
    rb"""(?P<broken>u&['"])
    |(?P<string>(?:[enbx](?='))?')
    |(?P<word>[a-z_\x80-\xff][\w$\x80-\xff]*)
    |(?P<name>"[^"]*")
    |(?P<number>(?:0[xob][0-9a-f_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:e[+-]?[0-9]+)?|\$[0-9]+)
        (?![\w$.\x80-\xff]))
    |(?P<other>::|[^\w$\s"'])
    |(?P<space>\ )
    |(?P<junk>.)""",
    re.VERBOSE | re.DOTALL,
)
"""Junk is a number with letters behind it, perhaps after a dot: versions differ there."""

_KINDS: Final = {"word": _WORD, "name": _NAME, "string": _STRING, "number": _NUMBER}


class _Token(NamedTuple):
    kind: int
    said: bytes  # a name's is what it names, a string's how it begins

    def is_word(self, *words: bytes) -> bool:
        return self.kind == _WORD and self.said in words

    def is_other(self, said: bytes) -> bool:
        return self.kind == _OTHER and self.said == said

    @property
    def is_identifier(self) -> bool:
        return self.kind == _WORD or self.kind == _NAME


_NOTHING: Final = _Token(_OTHER, b"")


def _tokens(statement: Statement) -> list[_Token] | None:
    """All of them, with one of nothing at both ends; None where they cannot be told surely."""
    words = statement.words
    found = [_NOTHING]
    for match in _TOKEN.finditer(words):
        group = match.lastgroup or ""
        if group == "broken" or group == "junk":
            return None
        if group == "space":
            continue
        said = match.group()
        kind = _KINDS.get(group, _OTHER)
        if kind == _WORD or kind == _NAME:
            said = names.identifier(words, match.start(), statement)
        found.append(_Token(kind, said))
    found.append(_NOTHING)
    return found


# From tokens to what is said.

_READS: Final = (b"select", b"values", b"table", b"with")
_NOT_A_READ: Final = "it is not one plain SELECT"
_WORDS: Final = {
    b"into": "SELECT INTO makes a table",
    **dict.fromkeys((b"insert", b"update", b"delete", b"merge"), "it changes data"),
    **{
        word: f"it names {word.decode()}, which stays the same within a transaction"
        for word in (
            b"current_date", b"current_time", b"current_timestamp", b"localtime",
            b"localtimestamp",
        )
    },
}  # fmt: skip
"""What words mean that are keywords, wherever they stand."""

SYNTAX: Final = frozenset(
    b"""all and any array as asc asymmetric both case cast check collate column default desc
    distinct do else end except fetch for from group having in initially intersect lateral leading
    limit not null offset on only or order placing primary returning select some symmetric table
    then to trailing union unique using variadic when where window with

    between bigint bit boolean char character coalesce dec decimal exists extract float greatest
    grouping inout int integer interval least national nchar none normalize nullif numeric out
    position precision real row setof smallint time timestamp treat trim values varchar
    xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot
    xmlserialize xmltable""".split()
)
"""Keywords that are no function's name without quotes in any version (kwlist.h: RESERVED and
COL_NAME). Not substring and overlay, with which the search_path has a say.
"""

_PERHAPS_SYNTAX: Final = frozenset(
    b"""by columns cube cross escape filter first full group groups ilike inner is isnull join
    json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar
    json_serialize json_table json_value left like local materialized natural next nested notnull
    operator outer over overlaps partition passing path range repeatable right rollup rows second
    sets similar tablesample varying within zone""".split()
)
"""Keywords of some version that stand before a parenthesis, and may be functions too."""


def _read_one(statement: Statement, conforming: bool, found: Reading) -> str:
    """Adds to `found` what the catalog has to decide; returns why the statement is refused."""
    tokens = _tokens(statement)
    if tokens is None:
        return UNSURE
    first = 1
    while tokens[first].is_other(b"("):
        first += 1
    if tokens[first].is_word(b"show"):
        return ""
    if not tokens[first].is_word(*_READS):
        return _NOT_A_READ
    why = _strings_why(statement, tokens, conforming)
    scalars = _scalars(tokens)
    position = 1
    while not why and position < len(tokens) - 1:
        if tokens[position].is_identifier:
            end = _chain_end(tokens, position)
            why = _chain_why(tokens, position, end, scalars, found)
            position = end
        else:
            position += 1
            why = UNSURE if tokens[position - 1].is_other(b";") else ""
    return why


_VALUES: Final = (
    b"current_catalog", b"current_role", b"current_schema", b"current_user", b"session_user",
    b"system_user", b"user",
)  # fmt: skip
"""Functions that are called without parentheses."""


def _scalars(tokens: list[_Token]) -> set[bytes]:
    """What may name a function in FROM: of a single value, q.f is then f(value), as (x).f is.

    Behind a parenthesis, but not behind that of a subquery, which has rows.
    """
    found: set[bytes] = set(_VALUES)
    open_queries: list[bool] = []
    is_query = False  # what the last parenthesis has closed
    for place in range(1, len(tokens) - 1):
        token = tokens[place]
        if token.is_other(b"("):
            open_queries.append(_is_query(tokens, place + 1))
        elif token.is_other(b")"):
            is_query = bool(open_queries) and open_queries.pop()
        elif token.is_identifier:
            before = tokens[place - 1]
            if before.is_word(b"as"):
                before = tokens[place - 2]
            behind = before.is_word(b"ordinality", *_VALUES)
            behind = behind or (before.is_other(b")") and not is_query)
            if behind or tokens[place + 1].is_other(b"("):
                found.add(token.said)
    return found


def _is_query(tokens: list[_Token], place: int) -> bool:
    if tokens[place].is_word(b"values"):  # may be a column, too
        return tokens[place + 1].is_other(b"(")
    return tokens[place].is_word(b"select", b"with", b"table")


def _chain_end(tokens: list[_Token], start: int) -> int:
    """Behind the last identifier of a.b.c."""
    end = start + 1
    while tokens[end].is_other(b".") and tokens[end + 1].is_identifier:
        end += 2
    return end


def _chain_why(
    tokens: list[_Token], start: int, end: int, scalars: set[bytes], found: Reading
) -> str:
    """The same for the identifiers of one dotted name, those from `start` to `end`."""
    before = tokens[start - 1]
    token = tokens[start]
    is_label = before.is_word(b"as") or before.is_other(b"::")  # of a column, or a type
    is_field = before.is_other(b".")
    is_called = tokens[end].is_other(b"(")
    alone = end == start + 1
    for each in tokens[start:end:2]:
        if each.said.startswith(b"pg_stat"):
            return f"it names {_text(each.said)}, what the server knows of itself"
    if is_label:
        return ""
    if alone and not is_field and token.kind == _WORD:
        if token.said in _WORDS:
            return _WORDS[token.said]
        if token.said == b"for" and tokens[end].is_word(b"update", b"share", b"no", b"key"):
            return "FOR UPDATE locks rows" if tokens[end].said == b"update" else "FOR locks rows"
        if is_called and token.said in SYNTAX:
            return ""
    if alone and is_called and before.is_word(b"with", b"recursive"):
        return ""
    if is_called or is_field or not alone:
        for each in tokens[start:end:2]:
            if not each.said.isascii() and (each.kind == _WORD or not _is_utf8(each.said)):
                return UNSURE  # the server may lower more letters than those of ASCII
        _note(tokens, start, end, scalars, found)
    return ""


def _note(tokens: list[_Token], start: int, end: int, scalars: set[bytes], found: Reading) -> None:
    """The names of a dotted name that may be functions."""
    parts = [_text(each.said) for each in tokens[start:end:2]]
    token = tokens[start]
    is_field = tokens[start - 1].is_other(b".")
    if tokens[end].is_other(b"("):
        alone = len(parts) == 1 and not is_field
        is_sure = not (alone and token.kind == _WORD and token.said in _PERHAPS_SYNTAX)
        schema = parts[-2] if len(parts) > 1 else None
        found.calls.append(Call(schema, parts.pop(), _arguments(tokens, end), is_sure))
    if is_field or token.said in scalars:
        fields = parts if is_field else parts[1:]
        found.calls.extend(Call(None, name, 1, is_sure=False) for name in fields)
    else:
        found.attributes.extend(parts[1:])


def _arguments(tokens: list[_Token], opening: int) -> int:
    """How many arguments there are between this parenthesis and the one that closes it."""
    depth = 0
    count = 1
    for token in tokens[opening:]:
        if token.kind != _OTHER:
            continue
        if token.said == b"(" or token.said == b"[":
            depth += 1
        elif token.said == b")" or token.said == b"]":
            depth -= 1
            if depth == 0:
                break
        elif token.said == b"," and depth == 1:
            count += 1
    return count


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


# Strings.

_MOMENT: Final = re.compile(rb"(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])")
_ESCAPE: Final = re.compile(rb"\\(.?)|''", re.DOTALL)
_KNOWN_ESCAPES: Final = frozenset(b"\\'nrtbf")


def names_moment(value: bytes) -> bool:
    """Whether date and time types may take this text for a moment that depends on the clock."""
    return _MOMENT.search(value.lower()) is not None


def _strings_why(statement: Statement, tokens: list[_Token], conforming: bool) -> str:
    strings = iter(statement.strings)
    before = _NOTHING
    for token in tokens:
        if token.kind == _STRING:
            if before.kind == _STRING:
                return UNSURE  # one string, continued on a further line
            quoted = next(strings, b"")
            escapes = token.said == b"e'" or not conforming
            if escapes and not quoted.startswith(b"$") and not _is_plain(quoted):
                return UNSURE
            if names_moment(_ESCAPE.sub(b" ", quoted) if escapes else quoted):
                return "a string in it is now, today, tomorrow or yesterday"
        before = token
    return ""


def _is_plain(quoted: bytes) -> bool:
    """Whether no escape stands for a letter, and no quote in it begins a further line."""
    inner = quoted[1 : max(1, len(quoted) - 1)]
    for escape in _ESCAPE.finditer(inner):
        if escape[1] is not None and (not escape[1] or escape[1][0] not in _KNOWN_ESCAPES):
            return False
    return b"'" not in _ESCAPE.sub(b"", inner)
