"""A snapshot's search against brute force; what the index does not have is masked, never read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openbook.batch import MISSING_ROW
from openbook.errors import OpenBookError
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot, merged
from tests.references import search

N_PASSAGES, DIM, BATCH, TOP_K = 211, 13, 7, 5


@pytest.fixture
def vectors() -> tuple[np.ndarray, torch.Tensor]:
    random = np.random.default_rng(3)
    return random.normal(size=(N_PASSAGES, DIM)).astype(np.float32), torch.from_numpy(
        random.normal(size=(BATCH, DIM))
    ).float()


def snapshot(passages: np.ndarray, factory: str = "Flat", first_row: int = 0, nprobe: int = 16) -> Snapshot:
    index = ShardIndex(DIM, len(passages), IndexOptions(factory, nprobe=nprobe))
    if index.n_to_train_on:
        index.train(passages[: index.n_to_train_on])
    index.write(np.arange(len(passages)), passages)
    return Snapshot(index.finish(), 0, "encoder", "corpus", first_row + len(passages), first_row)


class Answers:
    """An index that answers what it was told to, whatever it is asked."""

    device = torch.device("cpu")

    def __init__(self, scores: list[list[float]], rows: list[list[int]]):
        self.dim, self.n_passages = DIM, 10
        self._answer = np.array(scores, dtype=np.float32), np.array(rows)

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._answer


def test_flat_is_exact(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    passages, questions = vectors
    found = snapshot(passages).search(questions, TOP_K)
    rows, scores = search.top_k(questions.numpy(), passages, TOP_K)
    assert found.rows.tolist() == rows.tolist() and found.rows.dtype == torch.int64
    assert found.index_scores.tolist() == scores.tolist() and found.index_scores.dtype == torch.float32
    assert found.mask.all()


def test_fewer_passages_than_asked_for_are_masked(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    passages, questions = vectors
    found = snapshot(passages[:3]).search(questions, TOP_K)
    assert (found.rows[:, 3:] == MISSING_ROW).all()
    assert (found.index_scores[:, 3:] == -torch.inf).all()
    assert found.mask.sum(1).tolist() == [3] * BATCH


def test_no_passages_and_no_questions(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    passages, questions = vectors
    found = snapshot(passages[:0]).search(questions, TOP_K)
    assert found.rows.shape == (BATCH, TOP_K) and not found.mask.any()
    assert (found.index_scores == -torch.inf).all()
    assert snapshot(passages).search(questions[:0], TOP_K).rows.shape == (0, TOP_K)


def test_a_shallow_ivf_search_misses_and_masks(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    passages, questions = vectors
    shallow = snapshot(passages, "IVF64,Flat", nprobe=1).search(questions, 20)
    assert not shallow.mask.all()
    assert (shallow.index_scores[~shallow.mask] == -torch.inf).all()
    assert torch.isfinite(shallow.index_scores[shallow.mask]).all()
    deep = snapshot(passages, "IVF64,Flat", nprobe=64).search(questions, TOP_K)
    assert deep.rows.tolist() == search.top_k(questions.numpy(), passages, TOP_K)[0].tolist()


def test_rows_are_those_of_the_corpus(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    """Missing ones stay missing: they are not the row before the shard's first."""
    passages, questions = vectors
    found = snapshot(passages[:3], first_row=97).search(questions, TOP_K)
    plain = search.top_k(questions.numpy(), passages[:3], TOP_K)[0]
    assert (found.rows[:, :3].numpy() - 97).tolist() == plain.tolist()
    assert (found.rows[:, 3:] == MISSING_ROW).all()


def test_the_same_passage_twice_is_one_passage() -> None:
    answers = Answers([[4, 3, 2, 1, 0], [9, 8, 7, 6, 5]], [[4, 9, 4, 2, 9], [1, 2, 3, 4, 5]])
    found = Snapshot(answers, 0, "", "", 10).search(torch.zeros(2, DIM), 5)  # type: ignore[arg-type]
    assert found.rows.tolist() == [[4, 9, 2, MISSING_ROW, MISSING_ROW], [1, 2, 3, 4, 5]]
    assert found.index_scores.tolist() == [[4, 3, 1, -torch.inf, -torch.inf], [9, 8, 7, 6, 5]]
    assert found.mask.tolist() == [[True, True, True, False, False], [True] * 5]


def test_a_score_that_is_no_number_is_no_hit() -> None:
    """FAISS answers with its lowest number or NaN where it has nothing to say."""
    answers = Answers([[3, np.nan, -np.inf]], [[7, 5, 6]])
    found = Snapshot(answers, 0, "", "", 10).search(torch.zeros(1, DIM), 3)  # type: ignore[arg-type]
    assert found.rows.tolist() == [[7, MISSING_ROW, MISSING_ROW]]
    assert found.index_scores.tolist() == [[3, -torch.inf, -torch.inf]]


def test_answers_are_merged_by_score_and_then_by_row() -> None:
    none = MISSING_ROW
    scores = np.array(
        [[[5.0, 3.0, 2.0], [1.0, -np.inf, -np.inf]], [[5.0, 4.0, 3.0], [-np.inf, -np.inf, -np.inf]]], dtype=np.float32
    )
    rows = np.array([[[11, 2, 0], [7, none, none]], [[3, 17, 19], [none, none, none]]])
    best, where = merged(scores, rows, 4)
    assert where.tolist() == [[3, 11, 17, 2], [7, none, none, none]]
    assert best.tolist() == [[5, 5, 4, 3], [1, -np.inf, -np.inf, -np.inf]]
    assert best.dtype == np.float32
    assert [part.tolist() for part in merged(scores[::-1], rows[::-1], 4)] == [best.tolist(), where.tolist()]


def test_questions_come_as_they_are(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    """With gradient, in half precision, and not side by side in memory."""
    passages, questions = vectors
    rows = search.top_k(questions.bfloat16().float().numpy(), passages, TOP_K)[0]
    turned = questions.bfloat16().T.contiguous().T.requires_grad_()
    found = snapshot(passages).search(turned, TOP_K)
    assert found.rows.tolist() == rows.tolist() and not found.index_scores.requires_grad


def test_a_snapshot_cannot_be_changed(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    made = snapshot(vectors[0], "SQfp16")
    assert made.factory == "SQfp16"
    with pytest.raises(AttributeError):
        made.generation = 1  # type: ignore[misc]


def test_a_wrong_dimension_is_named(vectors: tuple[np.ndarray, torch.Tensor]) -> None:
    with pytest.raises(OpenBookError, match="got dim 12, expected dim 13"):
        snapshot(vectors[0]).search(torch.zeros(1, 12), 1)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_questions_that_are_not_finite_end_the_run(vectors: tuple[np.ndarray, torch.Tensor], broken: float) -> None:
    questions = vectors[1].clone()
    questions[4, 11] = broken
    with pytest.raises(OpenBookError, match=r"question embeddings are not finite.*Training has diverged"):
        snapshot(vectors[0]).search(questions, 3)
