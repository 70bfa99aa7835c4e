"""What training gains with how many questions: the same experiment on growing shares of the training file.

    python -m benchmarks.training.learning_curve NAME EXPERIMENT data.corpus=FILE data.train=FILE ... \
        [--sizes "100 300 0"] [--seeds "0 1 2"] [--docs]

A size takes so many questions, spread evenly over data.train (0: all). Runs lie in runs/learning-curve/ and are kept;
those that are finished are not trained again. --docs puts the table into docs/own-data.md and the figures into
docs/own-data.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.docs_page import between_marks, read_results
from benchmarks.common.kept_runs import trained
from openbook.config.load import load_experiment
from openbook.data.question_file import QuestionFile
from openbook.data.readers.checked_lines import read_lines
from openbook.setup.inputs.data import files
from openbook.utils.atomic import replacing, write_json, write_text

ROOT = Path("runs/learning-curve")
COLUMNS = {"recall_at_1": "recall@1", "recall_at_5": "recall@5", "recall_at_20": "recall@20", "f1": "F1"}


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("experiment")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sizes", default="100 300 0")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args(list(words))
    config = load_experiment(asked.experiment, asked.overrides)
    train_file = files(config).train  # in openbook's own format, whatever it came in
    rows: dict[str, list[dict[str, Any]]] = {}
    for size in map(int, asked.sizes.split()):
        train = subset(train_file, size, Path(config.data.cache))
        questions = str(len(QuestionFile(train)))
        if questions in rows:  # the whole file, named by its size and by 0
            continue
        of_size = rows.setdefault(questions, [])
        for seed in map(int, asked.seeds.split()):
            settings = [*asked.overrides, f"data.train={train}", f"seed={seed}"]
            run = trained(ROOT / asked.name / f"{size or 'all'}-seed{seed}", asked.experiment, settings)
            of_size.append(run.read_summary())
    measured = figures(rows)
    text = table(asked.name, measured)
    print(text)
    if asked.docs:
        page, results = Path("docs/own-data.md"), Path("docs/own-data.json")
        write_text(page, between_marks(page, text, asked.name))
        write_json(results, read_results(results) | {asked.name: measured})
    return 0


def subset(path: Path, size: int, cache: Path) -> Path:
    """A file of so many questions, spread evenly over the other; the other itself where it has no more."""
    lines = [raw for _, _, raw in read_lines(path)]
    if not size or size >= len(lines):
        return path
    target = cache / f"{path.stem}-{size}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as new:
        new.write_bytes(b"".join(lines[place * len(lines) // size].rstrip(b"\r\n") + b"\n" for place in range(size)))
    return target


def figures(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """{questions: [per seed {metric: {before, after, interval of the difference}}]}."""
    return {
        size: [
            {
                metric: {
                    "before": one["before_training"].get(metric),
                    "after": one["test"].get(metric),
                    "interval": one["improved"][metric]["interval"],
                }
                for metric in COLUMNS
                if metric in one["improved"]
            }
            | {"steps": one["steps"], "tested_step": one["tested_step"], "seconds": one["seconds"]["total"]}
            for one in summaries
        ]
        for size, summaries in rows.items()
    }


def table(name: str, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown of `figures`: one row for each number of questions; of several seeds the means, and the lowest and the
    highest bound of their intervals."""
    of_all = [one for of_seeds in measured.values() for one in of_seeds]
    columns = {metric: title for metric, title in COLUMNS.items() if all(metric in one for one in of_all)}
    titles = [f"{title}: before, after (95 % interval of the difference)" for title in columns.values()]
    lines = [f"| {name}: questions | {' | '.join(titles)} | seeds |", f"|{'---|' * (len(titles) + 2)}"]
    for size, of_seeds in measured.items():
        cells = []
        for metric in columns:
            before, after = ([one[metric][when] for one in of_seeds] for when in ("before", "after"))
            low = min(one[metric]["interval"][0] for one in of_seeds)
            high = max(one[metric]["interval"][1] for one in of_seeds)
            cells.append(f"{_mean(before)}, {_mean(after)} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| {size} | {' | '.join(cells)} | {len(of_seeds)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
