"""What the process writes to its log: lines for people, or JSON lines for programs that collect them."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime

import orjson

FORMATS = ("text", "json")
_SECRETS = re.compile(
    r"(cmis_[A-Za-z0-9]+_)[A-Za-z0-9_-]{8,}"  # tokens: what stands before the secret is the token's id
    r"|((?:postgresql|redis|rediss|kafka|https?)(?:\+\w+)?://[^\s:/@]+:)[^\s@]+(?=@)"  # passwords in URLs
    r"|((?:authorization|cookie|set-cookie)['\"]?\s*[:=]\s*['\"]?)[^'\"\r\n]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """
    >>> without_secrets("redis://me:hunter2@host:6379 for cmis_t1a2b3_0123456789abcdef")
    'redis://me:***@host:6379 for cmis_t1a2b3_***'
    >>> without_secrets("headers: {'Authorization': 'Bearer abc'}")
    "headers: {'Authorization': '***'}"
    """
    return _SECRETS.sub(lambda found: f"{found[1] or found[2] or found[3]}***", text)


class TextLines(logging.Formatter):
    """Tracebacks included; nothing that opens anything is written, whoever wrote it into a message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class JsonLines(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message; error where there is a traceback; and what the line is
    about by name, where whoever wrote it says so (`extra={"fields": …}`, numbers and texts)."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        for name, value in getattr(record, "fields", {}).items():
            line.setdefault(name, without_secrets(value) if isinstance(value, str) else value)
        if record.exc_info:
            line["error"] = without_secrets(self.formatException(record.exc_info))
        return orjson.dumps(line).decode()


def formatter(of: str) -> logging.Formatter:
    """of: one of FORMATS."""
    return JsonLines() if of == "json" else TextLines()
