"""The fused loss on a GPU: its share of the matmul peak, and its time and memory beside the plain formula's.

    python -m benchmarks.gpu.loss [--out FILE] [--quick]

Forward and backward in bf16 over a head of 50,265 words and 768 dimensions. Operations are those of the three products;
`fraction_of_peak` is that of 32 questions x 10 passages x 32 target tokens. The plain formula keeps its logits; with
torch.compile it is measured too where that works here. `kernel`: 1 where Triton's kernel ran, 0 where torch stood in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.figures import Value, median
from benchmarks.gpu.common import device, dtype, in_turns, main, memory_of, peak, ratio
from openbook.objectives.fused import fused_marginal_nll
from openbook.objectives.marginal import rag_token_nll, token_logprobs_of
from openbook.objectives.vocabulary_head import kernel_for


@dataclass
class Inputs:
    """Hidden states, head, labels without padding and scores, with gradient."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor
    scores: Tensor

    @classmethod
    def random(cls, batch: int, n_docs: int, target_len: int, vocab: int, dim: int) -> Inputs:
        torch.manual_seed(0)
        on = device()
        return cls(
            torch.randn(batch, n_docs, target_len, dim, device=on, requires_grad=True),
            torch.randn(vocab, dim, device=on).mul_(0.05).requires_grad_(),
            torch.zeros(vocab, device=on),
            torch.randint(vocab, (batch, target_len), device=on),
            torch.randn(batch, n_docs, device=on, requires_grad=True),
        )

    def fused(self) -> Tensor:
        counted = torch.ones(self.hidden.shape[:3], dtype=torch.bool)
        return fused_marginal_nll(
            self.hidden, self.weight, self.bias, self.labels, self.scores, rag_token_nll, counted=counted
        ).loss

    def plain(self) -> Tensor:
        return _plain(self.hidden, self.weight, self.bias, self.labels, self.scores)

    def run(self, loss: Callable[[], Tensor]) -> float:
        """Forward and backward; the loss. Gradients are dropped."""
        with torch.autocast(device().type, dtype()):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        for leaf in (self.hidden, self.weight, self.scores):
            leaf.grad = None
        return float(value.detach())


def _plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logprobs = token_logprobs_of(logits, labels[:, None].expand(hidden.shape[:3]))
    return rag_token_nll(logprobs, scores, labels >= 0).sum()


def compiled(on: Inputs) -> Callable[[], Tensor] | None:
    """The plain formula by torch.compile, for these sizes; None where that does not work here."""
    made: Any = torch.compile(_plain, dynamic=False)

    def loss() -> Tensor:
        return made(on.hidden, on.weight, on.bias, on.labels, on.scores)

    try:
        on.run(loss)
    except Exception as error:  # whatever the compiler says: then there is no such figure
        print(f"torch.compile: {type(error).__name__}, not measured")
        return None
    return loss


def figures(quick: bool) -> dict[str, Value]:
    vocab, dim = (531, 32) if quick else (50265, 768)
    cases = ((2, 3, 5),) if quick else ((16, 5, 32), (32, 10, 32), (64, 20, 72))
    best, found = peak(quick), dict[str, Value]()
    for case in cases:
        found |= beside_plain(case, vocab, dim, best, quick)
    key = f"gpu.loss.{'x'.join(map(str, cases[len(cases) // 2]))}.fraction_of_peak"
    found["gpu.loss.fraction_of_peak"] = found[key]
    if torch.cuda.is_available():
        found["gpu.loss.kernel"] = int(kernel_for("cuda") is not None)
    return found


def beside_plain(case: tuple[int, int, int], vocab: int, dim: int, best: float, quick: bool) -> dict[str, Value]:
    """Of one size: questions, passages, target tokens."""
    rows = case[0] * case[1] * case[2]
    on, key = Inputs.random(*case, vocab, dim), f"gpu.loss.{'x'.join(map(str, case))}"
    fits = 16 * rows * vocab < 40 << 30  # what the plain formula takes, roughly
    sides = {"fused": on.fused}
    if fits:
        sides["plain"] = on.plain
        if not quick and (by_compiler := compiled(on)):
            sides["compiled"] = by_compiler
    values = {side: on.run(loss) for side, loss in sides.items()}
    for side, value in values.items():
        if not abs(value - values["fused"]) <= 2e-3 * abs(value):
            raise SystemExit(f"{key}: the loss is {values['fused']}, {side} says {value}")
    runs = {side: partial(on.run, loss) for side, loss in sides.items()}
    seconds = in_turns(runs, 3 if quick else 7)
    found: dict[str, Value] = {f"{key}.{side}_ms": 1000 * median(took) for side, took in seconds.items()}
    found[f"{key}.fraction_of_peak"] = 6 * rows * vocab * dim / median(seconds["fused"]) / best
    held = {side: memory_of(run) for side, run in runs.items()}
    found |= {f"{key}.{side}_mib": value / 2**20 for side, value in held.items() if value is not None}
    if fits:
        found[f"{key}.speedup_plain"] = ratio(seconds["plain"], seconds["fused"])
        if held["plain"] and held["fused"]:
            found[f"{key}.memory_ratio"] = held["fused"] / held["plain"]
    return found


if __name__ == "__main__":
    main(__doc__, figures)
