"""Maximum inner product search by comparing everything with everything, in exact sums."""

from __future__ import annotations

from math import fsum

import numpy as np


def inner_products(questions: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """[batch, n] fp32, correctly rounded twice: products of fp32 numbers are exact in fp64, and fsum rounds once."""
    products = questions.astype(np.float64)[:, None] * passages.astype(np.float64)
    sums = [[fsum(pair) for pair in question] for question in products.tolist()]
    return np.array(sums, dtype=np.float32).reshape(len(questions), len(passages))


def top_k(questions: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """rows and scores [batch, min(k, n)], highest first; the lower row first where fp32 scores are equal."""
    scores = inner_products(questions, passages)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


def recall(rows: np.ndarray, exact: np.ndarray) -> float:
    """The share of exact [batch, k] that is in rows [batch, any]."""
    return float(np.mean([np.isin(right, found).mean() for right, found in zip(exact, rows, strict=True)]))
