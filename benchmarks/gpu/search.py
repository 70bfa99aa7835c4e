"""Exact search on a GPU against the time it takes to read the vectors, and against torch's own product and top-k.

    python -m benchmarks.gpu.search [--out FILE] [--quick]

4 million random vectors of dim 384, fp32 and fp16, 16, 64 and 512 questions, top 10. `over_floor`: milliseconds over
those that a copy's bandwidth needs for the vectors. `torch`: product and top-k by chunks of 2^19 passages, which is not
exact, fp32 as torch multiplies it and in TF32. The rows of 16 questions are compared with sums in fp64. IVF1024,Flat
over 300,000 vectors: seconds to learn and fill it on the CPU over those on the GPU, where FAISS has GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.figures import Value, median
from benchmarks.gpu.common import bandwidth, device, in_turns, main
from openbook.errors import OpenBookError
from openbook.index import shard_index
from openbook.index.faiss_factory import FLAT_ON_GPU, search_device
from openbook.index.flat_gpu import FlatOnGpu, coarse_products
from openbook.index.shard_index import IndexOptions, ShardIndex

TOP_K, DIM, CHUNK = 10, 384, 1 << 19


def filled(factory: str, n: int, dim: int) -> FlatOnGpu:
    """Random vectors of length 1, made where they stay."""
    table = FlatOnGpu(dim, n, FLAT_ON_GPU[factory], 256, device())
    draw = torch.Generator(device()).manual_seed(0)
    for start in range(0, n, 1 << 18):
        rows = np.arange(start, min(start + (1 << 18), n))
        made = torch.randn(len(rows), dim, device=device(), generator=draw)
        table.write(rows, torch.nn.functional.normalize(made, dim=1))
    return table


def by_torch(asked: Tensor, vectors: Tensor) -> Tensor:
    """Rows [n, TOP_K], as one would write it."""
    asked = asked.to(vectors.dtype)
    scores, rows = [], []
    for start in range(0, len(vectors), CHUNK):
        found = (asked @ vectors[start : start + CHUNK].T).topk(TOP_K)
        scores.append(found.values)
        rows.append(found.indices + start)
    return torch.cat(rows, 1).gather(1, torch.cat(scores, 1).topk(TOP_K).indices)


def in_tf32(asked: Tensor, vectors: Tensor) -> Tensor:
    with coarse_products():
        return by_torch(asked, vectors).cpu()


def wrong_rows(table: FlatOnGpu, asked: Tensor) -> int:
    """Rows that are not those of sums in fp64."""
    scores = torch.cat([asked.double() @ part.double().T for part in table.table.split(CHUNK)], 1).float()
    right = scores.sort(dim=1, descending=True, stable=True).indices[:, :TOP_K]
    return int((right.cpu().numpy() != table.search(asked, TOP_K)[1]).sum())


def exact(quick: bool) -> dict[str, Value]:
    n, dim = (3001, 48) if quick else (4_000_000, DIM)
    found: dict[str, Value] = {}
    per_second = bandwidth(quick)
    for name, factory in {"flat": "Flat", "sqfp16": "SQfp16"}.items():
        table = filled(factory, n, dim)
        floor = table.table.nbytes / per_second
        for questions in (16, 64, 512):
            draw = torch.Generator(device()).manual_seed(questions)
            asked = torch.randn(questions, dim, device=device(), generator=draw)
            sides: dict[str, Callable[[], object]] = {
                "ours": lambda table=table, asked=asked: table.search(asked, TOP_K),
                "torch": lambda table=table, asked=asked: by_torch(asked, table.table).cpu(),
            }
            if name == "flat":
                sides["torch_tf32"] = lambda table=table, asked=asked: in_tf32(asked, table.table)
            seconds = {side: median(took) for side, took in in_turns(sides, 3 if quick else 15).items()}
            key = f"gpu.search.{name}"
            found[f"{key}.ms_{questions}"] = 1000 * seconds["ours"]
            found[f"{key}.over_floor_{questions}"] = seconds["ours"] / floor
            for side in list(sides)[1:]:
                found[f"{key}.{side}_ms_{questions}"] = 1000 * seconds[side]
                found[f"{key}.over_{side}_{questions}"] = seconds["ours"] / seconds[side]
            if questions == 16:
                found[f"{key}.wrong_rows"] = wrong_rows(table, asked)
        del table
    return found


def families(quick: bool) -> dict[str, Value]:
    """Nothing where FAISS has no GPU."""
    n, dim, factory = (2000, 32, "IVF16,Flat") if quick else (300_000, DIM, "IVF1024,Flat")
    try:
        search_device("gpu", factory, dim)
    except OpenBookError:
        return {}
    vectors = np.random.default_rng(0).standard_normal((n, dim), dtype=np.float32)
    seconds = {}
    for where in ("cpu", "gpu"):
        index = ShardIndex(dim, n, IndexOptions(factory, where))  # type: ignore[arg-type]
        started = time.perf_counter()
        index.train(vectors[: index.n_to_train_on])
        index.write(np.arange(n), vectors)
        index.finish().search(vectors[:64], TOP_K)
        seconds[where] = time.perf_counter() - started
    return {
        "gpu.search.ivf.build_seconds": seconds["gpu"],
        "gpu.search.ivf.build_speedup_cpu": seconds["cpu"] / seconds["gpu"],
    }


def leak(quick: bool) -> dict[str, Value]:
    """MiB of GPU memory that 100 swaps of 200,000 x 384 leave behind."""
    n, dim, swaps = (500, 32, 3) if quick else (200_000, DIM, 100)
    vectors = torch.randn(n, dim, device=device())
    held, searched = [], None
    for _ in range(swaps + 1):
        new = FlatOnGpu(dim, n, torch.float32, 256, device())
        new.write(np.arange(n), vectors)
        new.search(vectors[:16], TOP_K)
        searched = new  # the old one goes
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            held.append(total - free)
    assert searched is not None
    # From the second table on, two are there at a time: the old one is searched until the new one is ready.
    return {"gpu.swap.leak_mib_100": (held[-1] - held[1]) / 2**20} if held else {}


def figures(quick: bool) -> dict[str, Value]:
    shard_index.shipped_blas_threshold()
    return exact(quick) | families(quick) | leak(quick)


if __name__ == "__main__":
    main(__doc__, figures)
