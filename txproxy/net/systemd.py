"""What systemd is told: ready, reloading, stopping, alive. Without systemd nothing happens.

A datagram of NAME=value lines to the socket that NOTIFY_SOCKET names: sd_notify(3).
"""

import os
import socket
import time
from typing import Final

from txproxy.net.log import LOGGER

_PATIENCE: Final = (
    1.0  # seconds, should the socket's queue be full when something new is to be said
)


def ready(status: str = "ready") -> None:
    """It listens, or the reload is over; `status` is what `systemctl status` shows."""
    _notify(f"READY=1\nSTATUS={_line(status)}", _PATIENCE)


def reloading() -> None:
    """A reload begins; ready() must follow however it ends."""
    # Type=notify-reload takes it for the answer to its SIGHUP only if it says when it was.
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _notify(f"RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reloading", _PATIENCE)


def stopping(status: str = "stopping") -> None:
    """The end has begun."""
    _notify(f"STOPPING=1\nSTATUS={_line(status)}", _PATIENCE)


class Watchdog:
    """Says that this process is alive, twice as often as it must; never if nobody wants to know."""

    def __init__(self) -> None:
        self._every = _watchdog_seconds() / 2
        self._due_at = 0.0

    def alive(self, now: float) -> None:
        """Call it often; `now` in seconds, of whichever clock."""
        if self._every and now >= self._due_at:
            self._due_at = now + self._every
            # Never waited for: clients would wait too.
            _notify("WATCHDOG=1", 0.0)


def _notify(text: str, patience: float) -> None:
    """Send it within `patience` seconds. What cannot be sent is logged: it goes on without."""
    address = _address(os.environ.get("NOTIFY_SOCKET", ""))
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patience)
            sock.sendto(text.encode("utf-8", "backslashreplace"), address)
    except OSError as error:
        fields = {"said": text.partition("\n")[0], "why": error.strerror or str(error)}
        LOGGER.warning("cannot notify systemd", extra={"fields": fields})


def _address(name: str) -> str:
    """A path, or an abstract name, which begins with @ in the environment and with NUL in calls."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _watchdog_seconds() -> float:
    """Within which it must say that it lives; 0: there is no watchdog, or not for this process."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6


def _line(text: str) -> str:
    return " ".join(text.split())
