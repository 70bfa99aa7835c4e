"""The main job through its front door, on tiny local models and data."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.commands.evaluate import evaluate
from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem, column

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_run_folder_holds_what_the_design_promises(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run"))
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "checkpoints",
        "predictions.jsonl",
        "report.html",
        "summary.json",
        "provenance.jsonl",
    } <= names
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 6
    assert set(summary["seconds"]) == {"total", "setup", "train", "refresh", "evaluate"}
    stages, seconds = summary["stages"], summary["seconds"]
    assert list(stages) == ["build", "warmup", "index", "train", "refresh", "validation", "test"]
    assert sum(stages.values()) == pytest.approx(sum(seconds.values()) - seconds["total"], abs=0.05)  # rounding alone
    assert stages["warmup"] == 0 < min(seconds for name, seconds in stages.items() if name != "warmup")
    assert summary["resumed"] is False
    assert {"exact_match", "f1", "recall_at_1", "recall_at_5", "recall_at_20", "n_questions"} <= set(summary["test"])
    assert summary["test"]["n_questions"] == summary["before_training"]["n_questions"] == 7
    # built once, refreshed after steps 2, 4 and 6; after step 6 nothing moved, so the test needs no other
    assert summary["index"] == {"generation": 3, "n_passages": 37, "factory": "Flat"}
    assert list(column(run, "refresh/generation").values()) == [1, 2, 3]
    assert len(column(run, "train/nll")) == 6
    staleness = column(run, "train/staleness")
    assert max(staleness[step] for step in (1, 3, 5)) < 1e-4 < min(staleness[step] for step in (2, 4, 6))
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 6


@pytest.mark.parametrize("objective", ["rag_token", "rag_sequence", "closed_book"])
def test_every_objective_learns_what_it_can(objective: str, small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", f"objective={objective}", "trainer.max_steps=24"))
    nll = list(column(run, "train/nll").values())
    assert sum(nll[-4:]) < 0.8 * sum(nll[:4])
    assert (json.loads((run / "summary.json").read_text())["index"] == {}) == (objective == "closed_book")


def test_resuming_gives_the_run_that_was_not_interrupted(small_system: SmallSystem, tmp_path: Path) -> None:
    """Stopped after step 3 (one step past a refresh, in the middle of an epoch) and resumed: the same numbers."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = train(small_system.config(tmp_path / "a" / "run"))
    config = small_system.config(tmp_path / "b" / "run", "trainer.checkpoint_every=3", "evaluate.before_training=false")

    class StoppedError(Exception):
        pass

    from openbook.callbacks import Throughput

    def raise_after_three(self: Throughput, trainer, module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step == 3:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_start", raise_after_three)
        with pytest.raises(StoppedError):
            train(config)
    resumed = resume(str(tmp_path / "b" / "run"), [])
    for name in ("train/nll", "train/staleness", "refresh/overlap_at_k", "lr-AdamW/generator"):
        assert column(resumed, name) == pytest.approx(column(whole, name), rel=1e-5, abs=1e-6), name
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, resumed))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_two_gloo_processes_give_the_numbers_of_one(small_system: SmallSystem, tmp_path: Path) -> None:
    """The same global batches of 4 on one rank and on two, three refreshes included, an uneven last batch too."""
    runs = {}
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        runs[ranks] = tmp_path / str(ranks) / "run"
        words = small_system.words(
            runs[ranks],
            f"trainer.devices={ranks}",
            f"trainer.batch_size={4 // ranks}",
            "trainer.max_steps=8",
            "evaluate.batch_size=3",
        )
        done = small_system.command("train", *words)
        assert done.returncode == 0, done.stdout[-4000:]
    for name in (
        "train/nll",
        "train/nll_per_token",
        "train/staleness",
        "train/posterior_entropy",
        "validation/recall_at_5",
        "refresh/overlap_at_k",
        "refresh/score_drift",
    ):
        assert column(runs[2], name) == pytest.approx(column(runs[1], name), rel=2e-4, abs=1e-5), name
    one, two = (json.loads((runs[ranks] / "summary.json").read_text()) for ranks in (1, 2))
    # likelihoods differ in their last digits with the batches they were made in
    assert dict(_numbers(two["test"])) == pytest.approx(dict(_numbers(one["test"])), abs=1e-5)
    assert one["index"] == two["index"]
    ids = [[json.loads(line)["id"] for line in (runs[ranks] / "predictions.jsonl").open()] for ranks in (1, 2)]
    assert ids[0] == ids[1]


def test_loader_processes_change_no_number(small_system: SmallSystem, tmp_path: Path) -> None:
    nll = {}
    for workers in (0, 2):
        (tmp_path / str(workers)).mkdir()
        run = tmp_path / str(workers) / "run"
        done = small_system.command("train", *small_system.words(run, f"data.workers={workers}"))
        assert done.returncode == 0, done.stdout[-4000:]
        nll[workers] = column(run, "train/nll")
    assert nll[0] == nll[2]


def test_a_signal_leaves_a_run_that_resumes(small_system: SmallSystem, tmp_path: Path) -> None:
    words = small_system.words(
        tmp_path / "run", "trainer.max_steps=100000", "trainer.validate_every=100000", "evaluate.before_training=false"
    )
    process = small_system.start("train", *words)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "checkpoints").glob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said[-3000:]
    assert "make resume RUN=" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    stopped_at = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    run = resume(str(tmp_path / "run"), [f"trainer.max_steps={stopped_at + 2}"])
    assert json.loads((run / "summary.json").read_text())["steps"] == stopped_at + 2
    assert sorted(column(run, "train/nll")) == list(range(1, stopped_at + 3))


def test_the_last_step_is_saved_whatever_the_interval(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=5", "trainer.checkpoint_every=4"))
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 5


def test_a_run_without_a_checkpoint_starts_again(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=2"))
    (run / "checkpoints" / "last.ckpt").unlink()
    (run / "checkpoints" / ".last.ckpt.123.new").write_bytes(b"half")
    assert json.loads((resume(str(run), []) / "summary.json").read_text())["steps"] == 2
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_stale_index_is_tested_again_as_it_was(small_system: SmallSystem, tmp_path: Path) -> None:
    words = ["refresh.every=0", "refresh.fresh_test=false", "trainer.max_steps=9"]
    run = train(small_system.config(tmp_path / "run", *words))
    trained = json.loads((run / "summary.json").read_text())["test"]
    assert json.loads(evaluate(str(run), []).read_text())["test"] == trained
    fresh = json.loads(evaluate(str(run), ["refresh.fresh_test=true"]).read_text())["test"]
    assert fresh != trained


def test_without_validation_and_test_files(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", "data.validation=", "data.test="))
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["test"]) == ("finished", {})


def test_bf16_and_per_token_reduction_learn_too(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(
        small_system.config(
            tmp_path / "run", "trainer.precision=bf16", "trainer.reduction=token", "trainer.max_steps=24"
        )
    )
    nll = list(column(run, "train/nll").values())
    assert sum(nll[-4:]) < 0.8 * sum(nll[:4])


def test_evaluate_repeats_the_test_and_takes_another_corpus(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run"))
    trained = json.loads((run / "summary.json").read_text())["test"]
    again = json.loads(evaluate(str(run), []).read_text())["test"]
    assert again == trained
    other = tmp_path / "other.jsonl"
    lines = (small_system.data / "passages.jsonl").read_text().splitlines()
    other.write_text("\n".join(lines[:5]), encoding="utf-8")
    shrunk = evaluate(str(run), [f"data.corpus={other}"])
    assert shrunk.parent.name == "2"
    assert json.loads(shrunk.read_text())["test"]["recall_at_20"] < 1


def test_a_run_is_never_mixed_with_another(small_system: SmallSystem, tmp_path: Path) -> None:
    config = small_system.config(tmp_path / "run", "trainer.max_steps=1", "evaluate.before_training=false")
    train(config)
    with pytest.raises(OpenBookError, match=r"the run folder holds a run already.*make resume RUN="):
        train(config)


def test_a_run_answers_from_what_bm25_finds_too(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=1"))
    found = json.loads(evaluate(str(run), ["retriever.kind=bm25", "retriever.temperature=1"]).read_text())["test"]
    assert found["n_questions"] > 0 and found["recall_at_20"] > 0
    with pytest.raises(OpenBookError, match=r"weights do not fit.*last.ckpt\).*objective and models"):
        evaluate(str(run), ["objective=closed_book"])


def _numbers(tree: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested dicts and lists, by its path."""
    if isinstance(tree, dict | list):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _numbers(part, f"{path}/{name}")
    else:
        yield path, tree
