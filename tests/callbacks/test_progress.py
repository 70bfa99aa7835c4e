"""Progress of Lightning's loops: each stage is opened and closed, also where it fails; what is measured is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openbook.callbacks import Progress
from openbook.utils import console
from openbook.utils.console import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(console, "_pace", Pace())
    monkeypatch.delenv(console.QUIET, raising=False)
    return now


def trainer_at(step: int, **metrics: float) -> Any:
    measured = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        global_step=step, max_steps=90, num_val_batches=[3], num_test_batches=[4, 2], callback_metrics=measured
    )


def test_a_resumed_training_tells_its_own_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown: Any = Progress()
    shown.on_train_start(trainer_at(30), None)
    clock[0] += 20
    metrics = {"train__nll": 1.25, "throughput__questions_per_second": 5.04, "validation__recall_at_1": 0.75}
    shown.on_train_batch_end(trainer_at(40, **metrics), None, None, None, 0)
    assert capsys.readouterr().out == (
        "training: 40 of 90 steps (0.5/s, 2 min left), 5.0 questions/s in the step, loss 1.250, "
        "last validation recall@1 0.750\n"
    )
    shown.on_train_end(trainer_at(90), None)
    assert console._pace.inside == 0


def test_batches_of_validation_and_test(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown: Any = Progress()
    for begin, advance, end in (
        (shown.on_validation_start, shown.on_validation_batch_end, shown.on_validation_end),
        (shown.on_test_start, shown.on_test_batch_end, shown.on_test_end),
    ):
        begin(trainer_at(0), None)
        clock[0] += 5
        advance(trainer_at(0), None, None, None, 0)
        end(trainer_at(0), None)
    assert capsys.readouterr().out.splitlines() == [
        "validating: 1 of 3 batches (0.2/s, 10 s left)",
        "testing: 1 of 6 batches (0.2/s, 25 s left)",
    ]
    assert console._pace.inside == 0


def test_a_failure_closes_every_stage(clock: list[float]) -> None:
    shown: Any = Progress()
    shown.on_train_start(trainer_at(0), None)
    shown.on_validation_start(trainer_at(0), None)
    assert console._pace.inside == 2
    shown.on_exception(trainer_at(0), None, RuntimeError())
    assert console._pace.inside == 0
    shown.on_train_end(trainer_at(0), None)  # Lightning may still call it
    assert console._pace.inside == 0
