"""The two numbers of a plan that are measured: seconds per refresh and per step, on a small sample."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from openbook.data.corpus import PassageTokens
from openbook.data.inputs import SpecialIds
from openbook.data.length_batches import plan_passes


def time_encoding(
    coder: Callable[[np.ndarray], object],
    tokens: PassageTokens,
    special: SpecialIds,
    max_length: int,
    tokens_per_pass: int,
    rows: range,
    seconds: float = 1.5,
    seed: int = 0,
) -> float:
    """Predicted seconds to encode all of rows with coder(rows of one pass).

    After a warm-up times as many passes as fit into `seconds`, five at least, at even distances over the tokens of all
    passages in the order of their lengths, from a seeded start: each stands for equally many tokens, and long passages,
    whose tokens cost more, count as they should. A corpus with no more passes than that is timed whole.
    """
    lengths = np.minimum(tokens.lengths[rows.start : rows.stop] + special.n_in_context, max_length)
    passes = sorted(plan_passes(lengths, tokens_per_pass, seed), key=lambda places: int(lengths[places[0]]))
    n_tokens = np.array([len(places) * int(lengths[places[0]]) for places in passes])

    def timed(number: int) -> float:
        started = time.perf_counter()
        coder(passes[number] + rows.start)
        return time.perf_counter() - started

    if not passes:
        return 0.0
    middle = int(np.searchsorted(np.cumsum(n_tokens), n_tokens.sum() / 2))
    n_timed = max(5, int(seconds / max(min(timed(middle), timed(middle)), 1e-9)))
    if n_timed >= len(passes):
        return sum(timed(number) for number in range(len(passes)))
    points = (np.arange(n_timed) + np.random.default_rng(seed).random()) / n_timed * n_tokens.sum()
    chosen = np.searchsorted(np.cumsum(n_tokens), points, side="right")
    return float(n_tokens.sum() * np.mean([timed(int(number)) / n_tokens[number] for number in chosen]))


def time_step(step: Callable[[], None], warm: int = 1, timed: int = 2) -> float:
    """Median seconds of step(), after `warm` untimed ones. Torch's random states are left as they were; whatever else
    the step changes is the caller's to put back."""
    seconds, on_gpu = [], torch.cuda.is_available()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        for number in range(warm + timed):
            started = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            if number >= warm:
                seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
