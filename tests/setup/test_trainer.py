"""Other programs' bars and banners are silent: this project's own progress is the only one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from lightning.pytorch.callbacks import ProgressBar

from openbook.callbacks import Progress
from openbook.setup.trainer import make_trainer, quiet
from tests.small_system import SmallSystem


def test_nothing_else_shows_progress(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    enable_progress_bars()
    trainer = make_trainer(small_system.config(tmp_path / "run"), [], [])
    assert not [one for one in trainer.callbacks if isinstance(one, ProgressBar)]
    assert isinstance(trainer.callbacks[-1], Progress)
    quiet()
    assert are_progress_bars_disabled() and os.environ["WANDB_SILENT"] == "true"
    monkeypatch.setenv("WANDB_SILENT", "false")  # who wants to hear wandb does
    quiet()
    assert os.environ["WANDB_SILENT"] == "false"
