"""Exact search on a GPU over vectors that a torch tensor owns: replaced in place, fp32 or fp16, not copied by FAISS."""

from __future__ import annotations

import faiss
import numpy as np
import torch

GPU_MOST = 2048
"""The most hits that FAISS gives per query on a GPU."""


class FlatOnGpu:
    """[n_passages, dim] on this rank's GPU and FAISS's brute-force search over it.

    FAISS's own flat GPU index could be added to but not written in place. temp_memory: MiB for FAISS's work.
    """

    def __init__(self, dim: int, n_passages: int, dtype: torch.dtype, temp_memory: int):
        import faiss.contrib.torch_utils

        self.device = torch.device("cuda", torch.cuda.current_device())
        self.table = torch.zeros((n_passages, dim), dtype=dtype, device=self.device)
        self.resources = faiss.StandardGpuResources()
        self.resources.setTempMemory(temp_memory << 20)
        # FAISS wants queries in the vectors' dtype: what rounding can hide, as a share of |query| |passage|.
        self.rounding = 1e-5 if dtype == torch.float32 else 2e-3

    def write(self, rows: np.ndarray, embeddings: np.ndarray) -> None:
        """Store embeddings [n, dim] at rows [n]."""
        places = torch.from_numpy(np.asarray(rows)).to(self.device)
        self.table[places] = torch.from_numpy(embeddings).to(self.device, self.table.dtype)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """[n, dim] fp32 on the host."""
        return self.table[torch.from_numpy(np.asarray(rows)).to(self.device)].float().cpu().numpy()

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows [n, depth] of queries [n, dim] fp32, highest first."""
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self.device, self.table.dtype)
        scores, rows = faiss.knn_gpu(self.resources, asked, self.table, depth, metric=faiss.METRIC_INNER_PRODUCT)
        return scores.cpu().numpy(), rows.cpu().numpy()
