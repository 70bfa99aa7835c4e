"""The plain formula that openbook.fused_loss is held against: all logits are made."""

from __future__ import annotations

from torch import Tensor

from openbook.batch import Batch
from openbook.models.contexts import ContextBuilder, answer_hidden
from openbook.models.generator import Generator
from openbook.objectives.marginal import token_logprobs_of


def answer_logprobs(generator: Generator, batch: Batch, rows: Tensor, contexts: ContextBuilder) -> Tensor:
    """token_logprobs [batch, n_docs, target_len]: log p(y_t | x, z_k, y_<t) at the labels, 0 at padding."""
    hidden = answer_hidden(generator, batch, rows, contexts)
    return token_logprobs_of(generator.logits(hidden), batch.labels[:, None].expand(hidden.shape[:3]))
