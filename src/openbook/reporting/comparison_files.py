"""The files of a comparison: tables as Markdown and JSON, and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openbook.reporting import published as paper
from openbook.reporting.comparison_plots import plot_rows, plot_sweep
from openbook.reporting.comparison_table import Row, as_json, markdown, orderings, orderings_table, sweep_table, table
from openbook.utils.atomic import write_json

SWEEP = "n_docs_at_test"
"""The key of the sweep over numbers of passages in table.json."""

Sweep = Mapping[str, Mapping[int, Row]]


def tables(rows: Sequence[Row], sweep: Sweep, command: str) -> str:
    """Everything as Markdown: the table, the paper's further figures, who is ahead of whom, the sweep."""
    most = max((len(row.by_seed) for row in rows), default=0)
    means = "Mean over the seeds, in brackets the lowest and the highest. " if most > 1 else ""
    text = f"`{command}`\n\n{markdown(table(rows))}\n"
    text += f"{means}The paper: exact match in per cent on {' / '.join(paper.DATASETS)} (Lewis et al. 2020, tables 1 "
    text += "and 6); other questions and other models, so only the order can be compared. "
    text += (
        "; ".join(
            f"{one.name} {paper.percentages(one.test if any(one.test) else one.dev)}{'' if any(one.test) else ' (dev)'}"
            for one in paper.OTHERS
        )
        + ".\n"
    )
    verdicts = orderings(rows)
    if verdicts:
        text += f"\n### The paper's order\n\n{markdown(orderings_table(verdicts))}"
    if sweep:
        text += f"\n### More or fewer passages at test\n\n{markdown(sweep_table(sweep))}\n{paper.N_DOCS_AT_TEST}\n"
    return text


def write_folder(folder: Path, rows: Sequence[Row], sweep: Sweep, command: str, runs: Mapping[str, Any]) -> None:
    """table.md, table.json, plot.png and plot.svg, and the sweep's plots where there is one.

    runs: experiment -> seed -> run folder, for table.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(tables(rows, sweep, command), encoding="utf-8")
    content = {
        "command": command,
        "experiments": {
            row.experiment: {"measures": as_json(row), "missing": row.missing, "runs": runs.get(row.experiment, {})}
            for row in rows
        },
        "order": [
            {
                "what": one.pair.what,
                "ahead": one.pair.ahead,
                "behind": one.pair.behind,
                "verdict": one.verdict,
                "paper": list(one.pair.published()),
                "difference": list(one.difference) if one.difference else None,
            }
            for one in orderings(rows)
        ],
        SWEEP: sweep_json(sweep),
    }
    write_json(folder / "table.json", content)
    plot_rows(rows, folder / "plot.png", folder / "plot.svg")
    if sweep:
        plot_sweep(sweep, folder / "n_docs.png", folder / "n_docs.svg")


def sweep_json(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """{experiment: {passages per question: its measures}}."""
    return {
        experiment: {str(number): as_json(row) for number, row in by_number.items()}
        for experiment, by_number in sweep.items()
    }
