"""What can go wrong, as exceptions.

    TxproxyError             XX000  anything below
    ├── ConfigError          F0000  the configuration is wrong: file, line, key, problem
    ├── ProtocolError        08P01  the peer broke the protocol
    ├── LoginError           28000  a client may not in, or we may not into a server
    ├── NoSuchDatabaseError  3D000  no [databases.NAME], and no "*"
    └── ConnectError         08001  a backend could not be reached

Each class carries the SQLSTATE that a client is told; an instance may carry a more precise one.
"""


class TxproxyError(Exception):
    """What happened, what a person can do about it (`hint`), and its SQLSTATE."""

    sqlstate: str = "XX000"

    def __init__(self, message: str, *, hint: str = "", sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if sqlstate is not None:
            self.sqlstate = sqlstate


class ConfigError(TxproxyError):
    """The configuration is wrong; as text `file:line: key: problem`, without what is unknown.

    `line` counts from 1 and is 0 where it is not known; `key` is dotted: `databases.app.port`.
    """

    sqlstate = "F0000"

    def __init__(self, problem: str, *, file: str = "", line: int = 0, key: str = "") -> None:
        place = f"{file}:{line}" if file and line else file
        super().__init__(": ".join(part for part in (place, key, problem) if part))
        self.file = file
        self.line = line
        self.key = key
        self.problem = problem


class ProtocolError(TxproxyError):
    """The peer sent what the protocol does not allow."""

    sqlstate = "08P01"


class LoginError(TxproxyError):
    """A login was refused: a client's by us, or ours by a server."""

    sqlstate = "28000"


class NoSuchDatabaseError(TxproxyError):
    """The client asked for a database that is not configured."""

    sqlstate = "3D000"


class ConnectError(TxproxyError):
    """A backend could not be reached."""

    sqlstate = "08001"


def too_many(setting: str) -> TxproxyError:
    """What a client is told that is one too many for this limit."""
    return TxproxyError(
        "sorry, too many clients already",
        hint=f"{setting} is the limit, in the proxy's configuration.",
        sqlstate="53300",
    )
