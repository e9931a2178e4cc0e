"""Texts as the server's lexer reads them, without a grammar.

A text is split into its statements, and each of them rewritten as *words*: in lower case, single
spaces, no comments, every string as a lone ', every quoted identifier that is not plain as "?".
Nothing a client has put between quotes can then look like a keyword. What the quotes hold is kept
beside it.

Source: PostgreSQL 15 to 18, src/backend/parser/scan.l.
"""

import re
from dataclasses import dataclass
from typing import Final

# The number of the group in the pattern says which.
LITERAL: Final = 1
QUOTED: Final = 2
COMMENT: Final = 3
_OPEN_COMMENT: Final = 4
_OPEN_DOLLAR: Final = 5
SEMICOLON: Final = 6
BROKEN: Final = 7
END: Final = 8

_PLAIN: Final = r"[^']*(?:''[^']*)*'"
_ESCAPED: Final = r"[^'\\]*(?:(?:\\.|'')[^'\\]*)*'"
_CONTINUED: Final = r"[ \t\f\v]*(?:--[^\r\n]*)?[\r\n](?:[ \t\r\n\f\v]|--[^\r\n]*[\r\n])*'"
IDENTIFIER: Final = r'[^"]*(?:""[^"]*)*"'
_IN_WORD: Final = r"[A-Za-z0-9_$\x80-\xff]"
TAG: Final = r"(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$"


def _string(letters: str, special: str, ordinary: str) -> str:
    """A string, its first quote consumed: `special` behind one of `letters`, else `ordinary`.

    Continuations on further lines are of the first one's sort. A digit before the letter, as in
    1E'', is junk that server versions read differently.
    """
    return rf"""(?<![0-9][eEbBxX]')(?:
        (?:(?<![{letters}]')|(?<={_IN_WORD}[{letters}]')){ordinary}
        |(?<=[{letters}]')(?<!{_IN_WORD}[{letters}]'){special}(?:{_CONTINUED}{special})*)"""


def _lexer(string: str) -> re.Pattern[bytes]:
    """Finds the next quote, comment, dollar quote or semicolon.

    The first character comes first for speed: re then skips to the next one in C. No group is
    repeated that could match in two ways: that keeps everything linear. Broken is also a dollar
    quote behind a digit, as in $1$$, where versions up to 14 begin a new token.
    """
    pattern = rf"""['"$;/-](?:
        (?<=')({string})
        |(?<=")({IDENTIFIER})
        |(?<=-)(-[^\r\n]*)
        |(?<=/)(\*)
        |(?<=\$)(?<!{_IN_WORD}\$)({TAG})
        |(?<=;)()
        |((?<=['"])|(?<=[0-9$]\$){TAG}))"""
    return re.compile(pattern.encode(), re.DOTALL | re.VERBOSE)


STRING: Final = _string("eE", _ESCAPED, _PLAIN)
_CONFORMING: Final = _lexer(STRING)
_ESCAPING: Final = _lexer(_string("bBxX", _PLAIN, _ESCAPED))
_COMMENT_EDGE: Final = re.compile(rb"/\*|\*/")


def next_token(text: bytes, position: int, conforming: bool = True) -> tuple[int, int, int]:
    """Where the next token of interest begins and ends, and which it is."""
    found = (_CONFORMING if conforming else _ESCAPING).search(text, position)
    if found is None:
        return len(text), len(text), END
    kind = found.lastindex or BROKEN
    start = found.start()
    end = found.end()
    if kind == _OPEN_COMMENT:
        kind = COMMENT
        end = _comment_end(text, end)
    elif kind == _OPEN_DOLLAR:
        kind = LITERAL
        close = text.find(found.group(), end)
        end = close + end - start if close >= 0 else -1
    return (start, end, kind) if end >= 0 else (start, start, BROKEN)


def _comment_end(text: bytes, position: int) -> int:
    """Where the comment that was opened before `position` ends; they nest. -1: nowhere."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, position)
        if edge is None:
            return -1
        position = edge.end()
        depth += 1 if edge.group() == b"/*" else -1
    return position


# From text to statements.


@dataclass
class Statement:
    """One that is not empty."""

    words: bytes
    text: bytes
    end: int  # in the whole text, behind the semicolon
    strings: list[bytes]  # one for each ' in `words`: what it stands for, with its quotes
    names: list[bytes]  # the same for each "…"

    def string(self, words: bytes, position: int) -> bytes:
        """The string whose ' is words[position]; `words` are ours from somewhere to the end.

        Escapes and continuations are left as they are.
        """
        quoted = self.strings[-words.count(b"'", position)]
        if quoted.startswith(b"$"):
            delimiter = quoted.index(b"$", 1) + 1
            return quoted[delimiter:-delimiter]
        return quoted[1:-1].replace(b"''", b"'")

    def name(self, words: bytes, position: int) -> bytes:
        """The same for the quoted identifier whose first " is words[position]."""
        quoted = self.names[-(words.count(b'"', position) // 2)]
        return quoted[1:-1].replace(b'""', b'"')


_SEMICOLONS_LIMIT: Final = 1000  # a text of more than these cannot be judged
_PLAIN_NAME: Final = re.compile(rb'"[\w.$]+"')


def split(text: bytes, conforming: bool) -> list[Statement] | None:
    """The statements that are not empty; None if the text cannot be read.

    `conforming` is standard_conforming_strings.

    A semicolon in parentheses is part of its statement (CREATE RULE … DO ALSO (a; b)).
    """
    statements: list[Statement] = []
    pieces: list[bytes] = []
    strings: list[bytes] = []
    names: list[bytes] = []
    begun = position = depth = semicolons = 0
    while True:
        start, end, kind = next_token(text, position, conforming)
        run = text[position:start]
        pieces.append(run.lower())
        depth += run.count(b"(") - run.count(b")")
        semicolons += kind == SEMICOLON
        if kind == BROKEN or depth < 0 or semicolons > _SEMICOLONS_LIMIT:
            return None
        if kind == LITERAL:
            strings.append(text[start:end])
            pieces.append(b"'")
        elif kind == QUOTED:
            name = text[start:end]
            names.append(name)
            pieces.append(name if _PLAIN_NAME.fullmatch(name) else b'"?"')
        elif kind == COMMENT:
            pieces.append(b" ")
        elif kind == SEMICOLON and depth:
            pieces.append(b";")
        else:
            words = b" ".join(b"".join(pieces).split())
            if words:
                statements.append(Statement(words, text[begun:end], end, strings, names))
            if kind == END:
                return None if depth else statements
            pieces = []
            strings = []
            names = []
            begun = end
        position = end
