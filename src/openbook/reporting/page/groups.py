"""Rates and errors per group of questions, as bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openbook.metrics.bootstrap import wilson
from openbook.metrics.prediction import Prediction
from openbook.metrics.summary import headline
from openbook.reporting.page.header import dict_of
from openbook.reporting.page.why import Outcome, Split
from openbook.reporting.plot_style import MEASURES

MOST_GROUPS = 40


@dataclass(frozen=True)
class Bar:
    """A rate from 0 to 1, its 95 % interval (Wilson), and the rate before training; None where not measured."""

    measure: str
    rate: float
    interval: tuple[float, float]
    before: float | None


@dataclass(frozen=True)
class Group:
    """wrong: outcome -> number of questions, {} where predictions.jsonl does not tell."""

    name: str
    n_questions: int
    bars: tuple[Bar, ...]
    wrong: dict[Outcome, int]


def groups(
    before: Mapping[str, Any], after: Mapping[str, Any], predictions: Sequence[Prediction], field: str
) -> list[Group]:
    """Exact match and recall@1 per group, the lowest first. A measure that no group has (exact match where no generator
    answers) is left out.

    before, after: group -> rates as `metrics.summarize` gives them; before may be empty. field: the group's field of a
    Prediction. Of more than 40 groups the 40 with the most questions are given.
    """
    largest = sorted(after, key=lambda name: -_number(dict_of(after[name]).get("n_questions")))[:MOST_GROUPS]
    found = []
    members: dict[str, list[Prediction]] = {}
    for one in headline(predictions) if field == "relation" else predictions:
        members.setdefault(getattr(one, field), []).append(one)
    for name in largest:
        rates, earlier = dict_of(after[name]), dict_of(before.get(name))
        n = int(_number(rates.get("n_questions")))
        bars = tuple(
            Bar(words, float(rates[key]), wilson(float(rates[key]), n or 1), earlier.get(key))
            for key, words in MEASURES.items()
            if isinstance(rates.get(key), int | float)
        )
        found.append(Group(name, n, bars, Split.of(members[name]).wrong if name in members else {}))
    return sorted(found, key=lambda group: (group.bars[0].rate if group.bars else 0.0, group.name))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
