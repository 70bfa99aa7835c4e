"""The look of every plot: colours, axes, figures and matplotlib's settings. Matplotlib is imported when one is drawn.

Figures are made as objects, never through pyplot, so drawing leaves no state and needs no display.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, BLUE, ORANGE, GREEN, GREY = "#24292f", "#d8dee4", "#2f6fd0", "#d97706", "#15956b", "#8c959f"
# The two measures that bars and sweeps show, with their titles.
MEASURES = {"exact_match": "Exact match", "recall_at_1": "Recall@1"}


def dress(axes: Axes, title: str, xlabel: str, ylabel: str = "") -> None:
    """Titles, labels, spines and grid."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK, labelsize=8.5)
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def new_figure(width: float, height: float) -> Figure:
    """Size in inches; a PNG has 100 pixels per inch."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    figure.patch.set_facecolor("white")
    return figure


def save(figure: Figure, target: Path | IO[str], svg: bool = False) -> None:
    """Write the figure as SVG or as PNG."""
    from matplotlib.backends import backend_agg, backend_svg

    if svg:
        backend_svg.FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})
    else:
        backend_agg.FigureCanvasAgg(figure).print_png(target)


def style() -> AbstractContextManager[None]:
    """Matplotlib's settings while drawing: names of relations come from the user, so a dollar sign is no formula; text
    stays text in an SVG."""
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "openbook", "text.parse_math": False})
