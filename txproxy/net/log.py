"""The log: one line an event, for a person or as JSON."""

import json
import logging
import sys
import time

LOGGER = logging.getLogger("txproxy")


class TextFormatter(logging.Formatter):
    """`2026-11-21 21:31:00.123 INFO reaped database=app user=web …`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on lines of its own."""
        fields: dict[str, object] = getattr(record, "fields", {})
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        words = [f"{stamp}.{int(record.msecs):03d}", record.levelname, record.getMessage()]
        words += [f"{name}={_word(value)}" for name, value in fields.items()]
        line = " ".join(words)
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


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
        return json.dumps(line, default=str)


def _word(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and not any(c in ' "=' for c in text) and text
    return text if plain else json.dumps(text)


def set_up(log_format: str, level: str) -> None:
    """Log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
