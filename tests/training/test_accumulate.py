"""The loss of an optimizer step is one mean over its questions (or target tokens), whatever the number of passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openbook.commands.train import train
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem, column, on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")
ALONE = ("data.validation=", "data.test=", "refresh.every=0", "evaluate.before_training=false", "trainer.max_steps=3")


@pytest.fixture
def answers(small_system: SmallSystem, tmp_path: Path) -> Path:
    """Ten training questions with answers of one to four tokens: an epoch ends in the middle of a step."""
    lines = (small_system.data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:10]
    rows = [json.loads(line) for line in lines]
    for place, row in enumerate(rows):
        row["answers"] = [" ".join(["alpha beta gamma delta"[: [5, 10, 16, 22][place % 4]]])]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trained(small_system: SmallSystem, folder: Path, *words: str) -> Path:
    folder.mkdir()
    return train(small_system.config(folder / "run", *ALONE, *words))


def same_gradients(one: Path, other: Path) -> None:
    """By AdamW's first moments: weights whose gradient is nothing but rounding move as far as any other. Part by part:
    the generator's gradient is much larger than the encoders'."""
    optimizers = [read_checkpoint(run / "checkpoints" / "last.ckpt")["optimizer_states"][0] for run in (one, other)]
    for group in optimizers[0]["param_groups"]:
        moments = [
            torch.cat([optimizer["state"][number]["exp_avg"].flatten() for number in group["params"]])
            for optimizer in optimizers
        ]
        assert float((moments[0] - moments[1]).norm()) < 2e-3 * float(moments[0].norm()), group.get("name")


@pytest.mark.parametrize("reduction", ["question", "token"])
@pytest.mark.parametrize("objective", ["rag_token", "rag_sequence"])
def test_passes_of_two_give_the_step_of_one_big_batch(
    small_system: SmallSystem, tmp_path: Path, answers: Path, reduction: str, objective: str
) -> None:
    """Steps of 4, 4 and, at the end of the epoch, 2 questions: in one pass each, and in passes of two."""
    words = [f"trainer.reduction={reduction}", f"objective={objective}", f"data.train={answers}"]
    big = trained(small_system, tmp_path / "big", "trainer.batch_size=4", *words)
    twos = trained(small_system, tmp_path / "twos", "trainer.batch_size=2", "trainer.accumulate=2", *words)
    assert column(twos, "train/nll") == pytest.approx(column(big, "train/nll"), rel=1e-4)
    assert column(twos, "train/grad_norm") == pytest.approx(column(big, "train/grad_norm"), rel=1e-3)
    same_gradients(big, twos)


def test_a_short_last_pass_counts_by_its_questions(small_system: SmallSystem, tmp_path: Path, answers: Path) -> None:
    """Ten questions in passes of 3, 3, 3 and 1: one step."""
    words = [f"data.train={answers}", "trainer.max_steps=1"]
    short = trained(small_system, tmp_path / "short", "trainer.batch_size=3", "trainer.accumulate=4", *words)
    whole = trained(small_system, tmp_path / "whole", "trainer.batch_size=10", *words)
    assert column(short, "train/nll") == pytest.approx(column(whole, "train/nll"), rel=1e-4)
    same_gradients(whole, short)


@pytest.mark.parametrize("objective", ["emdr2", "leave_one_out"])
def test_a_reader_of_all_passages_in_passes_of_two(
    small_system: SmallSystem, tmp_path: Path, answers: Path, objective: str
) -> None:
    words = [f"objective={objective}", "generator.reads=all", f"data.train={answers}", "trainer.max_steps=1"]
    big = trained(small_system, tmp_path / "big", "trainer.batch_size=4", *words)
    twos = trained(small_system, tmp_path / "twos", "trainer.batch_size=2", "trainer.accumulate=2", *words)
    assert column(twos, "train/nll") == pytest.approx(column(big, "train/nll"), rel=1e-4)
    same_gradients(big, twos)


@pytest.mark.slow
def test_two_ranks_and_two_passes_give_the_step_of_one_big_batch(
    small_system: SmallSystem, tmp_path: Path, answers: Path
) -> None:
    words = ["trainer.reduction=token", f"data.train={answers}"]
    big = trained(small_system, tmp_path / "big", "trainer.batch_size=4", *words)
    (tmp_path / "two").mkdir()
    run = tmp_path / "two" / "run"
    on_two_ranks(
        [
            [
                "train",
                *small_system.words(
                    run, *ALONE, *words, "trainer.devices=2", "trainer.batch_size=1", "trainer.accumulate=2"
                ),
            ]
        ]
    )
    assert column(run, "train/nll") == pytest.approx(column(big, "train/nll"), rel=1e-4)
    same_gradients(big, run)


def test_label_smoothing_does_not_change_what_is_reported(
    small_system: SmallSystem, tmp_path: Path, answers: Path
) -> None:
    """The first step's likelihood, posterior entropy and gain are those without smoothing; the loss is another."""
    words = [f"data.train={answers}", "trainer.max_steps=1"]
    plain = trained(small_system, tmp_path / "plain", *words)
    smoothed = trained(small_system, tmp_path / "smoothed", "generator.label_smoothing=0.3", *words)
    for name in ("train/nll", "train/nll_per_token", "train/posterior_entropy", "collapse/marginal_gain"):
        assert column(smoothed, name) == pytest.approx(column(plain, name), rel=1e-5), name
    assert abs(column(smoothed, "train/loss")[1] - column(plain, "train/nll")[1]) > 0.1
