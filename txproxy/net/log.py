"""The log: one line an event, for a person or as JSON.

Values come from clients: whatever is in them, they can neither begin a line nor steer a terminal.
"""

import asyncio
import json
import logging
import math
import sys
import time
from typing import Any, Final

LOGGER = logging.getLogger("txproxy")

_INDENT: Final = "    "


class TextFormatter(logging.Formatter):
    """`2026-11-21 21:31:00.123 INFO reaped database=app user=web …`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on lines of its own, which are indented."""
        fields: dict[str, object] = getattr(record, "fields", {})
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        words = [f"{stamp}.{int(record.msecs):03d}", record.levelname, record.getMessage()]
        words += [f"{name}={_word(value)}" for name, value in fields.items()]
        lines = [" ".join(words)]
        if record.exc_info:
            traceback = self.formatException(record.exc_info).splitlines()
            lines += [_INDENT + _shown(line) for line in traceback]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since 1970), level, event, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_plain(line), allow_nan=False)


def _word(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and not any(c in ' "=' for c in text) and text
    return text if plain else json.dumps(text)


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _plain(value: object) -> object:
    """What every reader of JSON takes: no halves of surrogate pairs, no infinity, known types."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, dict):
        return {str(_plain(str(key))): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value).encode("utf-8", "backslashreplace").decode()


def unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: what nobody has caught is an event as any other."""
    fields = {"where": context.get("message")}
    LOGGER.error("bug", exc_info=context.get("exception"), extra={"fields": fields})


def set_up(log_format: str, level: str) -> None:
    """Log to stderr."""
    # What logging looks up for each line and no line of ours says.
    logging.logThreads = False
    logging.logMultiprocessing = False
    logging.logProcesses = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
