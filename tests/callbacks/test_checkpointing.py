"""What a run that was stopped goes on to is what one that was not does: no validation more, no step more."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from openbook.callbacks import Checkpointing
from openbook.config.load import load_experiment
from openbook.setup.trainer import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")


class Measured(L.LightningModule):
    """Its F1 after a step is given; the process sends itself SIGTERM within a step."""

    def __init__(self, f1: Mapping[int, float], killed_in: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.f1, self.killed_in = f1, killed_in
        self.summary: dict[str, float] = {}
        self.validated = list[int]()

    def check_finite(self) -> None:
        pass

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        if self.global_step + 1 == self.killed_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return (self.weight - 1).square().sum()

    def validation_step(self, batch: Any, number: int) -> None:
        self.summary = {"f1": self.f1[self.trainer.global_step]}
        self.validated.append(self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fitted(
    folder: Path, f1: Mapping[int, float], killed_in: int = -1, patience: int = 0, resume: bool = False, steps: int = 12
) -> tuple[int, list[int], int]:
    """(last step, the steps that were validated, the step that best.ckpt holds)."""
    keeps = Checkpointing(folder / "last.ckpt", 3, monitor="f1", validate_every=3, patience=patience)
    module = Measured(f1, killed_in)
    words = ["trainer.accelerator=cpu", f"trainer.max_steps={steps}", "trainer.validate_every=3"]
    trainer = make_trainer(load_experiment("rag_token", words), [keeps], [])
    questions = DataLoader(range(20)), DataLoader(range(1))  # type: ignore[arg-type, var-annotated]
    trainer.fit(module, *questions, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    best = torch.load(folder / "best.ckpt", weights_only=True)["global_step"]
    return trainer.global_step, module.validated, best


@pytest.mark.parametrize("killed_in", [1, 2, 3, 5, 6])
def test_a_signal_brings_no_validation_that_there_would_not_be(tmp_path: Path, killed_in: int) -> None:
    f1 = {0: 0.9, 1: 0.95, 2: 0.95, 3: 0.3, 4: 0.2, 5: 0.96, 6: 0.25}
    assert fitted(tmp_path / "whole", f1, steps=6) == (6, [0, 3, 6], 0)
    stopped = fitted(tmp_path / "cut", f1, killed_in, steps=6)
    assert stopped[0] == killed_in
    resumed = fitted(tmp_path / "cut", f1, resume=True, steps=6)
    assert resumed[0] == 6 and resumed[2] == 0
    assert {*stopped[1], *resumed[1]} == {0, 3, 6}


def test_a_run_that_patience_ended_does_not_train_on(tmp_path: Path) -> None:
    f1 = {0: 0.1, 3: 0.3, 6: 0.25, 9: 0.5, 12: 0.4}
    assert fitted(tmp_path, f1, patience=1) == (6, [0, 3, 6], 3)
    assert fitted(tmp_path, f1, patience=1, resume=True) == (6, [], 3)
    assert fitted(tmp_path, f1, patience=2, resume=True) == (12, [9, 12], 9)
