"""What the parts of `make bench-gpu` share: the card, its peaks, times, and how figures are named and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import figures
from benchmarks.common.figures import Value, median
from benchmarks.common.system import now, prepare_machine
from openbook.utils.hardware import autocast_dtype

OUT = Path("benchmarks/gpu.json")
PER_SCORE = 4 * 64  # operations of one attention score: two products over the 64 numbers of a head


def device() -> torch.device:
    """The GPU, or the CPU that stands in for it with --quick."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype() -> torch.dtype:
    """What training computes in here; bf16 on every card that this is for."""
    return autocast_dtype("auto", "gpu" if torch.cuda.is_available() else "cpu") or torch.bfloat16


def in_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in each round, all taking turns, forwards and backwards; two rounds go before."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            started = now()
            sides[name]()
            took = now() - started
            if turn >= 2:
                seconds[name].append(took)
    return seconds


def peak(quick: bool) -> float:
    """Operations per second of a large square product in `dtype`, the best of five."""
    size = 256 if quick else 8192
    left, right = (torch.randn(size, size, device=device(), dtype=dtype()) for _ in range(2))
    return 2 * size**3 / min(in_turns({"product": lambda: left @ right}, 5)["product"])


def bandwidth(quick: bool) -> float:
    """Bytes per second read and written by a copy of 2 GiB, the best of five."""
    source = torch.empty((1 << 20) if quick else (1 << 31), dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(in_turns({"copy": lambda: target.copy_(source)}, 5)["copy"])


def memory_of(run: Callable[[], Any]) -> int | None:
    """Bytes that run() takes on the GPU at its peak beyond what is there before; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds."""
    return median([one / other for one, other in zip(above, below, strict=True)])


def main(description: str | None, measure: Callable[[bool], dict[str, Value]]) -> None:
    """The command line of one part. Without a GPU it runs with --quick alone; that writes nothing without --out."""
    asked = figures.options(description).parse_args()
    if not torch.cuda.is_available() and not asked.quick:
        raise SystemExit("no GPU: torch finds no CUDA device. --quick runs every part on the CPU, at tiny sizes.")
    prepare_machine()
    found = measure(asked.quick)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    asked.out = asked.out or (None if asked.quick else OUT)
    figures.finish(asked, {"gpu.card": card, **found})
