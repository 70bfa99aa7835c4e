"""The report of a run: one self-contained HTML file from the run folder's files, and the table for the terminal."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from openbook.errors import OpenBookError
from openbook.metrics.prediction import Prediction
from openbook.metrics.summary import HELD_OUT, summarize
from openbook.reporting.panels import PANELS
from openbook.reporting.run_plots import curve_svg, groups_svg
from openbook.reporting.verdict import verdict
from openbook.tracking.curves import Curves
from openbook.tracking.run_contents import RunFiles, read_run
from openbook.utils.atomic import write_text
from openbook.utils.console import duration, say

N_EXAMPLES = 12
HEADLINE = {
    "exact_match": "exact match",
    "f1": "F1",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_20": "recall@20",
}
# Column of metrics.csv -> (its heading in the table of refreshes, its explanation).
REFRESH_COLUMNS = {
    "refresh/generation": ("generation", ""),
    "refresh/overlap_at_k": ("overlap@k", "share of the probe questions' previous top-k that the new index also finds"),
    "refresh/rank_correlation": (
        "rank correlation",
        "Spearman's rho between old and new scores of the same passages, mean over the probe questions",
    ),
    "refresh/cosine_drift": ("cosine drift", "mean 1 - cosine between old and new vectors of the same passages"),
    "refresh/score_drift": ("score drift", "mean |new - old| score of the old top-k"),
    "index/recall_of_family": (
        "recall of the index type",
        "share of the exact search results over the same vectors that the index also finds",
    ),
    "refresh/seconds": ("seconds", ""),
    "refresh/passages_per_second": ("passages/s", ""),
}


@dataclass(frozen=True)
class Row:
    """One metric before and after training, as text; `better` is 1, 0 or -1."""

    label: str
    before: str
    after: str
    change: str
    better: int


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Missing files and columns are named in their section; OpenBookError if there is no such folder.
    """
    if not run_folder.is_dir():
        raise OpenBookError(
            "no run folder to report on",
            where=run_folder,
            expected="a folder with summary.json, metrics.csv and predictions.jsonl",
            action="Give the run folder that training printed.",
        )
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("openbook.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = read_run(run_folder)
    for text in files.damage:
        say(f"warning: {run_folder}: {text}")
    page = environment.get_template("report.html.j2").render(page_of(files, run_folder.name))
    target = run_folder / "report.html"
    write_text(target, page)
    return target


def page_of(files: RunFiles, run_name: str) -> dict[str, Any]:
    """The variables of the template."""
    summary, before = files.summary, _dict(files.summary.get("before_training"))
    after = _dict(summary.get("test"))
    measured = summarize(files.predictions) if files.predictions else {}
    # The run's own numbers first; predictions.jsonl gives the same where summary.json has no groups.
    groups = {key: _dict(after.get(key)) or _dict(measured.get(key)) for key in ("by_relation", "by_phrasing")}
    drawn = [(panel, curve_svg(panel, files.curves)) for panel in PANELS]
    return {
        "title": f"{summary.get('experiment') or 'run'} / {run_name}",
        "problems": files.problems,
        "headline": headline(summary),
        "uncertainty": _uncertainty(after.get("n_questions")),
        "facts": _facts(summary),
        "disclosures": [str(text) for text in summary.get("disclosures") or ()],
        "panels": [(panel, svg) for panel, svg in drawn if svg or not panel.optional],
        "refreshes": _refreshes(files.curves),
        "refresh_words": [
            f"{heading.capitalize()}: {words}."
            for name, (heading, words) in REFRESH_COLUMNS.items()
            if words and name in files.curves
        ],
        "in_slices": "refresh/mean_age" in files.curves,
        "groups": {key: groups_svg(_dict(before.get(key)), now, key.replace("_", " ")) for key, now in groups.items()},
        "has_before": bool(before),
        "examples": chosen_examples(files.predictions),
        "n_predictions": len(files.predictions),
        "config": files.config,
        "environment": list(_flat(files.environment)),
    }


def headline(summary: Mapping[str, Any]) -> list[Row]:
    """Test rates before and after training with the change in percentage points; [] without either."""
    before, after = _dict(summary.get("before_training")), _dict(summary.get("test"))
    rows = []
    for key, label in HEADLINE.items():
        old, new = before.get(key), after.get(key)
        if old is None and new is None:
            continue
        change = None if old is None or new is None else 100 * (new - old)
        better = 0 if change is None or abs(change) < 0.05 else int(math.copysign(1, change))
        rows.append(Row(label, _percent(old), _percent(new), "-" if change is None else f"{change:+.1f}", better))
    return rows


def results_table(summary: Mapping[str, Any]) -> Table:
    """The headline table for the terminal: before, after, change in percentage points."""
    n_questions = _dict(summary.get("test")).get("n_questions", "?")
    columns = (Column(name, justify="right") for name in ("before training", "after training", "change (points)"))
    table = Table("metric", *columns, title=f"{summary.get('experiment', 'run')}: test split, {n_questions} questions")
    for row in headline(summary):
        style = {1: "green", 0: "", -1: "red"}[row.better]
        table.add_row(row.label, row.before, row.after, f"[{style}]{row.change}[/]" if style else row.change)
    unseen = {
        when: _dict(_dict(summary.get(when)).get("by_phrasing")).get(HELD_OUT) for when in ("before_training", "test")
    }
    if unseen["test"]:
        table.add_section()
        for row in headline(unseen):
            if row.label in ("exact match", "recall@1"):
                table.add_row(f"{row.label}, unseen phrasings", row.before, row.after, row.change)
    return table


def chosen_examples(predictions: Sequence[Prediction], n_examples: int = N_EXAMPLES) -> list[Prediction]:
    """Half right and half wrong if there are enough of both, in the order of the file, relations alternating."""
    right = _taking_turns([one for one in predictions if _is_right(one)])
    wrong = _taking_turns([one for one in predictions if not _is_right(one)])
    n_right = max(min(len(right), n_examples // 2), n_examples - len(wrong))
    return right[:n_right] + wrong[: n_examples - min(n_right, len(right))]


def _is_right(prediction: Prediction) -> bool:
    """Exact match; without a generator, whether the first passage is relevant."""
    return any(prediction.hits[:1]) if prediction.exact_match is None else bool(prediction.exact_match)


def _taking_turns(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Ordered so that the relations alternate."""
    turns: dict[str, Iterator[int]] = defaultdict(count)
    return sorted(predictions, key=lambda one: next(turns[one.relation]))


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Status, steps, times and index, as far as summary.json has them."""
    seconds, index = _dict(summary.get("seconds")).items(), _dict(summary.get("index")).items()
    return [
        *((key, str(summary[key])) for key in ("status", "steps", "tested_step") if key in summary),
        *((("what training was worth", told),) if (told := verdict(summary)) else ()),
        *((f"time, {part}", duration(n) if isinstance(n, int | float) else str(n)) for part, n in seconds),
        *((f"index, {key.removeprefix('n_')}", f"{n:,}" if isinstance(n, int) else str(n)) for key, n in index),
    ]


def _refreshes(curves: Curves) -> list[list[str]]:
    """A header, then one row per refresh: the step, then those of REFRESH_COLUMNS that the run has; [] without any.

    A dash where a column has no value at that step. The first build does not count as a refresh.
    """
    headings = {name: heading for name, (heading, _) in REFRESH_COLUMNS.items() if name in curves}
    columns = {heading: dict(zip(*curves[name], strict=True)) for name, heading in headings.items()}
    steps = sorted({step for name in headings if name.startswith("refresh/") for step in curves[name][0]})
    rows = [[f"{step:g}", *(_short_number(column.get(step)) for column in columns.values())] for step in steps]
    return [["step", *columns], *rows] if rows else []


def _uncertainty(n_questions: object) -> str:
    """The sampling error of a rate, so that nobody mistakes a small difference for a result."""
    if not isinstance(n_questions, int) or n_questions < 1:
        return ""
    points = 98 / math.sqrt(n_questions)  # half-width of the interval: 1.96 sqrt(0.25 / n)
    return f"{n_questions:,} questions: the 95 % confidence interval of a rate near 50 % is about ±{points:.1f} points."


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (", ".join(map(str, value)) or "-") if isinstance(value, list) else str(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _short_number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
