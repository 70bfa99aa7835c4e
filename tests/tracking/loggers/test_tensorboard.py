"""Curves for TensorBoard: refused where it is missing, and the steps of metrics.csv where it is there."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from tests.small_system import SmallSystem, train_until

pytestmark = pytest.mark.filterwarnings("ignore")


def test_where_it_is_not_installed(small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "tensorboard" else real(name, *more)
    )
    with pytest.raises(OpenBookError, match=r"tensorboard is not installed.*pip install 'openbook\[tensorboard\]'"):
        train(small_system.config(tmp_path / "run", "trainer.tensorboard=true"))
    assert not (tmp_path / "run").exists()


def test_the_curves_are_those_of_metrics_csv_also_after_a_resume(small_system: SmallSystem, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train_until(small_system.config(run, "trainer.tensorboard=true"), 5)
    resume(run)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    with open(run / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"step"}
    for name in ("train/nll", "validation/f1", "refresh/generation"):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        found = dict(points)  # Lightning repeats a value of the same step
        assert found == {int(row["step"]): pytest.approx(float(row[name])) for row in rows if row[name]}
        assert points == sorted(points)
