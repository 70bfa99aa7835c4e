"""FAISS index families that are added to in the order of writing (IVF, HNSW, ...), and everything on a GPU but flat."""

from functools import cache
from typing import Any

import faiss
import numpy as np
from torch import Tensor

from openbook.batch import MISSING_ROW
from openbook.errors import OpenBookError
from openbook.index.faiss_factory import moved_to_gpu, parts_of
from openbook.index.storage import Storage


@cache
def gpu_resources(temp_memory: int) -> Any:
    """FAISS's working memory on this rank's GPU, MiB: one for all its indexes, the old and the new one included."""
    made: Any = faiss.StandardGpuResources()
    made.setTempMemory(temp_memory << 20)
    return made


class AddedFamily(Storage):
    """An index that numbers its passages by the order in which they are added; row_of translates back.

    index: FAISS's, still empty. temp_memory: MiB for FAISS's work on this rank's GPU, where the index then lives from
    the start: it learns there and is added to there. None: it stays on the CPU.
    """

    replaceable = False

    def __init__(self, index: Any, n_passages: int, factory: str, temp_memory: int | None):
        on_gpu = temp_memory is not None
        self.index = moved_to_gpu(index, factory, gpu_resources(temp_memory), n_passages) if on_gpu else index
        self.factory, self.on_gpu = factory, on_gpu
        self.row_of = np.empty(n_passages, dtype=np.int64)

    def train(self, embeddings: np.ndarray) -> None:
        self.index.train(embeddings)

    def write(self, rows: np.ndarray, embeddings: np.ndarray | Tensor) -> None:
        self.row_of[self.index.ntotal :][: len(rows)] = rows
        self.index.add(np.asarray(embeddings))

    def finish(self, nprobe: int, ef_search: int) -> None:
        for part in parts_of(self.index):
            if hasattr(part, "nprobe"):  # a GPU's IVF is no faiss.IndexIVF
                part.nprobe = nprobe
            elif isinstance(part, faiss.IndexHNSW):
                part.hnsw.efSearch = ef_search
            if self.on_gpu and hasattr(part, "reclaimMemory"):
                part.reclaimMemory()  # of the room that lists have grown into

    def search(self, queries: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, places = self.index.search(queries.numpy(), top_k)
        hit = places >= 0
        return np.where(hit, scores, -np.inf), np.where(hit, self.row_of[places], MISSING_ROW)

    def as_faiss(self) -> tuple[Any, np.ndarray]:
        return (faiss.index_gpu_to_cpu(self.index) if self.on_gpu else self.index), self.row_of

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        raise OpenBookError("the index keeps no vectors", where="index.factory", got=self.factory)

    def stored(self) -> np.ndarray:
        return self.vectors(self.row_of)

    def restore(self, codes: np.ndarray) -> None:
        self.vectors(self.row_of)
