"""What every index storage offers, and exact top-k where the code of each passage can be read back."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# Candidates considered beyond top-k, so that rounding in FAISS's sums decides nothing.
SPARE = 8

# Times the largest error seen among the candidates: where torch multiplies fp32 in less than that, more is hidden.
_SEEN = 4

DEEPEST = 8192  # candidates of a question, beyond which looking at every passage costs less
_CHUNK = 1 << 24  # numbers of candidates' vectors held in fp64 at once: 128 MiB


class Storage(Protocol):
    """How the passages of one shard are stored and searched.

    replaceable: whether a row can be written again. Only storages of plain codes can read back what they store
    (`vectors`, `stored`, `restore`). device: where it wants questions, and where embeddings are best written from.
    """

    replaceable: bool
    device: torch.device = torch.device("cpu")

    def train(self, embeddings: np.ndarray) -> None:
        """Let the quantisers learn from embeddings [n, dim] fp32; plain codes without quantisers have nothing to."""
        return

    def write(self, rows: np.ndarray, embeddings: np.ndarray | Tensor) -> None:
        """Store finite embeddings [n, dim] fp32 at rows [n]; a tensor is on this storage's device."""

    def finish(self, nprobe: int, ef_search: int) -> None:
        """Every row is written: set the search depth and move the index to where it is searched. Plain codes have no
        search depth and are searched as they stand."""
        return

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """[n, dim] fp32 on the host: what is stored at rows [n], decoded."""

    def stored(self) -> np.ndarray:
        """[n_passages, bytes] uint8 on the host: the codes."""

    def restore(self, codes: np.ndarray) -> None:
        """Store the codes [n_passages, bytes] uint8 of a storage of the same family."""

    def as_faiss(self) -> tuple[Any, np.ndarray]:
        """FAISS's own index on the host, which searches the same, and the row [n_passages] of each of its numbers."""

    def search(self, queries: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores fp32 and rows int64, both [n, at most top_k], of queries [n, dim] fp32 on its device, highest first;
        the row is MISSING_ROW where there was no hit."""


def sum_by_halves(terms: Any) -> Any:
    """The sums [...] of terms [..., dim], an array or a tensor, whose memory is used up: the second half is added to
    the first until one number is left. Every machine, library and batch adds in that order, to the same bits."""
    while (n := terms.shape[-1]) > 1:
        half = (n + 1) // 2
        if isinstance(terms, np.ndarray) and n == 2 * half:  # in place, numpy would copy what it takes for overlapping
            terms = terms[..., :half] + terms[..., half:]
            continue
        terms[..., : n - half] += terms[..., half:]
        terms = terms[..., :half]
    return terms[..., 0]


class PlainCodes(Storage):
    """Exact top-k over a storage whose codes can be decoded: FAISS or torch give candidates, whose scores are summed
    again in fp64.

    A score is then a function of one question and one passage, whatever else is in the index or the batch, and equal
    scores are ordered by row. rounding: how far a candidate's score can be off, as a share of |query| |passage|. most:
    candidates that one search can return.
    """

    dim: int
    most: int
    rounding: float

    def candidates(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Rows [n, depth] in no order, and their scores where torch summed them, in whatever precision it has."""
        raise NotImplementedError

    def search(self, queries: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._search(queries.numpy(), top_k)

    def _search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        k, depth, todo = min(top_k, self.most), top_k + SPARE, np.arange(len(queries))
        scores, rows = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        while len(todo):
            if DEEPEST < depth < self.most:  # so many scores are alike that all passages are as quickly looked at
                scores[todo], rows[todo] = self._scan(queries[todo], k)
                break
            depth = min(depth, self.most)
            found, places, last, hidden = self._best(queries[todo], depth)
            scores[todo], rows[todo] = found[:, :k], places[:, :k]
            # What lies beyond the candidates could still belong in front where the last of them ties with the k-th.
            todo = todo[:0] if depth == self.most else todo[last >= found[:, k - 1] - hidden]
            depth *= 4
        return scores, rows

    def _scan(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best [n, k] of all passages, a few at a time: bounded time and memory for any vectors, also where a
        collapsed encoder has made them all the same. Summed in fp64, so that a score rounded to fp32 is that of
        `_best` but for sums within 1e-13 of the middle between two fp32 numbers."""
        asked, n = queries.astype(np.float64), len(queries)
        scores, rows = np.empty((n, 0), dtype=np.float32), np.empty((n, 0), dtype=np.int64)
        step = max(1, _CHUNK // max(self.dim, n))
        for start in range(0, self.most, step):
            some = np.arange(start, min(start + step, self.most))
            found = (asked @ self.vectors(some).astype(np.float64).T).astype(np.float32)
            scores = np.concatenate([scores, found], 1)
            rows = np.concatenate([rows, np.broadcast_to(some, found.shape)], 1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # equal scores stay in the order of their rows
            scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        return scores, rows

    def _best(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The depth candidates in order, scores and rows; each query's lowest score, and what rounding may hide."""
        found, rows = self.candidates(queries, depth)
        scores, largest = np.empty(rows.shape, dtype=np.float32), np.empty(len(rows))
        step = max(1, _CHUNK // (depth * self.dim))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            vectors = self.vectors(rows[part].reshape(-1)).reshape(*rows[part].shape, self.dim).astype(np.float64)
            largest[part] = np.sqrt(np.einsum("nkd,nkd->nk", vectors, vectors).max(1))
            vectors *= queries[part, None]
            scores[part] = sum_by_halves(vectors)
        order = np.lexsort((rows, -scores), axis=1)
        hidden = self.rounding * largest * np.linalg.norm(queries, axis=1)
        if found is not None:
            hidden = np.maximum(hidden, _SEEN * np.abs(found - scores).max(1))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1), scores.min(1), hidden
