"""How many operators a training step dispatches: what a GPU's host has to launch, counted on a CPU.

    python -m benchmarks.training.operators [--out FILE] [--quick]

The step of `benchmarks.training.step` (RagModule.training_step, backward, AdamW) with BART-base's number of layers, 32
questions of 5 passages, bf16; the layers are narrow, which changes no count. Everything that depends on the device is
set as on a GPU: attention, casts, the padded head, and the kernels of the loss and of attention without padding count
as one each way. Views are counted apart: they launch nothing.

`operators.step` is what is launched; `operators.step.<name>` are the ten most frequent; `operators.step.padded` is
launched where that attention cannot run, in passes by length.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.common.figures import Value, finish, options
from benchmarks.common.peer import SHAPES, Case, Sides, Text, Way
from benchmarks.common.system import prepare_machine
from benchmarks.training.cost import Stack
from openbook.data.length_batches import TOKENS_OF_A_PASS
from openbook.models.attention import UNSEEN
from openbook.models.passes import cast_weights, packed
from openbook.objectives import fused, vocabulary_head

A15BF0E = 1707
"""What commit a15bf0e launched for the same step, counted the same way."""

NARROW = Stack(6, 64, 4)  # BART-base's layers


class Launches(TorchDispatchMode):
    """Counts operators that compute or copy, by name; `views` those that only look at memory another way."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_view(func):
            self.views += 1
        else:
            self.launched[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def is_view(func: Any) -> bool:
    """Whether an operator's results are its arguments' memory, unchanged, or memory that nothing has written yet."""
    returned = func._schema.returns
    named = func.overloadpacket.__name__
    return named in ("empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view") or (
        bool(returned) and all(one.alias_info is not None and not one.alias_info.is_write for one in returned)
    )


def counted_once(launches: Launches, name: str, compute: Any) -> Any:
    """compute(query, key, value, ...), counted as one operator forwards and one backwards, and as contiguous as a
    kernel's results are."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, *rest: Any) -> Any:
            launches.launched[name] += 1
            with _disable_current_modes(), torch.enable_grad():
                ctx.inputs = [part.detach().requires_grad_() for part in (query, key, value)]
                ctx.found = compute(*ctx.inputs, *rest).contiguous()
                return ctx.found.detach()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            launches.launched[f"{name}_backward"] += 1
            with _disable_current_modes():
                found = torch.autograd.grad(ctx.found, ctx.inputs, gradient)
                return *(one.contiguous() for one in found), None, None, None

    return Kernel.apply


@contextmanager
def as_on_a_gpu(launches: Launches, packs: bool) -> Iterator[None]:
    """What is chosen by the kind of device is chosen as on a GPU. packs: one with attention without padding."""

    def kernel(logits: Any, labels: Any, bias: Any, vocab: int, smoothing: float, keep: bool) -> Any:
        launches.launched["softmax_kernel"] += 1
        with _disable_current_modes():
            head = vocabulary_head.VocabularyHead.__new__(vocabulary_head.VocabularyHead)
            head.vocab, head.exact, head.bias = vocab, torch.float32, bias
            return head._by_torch(logits, labels, smoothing, keep)

    with (
        patch.dict(TOKENS_OF_A_PASS, cpu=TOKENS_OF_A_PASS["cuda"]),
        patch.dict(vocabulary_head.ALIGNED, cpu=vocabulary_head.ALIGNED["cuda"]),
        patch.dict(vocabulary_head._AT_ONCE, cpu=vocabulary_head._AT_ONCE["cuda"]),
        patch.object(vocabulary_head, "kernel_for", lambda kind: kernel),
        patch.object(fused, "chunk_bytes_of", lambda device: 512 * 2**20),
        patch.object(cast_weights, "CASTS_ONCE", {"cpu", "cuda"}),
        patch.object(packed, "PACKS", {"cpu", "cuda"} if packs else {"cuda"}),
        patch.object(packed, "_one_by_one", counted_once(launches, "varlen_attn", packed._one_by_one)),
    ):
        yield


def launches_of(case: Case, packs: bool = True) -> Launches:
    """Of one step, the second."""
    device = torch.device("cpu")
    text, found = Text.read(400), Launches()
    on, way = Sides(case, text, device), Way("medium", torch.bfloat16, UNSEEN, 0)
    on.modules[0].contexts = replace(on.modules[0].contexts, tokens_per_pass=65536)
    on.use(way)
    with as_on_a_gpu(Launches(), packs):
        on.step("ours", way, text.ask(case, 0, device))
    with as_on_a_gpu(found, packs), found:
        on.step("ours", way, text.ask(case, 1, device))
    return found


def figures(quick: bool) -> dict[str, Value]:
    SHAPES["narrow"] = (NARROW, 30522)
    case = Case(questions=2, n_docs=3, target_len=5, model="tiny") if quick else Case("rag_token", 32, 5, 32, "narrow")
    found = launches_of(case)
    n, padded = found.launched.total(), launches_of(case, packs=False).launched.total()
    figures: dict[str, Value] = {"operators.step": n, "operators.step.views": found.views}
    figures["operators.step.padded"] = padded
    if not quick:
        figures["operators.step.share_of_a15bf0e"] = n / A15BF0E
        figures["operators.step.padded.share_of_a15bf0e"] = padded / A15BF0E
    return figures | {f"operators.step.{name}": times for name, times in found.launched.most_common(10)}


def main() -> None:
    asked = options(__doc__).parse_args()
    prepare_machine()
    warnings.filterwarnings("ignore", message=".*self.log.*")
    finish(asked, figures(asked.quick))


if __name__ == "__main__":
    main()
