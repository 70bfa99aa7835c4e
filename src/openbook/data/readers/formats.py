"""Readers of what users bring: passages and questions, every line checked before anything expensive starts.

Passages: `.jsonl` with `id`, `title`, `text` on each line, or DPR's `psgs_w100.tsv` (header `id<TAB>text<TAB>title`,
fields quoted as Python's csv module writes them); either may be gzipped (`.gz`). Questions: `.jsonl` with `question`
and `answers`, optional `id`, `positive_ids`, `relation`, `phrasing`; not gzipped, because training reads single lines.

A check parses every line once and keeps 8 bytes per line (a hash of the id): 170 MB for 21 million passages.
"""

import csv
import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import BadLineError, check_records, decoded, read_lines
from openbook.errors import OpenBookError

_Record = TypeVar("_Record", Passage, Example)
_DPR_HEADER = ["id", "text", "title"]
_KNOWN_AS = {  # what other projects call the same field
    "id": ("_id", "docid", "pid", "passage_id", "qid"),
    "title": ("Title", "name", "wikipedia_title"),
    "text": ("contents", "content", "passage", "body", "context"),
    "question": ("query", "qText", "input"),
    "answers": ("answer", "answer_aliases", "targets", "output"),
}


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
    return check_records(Path(path), lambda: _passage_records(Path(path)), empty)


def index_questions(path: str | Path) -> np.ndarray:
    """Check every line of a question file; give [n, 2] int64: the byte where each question's line starts and the
    line's number from 1."""
    path = Path(path)
    if path.suffix != ".jsonl":
        unpack = " Unpack it first: single lines are read from it during training." if path.suffix == ".gz" else ""
        raise OpenBookError(
            "this question format is not read",
            where=path,
            got="".join(path.suffixes) or "no suffix",
            expected=".jsonl with `question` and `answers` on each line",
            action=f"Convert the file.{unpack}",
        )
    empty = BadLineError("the question file is empty", got="no question", expected="at least one")
    check_records(path, lambda: _jsonl_records(path, _example), empty)
    return np.fromiter(((start, number) for number, start, _ in read_lines(path)), np.dtype((np.int64, 2)))


def parse_example(line: bytes, where: str, default_id: str) -> Example:
    """One line of a question file. `where` (FILE:LINE) is for the error; `default_id` is for a line without `id`."""
    try:
        return _example(decoded(line.rstrip(b"\r\n")), default_id)
    except BadLineError as fault:
        raise fault.at(where) from None


def _passage_records(path: Path) -> Iterator[tuple[int, Passage | BadLineError]]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        yield from _jsonl_records(path, lambda line, _: _passage(_json_object(line)))
    elif name.endswith(".tsv"):
        yield from _tsv_records(path)
    else:
        raise OpenBookError(
            "this passage format is not read",
            where=path,
            got="".join(path.suffixes[-2:]) or "no suffix",
            expected=".jsonl (id, title, text) or DPR's .tsv (id, text, title), either also with .gz",
            action="Convert the file.",
        )


def _jsonl_records(path: Path, read: Callable[[str, str], _Record]) -> Iterator[tuple[int, _Record | BadLineError]]:
    """Each line as `read` gives it from its text and its number."""
    for number, _, raw in read_lines(path):
        try:
            yield number, read(decoded(raw), str(number))
        except BadLineError as fault:
            yield number, fault


def _tsv_records(path: Path) -> Iterator[tuple[int, Passage | BadLineError]]:
    number = 0
    faults: list[tuple[int, BadLineError]] = []

    def decoded_lines() -> Iterator[str]:  # csv asks for the next one while a quoted field is open
        nonlocal number
        for number, _, raw in read_lines(path):
            try:
                yield decoded(raw) + "\n"
            except BadLineError as fault:
                faults.append((number, fault))

    rows = csv.reader(decoded_lines(), delimiter="\t", strict=True)
    header_seen = False
    row: list[str] | None = []
    while row is not None:
        try:
            row = next(rows, None)
            if row is not None and not header_seen:
                _check_header(path, row)
                header_seen = True
            elif row is not None:
                yield number, _tsv_passage(row)
        except csv.Error as error:
            faults.append((number, BadLineError("a line is not valid tab-separated text", got=str(error))))
        except BadLineError as fault:
            faults.append((number, fault))
        yield from faults
        faults.clear()


def _tsv_passage(row: list[str]) -> Passage:
    if len(row) != len(_DPR_HEADER):
        raise BadLineError(
            "a line has the wrong number of columns",
            got=f"{len(row)}",
            expected="3, separated by tabs: id, text, title",
            action="A tab or quotation mark inside a field must be quoted as csv does.",
        )
    return _passage(dict(zip(_DPR_HEADER, row, strict=True)))


def _check_header(path: Path, row: list[str]) -> None:
    if row != _DPR_HEADER:
        raise OpenBookError(
            "the header is not DPR's",
            where=f"{path}:1",
            got=repr("\t".join(row))[:120],
            expected=repr("\t".join(_DPR_HEADER)),
            action="Put that line first, or convert the file to .jsonl.",
        )


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


def _require(fields: dict[str, Any], key: str, needs: str) -> Any:
    if key in fields:
        return fields[key]
    near = [alias for alias in _KNOWN_AS[key] if alias in fields] or difflib.get_close_matches(key, fields, 1)
    raise BadLineError(
        f"a line has no `{key}`",
        got=f"the keys {', '.join(map(repr, sorted(fields)))}"[:200],
        expected=needs,
        action=f"Rename `{near[0]}` to `{key}`." if near else "",
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


def _passage(fields: dict[str, Any]) -> Passage:
    needs = "`id`, `title` and `text` on each line (`title` may be an empty string)"
    return Passage(
        _string(_require(fields, "id", needs), "id", numbers=True, empty=False),
        _string(_require(fields, "title", needs), "title"),
        _string(_require(fields, "text", needs), "text", empty=False),
    )


def _example(line: str, default_id: str) -> Example:
    fields = _json_object(line)
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
