"""Do moving passages pay? Nothing of the retriever trained, its question encoder alone (as in the paper), both encoders
over an index that is never refreshed, and both with refreshes: at equal steps, the generator trained in all of them.

    python -m benchmarks.index.moving [--full] [--seeds "0 1 2"] [--layers "6 3"] [--docs] [KEY=VALUE ...]

--layers: how many of MiniLM's six layers both encoders start with (3: the first, the third and the last); fewer know
less. --full: the data, steps and refreshes of factbook_full, for a GPU, instead of rag_token's. Runs lie in
runs/moving/ and are kept. Differences are paired over the test questions, each with its mean over the seeds. --docs
puts the tables into docs/results.md and the figures into docs/results.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml
from safetensors.torch import load_file, save_file

from benchmarks.common.docs_page import publish
from benchmarks.common.kept_runs import trained
from openbook.config.load import known_experiments
from openbook.config.models import MINILM
from openbook.metrics.retrieval import first_hit
from openbook.metrics.summary import HELD_OUT
from openbook.models.pretrained import model_folder
from openbook.reporting.comparison_table import Row, Spread, markdown, paired, shown
from openbook.utils.atomic import replacing_folder

ROOT = Path("runs/moving")
ALL_LAYERS = 6
CONDITIONS = ("frozen_retriever", "query_only", "stale_index", "rag_token")  # experiments; the last is what they extend
PAIRS = (
    ("query_only", "frozen_retriever"),
    ("stale_index", "query_only"),
    ("rag_token", "query_only"),
    ("rag_token", "stale_index"),
)
MEASURES = ("exact match", "recall@1", "exact match, unseen phrasings", "recall@1, unseen phrasings")

Answers = Mapping[str, Mapping[str, float]]
"""{measure: {question id: value}} of one run."""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", default="0 1 2")
    parser.add_argument("--layers", default=f"{ALL_LAYERS} 3")
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args(list(words))
    for layers in map(int, asked.layers.split()):
        found = {
            condition: [
                answers(train(condition, layers, seed, asked.full, asked.overrides))
                for seed in map(int, asked.seeds.split())
            ]
            for condition in CONDITIONS
        }
        measured = figures(found)
        text = tables(measured)
        name = f"moving-{'full-' if asked.full else ''}{layers}"
        print(f"{name}\n\n{text}")
        if asked.docs:
            publish(Path("docs"), name, text, {name: measured})
    return 0


def train(condition: str, layers: int, seed: int, full: bool, overrides: Sequence[str]) -> Path:
    """The folder of the finished run."""
    folder = ROOT / f"{'full-' if full else ''}{layers}" / f"{condition}-seed{seed}"
    words = [*overrides, f"seed={seed}"]
    if layers < ALL_LAYERS:
        encoder = with_layers(layers)
        words += [f"retriever.question_encoder={encoder}", f"retriever.passage_encoder={encoder}"]
    if full:
        return trained(folder, "factbook_full", [*changes_of(condition), *words]).path
    return trained(folder, condition, words).path


def changes_of(condition: str) -> list[str]:
    """What the experiment's file says beside rag_token, as overrides."""
    if condition == CONDITIONS[-1]:
        return []
    sections = yaml.safe_load(known_experiments()[condition].read_text(encoding="utf-8"))
    return [
        f"{name}.{key}={json.dumps(value)}"
        for name, section in sections.items()
        if isinstance(section, dict)
        for key, value in section.items()
    ]


def with_layers(n: int) -> Path:
    """A folder of n of MiniLM's layers, made where it is not there: first, last and evenly between. Without the last,
    which turns states into what is compared, next to nothing is found."""
    target, source = ROOT / f"minilm-{n}-layers", Path(model_folder(MINILM))
    if not target.exists():
        with replacing_folder(target) as new:
            shutil.copytree(source, new, dirs_exist_ok=True)
            config = json.loads((source / "config.json").read_text(encoding="utf-8"))
            (new / "config.json").write_text(json.dumps(config | {"num_hidden_layers": n}), encoding="utf-8")
            places = {layer: place for place, layer in enumerate(np.linspace(0, ALL_LAYERS - 1, n).round().astype(int))}
            weights = load_file(source / "model.safetensors")
            renamed = {_placed(name, places): value for name, value in weights.items()}
            save_file({name: value for name, value in renamed.items() if name}, new / "model.safetensors")
    return target


def _placed(name: str, places: Mapping[int, int]) -> str:
    """A weight's name with its layer where it will be; empty where the layer is left out."""
    before, inside, rest = name.partition("encoder.layer.")
    layer, _, own = rest.partition(".")
    if not inside:
        return name
    return f"{before}{inside}{places[int(layer)]}.{own}" if int(layer) in places else ""


def answers(run: Path) -> Answers:
    """Exact match and recall@1 of every test question."""
    of: dict[str, dict[str, float]] = {measure: {} for measure in MEASURES}
    for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        among = MEASURES[2:] if row["phrasing"] == HELD_OUT else MEASURES[:2]
        values = (float(row["exact_match"]), float(first_hit(row["hits"]) == 1))
        for measure, value in zip(among, values, strict=True):
            of[measure][row["id"]] = value
    return of


def figures(found: Mapping[str, Sequence[Answers]]) -> dict[str, Any]:
    """{"means": {condition: {measure: [of each seed]}}, "differences": {"A - B": {measure: [mean, low, high]}}}, of the
    measures that have questions."""
    asked = [measure for measure in MEASURES if all(one[measure] for of_seeds in found.values() for one in of_seeds)]
    means = {
        condition: {measure: [fmean(one[measure].values()) for one in of_seeds] for measure in asked}
        for condition, of_seeds in found.items()
    }

    def row(condition: str, measure: str) -> Row:
        return Row(condition, matches=dict(enumerate(one[measure] for one in found[condition])))

    differences = {
        f"{ahead} - {behind}": {
            measure: list(paired(row(ahead, measure), row(behind, measure)) or ()) for measure in asked
        }
        for ahead, behind in PAIRS
    }
    return {"means": means, "differences": differences}


def tables(measured: Mapping[str, Any]) -> str:
    """Markdown of `figures`."""
    means, differences = measured["means"], measured["differences"]
    columns = list(means["rag_token"])
    spreads = [
        [
            f"`{condition}`",
            *(shown(Spread(fmean(of), min(of), max(of), len(of)), measure) for measure, of in row.items()),
        ]
        for condition, row in means.items()
    ]
    apart = [
        [f"`{pair.replace(' - ', '` - `')}`", *("{:+.3f} ({:+.3f} to {:+.3f})".format(*of) for of in row.values())]
        for pair, row in differences.items()
    ]
    return f"{markdown([['', *columns], *spreads])}\n{markdown([['difference, paired', *columns], *apart])}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
