"""AdamW by its names, parameter groups with their own learning rates, and linear warm-up with linear decay."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from openbook.training.ranks.sharding import local


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


class _PartsAdamW(torch.optim.AdamW):
    """AdamW on weights of which a rank holds parts: it works on this rank's parts as on plain tensors, so that parts
    and whole weights are in one group, and groups are those of a run that is not in parts."""

    def _init_group(self, group: Any, *lists: Any) -> Any:
        found = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [local(one) for one in tensors]
        return found


def optimizer_of(name: str, groups: list[dict[str, Any]], modules: Sequence[nn.Module]) -> torch.optim.Optimizer:
    """The optimizer by optim.name (Loshchilov and Hutter 2019) over groups of the modules' parameters; with moments in
    8 bits (Dettmers et al. 2022) by bitsandbytes, which leaves small tensors in 32, as is done here with embeddings:
    a row that is rarely read has moments of another size than its neighbours."""
    if name == "adamw":
        in_parts = any(local(one) is not one for group in groups for one in group["params"])
        return (_PartsAdamW if in_parts else torch.optim.AdamW)(groups, fused=True)
    import bitsandbytes
    from bitsandbytes.optim import GlobalOptimManager

    manager = GlobalOptimManager.get_instance()
    manager.initialize()  # without what an earlier run of this process has told it
    for part in (part for module in modules for part in module.modules() if isinstance(part, nn.Embedding)):
        manager.register_module_override(part, "weight", {"optim_bits": 32})
    kind = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}[name]
    return getattr(bitsandbytes.optim, kind)(groups)


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
