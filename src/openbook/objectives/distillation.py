"""Objectives that teach the retriever by the generator's likelihoods: EMDR2, perplexity distillation, leave-one-out.

Each is a generator term and a term of the retriever in which the generator's opinion of the passages is a constant. A
reader of one passage at a time has the RAG-Token mixture as its generator term; of a reader of all passages
(training/all_passages.py) the likelihood itself is, and only the retriever's terms are taken from here.
"""

import torch
from torch import Tensor

from openbook.objectives.marginal import (
    _softmax_docs,
    checked,
    doc_logprobs,
    logsumexp_docs,
    masked_logprobs,
    rag_token_nll,
)


def emdr2(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    """EMDR2 (Sachan et al. 2021, eq. 5 to 7): generator term - log sum_k p(z_k|x) stop_gradient(p(y|x,z_k)).

    d/d doc_scores is p(z|x) minus RAG-Sequence's posterior.
    """
    opinion = _sequence_logprobs(token_logprobs, doc_scores, target_mask)
    return rag_token_nll(token_logprobs, doc_scores.detach(), target_mask) + expected_likelihood(opinion, doc_scores)


def expected_likelihood(opinion: Tensor, doc_scores: Tensor) -> Tensor:
    """EMDR2's retriever term (Sachan et al. 2021, eq. 7): -log sum_k p(z_k|x) exp(opinion_k) [batch]; opinion [batch,
    n_docs] is log p(y|x,z_k), a constant."""
    return -logsumexp_docs(doc_logprobs(doc_scores) + opinion.detach())


def perplexity_distillation(
    token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """Perplexity Distillation (Izacard et al. 2022, section 2.2): generator term + KL(target || p(z|x)).

    target_k = softmax_k(log p(y|x,z_k) / temperature), a constant. The KL is a sum over the passages of a question;
    d/d doc_scores is p(z|x) - target.
    """
    opinion = _sequence_logprobs(token_logprobs, doc_scores, target_mask)
    return rag_token_nll(token_logprobs, doc_scores.detach(), target_mask) + distilled(opinion, doc_scores, temperature)


def distilled(opinion: Tensor, doc_scores: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(opinion / temperature) || p(z|x)) [batch], a sum over the passages of a question (Izacard et al. 2022,
    section 2.2). opinion [batch, n_docs] is a constant; where it is -inf there is no target."""
    opinion = opinion.detach() / temperature
    return _divergence(_softmax_docs(torch.where(doc_scores.isfinite(), opinion, -torch.inf)), doc_scores)


def leave_one_out(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor, temperature: float = 1.0) -> Tensor:
    """LOOP (Izacard et al. 2022, section 2.2): generator term + KL(target || p(z|x)).

    target_k = softmax_k(-log p(y | x, all passages but z_k) / temperature), a constant: what is worse to miss is worth
    more. The others' prior is normalised among them. A passage with no other beside it gives no target: KL 0.
    """
    n_docs = doc_scores.shape[1]
    with torch.no_grad():
        left_out = torch.eye(n_docs, dtype=torch.bool, device=doc_scores.device)
        others = doc_scores[:, None].masked_fill(left_out, -torch.inf)  # [batch, left out, n_docs]
        without = rag_token_nll(
            token_logprobs.repeat_interleave(n_docs, 0), others.flatten(0, 1), target_mask.repeat_interleave(n_docs, 0)
        ).view(-1, n_docs)
        opinion = torch.where(without.isfinite(), without, -torch.inf)
    return rag_token_nll(token_logprobs, doc_scores.detach(), target_mask) + distilled(opinion, doc_scores, temperature)


def _sequence_logprobs(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    """log p(y|x,z_k) [batch, n_docs] as a constant."""
    token_logprobs, _ = checked(token_logprobs, doc_scores, target_mask)
    return masked_logprobs(token_logprobs, target_mask).sum(-1).detach()


def _divergence(target: Tensor, doc_scores: Tensor) -> Tensor:
    """KL(target || p(z|x)) [batch], summed over passages; 0 for a target of zeros."""
    logprobs = doc_logprobs(doc_scores)
    logprobs = torch.where(logprobs.isfinite(), logprobs, 0.0)  # there the target is 0, and 0 * inf would be NaN
    return -(torch.special.entr(target) + target * logprobs).sum(-1)
