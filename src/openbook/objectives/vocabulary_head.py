"""The vocabulary head of one chunk: log-probabilities of the labels, and the residual that gradients are made of."""

import torch
from torch import Tensor


def through_head(
    hidden: Tensor,
    labels: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None,
    smoothing: float,
    exact: torch.dtype,
    keep: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """hidden [n, dim], labels [n] -> residual [n, vocab] (None unless kept), the label's log-probability [n], smoothed
    as openbook.objectives.token_logprobs_of does, and as it is.

    The product is in weight's type, what follows it in `exact`, as bias is. The logits' memory becomes the residual's,
    a few rows at a time: on a CPU these stay in its cache from the bias to the residual."""
    logits = hidden.to(weight.dtype) @ weight.T
    n, vocab = logits.shape
    plain = hidden.new_empty(n, dtype=exact)
    logprobs = torch.empty_like(plain) if smoothing else plain
    for some in slices(n, vocab * exact.itemsize, hidden):
        block, index = logits[some].to(exact), labels[some, None]
        if bias is not None:
            block = block + bias
        top = block.amax(-1)
        softmax = block.softmax(-1)
        # The largest probability is at least 1 / vocab: unlike the label's, its logarithm is safe.
        top_logprob = softmax.amax(-1).log()
        logprob = block.gather(-1, index)[:, 0] - top + top_logprob
        plain[some] = logprob
        if smoothing:
            logprobs[some] = (1 - smoothing) * logprob + smoothing * (block.mean(-1) - top + top_logprob)
        if keep:
            if smoothing:
                softmax -= smoothing / vocab
            # p - 1 without cancellation, also before rounding
            at_label = logprob.expm1() + smoothing - smoothing / vocab
            logits[some] = softmax.scatter_(-1, index, at_label[:, None])
    return logits if keep else None, logprobs, plain


def slices(n: int, row_bytes: int, on: Tensor) -> list[slice]:
    """n rows, some at a time: on a CPU what its cache holds, elsewhere enough to be busy with."""
    at_once = max(1, (2 * 2**20 if on.device.type == "cpu" else 64 * 2**20) // row_bytes)
    return [slice(start, start + at_once) for start in range(0, n, at_once)]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, added up in total's type."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
