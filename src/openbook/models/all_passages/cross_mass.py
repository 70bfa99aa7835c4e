"""What the decoder's cross-attention reads, token by token of the contexts: attention distillation's measure.

For a head with attention weights a_j and value vectors v_j, context token j gives a_j |v_j| of what is read (Izacard et
al. 2022, section 2.2); the mean over heads and layers is taken.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openbook.models import attention
from openbook.models.seq2seq import Seq2SeqGenerator
from openbook.models.small_reader.model import MiniLMReader


class Watch:
    """Filled while `watched`: [rows, target_len, context_len] of every cross-attention layer that ran."""

    def __init__(self) -> None:
        self.layers = list[Tensor]()

    def take(self) -> Tensor:
        """The mean over the layers that ran since the last time."""
        mean = torch.stack(self.layers).mean(0)
        self.layers.clear()
        return mean

    def note(self, scores: Tensor, values: Tensor) -> None:
        """Scores [rows, heads, target_len, context_len], values [rows, heads, context_len, dim per head]."""
        norms = values.float().norm(dim=-1)[:, :, None]
        self.layers.append((scores.float().softmax(-1) * norms).mean(1))


def has_cross_attention(generator: nn.Module) -> bool:
    """Whether the generator's cross-attention can be watched."""
    fused = isinstance(generator, Seq2SeqGenerator) and generator.shared_layers > 0
    return fused or isinstance(generator, MiniLMReader)


@contextmanager
def watched(generator: nn.Module) -> Iterator[Watch]:
    """Inside the block decode() notes what its cross-attention reads: of several target tokens at once, one answer for
    each context, and without a gradient."""
    watch = Watch()
    if isinstance(generator, MiniLMReader):
        cross: list[Any] = [part for name, part in generator.decoder.named_modules() if name.endswith("cross")]
        hooks = [part.register_forward_pre_hook(lambda part, read: _small_reader(watch, part, *read)) for part in cross]
        try:
            yield watch
        finally:
            for hook in hooks:
                hook.remove()
        return
    assert isinstance(generator, Seq2SeqGenerator)
    modules = {id(part) for part in attention.cross_modules(generator.model)}

    def observe(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        position_bias: Tensor | None,
    ) -> None:
        if id(module) in modules:
            watch.note(attention.scores_of(query, key, mask, scaling, position_bias), value)

    attention.observers.append(observe)
    try:
        yield watch
    finally:
        attention.observers.remove(observe)


def _small_reader(watch: Watch, part: Any, states: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> None:
    watch.note(part.scores(states, keys, bias), values)
