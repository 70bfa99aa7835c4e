"""The 2 x 2 table of a knowledge hot-swap: two indexes times two sets of facts."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Column, Table

from openbook.metrics.bootstrap import bootstrap, mean_of
from openbook.metrics.matching import exact_match
from openbook.metrics.prediction import Prediction
from openbook.metrics.summary import HELD_OUT
from openbook.reporting import published as paper

INDEXES, FACTS = ("original_index", "changed_index"), ("original_facts", "changed_facts")


# The two (index, facts) that belong together, and the two that do not.
SIDES = {
    "matched": tuple(zip(INDEXES, FACTS, strict=True)),
    "mismatched": tuple(zip(INDEXES, reversed(FACTS), strict=True)),
}


def summarize(
    answered: Mapping[str, Sequence[Prediction]],
    facts: Mapping[str, Mapping[str, Sequence[str]]],
    regex: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The 2 x 2 table with its means, in total and per relation; unseen phrasings apart.

    answered: {index: its predictions}. facts: {facts: {question id: answers}}. `matched` is the mean of the two cells
    whose index and facts belong together, `mismatched` of the others; `intervals` are 95 % bootstrap intervals over the
    questions, each with its answers from both indexes; none with 0 resamples. regex: answers are regular expressions.
    """
    first = [one for one in answered[INDEXES[0]] if one.phrasing != HELD_OUT] or answered[INDEXES[0]]
    counted = {one.id for one in first}
    held_out = {one.id for one in answered[INDEXES[0]]} - counted
    right = {
        (index, name): {one.id: exact_match(one.prediction, answers[one.id], regex) for one in predictions}
        for index, predictions in answered.items()
        for name, answers in facts.items()
    }
    drawn = {
        name: mean_of([(right[one][id_] + right[other][id_]) / 2 for id_ in sorted(counted)])
        for name, (one, other) in SIDES.items()
    }
    found = bootstrap(drawn, resamples, seed) if resamples else {}
    by_relation = {
        relation: _cells(right, {one.id for one in first if one.relation == relation})
        for relation in sorted({one.relation for one in first} - {""})
    }
    return {
        **_cells(right, counted),
        "intervals": {name: list(interval) for name, interval in found.items()},
        "by_relation": {
            name: {key: cells[key] for key in (*SIDES, "n_questions")} for name, cells in by_relation.items()
        },
        "held_out": _cells(right, held_out) if held_out else {},
    }


def table(summary: Mapping[str, Any]) -> Table:
    """For the terminal: both indexes times both sets of facts, the paper's figures beside them."""
    names = ("original facts", "changed facts", "paper: original", "paper: changed")
    columns = [Column("exact match", no_wrap=True), *(Column(name, justify="right", no_wrap=True) for name in names)]
    shown = Table(*columns, title=f"hot-swap: {summary['experiment']}, {summary['n_questions']} questions")
    for index in INDEXES:
        cells = [grid[index][facts] for grid in (summary["table"], paper.HOT_SWAP) for facts in FACTS]
        shown.add_row(index.replace("_", " "), *(f"{100 * cell:.1f} %" for cell in cells))
    shown.add_section()
    ends = {name: [f"{100 * end:.1f}" for end in interval] for name, interval in summary["intervals"].items()}
    for name, theirs in _means(paper.HOT_SWAP).items():
        spread = f"95 %: {' - '.join(ends[name])}" if name in ends else ""
        shown.add_row(name, f"{100 * summary[name]:.1f} %", spread, f"{100 * theirs:.1f} %", "")
    return shown


def _cells(right: Mapping[tuple[str, str], Mapping[str, float]], ids: set[str]) -> dict[str, Any]:
    """right: (index, facts) -> question id -> exact match."""
    grid = {index: {name: fmean(right[index, name][id_] for id_ in ids) for name in FACTS} for index in INDEXES}
    return {"table": grid, **_means(grid), "n_questions": len(ids)}


def _means(grid: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(grid[index][facts] for index, facts in cells) for name, cells in SIDES.items()}
