"""The plots of a run: curves over steps, as SVG for the report or as one PNG.

Colours are drawn as hex and replaced by CSS variables in the SVG, so that the plots follow the page's light or dark
style.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openbook.reporting.panels import PICTURE, Line, Panel
from openbook.reporting.plot_style import BLUE, GREEN, GREY, GRID, INK, ORANGE, drawing
from openbook.tracking.curves import Curves, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CSS_NAMES = {
    INK: "currentColor",
    GRID: "var(--grid)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    GREY: "var(--grey)",
}
# A curve with at least so many points is drawn faintly, with its running mean over a twentieth of its length.
SMOOTHED_FROM = 60
# With more refreshes than this no lines mark them: they would hide the curves.
MOST_REFRESHES = 60
# A plot of the page, in inches, and its axes within it: narrower than a page of 400 pixels at 72 points an inch, which
# so never shows letters smaller than they are.
PAGE_SIZE, PAGE_AXES, PAGE_FONT = (4.4, 2.4), (0.135, 0.13, 0.85, 0.83), 9.5
BASELINE = "before the first step"
# Roughly how many characters of title and legend fit side by side; a longer legend goes below the plot.
TITLE_ROW = 62


@dataclass(frozen=True)
class Curve:
    """A plot for the page. svg: the axes alone; title and legend are the page's, so that they follow its width. legend:
    (label, CSS colour, whether its line is broken)."""

    title: str
    ylabel: str
    svg: str
    legend: tuple[tuple[str, str, bool], ...]


def curve_of(panel: Panel, curves: Curves) -> Curve | None:
    """The panel as it is drawn on the page; None where none of its columns is in the curves."""
    chosen = panel.chosen(curves)
    if chosen is None:
        return None
    with drawing(*PAGE_SIZE, fitted=False) as figure:
        axes = figure.add_axes(PAGE_AXES)
        _draw(axes, chosen, curves)
        axes.tick_params(labelsize=PAGE_FONT)
        legend = tuple(
            (label, CSS_NAMES.get(handle.get_color(), INK), handle.get_linestyle() not in ("-", "None"))
            for label, handle in _legend_entries(axes, chosen).items()
        )
        return Curve(chosen.title, chosen.ylabel, _svg(figure, chosen.title), legend)


def plot_run(run_folder: Path, path_png: Path) -> None:
    """Loss, validation, agreement of the index and staleness as one PNG of 1200 x 800 pixels. A panel without data
    names the columns that metrics.csv lacks."""
    metrics = run_folder / "metrics.csv"
    curves = read_metrics(metrics) if metrics.is_file() else {}
    with drawing(12, 8, path_png) as figure:
        for axes, panel in zip(figure.subplots(2, 2).flat, PICTURE, strict=True):
            if chosen := panel.chosen(curves):
                _draw(axes, chosen, curves)
                axes.set(title=chosen.title, xlabel="step", ylabel=chosen.ylabel)
                _legend(axes, chosen)
            else:
                axes.set(title=panel.title, xlabel="step", xticks=[], yticks=[])
                reason = panel.missing if metrics.is_file() else "there is no metrics.csv"
                axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=INK)


def _draw(axes: Axes, panel: Panel, curves: Curves) -> None:
    from matplotlib import ticker

    refreshes = curves.get("refresh/generation", curves.get("refresh/overlap_at_k", ([], [])))[0]
    for step in refreshes if len(refreshes) <= MOST_REFRESHES else ():
        axes.axvline(step, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), label="refresh", zorder=1)
    lowest = 0.0
    for line in panel.lines:
        steps, values = line.points(curves, refreshes)
        if not steps:
            continue
        lowest = min(lowest, *values)  # the NaN of a gap never counts as lower
        if panel.baseline:
            _baseline(axes, line, curves)
        if panel.noisy and len(values) >= SMOOTHED_FROM:
            axes.plot(steps, values, line.style, color=line.colour, alpha=0.3, linewidth=1.0)
            values = _running_mean(values, len(values) // 40)
        axes.plot(steps, values, line.style, color=line.colour, linewidth=1.8, label=line.label)
    # The same range of steps in all plots of a run, so that they can be compared.
    first, last = min(steps[0] for steps, _ in curves.values()), max(steps[-1] for steps, _ in curves.values())
    margin = max(0.02 * (last - first), 0.5)
    axes.set(xlim=(min(first, 0.0) - margin, last + margin))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=8, integer=True))
    if panel.scale in ("percent", "unit"):
        axes.set_ylim(1.03 * lowest, 1.03)
    if panel.scale == "percent":
        axes.yaxis.set_major_formatter("{x:.0%}")
    if panel.scale == "count":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=" "))


def _baseline(axes: Axes, line: Line, curves: Curves) -> None:
    """A line at what was measured before the first update: at step 0, or by the first training step, whose weights
    those are."""
    steps, values = line.points(curves)
    if steps[0] <= 1 and math.isfinite(values[0]):
        axes.axhline(values[0], color=line.colour, linewidth=0.9, linestyle=":", alpha=0.8, label=BASELINE, zorder=1)
        axes.plot([0], [values[0]], "o", color=line.colour, markerfacecolor="none", markersize=5)


def _legend_entries(axes: Axes, panel: Panel) -> dict[str, Any]:
    """{label: the first line of it}."""
    handles, texts = axes.get_legend_handles_labels()
    once = dict(zip(reversed(texts), reversed(handles), strict=True))
    if len(panel.lines) == 1:
        once.pop(panel.lines[0].label, None)  # the title and the axis name it already
    return {text: once[text] for text in dict.fromkeys(texts) if text in once}


def _legend(axes: Axes, panel: Panel) -> None:
    """Every label once, beside the title where there is room, else under the plot."""
    once = _legend_entries(axes, panel)
    if not once:
        return
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.99), "ncols": len(once)}
    if len(panel.title) + sum(len(text) + 3 for text in once) > TITLE_ROW:
        from matplotlib.transforms import ScaledTranslation

        # In inches, whatever the plot's height: tick labels and axis label lie between.
        below = axes.transAxes + ScaledTranslation(0, -0.47, axes.figure.dpi_scale_trans)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "bbox_transform": below, "ncols": 3}
    axes.legend(
        list(once.values()),
        list(once),
        fontsize=8.5,
        handlelength=1.3,
        columnspacing=1.0,
        borderaxespad=0.1,
        **place,
    )


def _svg(figure: Figure, title: str) -> str:
    figure.patch.set_visible(False)
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = written.getvalue()
    # Several plots share one page: ids must be unique.
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg[svg.index("<svg") :])
    svg = re.sub("|".join(CSS_NAMES), lambda colour: CSS_NAMES[colour[0]], svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean over `width` values on either side, fewer at both ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    starts, ends = np.maximum(places - width, 0), np.minimum(places + width + 1, len(values))
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
