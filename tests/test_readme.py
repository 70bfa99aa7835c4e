"""README stays true: its commands exist, its keys are keys, its files are there."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from openbook.config.load import list_experiments, load_experiment
from openbook.config.schema import keys_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line for line in BLOCKS.splitlines() if line.startswith("make ")]


def test_the_two_commands_are_there() -> None:
    assert {"make train EXP=rag_token", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_make_knows_every_command(command: str) -> None:
    """A dry run: make would do it, and the key=value words are of the configuration."""
    planned = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert planned.returncode == 0, planned.stderr
    for word in shlex.split(command):
        if word.startswith("EXP="):
            assert word[4:] in list_experiments(ROOT / "experiments")
        if word.startswith("ARGS="):
            for override in shlex.split(word[5:]):
                assert override.partition("=")[0] in set(keys_of())


def test_every_target_is_documented_by_help() -> None:
    said = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[0] for line in said.splitlines()[1:]} == targets


def test_every_key_that_is_named_is_a_key() -> None:
    sections = {key.split(".")[0] for key in keys_of() if "." in key}
    named = set(re.findall(rf"\b((?:{'|'.join(sections)})\.[a-z_.]+)(?==)", README))
    assert named <= set(keys_of()), named - set(keys_of())


def test_every_file_that_is_named_is_there() -> None:
    for name in re.findall(r"`((?:src|experiments|callbacks|docs|tests)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name


def test_the_batches_of_the_example_on_gpus_make_sense() -> None:
    assert load_experiment("factbook_full", ["trainer.devices=8"], ROOT / "experiments").trainer.devices == 8


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"], citation["version"], citation["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert f"\n## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
