"""The memory of models by hand: every type, adapters, moments in 8 bits, layers in parts; and what autograd keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from openbook.commands import show
from openbook.commands.train import train
from openbook.config.models import GeneratorConfig
from openbook.config.rules.notes import notes_of
from openbook.config.schema import Config
from openbook.config.training import OptimConfig, TrainerConfig
from openbook.errors import OpenBookError
from openbook.setup.resources.model_memory import Kept, ModelMemory, PartMemory, check_card, described, memory_of
from tests.small_system import SmallSystem

GIB = 1 << 30


class Layer(GradientCheckpointingLayer):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(70, 61, bias=False)  # 4,270 numbers: more than bitsandbytes leaves in 32 bits


class Models(nn.Module):
    """A generator of an embedding [11, 70] and one layer [61, 70], and encoders of 5 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Embedding(11, 70), Layer())
        self.retriever = nn.Linear(5, 1, bias=False)


def memory(generator: dict[str, Any] | None = None, optimizer: str = "adamw", devices: int = 1, **change: Any) -> Any:
    models = Models()
    for name, value in models.generator.named_parameters():
        value.requires_grad_(name not in change.get("frozen", ()))
        value.data = value.data.to(change.get("dtype", torch.float32))
    config = Config(
        generator=GeneratorConfig(**(generator or {})),
        optim=OptimConfig(name=optimizer),  # type: ignore[arg-type]
        trainer=TrainerConfig(devices=devices),
    )
    return {part.name: part for part in memory_of(config, models, 0).parts}


def test_weights_gradients_and_moments_by_hand() -> None:
    n = 11 * 70 + 61 * 70
    assert memory() == {
        "generator": PartMemory("generator", 4 * n, 4 * n, 8 * n, 0),
        "encoders": PartMemory("encoders", 20, 20, 40, 0),
    }
    assert memory(dtype=torch.bfloat16)["generator"] == PartMemory("generator", 2 * n, 2 * n, 4 * n, 0)
    frozen = memory(frozen=("1.inner.weight",))["generator"]
    assert frozen == PartMemory("generator", 4 * n, 4 * 770, 8 * 770, 0)


def test_moments_in_8_bits_but_for_embeddings_and_small_tensors() -> None:
    found = memory(optimizer="adamw_8bit")
    assert found["generator"].moments == 8 * 770 + round(2 * 4270 * (1 + 4 / 256))
    assert found["encoders"].moments == 40


def test_layers_in_parts_and_put_together_for_answers() -> None:
    found = memory({"sharded": True}, devices=3)["generator"]
    part = 770 + 1424  # a third of 4,270, rounded up
    assert found == PartMemory("generator", 4 * part, 4 * part, 8 * part, 4 * 4270)
    assert memory({"sharded": True}, devices=1)["generator"].whole == 0


def test_which_cards_fit_and_what_would_save() -> None:
    part = PartMemory("generator", 8 * GIB, 8 * GIB, 16 * GIB, 0)
    need = ModelMemory((part,), 4 * GIB, GIB)
    assert need.training == need.total == 37 * GIB and need.evaluation == 25 * GIB
    assert [need.fits(card) for card in (24, 40, 80)] == ["no", "barely", "yes"]  # 36 GiB are 90 % of 40
    assert replace(need, parts=(replace(part, whole=20 * GIB),)).total == 45 * GIB
    config = Config(generator=GeneratorConfig(model="somewhere"), trainer=TrainerConfig(card_gib=24.0))
    with pytest.raises(OpenBookError) as problem:
        check_card(need, config, None)
    said = str(problem.value)
    assert "37.0 GiB of weights" in said and "at most 24.0 GiB" in said
    savings = ["generator.lora.rank=16 saves up to 24.0 GiB", "generator.weights=bf16 saves up to 16.0 GiB"]
    savings += ["optim.name=adamw_8bit saves up to 12.0 GiB", "trainer.batch_size=8 saves up to 2.0 GiB"]
    assert [said.index(one) for one in savings] == sorted(said.index(one) for one in savings)
    with pytest.raises(OpenBookError, match=r"generator\.sharded=true saves up to 24\.0 GiB"):  # three quarters of 32
        check_card(need, replace(config, trainer=TrainerConfig(card_gib=24.0, devices=4)), None)
    open_card = replace(config, trainer=TrainerConfig())
    check_card(need, open_card, None)
    check_card(need, open_card, 33 * GIB)  # a step has been run on that card: its activations fit
    with pytest.raises(OpenBookError, match=r"trainer\.accelerator"):
        check_card(need, open_card, 32 * GIB)
    assert "fits 24 GiB no, 40 GiB barely, 80 GiB yes" in str(described(need, open_card, torch.bfloat16))
    assert "measured here in bfloat16" in str(described(need, open_card, torch.bfloat16))
    assert "no rank alone can hold" in str(described(replace(need, activations=None), open_card, torch.float32))


def test_what_autograd_keeps_is_counted_once_and_without_weights() -> None:
    layer, kept = nn.Linear(7, 5, bias=False), Kept()
    states = torch.randn(3, 7)
    with kept.counting(layer):
        out = layer(states).tanh()  # keeps states (for the weight's gradient) and its own result
        out = out * out  # keeps that result again
    assert kept.n_bytes == 4 * (3 * 7 + 3 * 5)
    with kept.counting(layer):
        layer(torch.randn(1000, 7)).tanh().sum().backward()
    assert kept.n_bytes == 4 * (3 * 7 + 3 * 5)  # of the first alone
    out.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.filterwarnings("ignore")
def test_the_plan_says_it_and_refuses_a_card_too_small(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = small_system.words(tmp_path / "run", "trainer.max_steps=1", "data.validation=", "data.test=")
    show.plan(words[0], words[1:])
    whole = capsys.readouterr().out
    assert "fits 24 GiB yes, 40 GiB yes, 80 GiB yes" in whole and "measured here in float32" in whole
    show.plan(words[0], [*words[1:], "trainer.checkpointing=true"])
    assert capsys.readouterr().out != whole
    with pytest.raises(OpenBookError, match="the models do not fit the card"):
        show.plan(words[0], [*words[1:], "trainer.card_gib=0.0001"])
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=1", "data.validation=", "data.test="))
    planned = json.loads((run / "plan.json").read_text())["models"]
    assert planned["activations"] > 0 and planned["training"] > planned["activations"]
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    moments = sum(
        value.numel() * value.itemsize
        for one in state["optimizer_states"][0]["state"].values()
        for name, value in one.items()
        if name != "step"
    )
    assert sum(part["moments"] for part in planned["parts"]) == moments


def test_a_note_says_that_one_rank_holds_everything() -> None:
    said = " ".join(notes_of(Config(generator=GeneratorConfig(sharded=True, weights="bf16"))))
    assert "one rank holds everything" in said and "1/512" in said
