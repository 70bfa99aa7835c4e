"""Encoding a corpus on a GPU, and a refresh beside training.

    python -m benchmarks.gpu.encode [--out FILE] [--quick]

`encode`: a BERT-base-shaped encoder over passages of 100 to 160 tokens, in the passes of a refresh, written to a Flat
index on the device. `fraction_of_peak`: operations of the tokens, over seconds and the matmul peak.

`amortized`: blocks of steps of `rag_token` with an amortized and with a blocking refresh (benchmarks.index.amortized),
timed by events that wait for nothing, those of encoding on its own stream: the longest step of an amortized block with
all that is done in it over the median of training alone, and a block's time over that of a blocking one, in which
training and encoding follow each other. `encoding_ms`: from the first to the last event of a pass, of all passes of an
amortized block; `step_ms`: the median of training alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks.common.figures import Value, median
from benchmarks.common.peer import SPECIAL
from benchmarks.common.system import Keeper, Mode, System, fit
from benchmarks.gpu.common import PER_SCORE, device, dtype, in_turns, main, peak
from benchmarks.index import amortized
from benchmarks.training.cost import Stack
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import separated
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.models.attention import implementation
from openbook.models.encoders import TextEncoder
from openbook.refresh.manager import RefreshManager
from openbook.retrieval.corpus_encoder import CorpusOptions, PassageCoder, encode_passes


def encoding(quick: bool) -> dict[str, Value]:
    shape, n = (Stack(1, 32, 4), 64) if quick else (Stack(12, 768, 12), 60_000)
    draw = np.random.default_rng(0)
    lengths = draw.integers(100, 161, n)
    flat = draw.integers(1000, 30000, int(lengths.sum())).astype(np.uint16)
    tokens = PassageTokens(flat, np.concatenate([[0], np.cumsum(lengths)]), np.full(n, 4, dtype=np.int32))
    model = BertModel(
        BertConfig(
            hidden_size=shape.dim,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.inner,
        )
    )
    model.set_attn_implementation(implementation())
    encoder = TextEncoder(model, "cls", normalize=False).to(device())
    corpus = CorpusOptions(
        tokens, separated(SPECIAL), 256, "synthetic", 65536 if torch.cuda.is_available() else 4096, dtype()
    )
    index = ShardIndex(shape.dim, n, IndexOptions("Flat", "gpu" if torch.cuda.is_available() else "cpu"))
    coder = corpus.coder(encoder, index.device)
    passes = coder.passes(corpus.my_rows(), corpus.tokens_per_pass)

    def run() -> None:
        for rows, embeddings in encode_passes(coder, passes):
            index.write(rows, embeddings)

    seconds = median(in_turns({"encode": run}, 2 if quick else 3)["encode"])
    work = sum(shape.encode(1, int(length)) for length in coder.lengths(corpus.my_rows()))
    return {
        "gpu.encode.passages_per_second": n / seconds,
        "gpu.encode.fraction_of_peak": float(work[0] + PER_SCORE * work[1]) / seconds / peak(quick),
    }


class Mark:
    """A moment of the current stream; without a GPU, now."""

    def __init__(self) -> None:
        self.at = time.perf_counter()
        self.event = torch.cuda.Event(enable_timing=True) if torch.cuda.is_available() else None
        if self.event is not None:
            self.event.record()

    def since(self, other: Mark) -> float:
        """Milliseconds; what was marked must have come to pass."""
        if self.event is None or other.event is None:
            return 1000 * (self.at - other.at)
        return other.event.elapsed_time(self.event)


@dataclass(frozen=True)
class Timed:
    """One optimizer step with its refresh manager, between two marks, and the passes that were begun in it."""

    mode: Mode
    ms: float
    encoding_ms: float


class ByMarks(Keeper):
    """Marks the end of every step, and the passes that were begun in it."""

    def __init__(self, manager: RefreshManager, mode_of: Callable[[int], Mode]):
        super().__init__(manager, mode_of)
        self.passes: list[tuple[Mark, Mark]] = []
        self.steps: list[tuple[Mode, Mark, list[tuple[Mark, Mark]]]] = []

    def started(self) -> None:
        self.begin, self.passes = Mark(), []  # without those of the first index

    def kept(self, step: int, mode: Mode) -> None:
        self.steps.append((mode, Mark(), self.passes))
        self.passes = []

    def encoded(self, encoder: Callable[..., Tensor], *given: Any) -> Tensor:
        """encoder(*given), marked on the stream that it runs on."""
        begin = Mark()
        embeddings = encoder(*given)
        self.passes.append((begin, Mark()))
        return embeddings

    def timed(self) -> list[Timed]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begins = [self.begin, *(end for _, end, _ in self.steps)]
        return [
            Timed(mode, end.since(begin), sum(done.since(begun) for begun, done in passes))
            for begin, (mode, end, passes) in zip(begins, self.steps, strict=False)
        ]


def by_marks(on: System, steps: int, mode_of: Callable[[int], Mode]) -> list[Timed]:
    marks, made = ByMarks(on.manager, mode_of), PassageCoder.__init__

    def marked(self: PassageCoder, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        forward = self.encoder.forward
        self.encoder.forward = partial(marks.encoded, forward)  # type: ignore[method-assign]

    with patch.object(PassageCoder, "__init__", marked):
        fit(on, steps, marks)
    return marks.timed()


def beside_training(quick: bool) -> dict[str, Value]:
    every, spread = (6, 3) if quick else (20, 10)
    found = amortized.blocks(every, spread, quick, by_marks)
    blocks = {mode: [block for block in found if block[0].mode == mode] for mode in ("amortized", "blocking")}
    plain = median([step.ms for block in blocks["blocking"] for step in block])  # all but one of them without a refresh
    total = {mode: median([sum(step.ms for step in block) for block in some]) for mode, some in blocks.items()}
    return {
        "gpu.amortized.worst_step_ratio": max(step.ms for block in blocks["amortized"] for step in block) / plain,
        "gpu.amortized.total_ratio": total["amortized"] / total["blocking"],
        "gpu.amortized.encoding_ms": median([sum(step.encoding_ms for step in block) for block in blocks["amortized"]]),
        "gpu.amortized.step_ms": plain,
    }


def figures(quick: bool) -> dict[str, Value]:
    return encoding(quick) | beside_training(quick)


if __name__ == "__main__":
    main(__doc__, figures)
