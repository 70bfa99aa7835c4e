"""The main job through its front door, on tiny local models and data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openbook.config import Config
from openbook.experiment import load_experiment

pytestmark = pytest.mark.filterwarnings("ignore")


def tiny(encoder_folder: Path, generator_folder: Path, data: Path, run: Path, *more: str) -> Config:
    (run.parent / "base.yaml").write_text("shows: nothing\n", encoding="utf-8")
    files = [f"data.{key}={data / name}.jsonl" for key, name in
             (("corpus", "passages"), ("train", "train"), ("validation", "validation"), ("test", "test"))]  # fmt: skip
    return load_experiment(str(run.parent / "base.yaml"), [
        *files, f"data.cache={run.parent / 'cache'}", f"run.dir={run}", f"retriever.question_encoder={encoder_folder}",
        f"retriever.passage_encoder={encoder_folder}", f"generator.model={generator_folder}", "trainer.max_steps=6",
        "trainer.batch_size=5", "trainer.validate_every=3", "trainer.checkpoint_every=2", "refresh.every=2",
        "trainer.precision=fp32", "trainer.accelerator=cpu", "wandb.mode=disabled", "data.max_context_tokens=80",
        "retriever.n_docs=3", *more,
    ])  # fmt: skip


def test_a_run_folder_holds_what_the_design_promises(encoder_folder: Path, generator_folder: Path, small_data: Path, tmp_path: Path) -> None:
    from openbook.train import train

    run = train(tiny(encoder_folder, generator_folder, small_data, tmp_path / "run"))
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.csv", "checkpoints", "predictions.jsonl", "report.html", "summary.json"} <= names
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["steps"] == 6
    assert set(summary["seconds"]) == {"total", "setup", "train", "refresh", "evaluate"}
    assert {"exact_match", "f1", "recall_at_1", "recall_at_5", "recall_at_20", "n_questions"} <= set(summary["test"])
    assert summary["test"]["n_questions"] == summary["before_training"]["n_questions"] == 7
    assert summary["index"] == {"generation": 3, "n_passages": 37, "factory": "Flat"}
