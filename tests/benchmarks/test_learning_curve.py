"""The learning curve: subsets of a training file, the table of finished runs, and the data set that is made for it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from benchmarks.data import trials
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


def test_of_several_seeds_the_table_has_means_and_the_outermost_bounds() -> None:
    of_seeds = [
        {"f1": {"before": 0.1, "after": after, "interval": [low, high]}}
        for after, low, high in ((0.2, 0.05, 0.15), (0.3, 0.01, 0.12), (0.4, 0.03, 0.25))
    ]
    assert learning_curve.table("x", {"9": of_seeds}).splitlines()[-1] == "| 9 | 0.100, 0.300 (+0.010 to +0.250) | 3 |"


def test_studies_become_questions_and_passages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = [f"Sentence {number} " + "has ten more words that say nothing at all here." for number in range(8)]
    bodies = [
        " ".join([*sentences[:6], "We saw 40 healthy men. Then 12 women came.", *sentences[6:]]),
        "Adults with asthma's worst form breathed.",
        "Nobody is named here.",
        "Untitled text of one paragraph about 30 old men.",
    ]
    titles = ["A study of men.\n\n", "Asthma\n", "Title with 9 boys\n", ""]
    spans = ["'40 healthy men', '12 women '", "'Adults with asthma's worst form'", "'9 boys'", "'30 old men'"]
    rows = [
        {
            "input": [{"content": "x"}, {"content": title + body}],
            "ideal": f"In the abstract, population demographics are defined by the following spans: {span}",
        }
        for title, body, span in zip(titles, bodies, spans, strict=True)
    ]
    wheel = tmp_path / "evals.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(trials.MEMBER, "".join(json.dumps(row) + "\n" for row in rows))
    assert trials.main([str(wheel), str(tmp_path / "out")]) == 0
    assert "left out: 1 questions" in capsys.readouterr().out
    files = {path.stem: [json.loads(line) for line in path.open()] for path in (tmp_path / "out").glob("*.jsonl")}
    passages = {one["id"]: one["text"] for one in files["passages"]}
    assert all(len(text.split()) <= trials.MOST_WORDS for text in passages.values())
    for number, body in enumerate(bodies):
        assert " ".join(text for key, text in passages.items() if key.startswith(f"{number}-")) == body
    asked = {one["id"]: one for name in ("train", "validation", "test") for one in files[name]}
    assert [(one["question"], one["answers"]) for _, one in sorted(asked.items())] == [
        ("Who was studied in: A study of men.", ["40 healthy men", "12 women"]),
        ("Who was studied in: Asthma", ["Adults with asthma's worst form"]),
    ]
    assert all("healthy men" in passages[key] or "12 women" in passages[key] for key in asked["0"]["positive_ids"])
    assert asked["1"]["positive_ids"] == ["1-0"]


def test_the_page_says_what_was_measured() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "own-data.md").read_text(encoding="utf-8")
    measured = json.loads((docs / "own-data.json").read_text(encoding="utf-8"))
    assert measured
    for name, of_sizes in measured.items():
        assert learning_curve.table(name, of_sizes) in page
