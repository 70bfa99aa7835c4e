"""Exact search by torch gives bitwise what FAISS's candidates give, and what comparing everything gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from openbook.batch import MISSING_ROW
from openbook.index import flat_cpu as cpu_flat
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from tests.index.test_shard_index import (
    BATCH,
    DIM,
    EXACT_ROWS,
    EXACT_SCORES,
    N_PASSAGES,
    PASSAGES,
    QUESTIONS,
    TOP_K,
    filled,
    random_vectors,
    tied,
)
from tests.references import search

FLAT = IndexOptions("Flat")


@pytest.fixture(autouse=True, params=[0, 999], ids=["neighbours", "apart"])
def asked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[bool]:
    """torch searches, in small parts and in groups of both kinds; whether each search of its gave an order."""
    monkeypatch.setattr(cpu_flat, "_SHORT", request.param)
    plain, told = cpu_flat.best_of, []

    def best_of(table: np.ndarray, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray] | None:
        found = plain(table, queries, depth)
        told.append(found is not None)
        return found

    monkeypatch.setattr(cpu_flat, "best_of", best_of)
    monkeypatch.setattr(cpu_flat, "preferred", lambda n_queries: True)
    monkeypatch.setattr(cpu_flat, "_GROUP", 4)
    monkeypatch.setattr(cpu_flat, "_NUMBERS", BATCH * 260)
    return told


def by_faiss(index: ShardIndex, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_flat, "preferred", lambda n_queries: False)
        return index.search(queries, top_k)


@pytest.mark.parametrize("group", [1, 4, 16, 64])
@pytest.mark.parametrize("top_k", [1, TOP_K, 61, N_PASSAGES - 1, N_PASSAGES + 5])
def test_it_is_exact(monkeypatch: pytest.MonkeyPatch, asked: list[bool], group: int, top_k: int) -> None:
    monkeypatch.setattr(cpu_flat, "_GROUP", group)
    index = filled(PASSAGES, FLAT)
    scores, rows = index.search(QUESTIONS, top_k)
    right = search.top_k(QUESTIONS, PASSAGES, top_k) if top_k != TOP_K else (EXACT_ROWS, EXACT_SCORES)
    assert rows[:, :N_PASSAGES].tolist() == right[0].tolist()
    assert scores[:, :N_PASSAGES].tolist() == right[1].tolist()
    assert (rows[:, N_PASSAGES:] == MISSING_ROW).all() and (scores[:, N_PASSAGES:] == -np.inf).all()
    assert asked and all(asked)
    for mine, other in zip((scores, rows), by_faiss(index, QUESTIONS, top_k), strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize("n_passages", [1, 3, 4, 5, 64, 67])
def test_few_passages(n_passages: int) -> None:
    scores, rows = filled(PASSAGES[:n_passages], FLAT).search(QUESTIONS, TOP_K)
    right = search.top_k(QUESTIONS, PASSAGES[:n_passages], TOP_K)
    k = min(TOP_K, n_passages)
    assert rows[:, :k].tolist() == right[0].tolist() and scores[:, :k].tolist() == right[1].tolist()
    assert (rows[:, k:] == MISSING_ROW).all() and (scores[:, k:] == -np.inf).all()


def test_no_passages_and_no_questions() -> None:
    assert (filled(PASSAGES[:0], FLAT).search(QUESTIONS, TOP_K)[1] == MISSING_ROW).all()
    assert filled(PASSAGES, FLAT).search(QUESTIONS[:0], TOP_K)[1].shape == (0, TOP_K)


@pytest.mark.parametrize("top_k", [1, 2, 40, 211, 223])
def test_equal_passages_are_ordered_by_row(top_k: int) -> None:
    """211 passages, 11 of them distinct."""
    random = np.random.default_rng(7)
    passages, questions = random_vectors(11, 8)[random.integers(0, 11, 211)], random_vectors(13, 9)
    scores, rows = filled(passages, FLAT).search(questions, top_k)
    right = search.top_k(questions, passages, top_k)
    assert rows[:, :211].tolist() == right[0].tolist() and scores[:, :211].tolist() == right[1].tolist()


@pytest.mark.parametrize("n_better", [0, TOP_K - 1, TOP_K])
def test_ties_that_rounding_hides_are_ordered_by_row(n_better: int) -> None:
    passages, question = tied(300 + n_better)
    better = np.random.default_rng(n_better).choice(len(passages), n_better, replace=False)
    passages[better] += np.arange(1, n_better + 1, dtype=np.float32)[:, None]
    rows = filled(passages, FLAT).search(np.repeat(question, 17, 0), TOP_K)[1]
    others = np.setdiff1d(np.arange(len(passages)), better)
    assert rows.tolist() == [[*better[::-1], *others[: TOP_K - n_better]]] * 17


def test_matmuls_less_exact_than_fp32_lose_no_passage(monkeypatch: pytest.MonkeyPatch, asked: list[bool]) -> None:
    """As where torch is told to multiply fp32 in bf16 or TF32, and matrix units do: candidates are looked at further
    down, by as much as their scores are seen to be off."""
    plain = cpu_flat.best_of

    def coarse(table: np.ndarray, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray] | None:
        table, queries = (torch.from_numpy(part).bfloat16().float().numpy() for part in (table, queries))
        return plain(table, queries, depth)

    monkeypatch.setattr(cpu_flat, "best_of", coarse)
    question = random_vectors(1, 19)
    passages = random_vectors(300, 20)  # scores closer than bf16 tells apart
    passages -= (passages @ question[0] / (question[0] @ question[0]))[:, None] * question - question
    passages *= 1 + 1e-4 * np.random.default_rng(21).standard_normal((300, 1)).astype("f4")
    questions = np.repeat(question, 17, 0)
    scores, rows = filled(passages, FLAT).search(questions, TOP_K)
    right = search.top_k(questions, passages, TOP_K)
    assert rows.tolist() == right[0].tolist() and scores.tolist() == right[1].tolist()
    assert len(asked) > 1  # the first depth was not enough


def test_autocast_does_not_reach_it() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found = cpu_flat.best_of(PASSAGES, QUESTIONS, TOP_K)
    assert found is not None
    exact = np.take_along_axis(search.inner_products(QUESTIONS, PASSAGES), found[1], axis=1)
    assert np.abs(found[0] - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("broken", [np.nan, np.inf, 3e38])
def test_sums_that_are_no_numbers_are_left_to_faiss(asked: list[bool], broken: float) -> None:
    """A broken question, or one whose scores overflow, spoils no other's answer."""
    index, questions = filled(PASSAGES, FLAT), QUESTIONS.copy()
    questions[3] = broken
    with np.errstate(all="ignore"):
        mine, other = index.search(questions, TOP_K), by_faiss(index, questions, TOP_K)
    assert asked and not asked[0]
    for one, two in zip(mine, other, strict=True):
        assert np.array_equal(one, two, equal_nan=True)
    rest = np.arange(BATCH) != 3
    assert mine[1][rest].tolist() == EXACT_ROWS[rest].tolist() and mine[0][rest].tolist() == EXACT_SCORES[rest].tolist()


def test_rows_written_and_restored_in_place_are_seen() -> None:
    index, new = filled(PASSAGES, FLAT), PASSAGES.copy()
    before = index.stored().copy()
    index.search(QUESTIONS, TOP_K)
    for rows in np.array_split(np.random.default_rng(3).permutation(N_PASSAGES)[:400], 5):
        new[rows] = random_vectors(len(rows), 17)
        index.write(rows, new[rows])
        scores, found = index.search(QUESTIONS, TOP_K)
        right = search.top_k(QUESTIONS, new, TOP_K)
        assert found.tolist() == right[0].tolist() and scores.tolist() == right[1].tolist()
    assert not np.array_equal(found, EXACT_ROWS)
    index.restore(before)
    assert index.search(QUESTIONS, TOP_K)[1].tolist() == EXACT_ROWS.tolist()


def test_a_score_is_of_its_pair_alone() -> None:
    index = filled(PASSAGES, FLAT)
    scores, rows = index.search(QUESTIONS, TOP_K)
    for number in range(BATCH):
        alone = index.search(QUESTIONS[number : number + 1], TOP_K)
        assert np.array_equal(alone[0][0], scores[number]) and np.array_equal(alone[1][0], rows[number])


def test_a_snapshot_is_searched_by_it(asked: list[bool]) -> None:
    strided = torch.from_numpy(np.asfortranarray(QUESTIONS)).requires_grad_()
    found = Snapshot(filled(PASSAGES, FLAT), 0, "encoder", "corpus", N_PASSAGES).search(strided, TOP_K)
    assert asked and found.rows.tolist() == EXACT_ROWS.tolist() and found.index_scores.tolist() == EXACT_SCORES.tolist()
    assert not found.index_scores.requires_grad


@pytest.mark.parametrize("factory", ["SQfp16", "SQ8", "IVF7,Flat", "HNSW16"])
def test_other_families_stay_with_faiss(asked: list[bool], factory: str) -> None:
    filled(PASSAGES, IndexOptions(factory)).search(QUESTIONS, TOP_K)
    assert not asked


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_who_is_preferred(monkeypatch: pytest.MonkeyPatch, precision: None) -> None:
    monkeypatch.undo()
    for chosen, faster in (("highest", False), ("medium", True)):
        torch.set_float32_matmul_precision(chosen)
        assert cpu_flat.preferred(cpu_flat.LEAST_QUERIES) is faster
        assert not cpu_flat.preferred(cpu_flat.LEAST_QUERIES - 1)


def test_questions_that_do_not_lie_side_by_side(asked: list[bool]) -> None:
    doubled = np.repeat(QUESTIONS, 2, axis=0)[::2]
    assert not doubled.flags.c_contiguous and doubled.shape == (BATCH, DIM)
    assert filled(PASSAGES, FLAT).search(doubled, TOP_K)[1].tolist() == EXACT_ROWS.tolist() and asked
