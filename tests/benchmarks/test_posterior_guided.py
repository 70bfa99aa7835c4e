"""Posterior-guided training: the bound of the paper, its gradient, and a run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import openbook.setup.models
from benchmarks.marginal import posterior_guided
from benchmarks.marginal.posterior_guided import GuidedModule, answer_logprobs, guiding, half_of_each, reading
from openbook.commands.train import train
from openbook.objectives.marginal import rag_sequence_nll
from tests.small_system import SmallSystem


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """token_logprobs [2, 4, 3], doc_scores and guide_scores [2, 4], target_mask [2, 3]."""
    draw = torch.Generator().manual_seed(5)
    logprobs = torch.randn(2, 4, 3, generator=draw, dtype=torch.float64).log_softmax(-1)
    doc_scores, guide_scores = torch.randn(2, 2, 4, generator=draw, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    parts = (logprobs * mask[:, None], doc_scores, guide_scores)
    return *(part.detach().requires_grad_() for part in parts), mask  # type: ignore[return-value]


def test_the_two_terms_have_the_gradient_of_the_bound(drawn: tuple[torch.Tensor, ...]) -> None:
    logprobs, doc_scores, guide_scores, mask = drawn
    q, p = guide_scores.softmax(-1), doc_scores.softmax(-1)
    answer = (logprobs * mask[:, None]).sum(-1)
    bound = (q * (q.log() - p.log() - answer)).sum()
    ours = reading(logprobs, guide_scores.detach(), mask) + guiding(
        answer_logprobs(logprobs, mask).detach(), guide_scores, doc_scores
    )
    for one, other in zip(*(torch.autograd.grad(of, drawn[:3]) for of in (ours.sum(), bound)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_bound_is_tight_at_the_posterior_and_never_below_the_marginal(drawn: tuple[torch.Tensor, ...]) -> None:
    logprobs, doc_scores, guide_scores, mask = drawn
    answer = answer_logprobs(logprobs, mask)
    marginal = rag_sequence_nll(logprobs, doc_scores, mask)
    torch.testing.assert_close(guiding(answer, doc_scores.log_softmax(-1) + answer, doc_scores), marginal)
    assert (guiding(answer, guide_scores, doc_scores) > marginal + 1e-3).all()


def test_half_of_the_passages_are_each_encoders() -> None:
    asked, told = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[2, 9, 1, 4], [5, 6, 8, 7]])
    assert half_of_each(asked, told, 4).tolist() == [[1, 2, 9, 4], [5, 6, 8, 7]]
    assert half_of_each(asked, told, 3).tolist() == [[1, 2, 9], [5, 6, 8]]


@pytest.mark.filterwarnings("ignore")
def test_a_run_in_which_the_guide_learns(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guides = []

    def made(*arguments: object, **named: object) -> GuidedModule:
        module = GuidedModule(*arguments, **named)
        guides.append((module.guide, [one.detach().clone() for one in module.guide.parameters()]))
        return module

    monkeypatch.setattr(posterior_guided, "model_folder", lambda name: str(small_system.encoder))
    monkeypatch.setattr(openbook.setup.models, "RagModule", made)
    run = train(small_system.config(tmp_path / "run", "trainer.log_every=1", "evaluate.before_training=false"))
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        nll = [float(row["train/nll"]) for row in csv.DictReader(file) if row["train/nll"]]
    assert len(nll) == 6 and nll[-1] < nll[0]
    guide, before = guides[0]
    moved = [not torch.equal(one, old) for one, old in zip(guide.parameters(), before, strict=True)]
    assert sum(moved) > len(moved) / 2
