r"""What the text of a Query or Parse means for transactions and for the session's state.

Most statements are decided by their first word and a few searches for bytes that hide no state if
they are absent. Only where such bytes are found is the text split into its statements (lexer.py);
then regular expressions anchored at the first word say what each of them is.

What cannot be read as the server reads it (unterminated quotes, BEGIN ATOMIC bodies, a few junk
tokens on which server versions differ) gets the most careful answer. Under a client encoding that
may hold a backslash in a character's second byte, do not ask.

Source: PostgreSQL 15 to 18, src/backend/parser/gram.y.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from txproxy.wire import lexer, names
from txproxy.wire.lexer import Statement

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
    setting: str = ""  # in lower case, the only one that it is about, if there is one
    value: str | None = None  # what an OURS_SET sets it to; None: the default
    rest: int = 0  # where a MANY goes on behind its first statement, which ends the transaction
    first: int = -1  # the kind of a MANY's first statement; else as `kind`
    tag: bytes = b""  # how the server answers a BEGIN
    settings: tuple[str, ...] = ()  # those it may change for the session; "*": any other
    local: bool = False  # the transaction may have settings of its own
    looks: bool = False  # what a session is pinned for may be gone behind it
    name: bytes = b""  # what a DEALLOCATE, LISTEN or UNLISTEN names; b"*": ALL, or *
    discards: bool = False  # the session's prepared statements are gone behind it
    listens: bool = False  # a LISTEN or UNLISTEN may be among what it does
    notifies: bool = False
    databases: tuple[str, ...] = ()  # those that must have no connections for it to succeed
    defaults: bool = False  # what later sessions begin with changes

    def __post_init__(self) -> None:
        if self.first < 0:
            self.first = self.kind


UNREAD: Final = Judgement(
    STATEMENT,
    "cannot judge",
    begins=True,
    ends=True,
    savepoint=True,
    settings=("*",),
    local=True,
    looks=True,
)
"""What a text means that is not there to be read to its end."""


# From words to a judgement.

_PART: Final = r'(?:[a-z_][\w$]*(?![\w$])|"[\w.$]+")'
_NAME: Final = rf"{_PART}(?: ?\. ?{_PART})*"
_WORK: Final = "(?: work| transaction)?"
_MODE: Final = (
    "(?:isolation level (?:read uncommitted|read committed|repeatable read|serializable)"
    "|read only|read write|(?:not )?deferrable)"
)
_MODES: Final = f"(?: {_MODE}(?:(?: ?, ?| ){_MODE})*)?"
_SESSION: Final = "(?: session)?"

_STATELESS: Final = Judgement(STATEMENT)
_EMPTY: Final = Judgement(EMPTY)
_COPY: Final = Judgement(COPY)
_LOOKS: Final = Judgement(STATEMENT, looks=True)
_LOCAL: Final = Judgement(STATEMENT, local=True)
_ANY_SETTING: Final = Judgement(STATEMENT, settings=(names.ANY,))
_NOTIFIES: Final = Judgement(STATEMENT, notifies=True)
_DEFAULTS: Final = Judgement(STATEMENT, looks=True, defaults=True)
_CANNOT_JUDGE: Final = Judgement(STATEMENT, "cannot judge")  # _searched() has the last word

# What is set for a transaction however it is set, and `seed`, whose value nobody can ask for.
_NOT_FOR_THE_SESSION: Final = frozenset(
    ("transaction_isolation", "transaction_read_only", "transaction_deferrable", "seed")
)
_CHARACTERISTICS: Final = (
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_deferrable",
)


def _pinned(pin: str) -> Judgement:
    return Judgement(STATEMENT, pin, looks=True)


def _changes(setting: str) -> Judgement:
    if setting in _NOT_FOR_THE_SESSION:
        return _LOCAL
    if setting == "session_authorization":
        return Judgement(STATEMENT, settings=("session_authorization", "role"))
    return Judgement(SET_ONE, setting=setting, settings=(setting,))


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
    ("commit", f" prepared {names.STRING}", Judgement(COMMIT_PREPARED, ends=True)),
    ("rollback abort", _WORK + "(?: and no chain)?", Judgement(ROLLBACK)),
    ("rollback abort", _WORK + " and chain", Judgement(ROLLBACK_CHAIN)),
    ("rollback", _WORK + " to .+", Judgement(ROLLBACK_TO)),
    ("rollback", f" prepared {names.STRING}", Judgement(ROLLBACK_PREPARED)),
    ("release", ".+", Judgement(RELEASE)),
    ("savepoint", ".+", Judgement(SAVEPOINT, savepoint=True)),
    ("prepare", f" transaction {names.STRING}", Judgement(PREPARE_TRANSACTION, ends=True)),
    ("begin start commit end rollback abort release savepoint", ".*", _CANNOT_JUDGE),
    # Semicolons inside, and END and CASE may be names there: it cannot be split surely.
    ("create", r".*\bbegin atomic\b.*", _CANNOT_JUDGE),
    (
        "create",
        r"(?: or replace)?(?: local| global)? temp(?:orary)?\b.*",
        _pinned("temporary table"),
    ),
    ("create", r".*\bas execute\b.*", _LOOKS),
    ("declare", r".*\bcursor with hold\b.*", _pinned("WITH HOLD")),
    ("prepare", ".*", _pinned("PREPARE")),
    ("load", ".*", _pinned("LOAD")),
    # Where these words are names (SET role = x, SET local.x = 1) _ASSIGNMENT has come first.
    ("set", " constraints .+", _STATELESS),
    ("set", " (?:local|transaction|session transaction) .+", _LOCAL),
    ("set", _SESSION + " time zone.+", _changes("timezone")),
    ("set", _SESSION + " names.*", _changes("client_encoding")),
    ("set", _SESSION + " schema.+", _changes("search_path")),
    ("set", _SESSION + " xml option.+", _changes("xmloption")),
    ("set", _SESSION + " role.+", _changes("role")),
    ("set", _SESSION + " session authorization.+", _changes("session_authorization")),
    (
        "set",
        _SESSION + " session characteristics.+",
        Judgement(STATEMENT, settings=_CHARACTERISTICS),
    ),
    ("reset", " time zone", _changes("timezone")),
    ("reset", " session authorization", _changes("session_authorization")),
    ("reset", " transaction isolation level", _LOCAL),
    ("set reset", ".*", _ANY_SETTING),
    (
        "discard",
        " all",
        Judgement(DISCARD_ALL, settings=(names.ANY,), looks=True, discards=True),
    ),
    ("discard", " temp(?:orary)?", _LOOKS),
    ("discard", ".*", _STATELESS),
    ("drop alter close execute", ".*", _LOOKS),
    ("notify", ".*", _NOTIFIES),
)  # fmt: skip


_ENDINGS: Final = frozenset((COMMIT, ROLLBACK, COMMIT_CHAIN, ROLLBACK_CHAIN, PREPARE_TRANSACTION))


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
    b"insert update delete merge copy show lock fetch move declare truncate analyze analyse vacuum"
    b" reindex cluster checkpoint refresh comment grant revoke create import security"
    b" reassign".split()
)

# Names that mean something wherever they occur: a cheap search, a sure one, and what they mean.
# INSERT INTO temp means a table of that name, INTO temp.x a schema. The view pg_settings has a rule
# by which an UPDATE of it is a SET.
_TEMPORARY_NAME: Final = (
    rb"\bpg_temp(?:_[0-9]+)?\b|(?<![a-z_$\x80-\xff])(?<!insert )(?<!merge )"
    rb"into (?:local |global )?temp(?:orary)?\b(?! ?\.)"
)
_HAZARDS: Final = (
    (b"advisory", rb"\bpg_(?:try_)?advisory_lock", _pinned("advisory lock")),
    (b"advisory", rb"\bpg_advisory_unlock", _LOOKS),
    (b"temp", _TEMPORARY_NAME, _pinned("temporary table")),
    (
        b"pg_settings",
        rb'\bupdate ?(?:only\b)?[ (]*(?:"?pg_catalog"? ?\. ?)?"?pg_settings\b',
        _ANY_SETTING,
    ),
    (b"pg_notify", rb"\bpg_notify\b", _NOTIFIES),
    (
        b"alter",
        rb"^alter (?:role|user(?! mapping)|database)\b.*\b(?:set(?! tablespace\b)|reset)\b",
        _DEFAULTS,
    ),
    (b'u&"', rb'(?<![a-z_$\x80-\xff])u&"', _CANNOT_JUDGE),
)

_WORD: Final = re.compile(rb"[a-z_][\w$\x80-\xff]*")
_EXPLAIN: Final = re.compile(
    rb"^explain ?(?:\((?! ?(?:\(|select\b|values\b|table\b|with\b))[^()]*\) ?)?"
    rb"(?:analy[sz]e )?(?:verbose )?"
)


def _judge_slowly(text: bytes, standard_conforming_strings: bool = True) -> Judgement:
    statements = lexer.split(text, standard_conforming_strings)
    if statements is None:
        return _searched("cannot judge", text)
    if not statements:
        return _EMPTY
    each = [_judge_one(statement) for statement in statements]
    for judgement in each:
        if judgement is _CANNOT_JUDGE:
            return _searched("cannot judge", text)
    first = each[0]
    if len(each) == 1:
        return first
    many = _together(MANY, each)
    many.first = first.kind
    many.rest = statements[0].end if first.kind in _ENDINGS else 0
    many.listens = any(judgement.kind in (LISTEN, UNLISTEN) for judgement in each) or many.listens
    return many


def _together(kind: int, parts: list[Judgement]) -> Judgement:
    """What all of these mean."""
    whole = Judgement(kind)
    pins: list[str] = []
    settings: list[str] = []
    databases: list[str] = []
    for part in parts:
        if part.pin not in pins:
            pins.append(part.pin)
        whole.begins = whole.begins or part.begins
        whole.ends = whole.ends or part.ends
        whole.savepoint = whole.savepoint or part.savepoint
        whole.local = whole.local or part.local
        whole.looks = whole.looks or part.looks
        whole.discards = whole.discards or part.discards
        whole.listens = whole.listens or part.listens
        whole.notifies = whole.notifies or part.notifies
        whole.defaults = whole.defaults or part.defaults
        settings.extend(part.settings)
        databases.extend(part.databases)
    whole.pin = ", ".join(pin for pin in pins if pin)
    whole.settings = tuple(dict.fromkeys(settings))
    whole.databases = tuple(dict.fromkeys(databases))
    return whole


def _judge_one(statement: Statement) -> Judgement:
    words = statement.words
    word = _first_word(words)
    if word != b"explain":
        return _judge_words(word, words, statement)
    # Without ANALYZE nothing is run, but a pin too many is soon undone.
    explained = _EXPLAIN.sub(b"", words)
    judgement = _judge_words(_first_word(explained), explained, statement)
    if judgement is _STATELESS or judgement is _CANNOT_JUDGE:
        return judgement
    return _together(STATEMENT, [judgement])


def _first_word(words: bytes) -> bytes:
    found = _WORD.match(words)
    return found.group() if found else b""


def _judge_words(word: bytes, words: bytes, statement: Statement) -> Judgement:
    if word == b"set":
        return _judge_set(words, statement)
    if word == b"reset" or word == b"show":
        return _judge_reset_or_show(word, words)
    if word == b"do" or word == b"call":
        return _searched(word.upper().decode(), statement.text)
    if word == b"deallocate" or word == b"listen" or word == b"unlisten":
        return _judge_named(word, words, statement)
    judgement = _form(word, words) or _by_first_word(word, words)
    if judgement is _CANNOT_JUDGE or judgement.kind not in (STATEMENT, COPY):
        return judgement
    found = _hazards(words, statement)
    if _CANNOT_JUDGE in found:
        return _CANNOT_JUDGE
    if judgement is _STATELESS and len(found) == 1:
        return found[0]
    return _together(judgement.kind, [judgement, *found]) if found else judgement


def _form(word: bytes, words: bytes) -> Judgement | None:
    for form, judgement in _FORMS_BY_WORD.get(word, ()):
        if form.fullmatch(words):
            return judgement
    return None


def _by_first_word(word: bytes, words: bytes) -> Judgement:
    if word == b"copy":
        return _COPY
    if words.startswith(b"("):
        known = _first_word(words.lstrip(b"( ")) in _QUERIES
    else:
        known = word in _STATELESS_WORDS
    return _STATELESS if known else _pinned("unknown statement")


def _hazards(words: bytes, statement: Statement) -> list[Judgement]:
    found = [
        judgement
        for search, hazard, judgement in _HAZARDS
        if search in words and re.search(hazard, words)
    ]
    if b"set_config" in words:
        found.extend(_set_config(words, statement))
    if b" database" in words:
        databases = names.databases(words, statement)
        if databases:
            found.append(Judgement(STATEMENT, databases=databases))
    return found


# Settings.

_ASSIGNMENT: Final = re.compile(
    rf'set ?(?:(session|local)(?: |(?=")))?({_NAME}) ?(?:(?:=|to\b) ?(.+)|from current)'.encode()
)
_RESET_OR_SHOW: Final = re.compile(rf"(?:reset|show) ?({_NAME})".encode())
_OURS: Final = "txproxy."


def _judge_set(words: bytes, statement: Statement) -> Judgement:
    assignment = _ASSIGNMENT.fullmatch(words)
    if assignment is None:
        judgement = _form(b"set", words)
        assert judgement is not None
    else:
        setting = names.setting(assignment[2])
        if setting.startswith(_OURS):
            value = _value(assignment[3], statement)
            return Judgement(OURS_SET, setting=setting, value=value, settings=(setting,))
        judgement = _LOCAL if assignment[1] == b"local" else _changes(setting)
    if not _names_temporary(statement):
        return judgement
    both = _together(judgement.kind, [judgement, _pinned("temporary table")])
    both.setting = judgement.setting
    return both


def _names_temporary(statement: Statement) -> bool:
    """A search_path may name the schema in quotes; tables are then created there."""
    return b"pg_temp" in statement.text.lower()


def _judge_reset_or_show(word: bytes, words: bytes) -> Judgement:
    resets = word == b"reset"
    found = _RESET_OR_SHOW.fullmatch(words)
    setting = names.setting(found[1]) if found and found[1] != b"all" else ""
    if setting.startswith(_OURS):
        if resets:
            return Judgement(OURS_SET, setting=setting, settings=(setting,))
        return Judgement(OURS_SHOW, setting=setting)
    if not resets:
        return _STATELESS
    return _changes(setting) if setting else _form(word, words) or _ANY_SETTING


def _value(said: bytes, statement: Statement) -> str | None:
    if said == b"default":
        return None
    if said in {b"'", b"e'", b"u&'"}:
        said = statement.string(statement.words, statement.words.index(b"'"))
    return (said or b"").strip(b'"').decode("utf-8", "replace")


def _set_config(words: bytes, statement: Statement) -> list[Judgement]:
    calls = names.configs(words, statement)
    if not calls:
        return []
    found = [_LOCAL if scope == b"true" else _changes(name) for name, scope in calls]
    if any(scope not in {b"true", b"false"} for _, scope in calls):
        found.append(_LOCAL)
    named = {name for name, _ in calls}
    if not named.isdisjoint(("search_path", names.ANY)) and _names_temporary(statement):
        found.append(_pinned("temporary table"))
    whole = _together(STATEMENT, found)
    whole.setting = whole.settings[0] if len(whole.settings) == 1 else ""
    return [whole]


# Names of other things.

_NAMED: Final = re.compile(
    rf'(?:deallocate(?: prepare(?=[ "]))?|(?:un)?listen) ?(?:{names.WORD}|(\*))'.encode()
)
_LAST_NAME: Final = re.compile(rf"{names.WORD}$".encode())
_KINDS: Final = {b"deallocate": DEALLOCATE, b"listen": LISTEN, b"unlisten": UNLISTEN}


def _judge_named(word: bytes, words: bytes, statement: Statement) -> Judgement:
    found = _NAMED.fullmatch(words)
    if found is None or (found[2] and word != b"unlisten"):
        return _CANNOT_JUDGE
    kind = _KINDS[word]
    every = found[2] is not None or (kind == DEALLOCATE and found[1] == b"all")
    name = b"*" if every else names.identifier(words, found.start(1), statement)
    if not name:
        return _CANNOT_JUDGE
    return Judgement(kind, name=name, looks=kind != LISTEN, discards=every and kind == DEALLOCATE)


# What cannot be read as statements: code in a string, and what a lexer stumbles on.

_SAID: Final = re.compile(
    rb"\bset_config\s*\(\s*e?'+([\w.$]+)'"
    rb'|\bset\s+(?:(?:session|local)\s+)?"?([a-z_][\w$]*(?:\s*\.\s*[a-z_][\w$]*)*)"?\s*(?::?=|to\b)'
    rb"|\b(?:set_config|set|reset|discard|pg_settings)\b"
)
_SAID_DEFAULTS: Final = re.compile(rb"\balter\s+(?:role|user|database)\b")
_SAID_ALL: Final = re.compile(rb"\ball\b")
_SAID_LIMIT: Final = 50  # names of settings


def _searched(pin: str, text: bytes) -> Judgement:
    """What a text may do that is not understood: whatever it names, in quotes or not."""
    low = text.lower()
    settings: list[str] = []
    for said in _SAID.finditer(low):
        name = said[1] or said[2]
        settings.extend(_changes(names.setting(name)).settings if name else (names.ANY,))
    everything = pin == _CANNOT_JUDGE.pin
    hidden = everything and b'u&"' in low
    if hidden or (everything and settings):
        settings.append(names.ANY)
    distinct = tuple(dict.fromkeys(settings))
    if len(distinct) > _SAID_LIMIT:
        distinct = (*distinct[:_SAID_LIMIT], names.ANY)
    return Judgement(
        STATEMENT,
        pin,
        begins=everything,
        ends=everything,
        savepoint=everything,
        settings=distinct,
        local=bool(distinct),
        looks=True,
        discards=(b"deallocate" in low or b"discard" in low) and bool(_SAID_ALL.search(low)),
        listens=b"listen" in low,
        notifies=hidden or b"notify" in low,
        defaults=_SAID_DEFAULTS.search(low) is not None,
    )


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
    rf"""['"/-](?:(?<='){lexer.STRING}|(?<="){lexer.IDENTIFIER}
    |(?<=-)-[^\r\n]*|(?<=/)\*[^*/]*\*/)""".encode(),
    re.DOTALL | re.VERBOSE,
)
_NOT_SIMPLE: Final = re.compile(rf"""['"]|/\*|\${lexer.TAG}""".encode())


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


def judge_each(text: bytes, standard_conforming_strings: bool = True) -> list[Judgement]:
    """What each of the statements in `text` means, in order, with the names of savepoints; none if
    it cannot be read, or has none.
    """
    statements = lexer.split(text, standard_conforming_strings)
    each: list[Judgement] = []
    for statement in statements or ():
        judgement = _judge_one(statement)
        if judgement is _CANNOT_JUDGE:
            return []
        if judgement.kind in (SAVEPOINT, RELEASE, ROLLBACK_TO):
            found = _LAST_NAME.search(statement.words)
            name = names.identifier(statement.words, found.start(), statement) if found else b""
            judgement = Judgement(judgement.kind, savepoint=judgement.savepoint, name=name)
        each.append(judgement)
    return each


def _begins_commonly(low: bytes) -> bool:
    low = low.lstrip()
    return low[:7] in _COMMON or low[:5] in _COMMON


def _is_harmless(low: bytes, standard_conforming_strings: bool) -> bool:
    """Whether a text that begins as a query is surely a single one, without state.

    It is, however its quotes and comments are read, if it holds nothing of _HAZARDS and no
    semicolon but at its end: a second statement needs one, and the functions that matter, the
    temporary schema and INTO TEMP must be spelled out, unless in U&"…". Text in strings often has
    a semicolon or the word temp, so these are looked for again with the simple quotes and comments
    taken out; the first that is not simple is left, and tells.
    """
    said = low.decode("latin-1")  # searching a str takes a fifth of the time
    if "set_config" in said or ("pg_" in said and _names_state(said)):
        return False
    if 0x26 in low and 'u&"' in said:
        return False
    if (0x3B not in low or _ends_once(low)) and ("temp" not in said or not _TEMPORARY.search(low)):
        return True
    if not standard_conforming_strings:
        return False
    left = _SIMPLE.sub(b" ", low)
    return _ends_once(left) and not _TEMPORARY.search(left) and not _NOT_SIMPLE.search(left)


def _names_state(said: str) -> bool:
    return "advisory" in said or "pg_settings" in said or "pg_temp" in said or "pg_notify" in said


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
        start, end, kind = lexer.next_token(text, position)
        pieces.append(_NUMBER.sub(b"?", text[position : min(start, limit)]))
        if start >= limit or kind == lexer.END:
            break
        token = text[start:end]
        if kind == lexer.BROKEN or (kind == lexer.LITERAL and rb"\'" in token):
            pieces.append(b"?")
            break
        pieces.append(b"?" if kind == lexer.LITERAL else token[: limit - start])
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
