"""FAISS factory strings: whether one can be built here, what it learns from, and what a passage costs in it."""

from collections.abc import Iterator
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
    """Where an index will live; auto takes a GPU where torch has one and, but for Flat and SQfp16, FAISS has the family
    there.

    Raises OpenBookError when a GPU is asked for and torch or FAISS has none, or not this family. dim: None where it is
    not known yet; the family is then not tried.
    """
    if wanted == "cpu":
        return "cpu"
    try:
        _check_gpu(factory, dim)
    except OpenBookError:
        if wanted == "gpu":
            raise
        return "cpu"
    return "gpu"


def _check_gpu(factory: str, dim: int | None) -> None:
    """OpenBookError where a GPU cannot search this family."""
    if not torch.cuda.is_available():
        raise OpenBookError(
            "a GPU index was asked for and there is no GPU",
            where="index.device",
            got=f"torch {torch.__version__}, which finds none",
            expected="a CUDA device",
            action="Set index.device=cpu, or install a CUDA build of torch.",
        )
    if factory in FLAT_ON_GPU:
        return
    has_gpus = hasattr(faiss, "StandardGpuResources")
    if not (has_gpus and faiss.get_num_gpus() > 0):
        raise OpenBookError(
            "a GPU index was asked for and FAISS has no GPU",
            where="index.device",
            got=f"{'faiss-gpu, which finds no device' if has_gpus else 'faiss-cpu'}, and index.factory={factory}",
            expected="FAISS for GPUs, or Flat or SQfp16, which need none",
            action="Install the other package (`pip uninstall faiss-cpu && pip install 'openbook[gpu]'`; both together "
            "lose the GPU), or set index.device=cpu.",
        )
    if dim is not None:
        moved_to_gpu(empty_index(dim, factory), factory, faiss.StandardGpuResources())


def moved_to_gpu(index: Any, factory: str, resources: Any, n_passages: int = 0) -> Any:
    """A copy of FAISS's empty index on this rank's GPU, with room for n_passages where the family can make it
    beforehand; by cuVS where FAISS was built with it. OpenBookError for a family that FAISS does not have there."""
    cloner = faiss.GpuClonerOptions()
    cloner.useFloat16 = "fp16" in factory
    cloner.reserveVecs = n_passages
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
    if any(isinstance(part, faiss.IndexIDMap | faiss.IndexIDMap2) for part in parts_of(index)):
        raise OpenBookError(
            "the index family takes ids of its own",
            where="index.factory",
            got=repr(factory),
            expected="one without IDMap: a passage's id is its row",
        )
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
    index = empty_index(dim, factory)
    plain = isinstance(faiss.downcast_index(index), faiss.IndexFlatCodes)
    return sum(_stored_bytes(part) for part in parts_of(index)) + (0 if plain else ROW)


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
    for part in parts_of(index):
        if hasattr(part, "do_polysemous_training"):  # nearly all of the training, for a search that is not used here
            part.do_polysemous_training = False
    return index


def parts_of(index: Any) -> Iterator[Any]:
    """The index and those inside it (what a transform, a re-ranking or a graph wraps), each as what it is. None of them
    keeps the whole alive."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "refine_index", "storage"):
        if hasattr(index, name):
            yield from parts_of(getattr(index, name))


def _stored_bytes(part: Any) -> float:
    """Of one passage in this part itself."""
    if isinstance(part, faiss.IndexIVF):
        return part.code_size + 8
    if isinstance(part, faiss.IndexHNSW):
        hnsw: Any = part.hnsw
        return 2 * hnsw.nb_neighbors(1) * 4 + 12  # the ground level has twice as many links as the others
    wraps = len(list(parts_of(part))) > 1
    return getattr(part, "code_size", 0 if wraps else 4 * part.d)


def learnt_points(index: Any) -> int:
    """Points that the family learns at the widest place (centroids, directions): it needs as many embeddings."""
    points = [0]
    for part in parts_of(index):
        chain: Any = getattr(part, "chain", None)  # of a transform
        steps = [faiss.downcast_VectorTransform(chain.at(place)) for place in range(chain.size() if chain else 0)]
        points += [step.d_out for step in steps if isinstance(step, faiss.PCAMatrix)]
        # Centroids of the 8-bit quantiser that it fits the rotation with, whatever quantiser follows.
        points += [256 for step in steps if isinstance(step, faiss.OPQMatrix)]
        points += [getattr(part, "nlist", 0), part.pq.ksub if hasattr(part, "pq") else 0]
        if hasattr(part, "aq"):  # an additive quantiser, of which the residual ones begin with the axes of a PCA
            bits: Any = part.aq.nbits
            points += [2 ** max(bits.at(place) for place in range(bits.size()))]
            points += [part.d if hasattr(part, "rq") or hasattr(part, "prq") else 0]
    return max(points)
