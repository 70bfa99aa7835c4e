"""This project's own questions, and rows without a header: DPR's questions between tabs, CuratedTREC, ColBERT and MS
MARCO queries, transformers' pairs of lines."""

from collections.abc import Iterator
from typing import Any

from openbook.batch import Example
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.fields import Asked, answers_of, string
from openbook.data.readers.formats import example_of
from openbook.data.readers.questions.family import Family, has

OWN = "openbook questions"


def is_own(record: object) -> bool:
    """Whether a record has this project's keys; a DPR file has them too, beside its passages."""
    if not isinstance(record, dict) or not isinstance(record.get("answers"), list) or "question" not in record:
        return False
    mine = "positive_ids" in record or "positive_ctxs" not in record
    return mine and all(isinstance(answer, str) for answer in record["answers"])


def own(record: dict[str, Any], number: str) -> Iterator[Asked]:
    answers = answers_of(record.get("answers"), "answers")  # a table has them as text
    several = ("positive_ids", "negative_ids", "paraphrases")
    lists = {key: list(answers_of(record[key], key)) for key in several if record.get(key)}
    record = {key: value for key, value in record.items() if value is not None and value != ""}
    yield Asked(example_of(record | {"answers": list(answers)} | lists, number, unanswered=True))


def trec(record: list[str], number: str) -> Iterator[Asked]:
    """Id, type, question and a pattern: CuratedTREC's answers are regular expressions."""
    _check(record, 4)
    note = "answers that are regular expressions (set evaluate.regex_answers=true)"
    question = string(record[2], "question", empty=False)
    yield Asked(Example(record[0], question, answers_of([record[3]], "answer"), relation=record[1]), (), (note,))


def question_answers(record: list[str], number: str) -> Iterator[Asked]:
    _check(record, 2)
    yield Asked(Example(number, string(record[0], "question", empty=False), answers_of(record[1], "answers")))


def query(record: list[str], number: str) -> Iterator[Asked]:
    """A number and a question."""
    _check(record, 2)
    yield Asked(Example(record[0], string(record[1], "query", empty=False), ()))


def _check(record: Any, width: int) -> None:
    if not isinstance(record, list) or len(record) != width:
        got = f"{len(record)}" if isinstance(record, list) else type(record).__name__
        raise BadLineError("a line has the wrong number of columns", got=got, expected=f"{width}, separated by tabs")


def _rows(width: int) -> Any:
    return lambda record: isinstance(record, list) and len(record) == width


FAMILIES = (
    Family(OWN, lambda record: has(record, "question"), own),
    Family("CuratedTREC", _rows(4), trec),
    Family(
        "ColBERT and MS MARCO queries",
        lambda record: _rows(2)(record) and record[0].strip().isdigit() and not record[1].lstrip().startswith("["),
        query,
    ),
    Family("DPR questions between tabs", _rows(2), question_answers),
)
