"""Softmax, the label's log-probability and the residual in two readings of the logits: a Triton kernel.

The same by torch's operators reads or writes numbers of twice the size some ten times (`VocabularyHead._by_torch`).
With x = logits + bias in fp32, m = max_j x_j, s = sum_{j != label} exp(x_j - m) and t = s + exp(x_label - m):

    log p(label)   = x_label - m - log t
    residual_j     = exp(x_j - m) / t - eps / vocab
    residual_label = -s / t + eps - eps / vocab          p - 1 without cancellation

eps: label smoothing. Numbers are rounded to the logits' type only when the residual is written over them. One program
is one row; the second reading finds most of it in the GPU's cache.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # words at a time
_LOW = tl.constexpr(-3.0e38)  # below any logit: where a place has seen none


@triton.jit
def _row(  # type: ignore[no-untyped-def]
    logits,
    labels,
    bias,
    smoothed,
    plain,
    vocab,
    stride,
    smoothing,
    has_bias: tl.constexpr,
    smooths: tl.constexpr,
    keep: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start, label = logits + row * stride, tl.load(labels + row)
    # Read before the loops: between their reductions the warps of a row wait for each other, and none is left behind to
    # read this when another has written the residual over it.
    at_label = tl.load(start + label).to(tl.float32)
    if has_bias:
        at_label += tl.load(bias + label)
    places = tl.arange(0, block)
    largest = tl.full((block,), _LOW, tl.float32)
    others = tl.zeros((block,), tl.float32)
    total = tl.zeros((block,), tl.float32)
    for first in range(0, vocab, block):
        words = first + places
        there = words < vocab
        # Masked by the stride, of which 16 is a divisor where the head is padded: such loads are of 16 bytes.
        x = tl.load(start + words, mask=words < stride, other=0.0).to(tl.float32)
        if has_bias:
            x += tl.load(bias + words, mask=words < stride, other=0.0)
        x = tl.where(there, x, _LOW)
        new = tl.maximum(largest, x)
        more = tl.where(there & (words != label), tl.exp(x - new), 0.0)
        others = others * tl.exp(largest - new) + more
        total += tl.where(there, x, 0.0)
        largest = new
    top = tl.max(largest, 0)
    rest = tl.sum(others * tl.exp(largest - top), 0)
    weight = rest + tl.exp(at_label - top)
    logprob = at_label - top - tl.log(weight)
    tl.store(plain + row, logprob)
    if smooths:
        mean = tl.sum(total, 0) / vocab - top - tl.log(weight)
        tl.store(smoothed + row, (1 - smoothing) * logprob + smoothing * mean)
    if keep:
        for first in range(0, stride, block):
            words = first + places
            there = words < vocab
            x = tl.load(start + words, mask=words < stride, other=0.0).to(tl.float32)
            if has_bias:
                x += tl.load(bias + words, mask=words < stride, other=0.0)
            residual = tl.where(words == label, smoothing - rest / weight, tl.exp(x - top) / weight)
            residual = tl.where(there, residual - smoothing / vocab, 0.0)
            tl.store(start + words, residual.to(logits.dtype.element_ty), mask=words < stride)


def residual_and_logprobs(
    logits: Tensor, labels: Tensor, bias: Tensor | None, vocab: int, smoothing: float, keep: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """logits [n, at least vocab] of bf16, fp16 or fp32 with rows side by side, labels [n], bias fp32 as long as a row
    or None -> what `VocabularyHead` gives: the residual in the logits' memory, 0 beyond vocab, and fp32
    log-probabilities."""
    n, stride = logits.shape
    plain = torch.empty(n, dtype=torch.float32, device=logits.device)
    smoothed = torch.empty_like(plain) if smoothing else plain
    if n:
        kernel: Any = _row[(n,)]
        how = {"has_bias": bias is not None, "smooths": smoothing != 0, "keep": keep, "block": _BLOCK}
        kernel(logits, labels, bias, smoothed, plain, vocab, stride, smoothing, **how)
    return logits if keep else None, smoothed, plain
