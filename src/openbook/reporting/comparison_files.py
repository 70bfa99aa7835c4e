"""The files of a comparison: tables as Markdown and JSON, and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openbook.reporting import published as paper
from openbook.reporting.comparison_plots import plot_rows, plot_sweep
from openbook.reporting.comparison_table import Row, as_json, markdown, orderings, orderings_table, sweep_table, table
from openbook.utils.atomic import write_json, write_text

SWEEP = "n_docs_at_test"  # The key of the sweep over numbers of passages in table.json.

Sweep = Mapping[str, Mapping[int, Row]]


def tables(rows: Sequence[Row], sweep: Sweep, command: str) -> str:
    """Everything as Markdown: the table, further results of the paper, its order of methods, the sweep."""
    means = "Mean over the seeds, in parentheses the range. " if any(len(row.by_seed) > 1 for row in rows) else ""
    others = "; ".join(f"{method.name} {method.best(len(paper.DATASETS))}" for method in paper.OTHERS)
    sections = [
        f"`{command}`\n\n{markdown(table(rows))}\n{means}The paper: exact match in per cent on "
        f"{' / '.join(paper.DATASETS)} (Lewis et al. 2020, tables 1 and 6); other questions and other models, so only "
        f"the order can be compared. {others}.\n"
    ]
    if verdicts := orderings(rows):
        sections.append(f"### The paper's order\n\n{markdown(orderings_table(verdicts))}")
    if sweep:
        sections.append(f"### Passages read at test\n\n{markdown(sweep_table(sweep))}\n{paper.N_DOCS_AT_TEST}\n")
    return "\n".join(sections)


def write_folder(folder: Path, rows: Sequence[Row], sweep: Sweep, command: str, runs: Mapping[str, Any]) -> None:
    """table.md, table.json, plot.png and plot.svg, and the sweep's plots where there is one.

    runs: experiment -> seed -> run folder, for table.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", tables(rows, sweep, command))
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
