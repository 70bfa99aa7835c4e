"""MS MARCO question answering: lines of JSON, rows of the Hugging Face hub, or the release's file of columns."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.fields import EMPTY, Asked, answers_of, listed, passage_of, string, text
from openbook.data.readers.json_stream import Element, elements
from openbook.data.readers.questions.family import Family, has
from openbook.data.readers.tables import Place

NONE = "No Answer Present."
_COLUMNS = ("query_id", "query", "query_type", "passages", "answers", "wellFormedAnswers")


def msmarco(record: dict[str, Any], number: str) -> Iterator[Asked]:
    """`is_selected` passages are positive, the others of the question negative; well-formed answers come first."""
    answers = answers_of([*_texts(record, "wellFormedAnswers"), *_texts(record, "answers")], "answers")
    positives, negatives, passages, empty = list[str](), list[str](), list[Passage](), 0
    for one in listed(record, "passages"):
        if not (content := text(one, "passage_text", empty=True)).strip():
            empty += 1
            continue
        passage = passage_of("", content)
        passages.append(passage)
        (positives if one.get("is_selected") else negatives).append(passage.id)
    right = tuple(dict.fromkeys(positives))
    wrong = tuple(dict.fromkeys(one for one in negatives if one not in right))
    identity = string(record.get("query_id", number), "query_id", numbers=True)
    example = Example(
        identity,
        text(record, "query"),
        tuple(answer for answer in answers if answer != NONE),
        right,
        string(record.get("query_type") or "", "query_type").lower(),
        negative_ids=wrong if right else (),
    )
    yield Asked(example, tuple(passages), (EMPTY,) * empty)


def _texts(record: dict[str, Any], key: str) -> list[str]:
    """The file of columns writes [] as text where there is no well-formed answer."""
    value = record.get(key)
    return [] if value == "[]" else listed(record, key, str)


def is_columns(record: object) -> bool:
    """Whether a document's first element is of the release's own file: one object a column, keyed by row."""
    return isinstance(record, Element) and record.column in _COLUMNS


def columns(path: Path) -> Iterator[tuple[Place, Any]]:
    """The rows of such a file. Each column is read on its own, side by side, so that memory is that of one row; the
    place is the row's number."""
    present = dict.fromkeys(one.column for one in elements(path) if isinstance(one, Element) and one.column in _COLUMNS)
    streams = [_column(path, name) for name in present]
    for number, row in enumerate(zip_longest(*streams), 1):
        place = Place(str(path), number)
        fault = next((one for one in row if isinstance(one, BadLineError)), None)
        cells: list[Any] = [one for one in row if isinstance(one, tuple)]
        if fault or len(cells) < len(row) or len({name for name, _ in cells}) > 1:
            got = "rows that one column has and another has not"
            yield place, fault or BadLineError("the columns do not go together", got=got, expected="the same rows")
            return
        yield place, dict(zip(present, (value for _, value in cells), strict=True))


def _column(path: Path, name: str) -> Iterator[tuple[str, Any] | BadLineError]:
    for one in elements(path):
        if not isinstance(one, Element):
            yield one[1]
        elif one.column == name:
            yield one.name, one.value


FAMILIES = (Family("MS MARCO question answering", lambda one: has(one, "query", "passages"), msmarco),)
