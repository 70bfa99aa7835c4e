"""The comparison of moving and resting passages: its four runs, its tables, and the encoders that know less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from benchmarks.index import moving
from openbook.config.load import flat, load_experiment
from openbook.config.models import MINILM
from openbook.config.schema import Config
from openbook.models.pretrained import model_folder
from tests.small_system import SmallSystem


def test_four_runs_are_trained_once_and_compared(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = small_system.words(tmp_path / "unused", "trainer.max_steps=2")
    words = [word for word in words[1:] if not word.startswith(("run.dir=", "refresh.every="))]
    asked = [*words, "--seeds", "0", "--layers", "6"]
    (tmp_path / "docs").mkdir()
    assert moving.main([*asked, "--docs"]) == 0
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in said] == [
        "| ",
        "|---|---|---|",
    ] + [f"| `{name}`" for name in moving.CONDITIONS] + ["| difference, paired", "|---|---|---|"] + [
        f"| `{ahead}` - `{behind}`" for ahead, behind in moving.PAIRS
    ]
    runs = tmp_path / "runs" / "moving" / "6"
    for condition in moving.CONDITIONS:
        summary = json.loads((runs / f"{condition}-seed0" / "summary.json").read_text())
        line = next(line for line in said if line.startswith(f"| `{condition}` |"))
        cells = line.strip("| ").split(" | ")
        assert cells[1:3] == [f"{summary['test'][name]:.3f}" for name in ("exact_match", "recall_at_1")]
    written = {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}
    assert moving.main(asked) == 0
    assert len(written) == 4 and written == {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}
    assert said[2] in (tmp_path / "docs" / "results.md").read_text()


@pytest.mark.parametrize("condition", moving.CONDITIONS)
def test_a_condition_changes_the_whole_factbook_as_it_changes_rag_token(condition: str) -> None:
    def changed(before: Config, after: Config) -> dict[str, object]:
        then = flat(before)
        return {key: value for key, value in flat(after).items() if "." in key and value != then[key]}

    whole = changed(load_experiment("factbook_full"), load_experiment("factbook_full", moving.changes_of(condition)))
    assert whole == changed(load_experiment("rag_token"), load_experiment(condition))


def test_differences_are_of_the_same_questions_over_the_seeds() -> None:
    def run(*values: float) -> moving.Answers:
        return {measure: dict(zip("abcd", values, strict=True)) for measure in moving.MEASURES}

    found = {
        "frozen_retriever": [run(0, 0, 0, 0), run(0, 0, 0, 1)],
        "query_only": [run(1, 1, 1, 1), run(1, 1, 1, 0)],
        "stale_index": [run(1, 1, 1, 1), run(1, 1, 1, 0)],
        "rag_token": [run(1, 1, 1, 1), run(1, 1, 1, 1)],
    }
    measured = moving.figures(found)
    assert measured["means"]["frozen_retriever"]["recall@1"] == [0.0, 0.25]
    differences = {pair: of["recall@1"] for pair, of in measured["differences"].items()}
    mean, low, high = differences["query_only - frozen_retriever"]
    assert mean == 0.75 and 0 <= low <= mean <= high <= 1  # three questions gain 1, one gains nothing
    assert differences["stale_index - query_only"] == [0, 0, 0]
    assert "| `rag_token` | 1.000 (1.000 to 1.000) |" in moving.tables(measured)


def test_an_encoder_of_fewer_layers_keeps_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "ROOT", tmp_path)
    ids = torch.tensor([[101, 2054, 2003, 102]])
    few, whole = (BertModel.from_pretrained(one).eval() for one in (moving.with_layers(3), model_folder(MINILM)))
    assert few.config.num_hidden_layers == 3
    whole.encoder.layer = torch.nn.ModuleList(whole.encoder.layer[place] for place in (0, 2, 5))
    with torch.no_grad():
        assert torch.equal(few(ids).last_hidden_state, whole(ids).last_hidden_state)
