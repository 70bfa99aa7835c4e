"""Readers of what users bring: passages and questions, every line checked before anything expensive starts.

Passages: `.jsonl` with `id`, `title`, `text` on each line, or DPR's `psgs_w100.tsv` (header `id<TAB>text<TAB>title`,
quoted as Python's csv module writes them, or not at all); either may be gzipped (`.gz`). Questions: `.jsonl` with
`question` and `answers`, optional `id`, `positive_ids`, `relation`, `phrasing`; not gzipped, because training reads
single lines.

A check parses every line once and keeps 8 bytes per line (a hash of the id): 170 MB for 21 million passages.
"""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import MAX_LINE_BYTES, BadLineError, check_records, decoded, read_lines
from openbook.data.readers.dpr_tsv import tsv_rows
from openbook.errors import OpenBookError
from openbook.utils.console import say

_Record = TypeVar("_Record", Passage, Example)
_KNOWN_AS = {  # what other projects call the same field
    "id": ("_id", "docid", "pid", "passage_id", "qid"),
    "title": ("Title", "name", "wikipedia_title"),
    "text": ("contents", "content", "passage", "body", "context"),
    "question": ("query", "qText", "input", "claim"),
    "answers": ("answer", "golden_answers", "answer_aliases", "targets", "output", "label"),
    "positive_ids": ("positive_ctxs", "positive_passages", "provenance", "gold_ids", "supporting_facts"),
}
_KILT = (
    "KILT: collect the `answer` of each entry of `output` in a list named `answers`, and the ids of its `provenance` "
    "passages in `positive_ids`."
)
_PASSAGE_KEYS, _QUESTION_KEYS = ("id", "title", "text"), tuple(field.name for field in fields(Example))


def read_passages(path: str | Path) -> Iterator[Passage]:
    """The passages of a file in its order. Raises OpenBookError at the first bad line; ids are not compared (see
    check_passages)."""
    for number, record in _passage_records(Path(path)):
        if isinstance(record, BadLineError):
            raise record.at(f"{path}:{number}")
        yield record


def check_passages(path: str | Path) -> int:
    """How many passages the file holds, after checking every line and that no id comes twice."""
    empty = BadLineError("the corpus is empty", got="no passage", expected="at least n_docs passages")
    unread: Counter[str] = Counter()
    n_passages = check_records(Path(path), lambda: _passage_records(Path(path), unread), empty)
    _say_unread(str(path), _PASSAGE_KEYS, tuple(unread.items()), n_passages)
    return n_passages


def index_questions(path: str | Path) -> np.ndarray:
    """Check every line of a question file; give [n, 2] int64: the byte where each question's line starts and the
    line's number from 1."""
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        unpack = "Unpack it first: single lines are read from it during training." if path.suffix == ".gz" else ""
        raise OpenBookError(
            "this question format is not read",
            where=path,
            got="".join(path.suffixes) or "no suffix",
            expected=".jsonl with `question` and `answers` on each line",
            action=unpack or _way_to_jsonl(path),
        )
    empty = BadLineError("the question file is empty", got="no question", expected="at least one")
    unread: Counter[str] = Counter()
    n_questions = check_records(
        path, lambda: _jsonl_records(path, lambda line, name: _example(line, name, unread)), empty, numbered=True
    )
    _say_unread(str(path), _QUESTION_KEYS, tuple(unread.items()), n_questions)
    return np.fromiter(((start, number) for number, start, _ in read_lines(path)), np.dtype((np.int64, 2)))


def parse_example(line: bytes, where: str, default_id: str) -> Example:
    """One line of a question file. `where` (FILE:LINE) is for the error; `default_id` is for a line without `id`."""
    try:
        return _example(decoded(line.rstrip(b"\r\n")), default_id)
    except BadLineError as fault:
        raise fault.at(where) from None


def _passage_records(path: Path, unread: Counter[str] | None = None) -> Iterator[tuple[int, Passage | BadLineError]]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".jsonl"):
        yield from _jsonl_records(path, lambda line, _: _passage(_json_object(line), unread))
    elif name.endswith(".tsv"):
        yield from _tsv_records(path)
    else:
        raise OpenBookError(
            "this passage format is not read",
            where=path,
            got="".join(path.suffixes[-2:]) or "no suffix",
            expected=".jsonl (id, title, text) or DPR's .tsv (id, text, title), either also with .gz",
            action=_way_to_jsonl(path),
        )


@cache  # once per process
def _say_unread(path: str, known: tuple[str, ...], unread: tuple[tuple[str, int], ...], n_lines: int) -> None:
    """What stands in a file and is not read, and where it may belong."""
    told = []
    for key, n in unread:
        near = [ours for ours in known if key in _KNOWN_AS.get(ours, ())]
        told.append(f"`{key}` ({n:,} of {n_lines:,} lines{f'; is it meant as `{near[0]}`?' if near else ''})")
    if told:
        say(f"{path}: keys that are not read: {', '.join(sorted(told))}")


def _way_to_jsonl(path: Path) -> str:
    """What makes a file that loads of this one: a new name, where every line is an object already."""
    try:
        with open(path, "rb") as file:
            first, more = json.loads(file.readline(MAX_LINE_BYTES)), file.read(1)
        if isinstance(first, dict) and (more or "question" in first or "text" in first):
            return f"Each line is a JSON object: rename the file to {path.stem}.jsonl."
    except (OSError, ValueError):
        pass
    return _CONVERT


def _jsonl_records(path: Path, read: Callable[[str, str], _Record]) -> Iterator[tuple[int, _Record | BadLineError]]:
    """Each line as `read` gives it from its text and its number."""
    for number, _, raw in read_lines(path):
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


def _json_object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadLineError(
            "malformed JSON",
            got=f"{error.msg} at position {error.pos + 1}, near {line[max(0, error.pos - 20) : error.pos + 20]!r}",
            expected="one JSON object per line",
        ) from None
    except RecursionError:
        raise BadLineError("malformed JSON", got="brackets nested too deep") from None
    if not isinstance(fields, dict):
        raise BadLineError("a line is not a JSON object", got=type(fields).__name__, expected="{...} on each line")
    return fields


_CONVERT = "Convert the file to one JSON object per line, named .jsonl."


def _require(fields: dict[str, Any], key: str, needs: str) -> Any:
    if key in fields:
        return fields[key]
    near = [alias for alias in _KNOWN_AS[key] if alias in fields] or difflib.get_close_matches(key, fields, 1)
    raise BadLineError(
        f"a line has no `{key}`",
        got=f"the keys {', '.join(map(repr, sorted(fields)))}"[:200],
        expected=needs,
        action="" if not near else _KILT if near[0] == "output" else f"Rename `{near[0]}` to `{key}`.",
    )


def _string(value: Any, key: str, *, numbers: bool = False, empty: bool = True) -> str:
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadLineError(f"`{key}` is not text", got=f"{value!r}"[:80], expected="a string")
    if "\0" in value:
        raise BadLineError(f"`{key}` holds NUL characters", got=f"{value.count(chr(0))} of them", action="Remove them.")
    if not empty and not value.strip():
        raise BadLineError(f"`{key}` is empty", expected="some text", action="Fill it or remove the line.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadLineError(f"`{key}` holds half a surrogate pair", expected="whole characters") from None
    return value


def _strings(value: Any, key: str, *, numbers: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list):
        expected = "a list of strings, also for a single one"
        raise BadLineError(f"`{key}` is not a list", got=f"{value!r}"[:80], expected=expected)
    return tuple(_string(item, key, numbers=numbers, empty=False) for item in value)


def _note_unread(unread: Counter[str] | None, given: dict[str, Any], known: tuple[str, ...]) -> None:
    if unread is not None:
        unread.update(key for key in given if key not in known)


def _passage(fields: dict[str, Any], unread: Counter[str] | None = None) -> Passage:
    needs = "`id`, `title` and `text` on each line (`title` may be an empty string)"
    if "contents" in fields and "title" not in fields:
        raise BadLineError(
            "a line has no `title` and no `text`",
            got="`contents`, as Pyserini and FlashRAG write it",
            expected=needs,
            action="Write the first line of `contents` as `title` and the rest as `text`.",
        )
    _note_unread(unread, fields, _PASSAGE_KEYS)
    return Passage(
        _string(_require(fields, "id", needs), "id", numbers=True, empty=False),
        _string(_require(fields, "title", needs), "title"),
        _string(_require(fields, "text", needs), "text", empty=False),
    )


def _example(line: str, default_id: str, unread: Counter[str] | None = None) -> Example:
    fields = _json_object(line)
    _note_unread(unread, fields, _QUESTION_KEYS)
    fields = {key: value for key, value in fields.items() if value is not None or key in ("question", "answers")}
    needs = "`question` (a string) and `answers` (a list of strings, at least one) on each line"
    question = _string(_require(fields, "question", needs), "question", empty=False)
    answers = _strings(_require(fields, "answers", needs), "answers")
    if not answers:
        raise BadLineError("a question has no answer", got="an empty list", expected=needs)
    return Example(
        id=_string(fields.get("id", default_id), "id", numbers=True, empty=False),
        question=question,
        answers=answers,
        positive_ids=_strings(fields.get("positive_ids", []), "positive_ids", numbers=True),
        relation=_string(fields.get("relation", ""), "relation"),
        phrasing=_string(fields.get("phrasing", ""), "phrasing", numbers=True),
    )
