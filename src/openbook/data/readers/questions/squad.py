"""SQuAD 1.1 and 2.0 (and what is written like them: XQuAD, MLQA, GermanQuAD): a document of articles, or rows of the
Hugging Face hub."""

from collections.abc import Iterator
from typing import Any

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.fields import Asked, answers_of, listed, passage_of, string, text
from openbook.data.readers.json_stream import Element
from openbook.data.readers.questions.family import Family, has


def squad(record: Any, number: str) -> Iterator[Asked | Passage]:
    """The questions of an article. A paragraph is a passage with the article's title, and the positive one of the
    questions that it answers; those that it does not answer (`is_impossible`) have neither an answer nor a positive
    passage. A paragraph that nothing is asked about is a passage all the same."""
    if isinstance(record, Element):
        if record.column != "data":
            return
        record = record.value
    if not isinstance(record, dict):
        raise BadLineError(
            "an article is not an object", got=type(record).__name__, expected="`title` and `paragraphs`"
        )
    if "paragraphs" not in record:
        yield _asked(record, record, number)
        return
    for nth, paragraph in enumerate(listed(record, "paragraphs")):
        titled, asked = paragraph | {"title": record.get("title")}, listed(paragraph, "qas")
        for place, question in enumerate(asked):
            yield _asked(question, titled, f"{number}.{nth}.{place}")
        if not asked and text(paragraph, "context", empty=True).strip():
            yield _passage(titled)


def _passage(paragraph: dict[str, Any]) -> Passage:
    return passage_of(string(paragraph.get("title") or "", "title"), text(paragraph, "context"))


def _asked(question: dict[str, Any], paragraph: dict[str, Any], number: str) -> Asked:
    passage = _passage(paragraph)
    answers = answers_of([one.get("text") for one in listed(question, "answers")], "answers")
    impossible = bool(question.get("is_impossible"))
    identity = string(question.get("id") or number, "id", numbers=True)
    positive = () if impossible or not answers else (passage.id,)
    return Asked(Example(identity, text(question, "question"), () if impossible else answers, positive), (passage,))


def _reads(record: Any) -> bool:
    if isinstance(record, Element):
        return record.column == "data" or record.name in ("data", "version")
    return has(record, "question", "context", "answers") or has(record, "title", "paragraphs")


FAMILIES = (Family("SQuAD", _reads, squad),)
