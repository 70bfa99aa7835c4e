"""This project's own formats and DPR's passages, read where they lie: every line checked before anything else starts.

Passages: `id`, `title`, `text` in JSON on each line, or DPR's `psgs_w100.tsv` (header `id<TAB>text<TAB>title`, quoted
as Python's csv module writes them, or not at all), packed or not. Questions: `question` and `answers` in JSON on each
line, optional `id`, `positive_ids`, `negative_ids`, `grades`, `reward`, `relation`, `phrasing`, `paraphrases`; not
packed, because training reads single lines. Every other format is converted into these first (convert.py).

A check parses every line once and keeps 8 bytes per line (a hash of the id): 170 MB for 21 million passages.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import BadLineError, check_records, decoded, read_lines
from openbook.data.readers.compressed import packing
from openbook.data.readers.dpr_tsv import tsv_rows
from openbook.data.readers.fields import KNOWN_AS, json_object, require, string, strings
from openbook.errors import OpenBookError
from openbook.utils.console import say

_Record = TypeVar("_Record", Passage, Example)
QUESTIONS, PLACES = "questions.jsonl", "questions.places.npy"  # of a converted file, and beside it
_PASSAGE_KEYS, _QUESTION_KEYS = ("id", "title", "text"), tuple(field.name for field in fields(Example))


def read_passages(path: str | Path) -> Iterator[Passage]:
    """The passages of a file in its order. Raises OpenBookError at the first bad line; ids are not compared (see
    check_passages)."""
    for number, record in _passage_records(Path(path)):
        if isinstance(record, BadLineError):
            raise record.at(f"{path}:{number}")
        yield record


def read_questions(path: Path) -> Iterator[Example]:
    """The questions of a file in its order, those without an answer among them. Raises OpenBookError like
    `read_passages`."""
    for number, _, raw in read_lines(path):
        yield parse_example(raw, f"{path}:{number}", str(number))


def check_passages(path: str | Path, seen: Callable[[Passage, int], None] | None = None) -> int:
    """How many passages the file holds, after checking every line and that no id comes twice. seen: called with each
    sound passage and the hash of its id on the way."""
    empty = BadLineError("the corpus is empty", got="no passage", expected="at least n_docs passages")
    unread: Counter[str] = Counter()
    n_passages = check_records(Path(path), lambda: _passage_records(Path(path), unread), empty, seen=seen)
    _say_unread(str(path), _PASSAGE_KEYS, tuple(unread.items()), n_passages)
    return n_passages


def index_questions(path: str | Path, unanswered: bool = False) -> np.ndarray:
    """Check every line of a question file; give [n, 2] int64: the byte where each question's line starts and the
    line's number from 1. unanswered: whether a question may lack an answer. A converted file was checked when it was
    written, and has these numbers beside it."""
    path = Path(path)
    if path.name == QUESTIONS and (checked := path.with_name(PLACES)).is_file():
        return np.load(checked)
    if packed := packing(path):
        action = "Unpack it first: single lines are read from it during training."
        raise OpenBookError("a packed file has no lines to read singly", where=path, got=packed, action=action)
    empty = BadLineError("the question file is empty", got="no question", expected="at least one")
    unread: Counter[str] = Counter()
    places = array("q")

    def records() -> Iterator[tuple[int, Example | BadLineError]]:
        del places[:]
        return _jsonl_records(path, lambda line, name: _example(line, name, unread, unanswered), places)

    n_questions = check_records(path, records, empty, True)
    _say_unread(str(path), _QUESTION_KEYS, tuple(unread.items()), n_questions)
    return np.array(places, dtype=np.int64).reshape(-1, 2)


def parse_example(line: bytes, where: str, default_id: str) -> Example:
    """One line of a question file. `where` (FILE:LINE) is for the error; `default_id` is for a line without `id`."""
    try:
        return _example(decoded(line.rstrip(b"\r\n")), default_id, unanswered=True)
    except BadLineError as fault:
        raise fault.at(where) from None


def _passage_records(path: Path, unread: Counter[str] | None = None) -> Iterator[tuple[int, Passage | BadLineError]]:
    first = next((line for _, _, line in read_lines(path)), b"")
    if b"\t" in first and not first.lstrip().startswith((b"{", b"[")):
        yield from _tsv_records(path)
    else:
        yield from _jsonl_records(path, lambda line, _: _passage(json_object(line), unread))


@cache  # once per process
def _say_unread(path: str, known: tuple[str, ...], unread: tuple[tuple[str, int], ...], n_lines: int) -> None:
    """What stands in a file and is not read, and where it may belong."""
    told = []
    for key, n in unread:
        near = [ours for ours in known if key in KNOWN_AS.get(ours, ())]
        told.append(f"`{key}` ({n:,} of {n_lines:,} lines{f'; is it meant as `{near[0]}`?' if near else ''})")
    if told:
        say(f"{path}: keys that are not read: {', '.join(sorted(told))}")


def _jsonl_records(
    path: Path, read: Callable[[str, str], _Record], places: array[int] | None = None
) -> Iterator[tuple[int, _Record | BadLineError]]:
    """Each line as `read` gives it from its text and its number. places: takes the byte where each line starts and its
    number."""
    for number, start, raw in read_lines(path):
        if places is not None:
            places.extend((start, number))
        try:
            yield number, read(decoded(raw), str(number))
        except BadLineError as fault:
            yield number, fault


def _tsv_records(path: Path) -> Iterator[tuple[int, Passage | BadLineError]]:
    for number, row in tsv_rows(path):
        try:
            yield number, row if isinstance(row, BadLineError) else _passage(row)
        except BadLineError as fault:
            yield number, fault


def _note_unread(unread: Counter[str] | None, given: dict[str, Any], known: tuple[str, ...]) -> None:
    if unread is not None:
        unread.update(key for key in given if key not in known)


def _passage(fields: dict[str, Any], unread: Counter[str] | None = None) -> Passage:
    needs = "`id`, `title` and `text` on each line (`title` may be an empty string)"
    _note_unread(unread, fields, _PASSAGE_KEYS)
    return Passage(
        string(require(fields, "id", needs), "id", numbers=True, empty=False),
        string(require(fields, "title", needs), "title"),
        string(require(fields, "text", needs), "text", empty=False),
    )


def _example(line: str, default_id: str, unread: Counter[str] | None = None, unanswered: bool = False) -> Example:
    return example_of(json_object(line), default_id, unread, unanswered)


def example_of(
    fields: dict[str, Any], default_id: str, unread: Counter[str] | None = None, unanswered: bool = False
) -> Example:
    """A question from this project's own keys; a BadLineError says what is wrong with one."""
    _note_unread(unread, fields, _QUESTION_KEYS)
    fields = {key: value for key, value in fields.items() if value is not None or key in ("question", "answers")}
    needs = "`question` (a string) and `answers` (a list of strings, at least one) on each line"
    question = string(require(fields, "question", needs), "question", empty=False)
    answers = strings((fields.get("answers") or []) if unanswered else require(fields, "answers", needs), "answers")
    if not answers and not unanswered:
        action = "Only retrieval is trained and measured without answers: objective=dpr."
        raise BadLineError("a question has no answer", got="an empty list", expected=needs, action=action)
    grades, positives = fields.get("grades", []), strings(fields.get("positive_ids", []), "positive_ids", numbers=True)
    whole = isinstance(grades, list) and all(type(one) is int and one > 0 for one in grades)
    if not whole or (grades and len(grades) != len(positives)):
        raise BadLineError("`grades` do not go with `positive_ids`", expected="a whole number above 0 for each of them")
    reward = fields.get("reward")
    if reward is not None and (type(reward) not in (int, float) or not abs(reward) <= sys.float_info.max):
        raise BadLineError("a reward is no number", got=repr(reward)[:80], expected="a finite number, or none")
    return Example(
        id=string(fields.get("id", default_id), "id", numbers=True, empty=False),
        question=question,
        answers=answers,
        positive_ids=positives,
        relation=string(fields.get("relation", ""), "relation"),
        phrasing=string(fields.get("phrasing", ""), "phrasing", numbers=True),
        negative_ids=strings(fields.get("negative_ids", []), "negative_ids", numbers=True),
        grades=tuple(grades),
        reward=None if reward is None else float(reward),
        paraphrases=strings(fields.get("paraphrases", []), "paraphrases"),
    )
