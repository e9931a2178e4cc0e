"""What the server said at the start, next to what is here; a difference is logged once.

Two libraries are two SQLites: they round, and print numbers, in their own ways.
"""

import logging
import sqlite3
from collections.abc import Mapping

from txproxy import __version__

log = logging.getLogger("txproxy.sqlite")

_logged: set[str] = set()


def compare_versions(said: Mapping[str, str]) -> None:
    """Log it if the server is of another version, or has another SQLite."""
    server = said.get("txproxy.version", __version__)
    if server != __version__:
        log_once(f"the endpoint is txproxy {server}, this is {__version__}")
    server = said.get("txproxy.sqlite_version", sqlite3.sqlite_version)
    if server != sqlite3.sqlite_version:
        here = sqlite3.sqlite_version
        log_once(f"the endpoint has SQLite {server}, this Python {here}", logging.INFO)


def log_once(text: str, level: int = logging.WARNING) -> None:
    """Log it, unless this process has."""
    if text not in _logged:
        _logged.add(text)
        log.log(level, "%s", text)
