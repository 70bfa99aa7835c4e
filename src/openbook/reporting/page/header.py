"""The headline of a run with its 95 % intervals, phrasings that were never trained on beside it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openbook.metrics.bootstrap import wilson
from openbook.metrics.prediction import Prediction
from openbook.metrics.summary import HELD_OUT, headline, summarize

HEADLINE = {
    "exact_match": "exact match",
    "f1": "F1",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_20": "recall@20",
}
RESAMPLES = 1000  # where a run kept no intervals of its own


@dataclass(frozen=True)
class Cell:
    """A rate as text, and its 95 % interval; "" where it is not known."""

    rate: str
    interval: str = ""


@dataclass(frozen=True)
class HeaderRow:
    """One metric. `better` is 1 or -1 where the change is measurable, else 0. unseen: before and after training."""

    label: str
    before: Cell
    after: Cell
    change: Cell
    better: int
    unseen: tuple[Cell, Cell] | None


def header(summary: Mapping[str, Any], predictions: Sequence[Prediction]) -> list[HeaderRow]:
    """The rates of the test before and after training; [] without either. A change counts as measurable by its paired
    interval (`improved` of summary.json), in runs without one if it is 0.05 points or more."""
    before, after = dict_of(summary.get("before_training")), dict_of(summary.get("test"))
    unseen = [dict_of(dict_of(one.get("by_phrasing")).get(HELD_OUT)) for one in (before, after)]
    if unseen[1] == {key: after.get(key) for key in unseen[1]}:  # there are no others
        unseen = [{}, {}]
    held_out = [one for one in predictions if one.phrasing == HELD_OUT]
    intervals: tuple[dict[str, Any], ...] = (
        dict_of(before.get("intervals")),
        dict_of(after.get("intervals")) or _intervals(headline(predictions)),
        {},
        _intervals(held_out) if unseen[1] else {},
    )
    rows = []
    for key, label in HEADLINE.items():
        old, new = _rate(before.get(key)), _rate(after.get(key))
        if old is None and new is None:
            continue
        change, better = _change(dict_of(dict_of(summary.get("improved")).get(key)), old, new)
        cells = [
            _cell(_rate(rates.get(key)), found.get(key), 0 if key == "f1" else rates.get("n_questions", 0))
            for rates, found in zip((before, after, *unseen), intervals, strict=True)
        ]
        beside = (cells[2], cells[3]) if unseen[1].get(key) is not None else None
        rows.append(HeaderRow(label, cells[0], cells[1], change, better, beside))
    return rows


def counted(summary: Mapping[str, Any]) -> str:
    """How many questions the columns count."""
    after = dict_of(summary.get("test")) or dict_of(summary.get("before_training"))
    phrasings, n = dict_of(after.get("by_phrasing")), after.get("n_questions")
    unseen = dict_of(phrasings.get(HELD_OUT)).get("n_questions") if len(phrasings) > 1 else None
    if not isinstance(n, int):
        return ""
    more = f" and {unseen:,} in phrasings never trained on" if isinstance(unseen, int) else ""
    return f"{n:,} questions{more}"


def dict_of(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _change(paired: Mapping[str, Any], old: float | None, new: float | None) -> tuple[Cell, int]:
    if old is None or new is None:
        return Cell("-"), 0
    points = f"{100 * (new - old):+.1f}"
    match paired.get("interval"):
        case [low, high] if low < high:
            return Cell(points, f"{100 * low:+.1f} to {100 * high:+.1f}"), (low > 0) - (high < 0)
        case [low, high]:  # every question changed by as much
            return Cell(points), (low > 0) - (high < 0)
    return Cell(points), 0 if abs(new - old) < 0.0005 else int(math.copysign(1, new - old))


def _cell(rate: float | None, interval: Any, n_questions: int) -> Cell:
    """n_questions: of a share, else 0. No draw of questions that are all alike differs from another, so that where the
    drawn interval has no width, Wilson's stands in for it."""
    if rate is None:
        return Cell("-")
    ends: tuple[float, float] | None = None
    match interval:
        case [low, high] if low < high:
            ends = low, high
        case [_, _] if n_questions:
            ends = wilson(rate, n_questions)
    return Cell(f"{100 * rate:.1f} %", f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else "")


def _rate(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _intervals(predictions: Sequence[Prediction]) -> dict[str, Any]:
    return summarize(predictions, resamples=RESAMPLES)["intervals"] if predictions else {}
