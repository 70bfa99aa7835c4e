"""Factory strings: what cannot be built is refused before anything is encoded; where an index will live."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import pytest
import torch

from openbook.errors import OpenBookError
from openbook.index import faiss_factory as factories
from openbook.index.faiss_factory import (
    bytes_per_passage,
    check_factory,
    empty_index,
    learnt_points,
    search_device,
    use_threads,
)

DIM = 26
ADDITIVE = ("RQ2x4", "IVF4,RQ2x4", "PRQ2x2x4", "LSQ2x4", "PLSQ2x2x4")


def test_a_factory_string_that_faiss_cannot_read() -> None:
    with pytest.raises(OpenBookError, match=r"not a FAISS factory string \(index\.factory\): got 'Flatt'"):
        check_factory("Flatt", DIM)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,HNSW8"])
def test_a_family_with_ids_of_its_own(factory: str) -> None:
    with pytest.raises(OpenBookError, match=rf"ids of its own.*{factory}.*without IDMap"):
        check_factory(factory, DIM, 100)


def test_distance_is_the_inner_product() -> None:
    assert empty_index(DIM, "Flat").metric_type == faiss.METRIC_INNER_PRODUCT


@pytest.mark.parametrize("factory", ["IVF256,PQ48", "PQ96", "OPQ48,IVF64,PQ48", "HNSW32", "SQfp16", "SQbf16", "SQ8"])
def test_families_are_checked_in_the_dimension_they_are_built_in(factory: str) -> None:
    check_factory(factory, 384, 10_000)


@pytest.mark.parametrize(
    ("factory", "n_passages", "needed"),
    [
        ("IVF4096,Flat", 4000, "4,096"),
        ("PQ13", 37, "256"),
        ("IVF4,PQ13", 37, "256"),
        ("IVF512,PQ13x4", 500, "512"),
        ("PCA22,IVF64,Flat", 63, "64"),
        ("PCA22,Flat", 17, "22"),
        ("OPQ2,PQ2x4", 255, "256"),
        ("PQ13,RFlat", 37, "256"),
        ("HNSW8_PQ13", 37, "256"),
        ("RQ2x4", 25, "26"),
        ("IVF4,RQ1x8", 255, "256"),
        ("PRQ2x2x4", 25, "26"),
        ("LSQ2x4", 15, "16"),
    ],
)
def test_a_family_that_the_corpus_is_too_small_for(factory: str, n_passages: int, needed: str) -> None:
    check_factory(factory, DIM)
    with pytest.raises(
        OpenBookError,
        match=rf"too small for the index family.*got {n_passages:,} passages, expected at least {needed} on every "
        rf"rank, what {factory} learns from",
    ):
        check_factory(factory, DIM, n_passages)
    check_factory(factory, DIM, int(needed.replace(",", "")))


@pytest.mark.parametrize(
    "factory", ["IVF11,Flat", "PQ13x4np", "IVF3,PQ13x4np", "PCA22,Flat", "PQ13x4np,RFlat", "SQ8", *ADDITIVE]
)
def test_what_is_said_to_be_enough_is_enough(factory: str) -> None:
    needed = max(1, learnt_points(empty_index(DIM, factory)))
    embeddings = np.random.default_rng(5).standard_normal((needed, DIM)).astype(np.float32)
    index = empty_index(DIM, factory)
    index.train(embeddings)
    assert index.is_trained


def test_few_passages_are_enough_where_nothing_is_learnt() -> None:
    for factory in ("Flat", "SQfp16", "HNSW8"):
        check_factory(factory, DIM, 1)


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "SQbf16"])
def test_families_replaced_in_place(factory: str) -> None:
    check_factory(factory, DIM, 10_000, in_place=True)


@pytest.mark.parametrize("factory", ["SQ8", "PQ13", "IVF4,Flat", "HNSW8", "PCA13,Flat", "SQfp16,RFlat"])
def test_families_that_are_not_replaced_in_place(factory: str) -> None:
    check_factory(factory, DIM, 10_000)
    with pytest.raises(
        OpenBookError,
        match=rf"cannot be replaced in place \(index\.factory\): got '{factory}', expected Flat or SQfp16 with "
        r"refresh\.mode=rolling or hot\. Or set refresh\.mode=amortized",
    ):
        check_factory(factory, DIM, 10_000, in_place=True)


def test_bytes_of_a_passage_by_hand() -> None:
    assert bytes_per_passage("Flat", DIM) == 4 * DIM
    assert bytes_per_passage("SQfp16", DIM) == bytes_per_passage("SQbf16", DIM) == 2 * DIM
    assert bytes_per_passage("SQ8", DIM) == DIM
    assert bytes_per_passage("PQ13", DIM) == 13
    assert bytes_per_passage("PQ13x4", DIM) == 7  # 13 half bytes
    assert bytes_per_passage("IVF4,SQ8", DIM) == DIM + 8 + 8  # FAISS's id and ours
    assert bytes_per_passage("PCA13,Flat", DIM) == 4 * 13 + 8
    assert bytes_per_passage("HNSW8", DIM) == 4 * DIM + 2 * 8 * 4 + 12 + 8


@pytest.fixture
def threads() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    yield
    faiss.omp_set_num_threads(before)


def test_faiss_takes_as_many_threads_as_it_is_given(threads: None) -> None:
    for n in (2, 1):
        use_threads(n)
        assert faiss.omp_get_max_threads() == n


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for factory in ("Flat", "IVF7,Flat"):
        with pytest.raises(OpenBookError, match=r"there is no GPU \(index\.device\): got torch .*, which finds none"):
            search_device("gpu", factory)
        assert search_device("auto", factory) == search_device("cpu", factory) == "cpu"


def test_only_faiss_has_families_and_only_with_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat and SQfp16 need torch alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(factories.faiss, "StandardGpuResources", None, raising=False)
    monkeypatch.setattr(factories.faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(
        OpenBookError,
        match=r"\(index\.device\): got faiss-gpu, which finds no device, and index\.factory=IVF7,Flat, expected FAISS "
        r"for GPUs, or Flat or SQfp16.*index\.device=cpu",
    ):
        search_device("gpu", "IVF7,Flat")
    monkeypatch.delattr(factories.faiss, "StandardGpuResources")
    with pytest.raises(OpenBookError, match=r"got faiss-cpu, and index\.factory=IVF7,Flat.*both together lose the GPU"):
        search_device("gpu", "IVF7,Flat")
    assert search_device("auto", "IVF7,Flat") == "cpu"
    for factory in ("Flat", "SQfp16"):
        assert search_device("auto", factory) == search_device("gpu", factory) == "gpu"


@pytest.mark.parametrize(("wanted", "device"), [("auto", "gpu"), ("gpu", "gpu"), ("cpu", "cpu")])
def test_a_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch, wanted: str, device: str) -> None:
    monkeypatch.setattr(factories.faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(factories.faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert search_device(wanted, "IVF7,Flat") == device  # type: ignore[arg-type]
