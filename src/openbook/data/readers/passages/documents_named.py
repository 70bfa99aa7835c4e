"""Questions that name a whole document where its passages are meant: a file that the splitter has cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import file_fingerprint, id_hash
from openbook.data.readers.fields import json_of
from openbook.data.readers.formats import read_passages, read_questions
from openbook.metrics.matching import has_answer
from openbook.utils.atomic import replacing_folder, write_json

VERSION = 1  # raise it whenever the same input gives other bytes
_NUMBER = re.compile(r"#\d+$")  # of a passage in its document
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Named:
    """named: ids of questions that are a document's. documents: how many different ones. passages: ids that stand for
    them now. without: with `narrow`, questions whose documents have no passage with an answer, and keep all of them."""

    named: int = 0
    documents: int = 0
    passages: int = 0
    without: int = 0


def with_passages_of_documents(
    questions: Path, passages: Path, cache: Path, *, narrow: bool = False, regex: bool = False
) -> tuple[Path, Named]:
    """The questions with a document's passages in the place of its id among the positive and the negative ids, and what
    was found; their own file where none names a document.

    passages: as the splitter wrote them, DOCUMENT#1, DOCUMENT#2, ... An id that is a passage's own stays. A document's
    grade is that of each of its passages. narrow: of a positive document only the passages that hold an answer, as far
    as any does, for those that are trained on; regex: answers are regular expressions.
    """
    asked = {
        one
        for example in read_questions(questions)
        for one in (*example.positive_ids, *example.negative_ids)
        if not _NUMBER.search(one)
    }
    if not asked:
        return questions, Named()
    key = json.dumps([VERSION, file_fingerprint(questions), file_fingerprint(passages), narrow, regex])
    folder = Path(cache) / f"documents-{id_hash(key):016x}"
    if not (folder / "report.json").is_file():
        with replacing_folder(folder, complete=lambda made: (made / "report.json").is_file()) as new:
            found: dict[str, list[Passage]] = {}
            for passage in read_passages(passages):
                if (document := _NUMBER.sub("", passage.id)) in asked:
                    found.setdefault(document, []).append(passage)
            write_json(new / "report.json", asdict(_write(new / "named.jsonl", questions, found, narrow, regex)))
    report = Named(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
    return (folder / "named.jsonl" if report.named else questions), report


def _write(path: Path, questions: Path, found: dict[str, list[Passage]], narrow: bool, regex: bool) -> Named:
    counts, documents = Named(), set[str]()
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for example in read_questions(questions):
            named = [one for one in (*example.positive_ids, *example.negative_ids) if one in found]
            documents.update(named)
            new, answered = _with_passages(example, found, narrow, regex) if named else (example, True)
            file.write(_ENCODE(json_of(new)) + "\n")
            kept = len(example.positive_ids) + len(example.negative_ids) - len(named)
            counts = Named(
                counts.named + len(named),
                len(documents),
                counts.passages + len(new.positive_ids) + len(new.negative_ids) - kept,
                counts.without + (not answered),
            )
    return counts


def _with_passages(
    example: Example, found: dict[str, list[Passage]], narrow: bool, regex: bool
) -> tuple[Example, bool]:
    """The question, and whether its documents have a passage with an answer (or none was looked for)."""
    grades: dict[str, int] = {}
    positives = [one for name in example.positive_ids for one in found.get(name, ())]
    holding = {one.id for one in positives if narrow and has_answer(one.text, example.answers, regex)}
    for name, grade in zip(example.positive_ids, example.grades or (1,) * len(example.positive_ids), strict=True):
        for one in _ids_of(name, found):
            if not holding or name not in found or one in holding:
                grades[one] = max(grade, grades.get(one, 0))
    every = {one.id for one in positives}
    negatives = dict.fromkeys(one for name in example.negative_ids for one in _ids_of(name, found))
    new = replace(
        example,
        positive_ids=tuple(grades),
        grades=tuple(grades.values()) if example.grades else (),
        negative_ids=tuple(one for one in negatives if one not in grades and one not in every),
    )
    return new, bool(holding) or not (narrow and positives)


def _ids_of(name: str, found: dict[str, list[Passage]]) -> Iterator[str]:
    """The passages of a document, or the id itself."""
    return (one.id for one in found[name]) if name in found else iter([name])
