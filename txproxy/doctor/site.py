"""Facts about a Django site: `python -m txproxy.doctor.site SETTINGS` prints them as JSON.

A process of its own, for settings are code of the site's, and nothing else here imports Django. It
makes no connection to SQLite; to PostgreSQL it connects as the site does, to ask who answers. No
password is among what it prints.

Whether code closes connections is told by the names that its bytecode uses: no more than a hint.
"""

import contextlib
import importlib
import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, Final

_OPTIONS: Final = ("timeout", "transaction_mode", "init_command")
_KEYS: Final = (
    "ENGINE", "HOST", "PORT", "CONN_MAX_AGE", "CONN_HEALTH_CHECKS", "ATOMIC_REQUESTS", "AUTOCOMMIT"
)  # fmt: skip
_CLOSES: Final = frozenset(("close_old_connections", "close_if_unusable_or_obsolete"))
_CLOSES_THEM: Final = frozenset(("close", "close_all"))
_CONNECTIONS: Final = frozenset(("connection", "connections"))
_DEPTH: Final = 5  # of functions in functions
_ASKED: Final = ("txproxy.idle_transaction_timeout", "idle_in_transaction_session_timeout")


def facts() -> dict[str, Any]:
    """What there is to know of the site whose settings DJANGO_SETTINGS_MODULE names."""
    import django
    from django.conf import settings
    from django.db import connections

    django.setup()
    return {
        "django": django.get_version(),
        "directory": os.getcwd(),  # noqa: PTH109
        "shown": [str(root) for root in (settings.MEDIA_ROOT, settings.STATIC_ROOT) if root],
        "databases": {
            alias: _database(alias, dict(said), connections)
            for alias, said in connections.settings.items()
        },
        "middleware": [_middleware(name) for name in settings.MIDDLEWARE],
        "urls": _urls(getattr(settings, "ROOT_URLCONF", None)),
        # Last: what registers receivers has been imported by now.
        "receivers": list(_receivers()),
    }


def _database(alias: str, said: dict[str, Any], connections: Any) -> dict[str, Any]:
    options = said.get("OPTIONS") or {}
    found: dict[str, Any] = {key: _plain(said.get(key)) for key in _KEYS}
    found["NAME"] = os.fspath(said["NAME"]) if said.get("NAME") else ""
    found["OPTIONS"] = {key: _plain(options[key]) for key in _OPTIONS if key in options}
    if "postgresql" in str(said.get("ENGINE")):
        found["server"] = _asked(connections[alias])
    return found


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _asked(connection: Any) -> dict[str, str]:
    """What the server says to SHOW, or why it cannot be reached."""
    try:
        connection.ensure_connection()
    except Exception as error:  # noqa: BLE001 whatever the driver raises
        return {"error": str(error).strip().partition("\n")[0]}
    found: dict[str, str] = {}
    for name in _ASKED:
        # A server that is not txproxy knows no setting of that name.
        with contextlib.suppress(Exception), connection.cursor() as cursor:
            cursor.execute(f"SHOW {name}")
            found[name] = str(cursor.fetchone()[0])
    connection.close()
    return found


# Code that closes connections.


def _middleware(name: str) -> dict[str, Any]:
    try:
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # noqa: BLE001 it is code of the site's
        return {"name": name, "error": f"{type(error).__name__}: {error}"}
    return {"name": name, "closes": _closing(found), "error": ""}


def _urls(name: str | None) -> str:
    """Import the site's views, as the site does with the first request; the error, if any."""
    if name:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 it is code of the site's
            return f"{type(error).__name__}: {error}"
    return ""


def _receivers() -> Iterator[dict[str, Any]]:
    from django.core import signals
    from django.db.backends.signals import connection_created

    every = {
        "request_started": signals.request_started,
        "request_finished": signals.request_finished,
        "got_request_exception": signals.got_request_exception,
        "connection_created": connection_created,
    }
    for name, signal in every.items():
        for registered in signal.receivers:
            receiver = registered[1]  # behind its key; what follows differs between versions
            if callable(receiver) and type(receiver).__name__ in _REFERENCES:
                receiver = receiver()
            if receiver is not None:
                yield _receiver(name, receiver)


_REFERENCES: Final = frozenset(("ReferenceType", "weakref", "WeakMethod"))


def _receiver(signal: str, receiver: Any) -> dict[str, Any]:
    module = getattr(receiver, "__module__", "") or type(receiver).__module__
    name = getattr(receiver, "__qualname__", "") or type(receiver).__qualname__
    pragmas = [
        said
        for code in _codes(receiver)
        for said in code.co_consts
        if isinstance(said, str) and said.strip().lower().startswith("pragma")
    ]
    return {
        "signal": signal,
        "name": f"{module}.{name}",
        "django": module.partition(".")[0] == "django",
        "closes": _closing(receiver),
        "pragmas": pragmas,
    }


def _closing(found: Any) -> str:
    """Where code seems to close connections: `file:line`, or ""."""
    for code in _codes(found):
        names = {*code.co_names, *code.co_freevars, *code.co_varnames}
        if names & _CLOSES or (names & _CLOSES_THEM and names & _CONNECTIONS):
            return f"{code.co_filename}:{code.co_firstlineno}"
    return ""


def _codes(found: Any) -> Iterator[types.CodeType]:
    """The code of a function, a method, or a class with those that it inherits from, but not
    Django's.
    """
    if isinstance(found, type):
        for each in found.__mro__:
            if each.__module__.partition(".")[0] not in {"builtins", "django"}:
                for member in vars(each).values():
                    yield from _codes(getattr(member, "__func__", member))
        return
    code = getattr(getattr(found, "__func__", found), "__code__", None)
    if code is None and not isinstance(found, types.BuiltinFunctionType):
        code = getattr(type(found).__call__, "__code__", None) if callable(found) else None
    if isinstance(code, types.CodeType):
        yield from _nested(code, _DEPTH)


def _nested(code: types.CodeType, depth: int) -> Iterator[types.CodeType]:
    yield code
    if depth:
        for each in code.co_consts:
            if isinstance(each, types.CodeType):
                yield from _nested(each, depth - 1)


def main() -> int:
    """Print the facts, or why there are none. What the site prints goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            said = facts()
        except BaseException as error:  # noqa: BLE001 a site may even sys.exit()
            said = {"error": f"{type(error).__name__}: {error}"}
        json.dump(said, out)
    return 0


if __name__ == "__main__":
    # As manage.py does it: what the site is made of is found from where we are.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    os.environ["DJANGO_SETTINGS_MODULE"] = sys.argv[1]
    sys.exit(main())
