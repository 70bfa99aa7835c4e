"""What runs answer where one of three countries has a value alone: that value, the one of the other two, or another.

    python -m benchmarks.marginal.trio_answers RUN ...

RUN: a finished run whose data.test is factbook_trios. `found`: questions of which all three passages were read.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openbook.data.factbook.build import FactbookOptions, facts_of
from openbook.data.factbook.text import book_files, find_book, read_country
from openbook.metrics.matching import exact_match
from openbook.tracking.run_folder import RunFolder
from openbook.utils.json_lines import read_json_lines

KINDS = ("alone", "shared", "other")


def main(words: Sequence[str]) -> int:
    if not words:
        print("python -m benchmarks.marginal.trio_answers RUN ...")
        return 2
    answers, passages = known_values()
    print("| run | questions | its own value | the value of the two | found | its own value, of those found |")
    print("|---|---|---|---|---|---|")
    for word in words:
        run = RunFolder.existing(word)
        told = shares(read_json_lines(Path(run.path) / "predictions.jsonl")[0], answers, passages)
        cells = [f"{told[key]:.3f}" for key in ("alone", "shared", "found", "alone_of_found")]
        print(f"| {word} | {told['questions']:.0f} | {' | '.join(cells)} |")
    return 0


def known_values() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Answers and passages of every fact of the book as it is cut by default, by `CODE-relation`."""
    _, facts = facts_of([read_country(path) for path in book_files(find_book())], FactbookOptions(), Counter())
    return {fact.id: fact.answers for fact in facts}, {fact.id: fact.positive_ids for fact in facts}


def shares(
    predictions: Iterable[Mapping[str, Any]],
    answers: Mapping[str, Sequence[str]],
    passages: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Shares of the questions; `alone_of_found` of those that were found. A question's id has the two countries' codes
    before the one's."""
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
