"""Searching one index against its halves on two ranks: seconds for the same questions, and whether the answers agree.

    python -m benchmarks.index.shards [--out FILE] [--quick]

Ranks are gloo processes on this machine with one thread each; all together ask 32 questions of a flat index.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.common import synthetic
from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.processes import free_port
from benchmarks.common.system import now
from benchmarks.index import families
from openbook.index.faiss_factory import use_threads
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.utils.at_exit import end_at_rest
from openbook.utils.distributed import shard

REPEATS = 9


def search(rank: int, world_size: int, port: int, n: int, folder: str) -> None:
    """One rank: index its shard, ask its share of the questions, leave rows and seconds in the folder."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    use_threads(1)
    end_at_rest()
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    vectors = synthetic.embeddings(n, families.DIM)
    asked = families.questions(vectors, families.ASKED)
    mine = shard(n, rank, world_size)
    index = ShardIndex(families.DIM, len(mine), IndexOptions())
    index.write(np.arange(len(mine)), vectors[mine.start : mine.stop])
    snapshot = Snapshot(index.finish(), 0, "", "", n, mine.start)
    share = shard(len(asked), rank, world_size)
    seconds = []
    for _ in range(REPEATS):
        dist.barrier()
        started = now()
        found = snapshot.search(torch.from_numpy(asked[share.start : share.stop]), families.TOP_K)
        seconds.append(now() - started)
    np.savez(Path(folder) / f"{world_size}-{rank}.npz", rows=found.rows.numpy(), seconds=median(seconds))
    dist.destroy_process_group()


def figures(n: int) -> dict[str, Value]:
    found: dict[str, Value] = {"shards.passages": n}
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for world_size in (1, 2):
            mp.spawn(search, (world_size, free_port(), n, folder), nprocs=world_size)
            parts = [np.load(Path(folder) / f"{world_size}-{rank}.npz") for rank in range(world_size)]
            rows[world_size] = np.concatenate([part["rows"] for part in parts])
            found[f"shards.search_seconds_per_32.{world_size}"] = max(float(part["seconds"]) for part in parts)
    found["shards.same_rows"] = float((rows[1] == rows[2]).mean())
    return found


def main() -> None:
    asked = options(__doc__).parse_args()
    finish(asked, figures(10_000 if asked.quick else 200_000))


if __name__ == "__main__":
    main()
