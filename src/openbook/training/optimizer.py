"""Parameter groups with their own learning rates, and linear warm-up with linear decay."""

from typing import Any

import torch
from torch import nn


def parameter_groups(parts: list[tuple[str, nn.Module, float]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for each (name, module, peak learning rate): matrices with weight decay, vectors without.

    Frozen parameters are left out, and one that two parts share (tied encoders) belongs to the first of them.
    """
    groups: list[dict[str, Any]] = []
    taken: set[int] = set()
    for name, module, lr in parts:
        trained = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
        taken.update(map(id, trained))
        for suffix, decay, chosen in (
            ("", weight_decay, [p for p in trained if p.ndim > 1]),
            ("_no_decay", 0.0, [p for p in trained if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": lr, "weight_decay": decay, "name": name + suffix})
    return groups


def learning_rate_factor(step: int, warmup_steps: int, max_steps: int, final: float) -> float:
    """Share of the peak learning rate at a step: linear from 0 over warmup_steps, then linear to `final` at
    max_steps."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = max(max_steps - step, 0) / max(max_steps - warmup_steps, 1)
    return final + (1 - final) * left


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, max_steps: int, final: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """`learning_rate_factor` on every group's peak."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, warmup_steps, max_steps, final)
    )
