"""Exact search on a GPU over vectors that a torch tensor owns: replaced in place, fp32 or fp16, not copied by FAISS."""

from functools import cache
from typing import Any

import faiss
import numpy as np
import torch

from openbook.index.storage import PlainCodes

GPU_MOST = 2048  # The most hits that FAISS returns per query on a GPU.


@cache
def gpu_resources(temp_memory: int) -> Any:
    """FAISS's working memory on this rank's GPU, MiB: one for all its indexes, the old and the new one included."""
    made: Any = faiss.StandardGpuResources()
    made.setTempMemory(temp_memory << 20)
    return made


class FlatOnGpu(PlainCodes):
    """[n_passages, dim] on this rank's GPU and FAISS's brute-force search over it.

    FAISS's own flat GPU index could be added to but not written in place. temp_memory: MiB for FAISS's work.
    """

    replaceable = True

    def __init__(self, dim: int, n_passages: int, dtype: torch.dtype, temp_memory: int):
        import faiss.contrib.torch_utils  # noqa: F401 - teaches knn_gpu to take tensors; needs a GPU build

        self.dim, self.most = dim, min(n_passages, GPU_MOST)
        self.device = torch.device("cuda", torch.cuda.current_device())
        with torch.inference_mode(False):  # built before a test, and written to in training
            self.table = torch.zeros((n_passages, dim), dtype=dtype, device=self.device)
        self.resources = gpu_resources(temp_memory)
        # FAISS needs queries in the vectors' dtype: what rounding can hide, as a share of |query| |passage|.
        self.rounding = 1e-5 if dtype == torch.float32 else 2e-3

    def write(self, rows: np.ndarray, embeddings: np.ndarray) -> None:
        places = torch.from_numpy(np.asarray(rows)).to(self.device)
        self.table[places] = torch.from_numpy(embeddings).to(self.device, self.table.dtype)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self.table[torch.from_numpy(np.asarray(rows)).to(self.device)].float().cpu().numpy()

    def stored(self) -> np.ndarray:
        return self.table.cpu().numpy().view(np.uint8)

    def restore(self, codes: np.ndarray) -> None:
        self.table.copy_(torch.from_numpy(np.ascontiguousarray(codes)).view(self.table.dtype))

    def candidates(self, queries: np.ndarray, depth: int) -> tuple[None, np.ndarray]:
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self.device, self.table.dtype)
        _, rows = faiss.knn_gpu(self.resources, asked, self.table, depth, metric=faiss.METRIC_INNER_PRODUCT)
        return None, rows.cpu().numpy()
