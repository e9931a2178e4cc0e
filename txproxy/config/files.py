"""Reading files, and whether others can read them too: those must hold no plain password."""

import os
from dataclasses import dataclass
from pathlib import Path

from txproxy.config.values import Secret, secret
from txproxy.errors import ConfigError


@dataclass(frozen=True, slots=True, repr=False)
class File:
    """A file's text. `private`: its group may read it at most (so Debian installs userlist.txt),
    and others nothing.
    """

    path: str
    text: str
    private: bool


def read(path: str) -> File:
    """Raises ConfigError: it cannot be read, or is not UTF-8."""
    try:
        with Path(path).open("rb") as file:
            private = os.fstat(file.fileno()).st_mode & 0o037 == 0
            raw = file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = getattr(error, "strerror", None) or "cannot be read"
        raise ConfigError(problem, file=path) from error
    try:
        return File(path, raw.decode(), private)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
    # outside of the except: its exception holds the bytes, which may be passwords
    raise ConfigError("is not UTF-8", file=path, line=line)


def password_in(path: str) -> Secret:
    """The password that is all that a file holds, but for a newline. Raises ValueError."""
    try:
        file = read(path)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    try:
        found = secret(file.text.removesuffix("\n").removesuffix("\r"))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return refuse_plain(found, file)


def password_in_environment(name: str) -> Secret:
    """The password in an environment variable. Raises ValueError."""
    if name not in os.environ:
        raise ValueError(f"there is no environment variable {name}")
    try:
        return secret(os.environ[name])
    except ValueError as error:
        raise ValueError(f"the environment variable {name} {error}") from error


def refuse_plain(found: Secret, file: File) -> Secret:
    """The secret, unless it is plain in a file that others can read: raises ValueError."""
    if found.kind == "plain" and not file.private:
        raise ValueError(
            f"a plain password is in {file.path}, which others can read: chmod 600, or write a"
            " SCRAM verifier"
        )
    return found
