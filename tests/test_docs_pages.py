"""Every page: its commands would be done, its keys are keys, its files and links are there.

Commands are parsed and checked here, by make's dry run and by openbook's own parsers; what README, docs/data.md,
docs/exchange.md and the notebook show is run by their own tests.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from openbook.commands.parsers import COMMANDS, parser_of
from openbook.config.load import list_experiments
from openbook.config.schema import keys_of

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
KEYS = set(keys_of())
SECTIONS = {key.split(".")[0] for key in KEYS if "." in key}
NOT_KEYS = {"data.json", "run.trec", "index.json", "index.faiss", "retriever.snapshot"}  # files, and a line of code


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def commands() -> list[tuple[str, str]]:
    """(page, command) of every fenced, indented and inline command of make or openbook, each once."""
    found = []
    for name in PAGES:
        text = text_of(name)
        blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
        blocks += re.findall(r"^    ((?:make|openbook) .*)$", text, re.MULTILINE)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += [" ".join(one.split()) for one in re.findall(r"`((?:make|openbook) [^`]+)`", text)]
        for line in lines:
            words = re.sub(r"\s+#.*", "", line.strip()).removeprefix(
                'OPENBOOK="$PWD/experiments/cluster/container.sh" '
            )
            words = re.sub(r"\s*(<|>|\|) .*", "", words)
            if re.match(r"(make|openbook) [a-z]", words):
                found.append((name, re.sub(r"(=)?\.\.\.", r"\1x", words)))
    return list(dict.fromkeys(found))


COMMANDS_OF = commands()


def check_experiment(name: str) -> None:
    known = name in list_experiments(ROOT / "experiments") or (ROOT / "experiments" / f"{name}.yaml").is_file()
    assert known or name in ("x", "NAME", "EXPERIMENT", "EXP"), name


def check_overrides(words: list[str]) -> None:
    named = {word.partition("=")[0] for word in words if re.match(r"[a-z_.]+=", word)}
    assert named <= KEYS | {"key"}, named - KEYS


def test_there_are_commands_in_many_pages() -> None:
    assert len(COMMANDS_OF) > 60 and len({page for page, _ in COMMANDS_OF}) > 10


@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS_OF if command.startswith("make ")}))
def test_make_would_do_it(command: str) -> None:
    words = shlex.split(command)[1:]
    planned = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    for line in re.findall(r"-m openbook ([^>\n]+)", planned.stdout):  # what make would run, as openbook reads it
        if "sbatch" not in line and "$" not in line:
            openbook_reads(shlex.split(line))
    for word in words:
        name, is_set, value = word.partition("=")
        if is_set and name in ("EXP", "EXPS"):
            for one in value.split():
                check_experiment(one)
        if is_set and name == "SWEEP" and value != "x":
            assert (ROOT / f"experiments/sweeps/{value}.yaml").is_file()
        if is_set and name == "ARGS" and words[0] not in ("test", "keys", "export"):
            check_overrides(shlex.split(value))


@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS_OF if command.startswith("openbook ")}))
def test_openbook_would_parse_it(command: str) -> None:
    openbook_reads(shlex.split(command)[1:])


def openbook_reads(command: list[str]) -> None:
    """Its parser takes the words, and experiment and keys are known."""
    name, *words = command
    assert name in COMMANDS or name == "COMMAND"
    if name in COMMANDS and not {"--help", "-h"} & set(words):
        parsed = parser_of(name).parse_intermixed_args(words)  # exits on an unknown option
        if COMMANDS[name].usage.startswith("EXPERIMENT ") and parsed.words:
            check_experiment(parsed.words[0])
        check_overrides(parsed.words)


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"CHANGELOG.md"}))
def test_every_key_that_is_set_or_named_is_a_key(page: str) -> None:
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    named = {
        key for span in spans for key in re.findall(rf"(?:^|\s)((?:{'|'.join(SECTIONS)})\.[a-z_]+)(?=[=\s]|$)", span)
    }
    assert named - NOT_KEYS <= KEYS, named - KEYS


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_and_file_is_there(page: str) -> None:
    folder, text = PAGES[page].parent, text_of(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            path, _, anchor = target.partition("#")
            assert (folder / path).exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.*)$", (folder / path).read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target
    for name in re.findall(r"`((?:src|experiments|callbacks|docs|tests|benchmarks)/[\w./]+[\w/])`", text):
        assert (ROOT / name).exists() or name in ("docs/faults.json",), name
