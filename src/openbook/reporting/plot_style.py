"""The look of every plot: colours, axes, figure and matplotlib's settings."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, GRID, BLUE, ORANGE, GREEN, GREY = "#24292f", "#d8dee4", "#2f6fd0", "#d97706", "#15956b", "#8c959f"


def dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
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
    """Inches; 100 pixels to the inch in a PNG."""
    figure = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    figure.patch.set_facecolor("white")
    return figure


def style() -> Any:
    # Names of relations are the user's text: a dollar sign in one is no formula. Text stays text in the SVG.
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "openbook", "text.parse_math": False})
