"""The command as people use it: as a process, by what it prints and how it ends."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.support import COMMAND, Process, Processes, free_port, until

COMMANDS = (
    (), ("up",), ("ingest",), ("replay",), ("simulate",), ("org",), ("org", "create"), ("org", "list"), ("token",),
    ("token", "create"), ("token", "list"), ("token", "revoke"), ("topics",), ("tail",),
)  # fmt: skip
RULE = {"id": "spend", "org": "acme", "metric": "spend", "window": "1m", "op": "gt", "threshold": 100}


def run(processes: Processes, *arguments: object) -> tuple[int, str]:
    process = processes.cmis(*arguments)
    return process.ended(), process.text


def fails(processes: Processes, *arguments: object) -> str:
    """The one sentence with which a command ends."""
    code, text = run(processes, *arguments)
    assert code == 1, text
    assert "Traceback" not in text
    (line,) = text.strip().splitlines()
    assert line.startswith("cmis: ")
    return line


def started(processes: Processes, data_dir: Path, *arguments: object) -> tuple[Process, str]:
    """A running `cmis up` and its address."""
    process = processes.cmis("up", "--data-dir", data_dir, "--port", 0, "--no-live", *arguments)
    found = re.search(r"Ready in .* s: (http://\S+)", process.says("Ready in"))
    assert found is not None
    return process, found[1]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_explains_itself(processes: Processes, command: tuple[str, ...]) -> None:
    code, text = run(processes, *command, "--help")
    assert code == 0
    assert text.startswith("Usage: ")
    description = text.split("\n\n")[1].strip()
    assert len(description) > 15
    assert "--help" in text


def test_orgs_and_tokens_are_made_listed_and_revoked(processes: Processes, tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data")
    assert "no-such" in fails(processes, "token", "create", "no-such", *data)
    assert run(processes, "org", "create", "acme", "--name", "Acme", *data)[0] == 0
    assert "slug" in fails(processes, "org", "create", "acme", *data)
    assert "slug" in fails(processes, "org", "create", "Not A Slug", *data)
    assert run(processes, "org", "list", *data)[1] == "acme\tAcme\n"
    code, text = run(processes, "token", "create", "acme", "--name", "feed", "--days", 1, *data)
    assert code == 0
    secret = text.strip().splitlines()[-1]
    token_id = secret.split("_")[1]
    assert secret.startswith("cmis_")
    listed = run(processes, "token", "list", "acme", *data)[1]
    assert token_id in listed
    assert "feed" in listed
    assert secret not in listed
    assert "scope" in fails(processes, "token", "create", "acme", "--scope", "everything", *data)
    assert run(processes, "token", "revoke", token_id, *data)[0] == 0
    assert "revoked" in run(processes, "token", "list", "acme", *data)[1]
    assert token_id in fails(processes, "token", "revoke", token_id, *data)


def test_a_second_instance_on_the_same_folder_is_told_who_has_it(processes: Processes, tmp_path: Path) -> None:
    first, _ = started(processes, tmp_path / "data")
    line = fails(processes, "up", "--data-dir", tmp_path / "data", "--port", 0, "--no-live")
    assert str(first.popen.pid) in line
    assert "--data-dir" in line
    assert first.stop() == 0
    assert "Stopped" in first.text


def test_a_taken_port_is_passed_over_and_said(processes: Processes, tmp_path: Path) -> None:
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        process = processes.cmis("up", "--data-dir", tmp_path / "data", "--port", port, "--no-live")
        text = process.says("Ready in")
        assert f"Port {port} is taken; using" in text
        assert f"http://127.0.0.1:{port}\n" not in text
        assert process.stop() == 0


def test_what_cannot_be_done_is_one_sentence(processes: Processes, tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data")
    broken = tmp_path / "broken.json"
    broken.write_text('[{"id": ')
    events = tmp_path / "events.ndjson"
    events.write_text("")
    assert "no such file" in fails(processes, "ingest", tmp_path / "missing.ndjson", *data)
    assert "cmis up" in fails(processes, "ingest", events, *data)
    assert "not JSON" in fails(processes, "up", "--rules", broken, "--port", 0, "--no-live", *data)
    assert "not JSON" in fails(processes, "replay", events, "--rules", broken, "--out", tmp_path / "out")
    assert "pipeline" in fails(processes, "replay", events, "--rules", broken, "--out", tmp_path / "out", "--evaluate", "live")
    assert "--seconds" in fails(processes, "simulate", "--fast")
    assert "no log yet" in fails(processes, "tail", "cmis.metrics.v1", "--data-dir", tmp_path / "nothing")


def test_simulated_events_go_through_a_pipe_and_can_be_looked_at(processes: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    instance, url = started(processes, data)
    simulate = subprocess.Popen([*COMMAND, "simulate", "--seconds", "5", "--fast", "--rate", "50"], stdout=subprocess.PIPE)
    assert simulate.stdout is not None
    unknown = processes.cmis("ingest", "-", "--url", url, "--data-dir", data, stdin=simulate.stdout)
    assert unknown.ended() == 1
    assert "--create-orgs" in unknown.text
    simulate.stdout.close()
    simulate.wait()
    simulate = subprocess.Popen([*COMMAND, "simulate", "--seconds", "5", "--fast", "--rate", "50"], stdout=subprocess.PIPE)
    sender = processes.cmis("ingest", "-", "--data-dir", data, "--create-orgs", stdin=simulate.stdout)
    assert sender.ended() == 0, sender.text
    assert "250 accepted, 0 rejected" in sender.text
    assert simulate.wait() == 0
    lines = [json.loads(line) for line in run(processes, "tail", "cmis.metrics.v1", "-n", 50, "--data-dir", data)[1].splitlines()]
    envelopes = [line for line in lines if line["kind"] == "events"]
    assert sum(line["events"] for line in envelopes) == 250
    assert {org for line in envelopes for org in line["orgs"]} == {"acme", "globex"}
    shown = run(processes, "tail", "cmis.metrics.v1", "-n", 50, "--events", "--data-dir", data)[1]
    assert sum(len(json.loads(line).get("rows", [])) for line in shown.splitlines()) >= 250
    table = run(processes, "topics", "--data-dir", data)[1]
    assert re.search(r"cmis\.metrics\.v1 +8 +\d", table)
    assert "no topic 'nothing'" in fails(processes, "tail", "nothing", "--data-dir", data)
    assert instance.stop() == 0


def test_tail_follows_a_running_instance(processes: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    instance, _ = started(processes, data)
    follower = processes.cmis("tail", "cmis.metrics.v1", "-n", 0, "--follow", "--data-dir", data)
    follower.says('"kind":"tick"')  # idle partitions tick once a second
    follower.kill()
    assert instance.stop() == 0


def test_bad_rules_are_named_the_good_ones_run_and_the_file_is_read_again(processes: Processes, tmp_path: Path) -> None:
    data, rules = tmp_path / "data", tmp_path / "rules.json"
    rules.write_text(json.dumps([RULE, {**RULE, "id": "bad", "window": "3m"}]))
    instance, _ = started(processes, data, "--rules", rules)
    text = instance.says("rules[1]")
    assert "rules[1] (bad): window: expected one of 1m" in text

    def versions() -> list[int]:
        lines = run(processes, "tail", "cmis.changes.v1", "--data-dir", data)[1].splitlines()
        return [len(json.loads(line)["value"]["rules"]) for line in lines]

    assert versions() == [1]
    rules.write_text(json.dumps([RULE, {**RULE, "id": "good", "window": "5m"}]))
    until(lambda: versions() == [2], "the changed rules")
    assert instance.stop() == 0


def test_the_demo_moves_from_the_first_seconds_on(processes: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    instance, url = started(processes, data, "--demo")
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}

    def orgs() -> set[str]:
        text = run(processes, "tail", "cmis.metrics.v1", "-n", 40, "--data-dir", data)[1]
        return {org for line in text.splitlines() for org in json.loads(line).get("orgs", ())}

    until(lambda: orgs() == {"acme", "globex"}, "events of both demo orgs")
    assert "Sample feeds are running" in instance.text
    assert instance.stop() == 0
    again, _ = started(processes, data, "--demo")
    assert again.stop() == 0
