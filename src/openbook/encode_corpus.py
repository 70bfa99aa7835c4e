"""Passages to embeddings, one length at a time without padding; the encoder and the random state stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from openbook.corpus import PassageTokens
from openbook.encoders import TextEncoder
from openbook.text import SpecialIds, by_length, passage_inputs


def encode_passages(
    encoder: TextEncoder,
    tokens: PassageTokens,
    rows: range,
    special: SpecialIds,
    max_length: int,
    tokens_per_pass: int,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Embeddings [len(rows), dim] fp32 on the CPU, in the order of rows.

    A copy of the encoder with weights in dtype runs in eval mode under inference_mode (dropout would make an index of
    noise): the encoder itself and the random state are left as they are. progress is told passages done and in all.
    """
    device = next(encoder.parameters()).device
    embeddings = torch.empty((len(rows), encoder.dim))
    # A copy: the encoder that trains keeps its mode, and weights are cast once instead of in every forward pass.
    encoder = copy.deepcopy(encoder).to(dtype).eval()
    done = 0
    with torch.inference_mode():
        lengths = np.minimum(tokens.lengths[rows.start : rows.stop] + special.n_in_context, max_length)
        for chosen in by_length(lengths, tokens_per_pass, padded=False):
            ids, _ = passage_inputs(tokens, chosen + rows.start, special, max_length)
            embeddings[torch.from_numpy(chosen)] = encoder(ids.to(device), None).cpu()
            done += len(chosen)
            progress(done, len(rows))
    return embeddings
