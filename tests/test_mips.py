"""A snapshot's search against brute force; what FAISS does not have is masked, never read."""

from __future__ import annotations

from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch

from openbook import mips
from openbook.batch import MISSING_ROW
from openbook.errors import OpenBookError
from openbook.mips import Snapshot, build_index, check_factory, search_device
from tests.references import search

N_PASSAGES, DIM, BATCH, TOP_K = 211, 13, 7, 5


@pytest.fixture
def vectors() -> tuple[np.ndarray, torch.Tensor]:
    random = np.random.default_rng(3)
    return random.normal(size=(N_PASSAGES, DIM)).astype(np.float32), torch.from_numpy(
        random.normal(size=(BATCH, DIM))
    ).float()


def snapshot(index: object, factory: str = "Flat") -> Snapshot:
    return Snapshot(index, 0, "encoder", "corpus", factory)


def test_flat_is_exact(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    passages, questions = vectors
    found = snapshot(build_index(passages, "Flat")).search(questions, TOP_K)
    rows, scores = search.top_k(questions.numpy(), passages, TOP_K)
    assert found.rows.tolist() == rows.tolist()
    assert found.index_scores.numpy() == pytest.approx(scores, abs=1e-5)
    assert found.mask.all()


def test_fewer_passages_than_asked_for_are_masked(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    passages, questions = vectors
    found = snapshot(build_index(passages[:3], "Flat")).search(questions, TOP_K)
    assert (found.rows[:, 3:] == MISSING_ROW).all()
    assert (found.index_scores[:, 3:] == -torch.inf).all()
    assert found.mask.sum(1).tolist() == [3] * BATCH


def test_a_shallow_ivf_search_misses_and_masks(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    passages, questions = vectors
    shallow = snapshot(build_index(passages, "IVF64,Flat", nprobe=1), "IVF64,Flat").search(questions, 20)
    assert not shallow.mask.all()
    assert (shallow.index_scores[~shallow.mask] == -torch.inf).all()
    deep = snapshot(build_index(passages, "IVF64,Flat", nprobe=64), "IVF64,Flat").search(questions, TOP_K)
    assert deep.rows.tolist() == search.top_k(questions.numpy(), passages, TOP_K)[0].tolist()


def test_hnsw_takes_its_depth(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    assert faiss.downcast_index(build_index(vectors[0], "HNSW8", ef_search=77)).hnsw.efSearch == 77


def test_the_same_passage_twice_is_one_passage() -> None:
    rows = np.array([[4, 9, 4, 2, 9], [1, 2, 3, 4, 5]])
    index = SimpleNamespace(
        d=DIM, search=lambda queries, k: (np.arange(10, dtype=np.float32).reshape(2, 5)[:, ::-1], rows)
    )
    found = snapshot(index).search(torch.zeros(2, DIM), 5)
    assert found.rows.tolist() == [[4, 9, MISSING_ROW, 2, MISSING_ROW], [1, 2, 3, 4, 5]]
    assert found.index_scores[0].tolist() == [4, 3, -torch.inf, 1, -torch.inf]


def test_a_snapshot_cannot_be_changed(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    with pytest.raises(AttributeError):
        snapshot(build_index(vectors[0], "Flat")).generation = 1  # type: ignore[misc]


def test_embeddings_that_are_not_finite_are_refused(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    passages = vectors[0].copy()
    passages[17, 2] = np.nan
    passages[40, 0] = np.inf
    with pytest.raises(OpenBookError, match=r"2 of 211 with NaN or infinity, first row 17.*Has training diverged"):
        build_index(passages, "Flat")


def test_a_wrong_dimension_is_named(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    with pytest.raises(OpenBookError, match="got dim 12, expected dim 13"):
        snapshot(build_index(vectors[0], "Flat")).search(torch.zeros(1, 12), 1)


def test_a_factory_string_that_faiss_cannot_read() -> None:
    with pytest.raises(OpenBookError, match=r"index\.factory.*got 'Flatt'"):
        check_factory("Flatt", DIM)


@pytest.mark.parametrize("factory", ["IVF256,PQ48", "PQ96", "OPQ48,IVF64,PQ48", "HNSW32", "SQfp16"])
def test_families_are_checked_in_the_dimension_they_are_built_in(factory: str) -> None:
    check_factory(factory, 384, 10_000)


def test_a_family_that_the_corpus_is_too_small_for() -> None:
    with pytest.raises(
        OpenBookError, match=r"too small for the index family.*got 4,000 passages, expected at least 4,096"
    ):
        check_factory("IVF4096,Flat", 384, 4000)
    with pytest.raises(OpenBookError, match="expected at least 256"):
        check_factory("PQ48", 384, 37)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "PCA8,IVF16,Flat", "IVF16,Flat,RFlat"])
def test_depth_reaches_the_family_inside_a_wrapper(factory: str, vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    index = build_index(vectors[0], factory, nprobe=11)
    refined = faiss.downcast_index(index)
    inside = refined.base_index if isinstance(refined, faiss.IndexRefine) else index
    assert faiss.extract_index_ivf(inside).nprobe == 11


def test_questions_that_are_not_finite_end_the_run(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    with pytest.raises(OpenBookError, match=r"question embeddings are not finite.*Training has diverged"):
        snapshot(build_index(vectors[0], "Flat")).search(torch.full((2, DIM), torch.nan), 3)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mips.faiss, "StandardGpuResources", None, raising=False)
    monkeypatch.setattr(mips.faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(OpenBookError, match=r"index\.device.*faiss-gpu, which finds no device.*index\.device=cpu"):
        search_device("gpu")
    monkeypatch.delattr(mips.faiss, "StandardGpuResources")
    with pytest.raises(OpenBookError, match="got faiss-cpu, expected a GPU"):
        search_device("gpu")
    assert search_device("auto") == search_device("cpu") == "cpu"
