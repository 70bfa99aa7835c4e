"""Attention with its projections, forward and backward, by every function there is for it.

    python -m benchmarks.training.attention [--out FILE] [--quick]

One layer of BART-base's shape over 20 contexts of 142 tokens with some padding, read by themselves or by targets of 32
and of 8 tokens. `eager` and `sdpa` are transformers' own, `openbook` is models/attention with keys and values,
`absorbed` without. Turn by turn, medians of 7; `attention.<case>.<dtype>.<function>` are seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BartConfig
from transformers.models.bart.modeling_bart import BartAttention

from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import now, prepare_machine
from openbook.models.attention import NAME, cache_over
from openbook.utils.hardware import autocast_dtype

CASES = {"self": 0, "cross_32": 32, "cross_8": 8}
"""Tokens of a target; 0: the contexts read themselves."""


def run(layer: Any, states: Tensor, memory: Tensor | None, hidden: Tensor, function: str) -> None:
    """One forward and backward pass. hidden [n, 1, 1, context_len] bool: True at padding."""
    seen = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, torch.finfo(torch.float32).min)
    layer.config._attn_implementation = NAME if function == "absorbed" else function
    cache = cache_over(memory, 1) if function == "absorbed" and memory is not None else None
    mask = seen if function == "eager" else ~hidden
    mask = mask.expand(-1, -1, states.shape[1], -1)
    read, _ = layer(states, key_value_states=memory, past_key_values=cache, attention_mask=mask)
    read.float().sum().backward()


def figures(case: str, dtype: torch.dtype | None, n: int, length: int, rounds: int) -> dict[str, Value]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = BartConfig(attention_dropout=0.0)
    layer = BartAttention(768, 12, is_decoder=bool(CASES[case]), config=config, layer_idx=0).to(device)
    contexts = torch.randn(n, length, 768, device=device, requires_grad=True)
    target = torch.randn(n, CASES[case], 768, device=device, requires_grad=True)
    hidden = (torch.arange(length, device=device) >= length - torch.arange(n, device=device)[:, None] % 9)[
        :, None, None
    ]
    states, memory = (target, contexts) if CASES[case] else (contexts, None)
    functions = ["eager", "sdpa", NAME, *(["absorbed"] if CASES[case] else [])]
    sides: dict[str, Callable[[], None]] = {
        name: partial(run, layer, states, memory, hidden, name) for name in functions
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            started = now()
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                side()
            seconds[name].append(now() - started)
    words = str(dtype or torch.float32).removeprefix("torch.")
    return {f"attention.{case}.{words}.{name}": median(found[1:]) for name, found in seconds.items()}


def main() -> None:
    asked = options(__doc__).parse_args()
    prepare_machine()
    found: dict[str, Value] = {}
    fast = autocast_dtype("auto", "gpu" if torch.cuda.is_available() else "cpu")
    for case in CASES:
        for dtype in dict.fromkeys((None, fast)):
            found |= figures(case, dtype, *((2, 16, 1) if asked.quick else (20, 142, 7)))
    finish(asked, found)


if __name__ == "__main__":
    main()
