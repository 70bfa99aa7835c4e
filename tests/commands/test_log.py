"""A run into a pipe: few plain lines, each of progress with rate and time left; and quiet, where asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openbook.utils import console
from tests.small_system import SmallSystem


@pytest.fixture(scope="module")
def log(small_system: SmallSystem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder, and what its run said; every call of a stage is due for a line."""
    folder = tmp_path_factory.mktemp("log")
    run = folder / "run"
    script = (
        "from openbook.utils import console\n"
        "console._FIRST = console._EVERY = console._SHARE = -1.0\n"
        "from openbook.__main__ import main\n"
        f"raise SystemExit(main({['train', *small_system.words(run)]!r}))\n"
    )
    process = small_system.start_python(script)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    return run, said


def test_a_log_has_no_escape_codes(log: tuple[Path, str]) -> None:
    assert not re.search(r"[\r\x1b\x08]", log[1])


def test_progress_has_rate_and_time_left(log: tuple[Path, str]) -> None:
    lines = log[1].splitlines()
    training = [line for line in lines if line.startswith("training: ")]
    assert len(training) == 6  # steps, each of which was due
    number, seconds = r"[\d.,e+]+", r"[\d.]+ (s|min)"
    for step, line in enumerate(training, 1):
        left = rf", {seconds} left" if step < 6 else ""
        assert re.fullmatch(
            rf"training: {step} of 6 steps \({number}/s{left}\), {number} questions/s in the step, loss {number}, "
            rf"last validation exact match {number}, recall@1 {number}",
            line,
        ), line
    for label, batches in (("validating", 3), ("testing", 2)):  # of the start and every third step; before and after
        told = [line for line in lines if re.match(rf"{label}: 1 of 1 batches \({number}/s\)$", line)]
        assert len(told) == batches, lines


def test_the_baseline_is_told_as_soon_as_it_is_measured(log: tuple[Path, str]) -> None:
    lines = log[1].splitlines()
    before = next(n for n, line in enumerate(lines) if line.startswith("test split before training: 7 questions in "))
    assert re.search(r", exact match [\d.]+ %, F1 [\d.]+ %, recall@1 [\d.]+ %", lines[before])
    assert before < next(n for n, line in enumerate(lines) if line.startswith("training: "))


def test_a_run_in_a_pipe_is_short(small_system: SmallSystem, log: tuple[Path, str], tmp_path: Path) -> None:
    """As it is, quiet and not: a run, a resumed one and a test."""
    words = small_system.words(tmp_path / "run")
    done = small_system.command("train", *words)
    assert done.returncode == 0 and len(done.stdout.splitlines()) <= 60, done.stdout
    again = small_system.command("evaluate", str(log[0]), "--quiet")
    lines = again.stdout.splitlines()
    assert again.returncode == 0 and "exact match" in again.stdout and lines[-1].startswith("results in ")
    assert not re.search("encoding|estimate|weights of step|encoders:", again.stdout)


def test_quiet_is_warnings_and_the_result(small_system: SmallSystem, tmp_path: Path) -> None:
    words = small_system.words(tmp_path / "run", "trainer.max_steps=3")
    done = small_system.command("train", *words, "--quiet")
    assert done.returncode == 0, done.stdout
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    known = r"warning:|test split (before|after) training: |small: test split|metric|─|exact match|F1|recall@|report |"
    known += r"metrics |checkpoint |also |training |Try |no validation "
    assert [line for line in lines if not re.match(known, line)] == []
    assert sum(line.startswith("test split ") for line in lines) == 2
    more = small_system.command("resume", str(tmp_path / "run"), "trainer.max_steps=4", "--quiet")
    assert more.returncode == 0 and "resuming" not in more.stdout and "test split after training" in more.stdout


def test_the_variable_of_the_environment_is_quiet_too(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(console.QUIET, "1")
    done = small_system.command("data", *small_system.words(tmp_path / "run"))
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("counts in ")
    assert "encoders:" not in done.stdout
