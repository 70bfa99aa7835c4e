"""The DPR loss against its definition, on one rank and over several."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openbook.objectives.dpr import dpr_scores, in_batch_hits, nll_of
from openbook.utils.distributed import gather_rows_with_gradient
from tests.ranks import on_ranks

BATCH, DIM, N, TEMPERATURE = 5, 7, 11, 0.3


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    question_emb = torch.randn(BATCH, DIM, generator=draw, dtype=torch.float64)
    passage_emb = torch.randn(N, DIM, generator=draw, dtype=torch.float64)
    positive = torch.randint(N, (BATCH,), generator=draw)
    return question_emb, passage_emb, positive, torch.rand(BATCH, N, generator=draw) < 0.6


def dpr_nll(question_emb: Tensor, passage_emb: Tensor, positive: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return nll_of(dpr_scores(question_emb, passage_emb, positive, mask, temperature), positive)


def nll_by_hand(question_emb: Tensor, passage_emb: Tensor, positive: Tensor, mask: Tensor) -> list[float]:
    """Equation 2 of the paper as written, one question and one passage at a time."""
    losses = []
    for question, gold, competes in zip(question_emb.tolist(), positive.tolist(), mask.tolist(), strict=True):
        similar = [
            math.exp(sum(a * b for a, b in zip(question, passage, strict=True)) / TEMPERATURE)
            for passage in passage_emb.tolist()
        ]
        negatives = sum(value for place, value in enumerate(similar) if competes[place] and place != gold)
        losses.append(-math.log(similar[gold] / (similar[gold] + negatives)))
    return losses


# The loss


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_papers(seed: int) -> None:
    question_emb, passage_emb, positive, mask = drawn(seed)
    ours = dpr_nll(question_emb, passage_emb, positive, mask, TEMPERATURE)
    assert ours.tolist() == pytest.approx(nll_by_hand(question_emb, passage_emb, positive, mask), abs=1e-12)
    single = dpr_nll(question_emb.float(), passage_emb.float(), positive, mask, TEMPERATURE)
    assert single.tolist() == pytest.approx(ours.tolist(), rel=1e-4, abs=1e-5)


def test_numbers_by_hand() -> None:
    """Two questions at right angles, three passages: inner products 1, 0 and -1 at temperature 1."""
    question_emb = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    passage_emb = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    everybody = torch.ones(2, 3, dtype=torch.bool)
    nll = dpr_nll(question_emb, passage_emb, torch.tensor([0, 0]), everybody, 1.0)
    e = math.e
    assert nll.tolist() == pytest.approx([math.log(1 + 1 / e + 1 / e**2), math.log(1 + e + 1)])
    masked = everybody.clone()
    masked[0, 1] = masked[1, 1] = False
    nll = dpr_nll(question_emb, passage_emb, torch.tensor([0, 0]), masked, 1.0)
    assert nll.tolist() == pytest.approx([math.log(1 + 1 / e**2), math.log(2)])


def test_the_gradient_is_the_softmax_less_the_positive() -> None:
    question_emb, passage_emb, positive, mask = drawn()
    question_emb.requires_grad_()
    passage_emb.requires_grad_()
    dpr_nll(question_emb, passage_emb, positive, mask, TEMPERATURE).sum().backward()
    wanted = torch.softmax(dpr_scores(question_emb, passage_emb, positive, mask, TEMPERATURE), 1).detach()
    wanted[torch.arange(BATCH), positive] -= 1
    torch.testing.assert_close(question_emb.grad, wanted @ passage_emb.detach() / TEMPERATURE)
    torch.testing.assert_close(passage_emb.grad, wanted.T @ question_emb.detach() / TEMPERATURE)
    assert torch.autograd.gradcheck(
        lambda q, p: dpr_nll(q, p, positive, mask, TEMPERATURE), (question_emb, passage_emb)
    )


def test_a_masked_passage_has_no_influence_and_gets_no_gradient() -> None:
    question_emb, passage_emb, positive, mask = drawn()
    nobody = mask.any(0).logical_not()
    mask[:, 3] = False
    positive[positive == 3] = 4
    nobody[3] = True
    passage_emb.requires_grad_()
    before = dpr_nll(question_emb, passage_emb, positive, mask, TEMPERATURE)
    before.sum().backward()
    assert passage_emb.grad is not None
    assert (passage_emb.grad[3] == 0).all()
    moved = passage_emb.detach().clone()
    moved[3] = 1e6
    torch.testing.assert_close(dpr_nll(question_emb, moved, positive, mask, TEMPERATURE), before.detach())


def test_the_positive_passage_alone_costs_nothing() -> None:
    question_emb, passage_emb, positive, mask = drawn()
    nll = dpr_nll(question_emb, passage_emb, positive, torch.zeros_like(mask), TEMPERATURE)
    assert nll.tolist() == [0.0] * BATCH


def test_scores_are_fp32_under_autocast() -> None:
    question_emb, passage_emb, positive, mask = (part for part in drawn())
    with torch.autocast("cpu", torch.bfloat16):
        nll = dpr_nll(question_emb.bfloat16(), passage_emb.bfloat16(), positive, mask, TEMPERATURE)
    assert nll.dtype == torch.float32
    exact = dpr_nll(question_emb.bfloat16().double(), passage_emb.bfloat16().double(), positive, mask, TEMPERATURE)
    torch.testing.assert_close(nll.double(), exact, rtol=1e-5, atol=1e-5)


def test_hits_count_what_competes_only() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, -torch.inf, 0.5], [4.0, 4.0, 0.0], [0.0, 1.0, 2.0]])
    assert in_batch_hits(scores, torch.tensor([1, 0, 1, 0])).tolist() == [True, True, True, False]


# Several ranks


SIZES = (3, 0, 2)  # questions of each rank
SHARES = (4, 0, 7)  # passages that each rank encodes


def share_of(rank: int) -> tuple[list[float], list[list[float]], list[list[float]]]:
    """nll and gradients of a rank's questions and passages."""
    question_emb, passage_emb, positive, mask = drawn()
    asked = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    held = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
    mine, passages = question_emb[asked].clone().requires_grad_(), passage_emb[held].clone().requires_grad_()
    gathered = gather_rows_with_gradient(passages)
    nll = dpr_nll(mine, gathered, positive[asked], mask[asked], TEMPERATURE)
    (nll.sum() / BATCH).backward()
    assert mine.grad is not None and passages.grad is not None
    return nll.detach().tolist(), mine.grad.tolist(), passages.grad.tolist()


def test_ranks_with_shares_of_the_batch_are_one_process_with_all_of_it(tmp_path: Path) -> None:
    parts = on_ranks(len(SIZES), share_of, tmp_path)
    question_emb, passage_emb, positive, mask = drawn()
    question_emb.requires_grad_()
    passage_emb.requires_grad_()
    nll = dpr_nll(question_emb, passage_emb, positive, mask, TEMPERATURE)
    nll.mean().backward()
    assert question_emb.grad is not None and passage_emb.grad is not None
    for place, whole in enumerate((nll, question_emb.grad, passage_emb.grad)):
        joined = torch.tensor([row for part in parts for row in part[place]], dtype=torch.float64)
        torch.testing.assert_close(joined, whole.detach(), rtol=1e-12, atol=1e-14)


def test_one_process_gathers_its_own_rows_themselves() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert gather_rows_with_gradient(rows) is rows
