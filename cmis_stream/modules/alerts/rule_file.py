"""Alert rules from a JSON file, re-read when it changes: a list of rules in either form of `core/rules.py`.

Bad rules are named by place and field and left out; the good ones run. A file that is not JSON changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.core.rules import parse_rule


@dataclass(frozen=True, slots=True)
class RuleFile:
    """rules: as given, by org; errors: sentences with place, field, what came and what was expected."""

    rules: dict[str, list[dict[str, Any]]]
    errors: list[str]


def read_rules(path: Path, *, evaluate: str = "live") -> RuleFile:
    """Raises ConfigError when the file cannot be read or is no list of rules."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if isinstance(raw, dict) and isinstance(raw.get("rules"), list):
        raw = raw["rules"]
    if not isinstance(raw, list):
        raise ConfigError(f"{path}: expected a list of rules, got {type(raw).__name__}")
    rules: dict[str, list[dict[str, Any]]] = {}
    errors: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for place, item in enumerate(raw):
        try:
            rule = parse_rule(item, evaluate=evaluate)
            first = seen.setdefault((rule.org, rule.id), place)
            if first != place:
                raise Rejected("invalid", "id", rule.id, f"an id of its own in the org (rules[{first}] has it)")
        except Rejected as error:
            errors.append(f"{path.name}: rules[{place}]{_named(item)}: {error}")
        else:
            if item.get("enabled", True):
                rules.setdefault(rule.org, []).append(item)
            else:
                rules.setdefault(rule.org, [])
    return RuleFile(rules, errors)


def _named(item: object) -> str:
    return f" ({item['id']})" if isinstance(item, dict) and isinstance(item.get("id"), str) else ""


class RuleFileWatch:
    """Tells when the file has changed; polled, since editors replace files in ways that no watcher sees alike."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None

    def changed(self) -> bool:
        try:
            status = self.path.stat()
            now = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            now = (0, 0, 0)
        before, self._seen = self._seen, now
        return before != now


def differences(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> Iterator[tuple[str, list[Any]]]:
    """The orgs whose rules differ, with their rules now; an org that is gone has none."""
    for org in sorted({*before, *after}):
        if before.get(org, []) != after.get(org, []):
            yield org, after.get(org, [])
