"""An engine's state as items: what a checkpoint stores, a part at a time, and what recovery reads.

An item is one pane, one chunk of ids, leaves or values, or one org's rules: small enough to be written whole whenever it
has changed. Window sums are not among them, they are added up anew. Items hold plain values and numpy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cmis_stream.core.banks import Bank, BankKey
from cmis_stream.core.dedup import Generation
from cmis_stream.core.engine import Engine
from cmis_stream.core.panes import Pane
from cmis_stream.core.rules import parse_rule
from cmis_stream.core.time import WINDOWS

_LEAVES = 1024  # per item


def keys(engine: Engine) -> set[str]:
    """The items that make up the state now."""
    found = {"time", "sequences", "compound"}
    found.update(f"leaves/{chunk}" for chunk in range(-(-engine.entities.leaves // _LEAVES)))
    found.update(f"pane/{level}/{number}" for level, store in enumerate(engine.windows.panes) for number in store)
    found.update(f"ids/{g.number}/{chunk}" for g in engine.seen.generations for chunk in range(len(g.chunks)))
    found.update(f"rules/{org}" for org in engine.rules_as_given)
    found.update(f"bank/{_name(bank)}/{chunk}" for bank in engine.rules.banks.values() for chunk in bank.chunks)
    return found


def changed(engine: Engine, leaves_stored: int) -> set[str]:
    """The items that have changed since the last call (all, for an engine never asked before)."""
    found = {"time", "compound"}
    if engine.seen.sequences_dirty:
        found.add("sequences")
        engine.seen.sequences_dirty = False
    found.update(f"leaves/{chunk}" for chunk in range(leaves_stored // _LEAVES, -(-engine.entities.leaves // _LEAVES)))
    for level, store in enumerate(engine.windows.panes):
        for number, pane in store.items():
            if pane.dirty:
                found.add(f"pane/{level}/{number}")
                pane.dirty = False
    for generation in engine.seen.generations:
        found.update(f"ids/{generation.number}/{chunk}" for chunk in generation.dirty)
        generation.dirty.clear()
    found.update(f"rules/{org}" for org in engine.orgs_changed)
    engine.orgs_changed.clear()
    for bank in engine.rules.banks.values():
        found.update(f"bank/{_name(bank)}/{chunk}" for chunk in bank.changed)
        bank.changed.clear()
    return found


def export(engine: Engine, key: str) -> Any:
    """The value of one item."""
    kind, _, rest = key.partition("/")
    if kind == "time":
        return _export_time(engine)
    if kind == "sequences":
        return [[org, source, number] for (org, source), number in engine.seen.highest.items()]
    if kind == "compound":
        return _export_compound(engine)
    if kind == "leaves":
        return engine.entities.paths[int(rest) * _LEAVES : (int(rest) + 1) * _LEAVES]
    if kind == "rules":
        return _export_rules(engine, rest)
    first, _, second = rest.rpartition("/")
    if kind == "pane":
        return engine.windows.panes[int(first)][int(second)].columns()
    if kind == "ids":
        return next(g for g in engine.seen.generations if g.number == int(first)).chunks[int(second)]
    bank = next(bank for bank in engine.rules.banks.values() if _name(bank) == first)
    return _export_bank(bank, int(second))


def restore(engine: Engine, items: Mapping[str, Any]) -> None:
    """Puts an engine that has seen nothing into the state of these items (all of one moment)."""
    by_kind: dict[str, list[tuple[str, Any]]] = {}
    for key in sorted(items, key=_order):
        kind, _, rest = key.partition("/")
        by_kind.setdefault(kind, []).append((rest, items[key]))
    for _, paths in by_kind.get("leaves", []):
        engine.entities.numbers(paths)
    for rest, columns in by_kind.get("pane", []):
        level, _, number = rest.partition("/")
        engine.windows.panes[int(level)][int(number)] = Pane.from_columns(columns)
    ((_, time),) = by_kind["time"]
    _restore_time(engine, time)
    for rest, chunk in by_kind.get("ids", []):
        generation = int(rest.partition("/")[0])
        next(g for g in engine.seen.generations if g.number == generation).add(chunk)
    for _, sequences in by_kind.get("sequences", []):
        engine.seen.highest = {(org, source): number for org, source, number in sequences}
    for org, value in by_kind.get("rules", []):
        rules = [parse_rule(raw, evaluate=value["evaluate"]) for raw in value["rules"]]
        guards = {
            rule.id: frozenset((metric, window, (field, minimum)) for metric, window, field, minimum in given)
            for rule, given in zip(rules, value["guards"], strict=True)
        }
        engine.adopt(org, value["version"], rules, value["rules"], guards, value["evaluate"])
    _restore_banks(engine, [value for _, value in by_kind.get("bank", [])])
    for _, value in by_kind.get("compound", []):
        _restore_compound(engine, value)
    engine.resume()
    changed(engine, engine.entities.leaves)


def _order(key: str) -> tuple[str, list[int]]:
    """Chunks in the order of their numbers: leaves and ids are numbered by their place."""
    kind, *rest = key.split("/")
    return kind, [int(part) if part.lstrip("-").isdigit() else 0 for part in rest]


def _export_time(engine: Engine) -> dict[str, Any]:
    orgs, windows = len(engine.entities.orgs), engine.windows
    return {
        "now": engine.now_ms,
        "uptime": engine.uptime_ms,
        "idle_checked": engine.idle_checked_ms,
        "active": list(engine.last_active.items()),
        "newest": windows.newest[:orgs],
        "live": windows.live.head[:orgs],
        "closed": windows.closed.head[:orgs],
        "unjudged": [[window.name, sorted(rows)] for window, rows in windows.unjudged.items() if rows],
        "late": windows.late_events,
        "events": engine.events,
        "duplicates": engine.duplicates,
        "generations": [[g.number, g.since_ms] for g in engine.seen.generations],
    }


def _restore_time(engine: Engine, time: Mapping[str, Any]) -> None:
    engine.now_ms, engine.uptime_ms, engine.idle_checked_ms = time["now"], time["uptime"], time["idle_checked"]
    engine.last_active = dict(time["active"])
    engine.events, engine.duplicates = time["events"], time["duplicates"]
    engine.windows.late_events = time["late"]
    engine.windows.set_heads(time["newest"], time["live"], time["closed"])
    engine.windows.unjudged = {WINDOWS[name]: set(rows) for name, rows in time["unjudged"]}
    engine.seen.generations = [Generation(number, since_ms) for number, since_ms in time["generations"]]


def _export_rules(engine: Engine, org: str) -> dict[str, Any]:
    compiled = {c.rule.id: c for number in engine.rules.of_org[org].values() if (c := engine.rules.rules[number]) is not None}
    return {
        "version": engine.versions[org],
        "evaluate": engine.evaluate_default[org],
        "rules": engine.rules_as_given[org],
        "guards": [
            [[metric, window, *minimum] for metric, window, minimum in sorted(compiled[raw["id"]].guards_used)]
            for raw in engine.rules_as_given[org]
        ],
    }


def _name(bank: Bank) -> str:
    return "|".join(str(part) for part in bank.key)


def _export_bank(bank: Bank, chunk: int) -> dict[str, Any]:
    start = chunk << bank.CHUNK_BITS
    stop = start + (1 << bank.CHUNK_BITS)
    rows = np.flatnonzero(bank.seen[start:stop] | ~np.isnan(bank.value[start:stop])) + start
    return {
        "bank": list(bank.key),
        "rows": rows.astype(np.int32),
        "values": bank.value[rows],
        "seen": bank.seen[rows].astype(np.uint8),
    }


def _restore_banks(engine: Engine, values: list[Any]) -> None:
    for value in values:
        evaluate, window, metric, than, factor, minimum, sign = value["bank"]
        key = BankKey(evaluate, window, metric, than, factor, (minimum[0], minimum[1]) if minimum else None, sign)
        bank = engine.rules.banks[key]
        bank.make_room(len(engine.entities))
        bank.value[value["rows"]] = value["values"]
        bank.seen[value["rows"]] = value["seen"].astype(bool)
        bank.note_change(value["rows"].astype(np.int64))
        for layer in bank.layers.values():
            rows = np.flatnonzero(layer.segment)
            layer.rank[rows] = layer.ranks(rows, bank.value[rows])


def _export_compound(engine: Engine) -> dict[str, Any]:
    rules = engine.rules
    return {
        "truths": [[*rules.name(rule), row, bits] for (rule, row), bits in rules.truths.items()],
        "firing": [[*rules.name(rule), row] for rule, row in rules.firing],
        "waiting": [[*rules.name(rules.terms[term].rule), rules.terms[term].bit, row] for term, row in rules.waiting],
    }


def _restore_compound(engine: Engine, value: Mapping[str, Any]) -> None:
    rules = engine.rules
    rules.truths = {(rules.of_org[org][rule], row): bits for org, rule, row, bits in value["truths"]}
    rules.firing = {(rules.of_org[org][rule], row) for org, rule, row in value["firing"]}
    for org, rule, bit, row in value["waiting"]:
        rules.waiting[rules.term_of(rules.of_org[org][rule], bit), row] = True
