"""The results of a run on the terminal: a table, and a line for each test."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Column, Table

from openbook.metrics.summary import HELD_OUT
from openbook.reporting.page.header import dict_of
from openbook.reporting.report import headline
from openbook.utils.console import console, duration


def results_table(summary: Mapping[str, Any]) -> Table:
    """The headline table for the terminal: before, after, change in percentage points."""
    n_questions = dict_of(summary.get("test")).get("n_questions", "?")
    columns = (Column(name, justify="right") for name in ("before", "after", "change (points)"))
    table = Table(
        Column("metric", no_wrap=True),
        *columns,
        title=f"{summary.get('experiment', 'run')}: test split, {n_questions} questions",
        box=box.HEAVY_HEAD if console.is_terminal else box.SIMPLE_HEAD,
        show_edge=console.is_terminal,  # a log has no empty lines
    )
    for row in headline(summary):
        style = {1: "green", 0: "", -1: "red"}[row.better]
        table.add_row(row.label, row.before, row.after, f"[{style}]{row.change}[/]" if style else row.change)
    whens = ("before_training", "test")
    unseen = {when: dict_of(dict_of(dict_of(summary.get(when)).get("by_phrasing")).get(HELD_OUT)) for when in whens}
    if unseen["test"]:
        if console.is_terminal:
            table.add_section()
        for row in headline(unseen):
            if row.label in ("exact match", "recall@1"):
                table.add_row(f"{row.label}, unseen phrasings", row.before, row.after, row.change)
    return table


def result_line(what: str, metrics: Mapping[str, Any], seconds: float) -> str:
    """A test in a line, as soon as it is measured. what: like "test split before training"."""
    rates = "".join(f", {row.label} {row.after}" for row in headline({"test": metrics}))
    return f"{what}: {metrics.get('n_questions', 0):,} questions in {duration(seconds)}{rates}"
