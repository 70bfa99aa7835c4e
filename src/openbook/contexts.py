"""What the generator reads: question + passage, assembled from token ids, and its opinion of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openbook.batch import Batch
from openbook.corpus import PassageTokens
from openbook.generator import Generator
from openbook.objectives import token_logprobs_of
from openbook.text import SpecialIds, context_inputs, decoder_inputs


@dataclass(frozen=True)
class ContextBuilder:
    """Contexts for one generator over one corpus. max_length: tokens; the passage is cut, never the question."""

    tokens: PassageTokens
    special: SpecialIds
    max_length: int

    def __call__(self, questions: Sequence[Sequence[int]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """questions without special tokens, rows [batch, n_docs] -> ids and mask [batch * n_docs, context_len].

        A missing row gives a context of the question alone; its doc_logprob is -inf, so nothing it says counts.
        """
        ids, mask = context_inputs(questions, self.tokens, rows.cpu().numpy(), self.special, self.max_length)
        return ids.to(rows.device), mask.to(rows.device)


def closed_book_rows(batch: Batch) -> Tensor:
    """Rows [batch, 1] that stand for no passage at all: the generator reads the question only."""
    return torch.full((len(batch.examples), 1), -1, device=batch.labels.device)


def answer_logprobs(
    generator: Generator, batch: Batch, rows: Tensor, contexts: ContextBuilder, label_smoothing: float = 0.0
) -> Tensor:
    """token_logprobs [batch, n_docs, target_len]: log p(y_t | x, z_k, y_<t) at the labels, 0 at padding.

    The decoder starts at the model's own decoder_start_token_id, in training and in generation alike.
    """
    n_docs = rows.shape[1]
    context_ids, context_mask = contexts(batch.context_questions, rows)
    memory = generator.encode(context_ids, context_mask)
    inputs = decoder_inputs(batch.labels, generator.decoder_start_token_id, generator.pad_token_id)
    hidden, _ = generator.decode(inputs.repeat_interleave(n_docs, 0), memory, context_mask)
    logits = generator.logits(hidden)
    labels = batch.labels.repeat_interleave(n_docs, 0)
    return token_logprobs_of(logits, labels, label_smoothing).view(-1, n_docs, batch.labels.shape[1])
