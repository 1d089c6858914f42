"""What the repository promises around the code: the wheel, the README's commands, the docs' links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

from cmis_stream.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])


def command_of(words: list[str]) -> click.Command:
    """The click command that `cmis WORDS` runs; fails when a word or an option does not exist."""
    command: click.Command = main
    while words and isinstance(command, click.Group) and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
    for word in words:
        assert not word.startswith("-") or word in known, f"{command.name} has no option {word}"
    return command


def test_the_wheel_ships_the_agents_and_the_topics(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"agents/metrics.py", "cmis_stream/topics.yaml", "cmis_stream/cli.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "scripts/"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_targets_and_links_of_the_documentation_exist(page: Path) -> None:
    text = page.read_text()
    for line in re.findall(r"^ {4}cmis (.+?)(?: {2,}#.*)?$", text, re.M):
        for part in re.split(r" && cmis | \| cmis |; cmis ", line):
            assert isinstance(command_of(shlex.split(part.partition(";")[0])), click.Command)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"(?:^ {4}|`)make ([a-z-]+)", text, re.M):
        assert target in targets, f"{page.name} names make {target}"
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_no_page_or_script_names_this_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    home = re.compile(r"(?<![\w.])/(?:home|root|work)/\w")
    for name in tracked or [str(page.relative_to(ROOT)) for page in PAGES]:
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            assert not home.search(path.read_text(errors="replace")), f"{name} holds a path of one machine"
