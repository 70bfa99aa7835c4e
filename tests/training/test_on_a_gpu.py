"""A whole run on a GPU: encoders, index, generator and loss there, refreshed in the middle, evaluated at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openbook.commands.train import train
from tests.small_system import SmallSystem, column


@pytest.mark.gpu
@pytest.mark.parametrize("factory", ["Flat", "SQfp16"])
@pytest.mark.parametrize("mode", ["blocking", "amortized", "rolling"])
def test_a_run(
    mode: str, factory: str, small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 on the GPU follows the CPU's curve; in bf16 it learns as well."""
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    words = (f"refresh.mode={mode}", f"index.factory={factory}", "evaluate.before_training=false")
    curves = {}
    for name, more in {
        "cpu": ("trainer.accelerator=cpu", "index.device=cpu"),
        "gpu": ("trainer.accelerator=gpu", "index.device=gpu"),
        "bf16": ("trainer.accelerator=gpu", "index.device=gpu", "trainer.precision=bf16"),
    }.items():
        (tmp_path / name).mkdir()
        run = train(small_system.config(tmp_path / name / "run", *words, *more))
        curves[name] = list(column(run, "train/nll").values())
        assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert curves["gpu"] == pytest.approx(curves["cpu"], rel=1e-2)
    assert curves["bf16"] == pytest.approx(curves["cpu"], rel=0.1)
