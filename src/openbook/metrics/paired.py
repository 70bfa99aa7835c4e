"""Before and after on the same questions: what training changed, and how surely.

Each question is its own control, so that the interval of a difference is far narrower than those of the two rates: the
questions' differences are resampled (Efron and Tibshirani 1993, chapter 16), not the rates apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from openbook.metrics.bootstrap import bootstrap, mean_of
from openbook.metrics.prediction import Prediction
from openbook.metrics.retrieval import RECALL_AT, first_hit
from openbook.metrics.summary import headline

Values = Mapping[str, Mapping[str, float]]  # {question id: {metric: value}}

_RESAMPLES = 1000

# Of fewer questions that changed, even all of one sign are no wonder: 2 * 0.5 ** 5 is above .05 (the sign test), while
# resampling them gives an interval without 0.
FEWEST_CHANGED = 6


def per_question(records: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """Every metric of each question that the headline counts; exact_match and f1 where there is an answer."""
    values: dict[str, dict[str, float]] = {}
    for record in headline(records):
        rank = first_hit(record.hits)
        values[record.id] = {f"recall_at_{k}": float(rank <= k) for k in RECALL_AT} | {"mrr": 1 / rank}
        answer = {"exact_match": record.exact_match, "f1": record.f1}
        values[record.id] |= {name: value for name, value in answer.items() if value is not None}
    return values


def improvements(
    before: Values, after: Values, resamples: int = _RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{metric: {"improved", "worsened", "difference", "interval", "changed"}} over the questions that both have: the
    mean of after - before, its paired 95 % interval, how many questions changed, and whether that is enough of them and
    the whole interval is above or below 0. Metrics in the order that they are told in."""
    common = [identity for identity in after if identity in before]
    found: dict[str, dict[str, Any]] = {}
    for name in ("exact_match", "f1", *(f"recall_at_{k}" for k in RECALL_AT), "mrr"):
        pairs = [(before[key][name], after[key][name]) for key in common if name in before[key] and name in after[key]]
        if pairs:
            values = [new - old for old, new in pairs]
            low, high = bootstrap({name: mean_of(values)}, resamples or _RESAMPLES, seed)[name]
            changed = sum(value != 0 for value in values)
            enough = changed >= FEWEST_CHANGED
            found[name] = {"improved": enough and low > 0, "worsened": enough and high < 0}
            found[name] |= {"difference": mean_of(values).of(), "interval": [low, high], "changed": changed}
    return found
