"""FAISS factory strings: whether one can be built here, what it learns from, and what a passage costs in it."""

from typing import Any, Literal

import faiss
import torch

from openbook.errors import OpenBookError

# Families that a GPU searches in a tensor of this project's own, and its dtype.
FLAT_ON_GPU = {"Flat": torch.float32, "SQfp16": torch.float16}

# Bytes of the row number that families which are added to keep beside each passage.
ROW = 8


def search_device(
    wanted: Literal["auto", "cpu", "gpu"], factory: str = "Flat", dim: int | None = None
) -> Literal["cpu", "gpu"]:
    """Where an index will live; auto takes a GPU where there is one and FAISS has the family there.

    Raises OpenBookError when a GPU is asked for and FAISS or torch has none, or not this family. dim: None where it is
    not known yet; the family is then not tried.
    """
    faiss_gpu = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0 and torch.cuda.is_available()
    if wanted == "gpu" and not faiss_gpu:
        built = "faiss-gpu, which finds no device" if hasattr(faiss, "StandardGpuResources") else "faiss-cpu"
        raise OpenBookError(
            "a GPU index was asked for and FAISS has no GPU",
            where="index.device",
            got=built,
            expected="a GPU",
            action="Install the other package (`pip uninstall faiss-cpu && pip install 'openbook[gpu]'`; both together "
            "lose the GPU), or set index.device=cpu.",
        )
    if wanted == "cpu" or not faiss_gpu:
        return "cpu"
    if factory in FLAT_ON_GPU or dim is None:
        return "gpu"
    try:
        moved_to_gpu(empty_index(dim, factory), factory, faiss.StandardGpuResources())
    except OpenBookError:
        if wanted == "auto":
            return "cpu"
        raise
    return "gpu"


def moved_to_gpu(index: Any, factory: str, resources: Any) -> Any:
    """A copy of FAISS's index on this rank's GPU; OpenBookError for a family that FAISS does not have there."""
    cloner = faiss.GpuClonerOptions()
    cloner.useFloat16 = "fp16" in factory
    try:
        moved: Any = faiss.index_cpu_to_gpu(resources, torch.cuda.current_device(), index, cloner)
    except RuntimeError as error:
        raise OpenBookError(
            "FAISS has no such index for GPUs",
            where="index.factory",
            got=repr(factory),
            expected="Flat, SQfp16, IVF…,Flat, IVF…,SQ…, IVF…,PQ…",
            action="Or set index.device=cpu.",
        ) from error
    moved.referenced_objects = [resources]  # FAISS takes no other new attribute; they must live as long as the index
    return moved


def check_factory(
    factory: str, dim: int, n_passages: int | None = None, in_place: bool = False, device: Literal["cpu", "gpu"] = "cpu"
) -> None:
    """Raise OpenBookError for a factory string that FAISS cannot build for dim, or not over so few passages (of one
    shard), or whose rows cannot be replaced on that device where the refresh mode needs it (in_place)."""
    index = empty_index(dim, factory)
    needed = learnt_points(index)
    if n_passages is not None and n_passages < needed:
        raise OpenBookError(
            "the corpus is too small for the index family",
            where="index.factory",
            got=f"{n_passages:,} passages",
            expected=f"at least {needed:,} on every rank, what {factory} learns from",
            action="Take fewer lists, or Flat.",
        )
    plain = index.is_trained and isinstance(faiss.downcast_index(index), faiss.IndexFlatCodes)
    if in_place and not (plain if device == "cpu" else factory in FLAT_ON_GPU):
        raise OpenBookError(
            "the index family cannot be replaced in place",
            where="index.factory",
            got=repr(factory),
            expected="Flat or SQfp16 with refresh.mode=rolling or hot",
            action="Or set refresh.mode=amortized, which builds a new index beside the old one.",
        )


def bytes_per_passage(factory: str, dim: int) -> float:
    """What one more passage costs in the index: its code, and its id or links where the family keeps them."""
    whole = empty_index(dim, factory)  # a downcast one does not keep it alive
    index = faiss.downcast_index(whole)
    return _stored_bytes(index) + (0 if isinstance(index, faiss.IndexFlatCodes) else ROW)


def use_threads(n: int) -> None:
    """FAISS brings its own OpenMP: without this it takes every core beside torch's threads."""
    faiss.omp_set_num_threads(n)


def empty_index(dim: int, factory: str) -> Any:
    """FAISS's index for a factory string, by inner product; OpenBookError where FAISS cannot read it."""
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise OpenBookError(
            "not a FAISS factory string",
            where="index.factory",
            got=repr(factory),
            expected="Flat, SQfp16, IVF256,Flat, IVF4096,PQ64, HNSW32, …",
        ) from error
    family = faiss.downcast_index(index)
    family = faiss.downcast_index(family.index) if isinstance(family, faiss.IndexPreTransform) else family
    if hasattr(family, "do_polysemous_training"):  # nearly all of the training, for a search that is not used here
        family.do_polysemous_training = False
    return index


def _stored_bytes(index: Any) -> float:
    if isinstance(index, faiss.IndexPreTransform):
        return _stored_bytes(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        parts = (index.base_index, index.refine_index)
        return sum(_stored_bytes(faiss.downcast_index(part)) for part in parts)
    if isinstance(index, faiss.IndexIVF):
        return index.code_size + 8
    if isinstance(index, faiss.IndexHNSW):
        hnsw: Any = index.hnsw
        links = 2 * hnsw.nb_neighbors(1) * 4  # the ground level has twice as many as the others
        return _stored_bytes(faiss.downcast_index(index.storage)) + links + 12
    return getattr(index, "code_size", 4 * index.d)


def learnt_points(index: Any) -> int:
    """Points that the family learns at the widest place (centroids, directions): it needs as many embeddings."""
    family = faiss.downcast_index(index)  # beside index, which it does not keep alive
    if isinstance(family, faiss.IndexPreTransform):
        chain: Any = family.chain
        steps = [faiss.downcast_VectorTransform(chain.at(place)) for place in range(chain.size())]
        return max(learnt_points(family.index), *(_learnt_directions(step) for step in steps))
    if isinstance(family, faiss.IndexRefine):
        return max(learnt_points(family.base_index), learnt_points(family.refine_index))
    if isinstance(family, faiss.IndexHNSW):
        return learnt_points(family.storage)
    quantizer = getattr(family, "pq", None)
    return max(getattr(family, "nlist", 0), quantizer.ksub if quantizer else 0)


def _learnt_directions(transform: Any) -> int:
    if isinstance(transform, faiss.OPQMatrix):
        return 256  # centroids of the 8-bit quantiser that it fits the rotation with, whatever quantiser follows
    return transform.d_out if isinstance(transform, faiss.PCAMatrix) else 0
