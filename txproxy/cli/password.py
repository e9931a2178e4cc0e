"""`txproxy password`: what to write into proxy.toml in place of a password."""

import getpass
import json
import re
import sys

from txproxy.errors import TxproxyError
from txproxy.wire.scram import Verifier


def password(user: str) -> int:
    """Read a password, twice from a terminal, else one line of stdin; print its verifier.

    Nothing but the verifier goes to stdout. Returns the exit code, 0; raises TxproxyError if there
    is no password.
    """
    secret = _ask() if sys.stdin.isatty() else _read()
    if not secret:
        raise TxproxyError("no password was given")
    print(Verifier.of(secret), flush=True)
    print(_where(user), file=sys.stderr)
    return 0


def _ask() -> str:
    try:
        secret = getpass.getpass("Password: ")
        again = getpass.getpass("Again: ")
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return ""
    if secret != again:
        raise TxproxyError("the two passwords are not the same")
    return secret


def _read() -> str:
    # As bytes: a password need not be UTF-8, and whatever it is, it is what the server hashes.
    line = sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r")
    return line.decode("utf-8", "surrogateescape")


def _where(user: str) -> str:
    name = user if re.fullmatch(r"[A-Za-z0-9_-]+", user) else json.dumps(user, ensure_ascii=False)
    role = '"' + user.replace('"', '""') + '"'
    return (
        f'In proxy.toml:\n\n    [users.{name}]\n    password = "SCRAM-SHA-256$…"\n\n'
        "For the proxy to log in by it too, the server must have the very same one:\n\n"
        f"    ALTER ROLE {role} PASSWORD 'SCRAM-SHA-256$…'"
    )
