"""benchmarks/gradient.json as docs/images/n_docs.png and the tables of docs/n-docs.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PAGE, PICTURE = Path("docs/n-docs.md"), Path("docs/images/n_docs.png")
BEGIN, END = "<!-- gradient: begin -->\n", "<!-- gradient: end -->\n"
COLOURS = {
    "top k": "#24292f",
    "top k of a stale index": "#b42318",
    "stale, 4 k re-ranked": "#15956b",
    "k drawn": "#d97706",
    "k drawn, weighed": "#2f6fd0",
}
SHOWN = (2, 4, 8, 16, 64)


def write_page(found: Mapping[str, Any]) -> None:
    """Both files; what stands around the tables stays."""
    _draw(found)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + _tables(found) + END + after, encoding="utf-8")


def _tables(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    said = f"{found['questions']} training questions, {found['passages']} passages, {found['draws']} draws"
    lines = [f"{said}. Bias of all questions together / median over the questions (deviation of what is drawn):", ""]
    for models in dict.fromkeys(row["models"] for row in rows):
        for objective in dict.fromkeys(row["objective"] for row in rows):
            some = [row for row in rows if (row["models"], row["objective"]) == (models, objective)]
            shown = [k for k in SHOWN if any(row["k"] == k for row in some)]
            lines += [f"| {models}, `{objective}` | " + " | ".join(f"k = {k}" for k in shown) + " |"]
            lines += ["|---" * (len(shown) + 1) + "|"]
            for way in dict.fromkeys(row["way"] for row in some):
                cells = {row["k"]: _cell(row) for row in some if row["way"] == way}
                lines.append(f"| {way} | " + " | ".join(cells[k] for k in shown) + " |")
            mass = {row["k"]: f"{row['mass']:.3f}" for row in some if row["way"] == "top k"}
            lines += ["| posterior mass read, top k | " + " | ".join(mass[k] for k in shown) + " |", ""]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['bias']:.2f} / {row['median']:.2f}" + (f" ({row['deviation']:.2f})" if row["deviation"] else "")


def _draw(found: Mapping[str, Any]) -> None:
    models = list(dict.fromkeys(row["models"] for row in found["rows"]))
    figure = Figure(figsize=(12, 4.6 * len(models)), dpi=100, layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False)
    for (row, when), (column, objective) in (
        (one, other) for one in enumerate(models) for other in enumerate(("rag_token", "rag_sequence"))
    ):
        axis = axes[row][column]
        some = [one for one in found["rows"] if (one["models"], one["objective"]) == (when, objective)]
        for way in dict.fromkeys(one["way"] for one in some):
            points = [one for one in some if one["way"] == way]
            ks, colour = [one["k"] for one in points], COLOURS[way]
            axis.plot(ks, [one["bias"] for one in points], color=colour, marker="o", markersize=3, label=way)
            if any(one["deviation"] for one in points):
                axis.plot(ks, [one["deviation"] for one in points], color=colour, linestyle="--")
        axis.set_xscale("log", base=2)
        axis.set_ylim(0, 2)
        axis.set_title(f"{objective}, {when}", fontsize=12)
        axis.set_xlabel("passages read", fontsize=11)
        axis.set_ylabel("share of the exact gradient", fontsize=11)
        axis.grid(alpha=0.3)
    axes[-1][0].legend(title="bias (dashed: deviation)", fontsize=10)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(PICTURE)
