"""Which columns of a run's metrics.csv are plotted together, and reading them. plots.py draws what stands here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from openbook.reporting.plot_style import BLUE, GREEN, GREY, ORANGE
from openbook.tracking.curves import Curves


class Line(NamedTuple):
    """One curve. columns: what is measured at a refresh and between refreshes is one curve of several columns.

    style, marker: matplotlib's. restarts: a refresh mends what it shows, so nothing leads from the value before to the
    value after.
    """

    columns: tuple[str, ...]
    label: str
    colour: str
    marker: str = ""
    style: str = "-"
    restarts: bool = False

    def points(self, curves: Curves) -> tuple[list[float], list[float]]:
        """Steps and values of all its columns, steps ascending; where two have the same step, the last one's value."""
        merged = {step: value for name in self.columns for step, value in zip(*curves.get(name, ([], [])), strict=True)}
        return sorted(merged), [merged[step] for step in sorted(merged)]


@dataclass(frozen=True)
class Panel:
    """One plot over steps; `instead` is drawn where none of its columns is there.

    scale: "percent" for rates, "unit" for numbers up to 1 (from 0, unless some are lower), "count" for large whole
    numbers, "" for whatever comes. noisy: long curves get a running mean (never staleness: its jumps are the message).
    optional: only some runs log it, so nothing is missing without.
    """

    title: str
    ylabel: str
    lines: tuple[Line, ...]
    scale: Literal["", "percent", "unit", "count"] = ""
    noisy: bool = False
    optional: bool = False
    instead: Panel | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Everything it draws, in order."""
        return tuple(column for line in self.lines for column in line.columns)

    def chosen(self, curves: Curves) -> Panel | None:
        """This panel or its stand-in, whichever has something to draw."""
        if any(column in curves for column in self.columns):
            return self
        return self.instead.chosen(curves) if self.instead else None

    @property
    def missing(self) -> str:
        """What to say where there is nothing to draw."""
        return "metrics.csv has no " + " or ".join(self.columns)


LOSS = Panel(
    "Training loss",
    "nats per target token",
    (Line(("train/nll_per_token",), "loss", BLUE),),
    noisy=True,
    instead=Panel("Training loss", "nats per question", (Line(("train/nll",), "loss", BLUE),), noisy=True),
)
VALIDATION = Panel(
    "Validation",
    "share of questions",
    (
        Line(("validation/recall_at_5",), "recall@5", GREEN, "o"),
        Line(("validation/recall_at_1",), "recall@1", ORANGE, "o"),
        Line(("validation/exact_match",), "exact match", BLUE, "o"),
    ),
    scale="percent",
)
KEPT = Panel(
    "What the index still gets right",
    "share kept, rank correlation",
    (
        Line(("refresh/overlap_at_k",), "overlap@k at refreshes", GREEN, "o", ":"),
        Line(("staleness/overlap_at_k",), "overlap@k between", BLUE, ".", restarts=True),
        Line(
            ("refresh/rank_correlation", "staleness/rank_correlation"), "rank correlation", ORANGE, "o", restarts=True
        ),
        Line(("index/recall_of_family",), "recall of the family", GREY, "s", ":"),
    ),
    scale="unit",
)
STALENESS = Panel("Staleness", "mean |doc_scores - index_scores|", (Line(("train/staleness",), "staleness", ORANGE),))
DRIFT = Panel(
    "Cosine drift of the passages",
    "mean 1 - cosine to the index's vector",
    (Line(("refresh/cosine_drift", "staleness/cosine_drift"), "drift", ORANGE, "o", restarts=True),),
    optional=True,
)
AGE = Panel(
    "Age of the index",
    "steps",
    (
        Line(("train/steps_since_refresh",), "since the last refresh", GREY),
        Line(("refresh/mean_age",), "mean over its vectors", BLUE),
    ),
    optional=True,
)
ENCODED = Panel(
    "Passages encoded for the index",
    "passages since the start",
    (Line(("refresh/encoded_passages",), "passages", BLUE),),
    scale="count",
    optional=True,
)
ENTROPY = Panel(
    "Entropy of the prior",
    "nats, over the passages of a question",
    (Line(("train/prior_entropy",), "entropy", BLUE),),
    noisy=True,
)
THROUGHPUT = Panel(
    "Throughput",
    "questions per second",
    (Line(("throughput/questions_per_second",), "questions/s", BLUE),),
    noisy=True,
)
PANELS = (LOSS, VALIDATION, KEPT, STALENESS, DRIFT, AGE, ENCODED, ENTROPY, THROUGHPUT)
PICTURE = (LOSS, VALIDATION, KEPT, STALENESS)
"""The four of report.png."""
