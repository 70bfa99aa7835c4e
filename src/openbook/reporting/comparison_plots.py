"""The plots of a comparison: experiments side by side with every seed, and figures against passages read at test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from openbook.reporting.comparison_table import Row
from openbook.reporting.plot_style import BLUE, GREEN, GREY, GRID, INK, ORANGE

COLOURS = (BLUE, ORANGE, GREEN, GREY)
MEASURES = {"exact_match": "Exact match", "recall_at_1": "Recall@1"}
HELD_OUT = {"exact_match": "exact_match_held_out", "recall_at_1": "recall_at_1_held_out"}


def plot_rows(rows: Sequence[Row], *paths: Path) -> None:
    """One bar per experiment, first on top: the mean, its range as a line, every seed as a dot; held-out phrasings
    under it in another colour. The paths' suffixes, .png or .svg, decide the format."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        held_out = any(row.spread(name) for row in rows for name in HELD_OUT.values())
        for axes, (metric, title) in zip(panels, MEASURES.items(), strict=True):
            sides = [(metric, "phrasings of the training questions" if held_out else "", BLUE)]
            if held_out:
                sides.append((HELD_OUT[metric], "held-out phrasings", ORANGE))
            for side, (name, label, colour) in enumerate(sides):
                _bars(axes, rows, name, label, colour, (side - (len(sides) - 1) / 2) * 0.4, 0.38 if held_out else 0.6)
            _dress(axes, title, "share of the test questions")
            axes.set_xlim(0, 1.02)
            axes.grid(visible=False, axis="y")
            axes.set_yticks(range(len(rows)), [row.experiment for row in rows])
            axes.set_ylim(len(rows) - 0.4, -0.6)
        if held_out:
            figure.legend(
                *panels[0].get_legend_handles_labels(),
                loc="outside upper right",
                ncols=2,
                frameon=False,
                fontsize=9,
                labelcolor=INK,
            )

    _write(draw, (11.4, 1.6 + 0.5 * len(rows)), paths)


def _bars(axes: Axes, rows: Sequence[Row], metric: str, label: str, colour: str, shift: float, height: float) -> None:
    for place, row in enumerate(rows):
        spread = row.spread(metric)
        if spread is None:
            continue
        where = place + shift
        axes.barh(where, spread.mean, height=height, color=colour, alpha=0.75, label=label)
        label = ""
        axes.plot([spread.min, spread.max], [where, where], color=INK, linewidth=1.2)
        values = [values[metric] for values in row.by_seed.values() if metric in values]
        axes.plot(values, [where] * len(values), "o", color=INK, markersize=3.2)


def plot_sweep(rows: Mapping[str, Mapping[int, Row]], *paths: Path) -> None:
    """Exact match and recall@1 against the passages read per question at test; the band is the range over the seeds."""

    def draw(figure: Figure) -> None:
        for axes, (metric, title) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
            numbers: set[int] = set()
            for (experiment, by_number), colour in zip(rows.items(), COLOURS, strict=False):
                points = [(number, spread) for number, row in by_number.items() if (spread := row.spread(metric))]
                if not points:
                    continue
                places = [number for number, _ in points]
                numbers.update(places)
                axes.plot(
                    places,
                    [spread.mean for _, spread in points],
                    marker="o",
                    markersize=4,
                    color=colour,
                    label=experiment,
                )
                axes.fill_between(
                    places,
                    [spread.min for _, spread in points],
                    [spread.max for _, spread in points],
                    color=colour,
                    alpha=0.2,
                    linewidth=0,
                )
            _dress(axes, title, "passages read per question at test")
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(numbers), [str(number) for number in sorted(numbers)])
            if numbers:
                axes.legend(frameon=False, labelcolor=INK, fontsize=9)

    _write(draw, (11.4, 3.8), paths)


def _dress(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK, labelsize=9)
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _write(draw: Callable[[Figure], None], size: tuple[float, float], paths: Sequence[Path]) -> None:
    """Drawn as an object, never through pyplot: no display and no state. Text stays text in an SVG."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "openbook", "text.parse_math": False}):
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        figure.patch.set_facecolor("white")
        draw(figure)
        for path in paths:
            if path.suffix == ".svg":
                FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
            else:
                FigureCanvasAgg(figure).print_png(path)
