"""What trains: the marginal likelihoods of Lewis et al. 2020 (arXiv:2005.11401), section 2.1, and three losses that
teach generator and retriever apart.

    doc_logprobs[b,k] = log p(z_k | x_b)                    log-softmax of doc_scores over the n_docs retrieved

    RAG-Sequence   p(y|x) = sum_k p(z_k|x) prod_t p(y_t | x, z_k, y_<t)
    RAG-Token      p(y|x) = prod_t sum_k p(z_k|x) p(y_t | x, z_k, y_<t)

The paper's symbols: eta (retriever) gives doc_scores = d(z)^T q(x) / temperature; theta (generator) gives
token_logprobs; "top-k(p(.|x))" is the n_docs axis.

EMDR2 (Sachan et al. 2021, arXiv:2106.05346), Perplexity Distillation and LOOP (Izacard et al. 2022, arXiv:2208.03299,
section 2.2) were made for a reader of all passages at once (generator.reads=all, training/all_passages.py). For a
generator that reads one passage at a time, the RAG-Token mixture stands for it; with the prior detached, it teaches the
generator alone:

    generator term    -log prod_t sum_k stop_gradient(p(z_k|x)) p(y_t | x, z_k, y_<t)

The retriever learns from a second term, in which the generator's opinion is a constant. What such a run reports as its
likelihood, and how it answers, is RAG-Token (LIKELIHOOD_OF).

All functions take

    token_logprobs [batch, n_docs, target_len]   log p(y_t | x, z_k, y_<t), gathered at the label
    doc_scores     [batch, n_docs]               -inf where there is no passage
    target_mask    [batch, target_len] bool      False where the target is padding

compute in fp32 whatever the autocast dtype (float64 stays float64) and give one loss [batch] per question; that of a
question without any passage is inf.

For both marginals, d(-log p)/d doc_scores is prior minus posterior (for RAG-Token summed over the target's tokens): a
passage that explains the answer better than its prior says is pulled towards the question.

Where transformers differs: its RAG-Sequence loss adds the prior at the second target position, so a one-token target
loses the prior and gives the retriever no gradient. Here the prior is added once per sequence, whatever its length.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from openbook.errors import OpenBookError

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Reading = Literal["rag_token", "rag_sequence", "closed_book", "all_passages"]


def rag_sequence_nll(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    """-log p(y|x) of RAG-Sequence (Lewis et al. 2020, section 2.1, first equation). Returns [batch]."""
    token_logprobs, doc_scores = checked(token_logprobs, doc_scores, target_mask)
    sequence_logprobs = masked_logprobs(token_logprobs, target_mask).sum(-1)  # [batch, n_docs]
    return -logsumexp_docs(doc_logprobs(doc_scores) + sequence_logprobs)


def rag_token_nll(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    """-log p(y|x) of RAG-Token (Lewis et al. 2020, section 2.1, second equation). Returns [batch]."""
    token_logprobs, doc_scores = checked(token_logprobs, doc_scores, target_mask)
    marginal = logsumexp_docs(doc_logprobs(doc_scores).unsqueeze(-1) + masked_logprobs(token_logprobs, target_mask))
    return -torch.where(target_mask, marginal, 0.0).sum(-1)


def closed_book_nll(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    """-log p(y|x) without passages: token_logprobs [batch, 1, target_len]; doc_scores are ignored."""
    if token_logprobs.shape[1] != 1:
        raise OpenBookError("the closed-book objective reads no passages", got=f"n_docs {token_logprobs.shape[1]}")
    token_logprobs, _ = checked(token_logprobs, doc_scores, target_mask)
    return -masked_logprobs(token_logprobs, target_mask).sum((1, 2))


def all_passages_nll(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    """-log p(y | x, z_1 .. z_K) of a reader of all passages: token_logprobs [batch, 1, target_len]; of doc_scores only
    whether there is any passage."""
    nll = closed_book_nll(token_logprobs, doc_scores[:, :1], target_mask)
    return torch.where((doc_scores != -torch.inf).any(1), nll, torch.inf)


def doc_logprobs(doc_scores: Tensor) -> Tensor:
    """log p(z_k|x) [batch, n_docs], normalised over the n_docs retrieved only; -inf stays -inf.

    A question without any passage has no distribution: every entry is -inf, not NaN, and its gradient is zero.
    """
    doc_scores = _float(doc_scores)
    present = doc_scores != -torch.inf  # a score that is not a number is no missing passage, and must be seen
    some = present.any(-1, keepdim=True)
    logprobs = torch.log_softmax(torch.where(some, doc_scores, 0.0), dim=-1)
    return torch.where(present, logprobs, -torch.inf)


def posterior(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor, reading: str) -> Tensor:
    """r_k = p(z_k | x, y) [batch, n_docs], the share of each passage in the likelihood that is read (LIKELIHOOD_OF).

    RAG-Sequence has one latent passage per answer. RAG-Token has one per token: the mean over the target's tokens is
    given, so that (prior - posterior) * tokens is d(-log p)/d doc_scores. A reader of all passages has none: what each
    passage explains alone is weighed as RAG-Sequence does (EMDR2, Sachan et al. 2021, section 2.3).
    """
    token_logprobs, doc_scores = checked(token_logprobs, doc_scores, target_mask)
    counted, prior = masked_logprobs(token_logprobs, target_mask), doc_logprobs(doc_scores)
    if reading in ("rag_sequence", "all_passages"):
        return _softmax_docs(prior + counted.sum(-1))
    tokens = target_mask.sum(-1).clamp(min=1)
    return torch.where(target_mask[:, None], token_posterior(counted, doc_scores), 0.0).sum(-1) / tokens[:, None]


def token_posterior(token_logprobs: Tensor, doc_scores: Tensor) -> Tensor:
    """The share of each passage in each token's marginal probability (RAG-Token) [batch, n_docs, target_len]."""
    return _softmax_docs(doc_logprobs(doc_scores).unsqueeze(-1) + _float(token_logprobs))


def token_logprobs_of(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """log p(y_t | ...) gathered at the label, in fp32.

    logits [..., target_len, vocab], labels [..., target_len] (negative: padding, gives 0). With label_smoothing e each
    is (1 - e) log p(y_t) + e mean_v log p(v), and is marginalised afterwards; transformers smooths the marginal's sum
    over the vocabulary instead of its mean, so its e is not comparable.
    """
    logits = _float(logits)
    log_normalizer = logits.logsumexp(-1)
    logprobs = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) - log_normalizer
    if label_smoothing:
        logprobs = (1 - label_smoothing) * logprobs + label_smoothing * (logits.mean(-1) - log_normalizer)
    return torch.where(labels >= 0, logprobs, 0.0)


def _float(values: Tensor) -> Tensor:
    """At least fp32: DPR scores are about 75, where bf16 has a spacing of 0.5 and ties distinct passages."""
    return values if values.dtype == torch.float64 else values.float()


def masked_logprobs(token_logprobs: Tensor, target_mask: Tensor) -> Tensor:
    return torch.where(target_mask.unsqueeze(1), token_logprobs, 0.0)


def logsumexp_docs(joint: Tensor) -> Tensor:
    """logsumexp over axis 1 that gives -inf with zero gradient, not NaN, where every entry is -inf."""
    some = (joint != -torch.inf).any(1, keepdim=True)
    return torch.where(some.squeeze(1), torch.where(some, joint, 0.0).logsumexp(1), -torch.inf)


def _softmax_docs(joint: Tensor) -> Tensor:
    some = (joint != -torch.inf).any(1, keepdim=True)
    return torch.where(some, torch.where(some, joint, 0.0).softmax(1), 0.0)


def checked(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> tuple[Tensor, Tensor]:
    batch, n_docs, target_len = token_logprobs.shape
    if doc_scores.shape != (batch, n_docs) or target_mask.shape != (batch, target_len):
        raise OpenBookError(
            "axes do not agree",
            got=f"token_logprobs {tuple(token_logprobs.shape)}, doc_scores {tuple(doc_scores.shape)}, "
            f"target_mask {tuple(target_mask.shape)}",
            expected="[batch, n_docs, target_len], [batch, n_docs], [batch, target_len]",
        )
    if target_mask.dtype != torch.bool:
        raise OpenBookError("target_mask has the wrong type", got=target_mask.dtype, expected="torch.bool")
    return _float(token_logprobs), _float(doc_scores)
