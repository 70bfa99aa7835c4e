"""Put the tables of a comparison or of a knowledge hot-swap into docs/results.md and docs/results.json.

    python -m benchmarks.common.docs_results compare EXPERIMENT ... [key=value ...] --seeds "0 1 2"
    python -m benchmarks.common.docs_results hot-swap RUN

Both take the words of the openbook command that made the results; nothing is trained or evaluated here. A comparison
with --name NAME has a section, a picture and a key of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.docs_page import publish
from openbook.commands.comparison.jobs import jobs_of, rows_of, sweep_of
from openbook.commands.comparison.request import Request
from openbook.commands.parsers import parse, subject_of
from openbook.config.load import list_experiments
from openbook.errors import OpenBookError
from openbook.reporting.comparison_files import SWEEP, Sweep, sweep_json, tables
from openbook.reporting.comparison_plots import plot_rows, plot_sweep
from openbook.reporting.comparison_table import Row, as_json
from openbook.reporting.hot_swap_table import FACTS, INDEXES
from openbook.reporting.published import HOT_SWAP
from openbook.tracking.run_folder import RunFolder, read_json
from openbook.tracking.search.found_run import FoundRun, changes_nothing
from openbook.tracking.search.run_search import Runs

DOCS = Path("docs")


def main(words: Sequence[str]) -> int:
    """0 on success, 2 on bad input, like the command line of openbook."""
    parsed = parse(words)
    try:
        if parsed.command == "compare":
            request = Request.of(parsed)
            jobs = jobs_of(request, Runs(request.runs))
            sweep = sweep_of(jobs, request.test_n_docs)
            command = request.command + (f" NAME={request.name}" if request.name else "") + " DOCS=1"
            written = write_comparison(DOCS, rows_of(jobs), sweep, command, list(list_experiments()), request.name)
        elif parsed.command == "hot-swap":
            written = write_hot_swap(DOCS, RunFolder.existing(subject_of(parsed)[0]).path)
        else:
            raise OpenBookError("no results for the docs", got=parsed.command, expected="compare or hot-swap")
    except OpenBookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {path}")
    return 0


def write_comparison(
    docs: Path, rows: Sequence[Row], sweep: Sweep, command: str, known: Sequence[str], name: str = ""
) -> list[Path]:
    """Section `compare` of results.md, results.json and images/; returns the page and the JSON file.

    known: names of experiments. One command makes the whole table, so results.json loses those that this comparison
    lacks, as well as an earlier sweep; every other key is kept. name: of another section, whose figures stand under
    this key.
    """
    (docs / "images").mkdir(parents=True, exist_ok=True)
    image = f"results_{name}" if name else "results"
    picture = f"![Exact match and recall@1 of every experiment](images/{image}.png)\n"
    if sweep:
        picture += f"\n![Metrics against passages read at test](images/{image}_n_docs.png)\n"
    results = {row.experiment: as_json(row) for row in rows} | ({SWEEP: sweep_json(sweep)} if sweep else {})
    figures, gone = ({name: results}, {name}) if name else (results, {*known, SWEEP})
    written = publish(docs, name or "compare", f"{tables(rows, sweep, command)}\n{picture}", figures, gone)
    plot_rows(rows, docs / "images" / f"{image}.png")
    if sweep:
        plot_sweep(sweep, docs / "images" / f"{image}_n_docs.png")
    return written


def write_hot_swap(docs: Path, run: Path) -> list[Path]:
    """Section `hot-swap` of results.md and key hot_swap of results.json: the mean over this run and those that differ
    from it in the seed alone, hot-swapped with the same overrides. Of several runs of a seed the one swapped last
    counts."""
    spread = results(_seeds_of(run))
    summary = read_json(run / "hot_swap" / "summary.json")
    return publish(docs, "hot-swap", docs_section(summary, spread), {"hot_swap": spread})


def _seeds_of(folder: Path) -> list[Path]:
    """The run folder and those of other seeds, one per seed, by seed."""
    folder = folder.resolve()
    runs = Runs(folder.parent.parent).of(folder.parent.name)
    mine = next((run for run in runs if run.path == folder), None)
    if mine is None:
        raise OpenBookError("not a run folder", where=folder, got="no readable config.yaml in it")

    def setting(run: FoundRun) -> tuple[object, ...]:
        """What the results of two seeds must have in common."""
        summary = read_json(run.path / "hot_swap" / "summary.json")
        changes = [one for one in summary.get("overrides", ()) if not changes_nothing(one, mine.values)]
        return summary.get("experiment"), dict(one.split("=", 1) for one in changes), summary.get("n_questions")

    newest: dict[int, tuple[float, Path]] = {}
    for run in runs:
        seed, path = run.config.seed, run.path / "hot_swap" / "summary.json"
        if path.is_file() and run.values == {**mine.values, "seed": seed} and setting(run) == setting(mine):
            newest[seed] = max(newest.get(seed, (0.0, path)), (path.stat().st_mtime, run.path))
    return [newest[seed][1] for seed in sorted(newest)]


def results(folders: Sequence[Path]) -> dict[str, Any]:
    """{table: the 2 x 2 means; matched, mismatched: means; matched_range, mismatched_range: [lowest, highest]; n} over
    the run folders, each of which must hold a hot-swap."""
    summaries = []
    for folder in folders:
        path = Path(folder) / "hot_swap" / "summary.json"
        if not path.is_file():
            raise OpenBookError(
                "no hot-swap in this run folder",
                where=folder,
                expected="hot_swap/summary.json",
                action=f"make hot-swap RUN={folder}",
            )
        summaries.append(json.loads(path.read_text(encoding="utf-8")))
    if not summaries:
        raise OpenBookError("no hot-swap to report on", got="0 run folders", action="make hot-swap RUN=...")
    grid = {
        index: {facts: fmean(one["table"][index][facts] for one in summaries) for facts in FACTS} for index in INDEXES
    }
    spread: dict[str, Any] = {"n": len(summaries), "table": grid}
    for name in ("matched", "mismatched"):
        values = [summary[name] for summary in summaries]
        spread |= {name: fmean(values), f"{name}_range": [min(values), max(values)]}
    return spread


def docs_section(summary: Mapping[str, Any], spread: Mapping[str, Any]) -> str:
    """The hot-swap table as Markdown."""
    rows = ["| index | facts of the original | facts of the changed corpus | the paper |", "|---|---|---|---|"]
    for index in INDEXES:
        ours, theirs = (
            [f"{100 * grid[index][facts]:.1f} %" for facts in FACTS] for grid in (spread["table"], HOT_SWAP)
        )
        rows.append(f"| {index.replace('_index', '')} | {ours[0]} | {ours[1]} | {', '.join(theirs)} |")
    said = []
    for name in ("matched", "mismatched"):
        low, high = spread[f"{name}_range"]
        said.append(f"{name} {100 * spread[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
    return "\n".join(
        [
            f"`make hot-swap RUN=... DOCS=1`: {summary['experiment']}, {summary['n_questions']} questions about facts "
            f"that the other corpus changes, exact match, mean over {spread['n']} run(s); the paper: Lewis et al. "
            f"2020, section 4.5, other questions. {'; '.join(said)}.",
            "",
            *rows,
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
