"""The console's language: which commands there are, who may give them, how they are read.

`COMMANDS` is the whole of it, and the only place that says who may do what: `Command.needs` is
looked at once, by whoever executes a command. Names and meanings are PgBouncer's where PgBouncer
has the command.

Source: PgBouncer 1.25, admin.c and "Admin console" in usage.md.
"""

import re
from dataclasses import dataclass
from typing import Final

from txproxy.errors import TxproxyError
from txproxy.wire import sql

ANYBODY: Final = 0
STATS: Final = 1
ADMIN: Final = 2

ROLES: Final = ("anybody", "stats_users", "admin_users")


@dataclass(frozen=True)
class Command:
    """`argument` as HELP shows it; in brackets if it may be left out, "" if there is none."""

    name: str
    needs: int
    argument: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.name} {self.argument}".rstrip()


@dataclass(frozen=True)
class Call:
    """A command as it was given. `value` is that of SET; the argument of RESET is all of it."""

    command: Command
    argument: str = ""
    value: str = ""


_SHOWS: Final = (
    ("HELP", "the commands of this console"),
    ("POOLS", "each pool: its clients and server connections by state"),
    ("CLIENTS", "each client"),
    ("SERVERS", "each server connection"),
    ("SOCKETS", "both, with what is held of messages that have not come completely"),
    ("TRANSACTIONS", "who is in a transaction, for how long, and how long idle"),
    ("REAPED", "the last transactions that were rolled back while their clients slept"),
    ("OFFENDERS", "whose code leaves transactions open, who held the longest first"),
    ("SQLITE", "each SQLite file that is open: who waits to write, its readers, WAL and commits"),
    ("DATABASES", "each database: where it leads, its limits, whether it is paused"),
    ("USERS", "each user, with its limits"),
    ("STATS", "totals since the start, and averages, for each database"),
    ("STATS_TOTALS", "the totals"),
    ("STATS_AVERAGES", "the averages, over the last stats_period"),
    ("TOTALS", "STATS over all databases"),
    ("LISTS", "how many there are of what"),
    ("CONFIG", "the settings of [proxy]"),
    ("MEM", "the process's memory"),
    ("STATE", "whether the proxy is active, paused or suspended"),
    ("VERSION", "the proxy's version"),
)

_CHANGES: Final = (
    ("SET", "key = value", "change a setting of [proxy] until the next RELOAD"),
    ("RELOAD", "", "read the configuration again"),
    ("PAUSE", "[db]", "let transactions end, close server connections; answers when that is done"),
    ("SUSPEND", "", "as PAUSE"),
    ("RESUME", "[db]", "go on after PAUSE, SUSPEND or KILL"),
    ("RECONNECT", "[db]", "close each server connection as soon as nobody needs it"),
    ("WAIT_CLOSE", "[db]", "answers when no server connection is left that is to be closed"),
    ("KILL", "[db]", "close clients and server connections at once, and pause"),
    ("KILL_CLIENT", "id", "close one client, by its id in SHOW CLIENTS"),
    ("REAP", "id", "roll back a client's idle transaction; the client lives"),
    ("DISABLE", "db", "refuse new clients"),
    ("ENABLE", "db", "take them again"),
    ("SHUTDOWN", "[WAIT_FOR_CLIENTS|WAIT_FOR_SERVERS]", "end at once, or when all have left"),
)

# What drivers and pools of connections send unasked. It has no effect but on the status.
_DRIVERS: Final = ("BEGIN", "COMMIT", "ROLLBACK", "SET parameter", "SHOW parameter", "RESET")

COMMANDS: Final[dict[str, Command]] = {
    command.name: command
    for command in (
        *(Command(f"SHOW {name}", STATS, "", meaning) for name, meaning in _SHOWS),
        *(Command(name, ADMIN, argument, meaning) for name, argument, meaning in _CHANGES),
        *(Command(name, ANYBODY, "", "") for name in _DRIVERS),
    )
}
"""Every command by its name. Those without a meaning are for drivers, and not in HELP."""

PARAMETERS: Final = {
    "application_name": "",
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "extra_float_digits": "1",
    "intervalstyle": "postgres",
    "standard_conforming_strings": "on",
    "timezone": "UTC",
    "transaction_isolation": "read committed",
}
"""Parameters of a session that drivers ask for or set, by lower-case name, with what they are."""

_TRANSACTION: Final = {
    sql.BEGIN: "BEGIN",
    sql.COMMIT: "COMMIT",
    sql.ROLLBACK: "ROLLBACK",
}
_RESETS: Final = frozenset(
    (
        "close all",
        "deallocate all",
        "discard all",
        "reset all",
        "reset role",
        "select pg_advisory_unlock_all()",
        "unlisten *",
    )
)
_LONGEST: Final = 200  # letters of a command that is repeated in an error

_COMMENT: Final = r"--[^\r\n]*|/\*.*?\*/"
_TOKEN: Final = re.compile(
    rf"""(?:\s|{_COMMENT})+
    |'(?P<string>(?:[^']|'')*)'
    |"(?P<name>(?:[^"]|"")*)"
    |(?P<sign>[;=])
    |(?P<word>(?:(?!--|/\*)[^\s;='"])+)""",
    re.DOTALL | re.VERBOSE,
)


_Word = tuple[str, bool]
"""A word without its quotes, and whether it had some."""

_SEMICOLON: Final = (";", False)


def _words(text: str) -> list[_Word] | None:
    """The words of a text without its comments and last semicolons; None if it cannot be read."""
    found: list[_Word] = []
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        position = token.end()
        if token["string"] is not None:
            found.append((token["string"].replace("''", "'"), True))
        elif token["name"] is not None:
            found.append((token["name"].replace('""', '"'), True))
        elif token.lastgroup is not None:
            found.append((token[token.lastgroup], False))
    while found and found[-1] == _SEMICOLON:
        found.pop()
    return found


def parse(text: str) -> Call | None:
    """What a text asks for; None if there is nothing in it. Raises TxproxyError 42601.

    Key words in any case. Names of databases as they are, in double quotes if they are no words.
    """
    words = _words(text)
    if words == []:
        return None
    call = _call(words, text) if words is not None else None
    if call is None:
        raise TxproxyError(
            f"invalid command '{text.strip()[:_LONGEST]}', use SHOW HELP;", sqlstate="42601"
        )
    return call


def _call(words: list[_Word], text: str) -> Call | None:
    said = " ".join(word for word, _ in words).lower()
    if all(_is_reset(statement) for statement in said.split(" ; ")):
        return Call(COMMANDS["RESET"], said)
    first, quoted = words[0]
    verb = first.upper()
    if quoted or _SEMICOLON in words:
        return None
    transaction = _TRANSACTION.get(sql.judge(text.encode("utf-8", "surrogateescape")).kind)
    if transaction is not None:
        return Call(COMMANDS[transaction])
    if verb == "SET":
        return _set(words[1:])
    if verb == "SHOW":
        return _show(words[1:])
    command = COMMANDS.get(verb)
    if command is None or command.needs == ANYBODY:
        return None
    return _with_argument(command, [word for word, _ in words[1:]])


def _is_reset(statement: str) -> bool:
    """Whether drivers reset a connection by this."""
    return statement in _RESETS or (statement[:6] == "reset " and statement[6:] in PARAMETERS)


def _with_argument(command: Command, arguments: list[str]) -> Call | None:
    needed = command.argument
    if len(arguments) > 1 or (arguments and not needed):
        return None
    if not arguments:
        return Call(command) if not needed or needed.startswith("[") else None
    argument = arguments[0]
    if "|" in needed:
        argument = argument.upper()
        if argument not in needed.strip("[]").split("|"):
            return None
    elif needed == "id" and not argument.isdecimal():
        return None
    return Call(command, argument)


def _set(words: list[_Word]) -> Call | None:
    if words and not words[0][1] and words[0][0].upper() == "SESSION":
        words = words[1:]
    if len(words) < 3:
        return None
    key = words[0][0].lower()
    sign, quoted = words[1]
    if quoted or sign.upper() not in ("=", "TO"):
        return None
    value = " ".join(word for word, _ in words[2:])
    name = "SET parameter" if key in PARAMETERS else "SET"
    return Call(COMMANDS[name], key, value)


def _show(words: list[_Word]) -> Call | None:
    what = " ".join(word for word, _ in words)
    command = COMMANDS.get(f"SHOW {what.upper()}")
    if command is not None and command.needs != ANYBODY:
        return Call(command)
    if what.lower() in PARAMETERS:
        return Call(COMMANDS["SHOW parameter"], what.lower())
    return None
