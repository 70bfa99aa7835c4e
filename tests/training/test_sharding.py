"""A generator in parts on two ranks: the loss, gradients and checkpoints of one that is whole on both."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openbook.commands.train import resume
from openbook.errors import OpenBookError
from openbook.tracking.checkpoint import read_checkpoint
from openbook.training.ranks.sharding import clip_grad_norm, shard_layers
from tests.decoder_only import causal_folder
from tests.small_system import SmallSystem, column, on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = ("data.validation=", "evaluate.before_training=false", "evaluate.bootstrap=0", "data.max_context_tokens=120")
RANKS = ("trainer.devices=2", "trainer.batch_size=2", "evaluate.batch_size=2", "trainer.max_steps=1")
KINDS: dict[str, tuple[str, ...]] = {
    "seq2seq": ("objective=rag_sequence", "trainer.accumulate=2"),
    "adapters": ("generator.lora.rank=4", "retriever.train_question_encoder=false", "trainer.checkpointing=true"),
}


@pytest.fixture(scope="module")
def runs(
    small_system: SmallSystem, small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """One step of every kind, whole and in parts, in the same two processes; those in parts are tested too."""
    pytest.importorskip("peft")
    causal = causal_folder(tmp_path_factory.mktemp("causal"), small_data)
    commands, made = [], {}
    for kind, more in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        system = replace(small_system, generator=small_system.generator if kind == "seq2seq" else causal)
        for name, words in (("whole", ["data.test="]), ("parts", ["generator.sharded=true"])):
            (folder / name).mkdir()
            made[kind, name] = folder / name / "run"
            commands.append(["train", *system.words(made[kind, name], *SHORT, *RANKS, *more, *words)])
    on_two_ranks(commands, timeout=600)
    return made


def last(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_in_parts_are_those_of_the_whole(kind: str, runs: dict[tuple[str, str], Path]) -> None:
    whole, parts = runs[kind, "whole"], runs[kind, "parts"]
    for name in ("train/nll", "train/grad_norm"):
        assert column(whole, name) == pytest.approx(column(parts, name), rel=1e-5)
        assert len(column(whole, name)) == 1
    one, other = last(whole), last(parts)
    assert {n: v.shape for n, v in one["state_dict"].items()} == {n: v.shape for n, v in other["state_dict"].items()}
    mine, theirs = (content["optimizer_states"][0]["state"] for content in (one, other))
    assert mine.keys() == theirs.keys() and mine
    for number in mine:  # AdamW's first moments are a tenth of the gradients
        here, there = mine[number]["exp_avg"], theirs[number]["exp_avg"]
        assert here.shape == there.shape and here.dtype == there.dtype == torch.float32
        assert float((here - there).abs().max()) <= 1e-5 * max(float(here.abs().max()), 1e-3)
    assert (parts / "predictions.jsonl").is_file()


def test_either_kind_goes_on_from_the_others_checkpoint(runs: dict[tuple[str, str], Path]) -> None:
    """A step in parts, and one more: in parts again, and whole in one process, as after a step that was whole."""
    copies = {}
    for name, of in (("on_in_parts", "parts"), ("on_from_parts", "parts"), ("on_from_whole", "whole")):
        copies[name] = runs["seq2seq", of].parent.with_name(name) / "run"
        shutil.copytree(runs["seq2seq", of], copies[name])
    more = ["trainer.max_steps=2"]
    on_two_ranks([["resume", str(copies["on_in_parts"]), *more]], timeout=600)
    alone = ["trainer.devices=1", "trainer.batch_size=4", "generator.sharded=false"]
    resume(copies["on_from_parts"], [*more, *alone])
    resume(copies["on_from_whole"], [*more, *alone[:2]])
    wanted = column(copies["on_from_whole"], "train/nll")
    assert len(wanted) == 2
    for name in ("on_in_parts", "on_from_parts"):
        assert column(copies[name], "train/nll") == pytest.approx(wanted, rel=1e-3)


def test_what_has_no_layers_cannot_be_in_parts() -> None:
    with pytest.raises(OpenBookError, match=r"no layers that could be in parts[\s\S]*Set generator\.sharded=false"):
        shard_layers(nn.Linear(3, 5), mesh=None)  # type: ignore[arg-type]


def test_the_norm_without_parts_is_torchs() -> None:
    torch.manual_seed(0)
    one, other = ([nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(7))] for _ in range(2))
    for mine, theirs in zip(one, other, strict=True):
        mine.grad = torch.randn(mine.shape)
        theirs.grad = mine.grad.clone()
    assert torch.equal(clip_grad_norm(one, 0.3), nn.utils.clip_grad_norm_(other, 0.3))
    assert all(torch.equal(mine.grad, theirs.grad) for mine, theirs in zip(one, other, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generator.model=minilm"], "no transformers model whose layers could be in parts"),
        (["objective=dpr"], "no transformers model whose layers could be in parts"),
        (["generator.lora.rank=4", "generator.quantize=8bit"], "quantised weights cannot be in parts"),
        (["optim.name=adamw_8bit"], "bitsandbytes' optimizers do not know of weights in parts"),
    ],
)
def test_settings_that_contradict_it(words: list[str], said: str, small_system: SmallSystem, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=said):
        small_system.config(tmp_path / "run", "generator.sharded=true", "trainer.devices=2", *words)
