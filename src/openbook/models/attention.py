"""Attention for transformers' models, as fast and as small as it gets on this machine, and exact.

Models that compute attention by a function that can be exchanged get it; those that write their own keep it.

On a CPU it is plain matmuls in the type of the queries (`benchmarks.attention`): torch's fused kernel is slower there,
most of all with a gradient, and transformers' own plain function adds masks in fp32, so that under autocast scores and
probabilities become fp32 and are kept twice. On a GPU it is torch's fused kernel, with masks that are handed to it
unseen: to leave out one that hides nothing, transformers would ask the GPU and wait for its answer in every pass.

Cross-attention has two more ways. Several beams may read one context: with keys and values projected once per context,
the queries of its beams stand side by side on the query axis. Or there are no keys and values at all. For head h,

    q . (W_k m + b_k) = (W_k^T q) . m + const     and     sum_j p_j (W_v m_j + b_v) = W_v (sum_j p_j m_j) + b_v,

and softmax drops the constant: the projections move to the side of the few queries, and what is attended to is the
encoder's output m itself, for all heads and all layers (the absorption of DeepSeek-V2, 2024, section 2.1.2). That
saves 2 * layers * dim numbers per context token and the work of making them, which is that of about dim / heads queries
per context (64 for BART-base: 16 tokens of 4 beams); of longer answers the plain way needs fewer operations.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from openbook.models.passes.packed import fused

NAME = "openbook"

UNSEEN = "openbook_unseen"  # torch's fused kernel, with masks that nobody waits for.

# Time per operation of absorbed over plain cross-attention, with gradient on a CPU (`benchmarks.attention`).
ABSORBING_COSTS = 1.3

# Called with what `attend` gets, for who wants to see it (models/all_passages/cross_mass.py).
observers = list[Callable[..., None]]()

_CROSS = ("encoder_attn", "EncDecAttention")  # What BART's and T5's relatives call their cross-attention.


def implementation() -> str:
    """What models attend by where they can: this module's function on a CPU, torch's fused kernel on a GPU."""
    return UNSEEN if torch.cuda.is_available() else NAME


def use_implementation(model: Any) -> None:
    """Have a transformers model, loaded with "eager", attend by `implementation`, if its attention is exchangeable."""
    if _exchangeable(model):
        model.set_attn_implementation(implementation())


def _exchangeable(model: Any) -> bool:
    """Models that support none of transformers' other functions compute attention themselves, and read masks their own
    way, although some of them can be told to use another."""
    return bool(model._supports_sdpa and model._can_set_attn_implementation())


def absorbing_pays(model: Any, target_len: int, context_len: int) -> bool:
    """Whether a training step on a CPU is faster without keys and values, given the model attends by this module. A
    layer that is checkpointed refuses the cache that says so."""
    decoder = model.get_decoder()
    if decoder.config._attn_implementation != NAME or any(
        getattr(part, "gradient_checkpointing", False) for part in decoder.modules()
    ):
        return False
    cross = cross_modules(model)[0]
    inner, dim = _projections(cross)[0].weight.shape  # type: ignore[index]
    heads = getattr(model.config, "decoder_attention_heads", None) or model.config.num_attention_heads
    plain, absorbed = cross_attention_costs(dim, inner, heads, target_len, context_len)
    return ABSORBING_COSTS * absorbed < plain


def cross_attention_costs(dim: int, inner: int, heads: int, target_len: int, context_len: int) -> tuple[int, int]:
    """Multiply-adds of one context's cross-attention in a layer, its own queries and outputs left out: keys and values
    projected and read, and without them. inner: heads * dim per head."""
    plain = 2 * context_len * inner * (dim + target_len)
    absorbed = 2 * target_len * dim * (inner + heads * context_len)
    return plain, absorbed


def cross_modules(model: Any) -> list[nn.Module]:
    """The decoder's cross-attention layers."""
    return [part for name, part in model.get_decoder().named_modules() if name.endswith(_CROSS)]


def cross_attentions(model: Any) -> int:
    """How many cross-attention layers can be shared: all the decoder has, or 0 where the model does it otherwise."""
    found = cross_modules(model)
    return len(found) if all(map(_projections, found)) and _exchangeable(model) else 0


@contextmanager
def shared(model: Any) -> Iterator[None]:
    """Inside the block the model attends by this module's function, outside as it was built to."""
    configs = {id(part.config): part.config for part in (model, model.get_encoder(), model.get_decoder())}.values()
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
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """[rows, target_len, heads, dim per head], as transformers asks of an attention function.

    query [rows, heads, target_len, dim per head]. key and value [rows, heads, length, dim per head], or the same with
    n rows, where rows = n * beams, or key is memory [n, context_len, dim]. position_bias: [1, heads, target_len,
    length].
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    for observe in observers:
        observe(module, query, key, value, attention_mask, scaling, position_bias)
    if key.dim() == 4 and len(query) == len(key):
        if _is_plain(module, query, key, attention_mask, rest):
            weights = scores_of(query, key, attention_mask, scaling, position_bias).softmax(-1)
            weights = nn.functional.dropout(weights, dropout, training=dropout > 0)
            return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None
        rest |= {"dropout": dropout, "scaling": scaling, "position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
    rows, heads, target_len, head_dim = query.shape
    n = len(key)
    beams = rows // n
    bias = None if attention_mask is None else _additive(attention_mask, query.dtype)
    if position_bias is not None and module.has_relative_attention_bias:  # else it is T5's zeros
        tiled = position_bias.repeat(1, 1, beams, 1).to(query.dtype)
        bias = tiled if bias is None else bias + tiled
    if key.dim() == 4:
        folded = query.view(n, beams, heads, target_len, head_dim).transpose(1, 2).reshape(n, heads, -1, head_dim)
        read = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=bias, scale=scaling)
        read = read.view(n, heads, beams, target_len, head_dim).permute(0, 2, 3, 1, 4)
    else:
        read = _absorbed(module, query, key, bias, scaling, dropout)
    return read.reshape(rows, target_len, heads, head_dim), None


def _is_plain(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, rest: dict[str, Any]) -> bool:
    """Whether `scores_of` computes what is asked for: every head its own key, and what is hidden said by the mask."""
    causal = mask is None and query.shape[2] > 1 and rest.get("is_causal", getattr(module, "is_causal", True))
    known = query.shape[1] == key.shape[1] and rest.get("softcap") is None and rest.get("s_aux") is None
    return not query.is_cuda and known and not causal


def scores_of(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, bias: Tensor | None) -> Tensor:
    """[rows, heads, target_len, length], before the softmax."""
    scores = (query * scaling) @ key.transpose(2, 3)
    for added in (bias, mask):
        if added is not None:
            scores += _additive(added, scores.dtype)
    return scores


def _absorbed(
    module: nn.Module, query: Tensor, memory: Tensor, bias: Tensor | None, scaling: float, dropout: float
) -> Tensor:
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
    weights = nn.functional.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    weights = weights.to(memory.dtype).view(n, heads * queries, context_len)
    read = (weights @ memory).view(n, heads, queries, dim).transpose(0, 1).reshape(heads, n * queries, dim)
    read = read @ value.weight.view(heads, head_dim, dim).to(read.dtype).transpose(1, 2)
    if value.bias is not None:
        shift = value.bias.view(heads, 1, head_dim)
        if dropout:  # then what is read is no mean any more
            total = weights.sum(-1).view(n, heads, queries).transpose(0, 1).reshape(heads, n * queries, 1)
            shift = shift * total
        if key.bias is not None:  # its gradient is 0, and must be there: DistributedDataParallel waits for it
            shift = shift + 0.0 * key.bias.view(heads, 1, head_dim)
        read = read + shift.to(read.dtype)
    return read.view(heads, n, queries, head_dim).permute(1, 2, 0, 3)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add; finite, so that a context of padding alone gives numbers too."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _projections(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The projections of keys and values, by the names that models like BART and T5 give them."""
    pairs = [tuple(getattr(module, name, None) for name in names) for names in (("k_proj", "v_proj"), ("k", "v"))]
    return next((pair for pair in pairs if all(isinstance(part, nn.Linear) for part in pair)), None)  # type: ignore[return-value]


def _mask(*arguments: Any, **named: Any) -> Tensor | None:
    """Bool, True at what is seen; None where all is. Never left out where causal: `scores_of` has no other word."""
    return sdpa_mask(*arguments, **(named | {"allow_is_causal_skip": False}))


def _unseen_mask(*arguments: Any, **named: Any) -> Tensor | None:
    """Added to scores, in their type: torch would make it of a bool mask in every layer. None without padding mask."""
    skips = ("allow_is_causal_skip", "allow_is_bidirectional_skip") if named.get("attention_mask") is not None else ()
    mask = sdpa_mask(*arguments, **(named | dict.fromkeys(skips, False)))
    if mask is None:
        return None
    autocast = torch.is_autocast_enabled(kind := mask.device.type)
    return _additive(mask, torch.get_autocast_dtype(kind) if autocast else named.get("dtype", torch.float32))


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
AttentionInterface.register(UNSEEN, fused)
AttentionMaskInterface.register(UNSEEN, _unseen_mask)
