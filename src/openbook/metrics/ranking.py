"""A ranking of many passages measured as the field does: recall, nDCG, MRR and success at several depths.

Numbers are those of trec_eval on the files that are written (tracking/trec.py): passages that are not judged are not
relevant, gains are the grades themselves, and the ideal ranking has all judged passages of a question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from openbook.metrics.prediction import Prediction

DEPTHS = (1, 5, 10, 20, 50, 100)


def depths_to(depth: int) -> tuple[int, ...]:
    return (*(k for k in DEPTHS if k < depth), depth)


def recall(grades: Sequence[int], ideal: Sequence[int], k: int) -> float:
    """Share of the relevant passages that are among the first k. grades: of the ranking, best first, 0 where not
    relevant; ideal: of all relevant passages."""
    return sum(grade > 0 for grade in grades[:k]) / len(ideal)


def ndcg(grades: Sequence[int], ideal: Sequence[int], k: int) -> float:
    """Discounted cumulative gain, sum of grade / log2(rank + 1) over the first k, by that of the best ranking
    (Jarvelin and Kekalainen 2002, with trec_eval's linear gain)."""
    return _dcg(grades[:k]) / _dcg(sorted(ideal, reverse=True)[:k])


def _dcg(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def reciprocal_rank(hits: Sequence[object], k: int) -> float:
    """1 / rank of the first hit among the first k; 0 where there is none."""
    return next((1 / rank for rank, hit in enumerate(hits[:k], 1) if hit), 0.0)


def summarize_ranking(records: Sequence[Prediction], depth: int) -> dict[str, Any]:
    """{"by_ids": over questions with judged passages, "by_answers": over questions with answers}, each with
    n_questions and means from 0 to 1: success_at_k (a relevant passage, or one with an answer, among the first k),
    mrr_at_10 and mrr_at_DEPTH; by ids also recall_at_k (share of the relevant ones), ndcg_at_10 and ndcg_at_DEPTH. A
    part without a question is left out."""
    by_ids, by_answers = [], []
    ends = tuple(dict.fromkeys((min(10, depth), depth)))
    for record in records:
        if record.judged:
            judged = dict(record.judged)
            grades, ideal = [judged.get(identity, 0) for identity, _ in record.ranking], list(judged.values())
            own = {f"recall_at_{k}": recall(grades, ideal, k) for k in depths_to(depth)}
            own |= {f"ndcg_at_{k}": ndcg(grades, ideal, k) for k in ends}
            by_ids.append(own | _hits(grades, depth, ends))
        if record.answers:
            by_answers.append(_hits([holds for _, holds in record.ranking], depth, ends))
    parts = {"by_ids": by_ids, "by_answers": by_answers}
    return {
        name: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} | {"n_questions": len(rows)}
        for name, rows in parts.items()
        if rows
    }


def lines_of(summary: dict[str, Any]) -> list[str]:
    """A line for each part of such a summary."""
    names = {"by_ids": "judged by ids", "by_answers": "judged by answers"}
    return [
        f"{names[part]}, {rates['n_questions']:,} questions: "
        + ", ".join(f"{key} {value:.4f}" for key, value in rates.items() if key != "n_questions")
        for part, rates in summary.items()
    ]


def _hits(hits: Sequence[object], depth: int, ends: Sequence[int]) -> dict[str, float]:
    found = {f"success_at_{k}": float(any(hits[:k])) for k in depths_to(depth)}
    return found | {f"mrr_at_{k}": reciprocal_rank(hits, k) for k in ends}
