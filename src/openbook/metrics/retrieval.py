"""Which retrieved passages are relevant, and the rank of the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from openbook.metrics.matching import has_answer

if TYPE_CHECKING:  # commands that read a run's files do without torch
    from openbook.batch import Example, Passage

RECALL_AT = (1, 5, 20)  # The depths k that every summary reports.


def answer_hits(answers: Sequence[str], passages: Sequence[Passage], regex: bool = False) -> tuple[bool, ...]:
    """Which passages hold an answer (`has_answer` on their text, as DPR counts)."""
    return tuple(has_answer(passage.text, answers, regex) for passage in passages)


def gold_hits(positive_ids: Sequence[str], passages: Sequence[Passage]) -> tuple[bool, ...]:
    """Which passages are known positive ones; () where none is known."""
    return tuple(passage.id in positive_ids for passage in passages) if positive_ids else ()


def judgements(example: Example) -> tuple[tuple[str, int], ...]:
    """(id, grade) of every positive passage, once each."""
    return tuple(
        dict(zip(example.positive_ids, example.grades or (1,) * len(example.positive_ids), strict=True)).items()
    )


def relevant_passages(example: Example, passages: Sequence[Passage], regex: bool = False) -> tuple[bool, ...]:
    """Which retrieved passages count for recall: the known positive ones; where none is known, those with an answer."""
    return gold_hits(example.positive_ids, passages) or answer_hits(example.answers, passages, regex)


def first_hit(hits: Sequence[bool]) -> float:
    """Rank of the first relevant passage among the top 20, from 1; infinite where there is none."""
    return next((float(rank) for rank, hit in enumerate(hits[: max(RECALL_AT)], 1) if hit), math.inf)
