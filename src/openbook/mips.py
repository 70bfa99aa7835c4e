"""Maximum inner product search over a snapshot: one immutable index, the only module that knows FAISS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Retrieved
from openbook.errors import OpenBookError

faiss.cvar.distance_compute_blas_threshold = 20
# By FAISS's default small batches of queries stay off the BLAS path: five times slower at 100,000 passages.


@dataclass(frozen=True)
class Snapshot:
    """An index and what it was made from. Searching holds one; a swap rebinds the name, nothing is changed in place.

    generation counts the snapshots of a run from 0. The fingerprints are those of the passage encoder's weights and of
    the corpus: equal fingerprints, equal index.
    """

    index: Any
    generation: int
    encoder_fingerprint: str
    corpus_fingerprint: str
    factory: str

    @property
    def n_passages(self) -> int:
        return int(self.index.ntotal)

    def search(self, question_embeddings: Tensor, top_k: int) -> Retrieved:
        """The top_k passages of each question: question_embeddings [batch, dim] -> rows and scores [batch, top_k].

        Where the index had fewer hits, and where it gives a passage twice, the row is MISSING_ROW and the score -inf.
        index_scores are plain inner products, before any temperature. Nothing here is differentiable.
        """
        queries = question_embeddings.detach().float().cpu().numpy()
        if not np.isfinite(queries).all():
            raise OpenBookError("question embeddings are not finite", action="Training has diverged: lower optim.lr_*, "
                                "raise optim.warmup_steps, or resume from an earlier checkpoint.")  # fmt: skip
        if queries.shape[1] != self.index.d:
            raise OpenBookError("question embeddings do not fit the index", got=f"dim {queries.shape[1]}",
                                expected=f"dim {self.index.d}")  # fmt: skip
        scores, rows = self.index.search(np.ascontiguousarray(queries), top_k)
        missing = (rows < 0) | ~np.isfinite(scores) | _repeated(rows)
        rows = np.where(missing, MISSING_ROW, rows)
        scores = np.where(missing, -np.inf, scores)
        device = question_embeddings.device
        return Retrieved(torch.from_numpy(rows).to(device), torch.from_numpy(scores.astype(np.float32)).to(device))


def build_index(
    embeddings: np.ndarray,
    factory: str,
    device: Literal["cpu", "gpu"] = "cpu",
    nprobe: int = 16,
    ef_search: int = 64,
) -> Any:
    """A FAISS inner-product index over embeddings [n_passages, dim] fp32, row i for passage i.

    Families that learn (IVF, PQ) are trained on these very embeddings. Raises OpenBookError for embeddings that are
    not finite (FAISS would accept them) and for a factory string FAISS cannot read.
    """
    embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
    broken = ~np.isfinite(embeddings).all(axis=1)
    if broken.any():
        raise OpenBookError(
            "passage embeddings are not finite",
            got=f"{int(broken.sum()):,} of {len(embeddings):,} with NaN or infinity, first row {int(broken.argmax())}",
            action="Has training diverged? Lower optim.lr_passage_encoder or raise optim.warmup_steps.",
        )
    index = _empty_index(embeddings.shape[1], factory)
    if not index.is_trained:
        index.train(embeddings)
    index.add(embeddings)
    _set_depth(index, nprobe, ef_search)
    if device == "gpu":
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, torch.cuda.current_device(), index)
    return index


def search_device(wanted: Literal["auto", "cpu", "gpu"]) -> Literal["cpu", "gpu"]:
    """Where an index will live. Raises OpenBookError when a GPU is asked for and FAISS or torch has none."""
    faiss_gpu = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if wanted == "gpu" and not faiss_gpu:
        built = "faiss-gpu, which finds no device" if hasattr(faiss, "StandardGpuResources") else "faiss-cpu"
        raise OpenBookError(
            "a GPU index was asked for and FAISS has no GPU", where="index.device", got=built, expected="a GPU",
            action="Install the other package (`pip uninstall faiss-cpu && pip install 'openbook[gpu]'`; both together "
            "lose the GPU), or set index.device=cpu.",
        )  # fmt: skip
    return "gpu" if faiss_gpu and wanted != "cpu" and torch.cuda.is_available() else "cpu"


def check_factory(factory: str, dim: int, n_passages: int | None = None) -> None:
    """Raise OpenBookError for a factory string that FAISS cannot build for dim, or not over so few passages."""
    index = _empty_index(dim, factory)
    ivf = faiss.try_extract_index_ivf(index)
    quantizer = getattr(ivf or faiss.downcast_index(index), "pq", None)
    needed = max(ivf.nlist if ivf else 0, 2**quantizer.nbits if quantizer else 0)
    if n_passages is not None and n_passages < needed:
        raise OpenBookError(
            "the corpus is too small for the index family", where="index.factory", got=f"{n_passages:,} passages",
            expected=f"at least {needed:,}, what {factory} learns from", action="Take fewer lists, or Flat.",
        )  # fmt: skip


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


def use_threads(n: int) -> None:
    """FAISS brings its own OpenMP: without this it takes every core beside torch's threads."""
    faiss.omp_set_num_threads(n)


def _empty_index(dim: int, factory: str) -> Any:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise OpenBookError("not a FAISS factory string", where="index.factory", got=repr(factory),
                            expected="Flat, IVF256,Flat, HNSW32, …") from error  # fmt: skip


def _repeated(rows: np.ndarray) -> np.ndarray:
    """[batch, top_k] bool: True where a row stands further left already. The same passage twice is one passage."""
    order = np.argsort(rows, axis=1, kind="stable")
    in_order = np.take_along_axis(rows, order, axis=1)
    repeated = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    return repeated
