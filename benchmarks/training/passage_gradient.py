"""The retrieved passages' encoding with gradient: seconds and memory of one step, three ways.

    python -m benchmarks.training.passage_gradient [--out FILE] [--quick]

plain: every activation kept. cached: retriever.tokens_per_backward. checkpointed: trainer.checkpointing, beside plain.
Seconds are processor time of one thread, forward and backward, medians over rounds in which every way takes the same
passages; memory is the peak of what operations made, gradients of the weights included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import prepare_machine
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import encoder_format
from openbook.models.encoders import load_encoder, load_tokenizer
from openbook.models.passes.activation_checkpointing import checkpoint_layers
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.utils.hardware import autocast_dtype

PASSAGES, TOKENS_PER_BACKWARD = 64, 1024


class Peak(TorchDispatchMode):
    """The most bytes that the results of operations took at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (list, tuple)) else [results]:
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                ref = StorageWeakRef(storage)
                self.alive[ref.cdata] = (ref, storage.nbytes())
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return results


def corpus(n: int, vocab: int) -> PassageTokens:
    """Random ids in lengths like the embedded corpus's: 74 tokens in the mean, with a standard deviation of 20."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(74, 20, n), 10, 125).astype(np.int64)
    return PassageTokens(
        random.integers(1000, vocab, lengths.sum()).astype(np.uint16),
        np.concatenate([[0], lengths.cumsum()]),
        np.full(n, 4, dtype=np.int32),
    )


def step(system: DenseRetriever, rows: Tensor, autocast: torch.dtype | None) -> None:
    """Embeddings, a loss in which each depends on the others, and its gradient."""
    system.zero_grad(set_to_none=True)
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        passage_emb = system.passages.encode(rows)
        loss = -(passage_emb @ passage_emb[0]).log_softmax(0)[1]
    loss.backward()


def ways(tokens: PassageTokens) -> dict[str, Callable[[Tensor, torch.dtype | None], None]]:
    encoder = load_encoder("minilm", "mean", True, 0.0)
    encoder.freeze_word_embeddings()
    style = encoder_format(load_tokenizer("minilm"))

    def system(tokens_per_backward: int) -> DenseRetriever:
        passages = PassageEmbedder(
            encoder, tokens, style, 128, tokens_per_pass=4096, tokens_per_backward=tokens_per_backward
        )
        return DenseRetriever(encoder, passages, temperature=0.05).train()

    plain, cached = system(0), system(TOKENS_PER_BACKWARD)
    other = load_encoder("minilm", "mean", True, 0.0)
    other.freeze_word_embeddings()
    checkpoint_layers(other)
    embedder = PassageEmbedder(other, tokens, style, 128, tokens_per_pass=4096)
    layered = DenseRetriever(other, embedder, temperature=0.05).train()

    return {
        "plain": lambda rows, autocast: step(plain, rows, autocast),
        "cached": lambda rows, autocast: step(cached, rows, autocast),
        "checkpointed": lambda rows, autocast: step(layered, rows, autocast),
    }


def measure(rounds: int, passages: int) -> dict[str, Value]:
    tokens, autocast = corpus(4000, 29_000), autocast_dtype("auto", "cpu")
    contenders, seconds = ways(tokens), {}
    for number in range(rounds + 1):
        rows = torch.from_numpy(np.random.default_rng(number).choice(4000, passages, replace=False))
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            started = time.thread_time()
            contenders[name](rows, autocast)
            seconds.setdefault(name, []).append(time.thread_time() - started)
    found: dict[str, Value] = {}
    for name, way in contenders.items():
        with Peak() as peak:
            way(rows, autocast)
        pairs = zip(seconds[name][1:], seconds["plain"][1:], strict=True)  # the first round warms all of them up
        found[f"passage_gradient.{name}.seconds"] = median(seconds[name][1:])
        found[f"passage_gradient.{name}.time_ratio"] = median([mine / plain for mine, plain in pairs])
        found[f"passage_gradient.{name}.peak_mib"] = peak.most / 2**20
    return found | {
        "passage_gradient.passages": passages,
        "passage_gradient.tokens_per_backward": TOKENS_PER_BACKWARD,
        "passage_gradient.dtype": str(autocast or torch.float32).removeprefix("torch."),
    }


def main() -> None:
    asked = options(__doc__).parse_args()
    prepare_machine()
    torch.set_num_threads(1)
    finish(asked, measure(1, 16) if asked.quick else measure(5, PASSAGES))


if __name__ == "__main__":
    main()
