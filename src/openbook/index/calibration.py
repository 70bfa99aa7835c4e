"""Scores of passages of different ages, made comparable: what an old vector's score would be if it were encoded today.

As both encoders learn, scores gain contrast: current vectors score higher near the top and lower far from it than old
ones do. In an index of mixed ages the younger passage then wins over the better one, and the more passages are renewed
the worse it gets, until most are. Passages that a step encodes anyway show the change: their old vector and their new
one, before the old one is replaced.
"""

from typing import Any

import numpy as np
import torch

# Passages whose old and new vectors are kept; with 64 the estimate is hardly better than none.
PAIRS = 256

CANDIDATES = 50  # Passages per question whose scores are calibrated.

_FARTHEST = 1.5  # times the mean age of the pairs: how far the line is followed


class Calibration:
    """Old and new vectors of the passages replaced last.

    For every question mean and spread (`_spread`) of the pairs' scores are known then and now. A stored score is
    moved from the one to the other, in proportion to its vector's age: score' = mean + spread (score - mean_a) /
    spread_a, where mean_a and spread_a lie on the line between now (age 0) and then (the pairs' mean age).
    """

    def __init__(self, dim: int):
        self.then, self.now = np.empty((0, dim), dtype=np.float32), np.empty((0, dim), dtype=np.float32)
        self.ages = np.empty(0, dtype=np.float32)

    def add(self, then: np.ndarray, now: np.ndarray, ages: np.ndarray) -> None:
        """Vectors [n, dim] of passages as they were stored and as they are, ages [n] of the former in steps."""
        self.then = np.concatenate([self.then, then])[-PAIRS:]
        self.now = np.concatenate([self.now, now])[-PAIRS:]
        self.ages = np.concatenate([self.ages, ages.astype(np.float32)])[-PAIRS:]

    def __call__(self, questions: np.ndarray, scores: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """Comparable scores [n, k] of questions [n, dim] from stored ones [n, k] and their vectors' ages [n, k].

        Scores are left as they are until there are enough pairs to know.
        """
        if len(self.ages) < PAIRS:
            return scores
        then, now = (questions.astype(np.float64) @ vectors.T for vectors in (self.then, self.now))
        mean, spread = now.mean(1, keepdims=True), _spread(now)
        weight = np.minimum(ages / max(float(self.ages.mean()), 1.0), _FARTHEST)
        mean_a = mean + weight * (then.mean(1, keepdims=True) - mean)
        spread_a = spread + weight * (_spread(then) - spread)
        return (mean + spread * (scores - mean_a) / np.maximum(spread_a, 0.1 * spread)).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.from_numpy(getattr(self, name)) for name in ("then", "now", "ages")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value.numpy())


def _spread(scores: np.ndarray) -> np.ndarray:
    """[n, 1]: the fourth root of the fourth central moment of scores [n, pairs].

    The standard deviation is that of the many pairs far from a question; contrast grows more for the few near it, and
    those are the ones that compete.
    """
    return ((scores - scores.mean(1, keepdims=True)) ** 4).mean(1, keepdims=True) ** 0.25
