"""The weights of a model's products cast to autocast's type all at once, and those of a self-attention joined.

Autocast casts every weight and every bias where it is first used, and its gradient back: some 400 small launches for
BART-base in each step, for which a GPU waits. Here they are one launch there and one back. Queries, keys and values of
a self-attention are products of the same states, and become one product. The numbers are autocast's: a weight that
several passes use is cast once and its gradients are added up in autocast's type, either way; only the states' gradient
is rounded once instead of three times.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

CASTS_ONCE = {"cuda"}  # kinds of devices; a CPU has no launches to save

# What models call the projections of a self-attention, and the modules whose keys are of other states.
_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))
_CROSS = ("encoder_attn", "EncDecAttention", "crossattention")

Result = TypeVar("Result")


def with_weights_cast(model: nn.Module, run: Callable[[], Result], but: Tensor | None = None) -> Result:
    """run(), during which the fp32 weights of model's linear layers are those of autocast's type, on devices where that
    pays and where a gradient is recorded. but: a weight that stays as it is, for who else uses it.

    A model whose layers are computed again for their gradient keeps its weights: they would then be others.
    """
    first = next(model.parameters(), None)
    kind = "" if first is None else first.device.type
    if kind not in CASTS_ONCE or not (torch.is_grad_enabled() and torch.is_autocast_enabled(kind)):
        return run()
    kept = any(hasattr(value, "to_local") for value in model.parameters())  # in parts: whole inside their layers alone
    again = ("gradient_checkpointing", "checkpointing")  # transformers' name, and the small reader's
    if kept or any(getattr(part, name, False) for part in model.modules() for name in again):
        return run()
    joined = list(_self_attentions(model, but))
    single = _castable(model, but, {id(weight) for parts in joined for part in parts for weight in part.parameters()})
    groups = [[part.weight for part in parts] for parts in joined]
    groups += [[part.bias for part in parts] for parts in joined if parts[0].bias is not None]
    groups += [[weight] for weight in single.values()]
    casts = _cast(torch.get_autocast_dtype(kind), groups)
    biases = iter(casts[len(joined) :])
    with ExitStack() as stack:
        for parts, weight in zip(joined, casts, strict=False):
            _Joined(parts, weight, next(biases) if parts[0].bias is not None else None, stack)
        named = {f"model.{name}": cast for name, cast in zip(single, biases, strict=True)}
        return functional_call(_Running(model), named, (run,), tie_weights=False)


def hold_in_bf16(model: nn.Module) -> None:
    """Weights that are numbers in bf16 from here on, but for those of adapters and those in fewer bits. Buffers stay
    as they are, for among them are the frequencies of positions, but for a bias that is added to logits."""
    for name, value in model.named_parameters():
        if value.is_floating_point() and ".lora_" not in name:
            value.data = value.data.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("final_logits_bias"):
            buffer.data = buffer.data.to(torch.bfloat16)


def _cast(dtype: torch.dtype, groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Each group as one tensor; frozen weights, as those under adapters, apart: no gradient is made of them."""
    made: dict[int, Tensor] = {}
    for learns in (True, False):
        some = [n for n, group in enumerate(groups) if group[0].requires_grad == learns]
        if some:
            with torch.set_grad_enabled(learns):
                casts = _CastAll.apply(dtype, [len(groups[n]) for n in some], *chain(*(groups[n] for n in some)))
            made |= zip(some, casts, strict=True)
    return [made[n] for n in range(len(groups))]


def _self_attentions(model: nn.Module, but: Tensor | None) -> Iterator[list[nn.Linear]]:
    """The three projections of each, all of one shape and in fp32."""
    for name, part in model.named_modules():
        # Longformer and LED scale their queries in place, which a part of a product does not allow.
        for names in () if name.endswith(_CROSS) or hasattr(part, "query_global") else _PROJECTIONS:
            parts = [getattr(part, own, None) for own in names]
            if all(isinstance(one, nn.Linear) and one.weight is not but for one in parts):
                kinds = {
                    (one.weight.dtype, one.weight.shape, one.weight.requires_grad, one.bias is None)  # type: ignore[union-attr]
                    for one in parts
                }
                if len(kinds) == 1 and next(iter(kinds))[0] == torch.float32:
                    yield parts  # type: ignore[misc]


def _castable(model: nn.Module, but: Tensor | None, taken: set[int]) -> dict[str, Tensor]:
    """By their names, each once: weights and biases in fp32 that nothing but linear layers reads."""
    taken = taken | {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)} | {id(but)}
    found: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        for own, weight in part.named_parameters(recurse=False) if isinstance(part, nn.Linear) else ():
            if weight.dtype == torch.float32 and id(weight) not in taken:
                taken.add(id(weight))
                found[f"{name}.{own}" if name else own] = weight
    return found


class _Joined:
    """Three layers whose outputs come from one product where they are given the same states, one after the other."""

    def __init__(self, parts: Sequence[nn.Linear], weight: Tensor, bias: Tensor | None, stack: ExitStack):
        self.weight, self.bias = weight, bias
        self.states: Tensor | None = None
        self.outputs: list[Tensor] = []
        for place, part in enumerate(parts):
            part.forward = lambda states, place=place: self(states, place)  # type: ignore[method-assign, misc]
            stack.callback(part.__dict__.pop, "forward")

    def __call__(self, states: Tensor, place: int) -> Tensor:
        if self.states is not states:
            self.states = states
            self.outputs = list(nn.functional.linear(states, self.weight, self.bias).chunk(3, -1))
        output = self.outputs[place]
        if place == 2:  # the last that is asked for
            self.states, self.outputs = None, []
        return output


class _Running(nn.Module):
    """Stands around a model, so that something is run with other weights in it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], Result]) -> Result:
        return run()


class _CastAll(torch.autograd.Function):
    """Tensors in another type, groups of them one below the other; their gradients in fp32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, sizes: list[int], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.sizes = sizes
        made, left = [], iter(weights)
        for size in sizes:
            first = next(left)
            made.append(torch.empty((size * len(first), *first.shape[1:]), dtype=dtype, device=first.device))
            for _ in range(size - 1):
                next(left)
        torch._foreach_copy_(_parts(made, sizes), list(weights))
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [(one, size) for one, size in zip(gradients, ctx.sizes, strict=True) if one is not None]
        given = _parts([one for one, _ in there], [size for _, size in there])
        back = [torch.empty(one.shape, dtype=torch.float32, device=one.device) for one in given]
        if back:
            torch._foreach_copy_(back, given)
        each = iter(back)
        counts = ((one is not None, size) for one, size in zip(gradients, ctx.sizes, strict=True))
        return None, None, *(next(each) if known else None for known, size in counts for _ in range(size))


def _parts(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    return [part for one, size in zip(tensors, sizes, strict=True) for part in one.chunk(size)]
