"""The command `cmis` as people meet it: help, sentences instead of tracebacks, exit codes, a clean end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from cmis_stream.cli import main
from cmis_stream.log import envelope
from tests.e2e.support import (
    COMMAND,
    ROOT,
    Process,
    Processes,
    Up,
    envelopes,
    free_port,
    logged_ids,
    passed_transitions,
    reading,
    records,
    rules_in_log,
    until,
)

COMMANDS = ["up", "ingest", "replay", "simulate", "org", "org create", "org list", "token", "token create", "token list",
            "token revoke", "sign-in", "session", "session list", "session revoke", "topics", "topics plan",
            "topics apply", "tail", "apply", "db", "db upgrade", "new-keys",
            "effects", "effects list", "effects retry", "audit", "audit verify"]  # fmt: skip
RULE = {"id": "r1", "org": "acme", "metric": "spend", "window": "5m", "op": "gt", "threshold": 1}


def lines(*ids: str, org: str = "acme") -> str:
    now = int(time.time() * 1000)
    return "".join(
        json.dumps({"id": i, "ts": now, "org": org, "type": "metric", "platform": "meta", "campaign": "c1", "spend": 1.5}) + "\n"
        for i in ids
    )


def replace(path: Path, text: str) -> None:
    """As editors do."""
    new = path.with_name("new.json")
    new.write_text(text)
    os.replace(new, path)


def rule_sets(data_dir: Path) -> list[list[str]]:
    """The ids of the rules of every version in the log, each version once, in their order."""
    by_version = {r.version: [rule["id"] for rule in r.rules] for r in envelopes(data_dir) if isinstance(r, envelope.RuleSet)}
    return [by_version[version] for version in sorted(by_version)]


def done(processes: Processes, *arguments: object) -> Process:
    process = processes.cmis(*arguments)
    process.ended()
    return process


def a_sentence(process: Process) -> str:
    """It failed with exit code 1 and said why in one sentence."""
    text = process.text.strip()
    assert process.popen.returncode == 1, text
    assert "Traceback" not in text and text.startswith("cmis: ") and "\n" not in text, text
    return text


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help_that_says_what_it_does(command: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), "--help"])
    assert result.exit_code == 0
    usage, _, rest = result.output.partition("\n\n")
    assert usage.startswith("Usage:") and rest.strip().split("\n")[0].strip()
    assert all(len(line) <= 120 for line in result.output.splitlines())


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    assert all(f"\n  {command} " in output for command in COMMANDS if " " not in command)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_ingest_of_a_missing_file_is_a_sentence(processes: Processes, tmp_path: Path) -> None:
    said = a_sentence(done(processes, "ingest", tmp_path / "no.ndjson", "--data-dir", tmp_path))
    assert "no.ndjson" in said and "no such file" in said


def test_ingest_without_an_instance_says_how_to_start_one(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "e.ndjson").write_text(lines("e1"))
    said = a_sentence(done(processes, "ingest", tmp_path / "e.ndjson", "--data-dir", tmp_path))
    assert "no instance is running" in said and "cmis up" in said


@pytest.mark.parametrize("content", ["[{", '"rules"', None])
def test_up_with_a_rules_file_that_cannot_be_used_says_so_and_does_not_start(
    processes: Processes, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "rules.json").write_text(content)
    process = done(processes, "up", "--data-dir", tmp_path / "data", "--port", 0, "--no-live", "--rules", tmp_path / "rules.json")
    assert "rules.json" in a_sentence(process)


def test_replay_with_a_broken_rules_file_is_a_sentence(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "e.ndjson").write_text(lines("e1"))
    (tmp_path / "rules.json").write_text("{]")
    out = tmp_path / "out"
    process = done(processes, "replay", tmp_path / "e.ndjson", "--rules", tmp_path / "rules.json", "--out", out)
    assert "not JSON" in a_sentence(process) and not out.exists()


def test_replay_to_a_place_that_cannot_be_written_is_a_sentence(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "e.ndjson").write_text(lines("e1"))
    (tmp_path / "rules.json").write_text(json.dumps([RULE]))
    process = done(
        processes, "replay", tmp_path / "e.ndjson", "--rules", tmp_path / "rules.json", "--out", tmp_path / "no/folder/out"
    )  # fmt: skip
    assert "cannot be written" in a_sentence(process)


def test_a_token_of_an_unknown_org_says_how_to_create_it(processes: Processes, tmp_path: Path) -> None:
    said = a_sentence(done(processes, "token", "create", "nobody", "--data-dir", tmp_path))
    assert "'nobody'" in said and "cmis org create nobody" in said


def test_tail_and_topics_without_a_log_are_clear(processes: Processes, tmp_path: Path) -> None:
    assert "no log yet" in a_sentence(done(processes, "tail", "cmis.transitions.v1", "--data-dir", tmp_path))
    topics = done(processes, "topics", "--data-dir", tmp_path)
    assert topics.popen.returncode == 0 and "cmis.metrics.v1" in topics.text


def test_a_second_up_on_the_same_folder_names_the_process_that_has_it(processes: Processes, tmp_path: Path) -> None:
    up = Up(processes, tmp_path / "data").ready()
    second = done(processes, "up", "--data-dir", tmp_path / "data", "--port", 0, "--no-live")
    assert str(up.process.popen.pid) in a_sentence(second)
    assert up.process.running


def test_a_taken_port_is_announced_with_the_one_used_instead(processes: Processes, tmp_path: Path) -> None:
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        up = processes.cmis("up", "--data-dir", tmp_path / "data", "--port", port, "--no-live")
        said = up.says("Events: POST")
    assert f"Port {port} is taken; using " in said
    used = said.split("; using ")[1].split(".")[0]
    assert f"http://127.0.0.1:{used}/" in said
    assert json.loads((tmp_path / "data/instance.json").read_text())["url"] == f"http://127.0.0.1:{used}"


# --- up --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_stops_on_a_signal_says_so_and_leaves_nothing_announced(processes: Processes, tmp_path: Path, number: int) -> None:
    up = Up(processes, tmp_path / "data").ready()
    up.process.popen.send_signal(number)
    assert up.process.ended(30) == 0  # it takes a fraction of a second; a busy machine is no failure
    assert "Stopped" in up.process.text.splitlines()[-1]
    assert "Traceback" not in up.process.text and not (tmp_path / "data/instance.json").exists()


def test_up_names_bad_rules_runs_the_good_ones_and_reads_the_file_again(processes: Processes, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{**RULE, "id": "bad", "window": "3m"}, RULE]))
    up = Up(processes, tmp_path / "data", "--rules", rules).ready()
    said = up.process.says("rules[0]")
    assert "(bad)" in said and "window" in said and "3m" in said
    until(lambda: rule_sets(tmp_path / "data") == [["r1"]], "the good rule")
    replace(rules, json.dumps([RULE, {**RULE, "id": "r2"}]))
    until(lambda: rule_sets(tmp_path / "data") == [["r1"], ["r1", "r2"]], "the file's second version")
    replace(rules, "[broken")
    replace(rules, json.dumps([RULE]))
    until(lambda: rule_sets(tmp_path / "data") == [["r1"], ["r1", "r2"], ["r1"]], "the file's last version")
    assert up.process.running


@pytest.mark.spec("ALR-M08", partial="no deadline is asserted: transitions come with the events, without a poll")
def test_up_demo_sends_moving_figures(processes: Processes, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    up = Up(processes, data_dir, "--demo").ready()

    def events() -> int:
        return len(logged_ids(data_dir)) if (data_dir / "log.db").exists() else 0

    first = until(events, "the first events")
    until(lambda: events() > first, "more events")
    until(lambda: set(rules_in_log(data_dir)) == {"acme", "globex"}, "the demo's rules")
    orgs = {s.org for record in envelopes(data_dir) if isinstance(record, envelope.Events) for s in record.batch.segments}
    assert orgs == {"acme", "globex"}
    up.stop()


# --- ingest, simulate, tail, topics ------------------------------------------------------------------------------------


def test_simulated_events_flow_through_a_pipe_into_a_running_instance(processes: Processes, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    Up(processes, data_dir).ready()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    simulate = subprocess.run(
        [*COMMAND, "simulate", "--seconds", "5", "--fast"], capture_output=True, env=environment, check=True, timeout=60
    )
    sent = [json.loads(line)["id"] for line in simulate.stdout.splitlines()]
    assert 400 <= len(sent) <= 600  # 100 a second, with a daily rhythm
    file = tmp_path / "simulated"
    file.write_bytes(simulate.stdout)
    with file.open("rb") as pipe:
        ingest = processes.cmis("ingest", "-", "--data-dir", data_dir, "--create-orgs", stdin=pipe)
        assert ingest.ended() == 0, ingest.text
    assert f"{len(sent):,} accepted, 0 rejected" in ingest.text
    assert sorted(logged_ids(data_dir)) == sorted(sent)


def test_ingest_says_what_was_rejected_keeps_it_and_exits_with_2(processes: Processes, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    Up(processes, data_dir).ready()
    file = tmp_path / "e.ndjson"
    file.write_text(lines("e1") + '{"id": "bad", "org": "acme"}\n' + lines("e2"))
    unknown = done(processes, "ingest", file, "--data-dir", data_dir)
    assert "cmis org create acme" in a_sentence(unknown) and "--create-orgs" in unknown.text
    ingest = done(processes, "ingest", file, "--data-dir", data_dir, "--create-orgs")
    assert ingest.popen.returncode == 2 and "2 accepted, 1 rejected" in ingest.text and "Traceback" not in ingest.text
    (kept,) = (data_dir / "ingest").glob("*.rejected.ndjson")
    assert '"bad"' in kept.read_text() or "bad" in kept.read_text()
    again = done(processes, "ingest", file, "--data-dir", data_dir, "--create-orgs")
    assert again.popen.returncode == 0 and "0 accepted" in again.text and "resumed at byte" in again.text
    assert sorted(logged_ids(data_dir)) == ["e1", "e2"]


def test_topics_and_tail_work_beside_a_running_instance(processes: Processes, tmp_path: Path) -> None:
    data_dir, rules = tmp_path / "data", tmp_path / "rules.json"
    rules.write_text(json.dumps([RULE]))
    Up(processes, data_dir, "--rules", rules).ready()
    until(lambda: rule_sets(data_dir) == [["r1"]], "the rule")
    follow = processes.cmis("tail", "cmis.transitions.v1", "-n", 0, "--follow", "--data-dir", data_dir)
    (tmp_path / "e.ndjson").write_text(lines(*(f"e{n}" for n in range(5))))
    assert done(processes, "ingest", tmp_path / "e.ndjson", "--data-dir", data_dir, "--create-orgs").popen.returncode == 0
    follow.says('"firing"')
    shown = json.loads(follow.text.splitlines()[0])
    assert shown["value"]["transitions"][0]["rule"] == "r1"
    assert follow.stop() == 130 and "Traceback" not in follow.text
    with reading(data_dir) as log:
        assert [line["rule"] for line in passed_transitions(records(log, "cmis.transitions.v1"))] == ["r1"]

    tail = done(processes, "tail", "cmis.metrics.v1", "-n", 3, "--events", "--data-dir", data_dir)
    assert tail.popen.returncode == 0
    found = [orjson.loads(line) for line in tail.text.splitlines()]
    assert 1 <= len(found) <= 3 and all({"partition", "offset", "at", "kind"} <= set(line) for line in found)
    told = done(processes, "tail", "cmis.rollups.v1", "-n", 1, "--events", "--data-dir", data_dir)
    (rollup,) = [orjson.loads(line) for line in told.text.splitlines()]
    assert rollup["kind"] == "rollup" and {"entity", "pane", "closed", "impressions"} <= set(rollup["rows"][0])
    assert "there are: " in a_sentence(done(processes, "tail", "no.such.topic", "--data-dir", data_dir))
    topics = done(processes, "topics", "--data-dir", data_dir)
    row = next(line for line in topics.text.splitlines() if line.startswith("cmis.metrics.v1")).split()
    assert row[1] == "8" and int(row[2].replace(",", "")) >= 2


# --- orgs and tokens -------------------------------------------------------------------------------------------------


@pytest.mark.spec("TEN-M02", partial="over the command line")
def test_orgs_and_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    def cmis(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, [*arguments, "--data-dir", str(tmp_path)])
        return result.exit_code, result.stdout, result.stderr

    assert cmis("org", "create", "acme", "--name", "Acme Outdoor") == (0, "Created acme.\n", "")
    code, _, error = cmis("org", "create", "acme")
    assert code == 1 and "not taken" in error
    code, _, error = cmis("org", "create", "No Spaces!")
    assert code == 1 and "lower-case" in error
    assert cmis("org", "list")[1] == "acme\tAcme Outdoor\n"
    code, text, about = cmis("token", "create", "acme", "--scope", "ingest", "--scope", "read", "--name", "feed")
    assert code == 0 and text.startswith("cmis_") and text.count("\n") == 1 and "shown this once" in about
    code, _, error = cmis("token", "create", "acme", "--scope", "everything")
    assert code == 1 and "everything" in error
    token_id = text.split("_")[1]
    listed = cmis("token", "list", "acme")[1]
    assert token_id in listed and "ingest,read" in listed and "feed" in listed and text.strip() not in listed
    assert text.strip().split("_", 2)[2].encode() not in (tmp_path / "store.db").read_bytes(), "stored as it is"
    assert cmis("token", "revoke", token_id)[:2] == (0, f"Revoked {token_id}.\n")
    assert "revoked" in cmis("token", "list", "acme")[1]
    assert cmis("token", "revoke", token_id)[0] == 1


def test_a_rule_file_that_breaks_while_running_is_told_and_changes_nothing(processes: Processes, tmp_path: Path) -> None:
    data, rules = tmp_path / "data", tmp_path / "rules.json"
    rules.write_text("[]")
    process = processes.cmis("up", "--data-dir", data, "--port", 0, "--no-live", "--rules", rules)
    process.says("Ready in")
    rules.write_text("[{")
    assert "the rules before stay in force" in process.says("not JSON")
    assert process.stop() == 0


def test_a_backplane_that_is_none_is_told_in_a_sentence(processes: Processes, tmp_path: Path) -> None:
    process = processes.cmis("up", "--data-dir", tmp_path / "data", "--port", 0, "--backplane", "http://somewhere")
    assert process.ended(60) == 1
    assert process.text.startswith("cmis: --backplane: got 'http://somewhere', expected redis://HOST:PORT/DB")
