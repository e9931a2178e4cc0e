r"""What the text of a Query or Parse means for transactions and for the session's state.

Most statements are decided by their first word and a few searches for bytes that hide no state if
they are absent. Only where such bytes are found is the text split into its statements and each of
them rewritten as *words*: in lower case, single spaces, no comments, every string as a lone ',
every quoted identifier that is not plain as "?". Nothing a client has put between quotes can then
look like a keyword, and regular expressions anchored at the first word say what the statement is.

What cannot be read as the server reads it (unterminated quotes, BEGIN ATOMIC bodies, a few junk
tokens on which server versions differ) gets the most careful answer. Under a client encoding that
may hold a backslash in a character's second byte, do not ask.

Source: PostgreSQL 15 to 18, src/backend/parser/scan.l and gram.y.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

STATEMENT: Final = 0
EMPTY: Final = 1
BEGIN: Final = 2
COMMIT: Final = 3
ROLLBACK: Final = 4
COMMIT_CHAIN: Final = 5
ROLLBACK_CHAIN: Final = 6
ROLLBACK_TO: Final = 7
RELEASE: Final = 8
SAVEPOINT: Final = 9
PREPARE_TRANSACTION: Final = 10
COMMIT_PREPARED: Final = 11
ROLLBACK_PREPARED: Final = 12
COPY: Final = 13
SET_ONE: Final = 14
OURS_SET: Final = 15
OURS_SHOW: Final = 16
MANY: Final = 17
DEALLOCATE: Final = 18
DISCARD_ALL: Final = 19
LISTEN: Final = 20
UNLISTEN: Final = 21


@dataclass
class Judgement:
    """What a text means. Not to be changed: most are shared."""

    kind: int  # of the only statement that is not empty; MANY if there are several
    pin: str = ""  # why the session needs its backend from now on; "" if it does not
    begins: bool = False  # some statement begins a transaction
    ends: bool = False  # some statement commits: its outcome is unknown if the backend dies
    savepoint: bool = False  # some statement may set a savepoint
    setting: str = ""  # the name, in lower case, of a SET_ONE, OURS_SET or OURS_SHOW
    value: str | None = None  # what an OURS_SET sets it to; None: the default
    rest: int = 0  # where a MANY goes on behind its first statement, a plain COMMIT or ROLLBACK
    first: int = -1  # the kind of a MANY's first statement; else as `kind`
    tag: bytes = b""  # how the server answers a BEGIN
    settings: tuple[str, ...] = ()  # what it may change for the session; "*": anything
    local: bool = False  # the transaction may have settings of its own
    looks: bool = False  # what a session is pinned for may be gone behind it
    name: bytes = b""  # what a DEALLOCATE, LISTEN or UNLISTEN names; b"*": ALL, or *
    discards: bool = False  # the session's prepared statements are gone behind it
    listens: bool = False  # a LISTEN or UNLISTEN is among several statements
    notifies: bool = False
    databases: tuple[str, ...] = ()  # those that must have no connections for it to succeed
    defaults: bool = False  # what later sessions begin with changes

    def __post_init__(self) -> None:
        if self.first < 0:
            self.first = self.kind


_STATELESS: Final = Judgement(STATEMENT)
_EMPTY: Final = Judgement(EMPTY)
_COPY: Final = Judgement(COPY)
_CANNOT_JUDGE: Final = Judgement(STATEMENT, "cannot judge", begins=True, ends=True, savepoint=True)

# The lexer: everything in a text that is not words, numbers and operators.

# The number of the group in the pattern says which.
_LITERAL: Final = 1
_QUOTED: Final = 2
_COMMENT: Final = 3
_OPEN_COMMENT: Final = 4
_OPEN_DOLLAR: Final = 5
_SEMICOLON: Final = 6
_BROKEN: Final = 7
_END: Final = 8


_PLAIN: Final = r"[^']*(?:''[^']*)*'"
_ESCAPED: Final = r"[^'\\]*(?:(?:\\.|'')[^'\\]*)*'"
_CONTINUED: Final = r"[ \t\f\v]*(?:--[^\r\n]*)?[\r\n](?:[ \t\r\n\f\v]|--[^\r\n]*[\r\n])*'"
_IDENTIFIER: Final = r'[^"]*(?:""[^"]*)*"'
_IN_WORD: Final = r"[A-Za-z0-9_$\x80-\xff]"
_TAG: Final = r"(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$"


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
        |(?<=")({_IDENTIFIER})
        |(?<=-)(-[^\r\n]*)
        |(?<=/)(\*)
        |(?<=\$)(?<!{_IN_WORD}\$)({_TAG})
        |(?<=;)()
        |((?<=['"])|(?<=[0-9$]\$){_TAG}))"""
    return re.compile(pattern.encode(), re.DOTALL | re.VERBOSE)


_CONFORMING_STRING: Final = _string("eE", _ESCAPED, _PLAIN)
_CONFORMING: Final = _lexer(_CONFORMING_STRING)
_ESCAPING: Final = _lexer(_string("bBxX", _PLAIN, _ESCAPED))
_COMMENT_EDGE: Final = re.compile(rb"/\*|\*/")


def _next(text: bytes, position: int, lexer: re.Pattern[bytes]) -> tuple[int, int, int]:
    """Where the next token of interest begins and ends, and which it is."""
    found = lexer.search(text, position)
    if found is None:
        return len(text), len(text), _END
    kind = found.lastindex or _BROKEN
    start = found.start()
    end = found.end()
    if kind == _OPEN_COMMENT:
        kind = _COMMENT
        end = _comment_end(text, end)
    elif kind == _OPEN_DOLLAR:
        kind = _LITERAL
        close = text.find(found.group(), end)
        end = close + end - start if close >= 0 else -1
    return (start, end, kind) if end >= 0 else (start, start, _BROKEN)


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
class _Statement:
    words: bytes
    text: bytes
    end: int  # in the whole text, behind the semicolon
    literal: bytes  # the first string, with its quotes


_SEMICOLONS_LIMIT: Final = 1000  # a text of more than these cannot be judged
_PLAIN_NAME: Final = re.compile(rb'"[\w.$]+"')


def _split(text: bytes, lexer: re.Pattern[bytes]) -> list[_Statement] | None:
    """The statements that are not empty; None if the text cannot be read.

    A semicolon in parentheses is part of its statement (CREATE RULE … DO ALSO (a; b)).
    """
    statements: list[_Statement] = []
    pieces: list[bytes] = []
    literal = b""
    begun = position = depth = semicolons = 0
    while True:
        start, end, kind = _next(text, position, lexer)
        run = text[position:start]
        pieces.append(run.lower())
        depth += run.count(b"(") - run.count(b")")
        semicolons += kind == _SEMICOLON
        if kind == _BROKEN or depth < 0 or semicolons > _SEMICOLONS_LIMIT:
            return None
        if kind == _LITERAL:
            literal = literal or text[start:end]
            pieces.append(b"'")
        elif kind == _QUOTED:
            name = text[start:end]
            pieces.append(name if _PLAIN_NAME.fullmatch(name) else b'"?"')
        elif kind == _COMMENT:
            pieces.append(b" ")
        elif kind == _SEMICOLON and depth:
            pieces.append(b";")
        else:
            words = b" ".join(b"".join(pieces).split())
            if words:
                statements.append(_Statement(words, text[begun:end], end, literal))
            if kind == _END:
                return None if depth else statements
            pieces = []
            literal = b""
            begun = end
        position = end


# From words to a judgement.

_PART: Final = r'(?:[a-z_][\w$]*(?![\w$])|"[\w.$]+")'
_NAME: Final = rf"{_PART}(?: ?\. ?{_PART})*"
_LITERAL_WORD: Final = r"(?:e|u&)?'"
_LITERAL_WORDS: Final = _LITERAL_WORD + r"(?: ')*"  # one string, continued on further lines
_WORK: Final = "(?: work| transaction)?"
_MODE: Final = (
    "(?:isolation level (?:read uncommitted|read committed|repeatable read|serializable)"
    "|read only|read write|(?:not )?deferrable)"
)
_MODES: Final = f"(?: {_MODE}(?:(?: ?, ?| ){_MODE})*)?"
_SESSION: Final = "(?: session)?"


def _pinned(pin: str) -> Judgement:
    return Judgement(STATEMENT, pin)


def _set_one(setting: str) -> Judgement:
    return Judgement(SET_ONE, "SET", setting=setting)


# What a statement is by its complete form: first words, what follows, what it means; the first row
# that matches counts. Transaction control may be answered in the server's place, so nothing may
# pass for it that is not understood to its end.
_FORMS: Final = (
    ("begin", _WORK + _MODES, Judgement(BEGIN, begins=True, tag=b"BEGIN")),
    (
        "start",
        " transaction" + _MODES,
        Judgement(BEGIN, begins=True, tag=b"START TRANSACTION"),
    ),
    ("commit end", _WORK + "(?: and no chain)?", Judgement(COMMIT, ends=True)),
    ("commit end", _WORK + " and chain", Judgement(COMMIT_CHAIN, ends=True)),
    ("commit", f" prepared {_LITERAL_WORDS}", Judgement(COMMIT_PREPARED, ends=True)),
    ("rollback abort", _WORK + "(?: and no chain)?", Judgement(ROLLBACK)),
    ("rollback abort", _WORK + " and chain", Judgement(ROLLBACK_CHAIN)),
    ("rollback", _WORK + " to .+", Judgement(ROLLBACK_TO)),
    ("rollback", f" prepared {_LITERAL_WORDS}", Judgement(ROLLBACK_PREPARED)),
    ("release", ".+", Judgement(RELEASE)),
    ("savepoint", ".+", Judgement(SAVEPOINT, savepoint=True)),
    ("prepare", f" transaction {_LITERAL_WORDS}", Judgement(PREPARE_TRANSACTION, ends=True)),
    ("begin start commit end rollback abort release savepoint", ".*", _CANNOT_JUDGE),
    # Semicolons inside, and END and CASE may be names there: it cannot be split surely.
    ("create", r".*\bbegin atomic\b.*", _CANNOT_JUDGE),
    (
        "create",
        r"(?: or replace)?(?: local| global)? temp(?:orary)?\b.*",
        _pinned("temporary table"),
    ),
    ("declare", r".*\bcursor with hold\b.*", _pinned("WITH HOLD")),
    ("close", " all", _pinned("CLOSE ALL")),
    # Where these words are names (SET role = x, SET local.x = 1) _ASSIGNMENT has come first.
    ("set", " (?:local|transaction|constraints) .+", _STATELESS),
    ("set", _SESSION + " time zone.+", _set_one("timezone")),
    ("set", _SESSION + " names.*", _set_one("client_encoding")),
    ("set", _SESSION + " schema.+", _set_one("search_path")),
    ("set", _SESSION + " role.+", _pinned("SET ROLE")),
    ("set", _SESSION + " session authorization.+", _pinned("SET SESSION AUTHORIZATION")),
    ("set", _SESSION + " session characteristics.+", _pinned("SET SESSION CHARACTERISTICS")),
    ("reset", " time zone", _set_one("timezone")),
    ("reset", " role", _pinned("RESET ROLE")),
    ("reset", " all", _pinned("RESET ALL")),
    ("reset", " session authorization", _pinned("RESET SESSION AUTHORIZATION")),
    ("set", ".*", _pinned("SET")),
    *(
        (word, ".*", _pinned(word.upper()))
        for word in (
            "discard", "deallocate", "prepare", "execute", "listen", "unlisten", "load", "do",
            "call",
        )
    ),
)  # fmt: skip


def _by_word() -> dict[bytes, list[tuple[re.Pattern[bytes], Judgement]]]:
    table: dict[bytes, list[tuple[re.Pattern[bytes], Judgement]]] = {}
    for words, rest, judgement in _FORMS:
        for word in words.split():
            form = re.compile((word + rest).encode())
            table.setdefault(word.encode(), []).append((form, judgement))
    return table


_FORMS_BY_WORD: Final = _by_word()
_QUERIES: Final = frozenset(b"select values table with".split())
_STATELESS_WORDS: Final = _QUERIES | frozenset(
    b"insert update delete merge copy show lock fetch move close declare notify truncate analyze"
    b" analyse vacuum reindex cluster checkpoint refresh comment grant revoke create alter drop"
    b" import security reassign".split()
)

# Names that stand for state wherever they occur: a cheap search, a sure one, and the reason.
# set_config(…, true) is the transaction's own affair. INSERT INTO temp means a table of that name,
# INTO temp.x a schema. The view pg_settings has a rule by which an UPDATE of it is a SET.
_TEMPORARY_NAME: Final = (
    rb"\bpg_temp(?:_[0-9]+)?\b|(?<![a-z_$\x80-\xff])(?<!insert )(?<!merge )"
    rb"into (?:local |global )?temp(?:orary)?\b(?! ?\.)"
)
_HAZARDS: Final = (
    (b"set_config", rb'\bset_config\b(?!"? ?\([^()\[\]]*, ?true ?\))', "set_config"),
    (b"advisory", rb"\bpg_(?:try_)?advisory_(?!xact_lock)", "advisory lock"),
    (b"temp", _TEMPORARY_NAME, "temporary table"),
    (
        b"pg_settings",
        rb'\bupdate ?(?:only\b)?[ (]*(?:"?pg_catalog"? ?\. ?)?"?pg_settings\b',
        "set_config",
    ),
    (b'u&"', rb'(?<![a-z_$\x80-\xff])u&"', "cannot judge"),
)

_WORD: Final = re.compile(rb"[a-z_][\w$\x80-\xff]*")
_EXPLAIN: Final = re.compile(
    rb"^explain ?(?:\((?! ?(?:\(|select\b|values\b|table\b|with\b))[^()]*\) ?)?"
    rb"(?:analy[sz]e )?(?:verbose )?"
)
_ASSIGNMENT: Final = re.compile(rf"set (?:(session|local) )?({_NAME}) ?(?:=|to\b) ?(.+)".encode())
_RESET: Final = re.compile(rf"reset ({_NAME})".encode())
_SHOW: Final = re.compile(rf"show ({_NAME})".encode())
_CAST: Final = "(?: ?:: ?text)?"
_SET_CONFIG: Final = re.compile(
    rf'select (?:"?pg_catalog"? ?\. ?)?set_config ?\( ?e?\'{_CAST} ?,'
    rf" ?(?:{_LITERAL_WORD}|\$[0-9]+){_CAST} ?, ?false ?\)".encode()
)
_SETTING: Final = re.compile(rb"[\w.$]+")
_OURS: Final = "txproxy."


def _judge_slowly(text: bytes, standard_conforming_strings: bool = True) -> Judgement:
    statements = _split(text, _CONFORMING if standard_conforming_strings else _ESCAPING)
    if statements is None:
        return _CANNOT_JUDGE
    if not statements:
        return _EMPTY
    each = [_judge_one(statement) for statement in statements]
    first = each[0]
    if len(each) == 1:
        return first
    goes_on = first.kind in (COMMIT, ROLLBACK)
    many = Judgement(MANY, rest=statements[0].end if goes_on else 0, first=first.kind)
    for judgement in each:
        if judgement is _CANNOT_JUDGE:
            return judgement
        # Among others a setting of ours goes to the server, for which it is one like any other.
        many.pin = many.pin or judgement.pin or ("SET" if judgement.kind == OURS_SET else "")
        many.begins = many.begins or judgement.begins
        many.ends = many.ends or judgement.ends
        many.savepoint = many.savepoint or judgement.savepoint
    return many


def _judge_one(statement: _Statement) -> Judgement:
    words = statement.words
    word = _first_word(words)
    if word == b"explain":
        # Without ANALYZE nothing is run, but a pin too many is soon undone.
        explained = _EXPLAIN.sub(b"", words)
        pin = _judge_words(_first_word(explained), explained, statement).pin
        return _pinned(pin) if pin else _STATELESS
    return _judge_words(word, words, statement)


def _first_word(words: bytes) -> bytes:
    found = _WORD.match(words)
    return found.group() if found else b""


def _judge_words(word: bytes, words: bytes, statement: _Statement) -> Judgement:
    if word == b"set":
        return _judge_set(words, statement)
    judgement = _form(word, words)
    if judgement is not None:
        return judgement
    if word == b"reset":
        return _judge_reset(words)
    if word == b"show":
        return _judge_show(words)
    known = _STATELESS_WORDS
    if words.startswith(b"("):
        word = _first_word(words.lstrip(b"( "))
        known = _QUERIES
    if word not in known:
        return _pinned("unknown statement")
    pin = _hazard(words)
    if pin == "set_config":
        return _judge_set_config(words, statement)
    if word == b"copy":
        return Judgement(COPY, pin) if pin else _COPY
    return _pinned(pin) if pin else _STATELESS


def _form(word: bytes, words: bytes) -> Judgement | None:
    for form, judgement in _FORMS_BY_WORD.get(word, ()):
        if form.fullmatch(words):
            return judgement
    return None


def _hazard(words: bytes) -> str:
    for search, hazard, pin in _HAZARDS:
        if search in words and re.search(hazard, words):
            return pin
    return ""


def _names_temporary(statement: _Statement) -> bool:
    """A search_path may name the schema in quotes; tables are then created there."""
    return b"pg_temp" in statement.text.lower()


def _judge_set(words: bytes, statement: _Statement) -> Judgement:
    assignment = _ASSIGNMENT.fullmatch(words)
    if assignment is None:
        judgement = _form(b"set", words)
        assert judgement is not None
    else:
        setting = _setting(assignment[2])
        if setting.startswith(_OURS):
            value = _value(assignment[3], statement.literal)
            return Judgement(OURS_SET, setting=setting, value=value)
        judgement = _STATELESS if assignment[1] == b"local" else _set_one(setting)
    return _pinned("temporary table") if _names_temporary(statement) else judgement


def _judge_reset(words: bytes) -> Judgement:
    name = _RESET.fullmatch(words)
    if name is None:
        return _pinned("RESET")
    setting = _setting(name[1])
    if setting.startswith(_OURS):
        return Judgement(OURS_SET, setting=setting)
    return _set_one(setting)


def _judge_show(words: bytes) -> Judgement:
    name = _SHOW.fullmatch(words)
    setting = _setting(name[1]) if name else ""
    return Judgement(OURS_SHOW, setting=setting) if setting.startswith(_OURS) else _STATELESS


def _judge_set_config(words: bytes, statement: _Statement) -> Judgement:
    name = _unquoted(statement.literal) if _SET_CONFIG.fullmatch(words) else b""
    if not _SETTING.fullmatch(name):
        return _pinned("set_config")
    if _names_temporary(statement):
        return _pinned("temporary table")
    return Judgement(SET_ONE, "set_config", setting=_setting(name))


def _setting(name: bytes) -> str:
    return name.translate(None, b' "').lower().decode()


def _value(said: bytes, literal: bytes) -> str | None:
    if said == b"default":
        return None
    if said in {b"'", b"e'", b"u&'"}:
        said = _unquoted(literal)
    return said.strip(b'"').decode("utf-8", "replace")


def _unquoted(literal: bytes) -> bytes:
    """What is between the quotes. Escapes and continuations stay: no value in use has them."""
    if literal.startswith(b"$"):
        delimiter = literal.index(b"$", 1) + 1
        return literal[delimiter:-delimiter]
    return literal[1:-1].replace(b"''", b"'")


# The common case.

_EXACT: Final = {
    text: _judge_slowly(text)
    for words in (
        b"BEGIN", b"COMMIT", b"ROLLBACK", b"END", b"ABORT", b"START TRANSACTION",
        b"BEGIN TRANSACTION", b"BEGIN READ ONLY", b"BEGIN READ WRITE",
        b"BEGIN ISOLATION LEVEL READ COMMITTED", b"BEGIN ISOLATION LEVEL REPEATABLE READ",
        b"BEGIN ISOLATION LEVEL SERIALIZABLE", b"",
    )
    for spelled in (words, words.lower(), words.capitalize())
    for text in (spelled, spelled + b";")
}  # fmt: skip
_EXACT_LENGTH: Final = 48  # not below the longest of these; hashing long texts would cost
_COMMON: Final = frozenset(
    word + space
    for word in (b"select", b"insert", b"update", b"delete", b"values", b"with")
    for space in (b" ", b"\n", b"\t")
)
_TEMPORARY: Final = re.compile(rb"\btemp(?:orary)?\b")
_SIMPLE: Final = re.compile(
    rf"""['"/-](?:(?<='){_CONFORMING_STRING}|(?<="){_IDENTIFIER}
    |(?<=-)-[^\r\n]*|(?<=/)\*[^*/]*\*/)""".encode(),
    re.DOTALL | re.VERBOSE,
)
_NOT_SIMPLE: Final = re.compile(rf"""['"]|/\*|\${_TAG}""".encode())


def judge(text: bytes, standard_conforming_strings: bool = True) -> Judgement:
    """What `text`, without its final NUL, means; `standard_conforming_strings` as it is now."""
    if len(text) <= _EXACT_LENGTH:
        known = _EXACT.get(text)
        if known is not None:
            return known
    low = text.lower()
    if (low[:7] in _COMMON or _begins_commonly(low)) and _is_harmless(
        low, standard_conforming_strings
    ):
        return _STATELESS
    return _judge_slowly(text, standard_conforming_strings)


def _begins_commonly(low: bytes) -> bool:
    low = low.lstrip()
    return low[:7] in _COMMON or low[:5] in _COMMON


def _is_harmless(low: bytes, standard_conforming_strings: bool) -> bool:
    """Whether a text that begins as a query is surely a single one, without state.

    It is, however its quotes and comments are read, if it holds nothing of _HAZARDS and no
    semicolon but at its end: a second statement needs one, and the functions that set state, the
    temporary schema and INTO TEMP must be spelled out, unless in U&"…". Text in strings often has
    a semicolon or the word temp, so these are looked for again with the simple quotes and comments
    taken out; the first that is not simple is left, and tells.
    """
    said = low.decode("latin-1")  # searching a str takes a fifth of the time
    if "set_config" in said or "advisory" in said or "pg_settings" in said:
        return False
    temporary = "temp" in said
    if (temporary and "pg_temp" in said) or (0x26 in low and 'u&"' in said):
        return False
    if _ends_once(low) and not (temporary and _TEMPORARY.search(low)):
        return True
    if not standard_conforming_strings:
        return False
    left = _SIMPLE.sub(b" ", low)
    return _ends_once(left) and not _TEMPORARY.search(left) and not _NOT_SIMPLE.search(left)


def _ends_once(text: bytes) -> bool:
    return 0x3B not in text or not text[text.find(b";") + 1 :].strip()


# What people read.

_TAGS_LIMIT: Final = 20
_TAG_LIMIT: Final = 256  # bytes of a key, and of a value
_COMMENT_LIMIT: Final = 16_384  # bytes: where a trailing comment's beginning is looked for
_KEY_AND_VALUE: Final = re.compile(
    rb"""\s*([^\s=,'"]+)\s*=\s*'((?:[^'\\]|\\.)*)'\s*(?:,|$)""", re.DOTALL
)
_NUMBER: Final = re.compile(rb"(?<![\w$\x80-\xff])[0-9][\w.]*")


def tags(text: bytes) -> dict[str, str]:
    """The sqlcommenter tags in the comment at the end: at most 20, each of at most 256 bytes."""
    said = _trailing_comment(text)[2:-2]
    found: dict[str, str] = {}
    position = 0
    while position < len(said) and len(found) < _TAGS_LIMIT:
        tag = _KEY_AND_VALUE.match(said, position)
        if tag is None:
            return {}
        found[_tag_text(tag[1])] = _tag_text(tag[2].replace(rb"\'", b"'"))
        position = tag.end()
    return found


def _tag_text(encoded: bytes) -> str:
    return _printable(unquote_to_bytes(encoded)[:_TAG_LIMIT])


def _trailing_comment(text: bytes) -> bytes:
    """The comment that ends the text, or its innermost part; b"" if there is none."""
    text = text[-_COMMENT_LIMIT:].rstrip(b"; \t\r\n\f\v")
    start = text.rfind(b"/*")
    comment = text[start:] if start >= 0 else b""
    return comment if len(comment) >= 4 and comment.endswith(b"*/") else b""


def redact(text: bytes, limit: int = 256) -> str:
    """The first `limit` bytes with ? for strings and numbers, for logs, in one printable line.

    If the text is longer, the comment at its end is added, where sqlcommenter puts its tags. No
    string is shown, whatever standard_conforming_strings is: from the first one whose end depends
    on it, nothing is.
    """
    pieces: list[bytes] = []
    position = 0
    while position < limit:
        start, end, kind = _next(text, position, _CONFORMING)
        pieces.append(_NUMBER.sub(b"?", text[position : min(start, limit)]))
        if start >= limit or kind == _END:
            break
        token = text[start:end]
        if kind == _BROKEN or (kind == _LITERAL and rb"\'" in token):
            pieces.append(b"?")
            break
        pieces.append(b"?" if kind == _LITERAL else token[: limit - start])
        position = end
    if len(text) > limit:
        # With -- in it, it may be the end of a line comment behind a string that holds /*.
        comment = _trailing_comment(text)[:limit]
        pieces.append(b" ... " + comment if comment and b"--" not in comment else b" ...")
    return _printable(b"".join(pieces))


def _printable(said: bytes) -> str:
    text = said.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
