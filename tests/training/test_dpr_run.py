"""DPR training as a run of its own, and runs that start from its encoders."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openbook.commands.evaluate import evaluate
from openbook.commands.train import resume, train
from openbook.config.load import load_resolved
from openbook.errors import OpenBookError
from openbook.reporting.results_table import results_table
from openbook.setup import models as setup_models
from openbook.setup.start_from import resolve_start
from openbook.tracking import run_folder as runs
from openbook.tracking.checkpoint import read_checkpoint
from openbook.tracking.checkpoint_io import WholeCheckpoints
from tests.small_system import SmallSystem, column, train_until

pytestmark = pytest.mark.filterwarnings("ignore")


DPR = ("objective=dpr", "dpr.bm25_negatives=1", "dpr.index_negatives=1", "dpr.depth=7", "retriever.temperature=0.2")
EASY = (
    "dpr.bm25_negatives=0",
    "dpr.index_negatives=0",
    "optim.lr_question_encoder=0.001",
    "optim.lr_passage_encoder=0.001",
)
"""Without hard negatives and in smaller steps, the tiny encoders learn within 24 of them."""


def test_the_encoders_learn_without_a_generator(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_models, "load_generator", lambda *_: pytest.fail("a generator was loaded"))
    words = [*DPR, *EASY, "generator.model=no/such/place/at/all", "trainer.max_steps=24", "refresh.every=6"]
    run = train(small_system.config(tmp_path / "run", *words))
    nll = list(column(run, "train/nll").values())
    assert len(nll) == 24
    assert sum(nll[-4:]) < 0.9 * sum(nll[:4])
    accuracy = list(column(run, "train/in_batch_accuracy").values())
    assert sum(accuracy[-4:]) > sum(accuracy[:4])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["index"] == {"generation": 4, "n_passages": 37, "factory": "Flat"}
    for when in ("before_training", "test"):
        measured = summary[when]
        assert measured["exact_match"] is None and measured["f1"] is None
        assert {"recall_at_1", "recall_at_5", "recall_at_20", "answer_recall_at_1", "mrr"} <= set(measured)
        assert measured["n_questions"] == 7
    assert summary["test"]["mrr"] > summary["before_training"]["mrr"]
    assert summary["test"]["recall_at_5"] > summary["before_training"]["recall_at_5"]
    assert any("gold passages" in text for text in summary["disclosures"])
    names = set(read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
    assert {name.split(".")[1] for name in names} == {"question_encoder", "passage_encoder"}


def test_its_report_and_table_do_without_answers(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", *DPR))
    page = (run / "report.html").read_text()
    assert "recall@1" in page and "first passage" in page and "Exact match" not in page
    summary = json.loads((run / "summary.json").read_text())
    measures = list(results_table(summary).columns[0].cells)
    assert measures[:3] == ["recall@1", "recall@5", "recall@20"]
    lines = [json.loads(line) for line in (run / "predictions.jsonl").open()]
    assert {(line["prediction"], line["exact_match"]) for line in lines} == {("", None)}
    assert all(line["passages"] and sum(p["prior"] for p in line["passages"]) == pytest.approx(1) for line in lines)


def test_evaluate_measures_recall_again(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", *DPR))
    trained = json.loads((run / "summary.json").read_text())["test"]
    assert json.loads(evaluate(str(run), []).read_text())["test"] == trained


def test_resuming_gives_the_run_that_was_not_interrupted(small_system: SmallSystem, tmp_path: Path) -> None:
    """Stopped after step 3, one step past a refresh, when negatives already come from the index."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    more = (*DPR, "retriever.dropout=0.1")
    whole = train(small_system.config(tmp_path / "a" / "run", *more))
    train_until(
        small_system.config(
            tmp_path / "b" / "run", *more, "trainer.checkpoint_every=3", "evaluate.before_training=false"
        ),
        3,
    )
    resumed = resume(str(tmp_path / "b" / "run"), [])
    for name in ("train/nll", "train/in_batch_accuracy", "refresh/overlap_at_k", "lr-AdamW/question_encoder"):
        assert column(whole, name), name
        assert column(resumed, name) == column(whole, name), name
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, resumed))
    assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.parametrize(
    "more",
    [
        ["retriever.train_passage_encoder=false"],
        ["retriever.train_question_encoder=false"],
        ["retriever.tied=true"],
        ["trainer.precision=bf16", "trainer.accumulate=2"],
        ["refresh.mode=hot"],
        ["refresh.mode=amortized", "refresh.spread=1"],
        ["dpr.bm25_negatives=0", "dpr.index_negatives=0", "dpr.mask_false_negatives=false"],
        ["data.validation="],
    ],
)
def test_other_ways_to_train_it(more: list[str], small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", *DPR, *more, "evaluate.before_training=false"))
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert len(column(run, "train/nll")) == 6


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["warmup.steps=3"], r"no reader to warm up \(warmup.steps\): got 3, expected 0 with objective=dpr"),
        (
            ["retriever.train_question_encoder=false", "retriever.train_passage_encoder=false"],
            r"both encoders are frozen .*\(retriever.train_question_encoder\)",
        ),
        (["dpr.depth=1"], r"fewer candidates than hard negatives \(dpr.depth\): got 1, expected at least .* = 2"),
        (["refresh.every=0"], r"negatives of a live index, which is never refreshed \(dpr.index_negatives\)"),
        (["retriever.kind=bm25"], r"BM25 does not learn"),
    ],
)
def test_bad_combinations_are_refused(words: list[str], text: str, small_system: SmallSystem, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=text):
        small_system.config(tmp_path / "run", *DPR, *words)


def test_a_run_on_two_ranks_is_the_run_on_one(small_system: SmallSystem, tmp_path: Path) -> None:
    """The same global batches of 5 and 6 questions, uneven at an epoch's end, hard negatives of both kinds."""
    folders = {}
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        folders[ranks] = tmp_path / str(ranks) / "run"
        words = small_system.words(
            folders[ranks],
            *DPR,
            f"trainer.devices={ranks}",
            "trainer.max_steps=8",
            f"trainer.batch_size={6 // ranks}",
            "evaluate.batch_size=3",
        )
        done = small_system.command("train", *words)
        assert done.returncode == 0, done.stdout[-4000:]
    for name in (
        "train/nll",
        "train/in_batch_accuracy",
        "train/grad_norm",
        "validation/recall_at_5",
        "refresh/overlap_at_k",
    ):
        one, two = (column(folders[ranks], name) for ranks in (1, 2))
        assert one and two == pytest.approx(one, rel=2e-4, abs=1e-5), name
    one, two = (json.loads((folders[ranks] / "summary.json").read_text())["test"] for ranks in (1, 2))
    assert one == two


# Runs that start from it


RECALLS = ("recall_at_1", "recall_at_5", "recall_at_20")


def finished(small_system: SmallSystem, folder: Path, *words: str) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return train(small_system.config(folder, "evaluate.before_training=false", "trainer.max_steps=2", *words))


def encoders_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("retriever.")}


def test_a_run_starts_from_exactly_the_trained_encoders(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = finished(small_system, Path("runs/dpr/first"), *DPR)
    trained = encoders_of(read_checkpoint(source / "checkpoints" / "last.ckpt")["state_dict"])
    frozen = ["retriever.train_question_encoder=false", "retriever.train_passage_encoder=false"]
    run = finished(small_system, tmp_path / "other" / "run", "retriever.start_from=dpr", *frozen)
    started = encoders_of(read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
    assert trained.keys() == started.keys() and trained
    assert all(torch.equal(started[name], value) for name, value in trained.items())
    # What it finds is what its source found.
    found, again = (json.loads((path / "summary.json").read_text())["test"] for path in (source, run))
    assert [found[name] for name in RECALLS] == [again[name] for name in RECALLS]
    assert load_resolved(run / "config.yaml").retriever.start_from == "runs/dpr/first"
    summary = json.loads((run / "summary.json").read_text())
    assert "The encoders started from runs/dpr/first." in summary["disclosures"]


def test_a_started_run_resumes_and_is_evaluated_without_its_source(small_system: SmallSystem, tmp_path: Path) -> None:
    source = finished(small_system, tmp_path / "dpr" / "run", *DPR)
    more = (f"retriever.start_from={source}", "evaluate.before_training=false")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = train(small_system.config(tmp_path / "a" / "run", *more))
    train_until(small_system.config(tmp_path / "b" / "run", *more, "trainer.checkpoint_every=3"), 3)
    (source / "checkpoints" / "last.ckpt").unlink()
    resumed = resume(str(tmp_path / "b" / "run"), [])
    assert column(resumed, "train/nll") == column(whole, "train/nll")
    assert json.loads(evaluate(str(resumed), []).read_text())["test"]["n_questions"] == 7


@pytest.mark.parametrize("experiment", ["dpr", "trios/retriever"])  # the second could also be a name on the hub
def test_an_experiment_stands_for_its_newest_finished_run_of_the_seed(
    small_system: SmallSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    experiment: str,
) -> None:
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")

    def fabricate(name: str, seed: int, status: str, age: int) -> None:
        folder = tmp_path / "runs" / experiment / name
        (folder / "checkpoints").mkdir(parents=True)
        WholeCheckpoints().save_checkpoint({"global_step": 1}, folder / "checkpoints" / "last.ckpt")
        config = f"experiment: {experiment}\nseed: {seed}\nobjective: dpr\n"
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps({"status": status, "seed": seed}), encoding="utf-8")
        os.utime(folder / "config.yaml", (time.time() - age,) * 2)

    def chosen(seed: int) -> str:
        config = small_system.config(tmp_path / "run", f"retriever.start_from={experiment}", f"seed={seed}")
        return Path(resolve_start(config).retriever.start_from).name

    fabricate("old", 0, "finished", 50)
    fabricate("other seed", 1, "finished", 40)
    fabricate("new", 0, "finished", 30)
    fabricate("running", 0, "running", 20)
    fabricate("newest", 2, "finished", 10)
    assert [chosen(seed) for seed in range(3)] == ["new", "other seed", "newest"]
    assert "warning" not in capsys.readouterr().out
    assert chosen(3) == "newest"
    assert f"no finished run of {experiment} has seed 3: starting from" in capsys.readouterr().out


def test_what_cannot_be_started_from_is_refused(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")

    def source(name: str, content: str, checkpoint: bool = True) -> Path:
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(f"experiment: {name}\n{content}\n", encoding="utf-8")
        if checkpoint:
            WholeCheckpoints().save_checkpoint({"global_step": 1}, folder / "checkpoints" / "last.ckpt")
        return folder

    def refused(start: object, text: str, *words: str) -> None:
        with pytest.raises(OpenBookError, match=text):
            resolve_start(small_system.config(tmp_path / "run", f"retriever.start_from={start}", *words))

    refused("dpr", r"no run to start from \(retriever.start_from\): got 'dpr'.*`make train EXP=dpr` makes one")
    refused("no/such/run", r"no run to start from \(retriever.start_from\): got 'no/such/run'")
    refused(source("a", "objective: closed_book"), r"no encoders to start from .*a closed book, expected a run that")
    refused(source("b", "retriever:\n  kind: bm25"), r"no encoders to start from .*BM25")
    refused(source("c", "objective: dpr", checkpoint=False), r"has no checkpoint .*make resume RUN=.*c` trains it")
    refused(
        source("d", "retriever:\n  pooling: cls"), r"read differently \(retriever.pooling\): got 'mean', expected 'cls'"
    )
    refused(
        source("e", "objective: dpr"), r"tied encoders cannot start from two \(retriever.tied\)", "retriever.tied=true"
    )
    closed = small_system.config(tmp_path / "run", "retriever.start_from=dpr", "objective=closed_book")
    assert resolve_start(closed) is closed


def test_encoders_of_another_shape_are_refused(
    small_system: SmallSystem, tmp_path: Path, tokenizer_folder: Path
) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = len((tokenizer_folder / "vocab.txt").read_text().split())
    other = BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=128,
    )
    BertModel(other).save_pretrained(tmp_path / "encoder")
    BertTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(tmp_path / "encoder")
    source = finished(
        small_system,
        tmp_path / "dpr" / "run",
        *DPR,
        "trainer.max_steps=1",
        f"retriever.question_encoder={tmp_path / 'encoder'}",
        f"retriever.passage_encoder={tmp_path / 'encoder'}",
    )
    text = r"another shape \(retriever.start_from: .*\): got \d+ weights that differ, first question_encoder\.model"
    with pytest.raises(OpenBookError, match=text):
        finished(small_system, tmp_path / "run", f"retriever.start_from={source}")
