"""Every family gives the right rows, however it was filled; plain codes give exact scores, ordered by row."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from openbook.batch import MISSING_ROW
from openbook.errors import OpenBookError
from openbook.index import shard_index, storage
from openbook.index.faiss_factory import bytes_per_passage
from openbook.index.faiss_families import gpu_resources
from openbook.index.flat_cpu import CodesOnCpu
from openbook.index.flat_gpu import FlatOnGpu
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.storage import SPARE
from tests.references import search

N_PASSAGES, DIM, BATCH, TOP_K = 1009, 26, 23, 7

# At the full depth of nprobe, the least recall of the exact top 7 over these vectors. `np`: no polysemous training,
# which takes FAISS a second and changes no score.
FAMILIES = {
    "Flat": 1.0,
    "SQfp16": 0.98,
    "SQbf16": 0.95,
    "SQ8": 0.9,
    "PQ13x4np": 0.6,
    "IVF7,Flat": 1.0,
    "IVF7,SQfp16": 0.98,
    "IVF7,PQ13x4np": 0.6,
    "HNSW16": 0.97,
    "HNSW16_SQfp16": 0.95,
    "PCA19,Flat": 0.93,
    "PCA19,IVF7,SQfp16": 0.9,
    "OPQ13,PQ13x4np": 0.5,
    "IVF7,SQ8,RFlat": 0.9,
}
PLAIN_CODES = ("Flat", "SQfp16", "SQbf16", "SQ8", "PQ13x4np")
IN_PLACE = ("Flat", "SQfp16", "SQbf16")


def random_vectors(n: int, seed: int = 0) -> np.ndarray:
    """[n, DIM] fp32, most of their variance in few directions, as embeddings have it."""
    turned = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0]
    return ((np.random.default_rng(seed).standard_normal((n, DIM)) * 0.85 ** np.arange(DIM)) @ turned).astype("f4")


PASSAGES, QUESTIONS = random_vectors(N_PASSAGES), random_vectors(BATCH, 2)
EXACT_ROWS, EXACT_SCORES = search.top_k(QUESTIONS, PASSAGES, TOP_K)


def in_slices(rows: np.ndarray, seed: int = 3) -> list[np.ndarray]:
    """The rows in a random order, in slices of random lengths, some of them empty."""
    random = np.random.default_rng(seed)
    return np.split(random.permutation(rows), np.sort(random.integers(0, len(rows) + 1, 11)))


def filled(
    passages: np.ndarray, options: IndexOptions, slices: list[np.ndarray] | None = None, dim: int = DIM
) -> ShardIndex:
    index = ShardIndex(dim, len(passages), options)
    if index.n_to_train_on:
        index.train(passages[: min(index.n_to_train_on, N_PASSAGES)])
    for rows in [np.arange(len(passages))] if slices is None else slices:
        index.write(rows, passages[rows])
    return index.finish()


@cache
def shuffled(factory: str) -> ShardIndex:
    return filled(PASSAGES, IndexOptions(factory), in_slices(np.arange(N_PASSAGES)))


def tied(n: int) -> tuple[np.ndarray, np.ndarray]:
    """n passages and a question, all of one score: the same numbers in another order, so that FAISS's fp32 sums differ
    in their last bits and only exact sums are equal."""
    random = np.random.default_rng(5)
    passages = random.permuted(np.tile(random.standard_normal(DIM).astype(np.float32), (n, 1)), axis=1)
    return passages, np.full((1, DIM), 1 / 3, dtype=np.float32)


# All families


@pytest.mark.parametrize("factory", FAMILIES)
def test_rows_come_back_however_they_were_written(factory: str) -> None:
    index = shuffled(factory)
    scores, rows = index.search(QUESTIONS, TOP_K)
    assert search.recall(rows, EXACT_ROWS) >= FAMILIES[factory]
    assert rows.dtype == np.int64 and scores.dtype == np.float32
    assert rows.min() >= 0 and all(len(set(found)) == TOP_K for found in rows.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
    if factory in ("Flat", "IVF7,Flat", "HNSW16"):
        right = np.take_along_axis(search.inner_products(QUESTIONS, PASSAGES), rows, axis=1)
        assert scores == pytest.approx(right, rel=1e-5, abs=1e-5)
    if not factory.startswith("HNSW"):  # a graph is another one when it grows in another order
        plain = filled(PASSAGES, IndexOptions(factory)).search(QUESTIONS, TOP_K)
        assert scores == pytest.approx(plain[0], rel=1e-5, abs=1e-5)
        assert search.recall(rows, plain[1]) > 0.99


@pytest.mark.parametrize("factory", FAMILIES)
def test_every_row_is_there_once(factory: str) -> None:
    scores, rows = shuffled(factory).search(QUESTIONS[:2], N_PASSAGES + 5)
    if factory.startswith("HNSW"):  # a graph does not promise to reach all of them
        rows = np.where(rows == MISSING_ROW, N_PASSAGES + np.arange(rows.shape[1]), rows)
        assert all(len(set(found)) == len(found) for found in rows.tolist())
        return
    assert np.sort(rows[:, :N_PASSAGES], axis=1).tolist() == [list(range(N_PASSAGES))] * 2
    assert (rows[:, N_PASSAGES:] == MISSING_ROW).all() and (scores[:, N_PASSAGES:] == -np.inf).all()


@pytest.mark.parametrize("factory", FAMILIES)
def test_no_passages_at_all(factory: str) -> None:
    index = ShardIndex(DIM, 0, IndexOptions(factory))
    assert index.n_to_train_on == 0
    scores, rows = index.finish().search(QUESTIONS, TOP_K)
    assert rows.tolist() == [[MISSING_ROW] * TOP_K] * BATCH and (scores == -np.inf).all()
    assert index.nbytes == 0


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "SQ8", "IVF3,Flat", "HNSW8"])
def test_fewer_passages_than_asked_for(factory: str) -> None:
    scores, rows = filled(PASSAGES[:5], IndexOptions(factory)).search(QUESTIONS, TOP_K)
    assert np.sort(rows[:, :5], axis=1).tolist() == [[0, 1, 2, 3, 4]] * BATCH
    assert (rows[:, 5:] == MISSING_ROW).all() and (scores[:, 5:] == -np.inf).all()
    assert np.isfinite(scores[:, :5]).all()


@pytest.mark.parametrize("factory", FAMILIES)
@pytest.mark.parametrize("broken", [np.nan, -np.inf])
def test_embeddings_that_are_not_finite_are_refused_and_not_stored(factory: str, broken: float) -> None:
    index = ShardIndex(DIM, 283, IndexOptions(factory))
    if index.n_to_train_on:
        index.train(PASSAGES[: index.n_to_train_on])
    index.write(np.arange(100), PASSAGES[:100])
    spoilt = PASSAGES[100:283].copy()
    spoilt[17, 2] = spoilt[40, 0] = spoilt[40, 3] = broken
    with pytest.raises(OpenBookError, match=r"2 of 183 with NaN or infinity, first row 117.*Has training diverged"):
        index.write(np.arange(100, 283), spoilt)
    if isinstance(index.storage, CodesOnCpu):
        assert not index.stored()[100:].any()
    index.write(np.arange(100, 283), PASSAGES[100:283])
    whole = filled(PASSAGES[:283], IndexOptions(factory), [np.arange(100), np.arange(100, 283)])
    for mine, right in zip(index.finish().search(QUESTIONS, TOP_K), whole.search(QUESTIONS, TOP_K), strict=True):
        assert np.array_equal(mine, right)


@pytest.mark.parametrize("factory", FAMILIES)
def test_bytes_are_those_that_faiss_keeps(factory: str) -> None:
    """Against the file FAISS would write, and the row numbers that are kept beside it."""
    index = filled(random_vectors(5000), IndexOptions(factory))
    rows = 0 if factory in PLAIN_CODES else 8 * 5000
    assert index.nbytes == pytest.approx(faiss.serialize_index(index.storage.index).nbytes + rows, rel=0.1)
    assert index.nbytes == pytest.approx(5000 * bytes_per_passage(factory, DIM), abs=1)


def test_what_families_learn_from() -> None:
    def wanted(factory: str, n_passages: int = 100_000) -> int:
        return ShardIndex(DIM, n_passages, IndexOptions(factory)).n_to_train_on

    assert wanted("Flat") == wanted("SQbf16") == wanted("HNSW8") == 0
    assert wanted("SQ8") == 256
    assert wanted("IVF7,Flat") == 256 * 7 and wanted("IVF7,Flat", 1009) == 1009
    assert wanted("PQ13x4") == 256 * 16
    assert wanted("IVF7,PQ13") == wanted("OPQ13,PQ13x4") == wanted("HNSW8_PQ13") == 256 * 256
    assert shuffled("IVF7,Flat").n_to_train_on == 0


@pytest.mark.parametrize(
    "factory", ["IVF16,Flat", "IVF16,SQfp16", "PCA22,IVF16,Flat", "IVF16,Flat,RFlat", "PCA22,IVF16,Flat,RFlat"]
)
def test_search_depth_reaches_the_lists_inside_a_wrapper(factory: str) -> None:
    """Hits rise with the lists that are looked into, until all passages are found."""
    hits = []
    for nprobe in (1, 11, 16):
        _, rows = filled(PASSAGES, IndexOptions(factory, nprobe=nprobe)).search(QUESTIONS, N_PASSAGES)
        hits.append(int((rows != MISSING_ROW).sum(1).mean()))
    assert hits[0] < N_PASSAGES / 4 < hits[1] < hits[2] == N_PASSAGES


@pytest.mark.parametrize("factory", ["HNSW4", "PCA22,HNSW4", "HNSW4_SQ8"])
def test_search_depth_reaches_the_graph_inside_a_wrapper(factory: str) -> None:
    best = EXACT_ROWS[:, :1]
    shallow, deep = (
        search.recall(filled(PASSAGES, IndexOptions(factory, ef_search=depth)).search(QUESTIONS, 1)[1], best)
        for depth in (1, 500)
    )
    assert shallow < deep - 0.2


# Families with plain codes


def test_flat_is_exact() -> None:
    scores, rows = shuffled("Flat").search(QUESTIONS, TOP_K)
    assert rows.tolist() == EXACT_ROWS.tolist() and scores.tolist() == EXACT_SCORES.tolist()
    assert [shuffled(factory).options.exact for factory in ("Flat", "SQfp16", "IVF7,Flat")] == [True, False, False]


@pytest.mark.parametrize("factory", PLAIN_CODES)
def test_compressed_codes_are_searched_exactly(factory: str) -> None:
    """Of the vectors that are stored, the best, in order."""
    index = shuffled(factory)
    stored = index.vectors(np.arange(N_PASSAGES))
    assert stored.dtype == np.float32 and np.abs(stored - PASSAGES).mean() < 0.35 * np.abs(PASSAGES).mean()
    scores, rows = index.search(QUESTIONS, TOP_K)
    right = search.top_k(QUESTIONS, stored, TOP_K)
    assert rows.tolist() == right[0].tolist() and scores.tolist() == right[1].tolist()
    assert np.array_equal(index.vectors(np.array([[5, 2, 5], [7, 0, 1]])), stored[[[5, 2, 5], [7, 0, 1]]])
    assert index.vectors(np.empty((3, 0), dtype=np.int64)).shape == (3, 0, DIM)


@pytest.mark.parametrize("n_questions", [1, 25])
@pytest.mark.parametrize("top_k", [1, 2, 5, 40, 211, 223])
def test_equal_passages_are_ordered_by_row(n_questions: int, top_k: int) -> None:
    """211 passages, 11 of them distinct: many more are equal than the spare candidates."""
    random = np.random.default_rng(7)
    passages = random_vectors(11, 8)[random.integers(0, 11, 211)]
    questions = random_vectors(n_questions, 9)
    scores, rows = filled(passages, IndexOptions("Flat"), in_slices(np.arange(211))).search(questions, top_k)
    right = search.top_k(questions, passages, top_k)
    assert rows[:, :211].tolist() == right[0].tolist() and scores[:, :211].tolist() == right[1].tolist()
    assert (rows[:, 211:] == MISSING_ROW).all()


@pytest.mark.parametrize("n_questions", [1, 25])
@pytest.mark.parametrize("n_better", [0, TOP_K - 1, TOP_K])
def test_ties_that_rounding_hides_are_ordered_by_row(n_better: int, n_questions: int) -> None:
    """Around the k-th place 300 passages are equal, and FAISS takes them for different ones."""
    passages, question = tied(300 + n_better)
    better = np.random.default_rng(n_better).choice(len(passages), n_better, replace=False)
    passages[better] += np.arange(1, n_better + 1, dtype=np.float32)[:, None]
    rows = filled(passages, IndexOptions("Flat")).search(np.repeat(question, n_questions, 0), TOP_K)[1]
    others = np.setdiff1d(np.arange(len(passages)), better)
    assert rows.tolist() == [[*better[::-1], *others[: TOP_K - n_better]]] * n_questions


@pytest.mark.parametrize("n_questions", [1, 25])
def test_differences_that_rounding_hides_decide(n_questions: int) -> None:
    """300 passages that differ in their last bits, in numbers that all but cancel: FAISS puts them in a wrong order."""
    passages, question = tied(300)
    passages[:] = np.random.default_rng(6).permuted(passages - passages[0].mean(), axis=1)
    raised = np.random.default_rng(7).integers(0, DIM, len(passages))
    passages[np.arange(300), raised] *= 1 + np.arange(300, dtype=np.float32) % 5 * np.float32(1.2e-7)
    questions = np.repeat(question, n_questions, 0)
    scores, rows = filled(passages, IndexOptions("Flat")).search(questions, TOP_K)
    right = search.top_k(questions, passages, TOP_K)
    assert rows.tolist() == right[0].tolist() and scores.tolist() == right[1].tolist()
    assert np.ptp(right[1][0]) > 0  # they are no ties


def test_many_ties() -> None:
    passages, question = tied(6 * 1024)
    assert filled(passages, IndexOptions("Flat")).search(question, 24)[1].tolist() == [list(range(24))]


@pytest.mark.parametrize("factory", PLAIN_CODES)
def test_a_score_is_of_its_pair_alone(factory: str) -> None:
    """Bitwise the same whatever else is asked, is stored, and wherever the passage stands."""
    index, questions = shuffled(factory), random_vectors(25, 11)
    scores, rows = index.search(questions, TOP_K)
    for number in range(25):
        alone = index.search(questions[number : number + 1], TOP_K)
        assert np.array_equal(alone[0][0], scores[number]) and np.array_equal(alone[1][0], rows[number])
    if factory in IN_PLACE:
        part = np.random.default_rng(13).permutation(np.union1d(rows[3], np.arange(0, N_PASSAGES, 17)))
        fewer = filled(PASSAGES[part], IndexOptions(factory)).search(questions[3:4], TOP_K)
        assert np.array_equal(fewer[0][0], scores[3]) and np.array_equal(part[fewer[1][0]], rows[3])


def test_candidates_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_CHUNK", 2 * (TOP_K + SPARE) * DIM)
    scores, rows = shuffled("Flat").search(QUESTIONS, TOP_K)
    assert rows.tolist() == EXACT_ROWS.tolist() and scores.tolist() == EXACT_SCORES.tolist()


@pytest.mark.parametrize("factory", FAMILIES)
def test_which_families_are_replaceable(factory: str) -> None:
    index = shuffled(factory)
    assert index.replaceable == (factory in IN_PLACE)
    assert isinstance(index.storage, CodesOnCpu) == (factory in PLAIN_CODES)
    if factory not in PLAIN_CODES:
        with pytest.raises(OpenBookError, match=rf"keeps no vectors \(index\.factory\): got {factory}"):
            index.vectors(np.arange(3))


@pytest.mark.parametrize("factory", IN_PLACE)
def test_rows_are_replaced_in_place(factory: str) -> None:
    index = filled(PASSAGES, IndexOptions(factory))
    new = PASSAGES.copy()
    for rows in in_slices(np.arange(0, N_PASSAGES, 3)):
        new[rows] = random_vectors(len(rows), 17)
        index.write(rows, new[rows])
    right = filled(new, IndexOptions(factory))
    assert np.array_equal(index.stored(), right.stored())
    found, expected = index.search(QUESTIONS, TOP_K), right.search(QUESTIONS, TOP_K)
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    assert not np.array_equal(found[1], EXACT_ROWS)


@pytest.mark.parametrize("factory", IN_PLACE)
def test_what_is_stored_is_restored(factory: str) -> None:
    index = shuffled(factory)
    codes = index.stored().copy()
    assert codes.dtype == np.uint8 and codes.shape == (N_PASSAGES, bytes_per_passage(factory, DIM))
    other = filled(PASSAGES[::-1], IndexOptions(factory))
    other.restore(codes)
    codes[:] = 0  # it was copied
    assert np.array_equal(other.stored(), index.stored())
    for mine, right in zip(other.search(QUESTIONS, TOP_K), index.search(QUESTIONS, TOP_K), strict=True):
        assert np.array_equal(mine, right)


# The GPU's path, with stand-ins for what FAISS does there


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What FAISS was told; torch's GPU is the CPU."""
    gpu_resources.cache_clear()
    families = {"IndexIVFFlat", "IndexIVFScalarQuantizer"}
    told = SimpleNamespace(memory=[], float16=[], room=[], reclaimed=[], families=families)

    class Resources:
        def setTempMemory(self, size: int) -> None:  # noqa: N802
            told.memory.append(size)

    def index_cpu_to_gpu(resources: Resources, device: int, index: Any, options: Any) -> Any:
        assert device == 5 and not index.ntotal
        told.float16.append(options.useFloat16)
        told.room.append(options.reserveVecs)
        if type(faiss.downcast_index(index)).__name__ not in told.families:
            raise RuntimeError("not implemented")
        return faiss.clone_index(index)

    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "GpuClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", index_cpu_to_gpu, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    monkeypatch.setattr(shard_index, "this_gpu", lambda: torch.device("cpu"))
    for kind in (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer):
        reclaim = lambda index: told.reclaimed.append(index.ntotal)  # noqa: E731
        monkeypatch.setattr(kind, "reclaimMemory", reclaim, raising=False)
    return told


def on_gpu(factory: str, passages: np.ndarray = PASSAGES, **options: int) -> ShardIndex:
    chosen = IndexOptions(factory, "gpu", **options)
    return filled(passages, chosen, in_slices(np.arange(len(passages))))


@pytest.mark.parametrize("factory", ["Flat", "SQfp16"])
def test_vectors_on_a_gpu_are_replaced_and_restored(gpu: SimpleNamespace, factory: str) -> None:
    index, new = on_gpu(factory), np.array([1008, 3, 500])
    assert isinstance(index.storage, FlatOnGpu) and index.replaceable and index.n_to_train_on == 0
    before = index.stored().copy()
    with pytest.raises(OpenBookError, match="1 of 2 with NaN or infinity, first row 11"):
        index.write(np.array([13, 11]), np.array([[0.0] * DIM, [np.nan] * DIM]))
    assert np.array_equal(index.stored(), before)
    doubled = 2 * index.vectors(new)
    index.write(new, doubled)
    assert np.array_equal(index.vectors(new), doubled) and not np.array_equal(index.stored(), before)
    index.restore(before)
    assert np.array_equal(index.stored(), before)


@pytest.mark.parametrize(("factory", "half"), [("IVF7,Flat", False), ("IVF7,SQfp16", True)])
def test_families_learn_and_are_filled_on_a_gpu(gpu: SimpleNamespace, factory: str, half: bool) -> None:
    """The empty index is moved there, before anything is learnt or added."""
    index = on_gpu(factory, nprobe=2, gpu_temp_memory=89)
    assert gpu.memory == [89 << 20] and gpu.float16 == [half] and gpu.room == [N_PASSAGES]
    assert gpu.reclaimed == [N_PASSAGES] and not index.replaceable
    right = filled(PASSAGES, IndexOptions(factory, nprobe=2), in_slices(np.arange(N_PASSAGES)))
    for mine, expected in zip(index.search(QUESTIONS, 400), right.search(QUESTIONS, 400), strict=True):
        assert np.array_equal(mine, expected)


@pytest.mark.parametrize("factory", ["HNSW16", "SQbf16"])
def test_a_family_that_faiss_has_for_no_gpu(gpu: SimpleNamespace, factory: str) -> None:
    with pytest.raises(
        OpenBookError,
        match=rf"no such index for GPUs \(index\.factory\): got '{factory}', expected Flat, SQfp16, IVF…,Flat, .*"
        r"\. Or set index\.device=cpu",
    ):
        on_gpu(factory)


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-5])
@pytest.mark.parametrize("n_queries", [1, 9])
def test_a_collapsed_encoder_is_searched_exactly_in_bounded_memory(
    noise: float, n_queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All vectors alike: no candidates tell the best ones, and no more than a chunk of vectors is held in fp64."""
    monkeypatch.setattr(storage, "DEEPEST", 100)
    monkeypatch.setattr(storage, "_CHUNK", 50 * DIM)
    random = np.random.default_rng(3)
    vectors = random_vectors(1).repeat(N_PASSAGES, 0)
    vectors = (vectors + noise * random.standard_normal(vectors.shape)).astype(np.float32)
    index = ShardIndex(DIM, N_PASSAGES, IndexOptions("Flat", "cpu"))
    index.write(np.arange(N_PASSAGES), vectors)
    index.finish()
    asked: list[int] = []
    read = type(index.storage).vectors
    monkeypatch.setattr(type(index.storage), "vectors", lambda self, rows: asked.append(len(rows)) or read(self, rows))
    queries = random_vectors(n_queries, seed=5)
    scores, rows = index.search(queries, TOP_K)
    exact = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    for place, own in enumerate(exact):
        order = np.lexsort((np.arange(N_PASSAGES), -own))[:TOP_K]
        np.testing.assert_array_equal(rows[place], order)
        np.testing.assert_array_equal(scores[place], own[order])
    assert max(asked) <= 100 * 4
