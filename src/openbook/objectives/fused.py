"""The marginal likelihood without the logits: vocabulary head, loss and gradient in one pass over chunks of questions.

The plain formula keeps logits [batch, n_docs, target_len, vocab] and their gradient; only the label's log-probability
is ever used. All passages of a question go through the head together here, so a chunk of questions knows its marginal
and with it its own gradient, and no chunk's logits outlive it:

    logits -> token_logprobs -> objective -> g = d loss / d token_logprobs    (small: [questions, n_docs, target_len])
    residual = softmax(logits) - target = -d token_logprobs / d logits
    d hidden = -g * (residual @ head_weight)
    d head_weight = residual^T @ (-g * hidden)
    d head_bias = residual^T @ -g

The residual is written over the logits before g is known; g scales the thin sides of the two products. The head sees
real targets of passages that are there, never padding. Chunks are whole questions. A question with more logits than a
chunk holds goes through in pieces, twice: once for its token_logprobs, once more for the gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from openbook.batch import to_device
from openbook.errors import OpenBookError
from openbook.objectives.vocabulary_head import VocabularyHead, chunk_bytes_of

# (token_logprobs [batch, n_docs, target_len], doc_scores [batch, n_docs], target_mask [batch, target_len]) -> [batch];
# each question's value depends on its own rows alone, as all of openbook.objectives does.
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


class FusedLoss(NamedTuple):
    """loss: scalar, sum_b weight_b * nll_b. nll [batch] and token_logprobs [batch, n_docs, target_len] are for looking
    at and carry no gradient; token_logprobs are without label smoothing, and 0 at padding and at missing passages."""

    loss: Tensor
    nll: Tensor
    token_logprobs: Tensor


def fused_marginal_nll(
    hidden: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    labels: Tensor,
    doc_scores: Tensor,
    objective: Objective,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk_bytes: int | None = None,
    retain: bool = False,
    counted: Tensor | None = None,
) -> FusedLoss:
    """objective(token_logprobs_of(hidden @ head_weight.T + head_bias, labels), doc_scores, labels >= 0) @ weight.

    hidden [batch, n_docs, target_len, dim], head_weight [vocab, dim], head_bias [vocab] or None, labels [batch,
    target_len] (negative: padding), doc_scores [batch, n_docs] (-inf: no passage), weight [batch], 1 by default. Under
    autocast the products run in its type; log-softmax and objective in fp32 at least (fp64 for fp64 hidden states).
    A question whose nll is inf (it has no passage) or whose weight is 0 adds nothing to the loss and has no gradient.
    A missing passage is not read, so that an objective must not count it.

    counted [batch, n_docs, target_len] bool on the CPU: where labels are no padding and passages not missing; without
    it, it is found out from labels and doc_scores, for which a GPU is waited for.

    The gradient is computed here, for hidden, head_weight, head_bias and doc_scores, whichever want one, and handed
    over by backward: it goes to the leaves once, unless `retain` keeps it for more (retain_graph). There is no second
    derivative. At most chunk_bytes of logits are held at a time (one target position at least; None: what suits the
    device). Raises OpenBookError on axes and types that do not agree.
    """
    weight = doc_scores.new_ones(len(hidden)) if weight is None else weight.detach()
    _check(hidden, head_weight, head_bias, labels, doc_scores, weight)
    inputs = (hidden, head_weight, head_bias, doc_scores)
    wanted = [torch.is_grad_enabled() and value is not None and value.requires_grad for value in inputs]
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        most = chunk_bytes or chunk_bytes_of(hidden.device)
        found, gradients = _forward(*inputs, labels, weight, objective, label_smoothing, most, counted, wanted, dtype)
    return found._replace(loss=_WithGradient.apply(found.loss, gradients, retain, *inputs))


class _WithGradient(torch.autograd.Function):
    """The loss, which on its way back hands over the gradients of the inputs, computed already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], retain: bool, *inputs: Tensor | None) -> Tensor:
        ctx.gradients, ctx.retain = gradients, retain
        ctx.dtypes = [None if value is None else value.dtype for value in inputs]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise OpenBookError(
                "the fused loss has no second derivative",
                where="create_graph=True",
                action="Use openbook.objectives on the logits.",
            )
        gradients = ctx.gradients
        if gradients is None:
            raise OpenBookError(
                "the fused loss has handed its gradient over",
                where="a second backward",
                action="Pass retain=True to fused_marginal_nll.",
            )
        # Scaled in place where the values are not needed again: the head's gradient is as large as the head.
        if ctx.retain:
            gradients = [None if value is None else value * upstream for value in gradients]
        else:
            ctx.gradients = None
            if upstream.device.type != "cpu" or upstream.item() != 1:  # elsewhere than on a CPU, asking would wait
                gradients = [None if value is None else value.mul_(upstream) for value in gradients]
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return None, None, None, *(None if value is None else value.to(dtype) for value, dtype in pairs)


@torch.no_grad()
def _forward(
    hidden: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    doc_scores: Tensor,
    labels: Tensor,
    weight: Tensor,
    objective: Objective,
    label_smoothing: float,
    chunk_bytes: int,
    counted: Tensor | None,
    wanted: Sequence[bool],
    dtype: torch.dtype,
) -> tuple[FusedLoss, list[Tensor | None]]:
    """The loss, and the gradients that are wanted of the first four."""
    batch, n_docs, target_len, dim = hidden.shape
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    target_mask = labels >= 0
    if counted is None:
        counted = (target_mask[:, None] & (doc_scores != -torch.inf)[:, :, None]).cpu()
    rows = to_device(counted.flatten().nonzero()[:, 0], hidden.device)
    row_labels = labels[:, None].expand(counted.shape).flatten()[rows]
    flat_hidden = hidden.reshape(-1, dim)
    head = VocabularyHead(head_weight, head_bias, dtype, exact)
    learning = any(wanted)
    token_logprobs = hidden.new_zeros(counted.shape, dtype=exact)
    plain = torch.zeros_like(token_logprobs) if label_smoothing else token_logprobs
    nll, loss = hidden.new_zeros(batch, dtype=exact), hidden.new_zeros((), dtype=exact)
    d_hidden = torch.zeros_like(flat_hidden, dtype=exact) if wanted[0] else None
    d_weight = head.new_gradient() if wanted[1] else None
    d_bias = torch.zeros_like(head_bias, dtype=exact) if wanted[2] and head_bias is not None else None
    d_scores = torch.zeros_like(doc_scores) if wanted[3] else None

    most = max(1, chunk_bytes // (len(head_weight) * dtype.itemsize))
    for questions, of_rows in _chunks(counted.sum((1, 2)).tolist(), most):
        pieces = list(zip(rows[of_rows].split(most), row_labels[of_rows].split(most), strict=True))
        keep = any(wanted[:3]) and len(pieces) == 1
        for piece, piece_labels in pieces:
            residual, *logprobs = head(flat_hidden[piece], piece_labels, smoothing=label_smoothing, keep=keep)
            token_logprobs.view(-1)[piece], plain.view(-1)[piece] = logprobs

        small = token_logprobs[questions].clone().requires_grad_(learning)
        scores = doc_scores[questions].clone().requires_grad_(learning)
        with torch.set_grad_enabled(learning):
            each = objective(small, scores, target_mask[questions])
            learns = (each != torch.inf) & (weight[questions] != 0)
            total = (torch.where(learns, each, 0.0) * weight[questions]).sum()
        nll[questions] = each
        loss += total
        if not learning:
            continue
        d_small, some_scores = torch.autograd.grad(total, (small, scores), allow_unused=True, materialize_grads=True)
        if d_scores is not None:
            d_scores[questions] = some_scores
        first = questions.start * n_docs * target_len
        for piece, piece_labels in pieces if any(wanted[:3]) else ():
            states = flat_hidden[piece]
            if not keep:
                residual = None  # the last piece's, before the next is made
                residual, *_ = head(states, piece_labels, smoothing=label_smoothing, keep=True)
            assert residual is not None
            scale = -d_small.flatten()[piece - first].to(exact)
            d_states = torch.zeros_like(states, dtype=exact) if d_hidden is not None else None
            scaled = (states * scale[:, None]).to(dtype) if d_weight is not None else None
            head.add_gradients(residual, scaled, d_states, d_weight)
            if d_hidden is not None and d_states is not None:
                d_hidden[piece] = d_states.mul_(scale[:, None])
            if d_bias is not None:
                d_bias += (scale.to(dtype) @ residual).to(exact)[: head.vocab]
        del residual  # before the next chunk's are made
    found = FusedLoss(loss, nll, plain)
    if d_weight is not None and len(d_weight) > head.vocab:
        d_weight = d_weight[: head.vocab]
    return found, [None if d_hidden is None else d_hidden.view(hidden.shape), d_weight, d_bias, d_scores]


def _chunks(rows_of: Sequence[int], most: int) -> Iterator[tuple[slice, slice]]:
    """Questions, in their order, cut into chunks of at most `most` rows (one question at least), and their rows."""
    first = start = stop = 0
    for number, n in enumerate(rows_of):
        if stop + n - start > most and number > first:
            yield slice(first, number), slice(start, stop)
            first, start = number, stop
        stop += n
    if rows_of:
        yield slice(first, len(rows_of)), slice(start, stop)


def _check(
    hidden: Tensor, head_weight: Tensor, head_bias: Tensor | None, labels: Tensor, doc_scores: Tensor, weight: Tensor
) -> None:
    batch, n_docs, target_len, dim = hidden.shape if hidden.dim() == 4 else (-1, -1, -1, -1)
    vocab, bias_shape = len(head_weight), None if head_bias is None else tuple(head_bias.shape)
    axes = {
        "hidden": (hidden, (batch, n_docs, target_len, dim)),
        "head_weight": (head_weight, (vocab, dim)),
        "labels": (labels, (batch, target_len)),
        "doc_scores": (doc_scores, (batch, n_docs)),
        "weight": (weight, (batch,)),
    }
    if any(value.shape != right for value, right in axes.values()) or bias_shape not in (None, (vocab,)):
        raise OpenBookError(
            "axes do not agree",
            got="".join(f"{name} {tuple(value.shape)}, " for name, (value, _) in axes.items())
            + f"head_bias {bias_shape}",
            expected="[batch, n_docs, target_len, dim], [vocab, dim], [batch, target_len], [batch, n_docs], [batch], "
            "[vocab]",
        )
    if labels.is_floating_point():
        raise OpenBookError("labels have the wrong type", got=labels.dtype, expected="torch.int64")
    if hidden.dtype != head_weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise OpenBookError(
            "hidden states and head have different types",
            got=f"hidden {hidden.dtype}, head_weight {head_weight.dtype}",
            expected="the same, or autocast",
        )
