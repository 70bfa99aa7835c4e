"""Several ranks for one test: gloo processes that start fresh, for one forked beside loaded OpenMP pools can hang."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from openbook.utils.at_exit import end_at_rest


def on_ranks(n: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """work(rank) of all ranks, by rank. work: a function of a module; what it returns is plain."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_rank_main, args=(rank, n, work, f"file://{folder}/init", queue)) for rank in range(n)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(queue.get(timeout=90) for _ in processes)
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    return [found[rank] for rank in range(n)]


def _rank_main(rank: int, n: int, work: Callable[[int], Any], init: str, queue: Any) -> None:
    torch.set_num_threads(1)
    end_at_rest()
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=n, timeout=timedelta(seconds=60))
    queue.put((rank, work(rank)))
    dist.barrier()  # a rank that is done first would close the connections under the others' last sum
    dist.destroy_process_group()
