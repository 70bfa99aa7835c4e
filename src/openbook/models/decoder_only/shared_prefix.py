"""The keys and values of contexts, kept once for whatever is written behind them: beams, labels, gold answers.

The tokens of all rows that read one context stand behind each other as further tokens of that context's own sequence,
and a mask lets each see the context and the earlier tokens of its own row. Positions go on from the context's end in
every row. So a context's keys and values exist once, whatever the number of rows, and the model need not know: a mask
of four axes and position ids are all that is asked of it.

    sequence of context i:   context (padded) | rows' first tokens | rows' second tokens | ...
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 16  # tokens of every row that there is room for at first; it doubles


class Prefix(NamedTuple):
    """Contexts as `encode` leaves them: ids [n, context_len] padded on the right, lengths [n], and for each layer the
    keys and values [n, kv_heads, context_len, dim per head]; no layers where gradients are recorded."""

    ids: Tensor
    lengths: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...] = ()


class GrowingLayer(DynamicLayer):
    """Keys and values with room for more, so that a step writes its own tokens and does not copy all the others."""

    def __init__(self, keys: Tensor, values: Tensor, room: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys: Tensor
        self.values: Tensor
        self.prefix = self.used = keys.shape[2]
        self._held = [keys, values]
        self._reserve(self.prefix + room)
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        needed = self.used + key_states.shape[2]
        if needed > self._held[0].shape[2]:
            self._reserve(self.prefix + 2 * (needed - self.prefix))
        for held, new in zip(self._held, (key_states, value_states), strict=True):
            held[:, :, self.used : needed] = new
        self.used = needed
        self._show()
        return self.keys, self.values

    def reorder_rows(self, rows: Tensor, before: int) -> None:
        """rows [n, rows]: which of the `before` rows of its context each row continues."""
        steps = (self.used - self.prefix) // before
        written = []
        for held in self._held:
            n, heads, _, dim = held.shape
            chosen = rows[:, None, None, :, None].expand(n, heads, steps, rows.shape[1], dim)
            own = held[:, :, self.prefix : self.used].unflatten(2, (steps, before))
            written.append(own.gather(3, chosen).flatten(2, 3))
        self.used = self.prefix
        self.update(*written)

    def _reserve(self, room: int) -> None:
        for place, held in enumerate(self._held):
            larger = held.new_empty(*held.shape[:2], room, held.shape[3])
            larger[:, :, : self.used] = held[:, :, : self.used]
            self._held[place] = larger

    def _show(self) -> None:
        self.keys, self.values = (held[:, :, : self.used] for held in self._held)


class SharedPrefix:
    """What has been written behind each context so far: `rows` rows of `steps` tokens."""

    def __init__(self, prefix: Prefix, rows: int, target_len: int):
        self.lengths, self.context_len = prefix.lengths, prefix.ids.shape[1]
        self.rows, self.steps = rows, 0
        self.past = DynamicCache()
        room = max(ROOM, target_len) * rows
        self.layers = [GrowingLayer(*layer, room) for layer in prefix.layers]
        self.past.layers.extend(self.layers)

    def positions(self, target_len: int) -> Tensor:
        """[n, target_len * rows] of the next tokens."""
        steps = self.steps + torch.arange(target_len, device=self.lengths.device)
        return self.lengths[:, None] + steps.repeat_interleave(self.rows)

    def mask(self, target_len: int, window: int | None = None) -> Tensor:
        """[n, 1, target_len * rows, context_len + all tokens written] bool, True at what the next tokens see: their
        context, and of their own row what is not behind them. window: only so many of the last positions, their own
        among them."""
        device, last = self.lengths.device, self.steps + target_len
        step = torch.arange(last, device=device).repeat_interleave(self.rows)
        row = torch.arange(self.rows, device=device).repeat(last)
        new = slice(self.steps * self.rows, None)
        ago = step[new, None] - step  # how many tokens lie between
        own = (row[new, None] == row) & (ago >= 0)
        column = torch.arange(self.context_len, device=device)
        context = (column < self.lengths[:, None])[:, None].expand(-1, len(step[new]), -1)
        if window is not None:
            own = own & (ago < window)
            back = self.positions(target_len)[:, :, None] - column
            context = context & (back < window)
        return torch.cat([context, own.expand(len(self.lengths), -1, -1)], 2)[:, None]

    def reorder(self, rows: Tensor) -> None:
        """Row i of all contexts goes on from row rows[i]; there may be more or fewer than before."""
        n = len(self.lengths)
        chosen = rows.view(n, -1) - self.rows * torch.arange(n, device=rows.device)[:, None]
        for layer in self.layers:
            layer.reorder_rows(chosen, self.rows)
        self.rows = chosen.shape[1]
