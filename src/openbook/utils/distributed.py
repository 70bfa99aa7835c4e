"""Several ranks as one. For one process all is the identity. Only this module, rank_failure.py and training/ranks talk
to torch.distributed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from openbook.errors import OpenBookError
from openbook.utils.signals import Stopped

_now = ["set-up"]


def now_in(phase: str) -> None:
    """What this rank is doing, in words, for an error of whoever waits for it."""
    _now[0] = phase


def phase() -> str:
    return _now[0]


class RankError(OpenBookError):
    """Another rank has failed, is gone, or does not answer."""


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def shard(n: int, rank: int, world_size: int) -> range:
    """The contiguous part of range(n) that a rank owns; parts differ by at most one and together are range(n)."""
    return range(n * rank // world_size, n * (rank + 1) // world_size)


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; no gradient flows through it."""
    if world_size() == 1:
        return value.detach().clone()
    total = value.detach().to(_device(), copy=True)
    dist.all_reduce(total)
    return total.to(value.device)


def any_rank(flag: bool) -> bool:
    """True on every rank when it is True on one."""
    return bool(largest(int(flag)))


def largest(number: int) -> int:
    """The largest of all ranks' numbers."""
    if world_size() == 1:
        return number
    value = torch.tensor(number, device=_device())
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value.item())


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


def gather_rows(rows: Tensor) -> tuple[Tensor, list[int]]:
    """[n_0 + n_1 + ..., ...] from each rank's rows [n_rank, ...], in the order of the ranks, and the n_rank.

    Ranks may bring different numbers of rows, also none; what a row is made of is the same everywhere.
    """
    if world_size() == 1:
        return rows, [len(rows)]
    counts = [torch.zeros(1, dtype=torch.int64, device=_device()) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=_device()))
    lengths = [int(count) for count in counts]
    padded = torch.zeros((max(lengths), *rows.shape[1:]), dtype=rows.dtype, device=_device())
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]).to(rows.device), lengths


class _GatherWithGradient(torch.autograd.Function):
    """Forward: everybody's rows. Backward: what all ranks' losses say of this rank's rows, summed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered, lengths = gather_rows(rows.contiguous())
        ctx.mine = slice(sum(lengths[: rank()]), sum(lengths[: rank() + 1]))
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)[ctx.mine]


def gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """`gather_rows`, through which gradient flows: a rank's rows get the sum of what the ranks' losses say of them.

    All ranks must take part in the backward pass too.
    """
    return rows if world_size() == 1 else _GatherWithGradient.apply(rows)


def exchange_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """[world_size, counts[rank], ...] on the CPU: every rank's answer to this rank's rows.

    rows [sum of counts, ...]: this rank's answers to all ranks' rows, in the order of `gather_rows`.
    """
    if world_size() == 1:
        return rows[None]
    mine = counts[rank()]
    received = torch.empty((world_size() * mine, *rows.shape[1:]), dtype=rows.dtype, device=_device())
    dist.all_to_all_single(received, rows.to(_device()).contiguous(), [mine] * world_size(), counts)
    return received.unflatten(0, (world_size(), mine)).cpu()


def shards_on_rank_zero(rows: np.ndarray, n: int) -> np.ndarray | None:
    """[n, ...] on rank 0, None elsewhere, from each rank's rows [len(shard(n, rank)), ...] of plain numbers.

    Ranks send one after the other into their place, so the peak is the result plus the largest shard. One rank gets
    its rows themselves, not a copy.
    """
    if world_size() == 1:
        return rows
    whole = np.empty((n, *rows.shape[1:]), dtype=rows.dtype) if rank() == 0 else None
    for source in range(world_size()):
        part = shard(n, source, world_size())
        sent = torch.from_numpy(rows if source == rank() else np.empty((len(part), *rows.shape[1:]), dtype=rows.dtype))
        sent = sent.contiguous().to(_device())
        dist.broadcast(sent, src=source)
        if whole is not None:
            whole[part.start : part.stop] = sent.cpu().numpy()
    return whole


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """What one rank raises inside is raised on all of them, after the block."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # exchanged before it is raised: a rank alone would leave the others waiting
        error = caught
    raise_if_any_rank_failed(error)


def raise_if_any_rank_failed(error: BaseException | None) -> None:
    """Raise on every rank when one rank has failed, so that no rank waits for another that is gone."""
    told = gather_objects(None if error is None else (phase(), in_words(error)))
    failures = [(who, *facts) for who, facts in enumerate(told) if facts]
    if error is not None:
        raise error
    if failures:
        who, where, text = failures[0]
        raise RankError(f"rank {who} failed", where=where, got=text)


def leave_together() -> None:
    """The last thing that ranks do together. A thread of gloo frees the tensors of its last work some time after the
    work is done, and aborts the process where Python has gone by then (pytorch/pytorch, pull request 179291); a
    barrier's work has none."""
    if world_size() > 1:
        dist.barrier()


def in_words(error: BaseException) -> str:
    if isinstance(error, Stopped):
        return f"stopped by {error}"
    return str(error) if isinstance(error, OpenBookError) else repr(error)


def _device() -> torch.device:
    """Where collectives run: NCCL moves CUDA tensors only, gloo CPU ones."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
