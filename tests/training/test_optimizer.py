"""Optimizers by name, and a generator whose weights are bf16."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from openbook.setup.preflight import check
from openbook.tracking.checkpoint import read_checkpoint
from openbook.training.optimizer import optimizer_of, parameter_groups
from tests.small_system import SmallSystem, column, train_until

pytestmark = pytest.mark.filterwarnings("ignore")
ALONE = ("data.validation=", "data.test=", "refresh.every=0", "evaluate.before_training=false")


class FakeManager:
    """bitsandbytes' list of what keeps its moments in 32 bits."""

    one: FakeManager

    def __init__(self) -> None:
        self.told: list[tuple[nn.Module, str, dict[str, int]]] = []

    @classmethod
    def get_instance(cls) -> FakeManager:
        return cls.one

    def initialize(self) -> None:
        self.told = []

    def register_module_override(self, module: nn.Module, name: str, config: dict[str, int]) -> None:
        self.told.append((module, name, config))


class Eight(torch.optim.AdamW):
    pass


class Paged(torch.optim.AdamW):
    pass


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    FakeManager.one = FakeManager()
    for name, value in (("AdamW8bit", Eight), ("PagedAdamW8bit", Paged), ("GlobalOptimManager", FakeManager)):
        setattr(optim, name, value)
    package.optim = optim  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return FakeManager.one


@pytest.mark.parametrize(("name", "kind"), [("adamw_8bit", Eight), ("paged_adamw_8bit", Paged)])
def test_eight_bits_by_name_with_rates_decay_and_embeddings_in_32(
    name: str, kind: type, bitsandbytes: FakeManager
) -> None:
    model = nn.Sequential(nn.Embedding(11, 7), nn.Linear(7, 5))
    bitsandbytes.told.append((model, "of an earlier run", {}))
    optimizer = optimizer_of(name, parameter_groups([("generator", model, 0.3)], 0.1), [model])
    assert type(optimizer) is kind
    assert bitsandbytes.told == [(model[0], "weight", {"optim_bits": 32})]
    assert [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        ("generator", 0.3, 0.1, 2),
        ("generator_no_decay", 0.3, 0.0, 1),
    ]


def test_a_run_names_its_optimizer_and_keeps_it(
    small_system: SmallSystem, tmp_path: Path, bitsandbytes: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(key: str, package: str, what: str) -> None:
        assert (key, package, what) == ("optim.name", "bitsandbytes", "openbook[quantized]")

    monkeypatch.setattr("openbook.setup.preflight.check_installed", installed)
    run = train(small_system.config(tmp_path / "run", *ALONE, "optim.name=adamw_8bit", "trainer.max_steps=2"))
    assert bitsandbytes.told and len(column(run, "train/nll")) == 2
    with pytest.raises(OpenBookError, match=r"goes on with what it was started with \(optim\.name\)"):
        resume(run, ["optim.name=adamw", "trainer.max_steps=3"])


def test_what_is_not_installed(small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OpenBookError, match=r"bitsandbytes is not installed \(optim\.name\)"):
        check(small_system.config(tmp_path / "run", "optim.name=paged_adamw_8bit"))


@pytest.mark.slow
def test_moments_in_8_bits_train_and_resume(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("torch._dynamo.config.disable", True)  # on a CPU it would compile every shape for a minute
    words = ["optim.name=adamw_8bit", "trainer.max_steps=4", *ALONE]
    runs = [tmp_path / name / "run" for name in ("whole", "broken")]
    for run in runs:
        run.parent.mkdir()
    train(small_system.config(runs[0], *words))
    train_until(small_system.config(runs[1], *words), 2)
    resume(runs[1])
    assert column(runs[0], "train/nll") == column(runs[1], "train/nll")
    state = read_checkpoint(runs[0] / "checkpoints" / "last.ckpt")["optimizer_states"][0]["state"].values()
    kept = [value for one in state for inner in one.values() if isinstance(inner, dict) for value in inner.values()]
    assert {value.dtype for value in kept if isinstance(value, torch.Tensor)} <= {torch.uint8, torch.float32}


# Weights in bf16


def test_weights_in_bf16_and_all_that_follows_from_them(small_system: SmallSystem, tmp_path: Path) -> None:
    words = ["generator.weights=bf16", "trainer.precision=bf16", "trainer.max_steps=4", "data.validation="]
    words += ["refresh.every=2", "evaluate.before_training=false", "evaluate.bootstrap=0"]
    runs = [tmp_path / name / "run" for name in ("whole", "broken")]
    for run in runs:
        run.parent.mkdir()
    train(small_system.config(runs[0], *words))
    train_until(small_system.config(runs[1], *words), 2)
    resume(runs[1])
    assert column(runs[0], "train/nll") == column(runs[1], "train/nll")
    nll = list(column(runs[0], "train/nll").values())
    assert nll[-1] < nll[0]
    contents: list[dict[str, Any]] = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in runs]
    states = [content["state_dict"] for content in contents]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    of = {name: {v.dtype for n, v in states[0].items() if n.startswith(name)} for name in ("generator", "retriever")}
    assert of == {"generator": {torch.bfloat16}, "retriever": {torch.float32}}
    moments = {one["exp_avg"].dtype for one in contents[0]["optimizer_states"][0]["state"].values()}
    assert moments == {torch.bfloat16, torch.float32}
    with pytest.raises(OpenBookError, match=r"goes on with what it was started with \(generator\.weights\)"):
        resume(runs[0], ["generator.weights=fp32", "trainer.max_steps=5"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.precision=fp32"], "multiplied in bf16 all the same"),
        (["trainer.precision=bf16", "generator.model=minilm"], "the small reader is small"),
    ],
)
def test_weights_in_bf16_where_they_cannot_be(
    words: list[str], said: str, small_system: SmallSystem, tmp_path: Path
) -> None:
    with pytest.raises(OpenBookError, match=said):
        small_system.config(tmp_path / "run", "generator.weights=bf16", *words)


def test_hardware_that_does_not_multiply_in_bf16(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbook.utils.hardware._cpu_has_bf16", lambda: False)
    with pytest.raises(OpenBookError, match="weights in bf16 on hardware that does not multiply in it"):
        check(small_system.config(tmp_path / "run", "generator.weights=bf16", "trainer.precision=auto"))
