"""Which columns of metrics.csv are plotted together; run_plots draws these panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from openbook.reporting.plot_style import BLUE, GREEN, GREY, ORANGE
from openbook.tracking.curves import Curves


class Line(NamedTuple):
    """One curve. columns: several where a value is measured both at refreshes and between them.

    style: its markers and line, as matplotlib writes them. restarts: a refresh resets the value, so no line connects
    the values before and after.
    """

    columns: tuple[str, ...]
    label: str
    colour: str
    style: str = "-"
    restarts: bool = False

    def points(self, curves: Curves, refreshes: Sequence[float] = ()) -> tuple[list[float], list[float]]:
        """Steps and values of all its columns, steps ascending; where two have the same step, the last one's value.

        If it restarts, NaN follows each of the refreshes; a value at a refresh's own step was measured before it.
        """
        merged = {step: value for name in self.columns for step, value in zip(*curves.get(name, ([], [])), strict=True)}
        if merged and self.restarts:
            merged |= {step + 0.5: math.nan for step in refreshes}
        return sorted(merged), [merged[step] for step in sorted(merged)]


@dataclass(frozen=True)
class Panel:
    """One plot over steps; `instead` is drawn if none of its columns exists.

    scale: "percent" for rates, "unit" for numbers up to 1 (from 0, unless some are lower), "count" for large whole
    numbers, "" for automatic limits. noisy: long curves get a running mean (never staleness: its jumps matter).
    optional: only some runs log it, so its absence is not reported. baseline: what was measured before the first update
    is drawn at step 0 and as a line across.
    """

    title: str
    ylabel: str
    lines: tuple[Line, ...]
    scale: Literal["", "percent", "unit", "count"] = ""
    noisy: bool = False
    optional: bool = False
    baseline: bool = False
    instead: Panel | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Everything it draws, in order."""
        return tuple(column for line in self.lines for column in line.columns)

    def chosen(self, curves: Curves) -> Panel | None:
        """This panel or its replacement, whichever has something to draw."""
        if any(column in curves for column in self.columns):
            return self
        return self.instead.chosen(curves) if self.instead else None

    @property
    def missing(self) -> str:
        """The message if there is nothing to draw."""
        return "metrics.csv has no " + " or ".join(self.columns)


LOSS = Panel(
    "Training loss",
    "nats per target token",
    (Line(("train/nll_per_token",), "loss", BLUE),),
    noisy=True,
    baseline=True,
    instead=Panel(
        "Training loss", "nats per question", (Line(("train/nll",), "loss", BLUE),), noisy=True, baseline=True
    ),
)
VALIDATION = Panel(
    "Validation",
    "share of questions",
    (
        Line(("validation/recall_at_5",), "recall@5", GREEN, "o-"),
        Line(("validation/recall_at_1",), "recall@1", ORANGE, "o-"),
        Line(("validation/exact_match",), "exact match", BLUE, "o-"),
        Line(("validation/f1",), "F1", GREY, "o-"),
    ),
    scale="percent",
    baseline=True,
)
AGREEMENT = Panel(
    "Agreement of the index with the current encoders",
    "overlap, rank correlation",
    (
        Line(("refresh/overlap_at_k",), "overlap@k at refreshes", GREEN, "o:"),
        Line(("staleness/overlap_at_k",), "overlap@k between refreshes", BLUE, ".-", restarts=True),
        Line(
            ("refresh/rank_correlation", "staleness/rank_correlation"), "rank correlation", ORANGE, "o-", restarts=True
        ),
        Line(("index/recall_of_family",), "recall of the index type", GREY, "s:"),
    ),
    scale="unit",
)
STALENESS = Panel(
    "Staleness",
    "mean |doc_scores - index_scores|",
    (Line(("train/staleness",), "staleness", ORANGE),),
    baseline=True,
)
DRIFT = Panel(
    "Cosine drift of the passages",
    "mean 1 - cosine to the index's vector",
    (Line(("refresh/cosine_drift", "staleness/cosine_drift"), "drift", ORANGE, "o-", restarts=True),),
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
    baseline=True,
)
THROUGHPUT = Panel(
    "Throughput",
    "questions per second",
    (Line(("throughput/questions_per_second",), "questions/s", BLUE),),
    noisy=True,
)
GATE = Panel(
    "How far the generator teaches the retriever",
    "agreement with positive passages, gate",
    (
        Line(("train/agreement",), "agreement (0.5 is chance)", ORANGE),
        Line(("train/gate",), "gate: share of its gradient", BLUE),
    ),
    scale="unit",
    baseline=True,
    optional=True,
)
POSITIVE = Panel(
    "Loss on positive passages",
    "nats per question",
    (Line(("train/positive_nll",), "-log p(positive passage | question)", BLUE),),
    noisy=True,
    baseline=True,
    optional=True,
)
PANELS = (LOSS, VALIDATION, AGREEMENT, STALENESS, GATE, POSITIVE, DRIFT, AGE, ENCODED, ENTROPY, THROUGHPUT)
PICTURE = (LOSS, VALIDATION, AGREEMENT, STALENESS)  # The four of report.png.
