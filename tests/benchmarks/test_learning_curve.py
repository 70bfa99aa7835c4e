"""The learning curve: subsets of a training file, and the table of finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.training import learning_curve
from openbook.data.question_file import QuestionFile
from tests.small_system import SmallSystem


def test_a_subset_is_spread_over_the_file(small_system: SmallSystem, tmp_path: Path) -> None:
    path = small_system.data / "train.jsonl"
    some = learning_curve.subset(path, 5, tmp_path)
    assert [example.id for example in QuestionFile(some)] == ["q0", "q4", "q9", "q13", "q18"]
    assert learning_curve.subset(path, 0, tmp_path) == learning_curve.subset(path, 99, tmp_path) == path


def test_runs_are_made_once_and_tabled(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = small_system.words(tmp_path / "unused", "trainer.max_steps=2")
    words = [word for word in words if not word.startswith("run.dir=")]
    assert learning_curve.main(["small", *words, "--sizes", "8 0", "--seeds", "0"]) == 0
    said = capfd.readouterr().out
    table = [line for line in said.splitlines() if line.startswith("|")]
    assert table[0].startswith("| small: questions | recall@1: before, after (95 % interval of the difference) |")
    assert [line.split(" | ")[0] for line in table[2:]] == ["| 8", "| 23"]
    run = tmp_path / "runs" / "learning-curve" / "small" / "8-seed0"
    summary = json.loads((run / "summary.json").read_text())
    before, after = summary["before_training"]["recall_at_5"], summary["test"]["recall_at_5"]
    assert f"{before:.3f}, {after:.3f} (" in table[2]
    written = (run / "summary.json").stat().st_mtime_ns
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "own-data.md").write_text("before\n<!-- small: begin -->\nold\n<!-- small: end -->\nafter\n")
    assert learning_curve.main(["small", *words, "--sizes", "8", "--docs"]) == 0
    assert (run / "summary.json").stat().st_mtime_ns == written
    page = (tmp_path / "docs" / "own-data.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and table[2] in page and "old" not in page
    figures = json.loads((tmp_path / "docs" / "own-data.json").read_text())["small"]["8"][0]
    assert (figures["recall_at_5"]["before"], figures["recall_at_5"]["after"]) == (before, after)


def test_the_page_says_what_was_measured() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "own-data.md").read_text(encoding="utf-8")
    measured = json.loads((docs / "own-data.json").read_text(encoding="utf-8"))
    assert measured
    for name, of_sizes in measured.items():
        assert learning_curve.table(name, of_sizes) in page
