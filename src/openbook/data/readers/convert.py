"""Any format into this project's own files, once: questions.jsonl and passages.jsonl in a folder of the cache.

Memory is bounded: records are read one at a time, and of each passage 16 bytes are kept, by which those that come twice
are found.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import MAX_LINE_BYTES, BadLineError, file_fingerprint, id_hash
from openbook.data.readers.detect import Reading, passages_of, questions_of
from openbook.data.readers.fields import Asked, json_of
from openbook.data.readers.formats import PLACES, QUESTIONS, read_passages
from openbook.data.readers.passages.splitter import Splitter
from openbook.data.readers.repeats import TWO_TEXTS, Ids, first_of_each
from openbook.data.readers.tables import Place
from openbook.errors import OpenBookError, raise_all
from openbook.utils.atomic import replacing_folder, write_json

VERSION = 4  # raise it whenever the same input gives other bytes
PASSAGES, REPORT = "passages.jsonl", "report.json"

Progress = Callable[[int, int], None]
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Converted:
    """Files in this project's formats; None where the input has none of the kind. report: what was read, and every kind
    of thing that was left out or could not be matched, with its count."""

    questions: Path | None
    passages: Path | None
    report: dict[str, Any]

    @property
    def told(self) -> str:
        """The report in one line."""
        counted = [f"{n:,} {what}" for what in ("questions", "passages") if (n := self.report[what])]
        notes = "".join(f"; {n:,} {what}" for what, n in self.report["notes"].items() if n)
        return f"{self.report['format']}: {' and '.join(counted)}{notes}"


def convert_questions(
    name: str,
    cache: Path,
    *,
    split: str,
    columns: dict[str, str],
    answered: bool,
    carried: bool = True,
    progress: Progress | None = None,
) -> Converted:
    """The questions of a name (see detect.questions_of), and, if `carried`, the passages that their records carry.
    answered: questions without an answer are left out and counted. OpenBookError on bad input."""
    what = ["questions", split, sorted(columns.items()), answered, carried]
    return _converted(name, cache, what, lambda: questions_of(name, split, columns), answered, carried, progress)


def convert_passages(
    name: str, cache: Path, *, columns: dict[str, str], splitter: Splitter, progress: Progress | None = None
) -> Converted:
    """The passages of a name (see detect.passages_of); documents are cut by the splitter."""
    what = ["passages", sorted(columns.items()), splitter.name]
    return _converted(name, cache, what, lambda: passages_of(name, columns, splitter), False, True, progress)


def merged_passages(paths: Mapping[Path, str], cache: Path) -> Converted:
    """The passages of several converted files as one, each id once. paths: with the names that their users know them
    by. OpenBookError where two of them mean two texts by one id: which would a question's positive id name?"""
    notes = Counter[str]()
    found = ((Place(name, n), one) for path, name in paths.items() for n, one in enumerate(read_passages(path), 1))
    reading = Reading("passages of the questions", found, list(paths), notes)
    made = _converted(str(next(iter(paths))), cache, ["merged"], lambda: reading, False, True, None, strict=False)
    if n := made.report["notes"].get(TWO_TEXTS, 0):
        raise _two_texts(paths, n)
    return made


def _two_texts(paths: Mapping[Path, str], n: int) -> OpenBookError:
    seen: dict[str, tuple[int, str]] = {}
    for path, name in paths.items():
        for one in read_passages(path):
            content = id_hash(f"{one.title}\0{one.text}")
            if seen.setdefault(one.id, (content, name))[0] != content:
                first = seen[one.id][1]
                return OpenBookError(
                    "files of questions have two passages under one id",
                    where="data.corpus=questions",
                    got=f"the id {one.id!r} in {first} and, with another text, in {name}; {n:,} such passages",
                    expected="an id for each text, over all files of a run",
                    action="Give the passages of one file other ids, leave their ids out (they then go by their "
                    "content), or name one corpus for all: data.corpus=FILE.",
                )
    raise AssertionError("the files have changed while they were read")


def _converted(
    name: str,
    cache: Path,
    what: list[Any],
    read: Callable[[], Reading],
    answered: bool,
    carried: bool,
    progress: Progress | None,
    strict: bool = True,
) -> Converted:
    reading = read()
    path = Path(name)
    root = path if path.is_dir() else path.parent
    files = [
        [str(one.relative_to(root)) if one.is_relative_to(root) else one.name, file_fingerprint(one, cache)]
        for one in reading.files
    ]
    key = json.dumps([VERSION, *what, files or name, path.name])
    folder = Path(cache) / f"converted-{id_hash(key):016x}"
    if not (folder / REPORT).is_file():
        with replacing_folder(folder, complete=lambda made: (made / REPORT).is_file()) as new:
            write_json(new / REPORT, _write(reading, new, name, answered, carried, progress, strict))
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    questions = folder / QUESTIONS if report["questions"] else None
    return Converted(questions, folder / PASSAGES if report["passages"] else None, report)


def _write(
    reading: Reading, folder: Path, name: str, answered: bool, carried: bool, progress: Progress | None, strict: bool
) -> dict[str, Any]:
    notes, faults = reading.notes, _Faults()
    asked, passages = Ids(), Ids()
    with (
        open(folder / QUESTIONS, "w", encoding="utf-8", newline="\n") as questions,
        open(folder / "all.jsonl", "w", encoding="utf-8", newline="\n") as every,
    ):
        for n, (place, found) in enumerate(reading.found, 1):
            try:
                if isinstance(found, BadLineError):
                    raise found
                if not isinstance(found, Passage):
                    _write_asked(found, place, questions, asked, every if carried else None, passages, answered, notes)
                elif carried:
                    _write_passage(every, passages, place, found)
            except BadLineError as fault:
                faults.add(place, fault)
            if progress and n % 1000 == 0:
                progress(n, 0)
    faults.raise_all()
    total = len(asked.ids)
    if not total and not passages.ids and not notes["questions without an answer are left out"]:
        raise OpenBookError("nothing is in it", where=name, got=reading.format, expected="at least one record")
    if not total and not passages.ids:
        n = notes["questions without an answer are left out"]
        raise _unanswered(name, n)
    asked.refuse_repeats()
    if total:
        starts = np.frombuffer(asked.starts, np.int64)[:-1]
        np.save(folder / PLACES, np.stack([starts, np.arange(1, total + 1)], axis=1))
    kept = first_of_each(folder / "all.jsonl", folder / PASSAGES, passages, notes, strict and not total)
    return {"format": reading.format, "questions": total, "passages": kept, "notes": dict(sorted(notes.items()))}


def _unanswered(name: str, n: int) -> OpenBookError:
    return OpenBookError(
        f"none of {n:,} questions has an answer",
        where=name,
        expected="answers, for a generator to learn and be measured by",
        action="objective=dpr trains and measures retrieval alone, without answers.",
    )


def _write_asked(
    found: Asked,
    place: Place,
    questions: IO[str],
    asked: Ids,
    every: IO[str] | None,
    passages: Ids,
    answered: bool,
    notes: Counter[str],
) -> None:
    example: Example = found.example
    for passage in found.passages if every else ():
        _write_passage(every, passages, place, passage)  # type: ignore[arg-type]
    if not example.answers and answered:
        notes["questions without an answer are left out"] += 1
        return
    if not example.answers:
        notes["questions have no answer"] += 1
    line = _line(json_of(example), "a question")
    questions.write(line)
    asked.add(place, example.id)
    asked.starts.append(asked.starts[-1] + len(line.encode()))


def _write_passage(file: IO[str], passages: Ids, place: Place, one: Passage) -> None:
    file.write(_line({"id": one.id, "title": one.title, "text": one.text}, "a passage"))
    passages.add(place, one.id, f"{one.title}\0{one.text}")


def _line(record: dict[str, Any], what: str) -> str:
    """A record as a line that this project reads; a BadLineError where it would be too long, while it is known where it
    comes from."""
    line = _ENCODE(record)
    if len(line) * 4 > MAX_LINE_BYTES and (n := len(line.encode())) > MAX_LINE_BYTES:
        raise BadLineError(
            f"{what} is too long",
            got=f"{n:,} bytes",
            expected=f"at most {MAX_LINE_BYTES:,}",
            action="Split long texts into passages of about 100 words.",
        )
    return line + "\n"


class _Faults:
    """The first of each kind of fault, and how many there are."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Place, BadLineError]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, place: Place, fault: BadLineError) -> None:
        self._first.setdefault(fault.what, (place, fault))
        self._counts[fault.what] += 1

    def raise_all(self) -> None:
        raise_all(
            [
                fault.at(str(place), f"{self._counts[what]:,} records have this fault.")
                for what, (place, fault) in self._first.items()
            ]
        )
