"""The plots of a run: curves over steps and bars per group, as SVG for the report or as one PNG.

Colours are drawn as hex and replaced by CSS variables in the SVG, so that the plots follow the page's light or dark
style.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openbook.reporting.panels import PICTURE, Panel
from openbook.reporting.plot_style import BLUE, GREEN, GREY, GRID, INK, MEASURES, ORANGE, drawing
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
MOST_GROUPS = 40
LONGEST_NAME = 34
# With more refreshes than this no lines mark them: they would hide the curves.
MOST_REFRESHES = 60
# Roughly how many characters of title and legend fit side by side; a longer legend goes below the plot.
TITLE_ROW = 62


def curve_svg(panel: Panel, curves: Curves) -> str:
    """The panel as an <svg> element, or "" where none of its columns is in the curves."""
    chosen = panel.chosen(curves)
    if chosen is None:
        return ""
    with drawing(5.6, 3.2) as figure:
        _draw(figure.add_subplot(), chosen, curves)
        return _svg(figure, chosen.title)


def groups_svg(before: Mapping[str, Any], after: Mapping[str, Any], title: str) -> str:
    """Exact match and recall@1 per group as horizontal bars, an <svg> element; "" without groups. A measure that no
    group has (exact match where no generator answers) is left out.

    before, after: group -> rates as `metrics.summarize` gives them; before may be empty. Of more than 40 groups the
    40 with the most questions are drawn.
    """
    if not after:
        return ""
    largest = sorted(after, key=lambda name: -after[name].get("n_questions", 0))[:MOST_GROUPS]
    drawn = [key for key in MEASURES if any(after[name].get(key) is not None for name in largest)] or list(MEASURES)
    names = sorted(largest, key=lambda name: (after[name].get(drawn[0]) or 0.0, name))
    labels = [f"{_short(name)} ({after[name].get('n_questions', '?')})" for name in names]
    places = np.arange(len(names))
    sides = [(after, "after training", BLUE, 0.0)]
    if before:
        sides = [(after, "after training", BLUE, -0.19), (before, "before training", GREY, 0.19)]
    with drawing(11.4, 1.1 + 0.34 * len(names)) as figure:
        plots = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for axes, key in zip(plots, drawn, strict=True):
            for groups, label, colour, shift in sides:
                values = [groups.get(name, {}).get(key, math.nan) for name in names]
                axes.barh(places + shift, values, height=0.36 if before else 0.6, color=colour, label=label)
            axes.set(title=MEASURES[key], xlim=(0, 1), ylim=(-0.6, len(names) - 0.4))
            axes.xaxis.set_major_formatter("{x:.0%}")
            axes.grid(visible=False, axis="y")
            axes.set_yticks(places, labels)
        figure.legend(*plots[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, reverse=True)
        return _svg(figure, title)


def plot_run(run_folder: Path, path_png: Path) -> None:
    """Loss, validation, agreement of the index and staleness as one PNG of 1200 x 800 pixels. A panel without data
    names the columns that metrics.csv lacks."""
    metrics = run_folder / "metrics.csv"
    curves = read_metrics(metrics) if metrics.is_file() else {}
    with drawing(12, 8, path_png) as figure:
        for axes, panel in zip(figure.subplots(2, 2).flat, PICTURE, strict=True):
            if chosen := panel.chosen(curves):
                _draw(axes, chosen, curves)
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
        if panel.noisy and len(values) >= SMOOTHED_FROM:
            axes.plot(steps, values, line.style, color=line.colour, alpha=0.3, linewidth=1.0)
            values = _running_mean(values, len(values) // 40)
        axes.plot(steps, values, line.style, color=line.colour, linewidth=1.8, label=line.label)
    # The same range of steps in all plots of a run, so that they can be compared.
    first, last = min(steps[0] for steps, _ in curves.values()), max(steps[-1] for steps, _ in curves.values())
    margin = max(0.02 * (last - first), 0.5)
    axes.set(title=panel.title, xlabel="step", ylabel=panel.ylabel, xlim=(first - margin, last + margin))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=8, integer=True))
    if panel.scale in ("percent", "unit"):
        axes.set_ylim(1.03 * lowest, 1.03)
    if panel.scale == "percent":
        axes.yaxis.set_major_formatter("{x:.0%}")
    if panel.scale == "count":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    _legend(axes, panel)


def _legend(axes: Axes, panel: Panel) -> None:
    """Every label once, beside the title where there is room, else under the plot."""
    handles, texts = axes.get_legend_handles_labels()
    once = dict(zip(texts, handles, strict=True))
    if len(panel.lines) == 1:
        once.pop(panel.lines[0].label, None)  # the title and the axis name it already
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


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
