"""A training step on one rank and on two: the index sharded, gradients averaged, the same questions per rank.

    python -m benchmarks.training.ranks [--out FILE] [--quick]

Ranks are gloo processes on this machine with one thread each, RagModule in DistributedDataParallel as Lightning has it.
`ranks.efficiency.2` is the seconds of one rank alone over those of two: what is lost goes into sums over the ranks,
into waiting for the slower one, and on one machine into sharing its memory and caches.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import synthetic
from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.processes import free_port
from benchmarks.common.system import prepare_machine
from benchmarks.training.cost import Stack, Step
from benchmarks.training.cost_model import ROUNDS, Running
from openbook.batch import Batch
from openbook.index.faiss_factory import use_threads
from openbook.index.shard_index import ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.training.rag_module import RagModule
from openbook.utils.at_exit import end_at_rest
from openbook.utils.distributed import shard

SIZES, TINY = Step(n_passages=50_000), Step(2_000, 2, 2, encoder=Stack(1, 64, 1), generator=Stack(1, 64, 1))


class Loss(nn.Module):
    """Training as a forward pass, that DistributedDataParallel can wrap."""

    def __init__(self, module: RagModule):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return self.module.training_step(batch, 0)["loss"]


def train(rank: int, world_size: int, port: int, sizes: Step, folder: str) -> None:
    """One rank: median seconds of its steps, left in the folder."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    prepare_machine()
    torch.set_num_threads(1)
    use_threads(1)
    end_at_rest()
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    mine = shard(sizes.n_passages, rank, world_size)
    index = ShardIndex(sizes.encoder.dim, len(mine))
    index.write(np.arange(len(mine)), synthetic.embeddings(sizes.n_passages, sizes.encoder.dim)[mine.start : mine.stop])
    running = Running(sizes, Snapshot(index.finish(), 0, "", "", sizes.n_passages, mine.start))
    running.random = np.random.default_rng(rank)
    wrapped = DistributedDataParallel(Loss(running.module), broadcast_buffers=False)
    seconds = [running.seconds(wrapped) for _ in range(ROUNDS + 1)][1:]
    Path(folder, f"{world_size}-{rank}").write_text(str(median(seconds)), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    asked = options(__doc__).parse_args()
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for world_size in (1, 2):
            mp.spawn(train, (world_size, free_port(), TINY if asked.quick else SIZES, folder), nprocs=world_size)
            found = [float(Path(folder, f"{world_size}-{rank}").read_text("utf-8")) for rank in range(world_size)]
            seconds[world_size] = max(found)
    figures: dict[str, Value] = {f"ranks.step_seconds.{n}": value for n, value in seconds.items()}
    finish(asked, figures | {"ranks.efficiency.2": seconds[1] / seconds[2]})


if __name__ == "__main__":
    main()
