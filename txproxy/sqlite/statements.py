"""What a statement is, as far as the client must know: SQLite's SQL, read only at its edges.

Three things are asked of a text. Does Python begin a transaction before it (`is_dml`, the first
word alone, as in `sqlite3`)? Does it concern transactions, or may it be answered by a reader here
(`kind`)? And which parameters has it? The names and numbers are SQLite's own: an index for every
`?`, `?NNN` at NNN, a name at its first appearance.

All else, whether it is correct first of all, SQLite says itself.

Source: https://www.sqlite.org/lang_expr.html#varparam, tokenize.c of SQLite
"""

import re
from enum import Enum, auto
from typing import Final


class Kind(Enum):
    """Where a statement goes, and what it does to the transaction."""

    READ = auto()  # a reader here may answer it
    WRITE = auto()  # INSERT, UPDATE, DELETE, REPLACE: what Python calls DML
    BEGIN = auto()  # takes no token
    BEGIN_NOW = auto()  # IMMEDIATE or EXCLUSIVE
    COMMIT = auto()
    ROLLBACK = auto()
    SAVEPOINT = auto()
    RELEASE = auto()
    ROLLBACK_TO = auto()
    OTHER = auto()  # all else is the server's


_WORD: Final = r"[A-Za-z0-9_$\x80-\U0010ffff]"
_COMMENT: Final = r"--[^\n]*|/\*.*?(?:\*/|\Z)"
_QUOTED: Final = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\[[^\]]*\]"

_START: Final = re.compile(rf"(?:[ \t\f\n\r]|{_COMMENT})*([A-Za-z]*)", re.DOTALL)
_COMMENTS: Final = re.compile(rf"({_QUOTED})|{_COMMENT}", re.DOTALL)
_PARAMETERS: Final = re.compile(
    rf"{_QUOTED}|{_COMMENT}|(\?[0-9]*|\$(?:{_WORD}|::)+(?:\([^\s)]*\))?|[:@#]{_WORD}+)|{_WORD}+",
    re.DOTALL,
)
_SESSION_FUNCTIONS: Final = re.compile(r"last_insert_rowid|changes", re.IGNORECASE)
_WRITES: Final = re.compile(
    r"\b(?:INSERT|REPLACE)\s+(?:OR\s+[A-Z]+\s+)?INTO\b|\bUPDATE\b|\bDELETE\b", re.IGNORECASE
)

_NAME: Final = rf"({_QUOTED}|{_WORD}+)"
_CONTROL: Final = tuple(
    (kind, re.compile(rf"\s*{pattern}[\s;]*", re.IGNORECASE))
    for kind, pattern in (
        (Kind.BEGIN, r"BEGIN(?:\s+DEFERRED)?(?:\s+TRANSACTION)?"),
        (Kind.BEGIN_NOW, r"BEGIN\s+(?:IMMEDIATE|EXCLUSIVE)(?:\s+TRANSACTION)?"),
        (Kind.COMMIT, r"(?:COMMIT|END)(?:\s+TRANSACTION)?"),
        (Kind.ROLLBACK, r"ROLLBACK(?:\s+TRANSACTION)?"),
        (Kind.ROLLBACK_TO, rf"ROLLBACK(?:\s+TRANSACTION)?\s+TO(?:\s+SAVEPOINT)?\s*{_NAME}"),
        (Kind.SAVEPOINT, rf"SAVEPOINT\s*{_NAME}"),
        (Kind.RELEASE, rf"RELEASE(?:\s+SAVEPOINT)?\s*{_NAME}"),
    )
)
_CONTROL_WORDS: Final = frozenset(
    ("BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"),
)
_DML: Final = frozenset(("INSERT", "UPDATE", "DELETE", "REPLACE"))
_READS: Final = frozenset(("SELECT", "VALUES", "WITH"))

# PRAGMAs that read the file and no session. With an argument those of the first line set something.
_READING_PRAGMA: Final = re.compile(
    r"\s*PRAGMA\s+(?:main\s*\.\s*)?(?:"
    r"(?:user_version|schema_version|application_id|page_count|page_size|freelist_count|encoding)"
    r"|(?:table_info|table_xinfo|table_list|index_list|index_info|index_xinfo|foreign_key_list"
    r"|foreign_key_check|integrity_check|quick_check)(?:\s*\([^()]*\))?"
    r")[\s;]*",
    re.IGNORECASE,
)


# How long to wait for the token: not the file's, nor a reason to send a BEGIN.
_APART: Final = re.compile(r"\s*PRAGMA\s+busy_timeout\b", re.IGNORECASE)


class Statement:
    """One text: what it is, and under which name the server knows it.

    `names` has an entry for each of SQLite's parameters: its name without the first character, or
    None for a plain `?`. `savepoint` is the name in SAVEPOINT, RELEASE and ROLLBACK TO, lower-case.
    `is_apart`: it is no part of a transaction. `epoch` is the number of the session that has been
    told `name`; 0: none has.
    """

    __slots__ = (
        "bind",
        "encoded",
        "epoch",
        "is_apart",
        "is_dml",
        "is_kept",
        "kind",
        "name",
        "names",
        "savepoint",
        "silent",
        "sql",
    )

    def __init__(self, sql: str) -> None:
        self.sql = sql
        self.encoded = sql.encode()
        start = _START.match(sql)
        word = start[1].upper() if start else ""
        self.is_dml = word in _DML
        self.kind = Kind.OTHER
        self.savepoint = ""
        if self.is_dml:
            self.kind = Kind.WRITE
        elif word in _READS:
            is_other = _SESSION_FUNCTIONS.search(sql) or (word == "WITH" and _WRITES.search(sql))
            self.kind = Kind.OTHER if is_other else Kind.READ
        elif word == "PRAGMA" and _READING_PRAGMA.fullmatch(_uncommented(sql)):
            self.kind = Kind.READ
        elif word in _CONTROL_WORDS:
            self.kind, self.savepoint = _control(sql)
        self.is_apart = word == "PRAGMA" and _APART.match(sql) is not None
        self.names = parameters(sql)
        self.name = b""
        self.bind = b""
        self.epoch = 0
        self.is_kept = False  # it will run again: worth a name on the server
        self.silent = False  # it has no columns, and never will

    def __repr__(self) -> str:
        return f"<Statement {self.kind.name} {self.sql[:60]!r}>"


def parameters(sql: str) -> tuple[str | None, ...]:
    """The names of SQLite's parameters in the order of their indexes."""
    if not any(mark in sql for mark in "?:@$"):
        return ()
    names: dict[int, str | None] = {}
    by_name: dict[str, int] = {}
    last = 0
    for found in _PARAMETERS.finditer(sql):
        sign = found[1]
        if sign is None:
            continue
        if sign == "?":
            last += 1
            names[last] = None
        elif sign[0] == "?":
            index = int(sign[1:])
            if index > 0xFFFF:
                continue  # SQLite refuses the statement
            names[index] = sign[1:]
            last = max(last, index)
        elif sign not in by_name:
            last += 1
            names[last] = sign[1:]
            by_name[sign] = last
    return tuple(names.get(index) for index in range(1, last + 1))


def _uncommented(sql: str) -> str:
    return _COMMENTS.sub(lambda found: found[1] or " ", sql)


def _control(sql: str) -> tuple[Kind, str]:
    plain = _uncommented(sql)
    for kind, pattern in _CONTROL:
        found = pattern.fullmatch(plain)
        if found:
            return kind, _unquoted(found[1]).lower() if pattern.groups else ""
    return Kind.OTHER, ""


def _unquoted(name: str) -> str:
    quote = name[0]
    if quote == "[":
        return name[1:-1]
    return name[1:-1].replace(quote * 2, quote) if quote in "'\"`" else name
