"""The inner-product index over one rank's passages: filled slice by slice, searched, and where the family allows,
replaced in place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW
from openbook.errors import OpenBookError
from openbook.index.faiss_factory import FLAT_ON_GPU, bytes_per_passage, empty_index, learnt_points
from openbook.index.faiss_families import AddedFamily
from openbook.index.flat_cpu import CodesOnCpu
from openbook.index.flat_gpu import FlatOnGpu
from openbook.index.storage import Storage


@cache
def shipped_blas_threshold() -> int:
    """Queries (in older versions) or queries x dim from which FAISS as installed multiplies by BLAS.

    The default, 128,000, keeps a step's questions off that path, and they are much slower without BLAS; a single
    question is faster so. It is lowered to 1,024 here, once per process, before the first search.
    """
    shipped = int(faiss.cvar.distance_compute_blas_threshold)
    faiss.cvar.distance_compute_blas_threshold = min(shipped, 1024)
    return shipped


def this_gpu() -> torch.device:
    """This rank's."""
    return torch.device("cuda", torch.cuda.current_device())


@dataclass(frozen=True)
class IndexOptions:
    """factory: FAISS factory string. device: where it is searched. nprobe, ef_search: search depth of IVF and HNSW.
    gpu_temp_memory: MiB that a search may use for its work on a GPU. seed: of the sample that quantisers learn from."""

    factory: str = "Flat"
    device: Literal["cpu", "gpu"] = "cpu"
    nprobe: int = 16
    ef_search: int = 64
    gpu_temp_memory: int = 256
    seed: int = 0

    @property
    def exact(self) -> bool:
        """Whether scores are those of the embeddings themselves, and the best are found."""
        return self.factory == "Flat"


class ShardIndex:
    """An inner-product index over n_passages embeddings of dim, rows counted from 0.

    Create, `train` on `n_to_train_on` embeddings where the family learns, `write` every row once, `finish`, `search`.

    Three storages: families whose codes lie side by side (Flat, SQfp16, SQ8, PQ, ...) on a CPU, Flat and SQfp16 on a
    GPU, and families that are added to in the order of writing (IVF, HNSW, ...), on a GPU those that FAISS has there.
    Where nothing was learnt from the embeddings (`replaceable`), a row may be written again later. Scores of the first
    two are summed in fp64 from the stored vectors; so where nothing is learnt, shards merge to exactly what one index
    gives.
    """

    def __init__(self, dim: int, n_passages: int, options: IndexOptions = IndexOptions()):
        shipped_blas_threshold()
        self.dim, self.n_passages, self.options = dim, n_passages, options
        empty: Any = empty_index(dim, options.factory)
        # Embeddings that the family learns from, at most all there are; 0 when it learns nothing (more).
        self.n_to_train_on = 0 if empty.is_trained else min(n_passages, 256 * max(learnt_points(empty), 1))
        self.storage: Storage
        temp_memory = options.gpu_temp_memory if options.device == "gpu" else None
        if temp_memory is not None and options.factory in FLAT_ON_GPU:
            self.storage = FlatOnGpu(dim, n_passages, FLAT_ON_GPU[options.factory], temp_memory, this_gpu())
        elif temp_memory is None and isinstance(faiss.downcast_index(empty), faiss.IndexFlatCodes):
            self.storage = CodesOnCpu(empty, n_passages, options.exact)
        else:
            self.storage = AddedFamily(empty, n_passages, options.factory, temp_memory)
        self.replaceable = self.storage.replaceable

    @property
    def nbytes(self) -> int:
        """Bytes of the stored passages, ids and links included."""
        return round(self.n_passages * bytes_per_passage(self.options.factory, self.dim))

    def train(self, embeddings: np.ndarray) -> None:
        """Let the quantisers learn from embeddings [n, dim] fp32."""
        self.storage.train(np.ascontiguousarray(embeddings, dtype=np.float32))
        self.n_to_train_on = 0

    def write(self, rows: np.ndarray, embeddings: np.ndarray | Tensor) -> None:
        """Store embeddings [n, dim] fp32, an array or a tensor on `device`, at rows [n]. Raises OpenBookError, and
        stores nothing, where one is not finite: FAISS would accept it."""
        if isinstance(embeddings, np.ndarray):
            embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
            finite = np.isfinite(embeddings).all(axis=1)
        else:
            embeddings = embeddings.float().contiguous()
            finite = embeddings.isfinite().all(1).cpu().numpy()
        if not finite.all():
            raise OpenBookError(
                "passage embeddings are not finite",
                got=f"{int((~finite).sum()):,} of {len(embeddings):,} with NaN or infinity, first row "
                f"{rows[~finite][0]}",
                action="Has training diverged? Lower optim.lr_passage_encoder or raise optim.warmup_steps.",
            )
        self.storage.write(rows, embeddings)

    def finish(self) -> ShardIndex:
        """Set the search depth; every row is written by now."""
        self.storage.finish(self.options.nprobe, self.options.ef_search)
        return self

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """[..., dim] fp32: what is stored at rows [...], decoded. Raises OpenBookError for families without plain
        codes."""
        return self.storage.vectors(np.asarray(rows).reshape(-1)).reshape(*np.shape(rows), self.dim)

    def stored(self) -> np.ndarray:
        """[n_passages, bytes] uint8: what is stored, the same on a GPU as on a CPU; not a copy on the latter."""
        return self.storage.stored()

    def restore(self, codes: np.ndarray) -> None:
        """Store [n_passages, bytes] uint8 of an index of the same factory."""
        self.storage.restore(codes)

    def write_file(self, path: Path) -> np.ndarray:
        """Write FAISS's own file, which its read_index reads; returns the row [n_passages] of each of its numbers."""
        made, rows = self.storage.as_faiss()
        faiss.write_index(made, str(path))
        return rows

    @property
    def device(self) -> torch.device:
        """Where questions are searched for."""
        return self.storage.device

    def search(self, queries: np.ndarray | Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The top_k of queries [n, dim] fp32, an array or a tensor on `device`: scores [n, top_k] fp32, highest first,
        and rows [n, top_k] int64.

        -inf and MISSING_ROW where there are no more."""
        scores = np.full((len(queries), top_k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), top_k), MISSING_ROW, dtype=np.int64)
        if self.n_passages and len(queries):
            asked = torch.from_numpy(queries) if isinstance(queries, np.ndarray) else queries
            found, places = self.storage.search(asked, top_k)
            scores[:, : found.shape[1]], rows[:, : places.shape[1]] = found, places
        return scores, rows
