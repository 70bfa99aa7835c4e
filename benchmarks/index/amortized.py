"""Real training with a blocking and with an amortized refresh, in alternating blocks of steps of one run.

    python -m benchmarks.index.amortized [--out FILE] [--quick]

A block is as many steps as lie between refreshes, with one whole refresh among them. The blocks go amortized, blocking,
amortized, so that a machine that grows slower, or batches that grow longer, cost both the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import Mode, Step, System, system, train

ORDER: tuple[Mode, ...] = ("amortized", "blocking", "amortized")
FIRST = 3
"""The step after which the first refresh is due, and the first that is counted; those before it warm up."""


Measured = TypeVar("Measured")


def blocks(
    every: int, spread: int, quick: bool, run: Callable[[System, int, Callable[[int], Mode]], list[Measured]]
) -> list[list[Measured]]:
    """`every` steps for each block of ORDER, as run() measures them; its refresh starts after the first of them."""
    schedule = f"0-{FIRST + 1}:{FIRST},{FIRST + 1}-:{every}"
    ready = system(quick, f"refresh.every={schedule}", f"refresh.spread={spread}")
    stop = FIRST + every * len(ORDER)
    steps = run(ready, stop - 1, lambda step: ORDER[max(0, step - FIRST) // every])
    return [steps[start - 1 : start - 1 + every] for start in range(FIRST, stop, every)]


def figures(found: list[list[Step]]) -> dict[str, Value]:
    """A step's pause is its training and all manager after it but the encoding of its slice: copying the weights at the
    start of a refresh, comparing and swapping at its end are part of it."""
    amortized = [step for block in found for step in block if step.mode == "amortized"]
    blocking = [step for block in found for step in block if step.mode == "blocking"]
    plain = median([step.training for step in amortized + blocking if not step.slice])
    slices = [step.slice for step in amortized if step.slice]
    worst = max(step.pause for step in amortized)
    per_block = {
        mode: sum(step.training + step.manager for step in steps) / ORDER.count(mode)
        for mode, steps in (("amortized", amortized), ("blocking", blocking))
    }
    return {
        "refresh.amortized.worst_step_ratio": worst / plain,
        "refresh.amortized.worst_step_seconds": worst,
        "refresh.amortized.median_step_seconds": plain,
        "refresh.amortized.slice_seconds": median(slices),
        "refresh.amortized.longest_slice_seconds": max(slices),
        "refresh.amortized.slices": len(slices),
        "refresh.amortized.longest_begin_or_swap_seconds": max(step.manager - step.slice for step in amortized),
        "refresh.amortized.total_ratio": per_block["amortized"] / per_block["blocking"],
        "refresh.amortized.total_seconds": per_block["amortized"],
        "refresh.blocking.total_seconds": per_block["blocking"],
        "refresh.blocking.pause_seconds": max(step.manager for step in blocking),
        "refresh.blocking.worst_training_ratio": max(step.training for step in blocking) / plain,
        "refresh.block_steps": len(found[0]),
    }


def main() -> None:
    asked = options(__doc__).parse_args()
    every, spread = (6, 3) if asked.quick else (20, 10)
    finish(asked, figures(blocks(every, spread, asked.quick, train)))


if __name__ == "__main__":
    main()
