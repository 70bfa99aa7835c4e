"""What runs answer where one of three countries has a value alone: that value, the one of the other two, or another.

    python -m benchmarks.marginal.trio_answers RUN ...

RUN: a finished run whose data.test is factbook_trios. `found`: questions of which all three passages were read.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openbook.data.factbook.build import known_facts
from openbook.metrics.matching import exact_match
from openbook.setup.inputs.data import factbook
from openbook.tracking.run_folder import RunFolder
from openbook.utils.json_lines import read_json_lines

KINDS = ("alone", "shared", "other")


def main(words: Sequence[str]) -> int:
    if not words:
        print("python -m benchmarks.marginal.trio_answers RUN ...")
        return 2
    print("| run | questions | its own value | the value of the two | found | its own value, of those found |")
    print("|---|---|---|---|---|---|")
    for word in words:
        run = RunFolder.existing(word)
        data = run.load_config([], training=False).data
        facts = {fact.id: fact for fact in known_facts(factbook(data.factbook, data.cache))}
        told = shares(
            read_json_lines(run.path / "predictions.jsonl")[0],
            {name: fact.answers for name, fact in facts.items()},
            {name: fact.positive_ids for name, fact in facts.items()},
        )
        cells = [f"{told[key]:.3f}" for key in ("alone", "shared", "found", "alone_of_found")]
        print(f"| {word} | {told['questions']:.0f} | {' | '.join(cells)} |")
    return 0


def shares(
    predictions: Iterable[Mapping[str, Any]],
    answers: Mapping[str, Sequence[str]],
    passages: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Shares of the questions; `alone_of_found` of those that were found. answers and passages are by `CODE-relation`;
    a question's id has the two countries' codes before the one's."""
    kinds, found, right = Counter[str](), 0, 0
    for one in predictions:
        *codes, relation = one["id"].split("-")
        facts = [f"{code}-{relation}" for code in codes]
        said = one["prediction"]
        alone = bool(exact_match(said, answers[facts[2]]))
        kinds["alone" if alone else "shared" if exact_match(said, answers[facts[0]]) else "other"] += 1
        read = {passage["id"] for passage in one["passages"]}
        whole = all(read & set(passages[fact]) for fact in facts)
        found, right = found + whole, right + (whole and alone)
    total = max(kinds.total(), 1)
    return {
        "questions": kinds.total(),
        **{kind: kinds[kind] / total for kind in KINDS},
        "found": found / total,
        "alone_of_found": right / max(found, 1),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
