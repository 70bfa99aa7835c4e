"""Sequences of any length in one pass without padding: one behind the other in a single row, each read alone.

Every product is then over tokens that are there, and attention is torch's kernel for sequences of different lengths
(Dao 2023, "FlashAttention-2", arXiv:2307.08691), which a mask that hides padding would rule out. One pass takes the
place of several with sequences of like length.

It needs a model whose positions can be handed to it and whose attention adds nothing to its scores, and no dropout of
attention's weights, which the kernel does not have.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from openbook.batch import to_device
from openbook.models.passes.cast_weights import with_weights_cast

PACKS = {"cuda"}  # kinds of devices that have the kernel; elsewhere sequences are attended to one by one, for tests

# By type of model, the probability of its configuration that attention's weights are dropped with.
_DROPOUT = {
    "bert": "attention_probs_dropout_prob",
    "dpr": "attention_probs_dropout_prob",
    "bart": "attention_dropout",
    "mbart": "attention_dropout",
}


class Packing(NamedTuple):
    """Where each of n sequences begins [n + 1] int32, each token's position in its own [total], and the longest."""

    starts: Tensor
    positions: Tensor
    longest: int


_PACKINGS: ContextVar[tuple[Packing, Packing | None] | None] = ContextVar("packings", default=None)


def packs(model: Any) -> bool:
    """Whether a model can read packed sequences here and now: one of transformers that attends by `fused`."""
    config, weight = model.config, next(model.parameters(), None)
    dropout = _DROPOUT.get(getattr(config, "model_type", ""))
    if dropout is None or config.is_decoder or weight is None or weight.device.type not in PACKS:
        return False
    if ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation) is not fused:
        return False
    if (model.training and getattr(config, dropout) > 0) or any(
        getattr(part, "gradient_checkpointing", False) for part in model.modules()
    ):  # what is computed again for its gradient would know nothing of the packing
        return False
    return not weight.is_cuda or (_known_to_the_kernel(config, weight) and _kernel_runs(weight.device))


def packing_of(lengths: np.ndarray, device: torch.device) -> Packing:
    """lengths [n], each at least 1, on the CPU."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return Packing(
        to_device(torch.from_numpy(starts.astype(np.int32)), device),
        to_device(torch.from_numpy(positions), device),
        int(lengths.max()),
    )


@contextmanager
def packed(packing: Packing, encoder: Any = None, answers: Packing | None = None) -> Iterator[None]:
    """Inside the block a row of the packing's length is attended to sequence by sequence. encoder: BART's, to which
    positions can be handed in no other way. answers: a decoder's rows, of which row i reads sequence i."""
    token = _PACKINGS.set((packing, answers))
    hook = None
    if encoder is not None:
        given = {"position_ids": packing.positions}
        hook = encoder.embed_positions.register_forward_pre_hook(
            lambda _, inputs, named: (inputs, named | given), with_kwargs=True
        )
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        _PACKINGS.reset(token)


def _attend_packed(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor | None:
    """[rows, length, heads, dim per head]; None where these are no packed sequences.

    key, value [1, heads, total, dim per head] of n packed sequences; query the same, or [n, heads, length, dim per
    head], whose row i reads sequence i. n is at least 2, so that a row each is told from all in one row.
    """
    packings = _PACKINGS.get()
    if packings is None or len(key) != 1:
        return None
    packing, answers = packings
    rows, heads, length, head_dim = query.shape
    asked = packing if rows == 1 else answers
    assert asked is not None
    attend = _kernel if query.is_cuda else _one_by_one
    scale = head_dim**-0.5 if scaling is None else scaling
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    read = attend(query, key, value, asked, packing, scale)
    return read.view(rows, length, heads, head_dim)


def fused(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
    """Attention by torch's kernels, of packed sequences and of others, as transformers asks for it."""
    if (read := _attend_packed(query, key, value, rest.get("scaling"))) is not None:
        return read, None
    return sdpa_attention_forward(module, query, key, value, mask, **rest)


def pooled(model: Any, ids: Tensor, lengths: np.ndarray, pooling: str) -> Tensor:
    """An encoder's states fp32 of n sequences that stand one behind the other in ids [total], pooled ("mean", "cls" or
    "last"): [n, dim]. lengths [n], on the CPU."""
    packing = packing_of(lengths, ids.device)
    of_bart = hasattr(model, "embed_positions")
    with packed(packing, model if of_bart else None):
        run = partial(model, input_ids=ids[None], **({} if of_bart else {"position_ids": packing.positions[None]}))
        states = with_weights_cast(model, run).last_hidden_state[0].float()
    if pooling == "mean":
        return torch.segment_reduce(states, "mean", offsets=packing.starts.long(), axis=0, unsafe=True)
    return states[packing.starts[:-1] if pooling == "cls" else packing.starts[1:] - 1]


def _kernel(query: Tensor, key: Tensor, value: Tensor, asked: Packing, read: Packing, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # torch has it from 2.10 on

    query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    found = varlen_attn(query, key, value, asked.starts, read.starts, asked.longest, read.longest, scale=scale)
    assert isinstance(found, Tensor)
    return found


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, asked: Packing, read: Packing, scale: float) -> Tensor:
    cut = [
        part.transpose(0, 1).tensor_split(packing.starts[1:-1].long(), dim=1)
        for part, packing in ((query, asked), (key, read), (value, read))
    ]
    found = [nn.functional.scaled_dot_product_attention(q, k, v, scale=scale) for q, k, v in zip(*cut, strict=True)]
    return torch.cat(found, 1).transpose(0, 1)


def _known_to_the_kernel(config: Any, weight: Tensor) -> bool:
    """Whether the kernel knows the type of the products and the width of the heads."""
    kind, heads = weight.device.type, config.num_attention_heads
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    widths = {config.hidden_size // n for n in (heads, getattr(config, "decoder_attention_heads", heads))}
    return dtype in (torch.bfloat16, torch.float16) and all(width % 8 == 0 and width <= 256 for width in widths)


@cache
def _kernel_runs(device: torch.device) -> bool:
    """Tried once, forwards and backwards: where it fails, sequences are padded as before, and that is said."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        try:
            states = torch.zeros(4, 1, 192, device=device, dtype=torch.bfloat16, requires_grad=True)
            packing = packing_of(np.array([1, 3]), states.device)
            query, key, value = states.chunk(3, -1)  # views, as of joined projections
            _kernel(query, key, value, packing, packing, 1.0).sum().backward()
        except Exception as error:  # a torch without it, a GPU that it does not know
            said = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"attention without padding cannot run ({said}): sequences are padded", stacklevel=2)
            return False
    return True
