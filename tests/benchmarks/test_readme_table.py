"""README's table: made of docs/readme.json alone, whose rows are replaced by runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.docs_page import between_marks
from benchmarks.common.readme_table import main, replaced, table
from openbook.config.load import list_experiments
from openbook.errors import OpenBookError

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "docs/readme.json").read_text(encoding="utf-8"))["rows"]


def run_of(folder: Path, seed: int, exact_match: float, **changes: Any) -> Path:
    folder.mkdir()
    before = {"exact_match": 0.5, "by_phrasing": {"held_out": {"exact_match": 0.25}}}
    test = {"exact_match": exact_match, "f1": 0.75, "by_phrasing": {"held_out": {"exact_match": 0.125}}}
    summary = {"experiment": "rag_token", "status": "finished", "seed": seed, "test": test, "before_training": before}
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    (folder / "environment.json").write_text(json.dumps({"commit": "0123456789abcdef"}))
    return folder


def test_the_table_in_readme_is_the_one_of_the_figures() -> None:
    """`python -m benchmarks.common.readme_table` mends it."""
    assert between_marks(ROOT / "README.md", table(ROWS), "results") == (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_row_is_an_experiment_with_the_commit_that_measured_it() -> None:
    known = {"before training", *list_experiments(ROOT / "experiments")}
    assert {row["what"] for row in ROWS} <= known and all(len(row["commit"]) >= 7 for row in ROWS)


def test_runs_replace_the_rows_of_their_experiments(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "a", 1, 0.9), run_of(tmp_path / "b", 0, 0.7)]
    rows = replaced([{"what": "before training"}, {"what": "bm25", "seeds": [0]}, {"what": "rag_token"}], runs)
    assert [row["what"] for row in rows] == ["before training", "bm25", "rag_token"]
    assert rows[1] == {"what": "bm25", "seeds": [0]}
    assert table([rows[0], rows[2]]).splitlines()[2:] == [
        "| before training, seed 1 | 0.500 | - | - | - | 0.250 | - | 0123456 |",
        "| `rag_token`, seeds 0 1 | 0.800 (0.700 to 0.900) | 0.750 | - | - | 0.125 | - | 0123456 |",
    ]


@pytest.mark.parametrize("changes", [{"status": "interrupted"}, {"status": "running"}])
def test_a_run_that_is_not_finished_is_refused(changes: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"no result to publish .*expected a finished run of a committed state"):
        replaced(ROWS, [run_of(tmp_path / "a", 0, 0.9, **changes)])


def test_a_seed_counts_once(tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"two runs of one seed .*got rag_token, seed 0"):
        replaced(ROWS, [run_of(tmp_path / "a", 0, 0.9), run_of(tmp_path / "b", 0, 0.8)])


def test_the_command_writes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    Path("docs/readme.json").write_text(json.dumps({"rows": []}))
    Path("README.md").write_text("one\n<!-- results: begin -->\nold\n<!-- results: end -->\ntwo\n")
    assert main([str(run_of(tmp_path / "a", 0, 0.9))]) == 0
    assert [row["what"] for row in json.loads(Path("docs/readme.json").read_text())["rows"]] == [
        "rag_token",
        "before training",
    ]
    page = Path("README.md").read_text()
    assert page.startswith("one\n<!-- results: begin -->\n| |") and page.endswith("<!-- results: end -->\ntwo\n")
    Path("README.md").write_text("<!-- results: begin -->\n")
    assert main([]) == 2 and "the marks are not a pair" in capsys.readouterr().err
