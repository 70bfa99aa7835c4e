"""The cost model (benchmarks.training.cost) fitted on some runs and tried on others; what it says of a large corpus.

    python -m benchmarks.training.cost_model [--out FILE] [--quick]

A step is RagModule.training_step with a real search, backward and AdamW, in the dtype that training uses, on random
weights, tokens and vectors; every question reads passages that no other reads. A refresh encodes passages of one length
and writes them into a Flat index. Constants come from one list of sizes; the errors are those of the other lists, in
which one size at a time grows away from a common middle: `cost_model.step.*` has their seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks.common import synthetic
from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.peer import SPECIAL, bart
from benchmarks.common.system import now, prepare_machine
from benchmarks.training.cost import REFRESH_WORK, STEP_WORK, Refresh, Stack, Step, fitted
from openbook.batch import Batch, Example, Retrieved
from openbook.config.training import OptimConfig
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import separated
from openbook.index.shard_index import ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.models.attention import implementation, use_implementation
from openbook.models.contexts import ContextBuilder
from openbook.models.encoders import TextEncoder
from openbook.models.seq2seq import Seq2SeqGenerator
from openbook.retrieval.corpus_encoder import PassageCoder, encode_passes
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.training.rag_module import RagModule
from openbook.utils.hardware import autocast_dtype

ROUNDS = 5
SMALL, MIDDLE, WIDE = Stack(3, 256, 4), Stack(4, 384, 6), Stack(2, 640, 10)
FIT = (
    Step(),
    Step(batch=2, n_docs=2, target_len=4),
    Step(batch=8, n_docs=4, passage_len=40),
    Step(batch=1, n_docs=10),
    Step(batch=6, n_docs=8, passage_len=64, target_len=6),
    Step(passage_len=250, target_len=64, batch=2),
    Step(n_passages=150_000, batch=2),
    Step(n_passages=150_000, batch=16, n_docs=2, passage_len=32),
    Step(encoder=MIDDLE, generator=MIDDLE),
    Step(encoder=WIDE, generator=SMALL, n_docs=3),
    Step(encoder=SMALL, generator=WIDE, target_len=48, vocab=5_000),
    Step(vocab=50_000, target_len=40, n_docs=3),
    Step(encoder=MIDDLE, generator=WIDE, batch=2, passage_len=180),
    Step(batch=12, n_docs=2, target_len=24),
)
GROWTH: dict[str, tuple[Step, ...]] = {
    "n_docs": tuple(Step(n_docs=n, batch=3) for n in (1, 3, 9, 18)),
    "batch": tuple(Step(batch=n, n_docs=3) for n in (1, 3, 7, 14)),
    "passage_len": tuple(Step(passage_len=n, batch=3) for n in (24, 72, 144, 216)),
    "target_len": tuple(Step(target_len=n, batch=3) for n in (3, 10, 32, 90)),
    "n_passages": tuple(Step(n_passages=n, batch=3) for n in (5_000, 50_000, 250_000)),
    "dim": tuple(Step(encoder=s, generator=s, batch=3) for s in (Stack(3, 192, 3), Stack(3, 320, 5), Stack(3, 512, 8))),
}
REFRESH_FIT = tuple(
    Refresh(n, length, encoder)
    for n, length, encoder in (
        (512, 96, SMALL),
        (256, 250, SMALL),
        (1024, 24, SMALL),
        (512, 96, MIDDLE),
        (256, 180, WIDE),
        (768, 40, WIDE),
        (200, 320, MIDDLE),
    )
)
REFRESH_GRID = tuple(
    Refresh(n, length, encoder)
    for n, length, encoder in (
        (800, 64, SMALL),
        (300, 150, SMALL),
        (400, 128, MIDDLE),
        (1000, 48, MIDDLE),
        (300, 100, WIDE),
        (400, 72, Stack(6, 384, 12)),
        (200, 110, Stack(4, 512, 8)),
    )
)


class Drawn(DenseRetriever):
    """Searches as it would, and then reads passages that were drawn beforehand, every one but once."""

    rows: Tensor

    def search(self, question_emb: Tensor, top_k: int) -> Retrieved:
        return Retrieved(self.rows, super().search(question_emb, top_k).index_scores)


def encoder(stack: Stack) -> TextEncoder:
    config = BertConfig(
        hidden_size=stack.dim,
        num_hidden_layers=stack.layers,
        num_attention_heads=stack.heads,
        intermediate_size=stack.inner,
        vocab_size=5_000,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=implementation(),
    )
    made = TextEncoder(BertModel(config), "mean", True)
    made.freeze_word_embeddings()
    return made


def generator(stack: Stack, vocab: int) -> Seq2SeqGenerator:
    model = bart(stack, vocab)
    use_implementation(model)
    return Seq2SeqGenerator(model)


def passages(n: int, length: int) -> PassageTokens:
    """n passages of random ids, a title of two among them, all of one length."""
    flat = np.random.default_rng(0).integers(5, 5_000, n * length).astype(np.uint16)
    return PassageTokens(flat, np.arange(n + 1) * length, np.full(n, 2, dtype=np.int32))


class Sizes:
    """Indexes of drawn vectors by passages and dim, each made once."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, int], ShardIndex] = {}

    def index(self, n: int, dim: int) -> ShardIndex:
        if (n, dim) not in self.made:
            index = ShardIndex(dim, n)
            index.write(np.arange(n), synthetic.embeddings(n, dim))
            self.made[n, dim] = index.finish()
        return self.made[n, dim]


class Running:
    """A module with everything that a step needs, at learning rate 0; snapshot: this rank's part of the index."""

    def __init__(self, sizes: Step, snapshot: Snapshot):
        torch.manual_seed(0)
        self.sizes, self.random = sizes, np.random.default_rng(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = autocast_dtype("auto", "gpu" if self.device.type == "cuda" else "cpu")
        tokens = passages(sizes.n_passages, sizes.passage_len)
        style, most = separated(SPECIAL), sizes.tokens_per_pass
        embedder = PassageEmbedder(encoder(sizes.encoder), tokens, style, 512, tokens_per_pass=most)
        self.retriever = Drawn(encoder(sizes.encoder), embedder, temperature=1.0)
        self.retriever.snapshot = snapshot
        contexts = ContextBuilder(tokens, SPECIAL, 1024, most)
        self.module = RagModule(
            self.retriever,
            generator(sizes.generator, sizes.vocab),
            contexts,
            cast(Any, None),
            objective="rag_token",
            n_docs=sizes.n_docs,
            optim=OptimConfig(),
            max_steps=10**6,
        ).to(self.device)
        self.optimizer: torch.optim.Optimizer = cast(Any, self.module.configure_optimizers())["optimizer"]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0

    def seconds(self, forward: Callable[[Batch], Tensor] | None = None) -> float:
        """Of one optimizer step; forward: training_step, by another way."""
        batch, self.retriever.rows = drawn(self.sizes, self.random)
        batch = batch.to(self.device)
        started = now()
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            loss = forward(batch) if forward else self.module.training_step(batch, 0)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now() - started


def step_seconds(sizes: Step, indexes: Sizes, rounds: int = ROUNDS) -> float:
    """Median seconds of an optimizer step, after one that does not count."""
    index = indexes.index(sizes.n_passages, sizes.encoder.dim)
    running = Running(sizes, Snapshot(index, 0, "", "", sizes.n_passages))
    return median([running.seconds() for _ in range(rounds + 1)][1:])


def drawn(sizes: Step, random: np.random.Generator) -> tuple[Batch, Tensor]:
    """Random questions and targets, without padding, and the passages that they read."""
    shape = (sizes.batch, sizes.question_len)
    asked, labels = random.integers(5, 5_000, shape), random.integers(5, 5_000, (sizes.batch, sizes.target_len))
    ids = torch.from_numpy(np.pad(asked, ((0, 0), (1, 1))))
    rows = random.choice(sizes.n_passages, (sizes.batch, sizes.n_docs), replace=False)
    batch = Batch(
        ids,
        torch.ones_like(ids).bool(),
        tuple(map(tuple, asked.tolist())),
        torch.from_numpy(labels),
        torch.ones(sizes.batch),
        (Example("", "", ("",)),) * sizes.batch,
    )
    return batch, torch.from_numpy(rows)


def refresh_seconds(sizes: Refresh, rounds: int = ROUNDS) -> float:
    """Median seconds of encoding all passages and writing them, after one that does not count."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = autocast_dtype("auto", "gpu" if device.type == "cuda" else "cpu") or torch.float32
    tokens, style = passages(sizes.n_passages, sizes.passage_len), separated(SPECIAL)
    coder = PassageCoder(encoder(sizes.encoder).to(device), tokens, style, 512, dtype=dtype)
    passes = coder.passes(range(sizes.n_passages), sizes.tokens_per_pass)
    index, seconds = ShardIndex(sizes.encoder.dim, sizes.n_passages), []
    for _ in range(rounds + 1):
        started = now()
        for rows, embeddings in encode_passes(coder, passes):
            index.write(rows, embeddings.numpy())
        seconds.append(now() - started)
    return median(seconds[1:])


def tried(
    name: str,
    kinds: tuple[str, ...],
    fit: tuple[Any, ...],
    grid: dict[str, tuple[Any, ...]],
    measured: Callable[[Any], float],
) -> tuple[np.ndarray, dict[str, Value]]:
    """Constants from `fit`, and how far they are off on the grid."""
    constants = fitted(np.stack([sizes.work() for sizes in fit]), np.array([measured(sizes) for sizes in fit]))
    found: dict[str, Value] = {
        f"cost_model.{name}.seconds_per.{kind}": float(one) for kind, one in zip(kinds, constants, strict=True)
    }
    errors = []
    for axis, line in grid.items():
        for sizes in line:
            took, said = measured(sizes), float(sizes.work() @ constants)
            errors.append(abs(said - took) / took)
            key = f"cost_model.{name}.{axis}.{_at(axis, sizes)}"
            found |= {f"{key}.seconds": took, f"{key}.predicted": said}
    found |= {f"cost_model.{name}.worst_error": max(errors), f"cost_model.{name}.mean_error": float(np.mean(errors))}
    found |= {f"cost_model.{name}.fitted": len(fit), f"cost_model.{name}.tried": len(errors)}
    return constants, found


def _at(axis: str, sizes: Any) -> str:
    if axis == "sizes":
        return f"{sizes.n_passages}x{sizes.passage_len}x{sizes.encoder.layers}x{sizes.encoder.dim}"
    return str(sizes.encoder.dim if axis == "dim" else getattr(sizes, axis))


def main() -> None:
    asked = options(__doc__).parse_args()
    prepare_machine()
    fit, growth, refresh_fit, refresh_grid, rounds = FIT, GROWTH, REFRESH_FIT, REFRESH_GRID, ROUNDS
    if asked.quick:
        tiny = Stack(1, 64, 1)
        fit = tuple(replace(s, encoder=tiny, generator=tiny, n_passages=500, vocab=5_000) for s in FIT[:4])
        growth, refresh_fit, refresh_grid, rounds = {"n_docs": fit[:2]}, REFRESH_FIT[:2], REFRESH_GRID[:1], 1
    indexes = Sizes()
    _, steps = tried("step", STEP_WORK, fit, growth, lambda sizes: step_seconds(sizes, indexes, rounds))
    _, refreshes = tried(
        "refresh", REFRESH_WORK, refresh_fit, {"sizes": refresh_grid}, lambda sizes: refresh_seconds(sizes, rounds)
    )
    worst = max(float(steps["cost_model.step.worst_error"]), float(refreshes["cost_model.refresh.worst_error"]))
    finish(asked, steps | refreshes | {"cost_model.worst_error": worst})


if __name__ == "__main__":
    main()
