"""Questions that take several passages, with the paragraphs they were asked over: HotpotQA, 2Wiki, MuSiQue."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.fields import EMPTY, Asked, answers_of, listed, passage_of, require, string, text
from openbook.data.readers.questions.family import Family, has


def hotpot(record: dict[str, Any], number: str) -> Iterator[Asked]:
    """A paragraph is a passage; those of the titles that `supporting_facts` names are positive, the others negative.
    2Wiki's files are written alike. Hugging Face's rows have objects of lists for both."""
    read = [_paragraph(one) for one in _pairs(record, "context", "title", "sentences")]
    passages = [one for one in read if one]
    supporting = {str(title) for title, _ in _pairs(record, "supporting_facts", "title", "sent_id")}
    right = [one.id for one in passages if one.title in supporting]
    wrong = [one.id for one in passages if one.title not in supporting] if supporting else []
    lost = supporting - {one.title for one in passages}
    notes = ("supporting titles without a paragraph in their record",) * len(lost)
    notes += (EMPTY,) * (len(read) - len(passages))
    answers = answers_of(record.get("answer"), "answer")
    identity = string(record.get("_id", record.get("id", number)), "_id", numbers=True)
    relation = string(record.get("type") or "", "type")
    example = Example(identity, text(record, "question"), answers, _once(right), relation, negative_ids=_once(wrong))
    yield Asked(example, tuple(passages), notes)


def _pairs(record: dict[str, Any], key: str, first: str, second: str) -> list[list[Any]]:
    """[[title, what belongs to it], ...] of either writing."""
    value = record.get(key)
    if isinstance(value, dict):
        return [[one[first], one[second]] for one in listed(record, key) if first in one and second in one]
    pairs = listed(record, key, list)
    if not all(len(one) == 2 for one in pairs):
        raise BadLineError(
            f"`{key}` is no list of pairs", got=f"{value!r}"[:80], expected=f"[[{first}, {second}], ...]"
        )
    return pairs


def _paragraph(pair: list[Any]) -> Passage | None:
    """None of a paragraph without text."""
    title, sentences = pair
    if not isinstance(sentences, list):
        raise BadLineError(
            "a paragraph is no list of sentences", got=f"{sentences!r}"[:80], expected="[title, [sentence]]"
        )
    content = "".join(string(one, "context") for one in sentences)
    if any(one and not one.endswith(" ") and not after.startswith(" ") for one, after in pairwise(sentences)):
        content = " ".join(one.strip() for one in sentences)
    return passage_of(string(title, "context"), content.strip()) if content.strip() else None


def musique(record: dict[str, Any], number: str) -> Iterator[Asked]:
    """`is_supporting` paragraphs are positive, the others negative; `answerable: false` has no answer."""
    read = listed(record, "paragraphs")
    paragraphs = [
        (passage_of(string(one.get("title") or "", "title"), content), bool(one.get("is_supporting")))
        for one in read
        if (content := text(one, "paragraph_text", empty=True)).strip()
    ]
    right = _once([one.id for one, supports in paragraphs if supports])
    wrong = _once([one.id for one, supports in paragraphs if not supports and one.id not in right])
    known = record.get("answerable", True)
    answers = (
        answers_of([record.get("answer") or "", *listed(record, "answer_aliases", str)], "answer") if known else ()
    )
    identity = string(require(record, "id", "`id`, `question`, `paragraphs`"), "id", numbers=True)
    relation = identity.split("__")[0] if "__" in identity else ""
    example = Example(identity, text(record, "question"), answers, right, relation, negative_ids=wrong if right else ())
    yield Asked(example, tuple(one for one, _ in paragraphs), (EMPTY,) * (len(read) - len(paragraphs)))


def _once(ids: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ids))


FAMILIES = (
    Family("HotpotQA and 2WikiMultihopQA", lambda one: has(one, "question", "context", "supporting_facts"), hotpot),
    Family("MuSiQue", lambda one: has(one, "question", "paragraphs"), musique),
)
