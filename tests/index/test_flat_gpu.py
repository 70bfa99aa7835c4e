"""Exact search by torch as a GPU does it, on tensors of the CPU: bitwise what the storages of a CPU give, with products
as coarse as a GPU's; and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openbook.index import flat_gpu, shard_index
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from tests.index.test_shard_index import (
    BATCH,
    DIM,
    EXACT_ROWS,
    N_PASSAGES,
    PASSAGES,
    QUESTIONS,
    TOP_K,
    filled,
    in_slices,
    random_vectors,
    tied,
)

FLAT = ["Flat", "SQfp16"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=DEVICES, autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """What the index takes for this rank's GPU."""
    device = torch.device(request.param)
    monkeypatch.setattr(shard_index, "this_gpu", lambda: device)
    return device


def cut(numbers: Tensor) -> Tensor:
    """10 bits of each number, the others dropped: TF32 at its coarsest."""
    return (numbers.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def both(factory: str, passages: np.ndarray) -> tuple[ShardIndex, ShardIndex]:
    """The same codes in the GPU's storage and in the CPU's."""
    right = filled(passages, IndexOptions(factory))
    index = filled(passages, IndexOptions(factory, "gpu"), in_slices(np.arange(len(passages))))
    if factory == "SQfp16":  # half way between two fp16 numbers FAISS rounds up and torch to the even one
        apart = index.stored().view(np.int16).astype(int) - right.stored().view(np.int16)
        assert np.abs(apart).max() <= 1 and (apart != 0).mean() < 0.001
        index.restore(right.stored())
    assert np.array_equal(index.stored(), right.stored())
    return index, right


def same(index: ShardIndex, right: ShardIndex, questions: np.ndarray, top_k: int) -> None:
    for mine, expected in zip(index.search(questions, top_k), right.search(questions, top_k), strict=True):
        assert mine.dtype == expected.dtype and np.array_equal(mine, expected)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products as a GPU gives them, groups and chunks so small that all of them are crossed; how many questions each
    product was for."""
    asked: list[int] = []

    def product(queries: Tensor, part: Tensor) -> Tensor:
        asked.append(len(queries))
        if part.dtype == torch.float32:
            return cut(queries) @ cut(part).T
        return queries.float() @ part.float().T

    monkeypatch.setattr(flat_gpu, "_product", product)
    monkeypatch.setattr(flat_gpu, "_GROUP", 4)
    monkeypatch.setattr(flat_gpu, "_SPARE", 5)
    made = flat_gpu.FlatOnGpu.__init__

    def small(self: flat_gpu.FlatOnGpu, *arguments: object) -> None:
        made(self, *arguments)  # type: ignore[arg-type]
        self._scores, self._best_of_groups, self._summed = BATCH * 52, BATCH * 37, 11 * DIM

    monkeypatch.setattr(flat_gpu.FlatOnGpu, "__init__", small)
    return asked


@pytest.mark.parametrize("factory", FLAT)
@pytest.mark.parametrize("top_k", [1, TOP_K, 61, N_PASSAGES - 1, N_PASSAGES + 5])
def test_the_same_bits_as_on_a_cpu(coarse: list[int], factory: str, top_k: int) -> None:
    same(*both(factory, PASSAGES), QUESTIONS, top_k)


@pytest.mark.parametrize("factory", FLAT)
@pytest.mark.parametrize("n_passages", [1, 3, 4, 5, 64, 67, 1000])
def test_few_passages_and_few_questions(coarse: list[int], factory: str, n_passages: int) -> None:
    index, right = both(factory, PASSAGES[:n_passages])
    for n in (0, 1, 2, BATCH):
        same(index, right, QUESTIONS[:n], TOP_K)


@pytest.mark.parametrize("factory", FLAT)
def test_with_the_sizes_of_a_run(factory: str) -> None:
    passages, questions = random_vectors(5003, 31), random_vectors(70, 32)
    index, right = both(factory, passages)
    for n, top_k in ((1, 5), (16, 50), (70, 10)):
        same(index, right, questions[:n], top_k)


@pytest.mark.parametrize("factory", FLAT)
def test_many_questions_go_in_parts(monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    monkeypatch.setattr(flat_gpu, "_QUESTIONS", 9)
    same(*both(factory, PASSAGES), QUESTIONS, TOP_K)


@pytest.mark.parametrize("top_k", [1, 2, 40, 211, 223])
def test_equal_passages_are_ordered_by_row(coarse: list[int], top_k: int) -> None:
    random = np.random.default_rng(7)
    passages, questions = random_vectors(11, 8)[random.integers(0, 11, 211)], random_vectors(13, 9)
    same(*both("Flat", passages), questions, top_k)


@pytest.mark.parametrize("factory", FLAT)
@pytest.mark.parametrize("n_tied", [300, 5000])
def test_ties_that_rounding_hides_are_ordered_by_row(factory: str, n_tied: int) -> None:
    passages, question = tied(n_tied)
    index, right = both(factory, passages)
    same(index, right, np.repeat(question, 3, 0), TOP_K)
    if factory == "Flat":
        assert index.search(question, TOP_K)[1].tolist() == [list(range(TOP_K))]


def close(n: int) -> tuple[np.ndarray, np.ndarray]:
    """n passages whose scores are closer than TF32 or fp16 tells apart, and the question."""
    question, passages = random_vectors(1, 19), random_vectors(n, 20)
    passages -= (passages @ question[0] / (question[0] @ question[0]))[:, None] * question - question
    return passages * (1 + 1e-5 * np.random.default_rng(21).standard_normal((n, 1)).astype("f4")), question


@pytest.mark.parametrize("factory", FLAT)
def test_only_the_questions_that_need_it_are_asked_again(coarse: list[int], factory: str) -> None:
    passages, question = close(600)
    questions = np.concatenate([random_vectors(1, 40), question, random_vectors(1, 41)])
    far = np.concatenate([passages, 30 * random_vectors(30, 42)])
    index, right = both(factory, far)
    same(index, right, questions, TOP_K)
    assert max(coarse) == 3


@pytest.mark.parametrize("factory", FLAT)
def test_scores_too_close_for_a_coarse_product(coarse: list[int], factory: str) -> None:
    passages, question = close(900)
    same(*both(factory, passages), np.repeat(question, 2, 0), TOP_K)
    assert len(coarse) > 2  # it went through the passages, in two chunks, more than once


def test_a_search_that_stayed_coarse_would_be_wrong(coarse: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is what makes it exact: with none, a passage is lost."""
    passages, question = close(900)
    index, right = both("Flat", passages)
    monkeypatch.setattr(flat_gpu, "_ROUNDING", {torch.float32: 0.0})
    assert not np.array_equal(index.search(question, TOP_K)[1], right.search(question, TOP_K)[1])


@pytest.mark.parametrize("factory", FLAT)
def test_coarse_scores_are_off_by_no_more_than_is_assumed(factory: str) -> None:
    index, _ = both(factory, PASSAGES)
    table = index.storage.table  # type: ignore[attr-defined]
    asked = torch.from_numpy(QUESTIONS).to(table.device)
    exact = asked.double() @ table.double().T
    if factory == "Flat":
        found = (cut(asked) @ cut(table).T).double()
        with flat_gpu.coarse_products():
            plain = flat_gpu._product(asked, table).double()
    else:
        plain = found = flat_gpu._product(asked.half(), table).double()
    reach = asked.norm(dim=1)[:, None] * table.float().norm(dim=1)
    for scores in (found, plain):
        assert ((scores - exact).abs() / reach).max() < flat_gpu._ROUNDING[table.dtype]


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-5])
def test_a_collapsed_encoder(monkeypatch: pytest.MonkeyPatch, coarse: list[int], noise: float) -> None:
    """All vectors alike: no groups tell the best ones, and all passages are looked at."""
    monkeypatch.setattr(flat_gpu, "DEEPEST", 100)
    random = np.random.default_rng(3)
    vectors = random_vectors(1).repeat(N_PASSAGES, 0)
    vectors = (vectors + noise * random.standard_normal(vectors.shape)).astype(np.float32)
    same(*both("Flat", vectors), QUESTIONS, TOP_K)


@pytest.mark.parametrize("size", [3e38, 1e30, 1e-30, 1e-42, 0.0])
def test_very_large_and_very_small_numbers(size: float) -> None:
    """A question whose coarse scores overflow or vanish spoils no other's answer."""
    questions = QUESTIONS.copy()
    questions[3] = questions[3] / np.abs(questions[3]).max() * np.float32(size)
    index, right = both("Flat", PASSAGES)
    mine, expected = index.search(questions, TOP_K), right.search(questions, TOP_K)
    rest = np.arange(BATCH) != 3
    assert np.array_equal(mine[1][rest], expected[1][rest]) and np.array_equal(mine[0][rest], expected[0][rest])
    exact = (questions[3:4].astype(np.float64) @ PASSAGES.T.astype(np.float64)).astype(np.float32)
    order = np.lexsort((np.arange(N_PASSAGES), -exact[0]))[:TOP_K]
    assert mine[1][3].tolist() == order.tolist()


def test_rows_replaced_by_longer_ones_are_found() -> None:
    index, right = both("Flat", PASSAGES)
    for size in (50.0, 1e4, 1e-3):
        rows = np.array([5, 1008, 77])
        for one in (index, right):
            one.write(rows, size * QUESTIONS[:3])
        same(index, right, QUESTIONS, TOP_K)


def test_embeddings_may_come_from_the_device(device: torch.device) -> None:
    index, right = both("Flat", PASSAGES)
    assert index.device == device
    new = torch.from_numpy(random_vectors(40, 33)).to(device)
    index.write(np.arange(100, 140), new)
    right.write(np.arange(100, 140), new.cpu().numpy())
    assert np.array_equal(index.stored(), right.stored())
    broken = new.clone()
    broken[7, 2] = torch.nan
    with pytest.raises(shard_index.OpenBookError, match="1 of 40 with NaN or infinity, first row 7"):
        index.write(np.arange(40), broken)
    assert np.array_equal(index.stored(), right.stored())


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_questions_that_are_not_finite_are_refused(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    """By the scores they get, so that nothing is waited for but these."""
    monkeypatch.setattr(ShardIndex, "device", torch.device("cuda"))
    index, _ = both("Flat", PASSAGES)
    questions = torch.tensor(QUESTIONS, device=device)
    snapshot = Snapshot(index, 0, "encoder", "corpus", N_PASSAGES)
    assert snapshot.search(questions, TOP_K).rows.tolist() == EXACT_ROWS.tolist()
    questions[5, 3] = broken
    with pytest.raises(shard_index.OpenBookError, match="question embeddings are not finite"):
        snapshot.search(questions, TOP_K)


class Traffic(TorchDispatchMode):
    """Adds up the bytes of large operands and results, the coarse scores apart: a GPU has them in its cache."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.bytes = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        moved = {"mm": args, "amax": (), "topk": args, "index": found, "_to_copy": (*args, found)}.get(name, ())
        self.bytes += sum(
            one.nbytes for one in tree_leaves(moved) if one.__class__ is Tensor and one.nbytes > self.least
        )
        return found


def test_the_vectors_are_read_about_once_for_64_questions(device: torch.device) -> None:
    """What a search moves that is not small, in shares of the vectors: a bound on time by a GPU's bandwidth."""
    passages, dim = 400_000, 128
    index = ShardIndex(dim, passages, IndexOptions("Flat", "gpu"))
    draw = torch.Generator().manual_seed(1)
    for start in range(0, passages, 100_000):
        index.write(np.arange(start, start + 100_000), torch.randn(100_000, dim, generator=draw).numpy())
    questions = torch.randn(64, dim, generator=draw).to(device)
    with Traffic(1 << 20) as traffic:
        index.search(questions, 10)
    assert 1.0 <= traffic.bytes / (passages * dim * 4) < 1.6


def test_precision_of_products_is_put_back(precision: None) -> None:
    torch.set_float32_matmul_precision("medium")
    index, _ = both("Flat", PASSAGES)
    index.search(QUESTIONS, TOP_K)
    assert torch.get_float32_matmul_precision() == "medium"
