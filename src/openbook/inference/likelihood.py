"""How likely given answers are, passage by passage: gold answers, produced answers, labels. No gradient is meant."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from openbook.data.inputs import decoder_inputs
from openbook.models.generator import Generator
from openbook.objectives.marginal import doc_logprobs, token_logprobs_of

LOGITS_AT_ONCE = 1 << 24  # Numbers of one chunk of logits [tokens, vocab]: 64 MiB in fp32.

# Target tokens, padding and all contexts included, in one pass of the decoder: some questions have hundreds of gold
# answers.
TOKENS_AT_ONCE = 1 << 13


class EncodedOnce:
    """A generator that keeps the contexts it has just encoded: decoding and scoring read the same memory."""

    def __init__(self, generator: Generator, encode: Callable[[Tensor, Tensor], Any] | None = None):
        """encode: how it encodes, where not by the generator's own way."""
        self._generator = generator
        # Tensors are told apart by identity, not by what they hold.
        self.encode = lru_cache(maxsize=1)(encode or generator.encode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def target_logprobs(generator: Generator, memory: Any, context_mask: Tensor, labels: Tensor) -> Tensor:
    """log p(y_t | x, z_k, y_<t) of several targets under every passage: [batch, n_docs, n_targets, target_len] fp32.

    memory, context_mask [batch * n_docs, context_len]: the contexts as the generator has encoded them. labels [batch,
    n_targets, target_len]: every question's own targets, negative where there is padding, which gives 0. All targets of
    a question share the encoded context; no more than TOKENS_AT_ONCE decoder tokens (one target of every question at
    least) and LOGITS_AT_ONCE logits live at a time.
    """
    batch, n_targets, target_len = labels.shape
    n_docs = context_mask.shape[0] // batch
    few = max(1, TOKENS_AT_ONCE // (batch * n_docs * target_len))
    if n_targets > few:
        return torch.cat(
            [target_logprobs(generator, memory, context_mask, some) for some in labels.split(few, dim=1)], dim=2
        )
    rows = labels.repeat_interleave(n_docs, 0).flatten(0, 1)  # [batch * n_docs * n_targets, target_len]
    inputs = decoder_inputs(rows, generator.decoder_start_token_id, generator.pad_token_id)
    hidden, _ = generator.decode(inputs, memory, context_mask)
    counted = rows >= 0
    at_once = max(1, LOGITS_AT_ONCE // generator.head_weight.shape[0])
    logprobs = torch.zeros(rows.shape, device=labels.device)
    logprobs[counted] = torch.cat(
        [
            token_logprobs_of(generator.logits(states), gold)
            for states, gold in zip(hidden[counted].split(at_once), rows[counted].split(at_once), strict=True)
        ]
    ).float()
    return logprobs.view(batch, n_docs, n_targets, target_len)


def label_logprobs(
    generator: Generator, memory: Any, context_mask: Tensor, doc_scores: Tensor, label_ids: Tensor
) -> Tensor:
    """log p(label | x) [batch, n_labels] by the marginal of one token, the label's first: of one token RAG-Token and
    RAG-Sequence have the same likelihood (Lewis et al. 2020, section 2.1). label_ids [n_labels]; doc_scores [batch,
    n_docs]."""
    batch, n_docs = doc_scores.shape
    first = [] if generator.first_token_id is None else [generator.first_token_id]
    start = torch.tensor([[generator.decoder_start_token_id, *first]], device=context_mask.device)
    start = start.expand(batch * n_docs, -1)
    hidden, _ = generator.decode(start, memory, context_mask)
    logits = generator.logits(hidden[:, -1]).float()
    logprobs = (logits[:, label_ids] - logits.logsumexp(-1, keepdim=True)).view(batch, n_docs, -1)
    prior = doc_logprobs(doc_scores).unsqueeze(-1)
    return torch.where(prior != -torch.inf, prior + logprobs, -torch.inf).logsumexp(1)
