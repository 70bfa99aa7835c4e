"""What the generator reads: question + passage assembled from token ids, and teacher-forced decoder states."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openbook.batch import NULL_ROW, Batch, to_device
from openbook.data.corpus import PassageTokens
from openbook.data.inputs import SpecialIds, context_inputs, decoder_inputs
from openbook.data.length_batches import TOKENS_OF_A_PASS, cheapest_passes, packed_passes
from openbook.data.prompts import Prompt
from openbook.models.decoder_only.joined_prompt import joined_contexts
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.generator import Generator, each_part
from openbook.models.passes.cast_weights import with_weights_cast


@dataclass(frozen=True)
class ContextBuilder:
    """Contexts for one generator over one corpus. special: special tokens, or a decoder-only model's prompt.
    max_length: tokens; the passage is cut, never question or prompt. tokens_per_pass: context tokens of one forward
    pass of the generator, padding included. one_pass: all contexts of a batch in one, as it must be where ranks run a
    generator together."""

    tokens: PassageTokens
    special: SpecialIds | Prompt
    max_length: int
    tokens_per_pass: int = 65536
    one_pass: bool = False

    def __call__(self, questions: Sequence[Sequence[int]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """questions without special tokens, rows [batch, n_docs] -> ids and mask [batch * n_docs, context_len], all of
        them on the CPU.

        A missing row gives a context of the question alone; its doc_logprob is -inf, so nothing it says counts.
        """
        if isinstance(self.special, Prompt):
            return self.special.inputs(questions, self.tokens, rows, self.max_length)
        return context_inputs(questions, self.tokens, rows, self.special, self.max_length)

    @property
    def is_prompt(self) -> bool:
        """Whether a decoder-only model reads the contexts."""
        return isinstance(self.special, Prompt) and not self.special.encoded

    def together(self, questions: Sequence[Sequence[int]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of a prompt: ids and mask [batch, context_len], all passages of a question in one context."""
        assert isinstance(self.special, Prompt)
        return joined_contexts(self.special, questions, self.tokens, rows, self.max_length)


def null_documents(batch: Batch) -> Tensor:
    """Rows [batch, 1] of the null document: the context is the question alone."""
    return torch.full((len(batch.examples), 1), NULL_ROW)


def encode_contexts(generator: Generator, ids: Tensor, mask: Tensor, tokens_per_pass: int = 65536) -> Any:
    """`generator.encode` of contexts [n, context_len], an encoder-decoder's in passes of like length as `answer_hidden`
    has them: what a question found may be half as long as what another did. Padding is 0 in the memory then."""
    if isinstance(generator, DecoderOnlyGenerator):
        return generator.encode(ids, mask)
    lengths = mask.sum(-1).clamp(min=1).cpu().numpy()
    passes = cheapest_passes(lengths, tokens_per_pass, TOKENS_OF_A_PASS.get(ids.device.type, 0))
    if len(passes) < 2:
        return generator.encode(ids, mask)

    def encoded(positions: np.ndarray) -> Any:
        some, length = to_device(torch.from_numpy(positions), ids.device), int(lengths[positions[0]])
        memory = generator.encode(ids[some, :length], mask[some, :length])
        missing = ids.shape[1] - length
        return each_part(lambda part: F.pad(part, [0, 0] * (part.dim() - 2) + [0, missing]), memory)

    back = to_device(torch.from_numpy(np.argsort(np.concatenate(passes))), ids.device)
    return each_part(lambda *parts: torch.cat(parts)[back], *map(encoded, passes))


def answer_hidden(generator: Generator, batch: Batch, rows: Tensor, contexts: ContextBuilder) -> Tensor:
    """hidden [batch, n_docs, target_len, dim]: the decoder's states that the vocabulary head turns into p(y_t | x, z_k,
    y_<t).

    The decoder starts at the model's own decoder_start_token_id, in training and in generation alike. Contexts go
    through the generator without padding where it packs, otherwise in passes of like length, cut where padding and
    passes cost least, whatever question they belong to.
    """
    n_docs, device = rows.shape[1], batch.labels.device
    ids, mask = contexts(batch.context_questions, rows)
    inputs = decoder_inputs(batch.labels, generator.decoder_start_token_id, generator.pad_token_id)
    lengths = mask.sum(-1).numpy()
    packs = getattr(generator, "packs", False) and not contexts.one_pass
    if packs:
        passes = packed_passes(lengths, contexts.tokens_per_pass)
    elif contexts.one_pass and torch.is_grad_enabled():
        passes = [np.argsort(-lengths, kind="stable")]
    else:
        passes = cheapest_passes(lengths, contexts.tokens_per_pass, TOKENS_OF_A_PASS.get(device.type, 0))

    def hidden_of(positions: np.ndarray) -> Tensor:
        some, length = torch.from_numpy(positions), int(lengths[positions[0]])
        if packs and len(some) > 1:
            there = to_device(ids[some][mask[some].bool()], device)
            return generator.packed_hidden(there, lengths[positions], inputs[to_device(some // n_docs, device)])  # type: ignore[attr-defined]
        some_mask = to_device(mask[some, :length], device)
        memory = generator.encode(to_device(ids[some, :length], device), some_mask)
        # context i is of question i // n_docs
        return generator.decode(inputs[to_device(some // n_docs, device)], memory, some_mask)[0]

    model = cast(nn.Module, generator)
    parts = with_weights_cast(model, lambda: [hidden_of(positions) for positions in passes], but=generator.head_weight)
    back = to_device(torch.from_numpy(np.argsort(np.concatenate(passes))), device)
    return torch.cat(parts)[back].view(len(rows), n_docs, inputs.shape[1], -1)
