"""Findings about a Django site, from the facts that `site` prints."""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from txproxy.doctor.finding import Finding, Section, ok, printable, problem, warning
from txproxy.doctor.sqlite import examine
from txproxy.errors import TxproxyError

_TAKES: Final = 120.0  # seconds at most for a site to start
_STOCK: Final = "django.db.backends.sqlite3"
_OURS: Final = "txproxy.django.sqlite3"
_SPATIAL: Final = "django.contrib.gis.db.backends.spatialite"
_SHARED: Final = ("/tmp/", "/var/tmp/", "/dev/shm/")  # noqa: S108 places to warn about
_DEFAULT_TIMEOUT: Final = 5.0  # seconds, of the sqlite3 module
_HOUR: Final = 3600.0
_PRAGMA: Final = re.compile(r"pragma\s+(?:\w+\.)?(\w+)\s*[=(]\s*'?\"?(\w+)", re.IGNORECASE)
_UNSAFE: Final = {
    ("journal_mode", "off"): "a crash in a transaction corrupts the file",
    ("journal_mode", "memory"): "a crash in a transaction corrupts the file",
    ("synchronous", "off"): "a power failure can corrupt the file",
    ("synchronous", "0"): "a power failure can corrupt the file",
    ("locking_mode", "exclusive"): "no other connection gets in, as long as one is open",
    ("writable_schema", "on"): "a mistake corrupts the file",
    ("writable_schema", "1"): "a mistake corrupts the file",
    ("foreign_keys", "off"): "rows can refer to what is not there",
    ("foreign_keys", "0"): "rows can refer to what is not there",
}

Facts = Mapping[str, Any]
Findings = Iterator[Finding]


def examine_site(settings: str) -> Iterator[Section]:
    """Start a site and judge it, then each SQLite file of it. Raises TxproxyError."""
    facts = site_facts(settings)
    for alias, database in facts["databases"].items():
        yield Section(f"DATABASES[{printable(alias)!r}]", tuple(judge_database(database, facts)))
        path = sqlite_file(database, facts["directory"])
        if path:
            yield examine(path)
    title = f"{printable(settings)}, Django {facts['django']}"
    yield Section(title, tuple(judge_code(facts)))


def site_facts(settings: str) -> dict[str, Any]:
    """What `site` prints of the site in the working directory. Raises TxproxyError."""
    command = [sys.executable, "-m", "txproxy.doctor.site", settings]
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            timeout=_TAKES,
        )
        facts: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise TxproxyError(f"{settings} has not been read within {_TAKES:.0f} s") from error
    except ValueError as error:
        raise TxproxyError(f"{settings} could not be read: its process has said nothing") from error
    if "error" in facts:
        raise TxproxyError(
            f"{settings} cannot be used: {printable(facts['error'])}",
            hint="Run this where manage.py is, by the Python of the site, which needs txproxy too.",
        )
    return facts


def is_sqlite(database: Facts) -> bool:
    """Whether it is a file that Django opens itself."""
    return str(database["ENGINE"]) in {_STOCK, _SPATIAL}


def sqlite_file(database: Facts, directory: str) -> str:
    """The file that is to be looked at, "" if there is none."""
    name = str(database["NAME"])
    if not is_sqlite(database) or _in_memory(name):
        return ""
    if name.startswith("file:"):
        return ""
    return os.path.join(directory, name)  # noqa: PTH118 it keeps an absolute name as it is


def _in_memory(name: str) -> bool:
    return name == ":memory:" or "mode=memory" in name


# A database.


def judge_database(database: Facts, facts: Facts) -> Findings:
    """What is to be said about an entry of DATABASES."""
    engine = str(database["ENGINE"])
    yield ok("ENGINE", printable(engine))
    if not database["AUTOCOMMIT"]:
        yield warning(
            "AUTOCOMMIT",
            "off: each statement begins a transaction that somebody has to end, reading ones too",
            "Set it to True, and use atomic().",
        )
    if is_sqlite(database):
        yield from _sqlite(database, facts)
    elif engine == _OURS:
        yield from _endpoint(database)
    elif "postgresql" in engine or "postgis" in engine:
        yield from _postgres(database)


def _sqlite(database: Facts, facts: Facts) -> Findings:
    yield from _name(database, facts)
    yield from _age(database)
    yield from _timeout(database["OPTIONS"].get("timeout"))
    yield from _transactions(database)
    said = str(database["OPTIONS"].get("init_command", ""))
    yield from _pragmas("init_command", [part.strip() for part in said.split(";")])


def _name(database: Facts, facts: Facts) -> Findings:
    name = str(database["NAME"])
    if _in_memory(name):
        yield warning(
            "NAME",
            "in memory: each connection has a database of its own",
            "Name a file, unless this is for tests.",
        )
        return
    if name.startswith("file:"):
        yield ok("NAME", f"a URI, whose file is not looked at: {printable(name)}")
        return
    if not os.path.isabs(name):  # noqa: PTH117
        yield problem(
            "NAME",
            f"relative: {printable(name)} is another file in each working directory",
            'Write BASE_DIR / "…": a server, cron and a shell start in different directories.',
        )
        return
    path = os.path.realpath(name)
    shown = [root for root in facts["shown"] if _is_below(path, os.path.realpath(root))]
    if shown:
        yield problem(
            "NAME",
            f"in {printable(shown[0])}, whose files are served to everybody",
            "Move the database out of MEDIA_ROOT and STATIC_ROOT.",
        )
    elif path.startswith(_SHARED):
        yield warning(
            "NAME",
            f"{printable(path)} is in a directory that is shared, and emptied now and then",
            "Move it to a directory of the site's own.",
        )
    else:
        yield ok("NAME", printable(path))


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _age(database: Facts) -> Findings:
    age = database["CONN_MAX_AGE"]
    if age == 0:
        yield ok("CONN_MAX_AGE", "0: a connection for each request")
        return
    kept = "for ever" if age is None else f"for {age} s"
    yield warning(
        "CONN_MAX_AGE",
        f"{age}: a thread keeps its connection {kept}; if something closes it unseen, each request"
        " until then fails with Cannot operate on a closed database",
        f'Set it to 0, or ENGINE to "{_OURS}": Django takes each SQLite connection for usable,'
        " whatever CONN_HEALTH_CHECKS says.",
    )


def _timeout(said: Any) -> Findings:
    if said is None:
        yield ok("timeout", f"not set: {_DEFAULT_TIMEOUT:.0f} s, the default of the sqlite3 module")
    elif not isinstance(said, (int, float)):
        yield problem("timeout", f"not a number: {printable(str(said))}", "Set it to seconds.")
    elif said > _HOUR:
        yield warning(
            "timeout",
            f"{said:g} s: a request may wait that long for the file's lock",
            "Set it in seconds, not in milliseconds.",
        )
    elif said < _DEFAULT_TIMEOUT:
        yield warning(
            "timeout",
            f"{said:g} s: whoever waits longer for another writer gets database is locked",
            f"Set it to {_DEFAULT_TIMEOUT:.0f} s or more.",
        )
    else:
        yield ok("timeout", f"{said:g} s")


def _transactions(database: Facts) -> Findings:
    mode = str(database["OPTIONS"].get("transaction_mode") or "DEFERRED").upper()
    each = database["ATOMIC_REQUESTS"]
    if mode != "DEFERRED":
        yield ok(
            "transactions", f"transaction_mode is {mode}: they queue for the lock at their BEGIN"
        )
        if each:
            yield warning(
                "transactions",
                "ATOMIC_REQUESTS: requests that only read take the lock too, one after the other",
                "Turn ATOMIC_REQUESTS off, and use atomic() where something is written.",
            )
        return
    often = "with ATOMIC_REQUESTS each request is one" if each else "as atomic() makes them"
    yield warning(
        "transactions",
        "DEFERRED: one that reads and then writes fails at once with database is locked if another"
        f" has written meanwhile, whatever the timeout; {often}",
        'Set OPTIONS["transaction_mode"] to "IMMEDIATE" (Django 5.1 and newer), or ENGINE to'
        f' "{_OURS}".',
    )


def _pragmas(about: str, said: list[str]) -> Findings:
    for command in filter(None, said):
        bad = [
            why
            for name, value in _PRAGMA.findall(command)
            if (why := _UNSAFE.get((name.lower(), value.lower())))
        ]
        if bad:
            yield problem(about, f"{printable(command)}: {bad[0]}", "Leave that command out.")
        else:
            yield ok(about, printable(command))


def _endpoint(database: Facts) -> Findings:
    directory, port = str(database["HOST"] or ""), str(database["PORT"] or "5432")
    path = Path(directory, f".s.PGSQL.{port}")
    try:
        there = stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        there = False
    if there:
        yield ok("HOST", f"the socket {printable(str(path))}")
    else:
        yield problem(
            "HOST",
            f"no socket {printable(str(path))} that can be seen",
            "Start `txproxy serve`, and set HOST to the directory of its unix listener.",
        )


def _postgres(database: Facts) -> Findings:
    server, age = database.get("server", {}), database["CONN_MAX_AGE"]
    where = f"{database['HOST'] or 'a unix socket'}:{database['PORT'] or 5432}"
    proxied = "txproxy.idle_transaction_timeout" in server
    if "error" in server:
        yield problem(
            "HOST", f"{where}: {printable(server['error'])}", "Start it, or mend HOST and PORT."
        )
    elif proxied:
        timeout = server["txproxy.idle_transaction_timeout"]
        yield ok("HOST", f"{where} is txproxy; transactions may be idle for {timeout}")
    else:
        yield from _direct(where, server, age)
    if age != 0 and not database["CONN_HEALTH_CHECKS"]:
        yield warning(
            "CONN_HEALTH_CHECKS",
            "off: with CONN_MAX_AGE the first request behind a restart of the server fails",
            "Set it to True.",
        )
    if proxied and age == 0:
        yield ok("CONN_MAX_AGE", "0: a login for each request; behind txproxy 600 costs nothing")
    if database["ATOMIC_REQUESTS"] and not proxied and "error" not in server:
        yield warning(
            "ATOMIC_REQUESTS",
            "on: each request holds its server connection and its locks until its response is made",
            "Put txproxy in front of the server, or use atomic() where something is written.",
        )


def _direct(where: str, server: Facts, age: Any) -> Findings:
    yield ok("HOST", f"{where} is a server itself, or another pooler: not txproxy")
    if server.get("idle_in_transaction_session_timeout") == "0":
        yield warning(
            "HOST",
            "idle_in_transaction_session_timeout is 0: a forgotten transaction holds its locks"
            " until its process ends",
            "Set it on the server, or let txproxy roll back what is idle.",
        )
    if age != 0:
        yield warning(
            "CONN_MAX_AGE",
            f"{age}: each thread of each worker holds a server connection, also while it is idle",
            "Compare the server's max_connections with all threads together, or set HOST to"
            " txproxy.",
        )


# Code.


def judge_code(facts: Facts) -> Findings:
    """What is to be said about middleware and signal handlers."""
    if facts["urls"]:
        yield problem(
            "urls", f"ROOT_URLCONF fails: {printable(facts['urls'])}", "Mend what it imports."
        )
    closing = 0
    for each in facts["middleware"]:
        if each["error"]:
            yield problem(
                "middleware",
                f"{printable(each['name'])} cannot be imported: {printable(each['error'])}",
                "Mend it, or take it out of MIDDLEWARE.",
            )
        elif each["closes"]:
            closing += 1
            yield _closes("middleware", each)
    for each in facts["receivers"]:
        if each["django"]:
            continue
        if each["closes"]:
            closing += 1
            yield _closes(each["signal"], each)
        else:
            yield ok(each["signal"], printable(each["name"]))
        yield from _pragmas(each["signal"], each["pragmas"])
    if not closing:
        yield ok(
            "closing", "no middleware or signal handler but Django's names closing connections"
        )


def _closes(about: str, each: Facts) -> Finding:
    return warning(
        about,
        f"{printable(each['name'])} seems to close connections ({printable(each['closes'])})",
        "Let Django close them at the end of a request: what comes later in it, a streaming"
        " response too, finds a closed database; `txproxy doctor --audit` says if it happens.",
    )
