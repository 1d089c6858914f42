"""Rules that change while records flow, and kill -9 around it: no orphan firing, no transition of a rule not in force."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from cmis_stream.core.rules import Rule, parse_rule
from cmis_stream.instance import Instance
from cmis_stream.log import envelope
from cmis_stream.runtime import METRICS
from cmis_stream.settings import Settings
from tests.e2e.support import (
    Processes,
    Up,
    Workload,
    envelopes,
    evaluate_anew,
    finish,
    firing_of,
    follow,
    make_workload,
    needs_workload,
    records_of,
    rules_in_log,
    transitions_of,
    until,
    without_identity,
)

pytestmark = needs_workload


def replace(path: Path, rules: list[dict[str, Any]]) -> None:
    """As editors do."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(rules))
    os.replace(new, path)


def meant(rule: dict[str, Any], evaluate: str) -> Rule:
    """What the engine makes of it, but for the name that documents have to have."""
    return dataclasses.replace(parse_rule(rule, evaluate=evaluate), name="")


def variants(workload: Workload, dice: random.Random) -> list[list[dict[str, Any]]]:
    """The rules with some removed, some with other thresholds, some added; whole orgs go and come back."""
    given = workload.rules_given
    found = []
    for number in range(4):
        kept = [rule for rule in given if dice.random() < 0.6]
        gone_org = dice.choice([rule["org"] for rule in given])
        kept = [rule for rule in kept if rule["org"] != gone_org]
        changed = [
            {**rule, "threshold": rule["threshold"] * dice.choice([0.5, 1, 1.5])} if dice.random() < 0.3 else rule
            for rule in kept
        ]
        added = [{**dice.choice(given), "id": f"added-{number}-{i}", "op": "gt", "threshold": 0.0} for i in range(5)]
        found.append(changed + added)
    return found


async def check(data_dir: Path, final: list[dict[str, Any]]) -> None:
    async with Instance(Settings(data_dir=data_dir, port=0)) as instance:
        runtime = instance.runtime
        runtime.ticking = False
        await finish(instance)
        lines = await transitions_of(instance)
        firing = follow(lines)
        anew, firing_anew = await evaluate_anew(instance)
        assert without_identity(lines) == without_identity(anew)
        assert firing == firing_anew == set().union(*(firing_of(owner.engine) for owner in instance.owners))
        in_force = {(rule["org"], rule["id"]) for rule in final}
        assert {pair[:2] for pair in firing} <= in_force, "orphans"

        # By its place in the log, each transition belongs to a rule that was in force there; a removed one only resolves.
        for partition in range(runtime.partitions):
            at: dict[int, envelope.RuleSet] = {}
            for record in await records_of(instance, METRICS, partition):
                entry = envelope.decode(record.value or b"")
                if isinstance(entry, envelope.RuleSet):
                    at[record.offset] = entry
            for line in lines:
                _, own, offset, _ = line["id"].rsplit("/", 3)
                if int(own) != partition:
                    continue
                before = [s for o, s in at.items() if o <= int(offset) and s.org == line["org"]]
                newest = max(before, key=lambda s: s.version)
                names = {rule["id"] for rule in newest.rules}
                assert line["rule"] in names or (line["state"] == "resolved" and int(offset) in at), line


@pytest.mark.parametrize("evaluate", ["live", "pane"])
async def test_rules_changed_in_mid_stream_with_kills_around_it(processes: Processes, tmp_path: Path, evaluate: str) -> None:
    dice = random.Random(23)
    workload = make_workload(tmp_path / "workload", events=30_000, seed=23)
    data_dir, rules = tmp_path / "data", tmp_path / "rules.json"
    replace(rules, workload.rules_given)
    up = Up(processes, data_dir, "--rules", rules, "--evaluate", evaluate).ready()
    orgs = {rule["org"] for rule in workload.rules_given}
    until(lambda: orgs == set(rules_in_log(data_dir)), "the rules in the log")
    ingest = processes.cmis(
        "ingest", workload.events, "--data-dir", data_dir, "--create-orgs", "--batch", 250, "--url", up.url
    )  # fmt: skip
    final = workload.rules_given
    for changed in variants(workload, dice):
        before = rules_in_log(data_dir)
        replace(rules, changed)
        time.sleep(dice.uniform(0, 1.2))  # the moment of a kill is random: before, while and after the change is adopted
        up.kill()
        up.ready()
        until(lambda before=before: rules_in_log(data_dir) != before, "the changed rules in the log")
        final = changed
    assert ingest.ended(300) == 0, ingest.text
    wanted = {meant(rule, evaluate) for rule in final}

    def adopted() -> bool:
        with_rules: dict[str, list[Any]] = {}
        versions: dict[str, int] = {}
        for entry in envelopes(data_dir):
            if isinstance(entry, envelope.RuleSet) and entry.version > versions.get(entry.org, 0):
                versions[entry.org], with_rules[entry.org] = entry.version, entry.rules
        return {meant(rule, evaluate) for own in with_rules.values() for rule in own} == wanted

    until(adopted, "the last rules in the log")
    up.stop()
    await check(data_dir, final)
