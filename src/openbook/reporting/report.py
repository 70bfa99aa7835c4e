"""The report of a run: one self-contained HTML file from the run folder's files."""

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook.errors import OpenBookError
from openbook.metrics.summary import HELD_OUT, summarize
from openbook.metrics.summary import headline as counted_questions
from openbook.reporting.page.cards import example, outcomes
from openbook.reporting.page.examples import chosen_examples, entity
from openbook.reporting.page.groups import groups
from openbook.reporting.page.header import HEADLINE, counted, dict_of, header
from openbook.reporting.page.questions import question_data
from openbook.reporting.page.repeat import Repeat, repeat, settings_of
from openbook.reporting.page.timing import time_bar
from openbook.reporting.page.why import WORDS, sentences
from openbook.reporting.panels import PANELS
from openbook.reporting.run_plots import BASELINE, curve_of
from openbook.reporting.verdict import verdict
from openbook.tracking.curves import Curves
from openbook.tracking.run_contents import RunFiles, read_run
from openbook.utils.atomic import write_text
from openbook.utils.console import duration, say

MOST_BYTES = 990_000  # of report.html: under 1 MB
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
    target = run_folder / "report.html"
    write_text(target, render(run_folder))
    return target


def render(run_folder: Path, live: str = "") -> str:
    """The page. live: the state of the run's files, where the page is served and renews itself when that changes."""
    if not run_folder.is_dir():
        raise OpenBookError(
            "no run folder to report on",
            where=run_folder,
            expected="a folder with summary.json, metrics.csv and predictions.jsonl",
            action="Give the run folder that training printed.",
        )
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("openbook.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    style, script = (loader.get_source(environment, name)[0] for name in ("style.css", "page.js"))
    files, template = read_run(run_folder), environment.get_template("report.html.j2")
    for text in files.damage if not live else ():
        say(f"warning: {run_folder}: {text}")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    fixed = {"style": style, "script": script, "script_hash": f"sha256-{digest}", "live": live}
    variables = page_of(files, run_folder) | fixed
    without = template.render(variables | {"questions": "", "left_out": []})
    room = MOST_BYTES - len(without.encode("utf-8", "replace"))
    questions, left_out = question_data(files.predictions, room, variables["regex"])
    page = template.render(variables | {"questions": questions, "left_out": left_out})
    return page.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be written


def page_of(files: RunFiles, run_folder: Path) -> dict[str, Any]:
    """The variables of the template, but for those of the search."""
    summary, before = files.summary, dict_of(files.summary.get("before_training"))
    after, predictions = dict_of(summary.get("test")), files.predictions
    measured = summarize(predictions) if predictions else {}
    settings = settings_of(files.config)
    regex = settings.get("evaluate.regex_answers") is True
    rows, seen = header(summary, predictions), counted_questions(predictions)
    unseen = [one for one in predictions if one.phrasing == HELD_OUT] if len(seen) < len(predictions) else []
    examples = chosen_examples(predictions)
    drawn = [(panel, curve_of(panel, files.curves)) for panel in PANELS]
    names = {key: name for key, (name, _) in WORDS.items()}
    has_intervals = any(row.after.interval for row in rows)
    return {
        "title": f"{summary.get('experiment') or 'run'} / {run_folder.name}",
        "problems": files.problems,
        "verdict": verdict(summary),
        "header": rows,
        "unseen": any(row.unseen for row in rows),
        "counted": counted(summary),
        "has_intervals": has_intervals,
        "uncertainty": "" if has_intervals else _uncertainty(after.get("n_questions")),
        "answered": any(one.exact_match is not None for one in predictions) or not predictions,
        "why": sentences(seen, settings.get("evaluate.task") == "generation"),
        "split": outcomes(seen, unseen),
        "split_unseen": bool(unseen),
        "names": names,
        "examples": [example(one, regex) for one in examples],
        "n_entities": len({entity(one) for one in examples}),
        "n_predictions": len(predictions),
        "regex": regex,
        "panels": [(panel, curve) for panel, curve in drawn if curve or not panel.optional],
        "any_baseline": any(curve and BASELINE in {label for label, *_ in curve.legend} for _, curve in drawn),
        "refreshes": _refreshes(files.curves),
        "refresh_words": [
            f"{heading.capitalize()}: {words}."
            for name, (heading, words) in REFRESH_COLUMNS.items()
            if words and name in files.curves
        ],
        "in_slices": "refresh/mean_age" in files.curves,
        "groups": [
            # The run's own numbers first; predictions.jsonl gives the same where summary.json has no groups.
            (key, title, groups(dict_of(before.get(key)), dict_of(after.get(key)) or measured.get(key, {}), *members))
            for key, title, members in (
                ("by_relation", "Per relation", (predictions, "relation")),
                ("by_phrasing", "Per phrasing", (predictions, "phrasing")),
            )
        ],
        "has_before": bool(before),
        "facts": _facts(summary),
        "time": time_bar(summary),
        "resumed": summary.get("resumed") is True,
        "disclosures": [str(text) for text in summary.get("disclosures") or ()],
        "repeat": repeat(files.config, str(run_folder), summary.get("own_parts")) if files.config else Repeat(),
        "config": files.config,
        "environment": list(_flat(files.environment)),
    }


def headline(summary: Mapping[str, Any]) -> list[Row]:
    """Test rates before and after training with the change in percentage points; [] without either."""
    before, after = dict_of(summary.get("before_training")), dict_of(summary.get("test"))
    rows = []
    for key, label in HEADLINE.items():
        old, new = before.get(key), after.get(key)
        if old is None and new is None:
            continue
        change = None if old is None or new is None else 100 * (new - old)
        better = 0 if change is None or abs(change) < 0.05 else int(math.copysign(1, change))
        rows.append(Row(label, _percent(old), _percent(new), "-" if change is None else f"{change:+.1f}", better))
    return rows


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Status, steps and index, as far as summary.json has them."""
    index, best = dict_of(summary.get("index")).items(), dict_of(summary.get("best"))
    value, total = best.get("value"), dict_of(summary.get("seconds")).get("total")
    return [
        *((key.replace("_", " "), str(summary[key])) for key in ("status", "steps", "tested_step") if key in summary),
        *([("best validation", f"{best.get('metric')} {value:.3f}, step {best.get('step')}")] if _is(value) else ()),
        *([("time", duration(total))] if _is(total) else ()),
        *((key, str(summary[key])) for key in ("seed", "n_docs") if key in summary),
        *((f"index, {key.removeprefix('n_')}", f"{n:,}" if isinstance(n, int) else str(n)) for key, n in index),
        *((f"{split} questions", f"{n:,}") for split, n in dict_of(summary.get("questions")).items() if _is(n)),
    ]


def _is(number: Any) -> bool:
    return isinstance(number, int | float)


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


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _short_number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
