"""The equations against loops written from the paper, against numbers derived by hand, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openbook.errors import OpenBookError
from openbook.objectives.by_name import OBJECTIVES
from openbook.objectives.marginal import (
    closed_book_nll,
    doc_logprobs,
    posterior,
    rag_sequence_nll,
    rag_token_nll,
    token_logprobs_of,
)
from tests.references import loops

BATCH, N_DOCS, TARGET_LEN, VOCAB = 7, 5, 3, 11
REFERENCES = {"rag_token": loops.rag_token, "rag_sequence": loops.rag_sequence}


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged targets (one to three tokens), one question with a missing passage, one with two."""
    generator = torch.Generator().manual_seed(seed)
    token_logprobs = -3 * torch.rand(BATCH, N_DOCS, TARGET_LEN, generator=generator, dtype=torch.float64)
    doc_scores = 4 * torch.randn(BATCH, N_DOCS, generator=generator, dtype=torch.float64)
    doc_scores[1, 4] = doc_scores[2, 0] = doc_scores[2, 3] = -math.inf
    lengths = torch.tensor([3, 1, 2, 3, 1, 2, 3])
    return token_logprobs, doc_scores, torch.arange(TARGET_LEN) < lengths[:, None]


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_the_loops_in_float64(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    expected = [
        REFERENCES[name](t, s, m)
        for t, s, m in zip(token_logprobs.tolist(), doc_scores.tolist(), mask.tolist(), strict=True)
    ]
    assert OBJECTIVES[name](token_logprobs, doc_scores, mask).tolist() == pytest.approx(expected, abs=1e-12)


def test_two_passages_two_tokens_by_hand() -> None:
    """Prior 3/4 and 1/4 (scores log 3 and 0). Passage one gives the tokens 1/2 and 1/5, passage two 1/10 and 4/5.

    Sequence: 3/4 * 1/10 + 1/4 * 8/100 = 0.095. Token: (3/8 + 1/40) * (3/20 + 1/5) = 0.4 * 0.35 = 0.14.
    """
    token_logprobs = torch.tensor([[[1 / 2, 1 / 5], [1 / 10, 4 / 5]]], dtype=torch.float64).log()
    doc_scores = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert rag_sequence_nll(token_logprobs, doc_scores, mask).exp().item() == pytest.approx(1 / 0.095, rel=1e-12)
    assert rag_token_nll(token_logprobs, doc_scores, mask).exp().item() == pytest.approx(1 / 0.14, rel=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
def test_gradient_of_doc_scores_is_prior_minus_posterior(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    doc_scores.requires_grad_()
    OBJECTIVES[name](token_logprobs, doc_scores, mask).sum().backward()
    expected = []
    for t, s, m in zip(token_logprobs.tolist(), doc_scores.tolist(), mask.tolist(), strict=True):
        prior = loops.prior(s)
        rows = [loops.posterior_sequence(t, s, m)] if name == "rag_sequence" else loops.posterior_token(t, s, m)
        expected.append([sum(prior[k] - row[k] for row in rows) for k in range(N_DOCS)])
    torch.testing.assert_close(doc_scores.grad, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", REFERENCES)
def test_gradient_against_finite_differences(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    doc_scores = doc_scores.clamp(min=-9.0)
    inputs = token_logprobs.requires_grad_(), doc_scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda t, s: OBJECTIVES[name](t, s, mask), inputs)


@pytest.mark.parametrize("name", REFERENCES)
def test_missing_passages_have_no_influence_and_no_gradient(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    other = torch.where(doc_scores.isfinite()[:, :, None], token_logprobs, -1e4)
    token_logprobs.requires_grad_()
    doc_scores.requires_grad_()
    nll = OBJECTIVES[name](token_logprobs, doc_scores, mask)
    torch.testing.assert_close(nll, OBJECTIVES[name](other, doc_scores, mask))
    nll.sum().backward()
    missing = doc_scores.detach().isinf()
    assert token_logprobs.grad is not None and doc_scores.grad is not None
    assert token_logprobs.grad[missing].abs().max() == 0
    assert doc_scores.grad[missing].abs().max() == 0
    assert torch.isfinite(token_logprobs.grad).all() and torch.isfinite(doc_scores.grad).all()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_question_without_passages_gives_no_nan(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    doc_scores[3] = -math.inf
    doc_scores.requires_grad_()
    nll = OBJECTIVES[name](token_logprobs.requires_grad_(), doc_scores, mask)
    assert nll[3].item() == math.inf
    assert nll[[0, 1, 2, 4, 5, 6]].isfinite().all()
    torch.where(nll.isfinite(), nll, 0.0).sum().backward()
    assert doc_scores.grad is not None and token_logprobs.grad is not None
    assert doc_scores.grad.isfinite().all() and token_logprobs.grad.isfinite().all()
    assert (doc_scores.grad[3] == 0).all()


def test_a_one_token_target_teaches_the_retriever() -> None:
    """transformers' RAG-Sequence drops the prior here (second position is padding) and gives a gradient of zero."""
    token_logprobs, doc_scores, mask = example()
    doc_scores = (doc_scores / 8).requires_grad_()
    rag_sequence_nll(token_logprobs, doc_scores, mask)[1].backward()
    assert mask[1].sum() == 1
    assert doc_scores.grad is not None and doc_scores.grad[1].abs().max() > 0.01


def test_both_agree_on_one_token_and_on_one_passage() -> None:
    token_logprobs, doc_scores, mask = example()
    one_token = mask & (torch.arange(TARGET_LEN) == 0)
    torch.testing.assert_close(
        rag_token_nll(token_logprobs, doc_scores, one_token), rag_sequence_nll(token_logprobs, doc_scores, one_token)
    )
    one_passage = token_logprobs[:, :1], torch.randn(BATCH, 1, dtype=torch.float64), mask
    torch.testing.assert_close(rag_token_nll(*one_passage), rag_sequence_nll(*one_passage))
    torch.testing.assert_close(closed_book_nll(*one_passage), rag_sequence_nll(*one_passage))


def test_fp32_whatever_the_inputs_are() -> None:
    """Scores of about 75 differ by less than bf16 can hold; the marginal must not be computed in it."""
    token_logprobs, doc_scores, mask = example()
    scores = (75 + doc_scores.float() / 100).clamp(min=70)
    with torch.autocast("cpu", torch.bfloat16):
        half = rag_token_nll(token_logprobs.bfloat16(), scores, mask)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, rag_token_nll(token_logprobs.bfloat16().float(), scores, mask))


@pytest.mark.parametrize("name", REFERENCES)
def test_posterior_is_bayes_rule(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    found = posterior(token_logprobs, doc_scores, mask, name)
    for b, (t, s, m) in enumerate(zip(token_logprobs.tolist(), doc_scores.tolist(), mask.tolist(), strict=True)):
        if name == "rag_sequence":
            expected = loops.posterior_sequence(t, s, m)
        else:
            rows = loops.posterior_token(t, s, m)
            expected = [sum(row[k] for row in rows) / len(rows) for k in range(N_DOCS)]
        assert found[b].tolist() == pytest.approx(expected, abs=1e-12)


def test_doc_logprobs_are_normalised_over_what_was_retrieved() -> None:
    _, doc_scores, _ = example()
    logprobs = doc_logprobs(doc_scores)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(BATCH, dtype=torch.float64))
    assert logprobs[1, 4] == -math.inf


def test_token_logprobs_gather_the_label_and_ignore_padding() -> None:
    logits = torch.randn(BATCH, TARGET_LEN, VOCAB, dtype=torch.float64)
    labels = torch.randint(VOCAB, (BATCH, TARGET_LEN))
    labels[2, 1:] = -100
    found = token_logprobs_of(logits, labels)
    for b in range(BATCH):
        for t in range(TARGET_LEN):
            label = int(labels[b, t])
            row = logits[b, t].tolist()
            expected = 0.0 if label < 0 else row[label] - math.log(sum(map(math.exp, row)))
            assert found[b, t].item() == pytest.approx(expected, abs=1e-12)


def test_label_smoothing_is_a_mixture_with_the_uniform_distribution() -> None:
    logits, labels, share = torch.randn(BATCH, TARGET_LEN, VOCAB), torch.randint(VOCAB, (BATCH, TARGET_LEN)), 0.1
    expected = -torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=share, reduction="none"
    )
    torch.testing.assert_close(token_logprobs_of(logits, labels, share).flatten(), expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_axes_that_do_not_agree_are_named(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    n_docs = 1 if name == "closed_book" else N_DOCS
    with pytest.raises(OpenBookError, match=r"\[batch, n_docs, target_len\]"):
        OBJECTIVES[name](token_logprobs[:, :n_docs], doc_scores[:, : n_docs + 1], mask[:2])
    with pytest.raises(OpenBookError, match=r"torch\.bool"):
        OBJECTIVES[name](token_logprobs[:, :n_docs], doc_scores[:, :n_docs], mask.long())


def test_closed_book_reads_no_passages() -> None:
    with pytest.raises(OpenBookError, match="n_docs 5"):
        closed_book_nll(*example())


@pytest.mark.parametrize("objective", [rag_token_nll, rag_sequence_nll])
def test_a_score_that_is_not_a_number_is_not_a_missing_passage(objective: Callable[..., Tensor]) -> None:
    token_logprobs, target_mask = torch.full((2, 3, 5), -1.0), torch.ones(2, 5, dtype=torch.bool)
    doc_scores = torch.tensor([[0.0, math.nan, -math.inf], [0.0, 1.0, -math.inf]])
    nll = objective(token_logprobs, doc_scores, target_mask)
    assert nll[0].isnan() and nll[1] == pytest.approx(5.0)
