"""What the terminal is told of results."""

from __future__ import annotations

import io
import re

from rich.console import Console

from openbook.reporting.report import headline
from openbook.reporting.results_table import result_line, results_table


def test_results_table_by_hand() -> None:
    summary = {
        "experiment": "rag_token",
        "before_training": {"exact_match": 0.25, "recall_at_1": 0.5, "n_questions": 40},
        "test": {"exact_match": 0.755, "recall_at_1": 0.475, "f1": 0.8, "n_questions": 1000},
    }
    assert [(row.label, row.before, row.after, row.change, row.better) for row in headline(summary)] == [
        ("exact match", "25.0 %", "75.5 %", "+50.5", 1),
        ("F1", "-", "80.0 %", "-", 0),
        ("recall@1", "50.0 %", "47.5 %", "-2.5", -1),
    ]
    written = io.StringIO()
    Console(file=written, width=100).print(results_table(summary))
    lines = [re.findall(r"[^\s│┃]+(?: [^\s│┃]+)*", line) for line in written.getvalue().splitlines()]
    assert ["exact match", "25.0 %", "75.5 %", "+50.5"] in lines
    assert ["metric", "before", "after", "change (points)"] in lines
    assert "rag_token: test split, 1000 questions" in written.getvalue()


def test_a_test_in_a_line() -> None:
    said = result_line("test split", {"exact_match": 0.25, "recall_at_1": 0.5, "n_questions": 1200}, 41.2)
    assert said == "test split: 1,200 questions in 41 s, exact match 25.0 %, recall@1 50.0 %"
    retrieval = result_line("test split", {"recall_at_5": 0.5, "n_questions": 3}, 0.31)  # of DPR
    assert retrieval == "test split: 3 questions in 0.31 s, recall@5 50.0 %"
