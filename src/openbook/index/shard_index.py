"""FAISS's index families behind one face: filled slice by slice, searched, and where the family allows, replaced in
place. The only module that knows FAISS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
import torch

from openbook.batch import MISSING_ROW
from openbook.errors import OpenBookError
from openbook.index import flat_cpu as cpu_flat
from openbook.index.faiss_factory import FLAT_ON_GPU, bytes_per_passage, empty_index, learnt_points, moved_to_gpu
from openbook.index.flat_gpu import GPU_MOST, FlatOnGpu, gpu_resources

SHIPPED_BLAS_THRESHOLD = faiss.cvar.distance_compute_blas_threshold
"""Queries (of older versions) or queries x dim from which on FAISS multiplies by BLAS, as it comes."""

if SHIPPED_BLAS_THRESHOLD > 1024:
    # The default, 128,000, keeps a step's questions off that path, which is slower by far; one alone is faster so.
    faiss.cvar.distance_compute_blas_threshold = 1024

SPARE = 8
"""Candidates looked at beyond top-k, so that rounding in FAISS's sums decides nothing."""

_ROUNDING = 1e-5
"""Of |query| |passage|: more than a fp32 sum over any dim can be off by."""

_SEEN = 4
"""Times the largest error seen among the candidates: where torch multiplies fp32 in less than that, more is hidden."""

_CHUNK = 1 << 24  # numbers of candidates' vectors held in fp64 at once: 128 MiB


@dataclass(frozen=True)
class IndexOptions:
    """factory: FAISS factory string. device: where it is searched. nprobe, ef_search: search depth of IVF and HNSW.
    gpu_temp_memory: MiB that FAISS may use for its work on a GPU. seed: of the sample that quantisers learn from."""

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

    Families whose codes lie side by side (Flat, SQfp16, SQ8, PQ…) take their memory once, at the start, and are
    written in place and in any order; the others (IVF, HNSW, …) are added to in the order of writing. Where nothing
    was learnt from the embeddings (`replaceable`: Flat, SQfp16, SQbf16), a row may be written again later.

    Scores of families with plain codes are summed in fp64 from the stored vectors: a score is a function of one
    question and one passage, whatever else is in the index or the batch, and equal scores are ordered by row. So where
    nothing is learnt, shards merge to exactly what one index gives.
    """

    def __init__(self, dim: int, n_passages: int, options: IndexOptions = IndexOptions()):
        self.dim, self.n_passages, self.options = dim, n_passages, options
        self._index = empty_index(dim, options.factory)
        self._learns = not self._index.is_trained
        self._family = faiss.downcast_index(self._index)
        self._row_of: np.ndarray | None = None
        self._added = 0
        self._gpu: Any = None
        self._table: np.ndarray | None = None
        self.codes: np.ndarray | None = None
        """[n_passages, bytes] uint8: what is stored of each passage; None for families without plain codes."""
        dtype = FLAT_ON_GPU.get(options.factory)
        self.flat_on_gpu = (
            FlatOnGpu(dim, n_passages, dtype, options.gpu_temp_memory) if options.device == "gpu" and dtype else None
        )
        if self.flat_on_gpu is None and isinstance(self._family, faiss.IndexFlatCodes) and options.device == "cpu":
            size = self._family.code_size
            self._family.codes.resize(n_passages * size)
            self._family.ntotal = n_passages
            view = faiss.rev_swig_ptr(self._family.codes.data(), n_passages * size) if n_passages else np.empty(0)
            self.codes = view.view(np.uint8).reshape(n_passages, size)
            if options.factory == "Flat":
                self._table = self.codes.view(np.float32)
        elif self.flat_on_gpu is None:
            self._row_of = np.empty(n_passages, dtype=np.int64)

    @property
    def replaceable(self) -> bool:
        """Whether rows can be written again: the family has plain codes, none of them learnt."""
        return self.flat_on_gpu is not None or (self.codes is not None and not self._learns)

    @property
    def n_to_train_on(self) -> int:
        """Embeddings that the family wants to learn from, at most all there are; 0 when it learns nothing (more)."""
        if self._index.is_trained:
            return 0
        return min(self.n_passages, 256 * max(learnt_points(self._index), 1))

    @property
    def nbytes(self) -> int:
        """Bytes of the stored passages, ids and links included."""
        return round(self.n_passages * bytes_per_passage(self.options.factory, self.dim))

    def train(self, embeddings: np.ndarray) -> None:
        """Let the quantisers learn from embeddings [n, dim] fp32."""
        self._index.train(np.ascontiguousarray(embeddings, dtype=np.float32))

    def write(self, rows: np.ndarray, embeddings: np.ndarray) -> None:
        """Store embeddings [n, dim] fp32 at rows [n]. Raises OpenBookError, and stores nothing, where one is not
        finite: FAISS would accept it."""
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        broken = ~np.isfinite(embeddings).all(axis=1)
        if broken.any():
            raise OpenBookError(
                "passage embeddings are not finite",
                got=f"{int(broken.sum()):,} of {len(embeddings):,} with NaN or infinity, first row {rows[broken][0]}",
                action="Has training diverged? Lower optim.lr_passage_encoder or raise optim.warmup_steps.",
            )
        if self.flat_on_gpu is not None:
            self.flat_on_gpu.write(rows, embeddings)
        elif self.codes is not None:
            self.codes[rows] = self._index.sa_encode(embeddings)
        else:
            assert self._row_of is not None
            self._index.add(embeddings)
            self._row_of[self._added : self._added + len(rows)] = rows
            self._added += len(rows)

    def finish(self) -> ShardIndex:
        """Set the search depth and move the index to where it is searched; every row is written by now."""
        _set_depth(self._index, self.options.nprobe, self.options.ef_search)
        if self.options.device == "gpu" and self.flat_on_gpu is None:
            self._gpu = moved_to_gpu(self._index, self.options.factory, gpu_resources(self.options.gpu_temp_memory))
            self._index = None
        return self

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """[..., dim] fp32: what is stored at rows [...], decoded. For families with plain codes only."""
        flat = np.asarray(rows).reshape(-1)
        if self.flat_on_gpu is not None:
            found = self.flat_on_gpu.vectors(flat)
        elif self._table is not None:
            found = self._table[flat]
        elif self.codes is not None:
            found = self._index.sa_decode(self.codes[flat])
        else:
            raise OpenBookError("the index keeps no vectors", where="index.factory", got=self.options.factory)
        return found.reshape(*np.shape(rows), self.dim)

    def stored(self) -> np.ndarray:
        """[n_passages, bytes] uint8: what is stored, the same on a GPU as on a CPU; not a copy on the latter. For
        families with plain codes only."""
        if self.flat_on_gpu is not None:
            return self.flat_on_gpu.table.cpu().numpy().view(np.uint8)
        assert self.codes is not None
        return self.codes

    def restore(self, codes: np.ndarray) -> None:
        """Store [n_passages, bytes] uint8 of an index of the same factory."""
        if self.flat_on_gpu is not None:
            table = self.flat_on_gpu.table
            table.copy_(torch.from_numpy(np.ascontiguousarray(codes)).view(table.dtype))
        else:
            assert self.codes is not None
            self.codes[:] = codes

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The top_k of queries [n, dim] fp32: scores [n, top_k] fp32, highest first, and rows [n, top_k] int64.

        -inf and MISSING_ROW where there are no more."""
        scores = np.full((len(queries), top_k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), top_k), MISSING_ROW, dtype=np.int64)
        if not self.n_passages or not len(queries):
            return scores, rows
        if self.codes is None and self.flat_on_gpu is None:
            found, places = (self._gpu or self._index).search(queries, top_k)
            assert self._row_of is not None
            hit = places >= 0
            scores[hit], rows[hit] = found[hit], self._row_of[places[hit]]
            return scores, rows
        most = min(self.n_passages, GPU_MOST) if self.flat_on_gpu else self.n_passages
        depth, k, todo = top_k + SPARE, min(top_k, most), np.arange(len(queries))
        while len(todo):
            depth = min(depth, most)
            found, places, last, rounding = self._best(queries[todo], depth)
            scores[todo, :k], rows[todo, :k] = found[:, :k], places[:, :k]
            # What lies beyond the candidates could still belong in front where the last of them ties with the k-th.
            todo = todo[:0] if depth == most else todo[last >= found[:, k - 1] - rounding]
            depth *= 4
        return scores, rows

    def _best(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The depth candidates in order, scores and rows; each query's lowest score, and what rounding may hide."""
        found, rows = self._candidates(queries, depth)
        scores, largest = np.empty(rows.shape, dtype=np.float32), np.empty(len(rows))
        step = max(1, _CHUNK // (depth * self.dim))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            vectors = self.vectors(rows[part]).astype(np.float64)
            scores[part] = (vectors * queries[part, None]).sum(-1)
            largest[part] = np.sqrt(np.einsum("nkd,nkd->nk", vectors, vectors).max(1))
        order = np.lexsort((rows, -scores), axis=1)
        rounding = (
            (self.flat_on_gpu.rounding if self.flat_on_gpu else _ROUNDING) * largest * np.linalg.norm(queries, axis=1)
        )
        if found is not None:
            rounding = np.maximum(rounding, _SEEN * np.abs(found - scores).max(1))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1), scores.min(1), rounding

    def _candidates(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Rows [n, depth] in no order, and their scores as summed where torch did it, in whatever precision it has."""
        if self._table is not None and cpu_flat.preferred(len(queries)):
            best = cpu_flat.best_of(self._table, np.ascontiguousarray(queries, dtype=np.float32), depth)
            if best is not None:
                return best
        return None, (self.flat_on_gpu or self._index).search(queries, depth)[1]


def _set_depth(index: Any, nprobe: int, ef_search: int) -> None:
    """Search depth, also where a transform or a re-ranking wraps the family."""
    if isinstance(index, faiss.IndexPreTransform):
        index = index.index
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.base_index)
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = nprobe
    elif isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = ef_search
