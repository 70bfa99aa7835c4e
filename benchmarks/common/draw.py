"""The curves of benchmarks/staleness.jsonl as docs/images/staleness.png: `python -m benchmarks.common.draw`."""

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
    at = {point["kind"]: (100 * point["encoded"], point["recall_at_1"]) for point in points if point["step"] == last}
    for mode, shares, colour in (("hot", (5, 10, 25), "#d97706"), ("rolling", (10, 100), "#2f6fd0")):
        for suffix, line in (("", "-"), (", in order", "--")):
            found = [at[f"{mode} {share} %{suffix}"] for share in shares]
            axes.plot(*zip(*found, strict=True), line, color=colour, marker="o", markersize=4, label=mode + suffix)
    for kind, colour in (
        ("fresh", "#24292f"),
        ("rerank 20", "#15956b"),
        ("stale, in order", "#8fd3b6"),
        ("stale", "#b42318"),
    ):
        axes.scatter(*at[kind], color=colour, s=45, zorder=3, label=kind)
    axes.set_title(f"recall@1 after {last} steps, {questions}", loc="left", fontsize=11)
    axes.set_xlabel("passages encoded for the index in these steps, percent of the corpus")
    axes.set_xlim(-5, 105)
    axes.grid(color="#d8dee4", linewidth=0.7)
    axes.legend(frameon=False, fontsize=8, ncols=2)


if __name__ == "__main__":
    main()
