"""What an index will take before anything is built: memory at the swap, disk, time.

A plan is arithmetic over plain numbers; two of them, seconds per refresh and per step, are measured on a sample. Memory
is that of the index and of refreshing it; what models, optimizer and libraries hold is not counted.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from openbook.config.retrieval import IN_PLACE, RefreshMode
from openbook.index.faiss_factory import FLAT_ON_GPU, ROW, bytes_per_passage, empty_index, learnt_points
from openbook.utils.console import duration
from openbook.utils.host_memory import human

PLANNING_PASSES = 64  # bytes per passage, at most, of the lengths and orders from which a refresh plans its passes
GROWTH = 1.3  # what an index that grows holds, to what it stores: the allocator keeps the holes that lists leave
GROWTH_ON_GPU = 2  # the same on a GPU while it is filled, at most: a list that is longer than the others is doubled


@dataclass(frozen=True)
class Plan:
    """What is asked for (fields) and what follows (properties), both of the rank with the largest shard; `disk` is that
    of all ranks together."""

    n_passages: int
    dim: int
    factory: str = "Flat"
    mode: RefreshMode = "blocking"
    device: Literal["cpu", "gpu"] = "cpu"  # where the index is searched
    world_size: int = 1
    ranks_per_node: int = 1  # they share one machine's RAM
    trains: bool = True  # the passage encoder; of one that does not, the index is built once and never swapped
    every: int | None = 30  # steps between refreshes, the shortest of a schedule; 0: never; None: staleness decides
    refresh_share: float = 1.0  # of the corpus, encoded by rolling and hot per interval
    refresh_seconds: float = 0.0  # one refresh of the whole shard, from time_encoding
    step_seconds: float = 0.0  # one optimizer step without refreshing, from time_step
    slice_passages: int = 4096  # encoded before they are written
    bookkeeping: int = 0  # bytes per passage of the shard: PLANNING_PASSES
    encoder_bytes: int = 0  # the copy of the passage encoder that encodes
    models_on: Literal["cpu", "gpu"] = "cpu"
    gpu_temp_memory: int = 256  # MiB that a search works in on a GPU
    keep_vectors: int = 0  # sets of fp32 embeddings of the corpus on disk, Flat only
    checkpoints: int = 0  # on disk at a time: those that are kept, and the one that is being written
    checkpoint_bytes: int = 0  # of one, its passages left out

    @property
    def n_shard(self) -> int:
        return -(-self.n_passages // self.world_size)

    @property
    def bytes_index(self) -> int:
        """One index of the shard, codes, ids and links."""
        return round(self.n_shard * family_facts(self.factory, self.dim)[0])

    @property
    def bytes_build(self) -> int:
        """RAM that building takes beside the index at its fullest: the encoder's copy where models are in RAM, and the
        slice being written or the fp32 sample that quantisers learn from: in slices, whole, and PQ's residuals."""
        n_sample = min(self.n_shard, family_facts(self.factory, self.dim)[1])
        n_residuals = min(n_sample, 65536) if "PQ" in self.factory else 0  # the most FAISS takes
        learning = 4 * self.dim * (2 * n_sample + n_residuals)
        return max(learning, self._bytes_slice) + (self.encoder_bytes if self.models_on == "cpu" else 0)

    @property
    def indexes_at_swap(self) -> int:
        """2: the old and the new one; 1: written in place, or built once and for all."""
        return 1 if self.in_place or not self.trains else 2

    @property
    def in_place(self) -> bool:
        """Whether passages are re-encoded one by one, so that their ages differ."""
        return self.trains and self.mode in IN_PLACE

    @property
    def ram_at_swap(self) -> int:
        """RAM for the index at its fullest. One on a GPU is made there; RAM keeps row numbers beside a family, and is
        where vectors pass on their way to the disk."""
        if self.device == "gpu":
            written = self.in_place or (self.keep_vectors and self.factory == "Flat")
            rows = self.bytes_index * bool(written) if self._flat_on_gpu else self.indexes_at_swap * ROW * self.n_shard
            return rows + self.bytes_build + self.bookkeeping * self.n_shard
        # In RAM, families with plain codes take all of their memory at the start; the others grow into it.
        at_once = re.fullmatch(r"Flat|SQ\w+|PQ\d+(x\d+)?\w*", self.factory)
        held = self.bytes_index if at_once else round(self.bytes_index * GROWTH)
        return self.indexes_at_swap * held + self.bytes_build + self.bookkeeping * self.n_shard

    @property
    def gpu_at_swap(self) -> int:
        """GPU memory for the index and the encoder's copy at its fullest."""
        copy = self.encoder_bytes if self.models_on == "gpu" else 0
        if self.device == "cpu":
            return copy
        filled = self.bytes_index * (1 if self._flat_on_gpu else GROWTH_ON_GPU)
        index = (self.indexes_at_swap - 1) * self.bytes_index + filled + (self.gpu_temp_memory << 20)
        return copy + index + (self._bytes_slice if self._flat_on_gpu else 0)

    @property
    def disk(self) -> int:
        """Vectors kept, and checkpoints; not the corpus store."""
        vectors = 4 * self.dim * self.n_passages if self.factory == "Flat" else 0
        return self.keep_vectors * vectors + self.disk_of_checkpoints

    @property
    def disk_of_checkpoints(self) -> int:
        """With the codes where passages are of different ages."""
        codes = round(self.n_passages * family_facts(self.factory, self.dim)[0]) if self.in_place else 0
        return self.checkpoints * (self.checkpoint_bytes + codes)

    @property
    def share(self) -> float | None:
        """Of training time spent refreshing, 0 to 1: an interval's refreshing / (its steps + its refreshing). None
        where staleness decides. On a GPU, where refreshing runs beside the steps, it is the most it can be."""
        if not self.trains or not self.every:
            return None if self.trains and self.every is None else 0.0
        work = self.refresh_seconds * (self.refresh_share if self.in_place else 1.0)
        return work / (self.every * self.step_seconds + work) if work else 0.0

    @property
    def _bytes_slice(self) -> int:
        return 4 * self.dim * min(self.slice_passages, self.n_shard)

    @property
    def _flat_on_gpu(self) -> bool:
        return self.device == "gpu" and self.factory in FLAT_ON_GPU


@cache
def family_facts(factory: str, dim: int) -> tuple[float, int]:
    """Bytes per passage, and how many embeddings the family is trained on."""
    index = empty_index(dim, factory)
    return bytes_per_passage(factory, dim), 0 if index.is_trained else 256 * max(learnt_points(index), 1)


def sizes(plan: Plan) -> dict[str, str]:
    """What is known before anything is measured, in words by subject."""
    each = " per rank" if plan.world_size > 1 else ""
    shards = f"; {plan.world_size} ranks, at most {plan.n_shard:,} each" if each else ""
    held = f"{'old and new' if plan.indexes_at_swap == 2 else 'one'} index, "
    return {
        "passages": f"{plan.n_passages:,} of dim {plan.dim}{shards}",
        "index": f"{plan.factory}, {human(plan.bytes_index)}{each}, searched on the {plan.device.upper()}",
        "RAM": f"{human(plan.ram_at_swap)}{each} at the swap ({held if plan.device == 'cpu' else ''}"
        f"{human(plan.bytes_build)} to build), without models and libraries",
        **({"GPU": f"{human(plan.gpu_at_swap)}{each} at the swap"} if plan.gpu_at_swap else {}),
        "disk": f"{human(plan.disk)} besides the corpus" if plan.disk else "nothing besides the corpus",
    }


def times(plan: Plan) -> dict[str, str]:
    """What was measured, likewise."""
    seconds = plan.refresh_seconds
    if not plan.trains:
        return {"refresh": f"none, the passage encoder is frozen; encoding the corpus once takes {duration(seconds)}"}
    when = "when stale" if plan.every is None else f"every {plan.every:,} steps" if plan.every else "never"
    what = f"{plan.refresh_share:.0%} of the corpus " if plan.in_place else ""
    n_steps = round(seconds / plan.step_seconds) if plan.step_seconds else 0
    in_steps = f" (about {n_steps:,} step{'s' * (n_steps != 1)})" if plan.step_seconds else ""
    said = {"refresh": f"{plan.mode}, {what}{when}; a full refresh takes {duration(seconds)}{in_steps}"}
    if plan.share is not None and plan.step_seconds:  # 0: no step was measured
        said["training time"] = f"{plan.share:.0%} spent refreshing; a step takes {duration(plan.step_seconds)}"
    return said
