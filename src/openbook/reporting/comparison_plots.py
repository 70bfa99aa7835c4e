"""The plots of a comparison: experiments side by side with every seed, and metrics against passages read at test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openbook.metrics.summary import HELD_OUT
from openbook.reporting.comparison_table import Row
from openbook.reporting.plot_style import BLUE, GREEN, GREY, INK, MEASURES, ORANGE, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, GREEN, GREY)


def plot_rows(rows: Sequence[Row], *paths: Path) -> None:
    """One bar per experiment, the first on top: the mean, its range as a line, every seed as a dot; unseen phrasings
    below it in another colour. The suffix of each path, .png or .svg, decides its format."""
    unseen = any(row.spread(f"{metric}_{HELD_OUT}") for row in rows for metric in MEASURES)
    with drawing(11.4, 1.6 + 0.5 * len(rows), *paths) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (metric, title) in zip(panels, MEASURES.items(), strict=True):
            if unseen:
                _bars(axes, rows, metric, "phrasings of the training questions", BLUE, -0.2, 0.38)
                _bars(axes, rows, f"{metric}_{HELD_OUT}", "unseen phrasings", ORANGE, 0.2, 0.38)
            else:
                _bars(axes, rows, metric, "", BLUE, 0.0, 0.6)
            axes.set(title=title, xlabel="share of the test questions", xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.6))
            axes.set_yticks(range(len(rows)), [row.experiment for row in rows])
            axes.grid(visible=False, axis="y")
        if unseen:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)


def _bars(axes: Axes, rows: Sequence[Row], metric: str, label: str, colour: str, shift: float, height: float) -> None:
    for place, row in enumerate(rows):
        if spread := row.spread(metric):
            axes.barh(place + shift, spread.mean, height=height, color=colour, alpha=0.75, label=label)
            label = ""
            axes.plot([spread.min, spread.max], [place + shift] * 2, color=INK, linewidth=1.2)
            values = [values[metric] for values in row.by_seed.values() if metric in values]
            axes.plot(values, [place + shift] * len(values), "o", color=INK, markersize=3.2)


def plot_sweep(rows: Mapping[str, Mapping[int, Row]], *paths: Path) -> None:
    """Exact match and recall@1 against the passages read per question at test; the band is the range over the seeds."""
    with drawing(11.4, 3.8, *paths) as figure:
        for axes, (metric, title) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
            numbers: set[int] = set()
            for (experiment, by_number), colour in zip(rows.items(), COLOURS, strict=False):
                spreads = {number: spread for number, row in by_number.items() if (spread := row.spread(metric))}
                if spreads:
                    means, lowest, highest, _ = zip(*spreads.values(), strict=True)
                    axes.plot(list(spreads), means, "o-", color=colour, label=experiment)
                    axes.fill_between(list(spreads), lowest, highest, color=colour, alpha=0.2, linewidth=0)
                    numbers.update(spreads)
            axes.set(title=title, xlabel="passages read per question at test")
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(numbers), [str(number) for number in sorted(numbers)])
            if numbers:
                axes.legend()
