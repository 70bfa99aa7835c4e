"""The published results: what docs_results writes into docs/ and what it keeps there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.image import imread

from benchmarks.common import docs_results
from benchmarks.common.docs_results import results, write_comparison, write_hot_swap
from openbook.config.load import load_experiment, to_yaml
from openbook.errors import OpenBookError
from openbook.reporting.comparison_table import Row

BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def row(experiment: str, *matches: float) -> Row:
    return Row(experiment, {seed: {"exact_match": match} for seed, match in enumerate(matches)})


def test_a_comparison_keeps_what_others_wrote(tmp_path: Path) -> None:
    page, figures = tmp_path / "results.md", tmp_path / "results.json"
    page.write_text(f"# Mine\n\nbefore\n{BEGIN}\nold\n{END}\nafter\n")
    others = {"hot_swap": {"matched": 1}, "decode": {"x": 2}}
    figures.write_text(json.dumps({**others, "bm25": {}, "rag_token": {"f1": {}}}))
    write_comparison(tmp_path, [row("rag_token", 0.25, 0.5)], {}, "make compare A", ["bm25", "rag_token"])
    text = page.read_text()
    assert text.startswith(f"# Mine\n\nbefore\n{BEGIN}\n`make compare A`")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text.split("after")[0].replace("closed book", "")
    assert "0.375 (0.250 to 0.500)" in text
    assert json.loads(figures.read_text()) == {
        "rag_token": {"exact_match": {"mean": 0.375, "min": 0.25, "max": 0.5, "n": 2}},
        **others,
    }
    assert imread(tmp_path / "images/results.png").shape[1] == 1140
    write_comparison(tmp_path, [row("rag_token", 0.25, 0.5)], {}, "make compare A", ["bm25", "rag_token"])
    assert page.read_text() == text


def test_a_named_comparison_has_a_section_of_its_own(tmp_path: Path) -> None:
    write_comparison(tmp_path, [row("rag_token", 0.25)], {}, "make compare A", ["rag_token"])
    for match in (0.5, 0.75):
        write_comparison(tmp_path, [row("a/b", match)], {}, "make compare B", ["rag_token", "a/b"], "pairs")
    text, figures = (tmp_path / "results.md").read_text(), json.loads((tmp_path / "results.json").read_text())
    assert text.count(BEGIN) == text.count("<!-- pairs: begin -->") == text.count("`make compare B`") == 1
    assert set(figures) == {"rag_token", "pairs"} and figures["pairs"]["a/b"]["exact_match"]["mean"] == 0.75
    assert (tmp_path / "images/results.png").is_file() and (tmp_path / "images/results_pairs.png").is_file()
    write_comparison(tmp_path, [row("bm25", 0.25)], {}, "make compare A", ["bm25", "rag_token"])
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"bm25", "pairs"}


def test_docs_are_begun_and_refused(tmp_path: Path) -> None:

    def write() -> None:
        write_comparison(tmp_path, [row("rag_token", 0.25)], {}, "make compare A", [])

    write()
    page = tmp_path / "results.md"
    assert page.read_text().startswith(f"# Results\n\n{BEGIN}\n")
    page.write_text(f"{END}\n{BEGIN}\n")
    with pytest.raises(OpenBookError, match=r"the marks are not a pair \(.*results.md\)"):
        write()
    page.unlink()
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(OpenBookError, match=r"not readable as JSON \(.*results.json\)"):
        write()
    assert not page.exists()


def finished(
    folder: Path, matched: float, mismatched: float, config: Sequence[str] = (), age: float = 0.0, **other: object
) -> Path:
    (folder / "hot_swap").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_experiment("rag_token", config, EXPERIMENTS)), encoding="utf-8")
    content = {
        "experiment": "rag_token",
        "overrides": [],
        "n_questions": 11,
        "matched": matched,
        "mismatched": mismatched,
        "table": {
            "original_index": {"original_facts": matched, "changed_facts": mismatched},
            "changed_index": {"original_facts": mismatched, "changed_facts": matched},
        },
        **other,
    }
    (folder / "hot_swap" / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    os.utime(folder / "hot_swap" / "summary.json", (time.time() - age,) * 2)
    return folder


def test_hot_swap_results_are_a_mean_and_a_range(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(n), *values) for n, values in enumerate([(0.8, 0.0), (0.9, 0.03), (0.94, 0.06)])]
    spread = results(runs)
    assert (spread["matched"], spread["matched_range"]) == (pytest.approx(0.88), [0.8, 0.94])
    assert (spread["mismatched"], spread["mismatched_range"]) == (pytest.approx(0.03), [0.0, 0.06])
    assert spread["n"] == 3
    assert spread["table"]["changed_index"]["changed_facts"] == pytest.approx(0.88)
    (tmp_path / "none").mkdir()
    with pytest.raises(OpenBookError, match=r"no hot-swap in this run folder \(.*none\).*make hot-swap RUN="):
        results([*runs, tmp_path / "none"])


def test_a_hot_swap_keeps_what_others_wrote(tmp_path: Path) -> None:
    first = finished(tmp_path / "runs" / "a", 0.8, 0.0)
    finished(tmp_path / "runs" / "b", 0.9, 0.02, ["seed=1"], overrides=["trainer.accelerator=cpu"])
    finished(tmp_path / "runs" / "before", 0.2, 0.4, ["seed=1"], age=60)
    finished(tmp_path / "runs" / "longer", 0.2, 0.4, ["seed=2", "trainer.max_steps=99"])
    finished(tmp_path / "runs" / "other", 0.1, 0.5, overrides=["evaluate.n_docs=1"])
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.json").write_text('{"rag_token": {"f1": 1}, "hot_swap": {}}', encoding="utf-8")
    (docs / "results.md").write_text("# Results\n\ntheirs\n", encoding="utf-8")
    for _ in range(2):
        write_hot_swap(docs, first)
    figures = json.loads((docs / "results.json").read_text())
    assert figures["rag_token"] == {"f1": 1}
    assert figures["hot_swap"] == results([tmp_path / "runs" / "a", tmp_path / "runs" / "b"])
    page = (docs / "results.md").read_text()
    assert page.startswith("# Results\n\ntheirs\n") and page.count("hot-swap: begin") == 1
    assert "matched 85.0 % (80.0 to 90.0)" in page and "| original | 85.0 % |" in page
    (docs / "results.md").write_text(page + "\nbelow\n", encoding="utf-8")
    write_hot_swap(docs, first)
    assert (docs / "results.md").read_text() == page + "\nbelow\n"
    (docs / "results.json").write_text("[", encoding="utf-8")
    with pytest.raises(OpenBookError, match=r"not readable as JSON \(.*results.json\)"):
        write_hot_swap(docs, first)
    assert (docs / "results.json").read_text() == "["


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["hot-swap"], "error: `hot-swap` needs a run folder"),
        (["train", "rag_token"], "error: no results for the docs: got train, expected compare or hot-swap"),
    ],
)
def test_bad_input_is_one_line(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs_results.main(words) == 2
    assert capsys.readouterr().err.startswith(error)


def test_the_command_line_writes_what_a_hot_swap_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert docs_results.main(["hot-swap", str(finished(tmp_path / "runs" / "a", 0.8, 0.0))]) == 0
    assert json.loads((tmp_path / "docs/results.json").read_text())["hot_swap"]["matched"] == 0.8
    assert capsys.readouterr().out.splitlines() == ["wrote docs/results.md", "wrote docs/results.json"]
