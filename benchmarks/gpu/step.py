"""A training step on a GPU beside transformers, and its share of the matmul peak.

    python -m benchmarks.gpu.step [--out FILE] [--quick]

The sides of `benchmarks.training.step` (the same BART, passages given, forward, backward and AdamW), turn by turn:
openbook in bf16; transformers in bf16 with contexts padded to the longest of the batch (`own_length`) and to 300, and
in fp32 as shipped. BART-base with 32 questions x 5 passages, BART-large with 16 x 8, 32 target tokens. First losses
and gradients of both sides must agree in fp32, and openbook's in bf16 must be as near to them as transformers'.

`fraction_of_peak`: operations that the real tokens need, forward and backward, over seconds and over `peak`. memory:
the most a step took beyond weights, optimizer state and gradients. `packed`: 1 where contexts went through without
padding, 0 where they were padded.

`joint`: one whole step with BERT-base-shaped question and passage encoders, both with gradient, a search among 1
million passages of 768 numbers, and BART-base, 16 questions x 5 passages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks.common import peer
from benchmarks.common.figures import Value, median
from benchmarks.common.peer import PADDED, SHAPES, SPECIAL, Case, Sides, Text, Way
from benchmarks.gpu.common import PER_SCORE, device, dtype, in_turns, main, memory_of, peak, ratio
from benchmarks.training.cost import TRAINING, Stack
from openbook.batch import Batch, Example
from openbook.config.training import OptimConfig
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import separated
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.models.attention import implementation
from openbook.models.contexts import ContextBuilder
from openbook.models.encoders import TextEncoder
from openbook.models.seq2seq import Seq2SeqGenerator
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.training.rag_module import RagModule

SHAPES["large"] = (Stack(12, 1024, 16), 50265)
TOLERANCE = 1e-3
"""Of a gradient's own norm, in fp32: a GPU's sums are taken in another order on either side."""

BF16 = 1.5
"""Times transformers' error in bf16, all gradients together."""

ENCODER = Stack(12, 768, 12)


def reading(stack: Stack, vocab: int, lengths: np.ndarray, target_len: int) -> float:
    """Operations of forward and backward of the generator for contexts of these lengths, padding not counted."""
    work = sum(stack.encode(1, int(n)) + stack.decode(1, target_len, int(n), False) for n in lengths)
    return float(TRAINING * (work[0] + PER_SCORE * work[1] + 2 * len(lengths) * target_len * stack.dim * vocab))


def check(on: Sides, asked: Any) -> None:
    """Losses, and gradients by their norms, of both sides in fp32 and in bf16. Raises SystemExit."""

    def computed(side: str, autocast: torch.dtype | None) -> tuple[float, dict[str, Tensor]]:
        attention = implementation() if side == "ours" else "eager"
        way = Way("highest", autocast, attention, 0 if side == "ours" else PADDED)
        on.use(way)
        loss = float(on.gradients(side, way, asked).detach())
        named = {name: one.grad for name, one in on.model.named_parameters() if one.grad is not None}
        for one in on.model.parameters():
            one.grad = None
        asked.doc_scores.grad = None
        return loss, named

    (loss, ours), (their_loss, theirs) = computed("ours", None), computed("theirs", None)
    largest = max(float(one.norm()) for one in theirs.values())
    wrong = [f"loss {loss} and {their_loss}"] * (not abs(loss - their_loss) <= TOLERANCE * abs(their_loss))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            wrong.append(f"gradient of {name} on one side only")
        elif not float((ours[name] - theirs[name]).norm()) <= TOLERANCE * (float(theirs[name].norm()) + 0.01 * largest):
            wrong.append(f"gradient of {name}")
    low, their_low = (
        sum(float((one - theirs[name]).norm()) ** 2 for name, one in computed(side, dtype())[1].items()) ** 0.5
        for side in ("ours", "theirs")
    )
    if not low <= BF16 * their_low:
        wrong.append(f"gradients in bf16, by {low} where transformers' by {their_low},")
    if wrong:
        raise SystemExit(f"the two sides differ: {'; '.join(wrong[:5])}")


def beside_transformers(name: str, case: Case, best: float, rounds: int) -> dict[str, Value]:
    peer.TOKENS_PER_PASS = 65536
    text, key = Text.read(400), f"gpu.step.{name}"
    on = Sides(case, text, device())
    check(on, text.ask(replace(case, questions=2), 99, device()))
    ways = {
        "ours": ("ours", Way("high", dtype(), implementation(), 0)),
        "own_length": ("theirs", Way("high", dtype(), "sdpa", 0)),
        "padded": ("theirs", Way("high", dtype(), "sdpa", PADDED)),
        "as_shipped": ("theirs", Way("highest", None, "sdpa", PADDED)),
    }
    asked = text.ask(case, 0, device())

    def step(side: str, way: Way) -> None:
        on.use(way)
        on.step(side, way, asked)

    sides = {name: (lambda side=side, way=way: step(side, way)) for name, (side, way) in ways.items()}
    seconds = in_turns(sides, rounds)
    stack, vocab = SHAPES[case.model]
    operations = reading(stack, vocab, asked.context_mask.sum(-1).cpu().numpy(), case.target_len)
    found: dict[str, Value] = {f"{key}.{side}_ms": 1000 * median(took) for side, took in seconds.items()}
    for side in ("own_length", "padded", "as_shipped"):
        found[f"{key}.speedup_{side}"] = ratio(seconds[side], seconds["ours"])
    found[f"{key}.fraction_of_peak"] = operations / median(seconds["ours"]) / best
    held = {}
    for side in ("ours", "own_length"):
        for one in on.model.parameters():  # they are there before, so they are not counted
            one.grad = torch.zeros_like(one)
        held[side] = memory_of(sides[side])
    if held["ours"] and held["own_length"]:
        found |= {f"{key}.{side}_mib": value / 2**20 for side, value in held.items() if value}
        found[f"{key}.memory_ratio"] = held["ours"] / held["own_length"]
        on.use(ways["ours"][1])
        with torch.autocast(device().type, dtype()):
            found[f"{key}.packed"] = int(Seq2SeqGenerator(on.model).packs)
    return found


def joint(quick: bool, best: float, rounds: int) -> dict[str, Value]:
    """Passages of 100 to 160 tokens; what is retrieved is as good as random, and all of it is encoded with gradient."""
    encoder, reader = (Stack(1, 32, 4), "tiny") if quick else (ENCODER, "base")
    n, questions, n_docs, target_len, question_len = (500, 2, 3, 5, 8) if quick else (1_000_000, 16, 5, 32, 16)
    stack, vocab = SHAPES[reader]
    draw = np.random.default_rng(0)
    lengths = draw.integers(100, 161, n)
    flat = draw.integers(1000, 30000, int(lengths.sum())).astype(np.uint16)
    tokens = PassageTokens(flat, np.concatenate([[0], np.cumsum(lengths)]), np.full(n, 4, dtype=np.int32))
    encoders = []
    for seed in range(2):
        torch.manual_seed(seed)
        shape = {"hidden_size": encoder.dim, "num_hidden_layers": encoder.layers, "num_attention_heads": encoder.heads}
        config = BertConfig(
            **shape, intermediate_size=encoder.inner, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        model = BertModel(config)
        model.set_attn_implementation(implementation())
        encoders.append(TextEncoder(model, "cls", normalize=False).to(device()))
    index = ShardIndex(encoder.dim, n, IndexOptions("Flat", "gpu" if torch.cuda.is_available() else "cpu"))
    for start in range(0, n, 1 << 17):
        rows = np.arange(start, min(start + (1 << 17), n))
        index.write(rows, torch.randn(len(rows), encoder.dim, device=index.device))
    retriever = DenseRetriever(
        encoders[0], PassageEmbedder(encoders[1], tokens, separated(SPECIAL), 256), temperature=float(encoder.dim**0.5)
    )
    retriever.snapshot = Snapshot(index.finish(), 0, "", "", n)
    model = peer.bart(stack, vocab).to(device())
    model.set_attn_implementation(implementation())
    module = RagModule(
        retriever,
        Seq2SeqGenerator(model),
        ContextBuilder(tokens, SPECIAL, PADDED),
        cast(Any, None),
        objective="rag_token",
        n_docs=n_docs,
        optim=OptimConfig(),
        max_steps=10**6,
    )
    made: Any = module.configure_optimizers()
    for group in made["optimizer"].param_groups:
        group["lr"] = 0.0
    ids = torch.from_numpy(draw.integers(1000, 30000, (questions, question_len)))
    labels = torch.from_numpy(draw.integers(1000, 30000, (questions, target_len)))
    batch = Batch(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        tuple(map(tuple, ids.tolist())),
        labels,
        torch.ones(questions),
        (Example("", "", ("",)),) * questions,
    ).to(device())

    def step() -> None:
        with torch.autocast(device().type, dtype()):
            loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        made["optimizer"].step()
        made["optimizer"].zero_grad()

    seconds = median(in_turns({"joint": step}, rounds)["joint"])
    mean = int(lengths.mean()) + SPECIAL.n_in_context
    encoding = encoder.encode(questions, question_len) + encoder.encode(questions * n_docs, mean)
    operations = TRAINING * (encoding[0] + PER_SCORE * encoding[1])
    operations += reading(stack, vocab, np.full(questions * n_docs, mean + question_len), target_len)
    key = "gpu.step.joint"
    return {f"{key}.ms": 1000 * seconds, f"{key}.fraction_of_peak": operations / seconds / best}


def figures(quick: bool) -> dict[str, Value]:
    best, rounds = peak(quick), 2 if quick else 9
    cases = {"base": Case(questions=32), "large": Case(questions=16, n_docs=8, model="large")}
    if quick:
        cases = {"base": Case(questions=2, n_docs=3, target_len=5, model="tiny")}
    found: dict[str, Value] = {"gpu.peak_tflops": best / 1e12}
    for name, case in cases.items():
        found |= beside_transformers(name, case, best, rounds)
    return found | joint(quick, best, rounds)


if __name__ == "__main__":
    main(__doc__, figures)
