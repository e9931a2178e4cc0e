"""What a statement's words name: settings, channels, prepared statements, databases.

Source: PostgreSQL 15 to 18, src/backend/parser/gram.y and scansup.c.
"""

import re
from typing import Final

from txproxy.wire.lexer import Statement

WORD: Final = r'([a-z_\x80-\xff][\w$\x80-\xff]*|"[^"]*")'  # an identifier
STRING: Final = r"(?:e|u&)?'(?: ')*"  # one string, perhaps continued on further lines
ANY: Final = "*"  # in the place of a setting's name

_LIMIT: Final = 63  # bytes of an identifier: the server cuts longer ones


def identifier(words: bytes, position: int, statement: Statement) -> bytes:
    """What the identifier names that begins at words[position]."""
    if words[position] == 0x22:
        return _cut(statement.name(words, position))
    found = _IDENTIFIER.match(words, position)
    return _cut(found.group()) if found else b""


_IDENTIFIER: Final = re.compile(WORD.encode())


def _cut(name: bytes) -> bytes:
    end = min(_LIMIT, len(name))
    while 0 < end < len(name) and name[end] & 0xC0 == 0x80:  # amidst a character of UTF-8
        end -= 1
    return name[:end]


# Settings.

_PART: Final = re.compile(rb'"[^"]*"|[\w$]+')
_CONFIG: Final = re.compile(rb'\bset_config\b"? ?')
_CONFIG_NAME: Final = re.compile(rb" ?e?'(?: ?:: ?text)? ?")
_CONFIGS_LIMIT: Final = 100  # calls in one statement: they may be nested
_IN_PARENTHESES: Final = re.compile(rb"[()\[\],]")
_PLAIN: Final = re.compile(rb"[\w.$]+")


def setting(words: bytes) -> str:
    """The setting that these words name, perhaps in quotes, in lower case."""
    return b".".join(_cut(part.strip(b'"')) for part in _PART.findall(words)).lower().decode()


def configs(words: bytes, statement: Statement) -> list[tuple[str, bytes]]:
    """The calls of set_config(): the setting, or ANY, and the words of the third argument."""
    found: list[tuple[str, bytes]] = []
    for call in _CONFIG.finditer(words):
        arguments = _arguments(words, call.end()) if len(found) < _CONFIGS_LIMIT else []
        name = ANY
        if arguments and _CONFIG_NAME.fullmatch(arguments[0]):
            said = statement.string(words, words.index(b"'", call.end()))
            name = said.lower().decode() if _PLAIN.fullmatch(said) else ANY
        found.append((name, arguments[2].strip() if len(arguments) == 3 else b""))
    return found


def _arguments(words: bytes, position: int) -> list[bytes]:
    """What is between the commas of a call whose ( is at `position`; empty if there is none."""
    if words[position : position + 1] != b"(":
        return []
    found: list[bytes] = []
    depth = 0
    begun = position + 1
    for edge in _IN_PARENTHESES.finditer(words, position):
        letter = edge.group()
        if letter == b"(" or letter == b"[":
            depth += 1
        elif letter == b",":
            if depth == 1:
                found.append(words[begun : edge.start()])
                begun = edge.end()
        else:
            depth -= 1
            if depth == 0:
                return [*found, words[begun : edge.start()]]
    return []


# Databases.

_MOVED: Final = re.compile(
    rb"(?:drop database(?: if exists)?|alter database(?=.*\b(?:rename to|tablespace)\b)) ?"
    + WORD.encode()
)
_CREATED: Final = re.compile(rf"create database ?{WORD}(?: ?with\b)?".encode())
_OPTION: Final = re.compile(
    rf' ?(?:connection limit|([\w$]+|"[^"]*")) ?=? ?(?:{STRING}|{WORD}|-? ?[0-9.]+)'.encode()
)


def databases(words: bytes, statement: Statement) -> tuple[str, ...]:
    """Those that must have no connections for it to succeed."""
    moved = _MOVED.match(words)
    created = _CREATED.match(words) if moved is None else None
    if moved is not None:
        name = identifier(words, moved.start(1), statement)
    elif created is not None:
        name = _template(words, created.end(), statement)
    else:
        return ()
    return (name.decode("utf-8", "surrogateescape"),)


def _template(words: bytes, position: int, statement: Statement) -> bytes:
    """What a CREATE DATABASE copies, whose options begin at `position`."""
    option = _OPTION.match(words, position)
    while option:
        if option[1] in {b"template", b'"template"'}:
            if option[2] and option[2] != b"default":
                return identifier(words, option.start(2), statement)
            quote = words.find(b"'", option.start(), option.end())
            if quote >= 0:
                return statement.string(words, quote)
        option = _OPTION.match(words, option.end())
    return b"template1"
