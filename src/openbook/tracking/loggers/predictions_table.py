"""Test questions as a table for wandb: answers beside the passages they were read from, wrong ones first."""

from collections.abc import Sequence
from typing import Any

from openbook.metrics.prediction import Prediction

PASSAGES = 3  # of each question, those with the highest posterior first
FIRST = ["id", "question", "answers", "prediction", "exact_match", "f1"]
OF_EACH = ("title", "text", "prior", "posterior")


def columns() -> list[str]:
    return [*FIRST, *(f"passage_{number}_{name}" for number in range(1, PASSAGES + 1) for name in OF_EACH)]


def rows(predictions: Sequence[Prediction], most: int) -> list[list[Any]]:
    """One row per question, at most so many: first the wrong ones, of these first those with the lowest F1. Where no
    generator answers, wrong is a question whose first passage is not relevant. A row has an empty cell where a question
    has fewer passages."""
    chosen = sorted(predictions, key=lambda one: (*_rightness(one), one.id))[:most]
    return [_row(one) for one in chosen]


def _rightness(one: Prediction) -> tuple[float, float]:
    if one.exact_match is None:
        return float(bool(one.hits) and one.hits[0]), 0.0
    return one.exact_match, one.f1 or 0.0


def _row(one: Prediction) -> list[Any]:
    read = sorted(one.passages, key=lambda passage: -passage.posterior)[:PASSAGES]
    cells = [getattr(passage, name) for passage in read for name in OF_EACH]
    answers = " | ".join(one.answers)
    empty = [None] * (len(columns()) - len(FIRST) - len(cells))
    return [one.id, one.question, answers, one.prediction, one.exact_match, one.f1, *cells, *empty]
