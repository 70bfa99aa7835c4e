"""FAISS index families that are added to in the order of writing (IVF, HNSW, ...), and everything on a GPU but flat."""

from typing import Any

import faiss
import numpy as np

from openbook.batch import MISSING_ROW
from openbook.errors import OpenBookError
from openbook.index.faiss_factory import moved_to_gpu, parts_of
from openbook.index.flat_gpu import gpu_resources
from openbook.index.storage import Storage


class AddedFamily(Storage):
    """An index that numbers its passages by the order in which they are added; row_of translates back.

    temp_memory: MiB for FAISS's work on this rank's GPU, to which `finish` moves the index; None: it stays on the CPU.
    """

    replaceable = False

    def __init__(self, index: Any, n_passages: int, factory: str, temp_memory: int | None):
        self.index, self.factory, self.temp_memory = index, factory, temp_memory
        self.row_of = np.empty(n_passages, dtype=np.int64)

    def write(self, rows: np.ndarray, embeddings: np.ndarray) -> None:
        self.row_of[self.index.ntotal :][: len(rows)] = rows
        self.index.add(embeddings)

    def finish(self, nprobe: int, ef_search: int) -> None:
        for part in parts_of(self.index):
            if isinstance(part, faiss.IndexIVF):
                part.nprobe = nprobe
            elif isinstance(part, faiss.IndexHNSW):
                part.hnsw.efSearch = ef_search
        if self.temp_memory is not None:
            self.index = moved_to_gpu(self.index, self.factory, gpu_resources(self.temp_memory))

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, places = self.index.search(queries, top_k)
        hit = places >= 0
        return np.where(hit, scores, -np.inf), np.where(hit, self.row_of[places], MISSING_ROW)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        raise OpenBookError("the index keeps no vectors", where="index.factory", got=self.factory)

    def stored(self) -> np.ndarray:
        return self.vectors(self.row_of)

    def restore(self, codes: np.ndarray) -> None:
        self.vectors(self.row_of)
