"""The trials of a sweep, best first: a table, and every trial as a line through its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE
from rich.table import Table

from openbook.reporting.comparison_table import markdown
from openbook.reporting.plot_style import GREY, MEASURES, drawing
from openbook.utils.atomic import write_json, write_text
from openbook.utils.console import console


class Tried(NamedTuple):
    """settings: {key: value}. value: the metric's last, None where it was not measured or the trial has not finished.
    tested: {measure: value} of the test. run: its folder."""

    settings: Mapping[str, str]
    value: float | None
    tested: Mapping[str, float]
    run: str


Metric = tuple[str, bool]  # name, whether more is better


def in_order(tried: Sequence[Tried], metric: Metric) -> list[Tried]:
    """Best first; what has no value last, in the order given."""
    sign = -1.0 if metric[1] else 1.0
    return sorted(tried, key=lambda one: float("inf") if one.value is None else sign * one.value)


def print_sweep(tried: Sequence[Tried], metric: Metric) -> None:
    header, *lines = _lines(tried, metric)
    table = Table(*header[:-1], box=SIMPLE, pad_edge=False, show_edge=False)
    for line in lines:
        table.add_row(*line[:-1])
    console.print(table, soft_wrap=False)


def write_sweep(folder: Path, tried: Sequence[Tried], metric: Metric, command: str) -> None:
    """table.md, trials.json, parallel.png and parallel.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", f"`{command}`\n\n{markdown(_lines(tried, metric))}")
    content = {
        "command": command,
        "metric": {"name": metric[0], "goal": "maximize" if metric[1] else "minimize"},
        "trials": [one._asdict() for one in in_order(tried, metric)],
    }
    write_json(folder / "trials.json", content)
    plot_parallel(tried, metric, folder / "parallel.png", folder / "parallel.svg")


def _lines(tried: Sequence[Tried], metric: Metric) -> list[list[str]]:
    keys = list(dict.fromkeys(key for one in tried for key in one.settings))
    lines = [[*keys, metric[0], *(f"test {title.lower()}" for title in MEASURES.values()), "run"]]
    for one in in_order(tried, metric):
        numbers = [one.value, *(one.tested.get(name) for name in MEASURES)]
        shown = ["-" if number is None else f"{number:.3f}" for number in numbers]
        lines.append([*(one.settings.get(key, "") for key in keys), *shown, one.run or "not finished"])
    return lines


def plot_parallel(tried: Sequence[Tried], metric: Metric, *paths: Path) -> None:
    """Parallel coordinates: an axis for each setting and one for the metric, a line for each finished trial, the best
    on top and darkest. Numbers are placed by their rank, so that a grid of rates is evenly spread."""
    done = [one for one in in_order(tried, metric) if one.value is not None]
    keys = list(dict.fromkeys(key for one in tried for key in one.settings))
    with drawing(2.4 + 1.9 * len(keys), 4.2, *paths) as figure:
        axes = figure.subplots()
        axes.set_xticks(range(len(keys) + 1), [*keys, metric[0]])
        axes.set(xlim=(-0.5, len(keys) + 0.4), ylim=(-0.06, 1.06), yticks=[])
        axes.grid(visible=False)
        for place in range(len(keys) + 1):
            axes.axvline(place, color=GREY, linewidth=0.8)
        axes.spines[["left", "bottom"]].set_visible(False)
        places = []
        for place, key in enumerate(keys):
            values = sorted({one.settings[key] for one in done}, key=_number_first)
            heights = {value: (n + 0.5) / len(values) for n, value in enumerate(values)}
            places.append(heights)
            for value, height in heights.items():
                axes.annotate(
                    value,
                    (place, height),
                    xytext=(-4, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=8,
                )
        if not done:
            return
        numbers = [one.value for one in done if one.value is not None]
        low, high = min(numbers), max(numbers)
        for edge in {low, high}:
            height = _height(edge, low, high)
            axes.annotate(f"{edge:.3f}", (len(keys), height), xytext=(4, 0), textcoords="offset points", fontsize=8)
        from matplotlib import colormaps

        for one in reversed(done):
            assert one.value is not None
            height = _height(one.value, low, high)
            line = [heights[one.settings[key]] for key, heights in zip(keys, places, strict=True)] + [height]
            good = height if metric[1] else 1 - height
            axes.plot(range(len(line)), line, color=colormaps["viridis_r"](good), linewidth=1.6, alpha=0.9)


def _height(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _number_first(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
