"""The small reader's warm-up in a run: after all that can be refused, once, and taken over as it was left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from openbook.setup.prepare import prepare
from openbook.setup.warmup import warmed_up
from openbook.utils.disk import DiskError
from tests.small_system import SmallSystem, train_until

pytestmark = pytest.mark.filterwarnings("ignore")

WARMED = ("generator.model=minilm", "warmup.steps=2", "evaluate.before_training=false")


def not_again(*_: object) -> None:
    raise AssertionError("the reader was warmed up")


def test_the_generator_is_the_reader_that_was_warmed_up(small_system: SmallSystem, tmp_path: Path) -> None:
    prepared = prepare(small_system.config(tmp_path / "run", *WARMED))
    module: Any = prepared.module()
    before = module.generator.positions.weight.clone()
    assert prepared.warm_up(module) > 0
    wanted = warmed_up(prepared.config, prepared.on, prepared.autocast).state_dict()
    assert {
        name for name, value in module.generator.state_dict().items() if not torch.equal(value, wanted[name])
    } == set()
    assert not torch.equal(before, module.generator.positions.weight)


def test_a_disk_that_is_too_small_is_found_before_the_warm_up(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbook.setup.prepare.warmed_up", not_again)
    monkeypatch.setattr("openbook.setup.resources.plan.disk_free", lambda _: 1000)
    monkeypatch.setattr("openbook.utils.host_memory.disk_free", lambda _: 1000)
    with pytest.raises(OpenBookError, match="disk"):
        train(small_system.config(tmp_path / "dense", *WARMED))
    with pytest.raises(DiskError, match="the disk is too small for the run"):
        train(small_system.config(tmp_path / "closed", *WARMED, "objective=closed_book"))


def test_a_resumed_run_is_not_warmed_up_again(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(small_system.config(tmp_path / "run", *WARMED), 3)
    monkeypatch.setattr("openbook.setup.prepare.warmed_up", not_again)
    resume(tmp_path / "run")
