"""Cross-attention in which several beams read one context, for transformers' encoder-decoders, when nothing is trained.

Two ways, both exact. With target_len > 1 (scoring) keys and values are projected once per context, and the queries of
its beams stand side by side on the query axis. Token by token there are no keys and values at all. For head h,

    q . (W_k m + b_k) = (W_k^T q) . m + const     and     sum_j p_j (W_v m_j + b_v) = W_v (sum_j p_j m_j) + b_v,

and softmax drops the constant: the projections move to the side of the few queries, and what is attended to is the
encoder's output m itself, for all heads and all layers (the absorption of DeepSeek-V2, 2024, section 2.1.2). That
saves 2 * layers * dim numbers per context token and the work of making them, which is that of about dim / heads queries
per context (64 for BART-base: 16 tokens of 4 beams); of longer answers the plain way would need fewer operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "openbook_shared"

_CROSS = ("encoder_attn", "EncDecAttention")
"""What BART's and T5's relatives call their cross-attention."""


def cross_attentions(model: Any) -> int:
    """How many cross-attention layers can be shared: all the decoder has, or 0 where the model does it otherwise."""
    found = [part for name, part in model.get_decoder().named_modules() if name.endswith(_CROSS)]
    known = all(_projections(part) is not None for part in found)
    return len(found) if known and model._can_set_attn_implementation() else 0


@contextmanager
def shared(model: Any) -> Iterator[None]:
    """Inside the block the model attends by this module's function, outside as it was built to."""
    parts = (model, model.get_encoder(), model.get_decoder())
    configs = {id(part.config): part.config for part in parts}.values()
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def cache_over(memory: Tensor, layers: int) -> EncoderDecoderCache:
    """An empty cache for decoding token by token, whose cross-attention is over memory [n, context_len, dim] itself."""
    cross = DynamicCache()
    for _ in range(layers):
        layer = DynamicLayer()
        layer.keys = layer.values = memory
        layer.is_initialized = True
        cross.layers.append(layer)
    return EncoderDecoderCache(DynamicCache(), cross)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, position_bias: Tensor | None = None, **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """[rows, target_len, heads, dim per head], as transformers asks of an attention function.

    query [rows, heads, target_len, dim per head]. key and value [rows, heads, length, dim per head], or the same with
    n rows, where rows = n * beams, or key is memory [n, context_len, dim]. position_bias: [1, heads, target_len,
    length].
    """
    if key.dim() == 4 and len(query) == len(key):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **rest
        )
    rows, heads, target_len, head_dim = query.shape
    n = len(key)
    beams = rows // n
    scaling = head_dim**-0.5 if scaling is None else scaling
    bias = None if attention_mask is None else _additive(attention_mask, query.dtype)
    if position_bias is not None and module.has_relative_attention_bias:  # else it is T5's zeros
        tiled = position_bias.repeat(1, 1, beams, 1).to(query.dtype)
        bias = tiled if bias is None else bias + tiled
    if key.dim() == 4:
        folded = query.view(n, beams, heads, target_len, head_dim).transpose(1, 2).reshape(n, heads, -1, head_dim)
        read = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=bias, scale=scaling)
        read = read.view(n, heads, beams, target_len, head_dim).permute(0, 2, 3, 1, 4)
    else:
        read = _absorbed(module, query, key, bias, scaling)
    return read.reshape(rows, target_len, heads, head_dim), None


def _absorbed(module: nn.Module, query: Tensor, memory: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """[n, beams * target_len, heads, dim per head] read from memory [n, context_len, dim]."""
    rows, heads, target_len, head_dim = query.shape
    n, context_len, dim = memory.shape
    queries = rows // n * target_len  # of one context and one head
    projections = _projections(module)
    assert projections is not None
    key, value = projections
    flat = query.permute(1, 0, 2, 3).reshape(heads, rows * target_len, head_dim)
    wanted = (flat * scaling) @ key.weight.view(heads, head_dim, dim).to(flat.dtype)
    wanted = wanted.view(heads, n, queries, dim).transpose(0, 1).reshape(n, heads * queries, dim)
    memory = memory.to(wanted.dtype)
    scores = (wanted @ memory.transpose(1, 2)).view(n, heads, queries, context_len)
    if bias is not None:
        scores += bias
    weights = scores.softmax(-1).to(memory.dtype).view(n, heads * queries, context_len)
    read = (weights @ memory).view(n, heads, queries, dim).transpose(0, 1).reshape(heads, n * queries, dim)
    read = read @ value.weight.view(heads, head_dim, dim).to(read.dtype).transpose(1, 2)
    if value.bias is not None:
        read = read + value.bias.view(heads, 1, head_dim)
    return read.view(heads, n, queries, head_dim).permute(1, 2, 0, 3)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add; finite, so that a context of padding alone gives numbers too."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _projections(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """What makes keys and values, by the names that BART's and T5's relatives give them."""
    for names in (("k_proj", "v_proj"), ("k", "v")):
        pair = tuple(getattr(module, name, None) for name in names)
        if all(isinstance(part, nn.Linear) for part in pair):
            return pair  # type: ignore[return-value]
    return None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
