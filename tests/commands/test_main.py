"""The command line: help without heavy imports, one parser per command, errors and exit codes."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from openbook.__main__ import main
from openbook.commands.parsers import COMMANDS, EXAMPLE, parse, subject_of
from openbook.config.load import load_experiment
from openbook.config.schema import keys_of
from openbook.errors import OpenBookError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("words", [["--help"], ["compare", "-h"], ["train", "-h"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom openbook.__main__ import main\n"
        f"try:\n    main({words})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'omegaconf', 'rich', 'lightning', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n" and done.stdout.startswith("usage: openbook ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith(f"usage: openbook {command} ")
    assert "--debug" in said and "--quiet" in said and said.endswith(f"example:\n  openbook {EXAMPLE[command]}\n")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"\n  {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_one(command: str) -> None:
    """It parses, has what the command needs, and what it sets can be set."""
    parsed = parse(shlex.split(EXAMPLE[command]))
    subject, rest = subject_of(parsed)
    assert parsed.command == command and bool(subject) >= bool(COMMANDS[command].subject)
    if COMMANDS[command].usage.startswith("EXPERIMENT "):
        load_experiment(subject, [word for word in rest if "=" in word])
    assert {word.partition("=")[0] for word in rest if "=" in word} <= set(keys_of())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert capsys.readouterr().out == f"openbook {declared}\n"


@pytest.mark.parametrize(("written", "meant"), [("trian", "train"), ("anwsers", "answers"), ("hotswap", "hot-swap")])
def test_a_near_command_is_named(written: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([written, "rag_token"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"no such command: {written}. Did you mean {meant}?\n")


def test_words_and_options_mix() -> None:
    parsed = parse(["--debug", "compare", "a", "--seeds", "0 1", "seed.x=1", "b", "--dry-run"])
    assert (parsed.command, parsed.words, parsed.seeds) == ("compare", ["a", "seed.x=1", "b"], "0 1")
    assert parsed.debug and parsed.dry_run
    assert subject_of(parse(["data", "seed=1"])) == ("", ["seed=1"])
    assert subject_of(parse(["data", "tiny", "seed=1"])) == ("tiny", ["seed=1"])


@pytest.mark.parametrize("words", [[], ["trian"], ["train", "rag_token", "--docs"], ["list", "--n", "3"]])
def test_an_unknown_command_or_option_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: openbook" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "no_such_experiment"]) == 2
    assert capsys.readouterr().err.startswith("error: no such experiment")
    with pytest.raises(OpenBookError, match="no such experiment"):
        main(["show", "no_such_experiment", "--debug"])


def test_one_rank_reports_the_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["show", "no_such_experiment"]) == 2
    assert capsys.readouterr().err == ""


def test_small_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "optim.clip"]) == 0
    assert capsys.readouterr().out.startswith("optim.clip ")
    assert main(["list"]) == 0
    assert any(line.startswith("rag_token ") for line in capsys.readouterr().out.splitlines())
    assert main(["show", "rag_token", "seed=7"]) == 0
    assert "\nseed: 7\n" in capsys.readouterr().out
