"""Plain codes on a CPU: FAISS's own memory written in place, searched by FAISS or, where faster, by torch's matmul.

FAISS multiplies with the BLAS it was built with. Where torch multiplies by oneDNN (`hardware.set_threads`) that is up
to twice as fast, and what follows the matmul costs little: only the best groups of passages are considered.
"""

from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from openbook.index.storage import PlainCodes

# With fewer queries FAISS is as fast or faster: reading the vectors is nearly all there is to do.
LEAST_QUERIES = 6

_GROUP = 16  # passages whose best score stands for all of them
_SHORT = 32  # columns, below which a row of scores is short
_NUMBERS = 1 << 22  # scores at once, 16 MiB


class CodesOnCpu(PlainCodes):
    """Families whose codes lie side by side (Flat, SQfp16, SQ8, PQ, ...): their memory is taken once, at the start, and
    written in any order.

    index: FAISS's, still empty. Where it has quantisers to train, a row cannot be written again (`replaceable`). codes:
    [n_passages, bytes] uint8, FAISS's own memory.
    """

    rounding = 1e-5  # more than a fp32 sum over any dim can be off by

    def __init__(self, index: Any, n_passages: int, is_flat: bool):
        self.dim, self.most, self.index = index.d, n_passages, index
        self.replaceable = bool(index.is_trained)
        codes: Any = faiss.downcast_index(index)
        codes.codes.resize(n_passages * codes.code_size)
        codes.ntotal = n_passages
        view = faiss.rev_swig_ptr(codes.codes.data(), n_passages * codes.code_size) if n_passages else np.empty(0)
        self.codes = view.view(np.uint8).reshape(n_passages, codes.code_size)
        self.table = self.codes.view(np.float32) if is_flat else None

    def train(self, embeddings: np.ndarray) -> None:
        self.index.train(embeddings)

    def write(self, rows: np.ndarray, embeddings: np.ndarray | Tensor) -> None:
        self.codes[rows] = self.index.sa_encode(np.asarray(embeddings))

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self.table[rows] if self.table is not None else self.index.sa_decode(self.codes[rows])

    def stored(self) -> np.ndarray:
        return self.codes

    def restore(self, codes: np.ndarray) -> None:
        self.codes[:] = codes

    def as_faiss(self) -> tuple[Any, np.ndarray]:
        return self.index, np.arange(self.most)

    def candidates(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray | None, np.ndarray]:
        if self.table is not None and preferred(len(queries)):
            best = best_of(self.table, np.ascontiguousarray(queries, dtype=np.float32), depth)
            if best is not None:
                return best
        return None, self.index.search(queries, depth)[1]


def preferred(n_queries: int) -> bool:
    """Whether torch is the faster one: enough queries, and matmuls of fp32 that oneDNN does."""
    return n_queries >= LEAST_QUERIES and torch.get_float32_matmul_precision() != "highest"


def best_of(table: np.ndarray, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores and rows [n, depth], in no order, of the depth highest inner products of queries [n, dim] with table
    [n_passages, dim], all fp32 and depth <= n_passages; rounded as the machine's matmuls round.

    None where a sum overflows or a number is not one: then no order is to be had from them.
    """
    asked, stored = torch.from_numpy(queries).T.contiguous(), torch.from_numpy(table)
    step = max(_GROUP, _NUMBERS // len(queries) // _GROUP * _GROUP)
    scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    with torch.autocast("cpu", enabled=False):
        for start in range(0, len(table), step):
            found, places = _best_of_part(stored[start : start + step] @ asked, depth)
            scores, rows = torch.cat([scores, found], 1), torch.cat([rows, places + start], 1)
            if scores.shape[1] > depth:
                scores, kept = scores.topk(depth, sorted=False)
                rows = rows.gather(1, kept)
    return (scores.numpy(), rows.numpy()) if bool(scores.isfinite().all()) else None


def _best_of_part(scores: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Of scores [n_passages, n] the depth highest of each column (or more, or all there are): [n, any] and places.

    The depth highest lie in the depth groups whose best are highest, so the others can be ignored.
    """
    n_passages, n = scores.shape
    whole = n_passages // _GROUP * _GROUP
    if depth * _GROUP >= whole:
        return scores.T, torch.arange(n_passages).expand(n, -1)
    # Neighbours are a group, or with few columns passages far apart: torch's maxima of short rows are ten times slower.
    apart = n < _SHORT
    groups = scores[:whole].view(*((_GROUP, -1) if apart else (-1, _GROUP)), n).amax(0 if apart else 1)
    chosen = groups.T.contiguous().topk(depth, sorted=False).indices[:, :, None]  # [n, depth, 1]
    within = torch.arange(_GROUP)
    places = (chosen + within * len(groups) if apart else chosen * _GROUP + within).view(n, -1)
    places = torch.cat([places, torch.arange(whole, n_passages).expand(n, -1)], 1)
    return scores[places, torch.arange(n)[:, None]], places
