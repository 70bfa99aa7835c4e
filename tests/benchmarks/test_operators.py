"""What counts as launched, and that a step launches at most half of what it once did."""

from __future__ import annotations

import torch

from benchmarks.training.operators import A15BF0E, Launches, figures


def test_views_launch_nothing() -> None:
    with Launches() as counted:
        made = torch.ones(3, 4)
        made.T.reshape(12)[1:].unsqueeze(0)
        made.add_(1)
        torch.empty(3)
        (made @ made.T).relu()
    assert counted.launched == {"ones": 1, "clone": 1, "add_": 1, "mm": 1, "relu": 1}


def test_a_step_launches_at_most_half() -> None:
    """Of what commit a15bf0e launched for the same step: casts of every weight were a third of it."""
    found = figures(quick=False)
    assert found["operators.step"] == found["operators.step.share_of_a15bf0e"] * A15BF0E
    assert found["operators.step.share_of_a15bf0e"] < found["operators.step.padded.share_of_a15bf0e"] <= 0.5
    assert found["operators.step.mm"] > 100  # it is a whole model
