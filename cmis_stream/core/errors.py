"""Errors that people read: rule, what came, what was expected.

Codes of rejected input, one published enumeration, never renamed:

    malformed          not JSON, or not the shape of an event
    missing            a required field is absent or empty
    wrong_type         a field has another type than expected
    out_of_range       a number is negative, not finite, or too large; a time outside the years 2000-2200
    invalid            a value outside its vocabulary (platform, currency, mode, operator …)
    too_long           a line, an identifier or a list is longer than allowed
    wrong_org          the event names another org than the request's
    in_future          event time more than 60 s ahead of its arrival
    too_late           event time older than what the windows keep (7 days behind the org's watermark)
    unsupported        understood, but not handled by this version

Codes of rejected commands:

    not_found          no such document, or one that this actor does not see
    stale              another version is there than the one expected
    not_unique         another document has this value
    unknown_ref        it would point at a document that is not there
    restricted         documents that point at it forbid to delete it
    cycle              by following references it would come back to itself
    no_transition      its state cannot become this one, or not by this actor
    key_reused         the idempotency key came before, with another command
    too_many           the org has as many of these as it may have; some time later it may work
"""

from __future__ import annotations

from typing import Any


class CmisError(Exception):
    """An error whose text is a sentence for people; the CLI prints it without a traceback."""


class ConfigError(CmisError):
    """Settings, topics.yaml or a rule file cannot be used as they are."""


class Rejected(CmisError):
    """One piece of input that is refused: what field, why, what came, what was expected."""

    def __init__(self, code: str, field: str, got: Any, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}, got {shown(got)}" if field else f"expected {expected}, got {shown(got)}")
        self.code, self.field, self.got, self.expected = code, field, got, expected

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "field": self.field, "got": shown(self.got), "expected": self.expected}


def shown(value: Any, limit: int = 80) -> str:
    """A value as it can stand in a message: quoted, cut at `limit` characters."""
    text = repr(value) if not isinstance(value, bytes) else repr(value[: limit * 2].decode("utf-8", "replace"))
    return text if len(text) <= limit else text[: limit - 1] + "…"
