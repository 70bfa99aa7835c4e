"""Questions and their answers alone: NQ-open, WebQuestions, PopQA, FlashRAG, TriviaQA."""

import re
from collections.abc import Iterator
from typing import Any

from openbook.batch import Example
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.fields import Asked, answers_of, listed, require, string, text
from openbook.data.readers.json_stream import Element
from openbook.data.readers.questions.family import Family, has

# How the Freebase release of WebQuestions writes a list of answers: (list (description "A B") (description C)).
_DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"]+))\)')


def _identity(record: dict[str, Any], number: str, *keys: str) -> str:
    return string(next((record[key] for key in keys if record.get(key) is not None), number), "id", numbers=True)


def _one(question: str, answers: str, *ids: str) -> Any:
    """A reader of records that hold a question and its answers under these keys."""

    def read(record: dict[str, Any], number: str) -> Iterator[Asked]:
        found = answers_of(require(record, answers, f"`{question}` and `{answers}`"), answers)
        yield Asked(Example(_identity(record, number, *ids), text(record, question), found))

    return read


def webquestions(record: dict[str, Any], number: str) -> Iterator[Asked]:
    written = text(record, "targetValue")
    answers = [quoted or plain for quoted, plain in _DESCRIPTION.findall(written)]
    if not answers and written.strip() != "(list)":
        expected = '(list (description "an answer") ...)'
        raise BadLineError("`targetValue` is no list of answers", got=written[:80], expected=expected)
    unescaped = [answer.replace('\\"', '"').strip() for answer in answers]
    yield Asked(Example(_identity(record, number, "qId"), text(record, "utterance"), answers_of(unescaped, "answer")))


def triviaqa(record: Any, number: str) -> Iterator[Asked]:
    """The answer's value, then its aliases; `MatchedWikiEntityName` and normalised forms are ways to match, and no text
    to learn. The release's own file and the rows of Hugging Face's differ in the case of their keys."""
    fields = record.value if isinstance(record, Element) else record
    if isinstance(record, Element) and record.column != "Data":
        return
    if not isinstance(fields, dict):
        raise BadLineError("a question is not an object", got=type(fields).__name__, expected="`Question` and `Answer`")
    lower = {key.lower().replace("_", ""): value for key, value in fields.items()}
    needs = "`Question`, and `Answer` with `Value` and `Aliases`"
    answer = require(lower, "answer", needs)
    if answer is None:  # a test file, whose answers are not published
        answer = {}
    if not isinstance(answer, dict):
        raise BadLineError("`Answer` is not an object", got=f"{answer!r}"[:80], expected=needs)
    answer = {key.lower(): value for key, value in answer.items()}
    value = answer.get("value")
    answers = answers_of([*([] if value in (None, "<unk>") else [value]), *(listed(answer, "aliases", str))], "Answer")
    question = string(require(lower, "question", needs), "Question", empty=False)
    yield Asked(Example(string(lower.get("questionid") or number, "QuestionId", numbers=True), question, answers))


def _is_triviaqa(record: Any) -> bool:
    if isinstance(record, Element):
        return record.column == "Data" or record.name in ("Data", "Domain", "VERSION", "Split")
    return has(record, "question", "answer") and isinstance(record["answer"], dict) and "aliases" in record["answer"]


FAMILIES = (
    Family("TriviaQA", _is_triviaqa, triviaqa),
    Family(
        "FlashRAG questions",
        lambda one: has(one, "question", "golden_answers"),
        _one("question", "golden_answers", "id"),
    ),
    Family("PopQA", lambda one: has(one, "question", "possible_answers"), _one("question", "possible_answers", "id")),
    Family("WebQuestions", lambda one: has(one, "utterance", "targetValue"), webquestions),
    Family("WebQuestions as a list", lambda one: has(one, "qText", "answers"), _one("qText", "answers", "qId")),
    Family("NQ-open", lambda one: has(one, "question", "answer"), _one("question", "answer", "id")),
)
