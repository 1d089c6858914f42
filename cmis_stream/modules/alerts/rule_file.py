"""Alert rules from a JSON file, re-read when it changes: a list of rules in either form of `core/rules.py`.

Bad rules are named by place and field and left out; the good ones run. A file that is not JSON changes nothing.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.core.ids import fact_id
from cmis_stream.core.rules import Comparison, Condition, Rule, parse_rule
from cmis_stream.store.decisions import Actor, Command, Document
from cmis_stream.store.documents import Documents, Item, Outcome
from cmis_stream.store.kinds import Kind, Kinds
from cmis_stream.store.listing import MOST

from ..applying import Change, Create, Existing, Operation, Remove, Wanted, mistakes, place_of, plan
from ..applying_steps import carry_out
from .manifest import ALERT_RULE, MANIFEST

TRIES: Final = 5
"""When somebody else writes the same rules meanwhile, as another process does with the same file."""
_MEANWHILE: Final = ("stale", "not_unique", "not_found")


@dataclass(frozen=True, slots=True)
class RuleFile:
    """rules: as given, by org; errors: sentences with place, field, what came and what was expected."""

    rules: dict[str, list[dict[str, Any]]]
    errors: list[str]


@dataclass(frozen=True, slots=True)
class RuleDocuments:
    """wanted: by org. errors: as of RuleFile. kept: (kind, key) by org, of rules that cannot be read but are named in the file:
    what is in force of them stays until the file says what it is to be.
    """

    wanted: dict[str, list[Wanted]] = field(default_factory=dict)
    kept: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def read_rules(path: Path, *, evaluate: str = "live") -> RuleFile:
    """Raises ConfigError when the file cannot be read or is no list of rules."""
    rules: dict[str, list[dict[str, Any]]] = {}
    errors: list[str] = []
    for place, item, rule in _parsed(read_items(path), evaluate):
        if isinstance(rule, Rejected):
            errors.append(_told(path.name, place, item, rule))
        elif item.get("enabled", True):
            rules.setdefault(rule.org, []).append(item)
        else:
            rules.setdefault(rule.org, [])
    return RuleFile(rules, errors)


def read_items(path: Path) -> list[Any]:
    """The rules of a file, unchecked. ConfigError when it cannot be read or is no list of rules."""
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
    return raw


def rule_documents(
    rules: Sequence[Any], *, evaluate: str = "live", file: str = "rules", kind: Kind = ALERT_RULE
) -> RuleDocuments:
    """Rules in either form as documents: ids are keys, `when` is a tree. evaluate: what a rule means that says nothing. file:
    its name, for messages."""
    made = RuleDocuments()
    for place, item, rule in _parsed(rules, evaluate):
        if isinstance(rule, Rejected):
            errors = [rule]
        else:
            wanted = Wanted(kind.name, rule.id, _document(rule, item), f"rules[{place}]")
            errors = [_in_rule(error, wanted.place) for error in mistakes(kind, wanted)]
            if not errors:
                made.wanted.setdefault(rule.org, []).append(wanted)
        for error in errors:
            made.errors.append(_told(file, place, item, error))
        if errors and isinstance(item, Mapping) and isinstance(item.get("org"), str) and isinstance(item.get("id"), str):
            made.kept.setdefault(item["org"], set()).add((kind.name, item["id"]))
    return made


class Applied(NamedTuple):
    """How many documents were created, changed and removed, and sentences about those that could not be."""

    created: int
    changed: int
    removed: int
    errors: list[str]


def apply_rules(
    documents: Documents,
    org: str,
    wanted: Sequence[Wanted],
    set_name: str,
    actor: Actor,
    *,
    prune: bool = True,
    kept: Collection[tuple[str, str]] = (),
) -> Applied:
    """Makes the org's rules be as wanted, in the store itself; blocks. wanted, kept: of `rule_documents`; with `prune` rules that
    this set made and does not have any more are deleted.

    Raises Busy and Unavailable, after which it can be called again.
    """

    meanwhile = False

    def send(kind: str, operations: Sequence[Operation]) -> list[str | None]:
        nonlocal meanwhile
        items = [Item(Command(one.op, one.kind, one.id, one.body or {}), one.version) for one in operations]
        outcomes = documents.bulk(org, actor, items)
        meanwhile |= any(outcome.rejected is not None and outcome.rejected["code"] in _MEANWHILE for outcome in outcomes)
        return [_problem(outcome) for outcome in outcomes]

    count = {Create: 0, Change: 0, Remove: 0}
    for _ in range(TRIES):
        meanwhile = False
        existing = [Existing(one.kind, one.id, one.version, one.body) for one in _all(documents, org, actor)]
        steps = plan(Kinds([MANIFEST]), wanted, existing, set_name, new_id=_new_id, prune=prune, kept=kept)
        done = list(carry_out(steps, send))
        for sort in count:
            count[sort] += sum(isinstance(one.step, sort) and one.problem is None for one in done)
        if not meanwhile:
            break
    errors = [f"{one.step.kind} {one.step.key}: {one.problem}" for one in done if one.problem is not None]
    return Applied(count[Create], count[Change], count[Remove], errors)


def _all(documents: Documents, org: str, actor: Actor) -> Iterator[Document]:
    cursor: dict[str, str] = {}
    while True:
        page = documents.list(org, actor, ALERT_RULE.name, {"limit": str(MOST), **cursor}.items())
        yield from page.items
        if page.next is None:
            return
        cursor = {"cursor": page.next}


def _problem(outcome: Outcome) -> str | None:
    if outcome.rejected is None:
        return None
    field, expected, got = (outcome.rejected[name] for name in ("field", "expected", "got"))
    return f"{place_of(field).removeprefix('.') or field}: expected {expected}, got {got}"


def _new_id() -> str:
    return fact_id(time.time_ns() // 1_000_000, secrets.token_hex(16))


def _parsed(items: Sequence[Any], evaluate: str) -> Iterator[tuple[int, Any, Rule | Rejected]]:
    """Each with its place, and what it says or what is wrong with it."""
    seen: dict[tuple[str, str], int] = {}
    for place, item in enumerate(items):
        try:
            rule = parse_rule(item, evaluate=evaluate)
            first = seen.setdefault((rule.org, rule.id), place)
            if first != place:
                raise Rejected("invalid", "id", rule.id, f"an id of its own in the org (rules[{first}] has it)")
        except Rejected as error:
            yield place, item, error
        else:
            yield place, item, rule


def _document(rule: Rule, item: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule says, as an alert_rule's fields; without a name it is called by its id."""
    return {
        "key": rule.id,
        "name": rule.name or rule.id,
        "severity": rule.severity,
        "enabled": item.get("enabled", True),
        "evaluate": rule.evaluate,
        "level": rule.level,
        "scope": dict(rule.scope),
        "when": _tree(rule.when),
        "labels": item.get("labels", {}),
    }


def _tree(condition: Condition) -> dict[str, Any]:
    if not isinstance(condition, Comparison):
        parts = [_tree(part) for part in condition.parts]
        return {condition.kind: parts[0] if condition.kind == "not" else parts}
    made: dict[str, Any] = {"metric": condition.metric, "window": condition.window.name, "op": condition.op}
    if condition.than is None:
        made["value"] = condition.value
    else:
        made["than"] = {"metric": condition.than, "factor": condition.value}
    if condition.minimum is not None:
        made["min"] = dict([condition.minimum])
    return made


def _in_rule(error: Rejected, place: str) -> Rejected:
    """Named as in the rule file."""
    name = error.field.removeprefix(f"{place}.")
    return Rejected(error.code, "id" if name == "key" else name, error.got, error.expected)


def _told(file: str, place: int, item: object, error: Rejected) -> str:
    return f"{file}: rules[{place}]{_named(item)}: {error}"


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
