"""The plots of a run: curves over steps and bars per group, as SVG to be inlined or as one PNG.

Figures are made as objects, never through pyplot, so drawing leaves no state and needs no display. Colours are
written as hex and become CSS variables in the SVG: a page's light or dark style then reaches into the plot.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

Curves = dict[str, tuple[list[float], list[float]]]
"""Column of metrics.csv -> (steps, values), steps ascending."""

INK, GRID, BLUE, ORANGE, GREEN, GREY = "#24292f", "#d8dee4", "#2f6fd0", "#d97706", "#15956b", "#8c959f"
CSS_NAMES = {
    INK: "currentColor",
    GRID: "var(--grid)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    GREY: "var(--grey)",
}
SMOOTHED_FROM = 60
"""From so many points on a curve is drawn faintly, with its running mean over a twentieth of its length."""
MOST_GROUPS = 40
LONGEST_NAME = 34


@dataclass(frozen=True)
class Panel:
    """One plot over steps. lines: column, label, colour; `instead` is drawn where none of its columns is there.

    rate: 0 to 1, shown in percent. noisy: long curves get a running mean (never staleness: its jumps are the message).
    """

    title: str
    ylabel: str
    lines: tuple[tuple[str, str, str], ...]
    rate: bool = False
    noisy: bool = False
    marker: str = ""
    instead: Panel | None = None

    def chosen(self, curves: Curves) -> Panel | None:
        """This panel or its stand-in, whichever has something to draw."""
        if any(column in curves for column, _, _ in self.lines):
            return self
        return self.instead.chosen(curves) if self.instead else None

    @property
    def missing(self) -> str:
        """What to say where there is nothing to draw."""
        return "metrics.csv has no " + " or ".join(column for column, _, _ in self.lines)


LOSS = Panel(
    "Training loss",
    "nats per target token",
    (("train/nll_per_token", "loss", BLUE),),
    noisy=True,
    instead=Panel("Training loss", "nats per question", (("train/nll", "loss", BLUE),), noisy=True),
)
VALIDATION = Panel(
    "Validation",
    "share of questions",
    (
        ("validation/recall_at_5", "recall@5", GREEN),
        ("validation/recall_at_1", "recall@1", ORANGE),
        ("validation/exact_match", "exact match", BLUE),
    ),
    rate=True,
    marker="o",
)
OVERLAP = Panel(
    "Overlap@k of the old and the new index",
    "share of passages kept",
    (("refresh/overlap_at_k", "overlap@k", GREEN),),
    rate=True,
    marker="o",
)
STALENESS = Panel("Staleness", "mean |doc_scores - index_scores|", (("train/staleness", "staleness", ORANGE),))
ENTROPY = Panel(
    "Entropy of the prior",
    "nats, over the passages of a question",
    (("train/prior_entropy", "entropy", BLUE),),
    noisy=True,
)
THROUGHPUT = Panel(
    "Throughput", "questions per second", (("throughput/questions_per_second", "questions/s", BLUE),), noisy=True
)
PANELS = (LOSS, VALIDATION, OVERLAP, STALENESS, ENTROPY, THROUGHPUT)


def read_metrics(path: Path) -> Curves:
    """The columns of a CSV with a `step` column and gaps, as Lightning's CSVLogger writes it.

    A step written twice (a resumed run) counts with its last value; cells that are not finite numbers are gaps.
    """
    columns: dict[str, dict[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            step = _number(row.get("step"))
            if step is None:
                continue
            for column, cell in row.items():
                value = _number(cell)
                if value is not None and column not in ("step", None):
                    columns.setdefault(column, {})[step] = value
    return {
        column: ([step for step, _ in points], [value for _, value in points])
        for column, points in ((column, sorted(values.items())) for column, values in columns.items())
    }


def curve_svg(panel: Panel, curves: Curves) -> str:
    """The panel as an <svg> element, or "" where none of its columns is in the curves."""
    chosen = panel.chosen(curves)
    if chosen is None:
        return ""
    figure = _figure(5.6, 3.2)
    with _style():
        _draw(figure.add_subplot(), chosen, curves)
        return _svg(figure, chosen.title)


def groups_svg(before: Mapping[str, Any], after: Mapping[str, Any], title: str) -> str:
    """Exact match and recall@1 per group as horizontal bars, an <svg> element; "" without groups.

    before, after: group -> rates as `metrics.summarize` gives them; before may be empty. Of more than 40 groups the
    40 with the most questions are drawn.
    """
    if not after:
        return ""
    largest = sorted(after, key=lambda name: -after[name].get("n_questions", 0))[:MOST_GROUPS]
    names = sorted(largest, key=lambda name: (after[name].get("exact_match", 0.0), name))
    labels = [f"{_short(name)} ({after[name].get('n_questions', '?')})" for name in names]
    places = np.arange(len(names))
    figure = _figure(11.4, 1.1 + 0.34 * len(names))
    with _style():
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key, heading in ((left, "exact_match", "Exact match"), (right, "recall_at_1", "Recall@1")):
            sides = [(after, "after training", BLUE, -0.19 if before else 0.0)]
            if before:
                sides.append((before, "before training", GREY, 0.19))
            for groups, label, colour, shift in sides:
                values = [groups.get(name, {}).get(key, math.nan) for name in names]
                axes.barh(places + shift, values, height=0.36 if before else 0.6, color=colour, label=label)
            _dress(axes, heading, "", "")
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(visible=False, axis="y")
            axes.set_yticks(places, labels)
            axes.set_ylim(-0.6, len(names) - 0.4)
        handles, texts = left.get_legend_handles_labels()
        figure.legend(
            handles[::-1], texts[::-1], loc="outside upper right", ncols=2, frameon=False, labelcolor=INK, fontsize=9
        )
        return _svg(figure, title)


def plot_run(run_folder: Path, path_png: Path) -> None:
    """Loss, validation, overlap@k and staleness of a run as one PNG of 1200 x 800 pixels.

    What metrics.csv does not have is said in its panel.
    """
    metrics = run_folder / "metrics.csv"
    curves = read_metrics(metrics) if metrics.is_file() else {}
    figure = _figure(12, 8)
    with _style():
        for axes, panel in zip(figure.subplots(2, 2).flat, (LOSS, VALIDATION, OVERLAP, STALENESS), strict=True):
            chosen = panel.chosen(curves)
            if chosen:
                _draw(axes, chosen, curves)
            else:
                _dress(axes, panel.title, "step", "")
                axes.set_yticks([])
                axes.set_xticks([])
                said = panel.missing if metrics.is_file() else "there is no metrics.csv"
                axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color=INK)
        FigureCanvasAgg(figure).print_png(path_png)


def _draw(axes: Axes, panel: Panel, curves: Curves) -> None:
    refreshes = curves.get("refresh/generation", curves.get("refresh/overlap_at_k", ([], [])))[0]
    for step in refreshes if panel is not OVERLAP else ():
        axes.axvline(step, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), label="refresh", zorder=1)
    for column, label, colour in panel.lines:
        if column not in curves:
            continue
        steps, values = curves[column]
        smooth = panel.noisy and len(values) >= SMOOTHED_FROM
        axes.plot(
            steps, values, color=colour, alpha=0.3 if smooth else 1.0, linewidth=1.0 if smooth else 1.8,
            marker=panel.marker, markersize=4, label="" if smooth else label,
        )  # fmt: skip
        if smooth:
            axes.plot(steps, _running_mean(values, len(values) // 40), color=colour, linewidth=1.8, label=label)
    _dress(axes, panel.title, "step", panel.ylabel)
    # One range of steps for all plots of a run, so that they can be read one above the other.
    first, last = min(steps[0] for steps, _ in curves.values()), max(steps[-1] for steps, _ in curves.values())
    margin = max(0.02 * (last - first), 0.5)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if panel.rate:
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, texts = axes.get_legend_handles_labels()
    once = dict(zip(texts, handles, strict=True))
    if len(panel.lines) == 1:
        once.pop(panel.lines[0][1], None)  # the title and the axis name it already
    if once:
        axes.legend(
            list(once.values()), list(once), frameon=False, labelcolor=INK, fontsize=8.5, ncols=len(once),
            loc="lower right", bbox_to_anchor=(1.0, 0.99), handlelength=1.3, columnspacing=1.0, borderaxespad=0.1,
        )  # fmt: skip


def _dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK, labelsize=8.5)
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _figure(width: float, height: float) -> Figure:
    """Inches; 100 pixels to the inch in a PNG."""
    figure = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    figure.patch.set_facecolor("white")
    return figure


def _style() -> Any:
    # Names of relations are the user's text: a dollar sign in one is no formula. Text stays text in the SVG.
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "openbook", "text.parse_math": False})


def _svg(figure: Figure, title: str) -> str:
    figure.patch.set_visible(False)
    written = io.StringIO()
    FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})
    svg = written.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Several plots share one page: ids must not meet.
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, name in CSS_NAMES.items():
        svg = svg.replace(colour, name)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean over `width` values to either side, fewer at the two ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    starts, ends = np.maximum(places - width, 0), np.minimum(places + width + 1, len(values))
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _number(cell: object) -> float | None:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
