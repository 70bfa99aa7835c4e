"""What is learned of answers that are regular expressions: the text that they match most often.

Lewis et al. 2020, appendix D, take it from the 1,000 best passages of a question (CuratedTREC); here it is taken from
the passages that the question names as positive.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from openbook.batch import Example
from openbook.data.readers.checked_lines import file_fingerprint, id_hash
from openbook.data.readers.fields import json_of
from openbook.data.readers.formats import read_passages, read_questions
from openbook.metrics.matching import matches_in
from openbook.utils.atomic import replacing_folder, write_json

VERSION = 1  # raise it whenever the same input gives other bytes
_SIGNS = re.compile(r"[\\^$.|?*+()\[\]{}]")
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Targets:
    """Of the questions: matched have an answer in a positive passage; plain have none there, but an answer that is no
    pattern and means what it says; left_out have neither."""

    matched: int = 0
    plain: int = 0
    left_out: int = 0


def with_targets(questions: Path, passages: Path, cache: Path) -> tuple[Path, Targets]:
    """The questions with texts in the place of their patterns, for training; their own file where no answer is a
    pattern. Raises OpenBookError where an answer does not compile."""
    if not any(_SIGNS.search(answer) for example in read_questions(questions) for answer in example.answers):
        return questions, Targets()
    key = json.dumps([VERSION, "targets", file_fingerprint(questions), file_fingerprint(passages)])
    folder = Path(cache) / f"targets-{id_hash(key):016x}"
    if not (folder / "report.json").is_file():
        with replacing_folder(folder, complete=lambda made: (made / "report.json").is_file()) as new:
            asked = {one for example in read_questions(questions) for one in example.positive_ids}
            texts = {one.id: one.text for one in read_passages(passages) if one.id in asked}
            write_json(new / "report.json", asdict(_write(new / "targets.jsonl", questions, texts)))
    return folder / "targets.jsonl", Targets(**json.loads((folder / "report.json").read_text(encoding="utf-8")))


def _write(path: Path, questions: Path, texts: dict[str, str]) -> Targets:
    counts = Counter[str]()
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for example in read_questions(questions):
            target, kind = target_of(example, [texts[one] for one in example.positive_ids if one in texts])
            counts[kind] += 1
            if target:
                file.write(_ENCODE(json_of(replace(example, answers=target))) + "\n")
    return Targets(**counts)


def target_of(example: Example, passages: list[str]) -> tuple[tuple[str, ...], str]:
    """(answers, kind): the most frequent match of the patterns, the first among equals, else those that are none."""
    found = Counter(one for text in passages for answer in example.answers for one in matches_in(text, answer))
    if found:
        return (found.most_common(1)[0][0],), "matched"
    plain = tuple(answer for answer in example.answers if not _SIGNS.search(answer))
    return plain, "plain" if plain else "left_out"
