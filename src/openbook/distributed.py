"""Several ranks as one: the only module that talks to torch.distributed. For one process all is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from openbook.errors import OpenBookError


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def shard(n: int, rank: int, world_size: int) -> range:
    """The contiguous part of range(n) that a rank owns; parts differ by at most one and together are range(n)."""
    return range(n * rank // world_size, n * (rank + 1) // world_size)


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; no gradient flows through it."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def any_rank(flag: bool) -> bool:
    """True on every rank when it is True on one."""
    if world_size() == 1:
        return flag
    value = torch.tensor(int(flag), device=_device())
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def gather_objects(value: Any) -> list[Any]:
    """Every rank's plain value, in the order of the ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(value: Any) -> Any:
    """Rank 0's plain value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def concatenate_shards(rows: Tensor, n: int) -> Tensor:
    """[n, dim] on the CPU of every rank from each rank's rows [len(shard(n, rank)), dim].

    Ranks send one after the other into their place, so the peak is the result plus the largest shard.
    """
    if world_size() == 1:
        return rows.cpu()
    device = _device()
    whole = torch.empty((n, rows.shape[1]), dtype=rows.dtype)
    for source in range(world_size()):
        part = shard(n, source, world_size())
        sent = (
            rows.to(device)
            if source == rank()
            else torch.empty((len(part), rows.shape[1]), dtype=rows.dtype, device=device)
        )
        dist.broadcast(sent, src=source)
        whole[part.start : part.stop] = sent.cpu()
    return whole


def raise_together(error: Exception | None) -> None:
    """Raise on every rank when one rank has failed, so that no rank waits for another that is gone."""
    failures = [(who, text) for who, text in enumerate(gather_objects(repr(error) if error else None)) if text]
    if error is not None:
        raise error
    if failures:
        who, text = failures[0]
        raise OpenBookError(f"rank {who} failed", got=text)


def _device() -> torch.device:
    """Where collectives run: NCCL moves CUDA tensors only, gloo CPU ones."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
