"""The look of every plot: colours, figures and matplotlib's settings. Matplotlib is imported when one is drawn.

Figures are made as objects, never through pyplot, so drawing leaves no state and needs no display.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID, BLUE, ORANGE, GREEN, GREY = "#24292f", "#d8dee4", "#2f6fd0", "#d97706", "#15956b", "#8c959f"
# The two measures that bars and sweeps show, with their titles.
MEASURES = {"exact_match": "Exact match", "recall_at_1": "Recall@1"}
# Matplotlib's settings while drawing: names of relations come from the user, so a dollar sign is no formula; text stays
# text in an SVG.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "openbook",
    "text.parse_math": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.facecolor": "none",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


@contextmanager
def drawing(width: float, height: float, *paths: Path, fitted: bool = True) -> Iterator[Figure]:
    """A figure to draw on in this style; in the end it is saved to every path, whose suffix decides the format.

    Size in inches; a PNG has 100 pixels per inch. fitted: the layout makes room for what is drawn, which takes half of
    the time; without, axes stay where they are put.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1) if fitted else None
        figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout=layout)
        yield figure
        for path in paths:
            figure.savefig(path, metadata={"Date": None})
