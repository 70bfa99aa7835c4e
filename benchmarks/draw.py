"""The curves of benchmarks/staleness.jsonl as docs/images/staleness.png: `python -m benchmarks.draw`."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# kind -> label, colour, line; one colour per way to keep an index
KINDS = {
    "fresh": ("fresh: all encoded at every look", "#24292f", "-"),
    "rerank 20": ("stale, 20 re-ranked", "#15956b", "-"),
    "stale, in order": ("stale, the read ones in order", "#15956b", "--"),
    "hot 10 %, in order": ("hot 10 %, the read ones in order", "#d97706", "--"),
    "hot 10 %": ("hot 10 %", "#d97706", "-"),
    "rolling 100 %": ("rolling 100 %", "#2f6fd0", "-"),
    "stale": ("stale", "#b42318", "-"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=Path, default=Path("benchmarks/staleness.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/staleness.png"))
    given = parser.parse_args()
    points = [json.loads(line) for line in given.points.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    for row, questions in enumerate(sorted({point["questions"] for point in points}, reverse=True)):
        asked = [point for point in points if point["questions"] == questions]
        _over_steps(figure.add_subplot(2, 2, 2 * row + 1), asked, questions)
        _against_cost(figure.add_subplot(2, 2, 2 * row + 2), asked, questions)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(given.out)


def _over_steps(axes: Any, points: list[dict[str, Any]], questions: str) -> None:
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for point in points:
        curves[point["kind"]].append((point["step"], point["recall_at_1"]))
    for kind, (label, colour, line) in KINDS.items():
        if kind in curves:
            axes.plot(
                *zip(*sorted(curves[kind]), strict=True), line, color=colour, label=label, marker="o", markersize=3
            )
    axes.set_title(f"recall@1, {questions}", loc="left", fontsize=11)
    axes.set_xlabel("optimizer steps since the index was built")
    axes.grid(color="#d8dee4", linewidth=0.7)
    axes.legend(frameon=False, fontsize=8)


def _against_cost(axes: Any, points: list[dict[str, Any]], questions: str) -> None:
    last = max(point["step"] for point in points)
    for point in points:
        if point["step"] != last or "write-back" in point["kind"]:
            continue
        ordered = "in order" in point["kind"] or "rerank" in point["kind"]
        axes.scatter(100 * point["encoded"], point["recall_at_1"], color="#15956b" if ordered else "#b42318", s=25)
        axes.annotate(point["kind"], (100 * point["encoded"], point["recall_at_1"]), fontsize=7.5,
                      xytext=(4, 3), textcoords="offset points")  # fmt: skip
    axes.set_title(f"recall@1 after {last} steps, {questions}", loc="left", fontsize=11)
    axes.set_xlabel("passages encoded for the index, percent of the corpus")
    axes.set_xlim(-5, 125)
    axes.grid(color="#d8dee4", linewidth=0.7)


if __name__ == "__main__":
    main()
