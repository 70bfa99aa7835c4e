"""The paper's equations as nested loops in float64: slow, plain, and written without looking at the fast code."""

from __future__ import annotations

import math
from collections.abc import Sequence


def prior(scores: Sequence[float]) -> list[float]:
    """p(z_k|x) over the retrieved passages; a score of -inf is no passage."""
    weights = [math.exp(s - max(scores)) if s != -math.inf else 0.0 for s in scores]
    return [w / sum(weights) for w in weights]


def rag_sequence(tokens: Sequence[Sequence[float]], scores: Sequence[float], mask: Sequence[bool]) -> float:
    """-log sum_k p(z_k|x) prod_t p(y_t|x,z_k,y_<t); tokens[k][t] are log-probabilities."""
    total = 0.0
    for k, p in enumerate(prior(scores)):
        product = 1.0
        for t, counts in enumerate(mask):
            if counts:
                product *= math.exp(tokens[k][t])
        total += p * product
    return -math.log(total)


def rag_token(tokens: Sequence[Sequence[float]], scores: Sequence[float], mask: Sequence[bool]) -> float:
    """-log prod_t sum_k p(z_k|x) p(y_t|x,z_k,y_<t)."""
    likelihood = 1.0
    for t, counts in enumerate(mask):
        if counts:
            likelihood *= sum(p * math.exp(tokens[k][t]) for k, p in enumerate(prior(scores)))
    return -math.log(likelihood)


def posterior_sequence(tokens: Sequence[Sequence[float]], scores: Sequence[float], mask: Sequence[bool]) -> list[float]:
    """p(z_k|x,y) by Bayes' rule."""
    joint = []
    for k, p in enumerate(prior(scores)):
        for t, counts in enumerate(mask):
            p *= math.exp(tokens[k][t]) if counts else 1.0
        joint.append(p)
    return [j / sum(joint) for j in joint]


def posterior_token(
    tokens: Sequence[Sequence[float]], scores: Sequence[float], mask: Sequence[bool]
) -> list[list[float]]:
    """For each counted token: p(z_k | x, y_<=t) with the passage drawn anew per token."""
    rows = []
    for t, counts in enumerate(mask):
        if counts:
            joint = [p * math.exp(tokens[k][t]) for k, p in enumerate(prior(scores))]
            rows.append([j / sum(joint) for j in joint])
    return rows
