"""What a comparison leaves behind: its folder, and the tables of docs/results.md between their marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openbook import paper
from openbook.compare_plot import plot_rows, plot_sweep
from openbook.compare_table import Row, as_json, markdown, orderings, orderings_table, sweep_table, table
from openbook.errors import OpenBookError
from openbook.run_search import read_json
from openbook.runs import write_json

SWEEP = "n_docs_at_test"
"""The key of the sweep in table.json and docs/results.json."""

Sweep = Mapping[str, Mapping[int, Row]]


def tables(rows: Sequence[Row], sweep: Sweep, command: str) -> str:
    """Everything as Markdown: the table, the paper's further figures, who is ahead of whom, the sweep."""
    most = max((len(row.by_seed) for row in rows), default=0)
    means = "Mean over the seeds, in brackets the lowest and the highest. " if most > 1 else ""
    text = f"`{command}`\n\n{markdown(table(rows))}\n"
    text += f"{means}The paper: exact match in per cent on {' / '.join(paper.DATASETS)} (Lewis et al. 2020, tables 1 "
    text += "and 6); other questions and other models, so only the order can be compared. "
    text += "; ".join(f"{one.name} {paper.percentages(one.test if any(one.test) else one.dev)}"
                      f"{'' if any(one.test) else ' (dev)'}" for one in paper.OTHERS) + ".\n"  # fmt: skip
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
        "experiments": {row.experiment: {"measures": as_json(row), "missing": row.missing,
                                         "runs": runs.get(row.experiment, {})} for row in rows},
        "order": [{"what": one.pair.what, "ahead": one.pair.ahead, "behind": one.pair.behind, "verdict": one.verdict,
                   "paper": list(one.pair.published())} for one in orderings(rows)],
        SWEEP: _sweep_json(sweep),
    }  # fmt: skip
    write_json(folder / "table.json", content)
    plot_rows(rows, folder / "plot.png", folder / "plot.svg")
    if sweep:
        plot_sweep(sweep, folder / "n_docs.png", folder / "n_docs.svg")


def write_docs(docs: Path, rows: Sequence[Row], sweep: Sweep, command: str, known: Sequence[str]) -> list[Path]:
    """results.md between its marks, results.json and images/; returns what was written.

    known: names of experiments; results.json loses those that this comparison does not have, since one command makes
    its whole table, and keeps every other key as it is. Without sweep the old sweep goes, too.
    """
    (docs / "images").mkdir(parents=True, exist_ok=True)
    page, figures = docs / "results.md", docs / "results.json"
    picture = "![Exact match and recall@1 of every experiment](images/results.png)\n"
    if sweep:
        picture += "\n![Figures against passages read at test](images/results_n_docs.png)\n"
    text = between_marks(page, f"{tables(rows, sweep, command)}\n{picture}", "compare")
    kept = read_json(figures)
    if figures.exists() and not kept:
        raise OpenBookError("not readable as JSON", where=figures, action="Mend it or delete it; it is made anew.")
    owned = {*known, *(row.experiment for row in rows), SWEEP}
    content = {row.experiment: as_json(row) for row in rows} | ({SWEEP: _sweep_json(sweep)} if sweep else {})
    write_json(figures, content | {key: value for key, value in kept.items() if key not in owned})
    page.write_text(text, encoding="utf-8")
    plot_rows(rows, docs / "images" / "results.png")
    if sweep:
        plot_sweep(sweep, docs / "images" / "results_n_docs.png")
    return [page, figures]


def between_marks(page: Path, new: str, name: str) -> str:
    """The page with what stands between the marks of this name replaced; at its end where it has none yet."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text(encoding="utf-8") if page.is_file() else "# Results\n"
    counts = old.count(begin), old.count(end)
    if counts == (0, 0):
        return f"{old.rstrip()}\n\n{begin}\n{new.rstrip()}\n{end}\n"
    if counts != (1, 1) or old.index(begin) > old.index(end):
        raise OpenBookError("the marks are not a pair", where=page, got=f"{counts[0]} of '{begin}' and {counts[1]} of "
                            f"'{end}'", expected="one of each",
                            action="Mend them, or delete all of them to have the tables at the end.")  # fmt: skip
    before, rest = old.split(begin)
    return f"{before}{begin}\n{new.rstrip()}\n{end}{rest.split(end)[1]}"


def _sweep_json(sweep: Sweep) -> dict[str, dict[str, Any]]:
    return {experiment: {str(number): as_json(row) for number, row in by_number.items()}
            for experiment, by_number in sweep.items()}  # fmt: skip
