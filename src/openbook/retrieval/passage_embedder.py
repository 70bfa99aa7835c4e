"""Passages to embeddings with the current weights, as training and answering need them: few, of any length."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from openbook.batch import to_device
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import EncoderFormat, passage_inputs
from openbook.data.length_batches import TOKENS_OF_A_PASS, by_length, cheapest_passes, packed_passes
from openbook.models.encoders import TextEncoder
from openbook.models.passes.activation_checkpointing import recomputed
from openbook.retrieval.embedding_cache import EmbeddingCache


class PassageEmbedder:
    """d(z) for rows of a corpus. Not a Module: the retriever that has it registers the encoder.

    tokens: the corpus's token ids. max_tokens: of a passage, special tokens included. tokens_per_pass: of one forward
    pass, padding included. tokens_per_backward: if above 0, a gradient's activations are held for one pass of at most
    so many tokens at a time, and every pass is run twice (gradient caching, Gao et al. 2021). cache: embeddings that
    are valid until the weights change.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        tokens: PassageTokens,
        style: EncoderFormat,
        max_tokens: int,
        *,
        tokens_per_pass: int = 65536,
        tokens_per_backward: int = 0,
    ):
        self.encoder, self.tokens, self.style, self.max_tokens = encoder, tokens, style, max_tokens
        self.tokens_per_pass, self.tokens_per_backward = tokens_per_pass, tokens_per_backward
        self.cache = EmbeddingCache()
        encoder.register_load_state_dict_post_hook(lambda *_: self.cache.outdate())

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def encode(self, rows: Tensor) -> Tensor:
        """Embeddings [n, dim] of passages at rows [n] (on the CPU), in the encoder's current mode, with gradient where
        one is recorded and the encoder trains."""
        device, chosen = self.device, rows.numpy()
        lengths = np.minimum(self.tokens.length(chosen) + self.style.n_special, self.max_tokens)
        encode: Callable[..., Tensor] = self.encoder
        learns, most = torch.is_grad_enabled() and self.encoder.trains, self.tokens_per_pass
        if learns and self.tokens_per_backward:
            encode, most = partial(recomputed, encode), min(most, self.tokens_per_backward)
        if packs := self.encoder.packs:
            passes = packed_passes(lengths, most)
        elif learns:
            passes = cheapest_passes(lengths, most, TOKENS_OF_A_PASS.get(device.type, 0))
        else:
            passes = list(by_length(lengths, most))
        parts = []
        for places in passes:
            ids, mask = passage_inputs(self.tokens, chosen[places], self.style, self.max_tokens)
            if packs:
                parts.append(encode(to_device(ids[mask], device), None, lengths[places]))
            else:
                parts.append(encode(to_device(ids, device), to_device(mask, device)))
        back = np.argsort(np.concatenate(passes))
        return torch.cat(parts)[to_device(torch.from_numpy(back), device)]

    @torch.no_grad()
    def encode_once(self, rows: Tensor) -> Tensor:
        """Embeddings [n, dim] fp32 of distinct rows [n] (on the CPU) in eval mode, without gradient; from the cache
        where it has them."""
        if not len(rows):
            return torch.empty(0, self.encoder.dim, device=self.device)
        missing = self.cache.missing(rows)
        if len(missing):
            mode = self.encoder.training
            self.encoder.eval()
            self.cache.add(missing, self.encode(missing))
            self.encoder.train(mode)
        return self.cache.get(rows)

    def encode_for_training(self, rows: Tensor) -> Tensor:
        """`encode` with gradient while the encoder trains and one is recorded, the result kept in the cache unless
        dropout made it; `encode_once` otherwise."""
        if not (torch.is_grad_enabled() and self.encoder.trains):
            return self.encode_once(rows)
        embeddings = self.encode(rows)
        if not self.encoder.has_dropout:
            self.cache.add(rows, embeddings)
        return embeddings
