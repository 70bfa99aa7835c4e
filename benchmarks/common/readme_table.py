"""README's table of results, from docs/readme.json: who trains again replaces rows by runs, and nobody types a number.

python -m benchmarks.common.readme_table RUN ...   rows of these runs' experiments anew, one row per experiment
python -m benchmarks.common.readme_table           the table alone
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.docs_page import between_marks
from openbook.errors import OpenBookError
from openbook.metrics.summary import HELD_OUT
from openbook.tracking.run_folder import read_json
from openbook.utils.atomic import write_json, write_text

README, FIGURES = Path("README.md"), Path("docs/readme.json")
COLUMNS = {
    "exact_match": "exact match",
    "f1": "F1",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "exact_match_held_out": "exact match, unseen phrasings",
    "recall_at_1_held_out": "recall@1, unseen phrasings",
}
BEFORE = "before training"


def main(runs: Sequence[str]) -> int:
    """0 on success, 2 on bad input."""
    try:
        figures = json.loads(FIGURES.read_text(encoding="utf-8"))
        if runs:
            figures["rows"] = replaced(figures["rows"], [Path(run) for run in runs])
        page = between_marks(README, table(figures["rows"]), "results")
    except OpenBookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(FIGURES, figures)
    write_text(README, page)
    print(f"wrote {FIGURES}\nwrote {README}")
    return 0


def replaced(rows: Sequence[Mapping[str, Any]], runs: Iterable[Path]) -> list[Mapping[str, Any]]:
    """The rows with those of the runs' experiments made anew, at their places; new experiments at the end.

    The row before training is the first run's of rag_token. OpenBookError for a run that is not finished, of settings
    other than its experiment's, or of a seed that came before.
    """
    made: dict[str, list[tuple[int, str, dict[str, float]]]] = {}
    for run in runs:
        summary, commit = read_json(run / "summary.json"), read_json(run / "environment.json").get("commit", "")
        if summary.get("status") != "finished" or not commit or commit.endswith("+"):
            raise OpenBookError(
                "no result to publish",
                where=run,
                got=f"status {summary.get('status')}, commit {commit or 'unknown'}",
                expected="a finished run of a committed state",
            )
        name, seed = summary["experiment"], summary["seed"]
        of = made.setdefault(name, [])
        if seed in [one[0] for one in of]:
            raise OpenBookError("two runs of one seed", where=run, got=f"{name}, seed {seed}")
        of.append((seed, commit[:7], metrics(summary["test"])))
        if name == "rag_token" and BEFORE not in made:
            made[BEFORE] = [(seed, commit[:7], metrics(summary["before_training"]))]
    new = {name: _row(name, sorted(of)) for name, of in made.items()}
    return [new.pop(row["what"], row) for row in rows] + list(new.values())


def metrics(test: Mapping[str, Any]) -> dict[str, float]:
    """Those of COLUMNS, of `test` or `before_training` in summary.json."""
    unseen = test.get("by_phrasing", {}).get(HELD_OUT, {})
    known = {**test, **{f"{name}_held_out": value for name, value in unseen.items()}}
    return {name: float(known[name]) for name in COLUMNS if known.get(name) is not None}


def _row(name: str, of: Sequence[tuple[int, str, dict[str, float]]]) -> dict[str, Any]:
    values = {column: [measured[column] for _, _, measured in of] for column in of[0][2]}
    return {
        "what": name,
        "seeds": [seed for seed, _, _ in of],
        "commit": ", ".join(dict.fromkeys(commit for _, commit, _ in of)),
        "metrics": {
            column: {"mean": round(fmean(some), 3), "min": round(min(some), 3), "max": round(max(some), 3)}
            for column, some in values.items()
        },
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As Markdown, the commit of each row last."""
    lines = [f"| | {' | '.join(COLUMNS.values())} | commit |", "|" + "---|" * (len(COLUMNS) + 2)]
    for row in rows:
        what, seeds = row["what"] if row["what"] == BEFORE else f"`{row['what']}`", row["seeds"]
        told = f"{what}, seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}"
        cells = [_cell(row["metrics"].get(name)) for name in COLUMNS]
        lines.append(f"| {told} | {' | '.join(cells)} | {row['commit']} |")
    return "\n".join(lines)


def _cell(one: Mapping[str, float] | None) -> str:
    if one is None:
        return "-"
    spread = f" ({one['min']:.3f} to {one['max']:.3f})" if one["max"] > one["min"] else ""
    return f"{one['mean']:.3f}{spread}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
