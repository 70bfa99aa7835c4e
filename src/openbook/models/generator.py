"""The generator: any model that writes answers, as a few calls, so that objectives and decoding need not know which.

    encode(context_ids, context_mask)                        -> memory, once per context
    decode(decoder_input_ids, memory, context_mask, cache)   -> hidden [n * beams, target_len, dim], cache
    reorder(cache, rows)                                     -> cache with these rows
    logits(hidden)                                           -> [..., vocab]
    head_weight, head_bias                                   logits = hidden @ head_weight.T + head_bias

beams, the rows of decoder_input_ids for each of n contexts, follows from the shapes: row i reads context i // beams.
`cache` is None to begin with; while gradients are recorded none is kept. Encoder-decoders (seq2seq), decoder-only
models (decoder_only) and the small reader (small_reader) have these calls; `load_generator` gives each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Generator(Protocol):
    """What training, decoding and saving ask of a generator; all implementations are nn.Modules. memory and cache are
    the generator's own: whoever calls it only hands them back. With a cache, decode is given the newest token only.

    reorder: row i of the new cache continues row rows[i] of the old one, which is used up. Rows stay with their
    context, and there may be more or fewer beams than before."""

    decoder_start_token_id: int
    eos_token_id: int
    pad_token_id: int

    @property
    def first_token_id(self) -> int | None: ...
    @property
    def head_weight(self) -> Tensor: ...
    @property
    def head_bias(self) -> Tensor | None: ...
    def encode(self, context_ids: Tensor, context_mask: Tensor) -> Any: ...
    def decode(
        self, decoder_input_ids: Tensor, memory: Any, context_mask: Tensor, cache: Any = None
    ) -> tuple[Tensor, Any]: ...
    def reorder(self, cache: Any, rows: Tensor) -> Any: ...
    def logits(self, hidden: Tensor) -> Tensor: ...
    def save_pretrained(self, folder: str | Path) -> None: ...


def each_part(change: Callable[..., Tensor], *memories: Any) -> Any:
    """An encoder-decoder's memory, a tensor or a named tuple of them [n, context_len, ...], part by part."""
    if isinstance(memories[0], Tensor):
        return change(*memories)
    return type(memories[0])(*(change(*parts) for parts in zip(*memories, strict=True)))
