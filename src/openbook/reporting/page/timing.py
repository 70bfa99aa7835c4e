"""Where a run's time went, as the parts of one bar."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openbook.reporting.page.header import dict_of
from openbook.utils.console import duration

# Stage of summary.json -> what happened in it.
STAGES = {
    "build": "build: data, models, plan",
    "warmup": "warm-up of the reader",
    "index": "first index",
    "train": "training steps",
    "refresh": "refreshing the index",
    "validation": "validation",
    "test": "test, before and after",
}
# Runs that did not tell as many stages apart.
SECONDS = {
    "setup": "build and warm-up",
    "train": "training and validation",
    "refresh": "building and refreshing the index",
    "evaluate": "test, before and after",
}
REST = 0.01  # of the time that is in no stage; less is not shown


@dataclass(frozen=True)
class Part:
    """share: of the whole time, 0 to 1. shade: of one of the bar's colours."""

    name: str
    time: str
    share: float
    shade: int


def time_bar(summary: Mapping[str, Any]) -> list[Part]:
    """The stages that took any time, in the order of a run; [] where none is known."""
    seconds, stages = dict_of(summary.get("seconds")), dict_of(summary.get("stages"))
    names, spent = (STAGES, stages) if stages else (SECONDS, seconds)
    known = {name: value for name, value in spent.items() if name in names and isinstance(value, int | float)}
    given, everything = seconds.get("total"), float(sum(known.values()))
    total = max(float(given) if isinstance(given, int | float) else 0.0, everything)
    if not total:
        return []
    parts = [
        Part(words, duration(known[name]), known[name] / total, shade)
        for shade, (name, words) in enumerate(names.items())
        if known.get(name)
    ]
    if total - everything > REST * total:
        parts.append(Part("in no stage", duration(total - everything), 1 - everything / total, len(STAGES)))
    return parts
