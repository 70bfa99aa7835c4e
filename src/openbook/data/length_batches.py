"""Batches of similar length: forward passes that pad little."""

from collections.abc import Iterator

import numpy as np

# What a pass of training costs beside its tokens, in tokens: weights are read and their gradients written on a CPU, and
# a GPU waits for its kernels to be launched.
TOKENS_OF_A_PASS = {"cpu": 100, "cuda": 16384}


def by_length(lengths: np.ndarray, tokens_per_pass: int, padded: bool = True) -> Iterator[np.ndarray]:
    """Positions of `lengths`, longest first, cut into passes of at most tokens_per_pass tokens, padding included (one
    position at least): little is padded, and on a CPU small passes stay in its cache. With padded=False a pass holds
    one length only, so that it needs neither padding nor an attention mask."""
    order = np.argsort(-lengths, kind="stable")
    falling, rising = lengths[order], -lengths[order]
    start = 0
    while start < len(order):
        stop = start + max(1, tokens_per_pass // max(1, int(falling[start])))
        if not padded:
            stop = min(stop, int(np.searchsorted(rising, rising[start], side="right")))
        yield order[start:stop]
        start = stop


def cheapest_passes(lengths: np.ndarray, tokens_per_pass: int, tokens_of_a_pass: int) -> list[np.ndarray]:
    """As `by_length`, but cut where padding and passes together cost least: a pass costs as much as tokens_of_a_pass
    tokens beside its own, padding included. By dynamic programming over the n places to cut at; n arrays of work."""
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    n = len(order)
    cost, cut = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=np.int64)
    cost[0] = 0.0
    for start in range(n):
        most = min(n - start, max(1, tokens_per_pass // max(1, int(falling[start]))))
        ends = slice(start + 1, start + 1 + most)
        through = cost[start] + tokens_of_a_pass + falling[start] * np.arange(1, most + 1)
        cut[ends][through < cost[ends]] = start
        cost[ends] = np.minimum(cost[ends], through)
    passes, stop = [], n
    while stop:
        passes.append(order[cut[stop] : stop])
        stop = int(cut[stop])
    return passes[::-1]


def packed_passes(lengths: np.ndarray, tokens_per_pass: int) -> list[np.ndarray]:
    """Positions of `lengths` [n], in order, cut into passes of at most tokens_per_pass tokens (one position at least)
    that need no padding (models/passes/packed)."""
    passes, start, total = [], 0, 0
    for place, length in enumerate(lengths.tolist()):
        if total + length > tokens_per_pass and place > start:
            passes.append(np.arange(start, place))
            start, total = place, 0
        total += length
    return [*passes, np.arange(start, len(lengths))] if len(lengths) else passes


def plan_passes(lengths: np.ndarray, tokens_per_pass: int, seed: int = 0, packs: bool = False) -> list[np.ndarray]:
    """Places into lengths [n], in forward passes of one length and at most tokens_per_pass tokens each. packs: what is
    too little to fill a pass of its length goes into passes of several (`packed_passes`).

    The passes come in a seeded random order: whatever a part of them takes, it takes passages of all lengths.
    """
    passes = list(by_length(lengths, tokens_per_pass, padded=False))
    if packs:

        def full(places: np.ndarray) -> bool:
            return bool((len(places) + 1) * lengths[places[0]] > tokens_per_pass)

        rest = np.concatenate([lengths[:0], *(places for places in passes if not full(places))])
        together = [rest[some] for some in packed_passes(lengths[rest], tokens_per_pass)]
        passes = [*filter(full, passes), *together]
    order = np.random.default_rng(seed).permutation(len(passes))
    return [passes[number] for number in order]
