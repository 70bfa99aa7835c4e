"""The fused loss (openbook.fused_loss) against the plain formula: time, memory, and memory over growing batches.

    python -m benchmarks.marginal.fused [--out FILE] [--quick]

BART-base's head, 4 questions x 5 passages, random hidden states; forward and backward, every gradient. Times are of one
thread on a CPU, its processor's seconds, the least of some rounds in which both take turns. Memory is what a fresh
process takes beyond what it held before, gradients included; what is freed goes back to the system at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common.figures import Value, finish, options
from benchmarks.common.system import prepare_machine
from benchmarks.decoding.decode import AT_ONCE, memory_of
from benchmarks.index.memory import give_back
from openbook.objectives.fused import fused_marginal_nll
from openbook.objectives.marginal import rag_token_nll, token_logprobs_of
from openbook.objectives.vocabulary_head import CHUNK_BYTES
from openbook.utils.host_memory import current_memory, peak_memory, reset_peak_memory

ROUNDS, MODULE = 3, "benchmarks.marginal.fused"


@dataclass(frozen=True)
class Case:
    """Sizes, and what is run: "plain", "fused", or "none" for the inputs alone."""

    batch: int = 4
    n_docs: int = 5
    target_len: int = 32
    vocab: int = 50265
    dim: int = 768
    bf16: bool = False
    kind: str = "fused"
    frozen_head: bool = False
    chunk_bytes: int = CHUNK_BYTES

    @property
    def plain_bytes(self) -> int:
        """What the plain formula keeps at least: the logits in fp32 and their gradient."""
        return 2 * 4 * self.batch * self.n_docs * self.target_len * self.vocab


class Inputs:
    """Random hidden states, head, labels without padding and scores, with gradient."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        shape = (case.batch, case.n_docs, case.target_len, case.dim)
        self.case = case
        self.hidden = torch.randn(shape, requires_grad=True)
        self.weight = torch.randn(case.vocab, case.dim).mul_(0.05).requires_grad_(not case.frozen_head)
        self.bias = torch.zeros(case.vocab)
        self.scores = torch.randn(case.batch, case.n_docs, requires_grad=True)
        self.labels = torch.randint(case.vocab, (case.batch, case.target_len))

    def step(self, kind: str) -> None:
        """Loss and gradients, which are dropped again."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.case.bf16):
            (self._plain() if kind == "plain" else self._fused()).backward()  # type: ignore[no-untyped-call]
        for value in (self.hidden, self.weight, self.scores):
            value.grad = None

    def _plain(self) -> Tensor:
        logits = torch.nn.functional.linear(self.hidden, self.weight, self.bias)
        logprobs = token_logprobs_of(logits, self.labels[:, None].expand(self.hidden.shape[:3]))
        return rag_token_nll(logprobs, self.scores, self.labels >= 0).sum()

    def _fused(self) -> Tensor:
        return fused_marginal_nll(
            self.hidden,
            self.weight,
            self.bias,
            self.labels,
            self.scores,
            rag_token_nll,
            chunk_bytes=self.case.chunk_bytes,
        ).loss


def seconds(case: Case, kinds: tuple[str, ...], rounds: int = ROUNDS) -> dict[str, float]:
    """CPU seconds of one step of each kind, the least of `rounds`."""
    inputs, best = Inputs(case), dict.fromkeys(kinds, float("inf"))
    for _ in range(rounds + 1):
        for kind in kinds:
            best[kind] = min(best[kind], _timed(lambda kind=kind: inputs.step(kind)))  # type: ignore[misc]
    return best


def _timed(step: Callable[[], None]) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def run(case: Case) -> int:
    """What `memory_of` starts: a small step first, so that what the libraries take for themselves is there."""
    prepare_machine()
    Inputs(Case(1, 2, 3, 101, 16, case.bf16, case.kind)).step(case.kind)
    inputs = Inputs(case)
    give_back()
    before = current_memory()
    reset_peak_memory()
    inputs.step(case.kind)
    after = peak_memory()
    if before is None or after is None:
        raise SystemExit("this system does not say how much memory a process holds")
    return after - before


def figures(quick: bool) -> dict[str, Value]:
    small = {"vocab": 2003, "dim": 48} if quick else {}
    found: dict[str, Value] = {}
    for name, more in {"32": {}, "128": {"target_len": 128}}.items():
        for suffix, bf16 in {"": False, ".bf16": True}.items():
            case = Case(bf16=bf16, **more, **small)  # type: ignore[arg-type]
            took = seconds(case, ("plain", "fused"), ROUNDS if name == "32" else 1)
            key = f"fused.{name}{suffix}"
            found[f"{key}.seconds"], found[f"{key}.plain_seconds"] = took["fused"], took["plain"]
            found[f"{key}.speedup"] = took["plain"] / took["fused"]
            held = {kind: memory_of(MODULE, kind, case, AT_ONCE) for kind in took}
            found[f"{key}.mib"], found[f"{key}.plain_mib"] = held["fused"] / 2**20, held["plain"] / 2**20
    return found | _sweep(small)


def _sweep(small: dict[str, int]) -> dict[str, Value]:
    """Memory of ever larger batches: hidden states of dim 128 only, so that neither they nor the head's gradient hide
    what the logits take. With the last one the plain formula would keep more than 34 GiB."""
    found: dict[str, Value] = {}
    for batch, n_docs, target_len in ((4, 5, 32), (16, 5, 32), (16, 10, 64), (64, 20, 72)):
        case = Case(batch, n_docs, target_len, bf16=True, **({"dim": 128} | small))
        key = f"fused.sweep.{batch}x{n_docs}x{target_len}"
        found[f"{key}.mib"] = memory_of(MODULE, "fused", case, AT_ONCE) / 2**20
        found[f"{key}.plain_at_least_mib"] = case.plain_bytes / 2**20
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--case", help="measure the memory of one case here and print it")
    asked = parser.parse_args()
    if asked.case:
        told = json.loads(asked.case)
        print(run(Case(**told | {"kind": told.pop("side")})))
        return
    prepare_machine()
    torch.set_num_threads(1)
    finish(asked, figures(asked.quick))


if __name__ == "__main__":
    main()
